//! What the two processes tell each other.
//!
//! ```text
//!   old                                        new
//!    │ ◄──────────────────────────── Hello      it runs, and which version
//!    │ Offer + listening sockets ──────────►
//!    │ ◄──────────────── Prepared, or Failed    configuration, keys, listeners, engine, XDP: all there
//!    │ (accepts nothing more; new tickets are the other's)
//!    │ State, Elder… ──────────────────────►
//!    │ ◄──────────────────────────── Took       from here on the new one would go on alone
//!    │ Yours ──────────────────────────────►    MAINPID is the new one's; it accepts
//!    │ Flow + both sockets, a few ─────────►    they stand still here and there
//!    │ ◄───────────────────── Arrived, each     from here on the flow is the new one's, and runs there
//!    │ Flow, … (the next few) ─────────────►
//!    │ Opened, Ended, Counters, Moved ─────►    of what stays with the old one
//!    │ ◄──────────────────────────── Close      an operator's, a revocation's
//! ```
//! Times are nanoseconds since the flow engines' epoch, which both share; on one boot they mean the same in both.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::flow::{Flow, FlowCounters, FlowEnd, FlowLimits, Half, Leg, Progress};
use crate::gate::Gate;
use crate::metrics::Door;
use crate::session::{CloseReason, Held, Session};
use crate::ticket::TicketState;

/// Counts what an older or younger process would not understand.
pub(super) const PROTOCOL: u32 = 2;
/// The end of a flow that arrived and found no room.
const NOT_BEGUN: FlowEnd = FlowEnd { reason: CloseReason::Internal, up: 0, down: 0, rtt_us: [None, None] };

/// From the process that goes.
#[derive(Serialize, Deserialize)]
pub(super) enum ToHeir {
    /// Files: the listening sockets in the order of `doors`, the admin socket, the loopback port if `metrics`.
    Offer { protocol: u32, epoch: u64, doors: Vec<Door>, metrics: bool },
    /// Everything that counts.
    State(Box<State>),
    /// File: the socket to a process that went before and still holds these sessions.
    Elder { sessions: Vec<u64> },
    /// The other one is in charge.
    Yours,
    /// A flow of two raw legs. Files: the client's socket, the hypervisor's.
    Flow(FlowMessage),
    /// A session that was on its way when the state was written.
    Opened(Box<SessionState>),
    /// A session that had stayed is over.
    Ended { id: u64, end: End },
    /// Bytes and last activity of those that stay: number, up, down, milliseconds since the epoch.
    Counters(Vec<(u64, u64, u64, u64)>),
    /// Every raw flow has been sent, and nobody is on his way any more.
    Moved,
}

/// From the process that takes over.
#[derive(Serialize, Deserialize)]
pub(super) enum ToElder {
    /// It runs.
    Hello { protocol: u32, version: String, pid: i32 },
    /// It will not go on, and ends.
    Failed { why: String },
    /// It could serve at once.
    Prepared,
    /// It has the state.
    Took,
    /// End this session.
    Close { id: u64, reason: CloseReason },
    /// This flow is its own. Said before it moves a byte: whoever cannot read this has lost nothing of the flow.
    Arrived { id: u64 },
}

/// Registry, limits and tickets.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) next_id: u64,
    pub(super) sessions: Vec<SessionState>,
    pub(super) tickets: TicketState,
    /// Tenants, users and how many of theirs are on their way.
    pub(super) pending: Vec<(Arc<str>, Arc<str>, u32)>,
    /// The same by ticket.
    pub(super) pending_uses: Vec<(Box<str>, u32)>,
    /// When each tenant's bucket is full.
    pub(super) buckets: Vec<(Arc<str>, u64)>,
    /// What the XDP gate has counted and learned; its links are the new one's already.
    pub(super) xdp: Option<crate::xdp::Estate>,
    /// How many messages about elders follow.
    pub(super) elders: usize,
}

/// A session without its flow.
#[derive(Serialize, Deserialize)]
pub(super) struct SessionState {
    pub(super) id: u64,
    door: Door,
    tenant: Arc<str>,
    user: Box<str>,
    vm: Box<str>,
    jti: Box<str>,
    mark: u32,
    source: SocketAddr,
    peer: SocketAddr,
    local: SocketAddr,
    backend_local: SocketAddr,
    backend: SocketAddr,
    /// Since 1970.
    started: Duration,
    since: u64,
    up: u64,
    down: u64,
    last_ms: u64,
}

/// A flow of two raw legs, between two engines.
#[derive(Serialize, Deserialize)]
pub(super) struct FlowMessage {
    pub(super) id: u64,
    /// So many of the message's bytes go to the hypervisor, the rest to the client.
    to_backend: usize,
    idle_ms: Option<u64>,
    ends_at: Option<u64>,
    half_close_ms: u64,
    up: Direction,
    down: Direction,
    backend_first: bool,
    silent_ms: u64,
    half_closed_ms: Option<u64>,
    /// Bytes delivered so far.
    delivered: (u64, u64),
}

/// How far a direction has come.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Direction {
    Open,
    Ended,
    Done,
}

impl From<Half> for Direction {
    fn from(half: Half) -> Self {
        match half {
            Half::Open => Self::Open,
            Half::Ended => Self::Ended,
            Half::Done => Self::Done,
        }
    }
}

impl From<Direction> for Half {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Open => Self::Open,
            Direction::Ended => Self::Ended,
            Direction::Done => Self::Done,
        }
    }
}

