//! The gate in the running appliance: what it is told by the configuration, and what there is instead when it is off.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use mksgate_common::bucket::Rate;
use serde::{Deserialize, Serialize};

use super::{
    Enabled, Gate, GateError, GateStatus, LoudSource, Policy, Remote, TenantPolicy, XdpConfig,
    config::rate,
    counters::{CounterReport, DropEvent},
    gate::{Estate, monotonic},
    inner::current_plan,
};
use crate::config::{Config, Tenant};

/// Where the gate is.
pub enum Shed {
    /// In this process.
    Here(Gate),
    /// In that of its keeper, or about to be.
    Kept(Remote),
    /// Off.
    Nowhere {
        /// For what reason.
        why: String,
        /// Something is wrong; else nobody wants it.
        failed: bool,
    },
}

/// `mksgate xdp status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Starts the gate as `[xdp]` says, here or at its keeper; an `heir` takes over from an older process. Where the gate is not
/// required, its failure is said and the appliance goes on; a keeper is tried again for ever.
///
/// # Errors
/// It is required and cannot be had, or the policy contradicts itself.
pub fn start(
    config: XdpConfig,
    policy: Policy,
    heir: bool,
    on_drop: impl Fn(&DropEvent) + Send + 'static,
) -> Result<Shed, GateError> {
    let (enabled, keeper) = (config.enabled, config.keeper.clone());
    if enabled == Enabled::Off {
        return Ok(Shed::Nowhere { why: "[xdp] enabled is \"off\"".into(), failed: false });
    }
    let started = match &keeper {
        None => Gate::start(config, policy, on_drop).map(Shed::Here),
        Some(socket) => {
            current_plan(&policy)?;
            let (remote, first) = Remote::start(socket, config, policy, heir, on_drop)?;
            match first {
                Err(error) if enabled == Enabled::Required => Err(error),
                first => {
                    first.map_or_else(|error| tell_off(&error), |()| tell_kept(socket));
                    Ok(Shed::Kept(remote))
                }
            }
        }
    };
    match started {
        Ok(shed) => Ok(shed),
        Err(error @ GateError::Policy(_)) => Err(error),
        Err(error) if enabled == Enabled::Required => Err(error),
        Err(error) => {
            tell_off(&error);
            let failed = !matches!(error, GateError::NoInterface);
            Ok(Shed::Nowhere { why: error.to_string(), failed })
        }
    }
}

fn tell_off(why: &GateError) {
    match why {
        GateError::NoInterface => tracing::info!(%why, "XDP gate off"),
        _ => tracing::warn!(%why, "XDP gate off: floods are shed later, by the limits in userspace"),
    }
}

fn tell_kept(socket: &Path) {
    tracing::info!(keeper = %socket.display(), "XDP gate on, at its keeper");
}

impl Shed {
    /// It follows a reload.
    pub fn can_change(&self) -> bool {
        !matches!(self, Shed::Nowhere { .. })
    }

    /// What an operator should look at.
    pub fn warning(&self) -> Option<String> {
        let off = |(name, problem): (String, String)| format!("no XDP gate on {name}: {problem}");
        match self {
            Shed::Nowhere { why, failed } => failed.then(|| format!("XDP gate off: {why}")),
            Shed::Kept(remote) => {
                let away = remote.away().map(|why| format!("XDP gate off: {why}"));
                away.or_else(|| remote.problem().map(off))
            }
            Shed::Here(gate) => gate.problem().map(off),
        }
    }

    /// See [`Gate::set_active`].
    pub fn set_active(&self, tenant: u32, sessions: u32) {
        match self {
            Shed::Here(gate) => gate.set_active(tenant, sessions),
            Shed::Kept(remote) => remote.set_active(tenant, sessions),
            Shed::Nowhere { .. } => {}
        }
    }

    /// See [`Gate::learn`].
    pub fn learn(&self, source: IpAddr, tenant: u32) {
        match self {
            Shed::Here(gate) => gate.learn(source, tenant, monotonic()),
            Shed::Kept(remote) => remote.learn(source, tenant),
            Shed::Nowhere { .. } => {}
        }
    }

    /// See [`Gate::estate`]; nothing without a gate, or where a keeper has it before and after.
    pub fn estate(&self) -> Option<Estate> {
        let Shed::Here(gate) = self else { return None };
        gate.estate()
            .inspect_err(|error| tracing::warn!(%error, "XDP gate: the next process counts from nothing"))
            .ok()
    }

    /// See [`Gate::inherit`].
    pub fn inherit(&self, estate: Estate) {
        if let Shed::Here(gate) = self
            && let Err(error) = gate.inherit(estate)
        {
            tracing::warn!(%error, "XDP gate: sources that were known are learned afresh");
        }
    }

    /// An older process has handed everything over.
    pub fn in_charge(&self) {
        if let Shed::Kept(remote) = self {
            remote.in_charge();
        }
    }

    /// See [`Gate::let_go`].
    pub fn let_go(&self) {
        match self {
            Shed::Here(gate) => gate.let_go(),
            Shed::Kept(remote) => remote.let_go(),
            Shed::Nowhere { .. } => {}
        }
    }

    /// See [`Gate::take_back`].
    pub fn take_back(&self) {
        match self {
            Shed::Here(gate) => gate.take_back(),
            Shed::Kept(remote) => remote.take_back(),
            Shed::Nowhere { .. } => {}
        }
    }

    /// See [`Gate::update`]; nothing without a gate.
    ///
    /// # Errors
    /// As there.
    pub fn update(&self, config: XdpConfig, policy: Policy) -> Result<(), GateError> {
        match self {
            Shed::Here(gate) => gate.update(config, policy),
            Shed::Kept(remote) => {
                current_plan(&policy)?;
                remote.update(config, policy)
            }
            Shed::Nowhere { .. } => Ok(()),
        }
    }

    /// Where it is and what it has counted, or why it is off.
    pub(super) fn look(&self) -> Result<(GateStatus, CounterReport), String> {
        match self {
            Shed::Here(gate) => Ok((gate.status(), gate.counters().unwrap_or_default())),
            Shed::Kept(remote) => match remote.look() {
                Ok(Some(seen)) => Ok(*seen),
                Ok(None) => Err(remote.away().unwrap_or_else(|| "its keeper has not started it yet".into())),
                Err(error) => Err(error.to_string()),
            },
            Shed::Nowhere { why, .. } => Err(why.clone()),
        }
    }

    /// For `mksgate xdp status`.
    pub fn status(&self) -> ShedStatus {
        match self.look() {
            Err(why) => ShedStatus { off: Some(why), ..ShedStatus::default() },
            Ok((gate, counters)) => {
                let tenants = counters.tenants.iter().map(TenantSyns::of);
                ShedStatus {
                    off: None,
                    gate: Some(gate),
                    packets: counters.named(),
                    tenants: tenants.filter(|t| t.passed + t.shed > 0).collect(),
                }
            }
        }
    }

    /// For `mksgate xdp top-sources`; empty without a gate.
    pub fn top_sources(&self, count: usize) -> Vec<LoudSource> {
        match self {
            Shed::Here(gate) => gate.top_sources(count).unwrap_or_default(),
            Shed::Kept(remote) => remote.top_sources(count),
            Shed::Nowhere { .. } => Vec::new(),
        }
    }
}

impl TenantSyns {
    fn of(tenant: &super::TenantReport) -> TenantSyns {
        let [passed, shed @ ..] = tenant.syns;
        let (name, resets) = (tenant.name.clone(), tenant.resets);
        TenantSyns { name, passed, shed: shed.iter().sum(), resets }
    }
}
