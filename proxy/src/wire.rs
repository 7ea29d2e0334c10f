//! One TCP connection before its hand-over: the few reads and writes of a handshake, on tokio-uring where io_uring is
//! allowed and on tokio where it is not. After the hand-over only its file descriptor lives on, in the flow engine.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_uring::buf::BoundedBuf;

use crate::config::Sockets;
use crate::sys;

/// A connected TCP socket. Dropped, it is shut down in both directions, so that no operation in flight keeps it open.
pub struct Wire {
    stream: Stream,
}

enum Stream {
    Uring { stream: tokio_uring::net::TcpStream, keep: OwnedFd },
    Tokio(tokio::net::TcpStream),
    Gone,
}

impl Wire {
    /// Takes over a socket that tokio-uring accepted.
    pub fn from_uring(stream: tokio_uring::net::TcpStream) -> io::Result<Self> {
        let keep = sys::duplicate(&stream)?;
        Ok(Self { stream: Stream::Uring { stream, keep } })
    }

    /// Takes over a tokio socket, for a runtime without io_uring.
    pub fn from_tokio(stream: tokio::net::TcpStream) -> Self {
        Self { stream: Stream::Tokio(stream) }
    }

    /// Takes over a connected tokio socket and drives it with `runtime`.
    pub fn adopt(stream: tokio::net::TcpStream, runtime: Runtime) -> io::Result<Self> {
        match runtime {
            Runtime::Tokio => Ok(Self::from_tokio(stream)),
            Runtime::Uring => {
                let stream = stream.into_std()?;
                // io_uring answers EAGAIN at once on a non-blocking socket instead of waiting.
                stream.set_nonblocking(false)?;
                Self::from_uring(tokio_uring::net::TcpStream::from_std(stream))
            }
        }
    }

    /// Reads what there is, at most `max` bytes, behind what `buffer` already holds. 0: the peer is done.
    pub async fn read_into(&mut self, buffer: &mut Vec<u8>, max: usize) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Uring { stream, .. } => {
                let (result, bytes) = stream.read(Vec::with_capacity(max)).await;
                let n = result?;
                buffer.extend_from_slice(&bytes[..n]);
                Ok(n)
            }
            Stream::Tokio(stream) => stream.take(max as u64).read_buf(buffer).await,
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Writes all of it.
    pub async fn write_all(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        match &mut self.stream {
            Stream::Uring { stream, keep } => {
                // What is said in a handshake nearly always fits the socket's buffer: then it is one system call, and no
                // turn of ring and runtime.
                let sent = send_now(keep, &bytes)?;
                if sent == bytes.len() {
                    return Ok(());
                }
                stream.write_all(bytes.slice(sent..)).await.0
            }
            Stream::Tokio(stream) => stream.write_all(&bytes).await,
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Sends FIN, then reads and drops what still comes until the peer closes too.
    pub async fn finish(&mut self) -> io::Result<()> {
        socket2::SockRef::from(&*self).shutdown(Shutdown::Write)?;
        let mut drained = Vec::new();
        while self.read_into(&mut drained, 4096).await? > 0 {
            drained.clear();
        }
        Ok(())
    }

    /// Both ends of the connection: ours, then the peer's.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let socket = socket2::SockRef::from(self);
        let address = |a: socket2::SockAddr| a.as_socket().ok_or(io::Error::from(io::ErrorKind::Unsupported));
        Ok((address(socket.local_addr()?)?, address(socket.peer_addr()?)?))
    }

    /// Gives the socket away, open. No operation may be in flight, which a `&mut self` API grants between calls that
    /// were awaited to their end.
    pub fn into_fd(mut self) -> io::Result<OwnedFd> {
        match std::mem::replace(&mut self.stream, Stream::Gone) {
            Stream::Uring { keep, .. } => Ok(keep),
            Stream::Tokio(stream) => Ok(stream.into_std()?.into()),
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Uring { keep, .. } => keep.as_fd(),
            Stream::Tokio(stream) => stream.as_fd(),
            Stream::Gone => unreachable!("only into_fd leaves Gone, and it takes the wire"),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if !matches!(self.stream, Stream::Gone) {
            // A read that a deadline abandoned is still in the ring and holds the socket: this completes it.
            let _ = socket2::SockRef::from(&*self).shutdown(Shutdown::Both);
        }
    }
}

/// Sends what fits now; 0: nothing.
fn send_now(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        sent => Ok(sent?),
    }
}

/// Options of a leg: no Nagle (keystrokes are small), keep-alive and TCP_USER_TIMEOUT (a pulled cable is noticed in a
/// minute, not in seventeen), and the tenant's number as mark, which `ss -e` shows as `fwmark`.
pub fn set_options(socket: &impl AsFd, options: &Sockets, mark: u32) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let interval = (options.keepalive / 3).max(std::time::Duration::from_secs(1));
    let keepalive =
        socket2::TcpKeepalive::new().with_time(options.keepalive).with_interval(interval).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(options.user_timeout))?;
    if options.mark && mark != 0 {
        match socket.set_mark(mark) {
            // Without CAP_NET_ADMIN sockets go unmarked; the console matters more than its label.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => other?,
        }
    }
    Ok(())
}

/// What drives the sockets of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// tokio-uring.
    Uring,
    /// Plain tokio (epoll), where io_uring is refused.
    Tokio,
}
