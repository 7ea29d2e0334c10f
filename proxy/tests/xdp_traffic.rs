//! What is not the gate's business passes it untouched while a flood is shed; and what is, goes by the right tenant.

mod xdp_support;

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use mksgate::xdp::{Gate, OnLimit, Policy, XdpSection, monotonic};
use mksgate_bench::load::flood::Plan;
use mksgate_common::{bucket::Rate, verdict::Verdict};
use socket2::{Domain, Protocol, Socket, Type};
use xdp_support::wire::{GATE, HOST4, HOST6, PATIENCE, WORLD, Wire, client4, client6, until};
use xdp_support::{policy, tenant};

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn section() -> XdpSection {
    XdpSection { interfaces: vec![GATE.to_owned()], ..XdpSection::default() }
}

fn protected() -> Vec<SocketAddr> {
    vec![at(HOST4, 443), at(HOST6, 443)]
}

/// Sends every connection's bytes back.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut reader = stream.try_clone()?;
                std::io::copy(&mut reader, &mut &stream)
            });
        }
    });
}

#[test]
fn everything_else_passes_during_a_flood() {
    let Some(wire) = Wire::new() else { return };
    let mut policy = policy(protected(), vec![]);
    policy.limits.shared = Rate::NEVER;
    let (gate, _events) = wire.start(&section(), policy).unwrap();
    for ssh in [at(HOST4, 22), at(HOST6, 22)] {
        echo(wire.listen(ssh));
    }
    let udp = wire.inside.run(|| UdpSocket::bind(at(HOST4, 53))).unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(&datagram[..length], from);
        }
    });
    let flood = |destination, source: IpAddr| {
        wire.flood(Plan { source, sources: 5000, destination, per_second: 20_000, count: 0 })
    };
    // Spoofed: none of these addresses answers.
    let floods = [
        flood(at(HOST4, 443), "10.77.100.1".parse().unwrap()),
        flood(at(HOST6, 443), "fd77:0:0:1000::1".parse().unwrap()),
    ];
    until("the floods are shed", || (gate.counters().unwrap().shed() > 2000).then_some(()));

    let packets = |verdict| gate.counters().unwrap().packets(verdict);
    let before = (packets(Verdict::NotIp), packets(Verdict::OtherProtocol));
    for family in ["-4", "-6"] {
        // `ip` gives up after ten rounds: the host asks for the spoofed addresses' owners, and each question makes an entry.
        let _ = wire.outside.ip(&format!("{family} neighbour flush dev {WORLD}"));
    }
    for (from, to) in [(IpAddr::from(client4(1, 1)), at(HOST4, 22)), (client6(1).into(), at(HOST6, 22))] {
        let mut ssh = wire.connect(from, to).unwrap();
        keystrokes(&mut ssh, 300);
        bulk(&ssh, 8 << 20);
    }
    assert!(packets(Verdict::NotIp) > before.0, "ARP was needed and came through");
    datagrams(&wire, 300);
    pings(&wire, HOST4.into(), 100);
    pings(&wire, HOST6.into(), 100);
    assert!(packets(Verdict::OtherProtocol) >= before.1 + 500, "UDP, ICMP, neighbour discovery");

    let counters = gate.counters().unwrap();
    let sent: u64 = floods.into_iter().map(|flood| flood.stop().unwrap()).sum();
    assert!(counters.shed() <= sent, "nothing else was shed: {} of {sent}", counters.shed());
    assert_eq!(counters.shed(), counters.packets(Verdict::TenantRate), "and all of it for one reason");
    assert_eq!(counters.packets(Verdict::Unprotected), 2, "two connections to another port");
}

/// A line up, a line down, as somebody types.
fn keystrokes(ssh: &mut TcpStream, count: usize) {
    ssh.set_nodelay(true).unwrap();
    for _ in 0..count {
        ssh.write_all(b"ls -l\n").unwrap();
        let mut line = [0; 6];
        ssh.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"ls -l\n");
    }
}

fn bulk(ssh: &TcpStream, bytes: usize) {
    let pattern: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| (&mut &*ssh).write_all(&pattern).unwrap());
        let mut back = vec![0; bytes];
        (&mut &*ssh).read_exact(&mut back).unwrap();
        assert!(back == pattern, "the same bytes");
    });
}

