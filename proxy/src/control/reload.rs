//! Reload: the file is read and checked whole before anything of it comes into force; a bad one changes nothing.

use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;
use tracing_subscriber::EnvFilter;

use super::Control;
use crate::config::{Config, ConfigError};
use crate::session::{self, CloseReason};
use crate::ticket::{KeyError, KeyRing};
use crate::tls::{self, CertificateError, certificate};

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
}

impl Control {
    /// Brings the file into force, all or nothing. Returns the names of changed settings that want a restart.
    pub fn reload(&self) -> Result<Vec<&'static str>, ReloadError> {
        let result = self.reload_all();
        match &result {
            Ok(waiting) if waiting.is_empty() => tracing::info!("configuration reloaded"),
            Ok(waiting) => {
                tracing::warn!(?waiting, "configuration reloaded; these settings wait for a restart")
            }
            Err(error) => tracing::error!(%error, "configuration not reloaded; the old one stays in force"),
        }
        result
    }

    fn reload_all(&self) -> Result<Vec<&'static str>, ReloadError> {
        let gate = &self.gate;
        let old = gate.config.load_full();
        let new = old.load_again()?;
        let filter = EnvFilter::try_new(&new.log.filter)?;
        let keys = KeyRing::load(&new.tickets.keys)?;
        let provider = new.tls.policy.provider();
        let certified = certificate::load(&new.tls.certificate, &new.tls.key, &provider)?;
        let tls = tls::server_config(new.tls.policy, gate.presented.clone())?;
        // Nothing below can fail.
        let waiting = want_restart(&old, &new);
        gate.presented.replace(certified);
        gate.tls.store(Arc::new(tls));
        gate.provider.store(provider);
        gate.tickets.reload(new.tickets.policy.clone(), keys);
        gate.sources.reload(new.limits);
        gate.metrics.set_tenants(&new.tenants.keys().cloned().collect::<Vec<_>>());
        let gone = gate.tenants.reload(&new.tenants, Instant::now());
        gate.config.store(Arc::new(new));
        let _ = self.log.reload(filter);
        gate.audit.reopen();
        session::close_all(gate, CloseReason::TenantRemoved, |s| gone.contains(&s.tenant));
        Ok(waiting)
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

fn want_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("listen", old.listen != new.listen),
        ("flow", old.flow != new.flow),
        ("admin.socket", old.admin.socket != new.admin.socket),
        ("admin.metrics", old.admin.metrics != new.admin.metrics),
        ("audit", old.audit != new.audit),
        ("log.format", old.log.format != new.log.format),
    ]
    .into_iter()
    .filter_map(|(name, changed)| changed.then_some(name))
    .collect()
}
