//! What the gate has been told and the kernel does not know yet.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use mksgate_common::map::SourceKey;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::error::GateError;

/// Sources waiting to be made known; past it new ones wait for their next ticket.
const MAX_SOURCES: usize = 4096;

/// Between whoever tells and the thread that passes it on: that one is woken once for all that is told before it runs.
pub(super) struct Told {
    pending: Mutex<Pending>,
    wake: EventFd,
}

/// The last word on each.
#[derive(Default)]
pub(super) struct Pending {
    /// Sessions, by tenant.
    pub active: HashMap<u32, u32>,
    /// Tenant (0: several) and when, by source.
    pub learned: HashMap<SourceKey, (u32, u64)>,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.active.is_empty() && self.learned.is_empty()
    }
}

impl Told {
    pub fn new() -> Result<Told, GateError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| GateError::Io { what: "eventfd", error: error.into() })?;
        Ok(Told { pending: Mutex::default(), wake })
    }

    /// A tenant has so many sessions now.
    pub fn set_active(&self, tenant: u32, sessions: u32) {
        self.tell(|pending| {
            pending.active.insert(tenant, sessions);
        });
    }

    /// A valid ticket of the tenant came from there.
    pub fn learn(&self, source: SourceKey, tenant: u32, now: u64) {
        self.tell(|pending| {
            if let Some((known, at)) = pending.learned.get_mut(&source) {
                (*known, *at) = (if *known == tenant { tenant } else { 0 }, now);
            } else if pending.learned.len() < MAX_SOURCES {
                pending.learned.insert(source, (tenant, now));
            }
        });
    }

    fn tell(&self, note: impl FnOnce(&mut Pending)) {
        let mut pending = self.lock();
        let idle = pending.is_empty();
        note(&mut pending);
        drop(pending);
        if idle {
            self.wake();
        }
    }

    /// Wakes the thread for another reason.
    pub fn wake(&self) {
        // A full eventfd wakes as well, and it cannot fail otherwise.
        let _ = self.wake.write(1);
    }

    /// The thread is awake: the next word wakes it again.
    pub fn awake(&self) {
        // Empty already is fine.
        let _ = self.wake.read();
    }

    /// Everything, for the thread to pass on.
    pub fn take(&self) -> Pending {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Told {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn wakes(told: &Told) -> bool {
        let mut fds = [PollFd::new(told.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn the_last_word_counts_and_a_source_of_two_tenants_is_nobodys() {
        let told = Told::new().unwrap();
        let source = SourceKey::v4([192, 0, 2, 1]);
        told.set_active(1, 5);
        told.set_active(1, 4);
        told.learn(source, 1, 10);
        told.learn(source, 2, 11);
        let pending = told.take();
        assert_eq!(pending.active, HashMap::from([(1, 4)]));
        assert_eq!(pending.learned, HashMap::from([(source, (0, 11))]));
    }

    #[test]
    fn it_wakes_again_for_what_is_told_after_it_was_taken() {
        let told = Told::new().unwrap();
        assert!(!wakes(&told));
        told.set_active(1, 5);
        assert!(wakes(&told));
        told.awake();
        drop(told.take());
        assert!(!wakes(&told));
        told.set_active(1, 6);
        assert!(wakes(&told));
    }

    #[test]
    fn sources_that_wait_are_bounded() {
        let told = Told::new().unwrap();
        (0..2 * MAX_SOURCES as u32).for_each(|n| told.learn(SourceKey::v4(n.to_be_bytes()), 1, 0));
        assert_eq!(told.take().learned.len(), MAX_SOURCES);
    }
}
