//! What the file says, checked once: each error names the key, its line and the remedy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::error::line_of;
use super::file::{DeadlinesFile, File, FlowFile, LimitsFile, ListenFile, TenantFile, TicketsFile, WebFile};
use super::{
    Audit, Config, ConfigError, Console, Deadlines, Flow, Limits, Listen, Log, Sockets, Tenant, Tickets, Tls,
    Web, place,
};
use crate::backend::vcenter::config as vcenter;
use crate::desk::config as desk;
use crate::flow::FlowConfig;
use crate::ticket::TicketPolicy;
use crate::xdp::XdpSection;

/// Errors of one file, by key.
pub(super) struct Context<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Context<'_> {
    pub(super) fn error(&self, key: &str, what: impl Display) -> ConfigError {
        ConfigError {
            path: self.path.into(),
            line: line_of(self.text, key),
            key: key.into(),
            what: what.to_string(),
        }
    }

    fn each<T: FromStr<Err: Display>>(&self, key: &str, texts: &[String]) -> Result<Vec<T>, ConfigError> {
        texts.iter().map(|text| text.parse().map_err(|error| self.error(key, error))).collect()
    }

    fn addresses(&self, key: &str, texts: &[String]) -> Result<Vec<SocketAddr>, ConfigError> {
        texts
            .iter()
            .map(|text| {
                let what = || format!("`{text}` is no address with a port; write 0.0.0.0:443 or [::]:443");
                text.parse().map_err(|_| self.error(key, what()))
            })
            .collect()
    }

    fn duration(&self, key: &str, seconds: f64) -> Result<Duration, ConfigError> {
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if seconds > 0.0 => Ok(duration),
            _ => Err(self.error(key, "must be more than 0 seconds")),
        }
    }

    /// 0 stands for unlimited.
    fn optional(&self, key: &str, seconds: f64) -> Result<Option<Duration>, ConfigError> {
        if seconds == 0.0 { Ok(None) } else { self.duration(key, seconds).map(Some) }
    }

    pub(super) fn file(&self, path: PathBuf) -> PathBuf {
        self.path.parent().map_or_else(|| path.clone(), |dir| dir.join(&path))
    }

    fn positive<T: Default + PartialEq>(&self, key: &str, value: T) -> Result<T, ConfigError> {
        if value == T::default() { Err(self.error(key, "must be more than 0")) } else { Ok(value) }
    }
}

pub(super) fn parse(path: &Path, text: &str, numbers: &BTreeMap<String, u32>) -> Result<Config, ConfigError> {
    let context = Context { path, text };
    let file: File = toml::from_str(text).map_err(|error| ConfigError {
        path: path.into(),
        line: error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1),
        key: String::new(),
        what: error.message().into(),
    })?;
    let listen = listen(&context, &file.listen)?;
    let deadlines = deadlines(&context, &file.deadlines)?;
    let limits = limits(&context, &file.limits)?;
    let tenants = tenants(&context, file.tenants, numbers)?;
    let wrong = |(key, what): vcenter::Wrong| context.error(&key, what);
    let absolute = |path| context.file(path);
    let vcenter = vcenter::check(&file.vcenter, file.vcenters, absolute).map_err(wrong)?;
    let names: Vec<&String> = tenants.keys().collect();
    let desk =
        file.desk.map(|file| desk::check(file, &names, &vcenter, absolute)).transpose().map_err(wrong)?;
    Ok(Config {
        path: path.into(),
        listen,
        balancers: context.each("proxy_protocol.from", &file.proxy_protocol.from)?,
        tls: Tls {
            policy: file.tls.policy,
            certificate: context.file(file.tls.certificate),
            key: context.file(file.tls.key),
        },
        tickets: tickets(&context, file.tickets, &file.admin.socket)?,
        limits,
        deadlines,
        web: web(&context, file.web)?,
        flow: flow(&context, &file.flow)?,
        sockets: Sockets {
            keepalive: context.duration("sockets.keepalive_seconds", file.sockets.keepalive_seconds)?,
            user_timeout: context
                .duration("sockets.user_timeout_seconds", file.sockets.user_timeout_seconds)?,
            mark: file.sockets.mark,
        },
        admin: place::admin(&context, file.admin)?,
        audit: Audit { file: file.audit.file.map(|f| context.file(f)), journal: file.audit.journal },
        log: Log { filter: file.log.filter, format: file.log.format },
        console: Console {
            address: file.console_address.map(|name| place::console(&context, name)).transpose()?,
            tls_port: file.console_tls_port,
            authd_port: file.console_authd_port,
        },
        vcenter,
        desk,
        xdp: XdpSection { keeper: file.xdp.keeper.map(absolute), ..file.xdp }
            .validate()
            .map_err(|error| context.error(error.key, &error.what))?,
        tenants,
    })
}

