//! When a direction takes to bulk and when it returns: policy only, no I/O, time is a parameter.
//!
//! ```text
//!        BURST_BYTES more than FLOW_BYTES a millisecond carry off, or in reads that fill their buffer; or a receiver that
//!        does not take them
//!   Interactive ─────────────────────────────────────────────────────────────────────────────────────────► Bulk
//!               ◄─────────────────────────────────────────────────────────────────────────────────────────
//!                 QUIET_MS without a byte; or SMALL_READS reads in a row shorter than SMALL_BYTES
//! ```
//!
//! What decides is the rate, not the size of a piece: thirty screen updates a second, 60 KiB each and some in a burst, cost
//! less by copying them than by a pipe and two changes of stage (`bench --suite scale`).

use super::config::Mode;

/// A burst that makes a bulk transfer, bytes.
pub(super) const BURST_BYTES: u32 = 256 << 10;
/// What does not count as a burst, bytes per millisecond.
pub(super) const FLOW_BYTES: u64 = 16 << 10;
/// Silence after which a bulk direction is interactive again, milliseconds.
pub(super) const QUIET_MS: u64 = 50;
/// A read this short is a message, not a part of a bulk transfer, bytes.
pub(super) const SMALL_BYTES: usize = 1024;
/// So many messages in a row end bulk.
pub(super) const SMALL_READS: u16 = 64;

/// How a direction moves its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Small messages through a buffer.
    Interactive,
    /// Through a pipe.
    Bulk,
}

/// The state of one direction's policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pacer {
    fixed: bool,
    pace: Pace,
    small: u16,
    /// What came faster than `FLOW_BYTES`, bytes.
    burst: u32,
    /// What came in reads that filled their buffer, one after another, bytes: however slow this machine is, it is slower.
    run: u32,
    last_ms: u64,
}

impl Pacer {
    /// The policy of a direction under `mode`; only `Mode::Adaptive` ever changes pace.
    pub(super) fn new(mode: Mode, now_ms: u64) -> Self {
        let pace = if mode == Mode::Splice { Pace::Bulk } else { Pace::Interactive };
        Self { fixed: mode != Mode::Adaptive, pace, small: 0, burst: 0, run: 0, last_ms: now_ms }
    }

