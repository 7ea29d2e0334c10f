//! The loaded program by BPF_PROG_TEST_RUN: the kernel's verdict is the pure function's.

mod xdp_support;

use std::net::SocketAddr;

use mksgate::xdp::{OnLimit, Program, monotonic};
use mksgate_common::{
    bucket::Rate,
    packet, reset,
    testing::{Memory, Packets, Shape, Vlan, shapes},
    verdict::{self, Verdict},
};
use xdp_support::{memory_of, policy, privileged, tenant};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

const V4: ([u8; 4], [u8; 4]) = ([198, 51, 100, 1], [192, 0, 2, 1]);
const V6: ([u8; 16], [u8; 16]) = (
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1],
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 9],
);

fn listen() -> Vec<SocketAddr> {
    vec!["192.0.2.1:443".parse().unwrap(), "[2001:db8:0:9::9]:443".parse().unwrap()]
}

fn v4_syn() -> Vec<u8> {
    Shape::syn(&V4.0, &V4.1, 443).build()
}

#[test]
fn the_kernel_accepts_the_program() {
    if !privileged() {
        return;
    }
    let program = Program::load(&policy(listen(), vec![]), &[], 1024).unwrap();
    assert_ne!(program.id(), 0);
}

/// Buckets that give a few tokens and then, for the time of the test, none: no clock is in the comparison.
fn slow_rate(burst: u64) -> Rate {
    let interval = 1_u64 << 50;
    Rate { interval, tolerance: interval * (burst - 1) }
}

#[test]
fn a_hundred_thousand_packets_get_the_same_verdict() {
    if !privileged() {
        return;
    }
    let mut policy = policy(
        [listen(), vec!["192.0.2.2:902".parse().unwrap()]].concat(),
        vec![
            tenant(1, "prefix", Some(10), slow_rate(500), &["198.51.100.0/24", "2001:db8:0:100::/56"], &[]),
            tenant(2, "longer", Some(10), slow_rate(300), &["198.51.100.8/29"], &[]),
            tenant(3, "full", Some(0), Rate::UNLIMITED, &["198.51.102.0/24"], &[]),
            tenant(4, "address", None, slow_rate(2000), &[], &["192.0.2.2:902"]),
            tenant(7, "everywhere", Some(10), slow_rate(100), &["2001:db8::/32"], &[]),
        ],
    );
    policy.limits.on_limit = OnLimit::Reset;
    policy.limits.source = slow_rate(60);
    policy.limits.shared = slow_rate(700);
    policy.limits.global = slow_rate(1500);
    policy.limits.resets = slow_rate(5000);
    policy.limits.events = Rate::NEVER;
    policy.balancers = vec!["198.51.101.0/24".parse().unwrap()];
    let mut program = Program::load(&policy, &[], 65_536).unwrap();
    program.set_active(2, 10).unwrap();
    let mut memory: Memory = memory_of(&policy, 4096);
    memory.tenants[2].active = 10;

    let sources = (0..24).map(|i| vec![198, 51, 100 + i % 4, i]).chain((0..24).map(|i| {
        let mut address = V6.0.to_vec();
        (address[3], address[7], address[15]) = (0xb8 + i % 2, i, i);
        address
    }));
    let destinations = vec![V4.1.to_vec(), vec![192, 0, 2, 2], V6.1.to_vec(), vec![9; 16]];
    let packets = Packets::new(0x6d6b_7367, sources.collect(), destinations, vec![443, 443, 902, 22]);
    let mut seen = [0_u64; Verdict::COUNT];
    let mut before = program.counters().unwrap();
    // The kernel takes no test packet shorter than an Ethernet header; what is longer than a page comes in several
    // buffers, of which the program reads the first.
    for packet in packets.filter(|p| (14..=3000).contains(&p.len())).take(100_000) {
        let outcome = program.test_run(&packet, 1).unwrap();
        memory.now.set(monotonic());
        let (expected, answer) = expectation(&packet, &memory);
        seen[expected as usize] += 1;

        let after = program.counters().unwrap();
        let counted: Vec<Verdict> =
            Verdict::ALL.into_iter().filter(|v| after.packets(*v) != before.packets(*v)).collect();
        before = after;
        let head = &packet[..packet.len().min(200)];
        assert_eq!(counted, [expected], "{head:02x?}");
        let action = match (&answer, expected.sheds()) {
            (Some(_), _) => TX,
            (None, true) => DROP,
            (None, false) => PASS,
        };
        assert_eq!(outcome.action, action, "{head:02x?}");
        assert!(outcome.packet == answer.unwrap_or_else(|| packet.clone()), "{head:02x?}");
    }
    println!("{:?}", Verdict::ALL.map(|v| (v.as_str(), seen[v as usize])));
    assert!(seen.iter().all(|n| *n >= 100), "a verdict was met too rarely: {seen:?}");
    assert_eq!(before.resets_failed, 0);
}

