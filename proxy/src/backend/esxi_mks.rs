//! The client's side of authd towards an ESXi host, up to the point where its TCP stream is the VM's.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;

use super::{BackendError, Dial, Step, dial};
use crate::protocol::authd::{Banner, CommandError, Reply, code, commands};
use crate::protocol::line::{MAX_LINE, take_line};
use crate::ticket::{Target, TargetKind};
use crate::tls::{Pinned, Thumbprint, TlsError, TlsStream, pin};
use crate::wire::Wire;

/// TCP port of authd.
pub(super) const PORT: u16 = 902;

/// A host that took our ticket and waits for THUMBPRINT or CONNECT.
pub struct EsxiMks {
    tls: TlsStream<UnbufferedClientConnection>,
    within: Duration,
}

impl EsxiMks {
    /// TCP to the host the ticket names.
    pub async fn connect(target: &Target, how: Dial<'_>) -> Result<Wire, BackendError> {
        if target.kind != TargetKind::EsxiMks {
            return Err(BackendError::Unsupported("other than esxi-mks"));
        }
        dial(target, target.port.unwrap_or(PORT), how).await
    }

    /// Banner, TLS no. 1 with the pinned certificate, USER and PASS; `within` bounds this and each later step.
    pub async fn login(
        wire: Wire,
        target: &Target,
        provider: Arc<CryptoProvider>,
        within: Duration,
    ) -> Result<Self, BackendError> {
        let ticket = target.ticket.as_deref().ok_or(BackendError::BadTarget("has no ticket for the host"))?;
        let pins = thumbprints(target)?;
        deadline(within, Step::Login, async {
            let mut this = Self { tls: tls_one(wire, pins, provider).await?, within };
            this.expect(commands::user(ticket), code::NEED_PASSWORD, Step::Login).await?;
            this.expect(commands::pass(ticket), code::LOGGED_IN, Step::Login).await?;
            Ok(this)
        })
        .await
    }

    /// The first of two passes: USER, PASS and CONNECT, until the host gives the ticket of the second.
    pub(super) async fn first_pass(
        wire: Wire,
        target: &Target,
        cfg_file: &str,
        provider: Arc<CryptoProvider>,
        within: Duration,
    ) -> Result<FirstPass, BackendError> {
        let ticket = target.ticket.as_deref().ok_or(BackendError::BadTarget("has no ticket for the host"))?;
        let pins = thumbprints(target)?;
        deadline(within, Step::Login, async {
            let mut this = Self { tls: tls_one(wire, pins, provider).await?, within };
            this.expect(commands::user(ticket), code::NEED_PASSWORD, Step::Login).await?;
            for (command, wanted, step) in [
                (commands::pass(ticket), code::LOGGED_IN, Step::Login),
                (commands::connect(cfg_file), code::DONE, Step::Console),
            ] {
                let reply = this.ask(command, step).await?;
                if reply.is_second_pass() {
                    let ticket = reply.text.split_whitespace().next_back().map(str::to_owned);
                    return ticket
                        .map(FirstPass::Ticket)
                        .ok_or(BackendError::Unexpected { code: reply.code, step });
                }
                judge(&reply, wanted, step)?;
            }
            Ok(FirstPass::Console)
        })
        .await
    }

    /// Forwards the client's nonce; the answer is what TLS no. 2 will show, as the host wrote it.
    pub async fn thumbprint(&mut self, nonce: &str, sha256: bool) -> Result<String, BackendError> {
        let within = self.within;
        deadline(within, Step::Thumbprint, async {
            let text = self.expect(commands::thumbprint(nonce, sha256), code::DONE, Step::Thumbprint).await?;
            // Checked before it is relayed: nothing but a thumbprint reaches the client.
            text.parse::<Thumbprint>()
                .map(|print| print.to_string())
                .map_err(|_| BackendError::Unexpected { code: code::DONE, step: Step::Thumbprint })
        })
        .await
    }

    /// CONNECT. The socket then carries TLS no. 2; the bytes are what of it was already received.
    pub async fn console(self, cfg_file: &str) -> Result<(OwnedFd, Vec<u8>), BackendError> {
        let (wire, first) = self.raw_console(cfg_file).await?;
        Ok((wire.into_fd().map_err(BackendError::Internal)?, first))
    }

    /// CONNECT, then TLS no. 2 ended here, with the certificate that `announced` (the answer to THUMBPRINT) promises, and
    /// the nonce as its first data. What is read from it next is ServerInit.
    pub async fn console_inside(
        self,
        cfg_file: &str,
        announced: &str,
        nonce: &str,
        provider: Arc<CryptoProvider>,
    ) -> Result<TlsStream<UnbufferedClientConnection>, BackendError> {
        let within = self.within;
        let print = announced.parse();
        let print =
            print.map_err(|_| BackendError::Unexpected { code: code::DONE, step: Step::Thumbprint })?;
        let (wire, first) = self.raw_console(cfg_file).await?;
        deadline(within, Step::TlsTwo, async {
            let mut tls = pinned(wire, vec![print], provider, first, Step::TlsTwo).await?;
            let closed = |error| BackendError::Closed { step: Step::TlsTwo, error };
            tls.write_all(nonce.as_bytes()).await.map_err(closed)?;
            Ok(tls)
        })
        .await
    }

