//! Frames out of a byte stream that comes in any pieces.

use std::ops::Range;

use super::close::{self, CloseCode, Violation};
use super::frame::{HEADER_ROOM, MAX_CONTROL, Opcode, mask};
use super::utf8::FromUtf8;

/// Longest data frame that is taken. None is ever held: the bound is against lengths that only an attack has.
const MAX_FRAME: u64 = 1 << 32;

/// Whose frames are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client: every frame is masked.
    Client,
    /// A server: none is.
    Server,
}

/// The body of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    body: [u8; MAX_CONTROL],
    len: u8,
}

impl Control {
    /// The body, unmasked.
    pub fn as_bytes(&self) -> &[u8] {
        &self.body[..usize::from(self.len)]
    }
}

/// What stood in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The header of a data frame, as it came; only where frames pass whole. Its payload follows, still masked.
    Header([u8; HEADER_ROOM], usize),
    /// Payload, by its place in the piece that was given.
    Data(Range<usize>),
    /// A ping, to be answered with the same body.
    Ping(Control),
    /// A pong.
    Pong,
    /// A close frame and its code. Nothing follows.
    Close(Option<CloseCode>),
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    fin: bool,
    len: u64,
    read: u64,
    key: Option<[u8; 4]>,
}

/// The decoder of one direction.
#[derive(Debug)]
pub struct Decoder {
    peer: Peer,
    /// Whether data comes as text (`uint8utf8`).
    text: bool,
    /// Frames are not unwrapped: headers are events and payloads stay masked.
    whole: bool,
    header: [u8; HEADER_ROOM],
    have: usize,
    frame: Option<Frame>,
    /// A message was begun and not ended.
    in_message: bool,
    utf8: FromUtf8,
    control: [u8; MAX_CONTROL],
    closed: bool,
}

impl Decoder {
    /// A decoder of `peer`'s frames: text where `text`, else binary.
    pub fn new(peer: Peer, text: bool) -> Self {
        Self {
            peer,
            text,
            whole: false,
            header: [0; HEADER_ROOM],
            have: 0,
            frame: None,
            in_message: false,
            utf8: FromUtf8::default(),
            control: [0; MAX_CONTROL],
            closed: false,
        }
    }

    /// From now on data frames are checked, not unwrapped. Only between two messages, for the peer must not get the rest of
    /// one whose beginning went elsewhere; false in the middle of one.
    pub fn pass_whole(&mut self) -> bool {
        let between = self.frame.is_none() && self.have == 0 && !self.in_message;
        self.whole |= between;
        between
    }

    /// Whether data frames pass whole.
    pub fn passes_whole(&self) -> bool {
        self.whole
    }

    /// Bytes of a header that came in earlier pieces: an [`Event::Header`] may be so much longer than what it took from
    /// this piece.
    pub fn held(&self) -> usize {
        self.have
    }

    /// Whether the last data frame came to its end, so that another may follow.
    pub fn between_frames(&self) -> bool {
        self.have == 0 && self.frame.is_none_or(|frame| frame.opcode.is_control())
    }

    /// The same, and no message waits for another fragment.
    pub fn between_messages(&self) -> bool {
        self.between_frames() && !self.in_message
    }

    /// The next event of `data` from `*at` on; `None` when all of it was taken. Payload is unmasked and, where it is text,
    /// turned into bytes where it lies.
    pub fn next(&mut self, data: &mut [u8], at: &mut usize) -> Result<Option<Event>, Violation> {
        loop {
            if self.closed {
                // RFC 6455, 5.5.1: nothing may follow; what does is not looked at.
                *at = data.len();
                return Ok(None);
            }
            let Some(mut frame) = self.frame else {
                match self.read_header(data, at)? {
                    Some(frame) => {
                        self.frame = Some(frame);
                        if self.whole && !frame.opcode.is_control() {
                            let len = std::mem::take(&mut self.have);
                            return Ok(Some(Event::Header(self.header, len)));
                        }
                        self.have = 0;
                        continue;
                    }
                    None => return Ok(None),
                }
            };
            let there = (data.len() - *at) as u64;
            let n = there.min(frame.len - frame.read) as usize;
            let range = *at..*at + n;
            *at += n;
            let event = if frame.opcode.is_control() {
                self.control(&mut data[range], &mut frame)?
            } else {
                self.data(data, range, &mut frame)?
            };
            let over = frame.read == frame.len;
            self.frame = (!over).then_some(frame);
            match event {
                None if !over => return Ok(None),
                None => {}
                event => return Ok(event),
            }
        }
    }

