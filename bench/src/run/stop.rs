//! Ctrl-C and SIGTERM: the first ends the round and keeps what was measured, the second ends at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Exit status of a program that SIGINT ended, as a shell reports it.
const INTERRUPTED: i32 = 130;

/// Whether the run is to end. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

/// The run was interrupted.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Stop {
    /// Listens for SIGINT and SIGTERM on a thread of its own.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let heard = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let listen = async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if heard.0.swap(true, Relaxed) {
                    // The programs that were started end with this one: see `Process`.
                    std::process::exit(INTERRUPTED);
                }
                eprintln!("\ninterrupted: ending the round; once more ends at once");
            }
        };
        let thread = thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(listen)).context("a thread for signals")?;
        Ok(stop)
    }

    /// Ends the run.
    pub fn ask(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it was asked to end.
    pub fn asked(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// An error once it was asked to end.
    pub fn check(&self) -> Result<()> {
        if self.asked() { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// Sleeps, but not past an interruption.
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}
