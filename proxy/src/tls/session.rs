//! An established TLS connection without its socket: ciphertext in, content out, and back. What the flow engine carries on
//! with after the hand-over. TLS 1.3 goes through [`Records`], in place; TLS 1.2 through rustls' own record layer.

use std::ops::Range;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
};

use super::outgoing::Outgoing;
use super::records::Records;
use super::stream::Role;

/// Most undecrypted bytes that may wait for the rest of their record: one record and a fragmented message before it.
pub const MAX_PARTIAL: usize = 2 * (16_384 + 256 + 5);

/// Either end of a TLS connection.
enum Connection {
    Records(Box<Records>),
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

/// What a flow keeps while it is idle takes no more room than it needs; a handshake reads with room for a whole flight.
fn fitted(mut kept: Vec<u8>) -> Vec<u8> {
    kept.shrink_to_fit();
    kept
}

impl Session {
    /// A server's connection after its handshake, and what was received and not yet decrypted.
    ///
    /// # Errors
    /// It does not give its keys.
    pub fn server(connection: UnbufferedServerConnection, received: Vec<u8>) -> Result<Self, rustls::Error> {
        let connection = if Records::fit(&connection) {
            Connection::Records(Box::new(Records::server(connection)?))
        } else {
            Connection::Server(Box::new(connection))
        };
        Ok(Self { connection, partial: fitted(received), closed: false })
    }

    /// The same of a client's.
    ///
    /// # Errors
    /// It does not give its keys.
    pub fn client(connection: UnbufferedClientConnection, received: Vec<u8>) -> Result<Self, rustls::Error> {
        let connection = if Records::fit(&connection) {
            Connection::Records(Box::new(Records::client(connection)?))
        } else {
            Connection::Client(Box::new(connection))
        };
        Ok(Self { connection, partial: fitted(received), closed: false })
    }

    /// Copies what waits for the rest of its record to the front of `wire`, which must hold [`MAX_PARTIAL`]; returns how
    /// much it is. New bytes go behind it, and all of it into [`Session::decrypt`].
    pub fn begin(&self, wire: &mut [u8]) -> usize {
        wire[..self.partial.len()].copy_from_slice(&self.partial);
        self.partial.len()
    }

    /// Decrypts every whole record in `wire`: appends where content lies in it to `pieces`, in order and without overlap, and
    /// what TLS itself answers to `answer`, alerts included. Keeps what is left of `wire`.
    ///
    /// # Errors
    /// The peer broke TLS; the alert that says so is in `answer`.
    pub fn decrypt(
        &mut self,
        wire: &mut [u8],
        pieces: &mut Vec<Range<usize>>,
        answer: &mut Vec<u8>,
    ) -> Result<Decrypted, rustls::Error> {
        let (taken, closed) = match &mut self.connection {
            Connection::Records(records) => {
                let opened = records.open(wire, pieces, answer)?;
                (opened.taken, opened.closed)
            }
            Connection::Server(connection) => decrypt(&mut **connection, wire, pieces, answer)?,
            Connection::Client(connection) => decrypt(&mut **connection, wire, pieces, answer)?,
        };
        let rest = &wire[taken..];
        if rest.len() > MAX_PARTIAL {
            return Err(rustls::Error::General("a handshake message in too many fragments".into()));
        }
        if !self.partial.is_empty() || !rest.is_empty() {
            // Without slack: this is what a connection with a slow peer costs.
            self.partial = rest.into();
        }
        Ok(Decrypted { closed })
    }

    /// Encrypts `header` and the first `n` bytes of content in `out`, in as few records as they fit in.
    ///
    /// # Errors
    /// The connection takes no more data.
    pub fn encrypt(&mut self, header: &[u8], n: usize, out: &mut Outgoing) -> Result<(), rustls::Error> {
        out.begin();
        if let Connection::Records(records) = &mut self.connection {
            let mut first = Vec::new();
            records.reserve(Outgoing::count(n), &mut first)?;
            out.seal(header, n, |record| records.seal(record))?;
            out.precede(first);
            return Ok(());
        }
        let plain = out.gather(header, n);
        self.write(Some(&plain), &mut out.spill)
    }

