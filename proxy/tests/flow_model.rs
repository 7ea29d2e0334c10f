//! Random lives of a flow against a model: whatever is written, left unread, half closed, moved to another engine, reset or
//! closed by an operator, in whatever order, what comes out is what went in, and the flow ends once, for the right reason.

mod flow_rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use flow_rig::{PATIENCE, Rig, SETUPS, UNLIMITED, config, reset};
use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowEnd, Mode};
use mksgate::session::CloseReason;
use proptest::prelude::*;

/// The client is 0, the hypervisor 1.
type Side = usize;

#[derive(Clone, Debug)]
enum Op {
    /// Writes up to so many bytes; what the flow does not take at once stays unwritten.
    Write(Side, usize),
    /// Reads everything the other side has written.
    Read(Side),
    /// Sends FIN.
    HalfClose(Side),
    /// Is silent for long enough to leave bulk.
    Rest,
    /// Goes on in another engine.
    Move,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Close { first: Side },
    Reset(Side),
    Operator,
}

fn side() -> impl Strategy<Value = Side> {
    0usize..2
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (side(), 1usize..300).prop_map(|(side, len)| Op::Write(side, len)),
        4 => (side(), 1usize..1 << 20).prop_map(|(side, len)| Op::Write(side, len)),
        1 => side().prop_map(|side| Op::Write(side, 8 << 20)),
        6 => side().prop_map(Op::Read),
        1 => side().prop_map(Op::HalfClose),
        1 => Just(Op::Rest),
        2 => Just(Op::Move),
    ];
    proptest::collection::vec(op, 0..24)
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        4 => side().prop_map(|first| End::Close { first }),
        2 => side().prop_map(End::Reset),
        1 => Just(End::Operator),
    ]
}

/// The byte at a place of a side's stream: no two blocks look alike.
fn byte(side: Side, at: u64) -> u8 {
    ((at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 + side as u64) >> 56) as u8
}

/// What was written and read of one side's stream.
#[derive(Default)]
struct Stream {
    written: u64,
    read: u64,
    fin: bool,
}

struct Model<'a> {
    engines: [&'a Engines; 2],
    at: usize,
    rig: Rig,
    streams: [Stream; 2],
    /// Who sent FIN first, where the other side saw it before it sent its own.
    first: Option<Side>,
}

