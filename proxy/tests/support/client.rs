//! A client of the raw doors, written against the wire alone: blocking sockets, rustls' buffered API fed record by record.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use super::PATIENCE;

/// Accepts any certificate and shows it.
#[derive(Debug)]
pub struct Any;

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Asks an echoing machine to say this again.
pub fn echoes<S: Read + Write>(mut stream: S) -> S {
    stream.write_all(b"hello console").unwrap();
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello console");
    stream
}

/// TLS over a blocking socket that never reads past a record.
pub struct Tls {
    pub tcp: TcpStream,
    pub tls: ClientConnection,
    plain: Vec<u8>,
}

impl Tls {
    pub fn start(tcp: TcpStream) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Any))
            .with_no_client_auth();
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("console.example").unwrap())
            .unwrap();
        let mut this = Self { tcp, tls, plain: Vec::new() };
        while this.tls.is_handshaking() {
            this.flush()?;
            if this.tls.is_handshaking() {
                this.record()?;
            }
        }
        this.flush()?;
        Ok(this)
    }

    pub fn leaf(&self) -> Vec<u8> {
        self.tls.peer_certificates().unwrap()[0].to_vec()
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }

    fn record(&mut self) -> io::Result<()> {
        let mut record = vec![0; 5];
        self.tcp.read_exact(&mut record)?;
        let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(5 + len, 0);
        self.tcp.read_exact(&mut record[5..])?;
        let mut rest = &record[..];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest)?;
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain)?;
            self.plain.extend(plain);
            if state.peer_has_closed() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    pub fn send(&mut self, text: &str) -> io::Result<()> {
        self.send_bytes(text.as_bytes())
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(16 * 1024) {
            self.tls.writer().write_all(piece)?;
            self.flush()?;
        }
        Ok(())
    }

    /// What comes next, or has come already.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        while self.plain.is_empty() {
            self.record()?;
        }
        Ok(std::mem::take(&mut self.plain))
    }

    pub fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.plain.windows(2).position(|w| w == b"\r\n") {
                let line =
                    String::from_utf8(self.plain.drain(..end + 2).collect()).map_err(io::Error::other)?;
                return Ok(line.trim_end().into());
            }
            self.record()?;
        }
    }

    pub fn ask(&mut self, command: &str) -> io::Result<String> {
        self.send(&format!("{command}\r\n"))?;
        self.line()
    }

    /// Everything until the peer's close.
    pub fn rest(&mut self) -> String {
        while self.record().is_ok() {}
        String::from_utf8_lossy(&self.plain).into()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// One line of plain text.
pub fn plain_line(tcp: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        tcp.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().into())
}

/// To the dialogue through TCP 902.
pub fn authd(address: SocketAddr) -> Tls {
    authd_on(connect(address))
}

/// The same on a connection that was made in its own way.
pub fn authd_on(mut tcp: TcpStream) -> Tls {
    let banner = plain_line(&mut tcp).unwrap();
    assert!(
        banner.starts_with("220 VMware Authentication Daemon") && banner.contains("SSL Required"),
        "{banner}"
    );
    Tls::start(tcp).unwrap()
}

/// To the dialogue through TLS 443.
pub fn mks(address: SocketAddr) -> Tls {
    let mut tls = Tls::start(connect(address)).unwrap();
    let status = tls
        .ask("GET /mks HTTP/1.1\r\nHost: console.example\r\nConnection: Upgrade\r\nUpgrade: mks\r\n")
        .unwrap();
    assert_eq!(status, "HTTP/1.1 101 Switching Protocols");
    while !tls.line().unwrap().is_empty() {}
    tls
}

/// Logs in and connects; the last reply and, where it is `200 Connect`, the raw stream.
pub fn open(mut tls: Tls, ticket: &str, vm: &str) -> Result<TcpStream, String> {
    let mut last = String::new();
    for (command, wanted) in [
        (format!("USER {ticket}"), "331"),
        (format!("PASS {ticket}"), "230"),
        (format!("CONNECT {vm} mks"), "200"),
    ] {
        last = tls.ask(&command).map_err(|error| format!("{error} after {last:?}"))?;
        if !last.starts_with(wanted) {
            return Err(last);
        }
    }
    assert!(tls.plain.is_empty(), "nothing follows `200 Connect` inside TLS no. 1");
    Ok(tls.tcp)
}
