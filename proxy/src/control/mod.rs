//! The control thread: signals, admin API, reload, revocation, drain. Nothing of a connection waits for it.

mod drain;
mod notify;
mod operator;
mod reload;
mod watch;
mod watchdog;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as flag;
use tokio::time::Instant;
use tracing_subscriber::{EnvFilter, Registry as Subscriber};

pub use reload::ReloadError;

use crate::admin::{self, Admin, AdminConfig};
use crate::front::Fronts;
use crate::gate::Gate;
use crate::metrics::Door;
use crate::session::{self, CloseReason};
use crate::ticket::Revocation;

/// How long the last audit records may take to be written.
const FLUSH: Duration = Duration::from_secs(5);

/// The level filter of the running log.
pub type LogFilter = tracing_subscriber::reload::Handle<EnvFilter, Subscriber>;

/// What an operator can make the appliance do.
pub struct Control {
    gate: Arc<Gate>,
    log: LogFilter,
    listeners: Vec<(Door, SocketAddr)>,
    loaded: Mutex<SystemTime>,
    serving: AtomicBool,
    manager: notify::Manager,
    /// When a drain ends; `None`: no drain.
    drain: flag::Sender<Option<Instant>>,
}

impl Control {
    /// For this appliance, which listens there.
    pub fn new(gate: Arc<Gate>, log: LogFilter, listeners: Vec<(Door, SocketAddr)>) -> Self {
        let (loaded, serving) = (Mutex::new(SystemTime::now()), AtomicBool::new(false));
        let manager = notify::Manager::of_this_process();
        Self { gate, log, listeners, loaded, serving, manager, drain: flag::Sender::new(None) }
    }

    /// Refuses the tickets from now on and closes the consoles they opened; returns their numbers.
    pub fn revoke(&self, what: &Revocation) -> Vec<u64> {
        self.gate.tickets.revoke(what, SystemTime::now());
        let meant = |s: &session::Session| what.matches(&s.jti, &s.tenant, &s.user);
        let closed = session::close_all(&self.gate, CloseReason::TicketRevoked, meant);
        tracing::info!(?what, closed = closed.len(), "tickets revoked");
        closed
    }

    /// Lets nobody in any more; the process ends with the last console, or after `within` (or the configured time).
    pub fn start_drain(&self, within: Option<Duration>) {
        let within = within.unwrap_or_else(|| self.gate.config.load().deadlines.drain);
        self.gate.draining.store(true, Ordering::Relaxed);
        tracing::info!(sessions = self.gate.registry.len(), seconds = within.as_secs(), "draining");
        self.manager.stopping(within, self.gate.registry.len());
        self.drain.send_replace(Some(Instant::now() + within));
    }

    fn set_loaded(&self, now: SystemTime) {
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// Runs until the appliance is to end, then ends it: accepts nothing, waits for consoles, cuts the rest, joins.
pub fn run(control: Arc<Control>, fronts: Fronts) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let gate = control.gate.clone();
    let cut = runtime.block_on(async {
        gate.vcenters.run_here();
        let config = gate.config.load_full();
        let (metrics, registry) = (gate.metrics.clone(), gate.registry.clone());
        let admin = Admin { control: control.clone(), metrics, registry };
        let socket = AdminConfig {
            socket: config.admin.socket.clone(),
            uids: config.admin.uids.clone(),
            gids: config.admin.gids.clone(),
            metrics: config.admin.metrics,
            ..AdminConfig::default()
        };
        let server = admin::Server::bind(socket, admin).await?;
        if let Some(address) = server.metrics_addr() {
            tracing::info!(%address, "metrics");
        }
        let server = tokio::spawn(server.run());
        tokio::spawn(watch::secrets(control.clone()));
        tokio::spawn(watchdog::feed(control.clone()));
        control.serving.store(true, Ordering::Relaxed);
        tracing::info!(driver = gate.engines.driver(), "serving");
        control.manager.ready();
        until_drained(&control).await?;
        fronts.stop_accepting();
        let cut = drain::wait(&gate, control.drain.subscribe()).await;
        server.abort();
        // Its end removes the socket's name.
        let _ = server.await;
        Ok::<_, Box<dyn Error>>(cut)
    })?;
    runtime.block_on(async {
        // Their last handshakes may still wait for a vCenter, whose calls run here.
        let joined = tokio::task::spawn_blocking(move || fronts.join()).await;
        if joined.is_err() {
            tracing::error!("the front threads could not be joined");
        }
        session::close_all(&gate, CloseReason::Drain, |_| true);
        gate.registry.emptied().await;
        gate.vcenters.log_out().await;
    });
    if !gate.audit.flush(FLUSH) {
        tracing::error!("audit records were lost: they could not be written in time");
    }
    if cut > 0 {
        tracing::warn!(sessions = cut, "consoles were cut by the end of the drain");
    }
    Ok(())
}

/// Follows signals until the appliance is to drain.
async fn until_drained(control: &Control) -> std::io::Result<()> {
    let (mut hup, mut term, mut int) =
        (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut drained = control.drain.subscribe();
    loop {
        tokio::select! {
            _ = hup.recv() => {
                // Said where it failed; the old configuration stays in force.
                let _ = control.reload();
            }
            _ = term.recv() => control.start_drain(None),
            _ = int.recv() => control.start_drain(None),
            _ = drained.wait_for(Option::is_some) => return Ok(()),
        }
    }
}
