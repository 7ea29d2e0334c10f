//! A gate as `mksgate connect` sees one: both doors, TLS no. 1 and 2, a VM that echoes, and every way to disappoint. Also an
//! HTTP proxy. One thread per connection; all end with their peers.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use mksgate::protocol::authd::{Action, BANNER, Server};
use mksgate::tls::Thumbprint;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

pub const TICKET: &str = "e30.sealed-and-secret.x";
pub const VM: &str = "vm-61";
/// 640 × 480, 32 bits, named "echo".
pub const SERVER_INIT: &[u8] =
    b"\x02\x80\x01\xe0\x20\x18\0\x01\0\xff\0\xff\0\xff\x10\x08\0\0\0\0\0\0\0\x04echo";

/// What one connection gets; a console that echoes once the list is used up.
#[derive(Clone, Debug)]
pub enum Turn {
    /// A console that echoes.
    Echo,
    /// A console whose connection breaks after ServerInit.
    Break,
    /// This line in answer to PASS.
    Login(&'static str),
    /// This line in answer to CONNECT.
    Connect(&'static str),
    /// TLS no. 2 with another certificate than the announced one.
    OtherConsole,
    /// The connection closes at once.
    Close,
    /// This in place of a banner, or of a 101.
    Greeting(&'static str),
}

pub struct Gate {
    pub address: SocketAddr,
    pub thumbprint: Thumbprint,
    /// Every line that came inside TLS no. 1.
    pub heard: Arc<Mutex<Vec<String>>>,
}

struct Certificate {
    config: Arc<ServerConfig>,
    der: Vec<u8>,
}

struct Scene {
    mks: bool,
    front: Certificate,
    vm: Certificate,
    other: Certificate,
    turns: Mutex<VecDeque<Turn>>,
    heard: Arc<Mutex<Vec<String>>>,
}

/// Starts a gate with one door.
pub fn gate(mks: bool, turns: &[Turn]) -> Gate {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let scene = Arc::new(Scene {
        mks,
        front: certificate(),
        vm: certificate(),
        other: certificate(),
        turns: Mutex::new(turns.iter().cloned().collect()),
        heard: heard.clone(),
    });
    let (address, thumbprint) = (listener.local_addr().unwrap(), Thumbprint::sha256(&scene.front.der));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let scene = scene.clone();
            // An error is the client's leaving, which is what some tests want.
            thread::spawn(move || scene.serve(stream.unwrap()));
        }
    });
    Gate { address, thumbprint, heard }
}

fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let der = made.cert.der().clone();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key)
        .unwrap();
    Certificate { config: Arc::new(config), der: der.to_vec() }
}

impl Scene {
    fn serve(&self, mut tcp: TcpStream) -> io::Result<()> {
        let turn = self.turns.lock().unwrap().pop_front().unwrap_or(Turn::Echo);
        if let Turn::Close = turn {
            return Ok(());
        }
        if !self.mks {
            let banner = if let Turn::Greeting(greeting) = turn { greeting } else { BANNER };
            tcp.write_all(banner.as_bytes())?;
        }
        let mut tls = ServerConnection::new(self.front.config.clone()).unwrap();
        let nonce = self.dialogue(&mut Stream::new(&mut tls, &mut tcp), &turn)?;
        let vm = if let Turn::OtherConsole = turn { &self.other } else { &self.vm };
        let mut tls = ServerConnection::new(vm.config.clone()).unwrap();
        let mut console = Stream::new(&mut tls, &mut tcp);
        let mut got = vec![0; nonce.len()];
        console.read_exact(&mut got)?;
        assert_eq!(got, nonce.as_bytes());
        console.write_all(SERVER_INIT)?;
        if let Turn::Break = turn {
            return tcp.shutdown(Shutdown::Both);
        }
        let mut piece = vec![0; 16 * 1024];
        loop {
            match console.read(&mut piece)? {
                0 => return Ok(()),
                n => console.write_all(&piece[..n])?,
            }
        }
    }

    /// Everything inside TLS no. 1. Gives the nonce.
    fn dialogue(&self, tls: &mut Stream<'_, ServerConnection, TcpStream>, turn: &Turn) -> io::Result<String> {
        if self.mks {
            let mut head = Vec::new();
            while head.last() != Some(&String::new()) {
                head.push(line(tls)?);
            }
            assert!(head[0] == "GET /mks HTTP/1.1" && head.iter().any(|l| l == "Upgrade: mks"), "{head:?}");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: mks\r\n\r\n";
            let greeting = if let Turn::Greeting(greeting) = turn { greeting } else { answer };
            tls.write_all(greeting.as_bytes())?;
            if greeting != answer {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
        }
        let (mut server, mut nonce) = (Server::new(), String::new());
        loop {
            let line = line(tls)?;
            self.heard.lock().unwrap().push(line.clone());
            let answer = match (server.line(&line), turn) {
                (Action::Login { .. }, Turn::Login(refusal)) => format!("{refusal}\r\n"),
                (Action::Login { ticket }, _) => {
                    assert_eq!(ticket, TICKET);
                    server.logged_in()
                }
                (Action::Thumbprint { nonce: own, sha256 }, _) => {
                    let print = if sha256 { Thumbprint::sha256 } else { Thumbprint::sha1 };
                    nonce = own;
                    server.thumbprint(&print(&self.vm.der).to_string())
                }
                (Action::Connect { .. }, Turn::Connect(refusal)) => format!("{refusal}\r\n"),
                (Action::Connect { path }, _) => {
                    tls.write_all(server.connected(&path).as_bytes())?;
                    return Ok(nonce);
                }
                (Action::Reply(reply) | Action::Goodbye(reply), _) => reply,
            };
            tls.write_all(answer.as_bytes())?;
        }
    }
}

fn line(from: &mut impl Read) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\r\n") {
        from.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8(line).unwrap())
}

/// An HTTP proxy that wants `user:pa ss`. Gives its address and the targets it was asked for.
pub fn http_proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let targets = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let targets = targets.clone();
            thread::spawn(move || tunnel(stream.unwrap(), &targets));
        }
    });
    (address, asked)
}

fn tunnel(mut client: TcpStream, targets: &Mutex<Vec<String>>) -> io::Result<()> {
    // The client waits for the answer, so that nothing is read past the head.
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut line) = (Vec::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        head.push(std::mem::take(&mut line).trim_end().to_owned());
    }
    if !head.iter().any(|line| line == "Proxy-Authorization: Basic dXNlcjpwYSBzcw==") {
        return client.write_all(b"HTTP/1.1 407 Who are you\r\n\r\n");
    }
    let target = head[0].split(' ').nth(1).unwrap().to_owned();
    targets.lock().unwrap().push(target.clone());
    let server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 Go ahead\r\nX: y\r\n\r\n")?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    io::copy(&mut client, &mut &server)?;
    server.shutdown(Shutdown::Both)
}