fn listen(context: &Context<'_>, file: &ListenFile) -> Result<Listen, ConfigError> {
    let listen = Listen {
        tls: context.addresses("listen.tls", &file.tls)?,
        authd: context.addresses("listen.authd", &file.authd)?,
        backlog: context.positive("listen.backlog", file.backlog)?,
    };
    if listen.tls.is_empty() && listen.authd.is_empty() {
        return Err(context.error("listen", "no door: give `tls` or `authd` (or both) an address"));
    }
    let mut seen = BTreeSet::new();
    for address in listen.tls.iter().chain(&listen.authd) {
        if address.port() != 0 && !seen.insert(*address) {
            return Err(context
                .error("listen", format!("{address} stands there twice; a door each needs its own port")));
        }
    }
    Ok(listen)
}

fn tickets(context: &Context<'_>, file: TicketsFile, admin: &Path) -> Result<Tickets, ConfigError> {
    Ok(Tickets {
        journal: place::journal(context, file.journal, admin),
        keys: context.file(file.keys),
        policy: TicketPolicy {
            issuer: file.issuer,
            audience: file.audience,
            first_use: Duration::from_secs(
                context.positive("tickets.first_use_seconds", file.first_use_seconds)?,
            ),
            reconnect: Duration::from_secs(file.reconnect_seconds),
            clock_skew: Duration::from_secs(file.clock_skew_seconds),
            max_connections: context.positive("tickets.max_connections", file.max_connections)?,
            max_tracked: context.positive("tickets.max_tracked", file.max_tracked)?,
            bind_source: file.bind_source,
        },
    })
}

fn limits(context: &Context<'_>, file: &LimitsFile) -> Result<Limits, ConfigError> {
    Ok(Limits {
        max_connections: context.positive("limits.max_connections", file.max_connections)?,
        handshakes: context.positive("limits.handshakes", file.handshakes)?,
        per_source: context.positive("limits.per_source", file.per_source)?,
        source_rate: context.positive("limits.source_rate", file.source_rate)?,
        source_burst: context.positive("limits.source_burst", file.source_burst)?,
        max_sources: context.positive("limits.max_sources", file.max_sources)?,
    })
}

fn deadlines(context: &Context<'_>, file: &DeadlinesFile) -> Result<Deadlines, ConfigError> {
    Ok(Deadlines {
        handshake: context.duration("deadlines.handshake_seconds", file.handshake_seconds)?,
        dialogue: context.duration("deadlines.dialogue_seconds", file.dialogue_seconds)?,
        connect: context.duration("deadlines.connect_seconds", file.connect_seconds)?,
        backend: context.duration("deadlines.backend_seconds", file.backend_seconds)?,
        half_close: context.duration("deadlines.half_close_seconds", file.half_close_seconds)?,
        idle: context.optional("deadlines.idle_seconds", file.idle_seconds)?,
        session: context.optional("deadlines.session_seconds", file.session_seconds)?,
        drain: context.duration("deadlines.drain_seconds", file.drain_seconds)?,
    })
}

