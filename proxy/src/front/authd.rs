//! TCP 902: the door of clients that expect an ESXi host.

use std::sync::Arc;
use std::time::Instant;

use rustls::server::UnbufferedServerConnection;

use super::{Refused, dialogue};
use crate::admission::Entry;
use crate::gate::{Caller, Gate};
use crate::metrics::Stage;
use crate::protocol::authd::{BANNER, code};
use crate::tls::{TlsError, TlsStream};
use crate::wire::{Runtime, Wire};

/// First byte of a TLS handshake record (RFC 8446, 5.1).
pub(super) const TLS_HANDSHAKE: u8 = 22;

/// Banner in plain text, TLS no. 1, then the dialogue.
pub(super) async fn serve(
    gate: &Arc<Gate>,
    caller: Caller,
    mut wire: Wire,
    entry: Entry,
    early: Vec<u8>,
    runtime: Runtime,
) -> Result<(), Refused> {
    let closed = |e| Refused::new("client_closed", e);
    wire.write_all(BANNER.into()).await.map_err(closed)?;
    let not_tls = format!("{} Malformed command: TLS starts right after the banner.\r\n", code::MALFORMED);
    let tls = shake_hands(gate, &caller, wire, early, not_tls).await?;
    dialogue::run(gate, caller, tls, entry, runtime).await
}

/// TLS with the appliance's certificate, within the deadline. A peer that speaks something else gets `not_tls`.
pub(super) async fn shake_hands(
    gate: &Arc<Gate>,
    caller: &Caller,
    mut wire: Wire,
    mut early: Vec<u8>,
    not_tls: String,
) -> Result<TlsStream<UnbufferedServerConnection>, Refused> {
    let within = gate.config.load().deadlines.handshake;
    let shaking = async {
        if early.is_empty()
            && wire.read_into(&mut early, 4096).await.map_err(|e| Refused::new("client_closed", e))? == 0
        {
            return Err(Refused::new("client_closed", "closed before TLS"));
        }
        if early[0] != TLS_HANDSHAKE {
            let _ = wire.write_all(not_tls.into()).await;
            return Err(Refused::new("not_tls", "the client does not speak TLS"));
        }
        let connection =
            UnbufferedServerConnection::new(gate.tls.load_full()).map_err(|e| Refused::new("internal", e))?;
        TlsStream::handshake(wire, connection, early).await.map_err(|error| match error {
            TlsError::Tls(_) => Refused::new("tls", error),
            _ => Refused::new("client_closed", error),
        })
    };
    let tls = tokio::time::timeout(within, shaking)
        .await
        .unwrap_or_else(|_| Err(Refused::new("deadline_handshake", "TLS was not done in time")))?;
    gate.metrics.record(Stage::TlsDone, Instant::now() - caller.accepted);
    Ok(tls)
}
