//! The loaded program and its maps; `proxy-ebpf/src/maps.rs` is the other side.

mod adopt;
mod run;

pub use run::Outcome;

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, LpmTrie, Map, MapData, MapError, RingBuf, lpm_trie::Key},
    programs::{ProgramError, Xdp},
};
use mksgate_common::map::{Address, Globals, Learned, Source, SourceKey, Tenant, shared};

use super::{
    attach::PROGRAMS,
    counters::{CounterReport, source_key},
    error::GateError,
    lines::{Destinations, KnownSources},
    policy::{Plan, Policy},
    readers::Readers,
    sizes::{Sizes, seed_for},
};
use crate::sys::bpf;

/// One program in the kernel with its maps. Attaching it is the gate's business.
pub struct Program {
    /// What it was loaded from, where this process has done that: only that can be run by hand.
    loaded: Option<(Ebpf, &'static str)>,
    fd: OwnedFd,
    id: u32,
    /// Another build has loaded it.
    foreign: bool,
    sizes: Sizes,
    /// See [`Globals::seed`].
    seed: u64,
    plan: Plan,
    active: Vec<u32>,
    knows_sources: bool,
    globals: Array<MapData, Globals>,
    ports: Array<MapData, u64>,
    destinations: Destinations,
    prefixes: LpmTrie<MapData, Address, u32>,
    learned: KnownSources,
    tenants: Array<MapData, Tenant>,
    tenant_words: Array<MapData, u64>,
    shared: Array<MapData, u64>,
    events: Option<RingBuf<MapData>>,
    readers: Arc<Readers>,
    /// The maps once more, by name, for whoever goes on with them.
    files: Vec<(&'static str, OwnedFd)>,
}

impl Program {
    /// Loads the embedded program and publishes the policy; `local` are the host's addresses.
    ///
    /// # Errors
    /// See [`GateError`].
    pub fn load(policy: &Policy, local: &[IpAddr], max_sources: u32) -> Result<Program, GateError> {
        let plan = Plan::new(policy, local)?;
        let sizes = Sizes::for_plan(&plan, max_sources);
        Program::with_sizes(plan, sizes)
    }

    pub(crate) fn with_sizes(plan: Plan, sizes: Sizes) -> Result<Program, GateError> {
        let object = super::OBJECT.ok_or(GateError::NoObject)?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("DESTINATIONS", 2 * sizes.blocks())
            .map_max_entries("PREFIXES", sizes.prefixes)
            .map_max_entries("LEARNED", sizes.lines())
            .map_max_entries("SOURCES", sizes.lines())
            .map_max_entries("TENANTS", sizes.tenants)
            .map_max_entries("TENANT_WORDS", sizes.tenants)
            .map_max_entries("TENANT_COUNTERS", sizes.tenants)
            .load(object)
            .map_err(GateError::object)?;
        let name = load_either(&mut ebpf)?;
        let fd = xdp(&mut ebpf, name)?.fd().map_err(|e| GateError::program(name, &e))?;
        let fd = fd.as_fd().try_clone_to_owned().map_err(|e| GateError::io("holding the program", e))?;
        let mut program = Program::of(fd, |map| ebpf.take_map(map).ok_or(GateError::NoObject))?;
        (program.sizes, program.seed) = (sizes, seed_for(&plan, &sizes)?);
        program.loaded = Some((ebpf, name));
        program.publish(plan).map_err(|e| GateError::map("filling the maps", e))?;
        Ok(program)
    }

    /// The program with its maps as they come, of no size yet.
    fn of(
        fd: OwnedFd,
        take: impl FnMut(&'static str) -> Result<Map, GateError>,
    ) -> Result<Program, GateError> {
        let id = bpf::program_id(&fd).map_err(|e| GateError::io("asking for the program", e))?;
        let mut maps = Maps { take, files: Vec::new() };
        let readers = Readers {
            sources: maps.typed("SOURCES")?,
            counters: maps.typed("COUNTERS")?,
            tenant_counters: maps.typed("TENANT_COUNTERS")?,
        };
        Ok(Program {
            loaded: None,
            fd,
            id: id.ok_or(GateError::NoObject)?,
            foreign: false,
            sizes: Sizes::default(),
            seed: 0,
            plan: Plan::nothing(),
            active: Vec::new(),
            knows_sources: false,
            globals: maps.typed("GLOBALS")?,
            ports: maps.typed("PORTS")?,
            destinations: Destinations::new(maps.typed("DESTINATIONS")?),
            prefixes: maps.typed("PREFIXES")?,
            learned: KnownSources::new(maps.typed("LEARNED")?),
            tenants: maps.typed("TENANTS")?,
            tenant_words: maps.typed("TENANT_WORDS")?,
            shared: maps.typed("SHARED")?,
            events: Some(maps.typed("EVENTS")?),
            readers: Arc::new(readers),
            files: maps.files,
        })
    }

    /// The plan fits, as large as the tables are, and the program is this build's.
    pub(crate) fn holds(&self, plan: &Plan, max_sources: u32) -> bool {
        let fits = self.sizes.hold(plan) && self.sizes.sources == max_sources && !self.foreign;
        fits && Destinations::hold(&plan.destinations, self.sizes.blocks(), self.seed)
    }

    /// Publishes another plan that [`Program::holds`]; what is new comes before what is old goes.
    pub(crate) fn publish(&mut self, plan: Plan) -> Result<(), MapError> {
        let old = std::mem::replace(&mut self.plan, plan);
        self.forget_renumbered(&old)?;
        self.active.resize(self.plan.tenants.len(), 0);
        for number in 0..self.plan.tenants.len().max(old.tenants.len()) {
            let before = old.tenants.get(number).copied();
            let after = self.plan.tenants.get(number).copied().unwrap_or(Tenant::UNLIMITED);
            if before != Some(after) {
                self.publish_tenant(number as u32)?;
            }
            // A bucket filled at another rate could stay shut for as long as that rate's burst is worth.
            if before.is_some_and(|before| before.rate != after.rate) {
                self.tenant_words.set(number as u32, 0, 0)?;
            }
        }
        for (key, number) in &self.plan.prefixes {
            if old.prefixes.get(key) != Some(number) {
                self.prefixes.insert(&Key::new(key.0, Address::new(key.1)), number, 0)?;
            }
        }
        for key in old.prefixes.keys().filter(|key| !self.plan.prefixes.contains_key(key)) {
            self.prefixes.remove(&Key::new(key.0, Address::new(key.1)))?;
        }
        // What sources' entries keep of the trie holds for one generation; the next begins when the trie is as it shall be.
        self.plan.globals.generation = old.globals.generation.checked_add(1).unwrap_or(1);
        if old.destinations != self.plan.destinations {
            self.destinations.write(&self.plan.destinations, self.seed)?;
        }
        self.publish_globals()?;
        for (word, bits) in self.plan.ports.iter().enumerate() {
            if old.ports.get(word) != Some(bits) {
                self.ports.set(word as u32, bits, 0)?;
            }
        }
        self.restart_buckets(&old)
    }

    /// A number that means another tenant now, or none, must not keep what was published and learned for the old one.
    fn forget_renumbered(&mut self, old: &Plan) -> Result<(), MapError> {
        let changed = |number: u32| number != 0 && old.name(number) != self.plan.name(number);
        for number in (0..self.active.len() as u32).filter(|n| changed(*n)) {
            self.active[number as usize] = 0;
            self.tenant_words.set(number, 0, 0)?;
        }
        self.learned.forget(|known| changed(known.learned().tenant))
    }

    fn restart_buckets(&mut self, old: &Plan) -> Result<(), MapError> {
        let (old, new) = (old.globals, self.plan.globals);
        for (index, before, after) in [
            (shared::GLOBAL, old.global, new.global),
            (shared::RESETS, old.resets, new.resets),
            (shared::EVENTS, old.events, new.events),
        ] {
            if before != after {
                self.shared.set(index, 0, 0)?;
            }
        }
        // Of sources see `Rate::owed`.
        Ok(())
    }

    fn publish_globals(&mut self) -> Result<(), MapError> {
        let mut globals = self.globals();
        self.destinations.point(&mut globals);
        if self.knows_sources {
            globals.flags |= Globals::LEARNED;
        }
        self.globals.set(0, globals, 0)
    }

    fn globals(&self) -> Globals {
        Globals { seed: self.seed, lines: self.sizes.lines(), ..self.plan.globals }
    }

    fn publish_tenant(&mut self, number: u32) -> Result<(), MapError> {
        let limits = self.plan.tenants.get(number as usize).copied().unwrap_or(Tenant::UNLIMITED);
        let active = self.active.get(number as usize).copied().unwrap_or(0);
        self.tenants.set(number, Tenant { active, ..limits }, 0)
    }

    /// Publishes how many sessions the tenant has. A number of no tenant is ignored.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn set_active(&mut self, number: u32, sessions: u32) -> Result<(), MapError> {
        match self.active.get_mut(number as usize) {
            Some(active) if *active == sessions => Ok(()),
            Some(active) => {
                *active = sessions;
                self.publish_tenant(number)
            }
            None => Ok(()),
        }
    }

    /// What the kernel holds of a tenant: its sessions.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn published(&self, number: u32) -> Result<u32, MapError> {
        self.tenants.get(&number, 0).map(|tenant| tenant.active)
    }

    pub(crate) fn active(&self) -> &[u32] {
        &self.active
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What is known of a source.
    pub(crate) fn learned(&self, key: SourceKey) -> Option<Learned> {
        self.learned.get(self.globals().line(key), key)
    }

    /// Makes a source known.
    pub(crate) fn learn(&mut self, key: SourceKey, learned: Learned) -> Result<(), MapError> {
        self.learned.put(self.globals().line(key), key, learned)?;
        if !self.knows_sources {
            self.knows_sources = true;
            self.publish_globals()?;
        }
        Ok(())
    }

    /// Makes a source known as a tenant's until `expires`, for measurements; [`Gate::learn`](super::Gate::learn) knows what
    /// was learned before.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn make_known(&mut self, source: IpAddr, tenant: u32, expires: u64) -> Result<(), MapError> {
        self.learn(source_key(source), Learned { expires, tenant })
    }

    /// Every known source.
    pub(crate) fn all_learned(&self) -> Vec<(SourceKey, Learned)> {
        self.learned.all().collect()
    }

    /// Forgets what has expired; the number that stays.
    pub(crate) fn expire(&mut self, now: u64) -> Result<usize, MapError> {
        self.learned.forget(|known| known.learned().expires <= now)?;
        Ok(self.learned.all().count())
    }

    /// The kernel's id of the program.
    pub fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its maps by name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.files.iter().map(|(name, file)| (*name, file.as_fd()))
    }

