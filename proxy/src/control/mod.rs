//! The control thread: signals, admin API, reload, revocation, drain. Nothing of a connection waits for it.

mod doors;
mod drain;
pub(crate) mod notify;
mod operator;
mod program;
mod reload;
mod upgrade;
mod watch;
mod watchdog;

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as flag;
use tokio::time::Instant;
use tracing_subscriber::{EnvFilter, Registry as Subscriber};

pub use doors::Doors;
pub use reload::ReloadError;

use crate::admin::{self, Admin, AdminConfig};
use crate::gate::Gate;
use crate::session::{self, CloseReason};
use crate::ticket::Revocation;
use crate::upgrade::{Given, Inheritance};

/// How long the last audit records may take to be written.
const FLUSH: Duration = Duration::from_secs(5);

/// The level filter of the running log.
pub type LogFilter = tracing_subscriber::reload::Handle<EnvFilter, Subscriber>;

/// What an operator can make the appliance do.
pub struct Control {
    gate: Arc<Gate>,
    log: LogFilter,
    doors: Doors,
    loaded: Mutex<SystemTime>,
    serving: AtomicBool,
    manager: notify::Manager,
    program: program::Program,
    admin_sockets: Mutex<Option<upgrade::AdminSockets>>,
    /// Held while an upgrade is tried.
    upgrading: Mutex<()>,
    /// The process that took over, until `leave` has it.
    given: Mutex<Option<Given>>,
    /// Another process is in charge.
    retired: flag::Sender<bool>,
    /// When a drain ends; `None`: no drain.
    drain: flag::Sender<Option<Instant>>,
}

impl Control {
    /// For this appliance and its doors.
    pub fn new(gate: Arc<Gate>, log: LogFilter, doors: Doors) -> Self {
        Self {
            gate,
            log,
            doors,
            loaded: Mutex::new(SystemTime::now()),
            serving: AtomicBool::new(false),
            manager: notify::Manager::of_this_process(),
            program: program::Program::of_this_process(),
            admin_sockets: Mutex::default(),
            upgrading: Mutex::default(),
            given: Mutex::default(),
            retired: flag::Sender::new(false),
            drain: flag::Sender::new(None),
        }
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

/// Takes over from an older process if there is one, and runs until the appliance is to end or a younger process has
/// taken over; then ends it: accepts nothing, waits for consoles, cuts the rest, joins.
pub fn run(control: Arc<Control>, inheritance: &mut Option<Inheritance>) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let gate = control.gate.clone();
    let server = runtime.block_on(async {
        gate.vcenters.run_here();
        bind(&control, inheritance.as_mut()).await
    })?;
    if let Some(inheritance) = inheritance {
        inheritance.take(&gate)?;
        gate.xdp.in_charge();
    }
    // What fails from here on is this process's failure.
    *inheritance = None;
    control.doors.open(&gate)?;
    let cut = runtime.block_on(serve(&control, server))?;
    if !gate.audit.flush(FLUSH) {
        tracing::error!("audit records were lost: they could not be written in time");
    }
    if cut > 0 {
        tracing::warn!(sessions = cut, "consoles were cut by the end of the drain");
    }
    Ok(())
}

/// The admin API, on the sockets of the process before this one where the configuration still names them.
async fn bind(
    control: &Arc<Control>,
    inheritance: Option<&mut Inheritance>,
) -> Result<admin::Server, Box<dyn Error>> {
    let gate = &control.gate;
    let config = gate.config.load_full();
    let (metrics, registry) = (gate.metrics.clone(), gate.registry.clone());
    let admin = Admin { control: control.clone(), metrics, registry };
    let socket = AdminConfig {
        socket: config.admin.socket.clone(),
        uids: config.admin.uids.clone(),
        gids: config.admin.gids.clone(),
        metrics: config.admin.metrics,
        metrics_names: config.admin.metrics_names.clone(),
        ..AdminConfig::default()
    };
    let inherited = inheritance.map(Inheritance::admin).unwrap_or_default();
    let server = admin::Server::bind_or_inherit(socket, admin, inherited).await?;
    if let Some(address) = server.metrics_addr() {
        tracing::info!(%address, "metrics");
    }
    let (socket, metrics) = server.duplicates()?;
    *control.admin_sockets.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(upgrade::AdminSockets { socket, metrics });
    Ok(server)
}

/// Serves to the end; returns how many consoles were cut.
async fn serve(control: &Arc<Control>, server: admin::Server) -> Result<usize, Box<dyn Error>> {
    let gate = &control.gate;
    let mut retired = control.retired.subscribe();
    let mut server = tokio::spawn(server.run_until(async move {
        // The sender lives as long as the appliance.
        let _ = retired.wait_for(|retired| *retired).await;
    }));
    tokio::spawn(watch::secrets(control.clone()));
    tokio::spawn(watchdog::feed(control.clone()));
    control.serving.store(true, Ordering::Relaxed);
    tracing::info!(driver = gate.engines.driver(), "serving");
    control.manager.ready();
    match until_the_end(control).await? {
        End::Retired => {
            let cut = control.leave().await;
            gate.vcenters.log_out().await;
            // Whoever asked for the upgrade has its answer.
            if tokio::time::timeout(FLUSH, &mut server).await.is_err() {
                server.abort();
            }
            Ok(cut)
        }
        End::Drain => {
            control.doors.close();
            let cut = drain::wait(gate, control.drain.subscribe()).await;
            server.abort();
            // Its end removes the socket's name.
            let _ = server.await;
            // Their last handshakes may still wait for a vCenter, whose calls run here.
            let joining = control.clone();
            tokio::task::spawn_blocking(move || joining.doors.join()).await?;
            session::close_all(gate, CloseReason::Drain, |_| true);
            gate.registry.emptied().await;
            gate.vcenters.log_out().await;
            Ok(cut)
        }
    }
}

/// How it ends.
enum End {
    Drain,
    Retired,
}

/// Follows signals until the appliance is to drain or is replaced.
async fn until_the_end(control: &Control) -> std::io::Result<End> {
    let (mut hup, mut term, mut int) =
        (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut drained, mut retired) = (control.drain.subscribe(), control.retired.subscribe());
    loop {
        tokio::select! {
            _ = hup.recv() => {
                // Said where it failed; the old configuration stays in force.
                let _ = control.reload();
            }
            _ = term.recv() => control.start_drain(None),
            _ = int.recv() => control.start_drain(None),
            _ = retired.wait_for(|retired| *retired) => return Ok(End::Retired),
            _ = drained.wait_for(Option::is_some) => return Ok(End::Drain),
        }
    }
}