/// The verdict, and the packet that is sent back.
fn expectation(packet: &[u8], memory: &Memory) -> (Verdict, Option<Vec<u8>>) {
    if let Ok(verdict) = verdict::unless_syn(packet) {
        return (verdict, None);
    }
    let syn = packet::syn(packet, &packet::look(packet)).unwrap();
    let judgement = verdict::judge(&syn, memory);
    let answer = judgement.reset.then(|| {
        let l3 = syn.l3 as usize;
        let swapped = [&packet[6..12], &packet[..6], &packet[12..l3]].concat();
        let words = if syn.v6 { reset::v6(&syn).to_vec() } else { reset::v4(&syn).to_vec() };
        let ip: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        [swapped, ip].concat()
    });
    (judgement.verdict, answer)
}

#[test]
fn resets_are_whole_packets_on_every_layer() {
    if !privileged() {
        return;
    }
    let mut policy = policy(listen(), vec![]);
    policy.limits.on_limit = OnLimit::Reset;
    policy.limits.shared = Rate::NEVER;
    policy.limits.resets = Rate::UNLIMITED;
    let program = Program::load(&policy, &[], 1024).unwrap();
    for (name, shape) in shapes([&V4.0, &V6.0], [&V4.1, &V6.1], 443) {
        let packet = shape.build();
        let look = packet::look(&packet[..]);
        let Some(syn) = packet::syn(&packet[..], &look).filter(|syn| syn.destination_port == 443) else {
            continue;
        };
        let outcome = program.test_run(&packet, 1).unwrap();
        if !syn.answerable {
            assert_eq!(outcome.action, DROP, "{name}");
            continue;
        }
        assert_eq!(outcome.action, TX, "{name}");
        let answer = outcome.packet;
        assert_eq!((&answer[..6], &answer[6..12]), (&packet[6..12], &packet[..6]), "{name}");
        let l3 = syn.l3 as usize;
        let (ip, tcp, pseudo) = if syn.v6 {
            assert_eq!(answer.len(), l3 + 60, "{name}");
            let ip = &answer[l3..l3 + 40];
            (ip, &answer[l3 + 40..], [&ip[8..40], &[0, 0, 0, 20, 0, 0, 0, 6][..]].concat())
        } else {
            assert_eq!(answer.len(), l3 + 40, "{name}");
            let ip = &answer[l3..l3 + 20];
            assert_eq!(checksum(ip), 0, "{name}: IPv4 header");
            (ip, &answer[l3 + 20..], [&ip[12..20], &[0, 6, 0, 20][..]].concat())
        };
        assert_eq!(ip[0] >> 4, if syn.v6 { 6 } else { 4 });
        assert_eq!(checksum(&[&pseudo, tcp].concat()), 0, "{name}: TCP");
        assert_eq!(tcp[13], 0x14, "{name}: RST and ACK");
        assert_eq!(tcp[4..8], [0; 4], "{name}: sequence");
        let acknowledged = syn.sequence.wrapping_add(1 + shape.payload as u32);
        assert_eq!(tcp[8..12], acknowledged.to_be_bytes(), "{name}: acknowledgement");
    }
}

