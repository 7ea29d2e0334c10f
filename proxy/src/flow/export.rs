//! Raw flows on their way out of an engine and into another one, in this process or the next.
//!
//! ```text
//!   Engines::export ─► quiesce: cancel, reap ─► queued buffers, pipes' bytes ─► Flow { to_backend, to_client, progress, … }
//!                                                                                 │ its two sockets by SCM_RIGHTS, the rest as data
//!                                                                                 ▼
//!                                                              Engines::submit of the other process: FIN and all goes on
//! ```

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::core::Core;
use super::state::{BACKEND, CLIENT, FlowState, NEVER, Stage};
use super::stats::add;
use super::{Engines, Flow, FlowEnd, FlowLimits, Leg};
use crate::session::CloseReason;

/// How far one direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Half {
    /// Its source may still send.
    #[default]
    Open,
    /// Its source ended (FIN was read); FIN follows to the destination after the last byte that is kept for it.
    Ended,
    /// Everything was delivered, and FIN after it.
    Done,
}

/// How far a flow has come. Durations, not points in time: the clocks of two processes have nothing in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Client → hypervisor.
    pub up: Half,
    /// Hypervisor → client.
    pub down: Half,
    /// Both directions have ended, and the hypervisor's was the first.
    pub backend_first: bool,
    /// How long ago the last byte was delivered; counts towards `FlowLimits::idle`.
    pub silent: Duration,
    /// How long ago the first direction was done; counts towards `FlowLimits::half_close`.
    pub half_closed: Option<Duration>,
}

/// The flows of an export, as they come ([`Engines::export`]); ends after the last. Those that are not taken when it is dropped
/// go back to the engine.
pub struct Exported<'a> {
    pub(super) engines: &'a Engines,
    pub(super) flows: Receiver<Flow>,
}

impl Iterator for Exported<'_> {
    type Item = Flow;

    fn next(&mut self) -> Option<Flow> {
        self.flows.recv().ok()
    }
}

impl Drop for Exported<'_> {
    fn drop(&mut self) {
        self.flows.iter().for_each(|flow| self.engines.take_back(flow));
    }
}

impl Engines {
    /// A flow that was exported and goes nowhere: it goes on here. One that has no room here any more is over.
    pub fn take_back(&self, flow: Flow) {
        if let Err(flow) = self.submit(flow) {
            let (up, down) = (flow.counters.up.load(Relaxed), flow.counters.down.load(Relaxed));
            drop((flow.client, flow.backend));
            (flow.on_close)(FlowEnd { reason: CloseReason::Internal, up, down, rtt_us: [None; 2] });
        }
    }
}

/// An export under way: to whom, and how many flows are still to be quiesced.
pub(super) struct Export {
    to: Sender<Flow>,
    left: usize,
}

impl Core {
    /// Begins to export raw flows that are not ending, at most so many: returns which. While one export is under way, a
    /// second one gets nothing.
    pub(super) fn begin_export(&mut self, to: Sender<Flow>, most: usize) -> Vec<u32> {
        if self.export.is_some() {
            return Vec::new();
        }
        let all = self.flows.keys().into_iter();
        let leaving = all.filter(|&key| self.flows.get_mut(key).is_some_and(FlowState::leave));
        let keys: Vec<u32> = leaving.take(most).collect();
        if !keys.is_empty() {
            self.export = Some(Export { to, left: keys.len() });
        }
        keys
    }

    /// Gives a flow out of which nothing is in flight or in provided buffers. One that is doomed stays: its end is near.
    pub(super) fn export(&mut self, key: u32) {
        if self.doomed.iter().any(|(doomed, _)| *doomed == key) {
            return;
        }
        if !self.empty_pipes(key) {
            return self.doom(key, CloseReason::Internal);
        }
        let Some(flow) = self.remove(key) else { return };
        add(&self.stats.exported, 1);
        if let Some(export) = &self.export {
            // The receiver lives until the last sender is gone.
            let _ = export.to.send(flow.into_flow(self.now_ms, self.epoch()));
        }
        self.left_one();
    }

    /// A flow that was to leave has left or ended.
    pub(super) fn left_one(&mut self) {
        if let Some(export) = &mut self.export {
            export.left -= 1;
            if export.left == 0 {
                // The receiver sees the end.
                self.export = None;
            }
        }
    }

    /// Takes what is in the pipes into memory of the flow's own; false if a pipe does not give what is in it.
    fn empty_pipes(&mut self, key: u32) -> bool {
        let Some(flow) = self.flows.get_mut(key) else { return true };
        for dir in &mut flow.dirs {
            let Some(pipe) = dir.pipe.take() else { continue };
            let got = pipe.read(&mut dir.pending, dir.in_pipe as usize);
            dir.in_pipe -= got as u32;
            self.pipes.put(pipe, dir.in_pipe as usize);
            if dir.in_pipe > 0 {
                return false;
            }
        }
        true
    }
}

impl FlowState {
    /// Marks it to be exported, unless it is ending or has layers, whose state cannot move.
    fn leave(&mut self) -> bool {
        let ending = self.reason.is_some() || self.stage == Stage::Quiescing(super::state::Goal::Close);
        self.leaving = !ending && self.layers.is_none();
        self.leaving
    }

    fn into_flow(self, now_ms: u64, epoch: Instant) -> Flow {
        let since = |at: u64| Duration::from_millis(now_ms.saturating_sub(at));
        let half = |dir: usize| match (self.dirs[dir].eof, self.dirs[dir].done) {
            (_, true) => Half::Done,
            (true, false) => Half::Ended,
            (false, false) => Half::Open,
        };
        let progress = Progress {
            up: half(CLIENT),
            down: half(BACKEND),
            backend_first: self.first_eof == Some(BACKEND),
            silent: since(self.counters.last_ms.load(Relaxed)),
            half_closed: (self.half_closed_ms != NEVER).then(|| since(self.half_closed_ms)),
        };
        let span = |ms: u64| (ms != NEVER).then(|| Duration::from_millis(ms));
        let limits = FlowLimits {
            idle: span(self.idle_ms),
            ends_at: span(self.ends_ms).map(|after| epoch + after),
            half_close: Duration::from_millis(self.half_close_ms),
        };
        let [to_backend, to_client] = self.dirs.map(super::state::Direction::into_rest);
        let [client, backend] = self.socks.map(|sock| Leg::Raw(sock.fd));
        Flow {
            id: self.id,
            client,
            backend,
            to_backend,
            to_client,
            limits,
            counters: self.counters,
            progress,
            on_first_byte: self.on_first_byte,
            on_close: self.on_close,
        }
    }
}
