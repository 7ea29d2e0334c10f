//! Kernel settings of the network that cap what the configuration says.

use std::fs;

use super::Finding;
use crate::config::Config;

const CHECK: &str = "network";

/// The settings, as far as they can be read here.
#[derive(Clone, Copy)]
struct Settings {
    somaxconn: Option<u64>,
    syn_backlog: Option<u64>,
    syncookies: Option<u64>,
    /// First and last local port.
    ports: Option<(u64, u64)>,
    /// Entries in use and most of them, where connections are tracked.
    conntrack: Option<(u64, u64)>,
}

pub(super) fn examine(config: Option<&Config>) -> Vec<Finding> {
    let (backlog, sessions) = config.map_or((4096, 0), |config| {
        (config.listen.backlog, config.tenants.values().map(|tenant| u64::from(tenant.max_sessions)).sum())
    });
    judge(&probe(), u64::from(backlog.unsigned_abs()), sessions)
}

fn probe() -> Settings {
    let numbers = |name: &str| -> Vec<u64> {
        let text = fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap_or_default();
        text.split_whitespace().filter_map(|n| n.parse().ok()).collect()
    };
    let one = |name: &str| numbers(name).first().copied();
    let ports = numbers("ipv4/ip_local_port_range");
    Settings {
        somaxconn: one("core/somaxconn"),
        syn_backlog: one("ipv4/tcp_max_syn_backlog"),
        syncookies: one("ipv4/tcp_syncookies"),
        ports: ports.first().copied().zip(ports.get(1).copied()),
        conntrack: one("netfilter/nf_conntrack_count").zip(one("netfilter/nf_conntrack_max")),
    }
}

fn judge(settings: &Settings, backlog: u64, sessions: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut less = |found: String, remedy: String| findings.push(Finding::warn(CHECK, found, remedy));
    if let Some(most) = settings.somaxconn.filter(|most| *most < backlog) {
        less(
            format!("net.core.somaxconn = {most} caps listen.backlog = {backlog}"),
            format!("sysctl net.core.somaxconn={backlog}"),
        );
    }
    if let Some(n) = settings.syn_backlog.filter(|n| *n < 1024) {
        less(
            format!("net.ipv4.tcp_max_syn_backlog = {n}: floods reach it early"),
            "sysctl net.ipv4.tcp_max_syn_backlog=8192".into(),
        );
    }
    if settings.syncookies == Some(0) {
        less(
            "net.ipv4.tcp_syncookies = 0: a flood of SYNs shuts the doors".into(),
            "sysctl net.ipv4.tcp_syncookies=1".into(),
        );
    }
    if let Some((first, last)) = settings.ports.filter(|(first, last)| last.saturating_sub(*first) < sessions)
    {
        less(
            format!(
                "net.ipv4.ip_local_port_range = {first} {last}: fewer ports than the tenants' {sessions} sessions, should one hypervisor hold them all"
            ),
            "sysctl net.ipv4.ip_local_port_range='10240 65535'".into(),
        );
    }
    if let Some((used, most)) = settings.conntrack {
        // Two connections per console, and handshakes that were turned away linger for minutes.
        if most < 4 * sessions || used * 10 > most * 8 {
            less(
                format!(
                    "connection tracking holds {used} of {most}; beyond it the kernel drops packets of anybody"
                ),
                format!(
                    "sysctl net.netfilter.nf_conntrack_max={}, or exempt the doors' ports (nft: notrack)",
                    (4 * sessions).max(2 * most)
                ),
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "queues, ports and tracking fit"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Verdict, worst};

    const GOOD: Settings = Settings {
        somaxconn: Some(4096),
        syn_backlog: Some(8192),
        syncookies: Some(1),
        ports: Some((10_240, 65_535)),
        conntrack: None,
    };

    #[test]
    fn each_setting_is_found_wanting_and_repaired() {
        assert_eq!(worst(&judge(&GOOD, 4096, 1000)), Verdict::Ok);
        for (bad, name) in [
            (Settings { somaxconn: Some(128), ..GOOD }, "somaxconn"),
            (Settings { syn_backlog: Some(128), ..GOOD }, "tcp_max_syn_backlog"),
            (Settings { syncookies: Some(0), ..GOOD }, "tcp_syncookies"),
            (Settings { ports: Some((60_000, 60_500)), ..GOOD }, "ip_local_port_range"),
            (Settings { conntrack: Some((900, 1000)), ..GOOD }, "tracking"),
        ] {
            let findings = judge(&bad, 4096, 1000);
            assert!(findings.len() == 1 && findings[0].verdict == Verdict::Warn, "{findings:?}");
            assert!(findings[0].found.contains(name) && findings[0].remedy.is_some(), "{findings:?}");
        }
        assert_eq!(
            worst(&judge(&Settings { conntrack: Some((900, 1_000_000)), ..GOOD }, 4096, 1000)),
            Verdict::Ok
        );
    }

    #[test]
    fn this_kernel_is_readable() {
        assert!(probe().ports.is_some());
    }
}
