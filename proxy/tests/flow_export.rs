//! Raw flows move from one engine to another while they run: nothing lost, nothing closed, every account goes on.

mod flow_rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use flow_rig::{PATIENCE, Rig, UNLIMITED, config, everywhere};
use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowLimits, Half, Mode};
use mksgate::session::CloseReason;

const FLOWS: usize = 100;
const MOVES: u32 = 5;
/// Bytes that all flows together deliver between two moves.
const BETWEEN: u64 = 32 << 20;

/// What one direction of a flow carries until the last move.
#[derive(Clone, Copy)]
enum Load {
    /// As much as it takes.
    Bulk,
    /// Messages with rests.
    Messages,
    /// Bulk until this move, then FIN.
    BulkUntil(u32),
    /// Nothing but a last word.
    Silent,
}

fn load(flow: usize, up: bool) -> Load {
    match (flow % 10, up) {
        (0, _) => Load::Silent,
        (1..=3, true) => Load::Messages,
        (4, true) | (5, false) => Load::BulkUntil(2),
        _ => Load::Bulk,
    }
}

/// Writes until `moves` says that the last move was made; returns how much, and its hash.
fn write(mut to: TcpStream, seed: usize, load: Load, moves: Arc<AtomicU32>) -> JoinHandle<(u64, Digest)> {
    thread::spawn(move || {
        let block: Vec<u8> = (0..256u32 << 10).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut sum, mut sent) = (Context::new(&SHA256), 0);
        let until = if let Load::BulkUntil(at) = load { at } else { MOVES };
        for n in seed.. {
            if moves.load(Relaxed) >= until {
                break;
            }
            let len = match load {
                Load::Silent => 0,
                Load::Messages => 1 + n % 200,
                Load::Bulk | Load::BulkUntil(_) => 1 + n * 7919 % (64 << 10),
            };
            let piece = &block[n % 997..][..len];
            to.write_all(piece).expect("written");
            sum.update(piece);
            sent += len as u64;
            if len < 1024 {
                thread::sleep(Duration::from_millis(3));
            }
        }
        to.write_all(b"the last word").expect("written");
        sum.update(b"the last word");
        to.shutdown(Shutdown::Write).expect("shutdown");
        (sent + 13, sum.finish())
    })
}

fn read(mut from: TcpStream, ended: Arc<AtomicU32>) -> JoinHandle<(u64, Digest)> {
    thread::spawn(move || {
        let (mut sum, mut got) = (Context::new(&SHA256), 0);
        let mut block = vec![0; 256 << 10];
        loop {
            match from.read(&mut block).expect("read") {
                0 => {
                    ended.fetch_add(1, Relaxed);
                    return (got, sum.finish());
                }
                n => {
                    sum.update(&block[..n]);
                    got += n as u64;
                }
            }
        }
    })
}

/// Takes all flows out of one engine and gives them to the other.
fn move_all(from: &Engines, to: &Engines) -> Vec<u64> {
    let flows: Vec<Flow> = from.export().collect();
    let mut ids: Vec<u64> = flows.iter().map(|flow| flow.id).collect();
    for flow in flows {
        assert!(to.submit(flow).is_ok(), "the other engine takes it");
    }
    ids.sort_unstable();
    ids
}

