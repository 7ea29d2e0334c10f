//! Deadlines of flows in one ordered set: one entry per flow, moved only when a deadline is set or fires, never by
//! traffic.

use std::collections::BTreeSet;

/// The set. Times are milliseconds since the engine's start.
#[derive(Default)]
pub(super) struct Timers {
    set: BTreeSet<(u64, u32)>,
}

impl Timers {
    /// Moves `key` from `old` to `new`; `u64::MAX` stands for no deadline.
    pub(super) fn set(&mut self, key: u32, old: u64, new: u64) {
        if old == new {
            return;
        }
        self.set.remove(&(old, key));
        if new != u64::MAX {
            self.set.insert((new, key));
        }
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<u64> {
        self.set.first().map(|(at, _)| *at)
    }

    /// Takes the earliest if it is due.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<u32> {
        let (at, key) = *self.set.first()?;
        (at <= now).then(|| {
            self.set.pop_first();
            key
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_once() {
        let mut timers = Timers::default();
        timers.set(1, u64::MAX, 30);
        timers.set(2, u64::MAX, 10);
        timers.set(3, u64::MAX, 20);
        timers.set(3, 20, 5);
        timers.set(2, 10, u64::MAX);
        assert_eq!(timers.next(), Some(5));
        assert_eq!(timers.pop_due(4), None);
        assert_eq!(timers.pop_due(30), Some(3));
        assert_eq!(timers.pop_due(30), Some(1));
        assert_eq!(timers.pop_due(30), None);
        assert_eq!(timers.next(), None);
    }
}
