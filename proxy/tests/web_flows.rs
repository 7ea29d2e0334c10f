//! Flows with TLS and WebSocket on their legs: what goes in comes out, in order, through every pair of legs, whatever the
//! frames, fragments, pings, key updates and pauses.
//!
//! `MKSGATE_SAME_BYTES_MIB` (default 3) says how much goes each way; releases are tested with 256.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowCounters, FlowEnd, FlowLimits, Leg, WebSocket};
use mksgate::protocol::websocket::{Decoder, Peer as WsPeer};
use mksgate::session::CloseReason;
use mksgate::tls::{Pinned, Policy, Session, Thumbprint};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

const PATIENCE: Duration = Duration::from_secs(240);

/// A small generator, so that a failure can be repeated.
struct Random(u64);

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

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Raw,
    Tls,
    /// WebSocket, text frames or binary.
    Web(bool),
}

/// The far end of a leg, with a WebSocket of its own making.
struct Far {
    socket: TcpStream,
    tls: Option<Connection>,
    kind: Kind,
    client: bool,
    random: Random,
    left: u64,
    sent: Context,
    received: Context,
    got: u64,
    out: Vec<u8>,
    input: Vec<u8>,
    pings: u64,
    pongs: u64,
    closed: Option<(u16, String)>,
    utf8: Option<u8>,
}

