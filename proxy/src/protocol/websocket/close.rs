//! How a WebSocket ends: close codes (RFC 6455, 7.4) and the violations that lead to one.

use thiserror::Error;

use super::frame::MAX_CONTROL;

/// A status code of a close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// Done as meant.
    pub const NORMAL: Self = Self(1000);
    /// The endpoint goes away; come again.
    pub const GOING_AWAY: Self = Self(1001);
    /// A rule of the protocol was broken.
    pub const PROTOCOL: Self = Self(1002);
    /// A type of data that is not taken (text where binary was agreed).
    pub const UNSUPPORTED: Self = Self(1003);
    /// Data that does not fit its type (text that is not UTF-8).
    pub const INVALID: Self = Self(1007);
    /// Refused by a rule of ours: ticket, limit, operator.
    pub const POLICY: Self = Self(1008);
    /// Too big.
    pub const TOO_BIG: Self = Self(1009);
    /// We failed.
    pub const INTERNAL: Self = Self(1011);
    /// Too busy; come again later.
    pub const TRY_LATER: Self = Self(1013);
    /// What stands behind us failed (IANA registry of close codes).
    pub const BAD_GATEWAY: Self = Self(1014);

    /// Whether an endpoint may send it (RFC 6455, 7.4.1 and 7.4.2).
    pub fn may_be_sent(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

/// What a peer did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// RSV1–3 without an extension that gives them a meaning.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// An opcode that is reserved.
    #[error("a reserved opcode")]
    Opcode,
    /// A client must mask.
    #[error("a client's frame without a mask")]
    Unmasked,
    /// A server must not.
    #[error("a server's frame with a mask")]
    Masked,
    /// A length in more bytes than it needs, or with its top bit set.
    #[error("a length that is not written as it must be")]
    Length,
    /// A longer frame than is taken.
    #[error("a frame longer than is taken")]
    TooBig,
    /// A control frame over 125 bytes or in fragments.
    #[error("a control frame that is too long or fragmented")]
    ControlFrame,
    /// A continuation of nothing, or a new message inside another.
    #[error("fragments out of order")]
    Fragments,
    /// A close frame whose body is none.
    #[error("a close frame with a bad body")]
    CloseBody,
    /// A data frame of another type than was agreed.
    #[error("data of another type than was agreed")]
    DataType,
    /// Text that is not UTF-8, or a code point that is no byte.
    #[error("text that is not UTF-8 or does not stand for bytes")]
    Text,
    /// Data behind the close frame.
    #[error("data behind the close frame")]
    AfterClose,
}

impl Violation {
    /// The code it is answered with.
    pub fn code(self) -> CloseCode {
        match self {
            Self::TooBig => CloseCode::TOO_BIG,
            Self::DataType => CloseCode::UNSUPPORTED,
            Self::Text => CloseCode::INVALID,
            _ => CloseCode::PROTOCOL,
        }
    }
}

/// The body of a close frame that is to be sent: a code and words for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    body: [u8; MAX_CONTROL],
    len: usize,
}

impl Close {
    /// A code and words; cut at a character's end where they are longer than the 123 bytes there are.
    pub fn new(code: CloseCode, reason: &str) -> Self {
        let mut body = [0; MAX_CONTROL];
        body[..2].copy_from_slice(&code.0.to_be_bytes());
        let end = reason.floor_char_boundary(MAX_CONTROL - 2);
        body[2..2 + end].copy_from_slice(&reason.as_bytes()[..end]);
        Self { body, len: 2 + end }
    }

    /// The body.
    pub fn as_bytes(&self) -> &[u8] {
        &self.body[..self.len]
    }
}

/// The code in a received close frame's body; `None` for an empty one.
pub(super) fn parse(body: &[u8]) -> Result<Option<CloseCode>, Violation> {
    match body {
        [] => Ok(None),
        [_] => Err(Violation::CloseBody),
        [high, low, reason @ ..] => {
            let code = CloseCode(u16::from_be_bytes([*high, *low]));
            if !code.may_be_sent() {
                return Err(Violation::CloseBody);
            }
            std::str::from_utf8(reason).map(|_| Some(code)).map_err(|_| Violation::Text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters() {
        let close = Close::new(CloseCode::NORMAL, &"é".repeat(100));
        assert_eq!(close.as_bytes().len(), 2 + 122);
        assert_eq!(parse(close.as_bytes()), Ok(Some(CloseCode::NORMAL)));
    }

    #[test]
    fn bodies_that_are_none_are_refused() {
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&[3]), Err(Violation::CloseBody));
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
            assert_eq!(parse(&code.to_be_bytes()), Err(Violation::CloseBody), "{code}");
        }
        for code in [1000u16, 1003, 1007, 1014, 3000, 4999] {
            assert_eq!(parse(&code.to_be_bytes()), Ok(Some(CloseCode(code))));
        }
        assert_eq!(parse(&[3, 232, 0xff]), Err(Violation::Text));
    }
}
