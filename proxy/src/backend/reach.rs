//! From a Permit to a host that took its ticket, whatever kind of target the ticket names.

use std::time::{Instant, SystemTime};

use super::esxi_mks::PORT;
use super::vcenter::{ConsoleKind, Vcenters, Wanted};
use super::{BackendError, Dial, EsxiMks, two_pass};
use crate::config::{ConsolePower, Tenant};
use crate::gate::Gate;
use crate::metrics::Stage;
use crate::ticket::{Permit, Target, TargetKind};

/// A host that waits for THUMBPRINT or CONNECT.
pub struct Reached {
    /// The host.
    pub host: EsxiMks,
    /// The VM's configuration file there.
    pub cfg_file: String,
}

/// Asks the vCenter first where the ticket names one, then connects to the host and logs in there.
pub async fn reach(gate: &Gate, permit: &Permit, how: Dial<'_>) -> Result<Reached, BackendError> {
    let target = permit.target();
    if target.kind != TargetKind::Vcenter {
        return reach_host(gate, target, permit.vm(), how).await;
    }
    let ask = || ask_vcenter(&gate.vcenters, target, permit.vm(), how.tenant, ConsoleKind::Mks);
    let resolved = ask().await?;
    match reach_host(gate, &resolved, permit.vm(), how).await {
        // It moved between ticket and connect, or its host just went away: the vCenter knows where it is now.
        Err(error) if error.may_have_moved() => {
            tracing::debug!(reason = error.as_str(), %error, "the host did not take a fresh ticket; asking the vCenter again");
            let resolved = ask().await?;
            reach_host(gate, &resolved, permit.vm(), how).await
        }
        other => other,
    }
}

/// The host, the ticket and the file that the vCenter names for this VM just now. Its ticket works once.
pub async fn ask_vcenter(
    vcenters: &Vcenters,
    target: &Target,
    vm: &str,
    tenant: &Tenant,
    kind: ConsoleKind,
) -> Result<Target, BackendError> {
    let wanted = Wanted {
        target: target.clone(),
        vm: moref(target, vm).to_owned(),
        kind,
        power_on: tenant.console_power == ConsolePower::Implicit,
        reach: tenant.targets.clone(),
    };
    Ok(vcenters.console(wanted).await?)
}

/// The VM's id at the vCenter: `cfg_file` of the target, which says how the target knows the VM; `vm` where absent.
pub fn moref<'a>(target: &'a Target, vm: &'a str) -> &'a str {
    target.cfg_file.as_deref().unwrap_or(vm)
}

async fn reach_host(gate: &Gate, target: &Target, vm: &str, how: Dial<'_>) -> Result<Reached, BackendError> {
    let reached = try_host(gate, target, vm, how).await;
    gate.hosts.note(&target.host, target.port.unwrap_or(PORT), &reached, SystemTime::now());
    reached
}

async fn try_host(gate: &Gate, target: &Target, vm: &str, how: Dial<'_>) -> Result<Reached, BackendError> {
    let within = gate.config.load().deadlines.backend;
    let provider = gate.provider.load_full();
    let began = Instant::now();
    let host = if target.kind == TargetKind::EsxTwoPass {
        two_pass::login(target, vm, provider, within, how).await?
    } else {
        let wire = EsxiMks::connect(target, how).await?;
        gate.metrics.record(Stage::BackendConnect, began.elapsed());
        EsxiMks::login(wire, target, provider, within).await?
    };
    Ok(Reached { host, cfg_file: target.cfg_file.clone().unwrap_or_else(|| vm.to_owned()) })
}