    async fn raw_console(mut self, cfg_file: &str) -> Result<(Wire, Vec<u8>), BackendError> {
        let within = self.within;
        deadline(within, Step::Console, async {
            self.expect(commands::connect(cfg_file), code::DONE, Step::Console).await?;
            if !self.tls.unread().is_empty() {
                return Err(BackendError::Unexpected { code: code::DONE, step: Step::Console });
            }
            Ok(self.tls.into_raw())
        })
        .await
    }

    async fn expect(
        &mut self,
        command: Result<String, CommandError>,
        wanted: u16,
        step: Step,
    ) -> Result<String, BackendError> {
        let reply = self.ask(command, step).await?;
        judge(&reply, wanted, step)?;
        Ok(reply.text)
    }

    async fn ask(
        &mut self,
        command: Result<String, CommandError>,
        step: Step,
    ) -> Result<Reply, BackendError> {
        let command = command
            .map_err(|_| BackendError::BadTarget("holds a name that does not fit on an authd line"))?;
        let closed = |error| BackendError::Closed { step, error };
        self.tls.write_all(command.as_bytes()).await.map_err(closed)?;
        let line = self.tls.read_line().await.map_err(closed)?;
        Reply::parse(&line).map_err(|_| BackendError::Unexpected { code: 0, step })
    }
}

/// How a first pass ended.
pub(super) enum FirstPass {
    /// With the ticket of the second. Secret.
    Ticket(String),
    /// With the console itself: the host is no two-pass host.
    Console,
}

fn judge(reply: &Reply, wanted: u16, step: Step) -> Result<(), BackendError> {
    if reply.is(wanted) {
        Ok(())
    } else if reply.is_second_pass() {
        Err(BackendError::SecondPass)
    } else if reply.is(code::LOGIN_INCORRECT) || reply.is(code::TICKET_PROBLEM) {
        Err(BackendError::Refused { code: reply.code, step })
    } else {
        Err(BackendError::Unexpected { code: reply.code, step })
    }
}

pub(super) fn thumbprints(target: &Target) -> Result<Vec<Thumbprint>, BackendError> {
    if target.thumbprints.is_empty() {
        return Err(BackendError::BadTarget(
            "has no thumbprint; without one the host cannot be told from an impostor",
        ));
    }
    let parsed: Result<Vec<Thumbprint>, _> = target.thumbprints.iter().map(|t| t.parse()).collect();
    parsed.map_err(|_| BackendError::BadTarget("has a thumbprint that is none"))
}

/// The banner in plain text, then TLS no. 1.
async fn tls_one(
    mut wire: Wire,
    pins: Vec<Thumbprint>,
    provider: Arc<CryptoProvider>,
) -> Result<TlsStream<UnbufferedClientConnection>, BackendError> {
    let mut buffer = Vec::new();
    let line = loop {
        match take_line(&mut buffer) {
            Ok(Some(line)) => break line,
            Ok(None) => {}
            Err(_) => {
                return Err(BackendError::NotAuthd(
                    String::from_utf8_lossy(&buffer[..buffer.len().min(64)]).into(),
                ));
            }
        }
        let closed = |error: TlsError| BackendError::Closed { step: Step::Banner, error };
        if wire.read_into(&mut buffer, MAX_LINE).await.map_err(|e| closed(e.into()))? == 0 {
            return Err(closed(TlsError::Closed));
        }
    };
    let banner = Banner::parse(&line).map_err(|_| BackendError::NotAuthd(line.chars().take(64).collect()))?;
    if !banner.ssl_required {
        return Err(BackendError::PlainBanner);
    }
    pinned(wire, pins, provider, buffer, Step::Tls).await
}

/// TLS with a host that is known by its certificate. `early` was received already.
pub(super) async fn pinned(
    wire: Wire,
    pins: Vec<Thumbprint>,
    provider: Arc<CryptoProvider>,
    early: Vec<u8>,
    step: Step,
) -> Result<TlsStream<UnbufferedClientConnection>, BackendError> {
    let peer = wire.peer().map_err(BackendError::Internal)?;
    let tls = |error: rustls::Error| BackendError::Tls(error.into());
    let config = Pinned::config(pins, provider).map_err(tls)?;
    // The name is never checked and, being an address, not sent either: hosts are known by thumbprint.
    let name = ServerName::from(peer.ip());
    let connection = UnbufferedClientConnection::new(Arc::new(config), name).map_err(tls)?;
    TlsStream::handshake(wire, connection, early).await.map_err(|error| match &error {
        TlsError::Tls(inner) if pin::is_wrong_certificate(inner) => BackendError::WrongCertificate,
        TlsError::Tls(_) => BackendError::Tls(error),
        _ => BackendError::Closed { step, error },
    })
}

pub(super) async fn deadline<T>(
    within: Duration,
    step: Step,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let late = BackendError::Timeout { address: "the host".into(), step };
    tokio::time::timeout(within, work).await.unwrap_or(Err(late))
}
