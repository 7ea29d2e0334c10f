//! VMware's authentication daemon (`authd`) on TCP 902, one pass, both sides. No document of VMware's describes it:
//! the facts come from public clients and transcripts that agree (marked where only one source says so).
//!
//! ```text
//! S: 220 VMware Authentication Daemon Version 1.10: SSL Required, …      plain text
//!    == TLS no. 1 ==
//! C: USER <ticket>         S: 331 …
//! C: PASS <ticket>         S: 230 …
//! C: THUMBPRINT <nonce>    S: 200 <SHA-1 of the certificate that TLS no. 2 will show>
//! C: CONNECT <cfg> mks     S: 200 Connect <cfg>
//!    == raw TCP again: TLS no. 2 between client and VM; its first data are the nonce ==
//! ```

mod client;
mod server;

pub use client::{Banner, BannerError, CommandError, Reply, ReplyError, commands};
pub use server::{Action, Refusal, Server};

/// Reply codes (one public source; 200, 220, 230, 331, 501 and 530 agree in two or more).
pub mod code {
    /// Done.
    pub const DONE: u16 = 200;
    /// Welcome.
    pub const WELCOME: u16 = 220;
    /// Goodbye.
    pub const GOODBYE: u16 = 221;
    /// Logged in.
    pub const LOGGED_IN: u16 = 230;
    /// The password is wanted.
    pub const NEED_PASSWORD: u16 = 331;
    /// Unknown command.
    pub const BAD_COMMAND: u16 = 500;
    /// Wrong arguments.
    pub const BAD_ARGUMENTS: u16 = 501;
    /// Not a line of this protocol.
    pub const MALFORMED: u16 = 502;
    /// Another command has to come first.
    pub const OUT_OF_ORDER: u16 = 503;
    /// The VM could not be started.
    pub const START_PROBLEM: u16 = 511;
    /// The server behind has a problem.
    pub const SERVER_PROBLEM: u16 = 512;
    /// The ticket was not accepted further on.
    pub const TICKET_PROBLEM: u16 = 513;
    /// The VM could not be connected to.
    pub const CONNECT_PROBLEM: u16 = 514;
    /// Not logged in.
    pub const LOGIN_INCORRECT: u16 = 530;
    /// No access.
    pub const NO_ACCESS: u16 = 550;
    /// Too busy.
    pub const BUSY: u16 = 552;
    /// No such VM.
    pub const NO_SUCH_VM: u16 = 553;
    /// No such service.
    pub const NO_SUCH_SERVICE: u16 = 554;
    /// A second pass is asked for, with the ticket in the text.
    pub const SECOND_PASS: u16 = 630;
}

/// Length of the nonce of THUMBPRINT: base64 of 12 random bytes.
pub const NONCE_LEN: usize = 16;

/// The banner of a server that wants TLS at once. `server` ends up in scans and logs of others.
pub const BANNER: &str = "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, \
                          MKSDisplayProtocol:VNC , VMXARGS supported, NFCSSL supported/t, SHA256 supported\r\n";

/// Whether `nonce` is what a client may send: 1 to 64 printable base64 characters. Clients send [`NONCE_LEN`]; the
/// bound leaves room, the alphabet keeps a line end from being smuggled to the hypervisor.
pub fn is_nonce(nonce: &str) -> bool {
    (1..=64).contains(&nonce.len())
        && nonce.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_'))
}
