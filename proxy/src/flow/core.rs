//! What both drivers share: the table of flows, their deadlines, the pipes, the lists of a turn, the accounts.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Flow;
use super::config::{FlowConfig, Mode};
use super::pipes::Pipes;
use super::slab::Slab;
use super::state::{FlowState, NEVER};
use super::stats::{EngineStats, Way, add};
use crate::session::CloseReason;

/// Bytes that one copying read takes at most.
pub(super) const SCRATCH_BYTES: usize = 64 << 10;
/// How soon a direction is looked at again whose last splice may have left bytes behind.
const SWEEP: Duration = Duration::from_micros(300);
/// How often unused pipes are closed.
const TRIM_MS: u64 = 2000;

/// The state of one engine thread.
pub(super) struct Core {
    pub(super) flows: Slab<FlowState>,
    pub(super) pipes: Pipes,
    pub(super) stats: Arc<EngineStats>,
    pub(super) mode: Mode,
    pub(super) scratch: Box<[u8]>,
    /// The driver moves bulk by operations of its own: nothing to pump.
    pub(super) op_splice: bool,
    /// Flows to pump in this turn.
    pub(super) ready: Vec<u32>,
    /// Splices into pipes since the driver last asked, and their bytes.
    pub(super) filled: (usize, usize),
    /// Flows that the ring serves and whose destination did not take all: for system calls from now on.
    pub(super) strained: Vec<u32>,
    /// Flows to end, found in this turn.
    pub(super) doomed: Vec<(u32, CloseReason)>,
    /// When this turn began.
    pub(super) now: Instant,
    pub(super) now_ms: u64,
    sweep: Vec<u32>,
    sweep_at: Instant,
    by_id: HashMap<u64, u32>,
    timers: super::timers::Timers,
    trim_ms: u64,
    epoch: Instant,
    /// The export under way.
    pub(super) export: Option<super::export::Export>,
    /// Scratch of flows with layers.
    pub(super) bench: Option<Box<super::layered::Bench>>,
    pub(super) lingering: super::lingering::Lingering,
}

impl Core {
    /// An empty one, whose clock began at `epoch`.
    pub(super) fn new(config: &FlowConfig, stats: Arc<EngineStats>, epoch: Instant) -> Self {
        let now = Instant::now();
        Self {
            flows: Slab::new(),
            pipes: Pipes::new(config.max_pipes, config.pipe_bytes),
            stats,
            mode: config.mode,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            op_splice: false,
            ready: Vec::new(),
            filled: (0, 0),
            strained: Vec::new(),
            doomed: Vec::new(),
            now,
            now_ms: now.saturating_duration_since(epoch).as_millis() as u64,
            sweep: Vec::new(),
            sweep_at: now,
            by_id: HashMap::new(),
            timers: super::timers::Timers::default(),
            trim_ms: 0,
            epoch,
            export: None,
            bench: None,
            lingering: super::lingering::Lingering::default(),
        }
    }

    /// Reads the clock: once per turn, after the wait.
    pub(super) fn tick(&mut self) {
        self.now = Instant::now();
        self.now_ms = self.now.saturating_duration_since(self.epoch).as_millis() as u64;
    }

    /// Takes a flow over.
    pub(super) fn admit(&mut self, flow: Flow) -> u32 {
        let state = FlowState::new(flow, self.mode, self.epoch, self.now_ms);
        let id = state.id;
        let key = self.flows.insert(state);
        self.by_id.insert(id, key);
        add(&self.stats.started, 1);
        self.schedule(key);
        key
    }

    /// The flow with this session number.
    pub(super) fn find(&self, id: u64) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Ends a flow of which nothing is in flight any more: frees all it holds, then tells its owner.
    pub(super) fn finish(&mut self, key: u32) {
        let Some(mut flow) = self.remove(key) else { return };
        for dir in &mut flow.dirs {
            if let Some(pipe) = dir.pipe.take() {
                self.pipes.put(pipe, dir.in_pipe as usize);
            }
        }
        if flow.leaving {
            self.left_one();
        }
        let id = flow.id;
        let layered = self.farewell(&mut flow);
        let (on_close, end, socks) = flow.close();
        if layered {
            self.linger(socks);
        } else {
            drop(socks);
        }
        add(&self.stats.ended, 1);
        if catch_unwind(AssertUnwindSafe(|| on_close(end))).is_err() {
            tracing::error!(session = id, "the account of a closed flow panicked; the flow is closed");
        }
    }

