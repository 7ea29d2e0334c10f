//! What the gate's handle and its thread change under one lock.

use std::{io, net::IpAddr, sync::Arc};

use mksgate_common::map::{Learned, SourceKey};
use serde::{Deserialize, Serialize};

use super::{
    attach::{Attachment, State},
    config::{Enabled, Mode, OnLimit, XdpConfig},
    counters::CounterReport,
    error::GateError,
    interface::{Interface, InterfaceStatus, all, enough, interface_names},
    local,
    maps::Program,
    policy::{Plan, Policy},
    readers::Readers,
    sizes::Sizes,
};

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
    /// Counts what changes configuration, policy or base.
    pub revision: u64,
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

impl Inner {
    pub fn new(config: XdpConfig, policy: Policy, program: Program, interfaces: Vec<Interface>) -> Inner {
        let known_sources = program.all_learned().len();
        let (base, generation, revision) = (CounterReport::default(), 0, 0);
        Inner { config, policy, program, interfaces, base, generation, known_sources, holds: false, revision }
    }

    /// Brings another configuration into force, all or nothing. Interfaces that it names as before are not touched.
    pub fn update(&mut self, config: XdpConfig, policy: Policy) -> Result<(), GateError> {
        let strict = self.config.enabled == Enabled::Required || self.config.interfaces != config.interfaces;
        self.apply(config, policy, strict)
    }

    /// The same with what a reload leaves as it was: `enabled`, `mode` and `max_sources`. The program is loaded before anything
    /// changes, and exchanged under its links; only an interface that changes its mode is without for a moment.
    pub fn renew(&mut self, config: XdpConfig, policy: Policy) -> Result<(), GateError> {
        let wanted = self.wanted(&config, &policy)?;
        let old = self.config.clone();
        self.change_mode(&wanted, &config)?;
        (self.config.enabled, self.config.max_sources) = (config.enabled, config.max_sources);
        let strict = config.enabled == Enabled::Required;
        self.apply(config, policy, strict).inspect_err(|_| {
            self.set_mode(&wanted, old.mode);
            self.config = old;
        })
    }

    /// Where that leaves too few interfaces with the gate, they are as before.
    fn change_mode(&mut self, wanted: &[String], config: &XdpConfig) -> Result<(), GateError> {
        self.set_mode(wanted, config.mode);
        let stay = self.interfaces.iter().filter(|interface| wanted.contains(&interface.name));
        enough(config, stay).inspect_err(|_| self.set_mode(wanted, self.config.mode))
    }

    fn set_mode(&mut self, wanted: &[String], mode: Mode) {
        let fd = self.program.fd();
        let stays = |interface: &&mut Interface| !interface.given_up && wanted.contains(&interface.name);
        self.interfaces.iter_mut().filter(stays).for_each(|interface| interface.set_mode(fd, mode));
    }

    fn apply(&mut self, config: XdpConfig, policy: Policy, strict: bool) -> Result<(), GateError> {
        let plan = current_plan(&policy)?;
        let wanted = self.wanted(&config, &policy)?;
        let before = self.interfaces.len();
        let added = self.attach_to(&wanted, &config, strict)?;
        self.interfaces.extend(added);
        if let Err(error) = self.publish(plan) {
            self.interfaces.truncate(before);
            return Err(error);
        }
        self.interfaces[before..].iter().for_each(Interface::tell);
        self.leave_all_but(&wanted);
        // These two are the program's and the process's, and wait for others.
        let XdpConfig { enabled, max_sources, .. } = self.config;
        self.config = XdpConfig { enabled, max_sources, limits: policy.limits, ..config };
        self.policy = policy;
        self.revision += 1;
        Ok(())
    }

    /// Where it is to be. Interfaces that nobody has named, then or now, are kept: one that has lost its address for a
    /// while, as where addresses move between hosts, may get it back without a reload.
    fn wanted(&self, config: &XdpConfig, policy: &Policy) -> Result<Vec<String>, GateError> {
        let found = interface_names(config, policy);
        if !config.interfaces.is_empty() || !self.config.interfaces.is_empty() {
            return found;
        }
        let mut names: Vec<String> = self.interfaces.iter().map(|i| i.name.clone()).collect();
        match found {
            Ok(found) => names.extend(found.into_iter().filter(|name| self.is_new(name))),
            Err(GateError::NoInterface) => {}
            Err(error) => return Err(error),
        }
        Ok(names)
    }

