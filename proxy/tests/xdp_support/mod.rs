//! What the tests of the gate share.
#![allow(dead_code, missing_docs, clippy::allow_attributes, reason = "each test binary uses its part of it")]

pub mod wire;

use std::net::SocketAddr;

use mksgate::xdp::{OBJECT, OnLimit, Policy, TenantPolicy, XdpSection, missing_capabilities};
use mksgate_common::{
    bucket::Rate,
    map::{Address, BALANCER, Destination, Globals, Tenant},
    testing::Memory,
};

/// True if this process may load the program. Otherwise prints why the test is skipped, or fails it where every test
/// has to run.
pub fn privileged() -> bool {
    let reason = if OBJECT.is_none() {
        "this build has no XDP program; `cargo xtask ebpf` builds it".to_owned()
    } else if !missing_capabilities().is_empty() {
        format!("lacks {}; run as root", missing_capabilities().join(" and "))
    } else {
        return true;
    };
    assert!(std::env::var_os("MKSGATE_FULL_TESTS").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
    false
}

/// A policy with generous defaults.
pub fn policy(listen: Vec<SocketAddr>, tenants: Vec<TenantPolicy>) -> Policy {
    let mut limits = XdpSection::default().validate().unwrap().limits;
    limits.source = Rate::UNLIMITED;
    limits.shared = Rate::UNLIMITED;
    Policy { limits, listen, tenants, balancers: Vec::new() }
}

/// A tenant.
pub fn tenant(
    number: u32,
    name: &str,
    max_sessions: Option<u32>,
    rate: Rate,
    sources: &[&str],
    addresses: &[&str],
) -> TenantPolicy {
    TenantPolicy {
        number,
        name: name.into(),
        max_sessions,
        rate,
        sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

/// The same policy as collections, written down a second time.
pub fn memory_of(policy: &Policy, sources: usize) -> Memory {
    let size = policy.tenants.iter().map(|t| t.number as usize + 1).max().unwrap_or(1);
    let mut memory = Memory::new(sources, size);
    let limits = &policy.limits;
    let reset = if limits.on_limit == OnLimit::Reset { Globals::RESET } else { 0 };
    memory.publish(Globals {
        source: limits.source,
        global: limits.global,
        resets: limits.resets,
        events: limits.events,
        flags: reset | Globals::PREFIXES | Globals::LEARNED,
        generation: 1,
        ..Globals::default()
    });
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(v4) => Address::new(v4.to_ipv6_mapped().octets()),
        std::net::IpAddr::V6(v6) => Address::new(v6.octets()),
    };
    for listen in &policy.listen {
        memory.destinations.insert(Destination::new(octets(listen.ip()), listen.port()), 0);
    }
    let length =
        |p: &mksgate::config::Cidr| u32::from(p.prefix()) + if p.address().is_ipv4() { 96 } else { 0 };
    for balancer in &policy.balancers {
        memory.prefixes.push((length(balancer), octets(balancer.address()), BALANCER));
    }
    memory.tenants[0].rate = limits.shared;
    for tenant in &policy.tenants {
        let max = tenant.max_sessions.unwrap_or(u32::MAX);
        memory.tenants[tenant.number as usize] = Tenant { active: 0, max, rate: tenant.rate };
        for source in &tenant.sources {
            memory.prefixes.push((length(source), octets(source.address()), tenant.number));
        }
        for address in &tenant.addresses {
            memory.destinations.insert(Destination::new(octets(address.ip()), address.port()), tenant.number);
        }
    }
    memory
}
