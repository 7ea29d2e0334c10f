//! The io_uring driver.
//!
//! ```text
//!   Stage::Ring    multishot RECV ─► provided buffer ─► SEND that does not wait; what does not fit waits for a POLL
//!        │  ▲
//!        ▼  │      every change of stage: cancel what is in flight, reap, then go on (`Stage::Quiescing`)
//!   Stage::Ready   multishot POLL on both sockets ─► `pump` (inline splice(2)), or IORING_OP_SPLICE in `Mode::Splice`
//! ```
//! A receive on the ring wants a blocking socket, splice(2) a non-blocking one, and `O_NONBLOCK` belongs to the socket:
//! so both directions of a flow change stage together, while each has its own pace.
//!
//! Sends are submitted together with the next wait. Each must either fit at once or fail (`MSG_DONTWAIT | MSG_WAITALL`),
//! and only a failure makes a completion (`IOSQE_CQE_SKIP_SUCCESS`): after the call that submitted it, a send without a
//! completion is a send that was done in full. So a batch of messages costs one system call. `probe` tries this first;
//! where it does not hold, every send has its completion.
//!
//! The sockets of `Stage::Ready` are watched by an epoll set that the ring polls. While small pieces come in, the set is
//! left alone for a moment, so that they gather without waking anybody; what happens on the ring wakes the thread at once.

#![expect(
    unsafe_code,
    reason = "operations on memory and descriptors that the kernel holds until they complete"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};

use super::buffers::{Buffers, GROUP};
use super::config::{FlowConfig, Mode};
use super::core::Core;
use super::mailbox::Mailbox;
use super::probe;
use super::state::{Goal, Side, Stage};
use super::worker::Driver;
use crate::session::CloseReason;
use bulk_set::BulkSet;
use sends::SilentSend;

const ENTRIES: u32 = 1024;
/// Queued buffers at which the receive pauses, or bulk begins.
const QUEUE_HIGH: u16 = 8;
/// Queued buffers at which it goes on.
const QUEUE_LOW: u16 = 2;
/// How often flows in `Stage::Ready` are asked whether they are quiet.
const REVIEW: Duration = Duration::from_millis(25);
/// A silent send is booked this soon, though nothing else happens.
const BOOK_WITHIN: Duration = Duration::from_millis(20);
const EVENTS: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) as u32;
/// What a socket is watched for on the ring while nothing is received from it, or while it does not take what is to be sent.
const ROOM: u32 = libc::POLLOUT as u32;
/// `user_data` of the mailbox's poll.
const WAKE: u64 = u64::MAX;
/// `user_data` of what needs no answer.
pub(super) const NOBODY: u64 = u64::MAX - 1;
/// `user_data` of the poll on the bulk set.
const BULK: u64 = u64::MAX - 2;
/// `user_data` of a timeout.
const ALARM: u64 = u64::MAX - 3;
/// From here on `user_data` names no flow.
const RESERVED: u64 = ALARM;
/// The bit of a cancel in `user_data`; below it stands what is to be cancelled.
const CANCEL: u64 = 1 << 40;
/// A shorter wait is a wait of its own; a longer one ends by an alarm that stays set over many waits: arming a timer
/// for each of them would cost more than a message.
const SHORT_WAIT: Duration = Duration::from_millis(2);
/// The longest alarm; one that comes early is set again.
const LONGEST_ALARM: Duration = Duration::from_secs(1);

/// An operation kind; with the side or direction it makes a bit of `FlowState::ops` and the low bits of `user_data`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Recv = 0,
    Send = 1,
    Poll = 2,
    Splice = 3,
}

impl Op {
    const ALL: [Op; 4] = [Self::Recv, Self::Send, Self::Poll, Self::Splice];

    fn bit(self, side: Side) -> u8 {
        1 << (self as usize * 2 + side)
    }

    fn user_data(self, key: u32, side: Side) -> u64 {
        u64::from(key) << 3 | (self as u64) << 1 | side as u64
    }
}

