//! What a machine shows behind its console.

mod desktop;
mod font;
mod message;
mod paint;
mod raw;
mod vnc;

use std::net::SocketAddr;
use std::pin::Pin;

use super::event::Closed;
use super::stream::Stream;

pub use desktop::Desktop;
pub use raw::{Pattern, RawScreen};
pub use vnc::VncServer;

/// What a machine shows. It begins with ServerInit: an authd console has no RFB handshake.
#[derive(Clone)]
pub enum Screen {
    /// The built-in moving desktop; every viewer of the machine sees the same one.
    Desktop(Desktop),
    /// Any VNC server (QEMU, Xvnc).
    Vnc(VncServer),
    /// No RFB at all: bytes for tests and measurements.
    Raw(RawScreen),
}

impl Screen {
    /// A new moving desktop.
    pub fn desktop() -> Self {
        Self::Desktop(Desktop::new())
    }

    /// The VNC server at `addr`, without a password.
    pub fn vnc(addr: SocketAddr) -> Self {
        Self::Vnc(VncServer { addr, password: None })
    }

    /// Bytes in, bytes out: `handler` gets the stream after the hand-over, may read and write it as it likes (also with
    /// `tokio::io::split`) and ends the connection by returning. Dropping the stream without `shutdown` sends no
    /// `close_notify`.
    pub fn raw<F, R>(handler: F) -> Self
    where
        F: Fn(Stream) -> R + Send + Sync + 'static,
        R: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        Self::Raw(RawScreen::new(handler))
    }

    /// Sends back what comes in; its end follows the client's.
    pub fn echo() -> Self {
        Self::Raw(RawScreen::echo())
    }

    /// Sends `bytes` of [`Pattern`] `seed`, ends its direction, then reads until the client ends its own.
    pub fn source(bytes: u64, seed: u64) -> Self {
        Self::Raw(RawScreen::source(bytes, seed))
    }

    /// Reads until the client ends its direction, then sends the 32 bytes of the SHA-256 of what came.
    pub fn digest() -> Self {
        Self::Raw(RawScreen::digest())
    }

    pub(super) async fn serve(&self, mut stream: Stream) -> Result<(), Closed> {
        match self {
            Self::Desktop(desktop) => desktop.serve(&mut stream).await,
            Self::Vnc(server) => server.serve(&mut stream).await,
            Self::Raw(raw) => Ok(raw.serve(stream).await?),
        }
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
