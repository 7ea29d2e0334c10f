//! Through a front door: TCP, TLS no. 1, the authd dialogue. What comes out is the raw TCP stream on which TLS no. 2 begins.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use super::proxy::{self, HttpProxy};
use super::trust::Trusting;
use super::{ConnectError, Door};
use crate::protocol::authd::{Banner, Reply, code, commands};
use crate::protocol::line::{MAX_LINE, take_line};
use crate::tls::pin::is_wrong_certificate;
use crate::tls::{Thumbprint, TlsError, TlsStream};
use crate::wire::Wire;

/// How long everything up to the raw stream may take. The gate's own deadlines for its backend are shorter.
const DEADLINE: Duration = Duration::from_secs(45);

/// Which console, and how to get there.
#[derive(Debug)]
pub struct Target {
    /// The gate's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Which of its doors that is.
    pub door: Door,
    /// The proxy in between.
    pub proxy: Option<HttpProxy>,
    /// The certificates of TLS no. 1 that are good.
    pub trust: Trusting,
    /// What to ask for in CONNECT.
    pub vm: String,
    /// The sealed ticket.
    pub ticket: Ticket,
    /// Ask for the SHA-256 of TLS no. 2's certificate instead of its SHA-1.
    pub sha256: bool,
}

/// A sealed ticket; never printed.
pub struct Ticket(pub Zeroizing<String>);

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket")
    }
}

/// A raw stream that a VM waits on.
pub(super) struct Opened {
    pub(super) wire: Wire,
    /// Bytes of TLS no. 2 that came already.
    pub(super) early: Vec<u8>,
    /// The certificate that TLS no. 2 has to show.
    pub(super) thumbprint: Thumbprint,
    /// The first data to send inside TLS no. 2.
    pub(super) nonce: String,
}

type Tls = TlsStream<UnbufferedClientConnection>;

impl Target {
    /// Opens the console once. `reconnect` says that the ticket worked before, for the wording of a refusal.
    pub(super) async fn open(&self, reconnect: bool) -> Result<Opened, ConnectError> {
        let opening = async {
            let (wire, early) = self.tcp().await?;
            let tls = match self.door {
                Door::Authd => self.authd(wire, early).await?,
                Door::Mks => self.mks(wire, early).await?,
            };
            self.dialogue(tls, reconnect).await
        };
        tokio::time::timeout(DEADLINE, opening)
            .await
            .unwrap_or(Err(ConnectError::Deadline { seconds: DEADLINE.as_secs() }))
    }

    async fn tcp(&self) -> Result<(Wire, Vec<u8>), ConnectError> {
        match &self.proxy {
            Some(proxy) => proxy.tunnel(&self.host, self.port).await,
            None => Ok((Wire::from_tokio(proxy::dial(&self.host, self.port).await?)?, Vec::new())),
        }
    }

    /// TCP 902: a banner in plain text, then TLS.
    async fn authd(&self, mut wire: Wire, mut early: Vec<u8>) -> Result<Tls, ConnectError> {
        let line = loop {
            match take_line(&mut early) {
                Ok(Some(line)) => break line,
                Ok(None) => {}
                Err(_) => return Err(ConnectError::NotAuthd),
            }
            if wire.read_into(&mut early, MAX_LINE).await? == 0 {
                return Err(ConnectError::Closed("the server"));
            }
        };
        if line.starts_with("5") || line.starts_with("221") {
            return Err(refused(Reply::parse(&line).map_err(|_| ConnectError::NotAuthd)?, false));
        }
        let banner = Banner::parse(&line).map_err(|_| ConnectError::NotAuthd)?;
        if !banner.ssl_required {
            return Err(ConnectError::NoTls);
        }
        self.tls(wire, early).await
    }

    /// TLS 443: `GET /mks` inside TLS, 101, then the same dialogue.
    async fn mks(&self, wire: Wire, early: Vec<u8>) -> Result<Tls, ConnectError> {
        let mut tls = self.tls(wire, early).await?;
        let host = proxy::authority(&self.host, self.port);
        let request =
            format!("GET /mks HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: mks\r\n\r\n");
        tls.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        loop {
            let more = tls.read().await?;
            if more.is_empty() {
                return Err(ConnectError::Closed("the server"));
            }
            head.extend(more);
            match proxy::status_of(&head) {
                Ok(Some((101, len))) => {
                    head.drain(..len);
                    *tls.unread_mut() = head;
                    return Ok(tls);
                }
                Ok(Some((status, _))) => return Err(ConnectError::NoDoor { status }),
                Ok(None) if head.len() <= proxy::MAX_HEAD => {}
                Ok(None) | Err(()) => return Err(ConnectError::NotHttp("the server")),
            }
        }
    }

