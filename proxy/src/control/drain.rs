//! The end: consoles get the drain time to finish, a second signal or the deadline cuts them.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::gate::Gate;

/// How often handshakes under way are looked at; their own deadlines end them.
const LOOK: std::time::Duration = std::time::Duration::from_millis(20);

/// Waits until no session is left, the deadline (which an operator may move) has come, or another signal asks for the end
/// now. Returns how many sessions are left.
pub(super) async fn wait(gate: &Arc<Gate>, deadline: watch::Receiver<Option<Instant>>) -> usize {
    tokio::select! {
        () = nobody_left(gate) => {}
        () = passed(deadline) => {}
        () = signalled() => {}
    }
    gate.registry.len()
}

/// Returns when no console is left and none is on its way: a client that was told `200 Connect` is not yet in the registry.
async fn nobody_left(gate: &Gate) {
    loop {
        gate.registry.emptied().await;
        if gate.sources.counts().0 == 0 {
            return;
        }
        sleep(LOOK).await;
    }
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

/// Two signals: after an upgrade the first one is meant for the process in charge, since a manager sends it to all.
pub(super) async fn signalled_twice() {
    signalled().await;
    signalled().await;
}

async fn signalled() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}
