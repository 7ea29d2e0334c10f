//! Why a console does not open, in words for the person at the viewer, and whether trying again can help.

use std::io;

use thiserror::Error;

use crate::protocol::authd::code;
use crate::tls::{Thumbprint, TlsError};

/// Why a console did not open.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The proxy's URL cannot be used.
    #[error("the HTTPS_PROXY of the environment (or --proxy) cannot be used: {why}")]
    ProxyUrl {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name that does not resolve, or a host that does not answer.
    #[error("cannot connect to {to}: {error}")]
    Tcp {
        /// `HOST:PORT`
        to: String,
        /// The system's answer.
        error: io::Error,
    },
    /// The connection failed later on.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The other side ended it where more was due.
    #[error("{0} closed the connection")]
    Closed(&'static str),
    /// Nothing came in time.
    #[error("no answer within {seconds} s")]
    Deadline {
        /// How long it was waited.
        seconds: u64,
    },
    /// The proxy's refusal.
    #[error("the HTTP proxy refused the connection with status {status}{}", proxy_hint(*status))]
    ProxyRefused {
        /// Its status.
        status: u16,
    },
    /// Something else than HTTP came back.
    #[error("{0} did not answer in HTTP")]
    NotHttp(&'static str),
    /// The gate answered GET /mks with something else than 101.
    #[error("the server refused GET /mks with status {status}{}", door_hint(*status))]
    NoDoor {
        /// Its status.
        status: u16,
    },
    /// The first line was not authd's.
    #[error(
        "the server does not greet like a console door (authd); is it the right port? for port 443 use --door mks"
    )]
    NotAuthd,
    /// It does not offer TLS.
    #[error("the server wants to talk without TLS; a ticket is not sent that way")]
    NoTls,
    /// TLS no. 1 showed a certificate that is not trusted.
    #[error(
        "the server's certificate is not trusted: {why}. Its SHA-256 is {seen}; compare it with what your provider tells you, then pass \
         --thumbprint, or --ca FILE for its issuer"
    )]
    Certificate {
        /// rustls' reason.
        why: String,
        /// What it showed.
        seen: Thumbprint,
    },
    /// TLS no. 2 showed another certificate than the announced one.
    #[error(
        "the virtual machine's certificate is not the announced one: somebody is in the way, or the console moved to another host"
    )]
    ConsoleCertificate,
    /// TLS failed.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The ticket or the VM's name cannot be sent.
    #[error(
        "the ticket or the virtual machine's name is too long or holds characters that the door's protocol cannot carry"
    )]
    Argument,
    /// The console's dialogue went wrong.
    #[error("the server said something unexpected after {after}: {what}")]
    Dialogue {
        /// The command.
        after: &'static str,
        /// What came.
        what: String,
    },
    /// No WebSocket, or one that broke the rules.
    #[error("the server did not open a WebSocket: {0}")]
    NoWebSocket(String),
    /// The WebSocket was closed before the console.
    #[error("the console was refused: {words}")]
    WebRefused {
        /// What the close code means.
        words: &'static str,
        /// Whether that may pass.
        again: bool,
    },
    /// The server asks which machine.
    #[error("the server asks for the virtual machine's configuration file; give it with --vm")]
    VmWanted,
    /// The gate's refusal.
    #[error("{}", refusal(*code, *reconnect, text))]
    Refused {
        /// The reply code.
        code: u16,
        /// The gate's own words.
        text: String,
        /// Whether the same ticket worked before.
        reconnect: bool,
    },
}

impl ConnectError {
    /// Whether another try with the same ticket may work.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Tcp { .. } | Self::Io(_) | Self::Closed(_) | Self::Deadline { .. } => true,
            Self::ProxyRefused { status } | Self::NoDoor { status } => *status >= 500 || *status == 429,
            Self::Refused { code, .. } => matches!(*code, code::GOODBYE | code::CONNECT_PROBLEM | code::BUSY),
            Self::WebRefused { again, .. } => *again,
            Self::Tls(error) => matches!(error, TlsError::Io(_) | TlsError::Closed),
            _ => false,
        }
    }
}

fn proxy_hint(status: u16) -> &'static str {
    match status {
        407 => ": it wants a user and a password; put them into HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
        403 => ": it does not allow this host or port",
        _ => "",
    }
}

fn door_hint(status: u16) -> &'static str {
    match status {
        404 | 405 | 426 => ": it has no console door there",
        429 | 503 => ": it is too busy",
        _ => "",
    }
}

/// What the code means to the person who waits. The gate does not tell a client why a ticket is refused.
fn refusal(number: u16, reconnect: bool, text: &str) -> String {
    let meaning = match number {
        code::LOGIN_INCORRECT if reconnect => {
            "the ticket is not accepted any more: the time for reconnecting is over, or it was revoked. Ask the portal for a new one"
        }
        code::LOGIN_INCORRECT => {
            "the ticket is not accepted: too old, used up, revoked, bound to another address, or not for this gate. Ask the portal for a new one"
        }
        code::NO_ACCESS => "the ticket's tenant may not open this console",
        code::BUSY => "too many consoles are open, or the gate is going down",
        code::NO_SUCH_VM => {
            "the ticket is for another virtual machine than the one asked for; check the URL or --vm"
        }
        code::NO_SUCH_SERVICE => "the server does not offer this console",
        code::CONNECT_PROBLEM => "the virtual machine's host cannot be reached by the gate",
        code::TICKET_PROBLEM => {
            "the virtual machine's host refused its own ticket, which works once on some hosts. Ask the portal for a new one"
        }
        code::SERVER_PROBLEM => "the virtual machine's host did not answer the gate as expected",
        code::SECOND_PASS => "the server is a classic two-pass host, which this client does not speak to",
        code::GOODBYE => "the gate ended the dialogue",
        _ => "the gate refused",
    };
    format!("{meaning} ({number} {text})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_words_and_a_decision() {
        let error = |code, reconnect| ConnectError::Refused { code, text: "x".into(), reconnect };
        for (code, word, again) in [
            (530, "not for this gate", false),
            (550, "tenant", false),
            (552, "too many", true),
            (553, "another virtual machine", false),
            (514, "cannot be reached", true),
            (513, "its own ticket", false),
            (512, "as expected", false),
            (630, "two-pass", false),
            (221, "ended", true),
            (599, "refused", false),
        ] {
            let error = error(code, false);
            assert!(
                error.to_string().contains(word) && error.to_string().contains(&code.to_string()),
                "{error}"
            );
            assert_eq!(error.may_pass(), again, "{code}");
        }
        assert!(error(530, true).to_string().contains("reconnecting is over"));
        assert!(ConnectError::ProxyRefused { status: 407 }.to_string().contains("USER:PASSWORD"));
    }
}
