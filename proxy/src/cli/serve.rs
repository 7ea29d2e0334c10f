//! `mksgate serve`: builds the appliance in the order of a connection, then runs the control thread until it is told to go.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Instant;

use arc_swap::ArcSwap;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry as Subscriber, reload};

use crate::admission::{Sources, Tenants};
use crate::audit::Audit;
use crate::config::{Config, LogFormat};
use crate::control::{self, Control};
use crate::flow::{Driver, Engines};
use crate::front::{self, Fronts, Listener};
use crate::gate::Gate;
use crate::metrics::{Door, Metrics};
use crate::session::Registry;
use crate::ticket::{KeyRing, Tickets};
use crate::tls::{self, Presented, certificate};
use crate::wire::Runtime;

type Failure = Box<dyn Error>;

/// Serves until SIGTERM, SIGINT or a drain ends it.
pub fn run(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path)?;
    let filter = start_log(&config)?;
    let listeners = bind(&config)?;
    let threads = front_threads(&config);
    let gate = build(config)?;
    let runtime = if gate.engines.driver() == "io_uring" { Runtime::Uring } else { Runtime::Tokio };
    let fronts = Fronts::start(&gate, &listeners, threads, runtime)?;
    let control = Arc::new(Control::new(gate.clone(), filter));
    let addresses: Vec<_> = listeners.iter().filter_map(|l| Some((l.door, l.socket.local_addr().ok()?))).collect();
    tracing::info!(?addresses, driver = gate.engines.driver(), "serving");
    drop(listeners);
    control::run(control, fronts)?;
    tracing::info!("stopped");
    Ok(())
}

fn build(config: Config) -> Result<Arc<Gate>, Failure> {
    let now = Instant::now();
    let keys = KeyRing::load(&config.tickets.keys)?;
    let provider = config.tls.policy.provider();
    let presented = Presented::new(certificate::load(&config.tls.certificate, &config.tls.key, &provider)?);
    let tls = tls::server_config(config.tls.policy, presented.clone())?;
    let engines = Engines::start(&config.flow)?;
    if let Some(why) = engines.refusal() {
        tracing::warn!(why, "io_uring is refused; epoll takes over");
    }
    let metrics = Metrics::new();
    metrics.set_tenants(&config.tenants.keys().cloned().collect::<Vec<_>>());
    Ok(Arc::new(Gate {
        sources: Sources::new(config.limits),
        tenants: Tenants::new(&config.tenants, now),
        tickets: Arc::new(Tickets::new(config.tickets.policy.clone(), keys)),
        presented,
        tls: ArcSwap::from_pointee(tls),
        provider: ArcSwap::new(provider),
        engines,
        registry: Arc::new(Registry::default()),
        metrics,
        audit: Arc::new(Audit::open(config.audit.file.as_deref(), config.audit.journal)),
        headers_pending: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        next_session: AtomicU64::new(0),
        config: ArcSwap::from_pointee(config),
    }))
}

fn bind(config: &Config) -> Result<Vec<Listener>, Failure> {
    let tls = config.listen.tls.iter().map(|address| (*address, Door::Mks));
    let authd = config.listen.authd.iter().map(|address| (*address, Door::Authd));
    let mut listeners = Vec::new();
    for (address, door) in tls.chain(authd) {
        let bound = front::bind(address, door, config.listen.backlog);
        listeners.push(bound.map_err(|error| format!("{address} cannot be listened on ({error}); `ss -tlnp` shows who holds the port, and a port below 1024 wants CAP_NET_BIND_SERVICE"))?);
    }
    Ok(listeners)
}

fn front_threads(config: &Config) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if config.flow.threads == 0 { cores() } else { config.flow.threads }
}

/// The log; its filter can be changed while it runs.
fn start_log(config: &Config) -> Result<reload::Handle<EnvFilter, Subscriber>, Failure> {
    let filter = EnvFilter::try_new(&config.log.filter).map_err(|error| format!("log.filter: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let text = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let base = tracing_subscriber::registry().with(filter);
    let journal = match config.log.format {
        LogFormat::Journal => Some(tracing_journald::layer().map_err(|error| format!("log.format = \"journal\", but there is no journal ({error}); use \"text\""))?),
        // systemd sets JOURNAL_STREAM for a service whose stderr is the journal.
        LogFormat::Auto if std::env::var_os("JOURNAL_STREAM").is_some() => tracing_journald::layer().ok(),
        _ => None,
    };
    match (journal, config.log.format) {
        (Some(journal), _) => base.with(journal).try_init()?,
        (None, LogFormat::Json) => base.with(text().json()).try_init()?,
        (None, _) => base.with(text()).try_init()?,
    }
    Ok(handle)
}
