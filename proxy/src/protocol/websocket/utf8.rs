//! The subprotocol `uint8utf8`: text frames in which each byte is one code point U+0000 to U+00FF.

use super::Violation;

/// Appends `bytes` as text; at most twice as long.
pub fn to_utf8(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len());
    for &byte in bytes {
        if byte < 0x80 {
            out.push(byte);
        } else {
            out.extend_from_slice(&[0xc0 | byte >> 6, 0x80 | byte & 0x3f]);
        }
    }
}

/// The way back, over pieces that may be cut inside a character.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FromUtf8 {
    /// The first byte of a character whose second has not come.
    lead: Option<u8>,
}

impl FromUtf8 {
    /// Turns text into bytes in place; returns how many there are. Only C2 and C3 lead to U+0080 to U+00FF: any other
    /// lead is no UTF-8, an overlong form (C0, C1), or stands for no byte.
    pub(super) fn convert(&mut self, data: &mut [u8]) -> Result<usize, Violation> {
        let mut to = 0;
        for from in 0..data.len() {
            let byte = data[from];
            let whole = match (self.lead.take(), byte) {
                (None, 0..0x80) => byte,
                (None, 0xc2 | 0xc3) => {
                    self.lead = Some(byte);
                    continue;
                }
                (Some(lead), 0x80..0xc0) => lead << 6 | byte & 0x3f,
                _ => return Err(Violation::Text),
            };
            data[to] = whole;
            to += 1;
        }
        Ok(to)
    }

    /// At the end of a message: no character may be half done.
    pub(super) fn end(&self) -> Result<(), Violation> {
        if self.lead.is_some() { Err(Violation::Text) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_what_the_standard_library_says(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut text = Vec::new();
            to_utf8(&bytes, &mut text);
            let slow: String = bytes.iter().map(|b| char::from(*b)).collect();
            prop_assert_eq!(&text, &slow.into_bytes());
        }

        #[test]
        fn any_text_converts_as_its_characters_do(text in prop::collection::vec(any::<u8>(), 0..60), cut in 1usize..9) {
            let slow: Option<Vec<u8>> = std::str::from_utf8(&text).ok()
                .and_then(|text| text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect());
            let (mut converter, mut got) = (FromUtf8::default(), Some(Vec::new()));
            for piece in text.chunks(cut) {
                let mut piece = piece.to_vec();
                match converter.convert(&mut piece) {
                    Ok(n) => if let Some(got) = &mut got { got.extend(&piece[..n]) },
                    Err(_) => { got = None; break; }
                }
            }
            if converter.end().is_err() { got = None; }
            prop_assert_eq!(got, slow);
        }
    }
}
