//! What the tests of flows with TLS and WebSocket share: legs as the front hands them over, and their far ends, with a
//! WebSocket of their own making.
#![allow(dead_code, missing_docs, clippy::allow_attributes, reason = "each test binary uses a part")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowCounters, FlowEnd, FlowLimits, Leg, WebSocket};
use mksgate::protocol::websocket::{Decoder, Peer as WsPeer};
use mksgate::tls::{Pinned, Policy, Session, Thumbprint};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use socket2::SockRef;

/// Nothing takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(200);

/// A small generator, so that a failure can be repeated.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Random bytes to cut messages from.
fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut bytes = vec![0; 2 << 20];
        aws_lc_rs::rand::fill(&mut bytes).unwrap();
        bytes
    })
}

fn xor(bytes: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes([key, key].concat().try_into().unwrap());
    let (words, rest) = bytes.as_chunks_mut::<8>();
    words.iter_mut().for_each(|word| *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes());
    rest.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Raw,
    Tls,
    /// WebSocket, text frames or binary.
    Web(bool),
}

/// The far end of a leg, with a WebSocket of its own making.
pub struct Far {
    pub socket: TcpStream,
    pub tls: Option<Connection>,
    pub kind: Kind,
    pub client: bool,
    pub random: Random,
    pub left: u64,
    pub sent: Context,
    pub received: Context,
    pub got: u64,
    pub out: Vec<u8>,
    pub input: Vec<u8>,
    pub pings: u64,
    pub pongs: u64,
    pub closed: Option<(u16, String)>,
    pub utf8: Option<u8>,
    /// Turns in which nothing is read: a slow reader.
    pause: u64,
}

impl Far {
    fn produce(&mut self) {
        let n = match self.random.below(4) {
            0 => self.random.below(40) + 1,
            1 => self.random.below(2000) + 1,
            _ => self.random.below(90_000) + 1,
        }
        .min(self.left);
        let from = self.random.below(noise().len() as u64 - n) as usize;
        let bytes = &noise()[from..from + n as usize];
        self.sent.update(bytes);
        self.left -= n;
        let Kind::Web(text) = self.kind else { return self.out.extend_from_slice(bytes) };
        let payload = match text {
            true => bytes.iter().map(|b| char::from(*b)).collect::<String>().into_bytes(),
            false => bytes.to_vec(),
        };
        let parts = self.random.below(3) as usize + 1;
        let size = payload.len().div_ceil(parts);
        let count = payload.chunks(size).count();
        for (i, part) in payload.chunks(size).enumerate() {
            let opcode = if i > 0 {
                0
            } else if text {
                1
            } else {
                2
            };
            self.frame(i + 1 == count, opcode, part);
            if i + 1 < count && self.random.below(8) == 0 {
                self.frame(false, 0, b"");
            }
            if self.random.below(8) == 0 {
                self.pings += 1;
                self.frame(true, 9, b"are you there?");
            }
            if self.random.below(20) == 0 {
                self.frame(true, 10, b"unasked");
            }
        }
    }

