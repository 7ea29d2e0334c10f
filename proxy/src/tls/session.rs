//! An established TLS connection without its socket: ciphertext in, plaintext out, and back. What the flow engine carries
//! on with after the hand-over. KeyUpdate and session tickets are rustls' business and answered here.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
};

use super::stream::Role;

/// Most undecrypted bytes that may wait for the rest of their record: one record and a fragmented message before it.
pub const MAX_PARTIAL: usize = 2 * (16_384 + 256 + 5);

/// Either end of a TLS connection.
enum Connection {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// The connection.
pub struct Session {
    connection: Connection,
    /// Received, and not decrypted for want of the rest. rustls may hold places in it, so it is shown to it with every call.
    partial: Vec<u8>,
    closed: bool,
}

/// What came of received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decrypted {
    /// The peer said close_notify.
    pub closed: bool,
}

impl Session {
    /// A server's connection, and what was received and not yet decrypted.
    pub fn server(connection: UnbufferedServerConnection, received: Vec<u8>) -> Self {
        Self { connection: Connection::Server(Box::new(connection)), partial: received, closed: false }
    }

    /// The same of a client's.
    pub fn client(connection: UnbufferedClientConnection, received: Vec<u8>) -> Self {
        Self { connection: Connection::Client(Box::new(connection)), partial: received, closed: false }
    }

    /// Copies what waits for the rest of its record to the front of `wire`, which must hold [`MAX_PARTIAL`]; returns how
    /// much it is. New bytes go behind it, and all of it into [`Session::decrypt`].
    pub fn begin(&self, wire: &mut [u8]) -> usize {
        wire[..self.partial.len()].copy_from_slice(&self.partial);
        self.partial.len()
    }

    /// Decrypts every whole record in `wire`: appends the content to `plain`, and what TLS itself answers to `out`, alerts
    /// included. Keeps what is left of `wire`.
    ///
    /// # Errors
    /// The peer broke TLS; the alert that says so is in `out`.
    pub fn decrypt(
        &mut self,
        wire: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Decrypted, rustls::Error> {
        let result = match &mut self.connection {
            Connection::Server(connection) => decrypt(&mut **connection, wire, plain, out),
            Connection::Client(connection) => decrypt(&mut **connection, wire, plain, out),
        };
        let (taken, closed) = match result {
            Ok(done) => done,
            Err((error, taken)) => {
                match &mut self.connection {
                    Connection::Server(connection) => alert(&mut **connection, &mut wire[taken..], out),
                    Connection::Client(connection) => alert(&mut **connection, &mut wire[taken..], out),
                }
                return Err(error);
            }
        };
        let rest = &wire[taken..];
        if rest.len() > MAX_PARTIAL {
            return Err(rustls::Error::General("a handshake message in too many fragments".into()));
        }
        if self.partial.is_empty() && rest.is_empty() {
            return Ok(Decrypted { closed });
        }
        // Without slack: this is what a connection with a slow peer costs.
        self.partial = rest.into();
        Ok(Decrypted { closed })
    }

    /// Encrypts `plain` in as few records as it fits in; appends them to `out`.
    ///
    /// # Errors
    /// The connection takes no more data.
    pub fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        self.write(Some(plain), out)
    }

    /// Appends close_notify to `out`, once.
    pub fn close_notify(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.closed, true)
            && let Err(error) = self.write(None, out)
        {
            tracing::debug!(%error, "no close_notify");
        }
    }

    fn write(&mut self, plain: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let Self { connection, partial, .. } = self;
        let taken = match connection {
            Connection::Server(connection) => write(&mut **connection, partial, plain, out),
            Connection::Client(connection) => write(&mut **connection, partial, plain, out),
        }?;
        partial.drain(..taken);
        Ok(())
    }
}

/// How many bytes were taken, and whether the peer closed; where it fails, how many were taken before.
fn decrypt<R: Role>(
    connection: &mut R,
    wire: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(usize, bool), (rustls::Error, usize)> {
    let (mut taken, mut closed) = (0, false);
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut wire[taken..]);
        let (mut more, mut extra) = (true, 0);
        let at = taken;
        let failed = |error| (error, at);
        match state.map_err(|error| (error, at + discard))? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(failed)?;
                    extra += record.discard;
                    plain.extend_from_slice(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(mut data) => encode(out, &mut data).map_err(failed)?,
            // What was encoded is in `out`, and `out` is sent in order.
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => closed = true,
            _ => more = false,
        }
        taken += discard + extra;
        if !more {
            return Ok((taken, closed));
        }
    }
}

/// Encodes the alert that waits after a failure: once, for another step would go on with what broke it.
fn alert<R: Role>(connection: &mut R, wire: &mut [u8], out: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process(wire).state
        && let Err(error) = encode(out, &mut data)
    {
        tracing::debug!(%error, "no alert");
    }
}

