//! `Mode::Splice`: both hops as `IORING_OP_SPLICE`, one in flight per direction. The kernel runs each on a worker thread
//! (`REQ_F_FORCE_ASYNC` in io_uring/splice.c), so this is for comparison, not for consoles.
//!
//! The worker's "would block" may come in behind the event that made it untrue: the socket was empty when it looked, the FIN
//! came next, and the poll's completion overtook the hop's. So a hop takes its readiness flag along when it starts; an event
//! in the meantime sets the flag again, and "would block" leaves it alone.

use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::types::Fd;

use super::{Op, RingDriver};
use crate::flow::core::Core;
use crate::flow::pump::SCRATCH;
use crate::flow::state::{Side, Stage, reset};
use crate::flow::stats::Way;
use crate::session::CloseReason;

const FLAGS: u32 = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;

impl RingDriver {
    /// Starts the next hop of every listed flow.
    pub(super) fn splice_ready(&mut self, core: &mut Core) {
        let mut again = Vec::new();
        for key in std::mem::take(&mut core.ready) {
            for dir in 0..2 {
                match self.next_hop(core, key, dir) {
                    Ok(true) => again.push(key),
                    Ok(false) => {}
                    Err(reason) => core.doom(key, reason),
                }
            }
            if let Some(flow) = core.flows.get_mut(key) {
                flow.listed = false;
            }
        }
        again.into_iter().for_each(|key| core.list(key));
    }

    /// Returns whether there is more to do that no completion will announce.
    fn next_hop(&mut self, core: &mut Core, key: u32, dir: Side) -> Result<bool, CloseReason> {
        core.send_pending(key, dir)?;
        let Some(flow) = core.flows.get_mut(key) else { return Ok(false) };
        let busy = flow.ops & Op::Splice.bit(dir) != 0 || flow.stage != Stage::Ready || flow.reason.is_some();
        if busy || !flow.dirs[dir].pending.is_empty() {
            return Ok(false);
        }
        if flow.dirs[dir].in_pipe > 0 {
            if flow.socks[1 - dir].writable {
                self.hop_out(core, key, dir);
            }
            return Ok(false);
        }
        if let Some(pipe) = flow.dirs[dir].pipe.take() {
            core.pipes.put(pipe, 0);
        }
        if flow.dirs[dir].eof {
            return if flow.dirs[dir].done { Ok(false) } else { core.half_close(key, dir).map(|()| false) };
        }
        if !flow.socks[dir].readable {
            return Ok(false);
        }
        if core.take_pipe(key, dir) {
            self.hop_in(core, key, dir);
            return Ok(false);
        }
        let Some(flow) = core.flows.get(key) else { return Ok(false) };
        if !flow.socks[1 - dir].writable {
            return Ok(false);
        }
        core.copy_through(key, dir, SCRATCH, Way::Copied)?;
        let left = core.flows.get(key).map(|f| f.dirs[dir].eof || f.socks[dir].readable);
        Ok(left == Some(true))
    }

    fn hop_in(&mut self, core: &mut Core, key: u32, dir: Side) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        let Some(pipe) = &flow.dirs[dir].pipe else { return };
        flow.socks[dir].readable = false;
        let (from, to) = (Fd(flow.socks[dir].fd.as_raw_fd()), Fd(pipe.write_end().as_raw_fd()));
        let entry = opcode::Splice::new(from, -1, to, -1, pipe.capacity() as u32).flags(FLAGS).build();
        self.launch(core, key, Op::Splice, dir, entry);
    }

    fn hop_out(&mut self, core: &mut Core, key: u32, dir: Side) {
        let Some(flow) = core.flows.get_mut(key) else { return };
        let Some(pipe) = &flow.dirs[dir].pipe else { return };
        flow.socks[1 - dir].writable = false;
        let (from, to) = (Fd(pipe.read_end().as_raw_fd()), Fd(flow.socks[1 - dir].fd.as_raw_fd()));
        let entry = opcode::Splice::new(from, -1, to, -1, flow.dirs[dir].in_pipe).flags(FLAGS).build();
        self.launch(core, key, Op::Splice, dir, entry);
    }

    /// A hop is over: into the pipe if the pipe was empty, out of it if not.
    pub(super) fn on_spliced(
        &mut self,
        core: &mut Core,
        key: u32,
        dir: Side,
        result: i32,
    ) -> Result<(), CloseReason> {
        let Some(flow) = core.flows.get_mut(key) else { return Ok(()) };
        let inward = flow.dirs[dir].in_pipe == 0;
        // Neither event nor "would block": there may be more.
        let mut again = true;
        match result {
            1.. if inward => {
                flow.dirs[dir].in_pipe = result as u32;
                flow.dirs[dir].pacer.saw(result as usize, usize::MAX, core.now_ms);
            }
            1.. => {
                flow.dirs[dir].in_pipe -= result as u32;
                flow.delivered(dir, result as usize, Way::OpSpliced, &core.stats, core.now_ms);
            }
            0 if inward => flow.ended(dir),
            code if matches!(-code, libc::ECANCELED | libc::EINTR) => {}
            code if code == 0 || code == -libc::EAGAIN => again = false,
            _ => return Err(reset(if inward { dir } else { 1 - dir })),
        }
        if again && inward {
            flow.socks[dir].readable = !flow.dirs[dir].eof;
        } else if again {
            flow.socks[1 - dir].writable = true;
        }
        core.list(key);
        Ok(())
    }
}
