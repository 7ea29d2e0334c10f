//! The hypervisor's side: where the sealed ticket points, and nowhere else (invariant 2).

mod address;
mod console;
mod esxi_mks;
mod esxi_webmks;
pub mod health;
mod reach;
mod two_pass;
pub mod vcenter;
mod vnc;

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

pub use address::{Dial, dial};
pub use console::{Console, Opening, open, wants_handshake};
pub use esxi_mks::EsxiMks;
pub use health::Hosts;
pub use reach::{Reached, ask_vcenter, moref, reach};
pub use vcenter::VcenterError;

use crate::protocol::authd::Refusal;
use crate::protocol::rfb_client::RfbClientError;
use crate::tls::TlsError;

/// A step of the way to the console, for errors and deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Looking up the name.
    Resolve,
    /// TCP.
    Connect,
    /// The banner.
    Banner,
    /// TLS no. 1.
    Tls,
    /// USER and PASS.
    Login,
    /// THUMBPRINT.
    Thumbprint,
    /// CONNECT.
    Console,
    /// TLS no. 2, inside which the console is.
    TlsTwo,
    /// The WebSocket's handshake.
    Upgrade,
    /// RFB's handshake.
    Rfb,
}

/// Why there is no console. Told in full to the operator; the client hears [`BackendError::refusal`].
#[derive(Debug, Error)]
pub enum BackendError {
    /// The name has no address.
    #[error(
        "the target's name `{host}` cannot be resolved ({error}); check the ticket's target and this host's DNS"
    )]
    Resolve {
        /// The name in the ticket.
        host: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// The target is not the tenant's.
    #[error(
        "{0} lies outside the tenant's `targets`; add its range there if consoles may be at that address"
    )]
    OutsideTargets(SocketAddr),
    /// The kind of target is not served on this door.
    #[error("a target of kind {0} cannot be opened through this door")]
    Unsupported(&'static str),
    /// Nobody listens, or no way there.
    #[error("{address} cannot be connected to ({error})")]
    Unreachable {
        /// Where to.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// It took too long.
    #[error("{address}: no answer in time ({step:?})")]
    Timeout {
        /// Where to.
        address: String,
        /// In which step.
        step: Step,
    },
    /// The connection ended in the middle.
    #[error("closed by the host in the middle of the dialogue ({step:?}): {error}")]
    Closed {
        /// In which step.
        step: Step,
        /// How.
        error: TlsError,
    },
    /// The first line is not authd's.
    #[error("the host does not speak authd (its first line: {0:?})")]
    NotAuthd(String),
    /// The banner lacks `SSL Required`.
    #[error("the host's banner lacks `SSL Required`; a ticket is never sent over a plain connection")]
    PlainBanner,
    /// The certificate is another one.
    #[error(
        "the host shows another certificate than the ticket's thumbprint; the host was re-installed, or somebody is in between"
    )]
    WrongCertificate,
    /// The ticket has no thumbprint or no secret, or they cannot be used.
    #[error("the ticket's target {0}")]
    BadTarget(&'static str),
    /// TLS failed otherwise.
    #[error("TLS with the host failed: {0}")]
    Tls(TlsError),
    /// The host did not take the ticket.
    #[error("the host refused its ticket ({code} at {step:?}); it was used before, expired, or the VM moved")]
    Refused {
        /// authd's code.
        code: u16,
        /// In which step.
        step: Step,
    },
    /// The host wants a second pass.
    #[error(
        "two-pass host: it answered 630 and wants a second pass; mint tickets with target kind `esx-two-pass` for it"
    )]
    SecondPass,
    /// The host needs no second pass.
    #[error("the host gave the console at the first pass; mint tickets with target kind `esxi-mks` for it")]
    NoSecondPass,
    /// The vCenter gave no host.
    #[error(transparent)]
    Vcenter(#[from] VcenterError),
    /// RFB with the server failed.
    #[error("{0}")]
    Rfb(RfbClientError),
    /// The host did not open the WebSocket.
    #[error(
        "the host did not open a WebSocket ({0}); its ticket was used before or expired, or it is no ESXi host"
    )]
    NotWebSocket(String),
    /// Some other answer.
    #[error("the host answered {code} at {step:?}")]
    Unexpected {
        /// authd's code, 0 where there was none.
        code: u16,
        /// In which step.
        step: Step,
    },
    /// Our own fault.
    #[error("{0}")]
    Internal(io::Error),
}

impl BackendError {
    /// Its name in metrics and log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "backend_resolve",
            Self::OutsideTargets(_) => "outside_targets",
            Self::Unsupported(_) => "backend_unsupported",
            Self::Unreachable { .. } => "backend_unreachable",
            Self::Timeout { .. } => "backend_timeout",
            Self::Closed { .. } => "backend_closed",
            Self::NotAuthd(_) => "backend_not_authd",
            Self::PlainBanner => "backend_plain",
            Self::WrongCertificate => "backend_wrong_certificate",
            Self::BadTarget(_) => "backend_bad_target",
            Self::Tls(_) => "backend_tls",
            Self::Refused { .. } => "backend_refused",
            Self::SecondPass => "backend_second_pass",
            Self::NoSecondPass => "backend_no_second_pass",
            Self::Vcenter(error) => error.as_str(),
            Self::Rfb(_) => "backend_rfb",
            Self::NotWebSocket(_) => "backend_not_websocket",
            Self::Unexpected { .. } => "backend_unexpected",
            Self::Internal(_) => "internal",
        }
    }

    /// Whether the host itself is what failed.
    pub fn is_of_host(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. }
                | Self::Unreachable { .. }
                | Self::Timeout { .. }
                | Self::Closed { .. }
                | Self::NotAuthd(_)
                | Self::PlainBanner
                | Self::WrongCertificate
                | Self::Tls(_)
                | Self::Rfb(_)
        )
    }

    /// Whether a host that is well said this.
    pub fn is_answer_of_host(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::SecondPass
                | Self::NoSecondPass
                | Self::NotWebSocket(_)
                | Self::Unexpected { .. }
        )
    }

    /// Whether the VM may be at another host by now: this one is gone, or does not know the ticket or the VM.
    pub fn may_have_moved(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::NotWebSocket(_)
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Closed { .. } => true,
            Self::Unexpected { code, .. } => matches!(code, 510..=514 | 551 | 553),
            _ => false,
        }
    }

    /// What the client hears of it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::OutsideTargets(_) | Self::Vcenter(VcenterError::OutsideTargets(_)) => Refusal::NoAccess,
            Self::Vcenter(VcenterError::Login { .. }) => Refusal::BadTicket,
            Self::Vcenter(VcenterError::PoweredOff | VcenterError::PowerOn(_)) => Refusal::PoweredOff,
            Self::Vcenter(error) if error.is_failure() => Refusal::Unreachable,
            Self::Vcenter(VcenterError::Open(_) | VcenterError::Busy) => Refusal::Unreachable,
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::Timeout { .. } => Refusal::Unreachable,
            Self::Refused { .. } | Self::NotWebSocket(_) => Refusal::BadTicket,
            Self::SecondPass => Refusal::SecondPass,
            _ => Refusal::BadServer,
        }
    }
}
