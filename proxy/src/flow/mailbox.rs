//! The one way into an engine thread: a bounded queue and an eventfd that wakes it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Flow;
use crate::session::CloseReason;

/// What can be asked of an engine thread.
pub(super) enum Command {
    /// Take this flow.
    Submit(Flow),
    /// End the flow with this number, if it is here.
    Close(u64, CloseReason),
    /// Give raw flows out, at most so many.
    Export(Sender<Flow>, usize),
    /// End every flow, then the thread.
    Stop,
}

struct Queue {
    commands: VecDeque<Command>,
    open: bool,
}

/// The mailbox of one thread.
pub(super) struct Mailbox {
    queue: Mutex<Queue>,
    wake: EventFd,
    capacity: usize,
}

impl Mailbox {
    /// A mailbox in which `capacity` flows may wait.
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let queue = Mutex::new(Queue { commands: VecDeque::new(), open: true });
        Ok(Self { queue, wake, capacity })
    }

    /// Puts a flow in, or gives it back: full, or the thread is stopping.
    #[expect(clippy::result_large_err, reason = "the flow itself goes back")]
    pub(super) fn submit(&self, flow: Flow) -> Result<(), Flow> {
        let queue = self.lock();
        if !queue.open || queue.commands.len() >= self.capacity {
            return Err(flow);
        }
        self.push(queue, Command::Submit(flow));
        Ok(())
    }

    /// Asks for the end of a flow; never refused, so that a revoked ticket's session cannot escape.
    pub(super) fn close(&self, id: u64, reason: CloseReason) {
        let queue = self.lock();
        if queue.open {
            self.push(queue, Command::Close(id, reason));
        }
    }

    /// Asks for raw flows, at most so many; a thread that is stopping gives none.
    pub(super) fn export(&self, to: Sender<Flow>, most: usize) {
        let queue = self.lock();
        if queue.open {
            self.push(queue, Command::Export(to, most));
        }
    }

    /// Asks for the end of the thread; later flows are given back.
    pub(super) fn stop(&self) {
        let mut queue = self.lock();
        queue.open = false;
        self.push(queue, Command::Stop);
    }

    /// Wakes the thread, which then makes a turn even if there is nothing to do.
    pub(super) fn nudge(&self) {
        // Fails only at u64::MAX pending wake-ups.
        let _ = self.wake.write(1);
    }

    /// What the thread waits on.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes everything out and re-arms the wake-up.
    pub(super) fn take(&self) -> VecDeque<Command> {
        // The counter first: a command pushed after this finds an empty queue or is taken now.
        let _ = self.wake.read();
        std::mem::take(&mut self.lock().commands)
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, command: Command) {
        let asleep = queue.commands.is_empty();
        queue.commands.push_back(command);
        // Unlocked first: on the same core the thread that is woken runs at once, and would only wait for the lock.
        drop(queue);
        if asleep {
            self.nudge();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
