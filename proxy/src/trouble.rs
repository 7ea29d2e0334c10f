//! When to say that something is lost: at once, then each minute, then that it is over.

use std::time::{Duration, Instant};

const SAY_EVERY: Duration = Duration::from_secs(60);

/// Losses of one cause.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    lost: u64,
    said: Option<Instant>,
}

impl Trouble {
    /// So many more; how many in all, if that is to be said now.
    pub(crate) fn say(&mut self, lost: u64) -> Option<u64> {
        self.lost += lost;
        let now = Instant::now();
        if self.said.is_some_and(|said| now.duration_since(said) < SAY_EVERY) {
            return None;
        }
        self.said = Some(now);
        Some(self.lost)
    }

    /// It is over; how many were lost, if any of it was said.
    pub(crate) fn over(&mut self) -> Option<u64> {
        self.said.take().map(|_| std::mem::take(&mut self.lost))
    }
}
