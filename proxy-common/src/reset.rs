//! The answer to a shed SYN under `on_limit = "reset"`: RST and ACK of what the SYN offered (RFC 9293, 3.10.7.1).
//!
//! A fresh header each, without options or extension headers, so the answer's checksums are sums of a few known fields.

use crate::packet::Syn;

/// IPv4 header and TCP header, in words of four bytes.
pub const V4: usize = 10;
/// IPv6 header and TCP header, in words of four bytes.
pub const V6: usize = 15;

const TCP: u32 = 20;
const TCP_PROTOCOL: u8 = 6;
const OFFSET_RST_ACK: u32 = 0x5014_0000;
const HOPS: u8 = 64;

/// The answer to an IPv4 SYN, from the IP header on: words in memory order.
#[inline(always)]
pub fn v4(syn: &Syn) -> [u32; V4] {
    let (from, to) = (syn.destination.words()[3], syn.source.words()[3]);
    let addresses = from as u64 + to as u64;
    // Version, header length and total length; "don't fragment".
    let (length, fragment) = ((0x4500_0000 + V4 as u32 * 4).to_be(), 0x4000_u32.to_be());
    let hops = |sum: [u8; 2]| u32::from_ne_bytes([HOPS, TCP_PROTOCOL, sum[0], sum[1]]);
    let sum = folded(addresses + length as u64 + fragment as u64 + hops([0; 2]) as u64);
    let tcp = tcp(syn, addresses);
    [length, fragment, hops(sum), from, to, tcp[0], tcp[1], tcp[2], tcp[3], tcp[4]]
}

/// The answer to an IPv6 SYN, from the IP header on: words in memory order.
#[inline(always)]
pub fn v6(syn: &Syn) -> [u32; V6] {
    let (f, t) = (syn.destination.words(), syn.source.words());
    let mut addresses = 0;
    let mut i = 0;
    while i < 4 {
        addresses += f[i] as u64 + t[i] as u64;
        i += 1;
    }
    let tcp = tcp(syn, addresses);
    let length = u32::from_ne_bytes([0, TCP as u8, TCP_PROTOCOL, HOPS]);
    [
        0x6000_0000_u32.to_be(),
        length,
        f[0],
        f[1],
        f[2],
        f[3],
        t[0],
        t[1],
        t[2],
        t[3],
        tcp[0],
        tcp[1],
        tcp[2],
        tcp[3],
        tcp[4],
    ]
}

/// The TCP header; `addresses` is the sum of both addresses' words for the pseudo-header (RFC 9293, 3.1).
#[inline(always)]
fn tcp(syn: &Syn, addresses: u64) -> [u32; 5] {
    let ports = ((syn.destination_port as u32) << 16 | syn.source_port as u32).to_be();
    // The SYN itself takes one sequence number, its payload the rest.
    let ack = syn.sequence.wrapping_add(1).wrapping_add(syn.payload).to_be();
    let offset_flags = OFFSET_RST_ACK.to_be();
    let pseudo = (TCP_PROTOCOL as u32 + TCP).to_be();
    let [a, b] = folded(addresses + pseudo as u64 + ports as u64 + ack as u64 + offset_flags as u64);
    [ports, 0, ack, offset_flags, u32::from_ne_bytes([a, b, 0, 0])]
}

/// The Internet checksum of a sum of words of four bytes in memory order, whatever that is (RFC 1071, 2(B)); of thirteen at
/// the most.
#[inline(always)]
fn folded(sum: u64) -> [u8; 2] {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum as u16)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::vec::Vec;

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

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
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
            let out = bytes(&v4(&syn(Address::v4(from), Address::v4(to), false, ports, seq, payload)));
            prop_assert_eq!(checksum(&[&out[..20]]), 0);
            prop_assert_eq!(checksum(&[&out[12..20], &[0, 6, 0, 20], &out[20..]]), 0);
            prop_assert_eq!((&out[12..16], &out[16..20]), (&to[..], &from[..]));
            prop_assert_eq!(&out[28..32], &(seq.wrapping_add(1 + payload)).to_be_bytes()[..]);
            prop_assert_eq!(&out[20..24], &[ports.1.to_be_bytes(), ports.0.to_be_bytes()].concat()[..]);
            prop_assert_eq!((&out[24..28], out[33]), (&[0; 4][..], 0x14));
        }

        #[test]
        fn v6_is_right(from: [u8; 16], to: [u8; 16], ports: (u16, u16), seq: u32, payload in 0_u32..1500) {
            let out = bytes(&v6(&syn(Address::new(from), Address::new(to), true, ports, seq, payload)));
            prop_assert_eq!(checksum(&[&out[8..40], &[0, 0, 0, 20, 0, 0, 0, 6], &out[40..]]), 0);
            prop_assert_eq!((&out[8..24], &out[24..40]), (&to[..], &from[..]));
            prop_assert_eq!((out[0], &out[4..8]), (0x60, &[0, 20, 6, 64][..]));
            prop_assert_eq!(&out[48..52], &(seq.wrapping_add(1 + payload)).to_be_bytes()[..]);
        }
    }
}
