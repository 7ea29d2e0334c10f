//! The maps; `proxy/src/xdp/maps.rs` is the other side. Sizes are defaults, userspace sets them at load.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, LpmTrie, PerCpuArray, RingBuf},
};
use mksgate_common::{
    destinations::Block,
    known::KnownLine,
    map::{Address, Counters, Event, Globals, Line, PORT_WORDS, Tenant, TenantCounters, shared},
};

/// One entry, written by userspace.
#[map]
pub static GLOBALS: Array<Globals> = Array::with_max_entries(1, 0);
/// A bitmap of the protected ports.
#[map]
pub static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);
/// Protected addresses and ports, and whose they are: two halves, of which one holds, see `mksgate_common::destinations`.
#[map]
pub static DESTINATIONS: Array<Block> = Array::with_max_entries(128, BPF_F_MMAPABLE);
/// Source prefixes: a tenant's number or `BALANCER`.
#[map]
pub static PREFIXES: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Sources known by a valid ticket, see `mksgate_common::known`. Written by userspace.
#[map]
pub static LEARNED: Array<KnownLine> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// Buckets of sources, see `mksgate_common::sources`. Written by the kernel. An array that could be mapped into memory begins
/// on a page, so its values do not straddle cache lines.
#[map]
pub static SOURCES: Array<Line> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// Tenants by number, written by userspace.
#[map]
pub static TENANTS: Array<Tenant> = Array::with_max_entries(64, 0);
/// Words of the tenants' buckets.
#[map]
pub static TENANT_WORDS: Array<u64> = Array::with_max_entries(64, 0);
/// Words of the buckets that belong to nobody.
#[map]
pub static SHARED: Array<u64> = Array::with_max_entries(shared::COUNT, 0);
/// One entry.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);
/// By tenant's number.
#[map]
pub static TENANT_COUNTERS: PerCpuArray<TenantCounters> = PerCpuArray::with_max_entries(64, 0);
/// Samples of what was shed.
#[map]
pub static EVENTS: RingBuf =
    RingBuf::with_byte_size((256 * size_of::<Event>().next_power_of_two()) as u32, 0);
