//! The real `mksgate serve`, with a key, a certificate and a configuration of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use mksgate::ticket::{Claims, KeyRing, Target, TargetKind};
use serde_json::Value;

use super::terminator::Identity;
use super::visitor::{Door, Way};
use crate::run::process::{find, own};
use crate::run::{Context, Process};
use crate::sim::Esxi;

/// The tenant of every console, where the configuration is ours.
pub const TENANT: &str = "bench";

/// A running appliance; ended when dropped.
pub struct Appliance {
    process: Process,
    dir: PathBuf,
    program: PathBuf,
    authd: SocketAddr,
    tls: SocketAddr,
    keys: KeyRing,
    minted: u64,
}

impl Appliance {
    /// Starts it. On `cores` only, if any are named: it then has as many threads of each kind.
    pub fn start(context: &Context, cores: Option<&str>) -> Result<Self> {
        Self::start_with(context, cores, None)
    }

    /// The same with this certificate and key in place of a self-signed one of its own.
    pub fn start_with(context: &Context, cores: Option<&str>, identity: Option<&Identity>) -> Result<Self> {
        Self::start_configured(context, cores, identity, |_| Ok(String::new()))
    }

    /// The same with more sections in its configuration, made for its directory.
    pub fn start_configured(
        context: &Context,
        cores: Option<&str>,
        identity: Option<&Identity>,
        more: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Self> {
        Self::start_by(context, cores, identity, |dir| Ok(format!("{CONFIG}\n{}", more(dir)?)))
    }

    /// The same with a configuration of the caller's own. It has both doors; certificate, key and keys are `cert.pem`, `key.pem` and
    /// `keys`, and the log's format is `json`.
    pub fn start_by(
        context: &Context,
        cores: Option<&str>,
        identity: Option<&Identity>,
        config: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Self> {
        let program = match &context.options.mksgate {
            Some(program) => program.clone(),
            None => own("mksgate")?,
        };
        let dir = tempfile::tempdir_in(context.dir())?.keep();
        quiet(Command::new(&program).args(["certificate", "--name", "console.example"]).arg(&dir))?;
        quiet(Command::new(&program).args(["ticket", "keygen"]).arg(dir.join("keys")))?;
        if let Some(identity) = identity {
            fs::copy(&identity.certificate, dir.join("cert.pem"))?;
            fs::copy(&identity.key, dir.join("key.pem"))?;
        }
        let file = dir.join("mksgate.toml");
        fs::write(&file, config(&dir)?)?;
        let mut command = match (cores, find("taskset")) {
            (Some(cores), Some(taskset)) => {
                let mut command = Command::new(taskset);
                command.args(["-c", cores]).arg(&program);
                command
            }
            _ => Command::new(&program),
        };
        command.args(["serve", "--config"]).arg(&file);
        let mut process = Process::start("mksgate", &command, &dir.join("log"))?;
        let log = process.await_log("\"message\":\"serving\"")?;
        let listening = |door: &str| {
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut fields = lines.map(|mut line| line["fields"].take());
            let found = fields.find(|f| f["message"] == "listening" && f["door"].to_string().contains(door));
            let address = found.as_ref().and_then(|f| f["address"].as_str());
            address.and_then(|a| a.parse().ok()).with_context(|| format!("mksgate has no door {door}"))
        };
        let (authd, tls) = (listening("authd")?, listening("tls")?);
        let keys = KeyRing::load(&dir.join("keys")).context("the keys that were just made")?;
        Ok(Self { process, dir, program, authd, tls, keys, minted: 0 })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its directory: configuration, log, sockets.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A way to a machine of `host`, with a new ticket that many consoles may share.
    pub fn way(&mut self, door: Door, host: &Esxi, vm: &str, host_ticket: &str) -> Result<Way> {
        self.way_to(TENANT, door, vm, esxi(host, host_ticket))
    }

    /// A way of this tenant to wherever a ticket may point.
    pub fn way_to(&mut self, tenant: &str, door: Door, vm: &str, target: Target) -> Result<Way> {
        let ticket = self.mint(tenant, vm, target)?;
        let address = if door == Door::Authd { self.authd } else { self.tls };
        Ok(Way { door, address, ticket: ticket.into(), vm: vm.into() })
    }

    /// Where the doors behind TLS are.
    pub fn tls(&self) -> SocketAddr {
        self.tls
    }

    /// A new ticket for a machine on a plain VNC server.
    pub fn vnc_ticket(&mut self, server: SocketAddr) -> Result<String> {
        self.mint(TENANT, "vnc", target(TargetKind::Vnc, server))
    }

    fn mint(&mut self, tenant: &str, vm: &str, target: Target) -> Result<String> {
        self.minted += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = Claims {
            iss: None,
            aud: None,
            jti: format!("bench-{}", self.minted),
            iat: now,
            nbf: now,
            exp: now + 86_400,
            tenant: tenant.into(),
            user: "bench".into(),
            vm: vm.into(),
            target,
            source: None,
            max_connections: None,
            session_seconds: None,
            view_only: false,
        };
        self.keys.seal(&claims).context("sealing a ticket")
    }

    /// The output of `mksgate ARGS`, asked of this appliance.
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        quiet(command.args(args).env("MKSGATE_ADMIN_SOCKET", self.dir.join("admin.sock")))
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        use std::io::{Read as _, Write as _};
        let mut socket = std::os::unix::net::UnixStream::connect(self.dir.join("admin.sock"))?;
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(Metrics(text))
    }

    /// An error with the end of its log, if it has ended.
    pub fn alive(&mut self) -> Result<()> {
        self.process.alive()
    }

    /// Open files of the process.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

/// Nothing but where it is.
pub fn target(kind: TargetKind, address: SocketAddr) -> Target {
    Target {
        kind,
        host: address.ip().to_string(),
        port: Some(address.port()),
        ticket: None,
        cfg_file: None,
        thumbprints: Vec::new(),
        tls: None,
    }
}

/// A machine of `host`, by the host's own ticket.
pub fn esxi(host: &Esxi, ticket: &str) -> Target {
    let mut target = target(TargetKind::EsxiMks, host.addr());
    target.ticket = Some(ticket.into());
    target.thumbprints.push(host.thumbprint_sha256());
    target
}

/// Where a client that needs no appliance goes: to the host itself.
pub fn direct(host: SocketAddr, vm: &str, host_ticket: &str) -> Way {
    Way { door: Door::Authd, address: host, ticket: Arc::from(host_ticket), vm: Arc::from(vm) }
}

/// A scrape.
pub struct Metrics(String);

impl Metrics {
    /// Sum of a metric's samples whose labels hold all of `with`.
    pub fn sum(&self, name: &str, with: &[&str]) -> f64 {
        let mine = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
                && with.iter().all(|w| line.contains(w))
        };
        self.0.lines().filter(mine).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// Limits that do not limit: what is measured is the work. Audit trail and log are written, as in production.
const CONFIG: &str = r#"
[listen]
tls = ["127.0.0.1:0"]
authd = ["127.0.0.1:0"]

[tls]
certificate = "cert.pem"
key = "key.pem"

[tickets]
keys = "keys"
max_connections = 100000
first_use_seconds = 86400
reconnect_seconds = 86400

[limits]
per_source = 100000
source_rate = 1000000
source_burst = 1000000
handshakes = 100000

[web]
ping_seconds = 3600

[deadlines]
half_close_seconds = 5
dialogue_seconds = 10
backend_seconds = 5

[admin]
socket = "admin.sock"

[audit]
file = "audit.jsonl"

[log]
format = "json"
filter = "info"

[tenants.bench]
max_sessions = 100000
targets = ["127.0.0.0/8"]
"#;

/// Standard output of a command that has to succeed.
fn quiet(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
