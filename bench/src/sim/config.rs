//! What a simulated host is made of.

use std::net::{Ipv4Addr, SocketAddr};

use super::cert::TlsVersions;
use super::fault::Faults;
use super::screen::Screen;

/// Banner of an ESXi 8 host.
pub const BANNER_ESXI8: &str = "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, \
    MKSDisplayProtocol:VNC , VMXARGS supported, NFCSSL supported/t, SHA256 supported";
/// Banner of an ESXi 6 host.
pub const BANNER_ESXI6: &str = "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, \
    MKSDisplayProtocol:VNC , VMXARGS supported, NFCSSL supported";
/// A banner that asks for no TLS: the dialogue then runs in the clear.
pub const BANNER_PLAIN: &str = "220 VMware Authentication Daemon Version 1.10, ServerDaemonProtocol:SOAP, \
    MKSDisplayProtocol:VNC , VMXARGS supported";

/// A host before it starts.
#[derive(Clone)]
pub struct EsxiConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The banner without its line end. TLS no. 1 starts only where it says `SSL Required`.
    pub banner: String,
    /// TLS versions of both layers.
    pub tls: TlsVersions,
    /// Threads that serve connections, each with its own runtime.
    pub threads: usize,
    /// Faults of every connection.
    pub faults: Faults,
    /// The registered machines.
    pub vms: Vec<Vm>,
    /// The tickets that open them.
    pub tickets: Vec<Ticket>,
}

impl Default for EsxiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            banner: BANNER_ESXI8.to_owned(),
            tls: TlsVersions::default(),
            threads: 1,
            faults: Faults::none(),
            vms: Vec::new(),
            tickets: Vec::new(),
        }
    }
}

impl EsxiConfig {
    /// Registers a machine.
    #[must_use]
    pub fn vm(mut self, vm: Vm) -> Self {
        self.vms.push(vm);
        self
    }

    /// Adds a ticket.
    #[must_use]
    pub fn ticket(mut self, ticket: Ticket) -> Self {
        self.tickets.push(ticket);
        self
    }

    /// Sets the faults of every connection.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Sets the banner, without its line end.
    #[must_use]
    pub fn banner(mut self, banner: &str) -> Self {
        banner.clone_into(&mut self.banner);
        self
    }
}

/// A registered machine.
#[derive(Clone)]
pub struct Vm {
    /// Its configuration file as `CONNECT` names it.
    pub path: String,
    /// What it shows.
    pub screen: Screen,
    /// Skips TLS no. 2 and the nonce: after `200 Connect` the screen has the raw TCP stream. For bulk measurements.
    pub plain: bool,
    /// Consoles at once before `552`; ESXi allows about 40 per machine.
    pub max_consoles: Option<usize>,
}

impl Vm {
    /// A machine with its console behind TLS no. 2, as on a real host.
    pub fn new(path: &str, screen: Screen) -> Self {
        Self { path: path.to_owned(), screen, plain: false, max_consoles: None }
    }

    /// A machine whose console is the raw TCP stream.
    pub fn plain(path: &str, screen: Screen) -> Self {
        Self { plain: true, ..Self::new(path, screen) }
    }

    /// Limits the consoles open at once.
    #[must_use]
    pub fn max_consoles(mut self, limit: usize) -> Self {
        self.max_consoles = Some(limit);
        self
    }
}

/// A ticket: user name and password in one.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// What `USER` and `PASS` say.
    pub name: String,
    /// The machine it opens.
    pub vm: String,
    /// Dies when it was used for a login, as ESXi's do.
    pub one_time: bool,
    /// What goes wrong for whoever uses it.
    pub faults: Faults,
}

impl Ticket {
    /// A ticket that works any number of times.
    pub fn new(name: &str, vm: &str) -> Self {
        Self { name: name.to_owned(), vm: vm.to_owned(), one_time: false, faults: Faults::none() }
    }

    /// Makes it work once.
    #[must_use]
    pub fn one_time(mut self) -> Self {
        self.one_time = true;
        self
    }

    /// Sets its faults.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }
}