impl Far {
    fn produce(&mut self) {
        let n = match self.random.below(4) {
            0 => self.random.below(40) + 1,
            1 => self.random.below(2000) + 1,
            _ => self.random.below(90_000) + 1,
        }
        .min(self.left);
        let mut bytes = vec![0; n as usize];
        for chunk in bytes.chunks_mut(8) {
            let word = self.random.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        self.sent.update(&bytes);
        self.left -= n;
        let Kind::Web(text) = self.kind else { return self.out.extend(bytes) };
        let payload = match text {
            true => bytes.iter().map(|b| char::from(*b)).collect::<String>().into_bytes(),
            false => bytes,
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
            if self.random.below(8) == 0 {
                self.pings += 1;
                self.frame(true, 9, b"are you there?");
            }
            if self.random.below(20) == 0 {
                self.frame(true, 10, b"unasked");
            }
        }
    }

    fn frame(&mut self, fin: bool, opcode: u8, payload: &[u8]) {
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
        self.out.extend(payload.iter().enumerate().map(|(i, b)| b ^ key[i % 4]));
    }

    fn consume(&mut self) {
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
                let key: [u8; 4] = self.input[from - 4..from].try_into().unwrap();
                body.iter_mut().enumerate().for_each(|(i, b)| *b ^= key[i % 4]);
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
    fn turn(&mut self) -> io::Result<bool> {
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
        // A slow reader now and then.
        if self.random.below(5) == 0 {
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
                if tls.wants_read() {
                    match tls.read_tls(&mut self.socket) {
                        Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                        Ok(_) => moved = true,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                let state = tls.process_new_packets().map_err(io::Error::other)?;
                let mut plain = vec![0; state.plaintext_bytes_to_read()];
                tls.reader().read_exact(&mut plain)?;
                self.input.extend(plain);
                if state.peer_has_closed() && self.input.is_empty() {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
        }
        self.consume();
        Ok(moved)
    }

    fn wait(&self) {
        let mut events = PollFlags::POLLIN;
        if !self.out.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
            events |= PollFlags::POLLOUT;
        }
        let _ = poll(&mut [PollFd::new(self.socket.as_fd(), events)], PollTimeout::from(20u8));
    }

    fn done(&self, total: u64) -> bool {
        let flushed = self.out.is_empty() && self.tls.as_ref().is_none_or(|tls| !tls.wants_write());
        let answered = self.pings == 0 || self.pongs > 0;
        self.left == 0 && flushed && answered && self.got >= total
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
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
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
        Session::server(connection, rest)
    } else {
        let name = ServerName::try_from("x.example").unwrap();
        let connection =
            rustls::client::UnbufferedClientConnection::new(identity.client.clone(), name).unwrap();
        let (connection, rest) = run!(connection);
        Session::client(connection, rest)
    }
}

fn engines(driver: Driver) -> Engines {
    Engines::start(&FlowConfig { driver, threads: 1, ..FlowConfig::default() }).unwrap()
}

struct Running {
    engines: Engines,
    end: mpsc::Receiver<FlowEnd>,
    client: Far,
    backend: Far,
}

fn start(driver: Driver, kinds: (Kind, Kind), total: u64, ping: Option<Duration>) -> Running {
    let (engines, identity) = (engines(driver), Identity::new());
    let (client_leg, client) = leg(kinds.0, true, &identity, 0x9e37_79b9_7f4a_7c15, total, ping);
    let (backend_leg, backend) = leg(kinds.1, false, &identity, 0xdead_beef_1234_5677, total, None);
    let (ended, end) = mpsc::channel();
    let flow = Flow {
        id: 7,
        client: client_leg,
        backend: backend_leg,
        to_backend: vec![],
        to_client: vec![],
        limits: FlowLimits { idle: None, ends_at: None, half_close: Duration::from_secs(30) },
        counters: Arc::new(FlowCounters::default()),
        on_close: Box::new(move |end| ended.send(end).unwrap()),
    };
    assert!(engines.submit(flow).is_ok());
    Running { engines, end, client, backend }
}

fn same_bytes(driver: Driver, kinds: (Kind, Kind)) {
    let mib: u64 = std::env::var("MKSGATE_SAME_BYTES_MIB").map_or(3, |mib| mib.parse().unwrap());
    let total = mib << 20;
    let Running { engines, end, client, backend } = start(driver, kinds, total, None);
    let began = Instant::now();
    let run = move |mut far: Far, stop: mpsc::Receiver<()>, done: mpsc::Sender<()>| {
        let mut said = false;
        while stop.try_recv().is_err() {
            assert!(
                began.elapsed() < PATIENCE,
                "{kinds:?}: {} of {total} got, {} to send",
                far.got,
                far.left
            );
            match far.turn() {
                Ok(true) => {}
                Ok(false) => far.wait(),
                Err(error) => panic!("{kinds:?}: {error} with {} of {total}, {} to send", far.got, far.left),
            }
            if far.done(total) && !std::mem::replace(&mut said, true) {
                done.send(()).unwrap();
            }
        }
        far
    };
    let mut threads = vec![];
    let (done, finished) = mpsc::channel();
    let mut stops = vec![];
    for far in [client, backend] {
        let (stop, stopped) = mpsc::channel();
        let (run, done) = (run, done.clone());
        stops.push(stop);
        threads.push(std::thread::spawn(move || run(far, stopped, done)));
    }
    drop(done);
    for _ in 0..2 {
        finished.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{kinds:?} did not end"));
    }
    stops.iter().for_each(|stop| stop.send(()).unwrap());
    let mut fars: Vec<Far> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let backend = fars.pop().unwrap();
    let client = fars.pop().unwrap();
    assert_eq!((client.got, backend.got), (total, total), "{kinds:?}");
    let hash = |context: &Context| context.clone().finish().as_ref().to_vec();
    assert_eq!(hash(&client.sent), hash(&backend.received), "{kinds:?} up");
    assert_eq!(hash(&backend.sent), hash(&client.received), "{kinds:?} down");
    drop(client);
    drop(backend);
    let end = end.recv_timeout(PATIENCE).unwrap();
    assert!((end.up, end.down) == (total, total) || kinds.0 == kinds.1, "{kinds:?} {end:?}");
    engines.stop();
}

const PAIRS: [(Kind, Kind); 9] = [
    (Kind::Raw, Kind::Raw),
    (Kind::Tls, Kind::Raw),
    (Kind::Raw, Kind::Tls),
    (Kind::Tls, Kind::Tls),
    (Kind::Web(false), Kind::Raw),
    (Kind::Web(false), Kind::Tls),
    (Kind::Web(false), Kind::Web(false)),
    (Kind::Web(true), Kind::Tls),
    (Kind::Web(true), Kind::Web(false)),
];

#[test]
fn what_goes_in_comes_out_on_the_ring() {
    PAIRS.into_iter().for_each(|kinds| same_bytes(Driver::Auto, kinds));
}

#[test]
fn what_goes_in_comes_out_with_epoll() {
    PAIRS.into_iter().for_each(|kinds| same_bytes(Driver::Epoll, kinds));
}

fn until(far: &mut Far, wanted: impl Fn(&Far) -> bool) {
    let began = Instant::now();
    while !wanted(far) {
        assert!(began.elapsed() < PATIENCE);
        match far.turn() {
            Ok(true) => {}
            Ok(false) => far.wait(),
            Err(error) => {
                far.consume();
                assert!(wanted(far), "{error}");
            }
        }
    }
}

#[test]
fn a_person_is_told_why_the_console_ended() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let mut run = start(driver, (Kind::Web(false), Kind::Raw), 0, None);
        run.engines.close(7, CloseReason::Operator);
        until(&mut run.client, |far| far.closed.is_some());
        assert_eq!(run.client.closed, Some((1008, "An operator closed this console.".into())));
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::Operator);

        let mut run = start(driver, (Kind::Web(false), Kind::Raw), 0, None);
        drop(run.backend);
        until(&mut run.client, |far| far.closed.is_some());
        assert_eq!(run.client.closed.as_ref().unwrap().0, 1000);
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::BackendClosed);
    }
}