fn web(context: &Context<'_>, file: WebFile) -> Result<Web, ConfigError> {
    for origin in &file.origins {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains('/') || !host.is_ascii()) {
            let what = format!("`{origin}` is no origin; write https://portal.example, without a path");
            return Err(context.error("web.origins", what));
        }
    }
    Ok(Web { origins: file.origins, ping: context.optional("web.ping_seconds", file.ping_seconds)? })
}

fn flow(context: &Context<'_>, file: &FlowFile) -> Result<Flow, ConfigError> {
    let usual = FlowConfig::default();
    let flow = Flow {
        driver: file.driver.unwrap_or(usual.driver),
        mode: file.engine.unwrap_or(usual.mode),
        threads: file.threads.unwrap_or(usual.threads),
        pipe_bytes: file.pipe_bytes.unwrap_or(usual.pipe_bytes),
        max_pipes: file.max_pipes.unwrap_or(usual.max_pipes),
    };
    if !flow.pipe_bytes.is_power_of_two() || !(4096..=1 << 20).contains(&flow.pipe_bytes) {
        return Err(context.error("flow.pipe_bytes", "must be a power of two from 4096 to 1048576"));
    }
    Ok(flow)
}

fn tenants(
    context: &Context<'_>,
    files: BTreeMap<String, TenantFile>,
    numbers: &BTreeMap<String, u32>,
) -> Result<BTreeMap<String, Tenant>, ConfigError> {
    let mut taken: BTreeMap<u32, String> = BTreeMap::new();
    for (name, file) in &files {
        let Some(number) = file.number else { continue };
        let key = format!("tenants.{name}.number");
        if number == 0 {
            return Err(context.error(&key, "0 stands for `no tenant`; count from 1"));
        }
        if let Some(other) = taken.insert(number, name.clone()) {
            return Err(context
                .error(&key, format!("{number} is also the number of tenant `{other}`; give each its own")));
        }
    }
    let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
    // Those that had a number keep it, so a new tenant's name cannot shift the others'.
    let (kept, fresh): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|(name, file)| file.number.is_some() || numbers.contains_key(name));
    for (name, file) in kept.into_iter().chain(fresh) {
        if name.is_empty()
            || name.len() > 63
            || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
        {
            return Err(context.error(
                &format!("tenants.{name}"),
                "a tenant's name has 1 to 63 printable ASCII characters, no spaces, quotes or backslashes",
            ));
        }
        let number = file
            .number
            .or_else(|| numbers.get(&name).copied().filter(|n| !taken.contains_key(n)))
            .or_else(|| (1..).find(|n| !taken.contains_key(n)))
            .unwrap_or(u32::MAX);
        taken.insert(number, name.clone());
        let tenant = tenant(context, &name, file, number)?;
        for (other, theirs) in &tenants {
            if let Some(range) = tenant.sources.iter().find(|a| theirs.sources.contains(a)) {
                return Err(context.error(&format!("tenants.{name}.sources"), format!("{range} is also a source of tenant `{other}`; a source belongs to one tenant (a longer prefix may stand inside a shorter one)")));
            }
            if let Some(address) = tenant.addresses.iter().find(|a| theirs.addresses.contains(a)) {
                return Err(context.error(
                    &format!("tenants.{name}.addresses"),
                    format!(
                        "{address} is also an address of tenant `{other}`; an address belongs to one tenant"
                    ),
                ));
            }
        }
        tenants.insert(name, tenant);
    }
    Ok(tenants)
}

