//! The listening sockets and the threads behind them: opened, paused for a hand-over, closed for good.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::front::{Fronts, Listener};
use crate::gate::Gate;
use crate::metrics::Door;
use crate::wire::Runtime;

/// The doors of this process.
pub struct Doors {
    addresses: Vec<(Door, SocketAddr)>,
    threads: usize,
    state: Mutex<State>,
}

struct State {
    /// Empty once the doors are closed for good: what nobody listens to must not be held open.
    listeners: Vec<Listener>,
    /// Those that serve, and those that only finish what they began.
    fronts: Vec<Fronts>,
}

impl Doors {
    /// With so many threads, nothing served yet.
    ///
    /// # Errors
    /// A socket has no address.
    pub fn new(listeners: Vec<Listener>, threads: usize) -> io::Result<Self> {
        let address = |listener: &Listener| Ok((listener.door, listener.socket.local_addr()?));
        let addresses = listeners.iter().map(address).collect::<io::Result<_>>()?;
        Ok(Self { addresses, threads, state: Mutex::new(State { listeners, fronts: Vec::new() }) })
    }

    /// Where they are.
    pub(super) fn addresses(&self) -> &[(Door, SocketAddr)] {
        &self.addresses
    }

    /// Serves, from now on or again.
    pub(super) fn open(&self, gate: &Arc<Gate>) -> io::Result<()> {
        let runtime = if gate.engines.driver() == "io_uring" { Runtime::Uring } else { Runtime::Tokio };
        let mut state = self.state();
        let fronts = Fronts::start(gate, &state.listeners, self.threads, runtime)?;
        state.fronts.push(fronts);
        Ok(())
    }

    /// Accepts nothing for now; who comes waits in the kernel's queue. Handshakes under way go on.
    pub(super) fn pause(&self) {
        self.state().fronts.iter().for_each(Fronts::stop_accepting);
    }

    /// Accepts nothing any more. Where nobody else holds the sockets, who comes is refused.
    pub(super) fn close(&self) {
        self.pause();
        self.state().listeners.clear();
    }

    /// More descriptors of the listening sockets.
    pub(super) fn duplicates(&self) -> io::Result<Vec<Listener>> {
        self.state().listeners.iter().map(Listener::duplicate).collect()
    }

    /// Closes, and waits until the last handshake is over.
    pub(super) fn join(&self) {
        self.close();
        let fronts = std::mem::take(&mut self.state().fronts);
        fronts.into_iter().for_each(Fronts::join);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
