//! The gate in the running appliance: what it is told by the configuration, and what there is instead when it is off.

use std::net::{IpAddr, SocketAddr};

use mksgate_common::bucket::Rate;
use serde::{Deserialize, Serialize};

use super::{
    Enabled, Gate, GateError, GateStatus, LoudSource, Policy, TenantPolicy, XdpConfig,
    config::rate,
    counters::{CounterReport, DropEvent},
    gate::{Estate, monotonic},
};
use crate::config::{Config, Tenant};

/// The gate, or why there is none.
pub struct Shed {
    gate: Result<Gate, String>,
    /// It is off because something is wrong, not because nobody wants it.
    failed: bool,
}

/// `mksgate xdp status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShedStatus {
    /// Why it is off; then there is nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
    /// Where it is and what it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateStatus>,
    /// Packets by verdict, in the verdicts' order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packets: Vec<VerdictCount>,
    /// SYNs of tenants with any, by verdict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<TenantSyns>,
}

/// One verdict of [`ShedStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictCount {
    /// Its name.
    pub verdict: String,
    /// Packets that got it.
    pub packets: u64,
}

/// One tenant of [`ShedStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantSyns {
    /// Its name; empty for the shared tenant.
    pub name: String,
    /// SYNs let through.
    pub passed: u64,
    /// Shed for any reason.
    pub shed: u64,
    /// Of those, answered by a reset.
    pub resets: u64,
}

/// What the gate is to protect: where the appliance listens, and its tenants.
pub fn policy(config: &Config, listen: &[SocketAddr]) -> Policy {
    let headroom = config.xdp.tenant_headroom;
    let tenant = |(name, tenant): (&String, &Tenant)| TenantPolicy {
        number: tenant.number,
        name: name.clone(),
        max_sessions: Some(tenant.max_sessions),
        rate: tenant.rate.map_or(Rate::UNLIMITED, |sessions| {
            rate(sessions.saturating_mul(headroom), tenant.burst.saturating_mul(headroom))
        }),
        sources: tenant.sources.clone(),
        addresses: tenant.addresses.clone(),
    };
    Policy {
        limits: config.xdp.limits,
        listen: listen.to_vec(),
        tenants: config.tenants.iter().map(tenant).collect(),
        balancers: config.balancers.clone(),
    }
}

/// Starts the gate as `[xdp] enabled` says. Where it is not required, its failure is said and the appliance goes on.
///
/// # Errors
/// It is required and cannot be had, or the policy contradicts itself.
pub fn start(
    config: XdpConfig,
    policy: Policy,
    on_drop: impl Fn(&DropEvent) + Send + 'static,
) -> Result<Shed, GateError> {
    let enabled = config.enabled;
    if enabled == Enabled::Off {
        return Ok(Shed { gate: Err("[xdp] enabled is \"off\"".into()), failed: false });
    }
    match Gate::start(config, policy, on_drop) {
        Ok(gate) => Ok(Shed { gate: Ok(gate), failed: false }),
        Err(error @ GateError::Policy(_)) => Err(error),
        Err(error) if enabled == Enabled::Required => Err(error),
        Err(GateError::NoInterface) => {
            let why = GateError::NoInterface.to_string();
            tracing::info!(why, "XDP gate off");
            Ok(Shed { gate: Err(why), failed: false })
        }
        Err(error) => {
            let why = error.to_string();
            tracing::warn!(why, "XDP gate off: floods are shed later, by the limits in userspace");
            Ok(Shed { gate: Err(why), failed: true })
        }
    }
}

impl Shed {
    /// The gate, if there is one.
    pub fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref().ok()
    }

    /// Why there is none.
    pub fn off(&self) -> Option<&str> {
        self.gate.as_ref().err().map(String::as_str)
    }

    /// What an operator should look at.
    pub fn warning(&self) -> Option<String> {
        match &self.gate {
            Err(why) => self.failed.then(|| format!("XDP gate off: {why}")),
            Ok(gate) => {
                let off = gate.status().interfaces.into_iter().find(|i| i.mode == "off")?;
                Some(format!("no XDP gate on {}: {}", off.name, off.problem.unwrap_or_default()))
            }
        }
    }

    /// See [`Gate::set_active`].
    pub fn set_active(&self, tenant: u32, sessions: u32) {
        if let Some(gate) = self.gate() {
            gate.set_active(tenant, sessions);
        }
    }

    /// See [`Gate::learn`].
    pub fn learn(&self, source: IpAddr, tenant: u32) {
        if let Some(gate) = self.gate() {
            gate.learn(source, tenant, monotonic());
        }
    }

    /// See [`Gate::estate`]; nothing without a gate.
    pub fn estate(&self) -> Option<Estate> {
        let estate = self.gate()?.estate();
        estate
            .inspect_err(|error| tracing::warn!(%error, "XDP gate: the next process counts from nothing"))
            .ok()
    }

    /// See [`Gate::inherit`].
    pub fn inherit(&self, estate: Estate) {
        if let Some(Err(error)) = self.gate().map(|gate| gate.inherit(estate)) {
            tracing::warn!(%error, "XDP gate: sources that were known are learned afresh");
        }
    }

    /// See [`Gate::let_go`].
    pub fn let_go(&self) {
        if let Some(gate) = self.gate() {
            gate.let_go();
        }
    }

    /// See [`Gate::take_back`].
    pub fn take_back(&self) {
        if let Some(gate) = self.gate() {
            gate.take_back();
        }
    }

    /// See [`Gate::update`]; nothing without a gate.
    ///
    /// # Errors
    /// As there.
    pub fn update(&self, config: XdpConfig, policy: Policy) -> Result<(), GateError> {
        self.gate().map_or(Ok(()), |gate| gate.update(config, policy))
    }

    /// What was counted; `None` without a gate.
    pub fn counters(&self) -> Option<CounterReport> {
        self.gate()?.counters().ok()
    }

    /// For `mksgate xdp status`.
    pub fn status(&self) -> ShedStatus {
        let counters = self.counters().unwrap_or_default();
        ShedStatus {
            off: self.off().map(str::to_owned),
            gate: self.gate().map(Gate::status),
            packets: if self.gate().is_some() { counters.named() } else { Vec::new() },
            tenants: counters.tenants.iter().map(TenantSyns::of).filter(|t| t.passed + t.shed > 0).collect(),
        }
    }

    /// For `mksgate xdp top-sources`; empty without a gate.
    pub fn top_sources(&self, count: usize) -> Vec<LoudSource> {
        self.gate().and_then(|gate| gate.top_sources(count).ok()).unwrap_or_default()
    }
}

impl TenantSyns {
    fn of(tenant: &super::TenantReport) -> TenantSyns {
        let [passed, shed @ ..] = tenant.syns;
        let (name, resets) = (tenant.name.clone(), tenant.resets);
        TenantSyns { name, passed, shed: shed.iter().sum(), resets }
    }
}
