//! The appliances under attack, each in a namespace of its own, the world they are attacked from, and a place that a flood goes
//! to when it goes elsewhere.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustls::ClientConfig;
use tokio::runtime::Runtime;

use crate::load::appliance::{Appliance, esxi};
use crate::load::cost::cores;
use crate::load::crowd::{ECHO, screen};
use crate::load::visitor::{self, Console, Door, Way, client_config};
use crate::netns::Namespace;
use crate::run::Context;
use crate::sim::{Esxi, EsxiConfig, Ticket, Vm};

/// On the wire to elsewhere, and no address of the host there.
pub const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 9);
/// Sessions of the attacker's tenant.
pub const LIMIT: usize = 3;
/// Consoles of the other tenant that stand through all floods.
pub const HELD: usize = 10;
const MACHINE: &str = "[bench] plain/plain.vmx";
/// How long the echo of a key may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What protects an appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The XDP program.
    Xdp,
    /// The same policy as nftables rules.
    Nftables,
    /// Nothing; every limit holds in userspace.
    Without,
}

impl Gate {
    /// The second octet of all addresses on its wire.
    fn network(self) -> u8 {
        match self {
            Self::Xdp => 77,
            Self::Nftables => 79,
            Self::Without => 80,
        }
    }

    /// A text with this gate's network and the attacker's limit in it.
    fn fill(self, text: &str) -> String {
        text.replace("{net}", &self.network().to_string()).replace("{limit}", &LIMIT.to_string())
    }

    /// The interface on the world's side.
    pub fn interface(self) -> String {
        format!("world{}", self.network())
    }

    /// The appliance's address.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.network(), 0, 1)
    }

    /// An address of the attacker's tenant.
    pub fn attacker(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.network(), 2, last)
    }

    /// The other tenant's only address.
    pub fn victim(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.network(), 1, 1)
    }

    /// The appliance's IPv6 address, for which only neighbours ask.
    pub fn host6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, self.network().into(), 0, 0, 0, 0, 0, 1)
    }

    /// Who asks.
    pub fn victim6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, self.network().into(), 0, 0, 0, 0, 1, 1)
    }
}

/// The namespaces.
pub struct Land {
    /// Where clients and attackers are.
    pub world: Namespace,
    gates: Vec<(Gate, Namespace)>,
    _elsewhere: Namespace,
}

impl Land {
    /// Makes them.
    pub fn new(gates: &[Gate]) -> Result<Self> {
        let (world, elsewhere) = (Namespace::new()?, Namespace::new()?);
        let gates = gates.iter().map(|gate| Ok((*gate, wire(*gate, &world)?))).collect::<Result<_>>()?;
        elsewhere.veth("sink0", &world, "other0")?;
        elsewhere.v4("sink0", Ipv4Addr::new(10, 78, 0, 1))?;
        world.v4("other0", Ipv4Addr::new(10, 78, 1, 1))?;
        // Frames for another station: the host there looks at nothing but the address.
        world.ip(&format!("neighbour add {NOBODY} lladdr 02:00:00:00:00:99 dev other0"))?;
        Ok(Self { world, gates, _elsewhere: elsewhere })
    }

    /// The namespace of the appliance behind this gate.
    pub fn inside(&self, gate: Gate) -> Result<&Namespace> {
        let found = self.gates.iter().find(|(g, _)| *g == gate);
        found.map(|(_, inside)| inside).with_context(|| format!("no appliance behind {gate:?}"))
    }

    /// Starts an appliance behind every gate, does the work, and ends them.
    pub fn with_sites<T: Send>(
        &self,
        context: &Context,
        work: impl FnOnce(&[Site]) -> Result<T> + Send,
    ) -> Result<T> {
        nested(&self.gates, context, &self.world, Vec::new(), work)
    }
}

/// One frame of the stack for each appliance: it ends with the thread that started it, which has to be in its namespace.
fn nested<T: Send, W: FnOnce(&[Site]) -> Result<T> + Send>(
    gates: &[(Gate, Namespace)],
    context: &Context,
    world: &Namespace,
    mut sites: Vec<Site>,
    work: W,
) -> Result<T> {
    let Some(((gate, inside), rest)) = gates.split_first() else { return work(&sites) };
    inside.run(|| {
        let site = Site::start(context, *gate)?;
        world.run(|| site.hold())?;
        sites.push(site);
        // What is boxed has one type, however deep it is.
        let work: Box<dyn FnOnce(&[Site]) -> Result<T> + Send + '_> = Box::new(work);
        nested(rest, context, world, sites, work)
    })
}

/// The namespace behind a gate, its wire to the world, and its way to all the sources that a flood may claim to come from.
fn wire(gate: Gate, world: &Namespace) -> Result<Namespace> {
    let (inside, theirs) = (Namespace::new()?, gate.interface());
    inside.veth("gate0", world, &theirs)?;
    inside.v4("gate0", gate.host())?;
    for address in [gate.victim(), gate.attacker(1), gate.attacker(2)] {
        world.v4(&theirs, address)?;
    }
    inside.v6("gate0", gate.host6())?;
    world.v6(&theirs, gate.victim6())?;
    inside.ip(&format!("route add default via {}", gate.victim()))?;
    if gate == Gate::Nftables {
        inside.run(|| rules(&gate.fill(RULES)))?;
    }
    Ok(inside)
}

