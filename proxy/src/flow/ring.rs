//! The io_uring driver.
//!
//! ```text
//!   Stage::Ring    multishot RECV ─► provided buffer ─► send(2) at once; what does not fit: ring SEND, then the rest
//!        │  ▲
//!        ▼  │      every change of stage: cancel what is in flight, reap, then go on (`Stage::Quiescing`)
//!   Stage::Ready   multishot POLL on both sockets ─► `pump` (inline splice(2)), or IORING_OP_SPLICE in `Mode::Splice`
//! ```
//! A receive on the ring wants a blocking socket, splice(2) a non-blocking one, and `O_NONBLOCK` belongs to the socket:
//! so both directions of a flow change stage together, while each has its own pace.
//!
//! The first send of a message is a plain call: it is complete when it returns, where an operation would need another
//! turn for its completion.

#![expect(
    unsafe_code,
    reason = "operations on memory and descriptors that the kernel holds until they complete"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use super::buffers::{Buffers, GROUP};
use super::config::{FlowConfig, Mode};
use super::core::Core;
use super::direction::Pace;
use super::mailbox::Mailbox;
use super::probe;
use super::pump::pace_counter;
use super::socket::{self, Moved};
use super::state::{Goal, Side, Stage, reset};
use super::stats::add;
use super::worker::Driver;
use crate::session::CloseReason;

const ENTRIES: u32 = 1024;
/// Queued buffers at which the receive pauses, or bulk begins.
const QUEUE_HIGH: u16 = 16;
/// Queued buffers at which it goes on.
const QUEUE_LOW: u16 = 4;
/// How often flows in `Stage::Ready` are asked whether they are quiet.
const REVIEW: Duration = Duration::from_millis(25);
const EVENTS: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) as u32;
/// `user_data` of the mailbox's poll.
const WAKE: u64 = u64::MAX;
/// `user_data` of what needs no answer.
const NOBODY: u64 = u64::MAX - 1;

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
    /// Receives that ended for want of buffers.
    starved: Vec<(u32, Side)>,
    /// Flows in `Stage::Ready`.
    engaged: Vec<u32>,
    review_at: Instant,
}

impl RingDriver {
    /// Opens the ring on the calling thread, which must be the one that drives it.
    pub(super) fn new(config: &FlowConfig, mailbox: &Arc<Mailbox>) -> io::Result<Self> {
        let mut ring = probe::open_ring(ENTRIES)?;
        let count = config.buffers.clamp(1, 1 << 15).next_power_of_two() as u16;
        let mut buffers = Buffers::register(&ring, count, config.buffer_bytes.max(1))?;
        probe::try_operations(&mut ring, &mut buffers)?;
        let mut driver = Self {
            ring,
            buffers,
            mailbox: Arc::clone(mailbox),
            completions: Vec::new(),
            starved: Vec::new(),
            engaged: Vec::new(),
            review_at: Instant::now(),
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
            if flow.ops & Op::Poll.bit(side) == 0 {
                self.poll(core, key, side, fd.0, 0);
            }
            return;
        }
        self.launch(core, key, Op::Recv, side, opcode::RecvMulti::new(fd, GROUP).build());
    }

    /// Errors and hang-ups are always among the events (`IO_POLL_UNMASK` in io_uring/poll.c).
    fn poll(&mut self, core: &mut Core, key: u32, side: Side, fd: RawFd, events: u32) {
        let entry = opcode::PollAdd::new(Fd(fd), events).multi(true).build();
        self.launch(core, key, Op::Poll, side, entry);
    }

    fn on_completion(&mut self, core: &mut Core, user_data: u64, result: i32, flags: u32) -> bool {
        match user_data {
            NOBODY => return false,
            WAKE => {
                if !cqueue::more(flags) {
                    self.watch_mailbox();
                }
                return true;
            }
            _ => {}
        }
        let (key, side) = ((user_data >> 3) as u32, (user_data & 1) as usize);
        let op = Op::ALL[(user_data >> 1 & 3) as usize];
        let over = !cqueue::more(flags);
        let Some(flow) = core.flows.get_mut(key) else { return false };
        if over {
            flow.ops &= !op.bit(side);
        }
        let outcome = match op {
            Op::Recv => self.on_receive(core, key, side, result, flags),
            Op::Send => self.on_sent(core, key, side, result),
            Op::Poll => self.on_poll(core, key, side, result, over),
            Op::Splice => self.on_spliced(core, key, side, result),
        };
        if let Err(reason) = outcome {
            core.doom(key, reason);
        }
        self.after_quiesce(core, key);
        false
    }

