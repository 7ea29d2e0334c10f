//! HTTP/1.1 request heads (RFC 9112), just enough to find a door; parsed by `httparse`.

use thiserror::Error;

/// Longest head in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// Most header fields.
const MAX_HEADERS: usize = 64;

/// The reply that turns the connection into the authd dialogue.
pub const SWITCH_TO_MKS: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: mks\r\n\r\n";

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The method.
    pub method: String,
    /// The request target as it was sent: never decoded or normalised here.
    pub target: String,
    /// Names in lower case, values trimmed.
    headers: Vec<(String, String)>,
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// The first line alone is longer than [`MAX_HEAD`].
    #[error("request target longer than {MAX_HEAD} bytes")]
    TargetTooLong,
    /// Longer than [`MAX_HEAD`], or too many fields.
    #[error("request head longer than {MAX_HEAD} bytes or {MAX_HEADERS} fields")]
    TooLarge,
    /// Not HTTP/1.1.
    #[error("not an HTTP/1.1 request")]
    Malformed,
    /// A body where none is taken.
    #[error("a request with a body")]
    Body,
}

impl Head {
    /// Parses the head at the front of `buffer`: `None` while it is not whole; else the head and its length. A request with
    /// a body is refused.
    pub fn parse(buffer: &[u8]) -> Result<Option<(Self, usize)>, HeadError> {
        match Self::parse_with_body(buffer)? {
            Some((head, len, 0)) => Ok(Some((head, len))),
            Some(_) => Err(HeadError::Body),
            None => Ok(None),
        }
    }

    /// The same where a body may follow, whose length is told; only one of known length is taken.
    pub fn parse_with_body(buffer: &[u8]) -> Result<Option<(Self, usize, usize)>, HeadError> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut fields);
        let scan = &buffer[..buffer.len().min(MAX_HEAD)];
        let len = match request.parse(scan) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
            Ok(httparse::Status::Partial) if !scan.contains(&b'\n') => return Err(HeadError::TargetTooLong),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(HeadError::TooLarge);
            }
            Err(_) => return Err(HeadError::Malformed),
        };
        let mut headers = Vec::new();
        for field in request.headers.iter() {
            let value = std::str::from_utf8(field.value).map_err(|_| HeadError::Malformed)?;
            headers.push((field.name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let (Some(method), Some(target), Some(1)) = (request.method, request.path, request.version) else {
            return Err(HeadError::Malformed);
        };
        let head = Self { method: method.into(), target: target.into(), headers };
        let mut lengths = head.values("content-length");
        let body = match (lengths.next(), lengths.next()) {
            (None, _) => 0,
            (Some(n), None) if n.bytes().all(|b| b.is_ascii_digit()) => {
                n.parse().map_err(|_| HeadError::Malformed)?
            }
            _ => return Err(HeadError::Malformed),
        };
        let encoded = head.values("transfer-encoding").next().is_some();
        drop(lengths);
        if encoded { Err(HeadError::Body) } else { Ok(Some((head, len, body))) }
    }

    /// A field's value; `None` where it is absent or stands there more than once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }

    /// Every value of a field that may be repeated.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether the client wants the connection closed behind the response.
    pub fn closes(&self) -> bool {
        self.values("connection")
            .flat_map(|v| v.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("close"))
    }

    /// Whether it asks to upgrade to this protocol (RFC 9110, 7.8).
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        let lists = |name: &str, word: &str| {
            self.headers
                .iter()
                .filter(|(n, _)| n == name)
                .any(|(_, value)| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(word)))
        };
        lists("connection", "upgrade") && lists("upgrade", protocol)
    }
}

/// A refusal in HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 400.
    BadRequest,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 408.
    Timeout,
    /// 414.
    TargetTooLong,
    /// 426.
    UpgradeRequired,
    /// 426, where a WebSocket is.
    WebSocketRequired,
    /// 431.
    HeadTooLarge,
}

impl Status {
    /// Code and reason phrase.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "400 Bad Request",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::Timeout => "408 Request Timeout",
            Self::TargetTooLong => "414 URI Too Long",
            Self::UpgradeRequired | Self::WebSocketRequired => "426 Upgrade Required",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
        }
    }

    /// A sentence for the person who sees it.
    pub fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "This is not a request that is understood here.",
            Self::Forbidden => "Pages of that origin may not open consoles here.",
            Self::NotFound => "There is nothing here.",
            Self::MethodNotAllowed => "Only GET is taken here.",
            Self::Timeout => "The request took too long.",
            Self::TargetTooLong => "The address is too long.",
            Self::WebSocketRequired => "A WebSocket is opened here.",
            Self::UpgradeRequired => "Ask for an upgrade to mks.",
            Self::HeadTooLarge => "The request's head is too large.",
        }
    }

    /// The whole response; the connection closes behind it.
    pub fn response(self, text: &str) -> String {
        let extra = match self {
            Self::UpgradeRequired => "Upgrade: mks\r\nConnection: upgrade, close\r\n",
            Self::WebSocketRequired => {
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: upgrade, close\r\n"
            }
            Self::MethodNotAllowed => "Allow: GET\r\nConnection: close\r\n",
            _ => "Connection: close\r\n",
        };
        format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{extra}\r\n{text}\n",
            self.as_str(),
            text.len() + 1
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UPGRADE: &[u8] =
        b"GET /mks HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: MKS\r\n\r\nrest";

    #[test]
    fn an_upgrade_is_found_however_the_bytes_are_cut() {
        let end = UPGRADE.len() - 4;
        for cut in 0..end {
            assert_eq!(Head::parse(&UPGRADE[..cut]), Ok(None), "{cut}");
        }
        let (head, len) = Head::parse(UPGRADE).unwrap().unwrap();
        assert_eq!((len, head.target.as_str()), (end, "/mks"));
        assert!(head.upgrades_to("mks") && !head.upgrades_to("websocket"));
    }

    #[test]
    fn what_is_too_large_or_no_request_is_refused() {
        let endless = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; MAX_HEAD]].concat();
        assert_eq!(Head::parse(&endless), Err(HeadError::TooLarge));
        let target = [b"GET /902;".to_vec(), vec![b'a'; 1 << 20]].concat();
        assert_eq!(Head::parse(&target), Err(HeadError::TargetTooLong));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(Head::parse(many.as_bytes()), Err(HeadError::TooLarge));
        assert_eq!(Head::parse(b"\x16\x03\x01\0\0"), Err(HeadError::Malformed));
        assert_eq!(Head::parse(b"GET / HTTP/1.0\r\n\r\n"), Err(HeadError::Malformed));
        assert_eq!(Head::parse(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde"), Err(HeadError::Body));
    }

    #[test]
    fn a_body_of_known_length_is_told_and_no_other_taken() {
        let parse =
            |fields: &str| Head::parse_with_body(format!("POST /sdk HTTP/1.1\r\n{fields}\r\n").as_bytes());
        assert_eq!(parse("Content-Length: 5\r\n").unwrap().unwrap().2, 5);
        assert_eq!(parse("Transfer-Encoding: chunked\r\n"), Err(HeadError::Body));
        for fields in [
            "Content-Length: -1\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 99999999999999999999999\r\n",
        ] {
            assert_eq!(parse(fields), Err(HeadError::Malformed), "{fields}");
        }
    }

    #[test]
    fn a_response_says_how_long_it_is() {
        let response = Status::NotFound.response(Status::NotFound.text());
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_bounded(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(Some((_, len))) = Head::parse(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
