//! A relay on the flow engine: accept, TLS and WebSocket where asked for, connect, hand over. What the benchmark measures.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Parser, ValueEnum};
use mksgate::flow::study::{self, Way};
use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowLimits, Leg, Mode, WebSocket};
use mksgate::protocol::http::Head;
use mksgate::protocol::websocket::{Decoder, Peer, negotiate};
use mksgate::tls::{Policy, Presented, Session, TlsStream, certificate, server_config};
use mksgate::wire::{Runtime, Wire};
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use socket2::{Domain, Socket, Type};

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, ValueEnum)]
enum DriverName {
    Auto,
    IoUring,
    Epoll,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeName {
    Adaptive,
    Splice,
    Copy,
}

/// Relays TCP connections through the flow engine; prints the address it listens on.
#[derive(Parser)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where to connect to.
    #[arg(long)]
    connect: SocketAddr,
    /// Who waits for the sockets.
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverName,
    /// How bytes are moved.
    #[arg(long, value_enum, default_value = "adaptive")]
    mode: ModeName,
    /// Engine threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Not the engine, but a bare way of moving bytes: op-splice, ring-splice, epoll-splice, ring-send, ring-send-zc, epoll-copy.
    #[arg(long, value_parser = way, conflicts_with_all = ["driver", "mode", "threads", "pipe_bytes"])]
    way: Option<Way>,
    /// Size of a pipe, bytes.
    #[arg(long)]
    pipe_bytes: Option<usize>,
    /// End TLS here, with this certificate.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long)]
    key: Option<PathBuf>,
    /// Clients speak WebSocket.
    #[arg(long, requires = "certificate")]
    websocket: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let defaults = FlowConfig::default();
    let config = FlowConfig {
        driver: match args.driver {
            DriverName::Auto => Driver::Auto,
            DriverName::IoUring => Driver::IoUring,
            DriverName::Epoll => Driver::Epoll,
        },
        mode: match args.mode {
            ModeName::Adaptive => Mode::Adaptive,
            ModeName::Splice => Mode::Splice,
            ModeName::Copy => Mode::Copy,
        },
        threads: args.threads,
        pipe_bytes: args.pipe_bytes.unwrap_or(defaults.pipe_bytes),
        ..defaults
    };
    let tls = match (&args.certificate, &args.key) {
        (Some(certificate), Some(key)) => {
            let provider = Policy::Modern.provider();
            let certified = certificate::load(certificate, key, &provider)?;
            Some(Arc::new(server_config(Policy::Modern, Presented::new(certified), None)?))
        }
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = listen(args.listen)?;
    println!("{}", listener.local_addr()?);
    if let Some(way) = args.way {
        return Ok(study::relay(way, &listener, args.connect)?);
    }
    let engines = Engines::start(&config)?;
    for id in 0.. {
        let (client, _) = listener.accept()?;
        client.set_nodelay(true)?;
        let leg = match &tls {
            None => Ok((Leg::Raw(OwnedFd::from(client)), Vec::new())),
            Some(tls) => {
                let shaking = shake_hands(client, tls, args.websocket);
                runtime.block_on(async { tokio::time::timeout(PATIENCE, shaking).await? })
            }
        };
        if let Err(error) = leg.and_then(|leg| relay(&engines, id, leg, args.connect)) {
            eprintln!("connection {id}: {error:#}");
        }
    }
    Ok(())
}

fn way(name: &str) -> Result<Way, String> {
    let named = Way::ALL.into_iter().find(|way| way.as_str() == name);
    named.ok_or_else(|| format!("one of {}", Way::ALL.map(Way::as_str).join(", ")))
}

/// With room for as many as connect at once.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// TLS, and the upgrade to a WebSocket; returns what was received behind it.
async fn shake_hands(client: TcpStream, tls: &Arc<ServerConfig>, websocket: bool) -> Result<(Leg, Vec<u8>)> {
    let wire = Wire::new(client.into(), Runtime::Tokio)?;
    let connection = UnbufferedServerConnection::new(Arc::clone(tls))?;
    let mut stream = TlsStream::handshake(wire, connection, Vec::new()).await?;
    let mut rest = Vec::new();
    if websocket {
        let (response, subprotocol) = loop {
            let more = stream.read().await?;
            ensure!(!more.is_empty(), "closed before a request");
            rest.extend(more);
            if let Some((head, len)) = Head::parse(&rest).map_err(|error| anyhow!("{error}"))? {
                rest.drain(..len);
                break negotiate(&head).context("no WebSocket")?;
            }
        };
        stream.write_all(response.as_bytes()).await?;
        ensure!(!subprotocol.is_text(), "text frames");
    }
    let (wire, connection, received, plain) = stream.into_parts();
    let (socket, session) = (wire.into_fd()?, Session::server(connection, received)?);
    rest.extend(plain);
    if !websocket {
        return Ok((Leg::Tls(socket, session), rest));
    }
    let decoder = Decoder::new(Peer::Client, false);
    let web = WebSocket::new(Peer::Client, decoder, false, rest, None);
    Ok((Leg::WebSocket(socket, session, Box::new(web)), Vec::new()))
}

fn relay(engines: &Engines, id: u64, (client, to_backend): (Leg, Vec<u8>), to: SocketAddr) -> Result<()> {
    let backend = TcpStream::connect(to)?;
    backend.set_nodelay(true)?;
    let flow = Flow {
        id,
        client,
        backend: Leg::Raw(OwnedFd::from(backend)),
        to_backend,
        to_client: Vec::new(),
        limits: FlowLimits {
            idle: Some(Duration::from_secs(3600)),
            ends_at: None,
            half_close: Duration::from_secs(60),
        },
        counters: Arc::default(),
        progress: Default::default(),
        on_first_byte: None,
        on_close: Box::new(|_| {}),
    };
    engines.submit(flow).map_err(|_| anyhow!("the engine's queue is full"))
}
