//! Flows with TLS or WebSocket on a leg: received into the thread's own scratch, decoded where it lies, sent from there. A
//! silent flow owns no buffer; a slow receiver stops the reads of the other leg, after at most one turn's bytes were kept
//! for it.
//!
//! ```text
//!   recv ─► received ─► source's codec ─► pieces ─┬──────────────────────────────────────────► sendmsg ─┐
//!                                                 └─► slots ─► destination's codec ─► records ─► send ───┼─► what does not fit:
//!   recvmsg from a raw leg ─────────────────────────► slots ─► destination's codec ─► records ─► send ───┘   pending
//! ```
//! In `Stage::Ready` the reads are system calls; in `Stage::Ring` the ring brings what was received (`on_ring`).

mod on_ring;
mod read;
mod send;

use std::os::fd::OwnedFd;

use super::Leg;
use super::codec::{Broken, Codec, Received, WebSocket};
use super::core::Core;
use super::pump::pace_counter;
use super::socket::{self, Moved};
use super::state::{BACKEND, CLIENT, FlowState, NEVER, Side, Stage, millis, reset};
use super::stats::{Way, add};
use crate::session::CloseReason;
use crate::tls::outgoing::Outgoing;
use crate::tls::session::MAX_PARTIAL;
use read::receive;
use send::{deliver, send_or_keep};

/// Most records of one read. A direction begins with one, and has more while its reads are full and its sends fit.
const MAX_RECORDS: usize = 8;
/// A full record as it is received.
const RECORD: usize = 16_384 + 22;
/// Reads of one direction in one turn before the others have theirs.
const READS_PER_TURN: usize = 4;
/// Slots for everything that one read can come to: bytes of the read before, and text that is twice as long.
const SLOTS: usize = 2 * (MAX_RECORDS + 3);

/// The layers of both legs.
pub(super) struct Layers {
    codecs: [Option<Codec>; 2],
    /// Frames of this direction's source pass as they are.
    whole: [bool; 2],
    /// Bytes of the console in the direction's `pending`, not yet counted as delivered.
    owed: [u64; 2],
    /// What the front received of this direction's source was not looked at yet.
    fresh: [bool; 2],
    /// Records of this direction's next read.
    records: [u8; 2],
    /// When the next ping is due; `NEVER`: no leg wants any.
    pub(super) ping_at: u64,
    ping_every: u64,
}

impl Layers {
    /// Takes legs apart; `None` where both are raw.
    pub(super) fn take(client: Leg, backend: Leg, now_ms: u64) -> (OwnedFd, OwnedFd, Option<Box<Self>>) {
        let ((client, of_client), (backend, of_backend)) = (codec(client), codec(backend));
        if of_client.is_none() && of_backend.is_none() {
            return (client, backend, None);
        }
        let mut codecs = [of_client, of_backend];
        let alike = match (web(&codecs[0]), web(&codecs[1])) {
            (Some(a), Some(b)) => a.is_text() == b.is_text(),
            _ => false,
        };
        let every = codecs.iter().filter_map(|codec| web(codec)?.ping).map(millis).min().unwrap_or(NEVER);
        let whole = [CLIENT, BACKEND].map(|side| {
            let ws = codecs[side].as_mut().and_then(|codec| codec.ws.as_mut());
            alike && ws.is_some_and(|ws| ws.decoder.pass_whole())
        });
        let layers = Self {
            codecs,
            whole,
            owed: [0; 2],
            fresh: [true; 2],
            records: [1; 2],
            ping_at: now_ms.saturating_add(every),
            ping_every: every,
        };
        (client, backend, Some(Box::new(layers)))
    }

    /// Notes that pings are due; false before their time.
    pub(super) fn ping(&mut self, now_ms: u64) -> bool {
        if now_ms < self.ping_at {
            return false;
        }
        self.ping_at = now_ms.saturating_add(self.ping_every);
        for ws in self.codecs.iter_mut().flatten().filter_map(|codec| codec.ws.as_mut()) {
            ws.ping_due = ws.ping.is_some();
        }
        true
    }

    /// Whether a frame of ours may go to `side` now: none of the other side's is half through.
    fn between(&self, side: Side) -> bool {
        let other = web(&self.codecs[1 - side]);
        !self.whole[1 - side] || other.is_none_or(|ws| ws.decoder.between_frames())
    }

    /// Whether bytes of this direction go into records as they were received.
    fn straight(&self, dir: Side) -> bool {
        self.codecs[dir].is_none() && self.codecs[1 - dir].as_ref().is_some_and(Codec::takes_bytes)
    }

    /// WebSocket knows no half-closed connection: the first end is the end.
    fn ends_whole(&self) -> bool {
        self.codecs.iter().flatten().any(|codec| codec.ws.is_some())
    }
}

fn web(codec: &Option<Codec>) -> Option<&WebSocket> {
    codec.as_ref()?.ws.as_ref()
}

