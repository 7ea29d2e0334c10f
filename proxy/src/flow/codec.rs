//! The layers of a leg between its socket and the console's bytes: TLS, and WebSocket in it. No I/O, and no copy where
//! bytes can stay where they were received.
//!
//! ```text
//!   received ─► TLS opened, frames unwrapped and unmasked where they lie ─► pieces ─► sent to a raw leg as they lie
//!                                                                            └─► copied into the slots of records ─┐
//!   received from a raw leg into the slots of records ────────────────────────────────────────────────────────────┴─► sealed, sent
//! ```
//! What a codec keeps is bounded: a record whose end has not come (`MAX_PARTIAL`), and its answers of one turn.

use std::ops::Range;

use crate::protocol::websocket::{
    Close, CloseCode, Control, Decoder, Event, FrameHeader, HEADER_ROOM, Opcode, Peer, Violation, mask,
    put_control, to_utf8,
};
use crate::tls::Session;
use crate::tls::outgoing::{HEADER, Outgoing};

/// A shorter piece is moved to the one before it rather than sent by itself.
const SHORT: usize = 512;

const _: () = assert!(HEADER_ROOM <= HEADER);

/// WebSocket on a leg, as the front leaves it.
pub struct WebSocket {
    pub(super) decoder: Decoder,
    /// What comes from us goes as a client's frames do, masked.
    client: bool,
    text: bool,
    /// Decrypted and not yet decoded.
    pub(super) received: Vec<u8>,
    pub(super) ping: Option<std::time::Duration>,
    pong: Option<Box<Control>>,
    pub(super) ping_due: bool,
    close_sent: bool,
    /// The peer's close frame, with its code.
    closed: Option<Option<CloseCode>>,
    violation: Option<Violation>,
}

impl WebSocket {
    /// The WebSocket whose peer's frames `decoder` decodes, with text frames where `text`. `received` was decrypted and not
    /// yet decoded. A ping goes out every `ping`.
    pub fn new(
        peer: Peer,
        decoder: Decoder,
        text: bool,
        received: Vec<u8>,
        ping: Option<std::time::Duration>,
    ) -> Self {
        Self {
            decoder,
            client: peer == Peer::Server,
            text,
            received,
            ping,
            pong: None,
            ping_due: false,
            close_sent: false,
            closed: None,
            violation: None,
        }
    }

    /// Whether data stands in text frames.
    pub(super) fn is_text(&self) -> bool {
        self.text
    }

    fn key(&self) -> Option<[u8; 4]> {
        self.client.then(|| {
            let mut key = [0; 4];
            // The key keeps a page's script from choosing the bytes on the wire (RFC 6455, 10.3); we are no page, so a
            // failing generator costs nothing.
            let _ = aws_lc_rs::rand::fill(&mut key);
            key
        })
    }
}

/// How a leg's peer broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// One leg's layers.
pub(super) struct Codec {
    tls: Session,
    pub(super) ws: Option<WebSocket>,
}

/// What was received of one leg in one read, and where in it the console's bytes lie.
pub(super) struct Received {
    pub(super) wire: Box<[u8]>,
    /// Bytes of `wire` that are received into; behind them, frames of ours that have to go between the peer's.
    pub(super) room: usize,
    spare: usize,
    /// Content of TLS records.
    contents: Vec<Range<usize>>,
    /// The console's bytes, or frames that pass whole.
    pub(super) pieces: Vec<Range<usize>>,
    /// Where frames pass whole: the piece before which a frame of ours may stand, none of the peer's being half through.
    gap: Option<usize>,
}

/// Room behind what is received: a header that came in two reads, a pong, a ping.
const SPARE: usize = 512;

impl Received {
    pub(super) fn new(room: usize) -> Self {
        Self {
            wire: vec![0; room + SPARE].into_boxed_slice(),
            room,
            spare: room,
            contents: Vec::new(),
            pieces: Vec::new(),
            gap: None,
        }
    }

    pub(super) fn clear(&mut self) {
        (self.spare, self.gap) = (self.room, None);
        self.contents.clear();
        self.pieces.clear();
    }

