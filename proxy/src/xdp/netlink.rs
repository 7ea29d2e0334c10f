//! Asks the kernel what XDP program an interface has: RTM_GETLINK and its IFLA_XDP (rtnetlink(7), linux/if_link.h).

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Where the kernel runs the program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// In the driver.
    Native,
    /// In the network core.
    Generic,
    /// On the card, or in several places at once.
    Other,
}

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
/// Bits of an attribute's type that say how it is encoded.
const TYPE: u16 = 0x3fff;
const HEADER: usize = 16;
const LINK_MESSAGE: usize = 16;

/// The mode and the program's id, `None` if the interface has no program.
///
/// # Errors
/// `ErrorKind::NotFound` if there is no such interface; else what the socket said.
pub fn xdp_of(interface: u32) -> io::Result<Option<(Attached, u32)>> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), &request(interface), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; 65_536];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    answer(&buffer[..length])
}

fn request(interface: u32) -> [u8; HEADER + LINK_MESSAGE] {
    let mut out = [0; HEADER + LINK_MESSAGE];
    out[0..4].copy_from_slice(&((HEADER + LINK_MESSAGE) as u32).to_ne_bytes());
    out[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    out[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    out[HEADER + 4..HEADER + 8].copy_from_slice(&interface.to_ne_bytes());
    out
}

fn answer(message: &[u8]) -> io::Result<Option<(Attached, u32)>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "short answer of rtnetlink");
    let kind = message.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(short)?;
    if kind != RTM_NEWLINK {
        let code = message.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
        return Err(match code {
            Some(code) if code == -libc::ENODEV => io::ErrorKind::NotFound.into(),
            Some(code) => io::Error::from_raw_os_error(-code),
            None => short(),
        });
    }
    let attributes = message.get(HEADER + LINK_MESSAGE..).ok_or_else(short)?;
    let Some(xdp) = find(attributes, IFLA_XDP) else { return Ok(None) };
    let id = find(xdp, IFLA_XDP_PROG_ID).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    Ok(match (find(xdp, IFLA_XDP_ATTACHED), id) {
        (None | Some([0]), _) => None,
        (Some([1]), id) => Some((Attached::Native, id.unwrap_or(0))),
        (Some([2]), id) => Some((Attached::Generic, id.unwrap_or(0))),
        (Some(_), id) => Some((Attached::Other, id.unwrap_or(0))),
    })
}

/// The value of an attribute among attributes.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?) & TYPE;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_answers() {
        // Nothing is attached to it in an ordinary namespace; what matters is that the kernel's answer is read.
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        assert!(xdp_of(index).is_ok());
    }

    #[test]
    fn an_interface_that_is_not_there() {
        assert_eq!(xdp_of(0x7fff_ffff).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn malformed_attributes_end_the_search() {
        assert_eq!(find(&[0, 0, 43, 0], 43), None);
        assert_eq!(find(&[200, 0, 43, 0, 1], 43), None);
        assert_eq!(find(&[5, 0, 2, 0, 9, 0, 0, 0, 5, 0, 43, 0, 7], 43), Some(&[7][..]));
        assert!(answer(&[0; 3]).is_err());
    }
}
