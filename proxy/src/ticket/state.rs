//! Everything that changes with a use or a revocation, under one lock, and the journal that hears of it.

use std::borrow::Cow;
use std::time::Duration;

use super::journal::{Journal, Record};
use super::revocation::Revoked;
use super::table::Table;
use super::{Claims, Revocation, TicketPolicy, TicketState};

/// Revocations are remembered at least this long, so that a portal whose clock runs ahead cannot outlive them.
const REVOCATION_KEPT: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) table: Table,
    pub(super) revoked: Revoked,
    /// Every unused ticket minted up to this `iat` is revoked: set when more revocations came than are remembered one by one.
    pub(super) all_revoked: Option<Duration>,
    /// When this process began, and the youngest `iat` of tickets that may have been used before the machine came up.
    pub(super) booted: Option<(Duration, Duration)>,
    /// Where a restart or a crash finds it again.
    pub(super) journal: Option<Journal>,
}

impl State {
    pub(super) fn prune(&mut self, policy: &TicketPolicy, now: Duration) {
        self.table.prune(now);
        let keep = policy.first_use_span().max(policy.reconnect).max(REVOCATION_KEPT);
        let forgotten = self.revoked.prune(keep, now);
        self.forget(forgotten);
    }

    pub(super) fn is_revoked(&self, claims: &Claims) -> bool {
        let iat = Duration::from_secs(claims.iat);
        self.all_revoked.is_some_and(|until| iat <= until)
            || self.revoked.covers(&claims.jti, &claims.tenant, &claims.user, iat)
    }

    /// Revokes used tickets and, up to `iat`, unused ones; all of the latter where one revocation more is too much.
    pub(super) fn revoke(&mut self, what: &Revocation, iat: Duration, capacity: usize) {
        self.table.revoke(what);
        if !self.revoked.insert(what.clone(), iat, capacity) {
            self.all_revoked = self.all_revoked.max(Some(iat));
        }
    }

    /// Whether an unknown ticket may have been used before the machine went down. Not by a clock that stands before the start
    /// of this process: it was set back, and by it nobody knows when the machine came up.
    pub(super) fn is_of_another_boot(&self, claims: &Claims, now: Duration) -> bool {
        self.booted.is_some_and(|(began, until)| now >= began && Duration::from_secs(claims.iat) <= until)
    }

    /// Unknown tickets minted up to `iat` may have been used.
    pub(super) fn forget(&mut self, iat: Option<Duration>) {
        self.table.forgotten = self.table.forgotten.max(iat);
    }

    /// Writes down what was just done with a ticket.
    pub(super) fn note_use(&mut self, jti: &str) {
        if let (Some(journal), Some(entry)) = (&mut self.journal, self.table.get(jti)) {
            journal.append(&Record::Use(jti.into(), Cow::Borrowed(entry)));
        }
    }

    /// Writes a revocation down.
    pub(super) fn note_revocation(&mut self, what: &Revocation, iat: Duration) {
        let Some(journal) = &mut self.journal else { return };
        journal.append(&Record::Revoked(Cow::Borrowed(what), iat));
        if let Some(iat) = self.all_revoked {
            journal.append(&Record::AllRevoked(iat));
        }
    }

    /// Does what a line of a journal says. False where there is no room for it; then tickets of its age are refused.
    pub(super) fn apply(&mut self, record: Record<'_>, policy: &TicketPolicy, now: Duration) -> bool {
        match record {
            Record::Journal(_) => {}
            Record::Revoked(what, iat) => self.revoke(&what, iat, policy.max_tracked),
            Record::AllRevoked(iat) => self.all_revoked = self.all_revoked.max(Some(iat)),
            Record::Forgotten(iat) => self.forget(Some(iat)),
            Record::Use(jti, entry) => {
                if self.table.len() >= policy.max_tracked {
                    self.table.prune(now);
                }
                if self.table.len() >= policy.max_tracked && self.table.get(&jti).is_none() {
                    self.forget(Some(entry.iat()));
                    return false;
                }
                self.table.import(vec![(jti.into(), entry.into_owned())], None);
            }
        }
        true
    }

    /// What is remembered, for another process.
    pub(super) fn export(&self) -> TicketState {
        TicketState {
            uses: self.table.export(),
            revocations: self.revoked.export(),
            forgotten: self.table.forgotten,
            all_revoked: self.all_revoked,
        }
    }

    /// Takes over what another process remembered.
    pub(super) fn import(&mut self, from: TicketState) {
        self.table.import(from.uses, from.forgotten);
        self.all_revoked = self.all_revoked.max(from.all_revoked);
        for (what, iat) in from.revocations {
            self.revoked.insert(what, iat, usize::MAX);
        }
    }
}