    /// How much the pieces are together.
    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(ExactSizeIterator::len).sum()
    }

    /// Bytes that are not from this read, as a piece.
    fn keep(&mut self, bytes: &[u8]) -> Option<Range<usize>> {
        let range = self.spare..self.spare + bytes.len();
        self.wire.get_mut(range.clone())?.copy_from_slice(bytes);
        self.spare = range.end;
        Some(range)
    }

    /// Appends a piece; moves it to the one before where that costs less than sending it by itself.
    fn push(&mut self, piece: Range<usize>) {
        match self.pieces.last_mut() {
            Some(last) if piece.len() < SHORT && last.end <= piece.start && self.gap.is_none() => {
                self.wire.copy_within(piece.clone(), last.end);
                last.end += piece.len();
            }
            _ => self.pieces.push(piece),
        }
    }
}

impl Codec {
    pub(super) fn new(tls: Session, ws: Option<WebSocket>) -> Self {
        Self { tls, ws }
    }

    /// Whether content goes into records as it is.
    pub(super) fn takes_bytes(&self) -> bool {
        self.ws.as_ref().is_none_or(|ws| !ws.text)
    }

    /// What waits for the rest of its record, copied to the front of `wire`; returns how much it is.
    pub(super) fn begin(&self, wire: &mut [u8]) -> usize {
        self.tls.begin(wire)
    }

    /// Decodes the first `n` bytes that were received. Where the console's bytes lie is then in `pieces`, what TLS answers in
    /// `answer`. True: the peer has ended.
    pub(super) fn decode(
        &mut self,
        n: usize,
        received: &mut Received,
        answer: &mut Vec<u8>,
    ) -> Result<bool, Broken> {
        let done =
            self.tls.decrypt(&mut received.wire[..n], &mut received.contents, answer).map_err(|error| {
                tracing::debug!(%error, "TLS of a leg is broken");
                Broken
            })?;
        match &mut self.ws {
            Some(ws) => Ok(ws.unwrap_frames(received)? || done.closed),
            None => {
                std::mem::swap(&mut received.contents, &mut received.pieces);
                Ok(done.closed)
            }
        }
    }

    /// Decodes what the front had decrypted and not decoded. True: the peer has ended.
    pub(super) fn decode_early(&mut self, received: &mut Received) -> Result<bool, Broken> {
        let Some(ws) = &mut self.ws else { return Ok(false) };
        let early = std::mem::take(&mut ws.received);
        let n = early.len().min(received.room);
        received.wire[..n].copy_from_slice(&early[..n]);
        ws.received = early[n..].into();
        received.contents.push(0..n);
        ws.unwrap_frames(received)
    }

    /// Whether the front left something to decode.
    pub(super) fn has_early(&self) -> bool {
        self.ws.as_ref().is_some_and(|ws| !ws.received.is_empty())
    }

    /// Copies the console's bytes, in the form they have in this leg's frames, into the slots of records; returns how many
    /// there are. `whole`: they are frames already.
    pub(super) fn fill(&mut self, received: &mut Received, whole: bool, out: &mut Outgoing) -> usize {
        if whole && let Some(ws) = &mut self.ws {
            ws.slip_in(received);
        }
        let (text, mut at, mut converted) = (!whole && !self.takes_bytes(), 0, Vec::new());
        for piece in &received.pieces {
            let mut piece = &received.wire[piece.clone()];
            if text {
                converted.clear();
                to_utf8(piece, &mut converted);
                piece = &converted;
            }
            out.put(at, piece);
            at += piece.len();
        }
        at
    }

    /// Encodes the `n` bytes that lie in the slots of records for this leg's peer. `whole`: they are frames already.
    pub(super) fn encode(&mut self, n: usize, whole: bool, out: &mut Outgoing) -> Result<(), Broken> {
        let (mut header, mut len) = ([0; HEADER_ROOM], 0);
        if let Some(ws) = &self.ws
            && !whole
        {
            let opcode = if ws.text { Opcode::Text } else { Opcode::Binary };
            let frame = FrameHeader { fin: true, opcode, len: n as u64, mask: ws.key() };
            (header, len) = frame.bytes();
            if let Some(key) = frame.mask {
                let mut offset = 0;
                for slot in out.slots(n) {
                    mask(slot, key, offset);
                    offset += slot.len() as u64;
                }
            }
        }
        self.tls.encrypt(&header[..len], n, out).map_err(|_| Broken)
    }

