//! The generator's own sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Socket, Type};

/// How long a single connection may take to come through a proxy.
const PATIENCE: Duration = Duration::from_secs(10);

/// The backend of all contenders: a listener on a port of the kernel's choice.
pub fn listen() -> Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Opens `count` connections through `through` and accepts their other ends on `listener`, both non-blocking and in the
/// same order.
pub fn connect(
    through: SocketAddr,
    listener: &TcpListener,
    count: usize,
) -> Result<Vec<(TcpStream, TcpStream)>> {
    (0..count).map(|_| connect_one(through, listener)).collect()
}

fn connect_one(through: SocketAddr, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect_timeout(&through, PATIENCE).context("connecting through the proxy")?;
    let watched = socket2::SockRef::from(listener);
    watched.set_read_timeout(Some(PATIENCE))?;
    let (backend, _) = listener.accept().context("the proxy did not connect to the backend")?;
    for end in [&client, &backend] {
        end.set_nodelay(true)?;
        end.set_nonblocking(true)?;
    }
    Ok((client, backend))
}

/// Sends what fits; 0: nothing.
pub fn put(end: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match send(end.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
        Ok(n) => Ok(n),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// Receives what is there; 0: nothing. The end of the stream is an error.
pub fn get(end: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
    match recv(end.as_raw_fd(), bytes, MsgFlags::empty()) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(n) => Ok(n),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}
