//! What the program has counted, what it tells of single drops, and who is loud.

use std::net::{IpAddr, SocketAddr};

use mksgate_common::{
    map::{Counters, Event, Source, SourceKey, TenantCounters},
    verdict::Verdict,
};
use serde::{Deserialize, Serialize};

use super::{address::unmapped, serve::VerdictCount};

/// Totals over all CPUs since the gate started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// Packets by [`Verdict`].
    pub packets: [u64; Verdict::COUNT],
    /// SYNs whose source found no place in the table: they met every limit but the source's.
    pub source_table_full: u64,
    /// Drop events that userspace was too slow for.
    pub events_lost: u64,
    /// Resets that could not be built: dropped instead.
    pub resets_failed: u64,
    /// The shared tenant first, then those of the configuration.
    pub tenants: Vec<TenantReport>,
}

/// One tenant's SYNs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantReport {
    /// 0 is the shared tenant.
    pub number: u32,
    /// Empty for the shared tenant.
    pub name: String,
    /// By [`Verdict::syn_index`].
    pub syns: [u64; Verdict::SYN_COUNT],
    /// Of the shed ones, those answered by a reset.
    pub resets: u64,
}

impl CounterReport {
    /// Packets with that verdict.
    pub fn packets(&self, verdict: Verdict) -> u64 {
        self.packets[verdict as usize]
    }

    /// Packets that did not reach the stack.
    pub fn shed(&self) -> u64 {
        Verdict::ALL.into_iter().filter(|v| v.sheds()).map(|v| self.packets(v)).sum()
    }

    /// Packets by the verdicts' names.
    pub fn named(&self) -> Vec<VerdictCount> {
        let count = |v: Verdict| VerdictCount { verdict: v.as_str().to_owned(), packets: self.packets(v) };
        Verdict::ALL.into_iter().map(count).collect()
    }

    /// The tenant of that name; the empty one is the shared tenant.
    pub fn tenant(&self, name: &str) -> Option<&TenantReport> {
        self.tenants.iter().find(|t| t.name == name)
    }

    pub(crate) fn add(&mut self, cpu: &Counters) {
        sum(&mut self.packets, &cpu.packets);
        self.source_table_full += cpu.source_table_full;
        self.events_lost += cpu.events_lost;
        self.resets_failed += cpu.resets_failed;
    }

    /// Adds what an earlier program of the same gate had counted; tenants that are gone take their counts along.
    pub(crate) fn add_base(&mut self, base: &CounterReport) {
        sum(&mut self.packets, &base.packets);
        self.source_table_full += base.source_table_full;
        self.events_lost += base.events_lost;
        self.resets_failed += base.resets_failed;
        for tenant in &mut self.tenants {
            if let Some(base) = base.tenant(&tenant.name) {
                sum(&mut tenant.syns, &base.syns);
                tenant.resets += base.resets;
            }
        }
    }
}

impl TenantReport {
    /// SYNs with that verdict.
    pub fn syns(&self, verdict: Verdict) -> u64 {
        verdict.syn_index().map_or(0, |index| self.syns[index])
    }

    pub(crate) fn add(&mut self, cpu: &TenantCounters) {
        sum(&mut self.syns, &cpu.syns);
        self.resets += cpu.resets;
    }
}

fn sum<const N: usize>(into: &mut [u64; N], from: &[u64; N]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
}

/// A sampled drop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropEvent {
    /// From where.
    pub source: IpAddr,
    /// To where.
    pub destination: SocketAddr,
    /// Whose it was taken for; empty is the shared tenant.
    pub tenant: String,
    /// The verdict's name.
    #[serde(rename = "reason")]
    pub verdict: &'static str,
    /// The interface's index.
    pub interface: u32,
}

impl DropEvent {
    /// Reads what the kernel has written; `None` if it is not such an event.
    pub(crate) fn read(bytes: &[u8], name: impl Fn(u32) -> String) -> Option<DropEvent> {
        let event = parse(bytes)?;
        Some(DropEvent {
            source: unmapped(event.source),
            destination: SocketAddr::new(unmapped(event.destination), event.port as u16),
            tenant: name(event.tenant),
            verdict: Verdict::ALL.get(event.verdict as usize)?.as_str(),
            interface: event.interface,
        })
    }
}

/// The fields of [`Event`] in their order.
fn parse(bytes: &[u8]) -> Option<Event> {
    use mksgate_common::map::Address;
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let address = |at: usize| bytes.get(at..at + 16)?.try_into().ok().map(Address::new);
    Some(Event {
        at: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
        source: address(8)?,
        destination: address(24)?,
        tenant: word(40)?,
        verdict: word(44)?,
        port: word(48)?,
        interface: word(52)?,
    })
}

/// A line of `mksgate xdp top-sources`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoudSource {
    /// An IPv4 address, or an IPv6 /64.
    pub source: String,
    /// SYNs let through by the source's own rate.
    pub passed: u32,
    /// SYNs shed by it.
    pub shed: u32,
}

/// The loudest `count` of them, shed ones first.
pub(crate) fn loudest(mut sources: Vec<(SourceKey, Source)>, count: usize) -> Vec<LoudSource> {
    sources.sort_by_key(|(key, s)| std::cmp::Reverse((s.shed, s.passed, *key)));
    sources.truncate(count);
    let line = |(key, s): (SourceKey, Source)| LoudSource {
        source: source_name(key),
        passed: s.passed,
        shed: s.shed,
    };
    sources.into_iter().map(line).collect()
}

/// The source as an operator writes it.
pub(crate) fn source_name(key: SourceKey) -> String {
    match key.as_v4() {
        Some(v4) => IpAddr::from(v4).to_string(),
        None => format!("{}/64", IpAddr::from(key.as_v6().unwrap_or_default())),
    }
}

/// The key of an address.
pub(crate) fn source_key(address: IpAddr) -> SourceKey {
    match address.to_canonical() {
        IpAddr::V4(v4) => SourceKey::v4(v4.octets()),
        IpAddr::V6(v6) => SourceKey::v6(v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_names() {
        let name = |text: &str| source_name(source_key(text.parse().unwrap()));
        assert_eq!(name("192.0.2.7"), "192.0.2.7");
        assert_eq!(name("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(name("2001:db8:1:2:3::4"), "2001:db8:1:2::/64");
    }

    #[test]
    fn the_loudest_come_first() {
        let source = |ip: &str, passed, shed| {
            let key = source_key(ip.parse().unwrap());
            (key, Source { key, passed, shed, ..Source::default() })
        };
        let all = vec![source("192.0.2.1", 9, 0), source("192.0.2.2", 1, 5), source("192.0.2.3", 20, 0)];
        let names: Vec<String> = loudest(all, 2).into_iter().map(|s| s.source).collect();
        assert_eq!(names, ["192.0.2.2", "192.0.2.3"]);
    }

    #[test]
    fn a_short_or_unknown_event_is_none() {
        assert_eq!(DropEvent::read(&[0; 55], |_| String::new()), None);
        let mut bytes = [0; 56];
        bytes[44] = 200;
        assert_eq!(DropEvent::read(&bytes, |_| String::new()), None);
    }
}
