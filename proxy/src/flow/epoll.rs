//! The epoll driver: every flow is in `Stage::Ready` all its life, nothing is ever in flight.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::core::Core;
use super::mailbox::Mailbox;
use super::socket;
use super::state::Stage;
use super::worker::Driver;
use crate::session::CloseReason;

const EVENTS: usize = 512;
const WAKE: u64 = u64::MAX;

/// The driver.
pub(super) struct EpollDriver {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    precise: bool,
}

impl EpollDriver {
    /// Opens the epoll instance and watches the mailbox.
    pub(super) fn new(mailbox: &Arc<Mailbox>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(mailbox.wake_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); EVENTS], precise: true })
    }

    fn watch(&self, core: &Core, key: u32) -> io::Result<()> {
        let Some(flow) = core.flows.get(key) else { return Ok(()) };
        let interest =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        for (side, sock) in flow.socks.iter().enumerate() {
            socket::set_nonblocking(&sock.fd, true)?;
            self.epoll.add(&sock.fd, EpollEvent::new(interest, u64::from(key) << 1 | side as u64))?;
        }
        Ok(())
    }

    /// Closing the descriptors takes them out of the epoll set; a descriptor that somebody duplicated, or another process
    /// has, would stay, so they are taken out by name.
    fn unwatch(&self, core: &Core, key: u32) {
        for sock in core.flows.get(key).iter().flat_map(|flow| &flow.socks) {
            let _ = self.epoll.delete(&sock.fd);
        }
    }

    /// epoll_wait(2) counts milliseconds; the second look at a direction comes after 300 µs.
    fn wait(&mut self, patience: Option<Duration>) -> nix::Result<usize> {
        if self.precise {
            match self.wait_precisely(patience) {
                Err(Errno::ENOSYS) => self.precise = false,
                other => return other,
            }
        }
        let millis = patience.map_or(EpollTimeout::NONE, |wait| {
            EpollTimeout::try_from(wait.as_nanos().div_ceil(1_000_000) as u64).unwrap_or(EpollTimeout::MAX)
        });
        self.epoll.wait(&mut self.events, millis)
    }

    #[expect(unsafe_code, reason = "nix has no epoll_pwait2")]
    fn wait_precisely(&mut self, patience: Option<Duration>) -> nix::Result<usize> {
        let wait = patience.map(|wait| libc::timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        let wait = wait.as_ref().map_or(std::ptr::null(), |wait| wait as *const libc::timespec);
        // SAFETY: EpollEvent is a transparent epoll_event; the vector has room for `EVENTS` of them; `wait` is null
        // or points to a live timespec; no signal mask is given.
        let n = unsafe {
            libc::epoll_pwait2(
                self.epoll.0.as_raw_fd(),
                self.events.as_mut_ptr().cast(),
                EVENTS as i32,
                wait,
                std::ptr::null(),
            )
        };
        Errno::result(n).map(|n| n as usize)
    }
}

impl Driver for EpollDriver {
    fn start(&mut self, core: &mut Core, key: u32) {
        if let Some(flow) = core.flows.get_mut(key) {
            flow.stage = Stage::Ready;
        }
        match self.watch(core, key) {
            Ok(()) => core.list(key),
            Err(error) => {
                tracing::warn!(%error, "a flow's sockets cannot be watched");
                core.doom(key, CloseReason::Internal);
            }
        }
    }

    fn close(&mut self, core: &mut Core, key: u32, reason: CloseReason) {
        self.unwatch(core, key);
        if let Some(flow) = core.flows.get_mut(key) {
            flow.reason.get_or_insert(reason);
            core.finish(key);
        }
    }

    fn export(&mut self, core: &mut Core, key: u32) {
        self.unwatch(core, key);
        core.export(key);
    }

    fn wait(&mut self, core: &mut Core, patience: Option<Duration>) -> io::Result<bool> {
        let n = match self.wait(patience) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        core.tick();
        let mut woken = false;
        for event in &self.events[..n] {
            match event.data() {
                WAKE => woken = true,
                token => core.on_event((token >> 1) as u32, (token & 1) as usize, event.events().bits()),
            }
        }
        Ok(woken)
    }

    fn settle(&mut self, _core: &mut Core) {}

    fn patience(&self) -> Option<Duration> {
        None
    }
}
