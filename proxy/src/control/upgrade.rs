//! Handing everything over to a younger process (see `crate::upgrade`), and what is left to do here afterwards.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Control, drain};
use crate::admin::Upgraded;
use crate::session::{self, CloseReason};
use crate::upgrade::{Candidate, Given, Offered, UpgradeError};

/// How long clients in the middle of their handshake may take to be through; the others wait in the queue meanwhile.
const HANDSHAKES: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);
/// How often the process that stays behind looks for what else can move.
const ROUND: Duration = Duration::from_millis(20);

/// The sockets of the admin API, for the process that takes over.
pub(super) struct AdminSockets {
    pub(super) socket: OwnedFd,
    pub(super) metrics: Option<OwnedFd>,
}

impl Control {
    /// Starts the program that is installed now and lets it take over. Blocks until it is in charge.
    ///
    /// # Errors
    /// This process goes on as before.
    pub(super) fn upgrade(self: &Arc<Self>) -> Result<Upgraded, UpgradeError> {
        let Ok(_one) = self.upgrading.try_lock() else { return Err(UpgradeError::Busy) };
        if self.is_retired() {
            return Err(UpgradeError::Replaced);
        }
        if self.gate.is_draining() {
            return Err(UpgradeError::Draining);
        }
        tracing::info!(program = %self.program.path.display(), "upgrade: starting the new process");
        self.gate.xdp.let_go();
        let upgraded = Candidate::start(&self.program.path).and_then(|candidate| self.hand_over(candidate));
        match &upgraded {
            Ok(Upgraded { pid, version, sessions }) => {
                tracing::info!(pid, version, sessions, "upgrade: the new process is in charge")
            }
            Err(error) => {
                tracing::error!(%error, "upgrade failed; this process goes on");
                // The candidate may have taken the links first.
                self.gate.xdp.take_back();
            }
        }
        upgraded
    }

    fn hand_over(self: &Arc<Self>, mut candidate: Candidate) -> Result<Upgraded, UpgradeError> {
        let doors = self.doors.duplicates()?;
        let admin = self.admin_sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let admin = admin.as_ref().ok_or(UpgradeError::Busy)?;
        let offered = Offered {
            doors: doors.iter().map(|listener| (listener.door, listener.socket.as_fd())).collect(),
            admin: admin.socket.as_fd(),
            metrics: admin.metrics.as_ref().map(AsFd::as_fd),
        };
        candidate.prepare(&self.gate, &offered)?;
        let upgraded = Upgraded {
            pid: candidate.pid(),
            version: candidate.version().to_owned(),
            sessions: self.gate.registry.len(),
        };
        self.doors.pause();
        self.wait_for_handshakes();
        match self.entrust(candidate) {
            Ok(given) => {
                *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(given);
                self.retired.send_replace(true);
                Ok(upgraded)
            }
            Err((candidate, error)) => {
                candidate.abandon(&self.gate);
                self.doors.open(&self.gate)?;
                Err(error)
            }
        }
    }

    fn entrust(self: &Arc<Self>, mut candidate: Candidate) -> Result<Given, (Candidate, UpgradeError)> {
        if let Err(error) = candidate.entrust(&self.gate) {
            return Err((candidate, error));
        }
        if self.gate.is_draining() {
            return Err((candidate, UpgradeError::Draining));
        }
        // From here on the manager hears the other one only, and restarts the service if that fails.
        self.manager.succeeded_by(candidate.pid());
        candidate.yours(&self.gate)
    }

    fn wait_for_handshakes(&self) {
        let until = std::time::Instant::now() + HANDSHAKES;
        while self.gate.sources.counts().1 > 0 && std::time::Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }

    /// Whether another process is in charge.
    pub(super) fn is_retired(&self) -> bool {
        *self.retired.borrow()
    }

    /// Hands over the flows that can move, keeps the others until they end or the drain time is over, then returns how many
    /// were cut.
    pub(super) async fn leave(self: &Arc<Self>) -> usize {
        let gate = &self.gate;
        let Some(given) = self.given.lock().unwrap_or_else(PoisonError::into_inner).take() else { return 0 };
        let given = Arc::new(given);
        let until = Instant::now() + gate.config.load().deadlines.drain;
        let control = self.clone();
        let mut joined = Some(tokio::task::spawn_blocking(move || control.doors.join()));
        let mut enough = std::pin::pin!(drain::signalled_twice());
        let left = loop {
            let nobody_comes = joined.as_ref().is_none_or(|joined| joined.is_finished());
            // Looked at before the flows are: what comes later is of the next round.
            if joined.is_some() {
                let (given, gate) = (given.clone(), gate.clone());
                // Fails only where it panics, and then the flows are with whoever had them.
                let _ = tokio::task::spawn_blocking(move || given.move_flows(&gate)).await;
            }
            if nobody_comes && joined.take().is_some() {
                given.moved();
                tracing::info!(staying = gate.registry.len(), "upgrade: what can move has moved");
            }
            if joined.is_none() && gate.registry.is_empty() {
                break 0;
            }
            let over = tokio::select! {
                () = sleep(ROUND) => Instant::now() >= until,
                () = gate.registry.emptied(), if joined.is_none() => false,
                () = &mut enough => true,
            };
            if over {
                break gate.registry.len();
            }
        };
        session::close_all(gate, CloseReason::Drain, |_| true);
        gate.registry.emptied().await;
        if given.is_gone() {
            tracing::warn!("the process that took over was gone before this one");
        }
        // Its threads end within a second.
        let _ = tokio::task::spawn_blocking(move || given.finish()).await;
        left
    }
}
