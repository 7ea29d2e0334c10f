//! What a run leaves: the table of goals, JSON with every round, a page with charts, the same as Markdown, latency logs.

pub mod goals;
pub mod hdr;
pub mod html;
pub mod json;
pub mod markdown;
pub mod svg;

use crate::load::goals::median;
use crate::run::Outcome;
use crate::run::context::Foreign;

/// Share of the machine that others may use before nothing can be concluded.
pub const TOO_NOISY: f64 = 0.10;

/// How a suite ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of it ran.
    Complete,
    /// It is declared and not there yet, or the machine cannot run it.
    Skipped(String),
    /// Something broke; what was measured before is kept.
    Failed(String),
    /// Ctrl-C; what was measured before is kept.
    Interrupted,
}

/// A suite that ran.
pub struct Ran {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// How it ended.
    pub ended: Ended,
    /// Seconds it took.
    pub seconds: f64,
    /// What it found.
    pub outcome: Outcome,
    /// What others did to the machine in each of its rounds.
    pub foreign: Vec<Foreign>,
}

impl Ran {
    /// Share of the machine that others had, programs and other machines together: the median of the rounds.
    pub fn noise(&self) -> f64 {
        if self.foreign.is_empty() { 0.0 } else { median(self.foreign.iter().map(|f| f.noise + f.steal)) }
    }

    /// Whether others had so much of the machine that nothing can be concluded.
    pub fn too_noisy(&self) -> bool {
        self.noise() > TOO_NOISY
    }

    /// Marks the goals of a run that was too noisy. That nothing may be lost holds on any machine.
    pub fn judge(&mut self) {
        let noisy = self.too_noisy();
        let of_speed = self.outcome.goals.iter_mut().filter(|goal| goal.goal != "<= 0");
        of_speed.for_each(|goal| goal.noisy |= noisy);
    }

    /// What has to be said of it, if anything.
    pub fn remark(&self) -> Option<String> {
        match &self.ended {
            Ended::Complete => None,
            Ended::Skipped(why) => Some(format!("{} skipped: {why}", self.name)),
            Ended::Failed(why) => Some(format!("{} failed: {why}", self.name)),
            Ended::Interrupted => Some(format!("{} interrupted; what it had measured is kept", self.name)),
        }
    }
}