/// Data, or close_notify where there is none; returns how much of `partial` was taken.
fn write<R: Role>(
    connection: &mut R,
    partial: &mut [u8],
    plain: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<usize, rustls::Error> {
    let mut taken = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.process(&mut partial[taken..]);
        match state? {
            ConnectionState::WriteTraffic(mut state) => {
                let room = plain.map_or(64, |plain| plain.len() + (plain.len() / 16_384 + 1) * 40);
                append(out, room, |space| {
                    let written = match plain {
                        Some(plain) => state.encrypt(plain, space),
                        None => state.queue_close_notify(space),
                    };
                    match written {
                        Ok(n) => Ok(Ok(n)),
                        Err(EncryptError::InsufficientSize(size)) => Ok(Err(size)),
                        Err(error) => Err(rustls::Error::General(error.to_string())),
                    }
                })?;
                return Ok(taken + discard);
            }
            ConnectionState::EncodeTlsData(mut data) => encode(out, &mut data)?,
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => {}
            _ => return Err(rustls::Error::General("closed for writing".into())),
        }
        taken += discard;
    }
}

fn encode<D>(out: &mut Vec<u8>, data: &mut EncodeTlsData<'_, D>) -> Result<(), rustls::Error> {
    append(out, 1024, |space| match data.encode(space) {
        Ok(n) => Ok(Ok(n)),
        Err(EncodeError::InsufficientSize(size)) => Ok(Err(size)),
        Err(error) => Err(rustls::Error::General(error.to_string())),
    })
}

/// Runs an encoder at the end of `out`, with as much room as it asks for.
fn append(
    out: &mut Vec<u8>,
    mut room: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<Result<usize, InsufficientSizeError>, rustls::Error>,
) -> Result<(), rustls::Error> {
    let at = out.len();
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
    use rustls::{ClientConnection, ServerConfig};

    use super::*;
    use crate::tls::{Pinned, Policy, Thumbprint};

    /// Both ends, hands shaken.
    fn pair() -> (Session, ClientConnection) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert =
            rcgen::CertificateParams::new(vec!["x.example".into()]).unwrap().self_signed(&key).unwrap();
        let provider = Policy::Modern.provider();
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        let client = Pinned::config(vec![Thumbprint::sha256(cert.der())], provider).unwrap();
        let mut client =
            ClientConnection::new(Arc::new(client), ServerName::try_from("x.example").unwrap()).unwrap();
        let server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
        let mut session = Session::server(server, Vec::new());
        while client.is_handshaking() || client.wants_write() {
            let (mut wire, mut plain, mut out) = (Vec::new(), Vec::new(), Vec::new());
            client.write_tls(&mut wire).unwrap();
            session.decrypt(&mut wire, &mut plain, &mut out).unwrap();
            if !out.is_empty() {
                client.read_tls(&mut &out[..]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        (session, client)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn key_updates_and_cuts_change_nothing(
            steps in prop::collection::vec((0u8..4, 1usize..40_000), 1..60), cut in 1usize..30_000, writes: bool,
        ) {
            let (mut session, mut client) = pair();
            client.set_buffer_limit(None);
            let (mut sent, mut stream) = (Vec::new(), Vec::new());
            for (step, n) in steps {
                if step == 0 {
                    client.refresh_traffic_keys().unwrap();
                } else {
                    let bytes: Vec<u8> = (0..n).map(|i| (i * n) as u8).collect();
                    client.writer().write_all(&bytes).unwrap();
                    sent.extend(bytes);
                }
                while client.wants_write() {
                    client.write_tls(&mut stream).unwrap();
                }
            }
            let (mut got, mut out) = (Vec::new(), Vec::new());
            for piece in stream.chunks(cut) {
                let mut wire = vec![0; MAX_PARTIAL + piece.len()];
                let carried = session.begin(&mut wire);
                wire[carried..carried + piece.len()].copy_from_slice(piece);
                session.decrypt(&mut wire[..carried + piece.len()], &mut got, &mut out).unwrap();
                if writes {
                    session.encrypt(b"pong", &mut out).unwrap();
                }
            }
            prop_assert!(got == sent, "{} of {}", got.len(), sent.len());
            let mut answer = &out[..];
            let mut said = Vec::new();
            while !answer.is_empty() {
                client.read_tls(&mut answer).unwrap();
                let state = client.process_new_packets().unwrap();
                let mut plain = vec![0; state.plaintext_bytes_to_read()];
                client.reader().read_exact(&mut plain).unwrap();
                said.extend(plain);
            }
            prop_assert_eq!(said.len(), if writes { 4 * stream.chunks(cut).count() } else { 0 });
        }
    }
}
