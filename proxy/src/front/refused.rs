//! A connection that did not become a session: counted, recorded, logged, with what the operator needs and no secret.

use std::fmt::Display;
use std::time::Instant;

use crate::audit::Refusal;
use crate::gate::{Caller, Gate};

/// Why a connection ended before the hand-over.
#[derive(Clone, Debug)]
pub struct Refused {
    /// One of a closed list of names: the label in metrics.
    pub reason: &'static str,
    /// For the operator.
    pub detail: String,
    /// Tenant, user and ticket, as far as a ticket that opened told them.
    pub who: Option<Who>,
}

/// Whom a ticket that opened names.
#[derive(Clone, Debug)]
pub struct Who {
    /// The tenant.
    pub tenant: String,
    /// The user.
    pub user: String,
    /// The ticket's name.
    pub jti: String,
}

impl Refused {
    /// Before anybody was known.
    pub fn new(reason: &'static str, detail: impl Display) -> Self {
        Self { reason, detail: detail.to_string(), who: None }
    }

    /// The same, when it is known who it was.
    pub fn of(mut self, who: &Option<Who>) -> Self {
        if self.who.is_none() {
            self.who.clone_from(who);
        }
        self
    }

    /// Into metrics, audit and log.
    pub(super) fn account(self, gate: &Gate, caller: &Caller) {
        let tenant = self.who.as_ref().map_or("", |who| who.tenant.as_str());
        gate.metrics.refused(caller.door, tenant, self.reason);
        let (user, jti) = self.who.as_ref().map_or(("", ""), |who| (&who.user, &who.jti));
        let refusal =
            Refusal { door: caller.door, source: caller.source, tenant, user, jti, reason: self.reason };
        gate.audit.refused(&refusal, Instant::now());
        tracing::debug!(reason = self.reason, source = %caller.source, door = ?caller.door, tenant, detail = self.detail, "refused");
    }
}