    fn on_receive(
        &mut self,
        core: &mut Core,
        key: u32,
        side: Side,
        result: i32,
        flags: u32,
    ) -> Result<(), CloseReason> {
        let Some(flow) = core.flows.get_mut(key) else { return Ok(()) };
        let over = !cqueue::more(flags);
        match (result, cqueue::buffer_select(flags)) {
            (1.., Some(id)) if flow.stage == Stage::Quiescing(Goal::Close) => self.buffers.discard(id),
            (1.., Some(id)) => {
                let n = result as usize;
                self.buffers.push(&mut flow.dirs[side], id, n);
                let changed = flow.dirs[side].pacer.saw(n, self.buffers.size(), core.now_ms);
                if changed {
                    add(pace_counter(&core.stats, flow.dirs[side].pacer.pace()), 1);
                }
                self.forward(core, key, side)?;
                self.consider_bulk(core, key, side);
            }
            (0, id) => {
                if let Some(id) = id {
                    self.buffers.discard(id);
                }
                flow.ended(side);
                self.forward(core, key, side)?;
            }
            (_, Some(id)) => self.buffers.discard(id),
            (code, None) if code == -libc::ENOBUFS => {
                add(&core.stats.enobufs, 1);
                self.starved.push((key, side));
                return Ok(());
            }
            (code, None) if matches!(-code, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            _ => return Err(reset(side)),
        }
        if over {
            self.receive(core, key, side);
        }
        Ok(())
    }

    /// Sends what is queued in `dir`, by call as long as it fits, else by one operation on the ring.
    fn forward(&mut self, core: &mut Core, key: u32, dir: Side) -> Result<(), CloseReason> {
        let way = core.buffered_way();
        loop {
            let Some(flow) = core.flows.get_mut(key) else { return Ok(()) };
            if flow.stage != Stage::Ring || flow.ops & Op::Send.bit(dir) != 0 {
                return Ok(());
            }
            let owned = !flow.dirs[dir].pending.is_empty();
            let bytes = match owned {
                true => flow.dirs[dir].rest(),
                false => match self.buffers.front(&flow.dirs[dir]) {
                    Some(bytes) => bytes,
                    None if flow.dirs[dir].eof && !flow.dirs[dir].done => return core.half_close(key, dir),
                    None => return Ok(()),
                },
            };
            let (at, len) = (bytes.as_ptr(), bytes.len());
            let sent = match socket::send(&flow.socks[1 - dir].fd, bytes) {
                Moved::Bytes(n) => n,
                Moved::Blocked | Moved::End => 0,
                Moved::Failed(_) => return Err(reset(1 - dir)),
            };
            self.delivered(core, key, dir, sent, way);
            if sent < len {
                let Some(flow) = core.flows.get(key) else { return Ok(()) };
                let fd = Fd(flow.socks[1 - dir].fd.as_raw_fd());
                let entry = opcode::Send::new(fd, at.wrapping_add(sent), (len - sent) as u32)
                    .flags(libc::MSG_NOSIGNAL)
                    .build();
                self.launch(core, key, Op::Send, dir, entry);
                return Ok(());
            }
            self.resume(core, key, dir);
        }
    }

    fn delivered(&mut self, core: &mut Core, key: u32, dir: Side, n: usize, way: super::Way) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        if n == 0 {
            return;
        }
        flow.delivered(dir, n, way, &core.stats, core.now_ms);
        if flow.dirs[dir].pending.is_empty() {
            self.buffers.advance(&mut flow.dirs[dir], n);
        } else {
            flow.dirs[dir].advance(n);
        }
    }

