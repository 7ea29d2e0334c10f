//! CRLF lines out of a byte stream, one at a time, never reading past the line that was asked for.

use thiserror::Error;

/// Longest line without its end, in bytes. The longest honest one is `USER <sealed ticket>`, about 1.5 KiB.
pub const MAX_LINE: usize = 4096;

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// No line end within [`MAX_LINE`].
    #[error("line longer than {MAX_LINE} bytes")]
    TooLong,
    /// A NUL, a lone LF or a lone CR: what parsers disagree about is refused.
    #[error("line with a NUL, a bare LF or a bare CR")]
    BadByte,
    /// Not UTF-8.
    #[error("line that is not UTF-8")]
    NotUtf8,
}

/// Takes the first line off `buffer`: `Ok(None)` while its end has not come. Bytes behind the line stay in `buffer`.
pub fn take_line(buffer: &mut Vec<u8>) -> Result<Option<String>, LineError> {
    let scan = &buffer[..buffer.len().min(MAX_LINE + 2)];
    let Some(lf) = scan.iter().position(|&b| b == b'\n') else {
        if scan.contains(&0) {
            return Err(LineError::BadByte);
        }
        return if buffer.len() > MAX_LINE + 1 { Err(LineError::TooLong) } else { Ok(None) };
    };
    let Some(line) = scan[..lf].strip_suffix(b"\r") else { return Err(LineError::BadByte) };
    if line.iter().any(|b| matches!(b, 0 | b'\r')) {
        return Err(LineError::BadByte);
    }
    let line = std::str::from_utf8(line).map_err(|_| LineError::NotUtf8)?.to_owned();
    buffer.drain(..=lf);
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_behind_a_line_stay() {
        let mut buffer = b"CONNECT x mks\r\n\x16\x03\x01".to_vec();
        assert_eq!(take_line(&mut buffer), Ok(Some("CONNECT x mks".into())));
        assert_eq!(buffer, b"\x16\x03\x01");
        assert_eq!(take_line(&mut buffer), Ok(None));
    }

    #[test]
    fn odd_lines_are_refused() {
        for (bytes, error) in [
            (&b"USER x\n"[..], LineError::BadByte),
            (b"US\0ER x\r\n", LineError::BadByte),
            (b"US\0ER", LineError::BadByte),
            (b"USER\rx\r\n", LineError::BadByte),
            (b"USER \xff\r\n", LineError::NotUtf8),
        ] {
            assert_eq!(take_line(&mut bytes.to_vec()), Err(error), "{bytes:?}");
        }
        assert_eq!(take_line(&mut vec![b'a'; MAX_LINE + 2]), Err(LineError::TooLong));
        let mut longest = vec![b'a'; MAX_LINE];
        longest.extend(b"\r\n");
        assert_eq!(take_line(&mut longest).map(|l| l.map(|l| l.len())), Ok(Some(MAX_LINE)));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_lines_are_the_same(lines in prop::collection::vec("[a-z ]{0,40}", 0..8), cut in 1usize..7) {
            let stream: Vec<u8> = lines.iter().flat_map(|l| format!("{l}\r\n").into_bytes()).collect();
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for chunk in stream.chunks(cut) {
                buffer.extend_from_slice(chunk);
                while let Some(line) = take_line(&mut buffer).unwrap() {
                    got.push(line);
                }
            }
            prop_assert_eq!(got, lines);
            prop_assert!(buffer.is_empty());
        }
    }
}