impl FlowMessage {
    /// What is told of a flow, the bytes that are still to be delivered, and its sockets, which stay open here as well.
    ///
    /// # Errors
    /// The limit of open files, or a leg whose state cannot move.
    pub(super) fn pack(flow: &Flow, epoch: Instant) -> io::Result<(Self, Vec<u8>, Vec<OwnedFd>)> {
        let (Leg::Raw(client), Leg::Raw(backend)) = (&flow.client, &flow.backend) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let Flow { limits, progress, .. } = flow;
        let (up, down, _) = counts(&flow.counters);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let this = Self {
            id: flow.id,
            to_backend: flow.to_backend.len(),
            idle_ms: limits.idle.map(millis),
            ends_at: limits.ends_at.map(|at| since(epoch, at)),
            half_close_ms: millis(limits.half_close),
            up: progress.up.into(),
            down: progress.down.into(),
            backend_first: progress.backend_first,
            silent_ms: millis(progress.silent),
            half_closed_ms: progress.half_closed.map(millis),
            delivered: (up, down),
        };
        let bytes = [&flow.to_backend[..], &flow.to_client].concat();
        Ok((this, bytes, vec![client.try_clone()?, backend.try_clone()?]))
    }

    /// Puts it into this process's engine. What cannot be is over.
    pub(super) fn begin(self, gate: &Arc<Gate>, held: Held, mut bytes: Vec<u8>, files: Vec<OwnedFd>) {
        let counters = held.session().counters.clone();
        set_counts(&counters, self.delivered.0, self.delivered.1, 0);
        let progress = Progress {
            up: self.up.into(),
            down: self.down.into(),
            backend_first: self.backend_first,
            silent: Duration::from_millis(self.silent_ms),
            half_closed: self.half_closed_ms.map(Duration::from_millis),
        };
        let on_close: Box<dyn FnOnce(FlowEnd) + Send> = Box::new(move |end| held.end(&end));
        let mut files = files.into_iter().map(Leg::Raw);
        let (Some(client), Some(backend)) = (files.next(), files.next()) else { return on_close(NOT_BEGUN) };
        let to_client = bytes.split_off(self.to_backend.min(bytes.len()));
        let limits = FlowLimits {
            idle: self.idle_ms.map(Duration::from_millis),
            ends_at: self.ends_at.map(|nanos| at(gate.engines.epoch(), nanos)),
            half_close: Duration::from_millis(self.half_close_ms),
        };
        let flow = Flow {
            id: self.id,
            client,
            backend,
            to_backend: bytes,
            to_client,
            limits,
            counters,
            progress,
            // Its time began in another process; where it has not come yet, it is left out of the histogram.
            on_first_byte: None,
            on_close,
        };
        if let Err(flow) = gate.engines.submit(flow) {
            (flow.on_close)(NOT_BEGUN);
        }
    }
}

/// How a flow ended.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct End {
    reason: CloseReason,
    up: u64,
    down: u64,
    rtt_us: [Option<u32>; 2],
}

impl From<FlowEnd> for End {
    fn from(end: FlowEnd) -> Self {
        let FlowEnd { reason, up, down, rtt_us } = end;
        Self { reason, up, down, rtt_us }
    }
}

impl From<End> for FlowEnd {
    fn from(end: End) -> Self {
        let End { reason, up, down, rtt_us } = end;
        Self { reason, up, down, rtt_us }
    }
}

/// An instant as the other process will read it.
pub(super) fn since(epoch: Instant, at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX)
}

/// And back.
pub(super) fn at(epoch: Instant, nanos: u64) -> Instant {
    epoch.checked_add(Duration::from_nanos(nanos)).unwrap_or(epoch)
}

impl SessionState {
    pub(super) fn new(session: &Session, epoch: Instant) -> Self {
        let (up, down, last_ms) = counts(&session.counters);
        Self {
            id: session.id,
            door: session.door,
            tenant: session.tenant.clone(),
            user: session.user.clone(),
            vm: session.vm.clone(),
            jti: session.jti.clone(),
            mark: session.mark,
            source: session.source,
            peer: session.peer,
            local: session.local,
            backend_local: session.backend_local,
            backend: session.backend,
            started: session.started.duration_since(UNIX_EPOCH).unwrap_or_default(),
            since: since(epoch, session.since),
            up,
            down,
            last_ms,
        }
    }

    pub(super) fn into_session(self, epoch: Instant) -> Session {
        let counters = FlowCounters::default();
        set_counts(&counters, self.up, self.down, self.last_ms);
        Session {
            id: self.id,
            door: self.door,
            tenant: self.tenant,
            user: self.user,
            vm: self.vm,
            jti: self.jti,
            mark: self.mark,
            source: self.source,
            peer: self.peer,
            local: self.local,
            backend_local: self.backend_local,
            backend: self.backend,
            started: UNIX_EPOCH.checked_add(self.started).unwrap_or_else(SystemTime::now),
            since: at(epoch, self.since),
            counters: Arc::new(counters),
        }
    }
}

pub(super) fn counts(counters: &FlowCounters) -> (u64, u64, u64) {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    (load(&counters.up), load(&counters.down), load(&counters.last_ms))
}

pub(super) fn set_counts(counters: &FlowCounters, up: u64, down: u64, last_ms: u64) {
    counters.up.store(up, Ordering::Relaxed);
    counters.down.store(down, Ordering::Relaxed);
    counters.last_ms.store(last_ms, Ordering::Relaxed);
}
