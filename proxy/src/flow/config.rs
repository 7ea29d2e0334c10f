//! What the engine is started with, and why a start can fail.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use thiserror::Error;

/// Who waits for the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// io_uring, or epoll where the kernel or a sandbox refuses io_uring.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll.
    Epoll,
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each direction changes between small messages through a buffer and bulk through a pipe.
    #[default]
    Adaptive,
    /// `IORING_OP_SPLICE` for both hops (with epoll: splice(2)); for comparison.
    Splice,
    /// Receive into a buffer, send from it; for comparison.
    Copy,
}

/// Receives how long a turn took from its wake-up to the last byte sent; called on the engine threads, for one
/// turn in sixteen.
pub type TurnHook = Arc<dyn Fn(Duration) + Send + Sync>;

/// The settings of all engine threads.
#[derive(Clone)]
pub struct FlowConfig {
    /// Who waits for the sockets.
    pub driver: Driver,
    /// How bytes are moved.
    pub mode: Mode,
    /// Engine threads; 0: one per core.
    pub threads: usize,
    /// Size of a pooled pipe, bytes (rounded up by the kernel to a power of two of pages).
    pub pipe_bytes: usize,
    /// Most pipes per thread, idle and in use together; past it bulk directions copy.
    pub max_pipes: usize,
    /// Provided receive buffers per thread (io_uring); rounded up to a power of two, at most 32768.
    pub buffers: usize,
    /// Size of one provided buffer, bytes.
    pub buffer_bytes: usize,
    /// Flows that may wait in a thread's mailbox before `submit` gives them back.
    pub queue: usize,
    /// When the engine's clock began: that of the process before this one, where flows come from there; `None`: now.
    pub epoch: Option<Instant>,
    /// Told how long turns take.
    pub on_turn: Option<TurnHook>,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            driver: Driver::Auto,
            mode: Mode::Adaptive,
            threads: 0,
            pipe_bytes: 256 << 10,
            max_pipes: 512,
            // Few, so that they stay in the core's cache, and each with room for a screen update.
            buffers: 128,
            buffer_bytes: 32 << 10,
            queue: 4096,
            epoch: None,
            on_turn: None,
        }
    }
}

impl fmt::Debug for FlowConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowConfig")
            .field("driver", &self.driver)
            .field("mode", &self.mode)
            .field("threads", &self.threads)
            .field("pipe_bytes", &self.pipe_bytes)
            .field("max_pipes", &self.max_pipes)
            .field("buffers", &self.buffers)
            .field("buffer_bytes", &self.buffer_bytes)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// Why the engine did not start.
#[derive(Debug, Error)]
pub enum EngineError {
    /// io_uring was asked for and is not to be had; the text names what forbids it and the remedy.
    #[error("flow engine: {0}")]
    Refused(String),
    /// A thread, an eventfd or an epoll instance could not be made.
    #[error("flow engine: {what}: {source}")]
    Os {
        /// What was being made.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}
