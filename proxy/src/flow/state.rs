//! The state of one flow on its engine thread: a few hundred bytes, no buffer, no pipe while it is idle.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::config::Mode;
use super::direction::Pacer;
use super::layered::Layers;
use super::pipes::Pipe;
use super::stats::{EngineStats, Way, add};
use super::{Flow, FlowCounters, FlowEnd, Half, Progress};
use crate::session::CloseReason;

/// No deadline.
pub(super) const NEVER: u64 = u64::MAX;
/// No provided buffer.
pub(super) const NO_BUFFER: u16 = u16::MAX;

/// A side of the flow; also the direction that reads from it.
pub(super) type Side = usize;
/// The client, and the direction client → hypervisor.
pub(super) const CLIENT: Side = 0;
/// The hypervisor, and the direction hypervisor → client.
pub(super) const BACKEND: Side = 1;

/// Who moves the flow's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Multishot receives and sends on the ring; the sockets block.
    Ring,
    /// Non-blocking system calls, driven by readiness.
    Ready,
    /// Everything in flight was cancelled; what comes next starts after the last completion.
    Quiescing(Goal),
}

/// What a flow goes to once nothing of it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// `Stage::Ready`.
    Ready,
    /// `Stage::Ring`.
    Ring,
    /// Another engine.
    Export,
    /// The end.
    Close,
}

/// One socket and what is known of it. The flags are hints until a call answers "would block".
pub(super) struct Sock {
    pub(super) fd: OwnedFd,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer sent FIN: a short read is not the last, end of stream follows without an edge.
    pub(super) hup: bool,
}

/// One direction. Its source is the socket of the same number, its destination the other one.
pub(super) struct Direction {
    pub(super) pacer: Pacer,
    /// Provided buffers on their way to the destination, oldest first.
    pub(super) head: u16,
    pub(super) tail: u16,
    pub(super) queued: u16,
    /// The source ended: everything it sent was read.
    pub(super) eof: bool,
    /// The source ended and everything was delivered; FIN was sent.
    pub(super) done: bool,
    /// The last splice filled less than it might: the source is empty or the pipe was out of slots.
    pub(super) unsure: bool,
    /// The receive was cancelled until the destination takes what is queued.
    pub(super) paused: bool,
    /// The bytes in `pending` are those the front handed over.
    pub(super) handed_over: bool,
    /// Owned bytes to send before anything else, from `sent` on.
    pub(super) pending: Vec<u8>,
    pub(super) sent: u32,
    /// Bytes in `pipe`.
    pub(super) in_pipe: u32,
    pub(super) pipe: Option<Pipe>,
}

impl Direction {
    fn new(mode: Mode, now_ms: u64, mut first: Vec<u8>, half: Half) -> Self {
        // The front read with room for more; what is kept for as long as nothing moves takes no more room than it needs.
        first.shrink_to_fit();
        Self {
            pacer: Pacer::new(mode, now_ms),
            head: NO_BUFFER,
            tail: NO_BUFFER,
            queued: 0,
            eof: half != Half::Open,
            done: half == Half::Done,
            unsure: false,
            paused: false,
            handed_over: !first.is_empty(),
            pending: first,
            sent: 0,
            in_pipe: 0,
            pipe: None,
        }
    }

    /// The owned bytes that are still to be sent.
    pub(super) fn rest(&self) -> &[u8] {
        &self.pending[self.sent as usize..]
    }

    /// The owned bytes that are still to be sent, to keep.
    pub(super) fn into_rest(mut self) -> Vec<u8> {
        self.pending.drain(..self.sent as usize);
        self.pending
    }

    /// Marks `n` owned bytes as sent; frees them with the last.
    pub(super) fn advance(&mut self, n: usize) {
        self.sent += n as u32;
        if self.sent as usize == self.pending.len() {
            (self.pending, self.sent, self.handed_over) = (Vec::new(), 0, false);
        }
    }

    /// Appends bytes to those that are to be sent first.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Nothing read from the source waits for the destination.
    pub(super) fn empty(&self) -> bool {
        self.pending.is_empty() && self.queued == 0 && self.in_pipe == 0
    }
}

/// One flow.
pub(super) struct FlowState {
    pub(super) id: u64,
    pub(super) socks: [Sock; 2],
    pub(super) dirs: [Direction; 2],
    pub(super) stage: Stage,
    /// Operations in flight on the ring, one bit each.
    pub(super) ops: u8,
    /// In the list of flows to pump.
    pub(super) listed: bool,
    /// In the list of flows to look at again shortly.
    pub(super) swept: bool,
    /// Counted among those that an export waits for.
    pub(super) leaving: bool,
    /// The side that ended first.
    pub(super) first_eof: Option<Side>,
    /// Why it ends; the first reason stays.
    pub(super) reason: Option<CloseReason>,
    pub(super) idle_ms: u64,
    pub(super) half_close_ms: u64,
    pub(super) ends_ms: u64,
    pub(super) half_closed_ms: u64,
    /// Its entry in the timers.
    pub(super) due_ms: u64,
    /// TLS and WebSocket of its legs; `None`: both are raw.
    pub(super) layers: Option<Box<Layers>>,
    pub(super) counters: Arc<FlowCounters>,
    pub(super) on_first_byte: Option<Box<dyn FnOnce() + Send>>,
    pub(super) on_close: Box<dyn FnOnce(FlowEnd) + Send>,
}

