//! The end: consoles get the drain time to finish, a second signal or the deadline cuts them.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::gate::Gate;

/// Waits until no session is left, the deadline (which an operator may move) has come, or another signal asks for the end
/// now. Returns how many sessions are left.
pub(super) async fn wait(gate: &Arc<Gate>, deadline: watch::Receiver<Option<Instant>>) -> usize {
    tokio::select! {
        () = gate.registry.emptied() => {}
        () = passed(deadline) => {}
        () = signalled() => {}
    }
    gate.registry.len()
}

async fn passed(mut deadline: watch::Receiver<Option<Instant>>) {
    loop {
        let at = deadline.borrow_and_update().unwrap_or_else(Instant::now);
        tokio::select! {
            () = sleep_until(at) => return,
            changed = deadline.changed() => if changed.is_err() { return },
        }
    }
}

async fn signalled() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}