fn datagrams(wire: &Wire, count: u32) {
    let socket = wire.outside.run(|| UdpSocket::bind(at(client4(1, 1), 0))).unwrap();
    socket.connect(at(HOST4, 53)).unwrap();
    // The interface's queue may be full of the flood, and UDP sends nothing again by itself.
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for number in 0..count {
        until("a datagram comes back", || {
            socket.send(&number.to_be_bytes()).unwrap();
            let mut answer = [0; 16];
            loop {
                match socket.recv(&mut answer) {
                    Ok(4) if answer[..4] == number.to_be_bytes() => return Some(()),
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        return None;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
}

/// Echo requests (RFC 792, RFC 4443) by a raw socket.
fn pings(wire: &Wire, to: IpAddr, count: u16) {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = wire.outside.run(|| Socket::new(domain, Type::RAW, Some(protocol))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for number in 1..=count {
        let [high, low] = number.to_be_bytes();
        // Identifier 7; the kernel fills in the checksum of ICMPv6.
        let mut message = [request, 0, 0, 0, 0, 7, high, low];
        if to.is_ipv4() {
            let sum = !(u16::from_be_bytes([request, 0]) + 7 + number);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        until("an echo reply", || {
            socket.send_to(&message, &at(to, 0).into()).unwrap();
            loop {
                let mut buffer = [MaybeUninit::uninit(); 256];
                let length = socket.recv(&mut buffer).ok()?;
                // A raw socket of IPv4 gives the header too.
                let start = if to.is_ipv4() { 20 } else { 0 };
                let answer = read(&buffer[start..length]);
                if answer.first() == Some(&reply) && answer.get(4..8) == Some(&message[4..8]) {
                    return Some(());
                }
            }
        });
    }
}

fn read(bytes: &[MaybeUninit<u8>]) -> Vec<u8> {
    #[expect(unsafe_code, reason = "socket2 gives what it has received as possibly uninitialised")]
    // SAFETY: the caller gives the part that recv said it has filled.
    bytes.iter().map(|byte| unsafe { byte.assume_init() }).collect()
}

/// A gate that answers by resets, and says at once of each source whether it gets through.
struct Probe {
    wire: Wire,
    gate: Gate,
    _listeners: Vec<TcpListener>,
}

impl Probe {
    fn new(mut policy: Policy) -> Option<Probe> {
        let wire = Wire::new()?;
        policy.limits.on_limit = OnLimit::Reset;
        policy.limits.resets = Rate::UNLIMITED;
        let listeners = policy.listen.iter().map(|address| wire.listen(*address)).collect();
        let (gate, _) = wire.start(&section(), policy).unwrap();
        Some(Probe { wire, gate, _listeners: listeners })
    }

    fn passes(&self, from: impl Into<IpAddr>) -> bool {
        let from = from.into();
        let to = at(if from.is_ipv4() { HOST4.into() } else { IpAddr::from(HOST6) }, 443);
        match self.wire.connect(from, to) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_longest_prefix_around_a_source_tells_its_tenant() {
    let mut policy = policy(
        protected(),
        vec![
            tenant(1, "wide", None, Rate::NEVER, &["10.77.0.0/16", "fd77::/48"], &[]),
            tenant(2, "narrow", None, Rate::UNLIMITED, &["10.77.1.0/24", "fd77:0:0:1::/64"], &[]),
            tenant(3, "single", None, Rate::NEVER, &["10.77.1.3/32"], &[]),
        ],
    );
    policy.limits.source = Rate::UNLIMITED;
    let Some(probe) = Probe::new(policy) else { return };
    assert!(probe.passes(client4(1, 1)), "narrow");
    assert!(!probe.passes(client4(1, 3)), "single");
    assert!(!probe.passes(client4(2, 1)), "wide");
    assert!(probe.passes(client6(1)) && !probe.passes(client6(2)));
    let counters = probe.gate.counters().unwrap();
    let of = |name, verdict| counters.tenant(name).unwrap().syns(verdict);
    assert_eq!(
        (of("narrow", Verdict::Pass), of("single", Verdict::TenantRate), of("wide", Verdict::TenantRate)),
        (2, 1, 2)
    );
}

#[test]
fn what_is_learned_of_a_source_ends_with_its_time_and_two_tenants_make_it_nobodys() {
    let mut policy = policy(
        protected(),
        vec![
            tenant(1, "acme", None, Rate::UNLIMITED, &[], &[]),
            tenant(2, "bolt", None, Rate::UNLIMITED, &[], &[]),
        ],
    );
    policy.limits.shared = Rate::NEVER;
    policy.limits.learned = Duration::from_secs(1);
    policy.balancers = vec!["10.77.2.4/32".parse().unwrap()];
    let Some(probe) = Probe::new(policy) else { return };
    let learn = |from: IpAddr, tenant, at| probe.gate.learn(from, tenant, at);
    // Times are the caller's: what is learned in an hour is good for an hour and a second from now.
    let now = monotonic() + 3_600_000_000_000;
    assert!(!probe.passes(client4(1, 1)), "a stranger");
    // Known for the first second after the machine's start. The other one's note comes after it in the same order.
    learn(client4(1, 1).into(), 1, 0);
    learn(client6(1).into(), 1, now);
    until("IPv6 is known", || probe.passes(client6(1)).then_some(()));
    assert!(!probe.passes(client4(1, 1)), "expired");
    learn(client4(1, 1).into(), 1, now);
    until("known", || probe.passes(client4(1, 1)).then_some(()));
    learn(client4(1, 1).into(), 2, now);
    until("nobody's", || (!probe.passes(client4(1, 1))).then_some(()));
    // A load balancer's packets tell no tenant, whoever is behind.
    learn(client4(2, 4).into(), 1, now);
    learn(client4(1, 2).into(), 1, now);
    until("the next one is known", || probe.passes(client4(1, 2)).then_some(()));
    assert!(!probe.passes(client4(2, 4)));
}

#[test]
fn a_source_beyond_its_rate_waits_and_others_do_not() {
    let mut policy =
        policy(protected(), vec![tenant(1, "acme", None, Rate::UNLIMITED, &["10.77.1.0/24"], &[])]);
    // Three at once, and then none for the time of a test.
    policy.limits.source = Rate { interval: 1 << 50, tolerance: 2 << 50 };
    policy.balancers = vec!["10.77.2.1/32".parse().unwrap()];
    let Some(probe) = Probe::new(policy) else { return };
    let of = |from: IpAddr| (0..6).map(|_| probe.passes(from)).collect::<Vec<_>>();
    let three = [true, true, true, false, false, false];
    assert_eq!(of(client4(1, 1).into()), three);
    assert_eq!(of(client4(1, 2).into()), three);
    assert_eq!(of(client6(1).into()), three);
    assert_eq!(of(client4(2, 1).into()), [true; 6], "a load balancer");
    let loud = probe.gate.top_sources(2).unwrap();
    assert_eq!((loud[0].passed, loud[0].shed), (3, 3));
    assert_eq!(probe.gate.counters().unwrap().tenant("acme").unwrap().syns(Verdict::SourceRate), 6);
}

#[test]
fn a_sessions_end_and_begin_reach_the_kernel() {
    let policy =
        policy(protected(), vec![tenant(1, "acme", Some(2), Rate::UNLIMITED, &["10.77.1.0/24"], &[])]);
    let Some(probe) = Probe::new(policy) else { return };
    for round in 0..50 {
        probe.gate.set_active(1, 2);
        until("full", || (!probe.passes(client4(1, 1))).then_some(()));
        probe.gate.set_active(1, 1 - round % 2);
        until("free", || probe.passes(client4(1, 1)).then_some(()));
    }
}

#[test]
fn drops_are_told_in_samples() {
    let wire = match Wire::new() {
        Some(wire) => wire,
        None => return,
    };
    let mut policy = policy(protected(), vec![tenant(1, "acme", None, Rate::NEVER, &["10.77.1.0/24"], &[])]);
    policy.limits.events = Rate { interval: 1 << 50, tolerance: 9 << 50 };
    let (gate, events) = wire.start(&section(), policy).unwrap();
    let plan = Plan {
        source: client4(1, 1).into(),
        sources: 1,
        destination: at(HOST4, 443),
        per_second: 0,
        count: 2000,
    };
    let sent = wire.flood(plan).finish().unwrap();
    let told: Vec<_> = (0..10).map(|_| events.recv_timeout(PATIENCE).unwrap()).collect();
    for event in &told {
        assert_eq!((event.tenant.as_str(), event.verdict), ("acme", "tenant_rate"));
        assert_eq!((event.source, event.destination), (client4(1, 1).into(), at(HOST4, 443)));
    }
    until("all counted that came", || (gate.counters().unwrap().shed() > 1000).then_some(()));
    drop(gate);
    assert!(events.try_recv().is_err(), "ten of {sent}, as configured");
}
