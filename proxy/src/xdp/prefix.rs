//! Address prefixes as a configuration writes them.

use std::{fmt, net::IpAddr, str::FromStr};

use mksgate_common::map::Address;
use serde::{Deserialize, Deserializer};

/// `192.0.2.0/24`, `2001:db8::/48`, or a lone address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The network's address; bits behind the prefix are zero.
    pub address: IpAddr,
    /// Bits that count: up to 32, or 128.
    pub length: u8,
}

/// Why a text is no prefix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PrefixError {
    /// Not an address.
    #[error("{0:?} is not an address or a prefix such as 192.0.2.0/24")]
    Address(String),
    /// The length is not a number or too large.
    #[error("{0:?}: the length after the slash is not 0 to {1}")]
    Length(String, u8),
    /// Bits behind the prefix are set: likely a slip, so it is not repaired silently.
    #[error("{0:?} has bits set behind its prefix; did you mean {1}?")]
    HostBits(String, Prefix),
}

impl Prefix {
    /// The prefix of that length around an address; a length too large is cut to the whole address.
    pub fn around(address: IpAddr, length: u8) -> Prefix {
        match address {
            IpAddr::V4(v4) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Prefix { address: IpAddr::V4((v4.to_bits() & mask).into()), length }
            }
            IpAddr::V6(v6) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Prefix { address: IpAddr::V6((v6.to_bits() & mask).into()), length }
            }
        }
    }

    /// Whether the address lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Prefix::around(address, self.length) == *self
    }

    /// Length and address among all addresses, IPv4 mapped into IPv6, as `PREFIXES` holds them.
    pub(crate) fn mapped(&self) -> (u32, Address) {
        match self.address {
            IpAddr::V4(_) => (96 + u32::from(self.length), mapped(self.address)),
            IpAddr::V6(_) => (self.length.into(), mapped(self.address)),
        }
    }
}

/// An address as the program holds it.
pub(crate) fn mapped(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => Address::v4(v4.octets()),
        IpAddr::V6(v6) => Address(v6.octets()),
    }
}

/// The address that [`mapped`] has made this of.
pub(crate) fn unmapped(address: Address) -> IpAddr {
    IpAddr::from(address.0).to_canonical()
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr = address.trim().parse().map_err(|_| PrefixError::Address(text.into()))?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => whole,
            Some(length) => match length.trim().parse() {
                Ok(length) if length <= whole => length,
                _ => return Err(PrefixError::Length(text.into(), whole)),
            },
        };
        let prefix = Prefix::around(address, length);
        if prefix.address != address {
            return Err(PrefixError::HostBits(text.into(), prefix));
        }
        Ok(prefix)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Prefix, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        for text in ["192.0.2.0/24", "0.0.0.0/0", "::/0", "2001:db8::/48", "192.0.2.1/32"] {
            assert_eq!(text.parse::<Prefix>().map(|p| p.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("2001:db8::1".parse::<Prefix>().map(|p| p.length), Ok(128));
    }

    #[test]
    fn refuses_with_the_reason() {
        let refused = |text: &str| text.parse::<Prefix>().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused("192.0.2.1/24").contains("did you mean 192.0.2.0/24?"));
        assert!(refused("192.0.2.0/33").contains("0 to 32"));
        assert!(refused("::/129").contains("0 to 128"));
        assert!(refused("acme/8").contains("not an address"));
        assert!(refused("10.0.0.0/").contains("length"));
    }

    #[test]
    fn families_are_kept_apart() {
        let all: Prefix = "::/0".parse().unwrap();
        assert!(!all.contains("192.0.2.1".parse().unwrap()));
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        let four: Prefix = "192.0.2.0/24".parse().unwrap();
        assert!(
            four.contains("192.0.2.200".parse().unwrap()) && !four.contains("192.0.3.0".parse().unwrap())
        );
    }
}
