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
use super::socket;
use super::state::{Goal, Side, Stage, reset};
use super::stats::add;
use super::worker::Driver;
use crate::session::CloseReason;
use bulk_set::BulkSet;

const ENTRIES: u32 = 1024;
/// Queued buffers at which the receive pauses, or bulk begins.
const QUEUE_HIGH: u16 = 16;
/// Queued buffers at which it goes on.
const QUEUE_LOW: u16 = 4;
/// How often flows in `Stage::Ready` are asked whether they are quiet.
const REVIEW: Duration = Duration::from_millis(25);
/// A silent send is booked this soon, though nothing else happens.
const BOOK_WITHIN: Duration = Duration::from_millis(20);
const EVENTS: u32 = (libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP) as u32;
/// `user_data` of the mailbox's poll.
const WAKE: u64 = u64::MAX;
/// `user_data` of what needs no answer.
pub(super) const NOBODY: u64 = u64::MAX - 1;
/// `user_data` of the poll on the bulk set.
const BULK: u64 = u64::MAX - 2;

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

/// A send that makes no completion if it is done in full.
struct SilentSend {
    key: u32,
    dir: Side,
    len: u32,
    at_ms: u64,
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
            BULK => {
                self.bulk.on_poll();
                return false;
            }
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

    /// Sends the next piece that is queued in `dir`, or FIN after the last.
    fn forward(&mut self, core: &mut Core, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = core.flows.get_mut(key) else { return Ok(()) };
        if flow.stage != Stage::Ring {
            return Ok(());
        }
        let way = &flow.dirs[dir];
        let owned = !way.pending.is_empty();
        let in_flight = flow.ops & Op::Send.bit(dir) != 0;
        self.followed |= in_flight || way.eof || way.queued > u16::from(!owned);
        if in_flight {
            return Ok(());
        }
        match self.next_piece(core, key, dir) {
            Some((entry, len)) if self.silent_sends => {
                let entry = entry.flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL).build();
                self.pushed.push(SilentSend { key, dir, len, at_ms: core.now_ms });
                self.launch(core, key, Op::Send, dir, entry.flags(Flags::SKIP_SUCCESS));
            }
            Some(_) => self.send_and_wait(core, key, dir),
            None => return self.end_of_queue(core, key, dir),
        }
        Ok(())
    }

    /// The oldest bytes on their way, as an operation to send them, and their number.
    fn next_piece(&self, core: &Core, key: u32, dir: Side) -> Option<(opcode::Send, u32)> {
        let flow = core.flows.get(key)?;
        let bytes = match flow.dirs[dir].pending.is_empty() {
            false => flow.dirs[dir].rest(),
            true => self.buffers.front(&flow.dirs[dir])?,
        };
        let (fd, len) = (Fd(flow.socks[1 - dir].fd.as_raw_fd()), bytes.len() as u32);
        Some((opcode::Send::new(fd, bytes.as_ptr(), len), len))
    }

    /// A send that waits on the ring until the destination takes something.
    fn send_and_wait(&mut self, core: &mut Core, key: u32, dir: Side) {
        if let Some((entry, _)) = self.next_piece(core, key, dir) {
            self.launch(core, key, Op::Send, dir, entry.flags(libc::MSG_NOSIGNAL).build());
        }
    }

    fn end_of_queue(&mut self, core: &mut Core, key: u32, dir: Side) -> Result<(), CloseReason> {
        let ended = core.flows.get(key).is_some_and(|flow| flow.dirs[dir].eof && !flow.dirs[dir].done);
        if ended { core.half_close(key, dir) } else { Ok(()) }
    }

    fn delivered(&mut self, core: &mut Core, key: u32, dir: Side, n: usize, at_ms: u64) {
        let way = core.buffered_way();
        let Some(flow) = core.flows.get_mut(key) else { return };
        if n == 0 {
            return;
        }
        flow.delivered(dir, n, way, &core.stats, at_ms);
        if flow.dirs[dir].pending.is_empty() {
            self.buffers.advance(&mut flow.dirs[dir], n);
        } else {
            flow.dirs[dir].advance(n);
        }
    }

    fn on_sent(&mut self, core: &mut Core, key: u32, dir: Side, result: i32) -> Result<(), CloseReason> {
        let silent = [&mut self.taken, &mut self.pushed].into_iter().find_map(|sends| {
            let at = sends.iter().position(|send| (send.key, send.dir) == (key, dir))?;
            Some(sends.swap_remove(at))
        });
        match result {
            1.. => self.delivered(core, key, dir, result as usize, core.now_ms),
            0 => {}
            code if matches!(-code, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {}
            _ => return Err(reset(1 - dir)),
        }
        let on_ring = core.flows.get(key).is_some_and(|flow| flow.stage == Stage::Ring);
        match silent {
            // It did not fit.
            Some(_) if on_ring => self.send_and_wait(core, key, dir),
            _ => self.forward(core, key, dir)?,
        }
        self.resume(core, key, dir);
        Ok(())
    }

    /// Books the sends that made no completion. Right only when everything was submitted and every completion seen.
    fn confirm_sends(&mut self, core: &mut Core) {
        for SilentSend { key, dir, len, at_ms } in std::mem::take(&mut self.taken) {
            let Some(flow) = core.flows.get_mut(key) else { continue };
            flow.ops &= !Op::Send.bit(dir);
            self.delivered(core, key, dir, len as usize, at_ms);
            if let Err(reason) = self.forward(core, key, dir) {
                core.doom(key, reason);
            }
            self.resume(core, key, dir);
            self.after_quiesce(core, key);
        }
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
        if flow.stage == Stage::Ready && core.mode != Mode::Splice {
            self.bulk.remove(flow);
        }
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
        if core.op_splice {
            for (side, fd) in fds.into_iter().enumerate() {
                self.poll(core, key, side, fd, EVENTS);
            }
        } else {
            if self.bulk.add(flow, key).is_err() {
                return core.doom(key, CloseReason::Internal);
            }
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

    fn wait(&mut self, core: &mut Core, patience: Option<Duration>) -> io::Result<bool> {
        self.submit(patience)?;
        core.tick();
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.ring.completion().map(|c| (c.user_data(), c.result(), c.flags())));
        let mut woken = false;
        if !self.taken.is_empty() {
            // Failed sends first: the rest of them is known to be done then.
            let failed = |user_data: u64| user_data < BULK && user_data >> 1 & 3 == Op::Send as u64;
            for &(user_data, result, flags) in completions.iter().filter(|c| failed(c.0)) {
                self.on_completion(core, user_data, result, flags);
            }
            completions.retain(|c| !failed(c.0));
            // Completions that found no room come with the next call; a failure may be among them.
            if self.ring.submission().cq_overflow() {
                self.followed = true;
            } else {
                self.confirm_sends(core);
            }
        }
        for (user_data, result, flags) in completions.drain(..) {
            woken |= self.on_completion(core, user_data, result, flags);
        }
        self.completions = completions;
        self.bulk.collect(core);
        Ok(woken)
    }

    fn settle(&mut self, core: &mut Core) {
        if core.op_splice {
            self.splice_ready(core);
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
mod op_splice;