fn codec(leg: Leg) -> (OwnedFd, Option<Codec>) {
    match leg {
        Leg::Raw(fd) => (fd, None),
        Leg::Tls(fd, session) => (fd, Some(Codec::new(session, None))),
        Leg::WebSocket(fd, session, ws) => (fd, Some(Codec::new(session, Some(*ws)))),
    }
}

/// The thread's scratch.
pub(super) struct Bench {
    received: Received,
    out: Outgoing,
    /// Control frames and what the source's codec answers its peer.
    small: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        Self {
            received: Received::new(MAX_PARTIAL + MAX_RECORDS * RECORD),
            out: Outgoing::new(SLOTS),
            small: Vec::new(),
        }
    }
}

/// What one read came to.
#[derive(Clone, Copy)]
enum Turn {
    /// There may be more.
    More,
    /// Nothing more now.
    Enough,
}

impl Core {
    /// Takes the flows with layers out of the list, where the driver moves the others itself.
    pub(super) fn take_layered(&mut self) -> Vec<u32> {
        let (layered, raw) = std::mem::take(&mut self.ready)
            .into_iter()
            .partition(|key| self.flows.get(*key).is_some_and(|flow| flow.layers.is_some()));
        self.ready = raw;
        layered
    }

    /// Moves what there is in one direction.
    pub(super) fn transform(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        self.with_bench(|core, bench| match core.flows.get(key).map(|flow| flow.stage) {
            Some(Stage::Ready) => core.transform_with(key, dir, bench),
            // The driver brings what there is to read; a ping may be due.
            _ => core.send_control(key, dir, bench),
        })
    }

    fn with_bench<T>(&mut self, work: impl FnOnce(&mut Self, &mut Bench) -> T) -> T {
        let mut bench = self.bench.take().unwrap_or_else(|| Box::new(Bench::new()));
        let result = work(self, &mut bench);
        self.bench = Some(bench);
        result
    }

    fn transform_with(&mut self, key: u32, dir: Side, bench: &mut Bench) -> Result<(), CloseReason> {
        // Both: what is answered to one side's peer must not come between what the front left for it.
        self.begin(key, dir, bench)?;
        self.begin(key, 1 - dir, bench)?;
        self.notice_end(key, dir);
        for _ in 0..READS_PER_TURN {
            self.send_owed(key, dir)?;
            self.send_control(key, dir, bench)?;
            match self.read_once(key, dir, bench)? {
                Turn::More => {}
                Turn::Enough => break,
            }
        }
        // The last read may have ended a frame that pings and pongs had to wait for.
        self.send_control(key, dir, bench)?;
        // Pongs to the source's peer, by way of the other direction.
        self.send_control(key, 1 - dir, bench)
    }

