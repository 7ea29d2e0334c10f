//! A program that another process has loaded, by the descriptors it has left.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use aya::maps::{Map, MapData, MapError};
use mksgate_common::map::{Globals, Tenant};

use super::{super::sizes::Sizes, GateError, Plan, Program};

impl Program {
    /// Goes on with it as it is, counters, buckets and known sources and all. `maps` are by name, `names` the tenants by their
    /// number; `foreign`: another build has loaded it, and it gives way to this one's at the next plan.
    ///
    /// # Errors
    /// A map is missing, or is not of the shape it has here.
    pub(crate) fn adopt(
        fd: OwnedFd,
        mut maps: BTreeMap<String, OwnedFd>,
        names: Vec<String>,
        max_sources: u32,
        foreign: bool,
    ) -> Result<Program, GateError> {
        let mut prefixes = 0;
        let mut program = Program::of(fd, |name| {
            let fd = maps.remove(name).ok_or_else(|| misfit(name, "is not there"))?;
            let data = MapData::from_fd(fd).map_err(|e| GateError::map(name, e))?;
            if name == "PREFIXES" {
                prefixes = data.info().map_err(|e| GateError::map(name, e))?.max_entries();
            }
            Map::from_map_data(data).map_err(|e| GateError::map(name, e))
        })?;
        program.sizes = Sizes {
            tenants: program.tenants.len(),
            destinations: program.destinations.len(),
            prefixes,
            sources: max_sources,
        };
        program.foreign = foreign;
        program.go_on(names)?;
        Ok(program)
    }

    /// Learns from the kernel what is in the maps.
    fn go_on(&mut self, names: Vec<String>) -> Result<(), GateError> {
        let reading = |e: MapError| GateError::map("reading the maps", e);
        let globals = self.globals.get(&0, 0).map_err(reading)?;
        let (tenants, lines) = (self.sizes.tenants, self.sizes.lines());
        for (name, fits) in [
            (
                "GLOBALS",
                globals.lines == lines && globals.blocks == self.sizes.blocks() && globals.blocks > 0,
            ),
            ("SOURCES", self.readers.sources.len() == lines),
            ("LEARNED", self.learned.len() == lines),
            ("TENANT_WORDS", self.tenant_words.len() == tenants),
            ("TENANT_COUNTERS", self.readers.tenant_counters.len() == tenants),
            ("TENANTS", names.len() <= tenants as usize),
        ] {
            if !fits {
                return Err(misfit(name, "is of another size"));
            }
        }
        self.seed = globals.seed;
        self.knows_sources = globals.flags & Globals::LEARNED != 0;
        self.destinations.go_on(globals.destinations).map_err(reading)?;
        self.learned.go_on().map_err(reading)?;
        self.plan = self.as_it_is(globals, names).map_err(reading)?;
        Ok(())
    }

    /// The plan that the maps are of, except for the destinations: those are laid out afresh by the next one.
    fn as_it_is(&mut self, globals: Globals, names: Vec<String>) -> Result<Plan, MapError> {
        let mut plan = Plan::nothing();
        plan.globals = Globals {
            flags: globals.flags & !Globals::LEARNED,
            seed: 0,
            lines: 0,
            destinations: 0,
            blocks: 0,
            ..globals
        };
        plan.ports = self.ports.iter().collect::<Result<_, _>>()?;
        for entry in self.prefixes.iter() {
            let (key, number) = entry?;
            plan.prefixes.insert((key.prefix_len(), key.data().bytes()), number);
        }
        let mut tenants = self.tenants.iter().collect::<Result<Vec<Tenant>, _>>()?;
        // Nobody has the rest.
        let used = tenants.iter().rposition(|tenant| *tenant != Tenant::UNLIMITED && tenant.max != 0);
        tenants.truncate(used.map_or(0, |last| last + 1).max(names.len()));
        self.active = tenants.iter().map(|tenant| tenant.active).collect();
        plan.tenants = tenants.into_iter().map(|tenant| Tenant { active: 0, ..tenant }).collect();
        plan.names = names;
        Ok(plan)
    }
}

fn misfit(what: &'static str, how: &str) -> GateError {
    GateError::Io { what, error: std::io::Error::other(format!("that map {how}")) }
}
