//! What the gate is told to protect, and the map contents that follow from it. Pure: no map is touched here.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use mksgate_common::{
    bucket::Rate,
    map::{Address, BALANCER, Destination, Globals, PORT_WORDS, PORTS_PER_WORD, Tenant},
};
use serde::{Deserialize, Serialize};

use super::{
    address::{mapped, mapped_range},
    config::{Limits, OnLimit},
    message::WrittenRate,
};
use crate::config::Cidr;

/// What to protect and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Limits that belong to no tenant.
    pub limits: Limits,
    /// Where the proxy listens. An unspecified address stands for all of this host's addresses of that family.
    pub listen: Vec<SocketAddr>,
    /// Every tenant of the configuration.
    pub tenants: Vec<TenantPolicy>,
    /// Load balancers that speak the PROXY protocol.
    pub balancers: Vec<Cidr>,
}

/// One tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantPolicy {
    /// From 1 on, small, and the tenant's own across reloads; the mark of its sockets.
    pub number: u32,
    /// Its name in the configuration.
    pub name: String,
    /// Sessions it may have; `None` is no limit.
    pub max_sessions: Option<u32>,
    /// Connections per second.
    #[serde(with = "WrittenRate")]
    pub rate: Rate,
    /// Where its users come from.
    pub sources: Vec<Cidr>,
    /// Addresses that only its users connect to.
    pub addresses: Vec<SocketAddr>,
}

/// Why a policy cannot hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Two owners of one prefix.
    #[error(
        "the prefix {prefix} belongs to both {first} and {second}; give it to one, or make one of them longer"
    )]
    SamePrefix {
        /// The prefix.
        prefix: Cidr,
        /// One owner.
        first: String,
        /// The other.
        second: String,
    },
    /// Two owners of one address.
    #[error("the address {address} belongs to both {first} and {second}; give each its own")]
    SameAddress {
        /// The address.
        address: SocketAddr,
        /// One owner.
        first: String,
        /// The other.
        second: String,
    },
    /// A number that is 0, taken, or needlessly large.
    #[error("tenant {name:?} has the number {number}; numbers are 1 to {MAX_TENANT} and each tenant's own")]
    Number {
        /// The tenant.
        name: String,
        /// Its number.
        number: u32,
    },
}

/// The largest number of a tenant: the tables of tenants are arrays.
pub const MAX_TENANT: u32 = 65_535;

/// Map contents.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub globals: Globals,
    pub ports: Vec<u64>,
    pub destinations: HashMap<Destination, u32>,
    /// By length and address.
    pub prefixes: BTreeMap<(u32, [u8; 16]), u32>,
    /// By number, without counts; those of no tenant are without limits.
    pub tenants: Vec<Tenant>,
    /// By number; empty where there is no tenant.
    pub names: Vec<String>,
}

/// Mapped IPv4 addresses among all addresses.
const FOUR: (u32, [u8; 16]) = (96, Address::v4([0; 4]).bytes());

impl Plan {
    /// `local` are this host's addresses, asked for only where the policy listens on an unspecified one.
    ///
    /// # Errors
    /// Equal prefixes or addresses of two owners, bad numbers. Overlapping prefixes are right: the longest wins.
    pub fn new(policy: &Policy, local: &[IpAddr]) -> Result<Plan, PolicyError> {
        let (tenants, names) = tenants(policy)?;
        let prefixes = prefixes(policy)?;
        let destinations = destinations(policy, local)?;
        let mut ports = vec![0; PORT_WORDS as usize];
        for destination in destinations.keys() {
            let port = u32::from(destination.port);
            ports[(port / PORTS_PER_WORD) as usize] |= 1 << (port % PORTS_PER_WORD);
        }
        let limits = &policy.limits;
        let mut flags = 0;
        if limits.on_limit == OnLimit::Reset {
            flags |= Globals::RESET;
        }
        if !prefixes.is_empty() {
            flags |= Globals::PREFIXES;
        }
        if prefixes.keys().any(|(length, address)| *length > 64 && !is_mapped(address)) {
            flags |= Globals::LONG_PREFIXES;
        }
        let Limits { source, global, resets, events, .. } = *limits;
        let globals = Globals { source, global, resets, events, flags, generation: 1, ..Globals::default() };
        Ok(Plan { globals, ports, destinations, prefixes, tenants, names })
    }

