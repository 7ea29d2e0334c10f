//! Flows whose receiver takes nothing: they can be ended, moved and, when it takes again, go on.

mod flow_rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use flow_rig::{PATIENCE, Rig, SETUPS, UNLIMITED, config, everywhere, pair, reset};
use mksgate::flow::{Driver, Engines, Flow};
use mksgate::session::CloseReason;
use nix::sys::socket::{setsockopt, sockopt};

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

/// Writes what is taken at once of more than the flow and the sockets behind it hold; returns what went.
fn fill(end: &mut TcpStream) -> Vec<u8> {
    let mut bytes = pattern(12 << 20);
    end.set_nonblocking(true).expect("non-blocking");
    let mut sent = 0;
    while sent < bytes.len() {
        match end.write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    end.set_nonblocking(false).expect("blocking");
    bytes.truncate(sent);
    bytes
}

fn relocate(from: &Engines, to: &Engines) {
    let flows: Vec<Flow> = from.export().collect();
    assert_eq!(flows.len(), 1, "the flow is alive");
    flows.into_iter().for_each(|flow| assert!(to.submit(flow).is_ok()));
}

/// A hypervisor has sent its FIN and takes nothing; the client's bytes fill everything on their way. The flow was just
/// moved to `engines`.
fn stalled(engines: &Engines) -> (Rig, Vec<u8>) {
    let first = Engines::start(&config(Driver::Epoll, mksgate::flow::Mode::Adaptive)).expect("engine");
    let mut rig = Rig::new(&first, UNLIMITED);
    rig.backend.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(rig.client.read(&mut [0]).expect("the end arrives"), 0);
    let bytes = fill(&mut rig.client);
    relocate(&first, engines);
    first.stop();
    (rig, bytes)
}

#[test]
fn a_reset_ends_it_though_the_other_side_has_sent_fin_and_takes_nothing() {
    everywhere(|engines| {
        let (Rig { client, backend, end, .. }, _) = stalled(engines);
        reset(client);
        assert_eq!(end.recv_timeout(PATIENCE).expect("the flow ends").reason, CloseReason::ClientReset);
        drop(backend);
    });
}

#[test]
fn an_operator_ends_it_though_one_side_has_sent_fin_and_takes_nothing() {
    everywhere(|engines| {
        let (rig, _) = stalled(engines);
        engines.close(rig.id, CloseReason::Operator);
        assert_eq!(rig.account().reason, CloseReason::Operator);
    });
}

#[test]
fn it_moves_and_goes_on_though_one_side_has_sent_fin_and_took_nothing() {
    for (driver, mode) in SETUPS {
        let [first, second] = [(); 2].map(|()| Engines::start(&config(driver, mode)).expect("engine"));
        let (mut rig, bytes) = stalled(&first);
        relocate(&first, &second);
        let mut got = vec![0; bytes.len()];
        rig.backend.read_exact(&mut got).expect("every byte arrives");
        assert!(got == bytes, "the same bytes");
        rig.client.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(rig.backend.read(&mut [0]).expect("the end arrives"), 0);
        assert_eq!(rig.account().reason, CloseReason::BackendClosed);
    }
}

/// The ring receives such a burst in several goes; the flow changes stage after the first.
#[test]
fn a_burst_that_waited_in_the_socket_arrives_though_nothing_follows_it() {
    for burst in [1 << 20, 2 << 20, 3 << 20] {
        everywhere(|engines| {
            let (mut client, leg) = pair();
            setsockopt(&leg.as_fd(), sockopt::RcvBufForce, &(16 << 20)).expect("room");
            setsockopt(&client.as_fd(), sockopt::SndBufForce, &(16 << 20)).expect("room");
            let bytes = pattern(burst);
            client.write_all(&bytes).expect("written");
            let mut rig = Rig::over(engines, UNLIMITED, Vec::new(), Vec::new(), (client, leg), pair());
            let mut got = vec![0; burst];
            rig.backend.read_exact(&mut got).expect("every byte arrives");
            assert!(got == bytes, "the same bytes");
            engines.close(rig.id, CloseReason::Operator);
            assert_eq!(rig.account().reason, CloseReason::Operator);
        });
    }
}
