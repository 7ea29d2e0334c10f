//! Whole consoles: the appliance on one core, its clients and the simulated hosts on the others, and the ways between them.

use std::fmt;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::ClientConfig;

use super::appliance::{Appliance, direct};
use super::contender::haproxy;
use super::cost::{cores, hurry, pin};
use super::crowd::screen;
use super::visitor::{Door, Way, client_config};
use crate::run::process::{find, free_address};
use crate::run::{Context, Outcome, Process};
use crate::sim::{Esxi, EsxiConfig, Fault, Faults, Step, Ticket, Vm};

/// A machine whose console is the raw stream behind CONNECT: for the raw doors, which never look at it.
const PLAIN: &str = "[bench] plain/plain.vmx";
/// A machine with TLS no. 2, for the WebSocket door, which is that TLS's other end.
const SEALED: &str = "[bench] sealed/sealed.vmx";

/// Everything but the load.
pub struct Rig {
    /// The appliance.
    pub appliance: Appliance,
    /// The machines that other consoles show.
    pub host: Esxi,
    /// Machines of their own for what is measured, on a thread of their own.
    pub probed: Esxi,
    /// TLS of the clients.
    pub client: Arc<ClientConfig>,
    pinned: bool,
    tickets: usize,
}

/// One way to a console, as a contender.
pub struct Lane {
    /// Its name.
    pub name: String,
    /// To the machines of [`Rig::host`].
    pub way: Way,
    /// To the machine of [`Rig::probed`].
    pub probe: Way,
    /// The proxy's process, if there is one.
    pub pid: Option<u32>,
    /// Kept running.
    _peer: Option<Process>,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Rig {
    /// Starts the appliance and the hosts. With two cores or more, the proxy has the first and everything else the others.
    pub fn start(context: &Context, out: &mut Outcome) -> Result<Self> {
        let pinned = cores() > 1;
        if pinned {
            pin(std::process::id(), 1..cores());
        } else {
            out.note("one core: proxy and generator share it, and each is measured beside the other");
        }
        let host = Esxi::start(machines()).context("the simulated host")?;
        // Threads inherit what the one that starts them has.
        let probed = std::thread::spawn(|| (hurry(), Esxi::start(machines()))).join();
        let (hurried, probed) = probed.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let probed = probed.context("the second simulated host")?;
        if !hurried {
            out.note("no real-time priority for what measures (chrt): its own delays are in the latencies");
        }
        let appliance = Appliance::start(context, pinned.then_some("0"))?;
        out.version("mksgate", env!("CARGO_PKG_VERSION"));
        Ok(Self { appliance, host, probed, client: client_config()?, pinned, tickets: 0 })
    }

    /// Through a door of the appliance.
    pub fn door(&mut self, door: Door) -> Result<Lane> {
        let (vm, ticket) = if door == Door::Web { (SEALED, "sealed") } else { (PLAIN, "plain") };
        Ok(Lane {
            name: format!("mksgate {}", door.as_str()),
            way: self.appliance.way(door, &self.host, vm, ticket)?,
            probe: self.appliance.way(door, &self.probed, vm, ticket)?,
            pid: Some(self.appliance.pid()),
            _peer: None,
        })
    }

    /// Through a door to a host that breaks at a step.
    pub fn broken(&mut self, door: Door, step: Step, fault: Fault) -> Result<Way> {
        self.tickets += 1;
        let (vm, name) = (if door == Door::Web { SEALED } else { PLAIN }, format!("broken-{}", self.tickets));
        self.host.add_ticket(Ticket::new(&name, vm).faults(Faults::none().at(step, fault)));
        self.appliance.way(door, &self.host, vm, &name)
    }

    /// To the hosts themselves.
    pub fn direct(&self) -> Lane {
        Lane {
            name: "direct".to_owned(),
            way: direct(self.host.addr(), PLAIN, "plain"),
            probe: direct(self.probed.addr(), PLAIN, "plain"),
            pid: None,
            _peer: None,
        }
    }

    /// Through HAProxy as a TCP relay: its consoles are the raw door's, without ticket and limits.
    pub fn haproxy(&self, context: &Context) -> Result<Option<Lane>> {
        let Some(program) = find("haproxy") else { return Ok(None) };
        let second = free_address()?;
        let (mut process, address) =
            Process::listening("haproxy", &context.dir().join("haproxy-lanes.log"), |first| {
                let file = context.dir().join("haproxy-lanes.conf");
                let listen = [(first, self.host.addr()), (second, self.probed.addr())];
                std::fs::write(&file, haproxy(&listen))?;
                let mut command = Command::new(&program);
                command.arg("-db").arg("-f").arg(&file);
                Ok(command)
            })?;
        process.await_listener(second)?;
        if self.pinned {
            pin(process.pid(), [0]);
        }
        Ok(Some(Lane {
            name: "haproxy".to_owned(),
            way: direct(address, PLAIN, "plain"),
            probe: direct(second, PLAIN, "plain"),
            pid: Some(process.pid()),
            _peer: Some(process),
        }))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.pinned {
            pin(std::process::id(), 0..cores());
        }
    }
}

fn machines() -> EsxiConfig {
    EsxiConfig::default()
        .vm(Vm::plain(PLAIN, screen()))
        .vm(Vm::new(SEALED, screen()))
        .ticket(Ticket::new("plain", PLAIN))
        .ticket(Ticket::new("sealed", SEALED))
}
