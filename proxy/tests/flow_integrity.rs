//! Nothing lost, nothing reordered: fifty flows at once, 1 GiB of random bytes each way, through every engine.

mod flow_rig;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use flow_rig::{PATIENCE, Rig, UNLIMITED, config, pair, total};
use mksgate::flow::{Driver, EngineStats, Engines, FlowConfig, Mode, Way};
use mksgate::session::CloseReason;

const FLOWS: u64 = 50;
const BYTES: usize = (1 << 30) / FLOWS as usize + 1;
/// What the side that closes last holds back until it has seen the end of the other.
const TAIL: usize = 64 << 10;
/// Long enough to leave bulk, where the engine sees it.
const SILENCE: Duration = Duration::from_millis(60);

/// Random bytes to cut pieces from.
struct Noise(Vec<u8>);

impl Noise {
    fn new() -> Arc<Self> {
        let mut bytes = vec![0; 5 << 20];
        aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
        Arc::new(Self(bytes))
    }

    fn piece(&self, rng: &mut Rng, len: usize) -> &[u8] {
        let from = rng.below(self.0.len() - len);
        &self.0[from..from + len]
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    /// A size from 1 B to 1 MiB, every magnitude as likely as the next.
    fn size(&mut self) -> usize {
        let magnitude = self.below(21);
        (1 << magnitude) + self.below(1 << magnitude).min((1 << 20) - (1 << magnitude))
    }
}

/// Where all writers meet halfway: until it is over they write no more than a few bytes after each silence.
#[derive(Clone)]
struct Meeting {
    arrived: Sender<()>,
    over: Arc<AtomicBool>,
}

/// Writes `BYTES` in pieces of random sizes, with a silence here and there, long enough to leave bulk, and many during the
/// meeting; the last `TAIL` only after `go`.
fn write(
    mut to: TcpStream,
    noise: Arc<Noise>,
    seed: u64,
    meeting: Meeting,
    go: Option<Receiver<()>>,
) -> JoinHandle<Digest> {
    thread::spawn(move || {
        let mut meeting = Some(meeting);
        let mut rng = Rng(seed);
        let (mut sum, mut left) = (Context::new(&SHA256), BYTES);
        let mut go = go;
        while left > 0 {
            if left <= TAIL
                && let Some(go) = go.take()
            {
                go.recv().expect("the other side ended");
            }
            let hold = if go.is_some() { left - TAIL.min(left - 1) } else { left };
            let met = meeting.take_if(|_| left <= BYTES / 2);
            if let Some(Meeting { arrived, over }) = met {
                arrived.send(()).expect("the test waits");
                while !over.load(Relaxed) {
                    thread::sleep(SILENCE);
                    let piece = noise.piece(&mut rng, 8);
                    to.write_all(piece).expect("written");
                    sum.update(piece);
                    left -= piece.len();
                }
                continue;
            }
            let len = rng.size().min(hold);
            let piece = noise.piece(&mut rng, len);
            to.write_all(piece).expect("written");
            sum.update(piece);
            left -= len;
            if rng.below(200) == 0 {
                thread::sleep(SILENCE);
            }
        }
        to.shutdown(Shutdown::Write).expect("shutdown");
        sum.finish()
    })
}

/// Reads to the end; a slow one takes small bites and rests.
fn read(
    mut from: TcpStream,
    seed: u64,
    slow: bool,
    ended: Option<Sender<()>>,
) -> JoinHandle<(usize, Digest)> {
    thread::spawn(move || {
        let mut rng = Rng(seed);
        let (mut sum, mut got) = (Context::new(&SHA256), 0);
        let mut block = vec![0; 1 << 20];
        loop {
            let room = if slow { 1 + rng.below(64 << 10) } else { block.len() };
            match from.read(&mut block[..room]).expect("read") {
                0 => break,
                n => {
                    sum.update(&block[..n]);
                    got += n;
                }
            }
            if slow && rng.below(50) == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
        if let Some(ended) = ended {
            ended.send(()).expect("the writer waits");
        }
        (got, sum.finish())
    })
}

/// Small, but room for a few of loopback's 64 KiB segments: with less, TCP waits for its probe timers.
fn small_buffers(end: &TcpStream) {
    let end = socket2::SockRef::from(end);
    end.set_recv_buffer_size(256 << 10).expect("receive buffer");
    end.set_send_buffer_size(128 << 10).expect("send buffer");
}

type Written = JoinHandle<Digest>;
type Got = JoinHandle<(usize, Digest)>;

/// Starts the four threads of a flow; even flows are closed by the client first, odd ones by the backend.
fn start(rig: &Rig, noise: &Arc<Noise>, n: u64, meeting: &Meeting) -> [(Written, Got); 2] {
    let clone = |end: &TcpStream| end.try_clone().expect("clone");
    let (ended, go) = channel();
    let (first, last) =
        if n.is_multiple_of(2) { (&rig.client, &rig.backend) } else { (&rig.backend, &rig.client) };
    let slow = n.is_multiple_of(5);
    let seed = n * 4 + 1;
    let writer = |to, seed, go| write(clone(to), Arc::clone(noise), seed, meeting.clone(), go);
    let there = (writer(first, seed, None), read(clone(last), seed + 1, slow, Some(ended)));
    let back =
        (writer(last, seed + 2, Some(go)), read(clone(first), seed + 3, slow && n.is_multiple_of(2), None));
    [there, back]
}

/// Changes of direction: to bulk, and back.
fn changes(engines: &Engines) -> (u64, u64) {
    let sum = |(to, back), stats: Arc<EngineStats>| {
        (to + stats.to_bulk.load(Relaxed), back + stats.to_interactive.load(Relaxed))
    };
    engines.stats().into_iter().fold((0, 0), sum)
}

/// Awaits all writers, then the return of every direction to small messages, then lets them go on.
fn meet(engines: &Engines, mode: Mode, arrivals: &Receiver<()>, over: &AtomicBool) {
    (0..2 * FLOWS).for_each(|_| arrivals.recv().expect("every writer comes halfway"));
    let limit = Instant::now() + 5 * PATIENCE;
    loop {
        let (bulk, back) = changes(engines);
        if bulk == back {
            assert_eq!(bulk > FLOWS, mode == Mode::Adaptive, "{bulk} to bulk, {back} back");
            return over.store(true, Relaxed);
        }
        assert!(Instant::now() < limit, "{bulk} to bulk, {back} back, though nothing large is sent");
        thread::sleep(SILENCE);
    }
}

fn run(driver: Driver, mode: Mode) {
    let noise = Noise::new();
    let engines = Engines::start(&FlowConfig { threads: 2, ..config(driver, mode) }).expect("engine");
    let (arrived, arrivals) = channel();
    let meeting = Meeting { arrived, over: Arc::default() };
    let flows: Vec<_> = (0..FLOWS)
        .map(|n| {
            let (client, backend) = (pair(), pair());
            if n % 3 == 0 {
                [&client.0, &client.1, &backend.0, &backend.1].into_iter().for_each(small_buffers);
            }
            let rig = Rig::over(&engines, UNLIMITED, Vec::new(), Vec::new(), client, backend);
            let threads = start(&rig, &noise, n, &meeting);
            (n, rig, threads)
        })
        .collect();
    let Meeting { over, .. } = meeting;
    meet(&engines, mode, &arrivals, &over);
    for (n, rig, threads) in flows {
        for (written, got) in threads {
            let sent = written.join().expect("writer");
            let (bytes, got) = got.join().expect("reader");
            assert_eq!(bytes, BYTES, "flow {n}");
            assert_eq!(got.as_ref(), sent.as_ref(), "flow {n}: other bytes, or in another order");
        }
        let end = rig.account();
        let first = if n % 2 == 0 { CloseReason::ClientClosed } else { CloseReason::BackendClosed };
        assert_eq!((end.reason, end.up, end.down), (first, BYTES as u64, BYTES as u64), "flow {n}");
    }
    let by_way = Way::ALL.map(|way| total(&engines, way));
    assert_eq!(by_way.iter().sum::<u64>(), 2 * FLOWS * BYTES as u64, "every byte is booked once");
    let (bulk, back) = changes(&engines);
    assert_eq!(bulk > FLOWS && back > FLOWS, mode == Mode::Adaptive, "{bulk} to bulk, {back} back");
    println!("{driver:?} {mode:?}: {by_way:?} by way, {bulk} to bulk, {back} back");
    let stats = engines.stats();
    engines.stop();
    for stats in stats {
        let left =
            (stats.flows.load(Relaxed), stats.pipes_in_use.load(Relaxed), stats.buffers_in_use.load(Relaxed));
        assert_eq!(left, (0, 0, 0), "flows, pipes, buffers");
    }
}

#[test]
fn io_uring_adaptive() {
    run(Driver::IoUring, Mode::Adaptive);
}

#[test]
fn io_uring_splice() {
    run(Driver::IoUring, Mode::Splice);
}

#[test]
fn io_uring_copy() {
    run(Driver::IoUring, Mode::Copy);
}

#[test]
fn epoll_adaptive() {
    run(Driver::Epoll, Mode::Adaptive);
}

#[test]
fn epoll_splice() {
    run(Driver::Epoll, Mode::Splice);
}

#[test]
fn epoll_copy() {
    run(Driver::Epoll, Mode::Copy);
}