    /// Collects the header; `None` while it is not whole.
    fn read_header(&mut self, data: &[u8], at: &mut usize) -> Result<Option<Frame>, Violation> {
        loop {
            let need = self.header_len()?;
            let n = (need - self.have).min(data.len() - *at);
            self.header[self.have..self.have + n].copy_from_slice(&data[*at..*at + n]);
            self.have += n;
            *at += n;
            if self.have < need {
                return Ok(None);
            }
            if need > 1 && self.header_len()? == need {
                return self.parse_header().map(Some);
            }
        }
    }

    /// How long the header is, as far as its bytes tell; refuses a bad one at its first byte.
    fn header_len(&self) -> Result<usize, Violation> {
        if self.have == 0 {
            return Ok(1);
        }
        if self.header[0] & 0x70 != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = Opcode::from_bits(self.header[0] & 0x0f).ok_or(Violation::Opcode)?;
        if self.have == 1 {
            return Ok(2);
        }
        let (masked, short) = (self.header[1] & 0x80 != 0, self.header[1] & 0x7f);
        match (self.peer, masked) {
            (Peer::Client, false) => return Err(Violation::Unmasked),
            (Peer::Server, true) => return Err(Violation::Masked),
            _ => {}
        }
        if opcode.is_control() && (usize::from(short) > MAX_CONTROL || self.header[0] & 0x80 == 0) {
            return Err(Violation::ControlFrame);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        Ok(2 + extended + if masked { 4 } else { 0 })
    }

    fn parse_header(&mut self) -> Result<Frame, Violation> {
        let opcode = Opcode::from_bits(self.header[0] & 0x0f).ok_or(Violation::Opcode)?;
        let fin = self.header[0] & 0x80 != 0;
        let (len, at) = match self.header[1] & 0x7f {
            126 => (u64::from(u16::from_be_bytes([self.header[2], self.header[3]])), 4),
            127 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&self.header[2..10]);
                (u64::from_be_bytes(bytes), 10)
            }
            short => (u64::from(short), 2),
        };
        let least = [0, 126, 1 << 16][[2, 4, 10].iter().position(|p| *p == at).unwrap_or(0)];
        if len < least || len >> 63 != 0 {
            return Err(Violation::Length);
        }
        if len > MAX_FRAME {
            return Err(Violation::TooBig);
        }
        let mut key = [0; 4];
        key.copy_from_slice(&self.header[at..at + 4]);
        let key = (self.peer == Peer::Client).then_some(key);
        if !opcode.is_control() {
            self.check_order(opcode)?;
            self.in_message = !fin;
        }
        Ok(Frame { opcode, fin, len, read: 0, key })
    }

    fn check_order(&self, opcode: Opcode) -> Result<(), Violation> {
        match (opcode, self.in_message) {
            (Opcode::Continuation, true) => Ok(()),
            (Opcode::Continuation, false) | (_, true) => Err(Violation::Fragments),
            (Opcode::Text, false) if self.text => Ok(()),
            (Opcode::Binary, false) if !self.text => Ok(()),
            _ => Err(Violation::DataType),
        }
    }

    fn data(
        &mut self,
        data: &mut [u8],
        range: Range<usize>,
        frame: &mut Frame,
    ) -> Result<Option<Event>, Violation> {
        let piece = &mut data[range.clone()];
        let offset = frame.read;
        frame.read += piece.len() as u64;
        if self.whole {
            return Ok((!range.is_empty()).then_some(Event::Data(range)));
        }
        if let Some(key) = frame.key {
            mask(piece, key, offset);
        }
        let mut n = piece.len();
        if self.text {
            n = self.utf8.convert(piece)?;
            if frame.fin && frame.read == frame.len {
                self.utf8.end()?;
            }
        }
        Ok((n > 0).then(|| Event::Data(range.start..range.start + n)))
    }

    fn control(&mut self, piece: &mut [u8], frame: &mut Frame) -> Result<Option<Event>, Violation> {
        if let Some(key) = frame.key {
            mask(piece, key, frame.read);
        }
        let read = frame.read as usize;
        self.control[read..read + piece.len()].copy_from_slice(piece);
        frame.read += piece.len() as u64;
        if frame.read < frame.len {
            return Ok(None);
        }
        let body = Control { body: self.control, len: frame.len as u8 };
        Ok(Some(match frame.opcode {
            Opcode::Ping => Event::Ping(body),
            Opcode::Close => {
                self.closed = true;
                Event::Close(close::parse(body.as_bytes())?)
            }
            _ => Event::Pong,
        }))
    }
}

#[cfg(test)]
mod tests;