    /// Encrypts a few bytes; appends the record to `out`.
    ///
    /// # Errors
    /// The connection takes no more data.
    pub fn encrypt_small(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), rustls::Error> {
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

    /// Data, or close_notify where there is none.
    fn write(&mut self, plain: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        let Self { connection, partial, .. } = self;
        let taken = match connection {
            Connection::Records(records) => {
                return match plain {
                    Some(plain) => records.reserve(1, out).and_then(|()| records.seal_data(plain, out)),
                    None => records.close_notify(out),
                };
            }
            Connection::Server(connection) => write(&mut **connection, partial, plain, out),
            Connection::Client(connection) => write(&mut **connection, partial, plain, out),
        }?;
        partial.drain(..taken);
        Ok(())
    }
}

/// How many bytes were taken, and whether the peer closed. Content is moved to the front of what was taken: rustls gives it
/// away as copies.
fn decrypt<R: Role>(
    connection: &mut R,
    wire: &mut [u8],
    pieces: &mut Vec<Range<usize>>,
    answer: &mut Vec<u8>,
) -> Result<(usize, bool), rustls::Error> {
    let mut plain = Vec::new();
    match decrypt_copied(connection, wire, &mut plain, answer) {
        Ok(done) => {
            wire[..plain.len()].copy_from_slice(&plain);
            if !plain.is_empty() {
                pieces.push(0..plain.len());
            }
            Ok(done)
        }
        Err((error, taken)) => {
            alert(connection, &mut wire[taken..], answer);
            Err(error)
        }
    }
}

/// How many bytes were taken, and whether the peer closed; where it fails, how many were taken before.
fn decrypt_copied<R: Role>(
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

    /// Both ends, hands shaken; `suite` of three, the last one is TLS 1.2's.
    fn pair(suite: usize) -> (Session, ClientConnection) {
        use rustls::crypto::aws_lc_rs::cipher_suite as suites;
        let key = rcgen::KeyPair::generate().unwrap();
        let cert =
            rcgen::CertificateParams::new(vec!["x.example".into()]).unwrap().self_signed(&key).unwrap();
        let mut provider = (*Policy::Modern.provider()).clone();
        provider.cipher_suites = vec![
            [
                suites::TLS13_AES_128_GCM_SHA256,
                suites::TLS13_AES_256_GCM_SHA384,
                suites::TLS13_CHACHA20_POLY1305_SHA256,
                suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            ][suite],
        ];
        let provider = Arc::new(provider);
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        server.enable_secret_extraction = true;
        let client = Pinned::config(vec![Thumbprint::sha256(cert.der())], provider).unwrap();
        let mut client =
            ClientConnection::new(Arc::new(client), ServerName::try_from("x.example").unwrap()).unwrap();
        let mut server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
        let mut left = Vec::new();
        while client.is_handshaking() || client.wants_write() || server.is_handshaking() {
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            client.write_tls(&mut left).unwrap();
            let (taken, _) = decrypt_copied(&mut server, &mut left, &mut plain, &mut out).unwrap();
            left.drain(..taken);
            if !out.is_empty() {
                client.read_tls(&mut &out[..]).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        (Session::server(server, left).unwrap(), client)
    }

    /// Gives the session one piece of a stream.
    fn feed(
        session: &mut Session,
        piece: &[u8],
        got: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<bool, rustls::Error> {
        let mut wire = vec![0; MAX_PARTIAL + piece.len()];
        let carried = session.begin(&mut wire);
        wire[carried..carried + piece.len()].copy_from_slice(piece);
        let mut pieces = Vec::new();
        let done = session.decrypt(&mut wire[..carried + piece.len()], &mut pieces, out)?;
        pieces.into_iter().for_each(|piece| got.extend_from_slice(&wire[piece]));
        Ok(done.closed)
    }

    /// What the client makes of what the session sends.
    fn hear(client: &mut ClientConnection, mut wire: &[u8]) -> Vec<u8> {
        let mut heard = Vec::new();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            let state = client.process_new_packets().unwrap();
            let had = heard.len();
            heard.resize(had + state.plaintext_bytes_to_read(), 0);
            client.reader().read_exact(&mut heard[had..]).unwrap();
        }
        heard
    }

    fn said(client: &mut ClientConnection) -> Vec<u8> {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        wire
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn key_updates_and_cuts_change_nothing(
            steps in prop::collection::vec((0u8..4, 1usize..40_000), 1..60), cut in 1usize..30_000,
            writes: bool, suite in 0usize..4,
        ) {
            let (mut session, mut client) = pair(suite);
            client.set_buffer_limit(None);
            let (mut sent, mut stream) = (Vec::new(), Vec::new());
            for (step, n) in steps {
                if step == 0 && suite < 3 {
                    client.refresh_traffic_keys().unwrap();
                } else {
                    let bytes: Vec<u8> = (0..n).map(|i| (i * n) as u8).collect();
                    client.writer().write_all(&bytes).unwrap();
                    sent.extend(bytes);
                }
                stream.extend(said(&mut client));
            }
            let (mut got, mut out, mut answers) = (Vec::new(), Vec::new(), Vec::<u8>::new());
            for piece in stream.chunks(cut) {
                feed(&mut session, piece, &mut got, &mut out).unwrap();
                if writes {
                    session.encrypt_small(b"pong", &mut out).unwrap();
                    answers.extend(b"pong");
                }
            }
            prop_assert!(got == sent, "{} of {}", got.len(), sent.len());
            prop_assert!(hear(&mut client, &out) == answers);
        }

        #[test]
        fn what_is_laid_out_arrives(sizes in prop::collection::vec(1usize..60_000, 1..12), suite in 0usize..4) {
            let (mut session, mut client) = pair(suite);
            client.set_buffer_limit(None);
            let mut out = Outgoing::new(5);
            for n in sizes {
                let content: Vec<u8> = (0..n).map(|i| (i * n) as u8).collect();
                out.put(0, &content);
                session.encrypt(b"head", n, &mut out).unwrap();
                let sealed = out.sealed().to_vec();
                prop_assert!(hear(&mut client, &sealed) == [b"head".to_vec(), content].concat());
            }
        }

        #[test]
        fn a_bit_that_changed_is_noticed(at: prop::sample::Index, bit in 0u8..8, suite in 0usize..3) {
            let (mut session, mut client) = pair(suite);
            client.writer().write_all(&[7; 500]).unwrap();
            let mut stream = said(&mut client);
            // The version in a record's head is authenticated, though it means nothing.
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
            let (mut got, mut out) = (Vec::new(), Vec::new());
            let result = feed(&mut session, &stream, &mut got, &mut out);
            // A longer length waits for bytes that never come.
            prop_assert!(got.is_empty() && (result.is_err() || (3..5).contains(&at)));
            prop_assert!(result.is_ok() || !out.is_empty(), "an alert says why");
        }
    }

    #[test]
    fn close_notify_ends_it_both_ways() {
        for suite in 0..4 {
            let (mut session, mut client) = pair(suite);
            client.writer().write_all(b"last").unwrap();
            client.send_close_notify();
            let stream = said(&mut client);
            let (mut got, mut out) = (Vec::new(), Vec::new());
            assert!(feed(&mut session, &stream, &mut got, &mut out).unwrap());
            assert_eq!((&got[..], &out[..]), (&b"last"[..], &b""[..]));
            session.encrypt_small(b"bye", &mut out).unwrap();
            session.close_notify(&mut out);
            session.close_notify(&mut out);
            assert_eq!(hear(&mut client, &out), b"bye");
            assert!(client.process_new_packets().unwrap().peer_has_closed());
        }
    }

    #[test]
    fn a_key_is_not_used_longer_than_it_may_be() {
        let (mut session, mut client) = pair(0);
        let Connection::Records(records) = &mut session.connection else { panic!("TLS 1.3") };
        records.limit_to(20);
        client.set_buffer_limit(None);
        let (mut out, mut heard) = (Outgoing::new(3), 0);
        for _ in 0..100 {
            out.put(0, &[1; 40_000]);
            session.encrypt(b"", 40_000, &mut out).unwrap();
            heard += hear(&mut client, out.sealed()).len();
            let mut small = Vec::new();
            session.encrypt_small(b"x", &mut small).unwrap();
            heard += hear(&mut client, &small).len();
        }
        assert_eq!(heard, 100 * 40_001);
    }

    #[test]
    fn a_flood_of_key_updates_is_refused() {
        let (mut session, mut client) = pair(0);
        let (mut got, mut out, mut refused) = (Vec::new(), Vec::new(), false);
        for _ in 0..40 {
            client.refresh_traffic_keys().unwrap();
            let stream = said(&mut client);
            refused |= feed(&mut session, &stream, &mut got, &mut out).is_err();
        }
        assert!(refused);
    }
}
