//! Reload: the file is read and checked whole before anything of it comes into force; a bad one changes nothing.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use thiserror::Error;
use tracing_subscriber::EnvFilter;

use super::Control;
use crate::admin::Reloaded;
use crate::config::{Config, ConfigError};
use crate::session::{self, CloseReason};
use crate::ticket::{KeyError, KeyRing};
use crate::tls::{self, CertificateError, certificate};
use crate::xdp::{self, GateError};

/// Why the old configuration stays.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key directory.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The certificate or its key.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The TLS policy.
    #[error("tls.policy: {0}")]
    Tls(#[from] rustls::Error),
    /// The log filter.
    #[error("log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The XDP gate.
    #[error(transparent)]
    Xdp(#[from] GateError),
}

impl Control {
    /// Brings the file into force, all or nothing. Returns what changed, and what waits for a restart.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        let _told = self.manager.reloading();
        let result = self.reload_all();
        match &result {
            Ok(Reloaded { changed, needs_restart }) => {
                tracing::info!(?changed, ?needs_restart, "configuration reloaded");
                if !self.gate.xdp.can_change() {
                    xdp::missing_interfaces(&self.gate.config.load().xdp).for_each(|(interface, problem)| {
                        tracing::warn!(interface, %problem, "no XDP gate there after a restart");
                    });
                }
            }
            Err(error) => tracing::error!(%error, "configuration not reloaded; the old one stays in force"),
        }
        result
    }

    fn reload_all(&self) -> Result<Reloaded, ReloadError> {
        let gate = &self.gate;
        let old = gate.config.load_full();
        let new = old.load_again()?;
        let filter = EnvFilter::try_new(&new.log.filter)?;
        let keys = KeyRing::load(&new.tickets.keys)?;
        let provider = new.tls.policy.provider();
        let certified = certificate::load(&new.tls.certificate, &new.tls.key, &provider)?;
        let tls = tls::server_config(new.tls.policy, gate.presented.clone(), new.portals()?)?;
        let listen: Vec<_> = self.doors.addresses().iter().map(|(_, address)| *address).collect();
        gate.xdp.update(new.xdp.clone(), xdp::policy(&new, &listen))?;
        // Nothing below can fail.
        let reloaded = compare(&old, &new, gate.xdp.can_change());
        gate.presented.replace(certified);
        gate.tls.store(Arc::new(tls));
        gate.provider.store(provider.clone());
        gate.vcenters.reload(new.vcenter.clone(), provider);
        gate.tickets.reload(new.tickets.policy.clone(), keys);
        gate.sources.reload(new.limits);
        gate.metrics.set_tenants(&new.tenants.keys().cloned().collect::<Vec<_>>());
        let gone = gate.tenants.reload(&new.tenants, Instant::now());
        gate.tenants.tell_all();
        gate.config.store(Arc::new(new));
        let _ = self.log.reload(filter);
        gate.audit.reopen();
        session::close_all(gate, CloseReason::TenantRemoved, |s| gone.contains(&s.tenant));
        self.set_loaded(SystemTime::now());
        Ok(reloaded)
    }

    /// Ticket keys and certificate alone, when their files changed. What cannot be used is said and left.
    pub(super) fn reload_secrets(&self) {
        let gate = &self.gate;
        let config = gate.config.load();
        match KeyRing::load(&config.tickets.keys) {
            Ok(keys) => gate.tickets.reload(config.tickets.policy.clone(), keys),
            Err(error) => tracing::error!(%error, "ticket keys not reloaded; the old ones stay in force"),
        }
        let provider = gate.provider.load();
        match certificate::load(&config.tls.certificate, &config.tls.key, &provider) {
            Ok(certified) => gate.presented.replace(certified),
            Err(error) => tracing::error!(%error, "certificate not reloaded; the old one stays in force"),
        }
        tracing::info!("ticket keys and certificate read again");
    }
}

/// `gate`: there is an XDP gate, which takes other interfaces at once.
fn compare(old: &Config, new: &Config, gate: bool) -> Reloaded {
    let moved = old.xdp.interfaces != new.xdp.interfaces;
    let named = |all: &[(&str, bool)]| {
        all.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).into()).collect()
    };
    Reloaded {
        changed: named(&[
            ("tenants", old.tenants != new.tenants),
            ("limits", old.limits != new.limits),
            ("deadlines", old.deadlines != new.deadlines),
            ("sockets", old.sockets != new.sockets),
            ("proxy_protocol", old.balancers != new.balancers),
            ("tls", old.tls != new.tls),
            ("tickets", (&old.tickets.keys, &old.tickets.policy) != (&new.tickets.keys, &new.tickets.policy)),
            ("console_address", old.console != new.console),
            ("desk", old.desk != new.desk),
            ("vcenter", old.vcenter != new.vcenter),
            ("xdp", xdp_limits(old) != xdp_limits(new)),
            ("xdp.interfaces", gate && moved),
            ("log.filter", old.log.filter != new.log.filter),
        ]),
        needs_restart: named(&[
            ("listen", old.listen != new.listen),
            ("flow", old.flow != new.flow),
            ("admin", old.admin != new.admin),
            ("audit", old.audit != new.audit),
            ("tickets.journal", old.tickets.journal != new.tickets.journal),
            ("xdp.enabled", old.xdp.enabled != new.xdp.enabled),
            ("xdp.interfaces", !gate && moved),
            ("xdp.keeper", old.xdp.keeper != new.xdp.keeper),
            ("xdp.mode", old.xdp.mode != new.xdp.mode),
            ("xdp.max_sources", old.xdp.max_sources != new.xdp.max_sources),
            ("log.format", old.log.format != new.log.format),
        ]),
    }
}

/// What of `[xdp]` a reload brings into force.
fn xdp_limits(config: &Config) -> (xdp::Limits, u32) {
    (config.xdp.limits, config.xdp.tenant_headroom)
}