/// An appliance, a host behind it, and consoles of the tenant that is not attacked.
pub struct Site {
    /// What protects it.
    pub gate: Gate,
    /// To a console of the tenant that is not attacked.
    pub way: Way,
    /// The same with the attacker's ticket.
    pub attackers: Way,
    /// TLS of all clients.
    pub client: Arc<ClientConfig>,
    appliance: Appliance,
    _host: Esxi,
    held: Mutex<Option<(Runtime, Vec<Console>)>>,
}

impl Site {
    fn start(context: &Context, gate: Gate) -> Result<Self> {
        let xdp = if gate == Gate::Xdp { "required" } else { "off" };
        let config = gate.fill(CONFIG).replace("{xdp}", xdp);
        let mut appliance = Appliance::start_by(context, (cores() > 1).then_some("0"), None, |_| Ok(config))?;
        let config =
            EsxiConfig::default().vm(Vm::plain(MACHINE, screen())).ticket(Ticket::new("host", MACHINE));
        let host = Esxi::start(config)?;
        let mut way = |tenant| appliance.way_to(tenant, Door::Authd, MACHINE, esxi(&host, "host"));
        let (way, attackers) = (way("bolt")?, way("acme")?);
        let (client, held) = (client_config()?, Mutex::default());
        Ok(Self { gate, way, attackers, client, appliance, _host: host, held })
    }

    /// The appliance's process.
    pub fn pid(&self) -> u32 {
        self.appliance.pid()
    }

    /// Opens the consoles that stand through everything, from the namespace of the calling thread.
    fn hold(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let consoles = runtime.block_on(async {
            let mut consoles = Vec::new();
            for _ in 0..HELD {
                let (mut console, _) = visitor::open(&self.way, self.client.clone()).await?;
                console.write(&[ECHO]).await?;
                consoles.push(console);
            }
            io::Result::Ok(consoles)
        });
        let consoles = consoles.context("the other tenant's consoles")?;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some((runtime, consoles));
        Ok(())
    }

    /// Presses a key on each of the consoles that stand, and leaves those out from now on that do not answer; their number.
    pub fn lost(&self) -> usize {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((runtime, consoles)) = held.as_mut() else { return 0 };
        let before = consoles.len();
        for mut console in std::mem::take(consoles) {
            let answers =
                runtime.block_on(async { tokio::time::timeout(PATIENCE, echoes(&mut console)).await });
            if matches!(answers, Ok(Ok(()))) {
                consoles.push(console);
            }
        }
        before - consoles.len()
    }

    /// Consoles of the other tenant that ended otherwise than by their client's close, by the audit file.
    pub fn broken(&self) -> Result<usize> {
        let audit = fs::read_to_string(self.appliance.dir().join("audit.jsonl")).context("the audit file")?;
        let lines = audit.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(lines
            .filter(|l| l["event"] == "close" && l["tenant"] == "bolt" && l["reason"] != "client_closed")
            .count())
    }
}

async fn echoes(console: &mut Console) -> io::Result<()> {
    console.write(b"k").await?;
    let mut got = Vec::new();
    if console.read(&mut [0; 64], &mut got).await? && got == b"k" {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn rules(text: &str) -> Result<()> {
    let mut nft =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("running nft")?;
    nft.stdin.take().context("nft's input")?.write_all(text.as_bytes())?;
    if nft.wait()?.success() { Ok(()) } else { bail!("nft refuses the rules") }
}

const CONFIG: &str = r#"
[listen]
tls = ["10.{net}.0.1:443"]
authd = ["10.{net}.0.1:902"]

[tls]
certificate = "cert.pem"
key = "key.pem"

[tickets]
keys = "keys"
max_connections = 1000000
first_use_seconds = 3600
reconnect_seconds = 3600

[limits]
per_source = 4096
source_rate = 1000000
source_burst = 1000000

[xdp]
enabled = "{xdp}"
source_per_second = 1000
source_burst = 1000
shared_per_second = 20
shared_burst = 20
global_per_second = 5000
global_burst = 5000
tenant_headroom = 1

[admin]
socket = "admin.sock"

[audit]
file = "audit.jsonl"

[log]
format = "json"

[tenants.acme]
max_sessions = {limit}
sessions_per_second = 20
burst = 20
sources = ["10.{net}.2.0/24"]
targets = ["127.0.0.0/8"]

[tenants.bolt]
max_sessions = 1000
sources = ["10.{net}.1.0/24"]
targets = ["127.0.0.0/8"]
"#;

/// The same policy in rules, before connection tracking sees a packet: source rate, tenant rates, tenant full, global rate.
/// Counting comes after the rates here, for it keeps an entry for every SYN that it is shown. What it counts are connections, half open
/// ones too, for it knows no sessions.
const RULES: &str = "
table inet mksgate {
  set sources {
    type ipv4_addr
    size 65536
    flags dynamic,timeout
    timeout 10s
  }
  chain early {
    type filter hook prerouting priority raw; policy accept;
    tcp dport { 443, 902 } tcp flags & (syn | ack) == syn jump gate
  }
  chain gate {
    update @sources { ip saddr limit rate over 1000/second burst 1000 packets } drop
    ip saddr 10.{net}.2.0/24 limit rate over 20/second burst 20 packets drop
    ip saddr != { 10.{net}.1.0/24, 10.{net}.2.0/24 } limit rate over 20/second burst 20 packets drop
    ip saddr 10.{net}.2.0/24 ct count over {limit} drop
    ip saddr 10.{net}.1.0/24 ct count over 1000 drop
    limit rate over 5000/second burst 5000 packets drop
  }
}
";
