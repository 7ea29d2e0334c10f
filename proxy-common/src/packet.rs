//! Reads as much of a packet as the verdict needs: Ethernet, up to two VLAN tags, IPv4 or IPv6, TCP.
//!
//! Every read is bounded by the frame, every loop by a constant, and every offset is a constant or a masked field, which
//! is what the kernel's verifier has to see. What cannot be read passes: the stack behind drops it or knows better.

use crate::map::{Address, SourceKey};

/// A frame that hands out parts of itself; the only way the reader sees bytes.
pub trait Frame {
    /// The `N` bytes from `at` on, or `None` if the frame ends before.
    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]>;
}

impl Frame for [u8] {
    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        self.get(at..)?.first_chunk()
    }
}

/// What a packet is to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first packet of a TCP connection: SYN without ACK.
    Syn,
    /// TCP, but not the first packet.
    Established,
    /// Neither IPv4 nor IPv6, or more than two VLAN tags.
    NotIp,
    /// Not TCP.
    OtherProtocol,
    /// A fragment without the TCP header.
    LaterFragment,
    /// Truncated, malformed, or more extension headers than [`MAX_EXTENSIONS`].
    Unparsable,
}

/// The first look at a frame: what it is and, for a SYN, where to find the rest.
///
/// Every field always has a value: with optional parts, the compiler keeps copies of values that are not there, which
/// costs time on every packet and is refused by the verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// What it is.
    pub kind: Kind,
    /// Where the IP header starts: 14, 18 or 22.
    pub l3: u32,
    /// Where the TCP header starts.
    pub l4: u32,
    /// Bytes of TCP header and payload, by the network header.
    pub length: u32,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// A reset may answer it: unicast on both layers, neither RST nor FIN, not fragmented.
    pub answerable: bool,
}

impl Look {
    /// What [`syn`] wants to know of a SYN, in one word: it crosses a call of the XDP program in a register.
    #[inline(always)]
    pub const fn pack(&self) -> u64 {
        self.l3 as u64
            | (self.l4 as u64) << 8
            | (self.length as u64) << 24
            | (self.v6 as u64) << 40
            | (self.answerable as u64) << 41
    }

    /// The look at a SYN that was packed; the masks are bounds for the verifier.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Look {
        Look {
            kind: Kind::Syn,
            l3: (word & 0x1f) as u32,
            l4: (word >> 8 & 0x3fff) as u32,
            length: (word >> 24 & 0xffff) as u32,
            v6: word >> 40 & 1 != 0,
            answerable: word >> 41 & 1 != 0,
        }
    }

    #[inline(always)]
    const fn other(kind: Kind) -> Look {
        Look { kind, l3: 0, l4: 0, length: 0, v6: false, answerable: false }
    }
}

/// A SYN without ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// From where.
    pub source: Address,
    /// To where.
    pub destination: Address,
    /// What counts as one source.
    pub key: SourceKey,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
    /// The sequence number.
    pub sequence: u32,
    /// Bytes after the TCP header (TCP Fast Open, or junk).
    pub payload: u32,
    /// Where the IP header starts: 14, 18 or 22.
    pub l3: u32,
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// See [`Look::answerable`].
    pub answerable: bool,
}

/// Extension headers of an IPv6 packet that are walked; a longer chain is unparsable.
pub const MAX_EXTENSIONS: usize = 6;

const ETHERNET: usize = 14;
const VLAN: usize = 4;
const TCP: usize = 20;
const TCP_PROTOCOL: u8 = 6;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Looks at a frame that starts with its Ethernet header.
#[inline(always)]
pub fn look<F: Frame + ?Sized>(frame: &F) -> Look {
    let Some(ethernet) = frame.bytes::<ETHERNET>(0) else { return Look::other(Kind::Unparsable) };
    let unicast = (ethernet[0] | ethernet[6]) & 1 == 0;
    let mut ether_type = be16([ethernet[12], ethernet[13]]);
    if !is_vlan(ether_type) {
        return network::<F, ETHERNET>(frame, ether_type, unicast);
    }
    let Some(tag) = frame.bytes::<VLAN>(ETHERNET) else { return Look::other(Kind::Unparsable) };
    ether_type = be16([tag[2], tag[3]]);
    if !is_vlan(ether_type) {
        return network::<F, { ETHERNET + VLAN }>(frame, ether_type, unicast);
    }
    let Some(tag) = frame.bytes::<VLAN>(ETHERNET + VLAN) else { return Look::other(Kind::Unparsable) };
    network::<F, { ETHERNET + 2 * VLAN }>(frame, be16([tag[2], tag[3]]), unicast)
}

/// Reads the SYN that `look` has found in the same frame.
#[inline(always)]
pub fn syn<F: Frame + ?Sized>(frame: &F, look: &Look) -> Option<Syn> {
    if look.kind != Kind::Syn {
        return None;
    }
    let l3 = look.l3 as usize;
    let tcp = frame.bytes::<TCP>(look.l4 as usize)?;
    let (source, destination, key) = if look.v6 {
        let ip = frame.bytes::<40>(l3)?;
        let source = sixteen(ip, 8);
        (Address::new(source), Address::new(sixteen(ip, 24)), SourceKey::v6(source))
    } else {
        let ip = frame.bytes::<20>(l3)?;
        let source = [ip[12], ip[13], ip[14], ip[15]];
        (Address::v4(source), Address::v4([ip[16], ip[17], ip[18], ip[19]]), SourceKey::v4(source))
    };
    Some(Syn {
        source,
        destination,
        key,
        source_port: be16([tcp[0], tcp[1]]),
        destination_port: be16([tcp[2], tcp[3]]),
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        payload: look.length.wrapping_sub(u32::from(tcp[12] >> 4) * 4),
        l3: look.l3,
        v6: look.v6,
        answerable: look.answerable,
    })
}

