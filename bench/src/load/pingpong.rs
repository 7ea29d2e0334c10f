//! Ping-pong: every flow has one 32-byte message on its way, there and back.
//!
//! One thread is all clients and all backends: it runs on a core that the proxy does not.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::Serialize;

use super::contender::Running;
use super::cost::{Reading, cores, pin, pin_self};
use super::wire;
use crate::run::{Series, Table};

const MESSAGE: [u8; 32] = [0x5a; 32];

/// A case.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PingPong {
    /// Flows at once.
    pub flows: usize,
}

/// One round of a case.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PingPongRound {
    /// Round trips per second.
    pub per_s: f64,
    /// Proxy CPU, µs per round trip.
    pub proxy: f64,
    /// Whole-system CPU, µs per round trip.
    pub system: f64,
    /// Median round trip, µs.
    pub p50: f64,
    /// 99th percentile, µs.
    pub p99: f64,
    /// CPU used by others, share of the machine.
    pub noise: f64,
    /// Stolen, share of the machine.
    pub steal: f64,
}

impl PingPong {
    /// Runs one round of `seconds` through a contender.
    pub fn run(self, through: &Running, listener: &TcpListener, seconds: f64) -> Result<PingPongRound> {
        let ends = wire::connect(through.address, listener, self.flows)?;
        Self::play(through.pid(), ends, seconds)
    }

    /// The same with connections that stand already.
    pub fn play<C: End>(pid: Option<u32>, ends: Vec<(C, TcpStream)>, seconds: f64) -> Result<PingPongRound> {
        if let (Some(pid), 2..) = (pid, cores()) {
            pin(pid, [0]);
            pin_self(1..cores());
        }
        let round = Pairs::new(ends).and_then(|mut pairs| {
            pairs.play(Duration::from_secs_f64((seconds / 4.0).min(0.5)), None)?;
            let mut times = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
            let before = Reading::take(pid);
            let trips = pairs.play(Duration::from_secs_f64(seconds), Some(&mut times))? as f64;
            let cost = before.until(&Reading::take(pid));
            let quantile = |q| times.value_at_quantile(q) as f64 / 1e3;
            Ok(PingPongRound {
                per_s: trips / cost.wall,
                proxy: cost.proxy / trips * 1e6,
                system: cost.system / trips * 1e6,
                p50: quantile(0.5),
                p99: quantile(0.99),
                noise: cost.noise,
                steal: cost.steal,
            })
        });
        pin_self(0..cores());
        round
    }

    /// All rounds by contender.
    pub fn table(self, series: &[Series<PingPongRound>]) -> Table {
        let head = ["", "k/s", "proxy µs", "system µs", "p50 µs", "p99 µs", "noise", "steal"];
        let mut table = Table::new(format!("ping-pong, {} flows, 32 bytes", self.flows), head);
        for s in series {
            table.row([
                s.contender.clone(),
                format!("{:.1}", s.median(|r| r.per_s) / 1e3),
                format!("{:.2}", s.median(|r| r.proxy)),
                format!("{:.2}", s.median(|r| r.system)),
                format!("{:.1}", s.median(|r| r.p50)),
                format!("{:.1}", s.median(|r| r.p99)),
                format!("{:.1}%", s.median(|r| r.noise) * 100.0),
                format!("{:.1}%", s.median(|r| r.steal) * 100.0),
            ]);
        }
        table
    }
}

/// A client's end of a flow, non-blocking.
pub trait End: AsFd {
    /// Sends a message, which always fits.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Receives what is there; 0: nothing. The end of the stream is an error.
    fn get(&mut self, into: &mut [u8]) -> io::Result<usize>;
}

impl End for TcpStream {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        wire::put(self, bytes).map(drop)
    }

    fn get(&mut self, into: &mut [u8]) -> io::Result<usize> {
        wire::get(self, into)
    }
}

struct Pairs<C> {
    ends: Vec<(C, TcpStream)>,
    sent: Vec<Instant>,
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl<C: End> Pairs<C> {
    /// Watches all ends and serves on every flow.
    fn new(mut ends: Vec<(C, TcpStream)>) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (n, (client, backend)) in ends.iter_mut().enumerate() {
            epoll.add(&*client, EpollEvent::new(EpollFlags::EPOLLIN, n as u64 * 2))?;
            epoll.add(&*backend, EpollEvent::new(EpollFlags::EPOLLIN, n as u64 * 2 + 1))?;
            client.put(&MESSAGE)?;
        }
        let events = vec![EpollEvent::empty(); 256];
        Ok(Self { sent: vec![Instant::now(); ends.len()], ends, epoll, events })
    }

    /// Plays for `time`; returns the round trips.
    fn play(&mut self, time: Duration, mut times: Option<&mut Histogram<u64>>) -> Result<u64> {
        let (end, mut trips) = (Instant::now() + time, 0);
        let mut message = [0; 32];
        loop {
            let n = self.epoll.wait(&mut self.events, EpollTimeout::from(50u8))?;
            let now = Instant::now();
            if now >= end {
                return Ok(trips);
            }
            for event in &self.events[..n] {
                let (flow, back) = (event.data() as usize / 2, event.data() % 2 == 0);
                let (client, backend) = &mut self.ends[flow];
                // 32 bytes are never split on loopback; if they were, the next turn would count them.
                let got = if back { client.get(&mut message) } else { backend.get(&mut message) };
                if got.context("a flow broke")? < message.len() {
                    continue;
                }
                if back {
                    trips += 1;
                    if let Some(times) = &mut times {
                        times.saturating_record(self.sent[flow].elapsed().as_nanos() as u64);
                    }
                    self.sent[flow] = Instant::now();
                }
                let (client, backend) = &mut self.ends[flow];
                if back { client.put(&MESSAGE)? } else { backend.put(&MESSAGE)? }
            }
        }
    }
}
