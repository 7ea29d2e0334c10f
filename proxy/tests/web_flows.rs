//! How consoles with WebSocket on a leg end, and what a peer that breaks the rules is told.

mod web_rig;

use std::io::Read;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mksgate::flow::Driver;
use mksgate::session::CloseReason;
use web_rig::{Far, Kind, PATIENCE, start, start_narrow};

fn until(far: &mut Far, wanted: impl Fn(&Far) -> bool) {
    let began = Instant::now();
    while !wanted(far) {
        assert!(began.elapsed() < PATIENCE);
        match far.turn() {
            Ok(true) => {}
            Ok(false) => far.wait(),
            Err(error) => {
                far.consume();
                assert!(wanted(far), "{error}");
            }
        }
    }
}

#[test]
fn a_person_is_told_why_the_console_ended() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let mut run = start(driver, (Kind::Web(false), Kind::Raw), 0, None);
        run.engines.close(7, CloseReason::Operator);
        until(&mut run.client, |far| far.closed.is_some());
        assert_eq!(run.client.closed, Some((1008, "An operator closed this console.".into())));
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::Operator);

        let mut run = start(driver, (Kind::Web(false), Kind::Raw), 0, None);
        drop(run.backend);
        until(&mut run.client, |far| far.closed.is_some());
        assert_eq!(run.client.closed.as_ref().unwrap().0, 1000);
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::BackendClosed);
    }
}

#[test]
fn a_broken_frame_ends_the_console_with_its_code() {
    for (bytes, code) in [
        (&[0xc2u8, 0x80, 0, 0, 0, 0][..], 1002u16),
        (&[0x82, 0x00], 1002),
        (&[0x81, 0x81, 0, 0, 0, 0, b'x'], 1003),
        (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        (&[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),
        (&[0x88, 0x81, 0, 0, 0, 0, 3], 1002),
    ] {
        let mut run = start(Driver::Auto, (Kind::Web(false), Kind::Raw), 0, None);
        run.client.out.extend(bytes);
        until(&mut run.client, |far| far.closed.is_some());
        assert_eq!(run.client.closed.as_ref().unwrap().0, code, "{bytes:?}");
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::ProtocolError);
    }
    let mut run = start(Driver::Auto, (Kind::Web(true), Kind::Raw), 0, None);
    run.client.out.extend([0x81, 0x82, 0, 0, 0, 0, 0xc3, b'x']);
    until(&mut run.client, |far| far.closed.is_some());
    assert_eq!(run.client.closed.as_ref().unwrap().0, 1007);
}

#[test]
fn a_silent_connection_is_kept_awake_and_the_idle_time_still_ends_it() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let mut run = start(driver, (Kind::Web(false), Kind::Raw), 0, Some(Duration::from_millis(20)));
        let mut seen = 0;
        let began = Instant::now();
        while seen < 3 {
            assert!(began.elapsed() < PATIENCE);
            let _ = run.client.turn().unwrap();
            // Each ping is answered by a frame of ours.
            if !run.client.out.is_empty() {
                seen += 1;
                run.client.out.clear();
            }
            run.client.wait();
        }
        run.engines.stop();
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::Drain);
    }
}

#[test]
fn a_flood_of_pings_costs_no_memory() {
    let mut run = start(Driver::Auto, (Kind::Web(false), Kind::Raw), 0, None);
    for _ in 0..200_000 {
        run.client.frame(true, 9, &[0; 125]);
    }
    run.client.frame(true, 2, b"still here");
    let began = Instant::now();
    let mut got = Vec::new();
    while !got.ends_with(b"still here") {
        assert!(began.elapsed() < PATIENCE);
        let _ = run.client.turn().unwrap();
        let mut buffer = [0; 100];
        if let Ok(n) = run.backend.socket.read(&mut buffer) {
            got.extend(&buffer[..n]);
        }
    }
    assert!(run.client.pongs > 0 && run.client.pongs < 100_000);
    assert_eq!(got, b"still here");
}

/// One byte at a time, each in a record of its own: headers, payloads, fragments and a ping between them.
#[test]
fn frames_that_dribble_in_are_frames() {
    for (backend, driver) in [(Kind::Raw, Driver::Auto), (Kind::Web(false), Driver::Epoll)] {
        let mut run = start(driver, (Kind::Web(false), backend), 0, None);
        let client = &mut run.client;
        client.frame(false, 2, &[b'a'; 200]);
        client.frame(true, 9, b"hello?");
        client.frame(false, 0, b"");
        client.frame(true, 0, b"bc");
        for byte in std::mem::take(&mut client.out) {
            client.out.push(byte);
            until(client, |far| far.flushed());
        }
        until(&mut run.backend, |far| far.got == 202);
        until(&mut run.client, |far| far.pongs == 1);
    }
}

/// With frames that pass whole a pong has to wait for the end of the frame that passes. It came with the next event only, so
/// that a viewer whose ping fell into the last frame waited for ever.
#[test]
fn a_ping_in_the_middle_of_a_frame_is_answered_behind_it() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let mut run = start(driver, (Kind::Web(false), Kind::Web(false)), 0, None);
        let frame = |far: &mut Far, byte: u8| {
            far.frame(true, 2, &[byte; 1000]);
            far.out.split_off(500)
        };
        let rest = frame(&mut run.backend, b'x');
        until(&mut run.backend, |far| far.flushed());
        until(&mut run.client, |far| far.input.len() == 500);
        run.client.frame(true, 9, b"hello?");
        run.client.frame(true, 2, b"there");
        until(&mut run.client, |far| far.out.is_empty());
        until(&mut run.backend, |far| far.got == 5);
        assert_eq!(run.client.pongs, 0);
        run.backend.out.extend(rest);
        until(&mut run.backend, |far| far.out.is_empty());
        until(&mut run.client, |far| far.pongs == 1);
        assert_eq!(run.client.got, 1000);
    }
}

/// Nor may a host that never pauses keep a viewer's pings from being answered.
#[test]
fn a_ping_is_answered_while_the_host_never_stops_sending() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let mut run = start(driver, (Kind::Web(false), Kind::Web(false)), 0, None);
        let (mut asked, began) = (false, Instant::now());
        while run.client.pongs == 0 {
            assert!(began.elapsed() < PATIENCE);
            // Always one frame begun and not ended, whatever is read.
            while run.backend.out.len() < 300_000 {
                run.backend.frame(true, 2, &[7; 30_011]);
            }
            let _ = run.backend.turn().unwrap();
            let _ = run.client.turn().unwrap();
            if run.client.got > 300_000 && !std::mem::replace(&mut asked, true) {
                run.client.frame(true, 9, b"hello?");
            }
        }
    }
}

/// A viewer that went ends the console, though the host takes nothing of what it had typed.
#[test]
fn a_host_that_reads_nothing_does_not_keep_a_console_open() {
    for driver in [Driver::Auto, Driver::Epoll] {
        let half_close = Duration::from_millis(200);
        let mut run = start_narrow(driver, (Kind::Web(false), Kind::Raw), 100_000, half_close);
        until(&mut run.client, |far| far.left == 0 && far.out.is_empty() && far.flushed());
        // FIN, not a reset: what the viewer has not read yet does not matter here.
        run.client.socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(run.end.recv_timeout(PATIENCE).unwrap().reason, CloseReason::HalfCloseDeadline);
        drop(run.backend);
    }
}
