//! The control thread: signals, reload, revocation, drain. Nothing of a connection waits for it.

mod drain;
mod reload;
mod watch;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as flag;
use tracing_subscriber::{EnvFilter, Registry as Subscriber};

pub use reload::ReloadError;

use crate::front::Fronts;
use crate::gate::Gate;
use crate::session::{self, CloseReason};
use crate::ticket::Revocation;

/// How long the last audit records may take to be written.
const FLUSH: std::time::Duration = std::time::Duration::from_secs(5);

/// The level filter of the running log.
pub type LogFilter = tracing_subscriber::reload::Handle<EnvFilter, Subscriber>;

/// What an operator can make the appliance do.
pub struct Control {
    gate: Arc<Gate>,
    log: LogFilter,
    drain: flag::Sender<bool>,
}

impl Control {
    /// For this appliance.
    pub fn new(gate: Arc<Gate>, log: LogFilter) -> Self {
        Self { gate, log, drain: flag::Sender::new(false) }
    }

    /// The appliance.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Refuses the tickets from now on and closes the consoles they opened; returns how many.
    pub fn revoke(&self, what: &Revocation) -> usize {
        self.gate.tickets.revoke(what, std::time::SystemTime::now());
        let closed = session::close_all(&self.gate, CloseReason::TicketRevoked, |s| {
            what.matches(&s.jti, &s.tenant, &s.user)
        });
        tracing::info!(?what, closed, "tickets revoked");
        closed
    }

    /// Lets nobody in any more; the process ends with the last console or at the drain deadline.
    pub fn start_drain(&self) {
        if !self.gate.draining.swap(true, Ordering::Relaxed) {
            tracing::info!(sessions = self.gate.registry.len(), "draining");
        }
        self.drain.send_replace(true);
    }
}

/// Runs until the appliance is to end, then ends it: accepts nothing, waits for consoles, cuts the rest, joins.
pub fn run(control: Arc<Control>, fronts: Fronts) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cut = runtime.block_on(async {
        tokio::spawn(watch::secrets(control.clone()));
        signals(&control).await?;
        fronts.stop_accepting();
        io::Result::Ok(drain::wait(&control.gate).await)
    })?;
    fronts.join();
    runtime.block_on(async {
        session::close_all(&control.gate, CloseReason::Drain, |_| true);
        control.gate.registry.emptied().await;
    });
    if !control.gate.audit.flush(FLUSH) {
        tracing::error!("audit records were lost: they could not be written in time");
    }
    if cut > 0 {
        tracing::warn!(sessions = cut, "consoles were cut at the drain deadline");
    }
    Ok(())
}

/// Returns when the appliance is to drain.
async fn signals(control: &Control) -> io::Result<()> {
    let (mut hup, mut term, mut int) =
        (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut drained = control.drain.subscribe();
    loop {
        tokio::select! {
            _ = hup.recv() => {
                // Said where it failed; the old configuration stays in force.
                let _ = control.reload();
            }
            _ = term.recv() => control.start_drain(),
            _ = int.recv() => control.start_drain(),
            _ = drained.wait_for(|drain| *drain) => return Ok(()),
        }
    }
}
