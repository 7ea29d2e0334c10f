//! What the person in front of a browser is told when a console ends or does not open: a WebSocket close code for the page,
//! a sentence for the person. docs/browser.md lists all of them; a test compares the two.

use super::CloseReason;
use crate::protocol::websocket::CloseCode;

/// A close code and a sentence of at most 123 bytes (RFC 6455, 5.5).
pub type Words = (CloseCode, &'static str);

/// Why a WebSocket was accepted and no console opened on it. What the operator is told holds more: the log, the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// The ticket is none, was used, is over, was revoked, or came from elsewhere; which of these is for the operator.
    Ticket,
    /// Its tenant is not configured.
    UnknownTenant,
    /// The tenant or the user has as many consoles as they may.
    TooMany,
    /// The viewer named another machine.
    WrongVm,
    /// The viewer did not answer in time.
    TooSlow,
    /// The viewer sent more than a handshake holds.
    TooMuch,
    /// The viewer does not speak RFB.
    NotRfb,
    /// The target lies outside the tenant's ranges.
    OutsideTargets,
    /// A kind of target that is not served in browsers.
    Unsupported,
    /// The host did not take its ticket or password.
    HostRefused,
    /// No way to the host, or no answer.
    Unreachable,
    /// The host is another one than the ticket says.
    WrongHost,
    /// The host speaks otherwise than it should.
    HostFailed,
    /// The machine is switched off, and is not to be, or could not be, switched on.
    PoweredOff,
    /// The vCenter does not take the ticket's session.
    VcenterRefused,
    /// The vCenter did not say where the machine is.
    VcenterFailed,
    /// The appliance is going down.
    Draining,
    /// The appliance failed.
    Internal,
}

impl NotOpened {
    /// Every one, in the order of docs/browser.md.
    pub const ALL: [Self; 18] = [
        Self::Ticket,
        Self::UnknownTenant,
        Self::TooMany,
        Self::WrongVm,
        Self::TooSlow,
        Self::TooMuch,
        Self::NotRfb,
        Self::OutsideTargets,
        Self::Unsupported,
        Self::HostRefused,
        Self::Unreachable,
        Self::WrongHost,
        Self::HostFailed,
        Self::PoweredOff,
        Self::VcenterRefused,
        Self::VcenterFailed,
        Self::Draining,
        Self::Internal,
    ];

    /// What the client is told.
    pub fn words(self) -> Words {
        match self {
            Self::Ticket => (
                CloseCode::POLICY,
                "This ticket opens no console (any more). Ask for a new one where you got it.",
            ),
            Self::UnknownTenant => (CloseCode::POLICY, "Consoles of this tenant are not served here."),
            Self::TooMany => {
                (CloseCode::TRY_LATER, "Too many consoles are open. Close one, or try again later.")
            }
            Self::WrongVm => (CloseCode::POLICY, "The ticket is for another machine."),
            Self::TooSlow => (CloseCode::POLICY, "The viewer took too long to answer."),
            Self::TooMuch => (CloseCode::TOO_BIG, "Too much came before the console was open."),
            Self::NotRfb => (CloseCode::PROTOCOL, "The viewer does not speak RFB as it should."),
            Self::OutsideTargets => {
                (CloseCode::POLICY, "The machine is not within what your provider allows.")
            }
            Self::Unsupported => (CloseCode::POLICY, "This kind of console cannot be opened in a browser."),
            Self::HostRefused => (
                CloseCode::POLICY,
                "The machine's host did not take its ticket. Ask for a new one where you got it.",
            ),
            Self::Unreachable => (CloseCode::BAD_GATEWAY, "The machine's host cannot be reached."),
            Self::WrongHost => (
                CloseCode::POLICY,
                "The machine's host is not the one the ticket was made for. Ask for a new ticket.",
            ),
            Self::HostFailed => (CloseCode::BAD_GATEWAY, "The machine's host did not open the console."),
            Self::PoweredOff => (CloseCode::POLICY, "The machine is not powered on."),
            Self::VcenterRefused => (
                CloseCode::POLICY,
                "The ticket is no longer taken where the machine is. Ask for a new one where you got it.",
            ),
            Self::VcenterFailed => {
                (CloseCode::BAD_GATEWAY, "Where the machine is cannot be found out just now.")
            }
            Self::Draining => (CloseCode::GOING_AWAY, "The console proxy is being restarted."),
            Self::Internal => (CloseCode::INTERNAL, "The console proxy failed."),
        }
    }
}

impl CloseReason {
    /// What the client of a console that was open is told.
    pub fn words(self) -> Words {
        match self {
            Self::ClientClosed => (CloseCode::NORMAL, "The console was closed."),
            Self::BackendClosed => (CloseCode::NORMAL, "The machine's console was closed by its host."),
            Self::ClientReset => (CloseCode::NORMAL, "The viewer's connection was lost."),
            Self::BackendReset => (CloseCode::BAD_GATEWAY, "The connection to the machine's host was lost."),
            Self::IdleTimeout => {
                (CloseCode::POLICY, "The console was closed because nothing happened in it.")
            }
            Self::SessionDeadline => (CloseCode::POLICY, "The longest time of a session is over."),
            Self::HalfCloseDeadline => (CloseCode::NORMAL, "The machine's host has ended the console."),
            Self::Operator => (CloseCode::POLICY, "An operator closed this console."),
            Self::TicketRevoked => (CloseCode::POLICY, "The ticket of this console was revoked."),
            Self::TenantRemoved => (CloseCode::POLICY, "Consoles of this tenant are no longer served here."),
            Self::Drain => (CloseCode::GOING_AWAY, "The console proxy is being restarted."),
            Self::ProtocolError => (CloseCode::PROTOCOL, "The viewer broke the rules of the protocol."),
            Self::Internal => (CloseCode::INTERNAL, "The console proxy failed."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUAL: &str = include_str!("../../../docs/browser.md");

    #[test]
    fn the_manual_lists_every_end_with_its_code_and_sentence() {
        for reason in CloseReason::ALL {
            let (code, text) = reason.words();
            let row = format!("| `{}` | {} | {text} |", reason.as_str(), code.0);
            assert!(MANUAL.contains(&row), "docs/browser.md lacks {row}");
        }
        for not in NotOpened::ALL {
            let (code, text) = not.words();
            let row = format!("| {} | {text} |", code.0);
            assert!(MANUAL.contains(&row), "docs/browser.md lacks {row}");
        }
    }

    #[test]
    fn a_sentence_fits_into_a_close_frame() {
        let ends = CloseReason::ALL.iter().map(|reason| reason.words());
        for (code, text) in ends.chain(NotOpened::ALL.iter().map(|not| not.words())) {
            assert!(code.may_be_sent() && text.len() <= 123 && text.ends_with('.'), "{text}");
        }
    }
}
