//! The reader and the verdict against slow ones that were written from the RFCs, not from the code.

use std::collections::HashMap;

use mksgate_common::{
    bucket::Rate,
    map::{Address, BALANCER, Destination, Globals, Learned, SourceKey, Tenant},
    packet::{self, Kind, Syn},
    testing::{Memory, Packets, Random, Shape, shapes},
    verdict::{self, Verdict},
};

/// A slow reading: cuts the packet up front to back and gives the SYN's source, destination and port.
fn slow_read(packet: &[u8]) -> Result<(Vec<u8>, Vec<u8>, u16), Verdict> {
    use Verdict::{Established, LaterFragment, NotIp, OtherProtocol, Unparsable};
    let mut rest = cut(packet, 12)?.1;
    let mut tags = 0;
    let ether_type = loop {
        let (kind, behind) = cut(rest, 2)?;
        rest = behind;
        if tags < 2 && (kind == [0x81, 0] || kind == [0x88, 0xa8]) {
            // A tag is cut together with the type behind it.
            rest = cut(rest, 4).map(|_| &rest[2..])?;
            tags += 1;
            continue;
        }
        break u16::from_be_bytes([kind[0], kind[1]]);
    };
    let (source, destination, segment, length) = match ether_type {
        0x0800 => {
            let (fixed, _) = cut(rest, 20)?;
            let words = usize::from(fixed[0] % 16);
            if fixed[0] / 16 != 4 || words < 5 {
                return Err(Unparsable);
            }
            if fixed[9] != 6 {
                return Err(OtherProtocol);
            }
            if u16::from_be_bytes([fixed[6], fixed[7]]) % 8192 != 0 {
                return Err(LaterFragment);
            }
            let total = i64::from(u16::from_be_bytes([fixed[2], fixed[3]]));
            let segment = cut(rest, words * 4)?.1;
            (fixed[12..16].to_vec(), fixed[16..20].to_vec(), segment, total - words as i64 * 4)
        }
        0x86dd => {
            let (fixed, mut behind) = cut(rest, 40)?;
            if fixed[0] / 16 != 6 || fixed[8] == 255 {
                return Err(Unparsable);
            }
            let mut length = i64::from(u16::from_be_bytes([fixed[4], fixed[5]]));
            let (mut next, mut walked) = (fixed[6], 0);
            while next != 6 {
                let known = [0, 43, 44, 51, 60, 135, 139, 140].contains(&next);
                if !known {
                    return Err(OtherProtocol);
                }
                walked += 1;
                if walked > 6 {
                    return Err(Unparsable);
                }
                let start = cut(behind, 8)?.0;
                let size = match next {
                    44 if u16::from_be_bytes([start[2], start[3]]) / 8 != 0 => return Err(LaterFragment),
                    44 => 8,
                    51 => (usize::from(start[1]) + 2) * 4,
                    _ => (usize::from(start[1]) + 1) * 8,
                };
                next = start[0];
                // A header that ends behind the frame: whatever follows cannot be there.
                behind = behind.get(size..).unwrap_or(&[]);
                length -= size as i64;
            }
            (fixed[8..24].to_vec(), fixed[24..40].to_vec(), behind, length)
        }
        _ => return Err(NotIp),
    };
    let tcp = cut(segment, 20)?.0;
    if tcp[13] & 0x12 != 0x02 {
        return Err(Established);
    }
    let header = i64::from(tcp[12] / 16) * 4;
    if header < 20 || length < header {
        return Err(Unparsable);
    }
    Ok((source, destination, u16::from_be_bytes([tcp[2], tcp[3]])))
}

