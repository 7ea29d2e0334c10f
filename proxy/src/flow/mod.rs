//! The flow engine: two connected legs become a flow on the engine thread of a core.
//!
//! ```text
//!   Engines ── submit, close ──► mailbox ──► worker::run ─┬─ ring   (io_uring: interactive on the ring)
//!                                                         └─ epoll  (where io_uring is refused)
//!                                               core: table of flows, deadlines, accounts
//!                                               pump: non-blocking moves in two phases, splice(2) through pooled pipes
//!                                               export: raw flows on their way to another process, and back in
//!                                               layered: flows with TLS or WebSocket on a leg, in place (codec)
//!                                               direction: when a direction takes to bulk and back
//! ```

mod buffers;
mod codec;
mod config;
mod core;
mod direction;
mod engines;
mod epoll;
mod export;
mod layered;
mod lingering;
mod mailbox;
mod pipes;
mod probe;
mod pump;
mod ring;
mod slab;
mod socket;
mod state;
mod stats;
pub mod study;
mod timers;
mod worker;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::session::CloseReason;
use crate::tls::Session;

pub use codec::WebSocket;
pub use config::{Driver, EngineError, FlowConfig, Mode, TurnHook};
pub use engines::Engines;
pub use export::{Exported, Half, Progress};
pub use stats::{EngineStats, Way};

/// One side of a flow.
pub enum Leg {
    /// A connected TCP socket whose bytes pass untouched.
    Raw(OwnedFd),
    /// TLS that ends here.
    Tls(OwnedFd, Session),
    /// WebSocket over TLS that ends here.
    WebSocket(OwnedFd, Session, Box<WebSocket>),
}

impl AsFd for Leg {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (Self::Raw(fd) | Self::Tls(fd, _) | Self::WebSocket(fd, ..)) = self;
        fd.as_fd()
    }
}

/// What the front hands over: both legs, the bytes already read from each, the limits, and who to tell at the end.
pub struct Flow {
    /// The session's number, unique in this process.
    pub id: u64,
    /// The tenant's client.
    pub client: Leg,
    /// The hypervisor.
    pub backend: Leg,
    /// Bytes read from the client that belong to the hypervisor; sent first.
    pub to_backend: Vec<u8>,
    /// Bytes read from the hypervisor that belong to the client; sent first.
    pub to_client: Vec<u8>,
    /// How long it may stay silent, live, and half closed.
    pub limits: FlowLimits,
    /// Live counters, read by `sessions list` while the flow runs. `up` and `down` go on from what they are.
    pub counters: Arc<FlowCounters>,
    /// How far it had come before; the default for a new flow.
    pub progress: Progress,
    /// Called once, on the engine thread, when the first byte was sent to the client.
    pub on_first_byte: Option<Box<dyn FnOnce() + Send>>,
    /// Called exactly once, on the engine thread, after both legs were closed. Not called, but dropped, by whoever
    /// drops a flow that [`Engines::export`] gave out: such a flow did not end, it lives on elsewhere.
    pub on_close: Box<dyn FnOnce(FlowEnd) + Send>,
}

/// The time limits of one flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowLimits {
    /// Longest silence in both directions; `None`: unlimited.
    pub idle: Option<Duration>,
    /// When the session ends whatever happens; `None`: never.
    pub ends_at: Option<Instant>,
    /// Longest time between the end of one direction and the end of the other.
    pub half_close: Duration,
}

/// Bytes delivered so far (completed operations only, invariant 7).
#[derive(Debug, Default)]
pub struct FlowCounters {
    /// Client → hypervisor.
    pub up: AtomicU64,
    /// Hypervisor → client.
    pub down: AtomicU64,
    /// Time of the last byte in either direction, milliseconds since the engine's start.
    pub last_ms: AtomicU64,
}

/// The account of a flow that ended.
#[derive(Clone, Copy, Debug)]
pub struct FlowEnd {
    /// Exactly one reason.
    pub reason: CloseReason,
    /// Bytes delivered to the hypervisor.
    pub up: u64,
    /// Bytes delivered to the client.
    pub down: u64,
    /// Smoothed round-trip times of the legs at the end (TCP_INFO), client then backend, in microseconds.
    pub rtt_us: [Option<u32>; 2],
}
