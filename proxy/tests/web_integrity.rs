//! Flows with TLS and WebSocket on their legs: what goes in comes out, in order, through every pair of legs, whatever the
//! frames, fragments, pings, key updates and pauses.

mod web_rig;

use std::sync::mpsc;
use std::time::Instant;

use aws_lc_rs::digest::Context;
use mksgate::flow::Driver;
use web_rig::{Far, Kind, PATIENCE, Running, start};

/// `mib` each way at once, then both ends go.
fn same_bytes(driver: Driver, kinds: (Kind, Kind), mib: u64) {
    let total = mib << 20;
    let Running { engines, end, client, backend } = start(driver, kinds, total, None);
    let began = Instant::now();
    let run = move |mut far: Far, stop: mpsc::Receiver<()>, done: mpsc::Sender<()>| {
        let mut said = false;
        while stop.try_recv().is_err() {
            assert!(
                began.elapsed() < PATIENCE,
                "{kinds:?}: {} of {total} got, {} to send",
                far.got,
                far.left
            );
            match far.turn() {
                Ok(true) => {}
                Ok(false) => far.wait(),
                Err(error) => panic!("{kinds:?}: {error} with {} of {total}, {} to send", far.got, far.left),
            }
            if far.done(total) && !std::mem::replace(&mut said, true) {
                done.send(()).unwrap();
            }
        }
        far
    };
    let mut threads = vec![];
    let (done, finished) = mpsc::channel();
    let mut stops = vec![];
    for far in [client, backend] {
        let (stop, stopped) = mpsc::channel();
        let (run, done) = (run, done.clone());
        stops.push(stop);
        threads.push(std::thread::spawn(move || run(far, stopped, done)));
    }
    drop(done);
    for _ in 0..2 {
        finished.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{kinds:?} did not end"));
    }
    stops.iter().for_each(|stop| stop.send(()).unwrap());
    let mut fars: Vec<Far> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let backend = fars.pop().unwrap();
    let client = fars.pop().unwrap();
    assert_eq!((client.got, backend.got), (total, total), "{kinds:?}");
    let hash = |context: &Context| context.clone().finish().as_ref().to_vec();
    assert_eq!(hash(&client.sent), hash(&backend.received), "{kinds:?} up");
    assert_eq!(hash(&backend.sent), hash(&client.received), "{kinds:?} down");
    drop(client);
    drop(backend);
    let end = end.recv_timeout(PATIENCE).unwrap();
    // Frames that pass whole are counted with their headers.
    let whole = kinds.0 == kinds.1 && matches!(kinds.0, Kind::Web(_));
    assert!(whole || (end.up, end.down) == (total, total), "{kinds:?} {end:?}");
    engines.stop();
}

const BINARY: Kind = Kind::Web(false);
const TEXT: Kind = Kind::Web(true);

/// The pairs of the doors, with what a long session moves: a browser's console of authd's (its TLS no. 2 ends here), of
/// WebMKS, of a VNC server; and a console nobody looks into.
const DOORS: [(Kind, Kind); 4] =
    [(BINARY, Kind::Tls), (BINARY, BINARY), (BINARY, Kind::Raw), (Kind::Raw, Kind::Raw)];
/// What else can meet, with less.
const OTHERS: [(Kind, Kind); 6] = [
    (Kind::Tls, Kind::Raw),
    (Kind::Raw, Kind::Tls),
    (Kind::Tls, Kind::Tls),
    (TEXT, Kind::Tls),
    (TEXT, Kind::Raw),
    (TEXT, BINARY),
];

fn all(driver: Driver) {
    DOORS.into_iter().for_each(|kinds| same_bytes(driver, kinds, 256));
    OTHERS.into_iter().for_each(|kinds| same_bytes(driver, kinds, 3));
}

#[test]
fn what_goes_in_comes_out_on_the_ring() {
    all(Driver::IoUring);
}

#[test]
fn what_goes_in_comes_out_with_epoll() {
    all(Driver::Epoll);
}