/// The driver. The ring is dropped before the buffers it knows.
pub(super) struct RingDriver {
    ring: IoUring,
    buffers: Buffers,
    mailbox: Arc<Mailbox>,
    completions: Vec<(u64, i32, u32)>,
    /// Whether sends that fit make no completion.
    silent_sends: bool,
    /// Such sends that were pushed since the last call, and those that it took.
    pushed: Vec<SilentSend>,
    taken: Vec<SilentSend>,
    /// Bytes or a FIN follow a silent send: no completion will call for them.
    followed: bool,
    bulk: BulkSet,
    /// Receives that ended for want of buffers.
    starved: Vec<(u32, Side)>,
    /// Flows in `Stage::Ready`.
    engaged: Vec<u32>,
    review_at: Instant,
    /// When the earliest alarm goes off.
    alarm_at: Option<Instant>,
    alarm: Box<Timespec>,
    /// The beginning of this turn.
    now: Instant,
}

impl RingDriver {
    /// Opens the ring on the calling thread, which must be the one that drives it.
    pub(super) fn new(config: &FlowConfig, mailbox: &Arc<Mailbox>) -> io::Result<Self> {
        let mut ring = probe::open_ring(ENTRIES)?;
        let count = config.buffers.clamp(1, 1 << 15).next_power_of_two() as u16;
        let mut buffers = Buffers::register(&ring, count, config.buffer_bytes.max(1))?;
        probe::try_operations(&mut ring, &mut buffers)?;
        let silent_sends = probe::sends_are_silent(&mut ring)?;
        let mut driver = Self {
            ring,
            buffers,
            mailbox: Arc::clone(mailbox),
            completions: Vec::new(),
            silent_sends,
            pushed: Vec::new(),
            taken: Vec::new(),
            followed: false,
            bulk: BulkSet::new()?,
            starved: Vec::new(),
            engaged: Vec::new(),
            review_at: Instant::now(),
            alarm_at: None,
            alarm: Box::new(Timespec::new()),
            now: Instant::now(),
        };
        driver.watch_mailbox();
        Ok(driver)
    }

