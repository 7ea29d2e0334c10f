//! ESXi's own WebMKS, `wss://host/ticket/T`: the frames of host and browser are the same, and pass whole.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::UnbufferedClientConnection;

use super::console::within;
use super::esxi_mks::{pinned, thumbprints};
use super::{BackendError, Console, Opening, Step, dial};
use crate::flow::{Leg, WebSocket};
use crate::protocol::websocket::{Decoder, NotAccepted, Peer, accepted};
use crate::ticket::Target;
use crate::tls::{Session, TlsStream};

type Tls = TlsStream<UnbufferedClientConnection>;

/// The port in ESXi's own URLs.
const PORT: u16 = 443;

/// TCP, pinned TLS, upgrade. RFB begins on the stream, version first.
pub(super) async fn open(target: &Target, how: &Opening<'_>) -> Result<Console, BackendError> {
    let ticket = target.ticket.as_deref().ok_or(BackendError::BadTarget("has no ticket for the host"))?;
    if !ticket.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(BackendError::BadTarget("has a ticket that does not fit into an address"));
    }
    let pins = thumbprints(target)?;
    let port = target.port.unwrap_or(PORT);
    let began = std::time::Instant::now();
    let wire = dial(target, port, how.dial).await?;
    how.metrics.record(crate::metrics::Stage::BackendConnect, began.elapsed());
    let mut tls =
        within(how, Step::Tls, pinned(wire, pins, how.provider.clone(), Vec::new(), Step::Tls)).await?;
    let host = format!("{}:{port}", target.host);
    let behind = within(how, Step::Upgrade, upgrade(&mut tls, ticket, &host)).await?;
    let (wire, connection, received, plain) = tls.into_parts();
    let socket = wire.into_fd().map_err(BackendError::Internal)?;
    let decoder = Decoder::new(Peer::Server, false);
    let web = WebSocket::new(Peer::Server, decoder, false, [behind, plain].concat(), None);
    let session = Session::client(connection, received).map_err(|error| BackendError::Tls(error.into()))?;
    let leg = Leg::WebSocket(socket, session, Box::new(web));
    Ok(Console { leg, to_client: Vec::new(), wants_handshake: false })
}

/// Asks for the WebSocket; returns what came behind the response's head.
async fn upgrade(tls: &mut Tls, ticket: &str, host: &str) -> Result<Vec<u8>, BackendError> {
    let mut bytes = [0; 16];
    let random = aws_lc_rs::rand::fill(&mut bytes);
    random.map_err(|_| BackendError::Internal(std::io::Error::other("no random bytes")))?;
    let key = STANDARD.encode(bytes);
    let closed = |error| BackendError::Closed { step: Step::Upgrade, error };
    let request = format!(
        "GET /ticket/{ticket} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: binary\r\nOrigin: https://{host}\r\n\r\n"
    );
    tls.write_all(request.as_bytes()).await.map_err(closed)?;
    let mut buffer = Vec::new();
    loop {
        let more = tls.read().await.map_err(closed)?;
        if more.is_empty() {
            return Err(closed(crate::tls::TlsError::Closed));
        }
        buffer.extend(more);
        let refused = |why: NotAccepted| BackendError::NotWebSocket(why.to_string());
        if let Some(len) = accepted(&buffer, &key).map_err(refused)? {
            return Ok(buffer.split_off(len));
        }
    }
}
