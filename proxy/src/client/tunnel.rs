//! TLS no. 2, end to end with the virtual machine's process, and the pump between it and the viewer.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use tokio::net::TcpStream;

use super::ConnectError;
use super::door::Opened;
use crate::tls::pin::is_wrong_certificate;
use crate::tls::{Pinned, Policy, TlsError};

/// How much is held for a viewer that reads slowly, in bytes.
const BUFFER: usize = 64 * 1024;
/// How long the VM may take to shake hands.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long the last bytes may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// An established TLS no. 2, its nonce sent.
pub(super) struct Console {
    socket: TcpStream,
    tls: ClientConnection,
}

/// Who ended a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The viewer closed.
    Viewer,
    /// The VM's process closed TLS in order.
    Machine,
    /// The connection broke: reset, or closed without TLS' farewell.
    Broken,
}

impl Console {
    /// Shakes hands on the raw stream, accepts the announced certificate only, sends the nonce.
    pub(super) async fn establish(opened: Opened) -> Result<Self, ConnectError> {
        let provider = Policy::Modern.provider();
        let mut config = Pinned::config(vec![opened.thumbprint], provider).map_err(TlsError::from)?;
        // The peer is a virtual machine's process; what the gate is called is none of its business.
        config.enable_sni = false;
        let tls = ClientConnection::new(Arc::new(config), super::door::server_name("console.invalid"))
            .map_err(TlsError::from)?;
        let socket = TcpStream::from_std(opened.wire.into_fd()?.into())?;
        let mut console = Self { socket, tls };
        let shaking = console.handshake(opened.early);
        tokio::time::timeout(DEADLINE, shaking)
            .await
            .unwrap_or(Err(ConnectError::Deadline { seconds: DEADLINE.as_secs() }))?;
        console.tls.writer().write_all(opened.nonce.as_bytes())?;
        Ok(console)
    }

    async fn handshake(&mut self, early: Vec<u8>) -> Result<(), ConnectError> {
        let mut early = early.as_slice();
        while !early.is_empty() {
            self.tls.read_tls(&mut early)?;
            self.process()?;
        }
        while self.tls.is_handshaking() || self.tls.wants_write() {
            while self.tls.wants_write() {
                self.socket.writable().await?;
                again(self.tls.write_tls(&mut Socket(&self.socket)))?;
            }
            if self.tls.is_handshaking() {
                self.socket.readable().await?;
                if again(self.tls.read_tls(&mut Socket(&self.socket)))? == Some(0) {
                    return Err(ConnectError::Closed("the virtual machine"));
                }
                self.process()?;
            }
        }
        Ok(())
    }

    fn process(&mut self) -> Result<(), ConnectError> {
        let Err(error) = self.tls.process_new_packets() else { return Ok(()) };
        // The alert tells the other side why; whether it leaves changes nothing here.
        let _ = self.tls.write_tls(&mut Socket(&self.socket));
        if is_wrong_certificate(&error) {
            return Err(ConnectError::ConsoleCertificate);
        }
        Err(TlsError::from(error).into())
    }

    /// Moves bytes both ways until one side ends. `early` are bytes of the viewer that were read already.
    pub(super) async fn pump(mut self, viewer: &TcpStream, early: &[u8]) -> io::Result<Ended> {
        self.tls.writer().write_all(early)?;
        let mut held = Held::default();
        let ended = loop {
            let more = held.refill(&mut self.tls)?;
            if held.is_empty() {
                match more {
                    Some(More::Later) => {}
                    Some(More::Closed) => break Ended::Machine,
                    None => break Ended::Broken,
                }
            }
            let (write, deliver) = (self.tls.wants_write(), !held.is_empty());
            tokio::select! {
                ready = self.socket.writable(), if write => {
                    ready?;
                    if again(self.tls.write_tls(&mut Socket(&self.socket))).is_err() {
                        break Ended::Broken;
                    }
                }
                ready = self.socket.readable(), if !deliver => {
                    ready?;
                    match again(self.tls.read_tls(&mut Socket(&self.socket))) {
                        Ok(Some(_)) if self.process().is_ok() => {}
                        Ok(None) => {}
                        _ => break Ended::Broken,
                    }
                }
                ready = viewer.writable(), if deliver => {
                    ready?;
                    if held.deliver(viewer).is_err() {
                        break Ended::Viewer;
                    }
                }
                // One piece at a time: the viewer waits while the VM does not take what was sent before.
                ready = viewer.readable(), if !write => {
                    ready?;
                    let mut piece = [0; 16 * 1024];
                    match again(viewer.try_read(&mut piece)) {
                        Ok(Some(0)) | Err(_) => break Ended::Viewer,
                        Ok(Some(n)) => self.tls.writer().write_all(&piece[..n])?,
                        Ok(None) => {}
                    }
                }
            }
        };
        if ended != Ended::Broken {
            self.farewell().await;
        }
        Ok(ended)
    }

    /// close_notify, if it leaves soon.
    async fn farewell(&mut self) {
        self.tls.send_close_notify();
        let leaving = async {
            while self.tls.wants_write() {
                self.socket.writable().await?;
                again(self.tls.write_tls(&mut Socket(&self.socket)))?;
            }
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(FAREWELL, leaving).await;
    }
}

/// What the plaintext side has after what is held.
enum More {
    Later,
    Closed,
}

/// Decrypted bytes on their way to the viewer.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    sent: usize,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Takes what was decrypted, once all before it is delivered. `None`: the stream ended without close_notify.
    fn refill(&mut self, tls: &mut ClientConnection) -> io::Result<Option<More>> {
        if !self.is_empty() {
            return Ok(Some(More::Later));
        }
        self.sent = 0;
        self.bytes.resize(BUFFER, 0);
        let read = tls.reader().read(&mut self.bytes);
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Ok(Some(More::Closed)),
            Ok(_) => Ok(Some(More::Later)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(More::Later)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn deliver(&mut self, viewer: &TcpStream) -> io::Result<()> {
        if let Some(n) = again(viewer.try_write(&self.bytes[self.sent..]))? {
            self.sent += n;
        }
        Ok(())
    }
}

/// The socket as rustls wants it: every call takes what there is, now.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.try_write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `None` for a readiness that was false.
fn again(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
