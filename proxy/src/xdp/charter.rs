//! What the configuration file, which is root's, lets the keeper do. A proxy says what it wants; what it may have is looked up
//! here, in the file as it is at that time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{Enabled, GateError, Policy, XdpConfig, interface::interface_names, message::LARGEST, serve};
use crate::config::Config;

/// The file.
pub(super) struct Charter(PathBuf);

/// What a gate is to be like, or is.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub config: &'a XdpConfig,
    pub policy: &'a Policy,
}

impl Charter {
    pub fn new(path: &Path) -> Charter {
        Charter(path.to_owned())
    }

    /// Whether a gate may be so. What the one there `is` has already was allowed when it came, and is not asked for again;
    /// `on` are its interfaces.
    ///
    /// # Errors
    /// Names what the file does not have, or why the file cannot be read.
    pub fn allows(
        &self,
        wanted: Wanted<'_>,
        is: Option<Wanted<'_>>,
        on: &BTreeSet<String>,
    ) -> Result<(), GateError> {
        let interfaces = interfaces(wanted.config, wanted.policy)?;
        let new: Vec<&String> = interfaces.iter().filter(|name| !on.contains(*name)).collect();
        let has = is.map(|is| destinations(is.policy).collect::<BTreeSet<_>>()).unwrap_or_default();
        let more: Vec<SocketAddr> = destinations(wanted.policy).filter(|a| !has.contains(a)).collect();
        let like = |is: Wanted<'_>| {
            (is.config.mode, is.config.max_sources) == (wanted.config.mode, wanted.config.max_sources)
        };
        if new.is_empty() && more.is_empty() && is.is_some_and(like) {
            return Ok(());
        }
        let file = self.read().map_err(GateError::Kept)?;
        self.may_be_like(wanted.config, &file.xdp)?;
        self.may_protect(&more, &file)?;
        self.may_be_on(&new, &file)
    }

    fn read(&self) -> Result<Config, String> {
        let Charter(path) = self;
        let text = bounded(path).map_err(|error| {
            format!(
                "{} cannot be read ({error}), and only what stands there is done; let the keeper's user read it, or name \
                 another file with --config",
                path.display()
            )
        })?;
        Config::parse(path, &text, &BTreeMap::new()).map_err(|error| error.to_string())
    }

    fn may_be_like(&self, wanted: &XdpConfig, file: &XdpConfig) -> Result<(), GateError> {
        let no = |key: &str, has: String| {
            self.no(
                &format!("xdp.{key}"),
                &format!("says {has}"),
                "reload or restart mksgate, if that is meant",
            )
        };
        if file.enabled == Enabled::Off {
            return no("enabled", "\"off\"".into());
        }
        if wanted.mode != file.mode {
            return no("mode", format!("{:?}", file.mode).to_lowercase());
        }
        if wanted.max_sources > file.max_sources {
            return no("max_sources", file.max_sources.to_string());
        }
        Ok(())
    }

    fn may_protect(&self, more: &[SocketAddr], file: &Config) -> Result<(), GateError> {
        let all: Vec<SocketAddr> = destinations(&policy(file)).collect();
        match more.iter().find(|address| !all.iter().any(|allowed| covers(allowed, address))) {
            Some(address) => self.no(
                &format!("protecting {address}"),
                "has it neither in [listen] nor among a tenant's addresses",
                "add it there, if it is one of mksgate's",
            ),
            None => Ok(()),
        }
    }

    fn may_be_on(&self, new: &[&String], file: &Config) -> Result<(), GateError> {
        let allowed = interfaces(&file.xdp, &policy(file))?;
        match new.iter().find(|name| !allowed.contains(**name)) {
            Some(name) => self.no(
                &format!("XDP on {name}"),
                match file.xdp.interfaces.is_empty() {
                    true => "names no interface, and none of its addresses is on this one",
                    false => "does not name it",
                },
                "add it to [xdp] interfaces, if it is meant, and reload",
            ),
            None => Ok(()),
        }
    }

    fn no(&self, what: &str, file: &str, remedy: &str) -> Result<(), GateError> {
        Err(GateError::Kept(format!("{what}: not allowed, for {} {file}; {remedy}", self.0.display())))
    }
}

/// The file, if it is no larger than what a proxy may say.
fn bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let most = u64::from(LARGEST);
    if File::open(path)?.take(most + 1).read_to_string(&mut text)? as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(text)
}

fn policy(file: &Config) -> Policy {
    let listen: Vec<SocketAddr> = file.listen.tls.iter().chain(&file.listen.authd).copied().collect();
    serve::policy(file, &listen)
}

