//! Sends of `Stage::Ring`: one in flight per direction, silent where they fit at once.

use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::squeue::Flags;
use io_uring::types::Fd;

use super::{CANCEL, Op, QUEUE_LOW, RESERVED, RingDriver};
use crate::flow::core::Core;
use crate::flow::state::{BACKEND, Side, Stage, reset};
use crate::session::CloseReason;

/// A send that makes no completion if it is done in full.
pub(super) struct SilentSend {
    pub(super) key: u32,
    dir: Side,
    len: u32,
    at_ms: u64,
}

impl RingDriver {
    /// Sends the next piece that is queued in `dir`, or FIN after the last.
    pub(super) fn forward(&mut self, core: &mut Core, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = core.flows.get_mut(key) else { return Ok(()) };
        if flow.stage != Stage::Ring {
            return Ok(());
        }
        let way = &flow.dirs[dir];
        if !way.empty() && !flow.socks[1 - dir].writable {
            // `on_watched` goes on.
            return Ok(());
        }
        let owned = !way.pending.is_empty();
        let in_flight = flow.ops & Op::Send.bit(dir) != 0;
        let awaited = dir == BACKEND && flow.on_first_byte.is_some();
        self.followed |= in_flight || way.eof || awaited || way.queued > u16::from(!owned);
        if in_flight {
            return Ok(());
        }
        let Some((entry, len)) = self.next_piece(core, key, dir) else {
            return self.end_of_queue(core, key, dir);
        };
        // Never one that waits on the ring: the kernel's poll for it sees the FIN of a peer as a reason to try again, whatever
        // was asked for (`IO_POLL_UNMASK`), and after 128 vain attempts the send blocks a worker thread, where no cancel that came
        // meanwhile has found it (io_queue_async, io_req_alloc_apoll).
        if self.silent_sends {
            let entry = entry.flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL).build();
            self.pushed.push(SilentSend { key, dir, len, at_ms: core.now_ms });
            self.launch(core, key, Op::Send, dir, entry.flags(Flags::SKIP_SUCCESS));
        } else {
            let entry = entry.flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT).build();
            self.launch(core, key, Op::Send, dir, entry);
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

    fn end_of_queue(&mut self, core: &mut Core, key: u32, dir: Side) -> Result<(), CloseReason> {
        let ended = core.flows.get(key).is_some_and(|flow| flow.dirs[dir].eof && !flow.dirs[dir].done);
        if ended { core.half_close(key, dir) } else { Ok(()) }
    }

    pub(super) fn delivered(&mut self, core: &mut Core, key: u32, dir: Side, n: usize, at_ms: u64) {
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

    pub(super) fn on_sent(
        &mut self,
        core: &mut Core,
        key: u32,
        dir: Side,
        result: i32,
    ) -> Result<(), CloseReason> {
        for sends in [&mut self.taken, &mut self.pushed] {
            sends.retain(|send| (send.key, send.dir) != (key, dir));
        }
        match result {
            1.. => self.delivered(core, key, dir, result as usize, core.now_ms),
            0 => {}
            code if code == -libc::EAGAIN => self.await_room(core, key, dir),
            code if matches!(-code, libc::ECANCELED | libc::EINTR) => {}
            _ => return Err(reset(1 - dir)),
        }
        self.forward(core, key, dir)?;
        self.resume(core, key, dir);
        Ok(())
    }

    /// The destination takes nothing now.
    fn await_room(&mut self, core: &mut Core, key: u32, dir: Side) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        if flow.stage == Stage::Ring {
            flow.socks[1 - dir].writable = false;
            self.watch(core, key, 1 - dir);
        }
    }

    /// The poll of a side of `Stage::Ring` came back: it may have room again.
    pub(super) fn on_watched(
        &mut self,
        core: &mut Core,
        key: u32,
        side: Side,
        over: bool,
    ) -> Result<(), CloseReason> {
        let Some(flow) = core.flows.get_mut(key) else { return Ok(()) };
        let room = flow.socks[side].writable || flow.layers.is_some();
        let waits = flow.layers.is_none() && !flow.dirs[1 - side].empty();
        match (over, room) {
            (true, true) => self.receive(core, key, side),
            (true, false) => self.watch(core, key, side),
            (false, _) => {}
        }
        if room && waits { self.forward(core, key, 1 - side) } else { Ok(()) }
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

    /// Books the silent sends of the last call: first those that failed, then the rest, which are done.
    pub(super) fn book_sends(&mut self, core: &mut Core, completions: &mut Vec<(u64, i32, u32)>) {
        if self.taken.is_empty() {
            return;
        }
        let failed = |user_data: u64| {
            user_data < RESERVED && user_data & CANCEL == 0 && user_data >> 1 & 3 == Op::Send as u64
        };
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
}
