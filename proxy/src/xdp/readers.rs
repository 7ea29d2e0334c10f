//! What the program writes and userspace reads: counters and the sources' buckets.

use aya::maps::{Array, MapData, MapError, PerCpuArray};
use mksgate_common::map::{Counters, Line, Source, SourceKey, TenantCounters};

use super::counters::{CounterReport, TenantReport};

/// What is only ever read here; shared, so that a long look at it holds up nobody.
pub(crate) struct Readers {
    pub sources: Array<MapData, Line>,
    pub counters: PerCpuArray<MapData, Counters>,
    pub tenant_counters: PerCpuArray<MapData, TenantCounters>,
}

impl Readers {
    /// The sum over all CPUs; `names` are the tenants by number.
    pub fn counters(&self, names: &[String]) -> Result<CounterReport, MapError> {
        let mut report = CounterReport::default();
        for cpu in self.counters.get(&0, 0)?.iter() {
            report.add(cpu);
        }
        for (number, name) in names.iter().enumerate().filter(|(n, name)| *n == 0 || !name.is_empty()) {
            let mut tenant =
                TenantReport { number: number as u32, name: name.clone(), ..TenantReport::default() };
            for cpu in self.tenant_counters.get(&(number as u32), 0)?.iter() {
                tenant.add(cpu);
            }
            report.tenants.push(tenant);
        }
        Ok(report)
    }

    /// Every source in the table; takes about a microsecond each.
    pub fn sources(&self) -> Result<Vec<(SourceKey, Source)>, MapError> {
        let mut found = Vec::new();
        for line in self.sources.iter() {
            found.extend(line?.0.iter().filter(|s| s.passed + s.shed > 0).map(|s| (s.key, *s)));
        }
        Ok(found)
    }
}
