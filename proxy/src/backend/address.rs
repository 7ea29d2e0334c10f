//! From the ticket's target to a connected socket. The range check comes after the name was resolved, on the very address
//! that is then connected to, so a name cannot change its mind in between.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{BackendError, Step};
use crate::config::{Sockets, Tenant};
use crate::ticket::Target;
use crate::wire::{self, Runtime, Wire};

/// What a connect needs beside the target.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    /// Whose console it is.
    pub tenant: &'a Tenant,
    /// Options of the socket.
    pub sockets: &'a Sockets,
    /// Longest time for name and TCP together.
    pub within: Duration,
    /// What drives this thread.
    pub runtime: Runtime,
}

/// Resolves, checks, connects. Tries each allowed address of a name in turn.
pub async fn dial(target: &Target, port: u16, how: Dial<'_>) -> Result<Wire, BackendError> {
    let late = || BackendError::Timeout { address: target.host.clone(), step: Step::Connect };
    tokio::time::timeout(how.within, connect_any(target, port, how)).await.unwrap_or_else(|_| Err(late()))
}

async fn connect_any(target: &Target, port: u16, how: Dial<'_>) -> Result<Wire, BackendError> {
    let mut last = None;
    for address in resolve(&target.host, port).await? {
        if !how.tenant.may_reach(address) {
            last.get_or_insert(BackendError::OutsideTargets(address));
            continue;
        }
        match connect(address, how).await {
            Ok(wire) => return Ok(wire),
            Err(error) => last = Some(BackendError::Unreachable { address, error }),
        }
    }
    Err(last.unwrap_or_else(|| BackendError::Resolve {
        host: target.host.clone(),
        error: io::ErrorKind::NotFound.into(),
    }))
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, BackendError> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    match tokio::net::lookup_host((host, port)).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(BackendError::Resolve { host: host.into(), error }),
    }
}

async fn connect(address: SocketAddr, how: Dial<'_>) -> io::Result<Wire> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    wire::set_options(&socket, how.sockets)?;
    wire::set_mark(&socket, how.sockets, how.tenant.number)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Wire::connecting(socket.into(), how.runtime).await,
    }
}
