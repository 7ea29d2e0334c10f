//! What every thread of the appliance shares: the configuration in force and the one instance of everything that counts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;

use crate::admission::{Admission, Denied, Sources, Tenants};
use crate::audit::Audit;
use crate::backend::Hosts;
use crate::backend::vcenter::Vcenters;
use crate::config::Config;
use crate::desk::Desk;
use crate::flow::Engines;
use crate::metrics::{Door, Metrics, Stage};
use crate::sdk::SdkSessions;
use crate::session::{CloseReason, Registry, Session};
use crate::ticket::{Permit, TicketError, Tickets};
use crate::tls::Presented;
use crate::upgrade::Succession;
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
    /// How the hosts do.
    pub hosts: Arc<Hosts>,
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
    /// The processes before and after this one.
    pub succession: Succession,
}

/// Why a ticket brought no permit, or a permit no slots.
pub enum NotAdmitted {
    /// The ticket.
    Ticket(TicketError),
    /// The appliance lets nobody in any more.
    Draining(Option<Permit>),
    /// A limit of the tenant.
    Limit(Permit, Denied),
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

    /// Opens a ticket from `source` and takes the slots of its tenant and user.
    pub fn admit(&self, sealed: &str, source: IpAddr) -> Result<(Permit, Admission), NotAdmitted> {
        // Another process writes down the next use of any ticket, once it has the table.
        let heir = self.succession.heir();
        if heir.is_some() {
            return Err(NotAdmitted::Draining(None));
        }
        let began = Instant::now();
        let opened = self.tickets.open(sealed, source, SystemTime::now());
        self.metrics.record(Stage::Ticket, began.elapsed());
        let permit = opened.map_err(NotAdmitted::Ticket)?;
        if self.is_draining() {
            return Err(NotAdmitted::Draining(Some(permit)));
        }
        match self.tenants.admit(permit.tenant(), permit.user(), Instant::now()) {
            Ok(admission) => Ok((permit, admission)),
            Err(denied) => Err(NotAdmitted::Limit(permit, denied)),
        }
    }

    /// Ends a session for `reason`, in whatever process its flow is.
    pub fn close(&self, id: u64, reason: CloseReason) {
        if !self.succession.elders.close(id, reason) {
            self.engines.close(id, reason);
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