    /// The name of a number, for logs; the shared tenant's is empty.
    pub fn name(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", String::as_str)
    }
}

impl Policy {
    /// It listens on an unspecified address, so the host's own addresses matter.
    pub fn wants_local(&self) -> bool {
        self.listen.iter().any(|a| a.ip().is_unspecified())
    }

    /// Whether the address is a load balancer's.
    pub fn is_balancer(&self, address: IpAddr) -> bool {
        self.balancers.iter().any(|b| b.contains(address))
    }
}

/// The range is one of IPv6 that has the mapped IPv4 addresses inside.
fn spans_mapped(length: u32, address: &[u8; 16]) -> bool {
    let differ = u128::from_be_bytes(*address) ^ u128::from_be_bytes(FOUR.1);
    differ.checked_shr(128 - length).unwrap_or(0) == 0
}

fn is_mapped(address: &[u8; 16]) -> bool {
    address[..12] == FOUR.1[..12]
}

fn tenants(policy: &Policy) -> Result<(Vec<Tenant>, Vec<String>), PolicyError> {
    let length = policy.tenants.iter().map(|t| t.number).max().unwrap_or(0).min(MAX_TENANT) as usize + 1;
    let (mut table, mut names) = (vec![Tenant::UNLIMITED; length], vec![String::new(); length]);
    table[0].rate = policy.limits.shared;
    for tenant in &policy.tenants {
        let taken = names.get(tenant.number as usize).is_none_or(|name| !name.is_empty());
        if tenant.number == 0 || taken {
            return Err(PolicyError::Number { name: tenant.name.clone(), number: tenant.number });
        }
        let max = tenant.max_sessions.unwrap_or(u32::MAX);
        table[tenant.number as usize] = Tenant { active: 0, max, rate: tenant.rate };
        names[tenant.number as usize].clone_from(&tenant.name);
    }
    Ok((table, names))
}

fn prefixes(policy: &Policy) -> Result<BTreeMap<(u32, [u8; 16]), u32>, PolicyError> {
    let owned = policy.tenants.iter().flat_map(|t| t.sources.iter().map(|s| (*s, t.number, t.name.as_str())));
    let balancers = policy.balancers.iter().map(|b| (*b, BALANCER, "the load balancers"));
    let mut found: BTreeMap<_, (u32, &str)> = BTreeMap::new();
    let mut around_four = false;
    for (prefix, number, name) in owned.chain(balancers) {
        let (length, address) = mapped_range(&prefix);
        around_four |=
            prefix.address().is_ipv6() && length < FOUR.0 && spans_mapped(length, &address.bytes());
        let before = found.insert((length, address.bytes()), (number, name));
        if let Some((other, first)) = before
            && other != number
        {
            return Err(PolicyError::SamePrefix { prefix, first: first.into(), second: name.into() });
        }
    }
    // An IPv6 prefix as short as ::/0 spans the mapped addresses too, and no IPv4 source is meant by it.
    if around_four {
        found.entry(FOUR).or_insert((0, ""));
    }
    Ok(found.into_iter().map(|(key, (number, _))| (key, number)).collect())
}

