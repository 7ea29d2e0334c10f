//! The file as serde sees it. Every default is here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConsolePower;
use crate::backend::vcenter::config::{AccountFile, VcenterFile};
use crate::desk::config::DeskFile;
use crate::flow::{Driver, Mode};
use crate::tls::Policy;
use crate::xdp::XdpSection;

/// Where log lines go and how they look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The journal where there is one, else text.
    #[default]
    Auto,
    /// journald's own protocol.
    Journal,
    /// Lines for people, on stderr.
    Text,
    /// JSON lines, on stderr.
    Json,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) console_address: Option<String>,
    pub(super) console_tls_port: Option<u16>,
    pub(super) console_authd_port: Option<u16>,
    pub(super) listen: ListenFile,
    #[serde(default)]
    pub(super) proxy_protocol: ProxyProtocolFile,
    pub(super) tls: TlsFile,
    pub(super) tickets: TicketsFile,
    #[serde(default)]
    pub(super) limits: LimitsFile,
    #[serde(default)]
    pub(super) deadlines: DeadlinesFile,
    #[serde(default)]
    pub(super) web: WebFile,
    #[serde(default)]
    pub(super) flow: FlowFile,
    #[serde(default)]
    pub(super) sockets: SocketsFile,
    #[serde(default)]
    pub(super) admin: AdminFile,
    #[serde(default)]
    pub(super) audit: AuditFile,
    #[serde(default)]
    pub(super) log: LogFile,
    pub(super) desk: Option<DeskFile>,
    #[serde(default)]
    pub(super) vcenter: VcenterFile,
    #[serde(default)]
    pub(super) vcenters: BTreeMap<String, AccountFile>,
    #[serde(default)]
    pub(super) xdp: XdpSection,
    #[serde(default)]
    pub(super) tenants: BTreeMap<String, TenantFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenFile {
    pub(super) tls: Vec<String>,
    pub(super) authd: Vec<String>,
    pub(super) backlog: i32,
}

impl Default for ListenFile {
    fn default() -> Self {
        Self { tls: vec![], authd: vec![], backlog: 4096 }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ProxyProtocolFile {
    #[serde(default)]
    pub(super) from: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsFile {
    #[serde(default)]
    pub(super) policy: Policy,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketsFile {
    pub(super) keys: PathBuf,
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    #[serde(default = "seconds::<30>")]
    pub(super) first_use_seconds: u64,
    #[serde(default = "seconds::<28800>")]
    pub(super) reconnect_seconds: u64,
    #[serde(default = "seconds::<2>")]
    pub(super) clock_skew_seconds: u64,
    #[serde(default = "count::<4>")]
    pub(super) max_connections: u32,
    #[serde(default = "many::<200_000>")]
    pub(super) max_tracked: usize,
    #[serde(default = "yes")]
    pub(super) bind_source: bool,
    pub(super) journal: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsFile {
    pub(super) max_connections: usize,
    pub(super) handshakes: usize,
    pub(super) per_source: u32,
    pub(super) source_rate: u32,
    pub(super) source_burst: u32,
    pub(super) max_sources: usize,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            max_connections: 100_000,
            handshakes: 2048,
            per_source: 64,
            source_rate: 50,
            source_burst: 200,
            max_sources: 100_000,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeadlinesFile {
    pub(super) handshake_seconds: f64,
    pub(super) dialogue_seconds: f64,
    pub(super) connect_seconds: f64,
    pub(super) backend_seconds: f64,
    pub(super) half_close_seconds: f64,
    pub(super) idle_seconds: f64,
    pub(super) session_seconds: f64,
    pub(super) drain_seconds: f64,
}

impl Default for DeadlinesFile {
    fn default() -> Self {
        Self {
            handshake_seconds: 10.0,
            dialogue_seconds: 20.0,
            connect_seconds: 5.0,
            backend_seconds: 10.0,
            half_close_seconds: 30.0,
            idle_seconds: 0.0,
            session_seconds: 0.0,
            drain_seconds: 300.0,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WebFile {
    pub(super) origins: Vec<String>,
    pub(super) ping_seconds: f64,
}

impl Default for WebFile {
    fn default() -> Self {
        Self { origins: vec![], ping_seconds: 20.0 }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FlowFile {
    pub(super) driver: Option<Driver>,
    pub(super) engine: Option<Mode>,
    pub(super) threads: Option<usize>,
    pub(super) pipe_bytes: Option<usize>,
    pub(super) max_pipes: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SocketsFile {
    pub(super) keepalive_seconds: f64,
    pub(super) user_timeout_seconds: f64,
    pub(super) mark: bool,
}

impl Default for SocketsFile {
    fn default() -> Self {
        Self { keepalive_seconds: 30.0, user_timeout_seconds: 60.0, mark: true }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdminFile {
    pub(super) socket: PathBuf,
    pub(super) uids: Vec<u32>,
    pub(super) gids: Vec<u32>,
    pub(super) metrics: Option<String>,
    pub(super) metrics_names: Vec<String>,
}

impl Default for AdminFile {
    fn default() -> Self {
        let socket = "/run/mksgate/admin.sock".into();
        Self { socket, uids: vec![], gids: vec![], metrics: None, metrics_names: vec![] }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AuditFile {
    pub(super) file: Option<PathBuf>,
    pub(super) journal: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogFile {
    pub(super) filter: String,
    pub(super) format: LogFormat,
}

impl Default for LogFile {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Auto }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantFile {
    pub(super) number: Option<u32>,
    pub(super) max_sessions: u32,
    pub(super) sessions_per_second: Option<u32>,
    #[serde(default = "count::<10>")]
    pub(super) burst: u32,
    pub(super) max_sessions_per_user: Option<u32>,
    #[serde(default)]
    pub(super) sources: Vec<String>,
    #[serde(default)]
    pub(super) addresses: Vec<String>,
    pub(super) targets: Vec<String>,
    pub(super) idle_seconds: Option<f64>,
    pub(super) session_seconds: Option<f64>,
    #[serde(default)]
    pub(super) console_power: ConsolePower,
}

fn seconds<const N: u64>() -> u64 {
    N
}
fn count<const N: u32>() -> u32 {
    N
}
fn many<const N: usize>() -> usize {
    N
}
fn yes() -> bool {
    true
}
