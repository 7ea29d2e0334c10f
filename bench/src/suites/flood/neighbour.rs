//! Who has this address? Asked of the appliance's kernel in whole frames (packet(7)): ARP (RFC 826) and IPv6 neighbour
//! solicitations (RFC 4861, 4.3).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, SockaddrLike as _, bind};
use socket2::{Domain, Protocol, Socket, Type};

use crate::load::flood::{folded, sum};

const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERNET: usize = 14;
/// ARP's operations.
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Types of ICMPv6.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;

/// What is asked for in frames.
#[derive(Clone, Copy)]
pub enum Protocols {
    /// ARP.
    Arp = libc::ETH_P_ARP as isize,
    /// IPv6.
    Ipv6 = libc::ETH_P_IPV6 as isize,
}

/// A socket for whole frames of one protocol through one interface of the calling thread's namespace, and the interface's address.
pub fn frames(interface: &str, protocol: Protocols) -> Result<(Socket, [u8; 6])> {
    let big_endian = (protocol as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(big_endian))))?;
    let link = link(interface)?;
    // An address that names no protocol leaves the socket its own (packet_bind in net/packet/af_packet.c).
    bind(socket.as_raw_fd(), &link).with_context(|| format!("binding to {interface}"))?;
    let address = link.addr().with_context(|| format!("{interface} has no address of its own"))?;
    Ok((socket, address))
}

fn link(interface: &str) -> Result<LinkAddr> {
    let mut all = getifaddrs()?.filter(|a| a.interface_name == interface).filter_map(|a| a.address);
    let found = all.find_map(|address| address.as_link_addr().copied());
    found.filter(|link| link.family().is_some()).with_context(|| format!("no interface {interface}"))
}

/// `from`, at `station`, asks everybody who has `host`.
pub fn arp_request(station: [u8; 6], from: Ipv4Addr, host: Ipv4Addr) -> Vec<u8> {
    let mut out = ethernet(BROADCAST, station, Protocols::Arp);
    out.extend([0, 1, 8, 0, 6, 4, 0, REQUEST]);
    out.extend(station);
    out.extend(from.octets());
    out.extend([0; 6]);
    out.extend(host.octets());
    out
}

/// Whether a frame says where `host` is.
pub fn is_arp_reply(frame: &[u8], host: Ipv4Addr) -> bool {
    frame.len() >= 42 && frame[20..22] == [0, REPLY] && frame[28..32] == host.octets()
}

/// `from`, at `station`, asks the group of `host` where it is.
pub fn solicitation(station: [u8; 6], from: Ipv6Addr, host: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = host.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    // RFC 2464, 7.
    let mut out = ethernet([0x33, 0x33, 0xff, a, b, c], station, Protocols::Ipv6);
    // No router has forwarded it: the hop limit is whole (RFC 4861, 7.1.1).
    out.extend([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    out.extend(from.octets());
    out.extend(group.octets());
    out.extend([SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(host.octets());
    // Source link-layer address, in units of eight bytes.
    out.extend([1, 1]);
    out.extend(station);
    let checksum = folded(icmpv6_sum(&out)).to_be_bytes();
    out[ETHERNET + 42..ETHERNET + 44].copy_from_slice(&checksum);
    out
}

/// Whether a frame tells `to` where `host` is.
pub fn is_advertisement(frame: &[u8], to: Ipv6Addr, host: Ipv6Addr) -> bool {
    let Some(packet) = frame.get(ETHERNET..) else { return false };
    packet.len() >= 64
        && packet[6] == ICMPV6
        && packet[24..40] == to.octets()
        && packet[40] == ADVERTISEMENT
        && packet[48..64] == host.octets()
}

fn ethernet(to: [u8; 6], from: [u8; 6], protocol: Protocols) -> Vec<u8> {
    [&to[..], &from, &(protocol as u16).to_be_bytes()].concat()
}

/// Of addresses, length, next header and message (RFC 8200, 8.1).
fn icmpv6_sum(frame: &[u8]) -> u32 {
    let packet = &frame[ETHERNET..];
    sum(&packet[8..]) + (packet.len() - 40) as u32 + u32::from(ICMPV6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATION: [u8; 6] = [2, 0, 0, 0xab, 0xcd, 0xef];

    #[test]
    fn a_solicitation_goes_to_the_hosts_group_with_a_right_checksum() {
        let (from, host) = ("fd77::1:2".parse().unwrap(), "fd77::a1b2:c3d4".parse().unwrap());
        let frame = solicitation(STATION, from, host);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0xb2, 0xc3, 0xd4]);
        assert_eq!(frame[38..54], "ff02::1:ffb2:c3d4".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(usize::from(frame[19]), frame.len() - 54);
        assert_eq!(folded(icmpv6_sum(&frame)), 0);
        assert!(!is_advertisement(&frame, from, host), "a question is no answer");
    }

    #[test]
    fn replies_count_when_they_are_about_the_host() {
        let (from, host) = (Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 0, 1));
        let mut frame = arp_request(STATION, from, host);
        assert_eq!(frame.len(), 42);
        assert!(!is_arp_reply(&frame, from), "a question is no answer");
        frame[21] = REPLY;
        assert!(
            is_arp_reply(&frame, from) && !is_arp_reply(&frame, host) && !is_arp_reply(&frame[..41], from)
        );
    }
}
