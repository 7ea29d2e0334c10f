//! The circuit breaker of one vCenter: after failures in a row it refuses at once, and now and then lets one call try.

use std::time::{Duration, Instant};

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Failures in a row.
    pub failures: u32,
    /// Rest before one call tries again.
    pub rest: Duration,
}

/// Closed, open, or trying.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether a call may go. While it is open, one call per rest may, and the others wait for what becomes of it.
    pub fn admit(&mut self, rule: Rule, now: Instant) -> bool {
        match self.open_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + rule.rest);
                true
            }
            None => true,
        }
    }

    /// The vCenter answered.
    pub fn success(&mut self) {
        *self = Self::default();
    }

    /// It did not.
    pub fn failure(&mut self, rule: Rule, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= rule.failures {
            self.open_until = Some(now + rule.rest);
        }
    }

    /// Whether calls are refused.
    pub fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_one_success() {
        let (rule, t0) = (Rule { failures: 3, rest: Duration::from_secs(10) }, Instant::now());
        let mut breaker = Breaker::default();
        breaker.failure(rule, t0);
        breaker.failure(rule, t0);
        breaker.success();
        for _ in 0..2 {
            breaker.failure(rule, t0);
            assert!(breaker.admit(rule, t0));
        }
        breaker.failure(rule, t0);
        assert!(breaker.is_open() && !breaker.admit(rule, t0 + Duration::from_secs(9)));
        let later = t0 + Duration::from_secs(10);
        assert!(breaker.admit(rule, later), "one may try");
        assert!(!breaker.admit(rule, later), "and only one");
        breaker.failure(rule, later);
        assert!(!breaker.admit(rule, later + Duration::from_secs(9)));
        breaker.success();
        assert!(breaker.admit(rule, later));
    }
}
