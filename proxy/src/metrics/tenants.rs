//! Counters by tenant. Only names from the configuration become label values; everything else counts as `tenant=""`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::samples::Samples;
use super::stage::Door;
use crate::session::{CloseReason, Fault};

/// The label value of whatever no configured tenant owns.
const UNKNOWN: &str = "";

/// Every tenant that was ever configured in this process, and the unnamed one.
pub(super) struct Tenants {
    known: ArcSwap<HashMap<Arc<str>, Arc<Tenant>>>,
    unnamed: Arc<Tenant>,
}

/// One tenant's numbers.
#[derive(Default)]
pub(super) struct Tenant {
    /// Still in the configuration. A removed tenant is shown until its last session ended.
    active: AtomicBool,
    live: AtomicI64,
    opened: [AtomicU64; Door::COUNT],
    closed: [AtomicU64; CloseReason::ALL.len()],
    up: AtomicU64,
    down: AtomicU64,
    refused: Mutex<BTreeMap<(Door, &'static str), u64>>,
}

impl Tenants {
    pub(super) fn new() -> Self {
        Self { known: ArcSwap::default(), unnamed: Arc::new(Tenant::default()) }
    }

    /// Replaces the set of names. Counters of a name that stays, or comes back, go on.
    pub(super) fn set(&self, names: &[String]) {
        let mut known: HashMap<_, _> = self.known.load().as_ref().clone();
        for tenant in known.values() {
            tenant.active.store(false, Ordering::Relaxed);
        }
        for name in names {
            known.entry(Arc::from(name.as_str())).or_default().active.store(true, Ordering::Relaxed);
        }
        self.known.store(Arc::new(known));
    }

    /// The tenant that is configured now.
    pub(super) fn active(&self, name: &str) -> Arc<Tenant> {
        let tenant = self.ever(name);
        if tenant.active.load(Ordering::Relaxed) { tenant } else { self.unnamed.clone() }
    }

    /// The tenant that is or was configured: what was opened as its session is closed as its session.
    pub(super) fn ever(&self, name: &str) -> Arc<Tenant> {
        self.known.load().get(name).unwrap_or(&self.unnamed).clone()
    }

    pub(super) fn sample(&self, out: &mut Samples) {
        out.announce_counter(OPENED.0, OPENED.1);
        out.announce_counter(CLOSED.0, CLOSED.1);
        out.announce_counter(REFUSED.0, REFUSED.1);
        let known = self.known.load();
        let mut shown: Vec<_> = known.iter().filter(|(_, tenant)| tenant.is_shown()).collect();
        shown.sort_by(|a, b| a.0.cmp(b.0));
        self.unnamed.sample(UNKNOWN, out);
        for (name, tenant) in shown {
            tenant.sample(name, out);
        }
    }
}

const OPENED: (&str, &str) = ("mksgate_sessions_opened", "Consoles handed to the flow engine");
const CLOSED: (&str, &str) =
    ("mksgate_sessions_closed", "Consoles that ended, by the one reason they ended with");
const REFUSED: (&str, &str) = ("mksgate_refusals", "Connections that did not become a console");
const LIVE: (&str, &str) = ("mksgate_sessions", "Live consoles");
const BYTES: (&str, &str) =
    ("mksgate_session_bytes", "Bytes delivered, added when the session ends; up is towards the hypervisor");

impl Tenant {
    pub(super) fn opened(&self, door: Door) {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.opened[door as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn adopted(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, reason: CloseReason, up: u64, down: u64) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.up.fetch_add(up, Ordering::Relaxed);
        self.down.fetch_add(down, Ordering::Relaxed);
    }

    pub(super) fn moved(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, door: Door, reason: &'static str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry((door, reason)).or_default() += 1;
    }

    fn is_shown(&self) -> bool {
        self.active.load(Ordering::Relaxed) || self.live.load(Ordering::Relaxed) != 0
    }

    fn sample(&self, name: &str, out: &mut Samples) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        out.gauge(LIVE.0, LIVE.1, &[("tenant", name)], self.live.load(Ordering::Relaxed));
        for door in Door::ALL {
            let labels = [("tenant", name), ("door", door.as_str())];
            out.counter(OPENED.0, OPENED.1, &labels, load(&self.opened[door as usize]));
        }
        for reason in CloseReason::ALL {
            // Thirteen reasons by a thousand tenants: a series appears with its first event.
            let count = load(&self.closed[reason as usize]);
            if count > 0 {
                let fault = fault_name(reason.fault());
                let labels = [("tenant", name), ("reason", reason.as_str()), ("fault", fault)];
                out.counter(CLOSED.0, CLOSED.1, &labels, count);
            }
        }
        for (direction, bytes) in [("up", &self.up), ("down", &self.down)] {
            out.counter(BYTES.0, BYTES.1, &[("tenant", name), ("direction", direction)], load(bytes));
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for ((door, reason), count) in refused.iter() {
            let labels = [("door", door.as_str()), ("tenant", name), ("reason", reason)];
            out.counter(REFUSED.0, REFUSED.1, &labels, *count);
        }
    }
}

fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::None => "none",
        Fault::Client => "client",
        Fault::Backend => "backend",
        Fault::Gate => "gate",
    }
}