    pub fn frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
        let fin = fin || opcode >= 8;
        self.out.push(u8::from(fin) << 7 | opcode);
        let bit = u8::from(self.client) << 7;
        match payload.len() {
            n @ 0..126 => self.out.push(bit | n as u8),
            n @ 126..65536 => {
                self.out.push(bit | 126);
                self.out.extend((n as u16).to_be_bytes());
            }
            n => {
                self.out.push(bit | 127);
                self.out.extend((n as u64).to_be_bytes());
            }
        }
        let key = if self.client { (self.random.next() as u32).to_be_bytes() } else { [0; 4] };
        if self.client {
            self.out.extend(key);
        }
        let at = self.out.len();
        self.out.extend_from_slice(payload);
        if self.client {
            xor(&mut self.out[at..], key);
        }
    }

    pub fn consume(&mut self) {
        if !matches!(self.kind, Kind::Web(_)) {
            self.received.update(&self.input);
            self.got += self.input.len() as u64;
            self.input.clear();
            return;
        }
        let mut at = 0;
        while let Some((opcode, from, to)) = head(&self.input[at..], !self.client) {
            let (from, to) = (at + from, at + to);
            if to > self.input.len() {
                break;
            }
            let mut body = self.input[from..to].to_vec();
            if !self.client {
                xor(&mut body, self.input[from - 4..from].try_into().unwrap());
            }
            match opcode {
                0..=2 => self.data(&body),
                8 => {
                    let code = u16::from_be_bytes([body[0], body[1]]);
                    self.closed = Some((code, String::from_utf8(body[2..].into()).unwrap()));
                }
                9 => self.frame(true, 10, &body),
                10 => self.pongs += 1,
                other => panic!("opcode {other}"),
            }
            at = to;
        }
        self.input.drain(..at);
    }

    fn data(&mut self, body: &[u8]) {
        if self.kind == Kind::Web(false) {
            self.received.update(body);
            self.got += body.len() as u64;
            return;
        }
        for byte in body {
            let whole = match self.utf8.take() {
                None if *byte < 128 => *byte,
                None => {
                    self.utf8 = Some(*byte);
                    continue;
                }
                Some(lead) => (lead & 3) << 6 | byte & 63,
            };
            self.received.update(&[whole]);
            self.got += 1;
        }
    }

    /// One round of writing and reading; true if anything moved.
    pub fn turn(&mut self) -> io::Result<bool> {
        let mut moved = false;
        while self.out.len() < 100_000 && self.left > 0 {
            self.produce();
        }
        // rustls bears no more than 32 in a row without data.
        if self.left > 0
            && self.random.below(200) == 0
            && let Some(tls) = &mut self.tls
        {
            tls.refresh_traffic_keys().unwrap();
        }
        match &mut self.tls {
            None => moved |= write_some(&mut self.socket, &mut self.out)?,
            Some(tls) => {
                if !self.out.is_empty() {
                    let n = tls.writer().write(&self.out)?;
                    self.out.drain(..n);
                }
                while tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(_) => moved = true,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        // A slow reader now and then, slow enough that everything on the way to it is full.
        if self.random.below(100) == 0 {
            self.pause = self.random.below(60);
        }
        if self.pause > 0 {
            self.pause -= 1;
            return Ok(moved);
        }
        let mut buffer = vec![0; self.random.below(100_000) as usize + 1];
        match &mut self.tls {
            None => match self.socket.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.input.extend(&buffer[..n]);
                    moved = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            },
            Some(tls) => {
                // rustls takes a few kilobytes at a time.
                for _ in 0..buffer.len() / 4096 + 1 {
                    let mut last = !tls.wants_read();
                    if !last {
                        match tls.read_tls(&mut self.socket) {
                            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                            Ok(_) => moved = true,
                            Err(error) if error.kind() == ErrorKind::WouldBlock => last = true,
                            Err(error) => return Err(error),
                        }
                    }
                    let state = tls.process_new_packets().map_err(io::Error::other)?;
                    let had = self.input.len();
                    self.input.resize(had + state.plaintext_bytes_to_read(), 0);
                    tls.reader().read_exact(&mut self.input[had..])?;
                    if state.peer_has_closed() && self.input.is_empty() {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    if last {
                        break;
                    }
                }
            }
        }
        self.consume();
        Ok(moved)
    }

    pub fn wait(&self) {
        self.wait_for(Duration::from_millis(20));
    }

    pub fn wait_for(&self, time: Duration) {
        let time = PollTimeout::try_from(time).unwrap();
        let _ = poll(&mut [PollFd::new(self.socket.as_fd(), self.events())], time);
    }

    /// Waits until it or the other has something to do.
    pub fn wait_with(&self, other: &Self) {
        let mut both = [self, other].map(|far| PollFd::new(far.socket.as_fd(), far.events()));
        let _ = poll(&mut both, PollTimeout::from(20u8));
    }

    fn events(&self) -> PollFlags {
        let mut events = PollFlags::POLLIN;
        if !self.flushed() {
            events |= PollFlags::POLLOUT;
        }
        events
    }

    /// All that was produced is in the kernel's hands.
    pub fn flushed(&self) -> bool {
        self.out.is_empty() && self.tls.as_ref().is_none_or(|tls| !tls.wants_write())
    }

    pub fn done(&self, total: u64) -> bool {
        let answered = self.pings == 0 || self.pongs > 0;
        self.left == 0 && self.flushed() && answered && self.got >= total
    }
}

/// Opcode and where the payload lies, if the header is whole.
fn head(bytes: &[u8], masked: bool) -> Option<(u8, usize, usize)> {
    let short = *bytes.get(1)?;
    assert_eq!(short & 0x80 != 0, masked, "mask");
    let (len, at) = match short & 0x7f {
        126 => (u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()) as usize, 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize, 10),
        n => (n as usize, 2),
    };
    let from = at + if masked { 4 } else { 0 };
    (bytes.len() >= from).then_some((bytes[0] & 15, from, from + len))
}

