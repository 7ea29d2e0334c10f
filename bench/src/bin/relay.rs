//! A plain TCP relay on the flow engine: accept, connect, hand over. What the benchmark measures.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};
use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowLimits, Leg, Mode};

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
    /// Size of a pipe, bytes.
    #[arg(long)]
    pipe_bytes: Option<usize>,
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
    let engines = Engines::start(&config)?;
    let listener = TcpListener::bind(args.listen)?;
    println!("{}", listener.local_addr()?);
    for id in 0.. {
        let (client, _) = listener.accept()?;
        if let Err(error) = relay(&engines, id, client, args.connect) {
            eprintln!("connection {id}: {error}");
        }
    }
    Ok(())
}

fn relay(engines: &Engines, id: u64, client: TcpStream, to: SocketAddr) -> Result<()> {
    let backend = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    backend.set_nodelay(true)?;
    let flow = Flow {
        id,
        client: Leg::Raw(OwnedFd::from(client)),
        backend: Leg::Raw(OwnedFd::from(backend)),
        to_backend: Vec::new(),
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
