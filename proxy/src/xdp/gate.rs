//! The gate as the rest of the proxy sees it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, atomic::Ordering},
    thread::JoinHandle,
};

use mksgate_common::map::{Learned, SourceKey};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{
    config::XdpConfig,
    counters::{CounterReport, DropEvent, LoudSource, loudest, source_key},
    error::GateError,
    inner::{GateStatus, Inner, local_addresses},
    interface::{Interface, enough, interface_names},
    maps::Program,
    policy::Policy,
    told::Told,
    worker,
};

/// The program on its interfaces. Dropping it detaches and ends its thread.
pub struct Gate {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

/// Between the gate's handle and its thread.
pub(super) struct Shared {
    pub inner: Mutex<Inner>,
    pub told: Told,
    stop: AtomicBool,
}

/// Nanoseconds of CLOCK_MONOTONIC, the program's clock.
pub fn monotonic() -> u64 {
    // The clock exists on every Linux; zero would merely make learned sources expire.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// What a gate leaves to that of a younger mksgate.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Estate {
    counted: CounterReport,
    /// Source, name of the tenant (empty: several), end in nanoseconds of CLOCK_MONOTONIC.
    learned: Vec<(u64, String, u64)>,
}

impl Gate {
    /// Loads the program, publishes the policy and attaches. `on_drop` gets the sampled drops, on the gate's thread.
    ///
    /// An interface that cannot be had is reported by [`Gate::status`] as long as another can, unless `[xdp] enabled`
    /// says "required".
    ///
    /// # Errors
    /// See [`GateError`]; nothing stays attached then.
    pub fn start(
        mut config: XdpConfig,
        policy: Policy,
        on_drop: impl Fn(&DropEvent) + Send + 'static,
    ) -> Result<Gate, GateError> {
        config.limits = policy.limits;
        let program = Program::load(&policy, &local_addresses(&policy)?, config.max_sources)?;
        let names = interface_names(&config, &policy)?;
        let fd = program.fd();
        let interfaces: Vec<_> =
            names.into_iter().map(|name| Interface::attach(fd, name, config.mode)).collect();
        enough(&config, interfaces.iter())?;
        interfaces.iter().for_each(Interface::tell);
        Gate::run(Inner::new(config, policy, program, interfaces), on_drop)
    }

    /// Starts its thread.
    pub(super) fn run(
        inner: Inner,
        on_drop: impl Fn(&DropEvent) + Send + 'static,
    ) -> Result<Gate, GateError> {
        let shared =
            Arc::new(Shared { inner: Mutex::new(inner), told: Told::new()?, stop: AtomicBool::new(false) });
        let for_worker = shared.clone();
        let worker = std::thread::Builder::new()
            .name("xdp".into())
            .spawn(move || worker::run(&for_worker, &on_drop))
            .map_err(|error| GateError::Io { what: "starting its thread", error })?;
        Ok(Gate { shared, worker: Some(worker) })
    }

    /// What its handle and its thread change.
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner()
    }

    /// Publishes how many sessions a tenant has now; the kernel knows at once, or a few milliseconds later under load.
    /// Calls for one tenant take effect in the order they are made.
    pub fn set_active(&self, tenant: u32, sessions: u32) {
        self.shared.told.set_active(tenant, sessions);
    }

