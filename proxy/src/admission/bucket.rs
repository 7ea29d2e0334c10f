//! A token bucket in whole nanoseconds (GCRA): one word of state, no drift, time passed in.

use std::time::{Duration, Instant};

/// A bucket of `burst` tokens that fills with `rate` tokens a second.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// When the bucket will be full again.
    full_at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// One that will be full at this time: the state of another process's bucket.
    pub fn full_at(at: Instant) -> Self {
        Self { full_at: at }
    }

    /// When it will be full again.
    pub fn fills_at(&self) -> Instant {
        self.full_at
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, rate: u32, burst: u32, now: Instant) -> bool {
        let each = Duration::from_secs(1) / rate.max(1);
        let full_at = self.full_at.max(now) + each;
        let fits = full_at.saturating_duration_since(now) <= each * burst.max(1);
        if fits {
            self.full_at = full_at;
        }
        fits
    }

    /// Whether it is full, so that forgetting it changes nothing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In any window the bucket gives at most burst + rate × time, and with a steady trickle below the rate, all.
        #[test]
        fn never_more_than_burst_and_rate(rate in 1u32..100, burst in 1u32..20, steps in prop::collection::vec(0u64..200, 1..200)) {
            let start = Instant::now();
            let (mut bucket, mut now, mut given) = (Bucket::new(start), start, 0u64);
            for step in steps {
                now += Duration::from_millis(step);
                given += u64::from(bucket.take(rate, burst, now));
                let most = f64::from(burst) + f64::from(rate) * (now - start).as_secs_f64();
                prop_assert!(given as f64 <= most + 1e-6, "{given} > {most}");
            }
        }

        #[test]
        fn a_steady_trickle_passes(rate in 1u32..100, n in 1u32..200) {
            let start = Instant::now();
            let mut bucket = Bucket::new(start);
            for i in 0..n {
                let passes = bucket.take(rate, 1, start + Duration::from_secs(1) / rate * i);
                prop_assert!(passes);
            }
        }
    }
}