fn tenant(context: &Context<'_>, name: &str, file: TenantFile, number: u32) -> Result<Tenant, ConfigError> {
    let key = |field: &str| format!("tenants.{name}.{field}");
    if file.targets.is_empty() {
        return Err(context
            .error(&key("targets"), "is empty: no console could be reached; list the hypervisors' ranges"));
    }
    let seconds = |field: &str, value: Option<f64>| match value {
        None => Ok(None),
        Some(seconds) => context.duration(&key(field), seconds).map(Some),
    };
    Ok(Tenant {
        number,
        max_sessions: file.max_sessions,
        rate: file
            .sessions_per_second
            .map(|rate| context.positive(&key("sessions_per_second"), rate))
            .transpose()?,
        burst: context.positive(&key("burst"), file.burst)?,
        max_sessions_per_user: file.max_sessions_per_user,
        sources: context.each(&key("sources"), &file.sources)?,
        addresses: context.addresses(&key("addresses"), &file.addresses)?,
        targets: context.each(&key("targets"), &file.targets)?,
        idle: seconds("idle_seconds", file.idle_seconds)?,
        session: seconds("session_seconds", file.session_seconds)?,
        console_power: file.console_power,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[listen]
tls = ["0.0.0.0:443", "[::]:443"]
authd = ["0.0.0.0:902"]
[tls]
certificate = "cert.pem"
key = "/etc/key.pem"
[tickets]
keys = "keys"
[tenants.acme]
max_sessions = 10
targets = ["10.0.0.0/8:902"]
sources = ["192.0.2.0/24"]
[tenants.bolt]
number = 1
max_sessions = 0
targets = ["10.1.0.0/16"]
"#;

    fn check(text: &str) -> Result<Config, ConfigError> {
        parse(Path::new("/etc/mksgate/mksgate.toml"), text, &BTreeMap::new())
    }

    #[test]
    fn a_small_file_is_enough() {
        let config = check(GOOD).unwrap();
        assert_eq!(config.tls.certificate, Path::new("/etc/mksgate/cert.pem"));
        assert_eq!(config.tls.key, Path::new("/etc/key.pem"));
        assert_eq!(config.listen.tls.len(), 2);
        assert_eq!(config.tenants["bolt"].number, 1);
        assert_eq!(config.tenants["acme"].number, 2);
    }

    #[test]
    fn tenants_keep_their_numbers_over_a_reload() {
        let first = check(GOOD).unwrap();
        let numbers = first.tenants.iter().map(|(name, t)| (name.clone(), t.number)).collect();
        let more = format!("{GOOD}\n[tenants.aaa]\nmax_sessions = 1\ntargets = [\"10.0.0.0/8\"]\n");
        let again = parse(&first.path, &more, &numbers).unwrap();
        assert_eq!(again.tenants["acme"].number, 2);
        assert_eq!(again.tenants["aaa"].number, 3);
    }

    #[test]
    fn errors_name_line_key_and_remedy() {
        for (from, to, line, said) in [
            ("max_sessions = 10", "max_sessions = 10\nmax_sesions = 1", Some(12), "max_sesions"),
            ("max_sessions = 10", "max_sessions = \"x\"", Some(11), "invalid type"),
            ("10.0.0.0/8:902", "10.0.0.1/8:902", Some(12), "write 10.0.0.0/8"),
            ("number = 1", "number = 0", Some(15), "count from 1"),
            ("0.0.0.0:902", "0.0.0.0", Some(4), "write 0.0.0.0:443"),
            ("0.0.0.0:902", "0.0.0.0:443", Some(2), "twice"),
            ("targets = [\"10.1.0.0/16\"]", "targets = []", Some(17), "list the hypervisors"),
            (
                "targets = [\"10.1.0.0/16\"]",
                "targets = [\"10.1.0.0/16\"]\nsources = [\"192.0.2.0/24\"]",
                Some(13),
                "also a source of tenant `bolt`",
            ),
            ("[tickets]", "[deadlines]\nidle_seconds = -1\n[tickets]", Some(9), "more than 0"),
            ("[tickets]", "[web]\norigins = [\"portal.example/x\"]\n[tickets]", Some(9), "without a path"),
            ("[tickets]", "[admin]\nmetrics = \"0.0.0.0:9464\"\n[tickets]", Some(9), "loopback"),
            ("[tickets]", "[flow]\npipe_bytes = 5000\n[tickets]", Some(9), "power of two"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = check(&text).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn two_tenants_with_one_number_are_refused() {
        let text = GOOD.replace("max_sessions = 10", "max_sessions = 10\nnumber = 1");
        assert!(check(&text).unwrap_err().what.contains("also the number of tenant `acme`"));
    }
}
