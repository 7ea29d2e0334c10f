//! Keys and values of the program's maps. Fixed width, no `bool`, padding explicit: both sides see the same bytes.

use core::mem::{align_of, size_of};

use crate::bucket::Rate;

/// An IPv6 address, or an IPv4 one mapped into `::ffff:0:0/96` (RFC 4291, 2.5.5.2), in network order.
///
/// Two words in memory order: sixteen bytes would be moved one by one in the kernel's program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub(crate) [u64; 2]);

impl Address {
    /// The mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Address {
        Address([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])])
    }

    /// Of 16 bytes.
    #[inline(always)]
    pub const fn new(a: [u8; 16]) -> Address {
        Address([
            u64::from_ne_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]),
            u64::from_ne_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]),
        ])
    }

    /// The 16 bytes.
    pub const fn bytes(&self) -> [u8; 16] {
        let (a, b) = (self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes());
        [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
    }

    /// The four words in memory order; the last is the whole address of a mapped IPv4 one.
    #[inline(always)]
    pub(crate) const fn words(&self) -> [u32; 4] {
        let [a, b] = self.0;
        if cfg!(target_endian = "little") {
            [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
        } else {
            [(a >> 32) as u32, a as u32, (b >> 32) as u32, b as u32]
        }
    }
}

/// What counts as one source: an IPv4 address, or the /64 of an IPv6 one.
///
/// One word: the upper half of an IPv6 address, or the IPv4 address below `0xffff_ffff`. The two cannot meet, because an
/// IPv6 source in `ff00::/8` is a multicast address and the reader takes none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey(pub u64);

impl SourceKey {
    const V4: u64 = 0xffff_ffff_0000_0000;

    /// The key of an IPv4 source.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> SourceKey {
        SourceKey(Self::V4 | u32::from_be_bytes(a) as u64)
    }

    /// The key of an IPv6 source.
    #[inline(always)]
    pub const fn v6(a: [u8; 16]) -> SourceKey {
        SourceKey(u64::from_be_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]))
    }

    /// The IPv4 address, if it is one.
    pub const fn as_v4(self) -> Option<[u8; 4]> {
        if self.0 & Self::V4 == Self::V4 { Some((self.0 as u32).to_be_bytes()) } else { None }
    }

    /// The network part of the IPv6 source, if it is one; the rest of the address is zero.
    pub const fn as_v6(self) -> Option<[u8; 16]> {
        if self.as_v4().is_some() {
            return None;
        }
        Some(((self.0 as u128) << 64).to_be_bytes())
    }
}

/// A protected address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Where the SYN goes.
    pub address: Address,
    /// The TCP port, host order.
    pub port: u16,
}

impl Destination {
    /// Of `address` and `port`.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Destination {
        Destination { address, port }
    }
}

/// What is known of a source that has shown a valid ticket; [`crate::known`] is how `LEARNED` keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// When that ends: nanoseconds of CLOCK_MONOTONIC.
    pub expires: u64,
    /// The tenant's number; 0 if several tenants were seen behind this source.
    pub tenant: u32,
}

/// What `SOURCES` keeps of a source. Written by the kernel; read by userspace for `top-sources`.
///
/// All zero is a place that nobody has: it says of the source with the key 0 what is true of every newcomer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Whose the rest is.
    pub key: SourceKey,
    /// The bucket's word, see [`crate::bucket`].
    pub full_at: u64,
    /// What `PREFIXES` said of it, so that the trie is walked once per source: [`Globals::generation`] in the upper
    /// half, the value in the lower one.
    pub prefix: u64,
    /// SYNs that this source's bucket let through. Counted without a lock: near enough for a list of who is loud.
    pub passed: u32,
    /// SYNs that this source's bucket refused.
    pub shed: u32,
}

/// A value of `SOURCES`: the places for the sources of one hash, and one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line(pub [Source; WAYS]);

/// Places in a [`Line`].
pub const WAYS: usize = 2;

/// A tenant as userspace publishes it; one word holds both numbers, so that they change together.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Sessions admitted now.
    pub active: u32,
    /// No SYN passes from so many on; `u32::MAX` is no limit.
    pub max: u32,
    /// SYNs per second.
    pub rate: Rate,
}

impl Tenant {
    /// Without limits.
    pub const UNLIMITED: Tenant = Tenant { active: 0, max: u32::MAX, rate: Rate::UNLIMITED };
}