    /// Takes a flow out of the tables.
    pub(super) fn remove(&mut self, key: u32) -> Option<FlowState> {
        let flow = self.flows.remove(key)?;
        self.by_id.remove(&flow.id);
        self.timers.set(key, flow.due_ms, NEVER);
        self.stats.flows.fetch_sub(1, Relaxed);
        Some(flow)
    }

    /// When the engine's clock began.
    pub(super) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Lists a flow for this turn's pump.
    #[inline]
    pub(super) fn list(&mut self, key: u32) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.listed
        {
            flow.listed = true;
            self.ready.push(key);
        }
    }

    /// Marks a flow to be ended by the driver at the end of this step.
    pub(super) fn doom(&mut self, key: u32, reason: CloseReason) {
        self.doomed.push((key, reason));
    }

    /// Lists a flow to be looked at again after a moment.
    pub(super) fn look_again(&mut self, key: u32) {
        if let Some(flow) = self.flows.get_mut(key)
            && !flow.swept
        {
            flow.swept = true;
            if self.sweep.is_empty() {
                self.sweep_at = self.now + SWEEP;
            }
            self.sweep.push(key);
        }
    }

    /// Lists what was to be looked at again, once its moment has come.
    pub(super) fn sweep(&mut self) {
        if self.sweep.is_empty() || self.now < self.sweep_at {
            return;
        }
        for key in std::mem::take(&mut self.sweep) {
            let Some(flow) = self.flows.get_mut(key) else { continue };
            flow.swept = false;
            for side in 0..2 {
                if flow.dirs[side].unsure {
                    flow.dirs[side].unsure = false;
                    flow.socks[side].readable = !flow.dirs[side].eof;
                }
            }
            self.list(key);
        }
    }

    /// The way of bytes that went through a buffer.
    pub(super) fn buffered_way(&self) -> Way {
        if self.mode == Mode::Copy { Way::Copied } else { Way::Interactive }
    }

    /// Recomputes a flow's entry in the timers.
    pub(super) fn schedule(&mut self, key: u32) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let (due, _) = flow.deadline();
        self.timers.set(key, flow.due_ms, due);
        flow.due_ms = due;
    }

    /// Dooms the flows whose deadline has passed.
    pub(super) fn expire(&mut self) {
        while let Some(key) = self.timers.pop_due(self.now_ms) {
            let Some(flow) = self.flows.get_mut(key) else { continue };
            flow.due_ms = NEVER;
            let pinged = flow.layers.as_mut().is_some_and(|layers| layers.ping(self.now_ms));
            let (due, reason) = flow.deadline();
            if pinged {
                self.list(key);
            }
            if due <= self.now_ms {
                self.doom(key, reason);
            } else {
                self.schedule(key);
            }
        }
    }

    /// The longest the driver may wait for events; `None`: for ever.
    pub(super) fn patience(&self) -> Option<Duration> {
        if !self.ready.is_empty() || !self.doomed.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadline = self.timers.next().map(|at| self.epoch + Duration::from_millis(at));
        let sweep = (!self.sweep.is_empty()).then_some(self.sweep_at);
        let trim = (self.pipes.idle() > 0).then(|| self.epoch + Duration::from_millis(self.trim_ms));
        let linger = self.lingering.next_ms().map(|at| self.epoch + Duration::from_millis(at));
        let next = [deadline, sweep, trim, linger].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Publishes gauges and closes unused pipes.
    pub(super) fn publish(&mut self) {
        if self.now_ms >= self.trim_ms {
            self.trim_ms = self.now_ms + TRIM_MS;
            self.pipes.trim();
        }
        self.lingering.review(self.now_ms);
        self.stats.pipes_idle.store(self.pipes.idle() as u64, Relaxed);
        self.stats.pipes_in_use.store(self.pipes.in_use() as u64, Relaxed);
        self.stats.pipes_refused.store(self.pipes.refused, Relaxed);
        add(&self.stats.turns, 1);
    }
}