fn hundred_flows(first: Driver, second: Driver) {
    let start = |driver| {
        Engines::start(&FlowConfig { threads: 2, ..config(driver, Mode::Adaptive) }).expect("engine")
    };
    let engines = [start(first), start(second)];
    let (moves, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let rigs: Vec<Rig> = (0..FLOWS).map(|_| Rig::new(&engines[0], UNLIMITED)).collect();
    let threads: Vec<_> = rigs
        .iter()
        .enumerate()
        .map(|(n, rig)| {
            let clone = |end: &TcpStream| end.try_clone().expect("clone");
            let writer = |end, up| write(clone(end), n, load(n, up), Arc::clone(&moves));
            let up = (writer(&rig.client, true), read(clone(&rig.backend), Arc::clone(&ended)));
            let down = (writer(&rig.backend, false), read(clone(&rig.client), Arc::clone(&ended)));
            [up, down]
        })
        .collect();
    let delivered = || -> u64 {
        rigs.iter().map(|rig| rig.counters.up.load(Relaxed) + rig.counters.down.load(Relaxed)).sum()
    };
    let everyone: Vec<u64> = rigs.iter().map(|rig| rig.id).collect();
    for n in 0..MOVES {
        let (mark, limit) = (delivered() + BETWEEN, Instant::now() + PATIENCE);
        // Those that end early have done so when the fourth move comes.
        let ends = if n < 3 { 0 } else { FLOWS as u32 / 5 };
        while delivered() < mark || ended.load(Relaxed) < ends {
            assert!(Instant::now() < limit, "move {n}: the flows stand still");
            thread::sleep(Duration::from_millis(5));
        }
        let (from, to) = (n as usize % 2, (n as usize + 1) % 2);
        assert_eq!(move_all(&engines[from], &engines[to]), everyone, "move {n}");
        moves.store(n + 1, Relaxed);
    }
    for (n, (rig, threads)) in rigs.iter().zip(threads).enumerate() {
        let [up, down] = threads.map(|(written, got)| {
            let (sent, wanted) = written.join().expect("writer");
            let (bytes, hash) = got.join().expect("reader");
            assert_eq!((bytes, hash.as_ref()), (sent, wanted.as_ref()), "flow {n}");
            sent
        });
        let end = rig.account();
        let closed = [CloseReason::ClientClosed, CloseReason::BackendClosed];
        assert!(closed.contains(&end.reason), "flow {n}: {:?}", end.reason);
        match n % 10 {
            4 => {
                assert_eq!(end.reason, CloseReason::ClientClosed, "it ended first, before the last two moves")
            }
            5 => assert_eq!(
                end.reason,
                CloseReason::BackendClosed,
                "it ended first, before the last two moves"
            ),
            _ => {}
        }
        assert_eq!((end.up, end.down), (up, down), "flow {n}: the account goes on");
    }
    for (engines, exports) in engines.into_iter().zip([3, 2]) {
        let stats = engines.stats();
        engines.stop();
        let sum = |of: fn(&mksgate::flow::EngineStats) -> u64| stats.iter().map(|s| of(s)).sum::<u64>();
        assert_eq!(sum(|s| s.exported.load(Relaxed)), exports * FLOWS as u64);
        assert_eq!(sum(|s| s.flows.load(Relaxed)), 0);
        assert_eq!(sum(|s| s.pipes_in_use.load(Relaxed) + s.buffers_in_use.load(Relaxed)), 0);
    }
}

#[test]
fn heavy_five_moves_between_rings() {
    hundred_flows(Driver::IoUring, Driver::IoUring);
}

#[test]
fn heavy_five_moves_between_epolls() {
    hundred_flows(Driver::Epoll, Driver::Epoll);
}

#[test]
fn heavy_five_moves_between_ring_and_epoll() {
    hundred_flows(Driver::IoUring, Driver::Epoll);
}

/// Writes until the flow takes no more for a while; returns how much went.
fn fill(end: &mut TcpStream) -> usize {
    end.set_write_timeout(Some(Duration::from_millis(200))).expect("timeout");
    let mut total = 0;
    loop {
        match end.write(&[7; 64 << 10]) {
            Ok(n) => total += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return total;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The one flow of an engine.
fn export_one(engines: &Engines) -> Flow {
    let mut flows: Vec<Flow> = engines.export().collect();
    assert_eq!(flows.len(), 1);
    assert_eq!(engines.stats()[0].flows.load(Relaxed), 0);
    flows.remove(0)
}

#[test]
fn what_a_stalled_flow_holds_moves_with_it_and_its_end_too() {
    everywhere(|engines| {
        let mut rig = Rig::new(engines, UNLIMITED);
        let mut sent = 0;
        let flow = loop {
            sent += fill(&mut rig.client);
            let flow = export_one(engines);
            if !flow.to_backend.is_empty() {
                break flow;
            }
            // It was slow, not stalled.
            assert!(engines.submit(flow).is_ok());
        };
        assert!(flow.to_client.is_empty());
        assert_eq!((flow.progress.up, flow.progress.down), (Half::Open, Half::Open));
        rig.client.shutdown(Shutdown::Write).expect("shutdown");
        assert!(engines.submit(flow).is_ok());
        let mut got = Vec::new();
        rig.backend.read_to_end(&mut got).expect("read");
        assert_eq!(got.len(), sent);
        assert!(got.iter().all(|byte| *byte == 7));

        // Half closed now; the way back is open, and the reason known.
        let flow = export_one(engines);
        assert_eq!((flow.progress.up, flow.progress.down), (Half::Done, Half::Open));
        assert!(flow.progress.half_closed.is_some());
        assert!(engines.submit(flow).is_ok());
        rig.backend.write_all(b"still here").expect("written");
        rig.backend.shutdown(Shutdown::Write).expect("shutdown");
        let mut got = String::new();
        rig.client.read_to_string(&mut got).expect("read");
        assert_eq!(got, "still here");
        let end = rig.account();
        assert_eq!((end.reason, end.up, end.down), (CloseReason::ClientClosed, sent as u64, 10));
    });
}

#[test]
fn limits_go_on_running_where_they_were() {
    everywhere(|engines| {
        let long = Duration::from_secs(3600);
        let limits =
            FlowLimits { idle: Some(long), ends_at: Some(Instant::now() + long), half_close: 2 * long };
        let rig = Rig::new(engines, limits);
        let mut flow = export_one(engines);
        let late = |at: Option<Instant>| at.expect("a deadline").saturating_duration_since(Instant::now());
        // In whole milliseconds, rounded up.
        let left = late(flow.limits.ends_at);
        assert!(left <= long + Duration::from_millis(1) && left > long - PATIENCE, "{left:?}");
        assert_eq!((flow.limits.idle, flow.limits.half_close), (Some(long), 2 * long));
        assert!(flow.progress.silent < PATIENCE);
        // As if it had been silent for that long elsewhere.
        flow.progress.silent = long;
        assert!(engines.submit(flow).is_ok());
        assert_eq!(rig.account().reason, CloseReason::IdleTimeout);

        let mut rig = Rig::new(engines, limits);
        rig.backend.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(rig.client.read(&mut [0; 8]).expect("read"), 0);
        let mut flow = export_one(engines);
        flow.progress.half_closed = Some(2 * long);
        assert!(engines.submit(flow).is_ok());
        assert_eq!(rig.account().reason, CloseReason::HalfCloseDeadline);
    });
}

#[test]
fn a_flow_that_was_moved_away_is_not_closed_here() {
    everywhere(|engines| {
        let mut rig = Rig::new(engines, UNLIMITED);
        rig.client.write_all(b"hello").expect("written");
        rig.backend.read_exact(&mut [0; 5]).expect("read");
        let flow = export_one(engines);
        engines.close(rig.id, CloseReason::Operator);
        let mksgate::flow::Leg::Raw(elsewhere) = &flow.client else { panic!("a raw leg") };
        let mut elsewhere = TcpStream::from(elsewhere.try_clone().expect("another process' copy"));
        drop(flow);
        rig.end.recv_timeout(PATIENCE).expect_err("no account: the callback was dropped, not called");
        elsewhere.set_nonblocking(false).expect("blocking");
        elsewhere.write_all(b"from the other process").expect("written");
        rig.client.read_exact(&mut [0; 22]).expect("the connection is alive");
    });
}

#[test]
fn an_export_that_is_given_up_gives_every_flow_back() {
    everywhere(|engines| {
        let mut rigs: Vec<Rig> = (0..20).map(|_| Rig::new(engines, UNLIMITED)).collect();
        drop(engines.export());
        let some: Vec<Flow> = engines.export().take(5).collect();
        assert_eq!(engines.export().count(), 15);
        assert_eq!(some.len(), 5);
        drop(some);
        // The five and the fifteen were moved away; nobody else has their sockets.
        for rig in &mut rigs {
            assert_eq!(rig.client.read(&mut [0; 8]).expect("closed"), 0);
            assert!(rig.end.recv_timeout(PATIENCE).is_err(), "no account");
        }
        let mut rig = Rig::new(engines, UNLIMITED);
        drop(engines.export());
        rig.client.write_all(b"on we go").expect("written");
        rig.backend.read_exact(&mut [0; 8]).expect("read");
    });
}
