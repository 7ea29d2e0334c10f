//! The bare ways of moving bytes that are measured beside the engine: whatever they cost, they deliver.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use mksgate::flow::study::Way;
use mksgate_bench::sim::screen::Pattern;

/// Long enough for every buffer and pipe to be full more than once.
const BYTES: usize = 6 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn relay(way: Way, to: SocketAddr) -> (Relay, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_relay"))
        .args(["--way", way.as_str(), "--connect", &to.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Relay(child), line.trim().parse().unwrap())
}

fn pattern(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    Pattern::new(seed).fill(&mut bytes);
    bytes
}

/// Sends all of a pattern and its end, and reads the other side's at the same time.
fn exchange(mut end: TcpStream, send: u64, expect: u64) {
    end.set_read_timeout(Some(PATIENCE)).unwrap();
    end.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut reader = end.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).map(|_| got)
    });
    end.write_all(&pattern(send)).unwrap();
    end.shutdown(Shutdown::Write).unwrap();
    let got = reading.join().unwrap().unwrap();
    assert_eq!(got.len(), BYTES);
    assert!(got == pattern(expect), "other bytes than were sent");
}

#[test]
fn every_way_delivers_what_was_sent_in_both_directions_and_its_end() {
    for way in Way::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_relay, address) = relay(way, listener.local_addr().unwrap());
        for flow in 0..3 {
            let client = TcpStream::connect(address).unwrap();
            let (backend, _) = listener.accept().unwrap();
            let seed = flow * 2;
            let behind = thread::spawn(move || exchange(backend, seed + 1, seed));
            exchange(client, seed, seed + 1);
            behind.join().unwrap_or_else(|_| panic!("{}: the backend's side", way.as_str()));
        }
    }
}

#[test]
fn an_unknown_way_is_refused_with_their_names() {
    let output = Command::new(env!("CARGO_BIN_EXE_relay"))
        .args(["--way", "teleport", "--connect", "127.0.0.1:9"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("op-splice, ring-splice, epoll-splice"), "{text}");
}
