//! Bulk: the backend sends on every flow as fast as it may, in writes of one size; the client reads.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::Serialize;

use super::contender::Running;
use super::cost::{Reading, cores, pin};
use super::wire;
use crate::run::{Series, Table};

/// One sender writes at most so much before the next has its turn.
const TURN_BYTES: usize = 256 << 10;
/// One reading takes at most so much.
const READ_BYTES: usize = 256 << 10;

/// A case.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bulk {
    /// Flows at once.
    pub flows: usize,
    /// Size of a write, bytes.
    pub write: usize,
}

/// One round of a case.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BulkRound {
    /// Delivered, GB/s.
    pub gb_per_s: f64,
    /// Proxy CPU, s/GB.
    pub proxy: f64,
    /// Whole-system CPU, s/GB.
    pub system: f64,
    /// CPU used by others, share of the machine.
    pub noise: f64,
    /// Stolen, share of the machine.
    pub steal: f64,
}

impl Bulk {
    /// Runs one round of `seconds` through a contender.
    pub fn run(self, through: &Running, listener: &TcpListener, seconds: f64) -> Result<BulkRound> {
        let ends = wire::connect(through.address, listener, self.flows)?;
        self.flood(through.pid(), ends, seconds)
    }

    /// The same with connections that stand already, both ends non-blocking. What the client gets is counted as it comes on
    /// the wire.
    pub fn flood(
        self,
        pid: Option<u32>,
        ends: Vec<(TcpStream, TcpStream)>,
        seconds: f64,
    ) -> Result<BulkRound> {
        if let Some(pid) = pid {
            pin(pid, 0..cores());
        }
        let (clients, backends): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
        let (stop, got) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sender = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || send(&backends, self.write, &stop).map(|()| backends))
        };
        let receiver = {
            let (stop, got) = (Arc::clone(&stop), Arc::clone(&got));
            thread::spawn(move || receive(&clients, &got, &stop).map(|()| clients))
        };
        thread::sleep(Duration::from_secs_f64((seconds / 4.0).min(0.5)));
        let (before, sent) = (Reading::take(pid), got.load(Relaxed));
        thread::sleep(Duration::from_secs_f64(seconds));
        let (after, bytes) = (Reading::take(pid), got.load(Relaxed) - sent);
        stop.store(true, Relaxed);
        let ends = [sender.join(), receiver.join()];
        for end in ends {
            end.map_err(|_| anyhow!("the generator panicked"))?.context("a flow broke")?;
        }
        let (cost, gb) = (before.until(&after), bytes as f64 / 1e9);
        Ok(BulkRound {
            gb_per_s: gb / cost.wall,
            proxy: cost.proxy / gb,
            system: cost.system / gb,
            noise: cost.noise,
            steal: cost.steal,
        })
    }

    /// All rounds by contender.
    pub fn table(self, series: &[Series<BulkRound>]) -> Table {
        let head = ["", "GB/s", "proxy s/GB", "system s/GB", "noise", "steal"];
        let mut table =
            Table::new(format!("bulk, {} flows, writes of {} KiB", self.flows, self.write >> 10), head);
        for s in series {
            table.row([
                s.contender.clone(),
                format!("{:.2}", s.median(|r| r.gb_per_s)),
                format!("{:.3}", s.median(|r| r.proxy)),
                format!("{:.3}", s.median(|r| r.system)),
                format!("{:.1}%", s.median(|r| r.noise) * 100.0),
                format!("{:.1}%", s.median(|r| r.steal) * 100.0),
            ]);
        }
        table
    }
}

fn watch(ends: &[TcpStream], flags: EpollFlags) -> Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (n, end) in ends.iter().enumerate() {
        epoll.add(end, EpollEvent::new(flags, n as u64))?;
    }
    Ok(epoll)
}

/// Every sender writes until its socket is full, but has no more than its share of a turn.
fn send(ends: &[TcpStream], size: usize, stop: &AtomicBool) -> Result<()> {
    let epoll = watch(ends, EpollFlags::EPOLLOUT)?;
    let mut events = vec![EpollEvent::empty(); ends.len()];
    let block = vec![0xa5; size];
    while !stop.load(Relaxed) {
        let n = epoll.wait(&mut events, EpollTimeout::from(50u8))?;
        for event in &events[..n] {
            let end = &ends[event.data() as usize];
            let mut left = TURN_BYTES;
            while left > 0 {
                match wire::put(end, &block)? {
                    0 => break,
                    sent => left = left.saturating_sub(sent),
                }
            }
        }
    }
    Ok(())
}

fn receive(ends: &[TcpStream], got: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let epoll = watch(ends, EpollFlags::EPOLLIN)?;
    let mut events = vec![EpollEvent::empty(); ends.len()];
    let mut block = vec![0; READ_BYTES];
    while !stop.load(Relaxed) {
        let n = epoll.wait(&mut events, EpollTimeout::from(50u8))?;
        for event in &events[..n] {
            let bytes = wire::get(&ends[event.data() as usize], &mut block)?;
            got.fetch_add(bytes as u64, Relaxed);
        }
    }
    Ok(())
}