    /// The bytes that the front handed over are the console's: they are encoded like all others. What it had decrypted and
    /// not decoded comes next.
    fn begin(&mut self, key: u32, dir: Side, bench: &mut Bench) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        let Some(layers) = flow.layers.as_mut() else { return Ok(()) };
        if flow.dirs[dir].handed_over {
            let first = std::mem::take(&mut flow.dirs[dir].pending);
            flow.dirs[dir].handed_over = false;
            for piece in first.chunks(bench.received.room) {
                bench.received.clear();
                bench.received.wire[..piece.len()].copy_from_slice(piece);
                bench.received.pieces.push(0..piece.len());
                // The front unwrapped them, whatever is done with what follows.
                deliver(flow, dir, bench, false)?;
            }
        } else if !layers.codecs[dir].as_ref().is_some_and(Codec::has_early) {
            return Ok(());
        }
        while let Some(layers) = &mut flow.layers
            && let Some(codec) = layers.codecs[dir].as_mut().filter(|codec| codec.has_early())
        {
            bench.received.clear();
            let ended = codec.decode_early(&mut bench.received).map_err(|Broken| broken(dir))?;
            let whole = layers.whole[dir];
            deliver(flow, dir, bench, whole)?;
            if ended {
                flow.ended(dir);
            }
        }
        self.credit(key, dir);
        Ok(())
    }

    fn read_once(&mut self, key: u32, dir: Side, bench: &mut Bench) -> Result<Turn, CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(Turn::Enough) };
        let Some(layers) = flow.layers.as_deref_mut() else { return Ok(Turn::Enough) };
        let fresh = layers.fresh[dir];
        if flow.dirs[dir].eof || !flow.dirs[dir].pending.is_empty() || !(flow.socks[dir].readable || fresh) {
            return Ok(Turn::Enough);
        }
        layers.fresh[dir] = false;
        let pace = flow.dirs[dir].pacer.pace();
        let (turn, ended) = receive(flow, dir, bench, self.now_ms)?;
        if flow.dirs[dir].pacer.pace() != pace {
            add(pace_counter(&self.stats, flow.dirs[dir].pacer.pace()), 1);
        }
        self.credit(key, dir);
        if ended {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.ended(dir);
            }
            self.notice_end(key, dir);
            return Ok(Turn::Enough);
        }
        Ok(turn)
    }

    /// Sends what waits for the destination.
    fn send_owed(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        while flow.socks[1 - dir].writable && !flow.dirs[dir].pending.is_empty() {
            match socket::send(&flow.socks[1 - dir].fd, flow.dirs[dir].rest()) {
                Moved::Bytes(n) => flow.dirs[dir].advance(n),
                Moved::Blocked | Moved::End => flow.socks[1 - dir].writable = false,
                Moved::Failed(_) => return Err(reset(1 - dir)),
            }
        }
        self.credit(key, dir);
        Ok(())
    }

    /// Pings and pongs to the destination of `dir`, once nothing else waits for it.
    fn send_control(&mut self, key: u32, dir: Side, bench: &mut Bench) -> Result<(), CloseReason> {
        self.send_owed(key, dir)?;
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        let Some(layers) = flow.layers.as_mut() else { return Ok(()) };
        if !flow.dirs[dir].pending.is_empty() {
            return Ok(());
        }
        if !layers.between(1 - dir) {
            return Ok(());
        }
        let Some(codec) = &mut layers.codecs[1 - dir] else { return Ok(()) };
        bench.small.clear();
        codec.control(&mut bench.small).map_err(|Broken| broken(1 - dir))?;
        send_or_keep(flow, dir, &bench.small)
    }

    /// Counts the console's bytes of `dir` as delivered once the last of what they became was sent.
    fn credit(&mut self, key: u32, dir: Side) {
        let way = self.buffered_way();
        let Some(flow) = self.flows.get_mut(key) else { return };
        if !flow.dirs[dir].pending.is_empty() {
            return;
        }
        let owed = flow.layers.as_mut().map_or(0, |layers| std::mem::take(&mut layers.owed[dir]));
        if owed > 0 {
            let way = if flow.stage == Stage::Ready { Way::Copied } else { way };
            flow.delivered(dir, owed as usize, way, &self.stats, self.now_ms);
        }
    }

    /// The source's peer sends nothing more, or has said that it ends. Where that ends the flow, what is left for the
    /// destination has as long as the other half of a half-closed connection: a host that takes nothing any more must not keep
    /// a console open whose viewer went.
    fn notice_end(&mut self, key: u32, dir: Side) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let over = flow.dirs[dir].eof || flow.socks[dir].hup;
        if over && flow.layers.as_ref().is_some_and(|layers| layers.ends_whole()) {
            flow.closing(self.now_ms);
            self.schedule(key);
        }
    }

    /// Ends the direction, and the flow where a WebSocket is in it, once everything was delivered.
    pub(super) fn finish_layered(&mut self, key: u32, dir: Side) -> Result<(), CloseReason> {
        let Some(flow) = self.flows.get_mut(key) else { return Ok(()) };
        if !flow.dirs[dir].eof || flow.dirs[dir].done || !flow.dirs[dir].pending.is_empty() {
            return Ok(());
        }
        let Some(layers) = flow.layers.as_mut() else { return Ok(()) };
        if layers.ends_whole() {
            return Err(if dir == CLIENT { CloseReason::ClientClosed } else { CloseReason::BackendClosed });
        }
        let mut last = Vec::new();
        if let Some(codec) = &mut layers.codecs[1 - dir] {
            codec.half_close(&mut last);
        }
        send_or_keep(flow, dir, &last)?;
        if flow.dirs[dir].pending.is_empty() { self.half_close(key, dir) } else { Ok(()) }
    }

    /// Says the last words on the legs that have any, as far as they fit; false where both are raw.
    pub(super) fn farewell(&mut self, flow: &mut FlowState) -> bool {
        let Some(mut layers) = flow.layers.take() else { return false };
        let (code, words) = flow.reason.unwrap_or(CloseReason::Internal).words();
        for side in [CLIENT, BACKEND] {
            let between = layers.between(side);
            if let Some(codec) = &mut layers.codecs[side] {
                let mut last = Vec::new();
                codec.farewell(between, code, words, &mut last);
                let _ = send_or_keep(flow, 1 - side, &last);
            }
            let rest = flow.dirs[1 - side].rest();
            if !rest.is_empty() {
                let _ = socket::send(&flow.socks[side].fd, rest);
            }
            socket::shutdown_write(&flow.socks[side].fd);
        }
        true
    }

    /// Keeps the sockets of a closed flow until their peers have closed too: closed with bytes unread they would be reset,
    /// and the last words with them.
    pub(super) fn linger(&mut self, socks: [OwnedFd; 2]) {
        self.lingering.push(socks, self.now_ms);
    }
}

fn broken(side: Side) -> CloseReason {
    // Who breaks the rules is at fault: a reason each.
    if side == CLIENT { CloseReason::ProtocolError } else { CloseReason::BackendReset }
}