    fn on_sent(&mut self, core: &mut Core, key: u32, dir: Side, result: i32) -> Result<(), CloseReason> {
        match result {
            1.. => self.delivered(core, key, dir, result as usize, core.buffered_way()),
            0 => {}
            code if matches!(-code, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            _ => return Err(reset(1 - dir)),
        }
        self.forward(core, key, dir)?;
        self.resume(core, key, dir);
        Ok(())
    }

    /// Starts a paused receive again once the queue is short.
    fn resume(&mut self, core: &mut Core, key: u32, dir: Side) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        if flow.dirs[dir].paused && flow.dirs[dir].queued <= QUEUE_LOW {
            flow.dirs[dir].paused = false;
            self.receive(core, key, dir);
        }
    }

    /// A direction in bulk, or one whose receiver does not take its bytes, leaves the ring; in `Mode::Copy` the
    /// receive pauses.
    fn consider_bulk(&mut self, core: &mut Core, key: u32, dir: Side) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        let full = flow.dirs[dir].queued >= QUEUE_HIGH;
        if flow.stage != Stage::Ring || (!full && flow.dirs[dir].pacer.pace() == Pace::Interactive) {
            return;
        }
        if full && flow.dirs[dir].pacer.stalled() {
            add(&core.stats.to_bulk, 1);
        }
        if flow.dirs[dir].pacer.pace() == Pace::Bulk {
            self.quiesce(core, key, Goal::Ready);
        } else if !flow.dirs[dir].paused {
            flow.dirs[dir].paused = true;
            if flow.ops & Op::Recv.bit(dir) != 0 {
                self.cancel(key, Op::Recv, dir);
            }
        }
    }

    fn on_poll(
        &mut self,
        core: &mut Core,
        key: u32,
        side: Side,
        result: i32,
        over: bool,
    ) -> Result<(), CloseReason> {
        let Some(flow) = core.flows.get_mut(key) else { return Ok(()) };
        if result < 0 {
            return if result == -libc::ECANCELED { Ok(()) } else { Err(CloseReason::Internal) };
        }
        let (stage, fd) = (flow.stage, flow.socks[side].fd.as_raw_fd());
        core.on_event(key, side, result);
        match stage {
            Stage::Ready if over => self.poll(core, key, side, fd, EVENTS),
            Stage::Ring if over => self.receive(core, key, side),
            _ => {}
        }
        Ok(())
    }

    fn cancel(&mut self, key: u32, op: Op, side: Side) {
        let entry = opcode::AsyncCancel::new(op.user_data(key, side)).build();
        self.push(&entry.user_data(NOBODY).flags(Flags::SKIP_SUCCESS));
    }

    /// Cancels everything in flight; `goal` begins after the last completion.
    fn quiesce(&mut self, core: &mut Core, key: u32, goal: Goal) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        let already = matches!(flow.stage, Stage::Quiescing(_));
        flow.stage = Stage::Quiescing(goal);
        let ops = flow.ops;
        if !already {
            for op in Op::ALL {
                for side in (0..2).filter(|side| ops & op.bit(*side) != 0) {
                    self.cancel(key, op, side);
                }
            }
        }
        self.after_quiesce(core, key);
    }

    fn after_quiesce(&mut self, core: &mut Core, key: u32) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        let Stage::Quiescing(goal) = flow.stage else { return };
        if flow.ops != 0 {
            return;
        }
        match goal {
            Goal::Close => {
                for dir in &mut flow.dirs {
                    while self.buffers.pop(dir) {}
                }
                core.finish(key);
            }
            Goal::Ready => self.go_ready(core, key),
            Goal::Ring => self.go_ring(core, key),
        }
    }

    /// Non-blocking sockets, polls on both, and all bytes on their way in memory of the flow's own.
    fn go_ready(&mut self, core: &mut Core, key: u32) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        flow.stage = Stage::Ready;
        for side in 0..2 {
            flow.socks[side].readable = !flow.dirs[side].eof;
            flow.socks[side].writable = true;
            flow.dirs[side].paused = false;
            while let Some(bytes) = self.buffers.front(&flow.dirs[side]) {
                flow.dirs[side].pending.extend_from_slice(bytes);
                self.buffers.pop(&mut flow.dirs[side]);
            }
        }
        let fds = [0, 1].map(|side| flow.socks[side].fd.as_raw_fd());
        if (0..2).any(|side| socket::set_nonblocking(&flow.socks[side].fd, true).is_err()) {
            return core.doom(key, CloseReason::Internal);
        }
        for (side, fd) in fds.into_iter().enumerate() {
            self.poll(core, key, side, fd, EVENTS);
        }
        let layered = core.flows.get(key).is_some_and(|flow| flow.layers.is_some());
        if !core.op_splice && !layered {
            if self.engaged.is_empty() {
                self.review_at = core.now + REVIEW;
            }
            self.engaged.push(key);
        }
        core.list(key);
    }

    /// Blocking sockets and a receive on both.
    fn go_ring(&mut self, core: &mut Core, key: u32) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        flow.stage = Stage::Ring;
        if (0..2).any(|side| socket::set_nonblocking(&flow.socks[side].fd, false).is_err()) {
            return core.doom(key, CloseReason::Internal);
        }
        for side in 0..2 {
            if let Err(reason) = self.forward(core, key, side) {
                return core.doom(key, reason);
            }
            self.receive(core, key, side);
        }
    }

    /// Takes the flows back to the ring whose directions are all quiet and empty.
    fn review(&mut self, core: &mut Core) {
        if self.engaged.is_empty() || core.now < self.review_at {
            return;
        }
        self.review_at = core.now + REVIEW;
        for key in std::mem::take(&mut self.engaged) {
            let Some(flow) = core.flows.get_mut(key) else { continue };
            if flow.stage != Stage::Ready || flow.reason.is_some() {
                continue;
            }
            for dir in &mut flow.dirs {
                if dir.empty() && dir.pacer.quiet(core.now_ms) {
                    add(&core.stats.to_interactive, 1);
                }
            }
            let calm = |dir: &super::state::Direction| {
                dir.pacer.pace() == Pace::Interactive && dir.empty() && !dir.unsure
            };
            if flow.dirs.iter().all(calm) {
                self.quiesce(core, key, Goal::Ring);
            } else {
                self.engaged.push(key);
            }
        }
    }

    fn feed_starved(&mut self, core: &mut Core) {
        if self.starved.is_empty() || !self.buffers.available() {
            return;
        }
        for (key, side) in std::mem::take(&mut self.starved) {
            self.receive(core, key, side);
        }
    }

    fn submit(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let answer = match patience {
            None => self.ring.submit_and_wait(1),
            Some(Duration::ZERO) => self.ring.submit(),
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
        let layered = core.flows.get(key).is_some_and(|flow| flow.layers.is_some());
        if core.op_splice || layered { self.go_ready(core, key) } else { self.go_ring(core, key) }
    }

    fn close(&mut self, core: &mut Core, key: u32, reason: CloseReason) {
        if let Some(flow) = core.flows.get_mut(key) {
            flow.reason.get_or_insert(reason);
            self.quiesce(core, key, Goal::Close);
        }
    }

    fn wait(&mut self, core: &mut Core, patience: Option<Duration>) -> io::Result<bool> {
        self.submit(patience)?;
        core.tick();
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.ring.completion().map(|c| (c.user_data(), c.result(), c.flags())));
        let mut woken = false;
        for (user_data, result, flags) in completions.drain(..) {
            woken |= self.on_completion(core, user_data, result, flags);
        }
        self.completions = completions;
        Ok(woken)
    }

    fn settle(&mut self, core: &mut Core) {
        if core.op_splice {
            self.splice_ready(core);
        }
        self.review(core);
        self.feed_starved(core);
        core.stats.buffers_in_use.store(self.buffers.in_use() as u64, Relaxed);
    }

    fn patience(&self) -> Option<Duration> {
        let review = !self.engaged.is_empty();
        review.then(|| self.review_at.saturating_duration_since(Instant::now()))
    }
}

mod op_splice;
