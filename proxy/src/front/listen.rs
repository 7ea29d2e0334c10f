//! Listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::metrics::Door;

/// A bound socket and the door behind it.
pub struct Listener {
    /// What is spoken there.
    pub door: Door,
    /// The socket.
    pub socket: TcpListener,
}

impl Listener {
    /// The same socket for another thread.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { door: self.door, socket: self.socket.try_clone()? })
    }
}

/// How long a predecessor's listener may outlive it: what an io_uring holds, the kernel closes some time after a killed process
/// is gone (io_ring_exit_work in io_uring/io_uring.c).
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// Binds an address. IPv6 addresses take IPv6 only, so `0.0.0.0` and `[::]` stand beside each other.
pub fn bind(address: SocketAddr, door: Door, backlog: i32) -> io::Result<Listener> {
    let limit = Instant::now() + LEFT_BEHIND;
    loop {
        match bind_now(address, door, backlog) {
            // Nobody tells when the address is free.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < limit => {
                sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

fn bind_now(address: SocketAddr, door: Door, backlog: i32) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(Listener { door, socket: socket.into() })
}
