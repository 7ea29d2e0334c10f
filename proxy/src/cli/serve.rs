//! `mksgate serve`: builds the appliance in the order of a connection, then runs the control thread until it is told to go.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::log;
use crate::admission::{Sources, Tenants};
use crate::audit::Audit;
use crate::backend::Hosts;
use crate::backend::vcenter::Vcenters;
use crate::config::Config;
use crate::control::{self, Control, Doors};
use crate::desk::Desk;
use crate::doctor::holder;
use crate::flow::{EngineStats, Engines, Way};
use crate::front::{self, Listener};
use crate::gate::{Gate, Ports};
use crate::metrics::{Door, EngineSample, Metrics, ModeBytes, Stage, TicketSample};
use crate::sdk::SdkSessions;
use crate::session::Registry;
use crate::ticket::journal::Start;
use crate::ticket::{KeyRing, Tickets};
use crate::tls::{self, Presented, certificate};
use crate::upgrade::{self, Inheritance, Succession};
use crate::xdp::{self, Shed};

type Failure = Box<dyn Error>;

/// Serves until SIGTERM, SIGINT or a drain ends it.
pub fn run(path: &Path) -> Result<(), Failure> {
    if upgrade::detach()? {
        return Ok(());
    }
    let mut inheritance = Inheritance::offered()?;
    let served = serve(path, &mut inheritance);
    if let (Err(error), Some(inheritance)) = (&served, &inheritance) {
        inheritance.failed(&error.to_string());
    }
    served
}

fn serve(path: &Path, inheritance: &mut Option<Inheritance>) -> Result<(), Failure> {
    let config = Config::load(path)?;
    // Kept to the end: what waits to be logged is written when it is dropped.
    let (filter, _log) = log::start(&config.log)?;
    tell_of_the_build(&config);
    let listeners = bind(&config, inheritance.as_mut())?;
    let threads = front_threads(&config);
    let gate = build(config, &listeners, inheritance.as_ref())?;
    for listener in &listeners {
        let address = listener.socket.local_addr()?;
        tracing::info!(door = listener.door.listener(), %address, "listening");
    }
    let control = Arc::new(Control::new(gate, filter, Doors::new(listeners, threads)?));
    control::run(control, inheritance)?;
    tracing::info!("stopped");
    Ok(())
}

/// The first port of each kind.
fn ports(listeners: &[Listener]) -> Ports {
    let first = |authd: bool| {
        let mut of_kind = listeners.iter().filter(|listener| (listener.door == Door::Authd) == authd);
        of_kind.find_map(|listener| listener.socket.local_addr().ok()).map(|address| address.port())
    };
    Ports { tls: first(false), authd: first(true) }
}

fn build(config: Config, listeners: &[Listener], elder: Option<&Inheritance>) -> Result<Arc<Gate>, Failure> {
    let now = Instant::now();
    let keys = KeyRing::load(&config.tickets.keys)?;
    let provider = config.tls.policy.provider();
    let presented = Presented::new(certificate::load(&config.tls.certificate, &config.tls.key, &provider)?);
    let tls = tls::server_config(config.tls.policy, presented.clone(), config.portals()?)?;
    let metrics = Metrics::new();
    metrics.set_tenants(&config.tenants.keys().cloned().collect::<Vec<_>>());
    let mut flow = config.flow.engine();
    flow.epoch = elder.map(Inheritance::epoch);
    let turns = metrics.clone();
    flow.on_turn = Some(Arc::new(move |took| turns.record(Stage::FlowTurn, took)));
    let engines = Engines::start(&flow)?;
    if let Some(why) = engines.refusal() {
        tracing::warn!(why, "io_uring is refused; epoll takes over");
    }
    let tickets = Arc::new(Tickets::new(config.tickets.policy.clone(), keys));
    // An heir does once everything was given to it.
    if let (Some(path), None) = (&config.tickets.journal, elder) {
        tickets.keep_journal(path, Start::of_this_process(false))?;
    }
    let audit = Audit::open(config.audit.file.as_deref(), config.audit.journal)?;
    export(&metrics, &engines, &tickets, &audit);
    let vcenters = Vcenters::new(config.vcenter.clone(), provider.clone());
    let sampled = vcenters.clone();
    metrics.add_source(move |out| sampled.sample(out));
    let hosts = Arc::<Hosts>::default();
    let sampled = hosts.clone();
    metrics.add_source(move |out| sampled.sample(out));
    let xdp = start_xdp(&config, listeners, elder.is_some(), &audit)?;
    let (shed, counts) = (xdp.clone(), xdp.clone());
    metrics.add_source(move |out| shed.sample(out));
    let tenants = Tenants::new(&config.tenants, now);
    tenants.watch(move |tenant, sessions| counts.set_active(tenant, sessions));
    Ok(Arc::new(Gate {
        sources: Sources::new(config.limits),
        tenants,
        tickets,
        presented,
        tls: ArcSwap::from_pointee(tls),
        provider: ArcSwap::new(provider),
        registry: Registry::new(engines.epoch()),
        metrics,
        audit,
        xdp,
        engines,
        vcenters,
        hosts,
        sdk: SdkSessions::default(),
        desk: Desk::default(),
        ports: ports(listeners),
        headers_pending: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        succession: Succession::default(),
        config: ArcSwap::from_pointee(config),
    }))
}

