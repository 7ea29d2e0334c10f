//! What the admin API takes and gives; `openapi.json` describes the same.

use serde::{Deserialize, Serialize};

use crate::metrics::Percentiles;
use crate::session::SessionView;
use crate::xdp::LoudSource;

/// What the service is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not yet accepting.
    #[default]
    Starting,
    /// Accepting.
    Serving,
    /// Accepting nothing, waiting for the live sessions.
    Draining,
}

/// What the appliance says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What it is doing.
    pub state: ServiceState,
    /// The configuration file in force.
    pub config: String,
    /// When it was read, RFC 3339.
    pub config_loaded: String,
    /// Where clients come in: `authd 0.0.0.0:902`.
    pub listeners: Vec<String>,
    /// `io_uring` or `epoll`.
    pub flow_driver: String,
    /// Flow engine threads.
    pub flow_threads: usize,
    /// Whether another program lies where this one was started from: `mksgate upgrade` would start it.
    #[serde(default)]
    pub program_replaced: bool,
    /// Sessions whose flows are in a process before this one, since an upgrade.
    #[serde(default)]
    pub sessions_elsewhere: usize,
    /// What an operator should look at, in words.
    pub warnings: Vec<String>,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The version that runs.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When the process began to count, RFC 3339.
    pub started: String,
    /// Seconds since then.
    pub uptime_seconds: f64,
    /// Whether a load balancer may send clients.
    pub ready: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Live sessions.
    pub sessions: usize,
    /// What the appliance says about itself.
    pub service: ServiceStatus,
}

/// `GET /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionList {
    /// Oldest first.
    pub sessions: Vec<SessionView>,
}

/// `GET /v1/backends`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendList {
    /// Hosts that consoles were opened at, by name.
    pub hosts: Vec<BackendView>,
    /// vCenters that were asked.
    pub vcenters: Vec<BackendView>,
}

/// A host or a vCenter, as real connections found it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Name or address, and port.
    pub address: String,
    /// The section of the configuration, for a vCenter with an account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the last connection failed; a vCenter: whether it is left alone for a while.
    pub failing: bool,
    /// Connections, or calls, that were answered.
    pub answered: u64,
    /// Those that came to nothing.
    pub failed: u64,
    /// Why the last failure was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When that was, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<String>,
}

/// `GET /v1/xdp/sources`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceList {
    /// The loudest first.
    pub sources: Vec<LoudSource>,
}

/// What was closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The sessions' numbers; they end at once, each with its own account.
    pub closed: Vec<u64>,
}

/// `POST /v1/tickets/revoke`: one ticket (`jti` alone), a person (`user`, of one tenant if `tenant` is there too), or a whole tenant
/// (`tenant` alone).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// The ticket's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// The person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

impl RevokeRequest {
    /// Whether it names something, and not a ticket together with something else.
    pub fn is_valid(&self) -> bool {
        let named = |field: &Option<String>| field.as_deref().is_some_and(|text| !text.is_empty());
        let given = [&self.jti, &self.user, &self.tenant].into_iter().flatten().count();
        given > 0
            && [&self.jti, &self.user, &self.tenant].into_iter().flatten().all(|text| !text.is_empty())
            && (!named(&self.jti) || given == 1)
    }
}

/// A tenant and its limits, as configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TenantLimits {
    /// Its name.
    pub name: String,
    /// Its number: the mark of its sockets.
    pub number: u32,
    /// Most sessions at once; `None`: unlimited.
    pub max_sessions: Option<u32>,
    /// New sessions each second; `None`: unlimited.
    pub sessions_per_second: Option<u32>,
    /// New sessions at once above that rate.
    pub burst: Option<u32>,
    /// Most sessions of one person at once; `None`: unlimited.
    pub max_sessions_per_user: Option<u32>,
}

/// A tenant, its limits and its live sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TenantView {
    /// As configured.
    #[serde(flatten)]
    pub limits: TenantLimits,
    /// Live sessions.
    pub sessions: usize,
    /// Persons with live sessions.
    pub users: usize,
    /// Bytes delivered to hypervisors by the live sessions.
    pub up_bytes: u64,
    /// Bytes delivered to clients by the live sessions.
    pub down_bytes: u64,
}

/// `GET /v1/tenants`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TenantList {
    /// In the order of the configuration.
    pub tenants: Vec<TenantView>,
}

/// `GET /v1/hist`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistView {
    /// Beginning of the counting, RFC 3339.
    pub since: String,
    /// Now, RFC 3339.
    pub until: String,
    /// Every stage, in the order of a connection; times in seconds.
    pub stages: Vec<Percentiles>,
}

/// `POST /v1/reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What is different now, in words.
    pub changed: Vec<String>,
    /// What the file says but only a restart can change.
    pub needs_restart: Vec<String>,
}

/// `POST /v1/upgrade`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The process in charge now.
    pub pid: i32,
    /// Its version.
    pub version: String,
    /// Sessions that were live.
    pub sessions: usize,
}

/// `POST /v1/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Sessions that are still live.
    pub sessions: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_names_a_ticket_or_a_person_or_a_tenant() {
        let request = |text: &str| serde_json::from_str::<RevokeRequest>(text).unwrap().is_valid();
        assert!(request(r#"{"jti":"t-1"}"#));
        assert!(request(r#"{"user":"ann"}"#));
        assert!(request(r#"{"user":"ann","tenant":"acme"}"#));
        assert!(request(r#"{"tenant":"acme"}"#));
        for bad in
            ["{}", r#"{"jti":""}"#, r#"{"jti":"t-1","tenant":"acme"}"#, r#"{"user":"","tenant":"acme"}"#]
        {
            assert!(!request(bad), "{bad}");
        }
    }
}
