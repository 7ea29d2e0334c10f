//! This host's addresses and interfaces, as far as the gate wants to know them.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrLike as _};

/// Every address of every interface, with the interface's name.
pub fn addresses() -> io::Result<Vec<(String, IpAddr)>> {
    let found = getifaddrs()?.filter_map(|entry| {
        let address = entry.address?;
        let ip = match address.family()? {
            nix::sys::socket::AddressFamily::Inet => IpAddr::V4(address.as_sockaddr_in()?.ip()),
            nix::sys::socket::AddressFamily::Inet6 => IpAddr::V6(address.as_sockaddr_in6()?.ip()),
            _ => return None,
        };
        Some((entry.interface_name, ip))
    });
    Ok(found.collect())
}

/// Interfaces that packets to these listeners come in by: those that carry a listener's address and, for an unspecified
/// one, those of the default routes. Never the loopback interface: what comes from this host is no flood, and other
/// services' tests live there.
pub fn interfaces_for(listen: &[SocketAddr]) -> io::Result<Vec<String>> {
    let mut names = BTreeSet::new();
    let addresses = addresses()?;
    for listener in listen {
        if listener.ip().is_unspecified() {
            names.extend(default_routes());
        } else {
            names.extend(
                addresses
                    .iter()
                    .filter(|(_, ip)| *ip == listener.ip() && !ip.is_loopback())
                    .map(|(name, _)| name.clone()),
            );
        }
    }
    Ok(names.into_iter().collect())
}

/// Interfaces of the default routes of both families.
fn default_routes() -> Vec<String> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000" && fields.nth(5)? == "00000000").then(|| name.to_owned())
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let name = *fields.get(9)?;
        let default = fields[0].bytes().all(|b| b == b'0') && fields[1] == "00";
        // The kernel's own "unreachable" default is on the loopback interface.
        (default && name != "lo").then(|| name.to_owned())
    });
    v4.chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_never_chosen() {
        assert!(interfaces_for(&["127.0.0.1:443".parse().unwrap()]).unwrap().is_empty());
        assert!(interfaces_for(&["192.0.2.77:443".parse().unwrap()]).unwrap().is_empty());
    }
}
