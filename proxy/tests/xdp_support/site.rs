//! The real binary behind the wire: the appliance and a simulated host inside, clients outside.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its part of it")]

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Appliance, HOST_TICKET, Setup, VM, client};
use crate::xdp_support::wire::{GATE, HOST4, HOST6, Wire, client4, until};

/// Where the appliance speaks as a host.
pub fn door4() -> SocketAddr {
    SocketAddr::from((HOST4, 902))
}

/// The same.
pub fn door6() -> SocketAddr {
    SocketAddr::from((HOST6, 902))
}

/// Everything together.
pub struct Site {
    pub appliance: Appliance,
    pub host: Esxi,
    pub wire: Wire,
}

/// Why there is no console.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// By the gate or the kernel: no connection at all.
    Reset,
    /// By the appliance, in its protocol's words.
    Told(String),
}

/// An appliance with room for as many connections of one source as a test wants.
pub fn setup(xdp: &str, tenants: &str) -> Setup {
    Setup::new()
        .with("[listen]\ntls = [\"10.77.0.1:443\", \"[fd77::1]:443\"]\nauthd = [\"10.77.0.1:902\", \"[fd77::1]:902\"]")
        .with("[limits]\nper_source = 4096\nsource_rate = 100000\nsource_burst = 100000")
        .with("[tickets]\nkeys = \"keys\"\nmax_connections = 5000\nbind_source = false")
        .with(&format!("[xdp]\n{xdp}"))
        .tenants(tenants)
}

/// A process that is nobody's child, ended with the test.
pub struct Heir(pub Pid);

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

impl Site {
    /// Starts it; `None`, with a printed reason, where there can be no gate.
    pub fn start(setup: Setup) -> Option<Site> {
        let wire = Wire::new()?;
        let (appliance, host) = wire.inside.run(|| (setup.start(), host()));
        Some(Site { appliance, host, wire })
    }

    /// A console through the raw door.
    pub fn open(&self, from: impl Into<IpAddr>, ticket: &str) -> Result<TcpStream, Refusal> {
        self.open_at(from, door4(), ticket)
    }

    /// The same at another address.
    pub fn open_at(
        &self,
        from: impl Into<IpAddr>,
        to: SocketAddr,
        ticket: &str,
    ) -> Result<TcpStream, Refusal> {
        open(&self.wire, from.into(), to, ticket)
    }

    /// Tries until a console opens: the gate learns of a freed slot a moment after it is free.
    pub fn open_soon(&self, what: &str, ticket: &str) -> TcpStream {
        until(what, || self.open(client4(1, 1), ticket).ok())
    }

    /// A new console works.
    pub fn echoes(&self) {
        echoes(&mut self.open(client4(1, 1), &self.appliance.ticket(&self.host)).unwrap());
    }

    /// SYNs of a tenant by their verdict.
    pub fn syns(&self, tenant: &str, verdict: &str) -> u64 {
        let with = [format!("tenant=\"{tenant}\""), format!("verdict=\"{verdict}\"")];
        self.appliance.metric("mksgate_xdp_syns_total", &with.each_ref().map(String::as_str)) as u64
    }

    /// Shed in the kernel, sooner or later; never let in. The number that was shed so far.
    pub fn is_full(&self, what: &str, ticket: &str) -> u64 {
        until(what, || match self.open(client4(1, 1), ticket) {
            Err(Refusal::Reset) => Some(self.syns("acme", "tenant_full")),
            Err(Refusal::Told(_)) => None,
            Ok(_) => panic!("more than the limit"),
        })
    }

    /// Sources that are known by their ticket.
    pub fn known(&self) -> u64 {
        self.status()["gate"]["known_sources"].as_u64().unwrap()
    }

    /// The process in charge, whoever started it.
    pub fn in_charge(&self) -> Heir {
        let status = self.appliance.command(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        Heir(Pid::from_raw(status["pid"].as_i64().unwrap() as i32))
    }

    /// Replaces one text of the configuration file.
    pub fn change(&self, old: &str, new: &str) {
        let path = self.appliance.dir.path().join("mksgate.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{old} in {text}");
        fs::write(&path, text.replace(old, new)).unwrap();
    }

    /// An upgrade whose gate cannot be had says why; this process and its gate go on, and the file is as it was.
    pub fn refuses_upgrade(&self, section: &str, why: &str) {
        let path = self.appliance.dir.path().join("mksgate.toml");
        let (text, status) = (fs::read_to_string(&path).unwrap(), self.status());
        self.change("[xdp]\n", &format!("[xdp]\n{section}\n"));
        let refused = self.appliance.command(&["upgrade"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(why), "{section}: {why}: {said}");
        assert!(said.contains("goes on"), "{said}");
        fs::write(&path, text).unwrap();
        assert_eq!(self.status()["gate"], status["gate"], "the same program on the same interfaces");
        let program = status["gate"]["program"].as_u64().unwrap() as u32;
        assert_eq!(self.wire.program_on(GATE), Some(("native", program)), "{section}");
    }

    /// What `mksgate xdp status --json` prints.
    pub fn status(&self) -> serde_json::Value {
        let printed = self.appliance.command(&["xdp", "status", "--json"]);
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        serde_json::from_slice(&printed.stdout).unwrap()
    }
}

/// The console is alive.
pub fn echoes(console: &mut TcpStream) {
    console.write_all(b"alive").unwrap();
    let mut answer = [0; 5];
    console.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"alive");
}

/// A machine that echoes.
pub fn host() -> Esxi {
    let config = EsxiConfig { threads: 2, ..EsxiConfig::default() };
    Esxi::start(config.vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM))).unwrap()
}

/// A console, or where it ended.
pub fn open(wire: &Wire, from: IpAddr, to: SocketAddr, ticket: &str) -> Result<TcpStream, Refusal> {
    let tcp = match wire.connect(from, to) {
        Ok(tcp) => tcp,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Err(Refusal::Reset),
        Err(error) => panic!("neither let in nor refused: {error}"),
    };
    console(tcp, ticket).map_err(Refusal::Told)
}

/// The dialogue up to the console.
pub fn console(mut tcp: TcpStream, ticket: &str) -> Result<TcpStream, String> {
    let said = |error: io::Error| error.to_string();
    client::plain_line(&mut tcp).map_err(said)?;
    client::open(client::Tls::start(tcp).map_err(said)?, ticket, VM)
}
