//! Moves the bytes of flows in `Stage::Ready` by non-blocking system calls, in two phases.
//!
//! ```text
//!   events ─► list of flows ─► phase 1: splice every readable source into its pipe
//!                              phase 2: write every pipe once
//!             ▲                └─ not drained, pipe has room: on the list of the next turn
//!             └──────────────────  last splice came short: looked at again after 300 µs
//! ```
//! Sources gather bytes while the others are served, so many small writes leave as few large ones and both ends wake
//! less often. Interactive directions are sent in phase 1, at once.
//!
//! Readiness is edge-triggered: a flag stays set until a call says "would block", or a copying read comes back short.
//! A short *splice* says nothing, for the pipe may have been out of slots: one splice into an empty pipe decides.

use super::core::Core;
use super::direction::Pace;
use super::socket::{self, Moved};
use super::state::{FlowState, Side, Stage, reset};
use super::stats::{Way, add};
use crate::session::CloseReason;
use std::os::fd::AsFd;

/// Room of one interactive read, bytes.
const MESSAGE_BYTES: usize = 16 << 10;
/// Reads of one direction in one turn before the others have theirs.
const READS_PER_TURN: usize = 4;

impl Core {
    /// What the driver learned of one socket.
    pub(super) fn on_event(&mut self, key: u32, side: Side, events: i32) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let broken = events & i32::from(libc::POLLERR) != 0;
        if broken {
            return self.doom(key, reset(side));
        }
        flow.socks[side].hup |= events & i32::from(libc::POLLRDHUP | libc::POLLHUP) != 0;
        if events & i32::from(libc::POLLIN | libc::POLLRDHUP | libc::POLLHUP) != 0 {
            flow.socks[side].readable = !flow.dirs[side].eof;
        }
        if events & i32::from(libc::POLLOUT | libc::POLLHUP) != 0 {
            flow.socks[side].writable = true;
        }
        self.list(key);
    }

    /// One turn over the listed flows; those with more to do are listed again.
    pub(super) fn pump(&mut self) {
        let turn = match self.op_splice {
            false => std::mem::take(&mut self.ready),
            // The driver moves the raw flows.
            true => self.take_layered(),
        };
        for &key in &turn {
            self.step(key, Self::fill);
        }
        for &key in &turn {
            self.step(key, Self::drain);
        }
        for key in turn {
            self.relist(key);
        }
    }

    fn step(&mut self, key: u32, step: fn(&mut Self, u32, Side) -> Result<(), CloseReason>) {
        for dir in 0..2 {
            let Some(flow) = self.flows.get(key) else { return };
            let ours = flow.stage == Stage::Ready || (flow.stage == Stage::Ring && flow.layers.is_some());
            if !ours || flow.reason.is_some() {
                return;
            }
            if let Err(reason) = step(self, key, dir) {
                return self.doom(key, reason);
            }
        }
    }

    fn relist(&mut self, key: u32) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.listed = false;
        if flow.stage == Stage::Ring && flow.strained() {
            self.strained.push(key);
        }
        if flow.stage != Stage::Ready || flow.reason.is_some() {
            return;
        }
        let more = (0..2).any(|dir| wants_fill(flow, dir));
        let again = (0..2).any(|dir| flow.dirs[dir].unsure && flow.dirs[dir].in_pipe == 0);
        if more {
            self.list(key);
        } else if again {
            self.look_again(key);
        }
    }

    /// Phase 1 of one direction.
    fn fill(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        if flow.layers.is_some() {
            return self.transform(key, dir);
        }
        if !flow.dirs[dir].pending.is_empty() {
            self.send_pending(key, dir)?;
        }
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        if flow.dirs[dir].empty() && flow.dirs[dir].pacer.quiet(self.now_ms) {
            add(&self.stats.to_interactive, 1);
        }
        if !wants_fill(flow, dir) {
            return Ok(());
        }
        let in_pipe = flow.dirs[dir].in_pipe > 0;
        match flow.dirs[dir].pacer.pace() {
            Pace::Bulk if in_pipe || self.take_pipe(key, dir) => self.splice_in(key, dir),
            Pace::Bulk => self.copy_through(key, dir, SCRATCH, Way::Copied),
            Pace::Interactive if in_pipe => Ok(()),
            Pace::Interactive => {
                let room = if self.mode == super::Mode::Copy { SCRATCH } else { MESSAGE_BYTES };
                self.copy_through(key, dir, room, self.buffered_way())
            }
        }
    }

    /// Phase 2 of one direction.
    fn drain(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        if self.flows.get(key).is_some_and(|flow| flow.layers.is_some()) {
            return self.finish_layered(key, dir);
        }
        self.splice_out(key, dir)?;
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        let ended = flow.dirs[dir].eof && !flow.dirs[dir].done && flow.dirs[dir].empty();
        if ended { self.half_close(key, dir) } else { Ok(()) }
    }

    /// Sends FIN to the destination; the flow ends with the second one.
    pub(super) fn half_close(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        socket::shutdown_write(&flow.socks[1 - dir].fd);
        let end = flow.finished(dir, self.now_ms);
        self.schedule(key);
        end.map_or(Ok(()), Err)
    }

    /// Sends owned bytes, as many as fit.
    pub(super) fn send_pending(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        let way = self.buffered_way();
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        while flow.socks[1 - dir].writable && !flow.dirs[dir].pending.is_empty() {
            match socket::send(&flow.socks[1 - dir].fd, flow.dirs[dir].rest()) {
                Moved::Bytes(n) => {
                    flow.delivered(dir, n, way, &self.stats, self.now_ms);
                    flow.dirs[dir].advance(n);
                }
                Moved::Blocked | Moved::End => flow.socks[1 - dir].writable = false,
                Moved::Failed(_) => return Err(reset(1 - dir)),
            }
        }
        Ok(())
    }

    pub(super) fn copy_through(
        &mut self,
        key: u32,
        dir: Side,
        room: usize,
        way: Way,
    ) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        for _ in 0..READS_PER_TURN {
            let n = match socket::recv(&flow.socks[dir].fd, &mut self.scratch[..room]) {
                Moved::Bytes(n) => n,
                Moved::Blocked => {
                    flow.socks[dir].readable = false;
                    return Ok(());
                }
                Moved::End => {
                    flow.ended(dir);
                    return Ok(());
                }
                Moved::Failed(_) => return Err(reset(dir)),
            };
            let changed = flow.dirs[dir].pacer.saw(n, room, self.now_ms);
            // A short read emptied the queue: what comes next, FIN included, makes a new edge.
            flow.socks[dir].readable = n == room || flow.socks[dir].hup;
            let sent = match socket::send(&flow.socks[1 - dir].fd, &self.scratch[..n]) {
                Moved::Bytes(sent) => sent,
                Moved::Blocked | Moved::End => 0,
                Moved::Failed(_) => return Err(reset(1 - dir)),
            };
            flow.delivered(dir, sent, way, &self.stats, self.now_ms);
            if changed {
                add(pace_counter(&self.stats, flow.dirs[dir].pacer.pace()), 1);
            }
            if sent < n {
                flow.dirs[dir].keep(&self.scratch[sent..n]);
                flow.socks[1 - dir].writable = false;
                if flow.dirs[dir].pacer.stalled() {
                    add(&self.stats.to_bulk, 1);
                }
                return Ok(());
            }
            if changed || n < room {
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) fn take_pipe(&mut self, key: u32, dir: Side) -> bool {
        let Some(pipe) = self.pipes.take(self.now_ms) else { return false };
        match self.flows.get_mut(key) {
            Some(flow) => flow.dirs[dir].pipe = Some(pipe),
            None => self.pipes.put(pipe, 0),
        }
        true
    }

    fn splice_in(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        let FlowState { socks, dirs, .. } = flow;
        let Some(pipe) = &dirs[dir].pipe else { return Ok(()) };
        let room = pipe.capacity() - dirs[dir].in_pipe as usize;
        match socket::splice(socks[dir].fd.as_fd(), pipe.write_end(), room) {
            Moved::Bytes(n) => {
                dirs[dir].in_pipe += n as u32;
                self.filled = (self.filled.0 + 1, self.filled.1 + n);
                socks[dir].readable = n == room || socks[dir].hup;
                dirs[dir].unsure = n < room;
                if dirs[dir].pacer.saw(n, room, self.now_ms) {
                    add(pace_counter(&self.stats, dirs[dir].pacer.pace()), 1);
                }
            }
            Moved::Blocked => {
                socks[dir].readable = false;
                dirs[dir].unsure = dirs[dir].in_pipe > 0;
            }
            Moved::End => flow.ended(dir),
            Moved::Failed(_) => return Err(reset(dir)),
        }
        Ok(())
    }

    fn splice_out(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        while flow.dirs[dir].in_pipe > 0 && flow.socks[1 - dir].writable {
            let FlowState { socks, dirs, .. } = flow;
            let Some(pipe) = &dirs[dir].pipe else { return Ok(()) };
            let left = dirs[dir].in_pipe as usize;
            match socket::splice(pipe.read_end(), socks[1 - dir].fd.as_fd(), left) {
                Moved::Bytes(n) => {
                    dirs[dir].in_pipe -= n as u32;
                    flow.delivered(dir, n, Way::Spliced, &self.stats, self.now_ms);
                }
                Moved::Blocked | Moved::End => socks[1 - dir].writable = false,
                Moved::Failed(_) => return Err(reset(1 - dir)),
            }
        }
        if flow.dirs[dir].in_pipe == 0
            && let Some(pipe) = flow.dirs[dir].pipe.take()
        {
            self.pipes.put(pipe, 0);
        }
        Ok(())
    }
}

pub(super) const SCRATCH: usize = super::core::SCRATCH_BYTES;

/// Whether reading from the source of `dir` can get anywhere now.
fn wants_fill(flow: &FlowState, dir: Side) -> bool {
    let way = &flow.dirs[dir];
    if way.eof || !flow.socks[dir].readable || !way.pending.is_empty() {
        return false;
    }
    let room = match &way.pipe {
        Some(pipe) => way.pacer.pace() == Pace::Bulk && (way.in_pipe as usize) < pipe.capacity(),
        None => flow.socks[1 - dir].writable,
    };
    room || (way.in_pipe == 0 && flow.socks[1 - dir].writable)
}

/// The counter of changes to `pace`.
pub(super) fn pace_counter(stats: &super::stats::EngineStats, pace: Pace) -> &std::sync::atomic::AtomicU64 {
    match pace {
        Pace::Bulk => &stats.to_bulk,
        Pace::Interactive => &stats.to_interactive,
    }
}
