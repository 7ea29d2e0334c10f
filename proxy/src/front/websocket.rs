//! A client's WebSocket before the hand-over: the few messages of a console's start.

use std::time::Duration;

use rustls::server::UnbufferedServerConnection;
use thiserror::Error;

use crate::flow::{Leg, WebSocket};
use crate::protocol::websocket::{
    Close, CloseCode, Decoder, Event, FrameHeader, Opcode, Peer, Subprotocol, Violation, put_control, to_utf8,
};
use crate::tls::{Session, TlsError, TlsStream};

type Tls = TlsStream<UnbufferedServerConnection>;

/// Most bytes a client may send before its console is open.
const MAX_EARLY: usize = 8 * 1024;

/// Why it cannot go on.
#[derive(Debug, Error)]
pub(super) enum StreamError {
    /// The connection or its TLS.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The client broke the rules.
    #[error("{0}")]
    Violation(#[from] Violation),
    /// The client closed.
    #[error("closed by the client")]
    Closed,
    /// More than [`MAX_EARLY`].
    #[error("more than {MAX_EARLY} bytes before the console is open")]
    TooMuch,
}

/// The WebSocket.
pub(super) struct Stream {
    tls: Tls,
    decoder: Decoder,
    text: bool,
    /// Said and not yet sent: it goes with what comes next, or when the client's turn has come.
    pending: Vec<u8>,
    /// Decoded and not yet taken.
    pub(super) data: Vec<u8>,
}

impl Stream {
    /// Begins with the response that switches to it.
    pub(super) fn new(tls: Tls, response: String, subprotocol: Subprotocol) -> Self {
        let (text, pending) = (subprotocol.is_text(), response.into_bytes());
        Self { tls, decoder: Decoder::new(Peer::Client, text), text, pending, data: Vec::new() }
    }

    /// The TCP connection beneath.
    pub(super) fn wire(&self) -> &crate::wire::Wire {
        self.tls.wire()
    }

    /// One message, in a frame of its own; sent with [`Stream::flush`] or before the next wait for the client.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        let mut payload = Vec::new();
        if self.text {
            to_utf8(bytes, &mut payload)
        } else {
            payload.extend_from_slice(bytes)
        }
        let opcode = if self.text { Opcode::Text } else { Opcode::Binary };
        let (header, len) = FrameHeader { fin: true, opcode, len: payload.len() as u64, mask: None }.bytes();
        self.pending.extend_from_slice(&header[..len]);
        self.pending.extend_from_slice(&payload);
    }

    /// Sends what was said: one record, one system call.
    pub(super) async fn flush(&mut self) -> Result<(), TlsError> {
        if !self.pending.is_empty() {
            self.tls.write_all(&std::mem::take(&mut self.pending)).await?;
        }
        Ok(())
    }

    /// Reads on; what came is behind what `data` holds already. What lies behind the first piece of content stays undecoded:
    /// it may be the flow's already, which answers it by all the books.
    pub(super) async fn more(&mut self) -> Result<(), StreamError> {
        // What came with the end of the handshake may be as long as it likes; only what does not lead to one is too much.
        if self.data.len() > MAX_EARLY {
            return Err(StreamError::TooMuch);
        }
        self.flush().await?;
        let mut received = self.tls.read().await?;
        if received.is_empty() {
            return Err(StreamError::Closed);
        }
        let (mut at, mut pong) = (0, None);
        while let Some(event) = self.decoder.next(&mut received, &mut at)? {
            match event {
                Event::Data(range) => {
                    self.data.extend_from_slice(&received[range]);
                    self.tls.unread_mut().splice(0..0, received.drain(at..));
                    break;
                }
                Event::Ping(body) => pong = Some(body),
                Event::Pong | Event::Header(..) => {}
                Event::Close(_) => return Err(StreamError::Closed),
            }
        }
        if let Some(body) = pong {
            put_control(&mut self.pending, Opcode::Pong, body.as_bytes(), None);
            self.flush().await?;
        }
        Ok(())
    }

    /// Reads one whole message; empty ones are none.
    pub(super) async fn message(&mut self) -> Result<Vec<u8>, StreamError> {
        while self.data.is_empty() || !self.decoder.between_messages() {
            self.more().await?;
        }
        if self.data.len() > MAX_EARLY {
            return Err(StreamError::TooMuch);
        }
        Ok(std::mem::take(&mut self.data))
    }

    /// Closes it with a code and words, and waits for the client to close too. The caller bounds the wait.
    pub(super) async fn close(&mut self, code: CloseCode, words: &str) -> Result<(), TlsError> {
        put_control(&mut self.pending, Opcode::Close, Close::new(code, words).as_bytes(), None);
        self.tls.farewell(&std::mem::take(&mut self.pending)).await
    }

    /// The leg of a flow, and the console's bytes that were decoded already. Everything said must have been sent.
    pub(super) fn into_leg(self, ping: Option<Duration>) -> std::io::Result<(Leg, Vec<u8>)> {
        let Self { tls, decoder, text, data, .. } = self;
        let (wire, connection, received, plain) = tls.into_parts();
        let web = WebSocket::new(Peer::Client, decoder, text, plain, ping);
        let session = Session::server(connection, received).map_err(std::io::Error::other)?;
        Ok((Leg::WebSocket(wire.into_fd()?, session, Box::new(web)), data))
    }
}
