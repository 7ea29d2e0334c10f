//! TLS over a [`Wire`] with rustls' unbuffered API: records are taken one at a time, so bytes behind the last record of
//! TLS no. 1 are never swallowed. On the MKS doors those bytes already belong to TLS no. 2, which is not ours to read.

use std::io;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    UnbufferedConnectionCommon, UnbufferedStatus,
};
use thiserror::Error;

use crate::protocol::line::{LineError, take_line};
use crate::wire::Wire;

/// The longest TLS record with its header (RFC 8446, 5.2: 2^14 + 256, and 5).
const MAX_RECORD: usize = 16_384 + 256 + 5;
/// How much is read at once: a whole flight of a handshake in one go, without a megabyte per newcomer.
const READ: usize = 8 * 1024;

/// What went wrong on a TLS connection.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The connection itself.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The TLS in it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer closed where more was due.
    #[error("closed by the peer")]
    Closed,
    /// What came inside is no line.
    #[error("{0}")]
    Line(#[from] LineError),
}

/// A connection's role, and with it the rustls type.
pub trait Role {
    /// rustls' marker of the role.
    type Data;
    /// rustls' own step.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Role for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        UnbufferedConnectionCommon::<ServerConnectionData>::process_tls_records(self, incoming)
    }
}

impl Role for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        UnbufferedConnectionCommon::<ClientConnectionData>::process_tls_records(self, incoming)
    }
}

/// A TLS connection whose records are taken one by one.
pub struct TlsStream<R> {
    wire: Wire,
    connection: R,
    /// Received and not yet taken by rustls.
    incoming: Vec<u8>,
    /// Encoded and not yet sent.
    outgoing: Vec<u8>,
    /// Decrypted and not yet asked for.
    plain: Vec<u8>,
}

/// How far one step came.
enum Step {
    /// Plaintext arrived, or something was queued to be sent: step again.
    Again,
    /// Only bytes of the peer lead on.
    Blocked,
    /// The handshake is done and nothing is left to take.
    Ready,
    /// The peer said close_notify.
    PeerClosed,
}

impl<R: Role> TlsStream<R> {
    /// Shakes hands. `early` are bytes already read from the wire.
    pub async fn handshake(wire: Wire, connection: R, early: Vec<u8>) -> Result<Self, TlsError> {
        let mut stream = Self { wire, connection, incoming: early, outgoing: Vec::new(), plain: Vec::new() };
        loop {
            let step = stream.step();
            if let Ok(Step::Again) = step {
                // A whole flight goes out at once: rustls gives it in pieces.
                continue;
            }
            // Even a failed step may leave an alert that tells the peer why.
            stream.flush().await?;
            match step? {
                Step::Again => {}
                Step::Blocked => stream.fill().await?,
                Step::PeerClosed => return Err(TlsError::Closed),
                Step::Ready => return Ok(stream),
            }
        }
    }

    /// Reads one record's worth of plaintext, or as much as was left over. Empty: the peer closed in order.
    pub async fn read(&mut self) -> Result<Vec<u8>, TlsError> {
        if self.plain.is_empty() {
            self.read_more().await?;
        }
        Ok(std::mem::take(&mut self.plain))
    }

    /// Reads one CRLF line.
    pub async fn read_line(&mut self) -> Result<String, TlsError> {
        loop {
            if let Some(line) = take_line(&mut self.plain)? {
                return Ok(line);
            }
            if self.read_more().await? == 0 {
                return Err(TlsError::Closed);
            }
        }
    }

    /// Plaintext that was decrypted and not asked for.
    pub fn unread(&self) -> &[u8] {
        &self.plain
    }

    /// Gives plaintext back that was read too far.
    pub fn unread_mut(&mut self) -> &mut Vec<u8> {
        &mut self.plain
    }

    /// The rustls connection, for what was negotiated.
    pub fn connection(&self) -> &R {
        &self.connection
    }

    /// The TCP connection beneath.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Encrypts and sends all of it.
    pub async fn write_all(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        // rustls may hold places in `incoming` (a handshake message of which a part has come), so it gets to see it again.
        let mut incoming = std::mem::take(&mut self.incoming);
        let encrypted = self.encrypt(plain, &mut incoming);
        self.incoming = incoming;
        encrypted?;
        self.flush().await?;
        Ok(())
    }

    /// Encrypts and sends the last line of TLS no. 1, without a look at what was received behind the peer's last record:
    /// that is TLS no. 2 already. To be called right after a record was read; rustls then holds no place in `incoming`.
    pub async fn write_last(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        self.encrypt(plain, &mut Vec::new())?;
        self.flush().await?;
        Ok(())
    }

    /// Leaves TLS without a close_notify: the socket, and the raw bytes received behind the last record taken.
    pub fn into_raw(self) -> (Wire, Vec<u8>) {
        (self.wire, self.incoming)
    }

