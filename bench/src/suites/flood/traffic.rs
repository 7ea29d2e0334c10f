//! What else comes to the appliance's address while it is flooded: TCP on another port, UDP, ICMP, each as fast as it goes.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::site::{Gate, Land};
use crate::load::cost::{cores, pin_self};

/// As of SSH: its port, and the length of a message of an interactive session.
const PORT: u16 = 22;
const KEYSTROKE: usize = 64;
const DATAGRAM: usize = 512;
/// How long an answer may take; an end is noticed this soon.
const BRIEF: Duration = Duration::from_millis(200);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Of our echo requests.
const IDENTIFIER: [u8; 2] = *b"mk";

/// What was carried.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rates {
    /// One TCP connection in one direction, MB/s.
    pub stream: f64,
    /// Small messages there and back over one TCP connection, per second.
    pub round_trips: f64,
    /// UDP datagrams that arrived, per second.
    pub datagrams: f64,
    /// Echo requests that were answered, per second.
    pub echoes: f64,
}

impl Rates {
    /// Names, and where each is found.
    pub const ALL: [(&'static str, fn(&Self) -> f64); 4] = [
        ("TCP stream", |r| r.stream),
        ("TCP round trips", |r| r.round_trips),
        ("UDP datagrams", |r| r.datagrams),
        ("ICMP echoes", |r| r.echoes),
    ];
}

/// Each for `time`, one after the other.
pub fn rates(land: &Land, gate: Gate, time: Duration) -> Result<Rates> {
    Ok(Rates {
        stream: stream(land, gate, time)? / 1e6,
        round_trips: round_trips(land, gate, time)?,
        datagrams: datagrams(land, gate, time)?,
        echoes: land.world.run(|| echoes(gate.host(), time))?,
    })
}

/// How many things a server on the appliance's core counts per second of `time` while a client sends.
fn counted(
    time: Duration,
    mut serve: impl FnMut() -> u64 + Send,
    mut send: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            if cores() > 1 {
                pin_self([0]);
            }
            while !stop.load(Ordering::Relaxed) {
                count.fetch_add(serve(), Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        let sent = (|| {
            while start.elapsed() < time {
                send()?;
            }
            Ok(count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
        })();
        stop.store(true, Ordering::Relaxed);
        sent
    })
}

/// Both ends of a TCP connection to the appliance's address.
fn connection(land: &Land, gate: Gate) -> Result<(TcpStream, TcpStream)> {
    let inside = land.inside(gate)?;
    let address = SocketAddr::from((gate.host(), PORT));
    let listener = inside.run(|| TcpListener::bind(address))?;
    let near = land.world.run(|| TcpStream::connect(address))?;
    let (far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(BRIEF))?;
        end.set_write_timeout(Some(BRIEF))?;
    }
    Ok((near, far))
}

fn stream(land: &Land, gate: Gate, time: Duration) -> Result<f64> {
    let (mut near, mut far) = connection(land, gate)?;
    let (mut buffer, data) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    counted(
        time,
        || far.read(&mut buffer).unwrap_or(0) as u64,
        || {
            let _ = near.write(&data)?;
            Ok(())
        },
    )
}

fn round_trips(land: &Land, gate: Gate, time: Duration) -> Result<f64> {
    let (mut near, mut far) = connection(land, gate)?;
    let (mut there, mut back) = ([0; KEYSTROKE], [0; KEYSTROKE]);
    let answer = || u64::from(far.read_exact(&mut there).and_then(|()| far.write_all(&there)).is_ok());
    counted(time, answer, || {
        near.write_all(&[b'k'; KEYSTROKE])?;
        Ok(near.read_exact(&mut back)?)
    })
}

fn datagrams(land: &Land, gate: Gate, time: Duration) -> Result<f64> {
    let inside = land.inside(gate)?;
    let address = SocketAddr::from((gate.host(), PORT));
    let far = inside.run(|| UdpSocket::bind(address))?;
    far.set_read_timeout(Some(BRIEF))?;
    let near = land.world.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    near.connect(address)?;
    let mut buffer = [0; DATAGRAM];
    let receive = || u64::from(far.recv(&mut buffer).is_ok());
    // A full queue loses; who counts is the receiver.
    counted(time, receive, || {
        let _ = near.send(&[0; DATAGRAM]);
        Ok(())
    })
}

fn echoes(host: Ipv4Addr, time: Duration) -> Result<f64> {
    let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.connect(&SocketAddr::from((host, 0)).into())?;
    socket.set_read_timeout(Some(BRIEF))?;
    let (start, mut answered, mut number, mut buffer) = (Instant::now(), 0_u64, 0_u16, [0; 256]);
    while start.elapsed() < time {
        number = number.wrapping_add(1);
        let request = echo_request(number);
        socket.write_all(&request)?;
        // Behind an IPv4 header without options.
        while let Ok(n) = socket.read(&mut buffer) {
            if n >= 28 && buffer[20] == ECHO_REPLY && buffer[24..28] == request[4..8] {
                answered += 1;
                break;
            }
        }
    }
    Ok(answered as f64 / start.elapsed().as_secs_f64())
}

/// RFC 792, with a right checksum (RFC 1071).
fn echo_request(number: u16) -> [u8; 8] {
    let mut out = [ECHO_REQUEST, 0, 0, 0, IDENTIFIER[0], IDENTIFIER[1], 0, 0];
    out[6..].copy_from_slice(&number.to_be_bytes());
    let sum: u32 = out.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    out[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_sums_to_nothing() {
        for number in [0, 1, 0x7fff, 0xffff] {
            let sum: u32 =
                echo_request(number).chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }
}
