//! The sockets of bulk flows: an epoll set of their own, which the ring polls.
//!
//! A socket polled on the ring wakes the thread with every segment. The set wakes it once; then it is emptied, pumped, and
//! while the pieces are small left alone for `GATHER`, so that a turn moves more of them at once.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::flow::core::Core;
use crate::flow::state::FlowState;

/// How long small pieces gather.
const GATHER: Duration = Duration::from_micros(300);
/// Pieces below this are small, bytes.
const SMALL: usize = 64 << 10;
const EVENTS: usize = 256;

/// The set.
pub(super) struct BulkSet {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    /// The ring polls the set.
    polled: bool,
    /// Something may be in the set.
    stirred: bool,
    /// The set is left alone until then.
    due: Option<Instant>,
}

impl BulkSet {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let events = vec![EpollEvent::empty(); EVENTS];
        Ok(Self { epoll, events, polled: false, stirred: false, due: None })
    }

    /// The descriptor to poll.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    /// Watches both sockets of a flow.
    pub(super) fn add(&mut self, flow: &FlowState, key: u32) -> io::Result<()> {
        let interest =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        for (side, sock) in flow.socks.iter().enumerate() {
            self.epoll.add(&sock.fd, EpollEvent::new(interest, u64::from(key) << 1 | side as u64))?;
        }
        Ok(())
    }

    /// Watches them no more.
    pub(super) fn remove(&mut self, flow: &FlowState) {
        for sock in &flow.socks {
            let _ = self.epoll.delete(&sock.fd);
        }
    }

    /// The ring's poll came back.
    pub(super) fn on_poll(&mut self) {
        (self.polled, self.stirred) = (false, true);
    }

    /// When the set is to be looked at again without being woken.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Takes in the events, unless the set is being left alone.
    pub(super) fn collect(&mut self, core: &mut Core) {
        if self.due.is_some_and(|due| core.now < due) {
            return;
        }
        if self.due.take().is_none() && !self.stirred && core.ready.is_empty() {
            return;
        }
        self.stirred = false;
        while let Ok(n) = self.epoll.wait(&mut self.events, EpollTimeout::ZERO) {
            for event in &self.events[..n] {
                let token = event.data();
                core.on_event((token >> 1) as u32, (token & 1) as usize, event.events().bits());
            }
            if n < EVENTS {
                return;
            }
        }
    }

    /// After a turn: whether the ring is to poll the set now. It is not while small pieces gather.
    pub(super) fn wants_poll(&mut self, core: &mut Core) -> bool {
        let (fills, bytes) = std::mem::take(&mut core.filled);
        if self.due.is_some() || self.polled {
            return false;
        }
        if fills > 0 && bytes / fills < SMALL {
            self.due = Some(core.now + GATHER);
            return false;
        }
        self.polled = core.ready.is_empty();
        self.polled
    }
}
