//! Goals and the arithmetic of rounds.

use serde::Serialize;

/// One promise and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// The suite.
    pub suite: &'static str,
    /// What is promised.
    pub name: String,
    /// The bound, with its direction.
    pub goal: String,
    /// The measurement.
    pub measured: f64,
    /// Whether it is kept.
    pub ok: bool,
}

impl Goal {
    /// `measured` must not exceed `bound`.
    pub fn at_most(suite: &'static str, name: impl Into<String>, measured: f64, bound: f64) -> Self {
        Self { suite, name: name.into(), goal: format!("<= {bound}"), measured, ok: measured <= bound }
    }

    /// `measured` must reach `bound`.
    pub fn at_least(suite: &'static str, name: impl Into<String>, measured: f64, bound: f64) -> Self {
        Self { suite, name: name.into(), goal: format!(">= {bound}"), measured, ok: measured >= bound }
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
        assert!(Goal::at_most("s", "n", 0.6, 0.6).ok && !Goal::at_least("s", "n", 1.09, 1.1).ok);
    }
}
