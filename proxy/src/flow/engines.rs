//! The engine threads and the way to them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use super::Flow;
use super::config::{Driver, EngineError, FlowConfig};
use super::core::Core;
use super::epoll::EpollDriver;
use super::export::Exported;
use super::mailbox::Mailbox;
use super::ring::RingDriver;
use super::stats::EngineStats;
use super::{probe, worker};
use crate::session::CloseReason;

/// How far back the engine's clock begins.
const PAST: Duration = Duration::from_secs(30 * 24 * 3600);

struct Thread {
    mailbox: Arc<Mailbox>,
    stats: Arc<EngineStats>,
    handle: Option<JoinHandle<()>>,
}

/// All engine threads. Dropping it stops them.
pub struct Engines {
    threads: Vec<Thread>,
    turn: AtomicUsize,
    driver: &'static str,
    refusal: Option<String>,
    epoch: Instant,
}

/// What a thread says once it runs: its driver, and why not io_uring.
type Report = Result<(&'static str, Option<String>), EngineError>;

impl Engines {
    /// Starts the threads.
    ///
    /// # Errors
    /// `Refused` if io_uring was asked for by name and cannot be had, `Os` if a thread or descriptor cannot be made.
    pub fn start(config: &FlowConfig) -> Result<Self, EngineError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = if config.threads == 0 { cores } else { config.threads };
        let mut engines = Self {
            threads: Vec::new(),
            turn: AtomicUsize::new(0),
            driver: "",
            refusal: None,
            epoch: config
                .epoch
                .unwrap_or_else(|| Instant::now().checked_sub(PAST).unwrap_or_else(Instant::now)),
        };
        for n in 0..count {
            let (driver, refusal) = engines.spawn(n, config)?;
            engines.driver = driver;
            engines.refusal = refusal;
        }
        Ok(engines)
    }

    /// Hands a flow to the thread with the fewest.
    ///
    /// # Errors
    /// Gives the flow back if every thread's queue is full or the engine is stopping.
    #[expect(clippy::result_large_err, reason = "the flow itself goes back")]
    pub fn submit(&self, flow: Flow) -> Result<(), Flow> {
        let first = self.turn.fetch_add(1, Relaxed);
        let mut order: Vec<&Thread> =
            (0..self.threads.len()).map(|n| &self.threads[(first + n) % self.threads.len()]).collect();
        order.sort_by_key(|thread| thread.stats.flows.load(Relaxed));
        let mut waiting = flow;
        for thread in order {
            thread.stats.flows.fetch_add(1, Relaxed);
            match thread.mailbox.submit(waiting) {
                Ok(()) => return Ok(()),
                Err(flow) => waiting = flow,
            }
            thread.stats.flows.fetch_sub(1, Relaxed);
        }
        Err(waiting)
    }

    /// Ends the flow with this number for `reason`, on whatever thread it is. Unknown numbers are ignored.
    pub fn close(&self, id: u64, reason: CloseReason) {
        self.threads.iter().for_each(|thread| thread.mailbox.close(id, reason));
    }

    /// Takes every raw flow out of the engine, for another one to go on with: in this process or, by way of a Unix socket, in
    /// the next. Flows with TLS or WebSocket on a leg stay, and so do flows that are ending.
    ///
    /// Each flow is quiesced first: every operation in flight is cancelled and reaped. What it held in buffers and pipes
    /// (per direction at most a pipe's capacity and 16 buffers of the ring, beside what was handed over and not yet sent)
    /// is in `to_backend` and `to_client`, how far it had come in `progress` and the counters. Handed to [`Engines::submit`] it
    /// goes on as if nothing had been: no byte is lost or sent twice, half-closed directions stay so, limits go on running.
    ///
    /// The iterator blocks for each flow and ends after the last; dropped early, it gives the rest back to this engine.
    /// `on_close` was not called for any of them. Whoever submits a flow again, here or elsewhere, keeps the promise that it will
    /// be. Whoever moved it to another process drops the flow and with it `on_close`, which is then never called: nothing
    /// was closed. Dropping our copies of the sockets ends no connection while the other process has its own.
    ///
    /// Submit nothing and close nothing until they have all arrived: a flow that is on its way is unknown to
    /// [`Engines::close`]. One export at a time: a second one that begins before the first is over gets nothing from the
    /// threads that are still busy with it.
    pub fn export(&self) -> Exported<'_> {
        self.export_from_each(usize::MAX)
    }

    /// The same for `most` of them, or a few more: the others go on meanwhile. An engine that gives none has none.
    pub fn export_some(&self, most: usize) -> Exported<'_> {
        self.export_from_each(most.div_ceil(self.threads.len().max(1)))
    }

    fn export_from_each(&self, most: usize) -> Exported<'_> {
        let (to, flows) = mpsc::channel();
        self.threads.iter().for_each(|thread| thread.mailbox.export(to.clone(), most));
        Exported { engines: self, flows }
    }

    /// Wakes every thread: one that can turn does, and counts it.
    pub fn nudge(&self) {
        self.threads.iter().for_each(|thread| thread.mailbox.nudge());
    }

    /// The counters of every thread.
    pub fn stats(&self) -> Vec<Arc<EngineStats>> {
        self.threads.iter().map(|thread| Arc::clone(&thread.stats)).collect()
    }

    /// `io_uring` or `epoll`.
    pub fn driver(&self) -> &'static str {
        self.driver
    }

    /// Why `Driver::Auto` took epoll: what forbids io_uring, and the remedy.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Where the engine's clock begins: `FlowCounters::last_ms` counts from here. It lies in the past, so that a flow that
    /// comes from another process can have been silent for longer than this engine exists.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Ends every flow with `CloseReason::Drain` and joins the threads.
    pub fn stop(self) {
        drop(self);
    }

    fn spawn(&mut self, n: usize, config: &FlowConfig) -> Report {
        let os = |what| move |source| EngineError::Os { what, source };
        let mailbox = Arc::new(Mailbox::new(config.queue).map_err(os("eventfd"))?);
        let stats = Arc::new(EngineStats::default());
        let (report, reported) = mpsc::channel();
        let thread = {
            let (config, mailbox, stats, epoch) =
                (config.clone(), Arc::clone(&mailbox), Arc::clone(&stats), self.epoch);
            move || body(&config, &mailbox, stats, epoch, &report)
        };
        let handle = std::thread::Builder::new().name(format!("flow-{n}")).spawn(thread);
        let handle = Some(handle.map_err(os("thread"))?);
        self.threads.push(Thread { mailbox, stats, handle });
        reported.recv().map_err(|_| EngineError::Refused("an engine thread ended at once".into()))?
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.threads.iter().for_each(|thread| thread.mailbox.stop());
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

/// A thread whose state is broken must not go on moving tenants' bytes, nor leave its flows hanging.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("flow engine: a thread panicked; the process ends");
            std::process::abort();
        }
    }
}

