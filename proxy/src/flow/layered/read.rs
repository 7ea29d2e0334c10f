//! What comes from a leg: by a read, or from the ring's buffers.

use super::send::{deliver, seal_and_send};
use super::{Bench, Layers, MAX_RECORDS, RECORD, Turn, broken};
use crate::flow::codec::Broken;
use crate::flow::socket::{self, Moved};
use crate::flow::state::{FlowState, Side, reset};
use crate::session::CloseReason;
use crate::tls::outgoing::Outgoing;

/// One read: from a raw leg right into the records of the other where that is possible, else decoded. True: the source ended.
pub(super) fn receive(
    flow: &mut FlowState,
    dir: Side,
    bench: &mut Bench,
    now_ms: u64,
) -> Result<(Turn, bool), CloseReason> {
    let Some(layers) = flow.layers.as_deref_mut() else { return Ok((Turn::Enough, false)) };
    let (source, records) = (&flow.socks[dir].fd, usize::from(layers.records[dir]));
    let straight = layers.straight(dir);
    let (moved, room, carried) = if straight {
        let room = Outgoing::room(records);
        (socket::recv_into(source, bench.out.slots(room)), room, 0)
    } else {
        let carried = carried(layers, dir, bench);
        let room = RECORD * records;
        (socket::recv(source, &mut bench.received.wire[carried..carried + room]), room, carried)
    };
    let end = look(flow, dir, moved, room, now_ms)?;
    let (n, turn) = end.unwrap_or((0, Turn::Enough));
    let ended = pass_on(flow, dir, bench, carried + n, straight)?;
    Ok((turn, ended || end.is_none()))
}

/// The same with bytes that were received already.
pub(super) fn deliver_received(
    flow: &mut FlowState,
    dir: Side,
    bytes: &[u8],
    bench: &mut Bench,
) -> Result<bool, CloseReason> {
    let Some(layers) = flow.layers.as_deref_mut() else { return Ok(false) };
    let straight = layers.straight(dir);
    let carried = if straight {
        bench.out.put(0, bytes);
        0
    } else {
        let carried = carried(layers, dir, bench);
        bench.received.wire[carried..carried + bytes.len()].copy_from_slice(bytes);
        carried
    };
    pass_on(flow, dir, bench, carried + bytes.len(), straight)
}

/// Empties the scratch but for what the source's codec has of a record that is not whole; its length.
fn carried(layers: &Layers, dir: Side, bench: &mut Bench) -> usize {
    bench.received.clear();
    layers.codecs[dir].as_ref().map_or(0, |codec| codec.begin(&mut bench.received.wire))
}

/// Sends what the first `n` bytes come to: of the records where they went `straight`, else of the scratch. True: the peer has said
/// that it ends.
fn pass_on(
    flow: &mut FlowState,
    dir: Side,
    bench: &mut Bench,
    n: usize,
    straight: bool,
) -> Result<bool, CloseReason> {
    if !straight {
        return decode_and_deliver(flow, dir, bench, n);
    }
    if n > 0 {
        seal_and_send(flow, dir, bench, n, false)?;
    }
    Ok(false)
}

/// Decodes the first `n` bytes of what was received and sends what they come to. True: the peer has said that it ends.
fn decode_and_deliver(
    flow: &mut FlowState,
    dir: Side,
    bench: &mut Bench,
    n: usize,
) -> Result<bool, CloseReason> {
    let Some(layers) = flow.layers.as_deref_mut() else { return Ok(false) };
    let mut ended = false;
    match &mut layers.codecs[dir] {
        Some(codec) => {
            bench.small.clear();
            let decoded = codec.decode(n, &mut bench.received, &mut bench.small);
            flow.dirs[1 - dir].keep(&bench.small);
            ended = decoded.map_err(|Broken| broken(dir))?;
        }
        None if n > 0 => bench.received.pieces.push(0..n),
        None => {}
    }
    let whole = layers.whole[dir];
    deliver(flow, dir, bench, whole)?;
    Ok(ended)
}

/// Takes in what a read came to: how much, and whether there may be more. `None`: the end.
fn look(
    flow: &mut FlowState,
    dir: Side,
    moved: Moved,
    room: usize,
    now_ms: u64,
) -> Result<Option<(usize, Turn)>, CloseReason> {
    let sock = &mut flow.socks[dir];
    match moved {
        Moved::Bytes(n) => {
            flow.dirs[dir].pacer.saw(n, room, now_ms);
            // A short read emptied the queue: what comes next, FIN included, makes a new edge.
            sock.readable = n == room || sock.hup;
            if n == room
                && let Some(layers) = &mut flow.layers
            {
                layers.records[dir] = (layers.records[dir] * 2).min(MAX_RECORDS as u8);
            }
            Ok(Some((n, if sock.readable { Turn::More } else { Turn::Enough })))
        }
        Moved::Blocked => {
            sock.readable = false;
            Ok(Some((0, Turn::Enough)))
        }
        Moved::End => Ok(None),
        Moved::Failed(_) => Err(reset(dir)),
    }
}
