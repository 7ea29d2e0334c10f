//! An integer token bucket that fits into one 64-bit word.
//!
//! Kept as the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"): instead of a number of tokens, the bucket
//! holds the instant at which it would be full again. A full bucket lies in the past; each token taken moves the instant
//! one interval on; a token is refused when the instant lies further ahead than the burst allows. That equals a bucket
//! of `burst` tokens refilled one by one, has no division, and one word can be exchanged atomically.

/// How fast tokens come back and how many may be saved up. Times are nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Between two tokens; [`Rate::UNLIMITED`] and [`Rate::NEVER`] are its two extreme values.
    pub interval: u64,
    /// How far ahead of now the bucket may be and still give: `(burst - 1) * interval`.
    pub tolerance: u64,
}

/// Times tried to exchange the word before a contended bucket refuses: so many CPUs at one bucket are a flood.
const TRIES: u32 = 4;

impl Rate {
    /// Every token is given and nothing is written.
    pub const UNLIMITED: Rate = Rate { interval: 0, tolerance: 0 };
    /// No token is ever given.
    pub const NEVER: Rate = Rate { interval: u64::MAX, tolerance: 0 };

    /// `per_second` tokens a second, up to `burst` (at least one) at once; a rate of nothing never gives.
    /// The interval is rounded up to a whole nanosecond, so the rate is never exceeded.
    pub const fn per_second(per_second: u32, burst: u32) -> Rate {
        if per_second == 0 {
            return Rate::NEVER;
        }
        let interval = 1_000_000_000_u64.div_ceil(per_second as u64);
        let saved = if burst == 0 { 0 } else { burst as u64 - 1 };
        Rate { interval, tolerance: interval.saturating_mul(saved) }
    }

    /// What the bucket holds after a token taken at `now`, or `None` if it gives none.
    #[inline(always)]
    pub fn next(&self, full_at: u64, now: u64) -> Option<u64> {
        if self.interval == u64::MAX {
            return None;
        }
        let full_at = if full_at > now { full_at } else { now };
        if full_at - now > self.tolerance {
            return None;
        }
        Some(full_at.saturating_add(self.interval))
    }

    /// The word when the last token has just been taken: no further ahead does this rate bring it.
    #[inline(always)]
    pub fn emptied(&self, now: u64) -> u64 {
        now.saturating_add(self.tolerance).saturating_add(self.interval)
    }

    /// What of the word counts at this rate. One from before the rate was changed may lie further ahead than this one brings
    /// it, even by days: nothing is owed on that account.
    #[inline(always)]
    pub fn owed(&self, full_at: u64, now: u64) -> u64 {
        if full_at > self.emptied(now) { 0 } else { full_at }
    }
}

/// A bucket's word, wherever it lives: a map value in the kernel, an atomic in userspace.
pub trait Cell {
    /// The word as it is.
    fn load(&self) -> u64;
    /// Stores `new` if the word is still `seen`; false if somebody else was quicker.
    fn exchange(&self, seen: u64, new: u64) -> bool;
}

/// Takes one token at `now`; false if there is none. A bucket that was left emptier by another rate is as empty as this one's
/// can be from then on.
#[inline(always)]
pub fn take(cell: &impl Cell, rate: &Rate, now: u64) -> bool {
    if rate.interval == 0 {
        return true;
    }
    for _ in 0..TRIES {
        let seen = cell.load();
        let Some(new) = rate.next(seen, now) else {
            if seen > rate.emptied(now) {
                cell.exchange(seen, rate.emptied(now));
            }
            return false;
        };
        if cell.exchange(seen, new) {
            return true;
        }
    }
    false
}

