//! The surroundings of a suite.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use super::outcome::Outcome;
use super::stop::Stop;
use crate::load::cost::Reading;

/// How a run was asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Few rounds, short ones, fewer cases: a look, not a result.
    pub quick: bool,
    /// Names of those who take part beside mksgate; all, if none is named.
    pub peers: Vec<String>,
    /// Rounds per case.
    pub rounds: Option<usize>,
    /// Seconds per round.
    pub seconds: Option<f64>,
    /// Sessions to hold, at most.
    pub sessions: Option<usize>,
    /// The appliance's program; the one beside this program where none is named.
    pub mksgate: Option<PathBuf>,
    /// How long `soak` runs.
    pub soak: Option<Duration>,
    /// `flow`: also the engine's other drivers and modes.
    pub engines: bool,
    /// `flow`: only bulk cases with so many flows.
    pub bulk: Vec<usize>,
    /// `flow`: only ping-pong cases with so many flows.
    pub ping_pong: Vec<usize>,
    /// Where every random choice begins.
    pub seed: u64,
}

/// What a suite runs in.
pub struct Context {
    /// How the run was asked for.
    pub options: Options,
    /// Ctrl-C; a suite looks at it between rounds, and while it waits.
    pub stop: Stop,
    dir: TempDir,
    watched: Mutex<Vec<Foreign>>,
}

/// What others did to the machine in one round, as shares of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Foreign {
    /// Programs that this run did not start.
    pub noise: f64,
    /// What the hypervisor gave to other machines.
    pub steal: f64,
}

/// A suite cannot run here, and says why: not a failure.
#[derive(Debug)]
pub struct Skip(String);

impl Skip {
    /// Why.
    pub fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

impl Context {
    /// For one run.
    pub fn new(options: Options, stop: Stop) -> Result<Self> {
        Ok(Self { options, stop, dir: tempfile::tempdir()?, watched: Mutex::default() })
    }

    /// A directory for configurations and logs; gone after the run.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Rounds per case: what was asked for, else one of these.
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        self.options.rounds.unwrap_or(if self.options.quick { quick } else { full })
    }

    /// Seconds per round: what was asked for, else one of these.
    pub fn seconds(&self, full: f64, quick: f64) -> f64 {
        self.options.seconds.unwrap_or(if self.options.quick { quick } else { full })
    }

    /// The one or the other.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.options.quick { quick } else { full }
    }

    /// Whether this peer takes part. mksgate always does.
    pub fn wants(&self, peer: &str) -> bool {
        let peers = &self.options.peers;
        peers.is_empty() || peer == "mksgate" || peers.iter().any(|wanted| wanted == peer)
    }

    /// Starts a peer; what goes wrong is reported, and the rest runs. `None` from `start`: it is not installed.
    pub fn peer<T>(
        &self,
        name: &str,
        out: &mut Outcome,
        start: impl FnOnce() -> Result<Option<T>>,
    ) -> Option<T> {
        if !self.wants(name) {
            return None;
        }
        match start() {
            Ok(Some(running)) => Some(running),
            Ok(None) => {
                out.note(format!("{name} is not installed; left out"));
                None
            }
            Err(error) => {
                out.note(format!("{name} does not start; left out: {error:#}"));
                if name == "mksgate" {
                    out.broken = Some(format!("mksgate does not start: {error:#}"));
                }
                None
            }
        }
    }

    /// Runs one measurement and keeps what others did to the machine meanwhile.
    pub fn watch<T>(&self, measure: impl FnOnce() -> T) -> T {
        let before = Reading::take(None);
        let result = measure();
        let cost = before.until(&Reading::take(None));
        let foreign = Foreign { noise: cost.noise, steal: cost.steal };
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(foreign);
        result
    }

    /// What others did in the rounds since the last call.
    pub fn take_watched(&self) -> Vec<Foreign> {
        std::mem::take(&mut *self.watched.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