/// What holds for every SYN: the one entry of `GLOBALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Globals {
    /// SYNs per second of one source.
    pub source: Rate,
    /// SYNs per second to all protected ports together.
    pub global: Rate,
    /// Resets sent per second; past it a shed SYN is dropped whatever `flags` say.
    pub resets: Rate,
    /// Drop events written per second.
    pub events: Rate,
    /// [`Globals::RESET`], [`Globals::PREFIXES`], [`Globals::LEARNED`], [`Globals::LONG_PREFIXES`].
    pub flags: u32,
    /// Another one for every change of `PREFIXES`; never 0.
    pub generation: u32,
    /// An odd number that nobody outside can know, drawn for each program: which sources meet in a line of `SOURCES`.
    pub seed: u64,
    /// Values of `SOURCES`, and of `LEARNED`.
    pub lines: u32,
    /// The first value of `DESTINATIONS` that holds, see [`crate::destinations`].
    pub destinations: u32,
    /// How many of them hold.
    pub blocks: u32,
    /// Zero.
    pub pad: u32,
}

impl Globals {
    /// Answer a shed SYN by a reset instead of silence.
    pub const RESET: u32 = 1;
    /// `PREFIXES` is not empty.
    pub const PREFIXES: u32 = 2;
    /// `LEARNED` is not empty.
    pub const LEARNED: u32 = 4;
    /// `PREFIXES` has IPv6 prefixes longer than 64 bits, so the /64 of a source does not tell its prefix.
    pub const LONG_PREFIXES: u32 = 8;

    /// The index of the source's line in `SOURCES` and in `LEARNED`: multiply-shift hashing (Dietzfelbinger et al. 1997), which for a random odd factor brings
    /// two given keys together no more often than twice in `lines`, whoever has chosen them; then a multiplication in
    /// place of a remainder.
    #[inline(always)]
    pub const fn line(&self, key: SourceKey) -> u32 {
        (((key.0.wrapping_mul(self.seed) >> 32) * self.lines as u64) >> 32) as u32
    }
}

/// The value in `PREFIXES` of a load balancer: exempt from source limits, its address tells no tenant.
pub const BALANCER: u32 = u32::MAX;

/// Indexes of `SHARED`, the words of the buckets that belong to nobody.
pub mod shared {
    /// [`Globals::global`](super::Globals::global).
    pub const GLOBAL: u32 = 0;
    /// [`Globals::resets`](super::Globals::resets).
    pub const RESETS: u32 = 1;
    /// [`Globals::events`](super::Globals::events).
    pub const EVENTS: u32 = 2;
    /// How many there are.
    pub const COUNT: u32 = 3;
}

/// Per CPU and tenant: what became of the SYNs that were counted as that tenant's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantCounters {
    /// By [`crate::verdict::Verdict::syn_index`].
    pub syns: [u64; crate::verdict::Verdict::SYN_COUNT],
    /// Of the shed ones, those that were answered by a reset.
    pub resets: u64,
}

/// Per CPU: packets by [`crate::verdict::Verdict`], and what went wrong beside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By verdict.
    pub packets: [u64; crate::verdict::Verdict::COUNT],
    /// SYNs whose source found no place in `SOURCES`: they skip the source's limit and meet all the others.
    pub source_table_full: u64,
    /// Drop events lost because the ring buffer was full.
    pub events_lost: u64,
    /// Resets that could not be built; the SYN was dropped.
    pub resets_failed: u64,
}

/// A sample of what was shed, through the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub at: u64,
    /// The SYN's source.
    pub source: Address,
    /// The SYN's destination.
    pub destination: Address,
    /// The tenant's number.
    pub tenant: u32,
    /// A [`crate::verdict::Verdict`] as a number.
    pub verdict: u32,
    /// Destination port, host order.
    pub port: u32,
    /// The interface's index.
    pub interface: u32,
}

/// Ports per word of `PORTS`, a bitmap of the 65,536 ports.
pub const PORTS_PER_WORD: u32 = 64;
/// Words of `PORTS`.
pub const PORT_WORDS: u32 = 65_536 / PORTS_PER_WORD;

// What the other side of the kernel line relies on.
const _: () = {
    assert!(size_of::<Address>() == 16 && align_of::<Address>() == 8);
    assert!(size_of::<SourceKey>() == 8);
    assert!(size_of::<Source>() == 32);
    assert!(size_of::<Line>() == 64 && align_of::<Line>() == 64);
    assert!(size_of::<Rate>() == 16);
    assert!(size_of::<Tenant>() == 24);
    assert!(size_of::<Globals>() == 96);
    assert!(size_of::<TenantCounters>() == 48);
    assert!(size_of::<Counters>() == 8 * (crate::verdict::Verdict::COUNT + 3));
    assert!(size_of::<Event>() == 56);
};

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker for plain bytes is unsafe to implement")]
    use super::*;
    use crate::{destinations::Block, known::KnownLine};

    macro_rules! pod {
        ($($name:ty)*) => {$(
            // SAFETY: `repr(C)` or `repr(transparent)` over integers, no padding (the size asserts above), every bit
            // pattern valid, `Copy` and `'static`.
            unsafe impl aya::Pod for $name {}
        )*};
    }
    pod!(Address SourceKey Source Line Tenant Globals TenantCounters Counters Event Block KnownLine);
}
