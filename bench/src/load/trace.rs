//! What a desktop sends, seeded: the same seed plays the same desktop.
//!
//! Somebody works for half a second to three seconds, in which the screen changes thirty times a second, then reads or is
//! elsewhere for a while: a tenth of the time is active. An update has 2 to 60 KiB, small ones being as likely per octave as
//! large ones; one in twenty is a window that opens, which is four updates at once.

use std::time::Duration;

/// Share of the time in which somebody works.
pub const ACTIVE: f64 = 0.1;
/// Updates per second of work.
pub const RATE: f64 = 30.0;
/// Bytes of the smallest and the largest update.
pub const SIZES: (f64, f64) = (2.0 * 1024.0, 60.0 * 1024.0);
/// Shortest and longest work, seconds.
const WORK: (f64, f64) = (0.5, 3.0);
/// One in so many updates comes as a burst of [`BURST`].
const BURST_EVERY: f64 = 20.0;
const BURST: u32 = 4;

/// One update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// When, since the beginning of the trace.
    pub at: Duration,
    /// How much.
    pub bytes: usize,
}

/// An endless trace.
#[derive(Clone, Debug)]
pub struct Trace {
    random: Random,
    /// Seconds since the beginning, of the next update and of the end of this spell of work.
    at: f64,
    until: f64,
    /// Updates of the burst that are still to come.
    burst: u32,
}

impl Trace {
    /// The trace of this seed. It begins anywhere in its own cycle.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let cycle = (WORK.0 + WORK.1) / 2.0 / ACTIVE;
        let begins = random.unit() * cycle;
        let mut trace = Self { random, at: begins, until: 0.0, burst: 0 };
        trace.until = begins + trace.work();
        trace
    }

    fn work(&mut self) -> f64 {
        WORK.0 + self.random.unit() * (WORK.1 - WORK.0)
    }
}

impl Iterator for Trace {
    type Item = Update;

    fn next(&mut self) -> Option<Update> {
        if self.burst > 0 {
            self.burst -= 1;
        } else {
            // Between 0.8 and 1.2 of the mean.
            self.at += (0.8 + 0.4 * self.random.unit()) / RATE;
            if self.at > self.until {
                let silence = (WORK.0 + WORK.1) / 2.0 * (1.0 / ACTIVE - 1.0);
                self.at = self.until + self.random.exponential(silence);
                self.until = self.at + self.work();
            }
            if self.random.unit() < 1.0 / BURST_EVERY {
                self.burst = BURST - 1;
            }
        }
        let (small, large) = SIZES;
        let bytes = small * (large / small).powf(self.random.unit());
        Some(Update { at: Duration::from_secs_f64(self.at), bytes: bytes as usize })
    }
}

/// Reproducible numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Gaps of independent arrivals with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_plays_the_same_desktop() {
        let first: Vec<_> = Trace::new(7).take(500).collect();
        assert_eq!(first, Trace::new(7).take(500).collect::<Vec<_>>());
        assert_ne!(first, Trace::new(8).take(500).collect::<Vec<_>>());
        assert!(first.windows(2).all(|w| w[0].at <= w[1].at));
        assert!(first.iter().all(|u| (2048..=61_440).contains(&u.bytes)));
    }

    /// Over many desktops: updates per second, bytes, silences, bursts are what the text above says.
    #[test]
    fn work_and_silence_are_as_long_as_they_say() {
        let horizon = Duration::from_secs(600);
        let (mut updates, mut bytes, mut bursts, mut silences) = (0.0, 0.0, 0, 0);
        for seed in 0..100 {
            let all: Vec<_> = Trace::new(seed).take_while(|u| u.at < horizon).collect();
            updates += all.len() as f64;
            bytes += all.iter().map(|u| u.bytes as f64).sum::<f64>();
            bursts += all.windows(2).filter(|w| w[0].at == w[1].at).count();
            silences += all.windows(2).filter(|w| w[1].at - w[0].at > Duration::from_secs(1)).count();
        }
        let seconds = 100.0 * 600.0;
        // Thirty a second, a tenth of the time, and three more for one in twenty.
        let expected = RATE * ACTIVE * (1.0 + 3.0 / BURST_EVERY);
        let rate = updates / seconds;
        assert!((0.9..1.1).contains(&(rate / expected)), "{rate} updates a second, expected {expected}");
        let mean = bytes / updates;
        assert!((16_000.0..19_000.0).contains(&mean), "{mean} bytes per update");
        assert!(bursts > 1000 && silences > 1000, "{bursts} {silences}");
    }
}