    /// The ring buffer of drop events; once.
    pub(crate) fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    pub(crate) fn readers(&self) -> Arc<Readers> {
        self.readers.clone()
    }

    /// The counters since the program was loaded.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn counters(&self) -> Result<CounterReport, MapError> {
        self.readers.counters(&self.plan.names)
    }

    /// Sources in the table of rates.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn sources(&self) -> Result<Vec<(SourceKey, Source)>, MapError> {
        self.readers.sources()
    }
}

impl Plan {
    fn nothing() -> Plan {
        Plan {
            globals: Globals::default(),
            ports: Vec::new(),
            destinations: Default::default(),
            prefixes: Default::default(),
            tenants: Vec::new(),
            names: Vec::new(),
        }
    }
}

/// Loads the program for multi-buffer frames, or the plain one where the kernel has none of those.
fn load_either(ebpf: &mut Ebpf) -> Result<&'static str, GateError> {
    let [frags, plain] = PROGRAMS;
    match xdp(ebpf, frags)?.load() {
        Ok(()) => return Ok(frags),
        Err(error) => tracing::debug!(%error, "no XDP with multi-buffer frames, trying without"),
    }
    xdp(ebpf, plain)?.load().map(|()| plain).map_err(|e| GateError::program(plain, &e))
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, GateError> {
    let program = ebpf.program_mut(name).ok_or(GateError::NoObject)?;
    program.try_into().map_err(|e: ProgramError| GateError::program(name, &e))
}

/// Hands the maps out in their types.
struct Maps<F> {
    take: F,
    files: Vec<(&'static str, OwnedFd)>,
}

impl<F: FnMut(&'static str) -> Result<Map, GateError>> Maps<F> {
    fn typed<T: TryFrom<Map, Error = MapError>>(&mut self, name: &'static str) -> Result<T, GateError> {
        let map = (self.take)(name)?;
        let (Map::Array(data) | Map::PerCpuArray(data) | Map::LpmTrie(data) | Map::RingBuf(data)) = &map
        else {
            return Err(GateError::map(name, MapError::InvalidMapType { map_type: 0 }));
        };
        let file = data.fd().as_fd().try_clone_to_owned().map_err(|e| GateError::io("holding a map", e))?;
        self.files.push((name, file));
        map.try_into().map_err(|e| GateError::map(name, e))
    }
}
