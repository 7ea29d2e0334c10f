//! A tenant's set-up latency while another tenant's side floods: SYNs, spoofed and not, and TLS handshakes that go no further.
//!
//! Two namespaces and a wire; a third one takes the same flood where it is nobody's business of ours, so that what the
//! generator costs this machine is in the comparison:
//!
//! | contender | gate | flood |
//! |---|---|---|
//! | quiet | XDP | none |
//! | elsewhere | XDP | to a host that takes no notice |
//! | xdp | XDP | to the appliance |
//! | nftables | the same rates as rules | to the appliance |
//! | without | none; the limits in userspace | to the appliance |

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use mksgate::ticket::{Claims, KeyRing, Target, TargetKind};
use mksgate::xdp::{OBJECT, missing_capabilities};
use rustls::{ClientConfig, ClientConnection};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::load::crowd::screen;
use crate::load::flood::{Flood, Plan};
use crate::load::goals::Goal;
use crate::load::visitor::{self, Door, Way, client_config};
use crate::netns::Namespace;
use crate::run::process::own;
use crate::run::{Context, Outcome, Process, Skip, Spread, Table, ratios, rounds::of};
use crate::sim::{Esxi, EsxiConfig, Ticket, Vm};

const SUITE: &str = "flood";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// On the third namespace's wire, and no address of it.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 9);
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);
const SPOOFED: Ipv4Addr = Ipv4Addr::new(10, 77, 100, 1);
const MACHINE: &str = "[bench] plain/plain.vmx";
/// SYNs a second of each of the two SYN floods.
const SYNS: u64 = 10_000;
/// Handshakes a second that are begun.
const HANDSHAKES: u64 = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Quiet,
    Elsewhere,
    Xdp,
    Nftables,
    Without,
}

/// One contender's round.
#[derive(Clone, Debug, Serialize)]
struct Round {
    /// Milliseconds from the first SYN to `200 Connect`.
    p50: f64,
    p99: f64,
    opened: usize,
    /// Consoles that could not be opened.
    failed: usize,
    /// Consoles that ended otherwise than by their client.
    lost: usize,
    syns: u64,
    handshakes: u64,
}

struct Land {
    inside: Namespace,
    outside: Namespace,
    _elsewhere: Namespace,
}

/// Runs every contender in turn.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let missing = missing_capabilities();
    if OBJECT.is_none() || !missing.is_empty() {
        bail!(Skip::because("needs root and a build with the XDP program"));
    }
    let land = Land::new()?;
    let mut contenders = vec![Contender::Quiet, Contender::Elsewhere, Contender::Xdp, Contender::Without];
    if crate::run::process::find("nft").is_some() {
        contenders.insert(3, Contender::Nftables);
    } else {
        out.note("nft is not installed; left out");
    }
    let time = Duration::from_secs_f64(context.seconds(4.0, 2.0));
    let measure = |contender: &mut Contender| land.inside.run(|| land.round(context, *contender, time));
    let series = context.alternate(out, context.rounds(5, 2), &mut contenders, measure)?;
    let mut table = Table::new(
        "set-up of the other tenant's consoles, ms",
        ["", "p50", "p99", "p99 from", "to", "opened", "failed", "lost", "SYNs/s", "handshakes/s"],
    );
    for s in &series {
        let (p50, p99) = (s.median(|r| r.p50), s.spread(|r| r.p99));
        let sum = |of: fn(&Round) -> usize| s.rounds.iter().map(of).sum::<usize>().to_string();
        let rate = |of: fn(&Round) -> u64| format!("{:.0}", s.median(|r| of(r) as f64) / time.as_secs_f64());
        let ms = |value: f64| format!("{value:.1}");
        table.row([
            s.contender.clone(),
            ms(p50),
            ms(p99.median),
            ms(p99.low),
            ms(p99.high),
            sum(|r| r.opened),
            sum(|r| r.failed),
            sum(|r| r.lost),
            rate(|r| r.syns),
            rate(|r| r.handshakes),
        ]);
    }
    out.table(table);
    out.raw("rounds", &series);
    if let (Some(xdp), Some(elsewhere)) = (of(&series, "xdp"), of(&series, "elsewhere")) {
        let ratio: Spread = ratios(xdp, elsewhere, |r| r.p99);
        out.goals.push(Goal::at_most(SUITE, "p99 with XDP / p99 with the flood elsewhere", ratio, 1.2));
        let lost: usize = xdp.rounds.iter().map(|r| r.lost + r.failed).sum();
        out.goals.push(Goal::at_most(SUITE, "consoles lost or not opened with XDP", lost as f64, 0.0));
    }
    Ok(())
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiet => "quiet",
            Self::Elsewhere => "elsewhere",
            Self::Xdp => "xdp",
            Self::Nftables => "nftables",
            Self::Without => "without",
        })
    }
}