/// RFC 1071 over whole words: zero if a right checksum is among them.
fn checksum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[test]
fn limits_are_exact_by_the_published_count() {
    if !privileged() {
        return;
    }
    for limit in [0, 1, 10, 1000] {
        let acme = tenant(1, "acme", Some(limit), Rate::UNLIMITED, &["198.51.100.0/24"], &[]);
        let mut policy = policy(listen(), vec![acme]);
        policy.limits.source = Rate::UNLIMITED;
        let mut program = Program::load(&policy, &[], 1024).unwrap();
        let mut admitted = 0;
        while program.test_run(&v4_syn(), 1).unwrap().action == PASS {
            admitted += 1;
            program.set_active(1, admitted).unwrap();
            assert!(admitted <= limit);
        }
        assert_eq!(admitted, limit);
        if limit > 0 {
            program.set_active(1, limit - 1).unwrap();
            assert_eq!(program.test_run(&v4_syn(), 1).unwrap().action, PASS, "a slot came back");
        }
        let counters = program.counters().unwrap();
        assert_eq!(counters.tenant("acme").unwrap().syns(Verdict::TenantFull), 1);
    }
}

#[test]
fn a_full_table_of_sources_fails_open_and_other_limits_hold() {
    if !privileged() {
        return;
    }
    let mut policy = policy(listen(), vec![]);
    policy.limits.source = slow_rate(1);
    policy.limits.shared = slow_rate(2000);
    // The kernel evicts the least recently seen, so more sources than places all get their first SYN through …
    let program = Program::load(&policy, &[], 256).unwrap();
    let passed = (0..4000_u32).filter(|i| {
        let source = [10, 1, (i >> 8) as u8, *i as u8];
        program.test_run(&Shape::syn(&source, &V4.1, 443).build(), 1).unwrap().action == PASS
    });
    // … until the limit that they share.
    assert_eq!(passed.count(), 2000);
    assert!(program.sources().unwrap().len() <= 256);
}

#[test]
fn jumbo_and_tiny_frames() {
    if !privileged() {
        return;
    }
    let program = Program::load(&policy(listen(), vec![]), &[], 1024).unwrap();
    let jumbo = Shape { payload: 9000, flags: 0x10, ..Shape::syn(&V4.0, &V4.1, 443) };
    assert_eq!(program.test_run(&jumbo.build(), 1).unwrap().action, PASS);
    let jumbo_syn = Shape { payload: 9000, ..Shape::syn(&V4.0, &V4.1, 443) };
    assert_eq!(program.test_run(&jumbo_syn.build(), 1).unwrap().action, PASS);
    for length in 14..60 {
        assert_eq!(program.test_run(&v4_syn()[..length], 1).unwrap().action, PASS, "{length}");
    }
    let counters = program.counters().unwrap();
    assert_eq!((counters.packets(Verdict::Established), counters.packets(Verdict::Unparsable)), (1, 40));
}

#[test]
fn a_jumbo_syn_is_answered_by_a_small_reset() {
    if !privileged() {
        return;
    }
    let mut policy = policy(listen(), vec![]);
    policy.limits.on_limit = OnLimit::Reset;
    policy.limits.shared = Rate::NEVER;
    let program = Program::load(&policy, &[], 1024).unwrap();
    let shape = Shape { payload: 9000, vlans: vec![Vlan(0x8100, 7)], ..Shape::syn(&V6.0, &V6.1, 443) };
    let outcome = program.test_run(&shape.build(), 1).unwrap();
    assert_eq!((outcome.action, outcome.packet.len()), (TX, 18 + 60));
}
