//! PROXY protocol v1 and v2 (haproxy.org, proxy-protocol.txt), read by the `ppp` crate from configured load balancers only.

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};

use super::Refused;
use crate::wire::Wire;

/// Longest header taken: v1 has at most 107 bytes, v2 16 and its addresses and TLVs.
const MAX_HEADER: usize = 2048;

/// What a buffer holds so far.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Incomplete,
    Invalid,
    /// Length of the header, and the client it names (`None`: the balancer itself, a health check).
    Header(usize, Option<SocketAddr>),
}

/// Reads the header: the client it names, and the bytes behind it.
pub(super) async fn read(mut wire: Wire) -> Result<(Option<SocketAddr>, Wire, Vec<u8>), Refused> {
    let mut buffer = Vec::new();
    loop {
        match parse(&buffer) {
            Parsed::Header(len, source) => {
                buffer.drain(..len);
                return Ok((source, wire, buffer));
            }
            Parsed::Incomplete if buffer.len() < MAX_HEADER => {}
            _ => {
                return Err(Refused::new(
                    "proxy_header",
                    "the load balancer sent no PROXY header; switch `send-proxy` on there, or take its address out of `proxy_protocol.from`",
                ));
            }
        }
        let read = wire.read_into(&mut buffer, MAX_HEADER).await;
        if read.map_err(|e| Refused::new("client_closed", e))? == 0 {
            return Err(Refused::new("client_closed", "closed before the PROXY header"));
        }
    }
}

/// Whether a header is all there, or what is there can be none. The parser takes some beginnings of a v1 line for wrong ones.
fn is_whole(buffer: &[u8]) -> bool {
    let begins = |with: &[u8]| buffer.iter().zip(with).all(|(a, b)| a == b);
    if begins(v2::PROTOCOL_PREFIX) {
        let len = buffer.get(14..16).map(|len| 16 + usize::from(u16::from_be_bytes([len[0], len[1]])));
        len.is_some_and(|len| buffer.len() >= len)
    } else if begins(b"PROXY ") {
        // The longest v1 header has 107 bytes.
        buffer.len() >= 107 || buffer.windows(2).any(|end| end == b"\r\n")
    } else {
        true
    }
}

fn parse(buffer: &[u8]) -> Parsed {
    if !is_whole(buffer) {
        return Parsed::Incomplete;
    }
    match HeaderResult::parse(buffer) {
        HeaderResult::V1(Ok(header)) => {
            let source = match header.addresses {
                v1::Addresses::Tcp4(a) => Some((a.source_address, a.source_port).into()),
                v1::Addresses::Tcp6(a) => Some((a.source_address, a.source_port).into()),
                v1::Addresses::Unknown => None,
            };
            Parsed::Header(header.header.len(), source)
        }
        HeaderResult::V2(Ok(header)) => {
            let source = match (header.command, header.addresses) {
                (v2::Command::Proxy, v2::Addresses::IPv4(a)) => {
                    Some((a.source_address, a.source_port).into())
                }
                (v2::Command::Proxy, v2::Addresses::IPv6(a)) => {
                    Some((a.source_address, a.source_port).into())
                }
                _ => None,
            };
            Parsed::Header(header.len(), source)
        }
        _ => Parsed::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2_header() -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend([192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb]);
        header
    }

    #[test]
    fn both_versions_name_the_client_and_leave_the_rest() {
        let v1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n".to_vec();
        for header in [v1, v2_header()] {
            let whole = [&header[..], b"\x16\x03\x01"].concat();
            assert_eq!(parse(&whole), Parsed::Header(header.len(), Some("192.0.2.7:4660".parse().unwrap())));
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Parsed::Incomplete, "{cut}");
            }
        }
        let v1 = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n";
        assert_eq!(parse(v1), Parsed::Header(v1.len(), Some("[2001:db8::1]:1".parse().unwrap())));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Parsed::Header(15, None));
    }

    #[test]
    fn what_is_no_header_is_invalid() {
        for bytes in
            [&b"\x16\x03\x01\x02\0\x01"[..], b"GET / HTTP/1.1\r\n", b"PROXY TCP4 x y 1 2\r\n", b"USER x\r\n"]
        {
            assert_eq!(parse(bytes), Parsed::Invalid, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_within_themselves(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Parsed::Header(len, _) = parse(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}
