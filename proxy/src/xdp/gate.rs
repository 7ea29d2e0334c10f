//! The gate as the rest of the proxy sees it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, atomic::Ordering},
    thread::JoinHandle,
};

use mksgate_common::map::{Learned, SourceKey};
use nix::{
    sys::eventfd::{EfdFlags, EventFd},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::{
    attach::{Attachment, State},
    config::{Enabled, OnLimit, XdpConfig},
    counters::{CounterReport, DropEvent, LoudSource, loudest, source_key},
    error::{GateError, InterfaceProblem},
    local,
    maps::{Program, Readers, Sizes},
    policy::{Plan, Policy},
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
    pending: Mutex<Pending>,
    pub wake: EventFd,
    stop: AtomicBool,
}

/// What the proxy has told and the kernel does not know yet.
#[derive(Default)]
pub(super) struct Pending {
    pub active: HashMap<u32, u32>,
    /// Tenant (0: several) and when, by source.
    pub learned: HashMap<SourceKey, (u32, u64)>,
}

/// Sources waiting to be made known; past it new ones wait for their next ticket.
const MAX_PENDING: usize = 4096;

/// Everything that changes under one lock.
pub(super) struct Inner {
    pub config: XdpConfig,
    pub policy: Policy,
    pub program: Program,
    pub interfaces: Vec<Interface>,
    pub base: CounterReport,
    /// Counts the programs, so that the thread notices a new one's ring buffer.
    pub generation: u64,
    pub known_sources: usize,
    /// Links that a younger mksgate takes are taken back.
    pub holds: bool,
}

/// One interface that is to have the program.
pub(super) struct Interface {
    pub name: String,
    pub attachment: Result<Attachment, InterfaceProblem>,
    /// A younger mksgate has it; it is left alone.
    pub given_up: bool,
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
        let fd = program.fd()?;
        let interfaces: Vec<Interface> = names
            .into_iter()
            .map(|name| {
                let attachment = Attachment::new(fd, &name, config.mode);
                Interface { name, attachment, given_up: false }
            })
            .collect();
        enough(&config, &interfaces)?;
        for interface in &interfaces {
            interface.tell();
        }
        let inner = Inner {
            config,
            policy,
            program,
            interfaces,
            base: CounterReport::default(),
            generation: 0,
            known_sources: 0,
            holds: false,
        };
        let io = |what| move |error: std::io::Error| GateError::Io { what, error };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| io("eventfd")(e.into()))?;
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            pending: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
        });
        let for_worker = shared.clone();
        let worker = std::thread::Builder::new()
            .name("xdp".into())
            .spawn(move || worker::run(&for_worker, &on_drop))
            .map_err(io("starting its thread"))?;
        Ok(Gate { shared, worker: Some(worker) })
    }

    /// Publishes how many sessions a tenant has now; the kernel knows at once, or a few milliseconds later under load.
    /// Calls for one tenant take effect in the order they are made.
    pub fn set_active(&self, tenant: u32, sessions: u32) {
        self.shared.tell(|pending| {
            pending.active.insert(tenant, sessions);
        });
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
        let key = source_key(source);
        self.shared.tell(|pending| {
            if let Some((known, at)) = pending.learned.get_mut(&key) {
                (*known, *at) = (if *known == tenant { tenant } else { 0 }, now);
            } else if pending.learned.len() < MAX_PENDING {
                pending.learned.insert(key, (tenant, now));
            }
        });
    }

    /// Publishes another policy without detaching. Sizes that no longer suffice bring a new program under the same
    /// links; its counters go on, the sources' buckets start afresh.
    ///
    /// # Errors
    /// The old policy stays in force.
    pub fn update(&self, policy: Policy) -> Result<(), GateError> {
        let plan = Plan::new(&policy, &local_addresses(&policy)?)?;
        let mut inner = self.shared.inner();
        inner.publish(plan)?;
        inner.policy = policy;
        inner.config.limits = inner.policy.limits;
        Ok(())
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

    /// Where it is and what it holds.
    pub fn status(&self) -> GateStatus {
        self.shared.inner().status()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // A full eventfd wakes as well, and it cannot fail otherwise.
        let _ = self.shared.wake.write(1);
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

    pub fn take_pending(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes something down and wakes the thread, once for all that is noted before it runs.
    fn tell(&self, note: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pending.active.is_empty() && pending.learned.is_empty();
        note(&mut pending);
        drop(pending);
        if idle {
            // A full eventfd wakes as well, and it cannot fail otherwise.
            let _ = self.wake.write(1);
        }
    }
}

impl Interface {
    /// Says in the log what became of it.
    pub fn tell(&self) {
        let name = &self.name;
        match &self.attachment {
            Ok(Attachment { native: true, taken_over, .. }) => {
                tracing::info!(interface = name, mode = "native", taken_over, "XDP gate attached");
            }
            Ok(Attachment { fallback, taken_over, .. }) => {
                let why = fallback.as_deref().unwrap_or("as configured");
                tracing::info!(interface = name, mode = "generic", why, taken_over, "XDP gate attached");
            }
            Err(problem) => tracing::warn!(interface = name, %problem, "no XDP gate on this interface"),
        }
    }
}

impl Inner {
    /// Publishes a plan, in place or by a larger program under the same links.
    pub fn publish(&mut self, plan: Plan) -> Result<(), GateError> {
        if self.program.holds(&plan) {
            return self.program.publish(plan).map_err(|e| GateError::map("publishing the policy", e));
        }
        let sizes = Sizes::for_plan(&plan, self.config.max_sources);
        let mut program = Program::with_sizes(plan, sizes)?;
        let filling = |e| GateError::map("filling the maps", e);
        for (number, active) in self.program.active().iter().enumerate() {
            let number = number as u32;
            if self.program.plan().name(number) == program.plan().name(number) {
                program.set_active(number, *active).map_err(filling)?;
            }
        }
        for (key, learned) in self.program.all_learned() {
            if self.program.plan().name(learned.tenant) == program.plan().name(learned.tenant) {
                program.learn(key, learned).map_err(filling)?;
            }
        }
        let fd = program.fd()?;
        for interface in self.interfaces.iter().filter(|i| !i.given_up) {
            if let Ok(attachment) = &interface.attachment {
                attachment.replace(fd).map_err(|error| GateError::io("exchanging the program", error))?;
            }
        }
        if let Ok(mut counted) = self.program.counters() {
            counted.add_base(&self.base);
            self.base = counted;
        }
        self.program = program;
        self.generation += 1;
        Ok(())
    }

    /// Puts the program back where another mksgate has put its own.
    pub fn take_back(&self) {
        let Ok(fd) = self.program.fd() else { return };
        for Interface { name, attachment, .. } in &self.interfaces {
            let Ok(attachment) = attachment else { continue };
            if attachment.state(self.program.id()) == State::TakenOver {
                match attachment.replace(fd) {
                    Ok(()) => tracing::info!(interface = name, "XDP gate taken back"),
                    Err(error) => tracing::error!(interface = name, %error, "XDP gate: cannot be taken back"),
                }
            }
        }
    }

    /// Makes a source known, unless its tenant is no tenant or it is a load balancer.
    pub fn learn(&mut self, source: SourceKey, tenant: u32, now: u64) -> Result<(), GateError> {
        let lasts = self.config.limits.learned.as_nanos() as u64;
        let exempt = self.is_balancer(source);
        if lasts == 0 || exempt || (tenant != 0 && self.program.plan().name(tenant).is_empty()) {
            return Ok(());
        }
        match merge(self.program.learned(source), tenant, now, lasts) {
            Some(learned) => {
                self.program.learn(source, learned).map_err(|e| GateError::map("learning a source", e))
            }
            None => Ok(()),
        }
    }

    fn inherit(&mut self, source: SourceKey, tenant: &str, expires: u64) -> Result<(), GateError> {
        let tenant = match tenant {
            "" => Some(0),
            name => self.program.plan().names.iter().position(|known| known == name),
        };
        let wanted = !self.config.limits.learned.is_zero() && !self.is_balancer(source);
        match tenant.and_then(|number| u32::try_from(number).ok()) {
            Some(tenant) if wanted && self.program.learned(source).is_none() => self
                .program
                .learn(source, Learned { expires, tenant })
                .map_err(|e| GateError::map("learning a source", e)),
            _ => Ok(()),
        }
    }

    fn is_balancer(&self, source: SourceKey) -> bool {
        let address = source.as_v4().map(IpAddr::from).or_else(|| source.as_v6().map(IpAddr::from));
        address.is_none_or(|address| self.policy.is_balancer(address))
    }

    fn readers(&self) -> (Arc<Readers>, Vec<String>, CounterReport) {
        (self.program.readers(), self.program.plan().names.clone(), self.base.clone())
    }

    fn status(&self) -> GateStatus {
        let plan = self.program.plan();
        let interfaces = self.interfaces.iter().map(|i| i.status(self.program.id())).collect();
        GateStatus {
            interfaces,
            program: self.program.id(),
            on_limit: self.config.limits.on_limit,
            destinations: plan.destinations.len(),
            tenants: plan.names.iter().filter(|name| !name.is_empty()).count(),
            prefixes: plan.prefixes.len(),
            known_sources: self.known_sources,
            max_sources: self.config.max_sources,
        }
    }
}

/// What to write for a source that is seen with a ticket of `tenant`; `None` if what is there will do.
fn merge(known: Option<Learned>, tenant: u32, now: u64, lasts: u64) -> Option<Learned> {
    let fresh = Learned { expires: now.saturating_add(lasts), tenant };
    match known.filter(|known| known.expires > now) {
        None => Some(fresh),
        Some(known) if known.tenant == tenant && known.expires - now > lasts / 2 => None,
        Some(known) if known.tenant == tenant => Some(fresh),
        Some(_) => Some(Learned { tenant: 0, ..fresh }),
    }
}

fn local_addresses(policy: &Policy) -> Result<Vec<IpAddr>, GateError> {
    if !policy.wants_local() {
        return Ok(Vec::new());
    }
    let io = |error| GateError::Io { what: "reading this host's addresses", error };
    Ok(local::addresses().map_err(io)?.into_iter().map(|(_, address)| address).collect())
}

/// The current plan with the host's addresses as they are now.
pub(super) fn current_plan(policy: &Policy) -> Result<Plan, GateError> {
    Ok(Plan::new(policy, &local_addresses(policy)?)?)
}

fn interface_names(config: &XdpConfig, policy: &Policy) -> Result<Vec<String>, GateError> {
    if !config.interfaces.is_empty() {
        return Ok(config.interfaces.clone());
    }
    let tenants = policy.tenants.iter().flat_map(|t| t.addresses.iter().copied());
    let listen: Vec<_> = policy.listen.iter().copied().chain(tenants).collect();
    let io = |error| GateError::Io { what: "finding the interfaces", error };
    let names = local::interfaces_for(&listen).map_err(io)?;
    if names.is_empty() { Err(GateError::NoInterface) } else { Ok(names) }
}

/// At least one interface has it; all, if it is required.
fn enough(config: &XdpConfig, interfaces: &[Interface]) -> Result<(), GateError> {
    let has = |interface: &Interface| interface.attachment.is_ok();
    if config.enabled != Enabled::Required && interfaces.iter().any(has) {
        return Ok(());
    }
    for Interface { name, attachment, .. } in interfaces {
        if let Err(problem) = attachment {
            return Err(GateError::Interface { name: name.clone(), problem: problem.clone() });
        }
    }
    Ok(())
}

/// `mksgate xdp status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// Each interface that is to have it.
    pub interfaces: Vec<InterfaceStatus>,
    /// The kernel's id of the program, as `bpftool prog` lists it.
    pub program: u32,
    /// What a shed SYN gets.
    pub on_limit: OnLimit,
    /// Protected addresses and ports.
    pub destinations: usize,
    /// Tenants with a number.
    pub tenants: usize,
    /// Source prefixes.
    pub prefixes: usize,
    /// Sources known by a ticket, as last counted.
    pub known_sources: usize,
    /// The most there can be of those, and of buckets of sources.
    pub max_sources: u32,
}

/// One interface of [`GateStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `"native"`, `"generic"` or `"off"`.
    pub mode: String,
    /// Why it is off, or not native.
    pub problem: Option<String>,
}