/// What this binary was built without, where the operator may think it is there.
fn tell_of_the_build(config: &Config) {
    if !front::has_page() {
        tracing::info!(
            "no console page in this build: /console/ answers 404; build with Node.js and npm (`cargo xtask build`)"
        );
    }
    if config.tls.policy == tls::Policy::Fips && !tls::VALIDATED {
        tracing::info!(
            "tls.policy = \"fips\": approved algorithms only, but not by the validated module; `cargo xtask build --fips` builds it in"
        );
    }
}

/// The XDP gate before the first packet is wanted. What it sheds is told in the log and the audit trail, in samples.
fn start_xdp(
    config: &Config,
    listeners: &[Listener],
    heir: bool,
    audit: &Arc<Audit>,
) -> Result<Arc<Shed>, Failure> {
    let listen = listeners.iter().map(|l| l.socket.local_addr()).collect::<io::Result<Vec<_>>>()?;
    let audit = audit.clone();
    let shed = xdp::start(config.xdp.clone(), xdp::policy(config, &listen), heir, move |dropped| {
        tracing::info!(source = %dropped.source, destination = %dropped.destination, tenant = dropped.tenant, reason = dropped.verdict, "XDP gate shed a connection (sampled)");
        audit.shed(dropped);
    })?;
    Ok(Arc::new(shed))
}

/// What others count, for `/metrics`.
fn export(metrics: &Metrics, engines: &Engines, tickets: &Arc<Tickets>, audit: &Arc<Audit>) {
    let stats = engines.stats();
    metrics.add_engines(engines.driver(), move || stats.iter().map(|s| sample(s)).collect());
    let (tickets, journal) = (tickets.clone(), tickets.clone());
    metrics.add_source(move |out| journal.sample_journal(out));
    metrics.add_tickets(move || {
        let stats = tickets.stats();
        TicketSample {
            tracked: stats.tracked as u64,
            capacity: stats.capacity as u64,
            refused_full: stats.refused_full,
            revocations: stats.revocations as u64,
            keys: stats.keys as u64,
        }
    });
    let audit = audit.clone();
    metrics.add_source(move |out| audit.sample(out));
}

fn sample(stats: &EngineStats) -> EngineSample {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    EngineSample {
        flows: load(&stats.flows),
        bytes: ModeBytes {
            interactive: stats.bytes(Way::Interactive),
            spliced: stats.bytes(Way::Spliced),
            op_spliced: stats.bytes(Way::OpSpliced),
            copied: stats.bytes(Way::Copied),
            first: stats.bytes(Way::First),
        },
        pipes_idle: load(&stats.pipes_idle),
        pipes_in_use: load(&stats.pipes_in_use),
        enobufs: load(&stats.enobufs),
        pipes_refused: load(&stats.pipes_refused),
        buffers_in_use: load(&stats.buffers_in_use),
        to_bulk: load(&stats.to_bulk),
        to_interactive: load(&stats.to_interactive),
    }
}

fn bind(config: &Config, inheritance: Option<&mut Inheritance>) -> Result<Vec<Listener>, Failure> {
    let tls = config.listen.tls.iter().map(|address| (*address, Door::Mks));
    let authd = config.listen.authd.iter().map(|address| (*address, Door::Authd));
    let mut listeners = match inheritance {
        Some(inheritance) => inheritance.listeners(&config.listen),
        None => front::inherited(&config.listen)?,
    };
    let inherited: Vec<_> = listeners.iter().filter_map(|l| l.socket.local_addr().ok()).collect();
    for (address, door) in tls.chain(authd) {
        if inherited.iter().any(|held| upgrade::means(address, *held)) {
            continue;
        }
        let bound = front::bind(address, door, config.listen.backlog);
        listeners.push(bound.map_err(|error| cannot_listen(address, &error))?);
    }
    Ok(listeners)
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let remedy = match (error.kind(), holder(address)) {
        (io::ErrorKind::AddrInUse, Some(by)) => {
            return format!(
                "{address} is held by {by}; stop it, or give the door another address in [listen] and mksgate.socket"
            );
        }
        (io::ErrorKind::AddrInUse, None) => "`ss -tlnp` as root shows who holds the port",
        (io::ErrorKind::PermissionDenied, _) => {
            "a port below 1024 has to stand in mksgate.socket or wants CAP_NET_BIND_SERVICE"
        }
        _ => "`ip address` shows the addresses of this host",
    };
    format!("{address} cannot be listened on ({error}); {remedy}")
}

fn front_threads(config: &Config) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if config.flow.threads == 0 { cores() } else { config.flow.threads }
}
