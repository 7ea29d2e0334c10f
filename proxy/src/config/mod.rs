//! The configuration: what the file says (`file`), checked once (`check`) into types that cannot be wrong.
//!
//! An error names the file, the line, the key and the remedy. Everything the appliance does comes from here; nothing
//! reads the file later.

mod check;
mod error;
mod file;
mod place;
mod tenant;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::ConfigError;
pub use file::LogFormat;
pub use tenant::{Cidr, ConsolePower, TargetRange, Tenant};

use rustls::RootCertStore;

use crate::backend::vcenter::Vcenter;
use crate::desk::DeskConfig;
use crate::flow::{Driver, FlowConfig, Mode};
use crate::ticket::TicketPolicy;
use crate::tls::{CertificateError, Policy, certificate};
use crate::xdp::XdpConfig;

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// Where the doors are.
    pub listen: Listen,
    /// Load balancers whose PROXY protocol header is believed, and expected.
    pub balancers: Vec<Cidr>,
    /// Certificate and policy of the doors.
    pub tls: Tls,
    /// Keys and rules of tickets.
    pub tickets: Tickets,
    /// Limits that are nobody's in particular.
    pub limits: Limits,
    /// How long each stage may take.
    pub deadlines: Deadlines,
    /// Consoles in browsers.
    pub web: Web,
    /// The flow engine.
    pub flow: Flow,
    /// Socket options of both legs.
    pub sockets: Sockets,
    /// Admin socket and metrics address.
    pub admin: Admin,
    /// Where audit records go.
    pub audit: Audit,
    /// The log.
    pub log: Log,
    /// Where consoles are to be asked for, as tickets name it.
    pub console: Console,
    /// How vCenters are talked to, and the accounts there.
    pub vcenter: Vcenter,
    /// The ticket desk, where there is one.
    pub desk: Option<DeskConfig>,
    /// The XDP gate.
    pub xdp: XdpConfig,
    /// The tenants by name.
    pub tenants: BTreeMap<String, Tenant>,
}

/// Listen addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// TLS doors, usually port 443.
    pub tls: Vec<SocketAddr>,
    /// authd doors, usually port 902.
    pub authd: Vec<SocketAddr>,
    /// Length of the accept queue.
    pub backlog: i32,
}

/// TLS of the doors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Which suites.
    pub policy: Policy,
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// Tickets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tickets {
    /// The directory of JWK files.
    pub keys: PathBuf,
    /// The rules.
    pub policy: TicketPolicy,
    /// Where used tickets outlive a restart; `None`: nowhere.
    pub journal: Option<PathBuf>,
}

/// Limits before a tenant is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, handed over or not.
    pub max_connections: usize,
    /// Connections in a handshake or dialogue at once.
    pub handshakes: usize,
    /// The same from one source (IPv4 address, IPv6 /64).
    pub per_source: u32,
    /// New connections per second from one source.
    pub source_rate: u32,
    /// How many may come at once on top.
    pub source_burst: u32,
    /// How many sources are remembered.
    pub max_sources: usize,
}

/// Deadlines of the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// PROXY header and TLS handshake, each.
    pub handshake: Duration,
    /// From the end of TLS to the hand-over, the client's side of the dialogue.
    pub dialogue: Duration,
    /// Name resolution and TCP connect to the hypervisor.
    pub connect: Duration,
    /// The hypervisor's side of the dialogue.
    pub backend: Duration,
    /// One direction closed, the other not yet.
    pub half_close: Duration,
    /// Silence; `None`: unlimited.
    pub idle: Option<Duration>,
    /// Longest session; `None`: unlimited.
    pub session: Option<Duration>,
    /// How long a drain waits before it cuts.
    pub drain: Duration,
}

/// What of the flow engine can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who waits for the sockets.
    pub driver: Driver,
    /// How bytes are moved (`flow.engine`).
    pub mode: Mode,
    /// Threads; 0: one per core.
    pub threads: usize,
    /// Size of a pooled pipe in bytes.
    pub pipe_bytes: usize,
    /// Most pipes per thread.
    pub max_pipes: usize,
}

impl Flow {
    /// As the engine takes it.
    pub fn engine(&self) -> FlowConfig {
        let Self { driver, mode, threads, pipe_bytes, max_pipes } = *self;
        FlowConfig { driver, mode, threads, pipe_bytes, max_pipes, ..FlowConfig::default() }
    }
}

/// Consoles in browsers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    /// Origins besides our own whose pages may open consoles, as browsers write them: `https://portal.example`.
    pub origins: Vec<String>,
    /// How often a silent connection is kept awake; `None`: never.
    pub ping: Option<Duration>,
}

/// The public address of the consoles, which a load balancer or a port forward may make another than the listeners'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// Name or address; the one a client dialled where absent.
    pub address: Option<String>,
    /// Public port of the TLS doors; the listener's where absent.
    pub tls_port: Option<u16>,
    /// Public port of the authd doors; the listener's where absent.
    pub authd_port: Option<u16>,
}

/// Socket options of both legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// Silence before the first keep-alive probe.
    pub keepalive: Duration,
    /// TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged.
    pub user_timeout: Duration,
    /// Whether sockets carry the tenant's number as their mark.
    pub mark: bool,
}

/// The operator's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Unix socket.
    pub socket: PathBuf,
    /// Users besides root and the service's own that may use it.
    pub uids: Vec<u32>,
    /// Groups whose members may use it; the socket belongs to the first.
    pub gids: Vec<u32>,
    /// Loopback address of `/metrics`, `/live`, `/ready`.
    pub metrics: Option<SocketAddr>,
    /// Names besides those of loopback that its callers may use.
    pub metrics_names: Vec<String>,
}

/// Audit records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// JSON lines.
    pub file: Option<PathBuf>,
    /// Also to the journal.
    pub journal: bool,
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// `info` for what an operator needs, `debug` for each step; any filter of tracing-subscriber.
    pub filter: String,
    /// Where to.
    pub format: LogFormat,
}

impl Config {
    /// Who signs portals' certificates, where the desk takes any.
    pub fn portals(&self) -> Result<Option<RootCertStore>, CertificateError> {
        let file = self.desk.as_ref().and_then(|desk| desk.client_ca.as_deref());
        file.map(certificate::roots).transpose()
    }

    /// Reads and checks a file. Relative paths in it are relative to it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::read(path, &error))?;
        Self::parse(path, &text, &BTreeMap::new())
    }

    /// The same for a reload: tenants keep the numbers they have, which are in socket marks and in the XDP maps.
    pub fn load_again(&self) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(&self.path).map_err(|error| ConfigError::read(&self.path, &error))?;
        let numbers = self.tenants.iter().map(|(name, tenant)| (name.clone(), tenant.number)).collect();
        Self::parse(&self.path, &text, &numbers)
    }

    /// Checks a text as if it stood in the file at `path`.
    pub fn parse(path: &Path, text: &str, numbers: &BTreeMap<String, u32>) -> Result<Self, ConfigError> {
        check::parse(path, text, numbers)
    }

    /// Whether a PROXY protocol header is expected, and believed, from this address.
    pub fn is_balancer(&self, peer: IpAddr) -> bool {
        self.balancers.iter().any(|range| range.contains(peer))
    }
}
