//! What the attacker of one tenant does: SYNs, spoofed and not, TLS handshakes that go no further, and consoles past the limit.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustls::{ClientConfig, ClientConnection};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::site::{Gate, LIMIT, Land, NOBODY, Site};
use crate::load::cost::{cores, pin_self};
use crate::load::flood::{Flood, Plan};
use crate::load::visitor::{self, Console, Way};

/// SYNs a second of each of the two SYN floods.
pub const SYNS: u64 = 10_000;
/// Handshakes a second that are begun.
const HANDSHAKES: u64 = 1_000;
/// The first of the sources that are nobody's, all behind the appliance's router (RFC 2544: 198.18.0.0/15), and their number.
const SPOOFED: (Ipv4Addr, u32) = (Ipv4Addr::new(198, 18, 0, 1), 20_000);
/// Four consoles are tried at once, each so often.
const EVERY: Duration = Duration::from_millis(40);
/// How long one may take before the next is tried.
const TRY: Duration = Duration::from_millis(100);
/// The same before the flood, and how long it may take until the tenant has all that it may have.
const TRY_FIRST: Duration = Duration::from_millis(500);
const FILL: Duration = Duration::from_secs(20);

/// What was sent, and what it came to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Force {
    /// SYNs sent.
    pub syns: u64,
    /// TLS handshakes that got an answer.
    pub handshakes: u64,
    /// Consoles tried while the tenant was full.
    pub tried: u64,
    /// Most consoles that the attacker's tenant had at one time.
    pub most: usize,
}

impl Force {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            syns: self.syns + other.syns,
            handshakes: self.handshakes + other.handshakes,
            tried: self.tried + other.tried,
            most: self.most.max(other.most),
        }
    }
}

/// Both SYN floods, sent from this core, once they are under way; `target` is the appliance, or nobody.
pub fn syns(land: &Land, gate: Gate, target: Ipv4Addr, core: usize) -> Result<Vec<Flood>> {
    let start = |(source, sources): (Ipv4Addr, u32)| {
        let destination = SocketAddr::from((target, 902));
        let plan = Plan { source: source.into(), sources, destination, per_second: SYNS, count: 0 };
        land.world.run(|| {
            if cores() > 1 {
                pin_self([core]);
            }
            Flood::start(plan)
        })
    };
    let floods = [start(SPOOFED)?, start((gate.attacker(1), 1))?];
    while floods.iter().any(|flood| flood.sent() < SYNS / 20) {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(floods.into())
}

/// Measures while the site, or nobody in its place, is attacked with everything.
pub fn during<T>(
    land: &Land,
    site: &Site,
    elsewhere: bool,
    measure: impl FnOnce() -> Result<T>,
) -> Result<(T, Force)> {
    let target = if elsewhere { NOBODY } else { site.gate.host() };
    let tenant = Tenant {
        way: Way { address: (target, 902).into(), ..site.attackers.clone() },
        source: site.gate.attacker(2),
        tried: AtomicU64::new(0),
        open: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = match elsewhere {
        true => Vec::new(),
        false => land.world.run(|| runtime.block_on(tenant.fill(&site.client)))?,
    };
    let (stop, handshakes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (measured, syns) = thread::scope(|scope| {
        // From the appliance's core: over a veth, whoever sends does the receiver's interrupt work, and a network card's
        // interrupts are on the appliance's cores, too.
        let floods = syns(land, site.gate, target, 0)?;
        let (stop, handshakes, tenant) = (Ends(&stop), &handshakes, &tenant);
        let flag = stop.0;
        let from = site.gate.attacker(1);
        scope.spawn(move || {
            land.world.run(|| begin_handshakes((from, target), &site.client, flag, handshakes));
        });
        scope.spawn(move || land.world.run(|| tenant.try_on(&site.client, flag)));
        let measured = measure();
        drop(stop);
        let syns = floods.into_iter().map(Flood::stop).sum::<std::io::Result<u64>>()?;
        anyhow::Ok((measured?, syns))
    })?;
    drop(held);
    let force = Force {
        syns,
        handshakes: handshakes.into_inner(),
        tried: tenant.tried.into_inner(),
        most: tenant.most.into_inner(),
    };
    Ok((measured, force))
}

/// Tells everybody to stop when it is dropped, after an error too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The attacker's consoles, counted where they are: a console counts from its `200 Connect` until just before it is closed.
struct Tenant {
    way: Way,
    source: Ipv4Addr,
    tried: AtomicU64,
    open: AtomicUsize,
    most: AtomicUsize,
}

impl Tenant {
    async fn open(&self, client: &Arc<ClientConfig>, within: Duration) -> Option<Console> {
        let open = visitor::open_from(self.source, &self.way, client.clone());
        let (console, _) = tokio::time::timeout(within, open).await.ok()?.ok()?;
        self.most.fetch_max(self.open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Some(console)
    }

    /// Opens what the tenant may have.
    async fn fill(&self, client: &Arc<ClientConfig>) -> Result<Vec<Console>> {
        let (mut held, end) = (Vec::new(), Instant::now() + FILL);
        while held.len() < LIMIT {
            if Instant::now() > end {
                bail!("the attacker's tenant has {} of {LIMIT} consoles after {FILL:?}", held.len());
            }
            held.extend(self.open(client, TRY_FIRST).await);
        }
        Ok(held)
    }

    /// Tries to have more, and lets go of whatever it gets.
    fn try_on(&self, client: &Arc<ClientConfig>, stop: &AtomicBool) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let one = || async {
            let mut every = tokio::time::interval(EVERY);
            while !stop.load(Ordering::Relaxed) {
                every.tick().await;
                self.tried.fetch_add(1, Ordering::Relaxed);
                if let Some(console) = self.open(client, TRY).await {
                    self.open.fetch_sub(1, Ordering::SeqCst);
                    drop(console);
                }
            }
        };
        runtime.block_on(async { tokio::join!(one(), one(), one(), one()) });
        Ok(())
    }
}

/// Says ClientHello, reads what the server's key exchange cost it, and goes.
fn begin_handshakes(
    way: (Ipv4Addr, Ipv4Addr),
    config: &Arc<ClientConfig>,
    stop: &AtomicBool,
    begun: &AtomicU64,
) {
    let start = Instant::now();
    let mut attempts = 0;
    while !stop.load(Ordering::Relaxed) {
        attempts += 1;
        if begin_handshake(way, config).is_ok() {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        let due = Duration::from_nanos(attempts * 1_000_000_000 / HANDSHAKES);
        if let Some(early) = due.checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
    }
}

fn begin_handshake((from, to): (Ipv4Addr, Ipv4Addr), config: &Arc<ClientConfig>) -> Result<()> {
    let brief = Duration::from_millis(20);
    let mut socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&SocketAddr::from((to, 443)).into(), brief)?;
    socket.set_read_timeout(Some(brief))?;
    socket.set_linger(Some(Duration::ZERO))?;
    let mut hello = Vec::new();
    ClientConnection::new(config.clone(), "console.example".try_into()?)?.write_tls(&mut hello)?;
    socket.write_all(&hello)?;
    socket.read_exact(&mut [0; 5]).context("no answer")
}
