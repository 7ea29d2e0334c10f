//! Clients that open consoles, by the books of each door, and say how long each step took.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::websocket::{Control, Frames, binary, pong};
use crate::sim::Stream;

/// Longest line or head that is read.
const MAX_LINE: usize = 8192;

/// A way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// TCP 902: the authd dialogue. The host itself speaks the same.
    Authd,
    /// TLS 443, `GET /mks`, then the same dialogue inside.
    Mks,
    /// TLS 443, `GET /ticket/…`: a WebSocket.
    Web,
}

impl Door {
    /// As the appliance names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authd => "authd",
            Self::Mks => "mks",
            Self::Web => "web",
        }
    }
}

/// Where to, and with what.
#[derive(Clone, Debug)]
pub struct Way {
    /// The door.
    pub door: Door,
    /// Its address.
    pub address: SocketAddr,
    /// What opens it.
    pub ticket: Arc<str>,
    /// The machine that CONNECT names.
    pub vm: Arc<str>,
}

/// How long the steps took, nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Steps {
    /// TCP, and the banner where there is one.
    pub connect: u64,
    /// TLS handshake.
    pub tls: u64,
    /// Ticket and limits: to `230`, or to the 101 of a WebSocket.
    pub login: u64,
    /// The host's side: to `200 Connect`, or to the end of RFB's handshake.
    pub console: u64,
}

/// A console that stands.
pub struct Console {
    layer: Layer,
    /// Console bytes that are decoded and not yet taken.
    data: Vec<u8>,
}

enum Layer {
    Raw(Arc<TcpStream>),
    Web(Box<Stream>, Frames),
}

/// TLS of all clients: any certificate, no resumption, so that every handshake is a full one.
pub fn client_config() -> io::Result<Arc<ClientConfig>> {
    client_config_with(rustls::crypto::aws_lc_rs::default_provider())
}

/// The same with these suites and curves.
pub fn client_config_with(provider: rustls::crypto::CryptoProvider) -> io::Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Opens a console.
///
/// # Errors
/// The connection broke, or a refusal: its text.
pub async fn open(way: &Way, config: Arc<ClientConfig>) -> io::Result<(Console, Steps)> {
    let clock = Clock(Instant::now());
    log_in(TcpStream::connect(way.address).await?, way, config, clock).await
}

/// The same from this address of the machine.
///
/// # Errors
/// The same.
pub async fn open_from(
    source: Ipv4Addr,
    way: &Way,
    config: Arc<ClientConfig>,
) -> io::Result<(Console, Steps)> {
    let clock = Clock(Instant::now());
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    log_in(socket.connect(way.address).await?, way, config, clock).await
}

async fn log_in(
    tcp: TcpStream,
    way: &Way,
    config: Arc<ClientConfig>,
    mut clock: Clock,
) -> io::Result<(Console, Steps)> {
    let mut steps = Steps::default();
    let tcp = Arc::new(tcp);
    tcp.set_nodelay(true)?;
    if way.door == Door::Authd {
        expect(&banner(&tcp).await?, "220 ")?;
    }
    steps.connect = clock.lap();
    let name = ServerName::try_from("console.example").map_err(io::Error::other)?;
    let mut tls = Stream::connect(tcp.clone(), config, name).await?;
    steps.tls = clock.lap();
    if way.door == Door::Web {
        upgrade(&mut tls, &format!("/ticket/{}", way.ticket)).await?;
        steps.login = clock.lap();
        let mut console = Console { layer: Layer::Web(Box::new(tls), Frames::default()), data: Vec::new() };
        console.shake_hands().await?;
        steps.console = clock.lap();
        return Ok((console, steps));
    }
    if way.door == Door::Mks {
        let request =
            "GET /mks HTTP/1.1\r\nHost: console.example\r\nConnection: Upgrade\r\nUpgrade: mks\r\n\r\n";
        tls.send(request.as_bytes()).await?;
        expect(&line(&mut tls).await?, "HTTP/1.1 101")?;
        while !line(&mut tls).await?.is_empty() {}
    }
    expect(&ask(&mut tls, &format!("USER {}", way.ticket)).await?, "331")?;
    expect(&ask(&mut tls, &format!("PASS {}", way.ticket)).await?, "230")?;
    steps.login = clock.lap();
    // Four of the sixteen characters are enough to tell them apart; nobody checks them on a plain console.
    expect(&ask(&mut tls, "THUMBPRINT bWtzZ2F0ZS1zaW0h").await?, "200 ")?;
    expect(&ask(&mut tls, &format!("CONNECT {} mks", way.vm)).await?, "200 ")?;
    steps.console = clock.lap();
    drop(tls);
    Ok((Console { layer: Layer::Raw(tcp), data: Vec::new() }, steps))
}

