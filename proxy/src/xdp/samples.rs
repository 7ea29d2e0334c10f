//! The gate in `/metrics`.

use mksgate_common::verdict::Verdict;

use super::serve::Shed;
use crate::metrics::Samples;

impl Shed {
    /// A source of the metrics. Labels are verdicts, interfaces and tenants of the configuration.
    pub fn sample(&self, out: &mut Samples) {
        let help = "Whether the XDP gate is attached, by interface";
        let Ok((status, counters)) = self.look() else {
            return out.gauge("mksgate_xdp_attached", help, &[("interface", ""), ("mode", "off")], 0);
        };
        for interface in &status.interfaces {
            let labels: &[_] = &[("interface", &*interface.name), ("mode", &*interface.mode)];
            out.gauge("mksgate_xdp_attached", help, labels, i64::from(interface.mode != "off"));
        }
        let known = i64::try_from(status.known_sources).unwrap_or(i64::MAX);
        out.gauge("mksgate_xdp_known_sources", "Sources known by a valid ticket", &[], known);
        for verdict in Verdict::ALL {
            let help = "Packets by the XDP gate's verdict";
            out.counter(
                "mksgate_xdp_packets",
                help,
                &[("verdict", verdict.as_str())],
                counters.packets(verdict),
            );
        }
        let syns = "SYNs to protected ports, by tenant (empty: not known) and verdict";
        let resets = "Shed SYNs that were answered by a reset, by tenant";
        for tenant in &counters.tenants {
            for verdict in Verdict::ALL.into_iter().filter(|v| v.syn_index().is_some()) {
                let labels: &[_] = &[("tenant", &*tenant.name), ("verdict", verdict.as_str())];
                out.counter("mksgate_xdp_syns", syns, labels, tenant.syns(verdict));
            }
            out.counter("mksgate_xdp_resets", resets, &[("tenant", &*tenant.name)], tenant.resets);
        }
        let help = "SYNs whose source found no place in the table of rates; they met the other limits";
        out.counter("mksgate_xdp_source_table_full", help, &[], counters.source_table_full);
        let help = "Drop events that were lost on the way to the log";
        out.counter("mksgate_xdp_events_lost", help, &[], counters.events_lost);
        let help = "Resets that could not be built; the SYN was dropped";
        out.counter("mksgate_xdp_resets_failed", help, &[], counters.resets_failed);
    }
}
