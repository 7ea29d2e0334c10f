//! Full handshakes, one console after the other on a few threads: TCP, TLS 1.3 without resumption, and the way to the backend.
//!
//! Through one who only ends TLS a console is there when the server's first line arrives. Through the appliance the same case
//! ends there too, after the ticket, the limits and the WebSocket; a whole console is there when ServerInit arrives, after RFB's
//! handshake on both sides.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustls::ClientConfig;
use serde::Serialize;

use super::cost::{Reading, cores, pin, pin_self};
use super::sealed::Sealed;

/// Consoles on their way at once.
const AT_ONCE: usize = 4;
/// Threads of the backend: one more for those whose end is still awaited.
const SERVING: usize = 2 * AT_ONCE;
const VERSION: &[u8; 12] = b"RFB 003.008\n";

/// A VNC server without a password and without a picture.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    hold: Arc<AtomicBool>,
    held: Arc<Mutex<Vec<TcpStream>>>,
    accepted: Arc<AtomicU64>,
}

impl Server {
    /// Starts it on a few threads, which end with this process.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let (hold, held) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let accepted = Arc::new(AtomicU64::new(0));
        for _ in 0..SERVING {
            let (listener, hold, held) = (listener.try_clone()?, Arc::clone(&hold), Arc::clone(&held));
            let accepted = Arc::clone(&accepted);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    accepted.fetch_add(1, Relaxed);
                    // A client that goes in the middle is no trouble of the server's.
                    let Ok(mut stream) = serve(stream) else { continue };
                    if hold.load(Relaxed) {
                        held.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
                    } else {
                        let _ = stream.read(&mut [0]);
                    }
                }
            });
        }
        Ok(Self { address, hold, held, accepted })
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Whether connections are kept when their handshake is done; those that were kept are closed.
    pub fn keep(&self, keep: bool) {
        self.hold.store(keep, Relaxed);
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// RFC 6143, 7.1 to 7.3.2.
fn serve(mut stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(VERSION)?;
    stream.read_exact(&mut [0; 12])?;
    stream.write_all(&[1, 1])?;
    stream.read_exact(&mut [0])?;
    stream.write_all(&[0; 4])?;
    stream.read_exact(&mut [0])?;
    stream.write_all(&[0; 24])?;
    Ok(stream)
}

/// Opens a console through one who only ends TLS.
pub fn plain(to: SocketAddr, config: &Arc<ClientConfig>) -> Result<Sealed> {
    let mut client = Sealed::connect(to, config)?;
    let mut version = [0; 12];
    client.receive(&mut version)?;
    ensure!(&version == VERSION, "not the server's first line");
    Ok(client)
}

/// Opens a console through one who only ends TLS, up to ServerInit: the viewer and the server play RFB's handshake themselves.
pub fn through(to: SocketAddr, config: &Arc<ClientConfig>) -> Result<Sealed> {
    view(Sealed::connect(to, config)?)
}

/// Opens a console through the appliance as far as [`plain`] goes: TLS, ticket, limits, connect, the first line.
pub fn first_line(to: SocketAddr, ticket: &str, config: &Arc<ClientConfig>) -> Result<Sealed> {
    let mut client = Sealed::connect(to, config)?;
    client.upgrade(&format!("/ticket/{ticket}"))?;
    let mut version = [0; 12];
    client.receive(&mut version)?;
    ensure!(&version == VERSION, "not RFB's first line");
    Ok(client)
}

/// Opens a whole console through the appliance, up to ServerInit.
pub fn console(to: SocketAddr, ticket: &str, config: &Arc<ClientConfig>) -> Result<Sealed> {
    let mut client = Sealed::connect(to, config)?;
    client.upgrade(&format!("/ticket/{ticket}"))?;
    view(client)
}

/// A viewer's part, up to ServerInit.
fn view(mut client: Sealed) -> Result<Sealed> {
    let (mut version, mut types, mut result, mut init) = ([0; 12], [0; 2], [0; 4], [0; 24]);
    client.receive(&mut version)?;
    client.send(VERSION)?;
    client.receive(&mut types)?;
    ensure!(types == [1, 1], "no security type None");
    client.send(&[1])?;
    client.receive(&mut result)?;
    client.send(&[1])?;
    client.receive(&mut init)?;
    Ok(client)
}

/// One round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct HandshakeRound {
    /// Consoles that were opened and closed.
    pub consoles: u64,
    /// Per second.
    pub per_s: f64,
    /// Proxy CPU, µs per console.
    pub proxy: f64,
    /// Whole-system CPU, µs per console.
    pub system: f64,
    /// CPU used by others, share of the machine.
    pub noise: f64,
    /// Stolen, share of the machine.
    pub steal: f64,
}

/// Opens and closes consoles for `seconds`; the proxy has a core to itself where there are two.
pub fn run(pid: u32, seconds: f64, open: impl Fn() -> Result<Sealed> + Sync) -> Result<HandshakeRound> {
    if cores() > 1 {
        pin(pid, [0]);
        pin_self(1..cores());
    }
    let result = measure(pid, seconds, &open);
    pin_self(0..cores());
    result
}

fn measure(pid: u32, seconds: f64, open: &(impl Fn() -> Result<Sealed> + Sync)) -> Result<HandshakeRound> {
    // One first, so that everything that is done once is done.
    drop(open().context("the first console")?);
    let done = AtomicU64::new(0);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let before = Reading::take(Some(pid));
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while Instant::now() < end {
                drop(open()?);
                done.fetch_add(1, Relaxed);
            }
            Ok(())
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow!("the generator panicked"))?)
    })?;
    // What the proxy does when a console ends belongs to it.
    thread::sleep(Duration::from_millis(50));
    let cost = before.until(&Reading::take(Some(pid)));
    let consoles = done.load(Relaxed);
    Ok(HandshakeRound {
        consoles,
        per_s: consoles as f64 / cost.wall,
        proxy: cost.proxy / consoles as f64 * 1e6,
        system: cost.system / consoles as f64 * 1e6,
        noise: cost.noise,
        steal: cost.steal,
    })
}