impl Land {
    fn new() -> Result<Self> {
        let (inside, outside, elsewhere) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        inside.veth("gate0", &outside, "world0")?;
        inside.v4("gate0", HOST)?;
        outside.v4("world0", VICTIM)?;
        outside.v4("world0", ATTACKER)?;
        elsewhere.veth("sink0", &outside, "other0")?;
        elsewhere.v4("sink0", Ipv4Addr::new(10, 78, 0, 1))?;
        outside.v4("other0", Ipv4Addr::new(10, 78, 1, 1))?;
        // Frames for another station: the host there looks at nothing but the address.
        outside.ip(&format!("neighbour add {NOBODY} lladdr 02:00:00:00:00:99 dev other0"))?;
        Ok(Self { inside, outside, _elsewhere: elsewhere })
    }

    fn round(&self, context: &Context, contender: Contender, time: Duration) -> Result<Round> {
        let site = Site::start(context, contender)?;
        if contender == Contender::Nftables {
            rules(RULES)?;
        }
        let stop = AtomicBool::new(false);
        let handshakes = AtomicU64::new(0);
        let target = if contender == Contender::Elsewhere { NOBODY } else { HOST };
        let round = thread::scope(|scope| {
            let mut floods = Vec::new();
            if contender != Contender::Quiet {
                for (source, sources) in [(SPOOFED, 20_000), (ATTACKER, 1)] {
                    let destination = SocketAddr::from((target, 902));
                    let plan =
                        Plan { source: source.into(), sources, destination, per_second: SYNS, count: 0 };
                    floods.push(self.outside.run(|| Flood::start(plan))?);
                }
                let (stop, handshakes, site) = (&stop, &handshakes, &site);
                scope.spawn(move || {
                    self.outside.run(|| begin_handshakes(target, &site.client, stop, handshakes))
                });
            }
            let times = self.outside.run(|| visits(&site, time));
            stop.store(true, Ordering::Relaxed);
            let syns = floods.into_iter().map(Flood::stop).sum::<std::io::Result<u64>>();
            let (mut took, failed) = times?;
            took.sort_by(f64::total_cmp);
            let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
            anyhow::Ok(Round {
                p50: at(0.5),
                p99: at(0.99),
                opened: took.len(),
                failed,
                lost: 0,
                syns: syns?,
                handshakes: 0,
            })
        });
        stop.store(true, Ordering::Relaxed);
        if contender == Contender::Nftables {
            rules("delete table inet mksgate\n")?;
        }
        let lost = site.lost()?;
        Ok(Round { lost, handshakes: handshakes.into_inner(), ..round? })
    }
}

/// The appliance and a host behind it; both in the namespace of the thread that starts them, which has to outlive them.
struct Site {
    _process: Process,
    _host: Esxi,
    dir: PathBuf,
    way: Way,
    client: Arc<ClientConfig>,
}

impl Site {
    fn start(context: &Context, contender: Contender) -> Result<Self> {
        let program = match &context.options.mksgate {
            Some(program) => program.clone(),
            None => own("mksgate")?,
        };
        let dir = tempfile::tempdir_in(context.dir())?.keep();
        for args in [vec!["certificate", "--name", "console.example", "."], vec!["ticket", "keygen", "keys"]]
        {
            let made = Command::new(&program).args(&args).current_dir(&dir).output()?;
            if !made.status.success() {
                bail!("mksgate {}: {}", args.join(" "), String::from_utf8_lossy(&made.stderr));
            }
        }
        let gate = match contender {
            Contender::Nftables | Contender::Without => "off",
            Contender::Quiet | Contender::Elsewhere | Contender::Xdp => "required",
        };
        fs::write(dir.join("mksgate.toml"), CONFIG.replace("{gate}", gate))?;
        let mut command = Command::new(&program);
        command.args(["serve", "--config"]).arg(dir.join("mksgate.toml"));
        let mut process = Process::start("mksgate", &command, &dir.join("log"))?;
        process.await_log("\"message\":\"serving\"")?;
        let config =
            EsxiConfig::default().vm(Vm::plain(MACHINE, screen())).ticket(Ticket::new("host", MACHINE));
        let host = Esxi::start(config)?;
        let ticket = ticket(&KeyRing::load(&dir.join("keys"))?, &host)?;
        let address = SocketAddr::from((HOST, 902));
        let way = Way { door: Door::Authd, address, ticket: ticket.into(), vm: MACHINE.into() };
        Ok(Self { _process: process, _host: host, dir, way, client: client_config()? })
    }

