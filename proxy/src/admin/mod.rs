//! The operator's door: HTTP over a Unix socket, described by `openapi.json` (docs/admin-api.md).
//!
//! Whoever connects is judged by the kernel's word (`SO_PEERCRED`), not by anything sent: root, the service's own user, and the
//! configured users and groups. `/metrics`, `/live` and `/ready` can be had on a loopback TCP port too, with a page that
//! draws them, and nothing else.

mod api;
pub mod client;
mod error;
mod page;
mod peer;
mod relay;
mod server;
mod types;

use std::sync::Arc;
use std::time::Duration;

pub use api::{OPENAPI, Routes};
pub use error::Failure;
pub use relay::{Relay, RelayError};
pub use server::{AdminConfig, AdminError, Server};
pub use types::{
    BackendList, BackendView, Closed, Drained, HistView, Reloaded, RevokeRequest, ServiceState,
    ServiceStatus, SessionList, SourceList, StatusView, TenantLimits, TenantList, TenantView, Upgraded,
};

use crate::metrics::Metrics;
use crate::session::Registry;
use crate::xdp::{LoudSource, ShedStatus};

/// Where the socket is unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mksgate/admin.sock";

/// What the admin API asks of the rest of the appliance. Called on the control thread, so everything but [`Control::reload`],
/// [`Control::tenants`], [`Control::xdp`] and [`Control::top_sources`], which run on a helper thread, must return at once.
pub trait Control: Send + Sync + 'static {
    /// `Err` says why a load balancer should send no client here.
    ///
    /// # Errors
    /// Starting, draining, or something it needs is missing; the text is for operators.
    fn ready(&self) -> Result<(), String>;

    /// What runs, and in which state.
    fn status(&self) -> ServiceStatus;

    /// The configured tenants and their limits.
    fn tenants(&self) -> Vec<TenantLimits>;

    /// How hosts and vCenters do.
    fn backends(&self) -> BackendList;

    /// The XDP gate.
    fn xdp(&self) -> ShedStatus;

    /// The loudest sources that the XDP gate has seen.
    fn top_sources(&self, count: usize) -> Vec<LoudSource>;

    /// Starts closing this live session with [`CloseReason::Operator`](crate::session::CloseReason::Operator).
    fn close(&self, id: u64);

    /// Refuses the tickets from now on and starts closing what they opened; returns the closed sessions.
    fn revoke(&self, what: &RevokeRequest) -> Vec<u64>;

    /// Reads the configuration again, all or nothing.
    ///
    /// # Errors
    /// The new configuration is not valid; the old one stays in force.
    fn reload(&self) -> Result<Reloaded, Failure>;

    /// Starts the program that is installed now and lets it take over sockets and consoles. Runs on a helper thread.
    ///
    /// # Errors
    /// The new process does not start; this one goes on.
    fn upgrade(self: Arc<Self>) -> Result<Upgraded, Failure>;

    /// Accepts nothing more; closes what is left after `within`, or after the configured time. Calling it again only moves the
    /// deadline.
    fn drain(&self, within: Option<Duration>);
}

/// What the handlers work on.
#[derive(Clone)]
pub struct Admin {
    /// The appliance.
    pub control: Arc<dyn Control>,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
    /// Its live sessions.
    pub registry: Arc<Registry>,
}
