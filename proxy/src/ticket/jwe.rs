//! JWE compact serialisation (RFC 7516), `dir` + `A256GCM` (RFC 7518 4.5, 5.3) and nothing else.
//!
//! `BASE64URL(header) . (empty: no encrypted key) . BASE64URL(iv) . BASE64URL(ciphertext) . BASE64URL(tag)`, the header's
//! text being the additional authenticated data. base64url is read strictly (no padding, no stray bits), so that each
//! ticket has exactly one text.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::ClaimError;

/// Longest sealed ticket that is looked at, in bytes. Anything longer is refused before any work.
pub const MAX_SEALED: usize = 16 * 1024;
/// Longest `kid`, in bytes.
pub(super) const MAX_KID: usize = 128;
/// Bytes of an AES-256 key.
pub(super) const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;

/// Why a text is not a ticket of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JweError {
    /// Longer than [`MAX_SEALED`].
    #[error("the ticket is longer than {MAX_SEALED} bytes")]
    Oversize,
    /// Not five parts of base64url of the right lengths.
    #[error("not a JWE in compact form, or a part of it is missing")]
    Malformed,
    /// A header that asks for something else than `dir` + `A256GCM` by `kid`.
    #[error("the JWE header is not {{alg: dir, enc: A256GCM, kid, typ?, cty?}}")]
    Header,
    /// No key has this `kid`.
    #[error("sealed with a key that is not in the key directory; is the portal's newest key installed here?")]
    UnknownKey,
    /// The tag does not fit: forged, damaged, or another key under the same `kid`.
    #[error("the ticket's seal does not fit: forged, damaged, or sealed with another key under the same kid")]
    Forged,
}

/// Why claims cannot be sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// The gate would refuse them.
    #[error(transparent)]
    Claims(#[from] ClaimError),
    /// The result would be longer than [`MAX_SEALED`].
    #[error("the sealed ticket would be longer than {MAX_SEALED} bytes; shorten its claims")]
    Oversize,
    /// The cryptographic library failed.
    #[error("the AES-256-GCM seal failed in the cryptographic library")]
    Crypto,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    kid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cty: Option<String>,
}

/// A compact JWE taken apart, nothing decrypted yet.
pub(super) struct Sealed<'a> {
    header_text: &'a str,
    /// Which key sealed it, as the (unauthenticated) header says.
    pub(super) kid: String,
    iv: [u8; NONCE_LEN],
    /// Ciphertext and tag.
    body: Zeroizing<Vec<u8>>,
}

impl<'a> Sealed<'a> {
    /// Takes a ticket's text apart. The length is looked at first; all work is linear in at most [`MAX_SEALED`] bytes.
    pub(super) fn parse(text: &'a str) -> Result<Self, JweError> {
        if text.len() > MAX_SEALED {
            return Err(JweError::Oversize);
        }
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(JweError::Malformed);
        let (header_text, key, iv, body, tag) = (next()?, next()?, next()?, next()?, next()?);
        if parts.next().is_some() || !key.is_empty() || body.is_empty() {
            return Err(JweError::Malformed);
        }
        let kid = kid_of(header_text)?;
        let iv = decode(iv)?.as_slice().try_into().map_err(|_| JweError::Malformed)?;
        let (mut body, tag) = (decode(body)?, decode(tag)?);
        if tag.len() != TAG_LEN {
            return Err(JweError::Malformed);
        }
        body.extend_from_slice(&tag);
        Ok(Self { header_text, kid, iv, body })
    }

    /// Decrypts it, in place.
    pub(super) fn open(mut self, key: &RandomizedNonceKey) -> Result<Zeroizing<Vec<u8>>, JweError> {
        let nonce = Nonce::assume_unique_for_key(self.iv);
        let aad = Aad::from(self.header_text.as_bytes());
        let plain = key.open_in_place(nonce, aad, &mut self.body).map_err(|_| JweError::Forged)?.len();
        self.body.truncate(plain);
        Ok(self.body)
    }
}

/// Seals `plain` under `key` with a fresh random nonce.
pub(super) fn seal(
    key: &RandomizedNonceKey,
    kid: &str,
    mut plain: Zeroizing<Vec<u8>>,
) -> Result<String, SealError> {
    let header = Header {
        alg: "dir".to_owned(),
        enc: "A256GCM".to_owned(),
        kid: kid.to_owned(),
        typ: Some("JWE".to_owned()),
        cty: None,
    };
    let header = serde_json::to_vec(&header).map_err(|_| SealError::Crypto)?;
    let header = URL_SAFE_NO_PAD.encode(header);
    let (iv, tag) = key
        .seal_in_place_separate_tag(Aad::from(header.as_bytes()), plain.as_mut_slice())
        .map_err(|_| SealError::Crypto)?;
    let mut sealed = header;
    sealed.push('.');
    for part in [iv.as_ref().as_slice(), &plain, tag.as_ref()] {
        sealed.push('.');
        URL_SAFE_NO_PAD.encode_string(part, &mut sealed);
    }
    if sealed.len() > MAX_SEALED { Err(SealError::Oversize) } else { Ok(sealed) }
}