    /// Consoles that ended otherwise than by their client's close.
    fn lost(&self) -> Result<usize> {
        let audit = fs::read_to_string(self.dir.join("audit.jsonl")).context("the audit file")?;
        let lines = audit.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(lines
            .filter(|l| l["event"] == "close" && l["tenant"] == "bolt" && l["reason"] != "client_closed")
            .count())
    }
}

fn ticket(keys: &KeyRing, host: &Esxi) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let target = Target {
        kind: TargetKind::EsxiMks,
        host: host.addr().ip().to_string(),
        port: Some(host.addr().port()),
        ticket: Some("host".into()),
        cfg_file: None,
        thumbprints: vec![host.thumbprint_sha256()],
        tls: None,
    };
    let claims = Claims {
        iss: None,
        aud: None,
        jti: "bench".into(),
        iat: now,
        nbf: now,
        exp: now + 3600,
        tenant: "bolt".into(),
        user: "bench".into(),
        vm: MACHINE.into(),
        target,
        source: None,
        max_connections: None,
        session_seconds: None,
        view_only: false,
    };
    keys.seal(&claims).context("sealing a ticket")
}

/// One console after the other for a while: milliseconds of each, and how many failed.
fn visits(site: &Site, time: Duration) -> Result<(Vec<f64>, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut took, mut failed) = (Vec::new(), 0);
        let end = Instant::now() + time;
        while Instant::now() < end {
            let start = Instant::now();
            let open =
                tokio::time::timeout(Duration::from_secs(5), visitor::open(&site.way, site.client.clone()));
            match open.await {
                Ok(Ok(_console)) => took.push(start.elapsed().as_secs_f64() * 1e3),
                Ok(Err(_)) | Err(_) => failed += 1,
            }
        }
        Ok((took, failed))
    })
}

/// Says ClientHello, reads what the server's key exchange cost it, and goes.
fn begin_handshakes(to: Ipv4Addr, config: &Arc<ClientConfig>, stop: &AtomicBool, begun: &AtomicU64) {
    let start = Instant::now();
    let mut attempts = 0;
    while !stop.load(Ordering::Relaxed) {
        attempts += 1;
        if begin_handshake(to, config).is_ok() {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        let due = Duration::from_nanos(attempts * 1_000_000_000 / HANDSHAKES);
        if let Some(early) = due.checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
    }
}

fn begin_handshake(to: Ipv4Addr, config: &Arc<ClientConfig>) -> Result<()> {
    let brief = Duration::from_millis(20);
    let mut socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((if to == HOST { ATTACKER } else { Ipv4Addr::UNSPECIFIED }, 0)).into())?;
    socket.connect_timeout(&SocketAddr::from((to, 443)).into(), brief)?;
    socket.set_read_timeout(Some(brief))?;
    socket.set_linger(Some(Duration::ZERO))?;
    let mut hello = Vec::new();
    ClientConnection::new(config.clone(), "console.example".try_into()?)?.write_tls(&mut hello)?;
    socket.write_all(&hello)?;
    socket.read_exact(&mut [0; 5]).context("no answer")
}

fn rules(text: &str) -> Result<()> {
    let mut nft =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("running nft")?;
    nft.stdin.take().context("nft's input")?.write_all(text.as_bytes())?;
    if nft.wait()?.success() { Ok(()) } else { bail!("nft refuses the rules") }
}

const CONFIG: &str = r#"
[listen]
tls = ["10.77.0.1:443"]
authd = ["10.77.0.1:902"]

[tls]
certificate = "cert.pem"
key = "key.pem"

[tickets]
keys = "keys"
max_connections = 100000

[limits]
per_source = 4096
source_rate = 1000000
source_burst = 1000000

[xdp]
enabled = "{gate}"
source_per_second = 0
shared_per_second = 20
shared_burst = 20
tenant_headroom = 1

[admin]
socket = "admin.sock"

[audit]
file = "audit.jsonl"

[log]
format = "json"

[tenants.acme]
max_sessions = 3
sessions_per_second = 20
burst = 20
sources = ["10.77.2.0/24"]
targets = ["127.0.0.0/8"]

[tenants.bolt]
max_sessions = 1000
sources = ["10.77.1.0/24"]
targets = ["127.0.0.0/8"]
"#;

/// The same policy as far as rules can know it: rates. That a tenant is full, they are not told.
const RULES: &str = "
table inet mksgate {
  chain early {
    type filter hook prerouting priority -300; policy accept;
    tcp dport { 443, 902 } tcp flags & (syn | ack) == syn jump gate
  }
  chain gate {
    ip saddr 10.77.1.0/24 accept
    ip saddr 10.77.2.0/24 limit rate over 20/second burst 20 packets drop
    ip saddr != 10.77.2.0/24 limit rate over 20/second burst 20 packets drop
  }
}
";
