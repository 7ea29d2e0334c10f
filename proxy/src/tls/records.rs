//! TLS 1.3's record protocol (RFC 8446, 5) with the keys that rustls agreed on: records are opened and sealed where they lie.
//! rustls' own record layer copies each record twice and allocates for it. It still does every handshake, and computes the
//! next keys when one side asks for new ones.

use std::ops::Range;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce,
    TlsProtocolId, TlsRecordOpeningKey, TlsRecordSealingKey, UnboundKey,
};
use aws_lc_rs::error::Unspecified;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{AlertDescription, ConnectionTrafficSecrets, Error, ExtractedSecrets, ProtocolVersion};

/// Bytes of a record before its content.
pub const HEAD: usize = 5;
/// Bytes behind it: the content's type and the tag.
pub const TAIL: usize = 1 + TAG;
/// Most content of one record.
pub const CONTENT: usize = 1 << 14;
/// Of all suites.
const TAG: usize = 16;
/// Most bytes behind the header that are taken (RFC 8446, 5.2).
const MAX_SEALED: usize = CONTENT + 256;
/// Most bytes of a handshake message that are taken after the handshake: tickets are shorter.
const MAX_HANDSHAKE: usize = CONTENT;
/// Key updates in a row, without data between them, that are answered.
const MAX_KEY_UPDATES: u32 = 32;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Where rustls computes the next keys.
enum Kernel {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

/// One direction's key, its nonces.
struct Keyed<K> {
    key: K,
    iv: [u8; NONCE_LEN],
    seq: u64,
}

enum Sealing {
    Gcm(TlsRecordSealingKey),
    ChaCha(LessSafeKey),
}

enum Opening {
    Gcm(TlsRecordOpeningKey),
    ChaCha(LessSafeKey),
}

/// An established connection's record layer.
pub struct Records {
    kernel: Kernel,
    sealing: Keyed<Sealing>,
    opening: Keyed<Opening>,
    /// Records that may be sealed with one key (RFC 8446, 5.5).
    limit: u64,
    /// The beginning of a handshake message whose end has not come.
    handshake: Vec<u8>,
    /// Since the last data.
    key_updates: u32,
}

/// What is wrong with a peer, and the alert that tells it.
struct Fault(Option<AlertDescription>, Error);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(Some(AlertDescription::InternalError), error)
    }
}

fn unexpected(what: &str) -> Fault {
    Fault(Some(AlertDescription::UnexpectedMessage), Error::General(what.into()))
}

/// What opening came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of whole records.
    pub taken: usize,
    /// The peer said close_notify.
    pub closed: bool,
}

impl Records {
    /// Whether a connection's records can be taken over: TLS 1.3, hands shaken.
    pub fn fit(common: &rustls::CommonState) -> bool {
        common.protocol_version() == Some(ProtocolVersion::TLSv1_3) && !common.is_handshaking()
    }

