//! Addresses and ranges as the program holds them: all in one space, IPv4 mapped into IPv6.

use std::net::IpAddr;

use mksgate_common::map::Address;

use crate::config::Cidr;

/// An address as the program holds it.
pub(crate) fn mapped(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::v4(v4.octets()),
        IpAddr::V6(v6) => Address::new(v6.octets()),
    }
}

/// The address that [`mapped`] has made this of.
pub(crate) fn unmapped(address: Address) -> IpAddr {
    IpAddr::from(address.bytes()).to_canonical()
}

/// Length and address of a range, as `PREFIXES` holds them.
pub(crate) fn mapped_range(range: &Cidr) -> (u32, Address) {
    let around = if range.address().is_ipv4() { 96 } else { 0 };
    (around + u32::from(range.prefix()), mapped(range.address()))
}
