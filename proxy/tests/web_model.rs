//! Random lives of flows with TLS and WebSocket: messages, bulk, silence, slow readers and pings in whatever order. Such a
//! flow changes again and again between the ring and system calls; what comes out is what went in.

mod web_rig;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use mksgate::flow::{Driver, Way};
use mksgate::session::CloseReason;
use proptest::prelude::*;
use web_rig::{Far, Kind, PATIENCE, Running, start};

#[derive(Clone, Debug)]
enum Op {
    /// The client, the hypervisor, or both send so many bytes, and everything arrives.
    Talk(u64, u64),
    /// They send, and nobody reads until the way is full.
    Crowd(u64),
    /// The client asks whether anybody is there.
    Ping,
    /// Is silent for long enough to leave bulk.
    Rest,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0u64..200, 0u64..200).prop_map(|(up, down)| Op::Talk(up, down)),
        3 => (0u64..10_000, 0u64..60_000).prop_map(|(up, down)| Op::Talk(up, down)),
        2 => (0u64..600_000, 0u64..600_000).prop_map(|(up, down)| Op::Talk(up, down)),
        1 => (1_000_000u64..5_000_000).prop_map(Op::Crowd),
        2 => Just(Op::Ping),
        2 => Just(Op::Rest),
    ];
    proptest::collection::vec(op, 1..10)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Raw), Just(Kind::Tls), Just(Kind::Web(false)), Just(Kind::Web(true))]
}

/// Plays until everything that was sent has arrived.
fn settle(run: &mut Running, total: [u64; 2], pongs: u64) {
    let began = Instant::now();
    let done = |far: &Far, due: u64| far.left == 0 && far.flushed() && far.got >= due;
    while !(done(&run.client, total[1]) && done(&run.backend, total[0]) && run.client.pongs >= pongs) {
        assert!(began.elapsed() < PATIENCE, "{} and {} of {total:?}", run.backend.got, run.client.got);
        let moved = [run.client.turn().expect("alive"), run.backend.turn().expect("alive")];
        if moved == [false; 2] {
            run.client.wait_with(&run.backend);
        }
    }
}

fn live(run: &mut Running, ops: &[Op], web: bool) -> [u64; 2] {
    let (mut total, mut pongs) = ([0; 2], 0);
    // Whatever else it does, it has been in bulk and was calm again.
    let last = [Op::Talk(400_000, 400_000), Op::Rest, Op::Talk(10, 10)];
    for op in ops.iter().chain(&last) {
        match *op {
            Op::Talk(up, down) => {
                run.client.left = up;
                run.backend.left = down;
                total = [total[0] + up, total[1] + down];
            }
            Op::Crowd(n) => {
                run.backend.left = n;
                total[1] += n;
                let mut idle = 0;
                while idle < 20 && !(run.backend.left == 0 && run.backend.flushed()) {
                    idle = if run.backend.turn().expect("alive") { 0 } else { idle + 1 };
                    run.backend.wait_for(Duration::from_millis(1));
                }
            }
            Op::Ping if web => {
                pongs = run.client.pongs + 1;
                run.client.frame(true, 9, b"hello?");
            }
            Op::Ping => {}
            Op::Rest => thread::sleep(Duration::from_millis(90)),
        }
        settle(run, total, pongs);
    }
    total
}

#[test]
fn what_comes_out_is_what_went_in_however_a_flow_lives() {
    let taken: [AtomicU64; 4] = Default::default();
    let mut config = ProptestConfig::with_cases(8);
    config.failure_persistence = None;
    config.max_shrink_iters = 0;
    proptest!(config, |(ops in ops(), kinds in (kind(), kind()), operator: bool)| {
        prop_assume!(kinds != (Kind::Raw, Kind::Raw));
        let mut run = start(Driver::IoUring, kinds, 0, None);
        let total = live(&mut run, &ops, matches!(kinds.0, Kind::Web(_)));
        let stats = run.engines.stats().remove(0);
        let Running { engines, end, client, backend } = run;
        if operator {
            engines.close(7, CloseReason::Operator);
        } else {
            drop(client.socket);
        }
        let account = end.recv_timeout(PATIENCE).expect("the flow ends");
        engines.stop();
        if operator {
            assert_eq!(account.reason, CloseReason::Operator);
        }
        // Frames that pass whole are counted with their headers.
        let whole = kinds.0 == kinds.1 && matches!(kinds.0, Kind::Web(_));
        let counted = [account.up, account.down];
        assert!(if whole { counted[0] >= total[0] && counted[1] >= total[1] } else { counted == total });
        assert_eq!(client.sent.finish().as_ref(), backend.received.finish().as_ref());
        assert_eq!(backend.sent.finish().as_ref(), client.received.finish().as_ref());
        assert_eq!((stats.flows.load(Relaxed), stats.buffers_in_use.load(Relaxed)), (0, 0), "nothing is left");
        let ways = [stats.bytes(Way::Interactive), stats.bytes(Way::Copied)];
        let changes = [&stats.to_bulk, &stats.to_interactive].map(|count| count.load(Relaxed));
        for (all, one) in taken.iter().zip(ways.into_iter().chain(changes)) {
            all.fetch_add(one, Relaxed);
        }
    });
    let taken = taken.map(|count| count.load(Relaxed));
    assert!(taken.iter().all(|count| *count > 0), "every way and every change was taken: {taken:?}");
}
