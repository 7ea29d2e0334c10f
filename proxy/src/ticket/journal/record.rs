//! The journal's lines: a checksum and JSON each, so that whatever became of the file, nothing is read that was not written.
//!
//! ```text
//! 8d2b6b1f {"journal":1}
//! 5f0c1a77 {"use":["JTI",{"iat":…,"tenant":…,"user":…,"source":…,"reconnect_until":…,"forget_after":…,"revoked":false}]}
//! 0b9e4d21 {"revoked":[{"user":{"tenant":"acme","user":"ann"}},{"secs":…,"nanos":…}]}
//! ```

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ticket::Revocation;
use crate::ticket::table::Entry;

/// Longest line, its end included. Three names of 256 bytes each and what stands around them take less than half of it.
pub(super) const LONGEST: usize = 4096;
/// Eight hexadecimal digits and a space.
const HEAD: usize = 9;
/// Another number for lines that an older program would misread; it takes them for broken.
const VERSION: u32 = 1;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::ticket) enum Record<'a> {
    /// The first line.
    Journal(u32),
    /// A ticket's first use, by its jti.
    Use(Cow<'a, str>, Cow<'a, Entry>),
    /// A revocation, and up to which `iat` it holds.
    Revoked(Cow<'a, Revocation>, Duration),
    /// Every unused ticket minted up to this `iat` is revoked.
    AllRevoked(Duration),
    /// The youngest `iat` among what was forgotten.
    Forgotten(Duration),
}

impl Record<'_> {
    /// The first line of every journal.
    pub(super) fn first() -> Self {
        Self::Journal(VERSION)
    }

    /// Appends its line. False, and nothing is appended, where it is too long to be read again: a revocation of a name that
    /// no ticket can have.
    pub(in crate::ticket) fn encode(&self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.extend_from_slice(&[b' '; HEAD]);
        // Writing to memory does not fail, nor do these types.
        let done = serde_json::to_writer(&mut *out, self).is_ok();
        if !done || out.len() - start >= LONGEST {
            out.truncate(start);
            return false;
        }
        let sum = checksum(&out[start + HEAD..]);
        let written = write!(&mut out[start..start + HEAD], "{sum:08x} ").is_ok();
        out.push(b'\n');
        written
    }

    /// What a line says, without its end; `None` if it is not what was written.
    pub(super) fn decode(line: &[u8]) -> Option<Record<'static>> {
        let (head, json) = line.split_at_checked(HEAD)?;
        let sum = format!("{:08x} ", checksum(json));
        if line.len() >= LONGEST || head != sum.as_bytes() {
            return None;
        }
        let record = serde_json::from_slice(json).ok()?;
        (!matches!(record, Record::Journal(version) if version != VERSION)).then_some(record)
    }
}

/// The line that says this, whether or not it is a record's text.
pub fn line(json: &[u8]) -> Vec<u8> {
    [format!("{:08x} ", checksum(json)).as_bytes(), json, b"\n"].concat()
}

/// CRC-32 (ISO 3309, reflected): finds every change of up to 32 bits in a row.
fn checksum(bytes: &[u8]) -> u32 {
    let next = |sum: u32, byte: &u8| TABLE[usize::from(sum as u8 ^ byte)] ^ (sum >> 8);
    !bytes.iter().fold(!0, next)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut sum, mut bit) = (n as u32, 0);
        while bit < 8 {
            sum = if sum & 1 == 1 { 0xedb8_8320 ^ (sum >> 1) } else { sum >> 1 };
            bit += 1;
        }
        table[n] = sum;
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(line(b"123456789"), b"cbf43926 123456789\n");
    }

    #[test]
    fn a_line_is_read_as_it_was_written_and_a_name_beyond_all_tickets_is_left_out() {
        let mut out = Vec::new();
        assert!(Record::first().encode(&mut out));
        assert!(matches!(Record::decode(&out[..out.len() - 1]), Some(Record::Journal(VERSION))));
        assert!(Record::decode(&out).is_none(), "its end is no part of it");
        out.clear();
        let long = Revocation::Jti("j".repeat(LONGEST));
        assert!(!Record::Revoked(Cow::Owned(long), Duration::ZERO).encode(&mut out));
        assert!(out.is_empty());
        assert!(Record::Journal(VERSION + 1).encode(&mut out));
        assert!(Record::decode(&out[..out.len() - 1]).is_none(), "of a program to come");
    }
}
