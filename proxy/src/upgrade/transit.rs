//! Flows on their way to the process that takes over.
//!
//! They go a few at a time, so that each stands still only as long as those few take; the others go on here meanwhile. A flow
//! stays in this table, with its sockets and its bytes, until the other process has said that it arrived. That is said before
//! a byte of it moves there, and a Unix socket delivers at once or not at all: whose arrival was not read when the other end is
//! gone, or after the socket was shut down here, was never begun there and goes on here, whole. Those that arrived live and
//! die with the other process.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::flow::{Engines, Flow};

/// Flows under way, and whether the other end can still say something of them.
#[derive(Default)]
pub(super) struct Transit {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    flows: HashMap<u64, Flow>,
    /// Nothing that the other process said is unread, and nothing will come.
    silent: bool,
}

impl Transit {
    /// This flow is about to be sent.
    pub(super) fn put(&self, flow: Flow) {
        self.state().flows.insert(flow.id, flow);
    }

    /// This flow is the other process's. Our copies of its sockets close; nobody accounts for it here.
    pub(super) fn arrived(&self, id: u64) {
        // Dropped outside of the lock: it leaves the registry.
        let flow = self.state().flows.remove(&id);
        drop(flow);
        self.changed.notify_all();
    }

    /// The other end will say nothing more, and cannot.
    pub(super) fn fall_silent(&self) {
        self.state().silent = true;
        self.changed.notify_all();
    }

    /// Waits until all have arrived or the other end is silent. False: it has not said a word of them in time.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let (until, mut state) = (Instant::now() + patience, self.state());
        while !state.flows.is_empty() && !state.silent {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Once the other end is silent: what did not arrive goes on here. Returns how many that were.
    pub(super) fn take_back(&self, engines: &Engines) -> usize {
        let flows = std::mem::take(&mut self.state().flows);
        let n = flows.len();
        flows.into_values().for_each(|flow| engines.take_back(flow));
        n
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
