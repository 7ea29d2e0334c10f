//! The flow engine from outside: sockets in, sockets out, accounts at the end.

mod flow_rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use flow_rig::{PATIENCE, Rig, UNLIMITED, config, everywhere, pair, reset, total};
use mksgate::flow::{Driver, Engines, FlowConfig, FlowLimits, Mode, Way};
use mksgate::session::CloseReason;

fn exchange(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    from.write_all(bytes).expect("written");
    let mut got = vec![0; bytes.len()];
    to.read_exact(&mut got).expect("read");
    assert_eq!(got, bytes);
}

/// Bytes that differ everywhere.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

/// Writes until the flow takes no more for a while; returns how much went.
fn fill(end: &mut TcpStream) -> usize {
    end.set_write_timeout(Some(Duration::from_millis(200))).expect("timeout");
    let block = pattern(64 << 10);
    let mut total = 0;
    loop {
        match end.write(&block) {
            Ok(n) => total += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return total;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads until the other side is gone, by FIN or RST.
fn drain(end: &mut TcpStream) -> usize {
    let mut block = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match end.read(&mut block) {
            Ok(0) => return total,
            Ok(n) => total += n,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return total,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn messages_pass_both_ways_and_are_counted() {
    everywhere(|engines| {
        let mut rig = Rig::new(engines, UNLIMITED);
        for n in 1..200 {
            exchange(&mut rig.client, &mut rig.backend, &pattern(n));
            exchange(&mut rig.backend, &mut rig.client, &pattern(3 * n));
        }
        rig.client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(drain(&mut rig.backend), 0);
        rig.backend.shutdown(Shutdown::Write).expect("shutdown");
        let end = rig.account();
        assert_eq!((end.reason, end.up, end.down), (CloseReason::ClientClosed, 19_900, 59_700));
        assert!(end.rtt_us.iter().all(Option::is_some));
    });
}

#[test]
fn bytes_of_the_hand_over_go_first() {
    everywhere(|engines| {
        let (up, down) = (pattern(3 << 20), pattern(5 << 20));
        let mut rig = Rig::with_bytes(engines, UNLIMITED, up.clone(), down.clone());
        let write = |end: &TcpStream| {
            let mut end = end.try_clone().expect("clone");
            thread::spawn(move || {
                end.write_all(b"then this").expect("written");
                end.shutdown(Shutdown::Write).expect("shutdown");
            })
        };
        let writers = [write(&rig.client), write(&rig.backend)];
        for (end, mut expected) in [(&mut rig.client, down), (&mut rig.backend, up)] {
            expected.extend_from_slice(b"then this");
            let mut got = Vec::new();
            end.read_to_end(&mut got).expect("read");
            assert!(got == expected, "{} bytes in place of {}", got.len(), expected.len());
        }
        writers.into_iter().for_each(|writer| writer.join().expect("writer"));
        rig.account();
        assert_eq!(total(engines, Way::First), 8 << 20);
    });
}

#[test]
fn a_short_message_with_its_fin_is_delivered_with_its_fin() {
    everywhere(|engines| {
        for _ in 0..50 {
            let mut rig = Rig::new(engines, UNLIMITED);
            rig.client.write_all(b"bye").expect("written");
            rig.client.shutdown(Shutdown::Write).expect("shutdown");
            let mut got = Vec::new();
            rig.backend.read_to_end(&mut got).expect("read");
            assert_eq!(got, b"bye");
            exchange(&mut rig.backend, &mut rig.client, b"after the other half was closed");
            rig.backend.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(drain(&mut rig.client), 0);
            assert_eq!(rig.account().reason, CloseReason::ClientClosed);
        }
    });
}

#[test]
fn ends_that_overtake_the_kernels_splice_workers_are_not_lost() {
    let engines = Engines::start(&config(Driver::IoUring, Mode::Splice)).expect("engine");
    // The end has to come between a worker's look at the socket and its answer: it is tried many times, after other delays.
    for n in 0..2000u32 {
        let mut rig = Rig::new(&engines, UNLIMITED);
        rig.client.write_all(b"bye").expect("written");
        (0..n % 64 * 16).for_each(|_| std::hint::spin_loop());
        rig.client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(drain(&mut rig.backend), 3, "the message and then the end");
        drop((rig.client, rig.backend));
        rig.end.recv_timeout(PATIENCE).expect("the flow ends");
    }
}

#[test]
fn a_bulk_transfer_is_spliced() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        let engines = Engines::start(&config(driver, Mode::Adaptive)).expect("engine");
        let mut rig = Rig::new(&engines, UNLIMITED);
        let mut writer = rig.backend.try_clone().expect("clone");
        let writer = thread::spawn(move || {
            let block = pattern(64 << 10);
            (0..2048).for_each(|_| writer.write_all(&block).expect("written"));
            writer.shutdown(Shutdown::Write).expect("shutdown");
        });
        assert_eq!(drain(&mut rig.client), 128 << 20);
        writer.join().expect("writer");
        let spliced = total(&engines, Way::Spliced);
        assert!(spliced as f64 > 0.95 * f64::from(128 << 20), "{spliced} spliced");
        drop(rig.client);
        assert_eq!(rig.end.recv_timeout(PATIENCE).expect("end").reason, CloseReason::BackendClosed);
    }
}

#[test]
fn messages_after_a_transfer_are_interactive_again() {
    for driver in [Driver::IoUring, Driver::Epoll] {
        let engines = Engines::start(&config(driver, Mode::Adaptive)).expect("engine");
        let mut rig = Rig::new(&engines, UNLIMITED);
        let stats = &engines.stats()[0];
        for _ in 1..4 {
            let before = stats.to_bulk.load(Relaxed);
            let mut from = rig.backend.try_clone().expect("clone");
            let writer = thread::spawn(move || from.write_all(&pattern(4 << 20)).expect("written"));
            let mut got = vec![0; 4 << 20];
            rig.client.read_exact(&mut got).expect("read");
            writer.join().expect("writer");
            assert!(got == pattern(4 << 20));
            // More than once where the machine made the transfer pause.
            assert!(stats.to_bulk.load(Relaxed) > before, "a transfer is bulk");
            // The change back comes with the review after a quiet spell, or with the next message after one.
            let limit = Instant::now() + PATIENCE;
            while stats.to_interactive.load(Relaxed) < stats.to_bulk.load(Relaxed) {
                assert!(Instant::now() < limit, "interactive again");
                thread::sleep(Duration::from_millis(60));
                exchange(&mut rig.backend, &mut rig.client, b"a message");
            }
            exchange(&mut rig.client, &mut rig.backend, b"a key");
        }
        assert_eq!(stats.pipes_in_use.load(Relaxed), 0);
    }
}

#[test]
fn a_killed_client_closes_the_backend_leg() {
    everywhere(|engines| {
        // With FIN, with RST, in the middle of messages.
        for kill in [drop::<TcpStream>, reset] {
            let mut rig = Rig::new(engines, UNLIMITED);
            exchange(&mut rig.client, &mut rig.backend, b"hello");
            exchange(&mut rig.backend, &mut rig.client, b"hello");
            kill(rig.client);
            assert_eq!(drain(&mut rig.backend), 0);
            drop(rig.backend);
            rig.end.recv_timeout(PATIENCE).expect("the flow ends");
        }
    });
}

#[test]
fn a_reset_ends_the_flow_while_the_other_side_takes_nothing() {
    everywhere(|engines| {
        let mut rig = Rig::new(engines, UNLIMITED);
        fill(&mut rig.client);
        reset(rig.client);
        let end = rig.end.recv_timeout(PATIENCE).expect("the flow ends");
        assert_eq!(end.reason, CloseReason::ClientReset);
        drain(&mut rig.backend);

        let mut rig = Rig::new(engines, UNLIMITED);
        fill(&mut rig.backend);
        reset(rig.backend);
        let end = rig.end.recv_timeout(PATIENCE).expect("the flow ends");
        assert_eq!(end.reason, CloseReason::BackendReset);
        drain(&mut rig.client);
    });
}

#[test]
fn a_reset_of_a_half_closed_side_ends_the_flow_though_nothing_is_read_from_it() {
    everywhere(|engines| {
        let mut rig = Rig::new(engines, UNLIMITED);
        rig.client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(drain(&mut rig.backend), 0);
        reset(rig.client);
        let end = rig.end.recv_timeout(PATIENCE).expect("the flow ends");
        assert_eq!(end.reason, CloseReason::ClientReset);
    });
}

#[test]
fn back_pressure_is_real_and_bounded() {
    everywhere(|engines| {
        let mut rig = Rig::new(engines, UNLIMITED);
        let sent = fill(&mut rig.client);
        // Both sockets' buffers and what the engine may hold; a flow without back-pressure would take all.
        assert!(sent < 64 << 20, "{sent} bytes taken for a reader that does not read");
        exchange(&mut rig.backend, &mut rig.client, b"the other direction still moves");
        rig.client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(drain(&mut rig.backend), sent);
        drop((rig.client, rig.backend));
        let end = rig.end.recv_timeout(PATIENCE).expect("the flow ends");
        assert_eq!((end.reason, end.up), (CloseReason::ClientClosed, sent as u64));
    });
}

#[test]
fn a_stalled_reader_of_small_messages_loses_none() {
    everywhere(|engines| {
        let mut rig = Rig::new(engines, UNLIMITED);
        rig.backend.set_write_timeout(Some(Duration::from_millis(100))).expect("timeout");
        let mut sent = Vec::new();
        while sent.len() < 32 << 20 {
            let message = pattern(1 + sent.len() % 97);
            match rig.backend.write(&message) {
                Ok(n) => sent.extend_from_slice(&message[..n]),
                Err(_) => break,
            }
        }
        rig.backend.shutdown(Shutdown::Write).expect("shutdown");
        let mut got = Vec::new();
        rig.client.read_to_end(&mut got).expect("read");
        assert!(got == sent, "{} of {}", got.len(), sent.len());
    });
}

#[test]
fn deadlines_end_flows_with_their_own_reasons() {
    everywhere(|engines| {
        let soon = Duration::from_millis(80);
        let idle = Rig::new(engines, FlowLimits { idle: Some(soon), ..UNLIMITED });
        let ends = FlowLimits { ends_at: Some(Instant::now() + soon), ..UNLIMITED };
        let session = Rig::new(engines, ends);
        let mut half = Rig::new(engines, FlowLimits { half_close: soon, ..UNLIMITED });
        half.client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(drain(&mut half.backend), 0);
        assert_eq!(idle.account().reason, CloseReason::IdleTimeout);
        assert_eq!(session.account().reason, CloseReason::SessionDeadline);
        assert_eq!(half.account().reason, CloseReason::HalfCloseDeadline);
        for mut rig in [idle, session, half] {
            assert_eq!((drain(&mut rig.client), drain(&mut rig.backend)), (0, 0));
        }
    });
}

#[test]
fn traffic_puts_the_idle_deadline_off() {
    everywhere(|engines| {
        let idle = Duration::from_millis(300);
        // A test that was itself kept from running for so long proves nothing: it begins anew.
        let rig = loop {
            let began = Instant::now();
            let mut rig = Rig::new(engines, FlowLimits { idle: Some(idle), ..UNLIMITED });
            if sends_for(&mut rig, began, 2 * idle, idle) {
                break rig;
            }
        };
        let end = rig.account();
        assert_eq!(end.reason, CloseReason::IdleTimeout);
        assert!(end.down > 10);
    });
}

/// Sends a message after another until `span` after the flow `began`. False if any two of them were as much as `gap` apart.
fn sends_for(rig: &mut Rig, began: Instant, span: Duration, gap: Duration) -> bool {
    let mut before = began;
    while began.elapsed() < span {
        let now = Instant::now();
        let mut got = [0; 10];
        let sent = rig.backend.write_all(b"still here").and_then(|()| rig.client.read_exact(&mut got));
        if before.elapsed() >= gap {
            return false;
        }
        sent.expect("no deadline passes while messages come");
        before = now;
        thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn an_operator_closes_one_flow_and_a_stop_closes_all() {
    for (driver, mode) in flow_rig::SETUPS {
        let engines = Engines::start(&FlowConfig { threads: 2, ..config(driver, mode) }).expect("engine");
        let mut rigs: Vec<Rig> = (0..8).map(|_| Rig::new(&engines, UNLIMITED)).collect();
        fill(&mut rigs[3].client);
        engines.close(u64::MAX, CloseReason::Operator);
        engines.close(rigs[3].id, CloseReason::TicketRevoked);
        engines.close(rigs[5].id, CloseReason::Operator);
        assert_eq!(rigs[3].account().reason, CloseReason::TicketRevoked);
        assert_eq!(rigs[5].account().reason, CloseReason::Operator);
        let Rig { client, backend, .. } = &mut rigs[0];
        exchange(client, backend, b"the others go on");
        let stats = engines.stats();
        engines.stop();
        for (n, rig) in rigs.iter().enumerate().filter(|(n, _)| ![3, 5].contains(n)) {
            assert_eq!(rig.account().reason, CloseReason::Drain, "flow {n}");
        }
        let (flows, ended) = stats
            .iter()
            .fold((0, 0), |sum, s| (sum.0 + s.flows.load(Relaxed), sum.1 + s.ended.load(Relaxed)));
        assert_eq!((flows, ended), (0, 8));
    }
}

#[test]
fn a_full_queue_gives_the_flow_back() {
    let engines = Engines::start(&FlowConfig { queue: 0, ..config(Driver::Auto, Mode::Adaptive) });
    let engines = engines.expect("engine");
    let ((_client, client_leg), (_backend, backend_leg)) = (pair(), pair());
    let flow = mksgate::flow::Flow {
        id: 7,
        client: mksgate::flow::Leg::Raw(client_leg.into()),
        backend: mksgate::flow::Leg::Raw(backend_leg.into()),
        to_backend: Vec::new(),
        to_client: Vec::new(),
        limits: UNLIMITED,
        counters: Default::default(),
        progress: Default::default(),
        on_first_byte: None,
        on_close: Box::new(|_| panic!("the flow never began")),
    };
    assert_eq!(engines.submit(flow).err().map(|flow| flow.id), Some(7));
    assert_eq!(engines.stats()[0].flows.load(Relaxed), 0);
}

#[test]
fn scarce_buffers_and_pipes_cost_speed_but_no_byte() {
    let scarce = |driver, mode| FlowConfig {
        buffers: 2,
        buffer_bytes: 512,
        pipe_bytes: 4096,
        max_pipes: 2,
        ..config(driver, mode)
    };
    for (driver, mode) in flow_rig::SETUPS {
        let none = FlowConfig { max_pipes: 0, ..scarce(driver, mode) };
        for (config, pipes) in [(scarce(driver, mode), true), (none, false)] {
            let engines = Engines::start(&config).expect("engine");
            let rigs: Vec<Rig> = (0..8).map(|_| Rig::new(&engines, UNLIMITED)).collect();
            let workers: Vec<_> = rigs
                .iter()
                .flat_map(|rig| [(&rig.client, &rig.backend), (&rig.backend, &rig.client)])
                .map(|(from, to)| {
                    let (mut from, mut to) =
                        (from.try_clone().expect("clone"), to.try_clone().expect("clone"));
                    let writer = thread::spawn(move || {
                        from.write_all(&pattern(2 << 20)).expect("written");
                        from.shutdown(Shutdown::Write).expect("shutdown");
                    });
                    let reader = thread::spawn(move || {
                        let mut got = Vec::new();
                        to.read_to_end(&mut got).expect("read");
                        assert!(got == pattern(2 << 20), "{} bytes", got.len());
                    });
                    (writer, reader)
                })
                .collect();
            for (writer, reader) in workers {
                writer.join().expect("writer");
                reader.join().expect("reader");
            }
            assert!(rigs.iter().all(|rig| rig.account().up == 2 << 20));
            let stats = engines.stats();
            if driver == Driver::IoUring && mode != Mode::Splice {
                assert!(stats[0].enobufs.load(Relaxed) > 0, "{driver:?} {mode:?}: buffers ran out");
            }
            if !pipes && mode != Mode::Copy {
                assert!(stats[0].pipes_refused.load(Relaxed) > 0);
                assert!(total(&engines, Way::Copied) > 0);
                assert_eq!(total(&engines, Way::Spliced) + total(&engines, Way::OpSpliced), 0);
            }
            engines.stop();
            assert_eq!(stats[0].buffers_in_use.load(Relaxed), 0);
            assert_eq!(stats[0].pipes_in_use.load(Relaxed), 0);
        }
    }
}
