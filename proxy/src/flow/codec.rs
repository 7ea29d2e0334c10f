//! The layers of a leg between its socket and the console's bytes: TLS, and WebSocket in it. No I/O.
//!
//! ```text
//!   received ─► TLS decrypt ─► unmask, unwrap in place ─► console's bytes ─► frame header in front ─► TLS encrypt ─► sent
//! ```
//! What a codec keeps is bounded: a record whose end has not come (`MAX_PARTIAL`), and its answers of one turn.

use crate::protocol::websocket::{
    Close, CloseCode, Control, Decoder, Event, FrameHeader, HEADER_ROOM, Opcode, Peer, Violation,
    put_control, put_header, to_utf8,
};
use crate::tls::Session;

/// Where the console's bytes begin in a [`Plain`], so that a frame's header fits in front of them.
pub(super) const ROOM: usize = HEADER_ROOM;

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
    tls: Option<Session>,
    pub(super) ws: Option<WebSocket>,
}

/// Bytes of the console on their way through one turn: `bytes[from..]`, with at least a header's room before.
pub(super) struct Plain {
    pub(super) bytes: Vec<u8>,
    pub(super) from: usize,
    /// Where frames pass whole: the last place at which a frame of ours may stand, none of the peer's being half through.
    pub(super) gap: Option<usize>,
}

impl Plain {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; ROOM], from: ROOM, gap: None }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.resize(ROOM, 0);
        self.from = ROOM;
        self.gap = None;
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

impl Codec {
    pub(super) fn new(tls: Option<Session>, ws: Option<WebSocket>) -> Self {
        Self { tls, ws }
    }

    /// What waits for the rest of its record, copied to the front of `wire`; returns how much it is.
    pub(super) fn begin(&self, wire: &mut [u8]) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.begin(wire))
    }

    /// Decodes what was received: `wire` with TLS, else what stands in `plain` already. The console's bytes are then in
    /// `plain`, what TLS answers in `out`. True: the peer has ended.
    pub(super) fn decode(
        &mut self,
        wire: &mut [u8],
        plain: &mut Plain,
        out: &mut Vec<u8>,
    ) -> Result<bool, Broken> {
        let mut closed = false;
        if let Some(ws) = &mut self.ws
            && !ws.received.is_empty()
        {
            plain.bytes.splice(ROOM..ROOM, std::mem::take(&mut ws.received));
        }
        if let Some(tls) = &mut self.tls {
            let done = tls.decrypt(wire, &mut plain.bytes, out).map_err(|error| {
                tracing::debug!(%error, "TLS of a leg is broken");
                Broken
            })?;
            closed = done.closed;
        }
        match &mut self.ws {
            Some(ws) => Ok(ws.unwrap_frames(plain).inspect_err(|_| plain.clear())? || closed),
            None => Ok(closed),
        }
    }

    /// Encodes the console's bytes for this leg's peer: appends what is to be sent to `out`, unless it can be sent from
    /// `plain` as it stands (true). `whole`: the bytes are frames already.
    pub(super) fn encode(
        &mut self,
        plain: &mut Plain,
        whole: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, Broken> {
        match &mut self.ws {
            Some(ws) if whole => ws.slip_in(plain),
            Some(ws) => ws.wrap(plain),
            None => {}
        }
        match &mut self.tls {
            Some(tls) => tls.encrypt(plain.data(), out).map(|()| false).map_err(|_| Broken),
            None => Ok(true),
        }
    }

    /// Pings and pongs that are due, for the peer to be sent where no frame is half through.
    pub(super) fn control(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        match self.ws.as_mut().and_then(WebSocket::control) {
            Some(frames) => self.send_plain(&frames, out),
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
            let _ = self.send_plain(&frame, out);
        }
        self.half_close(out);
    }

    /// Nothing more comes from us.
    pub(super) fn half_close(&mut self, out: &mut Vec<u8>) {
        if let Some(tls) = &mut self.tls {
            tls.close_notify(out);
        }
    }

    fn send_plain(&mut self, frames: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        match &mut self.tls {
            Some(tls) => tls.encrypt(frames, out).map_err(|_| Broken),
            None => {
                out.extend_from_slice(frames);
                Ok(())
            }
        }
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
    fn slip_in(&mut self, plain: &mut Plain) {
        if let Some(gap) = plain.gap
            && let Some(frames) = self.control()
        {
            plain.bytes.splice(gap..gap, frames);
        }
    }

    /// Unwraps the frames in `plain` where they lie; true: the peer closed.
    fn unwrap_frames(&mut self, plain: &mut Plain) -> Result<bool, Broken> {
        // A header that was cut is longer than what of it lies here: it is completed in the room before.
        let whole = self.decoder.passes_whole();
        let start = ROOM - if whole { self.decoder.held() } else { 0 };
        let (mut at, mut to) = (ROOM, start);
        loop {
            if whole && self.decoder.between_frames() {
                plain.gap = Some(to);
            }
            let event = match self.decoder.next(&mut plain.bytes, &mut at) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(violation) => {
                    self.violation = Some(violation);
                    return Err(Broken);
                }
            };
            match event {
                Event::Header(bytes, len) => {
                    plain.bytes[to..to + len].copy_from_slice(&bytes[..len]);
                    to += len;
                }
                Event::Data(range) => {
                    let len = range.len();
                    if range.start != to {
                        plain.bytes.copy_within(range, to);
                    }
                    to += len;
                }
                // RFC 6455, 5.5.3: of several pings the last may be answered alone, so a flood costs one pong a turn.
                Event::Ping(body) => self.pong = Some(Box::new(body)),
                Event::Pong => {}
                Event::Close(code) => self.closed = Some(code),
            }
        }
        if whole && self.decoder.between_frames() {
            plain.gap = Some(to);
        }
        plain.bytes.truncate(to);
        plain.from = start;
        Ok(self.closed.is_some())
    }

    /// One frame around everything in `plain`.
    fn wrap(&self, plain: &mut Plain) {
        if self.text {
            let mut text = vec![0; ROOM];
            to_utf8(plain.data(), &mut text);
            (plain.bytes, plain.from) = (text, ROOM);
        }
        let opcode = if self.text { Opcode::Text } else { Opcode::Binary };
        let len = plain.data().len() as u64;
        let header = FrameHeader { fin: true, opcode, len, mask: self.key() };
        plain.from = put_header(&mut plain.bytes, plain.from, &header);
    }
}
