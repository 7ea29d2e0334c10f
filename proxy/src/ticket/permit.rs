//! What an opened ticket allows.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::table::Granted;
use super::{Claims, Target};

/// The right to connect one client to one console. Only [`Tickets::open`](super::Tickets::open) makes one; it holds one of
/// the ticket's concurrent uses until it, or the [`TicketUse`] taken out of it, is dropped.
#[derive(Debug)]
pub struct Permit {
    claims: Box<Claims>,
    held: TicketUse,
    reconnect_until: Duration,
    first: bool,
}

impl Permit {
    pub(super) fn new(claims: Box<Claims>, granted: Granted) -> Self {
        let Granted { held, reconnect_until, first } = granted;
        Self { claims, held, reconnect_until, first }
    }

    /// The ticket's own name: what log and audit call it.
    pub fn jti(&self) -> &str {
        &self.claims.jti
    }

    /// Whose limits and targets apply.
    pub fn tenant(&self) -> &str {
        &self.claims.tenant
    }

    /// The person.
    pub fn user(&self) -> &str {
        &self.claims.user
    }

    /// What the client must ask for.
    pub fn vm(&self) -> &str {
        &self.claims.vm
    }

    /// Where the console is, and the secrets that open it.
    pub fn target(&self) -> &Target {
        &self.claims.target
    }

    /// The longest life of the session, where the ticket limits it.
    pub fn session(&self) -> Option<Duration> {
        self.claims.session_seconds.map(Duration::from_secs)
    }

    /// The ticket's `exp`. A session that runs may outlive it.
    pub fn expires(&self) -> SystemTime {
        at(Duration::from_secs(self.claims.exp))
    }

    /// Until when the same ticket opens another connection.
    pub fn reconnect_until(&self) -> SystemTime {
        at(self.reconnect_until)
    }

    /// Whether this is the ticket's first use; otherwise it is a reconnect or a further connection.
    pub fn is_first_use(&self) -> bool {
        self.first
    }

    /// Keeps the use and gives up the rest, the target's secrets included: what a long session holds.
    pub fn into_use(self) -> TicketUse {
        self.held
    }
}

/// `SystemTime` ends earlier than `u64` seconds; what is beyond it ends with the year 9999.
fn at(since_epoch: Duration) -> SystemTime {
    let latest = Duration::from_secs(253_402_300_799);
    UNIX_EPOCH + since_epoch.min(latest)
}

/// One concurrent use of a ticket; dropping it frees the use.
pub struct TicketUse(Arc<AtomicU32>);

impl TicketUse {
    /// Counts a use. The caller holds the table's lock, so that the limit it looked at still stands.
    pub(super) fn take(live: &Arc<AtomicU32>) -> Self {
        live.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(live))
    }
}

impl Drop for TicketUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for TicketUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketUse")
    }
}