    fn is_new(&self, name: &str) -> bool {
        self.interfaces.iter().all(|interface| interface.name != name)
    }

    /// The program, as it is now, on those that do not have it. What an operator has just asked for is had or refused;
    /// where an address merely leads to another interface, that may wait, as at the start.
    fn attach_to(
        &self,
        wanted: &[String],
        config: &XdpConfig,
        strict: bool,
    ) -> Result<Vec<Interface>, GateError> {
        let fd = self.program.fd();
        let new = wanted.iter().filter(|name| self.is_new(name));
        let added: Vec<_> = new.map(|name| Interface::attach(fd, name.clone(), config.mode)).collect();
        if strict {
            all(added.iter())?;
        }
        Ok(added)
    }

    fn leave_all_but(&mut self, wanted: &[String]) {
        let place = |interface: &Interface| wanted.iter().position(|name| *name == interface.name);
        let id = self.program.id();
        for interface in self.interfaces.extract_if(.., |interface| place(interface).is_none()) {
            interface.leave(id);
            tracing::info!(interface = interface.name, "XDP gate detached: no longer among its interfaces");
        }
        self.interfaces.sort_by_key(place);
    }

    /// Publishes a plan, in place or by a program of other sizes under the same links.
    pub fn publish(&mut self, plan: Plan) -> Result<(), GateError> {
        if self.program.holds(&plan, self.config.max_sources) {
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
        self.exchange(&program).inspect_err(|_| {
            // Those that have the new one already.
            let _ = self.exchange(&self.program);
        })?;
        if let Ok(mut counted) = self.program.counters() {
            counted.add_base(&self.base);
            self.base = counted;
        }
        self.program = program;
        self.generation += 1;
        Ok(())
    }

    /// Those of this process.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.interfaces.iter().filter(|i| !i.given_up).filter_map(|i| i.attachment.as_ref().ok())
    }

    /// The ids of their links.
    pub fn links(&self) -> impl Iterator<Item = u32> {
        self.attachments().map(Attachment::id)
    }

    /// Tries those that have no program.
    pub fn attach_missing(&mut self) {
        let (fd, mode) = (self.program.fd(), self.config.mode);
        for interface in self.interfaces.iter_mut().filter(|i| !i.given_up && i.attachment.is_err()) {
            if let Ok(attachment) = Attachment::new(fd, &interface.name, mode) {
                interface.attachment = Ok(attachment);
                interface.tell();
            }
        }
    }

    /// Puts a program under every link that is this process's.
    pub fn exchange(&self, program: &Program) -> Result<(), GateError> {
        let fd = program.fd();
        // Where the interface has vanished there is nothing to exchange.
        let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ENOLINK);
        self.attachments()
            .map(|attachment| attachment.replace(fd).or_else(|e| if gone(&e) { Ok(()) } else { Err(e) }))
            .fold(Ok(()), Result::and)
            .map_err(|error| GateError::io("exchanging the program", error))
    }

    /// Puts the program back where another mksgate has put its own.
    pub fn take_back(&self) {
        let fd = self.program.fd();
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

    /// The same of a source that an older mksgate's gate knew.
    pub fn inherit(&mut self, source: SourceKey, tenant: &str, expires: u64) -> Result<(), GateError> {
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

    /// What reads the counters without the lock, whose they are, and what came before them.
    pub fn readers(&self) -> (Arc<Readers>, Vec<String>, CounterReport) {
        (self.program.readers(), self.program.plan().names.clone(), self.base.clone())
    }

    /// Where it is and what it holds.
    pub fn status(&self) -> GateStatus {
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

/// The plan with the host's addresses as they are now.
pub(super) fn current_plan(policy: &Policy) -> Result<Plan, GateError> {
    Ok(Plan::new(policy, &local_addresses(policy)?)?)
}

/// This host's addresses, where the policy asks for them.
pub(super) fn local_addresses(policy: &Policy) -> Result<Vec<IpAddr>, GateError> {
    if !policy.wants_local() {
        return Ok(Vec::new());
    }
    let io = |error| GateError::Io { what: "reading this host's addresses", error };
    Ok(local::addresses().map_err(io)?.into_iter().map(|(_, address)| address).collect())
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
