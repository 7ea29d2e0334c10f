//! The answer to a shed SYN under `on_limit = "reset"`: RST and ACK of what the SYN offered (RFC 9293, 3.10.7.1).
//!
//! A fresh header each, without options or extension headers, so the answer's checksums are sums of a few known fields.

use crate::packet::Syn;

/// IPv4 header and TCP header.
pub const V4: usize = 40;
/// IPv6 header and TCP header.
pub const V6: usize = 60;

const TCP: usize = 20;
const RST_ACK: u8 = 0x14;
const HOPS: u8 = 64;

/// The answer to an IPv4 SYN, from the IP header on.
#[inline(always)]
pub fn v4(syn: &Syn) -> [u8; V4] {
    let (from, to) = (syn.destination.low(), syn.source.low());
    let mut out = [0; V4];
    out[0] = 0x45;
    out[3] = V4 as u8;
    out[6] = 0x40; // don't fragment
    out[8] = HOPS;
    out[9] = 6;
    let ip = 0x4500 + V4 as u32 + 0x4000 + ((HOPS as u32) << 8) + 6 + words4(from) + words4(to);
    [out[10], out[11]] = folded(ip);
    [out[12], out[13], out[14], out[15]] = from;
    [out[16], out[17], out[18], out[19]] = to;
    let tcp = tcp(syn, words4(from) + words4(to));
    let mut i = 0;
    while i < TCP {
        out[20 + i] = tcp[i];
        i += 1;
    }
    out
}

/// The answer to an IPv6 SYN, from the IP header on.
#[inline(always)]
pub fn v6(syn: &Syn) -> [u8; V6] {
    let (from, to) = (&syn.destination.0, &syn.source.0);
    let mut out = [0; V6];
    out[0] = 0x60;
    out[5] = TCP as u8;
    out[6] = 6;
    out[7] = HOPS;
    let tcp = tcp(syn, words16(from) + words16(to));
    let mut i = 0;
    while i < 16 {
        out[8 + i] = from[i];
        out[24 + i] = to[i];
        i += 1;
    }
    let mut i = 0;
    while i < TCP {
        out[40 + i] = tcp[i];
        i += 1;
    }
    out
}

/// The TCP header; `addresses` is the sum of both addresses' words for the pseudo-header (RFC 9293, 3.1).
#[inline(always)]
fn tcp(syn: &Syn, addresses: u32) -> [u8; TCP] {
    // The SYN itself takes one sequence number, its payload the rest.
    let ack = syn.sequence.wrapping_add(1).wrapping_add(syn.payload);
    let offset_flags = [0x50, RST_ACK];
    let sum = addresses
        + 6
        + TCP as u32
        + u32::from(syn.destination_port)
        + u32::from(syn.source_port)
        + (ack >> 16)
        + (ack & 0xffff)
        + u32::from(u16::from_be_bytes(offset_flags));
    let mut out = [0; TCP];
    [out[0], out[1]] = syn.destination_port.to_be_bytes();
    [out[2], out[3]] = syn.source_port.to_be_bytes();
    [out[8], out[9], out[10], out[11]] = ack.to_be_bytes();
    [out[12], out[13]] = offset_flags;
    [out[16], out[17]] = folded(sum);
    out
}

#[inline(always)]
fn words4(a: [u8; 4]) -> u32 {
    u32::from(u16::from_be_bytes([a[0], a[1]])) + u32::from(u16::from_be_bytes([a[2], a[3]]))
}

#[inline(always)]
fn words16(a: &[u8; 16]) -> u32 {
    words4([a[0], a[1], a[2], a[3]])
        + words4([a[4], a[5], a[6], a[7]])
        + words4([a[8], a[9], a[10], a[11]])
        + words4([a[12], a[13], a[14], a[15]])
}

/// The Internet checksum of a sum of words (RFC 1071); twenty words fit the upper half twice over.
#[inline(always)]
fn folded(sum: u32) -> [u8; 2] {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    (!(twice as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::map::{Address, SourceKey};

    /// The checksum over bytes as RFC 1071 words it: zero if the bytes hold a right one.
    fn checksum(parts: &[&[u8]]) -> u16 {
        let mut sum = 0_u64;
        for part in parts {
            for pair in part.chunks(2) {
                sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
            }
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn syn(
        source: Address,
        destination: Address,
        v6: bool,
        ports: (u16, u16),
        seq: u32,
        payload: u32,
    ) -> Syn {
        Syn {
            source,
            destination,
            key: SourceKey(0),
            source_port: ports.0,
            destination_port: ports.1,
            sequence: seq,
            payload,
            l3: 14,
            v6,
            answerable: true,
        }
    }

    proptest! {
        #[test]
        fn v4_is_right(from: [u8; 4], to: [u8; 4], ports: (u16, u16), seq: u32, payload in 0_u32..1500) {
            let out = v4(&syn(Address::v4(from), Address::v4(to), false, ports, seq, payload));
            prop_assert_eq!(checksum(&[&out[..20]]), 0);
            prop_assert_eq!(checksum(&[&out[12..20], &[0, 6, 0, 20], &out[20..]]), 0);
            prop_assert_eq!((&out[12..16], &out[16..20]), (&to[..], &from[..]));
            prop_assert_eq!(&out[28..32], &(seq.wrapping_add(1 + payload)).to_be_bytes()[..]);
            prop_assert_eq!(&out[20..24], &[ports.1.to_be_bytes(), ports.0.to_be_bytes()].concat()[..]);
            prop_assert_eq!((&out[24..28], out[33]), (&[0; 4][..], 0x14));
        }

        #[test]
        fn v6_is_right(from: [u8; 16], to: [u8; 16], ports: (u16, u16), seq: u32, payload in 0_u32..1500) {
            let out = v6(&syn(Address(from), Address(to), true, ports, seq, payload));
            prop_assert_eq!(checksum(&[&out[8..40], &[0, 0, 0, 20, 0, 0, 0, 6], &out[40..]]), 0);
            prop_assert_eq!((&out[8..24], &out[24..40]), (&to[..], &from[..]));
            prop_assert_eq!((out[0], &out[4..8]), (0x60, &[0, 20, 6, 64][..]));
            prop_assert_eq!(&out[48..52], &(seq.wrapping_add(1 + payload)).to_be_bytes()[..]);
        }
    }
}
