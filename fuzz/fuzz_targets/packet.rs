//! Any bytes as a frame, under any small policy: the reader stays within the frame, the verdict is one that the policy allows,
//! and a reset is a whole packet with right checksums.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mksgate_common::bucket::Rate;
use mksgate_common::map::{BALANCER, Destination, Globals, Tenant};
use mksgate_common::packet::{self, Look, Syn};
use mksgate_common::reset;
use mksgate_common::testing::Memory;
use mksgate_common::verdict::{self, Verdict};

fuzz_target!(|bytes: &[u8]| {
    let [choice, rate, frame @ ..] = bytes else { return };
    let look = match verdict::unless_syn(frame) {
        Ok(verdict) => return assert!(!verdict.sheds() && verdict.syn_index().is_none()),
        Err(look) => look,
    };
    assert!([14, 18, 22].contains(&look.l3) && look.l4 as usize + 20 <= frame.len());
    let syn = packet::syn(frame, &look).expect("a SYN that was seen can be read");
    assert_eq!(
        packet::syn(frame, &Look::unpack(look.pack())),
        Some(syn),
        "what crosses the call is all of it"
    );
    judged(&syn, *choice, *rate);
    answered(&syn);
});

/// The same SYN again and again, a millisecond apart.
fn judged(syn: &Syn, choice: u8, rate: u8) {
    let rate = [Rate::UNLIMITED, Rate::NEVER, Rate::per_second(u32::from(rate) * 7, u32::from(rate >> 4))];
    let of = |shift: u8| rate[usize::from(choice >> shift & 3) % 3];
    let mut memory = Memory::new(2, 3);
    let flags = u32::from(choice & 15);
    let globals =
        Globals { source: of(0), global: of(2), resets: of(4), events: of(6), flags, ..Globals::default() };
    memory.publish(Globals { generation: 1, ..globals });
    let owner = u32::from(choice >> 1 & 1);
    memory.destinations.insert(Destination::new(syn.destination, syn.destination_port), owner);
    let tenant = if choice & 8 == 0 { 2 } else { BALANCER };
    memory.prefixes.push((u32::from(choice) % 129, syn.source, tenant));
    memory.tenants[1] = Tenant { active: 1, max: u32::from(choice & 3), rate: of(3) };
    memory.tenants[2] = Tenant { active: u32::from(choice), max: u32::MAX, rate: of(1) };
    for turn in 1..8 {
        memory.now.set(turn * 1_000_000);
        let judgement = verdict::judge(syn, &memory);
        assert!(judgement.verdict.syn_index().is_some(), "protected");
        assert!((judgement.tenant as usize) < memory.tenants.len());
        assert!(judgement.verdict.sheds() || !(judgement.reset || judgement.event));
        let full = memory.tenants[judgement.tenant as usize];
        assert!(judgement.verdict != Verdict::TenantFull || full.active >= full.max);
        assert!(judgement.verdict != Verdict::Pass || full.max == u32::MAX || full.active < full.max);
    }
}

fn answered(syn: &Syn) {
    if syn.v6 {
        let out = bytes(&reset::v6(syn));
        assert_eq!(checksum(&[&out[8..40], &[0, 20, 0, 6], &out[40..]]), 0);
    } else {
        let out = bytes(&reset::v4(syn));
        assert_eq!(checksum(&[&out[..20]]), 0);
        assert_eq!(checksum(&[&out[12..20], &[0, 6, 0, 20], &out[20..]]), 0);
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// RFC 1071 over parts of even length: zero if a right checksum is among them.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words.map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}
