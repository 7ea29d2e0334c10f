//! What the admin API asks for.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use super::Control;
use crate::admin::{
    self, BackendList, BackendView, Failure, Reloaded, RevokeRequest, ServiceState, ServiceStatus,
    TenantLimits, Upgraded,
};
use crate::backend::health::Host;
use crate::backend::vcenter;
use crate::session::{CloseReason, rfc3339};
use crate::ticket::Revocation;
use crate::xdp::{LoudSource, ShedStatus};

impl admin::Control for Control {
    fn ready(&self) -> Result<(), String> {
        if self.gate.is_draining() {
            Err("draining".into())
        } else if !self.serving.load(Ordering::Relaxed) {
            Err("starting".into())
        } else {
            Ok(())
        }
    }

    fn status(&self) -> ServiceStatus {
        let (gate, config) = (&self.gate, self.gate.config.load());
        let state = match (gate.is_draining(), self.serving.load(Ordering::Relaxed)) {
            (true, _) => ServiceState::Draining,
            (false, true) => ServiceState::Serving,
            (false, false) => ServiceState::Starting,
        };
        let uring = gate.engines.refusal().map(|why| format!("io_uring is refused, epoll took over: {why}"));
        let xdp = gate.xdp.warning();
        ServiceStatus {
            state,
            config: config.path.display().to_string(),
            config_loaded: rfc3339(*self.loaded.lock().unwrap_or_else(PoisonError::into_inner)),
            listeners: self
                .doors
                .addresses()
                .iter()
                .map(|(door, address)| format!("{} {address}", door.listener()))
                .collect(),
            flow_driver: gate.engines.driver().into(),
            flow_threads: gate.engines.stats().len(),
            program_replaced: self.program.is_replaced(),
            sessions_elsewhere: gate.succession.elders.len(),
            warnings: uring.into_iter().chain(xdp).collect(),
        }
    }

    fn tenants(&self) -> Vec<TenantLimits> {
        let limits = |view: crate::admission::TenantView| TenantLimits {
            name: view.name.to_string(),
            number: view.tenant.number,
            max_sessions: Some(view.tenant.max_sessions),
            sessions_per_second: view.tenant.rate,
            burst: view.tenant.rate.map(|_| view.tenant.burst),
            max_sessions_per_user: view.tenant.max_sessions_per_user,
        };
        self.gate.tenants.list().into_iter().map(limits).collect()
    }

    fn backends(&self) -> BackendList {
        let error = |last: Option<(SystemTime, String)>| match last {
            Some((at, why)) => (Some(why), Some(rfc3339(at))),
            None => (None, None),
        };
        let host = |(address, host): (String, Host)| {
            let failing = host.is_failing();
            let (last_error, last_error_at) = error(host.last_failure);
            let (answered, failed) = (host.answered, host.failed);
            BackendView { address, name: None, failing, answered, failed, last_error, last_error_at }
        };
        let vcenter = |health: vcenter::Health| {
            let (last_error, last_error_at) = error(health.last_error);
            BackendView {
                address: health.address,
                name: health.name,
                failing: health.refusing || health.failing,
                answered: health.calls.saturating_sub(health.failures),
                failed: health.failures,
                last_error,
                last_error_at,
            }
        };
        BackendList {
            hosts: self.gate.hosts.list().into_iter().map(host).collect(),
            vcenters: self.gate.vcenters.health().into_iter().map(vcenter).collect(),
        }
    }

    fn xdp(&self) -> ShedStatus {
        self.gate.xdp.status()
    }

    fn top_sources(&self, count: usize) -> Vec<LoudSource> {
        self.gate.xdp.top_sources(count)
    }

    fn close(&self, id: u64) {
        self.gate.close(id, CloseReason::Operator);
    }

    fn revoke(&self, what: &RevokeRequest) -> Vec<u64> {
        let RevokeRequest { jti, user, tenant } = what.clone();
        let what = match (jti, user, tenant) {
            (Some(jti), _, _) => Revocation::Jti(jti),
            (None, Some(user), tenant) => Revocation::User { tenant, user },
            (None, None, Some(tenant)) => Revocation::Tenant(tenant),
            (None, None, None) => return Vec::new(),
        };
        Control::revoke(self, &what)
    }

    fn reload(&self) -> Result<Reloaded, Failure> {
        let remedy = "correct the file (`mksgate check` shows the same) and reload again; the old configuration is in force";
        Control::reload(self).map_err(|error| Failure::new(error.to_string(), remedy))
    }

    fn upgrade(self: Arc<Self>) -> Result<Upgraded, Failure> {
        let remedy =
            "the old process goes on; the journal has what the new one said (`journalctl -u mksgate`)";
        Control::upgrade(&self).map_err(|error| Failure::new(error.to_string(), remedy))
    }

    fn drain(&self, within: Option<Duration>) {
        self.start_drain(within);
    }
}
