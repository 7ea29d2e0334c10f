//! Listening sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};

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

/// Binds an address. IPv6 addresses take IPv6 only, so `0.0.0.0` and `[::]` stand beside each other.
pub fn bind(address: SocketAddr, door: Door, backlog: i32) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(Listener { door, socket: socket.into() })
}