impl Model<'_> {
    fn socket(&mut self, side: Side) -> &mut TcpStream {
        if side == 0 { &mut self.rig.client } else { &mut self.rig.backend }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write(side, len) if !self.streams[side].fin => self.write(side, len),
            Op::Read(side) => self.read(side),
            // The second FIN ends the flow: that is for the end.
            Op::HalfClose(side) if self.streams.iter().all(|stream| !stream.fin) => self.fin(side),
            Op::Rest => thread::sleep(Duration::from_millis(60)),
            Op::Move => self.relocate(),
            Op::Write(..) | Op::HalfClose(_) => {}
        }
    }

    fn write(&mut self, side: Side, len: usize) {
        let from = self.streams[side].written;
        let bytes: Vec<u8> = (from..from + len as u64).map(|at| byte(side, at)).collect();
        let socket = self.socket(side);
        socket.set_nonblocking(true).expect("non-blocking");
        let mut sent = 0;
        while sent < len {
            match socket.write(&bytes[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        socket.set_nonblocking(false).expect("blocking");
        self.streams[side].written += sent as u64;
    }

    /// Reads what the other side has written, and its FIN if it sent one.
    fn read(&mut self, side: Side) {
        let (from, to) = (self.streams[1 - side].read, self.streams[1 - side].written);
        let mut bytes = vec![0; (to - from) as usize];
        self.socket(side).read_exact(&mut bytes).expect("every byte arrives");
        let wrong = (from..to).zip(&bytes).find(|(at, got)| byte(1 - side, *at) != **got);
        assert_eq!(wrong, None, "another byte, or in another place");
        self.streams[1 - side].read = to;
        if self.streams[1 - side].fin {
            assert_eq!(self.socket(side).read(&mut [0]).expect("the end arrives"), 0);
        }
    }

    fn fin(&mut self, side: Side) {
        self.socket(side).shutdown(Shutdown::Write).expect("shutdown");
        self.streams[side].fin = true;
    }

    fn relocate(&mut self) {
        let mut flows: Vec<Flow> = self.engines[self.at].export().collect();
        assert_eq!(flows.len(), 1, "the flow is alive");
        self.at = 1 - self.at;
        assert!(self.engines[self.at].submit(flows.remove(0)).is_ok());
    }

    /// Lets the flow end and checks its account.
    fn end(mut self, end: End) {
        let expected = match end {
            End::Close { first } => {
                let first = self.streams.iter().position(|stream| stream.fin).unwrap_or(first);
                if !self.streams[first].fin {
                    self.fin(first);
                }
                // The other side closes when it has seen that.
                self.read(1 - first);
                self.fin(1 - first);
                self.read(first);
                self.first = Some(first);
                if first == 0 { CloseReason::ClientClosed } else { CloseReason::BackendClosed }
            }
            End::Reset(0) => CloseReason::ClientReset,
            End::Reset(_) => CloseReason::BackendReset,
            End::Operator => {
                self.engines[self.at].close(self.rig.id, CloseReason::Operator);
                CloseReason::Operator
            }
        };
        let Rig { client, backend, end: ended, counters: _, id: _ } = self.rig;
        let mut ends = [Some(client), Some(backend)];
        if let End::Reset(side) = end {
            ends[side].take().into_iter().for_each(reset);
        }
        let account: FlowEnd = ended.recv_timeout(PATIENCE).expect("the flow ends");
        assert!(ended.recv_timeout(PATIENCE).is_err(), "one account per flow");
        assert_eq!(account.reason, expected);
        let [up, down] = &self.streams;
        let most = (account.up <= up.written, account.down <= down.written);
        assert_eq!(most, (true, true), "{account:?}");
        assert!(account.up >= up.read && account.down >= down.read, "{account:?}");
        if self.first.is_some() {
            assert_eq!((account.up, account.down), (up.written, down.written));
        }
        drop(ends);
    }
}

fn lives(setup: (Driver, Mode)) {
    let start = |driver| Engines::start(&FlowConfig { pipe_bytes: 64 << 10, ..config(driver, setup.1) });
    // The other engine is of the other kind.
    let other = if setup.0 == Driver::Epoll { Driver::IoUring } else { Driver::Epoll };
    let engines = [start(setup.0).expect("engine"), start(other).expect("engine")];
    let mut config = ProptestConfig::with_cases(32);
    config.failure_persistence = None;
    // A life that hangs would hang again at every step towards a simpler one.
    config.max_shrink_iters = 0;
    proptest!(config, |(ops in ops(), end in end())| {
        let rig = Rig::new(&engines[0], UNLIMITED);
        let engines = [&engines[0], &engines[1]];
        let mut model = Model { engines, at: 0, rig, streams: Default::default(), first: None };
        for op in &ops {
            model.apply(op);
        }
        model.end(end);
    });
    for engines in engines {
        let stats = engines.stats();
        engines.stop();
        let held = |s: &mksgate::flow::EngineStats| {
            let all = [&s.flows, &s.pipes_in_use, &s.buffers_in_use];
            all.into_iter().map(|gauge| gauge.load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>()
        };
        assert_eq!(stats.iter().map(|s| held(s)).sum::<u64>(), 0, "nothing is left");
    }
}

#[test]
fn random_lives_over_io_uring_adaptive() {
    lives(SETUPS[0]);
}

#[test]
fn random_lives_over_io_uring_splice() {
    lives(SETUPS[1]);
}

#[test]
fn random_lives_over_io_uring_copy() {
    lives(SETUPS[2]);
}

#[test]
fn random_lives_over_epoll_adaptive() {
    lives(SETUPS[3]);
}

#[test]
fn random_lives_over_epoll_splice() {
    lives(SETUPS[4]);
}

#[test]
fn random_lives_over_epoll_copy() {
    lives(SETUPS[5]);
}
