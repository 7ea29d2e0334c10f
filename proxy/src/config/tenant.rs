//! A tenant: its number, its limits, its addresses, and where its consoles may be.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a tenant's consoles may do to the power of their VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsolePower {
    /// Nothing.
    #[default]
    None,
    /// Clients of `/sdk` may power on and off, reset and suspend.
    Operations,
    /// That, and a console of a VM that is off or suspended powers it on or resumes it.
    Implicit,
}

/// A tenant of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Small and stable: socket mark, index of the XDP maps. 0 is nobody's.
    pub number: u32,
    /// Sessions at once.
    pub max_sessions: u32,
    /// New sessions per second; `None`: unlimited.
    pub rate: Option<u32>,
    /// How many may come at once on top.
    pub burst: u32,
    /// Sessions of one user at once; `None`: unlimited.
    pub max_sessions_per_user: Option<u32>,
    /// Where its people come from (known to the XDP gate before a ticket is seen).
    pub sources: Vec<Cidr>,
    /// Listen addresses that are this tenant's alone.
    pub addresses: Vec<SocketAddr>,
    /// Where its consoles may be.
    pub targets: Vec<TargetRange>,
    /// Longest silence, where other than the appliance's.
    pub idle: Option<std::time::Duration>,
    /// Longest session, where other than the appliance's.
    pub session: Option<std::time::Duration>,
    /// What its consoles may do to the power of their VM, where a vCenter is behind them.
    pub console_power: ConsolePower,
}

impl Tenant {
    /// Whether a console may be at this address.
    pub fn may_reach(&self, target: SocketAddr) -> bool {
        self.targets.iter().any(|range| range.contains(target))
    }
}

/// An address range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in it. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(a)) => {
                (u32::from(net) ^ u32::from(a)).checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(a)) => {
                (u128::from(net) ^ u128::from(a)).checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("`{text}` is no address or range; write 192.0.2.0/24 or 2001:db8::/32"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(p) => p
                .parse()
                .ok()
                .filter(|p| *p <= longest)
                .ok_or_else(|| format!("`{text}`: the prefix length goes from 0 to {longest}"))?,
        };
        let network = match address {
            IpAddr::V4(a) => IpAddr::from(
                (u32::from(a) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).to_be_bytes(),
            ),
            IpAddr::V6(a) => IpAddr::from(
                (u128::from(a) & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).to_be_bytes(),
            ),
        };
        if network != address {
            return Err(format!("`{text}` has bits behind the prefix; write {network}/{prefix}"));
        }
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> String {
        range.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address range with ports: `10.0.0.0/8:902`, `[2001:db8::/32]:443-903`, or without ports for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRange {
    /// The addresses.
    pub range: Cidr,
    /// The ports.
    pub ports: RangeInclusive<u16>,
}

impl TargetRange {
    /// Whether the target lies in it.
    pub fn contains(&self, target: SocketAddr) -> bool {
        self.ports.contains(&target.port()) && self.range.contains(target.ip())
    }
}

impl FromStr for TargetRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (range, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (range, tail) =
                    rest.split_once(']').ok_or_else(|| format!("`{text}`: the bracket is not closed"))?;
                let ports = match tail {
                    "" => None,
                    tail => Some(
                        tail.strip_prefix(':')
                            .ok_or_else(|| format!("`{text}`: a colon and ports go behind the bracket"))?,
                    ),
                };
                (range, ports)
            }
            None if text.matches(':').count() == 1 => {
                text.split_once(':').map_or((text, None), |(r, p)| (r, Some(p)))
            }
            None => (text, None),
        };
        let port = |p: &str| {
            p.parse::<u16>()
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| format!("`{text}`: ports are 902 or 902-903"))
        };
        let ports = match ports {
            None => 1..=u16::MAX,
            Some(ports) => {
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let (first, last) = (port(first)?, port(last)?);
                if first > last {
                    return Err(format!("`{text}`: the first port is behind the last"));
                }
                first..=last
            }
        };
        Ok(Self { range: range.parse()?, ports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_say() {
        for (range, inside, outside) in [
            ("10.0.0.0/8:902", "10.9.8.7:902", "10.9.8.7:903"),
            ("10.0.0.0/8:902-903", "10.9.8.7:903", "11.0.0.1:903"),
            ("0.0.0.0/0", "192.0.2.1:1", "[::1]:1"),
            ("192.0.2.1:443", "192.0.2.1:443", "192.0.2.2:443"),
            ("[2001:db8::/32]:443", "[2001:db8::1]:443", "[2001:db9::1]:443"),
            ("2001:db8::/32", "[2001:db8::1]:65535", "10.0.0.1:1"),
            ("10.0.0.0/8", "[::ffff:10.1.1.1]:902", "[::ffff:11.1.1.1]:902"),
        ] {
            let parsed: TargetRange = range.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{range} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{range} {outside}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "x",
            "10.0.0.0/8:0",
            "10.0.0.0/8:9-1",
            "[::/0",
            "[::/0]443",
            "10.0.0.0/8:x",
        ] {
            assert!(text.parse::<TargetRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_is_symmetric() {
        let (a, b, c): (Cidr, Cidr, Cidr) =
            ("10.0.0.0/8".parse().unwrap(), "10.1.0.0/16".parse().unwrap(), "11.0.0.0/8".parse().unwrap());
        assert!(a.overlaps(&b) && b.overlaps(&a) && !a.overlaps(&c) && !c.overlaps(&a));
    }
}