#[cfg(target_has_atomic = "64")]
impl Cell for core::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        self.load(core::sync::atomic::Ordering::Relaxed)
    }

    fn exchange(&self, seen: u64, new: u64) -> bool {
        use core::sync::atomic::Ordering::Relaxed;
        self.compare_exchange(seen, new, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// The textbook bucket: a level in nanoseconds that fills with time and pays one interval per token.
    struct Slow {
        level: u128,
        size: u128,
        interval: u128,
        at: u64,
    }

    impl Slow {
        fn new(rate: Rate) -> Slow {
            let size = u128::from(rate.tolerance) + u128::from(rate.interval);
            Slow { level: size, size, interval: rate.interval.into(), at: 0 }
        }

        fn take(&mut self, now: u64) -> bool {
            self.level = self.size.min(self.level + u128::from(now - self.at));
            self.at = now;
            let given = self.level >= self.interval;
            if given {
                self.level -= self.interval;
            }
            given
        }
    }

    proptest! {
        #[test]
        fn equals_the_textbook_bucket(per_second in 1_u32..2_000_000, burst in 0_u32..50,
                                      gaps in proptest::collection::vec(0_u64..3_000_000, 1..400)) {
            let rate = Rate::per_second(per_second, burst);
            let (cell, mut slow, mut now) = (AtomicU64::new(0), Slow::new(rate), 0);
            for gap in gaps {
                now += gap;
                prop_assert_eq!(take(&cell, &rate, now), slow.take(now));
            }
        }

        #[test]
        fn never_gives_more_than_burst_and_rate(per_second in 1_u32..100_000, burst in 1_u32..100,
                                                gaps in proptest::collection::vec(0_u64..100_000, 1..400)) {
            let rate = Rate::per_second(per_second, burst);
            let (cell, mut now, mut given) = (AtomicU64::new(0), 0_u64, 0_u64);
            for gap in gaps {
                now += gap;
                given += u64::from(take(&cell, &rate, now));
            }
            let allowed = u128::from(burst) + u128::from(now) * u128::from(per_second) / 1_000_000_000;
            prop_assert!(u128::from(given) <= allowed);
        }
    }

    proptest! {
        /// After a change of rate, at most a whole bucket of the new rate is waited for.
        #[test]
        fn a_change_of_rate_shuts_nobody_out_for_longer_than_the_new_rate(
            before in (1_u32..1000, 1_u32..1_000_000), after in (1_u32..1000, 1_u32..100), taken in 1_u32..200,
        ) {
            let (before, after) = (Rate::per_second(before.0, before.1), Rate::per_second(after.0, after.1));
            let (cell, now) = (AtomicU64::new(0), 1_000_000);
            for _ in 0..taken {
                take(&cell, &before, now);
            }
            let left = (0..100).filter(|_| take(&cell, &after, now)).count() as u64;
            prop_assert!(left <= after.tolerance / after.interval + 1, "no more than a burst at once");
            prop_assert!(!take(&cell, &after, now), "empty now, and known to be");
            prop_assert!(cell.load(std::sync::atomic::Ordering::Relaxed) <= after.emptied(now));
            prop_assert!(take(&cell, &after, now + after.interval), "and one token later there is one");
        }
    }

    #[test]
    fn extremes() {
        let cell = AtomicU64::new(0);
        assert!((0..1000).all(|_| take(&cell, &Rate::UNLIMITED, 0)));
        assert!((0..1000_u64).all(|s| !take(&cell, &Rate::NEVER, s * 1_000_000_000)));
        assert!((0..1000).all(|_| !take(&cell, &Rate::per_second(0, 10), u64::MAX)));
        assert_eq!(cell.into_inner(), 0);
    }

    #[test]
    fn the_clock_of_another_cpu_may_be_behind() {
        let (cell, rate) = (AtomicU64::new(0), Rate::per_second(1, 2));
        let given: Vec<bool> = [5_000, 4_000, 4_500].iter().map(|now| take(&cell, &rate, *now)).collect();
        assert_eq!(given, [true, false, false], "two tokens only once the later clock is caught up");
    }

    #[test]
    fn a_contended_bucket_refuses() {
        struct Contended;
        impl Cell for Contended {
            fn load(&self) -> u64 {
                0
            }
            fn exchange(&self, _: u64, _: u64) -> bool {
                false
            }
        }
        assert!(!take(&Contended, &Rate::per_second(1, 1), 1));
    }
}
