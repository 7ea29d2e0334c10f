//! The messages of an RFB client (RFC 6143, 7.5), and VMware's type 127.

/// What a PC keyboard's scan codes (set 1) are on a US layout, from 0x01 on; zero: no character.
const SCAN_CODES: &[u8] = b"\x1b1234567890-=\x08\tqwertyuiop[]\r\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";

/// The keysym of a scan code, without modifiers; 0 where it is no character's.
pub(super) fn keysym(scan_code: u16) -> u32 {
    let at = usize::from(scan_code).wrapping_sub(1);
    match SCAN_CODES.get(at).copied().unwrap_or(0) {
        control @ (0x08 | 0x09 | 0x0d | 0x1b) => 0xff00 | u32::from(control),
        character => character.into(),
    }
}

/// Longest clipboard text and longest extension message taken.
const MAX_TEXT: usize = 1 << 20;

/// A pixel format (RFC 6143, 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PixelFormat {
    pub(super) bits: u8,
    pub(super) depth: u8,
    pub(super) big_endian: bool,
    pub(super) max: [u16; 3],
    pub(super) shift: [u8; 3],
}

impl PixelFormat {
    /// 32 bits, `0x00RRGGBB`, little endian.
    pub(super) const RGB32: Self =
        Self { bits: 32, depth: 24, big_endian: false, max: [255; 3], shift: [16, 8, 0] };

    pub(super) fn encode(self) -> [u8; 16] {
        let [r, g, b] = self.max.map(u16::to_be_bytes);
        let [rs, gs, bs] = self.shift;
        let big = u8::from(self.big_endian);
        [self.bits, self.depth, big, 1, r[0], r[1], g[0], g[1], b[0], b[1], rs, gs, bs, 0, 0, 0]
    }

    fn decode(raw: &[u8; 16]) -> Result<Self, String> {
        let [bits, depth, big, true_colour, r0, r1, g0, g1, b0, b1, rs, gs, bs, ..] = *raw;
        if !matches!(bits, 8 | 16 | 32) || true_colour == 0 || [rs, gs, bs].iter().any(|shift| *shift >= bits)
        {
            return Err(format!("pixel format not served: {bits} bits, true colour {true_colour}"));
        }
        let max = [[r0, r1], [g0, g1], [b0, b1]].map(u16::from_be_bytes);
        Ok(Self { bits, depth, big_endian: big != 0, max, shift: [rs, gs, bs] })
    }

    /// Appends a pixel given as `0x00RRGGBB`.
    pub(super) fn push(self, pixel: u32, out: &mut Vec<u8>) {
        if self == Self::RGB32 {
            return out.extend(pixel.to_le_bytes());
        }
        let [_, r, g, b] = pixel.to_be_bytes();
        let mut value = 0;
        for (channel, (max, shift)) in [r, g, b].into_iter().zip(self.max.into_iter().zip(self.shift)) {
            value |= (u32::from(channel) * u32::from(max) / 255) << shift;
        }
        let bytes = usize::from(self.bits / 8);
        if self.big_endian {
            out.extend(&value.to_be_bytes()[4 - bytes..]);
        } else {
            out.extend(&value.to_le_bytes()[..bytes]);
        }
    }
}

/// A rectangle of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) x: u16,
    pub(super) y: u16,
    pub(super) w: u16,
    pub(super) h: u16,
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    SetPixelFormat(PixelFormat),
    SetEncodings(Vec<i32>),
    UpdateRequest {
        incremental: bool,
        area: Rect,
    },
    Key {
        down: bool,
        keysym: u32,
    },
    Pointer {
        buttons: u8,
        x: u16,
        y: u16,
    },
    CutText(Vec<u8>),
    /// Type 127, subtype 0: a key of a PC keyboard by its scan code (set 1), as VMware's own viewers send it.
    VmwareKey {
        down: bool,
        scan_code: u16,
    },
    /// Any other of type 127, whose length counts its own header of 4 bytes.
    Vmware,
}