fn body(
    config: &FlowConfig,
    mailbox: &Arc<Mailbox>,
    stats: Arc<EngineStats>,
    epoch: Instant,
    report: &mpsc::Sender<Report>,
) {
    let _guard = AbortOnPanic;
    // splice(2) to a closed peer raises SIGPIPE and has no flag against it.
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let _ = pipe.thread_block();
    let core = Core::new(config, stats, epoch);
    let hook = config.on_turn.clone();
    let ring = match config.driver {
        Driver::Epoll => None,
        Driver::Auto | Driver::IoUring => Some(RingDriver::new(config, mailbox)),
    };
    let refusal = match ring {
        Some(Ok(driver)) => {
            let _ = report.send(Ok(("io_uring", None)));
            return worker::run(driver, core, mailbox, hook);
        }
        Some(Err(error)) => Some(probe::explain(&error)),
        None => None,
    };
    if let (Driver::IoUring, Some(why)) = (config.driver, &refusal) {
        let _ = report.send(Err(EngineError::Refused(why.clone())));
        return;
    }
    match EpollDriver::new(mailbox) {
        Ok(driver) => {
            let _ = report.send(Ok(("epoll", refusal)));
            worker::run(driver, core, mailbox, hook);
        }
        Err(source) => {
            let _ = report.send(Err(EngineError::Os { what: "epoll", source }));
        }
    }
}
