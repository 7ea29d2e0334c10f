//! Why a session ended: one closed list for the audit record, the metrics, the log and the client's refusal.

use serde::{Deserialize, Serialize};

/// Who is at fault for an end: the first question an operator asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nobody: an ordinary end.
    None,
    /// The client or its network.
    Client,
    /// The hypervisor, the vCenter or the way to it.
    Backend,
    /// The appliance or its operator.
    Gate,
}

/// The one reason a session ended with (invariant 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The client closed first and everything was delivered.
    ClientClosed,
    /// The hypervisor closed first and everything was delivered.
    BackendClosed,
    /// The client's connection was reset or timed out.
    ClientReset,
    /// The hypervisor's connection was reset or timed out.
    BackendReset,
    /// No byte in either direction for the idle time.
    IdleTimeout,
    /// The session's longest life was reached.
    SessionDeadline,
    /// One side had closed, the other did not follow within the half-close time.
    HalfCloseDeadline,
    /// An operator closed it.
    Operator,
    /// The ticket that opened it was revoked.
    TicketRevoked,
    /// The tenant is no longer configured.
    TenantRemoved,
    /// The appliance was drained and the deadline passed.
    Drain,
    /// A leg broke the rules of its protocol after the hand-over.
    ProtocolError,
    /// The appliance ran out of something or failed.
    Internal,
}

impl CloseReason {
    /// Every reason, in the order of the declaration: the label values of the metrics.
    pub const ALL: [CloseReason; 13] = [
        Self::ClientClosed,
        Self::BackendClosed,
        Self::ClientReset,
        Self::BackendReset,
        Self::IdleTimeout,
        Self::SessionDeadline,
        Self::HalfCloseDeadline,
        Self::Operator,
        Self::TicketRevoked,
        Self::TenantRemoved,
        Self::Drain,
        Self::ProtocolError,
        Self::Internal,
    ];

    /// The name in metrics, audit records and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::BackendClosed => "backend_closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::IdleTimeout => "idle_timeout",
            Self::SessionDeadline => "session_deadline",
            Self::HalfCloseDeadline => "half_close_deadline",
            Self::Operator => "operator",
            Self::TicketRevoked => "ticket_revoked",
            Self::TenantRemoved => "tenant_removed",
            Self::Drain => "drain",
            Self::ProtocolError => "protocol_error",
            Self::Internal => "internal",
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::ClientClosed | Self::BackendClosed => Fault::None,
            Self::ClientReset | Self::IdleTimeout | Self::HalfCloseDeadline | Self::ProtocolError => {
                Fault::Client
            }
            Self::BackendReset => Fault::Backend,
            Self::SessionDeadline
            | Self::Operator
            | Self::TicketRevoked
            | Self::TenantRemoved
            | Self::Drain
            | Self::Internal => Fault::Gate,
        }
    }
}