impl Message {
    /// The first message in `buf` and its length; `None` where more is needed.
    pub(super) fn parse(buf: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let Some(kind) = buf.first() else { return Ok(None) };
        let length = match (kind, buf) {
            (0, _) => 20,
            (2, [_, _, high, low, ..]) => 4 + 4 * usize::from(u16::from_be_bytes([*high, *low])),
            (3, _) => 10,
            (4, _) => 8,
            (5, _) => 6,
            (6, [_, _, _, _, a, b, c, d, ..]) => 8 + u32::from_be_bytes([*a, *b, *c, *d]) as usize,
            (127, [_, _, high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])).max(4),
            (2 | 6 | 127, _) => return Ok(None),
            (other, _) => return Err(format!("unknown RFB client message {other}")),
        };
        if length > MAX_TEXT {
            return Err(format!("RFB client message {kind} of {length} bytes"));
        }
        let Some(message) = buf.get(..length) else { return Ok(None) };
        Ok(Some((Self::decode(message)?, length)))
    }

    fn decode(message: &[u8]) -> Result<Self, String> {
        let u16_at = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        Ok(match message {
            [0, _, _, _, format @ ..] => {
                let format = format.try_into().map_err(|_| "short pixel format".to_owned())?;
                Self::SetPixelFormat(PixelFormat::decode(format)?)
            }
            [2, _, _, _, list @ ..] => {
                let (list, _) = list.as_chunks::<4>();
                Self::SetEncodings(list.iter().map(|word| i32::from_be_bytes(*word)).collect())
            }
            [3, incremental, ..] => Self::UpdateRequest {
                incremental: *incremental != 0,
                area: Rect { x: u16_at(2), y: u16_at(4), w: u16_at(6), h: u16_at(8) },
            },
            [4, down, _, _, a, b, c, d] => {
                Self::Key { down: *down != 0, keysym: u32::from_be_bytes([*a, *b, *c, *d]) }
            }
            [5, buttons, ..] => Self::Pointer { buttons: *buttons, x: u16_at(2), y: u16_at(4) },
            [6, _, _, _, _, _, _, _, text @ ..] => Self::CutText(text.to_vec()),
            [127, 0, _, 8, high, low, down, _] => {
                Self::VmwareKey { down: *down != 0, scan_code: u16::from_be_bytes([*high, *low]) }
            }
            _ => Self::Vmware,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(mut buf: &[u8]) -> Result<Vec<Message>, String> {
        let mut all = Vec::new();
        while let Some((message, n)) = Message::parse(buf)? {
            all.push(message);
            buf = &buf[n..];
        }
        assert_eq!(buf, b"", "bytes left over");
        Ok(all)
    }

    #[test]
    fn messages_are_cut_at_their_own_lengths() {
        let mut wire = vec![127, 5, 0, 8, 1, 2, 3, 4];
        wire.extend([127, 0, 0, 8, 0, 0x30, 1, 0]);
        wire.extend([2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x11]);
        wire.extend([3, 1, 0, 1, 0, 2, 0, 3, 0, 4]);
        wire.extend([4, 1, 0, 0, 0, 0, 0xff, 0x0d]);
        wire.extend([5, 1, 0, 9, 0, 8]);
        wire.extend([6, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']);
        let expected = [
            Message::Vmware,
            Message::VmwareKey { down: true, scan_code: 0x30 },
            Message::SetEncodings(vec![0, -239]),
            Message::UpdateRequest { incremental: true, area: Rect { x: 1, y: 2, w: 3, h: 4 } },
            Message::Key { down: true, keysym: 0xff0d },
            Message::Pointer { buttons: 1, x: 9, y: 8 },
            Message::CutText(b"hi".to_vec()),
        ];
        assert_eq!(parse_all(&wire).unwrap(), expected);
        assert_eq!(Message::parse(&wire[..7]), Ok(None));
    }

    #[test]
    fn scan_codes_are_those_of_a_us_keyboard() {
        for (code, sym) in [(0x01, 0xff1b), (0x0e, 0xff08), (0x1c, 0xff0d), (0x1e, 0x61), (0x2c, 0x7a)] {
            assert_eq!(keysym(code), sym, "{code:#x}");
        }
        assert_eq!((keysym(0x39), keysym(0x02), keysym(0x35)), (0x20, 0x31, 0x2f));
        assert_eq!((keysym(0), keysym(0x2a), keysym(0x153)), (0, 0, 0));
    }

    #[test]
    fn what_is_unknown_or_too_long_is_an_error() {
        assert!(Message::parse(&[99]).is_err());
        assert!(Message::parse(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn pixels_follow_the_client() {
        let mut out = Vec::new();
        PixelFormat::RGB32.push(0x0011_2233, &mut out);
        assert_eq!(out, [0x33, 0x22, 0x11, 0]);
        out.clear();
        let rgb565 =
            PixelFormat { bits: 16, depth: 16, big_endian: true, max: [31, 63, 31], shift: [11, 5, 0] };
        rgb565.push(0x00ff_0000, &mut out);
        assert_eq!(out, [0xf8, 0]);
        assert_eq!(PixelFormat::decode(&rgb565.encode()), Ok(rgb565));
    }
}
