//! Why a ticket was refused: one closed list for metrics, log and audit. No text of it holds a secret or a sealed ticket.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::{ClaimError, JweError};

/// Why [`Tickets::open`](super::Tickets::open) made no permit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TicketError {
    /// It did not open.
    #[error(transparent)]
    Sealed(#[from] JweError),
    /// It opened, but what it says makes no sense. Only a portal's bug leads here.
    #[error(transparent)]
    Claims(#[from] ClaimError),
    /// It opened and was well-formed, but may not be used, or not now, or not from there.
    #[error("{why} ({bearer})")]
    Refused {
        /// The reason.
        why: Refusal,
        /// Whose ticket it was.
        bearer: Box<Bearer>,
    },
}

impl TicketError {
    /// The name in metrics and log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Sealed(JweError::Oversize) => "ticket_oversize",
            Self::Sealed(JweError::Malformed) => "ticket_malformed",
            Self::Sealed(JweError::Header) => "ticket_header",
            Self::Sealed(JweError::UnknownKey) => "ticket_unknown_key",
            Self::Sealed(JweError::Forged) => "ticket_forged",
            Self::Claims(_) => "ticket_bad_claims",
            Self::Refused { why, .. } => why.as_str(),
        }
    }

    /// Every name [`TicketError::as_str`] can give: the label values of the metrics.
    pub const NAMES: [&'static str; 18] = [
        "ticket_oversize",
        "ticket_malformed",
        "ticket_header",
        "ticket_unknown_key",
        "ticket_forged",
        "ticket_bad_claims",
        "ticket_wrong_issuer",
        "ticket_wrong_audience",
        "ticket_view_only",
        "ticket_not_yet_valid",
        "ticket_expired",
        "ticket_revoked",
        "ticket_used_too_late",
        "ticket_reconnect_over",
        "ticket_other_source",
        "ticket_too_many_connections",
        "ticket_jti_reused",
        "ticket_table_full",
    ];

    /// Whose ticket it was, where it opened.
    pub fn bearer(&self) -> Option<&Bearer> {
        match self {
            Self::Refused { bearer, .. } => Some(bearer),
            Self::Sealed(_) | Self::Claims(_) => None,
        }
    }
}

/// What may be said of a ticket in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The ticket's own name.
    pub jti: String,
    /// Its tenant.
    pub tenant: String,
    /// Its user.
    pub user: String,
}

impl fmt::Display for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticket {:?} of user {:?}, tenant {:?}", self.jti, self.user, self.tenant)
    }
}

/// Why a ticket that opened may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Minted by somebody else than the configured issuer.
    #[error("minted by another issuer than tickets.issuer names")]
    WrongIssuer,
    /// Minted for another cell.
    #[error("minted for another audience than tickets.audience names")]
    WrongAudience,
    /// Asks for a console without input, which no backend can promise.
    #[error("asks for view_only, which is reserved")]
    ViewOnly,
    /// `iat` or `nbf` lies ahead.
    #[error("not valid before {early:.1?} from now; compare the clocks of the portal and of this host")]
    NotYetValid {
        /// How long until then, the allowed skew taken off.
        early: Duration,
    },
    /// `exp` has passed.
    #[error("expired {late:.1?} ago")]
    Expired {
        /// How long ago.
        late: Duration,
    },
    /// Revoked by jti, user or tenant.
    #[error("revoked")]
    Revoked,
    /// Its first use came too late.
    #[error("first use {late:.1?} too late; a new ticket is needed")]
    UsedTooLate {
        /// By how much.
        late: Duration,
    },
    /// It was used before, and the time to use it again is over.
    #[error("its time for reconnecting ended {late:.1?} ago; a new ticket is needed")]
    ReconnectOver {
        /// How long ago.
        late: Duration,
    },
    /// Bound to another address.
    #[error("used from another address than the one it is bound to")]
    OtherSource,
    /// All its connections are open.
    #[error("all {limit} connections it allows are open")]
    TooManyConnections {
        /// How many that is.
        limit: u32,
    },
    /// A different ticket has this jti already.
    #[error("another ticket with the same jti is in use; the portal must give each ticket its own")]
    JtiReused,
    /// No more tickets can be remembered.
    #[error("{capacity} used tickets are remembered and no more may be; raise tickets.max_tracked")]
    TableFull {
        /// How many.
        capacity: usize,
    },
}

impl Refusal {
    /// The name in metrics and log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongIssuer => "ticket_wrong_issuer",
            Self::WrongAudience => "ticket_wrong_audience",
            Self::ViewOnly => "ticket_view_only",
            Self::NotYetValid { .. } => "ticket_not_yet_valid",
            Self::Expired { .. } => "ticket_expired",
            Self::Revoked => "ticket_revoked",
            Self::UsedTooLate { .. } => "ticket_used_too_late",
            Self::ReconnectOver { .. } => "ticket_reconnect_over",
            Self::OtherSource => "ticket_other_source",
            Self::TooManyConnections { .. } => "ticket_too_many_connections",
            Self::JtiReused => "ticket_jti_reused",
            Self::TableFull { .. } => "ticket_table_full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_name_in_the_list() {
        let (d, bearer) = (Duration::ZERO, Bearer { jti: "j".into(), tenant: "t".into(), user: "u".into() });
        let refusals = [
            Refusal::WrongIssuer,
            Refusal::WrongAudience,
            Refusal::ViewOnly,
            Refusal::NotYetValid { early: d },
            Refusal::Expired { late: d },
            Refusal::Revoked,
            Refusal::UsedTooLate { late: d },
            Refusal::ReconnectOver { late: d },
            Refusal::OtherSource,
            Refusal::TooManyConnections { limit: 1 },
            Refusal::JtiReused,
            Refusal::TableFull { capacity: 1 },
        ];
        let sealed = [
            JweError::Oversize,
            JweError::Malformed,
            JweError::Header,
            JweError::UnknownKey,
            JweError::Forged,
        ];
        let mut names: Vec<_> = sealed.map(|e| TicketError::from(e).as_str()).to_vec();
        names.push(TicketError::from(ClaimError::Json).as_str());
        names.extend(
            refusals.map(|why| TicketError::Refused { why, bearer: Box::new(bearer.clone()) }.as_str()),
        );
        assert_eq!(names, TicketError::NAMES);
    }
}
