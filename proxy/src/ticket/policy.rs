//! When a ticket is in time, and for whom it was minted.

use std::time::Duration;

use super::{Claims, Refusal};

/// What this gate asks of a ticket beyond a fitting seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketPolicy {
    /// The only accepted `iss`; any where absent.
    pub issuer: Option<String>,
    /// The only accepted `aud`; any where absent.
    pub audience: Option<String>,
    /// The first use must come within this time of `iat`.
    pub first_use: Duration,
    /// The same ticket may be used again within this time of its first use.
    pub reconnect: Duration,
    /// How far the portal's clock may be off.
    pub clock_skew: Duration,
    /// Connections of one ticket at once; a ticket's own `max_connections` may lower it, never raise it.
    pub max_connections: u32,
    /// Used tickets that are remembered; at this number new ones are refused.
    pub max_tracked: usize,
    /// Whether the address of the first use is the only one a ticket may be used from.
    pub bind_source: bool,
}

impl Default for TicketPolicy {
    fn default() -> Self {
        Self {
            issuer: None,
            audience: None,
            first_use: Duration::from_secs(30),
            reconnect: Duration::from_secs(600),
            clock_skew: Duration::from_secs(2),
            max_connections: 4,
            max_tracked: 100_000,
            bind_source: true,
        }
    }
}

impl TicketPolicy {
    /// Everything that can be said of a ticket without knowing whether it was used before.
    pub(super) fn check(&self, claims: &Claims, now: Duration) -> Result<(), Refusal> {
        if self.issuer.is_some() && self.issuer != claims.iss {
            return Err(Refusal::WrongIssuer);
        }
        if self.audience.is_some() && self.audience != claims.aud {
            return Err(Refusal::WrongAudience);
        }
        if claims.view_only {
            return Err(Refusal::ViewOnly);
        }
        let valid_from = Duration::from_secs(claims.iat.max(claims.nbf));
        let early = valid_from.saturating_sub(now.saturating_add(self.clock_skew));
        if !early.is_zero() {
            return Err(Refusal::NotYetValid { early });
        }
        let end = self.expiry(claims);
        if now >= end {
            return Err(Refusal::Expired { late: now.saturating_sub(Duration::from_secs(claims.exp)) });
        }
        Ok(())
    }

    /// From when on `exp` refuses the ticket, as time since the epoch.
    pub(super) fn expiry(&self, claims: &Claims) -> Duration {
        Duration::from_secs(claims.exp).saturating_add(self.clock_skew)
    }

    /// The last moment for a first use, as time since the epoch.
    pub(super) fn first_use_until(&self, claims: &Claims) -> Duration {
        self.first_use_span().saturating_add(Duration::from_secs(claims.iat))
    }

    /// How long after `iat` an unused ticket is good at most.
    pub(super) fn first_use_span(&self) -> Duration {
        self.first_use.saturating_add(self.clock_skew)
    }

    /// How many connections at once this ticket may hold.
    pub(super) fn connections(&self, claims: &Claims) -> u32 {
        claims.max_connections.map_or(self.max_connections, |own| own.min(self.max_connections))
    }
}
