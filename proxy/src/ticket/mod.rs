//! Sealed tickets: what they say, who may seal and open them, how often they may be used.
//!
//! ```text
//! sealed text ─ jwe ─► claims ─ policy ─► times, issuer ─ table ─► use ─► Permit
//!               keys                      revocations
//!                                           │
//!                                        journal
//! ```
//!
//! [`Permit`] has no public constructor: [`Tickets::open`] is the only place that makes one (invariant 1). Nothing here
//! asks for the time; the caller passes it.

mod claims;
mod error;
pub mod journal;
mod jwe;
mod keys;
mod permit;
mod policy;
mod revocation;
mod state;
mod table;
mod tickets;

pub use claims::{ClaimError, Claims, Target, TargetKind};
pub use error::{Bearer, Refusal, TicketError};
pub use jwe::{JweError, MAX_SEALED, SealError};
pub use keys::{KeyError, KeyRing, create_key_file};
pub use permit::{Permit, TicketUse};
pub use policy::TicketPolicy;
pub use revocation::Revocation;
pub use table::TicketState;
pub use tickets::{TicketStats, Tickets};

/// A duration since the Unix epoch; a clock before it counts as the epoch, so that nothing is valid by accident.
fn since_epoch(now: std::time::SystemTime) -> std::time::Duration {
    now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
