//! A WebSocket client written against the wire alone, and hosts that speak otherwise than they should.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its part of it")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use mksgate::tls::Thumbprint;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::client::{self, Tls};

/// The key of RFC 6455's example, and its answer.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An open WebSocket with the subprotocol `binary`.
pub struct Web {
    pub tls: Tls,
    /// Frames' bytes not yet looked at.
    input: Vec<u8>,
    /// Bodies of the pings that came.
    pub pings: Vec<Vec<u8>>,
}

/// What came.
#[derive(Debug, PartialEq)]
pub enum Came {
    Data(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Code and words.
    Close(u16, String),
    /// The end without a close frame.
    End,
}

/// A request that opens a WebSocket.
pub fn upgrade(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: console.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
    )
}

/// The whole answer to a request, until the connection closes.
pub fn ask(gate: SocketAddr, request: &[u8]) -> String {
    let mut tls = Tls::start(client::connect(gate)).unwrap();
    // What is refused before its end may meet a closed connection.
    let _ = tls.send_bytes(request);
    tls.rest()
}

impl Web {
    pub fn open(gate: SocketAddr, target: &str) -> Self {
        let mut tls = Tls::start(client::connect(gate)).unwrap();
        tls.send(&upgrade(target)).unwrap();
        let mut head = Vec::new();
        loop {
            let line = tls.line().unwrap();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        assert_eq!(head[0], "HTTP/1.1 101 Switching Protocols", "{head:?}");
        for field in [&format!("Sec-WebSocket-Accept: {ACCEPT}"), "Sec-WebSocket-Protocol: binary"] {
            assert!(head.iter().any(|line| line == field), "{head:?}");
        }
        Self { tls, input: Vec::new(), pings: Vec::new() }
    }

    /// Sends one masked frame.
    pub fn frame(&mut self, first: u8, body: &[u8]) -> io::Result<()> {
        let mut frame = vec![first];
        match body.len() {
            n @ 0..126 => frame.push(0x80 | n as u8),
            n => {
                frame.push(0x80 | 126);
                frame.extend((n as u16).to_be_bytes());
            }
        }
        let key = [0x11, 0x22, 0x33, 0x44];
        frame.extend(key);
        frame.extend(body.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        self.tls.send_bytes(&frame)
    }

    /// A message of bytes.
    pub fn send(&mut self, body: &[u8]) {
        self.frame(0x82, body).unwrap();
    }

    /// The next frame; a ping is answered.
    pub fn next(&mut self) -> Came {
        loop {
            if let Some((opcode, body)) = self.take() {
                return match opcode {
                    2 => Came::Data(body),
                    8 => {
                        let code = body.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                        let words = String::from_utf8(body.get(2..).unwrap_or_default().into()).unwrap();
                        let _ = self.frame(0x88, &body);
                        Came::Close(code, words)
                    }
                    9 => {
                        let _ = self.frame(0x8a, &body);
                        Came::Ping(body)
                    }
                    10 => Came::Pong(body),
                    other => panic!("opcode {other}"),
                };
            }
            match self.tls.some() {
                Ok(bytes) => self.input.extend(bytes),
                Err(_) => return Came::End,
            }
        }
    }

    /// A whole frame of the server's, which bears no mask.
    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        let [first, short, ..] = *self.input.first_chunk::<2>()?;
        assert_eq!(short & 0x80, 0, "a server masks nothing");
        let (from, len) = match short {
            126 => (4, u16::from_be_bytes([*self.input.get(2)?, *self.input.get(3)?]).into()),
            127 => (10, u64::from_be_bytes(self.input.get(2..10)?.try_into().unwrap()) as usize),
            short => (2, usize::from(short)),
        };
        let body = self.input.get(from..from + len)?.to_vec();
        self.input.drain(..from + len);
        Some((first & 0x0f, body))
    }

    /// The next bytes of the console.
    pub fn data(&mut self) -> Vec<u8> {
        loop {
            match self.next() {
                Came::Data(data) => return data,
                Came::Ping(body) => self.pings.push(body),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The end, whatever data stands before it: code and words, and then really the end.
    pub fn end(&mut self) -> (u16, String) {
        loop {
            match self.next() {
                Came::Close(code, words) => {
                    assert_eq!(self.next(), Came::End, "nothing follows a close frame");
                    return (code, words);
                }
                Came::End => panic!("an end without a close frame"),
                _ => {}
            }
        }
    }

    /// The viewer's side of RFB's handshake.
    pub fn shake_hands(&mut self) {
        assert_eq!(self.data(), b"RFB 003.008\n", "in a frame of its own");
        self.send(b"RFB 003.008\n");
        assert_eq!(self.data(), [1, 1]);
        self.send(&[1]);
        assert_eq!(self.data(), [0; 4]);
        self.send(&[1]);
    }

    /// Whether the console echoes.
    pub fn echo(&mut self, text: &[u8]) {
        self.send(text);
        let mut got = Vec::new();
        while got.len() < text.len() {
            got.extend(self.data());
        }
        assert_eq!(got, text);
    }
}

/// A host on a thread of its own that serves each connection with `serve`; its address.
pub fn tcp_host(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// The same behind TLS, and its thumbprint.
pub fn tls_host(
    serve: impl Fn(&mut StreamOwned<ServerConnection, TcpStream>) -> io::Result<()> + Send + Sync + 'static,
) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["esxi.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let thumbprint = Thumbprint::sha256(made.cert.der()).to_string();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let address = tcp_host(move |tcp| {
        let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), tcp);
        serve(&mut stream)
    });
    (address, thumbprint)
}

/// Reads until this has come.
pub fn read_until(from: &mut impl Read, end: &[u8]) -> io::Result<Vec<u8>> {
    let (mut got, mut byte) = (Vec::new(), [0]);
    while !got.ends_with(end) {
        from.read_exact(&mut byte)?;
        got.push(byte[0]);
    }
    Ok(got)
}

/// Reads and drops until the peer closes.
pub fn drain(from: &mut impl Read) {
    let _ = io::copy(from, &mut io::sink());
}

/// A VNC server that says `script` in turn, reading `n` bytes before each, and then nothing more.
pub fn vnc_host(script: &'static [(usize, &'static [u8])]) -> SocketAddr {
    tcp_host(move |mut tcp| {
        for (n, say) in script {
            tcp.read_exact(&mut vec![0; *n])?;
            tcp.write_all(say)?;
        }
        drain(&mut tcp);
        Ok(())
    })
}
