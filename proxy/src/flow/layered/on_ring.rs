//! Messages of flows with layers while the ring receives: what a provided buffer holds is decoded, encoded and sent at once.
//! Nothing of such a flow is ever in flight but its receives; what the destination does not take waits in `pending`, and the
//! driver takes the flow to `Stage::Ready`.

use super::Bench;
use super::read::deliver_received;
use crate::flow::core::Core;
use crate::flow::pump::pace_counter;
use crate::flow::state::Side;
use crate::flow::stats::add;
use crate::session::CloseReason;

impl Core {
    /// Begins with what the front left: bytes it had decrypted, frames it had not decoded, records it had not opened.
    pub(in crate::flow) fn begin_on_ring(&mut self, key: u32) -> Result<(), CloseReason> {
        self.with_bench(|core, bench| {
            // Both: what is answered to one side's peer must not come between what the front left for it.
            core.begin(key, 0, bench)?;
            core.begin(key, 1, bench)?;
            for dir in 0..2 {
                let layers = core.flows.get_mut(key).and_then(|flow| flow.layers.as_mut());
                if layers.is_some_and(|layers| std::mem::take(&mut layers.fresh[dir])) {
                    core.take_in(key, dir, &[], bench)?;
                }
            }
            Ok(())
        })?;
        (0..2).try_for_each(|dir| self.finish_layered(key, dir))
    }

    /// Takes bytes that were received from the source of `dir`, where `room` would have fitted.
    pub(in crate::flow) fn received(
        &mut self,
        key: u32,
        dir: Side,
        bytes: &[u8],
        room: usize,
    ) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        if flow.dirs[dir].pacer.saw(bytes.len(), room, self.now_ms) {
            add(pace_counter(&self.stats, flow.dirs[dir].pacer.pace()), 1);
        }
        self.with_bench(|core, bench| core.take_in(key, dir, bytes, bench))?;
        self.finish_layered(key, dir)
    }

    /// The source of `dir` sent FIN.
    pub(in crate::flow) fn source_ended(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.ended(dir);
        }
        self.notice_end(key, dir);
        self.finish_layered(key, dir)
    }

    fn take_in(&mut self, key: u32, dir: Side, bytes: &[u8], bench: &mut Bench) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        if flow.dirs[dir].eof {
            // What follows close_notify is ignored (RFC 8446, 6.1).
            return Ok(());
        }
        let ended = deliver_received(flow, dir, bytes, bench)?;
        self.credit(key, dir);
        if ended {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.ended(dir);
            }
            self.notice_end(key, dir);
        }
        self.send_control(key, dir, bench)?;
        // Pongs to the source's peer, by way of the other direction.
        self.send_control(key, 1 - dir, bench)
    }
}
