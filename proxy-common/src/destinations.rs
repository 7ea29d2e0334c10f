//! The table of protected addresses and ports: a cuckoo hash in blocks of two places (Pagh and Rodler 2001; Dietzfelbinger and
//! Weidling 2007), so that a look is one line of the cache, or two.
//!
//! Userspace alone writes it, into the half that is not in use; then one word of [`Globals`] says which half holds.

use core::mem::{align_of, size_of};

use crate::map::{Destination, Globals};

/// A protected address and port with its owner.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Protected {
    /// The halves of the address in memory order.
    address: [u64; 2],
    /// The port, above it the tenant's number: one word to compare. No port is 0, so neither is a place in use.
    port: u32,
    /// 0 = the shared one.
    tenant: u32,
}

/// A value of `DESTINATIONS`: a line of the cache.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    places: [Protected; 2],
    pad: [u64; 2],
}

const _: () = assert!(size_of::<Block>() == 64 && align_of::<Block>() == 64);

/// Two indexes below the number of blocks.
struct Hash(u64);

impl Hash {
    #[inline(always)]
    fn of(address: [u64; 2], port: u32, seed: u64) -> Hash {
        let both = address[0].wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ address[1];
        Hash((both ^ (port as u64) << 7).wrapping_mul(seed))
    }

    #[inline(always)]
    fn first(&self, blocks: u32) -> u32 {
        // A multiplication in place of a remainder, which takes the upper bits: all others have a part in them.
        (((self.0 >> 32) * blocks as u64) >> 32) as u32
    }

    #[inline(always)]
    fn second(&self, blocks: u32) -> u32 {
        Hash((self.0 ^ self.0 >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)).first(blocks)
    }
}

impl Block {
    #[inline(always)]
    fn owner(&self, address: [u64; 2], port: u32) -> Option<u32> {
        let [first, second] = &self.places;
        // The lower half of an IPv4 address tells more than the upper.
        let is = |p: &Protected| p.port == port && p.address[1] == address[1] && p.address[0] == address[0];
        if is(first) {
            return Some(first.tenant);
        }
        if is(second) { Some(second.tenant) } else { None }
    }
}

/// The tenant of a protected address and port (0 = the shared one), `None` if it is not protected.
#[inline(always)]
pub fn find<'a>(
    key: &Destination,
    globals: &Globals,
    block: impl Fn(u32) -> Option<&'a Block>,
) -> Option<u32> {
    let (address, port, blocks) = (key.address.0, u32::from(key.port), globals.blocks);
    let hash = Hash::of(address, port, globals.seed);
    if let Some(owner) = block(globals.destinations.wrapping_add(hash.first(blocks)))?.owner(address, port) {
        return Some(owner);
    }
    block(globals.destinations.wrapping_add(hash.second(blocks)))?.owner(address, port)
}

/// Places moved for one that comes; where so many do not help, another seed or more room will.
#[cfg(any(test, feature = "user"))]
const MOVES: u32 = 1000;

/// The blocks that hold these, for that seed; `None` if they find no room.
#[cfg(any(test, feature = "user"))]
pub fn build(
    all: impl IntoIterator<Item = (Destination, u32)>,
    blocks: u32,
    seed: u64,
) -> Option<std::vec::Vec<Block>> {
    let mut table = std::vec![Block::default(); blocks as usize];
    for (key, tenant) in all {
        insert(&mut table, Protected { address: key.address.0, port: key.port.into(), tenant }, seed)?;
    }
    Some(table)
}

#[cfg(any(test, feature = "user"))]
fn insert(table: &mut [Block], mut entry: Protected, seed: u64) -> Option<()> {
    let blocks = table.len() as u32;
    let indexes = |entry: &Protected| {
        let hash = Hash::of(entry.address, entry.port, seed);
        [hash.first(blocks), hash.second(blocks)]
    };
    let mut at = indexes(&entry)[0];
    for turn in 0..MOVES {
        for index in [at, indexes(&entry)[0], indexes(&entry)[1]] {
            if let Some(free) = table[index as usize].places.iter_mut().find(|p| p.port == 0) {
                *free = entry;
                return Some(());
            }
        }
        // Alternating between the two places of a block, for it not to go in circles.
        core::mem::swap(&mut entry, &mut table[at as usize].places[(turn >> 1) as usize & 1]);
        let [first, second] = indexes(&entry);
        at = if at == first { second } else { first };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::map::Address;

    fn globals(table: &[Block], seed: u64) -> Globals {
        Globals { seed, blocks: table.len() as u32, ..Globals::default() }
    }

    proptest! {
        #[test]
        fn holds_what_a_map_holds(
            entries in proptest::collection::hash_map((0_u8..8, 0_u8..32, 1_u16..70), 0_u32..5, 0..256),
            others in proptest::collection::vec((0_u8..9, 0_u8..32, 0_u16..80), 100),
            seed: u64,
        ) {
            let key = |(net, host, port): (u8, u8, u16)| match net {
                0..4 => Destination::new(Address::v4([192, 0, net, host]), port),
                _ => Destination::new(Address::new([0x20, 1, 0xd, 0xb8, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]), port),
            };
            let all: HashMap<_, _> = entries.into_iter().map(|(k, v)| (key(k), v)).collect();
            let seed = seed | 1;
            // Half full, as `Sizes::hold` has it at the most. A seed may be unlucky; the next is not.
            let blocks = (all.len() as u32).next_power_of_two().max(1);
            let (table, seed) = (0..20)
                .map(|i| seed.wrapping_add(i * 0x1234_5678_9abc_def2))
                .find_map(|seed| Some((build(all.clone(), blocks, seed)?, seed)))
                .expect("room");
            let globals = globals(&table, seed);
            let find = |key: &Destination| find(key, &globals, |index| table.get(index as usize));
            for (key, owner) in &all {
                prop_assert_eq!(find(key), Some(*owner));
            }
            for other in others {
                prop_assert_eq!(find(&key(other)), all.get(&key(other)).copied());
            }
        }
    }

    #[test]
    fn ten_thousand_addresses_of_one_network_fit_at_once() {
        let all: Vec<_> = (0..10_000_u32)
            .map(|n| (Destination::new(Address::v4((0x0a00_0000 + n).to_be_bytes()), 443), n))
            .collect();
        for seed in [0x6d6b_7367_5eed_0001, 0x9e37_79b9_7f4a_7c15, 0xd134_2543_de82_ef95] {
            assert!(build(all.clone(), 16_384, seed).is_some(), "{seed:x}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let all = (1..6).map(|port| (Destination::new(Address::v4([192, 0, 2, 1]), port), 0));
        assert_eq!(build(all, 2, 0x1234_5679), None);
    }
}