/// None where nothing carries the addresses: that is said by whoever wants them.
fn interfaces(config: &XdpConfig, policy: &Policy) -> Result<BTreeSet<String>, GateError> {
    match interface_names(config, policy) {
        Ok(names) => Ok(names.into_iter().collect()),
        Err(GateError::NoInterface) => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn destinations(policy: &Policy) -> impl Iterator<Item = SocketAddr> + '_ {
    let tenants = policy.tenants.iter().flat_map(|tenant| tenant.addresses.iter());
    policy.listen.iter().chain(tenants).copied()
}

/// An unspecified address stands for all of its family; port 0 is whichever the kernel has chosen.
fn covers(allowed: &SocketAddr, wanted: &SocketAddr) -> bool {
    let (host, port) = (allowed.ip(), allowed.port());
    let same_host = host == wanted.ip() || (host.is_unspecified() && host.is_ipv4() == wanted.is_ipv4());
    same_host && (port == wanted.port() || port == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::{Mode, TenantPolicy, XdpSection};
    use mksgate_common::bucket::Rate;

    const FILE: &str = "[listen]\ntls = [\"0.0.0.0:443\", \"[2001:db8::1]:443\"]\n[tls]\ncertificate = \"c\"\nkey = \"k\"\n\
        [tickets]\nkeys = \"keys\"\n[xdp]\ninterfaces = [\"eth0\"]\nmax_sources = 1024\n\
        [tenants.acme]\nmax_sessions = 1\ntargets = [\"192.0.2.0/24\"]\naddresses = [\"192.0.2.9:902\"]\n";

    fn file(text: &str) -> (tempfile::TempDir, Charter) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mksgate.toml");
        std::fs::write(&path, text).unwrap();
        (dir, Charter::new(&path))
    }

    fn config(interfaces: &[&str]) -> XdpConfig {
        let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        XdpSection { interfaces, max_sources: Some(1024), ..XdpSection::default() }.validate().unwrap()
    }

    fn protecting(config: &XdpConfig, listen: &[&str], address: Option<&str>) -> Policy {
        let tenant = |address: &str| TenantPolicy {
            number: 1,
            name: "acme".into(),
            max_sessions: None,
            rate: Rate::UNLIMITED,
            sources: Vec::new(),
            addresses: vec![address.parse().unwrap()],
        };
        Policy {
            limits: config.limits,
            listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
            tenants: address.map(tenant).into_iter().collect(),
            balancers: Vec::new(),
        }
    }

    fn refusal(charter: &Charter, config: &XdpConfig, policy: &Policy) -> Option<String> {
        let asked = charter.allows(Wanted { config, policy }, None, &BTreeSet::new());
        asked.err().map(|error| error.to_string())
    }

    #[test]
    fn what_the_file_has_is_allowed_and_everything_else_is_named() {
        let (_dir, charter) = file(FILE);
        let eth0 = config(&["eth0"]);
        let asks = |config: &XdpConfig, listen: &[&str], address| {
            refusal(&charter, config, &protecting(config, listen, address))
        };
        let listen = ["0.0.0.0:443", "192.0.2.1:443", "[2001:db8::1]:443"];
        assert_eq!(asks(&eth0, &listen, Some("192.0.2.9:902")), None);
        for (config, listen, address, named) in [
            (config(&["eth0", "eth1"]), "192.0.2.1:443", None, "XDP on eth1"),
            (eth0.clone(), "192.0.2.1:22", None, "protecting 192.0.2.1:22"),
            (eth0.clone(), "[2001:db8::2]:443", None, "protecting [2001:db8::2]:443"),
            (eth0.clone(), "192.0.2.1:443", Some("192.0.2.8:902"), "protecting 192.0.2.8:902"),
            (XdpConfig { mode: Mode::Generic, ..eth0.clone() }, "192.0.2.1:443", None, "xdp.mode"),
            (XdpConfig { max_sources: 2048, ..eth0.clone() }, "192.0.2.1:443", None, "xdp.max_sources"),
        ] {
            let said = asks(&config, &[listen], address).expect(named);
            assert!(said.contains(named) && said.contains("mksgate.toml"), "{said}");
        }
    }

    #[test]
    fn what_is_there_is_not_asked_for_again_and_a_bad_file_allows_nothing_new() {
        let (_dir, charter) = file("[xdp]\ninterfases = []\n");
        let (old, new) = (config(&["eth0"]), config(&["eth0", "eth1"]));
        let policy = protecting(&old, &["192.0.2.1:443"], None);
        let is = Wanted { config: &old, policy: &policy };
        let on = BTreeSet::from(["eth0".to_owned()]);
        charter.allows(is, Some(is), &on).unwrap();
        let said = charter.allows(Wanted { config: &new, ..is }, Some(is), &on).unwrap_err().to_string();
        assert!(said.contains("interfases"), "{said}");
        std::fs::remove_file(&charter.0).unwrap();
        let said = refusal(&charter, &old, &policy).unwrap();
        assert!(said.contains("cannot be read") && said.contains("--config"), "{said}");
    }
}
