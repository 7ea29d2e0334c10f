//! Counters of one engine thread: one writer, any number of readers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How bytes went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Interactive: received into a shared buffer, sent from it.
    Interactive,
    /// Bulk: splice(2) through a pipe.
    Spliced,
    /// `IORING_OP_SPLICE` through a pipe.
    OpSpliced,
    /// Copied because the mode is copy, or because no pipe was to be had.
    Copied,
    /// Handed over by the front: read before the flow began.
    First,
}

impl Way {
    /// All ways, in the order of the declaration.
    pub const ALL: [Way; 5] = [Self::Interactive, Self::Spliced, Self::OpSpliced, Self::Copied, Self::First];

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Spliced => "spliced",
            Self::OpSpliced => "op_spliced",
            Self::Copied => "copied",
            Self::First => "first",
        }
    }
}

/// The counters. Only the engine thread writes them.
#[derive(Debug, Default)]
pub struct EngineStats {
    /// Flows on this thread now, those in its mailbox included.
    pub flows: AtomicU64,
    /// Flows taken on since the start.
    pub started: AtomicU64,
    /// Flows ended since the start.
    pub ended: AtomicU64,
    /// Flows given out by an export since the start; those that came back are among `started` again.
    pub exported: AtomicU64,
    /// Bytes delivered, by `Way`.
    pub bytes: [AtomicU64; 5],
    /// Directions that went from interactive to bulk.
    pub to_bulk: AtomicU64,
    /// Directions that went from bulk back to interactive.
    pub to_interactive: AtomicU64,
    /// Pipes in the pool.
    pub pipes_idle: AtomicU64,
    /// Pipes with bytes in them.
    pub pipes_in_use: AtomicU64,
    /// Times a pipe could not be had and the direction copied.
    pub pipes_refused: AtomicU64,
    /// Times the provided buffers ran out (`ENOBUFS`).
    pub enobufs: AtomicU64,
    /// Provided buffers that hold bytes on their way.
    pub buffers_in_use: AtomicU64,
    /// Turns of the thread's loop.
    pub turns: AtomicU64,
}

impl EngineStats {
    /// Bytes delivered one way.
    pub fn bytes(&self, way: Way) -> u64 {
        self.bytes[way as usize].load(Relaxed)
    }
}

/// Adds without a locked instruction: right only where one thread writes.
#[inline]
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}