    /// Gives everything away: wire, connection, bytes not yet decrypted, plaintext not yet asked for.
    pub fn into_parts(self) -> (Wire, R, Vec<u8>, Vec<u8>) {
        (self.wire, self.connection, self.incoming, self.plain)
    }

    /// Says one last thing and close_notify, then waits for the peer to close, so that the last thing is not lost to a
    /// reset over bytes that nobody read. The caller bounds the wait.
    pub async fn farewell(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        self.write_all(plain).await?;
        let status = self.connection.process(&mut self.incoming);
        if let ConnectionState::WriteTraffic(mut state) = status.state? {
            grow(&mut self.outgoing, |space| match state.queue_close_notify(space) {
                Ok(n) => Ok(Ok(n)),
                Err(EncryptError::InsufficientSize(size)) => Ok(Err(size)),
                Err(error) => Err(rustls::Error::General(error.to_string())),
            })?;
        }
        self.flush().await?;
        self.wire.finish().await?;
        Ok(())
    }

    /// Waits for one record of plaintext; returns how many bytes are there now.
    async fn read_more(&mut self) -> Result<usize, TlsError> {
        let had = self.plain.len();
        loop {
            let step = self.step();
            if matches!(step, Ok(Step::Again)) && self.plain.len() == had {
                continue;
            }
            self.flush().await?;
            match step? {
                _ if self.plain.len() > had => return Ok(self.plain.len()),
                Step::Again => {}
                Step::Blocked | Step::Ready => self.fill().await?,
                Step::PeerClosed => return Ok(0),
            }
        }
    }

    async fn fill(&mut self) -> Result<(), TlsError> {
        let room = (2 * MAX_RECORD).saturating_sub(self.incoming.len()).min(READ);
        if room == 0 || self.wire.read_into(&mut self.incoming, room).await? == 0 {
            return Err(TlsError::Closed);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), TlsError> {
        if !self.outgoing.is_empty() {
            self.wire.write_all(std::mem::take(&mut self.outgoing)).await?;
        }
        Ok(())
    }

    /// One step of rustls over what was received. Stops at the first record of plaintext.
    fn step(&mut self) -> Result<Step, TlsError> {
        let UnbufferedStatus { discard, state } = self.connection.process(&mut self.incoming);
        let step = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    self.plain.extend_from_slice(record?.payload);
                }
                Step::Again
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut self.outgoing, &mut data)?;
                Step::Again
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                // Everything encoded so far is in `outgoing`, and every step is followed by a flush.
                data.done();
                Step::Again
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Blocked,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Ready,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Step::PeerClosed,
            Ok(_) => return Err(rustls::Error::General("early data was not offered".into()).into()),
            Err(error) => {
                self.incoming.drain(..discard);
                self.queue_alert();
                return Err(error.into());
            }
        };
        self.incoming.drain(..discard);
        Ok(step)
    }

    /// Encodes the alert that rustls queued when it failed.
    fn queue_alert(&mut self) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) =
            self.connection.process(&mut self.incoming).state
        {
            // Without its alert the peer still sees the connection close.
            let _ = encode(&mut self.outgoing, &mut data);
        }
    }

    fn encrypt(&mut self, plain: &[u8], incoming: &mut Vec<u8>) -> Result<(), TlsError> {
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process(incoming);
            let done = match state? {
                ConnectionState::WriteTraffic(mut state) => {
                    grow(&mut self.outgoing, |space| match state.encrypt(plain, space) {
                        Ok(n) => Ok(Ok(n)),
                        Err(EncryptError::InsufficientSize(size)) => Ok(Err(size)),
                        Err(error) => Err(rustls::Error::General(error.to_string())),
                    })?;
                    true
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(&mut self.outgoing, &mut data)?;
                    false
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    false
                }
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        self.plain.extend_from_slice(record?.payload);
                    }
                    false
                }
                _ => return Err(TlsError::Closed),
            };
            incoming.drain(..discard);
            if done {
                return Ok(());
            }
        }
    }
}

/// Encodes one handshake message at the end of `out`.
fn encode<D>(out: &mut Vec<u8>, data: &mut EncodeTlsData<'_, D>) -> Result<(), rustls::Error> {
    grow(out, |space| match data.encode(space) {
        Ok(n) => Ok(Ok(n)),
        Err(EncodeError::InsufficientSize(size)) => Ok(Err(size)),
        Err(error) => Err(rustls::Error::General(error.to_string())),
    })
}

/// Runs an encoder at the end of `out`, with as much room as it asks for.
fn grow(
    out: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<Result<usize, InsufficientSizeError>, rustls::Error>,
) -> Result<(), rustls::Error> {
    let at = out.len();
    let mut room = 1024;
    loop {
        out.resize(at + room, 0);
        match encode(&mut out[at..])? {
            Ok(n) => {
                out.truncate(at + n);
                return Ok(());
            }
            Err(InsufficientSizeError { required_size }) => room = required_size,
        }
    }
}