/// A key for [`seal`] and [`Sealed::open`].
pub(super) fn key_from(bytes: &[u8]) -> Option<RandomizedNonceKey> {
    RandomizedNonceKey::new(&AES_256_GCM, bytes).ok()
}

fn kid_of(header: &str) -> Result<String, JweError> {
    let json = decode(header)?;
    let header: Header = serde_json::from_slice(&json).map_err(|_| JweError::Header)?;
    let ours = header.alg == "dir" && header.enc == "A256GCM";
    if !ours || header.kid.is_empty() || header.kid.len() > MAX_KID {
        return Err(JweError::Header);
    }
    Ok(header.kid)
}

fn decode(part: &str) -> Result<Zeroizing<Vec<u8>>, JweError> {
    URL_SAFE_NO_PAD.decode(part).map(Zeroizing::new).map_err(|_| JweError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> RandomizedNonceKey {
        key_from(&[7; KEY_LEN]).unwrap()
    }

    fn sealed(plain: &str) -> String {
        seal(&key(), "k1", Zeroizing::new(plain.as_bytes().to_vec())).unwrap()
    }

    fn open(text: &str) -> Result<String, JweError> {
        Sealed::parse(text)?.open(&key()).map(|plain| String::from_utf8(plain.to_vec()).unwrap())
    }

    fn with_header(json: &str) -> String {
        let sealed = sealed("{}");
        let rest = sealed.split_once('.').unwrap().1;
        format!("{}.{rest}", URL_SAFE_NO_PAD.encode(json))
    }

    #[test]
    fn what_is_sealed_opens_and_two_seals_differ() {
        assert_eq!(open(&sealed("hello")).as_deref(), Ok("hello"));
        assert_ne!(sealed("hello"), sealed("hello"));
        assert_eq!(Sealed::parse(&sealed("hello")).ok().map(|s| s.kid).as_deref(), Some("k1"));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = sealed("hello");
        for len in 0..whole.len() {
            assert!(open(&whole[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn every_forged_byte_is_refused() {
        let whole = sealed("hello");
        for at in 0..whole.len() {
            for with in
                [b'A', b'_', b'-', b'.', b'=', b' ', 0, whole.as_bytes()[at] ^ 1, whole.as_bytes()[at] ^ 2]
            {
                let mut forged = whole.clone().into_bytes();
                if std::mem::replace(&mut forged[at], with) != with {
                    assert!(open(std::str::from_utf8(&forged).unwrap()).is_err(), "byte {at} as {with:#x}");
                }
            }
        }
    }

    #[test]
    fn only_the_one_header_is_taken() {
        for header in [
            r#"{"alg":"dir","enc":"A256GCM"}"#,
            r#"{"alg":"dir","enc":"A256GCM","kid":""}"#,
            r#"{"alg":"A256KW","enc":"A256GCM","kid":"k1"}"#,
            r#"{"alg":"none","enc":"A256GCM","kid":"k1"}"#,
            r#"{"alg":"dir","enc":"A128GCM","kid":"k1"}"#,
            r#"{"alg":"dir","enc":"A256GCM","kid":"k1","zip":"DEF"}"#,
            r#"{"alg":"dir","enc":"A256GCM","kid":"k1","crit":[]}"#,
            r#"{"alg":"dir","enc":"A256GCM","kid":"k1","kid":"k2"}"#,
            r#"{"alg":"dir","enc":"A256GCM","kid":7}"#,
            r#"["dir"]"#,
            "",
        ] {
            assert_eq!(open(&with_header(header)), Err(JweError::Header), "{header}");
        }
        // Allowed, but not what was sealed.
        let other = with_header(r#"{"alg":"dir","enc":"A256GCM","kid":"k1","cty":"x"}"#);
        assert_eq!(open(&other), Err(JweError::Forged));
    }

    #[test]
    fn odd_shapes_are_refused() {
        let whole = sealed("hello");
        let parts: Vec<&str> = whole.split('.').collect();
        let (h, iv, body, tag) = (parts[0], parts[2], parts[3], parts[4]);
        for text in [
            format!("{whole}."),
            format!("{h}.QUJD.{iv}.{body}.{tag}"),
            format!("{h}..{iv}.{body}.{tag}="),
            format!("{h}..{iv}..{tag}"),
            format!("{h}..{iv}AAAA.{body}.{tag}"),
            format!("{h}..{iv}.{body}."),
            format!(" {whole}"),
            format!("{whole}\n"),
            "....".to_owned(),
            "é....".to_owned(),
        ] {
            assert!(open(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_megabyte_is_refused_by_its_length_alone() {
        assert_eq!(open(&"A".repeat(1 << 20)), Err(JweError::Oversize));
        assert_eq!(open(&"A".repeat(MAX_SEALED + 1)), Err(JweError::Oversize));
        assert_eq!(open(&"A".repeat(MAX_SEALED)), Err(JweError::Malformed));
        let long = seal(&key(), "k1", Zeroizing::new(vec![b'a'; MAX_SEALED]));
        assert!(matches!(long, Err(SealError::Oversize)));
    }

    #[test]
    fn another_key_does_not_open_it() {
        let other = key_from(&[8; KEY_LEN]).unwrap();
        assert_eq!(Sealed::parse(&sealed("x")).unwrap().open(&other).err(), Some(JweError::Forged));
    }
}