impl FlowState {
    /// Takes a flow over at `now_ms` of the clock that began at `epoch`.
    pub(super) fn new(flow: Flow, mode: Mode, epoch: Instant, now_ms: u64) -> Self {
        let Flow { id, client, backend, to_backend, to_client, limits, counters, progress, .. } = flow;
        let (client, backend, layers) = Layers::take(client, backend, now_ms);
        let sock = |fd| Sock { fd, readable: true, writable: true, hup: false };
        let ago = |past: Duration| now_ms.saturating_sub(past.as_millis() as u64);
        counters.last_ms.store(ago(progress.silent), Relaxed);
        let ended = progress.up != Half::Open || progress.down != Half::Open;
        let first_eof = match progress {
            Progress { backend_first: true, .. } | Progress { up: Half::Open, .. } => BACKEND,
            _ => CLIENT,
        };
        Self {
            id,
            socks: [sock(client), sock(backend)],
            dirs: [
                Direction::new(mode, now_ms, to_backend, progress.up),
                Direction::new(mode, now_ms, to_client, progress.down),
            ],
            stage: Stage::Ready,
            ops: 0,
            listed: false,
            swept: false,
            leaving: false,
            first_eof: ended.then_some(first_eof),
            reason: None,
            idle_ms: limits.idle.map_or(NEVER, millis),
            half_close_ms: millis(limits.half_close),
            ends_ms: limits.ends_at.map_or(NEVER, |at| millis(at.saturating_duration_since(epoch))),
            half_closed_ms: progress.half_closed.map_or(NEVER, ago),
            due_ms: NEVER,
            layers,
            counters,
            on_first_byte: flow.on_first_byte,
            on_close: flow.on_close,
        }
    }

    /// Counts bytes delivered to the destination of `dir`.
    #[inline]
    pub(super) fn delivered(&mut self, dir: Side, n: usize, way: Way, stats: &EngineStats, now_ms: u64) {
        let way = if self.dirs[dir].handed_over { Way::First } else { way };
        add(&stats.bytes[way as usize], n as u64);
        add(if dir == CLIENT { &self.counters.up } else { &self.counters.down }, n as u64);
        self.counters.last_ms.store(now_ms, Relaxed);
        if dir == BACKEND
            && n > 0
            && let Some(first) = self.on_first_byte.take()
            && catch_unwind(AssertUnwindSafe(first)).is_err()
        {
            tracing::error!(session = self.id, "the timing of a first byte panicked; the flow goes on");
        }
    }

    /// The source of `dir` ended.
    pub(super) fn ended(&mut self, dir: Side) {
        self.dirs[dir].eof = true;
        self.socks[dir].readable = false;
        self.first_eof.get_or_insert(dir);
    }

    /// Layers made bytes that the destination did not take.
    pub(super) fn strained(&self) -> bool {
        self.layers.is_some() && self.dirs.iter().any(|dir| !dir.pending.is_empty())
    }

    /// The half-close deadline runs from now on.
    pub(super) fn closing(&mut self, now_ms: u64) {
        self.half_closed_ms = self.half_closed_ms.min(now_ms);
    }

    /// Everything of `dir` was delivered and FIN sent. Returns the close reason if that was the last direction.
    pub(super) fn finished(&mut self, dir: Side, now_ms: u64) -> Option<CloseReason> {
        self.dirs[dir].done = true;
        self.closing(now_ms);
        let both = self.dirs.iter().all(|dir| dir.done);
        both.then_some(match self.first_eof {
            Some(BACKEND) => CloseReason::BackendClosed,
            _ => CloseReason::ClientClosed,
        })
    }

    /// When the next deadline is, and which reason it ends with.
    pub(super) fn deadline(&self) -> (u64, CloseReason) {
        let idle = self.counters.last_ms.load(Relaxed).saturating_add(self.idle_ms);
        let half = self.half_closed_ms.saturating_add(self.half_close_ms);
        let all = [
            (self.ends_ms, CloseReason::SessionDeadline),
            (half, CloseReason::HalfCloseDeadline),
            (idle, CloseReason::IdleTimeout),
            // Not an end: `Core::expire` sends the ping and asks again.
            (self.layers.as_ref().map_or(NEVER, |layers| layers.ping_at), CloseReason::Internal),
        ];
        all.into_iter().min_by_key(|(at, _)| *at).unwrap_or((NEVER, CloseReason::Internal))
    }

    /// Takes it apart: whom to tell what, and the sockets.
    pub(super) fn close(self) -> (Box<dyn FnOnce(FlowEnd) + Send>, FlowEnd, [OwnedFd; 2]) {
        let rtt_us = [0, 1].map(|side| super::socket::rtt_us(&self.socks[side].fd));
        let reason = self.reason.unwrap_or(CloseReason::Internal);
        let (up, down) = (self.counters.up.load(Relaxed), self.counters.down.load(Relaxed));
        (self.on_close, FlowEnd { reason, up, down, rtt_us }, self.socks.map(|sock| sock.fd))
    }
}

/// The reason for a broken socket on `side`.
pub(super) fn reset(side: Side) -> CloseReason {
    if side == CLIENT { CloseReason::ClientReset } else { CloseReason::BackendReset }
}

/// A clock in milliseconds and counters that nobody else writes.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(NEVER)
}

const _: () = {
    // The counters are shared with `sessions list`; the engine is their only writer.
    assert!(size_of::<AtomicU64>() == 8);
    // "A few hundred bytes": a change that doubles an idle flow's cost does not compile.
    assert!(size_of::<FlowState>() <= 448);
};
