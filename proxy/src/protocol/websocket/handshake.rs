//! The opening handshake (RFC 6455, 4): what a request must hold, and which subprotocol is chosen.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::protocol::http::{Head, MAX_HEAD};

/// RFC 6455, 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How the console's bytes stand in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subprotocol {
    /// Binary frames; nothing was asked for.
    None,
    /// `binary`: binary frames.
    Binary,
    /// `uint8utf8`: text frames, each byte one code point.
    Uint8Utf8,
}

impl Subprotocol {
    /// Its name in `Sec-WebSocket-Protocol`.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Binary => Some("binary"),
            Self::Uint8Utf8 => Some("uint8utf8"),
        }
    }

    /// Whether its frames are text.
    pub fn is_text(self) -> bool {
        self == Self::Uint8Utf8
    }
}

/// Why a request is no WebSocket handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UpgradeError {
    /// Not GET.
    #[error("a WebSocket is opened with GET")]
    Method,
    /// No `Upgrade: websocket`.
    #[error("the request does not ask for an upgrade to websocket")]
    NoUpgrade,
    /// Another version than 13.
    #[error("the request's Sec-WebSocket-Version is not 13")]
    Version,
    /// No key, two, or one that is not 16 bytes in base64.
    #[error("the request has no good Sec-WebSocket-Key")]
    Key,
    /// Only subprotocols that are not spoken here.
    #[error("none of the subprotocols is spoken here; offer binary, uint8utf8 or none")]
    Subprotocol,
}

/// `Sec-WebSocket-Accept` for a key, unless that is none.
pub fn accept_key(key: &str) -> Option<String> {
    if STANDARD.decode(key).ok()?.len() != 16 {
        return None;
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    Some(STANDARD.encode(hash.as_ref()))
}

/// Why a response opens no WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NotAccepted(String);

/// The client's side: the length of a response that opens the WebSocket which was asked for with `key` and `binary`; `None`
/// while it is not whole.
pub fn accepted(buffer: &[u8], key: &str) -> Result<Option<usize>, NotAccepted> {
    let no = |what: &str| Err(NotAccepted(what.into()));
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let len = match response.parse(buffer) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) => return no("a response without an end"),
        Err(_) => return no("no HTTP response"),
    };
    if response.code != Some(101) {
        return no(&format!("HTTP status {}", response.code.unwrap_or(0)));
    }
    let field = |name: &str| {
        response.headers.iter().find(|f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value.trim_ascii())
    };
    let wanted = accept_key(key).unwrap_or_default();
    if field("sec-websocket-accept") != Some(wanted.as_bytes()) {
        return no("its Sec-WebSocket-Accept is wrong");
    }
    match field("sec-websocket-protocol") {
        None | Some(b"binary") => Ok(Some(len)),
        Some(_) => no("it chose a subprotocol that was not offered"),
    }
}

/// Checks a request; returns the response that switches, and the subprotocol in it. `binary` goes before `uint8utf8`;
/// `vmware-vvc`, which multiplexes channels of its own, is never chosen.
pub fn negotiate(head: &Head) -> Result<(String, Subprotocol), UpgradeError> {
    if head.method != "GET" {
        return Err(UpgradeError::Method);
    }
    if !head.upgrades_to("websocket") {
        return Err(UpgradeError::NoUpgrade);
    }
    if head.header("sec-websocket-version") != Some("13") {
        return Err(UpgradeError::Version);
    }
    let accept = head.header("sec-websocket-key").and_then(accept_key).ok_or(UpgradeError::Key)?;
    let chosen = choose(head)?;
    let line = chosen.name().map_or(String::new(), |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{line}\r\n"
    );
    Ok((response, chosen))
}

fn choose(head: &Head) -> Result<Subprotocol, UpgradeError> {
    let (mut offered, mut text) = (false, false);
    let names = head.values("sec-websocket-protocol").flat_map(|value| value.split(','));
    for name in names.map(str::trim).filter(|name| !name.is_empty()) {
        offered = true;
        match name {
            "binary" => return Ok(Subprotocol::Binary),
            "uint8utf8" => text = true,
            _ => {}
        }
    }
    match (text, offered) {
        (true, _) => Ok(Subprotocol::Uint8Utf8),
        (false, true) => Err(UpgradeError::Subprotocol),
        (false, false) => Ok(Subprotocol::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(fields: &str) -> Result<(String, Subprotocol), UpgradeError> {
        let text = format!("GET /ticket/x HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        negotiate(&Head::parse(text.as_bytes()).unwrap().unwrap().0)
    }

    const GOOD: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    #[test]
    fn the_example_of_the_rfc() {
        let (response, chosen) = ask(GOOD).unwrap();
        assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{response}");
        assert!(!response.contains("Sec-WebSocket-Protocol"));
        assert_eq!(chosen, Subprotocol::None);
    }

    #[test]
    fn subprotocols_are_chosen_in_our_order() {
        for (offered, chosen) in [
            ("Sec-WebSocket-Protocol: vmware-vvc, uint8utf8, binary\r\n", Ok(Subprotocol::Binary)),
            (
                "Sec-WebSocket-Protocol: uint8utf8\r\nSec-WebSocket-Protocol: binary\r\n",
                Ok(Subprotocol::Binary),
            ),
            ("Sec-WebSocket-Protocol: vmware-vvc, uint8utf8\r\n", Ok(Subprotocol::Uint8Utf8)),
            ("Sec-WebSocket-Protocol: vmware-vvc\r\n", Err(UpgradeError::Subprotocol)),
        ] {
            assert_eq!(ask(&format!("{GOOD}{offered}")).map(|(_, chosen)| chosen), chosen, "{offered}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (without, error) in [
            ("Upgrade: websocket\r\n", UpgradeError::NoUpgrade),
            ("Connection: Upgrade\r\n", UpgradeError::NoUpgrade),
            ("Sec-WebSocket-Version: 13\r\n", UpgradeError::Version),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", UpgradeError::Key),
        ] {
            assert_eq!(ask(&GOOD.replace(without, "")), Err(error));
        }
        assert_eq!(ask(&GOOD.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")), Err(UpgradeError::Key));
        assert_eq!(ask(&GOOD.replace(": 13", ": 8")), Err(UpgradeError::Version));
    }

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const OPENED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: binary\r\n\r\n";

    #[test]
    fn only_a_host_that_did_the_sum_is_a_websocket() {
        assert_eq!(accepted(OPENED.as_bytes(), KEY).unwrap(), Some(OPENED.len()));
        assert_eq!(accepted(&OPENED.as_bytes()[..OPENED.len() - 1], KEY).unwrap(), None);
        for (from, to) in [("s3p", "s4p"), ("101", "404"), (": binary", ": vmware-vvc"), ("HTTP", "SSH-")] {
            assert!(accepted(OPENED.replace(from, to).as_bytes(), KEY).is_err(), "{to}");
        }
        assert!(accepted(&[b"HTTP/1.1 101 x\r\nA: ".to_vec(), vec![b'a'; MAX_HEAD]].concat(), KEY).is_err());
    }
}
