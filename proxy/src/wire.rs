//! One TCP connection before its hand-over: the few reads and writes of a handshake, on tokio-uring where io_uring is
//! allowed and on tokio where it is not. After the hand-over only its file descriptor lives on, in the flow engine.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::Sockets;
use crate::sys;

/// A connected TCP socket. Dropped, it is shut down in both directions, so that no operation in flight keeps it open.
pub struct Wire {
    stream: Stream,
}

enum Stream {
    Uring { stream: tokio_uring::net::TcpStream, keep: OwnedFd },
    Tokio(AsyncFd<OwnedFd>),
    Gone,
}

impl Wire {
    /// Takes over a connected socket that blocks; `runtime` drives it.
    pub fn new(socket: OwnedFd, runtime: Runtime) -> io::Result<Self> {
        let stream = match runtime {
            Runtime::Uring => {
                let keep = sys::duplicate(&socket)?;
                Stream::Uring { stream: tokio_uring::net::TcpStream::from_std(socket.into()), keep }
            }
            Runtime::Tokio => Stream::Tokio(sys::watched(socket, Interest::READABLE)?),
        };
        Ok(Self { stream })
    }

    /// Takes over a socket of tokio's.
    pub fn from_tokio(stream: tokio::net::TcpStream) -> io::Result<Self> {
        Self::new(stream.into_std()?.into(), Runtime::Tokio)
    }

    /// Waits until a non-blocking socket is connected.
    pub async fn connecting(socket: OwnedFd, runtime: Runtime) -> io::Result<Self> {
        let socket = sys::watched(socket, Interest::READABLE | Interest::WRITABLE)?;
        drop(socket.writable().await?);
        if let Some(error) = socket2::SockRef::from(&socket).take_error()? {
            return Err(error);
        }
        match runtime {
            Runtime::Uring => {
                let socket = socket.into_inner();
                // io_uring answers EAGAIN at once on a non-blocking socket instead of waiting.
                socket2::SockRef::from(&socket).set_nonblocking(false)?;
                Self::new(socket, runtime)
            }
            Runtime::Tokio => Ok(Self { stream: Stream::Tokio(socket) }),
        }
    }

    /// Reads what there is, at most `max` bytes, behind what `buffer` already holds. 0: the peer is done.
    pub async fn read_into(&mut self, buffer: &mut Vec<u8>, max: usize) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Uring { stream, keep } => {
                // What is there needs no turn of ring and runtime.
                match receive_now(keep, buffer, max) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
                let (result, bytes) = stream.read(Vec::with_capacity(max)).await;
                let n = result?;
                buffer.extend_from_slice(&bytes[..n]);
                Ok(n)
            }
            Stream::Tokio(socket) => loop {
                let mut ready = socket.readable().await?;
                let received = receive_now(ready.get_inner(), buffer, max);
                // What comes after a read that was not filled is told anew (epoll(7), edge-triggered), a FIN too.
                if received.as_ref().is_ok_and(|n| *n < max) {
                    ready.clear_ready();
                    return received;
                }
                match received {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    other => return other,
                }
            },
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Writes all of it.
    pub async fn write_all(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        // What is said in a handshake nearly always fits the socket's buffer: then it is one system call.
        let mut sent = send_now(&self.as_fd(), &bytes)?;
        if sent == bytes.len() {
            return Ok(());
        }
        let room = sys::watched(self.as_fd().try_clone_to_owned()?, Interest::WRITABLE)?;
        while sent < bytes.len() {
            let mut ready = room.writable().await?;
            match send_now(room.get_ref(), &bytes[sent..])? {
                0 => ready.clear_ready(),
                n => sent += n,
            }
        }
        Ok(())
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

    /// Our end of the connection.
    pub fn local(&self) -> io::Result<SocketAddr> {
        internet(socket2::SockRef::from(self).local_addr()?)
    }

    /// The other end.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        internet(socket2::SockRef::from(self).peer_addr()?)
    }

    /// Gives the socket away, open. No operation may be in flight, which a `&mut self` API grants between calls that
    /// were awaited to their end.
    pub fn into_fd(mut self) -> io::Result<OwnedFd> {
        match std::mem::replace(&mut self.stream, Stream::Gone) {
            Stream::Uring { keep, .. } => Ok(keep),
            Stream::Tokio(socket) => Ok(socket.into_inner()),
            Stream::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Uring { keep, .. } => keep.as_fd(),
            Stream::Tokio(socket) => socket.get_ref().as_fd(),
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

/// A socket's address in the Internet.
pub fn internet(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or(io::ErrorKind::Unsupported.into())
}

/// Sends what fits now; 0: nothing.
fn send_now(socket: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    match send(socket.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        sent => Ok(sent?),
    }
}

/// Receives what is there.
fn receive_now(socket: &impl AsFd, buffer: &mut Vec<u8>, max: usize) -> io::Result<usize> {
    let had = buffer.len();
    buffer.resize(had + max, 0);
    let received = loop {
        match recv(socket.as_fd().as_raw_fd(), &mut buffer[had..], MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    buffer.truncate(had + received.unwrap_or(0));
    Ok(received?)
}

/// Options of a leg: no Nagle (keystrokes are small), keep-alive and TCP_USER_TIMEOUT (a pulled cable is noticed in a
/// minute, not in seventeen). Set on a listener, what it accepts from then on has them.
pub fn set_options(socket: &impl AsFd, options: &Sockets) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let interval = (options.keepalive / 3).max(std::time::Duration::from_secs(1));
    let keepalive =
        socket2::TcpKeepalive::new().with_time(options.keepalive).with_interval(interval).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(options.user_timeout))
}

/// The tenant's number as a leg's mark, which `ss -e` shows as `fwmark`.
pub fn set_mark(socket: &impl AsFd, options: &Sockets, mark: u32) -> io::Result<()> {
    if options.mark && mark != 0 {
        let socket = socket2::SockRef::from(socket);
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