    async fn tls(&self, wire: Wire, early: Vec<u8>) -> Result<Tls, ConnectError> {
        let connection = UnbufferedClientConnection::new(self.trust.config.clone(), server_name(&self.host))
            .map_err(TlsError::from)?;
        TlsStream::handshake(wire, connection, early).await.map_err(|error| {
            match (error, self.trust.seen()) {
                (TlsError::Tls(why), Some(seen)) if is_wrong_certificate(&why) => {
                    ConnectError::Certificate { why: why.to_string(), seen }
                }
                (error, _) => error.into(),
            }
        })
    }

    async fn dialogue(&self, mut tls: Tls, reconnect: bool) -> Result<Opened, ConnectError> {
        let argument = |_| ConnectError::Argument;
        let ticket = &*self.ticket.0;
        let nonce = nonce()?;
        let mut ask = Asking { tls: &mut tls, reconnect };
        let user = Zeroizing::new(commands::user(ticket).map_err(argument)?);
        ask.ask("USER", &user, code::NEED_PASSWORD).await?;
        let pass = Zeroizing::new(commands::pass(ticket).map_err(argument)?);
        ask.ask("PASS", &pass, code::LOGGED_IN).await?;
        let thumbprint = commands::thumbprint(&nonce, self.sha256).map_err(argument)?;
        let announced = ask.ask("THUMBPRINT", &thumbprint, code::DONE).await?;
        let thumbprint =
            announced.parse().map_err(|_| ConnectError::Dialogue { after: "THUMBPRINT", what: announced })?;
        ask.ask("CONNECT", &commands::connect(&self.vm).map_err(argument)?, code::DONE).await?;
        if !tls.unread().is_empty() {
            let what = "data where the raw stream should begin".to_owned();
            return Err(ConnectError::Dialogue { after: "CONNECT", what });
        }
        let (wire, early) = tls.into_raw();
        Ok(Opened { wire, early, thumbprint, nonce })
    }
}

struct Asking<'a> {
    tls: &'a mut Tls,
    reconnect: bool,
}

impl Asking<'_> {
    /// Sends a command and gives the text of the reply, if its code is the right one. A banner that a door sends again inside
    /// TLS is passed over.
    async fn ask(&mut self, command: &'static str, line: &str, good: u16) -> Result<String, ConnectError> {
        self.tls.write_all(line.as_bytes()).await?;
        loop {
            let line = self.tls.read_line().await.map_err(|error| match error {
                TlsError::Closed => ConnectError::Closed("the server"),
                error => error.into(),
            })?;
            let reply = Reply::parse(&line);
            let reply = reply
                .map_err(|_| ConnectError::Dialogue { after: command, what: "no reply code".to_owned() })?;
            match reply.code {
                code if code == good => return Ok(reply.text),
                code::WELCOME if command == "USER" => {}
                // In order, but not the awaited one: a server of another kind.
                code if code < 400 && code != code::GOODBYE => {
                    return Err(ConnectError::Dialogue { after: command, what: format!("code {code}") });
                }
                _ => return Err(refused(reply, self.reconnect)),
            }
        }
    }
}

fn refused(reply: Reply, reconnect: bool) -> ConnectError {
    // The gate's words end up on a terminal and in a viewer.
    let text: String = reply.text.chars().filter(|c| !c.is_control()).take(200).collect();
    ConnectError::Refused { code: reply.code, text, reconnect }
}

/// The name for SNI and for the chain's check; an address is one too.
pub(super) fn server_name(host: &str) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap_or_else(|_| {
        // Not a DNS name (an underscore, say): a thumbprint may still match it, a chain never will.
        ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
    })
}

/// 16 characters: base64 of 12 random bytes.
fn nonce() -> Result<String, ConnectError> {
    let mut bytes = [0; 12];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no randomness"))?;
    Ok(STANDARD.encode(bytes))
}