impl Console {
    /// Its connection, if it is raw and nothing of it was read yet.
    pub fn into_raw(self) -> Option<TcpStream> {
        match self.layer {
            Layer::Raw(tcp) if self.data.is_empty() => Arc::into_inner(tcp),
            _ => None,
        }
    }

    /// Waits for bytes of the console and appends them; `scratch` is where they are received. False at the end.
    ///
    /// # Errors
    /// The connection broke. May be abandoned while it waits.
    pub async fn read(&mut self, scratch: &mut [u8], into: &mut Vec<u8>) -> io::Result<bool> {
        if !self.data.is_empty() {
            into.append(&mut self.data);
            return Ok(true);
        }
        loop {
            match &mut self.layer {
                Layer::Raw(tcp) => {
                    tcp.readable().await?;
                    match tcp.try_read(scratch) {
                        Ok(0) => return Ok(false),
                        Ok(n) => {
                            into.extend_from_slice(&scratch[..n]);
                            return Ok(true);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                Layer::Web(tls, frames) => {
                    let n = tls.read(scratch).await?;
                    if n == 0 {
                        return Ok(false);
                    }
                    let before = into.len();
                    match frames.take(&scratch[..n], into)? {
                        Some(Control::Ping(body)) => tls.send(&pong(&body, MASK)).await?,
                        Some(Control::Close(_)) => return Ok(false),
                        None => {}
                    }
                    if into.len() > before {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Sends.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.layer {
            Layer::Raw(tcp) => {
                let mut left = bytes;
                while !left.is_empty() {
                    tcp.writable().await?;
                    match tcp.try_write(left) {
                        Ok(n) => left = &left[n..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
            Layer::Web(tls, _) => tls.send(&binary(bytes, MASK)).await,
        }
    }

    /// Ends it as a viewer that was closed does.
    pub async fn close(self) {
        match self.layer {
            // The last owner of the socket: dropping it is the FIN.
            Layer::Raw(tcp) => drop(tcp),
            Layer::Web(mut tls, _) => {
                let _ = tls.shutdown().await;
            }
        }
    }

    /// Reads exactly so many bytes.
    async fn exactly(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let (mut got, mut scratch) = (Vec::new(), [0; 512]);
        while got.len() < n {
            if !self.read(&mut scratch, &mut got).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.data = got.split_off(n);
        Ok(got)
    }

    /// RFB 3.8, security type None (RFC 6143, 7.1), up to ClientInit.
    async fn shake_hands(&mut self) -> io::Result<()> {
        if self.exactly(12).await? != b"RFB 003.008\n" {
            return Err(io::Error::other("no RFB 3.8"));
        }
        self.write(b"RFB 003.008\n").await?;
        if self.exactly(2).await? != [1, 1] {
            return Err(io::Error::other("no security type None"));
        }
        self.write(&[1]).await?;
        self.exactly(4).await?;
        self.write(&[1]).await
    }
}

/// A client's mask keeps intermediaries from being fooled; between two of our own programs any will do.
const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0x88];

struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let lap = now - std::mem::replace(&mut self.0, now);
        u64::try_from(lap.as_nanos()).unwrap_or(u64::MAX)
    }
}

fn expect(line: &str, start: &str) -> io::Result<()> {
    if line.starts_with(start) { Ok(()) } else { Err(io::Error::other(format!("refused: {line}"))) }
}

/// The banner, which comes alone: the host waits for TLS after it.
async fn banner(tcp: &TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n") && text.len() < MAX_LINE {
        tcp.readable().await?;
        let mut piece = [0; 512];
        match tcp.try_read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => text.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn ask(tls: &mut Stream, command: &str) -> io::Result<String> {
    tls.send(format!("{command}\r\n").as_bytes()).await?;
    line(tls).await
}

/// One line without its end. Byte by byte from what TLS has decrypted already: nothing behind it is taken.
async fn line(tls: &mut Stream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_LINE {
            return Err(io::Error::other("a line that is too long"));
        }
        line.push(tls.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// RFC 6455, 4.1. The answer to the key is not checked here: that is the tests' business.
async fn upgrade(tls: &mut Stream, path: &str) -> io::Result<()> {
    let key = base64::engine::general_purpose::STANDARD.encode(b"mksgate-bench-01");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: console.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
    );
    tls.send(request.as_bytes()).await?;
    expect(&line(tls).await?, "HTTP/1.1 101")?;
    while !line(tls).await?.is_empty() {}
    Ok(())
}

/// Accepts any certificate; the handshake's signature is not checked either, which is the generator's own cost saved.
#[derive(Debug)]
struct Any;

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
