//! Changes of stage: everything in flight is cancelled and reaped, then the next stage begins.

use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::squeue::Flags;

use super::{CANCEL, EVENTS, Op, QUEUE_HIGH, REVIEW, RingDriver};
use crate::flow::config::Mode;
use crate::flow::core::Core;
use crate::flow::direction::Pace;
use crate::flow::socket;
use crate::flow::state::{Direction, FlowState, Goal, Side, Stage};
use crate::flow::stats::add;
use crate::session::CloseReason;

impl RingDriver {
    /// A direction in bulk, or one whose receiver does not take its bytes, leaves the ring; in `Mode::Copy` the
    /// receive pauses.
    pub(super) fn consider_bulk(&mut self, core: &mut Core, key: u32, dir: Side) {
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

    pub(super) fn cancel(&mut self, key: u32, op: Op, side: Side) {
        let aim = op.user_data(key, side);
        let entry = opcode::AsyncCancel::new(aim).build();
        self.push(&entry.user_data(CANCEL | aim).flags(Flags::SKIP_SUCCESS));
    }

    /// A cancel that did not succeed. A receive that has just filled its share of buffers stands in no table until its task work
    /// runs (`IOU_REQUEUE` in io_uring/net.c): the kernel says that there is none, and it would go on receiving. It is cancelled
    /// again until it is found or over.
    pub(super) fn on_cancel(&mut self, core: &Core, key: u32, op: Op, side: Side, result: i32) {
        let Some(flow) = core.flows.get(key) else { return };
        let unwanted =
            matches!(flow.stage, Stage::Quiescing(_)) || (op == Op::Recv && flow.dirs[side].paused);
        if result == -libc::ENOENT && unwanted && flow.ops & op.bit(side) != 0 {
            self.cancel(key, op, side);
        }
    }

    /// Cancels everything in flight; `goal` begins after the last completion.
    pub(super) fn quiesce(&mut self, core: &mut Core, key: u32, goal: Goal) {
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

    pub(super) fn after_quiesce(&mut self, core: &mut Core, key: u32) {
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
            Goal::Export => {
                self.own_queued(flow);
                core.export(key);
            }
            Goal::Ready => self.go_ready(core, key),
            Goal::Ring => self.go_ring(core, key),
        }
    }

    /// Takes what is in provided buffers into memory of the flow's own.
    fn own_queued(&mut self, flow: &mut FlowState) {
        for dir in &mut flow.dirs {
            while let Some(bytes) = self.buffers.front(dir) {
                dir.keep(bytes);
                self.buffers.pop(dir);
            }
        }
    }

    /// Non-blocking sockets, polls on both, and all bytes on their way in memory of the flow's own.
    pub(super) fn go_ready(&mut self, core: &mut Core, key: u32) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        flow.stage = Stage::Ready;
        self.own_queued(flow);
        for side in 0..2 {
            flow.socks[side].readable = !flow.dirs[side].eof;
            flow.socks[side].writable = true;
            flow.dirs[side].paused = false;
        }
        let fds = [0, 1].map(|side| flow.socks[side].fd.as_raw_fd());
        // What moves the bytes of layers never waits, whatever the socket says.
        let raw = flow.layers.is_none();
        if raw && (0..2).any(|side| socket::set_nonblocking(&flow.socks[side].fd, true).is_err()) {
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
    pub(super) fn go_ring(&mut self, core: &mut Core, key: u32) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        flow.stage = Stage::Ring;
        if (0..2).any(|side| socket::set_nonblocking(&flow.socks[side].fd, false).is_err()) {
            return core.doom(key, CloseReason::Internal);
        }
        let layered = flow.layers.is_some();
        if !layered {
            flow.socks.iter_mut().for_each(|sock| sock.writable = true);
        }
        let first = if layered {
            core.begin_on_ring(key)
        } else {
            (0..2).try_for_each(|side| self.forward(core, key, side))
        };
        if let Err(reason) = first {
            return core.doom(key, reason);
        }
        self.receive(core, key, 0);
        self.receive(core, key, 1);
        if layered {
            self.consider_ready(core, key);
        }
    }

    /// A flow with layers leaves the ring in bulk, and where its receiver does not take its bytes.
    pub(super) fn consider_ready(&mut self, core: &mut Core, key: u32) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        if flow.stage != Stage::Ring || flow.reason.is_some() {
            return;
        }
        for dir in flow.dirs.iter_mut().filter(|dir| !dir.pending.is_empty()) {
            if dir.pacer.stalled() {
                add(&core.stats.to_bulk, 1);
            }
        }
        if flow.strained() || flow.dirs.iter().any(|dir| dir.pacer.pace() == Pace::Bulk) {
            self.quiesce(core, key, Goal::Ready);
        }
    }

    /// Takes the flows back to the ring whose directions are all quiet and empty.
    pub(super) fn review(&mut self, core: &mut Core) {
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
            let calm = |dir: &Direction| dir.pacer.pace() == Pace::Interactive && dir.empty() && !dir.unsure;
            if flow.dirs.iter().all(calm) {
                self.quiesce(core, key, Goal::Ring);
            } else {
                self.engaged.push(key);
            }
        }
    }
}
