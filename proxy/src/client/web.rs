//! A browser's console for an ordinary VNC viewer: RFB out of and into the frames of a WebSocket.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::ConnectError;
use super::https::Server;
use super::tunnel::Ended;
use crate::protocol::websocket::{
    Close, CloseCode, Decoder, Event, FrameHeader, Opcode, Peer, accepted, mask, put_control,
};

/// How long everything up to the open console may take.
const DEADLINE: Duration = Duration::from_secs(45);
/// How much is moved at once, in bytes.
const PIECE: usize = 16 * 1024;
/// Asked first on `/{port};{ticket}`.
const ASKS_VMX: &[u8] = b"connect info vmx\n";
/// Length of `RFB 003.008\n`.
const RFB_VERSION: usize = 12;

/// A console behind `wss://`.
#[derive(Debug)]
pub struct WebTarget {
    /// The server.
    pub server: Server,
    /// `/ticket/T` or `/{port};T`, as the URL has it. Secret.
    pub path: Path,
    /// The machine, where the server asks for it.
    pub vm: Option<String>,
}

/// The path of a console; never printed.
pub struct Path(pub Zeroizing<String>);

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Path")
    }
}

/// An open WebSocket, at the beginning of RFB.
pub(super) struct WebConsole {
    tls: TlsStream<TcpStream>,
    decoder: Decoder,
    /// Unwrapped and not yet delivered.
    data: Vec<u8>,
}

impl WebTarget {
    pub(super) async fn open(&self) -> Result<WebConsole, ConnectError> {
        let late = ConnectError::Deadline { seconds: DEADLINE.as_secs() };
        tokio::time::timeout(DEADLINE, self.upgrade()).await.unwrap_or(Err(late))
    }

    async fn upgrade(&self) -> Result<WebConsole, ConnectError> {
        let mut tls = self.server.connect().await?;
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| std::io::Error::other("no randomness"))?;
        let (key, host) = (STANDARD.encode(random), self.server.authority());
        let request = Zeroizing::new(format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: binary\r\nOrigin: https://{host}\r\n\r\n",
            self.path.0.as_str()
        ));
        tls.write_all(request.as_bytes()).await?;
        let mut buffer = Vec::new();
        let len = loop {
            if tls.read_buf(&mut buffer).await? == 0 {
                return Err(ConnectError::Closed("the server"));
            }
            let opened = accepted(&buffer, &key);
            if let Some(len) = opened.map_err(|why| ConnectError::NoWebSocket(why.to_string()))? {
                break len;
            }
        };
        let mut console = WebConsole { tls, decoder: Decoder::new(Peer::Server, false), data: Vec::new() };
        console.unwrap(buffer.split_off(len)).await?;
        console.first_words().await?;
        // Only on this form of the path: elsewhere these bytes would be the machine's.
        if self.path.0.contains(';') && console.data == ASKS_VMX {
            console.data.clear();
            let vm = self.vm.as_deref().ok_or(ConnectError::VmWanted)?;
            console.tls.write_all(&data_frame(vm.as_bytes())?).await?;
            console.tls.flush().await?;
            console.first_words().await?;
        }
        Ok(console)
    }
}

impl WebConsole {
    /// Waits for the server's first message, RFB's version or the question which machine is meant; a refusal comes in its place.
    async fn first_words(&mut self) -> Result<(), ConnectError> {
        while self.data.len() < RFB_VERSION || !self.decoder.between_messages() {
            let mut piece = Vec::with_capacity(PIECE);
            if self.tls.read_buf(&mut piece).await? == 0 {
                return Err(ConnectError::Closed("the server"));
            }
            self.unwrap(piece).await?;
        }
        Ok(())
    }

    /// Takes frames; data goes to `data`, pings are answered.
    async fn unwrap(&mut self, mut piece: Vec<u8>) -> Result<(), ConnectError> {
        let mut at = 0;
        while let Some(event) = next(&mut self.decoder, &mut piece, &mut at)? {
            match event {
                Event::Data(range) => self.data.extend_from_slice(&piece[range]),
                Event::Ping(body) => self.tls.write_all(&control(Opcode::Pong, body.as_bytes())?).await?,
                Event::Pong | Event::Header(..) => {}
                Event::Close(code) => return Err(closed(code)),
            }
        }
        Ok(())
    }

