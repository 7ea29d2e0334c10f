//! What the kernel says of operations: each completion finds its flow and its operation, and what it means is done.

use std::os::fd::AsRawFd;

use io_uring::cqueue;

use super::{ALARM, BULK, CANCEL, EVENTS, NOBODY, Op, RingDriver, WAKE};
use crate::flow::core::Core;
use crate::flow::pump::pace_counter;
use crate::flow::state::{Goal, Side, Stage, reset};
use crate::flow::stats::add;
use crate::session::CloseReason;

impl RingDriver {
    pub(super) fn on_completion(&mut self, core: &mut Core, user_data: u64, result: i32, flags: u32) -> bool {
        match user_data {
            NOBODY => return false,
            BULK => {
                self.bulk.on_poll();
                return false;
            }
            ALARM => {
                self.alarm_at = self.alarm_at.filter(|at| *at > self.now);
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
        if user_data & CANCEL != 0 {
            self.on_cancel(core, key, op, side, result);
            return false;
        }
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
        let layered = flow.layers.is_some();
        match (result, cqueue::buffer_select(flags)) {
            (1.., Some(id)) if flow.stage == Stage::Quiescing(Goal::Close) => self.buffers.discard(id),
            (1.., Some(id)) if layered => self.on_message(core, key, side, id, result as usize)?,
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
                if layered {
                    core.source_ended(key, side)?;
                } else {
                    flow.ended(side);
                    self.forward(core, key, side)?;
                }
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

    /// Bytes of a flow with layers. They are decoded at once, also while the flow is on its way to another stage: the next
    /// are received behind them.
    fn on_message(
        &mut self,
        core: &mut Core,
        key: u32,
        side: Side,
        id: u16,
        n: usize,
    ) -> Result<(), CloseReason> {
        let result = core.received(key, side, self.buffers.filled(id, n), self.buffers.size());
        self.buffers.discard(id);
        result?;
        self.consider_ready(core, key);
        Ok(())
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
            Stage::Ring => return self.on_watched(core, key, side, over),
            _ => {}
        }
        Ok(())
    }
}