    /// The pace to move the next bytes at.
    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// A read brought `n` bytes where `room` would have fitted. Returns whether the pace changed.
    pub(super) fn saw(&mut self, n: usize, room: usize, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.last_ms);
        self.last_ms = now_ms;
        if self.fixed {
            return false;
        }
        match self.pace {
            Pace::Interactive => {
                let gone = u32::try_from(passed.saturating_mul(FLOW_BYTES)).unwrap_or(u32::MAX);
                let more = if n >= SMALL_BYTES { n as u32 } else { 0 };
                self.burst = self.burst.saturating_sub(gone).saturating_add(more);
                self.run = if n >= room { self.run.saturating_add(n as u32) } else { 0 };
                self.burst.max(self.run) >= BURST_BYTES && self.change(Pace::Bulk)
            }
            Pace::Bulk => {
                self.small = if n < SMALL_BYTES { self.small + 1 } else { 0 };
                self.small >= SMALL_READS && self.change(Pace::Interactive)
            }
        }
    }

    /// The receiver does not take what was read: bulk holds it in a pipe and stops reading. Returns whether the pace
    /// changed.
    pub(super) fn stalled(&mut self) -> bool {
        !self.fixed && self.pace == Pace::Interactive && self.change(Pace::Bulk)
    }

    /// Nothing is held for the receiver: ends bulk after a quiet spell. Returns whether the pace changed.
    pub(super) fn quiet(&mut self, now_ms: u64) -> bool {
        let silent = now_ms.saturating_sub(self.last_ms) >= QUIET_MS;
        silent && !self.fixed && self.pace == Pace::Bulk && self.change(Pace::Interactive)
    }

    fn change(&mut self, pace: Pace) -> bool {
        (self.pace, self.small, self.burst, self.run) = (pace, 0, 0, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        Read { n: usize, room: usize, after: u64 },
        Stalled,
        Quiet { after: u64 },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let read = (1usize..100_000, 4096usize..65_537, prop_oneof![4 => Just(0), 1 => 0u64..80]);
        let read = read.prop_map(|(n, room, after)| Event::Read { n: n.min(room), room, after });
        let quiet = (0u64..200).prop_map(|after| Event::Quiet { after });
        proptest::collection::vec(prop_oneof![20 => read, 1 => Just(Event::Stalled), 2 => quiet], 0..400)
    }

    proptest! {
        #[test]
        fn every_change_has_its_cause(events in events()) {
            let mut pacer = Pacer::new(Mode::Adaptive, 0);
            let (mut now, mut last, mut full, mut small) = (0u64, 0u64, 0u64, 0u32);
            // What was read when, since the last change.
            let mut reads: Vec<(u64, u64)> = Vec::new();
            for event in events {
                let before = pacer.pace();
                let changed = match event {
                    Event::Read { n, room, after } => {
                        now += after;
                        last = now;
                        reads.push((now, if n < SMALL_BYTES { 0 } else { n as u64 }));
                        small = if n < SMALL_BYTES { small + 1 } else { 0 };
                        full = if n >= room { full + n as u64 } else { 0 };
                        let changed = pacer.saw(n, room, now);
                        // A burst is too much since some read, measured by what the time since then carries off.
                        let burst = full >= u64::from(BURST_BYTES) || (0..reads.len()).any(|from| {
                            let bytes: u64 = reads[from..].iter().map(|read| read.1).sum();
                            bytes >= u64::from(BURST_BYTES) + (now - reads[from].0) * FLOW_BYTES
                        });
                        match (before, changed) {
                            (Pace::Interactive, changed) => prop_assert_eq!(changed, burst),
                            (Pace::Bulk, true) => prop_assert!(small >= u32::from(SMALL_READS)),
                            (Pace::Bulk, false) => prop_assert!(n >= SMALL_BYTES || small > 0),
                        }
                        changed
                    }
                    Event::Stalled => {
                        let changed = pacer.stalled();
                        prop_assert_eq!(changed, before == Pace::Interactive);
                        changed
                    }
                    Event::Quiet { after } => {
                        now += after;
                        let changed = pacer.quiet(now);
                        prop_assert_eq!(changed, before == Pace::Bulk && now - last >= QUIET_MS);
                        changed
                    }
                };
                prop_assert_eq!(changed, before != pacer.pace());
                if changed {
                    reads.clear();
                    full = 0;
                    small = 0;
                }
            }
        }

        #[test]
        fn the_fixed_modes_never_change(events in events(), splice in any::<bool>()) {
            let mode = if splice { Mode::Splice } else { Mode::Copy };
            let mut pacer = Pacer::new(mode, 0);
            let pace = pacer.pace();
            for event in events {
                let changed = match event {
                    Event::Read { n, room, after } => pacer.saw(n, room, after),
                    Event::Stalled => pacer.stalled(),
                    Event::Quiet { after } => pacer.quiet(after),
                };
                prop_assert!(!changed && pacer.pace() == pace);
            }
        }
    }

    #[test]
    fn keystrokes_and_screen_updates_never_become_bulk_and_a_transfer_does() {
        let mut pacer = Pacer::new(Mode::Adaptive, 0);
        assert!((0..100_000).all(|at| !pacer.saw(32, 4096, at)));
        // Thirty updates a second of 60 KiB, each in three pieces.
        assert!((0..1000).all(|n| !pacer.saw(20 << 10, 32 << 10, 100_000 + n / 3 * 33)));
        let changed = (0..16).filter(|_| pacer.saw(16 << 10, 32 << 10, 200_000)).count();
        assert_eq!((changed, pacer.pace()), (1, Pace::Bulk));
    }

    #[test]
    fn messages_after_a_transfer_are_interactive_again_even_without_a_pause() {
        let mut pacer = Pacer::new(Mode::Adaptive, 0);
        assert!(pacer.stalled());
        let reads = (1..).find(|_| pacer.saw(32, 65536, 1)).expect("a change");
        assert_eq!(reads, SMALL_READS);
    }
}