fn cut(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Verdict> {
    bytes.split_at_checked(at).ok_or(Verdict::Unparsable)
}

const PORT: u16 = 443;
const V4: ([u8; 4], [u8; 4]) = ([198, 51, 100, 1], [192, 0, 2, 1]);
const V6: ([u8; 16], [u8; 16]) = {
    let (mut from, mut to) = ([0; 16], [0; 16]);
    (from[0], from[1], from[15]) = (0x20, 0x01, 7);
    (to[0], to[1], to[15]) = (0x20, 0x02, 9);
    (from, to)
};

fn all_shapes() -> Vec<(&'static str, Shape)> {
    shapes([&V4.0, &V6.0], [&V4.1, &V6.1], PORT)
}

/// Sixteen sources of each family, most of them in prefixes.
fn packets(seed: u64) -> Packets {
    let v4 = (0..16).map(|i| vec![198, 51, 100 + i % 3, i]);
    let v6 = (0..16).map(|i| {
        let mut a = V6.0.to_vec();
        a[3] = i % 3;
        a[7] = i;
        a[15] = i;
        a
    });
    let destinations = vec![V4.1.to_vec(), vec![192, 0, 2, 2], V6.1.to_vec(), vec![9; 16]];
    Packets::new(seed, v4.chain(v6).collect(), destinations, vec![PORT, PORT, 902, 22])
}

#[test]
fn the_reader_reads_what_the_slow_one_reads() {
    for packet in packets(1).take(200_000) {
        assert_same_reading(&packet);
    }
}

#[test]
fn at_every_length() {
    for (name, shape) in all_shapes() {
        let whole = shape.build();
        for length in 0..=whole.len() {
            assert_same_reading(&whole[..length]);
        }
        for value in 0..=255 {
            for at in [14, 15, 18, 22, 26, 34 + 12, 34 + 13, 54 + 12] {
                let mut packet = whole.clone();
                packet[at] = value;
                assert_same_reading(&packet);
            }
        }
        assert!(whole.len() > 50, "{name}");
    }
}

fn assert_same_reading(packet: &[u8]) {
    let look = packet::look(packet);
    match slow_read(packet) {
        Ok((source, destination, port)) => {
            let syn = packet::syn(packet, &look).unwrap_or_else(|| panic!("{look:?} {packet:02x?}"));
            let tail = |a: Address| a.bytes()[16 - source.len()..].to_vec();
            assert_eq!((tail(syn.source), tail(syn.destination)), (source, destination), "{packet:02x?}");
            assert_eq!(syn.destination_port, port);
            assert!(verdict::unless_syn(packet).is_err());
        }
        Err(expected) => {
            assert_ne!(look.kind, Kind::Syn, "{packet:02x?}");
            assert_eq!(verdict::unless_syn(packet), Ok(expected), "{packet:02x?}");
        }
    }
}

#[test]
fn what_the_shapes_are() {
    use Verdict::{Established, LaterFragment, NotIp, OtherProtocol, Unparsable};
    let not_syns: HashMap<&str, Verdict> = [
        ("v4 three tags", NotIp),
        ("v4 established", Established),
        ("v4 syn ack", Established),
        ("v4 udp", OtherProtocol),
        ("v4 icmp", OtherProtocol),
        ("v4 later fragment", LaterFragment),
        ("v6 later fragment", LaterFragment),
        ("v6 chain too long", Unparsable),
        ("v6 icmp", OtherProtocol),
        ("arp", NotIp),
    ]
    .into();
    for (name, shape) in all_shapes() {
        assert_eq!(verdict::unless_syn(&shape.build()[..]).ok(), not_syns.get(name).copied(), "{name}");
    }
}

#[test]
fn only_plain_unicast_syns_are_answered() {
    for (name, shape) in all_shapes() {
        let packet = shape.build();
        let look = packet::look(&packet[..]);
        let refused = ["v4 syn rst", "v4 first fragment", "v6 first fragment"].contains(&name);
        assert_eq!(look.answerable, look.kind == Kind::Syn && !refused, "{name}");
        let mut multicast = packet.clone();
        multicast[0] |= 1;
        assert!(!packet::look(&multicast[..]).answerable, "{name}");
    }
}

#[test]
fn a_payload_is_measured_by_the_network_header() {
    let syn = Shape { payload: 77, options: 8, ..Shape::syn(&V4.0, &V4.1, PORT) };
    let mut packet = syn.build();
    packet.extend([0; 40]); // Ethernet padding
    let syn = packet::syn(&packet[..], &packet::look(&packet[..])).unwrap();
    assert_eq!((syn.payload, syn.sequence, syn.l3, syn.v6), (77, 0x0102_0304, 14, false));
}

/// The policy of the random tests: limits of every kind, small enough to be met.
fn tables() -> Memory {
    let mut memory = Memory::new(64, 5);
    memory.publish(Globals {
        source: Rate::per_second(350, 5),
        global: Rate::per_second(6_000, 30),
        resets: Rate::per_second(100, 10),
        events: Rate::per_second(10, 10),
        flags: Globals::PREFIXES | Globals::LEARNED | Globals::RESET,
        generation: 1,
        ..Globals::default()
    });
    let v4 = |a| Address::v4(a);
    memory.destinations.insert(Destination::new(v4(V4.1), PORT), 0);
    memory.destinations.insert(Destination::new(v4([192, 0, 2, 2]), 902), 4);
    memory.destinations.insert(Destination::new(Address::new(V6.1), PORT), 0);
    let mut v6 = V6.0;
    v6[3] = 1;
    memory.prefixes = vec![
        (96 + 24, v4([198, 51, 100, 0]), 1),
        (96 + 28, v4([198, 51, 100, 0]), 2),
        (96 + 24, v4([198, 51, 101, 0]), BALANCER),
        (32, Address::new(v6), 3),
    ];
    memory.learned.insert(SourceKey::v4([198, 51, 102, 2]), Learned { expires: 500_000_000, tenant: 1 });
    let tenant = |active, max, per_second| Tenant { active, max, rate: Rate::per_second(per_second, 30) };
    memory.tenants = vec![
        Tenant { rate: Rate::per_second(5000, 50), ..Tenant::UNLIMITED },
        tenant(0, 10, 2000),
        tenant(10, 10, 2000),
        tenant(9, 10, 500),
        Tenant::UNLIMITED,
    ];
    memory
}

/// A textbook bucket, see `bucket.rs`.
#[derive(Default)]
struct Slow(HashMap<String, (u128, u64)>);

impl Slow {
    fn take(&mut self, name: String, rate: Rate, now: u64) -> bool {
        if rate == Rate::UNLIMITED {
            return true;
        }
        let (interval, size) =
            (u128::from(rate.interval), u128::from(rate.interval) + u128::from(rate.tolerance));
        let (level, at) = self.0.entry(name).or_insert((size, now));
        *level = size.min(*level + u128::from(now - *at));
        *at = now;
        let given = *level >= interval;
        *level -= if given { interval } else { 0 };
        given
    }
}

/// The rules as the documentation words them.
fn slow_verdict(packet: &[u8], tables: &Memory, buckets: &mut Slow, now: u64) -> (Verdict, u32) {
    let (source, destination, port) = match slow_read(packet) {
        Ok(syn) => syn,
        Err(verdict) => return (verdict, 0),
    };
    let address = |bytes: &[u8]| match bytes.try_into() {
        Ok(four) => Address::v4(four),
        Err(_) => Address::new(bytes.try_into().unwrap()),
    };
    let Some(owner) = tables.destinations.get(&Destination::new(address(&destination), port)) else {
        return (Verdict::Unprotected, 0);
    };
    let source = address(&source);
    let longest = (0..=128).rev().find_map(|length| {
        let shift = |a: Address| u128::from_be_bytes(a.bytes()).checked_shr(128 - length).unwrap_or(0);
        tables.prefixes.iter().find(|(l, a, _)| *l == length && shift(*a) == shift(source)).map(|(.., n)| *n)
    });
    let bytes = source.bytes();
    let key = match bytes.strip_prefix(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]) {
        Some(v4) => SourceKey::v4(v4.try_into().unwrap()),
        None => SourceKey::v6(bytes),
    };
    let learned = tables.learned.get(&key).filter(|l| l.expires > now).map(|l| l.tenant);
    let tenant = match (owner, longest) {
        (0, Some(BALANCER)) => 0,
        (0, Some(prefix)) => prefix,
        (0, None) => learned.unwrap_or(0),
        (owner, _) => *owner,
    };
    let globals = tables.globals.unwrap();
    if longest != Some(BALANCER) && !buckets.take(format!("{key:?}"), globals.source, now) {
        return (Verdict::SourceRate, tenant);
    }
    let limits = tables.tenants[tenant as usize];
    if limits.max != u32::MAX && limits.active >= limits.max {
        return (Verdict::TenantFull, tenant);
    }
    if !buckets.take(format!("tenant {tenant}"), limits.rate, now) {
        return (Verdict::TenantRate, tenant);
    }
    if !buckets.take("global".into(), globals.global, now) {
        return (Verdict::GlobalRate, tenant);
    }
    (Verdict::Pass, tenant)
}