#[test]
fn a_broken_frame_ends_the_console_with_its_code() {
    for (bytes, code) in [
        (&[0xc2u8, 0x80, 0, 0, 0, 0][..], 1002u16),
        (&[0x82, 0x00], 1002),
        (&[0x81, 0x81, 0, 0, 0, 0, b'x'], 1003),
        (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        (&[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),
        (&[0x88, 0x81, 0, 0, 0, 0, 3], 1002),
    ] {
        let mut run = start(Driver::Auto, (Kind::Web(false), Kind::Raw), 0, None);
        run.client.out.extend(bytes);
        until(&mut run.client, |far| far.closed.is_some());
        assert_eq!(run.client.closed.as_ref().unwrap().0, code, "{bytes:?}");
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::ProtocolError);
    }
    let mut run = start(Driver::Auto, (Kind::Web(true), Kind::Raw), 0, None);
    run.client.out.extend([0x81, 0x82, 0, 0, 0, 0, 0xc3, b'x']);
    until(&mut run.client, |far| far.closed.is_some());
    assert_eq!(run.client.closed.as_ref().unwrap().0, 1007);
}

#[test]
fn a_silent_connection_is_kept_awake_and_the_idle_time_still_ends_it() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let mut run = start(driver, (Kind::Web(false), Kind::Raw), 0, Some(Duration::from_millis(20)));
        let mut seen = 0;
        let began = Instant::now();
        while seen < 3 {
            assert!(began.elapsed() < PATIENCE);
            let _ = run.client.turn().unwrap();
            // Each ping is answered by a frame of ours.
            if !run.client.out.is_empty() {
                seen += 1;
                run.client.out.clear();
            }
            run.client.wait();
        }
        run.engines.stop();
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::Drain);
    }
}

#[test]
fn a_flood_of_pings_costs_no_memory() {
    let mut run = start(Driver::Auto, (Kind::Web(false), Kind::Raw), 0, None);
    for _ in 0..200_000 {
        run.client.frame(true, 9, &[0; 125]);
    }
    run.client.frame(true, 2, b"still here");
    let began = Instant::now();
    let mut got = Vec::new();
    while !got.ends_with(b"still here") {
        assert!(began.elapsed() < PATIENCE);
        let _ = run.client.turn().unwrap();
        let mut buffer = [0; 100];
        if let Ok(n) = run.backend.socket.read(&mut buffer) {
            got.extend(&buffer[..n]);
        }
    }
    assert!(run.client.pongs > 0 && run.client.pongs < 100_000);
    assert_eq!(got, b"still here");
}