fn write_some(socket: &mut TcpStream, out: &mut Vec<u8>) -> io::Result<bool> {
    if out.is_empty() {
        return Ok(false);
    }
    match socket.write(out) {
        Ok(n) => {
            out.drain(..n);
            Ok(n > 0)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

struct Identity {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Identity {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert =
            rcgen::CertificateParams::new(vec!["x.example".into()]).unwrap().self_signed(&key).unwrap();
        let provider = Policy::Modern.provider();
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        server.enable_secret_extraction = true;
        let client = Pinned::config(vec![Thumbprint::sha256(cert.der())], provider).unwrap();
        Self { server: Arc::new(server), client: Arc::new(client) }
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    a.set_nodelay(true).unwrap();
    b.set_nodelay(true).unwrap();
    (a, b)
}

/// A leg, and its far end after the handshake. On a client's leg the far end is the TLS client.
fn leg(
    kind: Kind,
    client: bool,
    identity: &Identity,
    seed: u64,
    total: u64,
    ping: Option<Duration>,
) -> (Leg, Far) {
    let (near, socket) = sockets();
    let far_tls = (kind != Kind::Raw).then(|| match client {
        true => Connection::from(
            ClientConnection::new(identity.client.clone(), ServerName::try_from("x.example").unwrap())
                .unwrap(),
        ),
        false => Connection::from(ServerConnection::new(identity.server.clone()).unwrap()),
    });
    let mut far = Far {
        socket,
        tls: far_tls,
        kind,
        client,
        random: Random(seed | 1),
        left: total,
        sent: Context::new(&SHA256),
        received: Context::new(&SHA256),
        got: 0,
        out: vec![],
        input: vec![],
        pings: 0,
        pongs: 0,
        closed: None,
        utf8: None,
        pause: 0,
    };
    let session = (kind != Kind::Raw).then(|| shake_hands(&near, &mut far, client, identity));
    far.socket.set_nonblocking(true).unwrap();
    let near = OwnedFd::from(near);
    let leg = match (kind, session) {
        (Kind::Web(text), Some(session)) => {
            let peer = if client { WsPeer::Client } else { WsPeer::Server };
            let web = WebSocket::new(peer, Decoder::new(peer, text), text, vec![], ping);
            Leg::WebSocket(near, session, Box::new(web))
        }
        (_, Some(session)) => Leg::Tls(near, session),
        (_, None) => Leg::Raw(near),
    };
    (leg, far)
}

/// The near end's handshake with rustls' unbuffered API, as the front does it.
fn shake_hands(near: &TcpStream, far: &mut Far, client: bool, identity: &Identity) -> Session {
    macro_rules! run {
        ($connection:expr) => {{
            let mut connection = $connection;
            let (mut incoming, mut socket) = (Vec::<u8>::new(), near);
            loop {
                let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(&mut incoming);
                let mut read = false;
                match state.unwrap() {
                    ConnectionState::EncodeTlsData(mut data) => {
                        let mut out = vec![0; 20_000];
                        let n = data.encode(&mut out).unwrap();
                        socket.write_all(&out[..n]).unwrap();
                    }
                    ConnectionState::TransmitTlsData(data) => data.done(),
                    ConnectionState::BlockedHandshake => read = true,
                    ConnectionState::WriteTraffic(_) => break,
                    other => panic!("{other:?}"),
                }
                incoming.drain(..discard);
                if read {
                    let tls = far.tls.as_mut().unwrap();
                    while tls.wants_write() {
                        tls.write_tls(&mut far.socket).unwrap();
                    }
                    let mut buffer = [0; 4096];
                    near.set_nonblocking(true).unwrap();
                    match socket.read(&mut buffer) {
                        Ok(n) => incoming.extend(&buffer[..n]),
                        Err(_) => {
                            tls.read_tls(&mut far.socket).unwrap();
                            tls.process_new_packets().unwrap();
                        }
                    }
                    near.set_nonblocking(false).unwrap();
                }
            }
            let tls = far.tls.as_mut().unwrap();
            while tls.is_handshaking() {
                tls.read_tls(&mut far.socket).unwrap();
                tls.process_new_packets().unwrap();
            }
            (connection, incoming)
        }};
    }
    if client {
        let connection = rustls::server::UnbufferedServerConnection::new(identity.server.clone()).unwrap();
        let (connection, rest) = run!(connection);
        Session::server(connection, rest).unwrap()
    } else {
        let name = ServerName::try_from("x.example").unwrap();
        let connection =
            rustls::client::UnbufferedClientConnection::new(identity.client.clone(), name).unwrap();
        let (connection, rest) = run!(connection);
        Session::client(connection, rest).unwrap()
    }
}

fn engines(driver: Driver) -> Engines {
    let usual = FlowConfig { driver, threads: 1, ..FlowConfig::default() };
    // Who asks for the ring asks for its changes of stage, too: with small buffers little makes a transfer.
    let buffer_bytes = if driver == Driver::IoUring { 4096 } else { usual.buffer_bytes };
    Engines::start(&FlowConfig { buffer_bytes, ..usual }).unwrap()
}

/// A flow under test.
pub struct Running {
    pub engines: Engines,
    pub end: mpsc::Receiver<FlowEnd>,
    pub client: Far,
    pub backend: Far,
}

pub fn start(driver: Driver, kinds: (Kind, Kind), total: u64, ping: Option<Duration>) -> Running {
    run(driver, kinds, total, ping, None)
}

/// A flow towards a host whose socket takes next to nothing.
pub fn start_narrow(driver: Driver, kinds: (Kind, Kind), total: u64, half_close: Duration) -> Running {
    run(driver, kinds, total, None, Some(half_close))
}

fn run(
    driver: Driver,
    kinds: (Kind, Kind),
    total: u64,
    ping: Option<Duration>,
    narrow: Option<Duration>,
) -> Running {
    let (engines, identity) = (engines(driver), Identity::new());
    let (client_leg, client) = leg(kinds.0, true, &identity, 0x9e37_79b9_7f4a_7c15, total, ping);
    let (backend_leg, backend) = leg(kinds.1, false, &identity, 0xdead_beef_1234_5677, total, None);
    if narrow.is_some() {
        SockRef::from(&backend_leg).set_send_buffer_size(4096).unwrap();
        SockRef::from(&backend.socket).set_recv_buffer_size(4096).unwrap();
    }
    let (ended, end) = mpsc::channel();
    let flow = Flow {
        id: 7,
        client: client_leg,
        backend: backend_leg,
        to_backend: vec![],
        to_client: vec![],
        limits: FlowLimits {
            idle: None,
            ends_at: None,
            half_close: narrow.unwrap_or(Duration::from_secs(30)),
        },
        counters: Arc::new(FlowCounters::default()),
        progress: Default::default(),
        on_first_byte: None,
        on_close: Box::new(move |end| ended.send(end).unwrap()),
    };
    assert!(engines.submit(flow).is_ok());
    Running { engines, end, client, backend }
}
