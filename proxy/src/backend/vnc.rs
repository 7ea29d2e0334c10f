//! Any VNC server (QEMU, KVM, Xvnc), plain or in TLS; its password is answered here from the sealed ticket.

use super::console::{tls_leg, within};
use super::esxi_mks::{pinned, thumbprints};
use super::{BackendError, Console, Opening, Step, dial};
use crate::flow::Leg;
use crate::protocol::rfb_client::{ClientHandshake, Step as Next};
use crate::ticket::Target;
use crate::tls::{TlsError, TlsStream};
use crate::wire::Wire;
use rustls::client::UnbufferedClientConnection;

/// The first display's port.
const PORT: u16 = 5900;
/// Bytes of one read of the handshake.
const READ: usize = 1024;

/// TCP, TLS where the target says so, RFB's handshake up to ClientInit.
pub(super) async fn open(target: &Target, how: &Opening<'_>) -> Result<Console, BackendError> {
    let began = std::time::Instant::now();
    let wire = dial(target, target.port.unwrap_or(PORT), how.dial).await?;
    how.metrics.record(crate::metrics::Stage::BackendConnect, began.elapsed());
    let mut stream = if target.tls.unwrap_or(!target.thumbprints.is_empty()) {
        let pins = thumbprints(target)?;
        let tls = pinned(wire, pins, how.provider.clone(), Vec::new(), Step::Tls);
        Stream::Tls(Box::new(within(how, Step::Tls, tls).await?))
    } else {
        Stream::Plain(wire)
    };
    let to_client = within(how, Step::Rfb, shake_hands(&mut stream, target.ticket.clone())).await?;
    let (leg, to_client) = match stream {
        Stream::Plain(wire) => (Leg::Raw(wire.into_fd().map_err(BackendError::Internal)?), to_client),
        Stream::Tls(tls) => {
            let (leg, more) = tls_leg(*tls)?;
            (leg, [to_client, more].concat())
        }
    };
    Ok(Console { leg, to_client, wants_handshake: true })
}

enum Stream {
    Plain(Wire),
    Tls(Box<TlsStream<UnbufferedClientConnection>>),
}

impl Stream {
    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), TlsError> {
        match self {
            Self::Plain(wire) => Ok(wire.write_all(bytes).await?),
            Self::Tls(tls) => tls.write_all(&bytes).await,
        }
    }

    async fn more(&mut self, buffer: &mut Vec<u8>) -> Result<(), TlsError> {
        let had = buffer.len();
        match self {
            Self::Plain(wire) => drop(wire.read_into(buffer, READ).await?),
            Self::Tls(tls) => buffer.extend(tls.read().await?),
        }
        if buffer.len() > had { Ok(()) } else { Err(TlsError::Closed) }
    }
}

/// Plays the viewer; returns what the server sent behind the handshake.
async fn shake_hands(stream: &mut Stream, password: Option<String>) -> Result<Vec<u8>, BackendError> {
    let closed = |error| BackendError::Closed { step: Step::Rfb, error };
    let (mut handshake, mut buffer) = (ClientHandshake::new(password), Vec::new());
    let mut said = Vec::new();
    loop {
        let next = handshake.step(&mut buffer).map_err(BackendError::Rfb)?;
        if let Next::Send(bytes) = next {
            said.extend(bytes);
            continue;
        }
        if !said.is_empty() {
            stream.send(std::mem::take(&mut said)).await.map_err(closed)?;
        }
        match next {
            Next::Done => return Ok(buffer),
            _ => stream.more(&mut buffer).await.map_err(closed)?,
        }
    }
}
