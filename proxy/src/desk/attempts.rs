//! How often somebody may try to log in: so many tries a minute, counted in windows.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(60);
/// Most that are remembered; while there are as many, newcomers are refused.
const MOST: usize = 50_000;

/// Tries by source, or by user.
#[derive(Debug)]
pub struct Attempts<K> {
    tries: HashMap<K, (Instant, u32)>,
}

impl<K> Default for Attempts<K> {
    fn default() -> Self {
        Self { tries: HashMap::new() }
    }
}

impl<K: Eq + Hash> Attempts<K> {
    /// Counts a try; false where it is one too many.
    pub fn take(&mut self, who: K, most: u32, now: Instant) -> bool {
        let over = |began: Instant| now.saturating_duration_since(began) >= WINDOW;
        if self.tries.len() >= MOST && !self.tries.contains_key(&who) {
            self.tries.retain(|_, (began, _)| !over(*began));
            if self.tries.len() >= MOST {
                return false;
            }
        }
        let (began, count) = self.tries.entry(who).or_insert((now, 0));
        if over(*began) {
            (*began, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= most
    }

    /// Takes a try back that was a success.
    pub fn give_back(&mut self, who: &K) {
        if let Some((_, count)) = self.tries.get_mut(who) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_tries_a_minute() {
        let (mut attempts, t0) = (Attempts::default(), Instant::now());
        let later = |s| t0 + Duration::from_secs(s);
        assert!((0..3).all(|s| attempts.take("ann", 3, later(s))));
        assert!(!attempts.take("ann", 3, later(59)) && attempts.take("bob", 3, later(59)));
        assert!(attempts.take("ann", 3, later(60)));
    }

    #[test]
    fn successes_do_not_count() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for _ in 0..100 {
            assert!(attempts.take(1, 3, now));
            attempts.give_back(&1);
        }
    }

    #[test]
    fn a_flood_of_names_is_refused_and_not_remembered() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        assert!((0..MOST).all(|name| attempts.take(name, 3, now)));
        assert!(!attempts.take(MOST, 3, now) && attempts.take(0, 3, now));
        assert!(attempts.take(MOST, 3, now + WINDOW));
    }
}
