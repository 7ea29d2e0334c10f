//! Frame headers (RFC 6455, 5.2) and masking.

/// Longest payload of a control frame.
pub const MAX_CONTROL: usize = 125;
/// Longest header: two bytes, eight of length, four of mask.
pub const HEADER_ROOM: usize = 14;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of the message that was begun.
    Continuation,
    /// A message of text.
    Text,
    /// A message of bytes.
    Binary,
    /// The end.
    Close,
    /// Is anybody there?
    Ping,
    /// Yes.
    Pong,
}

impl Opcode {
    /// From the low four bits of a frame.
    pub fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    /// The four bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    /// Whether it may stand between the fragments of a message.
    pub fn is_control(self) -> bool {
        self.bits() >= 8
    }
}

/// A header to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The last fragment of its message.
    pub fin: bool,
    /// What it is.
    pub opcode: Opcode,
    /// Bytes of payload.
    pub len: u64,
    /// The key, where the sender is a client.
    pub mask: Option<[u8; 4]>,
}

impl FrameHeader {
    /// The header as bytes, and how many of them count.
    pub fn bytes(&self) -> ([u8; HEADER_ROOM], usize) {
        let mut bytes = [0; HEADER_ROOM];
        bytes[0] = (u8::from(self.fin) << 7) | self.opcode.bits();
        let masked = u8::from(self.mask.is_some()) << 7;
        let mut at = 2;
        if self.len <= MAX_CONTROL as u64 {
            bytes[1] = masked | self.len as u8;
        } else if let Ok(len) = u16::try_from(self.len) {
            bytes[1] = masked | 126;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            at = 4;
        } else {
            bytes[1] = masked | 127;
            bytes[2..10].copy_from_slice(&self.len.to_be_bytes());
            at = 10;
        }
        if let Some(key) = self.mask {
            bytes[at..at + 4].copy_from_slice(&key);
            at += 4;
        }
        (bytes, at)
    }
}

/// Masks or unmasks in place: byte `i` of `data` is byte `offset + i` of the payload.
pub fn mask(data: &mut [u8], key: [u8; 4], offset: u64) {
    let mut key = key;
    key.rotate_left((offset % 4) as usize);
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends a control frame; `body` is cut at [`MAX_CONTROL`].
pub fn put_control(out: &mut Vec<u8>, opcode: Opcode, body: &[u8], key: Option<[u8; 4]>) {
    let body = &body[..body.len().min(MAX_CONTROL)];
    let (header, len) = FrameHeader { fin: true, opcode, len: body.len() as u64, mask: key }.bytes();
    out.extend_from_slice(&header[..len]);
    let at = out.len();
    out.extend_from_slice(body);
    if let Some(key) = key {
        mask(&mut out[at..], key, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn masking_in_pieces_is_masking_at_once(mut data in prop::collection::vec(any::<u8>(), 0..200), key: [u8; 4], cut in 1usize..40) {
            let slow: Vec<u8> = data.iter().enumerate().map(|(i, b)| b ^ key[i % 4]).collect();
            let mut offset = 0;
            for piece in data.chunks_mut(cut) {
                mask(piece, key, offset);
                offset += piece.len() as u64;
            }
            prop_assert_eq!(data, slow);
        }
    }
}
