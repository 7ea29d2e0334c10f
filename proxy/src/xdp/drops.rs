//! Sampled drops between the gate's thread and the proxy, which asks for them once a second.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::counters::DropEvent;

/// Drops that wait for the proxy to ask.
const MAX_DROPS: usize = 1024;

/// Sampled drops on their way to the proxy.
#[derive(Default)]
pub(super) struct Drops {
    waiting: Mutex<VecDeque<DropEvent>>,
    lost: AtomicU64,
}

impl Drops {
    /// On the gate's thread: where nobody asks, the newest are lost, and counted.
    pub fn add(&self, event: &DropEvent) {
        let mut waiting = self.lock();
        if waiting.len() < MAX_DROPS {
            waiting.push_back(event.clone());
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Those that wait.
    pub fn take(&self) -> VecDeque<DropEvent> {
        std::mem::take(&mut *self.lock())
    }

    /// Those that found no room, so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<DropEvent>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