    /// Takes a server's connection over.
    ///
    /// # Errors
    /// It is not ready, or its configuration does not give its keys.
    pub fn server(connection: UnbufferedServerConnection) -> Result<Self, Error> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        Self::new(secrets, Kernel::Server(kernel))
    }

    /// The same for a client's.
    ///
    /// # Errors
    /// As for a server's.
    pub fn client(connection: UnbufferedClientConnection) -> Result<Self, Error> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        Self::new(secrets, Kernel::Client(kernel))
    }

    fn new(secrets: ExtractedSecrets, kernel: Kernel) -> Result<Self, Error> {
        let suite = match &kernel {
            Kernel::Server(kernel) => kernel.negotiated_cipher_suite(),
            Kernel::Client(kernel) => kernel.negotiated_cipher_suite(),
        };
        let suite = suite.tls13().ok_or_else(|| Error::General("not TLS 1.3".into()))?;
        Ok(Self {
            kernel,
            sealing: Keyed::sealing(secrets.tx)?,
            opening: Keyed::opening(secrets.rx)?,
            limit: suite.common.confidentiality_limit,
            handshake: Vec::new(),
            key_updates: 0,
        })
    }

    /// Opens every whole record in `wire`; appends where content lies to `pieces` and what is to be answered to `answer`.
    ///
    /// # Errors
    /// The peer broke TLS; the alert that says so is in `answer`.
    pub fn open(
        &mut self,
        wire: &mut [u8],
        pieces: &mut Vec<Range<usize>>,
        answer: &mut Vec<u8>,
    ) -> Result<Opened, Error> {
        let mut taken = 0;
        loop {
            match self.open_one(wire, taken, pieces, answer) {
                Ok(Some((len, false))) => taken += len,
                // RFC 8446, 6.1: what follows close_notify is ignored.
                Ok(Some((_, true))) => return Ok(Opened { taken: wire.len(), closed: true }),
                Ok(None) => return Ok(Opened { taken, closed: false }),
                Err(Fault(alert, error)) => {
                    if let Some(alert) = alert {
                        self.seal_small(ALERT, &[2, alert.into()], answer)?;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The record at `at`: its length, and whether it said close_notify; `None` while it is not whole.
    fn open_one(
        &mut self,
        wire: &mut [u8],
        at: usize,
        pieces: &mut Vec<Range<usize>>,
        answer: &mut Vec<u8>,
    ) -> Result<Option<(usize, bool)>, Fault> {
        let Some(head) = wire[at..].first_chunk::<HEAD>().copied() else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if head[0] != DATA {
            return Err(unexpected("a record that is not encrypted"));
        }
        if len > MAX_SEALED {
            return Err(Fault(Some(AlertDescription::RecordOverflow), Error::PeerSentOversizedRecord));
        }
        let from = at + HEAD;
        let Some(sealed) = wire.get_mut(from..from + len) else { return Ok(None) };
        let plain = self
            .opening
            .open(&head, sealed)
            .map_err(|_| Fault(Some(AlertDescription::BadRecordMac), Error::DecryptError))?;
        // RFC 8446, 5.4: padding, then the type as the last byte that is not zero.
        let Some(end) = plain.iter().rposition(|byte| *byte != 0) else {
            return Err(unexpected("a record of nothing but padding"));
        };
        let (kind, content) = (plain[end], from..from + end);
        if end > CONTENT {
            return Err(Fault(Some(AlertDescription::RecordOverflow), Error::PeerSentOversizedRecord));
        }
        let mut closed = false;
        match kind {
            DATA => {
                self.key_updates = 0;
                if !content.is_empty() {
                    pieces.push(content);
                }
            }
            ALERT => closed = alert(&wire[content])?,
            HANDSHAKE => self.take_handshake(&wire[content], answer)?,
            _ => return Err(unexpected("a record of an unknown type")),
        }
        Ok(Some((HEAD + len, closed)))
    }

    fn take_handshake(&mut self, bytes: &[u8], answer: &mut Vec<u8>) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Err(unexpected("an empty handshake record"));
        }
        self.handshake.extend_from_slice(bytes);
        while let Some(&[kind, a, b, c]) = self.handshake.first_chunk::<4>() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if len > MAX_HANDSHAKE {
                return Err(Fault(
                    Some(AlertDescription::DecodeError),
                    Error::General("a handshake message longer than is taken".into()),
                ));
            }
            if self.handshake.len() < 4 + len {
                break;
            }
            let rest = self.handshake.split_off(4 + len);
            let message = std::mem::replace(&mut self.handshake, rest);
            match kind {
                // Sessions with hosts are never resumed: a host is known by its thumbprint, each time.
                NEW_SESSION_TICKET if matches!(self.kernel, Kernel::Client(_)) => {}
                KEY_UPDATE => self.take_key_update(&message[4..], answer)?,
                _ => return Err(unexpected("a handshake message that has no place after the handshake")),
            }
        }
        Ok(())
    }

    /// RFC 8446, 4.6.3.
    fn take_key_update(&mut self, body: &[u8], answer: &mut Vec<u8>) -> Result<(), Fault> {
        let wants_ours = match body {
            [0] => false,
            [1] => true,
            _ => {
                return Err(Fault(
                    Some(AlertDescription::IllegalParameter),
                    Error::General("a KeyUpdate that is none".into()),
                ));
            }
        };
        // 5.1: what precedes a change of keys ends with its record.
        if !self.handshake.is_empty() {
            return Err(unexpected("a KeyUpdate in the middle of a record"));
        }
        self.key_updates += 1;
        if self.key_updates > MAX_KEY_UPDATES {
            return Err(unexpected("too many KeyUpdates"));
        }
        let secrets = match &mut self.kernel {
            Kernel::Server(kernel) => kernel.update_rx_secret(),
            Kernel::Client(kernel) => kernel.update_rx_secret(),
        }?;
        self.opening = Keyed::opening(secrets)?;
        if wants_ours {
            self.update_key(answer)?;
        }
        Ok(())
    }

    /// Appends a KeyUpdate to `out`; what is sealed from now on is sealed with the next key.
    fn update_key(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.seal_small(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        let secrets = match &mut self.kernel {
            Kernel::Server(kernel) => kernel.update_tx_secret(),
            Kernel::Client(kernel) => kernel.update_tx_secret(),
        }?;
        self.sealing = Keyed::sealing(secrets)?;
        Ok(())
    }

    /// Makes sure that `records` more may be sealed with one key: appends a KeyUpdate to `out` where they may not. It must be
    /// sent before them.
    ///
    /// # Errors
    /// There is no next key.
    pub fn reserve(&mut self, records: u64, out: &mut Vec<u8>) -> Result<(), Error> {
        // Two more: an alert and an answer to the peer's own KeyUpdate.
        if self.sealing.seq.saturating_add(records + 2) < self.limit {
            return Ok(());
        }
        self.update_key(out)
    }

    /// Seals a record of data: `record` is [`HEAD`] bytes, the content, and [`TAIL`] bytes.
    ///
    /// # Errors
    /// The content is longer than [`CONTENT`], or the cryptographic library failed.
    pub fn seal(&mut self, record: &mut [u8]) -> Result<(), Error> {
        if !(HEAD + TAIL..=HEAD + CONTENT + TAIL).contains(&record.len()) {
            return Err(Error::EncryptError);
        }
        self.sealing.seal(DATA, record).map_err(|_| Error::EncryptError)
    }

    /// Seals data that is not laid out for it; appends the records to `out`.
    ///
    /// # Errors
    /// The cryptographic library failed.
    pub fn seal_data(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        plain.chunks(CONTENT).try_for_each(|content| self.seal_small(DATA, content, out))
    }

    /// Appends close_notify to `out`.
    ///
    /// # Errors
    /// The cryptographic library failed.
    pub fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.seal_small(ALERT, &[1, AlertDescription::CloseNotify.into()], out)
    }

    #[cfg(test)]
    pub(super) fn limit_to(&mut self, records: u64) {
        self.limit = records;
    }

    fn seal_small(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let at = out.len();
        out.extend_from_slice(&[0; HEAD]);
        out.extend_from_slice(content);
        out.extend_from_slice(&[0; TAIL]);
        self.sealing.seal(kind, &mut out[at..]).map_err(|_| Error::EncryptError)
    }
}

/// Whether it is close_notify. RFC 8446, 6: but for that and user_canceled, every alert is the end.
fn alert(content: &[u8]) -> Result<bool, Fault> {
    let &[_, description] = content else {
        return Err(Fault(
            Some(AlertDescription::DecodeError),
            Error::General("an alert that is none".into()),
        ));
    };
    match AlertDescription::from(description) {
        AlertDescription::CloseNotify => Ok(true),
        AlertDescription::UserCanceled => Ok(false),
        other => Err(Fault(None, Error::AlertReceived(other))),
    }
}

/// Key and nonce of what rustls hands out.
fn parts(secrets: &ConnectionTrafficSecrets) -> Result<(&'static Algorithm, &[u8], [u8; NONCE_LEN]), Error> {
    let (algorithm, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
        _ => return Err(Error::General("a cipher that is not known here".into())),
    };
    let iv = iv.as_ref().try_into().map_err(|_| Error::General("a nonce of a strange length".into()))?;
    Ok((algorithm, key.as_ref(), iv))
}

fn less_safe(algorithm: &'static Algorithm, key: &[u8]) -> Result<LessSafeKey, Unspecified> {
    UnboundKey::new(algorithm, key).map(LessSafeKey::new)
}

impl<K> Keyed<K> {
    /// RFC 8446, 5.3. The sequence number never wraps: keys change long before.
    fn next_nonce(&mut self) -> Nonce {
        let nonce = self.nonce(self.seq);
        self.seq += 1;
        nonce
    }

    fn nonce(&self, seq: u64) -> Nonce {
        let mut nonce = self.iv;
        nonce[NONCE_LEN - 8..].iter_mut().zip(seq.to_be_bytes()).for_each(|(byte, seq)| *byte ^= seq);
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Keyed<Sealing> {
    fn sealing((seq, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = parts(&secrets)?;
        let key = if algorithm == &CHACHA20_POLY1305 {
            less_safe(algorithm, key).map(Sealing::ChaCha)
        } else {
            TlsRecordSealingKey::new(algorithm, TlsProtocolId::TLS13, key).map(Sealing::Gcm)
        };
        let mut this = Self { key: key.map_err(|_| Error::EncryptError)?, iv, seq };
        if seq > 0
            && let Sealing::Gcm(key) = &mut this.key
        {
            // The module insists that nonces only rise, counted from the first it sees: it is shown the connection's
            // first. What it seals with it is thrown away; rustls used the same nonce for the first record.
            let first = this.iv;
            let _ = key
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(first), Aad::empty(), &mut [])
                .map_err(|_| Error::EncryptError)?;
        }
        Ok(this)
    }

    fn seal(&mut self, kind: u8, record: &mut [u8]) -> Result<(), Unspecified> {
        let [high, low] = ((record.len() - HEAD) as u16).to_be_bytes();
        // 5.1: legacy_record_version is TLS 1.2's.
        let head = [DATA, 3, 3, high, low];
        record[..HEAD].copy_from_slice(&head);
        let end = record.len() - TAG;
        record[end - 1] = kind;
        let (front, tag) = record.split_at_mut(end);
        let body = &mut front[HEAD..];
        let (nonce, aad) = (self.next_nonce(), Aad::from(head));
        let sealed = match &mut self.key {
            Sealing::Gcm(key) => key.seal_in_place_separate_tag(nonce, aad, body)?,
            Sealing::ChaCha(key) => key.seal_in_place_separate_tag(nonce, aad, body)?,
        };
        tag.copy_from_slice(sealed.as_ref());
        Ok(())
    }
}

impl Keyed<Opening> {
    fn opening((seq, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = parts(&secrets)?;
        let key = if algorithm == &CHACHA20_POLY1305 {
            less_safe(algorithm, key).map(Opening::ChaCha)
        } else {
            TlsRecordOpeningKey::new(algorithm, TlsProtocolId::TLS13, key).map(Opening::Gcm)
        };
        Ok(Self { key: key.map_err(|_| Error::DecryptError)?, iv, seq })
    }

    fn open<'a>(&mut self, head: &[u8; HEAD], sealed: &'a mut [u8]) -> Result<&'a mut [u8], Unspecified> {
        let (nonce, aad) = (self.next_nonce(), Aad::from(*head));
        match &self.key {
            Opening::Gcm(key) => key.open_in_place(nonce, aad, sealed),
            Opening::ChaCha(key) => key.open_in_place(nonce, aad, sealed),
        }
    }
}