#[inline(always)]
fn be16(bytes: [u8; 2]) -> u16 {
    u16::from_be_bytes(bytes)
}

#[inline(always)]
fn sixteen(ip: &[u8; 40], at: usize) -> [u8; 16] {
    core::array::from_fn(|i| ip[at + i])
}

/// 802.1Q and 802.1ad.
#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    ether_type == 0x8100 || ether_type == 0x88a8
}

/// The header at `L3`, a constant so that the verifier and the processor both see fixed offsets.
#[inline(always)]
fn network<F: Frame + ?Sized, const L3: usize>(frame: &F, ether_type: u16, unicast: bool) -> Look {
    match ether_type {
        0x0800 => ipv4::<F, L3>(frame, unicast),
        0x86dd => ipv6::<F, L3>(frame, unicast),
        _ => Look::other(Kind::NotIp),
    }
}

/// RFC 791, 3.1.
#[inline(always)]
fn ipv4<F: Frame + ?Sized, const L3: usize>(frame: &F, unicast: bool) -> Look {
    let Some(ip) = frame.bytes::<20>(L3) else { return Look::other(Kind::Unparsable) };
    let header = ((ip[0] & 0x0f) as usize) * 4;
    if ip[0] >> 4 != 4 || header < 20 {
        return Look::other(Kind::Unparsable);
    }
    if ip[9] != TCP_PROTOCOL {
        return Look::other(Kind::OtherProtocol);
    }
    let fragment = be16([ip[6], ip[7]]);
    if fragment & 0x1fff != 0 {
        return Look::other(Kind::LaterFragment);
    }
    let length = u32::from(be16([ip[2], ip[3]])).wrapping_sub(header as u32);
    segment(frame, Chain { end: L3 + header, whole: fragment & 0x2000 == 0 }, length, L3, false, unicast)
}

/// RFC 8200, 3 and 4.
#[inline(always)]
fn ipv6<F: Frame + ?Sized, const L3: usize>(frame: &F, unicast: bool) -> Look {
    let Some(ip) = frame.bytes::<40>(L3) else { return Look::other(Kind::Unparsable) };
    // The stack takes no multicast source either (RFC 4291, 2.7).
    if ip[0] >> 4 != 6 || ip[8] == 0xff {
        return Look::other(Kind::Unparsable);
    }
    let chain = match extensions(frame, L3 + 40, ip[6]) {
        Ok(chain) => chain,
        Err(kind) => return Look::other(kind),
    };
    let length = u32::from(be16([ip[4], ip[5]])).wrapping_sub((chain.end - L3 - 40) as u32);
    segment(frame, chain, length, L3, true, unicast)
}

/// Where the extension headers end.
struct Chain {
    end: usize,
    /// Not fragmented.
    whole: bool,
}

/// Walks from the first header after the fixed one to TCP.
#[inline(always)]
fn extensions<F: Frame + ?Sized>(frame: &F, start: usize, first: u8) -> Result<Chain, Kind> {
    let (mut at, mut next, mut whole) = (start, first, true);
    for _ in 0..MAX_EXTENSIONS {
        if next == TCP_PROTOCOL {
            break;
        }
        if !is_extension(next) {
            return Err(Kind::OtherProtocol);
        }
        let Some(header) = frame.bytes::<8>(at) else { return Err(Kind::Unparsable) };
        at += match next {
            FRAGMENT => {
                let fragment = be16([header[2], header[3]]);
                if fragment & 0xfff8 != 0 {
                    return Err(Kind::LaterFragment);
                }
                whole &= fragment & 1 == 0;
                8
            }
            // RFC 4302, 2.2: in words of four bytes, less two.
            AUTHENTICATION => (header[1] as usize + 2) * 4,
            _ => (header[1] as usize + 1) * 8,
        };
        next = header[0];
    }
    match next {
        TCP_PROTOCOL => Ok(Chain { end: at, whole }),
        _ if is_extension(next) => Err(Kind::Unparsable),
        _ => Err(Kind::OtherProtocol),
    }
}

/// Hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, shim6.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | FRAGMENT | AUTHENTICATION | 60 | 135 | 139 | 140)
}

/// RFC 9293, 3.1. `length` is what the network header leaves for TCP.
#[inline(always)]
fn segment<F: Frame + ?Sized>(
    frame: &F,
    chain: Chain,
    length: u32,
    l3: usize,
    v6: bool,
    unicast: bool,
) -> Look {
    let Some(tcp) = frame.bytes::<TCP>(chain.end) else { return Look::other(Kind::Unparsable) };
    let flags = tcp[13];
    if flags & (SYN | ACK) != SYN {
        return Look::other(Kind::Established);
    }
    let header = u32::from(tcp[12] >> 4) * 4;
    // `length` wraps to something huge when the network header promises less than itself.
    if header < TCP as u32 || length < header || length > 0xffff {
        return Look::other(Kind::Unparsable);
    }
    let answerable = unicast && chain.whole && flags & (FIN | RST) == 0;
    Look { kind: Kind::Syn, l3: l3 as u32, l4: chain.end as u32, length, v6, answerable }
}
