//! What goes to a leg: as it lies, or in records. Nothing is ever in flight: what the destination does not take waits in `pending`.

use super::{Bench, broken};
use crate::flow::codec::{Broken, Received};
use crate::flow::socket::{self, Moved};
use crate::flow::state::{FlowState, Side, reset};
use crate::session::CloseReason;

/// Encodes the received pieces for the destination and sends them; what does not fit waits in `pending`. `whole`: they are
/// frames already.
pub(super) fn deliver(
    flow: &mut FlowState,
    dir: Side,
    bench: &mut Bench,
    whole: bool,
) -> Result<(), CloseReason> {
    let Some(layers) = flow.layers.as_deref_mut() else { return Ok(()) };
    if bench.received.pieces.is_empty() {
        return Ok(());
    }
    let Some(codec) = &mut layers.codecs[1 - dir] else {
        layers.owed[dir] += bench.received.len() as u64;
        return send_pieces(flow, dir, &bench.received);
    };
    let owed = bench.received.len() as u64;
    let n = codec.fill(&mut bench.received, whole, &mut bench.out);
    seal_and_send(flow, dir, bench, n, whole)?;
    if let Some(layers) = &mut flow.layers {
        // Text is longer than what it stands for, and a pong that was slipped in is not the console's.
        layers.owed[dir] = layers.owed[dir] - n as u64 + owed;
    }
    Ok(())
}

/// Sends the `n` bytes that lie in the slots of records.
pub(super) fn seal_and_send(
    flow: &mut FlowState,
    dir: Side,
    bench: &mut Bench,
    n: usize,
    whole: bool,
) -> Result<(), CloseReason> {
    let Some(layers) = flow.layers.as_deref_mut() else { return Ok(()) };
    let Some(codec) = &mut layers.codecs[1 - dir] else { return Ok(()) };
    codec.encode(n, whole, &mut bench.out).map_err(|Broken| broken(1 - dir))?;
    layers.owed[dir] += n as u64;
    send_or_keep(flow, dir, bench.out.sealed())
}

/// Sends behind what waits already; keeps what does not fit.
pub(super) fn send_or_keep(flow: &mut FlowState, dir: Side, bytes: &[u8]) -> Result<(), CloseReason> {
    let mut sent = 0;
    if flow.dirs[dir].pending.is_empty() && !bytes.is_empty() {
        sent = match socket::send(&flow.socks[1 - dir].fd, bytes) {
            Moved::Bytes(n) => n,
            Moved::Blocked | Moved::End => 0,
            Moved::Failed(_) => return Err(reset(1 - dir)),
        };
    }
    if sent < bytes.len() {
        stalled(flow, dir);
        flow.dirs[dir].keep(&bytes[sent..]);
    }
    Ok(())
}

/// Sends pieces as they lie, behind what waits already; keeps what does not fit.
fn send_pieces(flow: &mut FlowState, dir: Side, received: &Received) -> Result<(), CloseReason> {
    let mut sent = 0;
    if flow.dirs[dir].pending.is_empty() {
        let pieces = received.pieces.iter().map(|piece| &received.wire[piece.clone()]);
        sent = match socket::send_from(&flow.socks[1 - dir].fd, pieces) {
            Moved::Bytes(n) => n,
            Moved::Blocked | Moved::End => 0,
            Moved::Failed(_) => return Err(reset(1 - dir)),
        };
    }
    for piece in &received.pieces {
        let piece = &received.wire[piece.clone()];
        let skip = sent.min(piece.len());
        sent -= skip;
        if skip < piece.len() {
            stalled(flow, dir);
            flow.dirs[dir].keep(&piece[skip..]);
        }
    }
    Ok(())
}

/// The destination takes no more now: smaller reads, until it takes what they bring.
fn stalled(flow: &mut FlowState, dir: Side) {
    if std::mem::take(&mut flow.socks[1 - dir].writable)
        && let Some(layers) = &mut flow.layers
    {
        layers.records[dir] = (layers.records[dir] / 2).max(1);
    }
}
