//! Hitless upgrade: a younger process takes over the listening sockets, everything that counts, and every raw flow; the
//! older one keeps what cannot move (TLS or WebSocket on a leg) until it ends or the drain deadline comes.
//!
//! `give` (in `control::upgrade`) drives the old side, [`Inheritance`] the new one; `message` has their dialogue. If the new
//! process fails before it is in charge, the old one goes on as if nothing had happened. If it fails later, the consoles that it
//! had said to be its own end with it; the others go on in the old process (`transit`) until the drain deadline.

mod channel;
mod elder;
mod give;
mod heir;
mod message;
mod take;
mod transit;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use thiserror::Error;

pub(crate) use elder::Elders;
pub(crate) use give::{Candidate, Given, Offered};
pub(crate) use heir::Heir;
pub(crate) use take::means;
pub use take::{Inheritance, detach};

/// How long a new process may take until it could serve, and then for the state.
const PATIENCE: Duration = Duration::from_secs(15);
/// Tells a process that its standard input is a hand-over socket, and what to do about it.
const VARIABLE: &str = "MKSGATE_HAND_OVER";

/// Who comes after this process and who went before it.
#[derive(Default)]
pub struct Succession {
    /// Set from the moment the state is written. What changes the state holds it for reading, the writer for writing.
    heir: RwLock<Option<Arc<Heir>>>,
    pub(crate) elders: Elders,
}

impl Succession {
    /// Who takes over, if somebody does. Held while sessions, their slots or tickets change, so that the state is written
    /// between two changes; never across an await.
    pub(crate) fn heir(&self) -> RwLockReadGuard<'_, Option<Arc<Heir>>> {
        self.heir.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the heir and writes the state, between two changes.
    fn become_elder<T>(&self, heir: Arc<Heir>, write: impl FnOnce() -> T) -> T {
        let mut place = self.heir.write().unwrap_or_else(PoisonError::into_inner);
        *place = Some(heir);
        write()
    }

    fn set_heir(&self, heir: Option<Arc<Heir>>) {
        *self.heir.write().unwrap_or_else(PoisonError::into_inner) = heir;
    }
}

/// Why the old process goes on, or the new one does not begin.
#[derive(Debug, Error)]
pub enum UpgradeError {
    /// Another upgrade is under way, or the consoles of the last one are still moving.
    #[error("an upgrade is under way; try again when it is over")]
    Busy,
    /// The service is going down.
    #[error("the service is draining and ends soon")]
    Draining,
    /// This process was replaced already.
    #[error("another process has taken over already")]
    Replaced,
    /// The program could not be started.
    #[error("{program} could not be started ({error})")]
    Spawn {
        /// Its path.
        program: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The new process said why it does not serve.
    #[error("the new process does not start: {0}")]
    Refused(String),
    /// It ended and said nothing.
    #[error("the new process ended without a word; the journal may have its last ones")]
    Gone,
    /// It took too long.
    #[error("the new process was not ready within {} s", PATIENCE.as_secs())]
    Late,
    /// Neither understands the other.
    #[error(
        "the other process speaks version {theirs} of the hand-over and this one {ours}; restart the service instead"
    )]
    Protocol {
        /// Its version.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// It said something else than it should.
    #[error("the other process does not keep to the hand-over")]
    Unexpected,
    /// The socket between the two.
    #[error("hand-over: {0}")]
    Io(#[from] std::io::Error),
}
