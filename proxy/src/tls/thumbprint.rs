//! Thumbprints: a certificate known by the hash of its DER, whatever chain it has.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use thiserror::Error;

/// SHA-1 (20 bytes) or SHA-256 (32 bytes) of a leaf certificate's DER. The length tells which.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Thumbprint {
    /// What vSphere calls `sslThumbprint`.
    Sha1([u8; 20]),
    /// What newer hosts list beside it.
    Sha256([u8; 32]),
}

/// A text that is no thumbprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "not a thumbprint: 20 (SHA-1) or 32 (SHA-256) bytes in hexadecimal, colons or dashes between them allowed"
)]
pub struct ThumbprintError;

impl Thumbprint {
    /// The SHA-1 thumbprint of a certificate.
    pub fn sha1(der: &[u8]) -> Self {
        let mut bytes = [0; 20];
        bytes.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref());
        Self::Sha1(bytes)
    }

    /// The SHA-256 thumbprint of a certificate.
    pub fn sha256(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self::Sha256(bytes)
    }

    /// Whether it is the thumbprint of this certificate.
    pub fn matches(&self, der: &[u8]) -> bool {
        match self {
            Self::Sha1(_) => *self == Self::sha1(der),
            Self::Sha256(_) => *self == Self::sha256(der),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha1(bytes) => bytes,
            Self::Sha256(bytes) => bytes,
        }
    }
}

impl FromStr for Thumbprint {
    type Err = ThumbprintError;

    fn from_str(text: &str) -> Result<Self, ThumbprintError> {
        let (mut bytes, mut len, mut high) = ([0u8; 32], 0, None);
        for c in text.trim().chars().filter(|c| !matches!(c, ':' | '-')) {
            let digit = c.to_digit(16).ok_or(ThumbprintError)? as u8;
            match high.take() {
                None => high = Some(digit),
                Some(high) => {
                    *bytes.get_mut(len).ok_or(ThumbprintError)? = high << 4 | digit;
                    len += 1;
                }
            }
        }
        match (len, high) {
            (20, None) => bytes.first_chunk().map(|b| Self::Sha1(*b)).ok_or(ThumbprintError),
            (32, None) => Ok(Self::Sha256(bytes)),
            _ => Err(ThumbprintError),
        }
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.bytes().iter().enumerate() {
            write!(f, "{}{byte:02X}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_it_is_the_same() {
        let print = Thumbprint::sha1(b"abc");
        assert_eq!(print.to_string(), "A9:99:3E:36:47:06:81:6A:BA:3E:25:71:78:50:C2:6C:9C:D0:D8:9D");
        for text in [
            print.to_string(),
            print.to_string().to_lowercase(),
            print.to_string().replace(':', ""),
            print.to_string().replace(':', "-"),
        ] {
            assert_eq!(text.parse(), Ok(print.clone()));
        }
        assert!(print.matches(b"abc") && !print.matches(b"abd"));
        let long = Thumbprint::sha256(b"abc");
        assert_eq!(long.to_string().parse(), Ok(long));
    }

    #[test]
    fn other_texts_are_none() {
        for text in
            ["", "A9", "zz", &"A9".repeat(21), &"A9".repeat(33), &format!("{}A", "A9".repeat(19)), "A9:99:é"]
        {
            assert_eq!(text.parse::<Thumbprint>(), Err(ThumbprintError), "{text}");
        }
    }
}