    /// Moves bytes both ways until one side ends.
    pub(super) async fn pump(self, viewer: TcpStream) -> Result<Ended, ConnectError> {
        let (tls_in, tls_out) = split(self.tls);
        let (viewer_in, mut viewer_out) = viewer.into_split();
        viewer_out.write_all(&self.data).await?;
        // Beside each other: neither direction waits for the other's writes.
        let (pongs, answers) = mpsc::channel(4);
        tokio::select! {
            ended = up(viewer_in, tls_out, answers) => ended,
            ended = down(tls_in, self.decoder, viewer_out, pongs) => ended,
        }
    }
}

async fn up(
    mut viewer: OwnedReadHalf,
    mut tls: WriteHalf<TlsStream<TcpStream>>,
    mut answers: mpsc::Receiver<Vec<u8>>,
) -> Result<Ended, ConnectError> {
    let mut piece = vec![0; PIECE];
    loop {
        tokio::select! {
            read = viewer.read(&mut piece) => match read {
                Ok(0) | Err(_) => {
                    // Best effort: the connection ends behind it in any case.
                    let _ = tls.write_all(&control(Opcode::Close, Close::new(CloseCode::NORMAL, "").as_bytes())?).await;
                    let _ = tls.shutdown().await;
                    return Ok(Ended::Viewer);
                }
                Ok(n) => {
                    if tls.write_all(&data_frame(&piece[..n])?).await.is_err() {
                        return Ok(Ended::Broken);
                    }
                }
            },
            Some(pong) = answers.recv() => {
                if tls.write_all(&pong).await.is_err() {
                    return Ok(Ended::Broken);
                }
            }
        }
        if tls.flush().await.is_err() {
            return Ok(Ended::Broken);
        }
    }
}

async fn down(
    mut tls: ReadHalf<TlsStream<TcpStream>>,
    mut decoder: Decoder,
    mut viewer: OwnedWriteHalf,
    pongs: mpsc::Sender<Vec<u8>>,
) -> Result<Ended, ConnectError> {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        if !matches!(tls.read_buf(&mut piece).await, Ok(1..)) {
            return Ok(Ended::Broken);
        }
        let mut at = 0;
        while let Some(event) = next(&mut decoder, &mut piece, &mut at)? {
            match event {
                Event::Data(range) => {
                    if viewer.write_all(&piece[range]).await.is_err() {
                        return Ok(Ended::Viewer);
                    }
                }
                // One that finds no place is left out: whoever pings faster than it reads needs no answer to each.
                Event::Ping(body) => drop(pongs.try_send(control(Opcode::Pong, body.as_bytes())?)),
                Event::Pong | Event::Header(..) => {}
                Event::Close(Some(CloseCode::NORMAL | CloseCode::GOING_AWAY) | None) => {
                    return Ok(Ended::Machine);
                }
                Event::Close(_) => return Ok(Ended::Broken),
            }
        }
    }
}

fn next(decoder: &mut Decoder, piece: &mut [u8], at: &mut usize) -> Result<Option<Event>, ConnectError> {
    let wrong =
        |violation: crate::protocol::websocket::Violation| ConnectError::NoWebSocket(violation.to_string());
    decoder.next(piece, at).map_err(wrong)
}

fn closed(code: Option<CloseCode>) -> ConnectError {
    let (words, again) = match code {
        Some(CloseCode::POLICY) => {
            ("the ticket is not accepted (any more). Ask the portal for a new one", false)
        }
        Some(CloseCode::TRY_LATER) => ("too many consoles are open", true),
        Some(CloseCode::GOING_AWAY) => ("the gate is going down", true),
        _ => ("the machine's host did not open the console", true),
    };
    ConnectError::WebRefused { words, again }
}

/// A key for each frame, as a client has to (RFC 6455, 5.3).
fn key() -> Result<[u8; 4], ConnectError> {
    let mut key = [0; 4];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| std::io::Error::other("no randomness"))?;
    Ok(key)
}

fn data_frame(bytes: &[u8]) -> Result<Vec<u8>, ConnectError> {
    let key = key()?;
    let header = FrameHeader { fin: true, opcode: Opcode::Binary, len: bytes.len() as u64, mask: Some(key) };
    let (header, len) = header.bytes();
    let mut frame = [&header[..len], bytes].concat();
    mask(&mut frame[len..], key, 0);
    Ok(frame)
}

fn control(opcode: Opcode, body: &[u8]) -> Result<Vec<u8>, ConnectError> {
    let mut frame = Vec::new();
    put_control(&mut frame, opcode, body, Some(key()?));
    Ok(frame)
}
