//! Goals and the arithmetic of rounds.

use serde::Serialize;

use crate::run::Spread;

/// One promise and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// The suite.
    pub suite: &'static str,
    /// What is promised.
    pub name: String,
    /// The bound, with its direction.
    pub goal: String,
    /// The measurement; of several rounds, the median.
    pub measured: f64,
    /// The smallest and the largest of the rounds.
    pub spread: [f64; 2],
    /// Whether it is kept.
    pub ok: bool,
    /// Others used too much of the machine meanwhile for this to conclude anything.
    pub noisy: bool,
}

impl Goal {
    /// `measured`, one figure or the spread of several, must not exceed `bound`.
    pub fn at_most(
        suite: &'static str,
        name: impl Into<String>,
        measured: impl Into<Spread>,
        bound: f64,
    ) -> Self {
        Self::new(suite, name.into(), measured.into(), format!("<= {bound}"), |m| m <= bound)
    }

    /// `measured`, one figure or the spread of several, must reach `bound`.
    pub fn at_least(
        suite: &'static str,
        name: impl Into<String>,
        measured: impl Into<Spread>,
        bound: f64,
    ) -> Self {
        Self::new(suite, name.into(), measured.into(), format!(">= {bound}"), |m| m >= bound)
    }

    fn new(
        suite: &'static str,
        name: String,
        measured: Spread,
        goal: String,
        kept: impl Fn(f64) -> bool,
    ) -> Self {
        let Spread { median, low, high } = measured;
        Self { suite, name, goal, measured: median, spread: [low, high], ok: kept(median), noisy: false }
    }
}

/// The middle one; of an even number, the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The geometric mean.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0.0), |(sum, n), v| (sum + v.ln(), n + 1.0));
    (sum / n).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
        assert!((geometric_mean([2.0, 8.0]) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_goal_is_kept_by_its_median_and_never_by_nothing() {
        assert!(Goal::at_most("s", "n", 0.6, 0.6).ok && !Goal::at_least("s", "n", 1.09, 1.1).ok);
        let spread = Goal::at_most("s", "n", Spread::of([0.5, 0.55, 0.9]), 0.6);
        assert!(spread.ok && spread.spread == [0.5, 0.9]);
        assert!(!Goal::at_most("s", "n", Spread::of([]), 1.0).ok);
        assert!(!Goal::at_least("s", "n", f64::NAN, 0.0).ok);
    }
}
