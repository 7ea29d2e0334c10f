//! The accept loop of one listener on one thread, and the way of one connection up to its door.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockAddr, SockRef, Socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Listener, Refused, authd, https, proxy_header};
use crate::admission::Entry;
use crate::config::Sockets;
use crate::gate::{Caller, Gate};
use crate::metrics::Door;
use crate::sys;
use crate::wire::{self, Runtime, Wire};

/// How long an accept that failed for want of files or memory rests before it is tried again.
const REST: Duration = Duration::from_millis(50);

/// Waits for readiness and then takes what is there, on either runtime: an accept on the ring would stay there when the
/// loop stops, and swallow a client that belongs to the process that takes over.
struct Acceptor {
    socket: AsyncFd<OwnedFd>,
    runtime: Runtime,
    /// What it gives on to those it accepts, once the queue was empty after they were set.
    options: Option<Sockets>,
    inherited: bool,
}

impl Acceptor {
    fn new(listener: Listener, runtime: Runtime) -> io::Result<Self> {
        listener.socket.set_nonblocking(true)?;
        let socket = sys::watched(listener.socket.into(), Interest::READABLE)?;
        Ok(Self { socket, runtime, options: None, inherited: false })
    }

    /// The next client and its address.
    async fn accept(&mut self, gate: &Gate) -> io::Result<(Wire, SocketAddr)> {
        loop {
            self.give_on(gate)?;
            let mut ready = self.socket.readable().await?;
            // An accept that finds nobody costs a descriptor and its socket first; to look costs next to nothing.
            if !waits(ready.get_inner())? {
                ready.clear_ready();
                self.inherited = true;
                continue;
            }
            // Another thread may have been faster.
            let Ok(accepted) = ready.try_io(|socket| SockRef::from(socket).accept()) else { continue };
            let (socket, peer) = accepted?;
            return self.furnish(socket, peer);
        }
    }

    /// Sets the options on the listener: one system call each for all that will come, instead of one for each of them. Those
    /// who wait in the queue by then have none.
    fn give_on(&mut self, gate: &Gate) -> io::Result<()> {
        let wanted = gate.config.load().sockets;
        if self.options != Some(wanted) {
            wire::set_options(&self.socket, &wanted)?;
            (self.options, self.inherited) = (Some(wanted), false);
        }
        Ok(())
    }

    fn furnish(&self, socket: Socket, peer: SockAddr) -> io::Result<(Wire, SocketAddr)> {
        if let Some(options) = self.options.filter(|_| !self.inherited) {
            wire::set_options(&socket, &options)?;
        }
        Ok((Wire::new(socket.into(), self.runtime)?, wire::internet(peer)?))
    }
}

/// Whether somebody waits to be accepted.
fn waits(listener: &OwnedFd) -> io::Result<bool> {
    let mut listener = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut listener, PollTimeout::ZERO)? > 0)
}

/// Accepts until told to stop.
pub(super) async fn serve(
    gate: Arc<Gate>,
    listener: Listener,
    runtime: Runtime,
    mut stopped: watch::Receiver<bool>,
) {
    let door = listener.door;
    let mut acceptor = match Acceptor::new(listener, runtime) {
        Ok(acceptor) => acceptor,
        Err(error) => return tracing::error!(%error, ?door, "a listener could not be served"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept(&gate) => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted {
            Ok((wire, peer)) => {
                let gate = gate.clone();
                tokio::task::spawn_local(async move { connection(gate, wire, peer, door, runtime).await });
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                gate.metrics.refused(door, "", "accept_failed");
                tracing::warn!(%error, ?door, "accept failed; check the limit of open files");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// A connection that was gone before it was accepted is no trouble of ours.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn connection(gate: Arc<Gate>, wire: Wire, peer: SocketAddr, door: Door, runtime: Runtime) {
    let accepted = Instant::now();
    gate.metrics.accepted(door);
    let _preauth = Counted::new(gate.metrics.preauth());
    let Ok(local) = wire.local() else { return };
    let caller = Caller { source: peer, peer, local, door, accepted };
    let (caller, result) = match entry(&gate, caller, wire).await {
        Ok((caller, wire, entry, early)) => {
            (caller, through_door(&gate, caller, wire, entry, early, runtime).await)
        }
        Err(refused) => (caller, Err(refused)),
    };
    if let Err(refused) = result {
        refused.account(&gate, &caller);
    }
}

/// PROXY header and stage 1: who it is, and whether they may shake hands at all.
async fn entry(
    gate: &Arc<Gate>,
    caller: Caller,
    wire: Wire,
) -> Result<(Caller, Wire, Entry, Vec<u8>), Refused> {
    let config = gate.config.load();
    if gate.is_draining() {
        return Err(Refused::new("draining", "the appliance is draining"));
    }
    let (source, wire, early) = if config.is_balancer(caller.source.ip()) {
        let _pending = Pending::new(gate, config.limits.handshakes)?;
        let reading = proxy_header::read(wire);
        let read = tokio::time::timeout(config.deadlines.handshake, reading).await;
        let (source, wire, early) =
            read.unwrap_or_else(|_| Err(Refused::new("deadline_proxy_header", "no PROXY header in time")))?;
        (source.unwrap_or(caller.source), wire, early)
    } else {
        (caller.source, wire, Vec::new())
    };
    let entry = gate.sources.enter(source.ip(), Instant::now()).map_err(|denied| {
        Refused::new(denied.as_str(), "limits of stage 1 (`limits` in the configuration)")
    })?;
    Ok((Caller { source, ..caller }, wire, entry, early))
}

async fn through_door(
    gate: &Arc<Gate>,
    caller: Caller,
    wire: Wire,
    entry: Entry,
    early: Vec<u8>,
    runtime: Runtime,
) -> Result<(), Refused> {
    match caller.door {
        Door::Authd => authd::serve(gate, caller, wire, entry, early, runtime).await,
        _ => https::serve(gate, caller, wire, entry, early, runtime).await,
    }
}

/// One more in a gauge, for as long as it lives.
struct Counted<'a>(&'a AtomicI64);

impl<'a> Counted<'a> {
    fn new(gauge: &'a AtomicI64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection of a load balancer that has not said for whom it comes; as many as there may be handshakes.
struct Pending<'a>(&'a Gate);

impl<'a> Pending<'a> {
    fn new(gate: &'a Gate, most: usize) -> Result<Self, Refused> {
        let pending = Self(gate);
        if gate.headers_pending.fetch_add(1, Ordering::Relaxed) >= most {
            return Err(Refused::new("handshakes", "too many connections without their PROXY header"));
        }
        Ok(pending)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.headers_pending.fetch_sub(1, Ordering::Relaxed);
    }
}
