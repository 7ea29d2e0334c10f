//! The end: consoles get the drain time to finish, a second signal or the deadline cuts them.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};

use crate::gate::Gate;

/// Waits until no session is left, the deadline has come, or another signal asks for the end now. Returns how many are left.
pub(super) async fn wait(gate: &Arc<Gate>) -> usize {
    let deadline = Instant::now() + gate.config.load().deadlines.drain;
    let impatient = async {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut term), Ok(mut int)) => {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            }
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = timeout_at(deadline, gate.registry.emptied()) => {}
        () = impatient => {}
    }
    gate.registry.len()
}
