//! The client's side of a WebSocket (RFC 6455), as far as a console needs it: binary frames, pings, the close.
//! Written apart from the proxy's own, so that a mistake in the one is not repeated in the other.

use std::io;

/// Longest frame that is taken, bytes; the proxy's are one flow turn at most.
const MAX_FRAME: u64 = 1 << 20;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Frames taken apart.
#[derive(Default)]
pub struct Frames {
    /// The header that is being read.
    head: Vec<u8>,
    /// Bytes of the frame that are still to come, and whether they are the console's.
    left: u64,
    opcode: u8,
    control: Vec<u8>,
}

/// What came beside the console's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Control {
    /// To be answered with a pong of the same bytes.
    Ping(Vec<u8>),
    /// The other side closes; its code.
    Close(u16),
}

impl Frames {
    /// Takes received bytes apart: the console's go to the end of `data`.
    ///
    /// # Errors
    /// A masked, reserved or over-long frame.
    pub fn take(&mut self, mut bytes: &[u8], data: &mut Vec<u8>) -> io::Result<Option<Control>> {
        let mut told = None;
        while !bytes.is_empty() {
            if self.left == 0 {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                let Some(length) = length(&self.head)? else { continue };
                self.opcode = self.head[0] & 15;
                self.head.clear();
                self.left = length;
                if length > 0 {
                    continue;
                }
            }
            let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let into = if self.opcode >= CLOSE { &mut self.control } else { &mut *data };
            into.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            self.left -= n as u64;
            if self.left == 0 && self.opcode >= CLOSE {
                told = self.told().or(told);
            }
        }
        Ok(told)
    }

    fn told(&mut self) -> Option<Control> {
        let body = std::mem::take(&mut self.control);
        match self.opcode {
            PING => Some(Control::Ping(body)),
            CLOSE => Some(Control::Close(body.get(..2).map_or(1005, |b| u16::from_be_bytes([b[0], b[1]])))),
            _ => None,
        }
    }
}

/// Length of the payload once the header is whole.
fn length(head: &[u8]) -> io::Result<Option<u64>> {
    let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if head[0] & 0x70 != 0 {
        return wrong("a frame with reserved bits");
    }
    let length = match head {
        [_, short, ..] if short & 0x80 != 0 => return wrong("a masked frame from the server"),
        [_, short @ 0..=125] => u64::from(*short),
        [_, 126, a, b] => u64::from(u16::from_be_bytes([*a, *b])),
        [_, 127, rest @ ..] if rest.len() == 8 => rest.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)),
        _ => return Ok(None),
    };
    if length > MAX_FRAME { wrong("a frame that is too long") } else { Ok(Some(length)) }
}

/// A masked binary frame.
pub fn binary(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    frame(BINARY, payload, mask)
}

/// The answer to a ping.
pub fn pong(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    frame(PONG, payload, mask)
}

fn frame(opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        n @ 0..=125 => frame.push(0x80 | n as u8),
        n @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((n as u16).to_be_bytes());
        }
        n => {
            frame.push(0x80 | 127);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455, 5.7: the examples.
    #[test]
    fn the_examples_of_the_rfc() {
        let masked = frame(1, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(masked, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        let (mut frames, mut data) = (Frames::default(), Vec::new());
        let parts = [&[0x01, 0x03, b'H', b'e', b'l'][..], &[0x80, 0x02, b'l', b'o']].concat();
        assert_eq!(frames.take(&parts, &mut data).unwrap(), None);
        assert_eq!(data, b"Hello");
        let ping = [0x89, 0x05, b'H', b'e', b'l', b'l', b'o'];
        assert_eq!(frames.take(&ping, &mut data).unwrap(), Some(Control::Ping(b"Hello".to_vec())));
        assert_eq!(frames.take(&[0x88, 2, 3, 0xe8], &mut data).unwrap(), Some(Control::Close(1000)));
        assert_eq!(frames.take(&[0x88, 0], &mut data).unwrap(), Some(Control::Close(1005)));
    }

    #[test]
    fn how_the_stream_is_cut_does_not_matter() {
        let payload: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
        let mut stream = vec![0x82, 126, 1, 0];
        stream.extend(&payload[..256]);
        stream.extend([0x89, 1, b'x', 0x82, 127]);
        stream.extend((payload.len() as u64 - 256).to_be_bytes());
        stream.extend(&payload[256..]);
        for cut in [1, 3, 7, 1000, stream.len()] {
            let (mut frames, mut data, mut pings) = (Frames::default(), Vec::new(), 0);
            for piece in stream.chunks(cut) {
                pings += usize::from(frames.take(piece, &mut data).unwrap().is_some());
            }
            assert_eq!((data.len(), pings), (payload.len(), 1), "cut {cut}");
            assert!(data == payload);
        }
    }

    #[test]
    fn what_no_server_may_send_is_an_error() {
        for bad in [&[0x82, 0x81, 0, 0, 0, 0, 1][..], &[0xc2, 1, 1], &[0x82, 127, 0, 0, 0, 0, 0, 0x11, 0, 0]]
        {
            assert!(Frames::default().take(bad, &mut Vec::new()).is_err());
        }
    }
}