    /// A tenant's sessions as the kernel has them.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn published(&self, tenant: u32) -> Result<u32, GateError> {
        let inner = self.shared.inner();
        inner.program.published(tenant).map_err(|e| GateError::map("reading a tenant's sessions", e))
    }

    /// A valid ticket of `tenant` came from `source` (the TCP peer, not what a PROXY header says) at `now`, see
    /// [`monotonic`]. A source with tickets of several tenants becomes nobody's; a load balancer never is learned.
    pub fn learn(&self, source: IpAddr, tenant: u32, now: u64) {
        self.learn_key(source_key(source), tenant, now);
    }

    pub(super) fn learn_key(&self, source: SourceKey, tenant: u32, now: u64) {
        self.shared.told.learn(source, tenant, now);
    }

    /// Brings another configuration into force without detaching where it stays: the policy, the limits, and the
    /// interfaces; the mode is that of interfaces it attaches to from now on. Sizes that no longer suffice bring a new
    /// program under the same links; its counters go on, the sources' buckets start afresh.
    ///
    /// # Errors
    /// An interface that is newly named cannot be had, or see [`GateError`]. The old configuration stays in force, on
    /// the interfaces it had.
    pub fn update(&self, config: XdpConfig, policy: Policy) -> Result<(), GateError> {
        self.shared.inner().update(config, policy)
    }

    /// The same for another process, with what a reload leaves as it was.
    ///
    /// # Errors
    /// As there.
    pub(super) fn renew(&self, config: XdpConfig, policy: Policy) -> Result<(), GateError> {
        self.shared.inner().renew(config, policy)
    }

    /// Off every interface at once, whoever else holds the gate yet.
    pub(super) fn detach(&self) {
        let mut inner = self.shared.inner();
        let id = inner.program.id();
        inner.interfaces.drain(..).for_each(|interface| interface.leave(id));
    }

    /// From now on a younger mksgate may take the links, as it does at first.
    pub fn let_go(&self) {
        self.shared.inner().holds = false;
    }

    /// Puts the program back under the links that a younger mksgate has taken and did not live to look after; its end alone
    /// would leave that one's program there, with counts that nobody publishes any more. What it takes late, before it
    /// notices that nobody waits for it, is taken back within a second.
    pub fn take_back(&self) {
        let mut inner = self.shared.inner();
        inner.holds = true;
        inner.interfaces.iter_mut().for_each(|interface| interface.given_up = false);
        inner.take_back();
    }

    /// What the gate of a younger mksgate goes on from. It has the links already: nothing more is counted here.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn estate(&self) -> Result<Estate, GateError> {
        let counted = self.counters()?;
        let inner = self.shared.inner();
        let named = |(key, learned): (SourceKey, Learned)| {
            let tenant = inner.program.plan().name(learned.tenant).to_owned();
            (learned.tenant == 0 || !tenant.is_empty()).then_some((key.0, tenant, learned.expires))
        };
        Ok(Estate { counted, learned: inner.program.all_learned().into_iter().filter_map(named).collect() })
    }

    /// Goes on from what an older mksgate's gate had counted and learned. Tenants that are gone take theirs along; what
    /// this gate has learned itself stays.
    ///
    /// # Errors
    /// What the kernel said; the counts go on all the same.
    pub fn inherit(&self, estate: Estate) -> Result<(), GateError> {
        let mut inner = self.shared.inner();
        let Estate { mut counted, learned } = estate;
        counted.add_base(&inner.base);
        inner.base = counted;
        inner.revision += 1;
        let took = learned
            .into_iter()
            .try_for_each(|(key, tenant, expires)| inner.inherit(SourceKey(key), &tenant, expires));
        inner.known_sources = inner.program.all_learned().len();
        took
    }

    /// What was counted since the start, and by the gates it goes on from.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn counters(&self) -> Result<CounterReport, GateError> {
        let (readers, names, base) = self.shared.inner().readers();
        let mut report = readers.counters(&names).map_err(|e| GateError::map("reading the counters", e))?;
        report.add_base(&base);
        Ok(report)
    }

    /// The loudest sources in the table of rates.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn top_sources(&self, count: usize) -> Result<Vec<LoudSource>, GateError> {
        let (readers, _, _) = self.shared.inner().readers();
        let sources = readers.sources().map_err(|e| GateError::map("reading the sources", e))?;
        Ok(loudest(sources, count))
    }

    /// An interface without it, and why.
    pub fn problem(&self) -> Option<(String, String)> {
        let off = self.status().interfaces.into_iter().find(|interface| interface.mode == "off")?;
        Some((off.name, off.problem.unwrap_or_default()))
    }

    /// What it is like and where it is to be.
    pub(super) fn in_force(&self) -> (XdpConfig, Policy, BTreeSet<String>) {
        let inner = self.shared.inner();
        let names = inner.interfaces.iter().map(|interface| interface.name.clone());
        (inner.config.clone(), inner.policy.clone(), names.collect())
    }

    /// Where it is and what it holds.
    pub fn status(&self) -> GateStatus {
        self.shared.inner().status()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.told.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Shared {
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves maps and lists whole: each change is one call.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
