//! What the service manager is told (sd_notify(3)). Three states and a heartbeat are a datagram each; without a manager
//! nothing is sent.

use std::env;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::time::{ClockId, clock_gettime};

/// What a stop may take beyond the drain: joining threads, the last audit records.
const AFTER_DRAIN: Duration = Duration::from_secs(30);

/// How long it may take to listen: it queues a limited number of messages.
const LISTENS: Duration = Duration::from_secs(2);

/// The way to the service manager.
pub(crate) struct Manager {
    socket: Option<(UnixDatagram, UnixAddr)>,
    /// Another process speaks for the service.
    silent: AtomicBool,
}

impl Manager {
    /// The one that started this process, if it wants to be told.
    pub(crate) fn of_this_process() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => UnixAddr::new_abstract(name),
                _ => UnixAddr::new(Path::new(&name)),
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_write_timeout(Some(LISTENS)).ok()?;
            Some((socket, address.ok()?))
        });
        Self { socket, silent: AtomicBool::new(false) }
    }

    /// What the service is there for can be had.
    pub(crate) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// The configuration is read again until the guard is dropped.
    pub(super) fn reloading(&self) -> Reloading<'_> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
        Reloading(self)
    }

    /// Nobody is let in any more; the end comes within this time.
    pub(super) fn stopping(&self, within: Duration, sessions: usize) {
        let most = (within + AFTER_DRAIN).as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={most}\nSTATUS=draining {sessions} consoles"));
    }

    /// Another process is the service from now on; nothing that this one says counts.
    pub(super) fn succeeded_by(&self, pid: i32) {
        self.tell(&format!("MAINPID={pid}"));
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Every flow thread makes progress.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// How often the manager wants to hear that.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.socket.as_ref()?;
        let for_us = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let period: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        (for_us && period > 0).then(|| Duration::from_micros(period))
    }

    fn tell(&self, state: &str) {
        if self.silent.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.send(state, None) {
            tracing::warn!(%error, state, "the service manager cannot be told");
        }
    }

    /// There is one that listens.
    pub(crate) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Keeps a descriptor for the next process of this service (`FileDescriptorStoreMax=`), which gets it under this name.
    ///
    /// # Errors
    /// It cannot be told; what it then does with it, it does not say.
    pub(crate) fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // The manager would take the kernel's answer to poll(2) on a BPF map, an error, for a sign that it is dead.
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), Some(fd))
    }

    /// Closes what it keeps under this name.
    ///
    /// # Errors
    /// It cannot be told.
    pub(crate) fn forget(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    fn send(&self, state: &str, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some((socket, address)) = &self.socket else { return Ok(()) };
        let files: Vec<_> = file.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&files)];
        let rights = if files.is_empty() { &[][..] } else { &rights[..] };
        let text = [IoSlice::new(state.as_bytes())];
        loop {
            match sendmsg(socket.as_raw_fd(), &text, rights, MsgFlags::MSG_NOSIGNAL, Some(address)) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Says that the reload is over, whatever came of it.
pub(super) struct Reloading<'a>(&'a Manager);

impl Drop for Reloading<'_> {
    fn drop(&mut self) {
        self.0.tell("READY=1");
    }
}
