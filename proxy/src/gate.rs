//! What every thread of the appliance shares: the configuration in force and the one instance of everything that counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;

use crate::admission::{Sources, Tenants};
use crate::audit::Audit;
use crate::backend::vcenter::Vcenters;
use crate::config::Config;
use crate::desk::Desk;
use crate::flow::Engines;
use crate::metrics::{Door, Metrics};
use crate::sdk::SdkSessions;
use crate::session::{CloseReason, Registry, Session};
use crate::ticket::Tickets;
use crate::tls::Presented;
use crate::xdp::Shed;

/// The appliance.
pub struct Gate {
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// Stage 1 of admission.
    pub sources: Arc<Sources>,
    /// Stage 2 of admission.
    pub tenants: Arc<Tenants>,
    /// Opens tickets and knows their use.
    pub tickets: Arc<Tickets>,
    /// The certificate shown now.
    pub presented: Arc<Presented>,
    /// TLS as the doors speak it.
    pub tls: ArcSwap<ServerConfig>,
    /// TLS as it is spoken to hypervisors.
    pub provider: ArcSwap<CryptoProvider>,
    /// The vCenters.
    pub vcenters: Arc<Vcenters>,
    /// Sessions of clients that take the appliance for a vCenter.
    pub sdk: SdkSessions,
    /// The ticket desk.
    pub desk: Desk,
    /// Ports of the doors, as tickets name them.
    pub ports: Ports,
    /// The flow engines.
    pub engines: Engines,
    /// Live sessions.
    pub registry: Arc<Registry>,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// The account of sessions.
    pub audit: Arc<Audit>,
    /// The XDP gate in front of the listeners, or why there is none.
    pub xdp: Arc<Shed>,
    /// Connections that have not shown their PROXY header yet.
    pub headers_pending: AtomicUsize,
    /// No new session is let in.
    pub draining: AtomicBool,
}

/// Ports of the doors: those that are listened on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The first TLS door.
    pub tls: Option<u16>,
    /// The first authd door.
    pub authd: Option<u16>,
}

impl Gate {
    /// Under which name a console is to be asked for: the configured one, else the address the client dialled.
    pub fn console_host(&self, caller: &Caller) -> String {
        self.config
            .load()
            .console
            .address
            .clone()
            .unwrap_or_else(|| caller.local.ip().to_canonical().to_string())
    }

    /// The same with the port of the TLS doors, where that is not 443: the authority of a URL.
    pub fn console_authority(&self, caller: &Caller) -> String {
        let host = self.console_host(caller);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        match self.console_tls_port() {
            443 => host,
            port => format!("{host}:{port}"),
        }
    }

    /// The public port of the TLS doors.
    pub fn console_tls_port(&self) -> u16 {
        self.config.load().console.tls_port.or(self.ports.tls).unwrap_or(443)
    }

    /// The public port of the authd doors; that of the TLS doors where there is none.
    pub fn console_authd_port(&self) -> u16 {
        let public = self.config.load().console.authd_port.or(self.ports.authd);
        public.unwrap_or_else(|| self.console_tls_port())
    }

    /// Why a session that was just made visible has to end at once: its ticket was revoked, or its tenant removed, after it
    /// was let in and before those who end such sessions could see it.
    pub fn no_longer_welcome(&self, session: &Session) -> Option<CloseReason> {
        if self.tickets.is_revoked(&session.jti) {
            Some(CloseReason::TicketRevoked)
        } else if self.tenants.get(&session.tenant).is_none() {
            Some(CloseReason::TenantRemoved)
        } else {
            None
        }
    }

    /// Whether new sessions are turned away.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// A client's connection as the doors know it.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The client; behind a load balancer, whom the balancer named.
    pub source: SocketAddr,
    /// The other end of its socket: the client, or the load balancer.
    pub peer: SocketAddr,
    /// Our end, as the client dialled it.
    pub local: SocketAddr,
    /// The door it came through.
    pub door: Door,
    /// When it was accepted.
    pub accepted: Instant,
}