fn destinations(policy: &Policy, local: &[IpAddr]) -> Result<HashMap<Destination, u32>, PolicyError> {
    let key = |address: IpAddr, port| Destination::new(mapped(address.to_canonical()), port);
    let mut found = HashMap::new();
    let mut owners: HashMap<SocketAddr, &TenantPolicy> = HashMap::new();
    for listen in &policy.listen {
        if !listen.ip().is_unspecified() {
            found.insert(key(listen.ip(), listen.port()), 0);
        }
        for address in
            local.iter().filter(|a| listen.ip().is_unspecified() && a.is_ipv4() == listen.is_ipv4())
        {
            found.insert(key(*address, listen.port()), 0);
        }
    }
    for tenant in &policy.tenants {
        for address in &tenant.addresses {
            if let Some(first) = owners.insert(*address, tenant)
                && first.number != tenant.number
            {
                let (first, second) = (first.name.clone(), tenant.name.clone());
                return Err(PolicyError::SameAddress { address: *address, first, second });
            }
            found.insert(key(address.ip(), address.port()), tenant.number);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::config::XdpSection;

    fn tenant(number: u32, name: &str, sources: &[&str], addresses: &[&str]) -> TenantPolicy {
        TenantPolicy {
            number,
            name: name.into(),
            max_sessions: Some(10),
            rate: Rate::per_second(5, 5),
            sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn policy(listen: &[&str], tenants: Vec<TenantPolicy>, balancers: &[&str]) -> Policy {
        Policy {
            limits: XdpSection::default().validate().unwrap().limits,
            listen: listen.iter().map(|a| a.parse().unwrap()).collect(),
            tenants,
            balancers: balancers.iter().map(|b| b.parse().unwrap()).collect(),
        }
    }

    fn destination(address: &str) -> Destination {
        let address: SocketAddr = address.parse().unwrap();
        Destination::new(mapped(address.ip()), address.port())
    }

    #[test]
    fn listeners_and_tenants_addresses() {
        let acme = tenant(1, "acme", &[], &["192.0.2.9:443"]);
        let policy = policy(&["0.0.0.0:443", "[2001:db8::1]:902"], vec![acme], &[]);
        let local = ["192.0.2.1".parse().unwrap(), "192.0.2.9".parse().unwrap(), "fe80::1".parse().unwrap()];
        let plan = Plan::new(&policy, &local).unwrap();
        assert_eq!(plan.destinations.get(&destination("192.0.2.1:443")), Some(&0));
        assert_eq!(plan.destinations.get(&destination("192.0.2.9:443")), Some(&1), "a tenant's own address");
        assert_eq!(plan.destinations.get(&destination("[2001:db8::1]:902")), Some(&0));
        assert_eq!(plan.destinations.get(&destination("[fe80::1]:443")), None, "0.0.0.0 is no IPv6 listener");
        let set: u32 = plan.ports.iter().map(|w| w.count_ones()).sum();
        assert_eq!((set, plan.ports[443 / 64] >> (443 % 64) & 1), (2, 1));
    }

    #[test]
    fn equal_prefixes_are_refused_with_both_names() {
        let (a, b) = (tenant(1, "acme", &["10.0.0.0/8"], &[]), tenant(2, "bolt", &["10.0.0.0/8"], &[]));
        let error = Plan::new(&policy(&[], vec![a.clone(), b], &[]), &[]).unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8") && error.contains("acme") && error.contains("bolt"), "{error}");
        let error = Plan::new(&policy(&[], vec![a], &["10.0.0.0/8"]), &[]).unwrap_err().to_string();
        assert!(error.contains("the load balancers"), "{error}");
    }

    #[test]
    fn overlapping_prefixes_are_kept_apart_by_length() {
        let (a, b) = (tenant(1, "acme", &["10.0.0.0/8"], &[]), tenant(2, "bolt", &["10.1.0.0/16"], &[]));
        let plan = Plan::new(&policy(&[], vec![a, b], &[]), &[]).unwrap();
        assert_eq!(plan.prefixes.values().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(plan.globals.flags & Globals::PREFIXES, Globals::PREFIXES);
    }

    #[test]
    fn a_default_route_of_ipv6_owns_no_ipv4() {
        let plan = Plan::new(&policy(&[], vec![tenant(1, "acme", &["::/0"], &[])], &[]), &[]).unwrap();
        assert_eq!(plan.prefixes.get(&FOUR), Some(&0));
        let both = vec![tenant(1, "acme", &["::/0"], &[]), tenant(2, "bolt", &["0.0.0.0/0"], &[])];
        assert_eq!(Plan::new(&policy(&[], both, &[]), &[]).unwrap().prefixes.get(&FOUR), Some(&2));
    }

    #[test]
    fn addresses_and_numbers_have_one_owner() {
        let (a, b) = (tenant(1, "acme", &[], &["192.0.2.1:443"]), tenant(2, "bolt", &[], &["192.0.2.1:443"]));
        let error = Plan::new(&policy(&[], vec![a.clone(), b], &[]), &[]).unwrap_err().to_string();
        assert!(
            error.contains("192.0.2.1:443") && error.contains("acme") && error.contains("bolt"),
            "{error}"
        );
        for number in [0, 1, MAX_TENANT + 1] {
            let error = Plan::new(&policy(&[], vec![a.clone(), tenant(number, "bolt", &[], &[])], &[]), &[]);
            assert!(matches!(error, Err(PolicyError::Number { .. })), "{number}");
        }
    }
}
