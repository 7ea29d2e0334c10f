//! Rounds in which the contenders take turns, and the arithmetic of them.

use std::fmt::Display;

use anyhow::Result;
use serde::Serialize;

use super::context::Context;
use super::outcome::Outcome;
use super::stop::Interrupted;
use crate::load::goals::median;

/// All rounds of one case by one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Series<R> {
    /// Who.
    pub contender: String,
    /// In the order of time: the nth round of every contender belongs together.
    pub rounds: Vec<R>,
    /// What ended its part in the case, if something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A median and what it lies between.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Spread {
    /// Of these values; NaN of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let low = values.iter().copied().fold(f64::NAN, f64::min);
        let high = values.iter().copied().fold(f64::NAN, f64::max);
        Self { median: median(values), low, high }
    }
}

impl From<f64> for Spread {
    fn from(value: f64) -> Self {
        Self { median: value, low: value, high: value }
    }
}

impl<R> Series<R> {
    /// Of one figure of every round.
    pub fn spread(&self, of: impl Fn(&R) -> f64) -> Spread {
        Spread::of(self.rounds.iter().map(of))
    }

    /// The median of one figure.
    pub fn median(&self, of: impl Fn(&R) -> f64) -> f64 {
        self.spread(of).median
    }
}

/// One figure of ours over theirs, round by round: what slowed the machine in a round slowed both.
pub fn ratios<R>(ours: &Series<R>, theirs: &Series<R>, of: impl Fn(&R) -> f64) -> Spread {
    Spread::of(ours.rounds.iter().zip(&theirs.rounds).map(|(our, their)| of(our) / of(their)))
}

/// What one figure of ours has more than theirs, round by round.
pub fn differences<R>(ours: &Series<R>, theirs: &Series<R>, of: impl Fn(&R) -> f64) -> Spread {
    Spread::of(ours.rounds.iter().zip(&theirs.rounds).map(|(our, their)| of(our) - of(their)))
}

/// The series of this contender, if it took part.
pub fn of<'a, R>(series: &'a [Series<R>], contender: &str) -> Option<&'a Series<R>> {
    series.iter().find(|s| s.contender == contender && !s.rounds.is_empty())
}

impl Context {
    /// Runs `count` rounds of a case, in each of them every contender once, every round beginning with another one: whoever
    /// follows a heavy neighbour is not always the same. One that fails is reported and takes no further part.
    pub fn alternate<C, R>(
        &self,
        out: &mut Outcome,
        count: usize,
        contenders: &mut [C],
        mut run: impl FnMut(&mut C) -> Result<R>,
    ) -> Result<Vec<Series<R>>>
    where
        C: Display,
    {
        let named = |c: &C| Series { contender: c.to_string(), rounds: Vec::new(), failed: None };
        let mut all: Vec<_> = contenders.iter().map(named).collect();
        for round in 0..count {
            for n in 0..contenders.len() {
                self.stop.check()?;
                let n = (n + round) % contenders.len();
                if all[n].failed.is_some() {
                    continue;
                }
                match self.watch(|| run(&mut contenders[n])) {
                    Ok(result) => all[n].rounds.push(result),
                    Err(error) if error.is::<Interrupted>() => return Err(error),
                    Err(error) => {
                        out.note(format!("{} failed in round {}: {error:#}", all[n].contender, round + 1));
                        all[n].failed = Some(format!("{error:#}"));
                    }
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::run::{Options, Stop};

    fn context() -> Context {
        Context::new(Options::default(), Stop::default()).unwrap()
    }

    #[test]
    fn contenders_take_turns_and_begin_in_turn() {
        let (mut order, mut out) = (Vec::new(), Outcome::default());
        let series = context().alternate(&mut out, 3, &mut ["a", "b"], |c| {
            order.push(*c);
            Ok(order.len() as f64)
        });
        assert_eq!(order, ["a", "b", "b", "a", "a", "b"]);
        let series = series.unwrap();
        assert_eq!(series[0].rounds, [1.0, 4.0, 5.0]);
        assert_eq!(
            ratios(&series[0], &series[1], |r| *r),
            Spread { median: 5.0 / 6.0, low: 0.5, high: 4.0 / 3.0 }
        );
    }

    #[test]
    fn one_that_fails_is_reported_and_the_rest_runs() {
        let mut out = Outcome::default();
        let series = context().alternate(&mut out, 3, &mut ["good", "bad"], |c| match *c {
            "bad" => bail!("out of order"),
            _ => Ok(1.0),
        });
        let series = series.unwrap();
        assert_eq!((series[0].rounds.len(), series[1].rounds.len()), (3, 0));
        assert_eq!(out.notes, ["bad failed in round 1: out of order"]);
        assert!(of(&series, "bad").is_none() && of(&series, "good").is_some());
    }

    #[test]
    fn an_interruption_ends_the_rounds() {
        let (context, mut out, mut ran) = (context(), Outcome::default(), 0);
        let stop = context.stop.clone();
        let series = context.alternate(&mut out, 3, &mut ["a"], |_| {
            ran += 1;
            stop.ask();
            Ok(0.0)
        });
        assert!(series.unwrap_err().is::<Interrupted>());
        assert_eq!(ran, 1);
    }
}