impl Interface {
    fn status(&self, program: u32) -> InterfaceStatus {
        let off = |why: String| ("off", Some(why));
        let (mode, problem) = match &self.attachment {
            Err(problem) => off(problem.to_string()),
            Ok(attachment) => match attachment.state(program) {
                State::Attached if attachment.native => ("native", None),
                State::Attached => ("generic", attachment.fallback.clone()),
                State::Gone => {
                    off("the interface has vanished; it is attached to again when it returns".into())
                }
                State::TakenOver => off("a younger mksgate has taken it over".into()),
            },
        };
        InterfaceStatus { name: self.name.clone(), mode: mode.into(), problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: u64 = 100;

    fn known(tenant: u32, expires: u64) -> Option<Learned> {
        Some(Learned { expires, tenant })
    }

    #[test]
    fn a_source_is_learned_refreshed_and_shared() {
        assert_eq!(merge(None, 3, 1000, LASTS), known(3, 1100));
        assert_eq!(merge(known(3, 1090), 3, 1000, LASTS), None, "fresh enough");
        assert_eq!(merge(known(3, 1040), 3, 1000, LASTS), known(3, 1100));
        assert_eq!(merge(known(3, 1090), 4, 1000, LASTS), known(0, 1100), "two tenants behind one address");
        assert_eq!(merge(known(0, 1040), 4, 1000, LASTS), known(0, 1100), "still both");
        assert_eq!(merge(known(3, 999), 4, 1000, LASTS), known(4, 1100), "the old one has expired");
    }
}
