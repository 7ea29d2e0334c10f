//! Why a vCenter gave no console.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::protocol::soap::{Fault, SoapError};

/// What went wrong between the appliance and a vCenter. For the operator; no secret is in it.
#[derive(Clone, Debug, Error)]
pub enum VcenterError {
    /// Failed too often in a row.
    #[error(
        "the vCenter failed {0} times in a row and is left alone for a while (`vcenter.breaker_seconds`)"
    )]
    Open(u32),
    /// No place among its calls in time.
    #[error("no place among the calls to this vCenter in time; it is slow, or `vcenter.max_calls` is low")]
    Busy,
    /// It took too long.
    #[error("no answer from the vCenter in time (`vcenter.call_seconds`)")]
    Timeout,
    /// The name has no address.
    #[error("the vCenter's name `{0}` cannot be resolved; check the ticket's target and this host's DNS")]
    Resolve(String),
    /// It lies outside the tenant's targets.
    #[error("the vCenter at {0} lies outside the tenant's `targets`; add its range there")]
    OutsideTargets(SocketAddr),
    /// Nobody listens, or the connection broke.
    #[error("the vCenter cannot be reached ({0})")]
    Unreachable(io::ErrorKind),
    /// Another certificate.
    #[error(
        "the vCenter shows another certificate than the one pinned; it was renewed, or somebody is in between"
    )]
    WrongCertificate,
    /// TLS failed otherwise.
    #[error("TLS with the vCenter failed: {0}")]
    Tls(String),
    /// Not HTTP, or closed in the middle.
    #[error("the vCenter broke off in the middle of HTTP")]
    Http,
    /// A status that is none of SOAP's.
    #[error("the vCenter answered with HTTP status {0}")]
    Status(u16),
    /// It wants to send us elsewhere.
    #[error(
        "the vCenter redirects (HTTP {0}); redirects are never followed, name the right address in the ticket"
    )]
    Redirect(u16),
    /// Larger or deeper than allowed, or no SOAP.
    #[error("the vCenter's answer is not taken: {0}")]
    Soap(#[from] SoapError),
    /// The clone ticket or the account was refused.
    #[error("the vCenter refused the {credentials} ({fault})")]
    Login {
        /// `clone ticket` or `service account`.
        credentials: &'static str,
        /// The fault's name.
        fault: String,
    },
    /// A fault.
    #[error("the vCenter answered {operation} with {}{}", .fault.kind, if .fault.text.is_empty() { String::new() } else { format!(" ({})", .fault.text) })]
    Fault {
        /// What was asked.
        operation: String,
        /// What it said.
        fault: Fault,
    },
    /// The VM is off.
    #[error(
        "the VM is not powered on; `console_power = \"implicit\"` in the tenant's section lets consoles power it on"
    )]
    PoweredOff,
    /// It could not be powered on.
    #[error("the VM could not be powered on: {0}")]
    PowerOn(String),
    /// A ticket without clone ticket, and no account.
    #[error(
        "the ticket has no clone ticket and no `[vcenters]` entry is for {0}; add one with a service account"
    )]
    NoAccount(String),
    /// A ticket without thumbprint, or with a bad one.
    #[error("the ticket's target {0}")]
    BadTarget(&'static str),
    /// The account's password cannot be read.
    #[error("{0}")]
    Secret(String),
    /// The appliance is starting or ending.
    #[error("the vCenter client is not running")]
    NotRunning,
}

impl VcenterError {
    /// Its name in metrics and log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Open(_) => "vcenter_breaker_open",
            Self::Busy => "vcenter_busy",
            Self::Timeout => "vcenter_timeout",
            Self::Resolve(_) => "vcenter_resolve",
            Self::OutsideTargets(_) => "outside_targets",
            Self::Unreachable(_) => "vcenter_unreachable",
            Self::WrongCertificate => "vcenter_wrong_certificate",
            Self::Tls(_) => "vcenter_tls",
            Self::Http => "vcenter_http",
            Self::Status(_) => "vcenter_status",
            Self::Redirect(_) => "vcenter_redirect",
            Self::Soap(_) => "vcenter_bad_answer",
            Self::Login { .. } => "vcenter_login",
            Self::Fault { .. } => "vcenter_fault",
            Self::PoweredOff => "vcenter_powered_off",
            Self::PowerOn(_) => "vcenter_power_on",
            Self::NoAccount(_) => "vcenter_no_account",
            Self::BadTarget(_) => "backend_bad_target",
            Self::Secret(_) => "vcenter_secret",
            Self::NotRunning => "internal",
        }
    }

    /// Whether the vCenter itself failed, as opposed to having said no.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::Timeout
                | Self::Resolve(_)
                | Self::Unreachable(_)
                | Self::WrongCertificate
                | Self::Tls(_)
                | Self::Http
                | Self::Status(_)
                | Self::Redirect(_)
                | Self::Soap(_)
        )
    }
}
