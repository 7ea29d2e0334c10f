//! The TCP stream below everything: counts what passes, and drips or reads slowly where a test wants it.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Sends in tiny pieces, each in a segment of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drip {
    /// Bytes per piece.
    pub bytes: usize,
    /// Pause after each piece.
    pub every: Duration,
}

impl Drip {
    /// One byte at a time, a millisecond apart.
    pub fn byte_by_byte() -> Self {
        Self { bytes: 1, every: Duration::from_millis(1) }
    }
}

/// Reads little and seldom, so that the sender meets a full window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Bytes per read.
    pub bytes: usize,
    /// Pause before each read.
    pub every: Duration,
}

/// A TCP stream. Both directions may be polled from different tasks.
pub struct Wire {
    tcp: Arc<TcpStream>,
    drip: Option<Drip>,
    slow: Option<Slow>,
    write_pause: Option<Pin<Box<Sleep>>>,
    read_pause: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    pub(super) fn new(tcp: Arc<TcpStream>) -> Self {
        Self { tcp, drip: None, slow: None, write_pause: None, read_pause: None }
    }

    /// The stream itself.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(super) fn reset_on_close(&self) {
        reset_on_close(&self.tcp);
    }

    pub(super) fn set_drip(&mut self, drip: Option<Drip>) {
        self.drip = drip;
    }

    pub(super) fn set_slow(&mut self, slow: Option<Slow>) {
        self.slow = slow;
        if let Some(slow) = slow {
            // A small buffer, or the kernel would read on for megabytes; a failure only makes the reader less slow.
            let _ = SockRef::from(&*self.tcp).set_recv_buffer_size(slow.bytes.max(4096));
        }
    }
}

/// Makes the close that follows an RST.
pub(super) fn reset_on_close(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Waits out a pause, if there is one.
fn paused(pause: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(sleeping) = pause {
        ready!(sleeping.as_mut().poll(cx));
        *pause = None;
    }
    Poll::Ready(())
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(paused(&mut this.read_pause, cx));
        let most = this.slow.map_or(buf.remaining(), |slow| slow.bytes.clamp(1, buf.remaining().max(1)));
        loop {
            ready!(this.tcp.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            let len = most.min(space.len());
            match this.tcp.try_read(&mut space[..len]) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
                Ok(n) => {
                    buf.advance(n);
                    this.read_pause = this.slow.map(|slow| Box::pin(sleep(slow.every)));
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(paused(&mut this.write_pause, cx));
        let piece = match this.drip {
            Some(drip) => &buf[..drip.bytes.max(1).min(buf.len())],
            None => buf,
        };
        loop {
            ready!(this.tcp.poll_write_ready(cx))?;
            match this.tcp.try_write(piece) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
                Ok(n) => {
                    this.write_pause = this.drip.map(|drip| Box::pin(sleep(drip.every)));
                    return Poll::Ready(Ok(n));
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.tcp).shutdown(Shutdown::Write))
    }
}
