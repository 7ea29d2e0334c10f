//! Who may come in, in two stages: a source before TLS is paid for ([`Sources`]), then the tenant, the user and the ticket
//! ([`Tenants`]). Userspace is the truth (invariant 9): no tenant ever has more sessions than its limit, whatever XDP does.
//!
//! Every pass is a value whose drop gives the slots back ([`Entry`], [`Admission`]), so that no error path can forget it.

mod bucket;
mod sources;
mod tenants;

pub use bucket::Bucket;
pub use sources::{Entry, Sources, source_of};
pub use tenants::{Admission, TenantView, Tenants};

/// Why somebody was turned away; the label value in metrics and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denied {
    /// The appliance holds as many connections as it may.
    Full,
    /// As many handshakes are under way as may be.
    Handshakes,
    /// The source has as many connections in handshakes as it may.
    SourceFull,
    /// The source comes too fast.
    SourceRate,
    /// No such tenant.
    UnknownTenant,
    /// The tenant has as many sessions as it may.
    TenantFull,
    /// The tenant's sessions come too fast.
    TenantRate,
    /// The user has as many sessions as one may.
    UserFull,
}

impl Denied {
    /// Its name in metrics and log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Handshakes => "handshakes",
            Self::SourceFull => "source_full",
            Self::SourceRate => "source_rate",
            Self::UnknownTenant => "unknown_tenant",
            Self::TenantFull => "tenant_full",
            Self::TenantRate => "tenant_rate",
            Self::UserFull => "user_full",
        }
    }
}