    /// Queues an operation. Its memory and descriptors must stay until its last completion.
    fn push(&mut self, entry: &Entry) {
        // SAFETY: every operation is pushed by a method below that keeps its buffer, pipe and socket in the flow's slot,
        // and the slot is freed only when `ops` says that nothing is in flight.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            if let Err(error) = self.ring.submit() {
                tracing::debug!(%error, "flow engine: submitting again");
            }
        }
    }

    fn launch(&mut self, core: &mut Core, key: u32, op: Op, side: Side, entry: Entry) {
        if let Some(flow) = core.flows.get_mut(key) {
            debug_assert!(flow.ops & op.bit(side) == 0, "one of a kind in flight");
            flow.ops |= op.bit(side);
            self.push(&entry.user_data(op.user_data(key, side)));
        }
    }

    fn watch_mailbox(&mut self) {
        let fd = Fd(self.mailbox.wake_fd().as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        self.push(&poll.user_data(WAKE));
    }

    fn receive(&mut self, core: &mut Core, key: u32, side: Side) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        if flow.stage != Stage::Ring || flow.ops & Op::Recv.bit(side) != 0 {
            return;
        }
        let fd = Fd(flow.socks[side].fd.as_raw_fd());
        if flow.dirs[side].eof || flow.dirs[side].paused {
            // Nothing is read from this side, yet a reset of it must end the flow.
            return self.watch(core, key, side);
        }
        self.launch(core, key, Op::Recv, side, opcode::RecvMulti::new(fd, GROUP).build());
    }

    /// Watches a side for a reset and for room, until the next change of stage.
    fn watch(&mut self, core: &mut Core, key: u32, side: Side) {
        let Some(flow) = core.flows.get(key) else { return };
        if flow.ops & Op::Poll.bit(side) == 0 {
            let fd = flow.socks[side].fd.as_raw_fd();
            self.poll(core, key, side, fd, ROOM);
        }
    }

    /// Errors and hang-ups are always among the events (`IO_POLL_UNMASK` in io_uring/poll.c).
    fn poll(&mut self, core: &mut Core, key: u32, side: Side, fd: RawFd, events: u32) {
        let entry = opcode::PollAdd::new(Fd(fd), events).multi(true).build();
        self.launch(core, key, Op::Poll, side, entry);
    }

    fn feed_starved(&mut self, core: &mut Core) {
        if self.starved.is_empty() || !self.buffers.available() {
            return;
        }
        for (key, side) in std::mem::take(&mut self.starved) {
            self.receive(core, key, side);
        }
    }

    fn set_alarm(&mut self, wait: Duration) {
        let at = self.now + wait;
        if self.alarm_at.is_some_and(|set| set <= at) {
            return;
        }
        self.alarm_at = Some(at);
        *self.alarm = Timespec::from(wait);
        // The kernel reads the time when it takes the operation, which is before the next one is set.
        let alarm = opcode::Timeout::new(&raw const *self.alarm).build();
        self.push(&alarm.user_data(ALARM));
    }

    fn submit(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let patience = match (std::mem::take(&mut self.followed), self.pushed.is_empty()) {
            (true, _) => Some(Duration::ZERO),
            (false, true) => patience,
            (false, false) => Some(patience.map_or(BOOK_WITHIN, |wait| wait.min(BOOK_WITHIN))),
        };
        let answer = self.enter(patience);
        let mut queue = self.ring.submission();
        queue.sync();
        if queue.is_empty() {
            self.taken.append(&mut self.pushed);
        }
        answer
    }

    fn enter(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let answer = match patience {
            None => self.ring.submit_and_wait(1),
            Some(Duration::ZERO) => self.ring.submit(),
            Some(wait) if wait >= SHORT_WAIT => {
                self.set_alarm(wait.min(LONGEST_ALARM));
                self.ring.submit_and_wait(1)
            }
            Some(wait) => {
                let wait = Timespec::from(wait);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&wait))
            }
        };
        match answer {
            Ok(_) => Ok(()),
            // EBUSY, EAGAIN: the completion queue is full; it is emptied next.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Driver for RingDriver {
    fn start(&mut self, core: &mut Core, key: u32) {
        core.op_splice = core.mode == Mode::Splice;
        if core.op_splice { self.go_ready(core, key) } else { self.go_ring(core, key) }
    }

    fn close(&mut self, core: &mut Core, key: u32, reason: CloseReason) {
        if let Some(flow) = core.flows.get_mut(key) {
            flow.reason.get_or_insert(reason);
            self.quiesce(core, key, Goal::Close);
        }
    }

    fn export(&mut self, core: &mut Core, key: u32) {
        self.quiesce(core, key, Goal::Export);
    }

    fn wait(&mut self, core: &mut Core, patience: Option<Duration>) -> io::Result<bool> {
        self.submit(patience)?;
        core.tick();
        self.now = core.now;
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.ring.completion().map(|c| (c.user_data(), c.result(), c.flags())));
        let mut woken = false;
        self.book_sends(core, &mut completions);
        for (user_data, result, flags) in completions.drain(..) {
            woken |= self.on_completion(core, user_data, result, flags);
        }
        self.completions = completions;
        if !self.engaged.is_empty() {
            self.bulk.collect(core);
        }
        Ok(woken)
    }

    fn settle(&mut self, core: &mut Core) {
        if core.op_splice {
            self.splice_ready(core);
        }
        for key in std::mem::take(&mut core.strained) {
            self.consider_ready(core, key);
        }
        self.review(core);
        self.feed_starved(core);
        if !self.engaged.is_empty() && self.bulk.wants_poll(core) {
            let poll = opcode::PollAdd::new(Fd(self.bulk.fd()), libc::POLLIN as u32).build();
            self.push(&poll.user_data(BULK));
        }
        core.stats.buffers_in_use.store(self.buffers.in_use() as u64, Relaxed);
    }

    fn patience(&self) -> Option<Duration> {
        let review = (!self.engaged.is_empty()).then_some(self.review_at);
        let next = [review, self.bulk.due()].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

mod bulk_set;
mod completions;
mod op_splice;
mod sends;
mod stages;