#[test]
fn the_verdict_is_what_the_rules_say() {
    let (tables, mut buckets, mut random) = (tables(), Slow::default(), Random::new(3));
    let (mut now, mut seen) = (1_000_000, HashMap::new());
    for packet in packets(2).take(200_000) {
        now += random.below(20_000);
        tables.now.set(now);
        let (expected, tenant) = slow_verdict(&packet, &tables, &mut buckets, now);
        *seen.entry(expected.as_str()).or_insert(0) += 1;
        let look = packet::look(&packet[..]);
        let Some(syn) = packet::syn(&packet[..], &look) else {
            assert_eq!(verdict::unless_syn(&packet[..]), Ok(expected));
            continue;
        };
        let judgement = verdict::judge(&syn, &tables);
        assert_eq!((judgement.verdict, judgement.tenant), (expected, tenant), "{packet:02x?}");
        assert!(!judgement.reset || judgement.verdict.sheds());
    }
    let rare: Vec<_> =
        Verdict::ALL.into_iter().filter(|v| seen.get(v.as_str()).is_none_or(|n| *n < 100)).collect();
    assert!(rare.is_empty(), "the packets did not meet {rare:?} often enough: {seen:?}");
}

fn syn_from(source: [u8; 4]) -> Syn {
    let packet = Shape::syn(&source, &V4.1, PORT).build();
    packet::syn(&packet[..], &packet::look(&packet[..])).unwrap()
}

