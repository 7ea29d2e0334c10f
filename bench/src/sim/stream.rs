//! A byte stream in the clear or under TLS: the host's side, and that of a client that the load generator plays.
//!
//! The TLS one takes exactly one record at a time from the socket. Whatever follows the last record it needs is still in
//! the socket, so that after `CONNECT` the same TCP stream can begin TLS no. 2 without a byte lost.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::wire::Wire;

/// Content type, version, length.
const HEADER: usize = 5;
/// TLS 1.2's largest record: 2^14 bytes and what a cipher may add (RFC 5246, 6.2.3).
const MAX_RECORD: usize = (1 << 14) + 2048;

/// Bytes that a screen received and sent, TLS taken off.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the client.
    pub received: AtomicU64,
    /// To the client.
    pub sent: AtomicU64,
}

/// The stream that a dialogue or a screen runs over.
pub struct Stream {
    layer: Layer,
    traffic: Option<Arc<Traffic>>,
}

enum Layer {
    Plain(Wire),
    Tls(Box<Tls>),
}

impl Stream {
    pub(super) fn plain(wire: Wire) -> Self {
        Self { layer: Layer::Plain(wire), traffic: None }
    }

    /// Plays the server's side of a TLS handshake.
    pub(super) async fn accept(wire: Wire, config: Arc<ServerConfig>) -> io::Result<Self> {
        let conn = ServerConnection::new(config).map_err(io::Error::other)?;
        Self::shake_hands(wire, conn.into()).await
    }

    /// Plays the client's side of a TLS handshake.
    pub async fn connect(
        tcp: Arc<TcpStream>,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let conn = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Self::shake_hands(Wire::new(tcp), conn.into()).await
    }

    async fn shake_hands(wire: Wire, conn: Connection) -> io::Result<Self> {
        let mut tls = Box::new(Tls { wire, conn, record: Vec::new(), out: Vec::new() });
        std::future::poll_fn(|cx| tls.poll_handshake(cx)).await?;
        Ok(Self { layer: Layer::Tls(tls), traffic: None })
    }

    /// Counts from here on.
    pub(super) fn count(&mut self, traffic: Arc<Traffic>) {
        self.traffic = Some(traffic);
    }

    /// The TCP stream; a TLS layer is dropped without a `close_notify`, as ESXi does after `200 Connect`.
    pub(super) fn into_wire(self) -> Wire {
        match self.layer {
            Layer::Plain(wire) => wire,
            Layer::Tls(tls) => tls.wire,
        }
    }

    /// The TCP stream below.
    pub fn wire(&self) -> &Wire {
        match &self.layer {
            Layer::Plain(wire) => wire,
            Layer::Tls(tls) => &tls.wire,
        }
    }

    pub(super) fn wire_mut(&mut self) -> &mut Wire {
        match &mut self.layer {
            Layer::Plain(wire) => wire,
            Layer::Tls(tls) => &mut tls.wire,
        }
    }

    /// Sends and flushes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(match &mut this.layer {
            Layer::Plain(wire) => Pin::new(wire).poll_read(cx, buf),
            Layer::Tls(tls) => tls.poll_read(cx, buf),
        })?;
        if let Some(traffic) = &this.traffic {
            traffic.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(match &mut this.layer {
            Layer::Plain(wire) => Pin::new(wire).poll_write(cx, buf),
            Layer::Tls(tls) => tls.poll_write(cx, buf),
        })?;
        if let Some(traffic) = &this.traffic {
            traffic.sent.fetch_add(n as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().layer {
            Layer::Plain(wire) => Pin::new(wire).poll_flush(cx),
            Layer::Tls(tls) => tls.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().layer {
            Layer::Plain(wire) => Pin::new(wire).poll_shutdown(cx),
            Layer::Tls(tls) => tls.poll_shutdown(cx),
        }
    }
}

struct Tls {
    wire: Wire,
    conn: Connection,
    /// The record that is being read.
    record: Vec<u8>,
    /// Ciphertext not yet taken by the socket.
    out: Vec<u8>,
}

impl Tls {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(cx))?;
            if !self.conn.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if !ready!(self.poll_record(cx))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.conn.reader().read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
            // A FIN without close_notify is read as an end: consoles are cut like that every day.
            if !ready!(self.poll_record(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes one record off the socket and decrypts it. False at the end of the stream. May be called again after `Pending`.
    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let want = record_length(&self.record)?;
            let have = self.record.len();
            if have == want {
                break;
            }
            self.record.resize(want, 0);
            let mut space = ReadBuf::new(&mut self.record[have..]);
            let polled = Pin::new(&mut self.wire).poll_read(cx, &mut space);
            let n = space.filled().len();
            self.record.truncate(have + n);
            ready!(polled)?;
            if n == 0 {
                return Poll::Ready(match have {
                    0 => Ok(false),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                });
            }
        }
        let record = std::mem::take(&mut self.record);
        let mut rest = &record[..];
        while !rest.is_empty() {
            self.conn.read_tls(&mut rest)?;
            if let Err(err) = self.conn.process_new_packets() {
                let mut alert = Vec::new();
                let _ = self.conn.write_tls(&mut alert);
                let _ = self.wire.tcp().try_write(&alert);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, err)));
            }
        }
        Poll::Ready(Ok(true))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let n = self.conn.writer().write(buf)?;
        // As much as goes; the rest with the next call. An error is that call's, too.
        let _ = self.poll_flush(cx);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.conn.wants_write() {
                self.conn.write_tls(&mut self.out)?;
            }
            if self.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let n = ready!(Pin::new(&mut self.wire).poll_write(cx, &self.out))?;
            self.out.drain(..n);
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conn.send_close_notify();
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

/// Length of the record that begins with `head`, or of its header as long as that is incomplete.
fn record_length(head: &[u8]) -> io::Result<usize> {
    let [kind, _, _, high, low, ..] = head else { return Ok(HEADER) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if !(20..=24).contains(kind) || length > MAX_RECORD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a TLS record"));
    }
    Ok(HEADER + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tls_records_have_a_length() {
        assert_eq!(record_length(&[]).unwrap(), 5);
        assert_eq!(record_length(&[22, 3, 1, 2]).unwrap(), 5);
        assert_eq!(record_length(&[22, 3, 1, 2, 0]).unwrap(), 5 + 512);
        assert!(record_length(b"GET /").is_err());
        assert!(record_length(&[23, 3, 3, 0xff, 0xff]).is_err());
    }
}
