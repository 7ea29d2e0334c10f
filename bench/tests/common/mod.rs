//! A console client of its own: blocking, rustls, nothing of the simulator's code.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// 16 characters of base64.
pub const NONCE: &str = "bWtzZ2F0ZS1zaW0h";

pub type Tls = StreamOwned<ClientConnection, ByRecord>;

/// Where the dialogue stands.
pub struct Console {
    pub tls1: Tls,
    /// SHA-1 of TLS no. 1's certificate, lower-case hexadecimal.
    pub host_sha1: String,
}

/// Connects, reads the banner, starts TLS no. 1.
pub fn connect(addr: SocketAddr) -> std::io::Result<Console> {
    let mut tcp = open(addr)?;
    let banner = line(&mut tcp)?;
    assert!(banner.starts_with("220 ") && banner.contains("SSL Required"), "{banner}");
    let (tls1, host_sha1) = tls(tcp)?;
    Ok(Console { tls1, host_sha1 })
}

pub fn open(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let tcp = TcpStream::connect(addr)?;
    tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// A TLS client over `tcp` that accepts any certificate, and the certificate's SHA-1.
pub fn tls(tcp: TcpStream) -> std::io::Result<(Tls, String)> {
    let seen = Arc::new(Seen::default());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("default versions")
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let name = ServerName::try_from("esxi.example").expect("a name");
    let conn = ClientConnection::new(Arc::new(config), name).expect("a configuration");
    let mut tls = StreamOwned::new(conn, ByRecord { tcp, head: Vec::new(), left: 0 });
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    let sha1 = seen.0.lock().expect("no panic").clone();
    Ok((tls, sha1))
}

impl Console {
    /// Sends a command, returns the reply without its line end.
    pub fn ask(&mut self, command: &str) -> std::io::Result<String> {
        self.tls1.write_all(format!("{command}\r\n").as_bytes())?;
        line(&mut self.tls1)
    }

    /// USER and PASS.
    pub fn log_in(&mut self, ticket: &str) -> std::io::Result<String> {
        let asked = self.ask(&format!("USER {ticket}"))?;
        assert!(asked.starts_with("331 "), "{asked}");
        self.ask(&format!("PASS {ticket}"))
    }

    /// THUMBPRINT and CONNECT; returns the announced SHA-1 and the raw stream.
    pub fn hand_over(mut self, vm: &str) -> std::io::Result<(String, TcpStream)> {
        let announced = self.ask(&format!("THUMBPRINT {NONCE}"))?;
        let print = announced.strip_prefix("200 ").expect("200").replace(':', "").to_lowercase();
        let connected = self.ask(&format!("CONNECT {vm} mks"))?;
        assert_eq!(connected, format!("200 Connect {vm}"));
        Ok((print, self.tls1.sock.tcp))
    }

    /// The whole way: TLS no. 2, nonce, console.
    pub fn console(mut self, ticket: &str, vm: &str) -> std::io::Result<Tls> {
        let logged_in = self.log_in(ticket)?;
        assert!(logged_in.starts_with("230 "), "{logged_in}");
        let (announced, raw) = self.hand_over(vm)?;
        let (mut console, shown) = tls(raw)?;
        assert_eq!(announced, shown, "TLS no. 2 shows what THUMBPRINT announced");
        console.write_all(NONCE.as_bytes())?;
        Ok(console)
    }
}

/// Hands out one TLS record at a time: what follows the last one of TLS no. 1 is left in the socket.
pub struct ByRecord {
    pub tcp: TcpStream,
    head: Vec<u8>,
    left: usize,
}

impl std::io::Read for ByRecord {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let most = if self.left > 0 { self.left } else { 5 - self.head.len() }.min(buf.len());
        let n = self.tcp.read(&mut buf[..most])?;
        if self.left > 0 {
            self.left -= n;
        } else {
            self.head.extend_from_slice(&buf[..n]);
            if let [_, _, _, high, low] = self.head[..] {
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.head.clear();
            }
        }
        Ok(n)
    }
}

impl std::io::Write for ByRecord {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.tcp.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.tcp.flush()
    }
}

/// One line, byte by byte.
pub fn line(from: &mut impl std::io::Read) -> std::io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// ServerInit: width, height, name.
pub fn server_init(console: &mut impl std::io::Read) -> std::io::Result<(u16, u16, String)> {
    let mut head = [0; 24];
    console.read_exact(&mut head)?;
    let mut name = vec![0; u32::from_be_bytes([head[20], head[21], head[22], head[23]]) as usize];
    console.read_exact(&mut name)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok((u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]]), name))
}

/// Remembers the certificate, checks only that the server holds its key.
#[derive(Debug, Default)]
struct Seen(Mutex<String>);

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let sha1 = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, leaf);
        *self.0.lock().expect("no panic") = sha1.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