/// One line, so that every source meets every other one.
fn one_line(source: Rate) -> Memory {
    let all = tables();
    let mut memory = Memory::new(1, 5);
    memory.publish(Globals { source, flags: 0, ..all.globals.unwrap() });
    (memory.destinations, memory.tenants) = (all.destinations, all.tenants);
    memory
}

#[test]
fn a_source_without_a_place_meets_the_other_limits() {
    let mut memory = one_line(Rate::per_second(1, 100));
    memory.tenants[0].rate = Rate::UNLIMITED;
    for loud in [1, 2].repeat(10) {
        assert_eq!(verdict::judge(&syn_from([203, 0, 113, loud]), &memory).verdict, Verdict::Pass);
    }
    memory.tenants[0].rate = Rate::per_second(1, 3);
    let passed = (0..100_u8)
        .filter(|i| verdict::judge(&syn_from([198, 51, 102, *i]), &memory).verdict == Verdict::Pass);
    assert_eq!((passed.count(), memory.table_full.get()), (3, 100));
    assert!(
        memory.source_counts(SourceKey::v4([203, 0, 113, 1])).is_some(),
        "the loud ones keep their places"
    );
}

#[test]
fn sources_of_one_syn_each_never_free_a_loud_one() {
    let memory = one_line(Rate::per_second(1, 5));
    let loud = syn_from([203, 0, 113, 1]);
    let mut passed = 0;
    for i in 0..=255 {
        passed += u32::from(!verdict::judge(&loud, &memory).verdict.sheds());
        verdict::judge(&syn_from([198, 51, 102, i]), &memory);
    }
    assert_eq!(passed, 5, "its burst and no more");
}

/// Many sources in few places, most of them loud, some of them keeping to their rate.
#[test]
fn who_keeps_to_the_rate_is_never_shed_for_others() {
    let mut random = Random::new(11);
    for (places, per_second, burst) in [(2, 100, 1), (2, 100, 5), (8, 300, 3), (32, 50, 20)] {
        let rate = Rate::per_second(per_second, burst);
        let mut memory = Memory::new(places, 1);
        memory.publish(Globals { source: rate, generation: 1, ..Globals::default() });
        memory.destinations.insert(Destination::new(Address::v4(V4.1), PORT), 0);
        let (mut exact, mut now) = (Slow::default(), 1_000_000);
        let (mut shed, mut strays) = (0, [false; 256]);
        for _ in 0..50_000 {
            now += random.below(2_000_000);
            memory.now.set(now);
            let source = random.below(256) as u8;
            // Three quarters of all SYNs come from eight sources.
            let source = if random.one_in(4) { source } else { source % 8 };
            let conforms = exact.take(source.to_string(), rate, now);
            strays[usize::from(source)] |= !conforms;
            let verdict = verdict::judge(&syn_from([198, 51, 102, source]), &memory).verdict;
            shed += u32::from(verdict.sheds());
            assert!(!verdict.sheds() || strays[usize::from(source)], "{source} in {places} places");
        }
        assert!(strays.iter().any(|s| !s), "some kept to their rate");
        assert!(places == 2 || shed > 0, "{places} places shed nothing");
    }
}

#[test]
fn sources_are_counted() {
    let mut tables = tables();
    tables.publish(Globals { source: Rate::per_second(1, 2), ..tables.globals.unwrap() });
    let packet = Shape::syn(&V4.0, &V4.1, PORT).build();
    let syn = packet::syn(&packet[..], &packet::look(&packet[..])).unwrap();
    for _ in 0..5 {
        verdict::judge(&syn, &tables);
    }
    assert_eq!(tables.source_counts(SourceKey::v4(V4.0)), Some((2, 3)));
}

#[test]
fn nothing_published_means_nothing_shed() {
    let mut tables = tables();
    tables.globals = None;
    let packet = Shape::syn(&V4.0, &V4.1, PORT).build();
    let syn = packet::syn(&packet[..], &packet::look(&packet[..])).unwrap();
    assert!((0..1000).all(|_| verdict::judge(&syn, &tables).verdict == Verdict::Unprotected));
}
