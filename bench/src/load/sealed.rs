//! The generator's clients of those who end TLS: TLS 1.3 with one suite and one curve, so that all do the same work.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::pingpong::End;
use super::visitor::client_config_with;
use super::websocket::{Frames, binary};

/// How long a single connection may take.
const PATIENCE: Duration = Duration::from_secs(10);
const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0x88];

/// A client's connection.
pub struct Sealed {
    tcp: TcpStream,
    tls: ClientConnection,
    web: Option<Frames>,
    /// Of a WebSocket's content, what came before it was asked for.
    early: Vec<u8>,
}

/// TLS_AES_128_GCM_SHA256, which browsers take, and P-256.
pub fn config() -> Result<Arc<ClientConfig>> {
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![kx_group::SECP256R1];
    Ok(client_config_with(provider)?)
}

impl Sealed {
    /// TCP and TLS.
    pub fn connect(to: SocketAddr, config: &Arc<ClientConfig>) -> Result<Self> {
        let tcp = TcpStream::connect_timeout(&to, PATIENCE).context("connecting through the proxy")?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let tls = ClientConnection::new(Arc::clone(config), ServerName::try_from("console.example")?)?;
        let mut this = Self { tcp, tls, web: None, early: Vec::new() };
        while this.tls.is_handshaking() {
            this.tls.complete_io(&mut this.tcp).context("TLS handshake")?;
        }
        while this.tls.wants_write() {
            this.tls.write_tls(&mut this.tcp)?;
        }
        Ok(this)
    }

    /// Asks for a WebSocket and waits for it.
    pub fn upgrade(&mut self, path: &str) -> Result<()> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: console.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bWtzZ2F0ZS1iZW5jaC0wMQ==\r\n\
             Sec-WebSocket-Protocol: binary\r\n\r\n"
        );
        self.send(request.as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            // Byte by byte: a frame may follow at once.
            let mut byte = [0];
            self.receive(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(
            head.starts_with("HTTP/1.1 101"),
            "no WebSocket: {}",
            head.lines().next().unwrap_or_default()
        );
        self.web = Some(Frames::default());
        Ok(())
    }

    /// Sends while the socket blocks.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)?;
        Ok(())
    }

    /// Receives exactly so many bytes while the socket blocks; of a WebSocket, the console's.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<()> {
        if self.web.is_none() {
            while let Err(error) = self.tls.reader().read_exact(into) {
                ensure!(error.kind() == ErrorKind::WouldBlock, error);
                self.more()?;
            }
            return Ok(());
        }
        while self.early.len() < into.len() {
            let mut piece = [0; 512];
            match self.tls.reader().read(&mut piece) {
                Ok(n) => {
                    let frames = self.web.as_mut().context("a WebSocket")?;
                    frames.take(&piece[..n], &mut self.early)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.more()?,
                Err(error) => return Err(error.into()),
            }
        }
        into.copy_from_slice(&self.early[..into.len()]);
        self.early.drain(..into.len());
        Ok(())
    }

    fn more(&mut self) -> Result<()> {
        ensure!(self.tls.read_tls(&mut self.tcp)? > 0, "closed by the proxy");
        self.tls.process_new_packets()?;
        Ok(())
    }

    /// From now on its socket does not block.
    pub fn free(self) -> Result<Self> {
        self.tcp.set_nonblocking(true)?;
        Ok(self)
    }

    /// Its socket, for one who only counts what comes.
    pub fn into_socket(self) -> TcpStream {
        self.tcp
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &self.web {
            Some(_) => self.tls.writer().write_all(&binary(bytes, MASK))?,
            None => self.tls.writer().write_all(bytes)?,
        }
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl End for Sealed {
    /// Messages are short and alone on their way: they always fit.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes)
    }

    fn get(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.tls.read_tls(&mut self.tcp) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        }
        let state = self.tls.process_new_packets().map_err(io::Error::other)?;
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        self.tls.reader().read_exact(&mut plain)?;
        if let Some(frames) = &mut self.web {
            let mut data = Vec::new();
            frames.take(&plain, &mut data)?;
            plain = data;
        }
        let n = plain.len().min(into.len());
        into[..n].copy_from_slice(&plain[..n]);
        Ok(n)
    }
}

/// Opens `count` connections through `to` and accepts their other ends on `listener`, both non-blocking and in the same
/// order.
pub fn connect(
    to: SocketAddr,
    listener: &TcpListener,
    count: usize,
    web: bool,
    config: &Arc<ClientConfig>,
) -> Result<Vec<(Sealed, TcpStream)>> {
    (0..count)
        .map(|_| {
            let mut client = Sealed::connect(to, config)?;
            if web {
                client.upgrade("/")?;
            }
            socket2::SockRef::from(listener).set_read_timeout(Some(PATIENCE))?;
            let (backend, _) = listener.accept().context("the proxy did not connect to the backend")?;
            backend.set_nodelay(true)?;
            backend.set_nonblocking(true)?;
            Ok((client.free()?, backend))
        })
        .collect()
}