    /// Pings and pongs that are due, for the peer to be sent where no frame is half through.
    pub(super) fn control(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        match self.ws.as_mut().and_then(WebSocket::control) {
            Some(frames) => self.tls.encrypt_small(&frames, out).map_err(|_| Broken),
            None => Ok(()),
        }
    }

    /// The last words: a close frame with its reason, close_notify.
    pub(super) fn farewell(&mut self, between: bool, code: CloseCode, words: &str, out: &mut Vec<u8>) {
        if let Some(ws) = &mut self.ws
            && between
            && !std::mem::replace(&mut ws.close_sent, true)
        {
            let close = match (ws.violation, ws.closed) {
                (Some(violation), _) => Some(Close::new(violation.code(), &violation.to_string())),
                // RFC 6455, 5.5.1: the peer's own code comes back.
                (None, Some(theirs)) => theirs.map(|theirs| Close::new(theirs, "")),
                (None, None) => Some(Close::new(code, words)),
            };
            let mut frame = Vec::new();
            put_control(&mut frame, Opcode::Close, close.as_ref().map_or(&[], Close::as_bytes), ws.key());
            let _ = self.tls.encrypt_small(&frame, out);
        }
        self.half_close(out);
    }

    /// Nothing more comes from us.
    pub(super) fn half_close(&mut self, out: &mut Vec<u8>) {
        self.tls.close_notify(out);
    }
}

impl WebSocket {
    /// Pings and pongs that are due.
    fn control(&mut self) -> Option<Vec<u8>> {
        if self.close_sent || (self.pong.is_none() && !self.ping_due) {
            return None;
        }
        let mut frames = Vec::new();
        if let Some(body) = self.pong.take() {
            put_control(&mut frames, Opcode::Pong, body.as_bytes(), self.key());
        }
        if std::mem::take(&mut self.ping_due) {
            put_control(&mut frames, Opcode::Ping, b"", self.key());
        }
        Some(frames)
    }

    /// Puts control frames that are due between the frames that pass. Reads end anywhere: were pongs to wait for one that
    /// ends with a frame, a busy stream would never let them through.
    fn slip_in(&mut self, received: &mut Received) {
        if let Some(gap) = received.gap
            && let Some(frames) = self.control()
            && let Some(piece) = received.keep(&frames)
        {
            received.pieces.insert(gap, piece);
        }
    }

    /// Unwraps the frames in `contents` where they lie; true: the peer closed.
    fn unwrap_frames(&mut self, received: &mut Received) -> Result<bool, Broken> {
        let contents = std::mem::take(&mut received.contents);
        for content in &contents {
            self.unwrap_content(content.clone(), received)?;
        }
        received.contents = contents;
        self.note_gap(received);
        Ok(self.closed.is_some())
    }

    fn note_gap(&self, received: &mut Received) {
        if self.decoder.passes_whole() && self.decoder.between_frames() {
            received.gap = Some(received.pieces.len());
        }
    }

    fn unwrap_content(&mut self, content: Range<usize>, received: &mut Received) -> Result<(), Broken> {
        let mut at = 0;
        loop {
            self.note_gap(received);
            let held = self.decoder.held();
            let event = match self.decoder.next(&mut received.wire[content.clone()], &mut at) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(violation) => {
                    self.violation = Some(violation);
                    return Err(Broken);
                }
            };
            match event {
                // Where it lies, unless its beginning came in another piece.
                Event::Header(bytes, len) => {
                    let end = content.start + at;
                    let header = if held == 0 { Some(end - len..end) } else { received.keep(&bytes[..len]) };
                    received.pieces.push(header.ok_or(Broken)?);
                }
                Event::Data(range) => {
                    received.push(content.start + range.start..content.start + range.end);
                }
                // RFC 6455, 5.5.3: of several pings the last may be answered alone, so a flood costs one pong a turn.
                Event::Ping(body) => self.pong = Some(Box::new(body)),
                Event::Pong => {}
                Event::Close(code) => self.closed = Some(code),
            }
        }
    }
}
