//! The verdict's view of the maps.

use core::arch::asm;

use aya_ebpf::{helpers::generated::bpf_ktime_get_coarse_ns, maps::lpm_trie::Key};
use mksgate_common::{
    bucket::Cell,
    destinations,
    map::{Address, Destination, Globals, Learned, PORTS_PER_WORD, Source, SourceKey, Tenant},
    sources::Place,
    verdict::Tables,
};

use crate::maps;

/// A word inside a map's value. Map memory lives as long as the program and no reference to it is kept, so every access
/// is one raw load or one atomic exchange.
#[repr(transparent)]
pub struct Word(u64);

impl Cell for Word {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: the word lies in a map value that the verifier has bounded; another CPU may write it meanwhile, and a
        // volatile load of an aligned word is one instruction.
        unsafe { core::ptr::read_volatile(&self.0) }
    }

    #[inline(always)]
    fn exchange(&self, seen: u64, new: u64) -> bool {
        let before: u64;
        // SAFETY: BPF_CMPXCHG compares with and returns in r0 (kernel: Documentation/bpf/standardization/instruction-set.rst).
        // The target has no compare-exchange in core::sync::atomic, its description says `atomic_cas: false`.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) &raw const self.0,
                new = in(reg) new,
                inlateout("r0") seen => before,
                options(nostack),
            );
        }
        before == seen
    }
}

/// A place of `SOURCES`, reached by raw loads and stores like [`Word`].
#[repr(transparent)]
pub struct Entry(Source);

impl Place for Entry {
    #[inline(always)]
    fn key(&self) -> SourceKey {
        // SAFETY: an aligned word of a map value, read by one instruction.
        SourceKey(unsafe { core::ptr::read_volatile((&raw const self.0.key).cast()) })
    }

    #[inline(always)]
    fn word(&self) -> &impl Cell {
        // SAFETY: the field is a word, and `Word` is transparent over one.
        unsafe { &*(&raw const self.0.full_at).cast::<Word>() }
    }

    #[inline(always)]
    fn prefix(&self) -> u64 {
        // SAFETY: an aligned word of a map value, read by one instruction.
        unsafe { core::ptr::read_volatile(&raw const self.0.prefix) }
    }

    #[inline(always)]
    fn set_prefix(&self, prefix: u64) {
        // SAFETY: an aligned word of a map value, written by one instruction; map values are writable.
        unsafe { core::ptr::write_volatile((&raw const self.0.prefix).cast_mut(), prefix) }
    }

    #[inline(always)]
    fn count(&self, passed: bool) {
        let count = if passed { &raw const self.0.passed } else { &raw const self.0.shed }.cast_mut();
        // SAFETY: as above. The counts may lose a step when two CPUs write at once, as their documentation says.
        unsafe { core::ptr::write_volatile(count, core::ptr::read_volatile(count).wrapping_add(1)) }
    }

    #[inline(always)]
    fn start(&self, key: SourceKey, full_at: u64, prefix: u64) {
        let source = (&raw const self.0).cast_mut();
        // SAFETY: aligned words of a map value, each written by one instruction; map values are writable.
        unsafe { core::ptr::write_volatile(source, Source { key, full_at, prefix, passed: 1, shed: 0 }) }
    }
}

/// A key of the trie, so laid out that the address is aligned: the verifier refuses a store to the stack that is not.
#[repr(C, align(8))]
struct PrefixKey {
    pad: u32,
    length: u32,
    address: Address,
}

/// All maps.
pub struct Maps;

impl Maps {
    #[inline(always)]
    fn word(pointer: Option<*const u64>) -> Option<&'static Word> {
        // SAFETY: not null, aligned, and as long-lived as the program; `Word` is transparent over u64.
        pointer.map(|p| unsafe { &*p.cast::<Word>() })
    }
}

impl Tables for Maps {
    type Word = Word;
    type Place = Entry;

    #[inline(always)]
    fn now(&self) -> u64 {
        // CLOCK_MONOTONIC as of the last tick, 1 to 10 ms ago: a sixth of what the exact time costs. Bursts cover a tick.
        // SAFETY: takes no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn globals(&self) -> Option<&Globals> {
        maps::GLOBALS.get(0)
    }

    #[inline(always)]
    fn port(&self, port: u16) -> bool {
        let (word, bit) = (u32::from(port) / PORTS_PER_WORD, u32::from(port) % PORTS_PER_WORD);
        maps::PORTS.get(word).is_some_and(|bits| bits >> bit & 1 != 0)
    }

    #[inline(always)]
    fn destination(&self, key: &Destination, globals: &Globals) -> Option<u32> {
        destinations::find(key, globals, |index| maps::DESTINATIONS.get(index))
    }

    #[inline(always)]
    fn prefix(&self, source: &Address) -> Option<u32> {
        let key = PrefixKey { pad: 0, length: 128, address: *source };
        // SAFETY: behind `pad` lie, without a gap, what the packed `Key` is made of; it lives until the call returns.
        let key = unsafe { &*(&raw const key).cast::<u8>().add(4).cast::<Key<Address>>() };
        maps::PREFIXES.get(key).copied()
    }

    #[inline(always)]
    fn learned(&self, key: SourceKey, globals: &Globals) -> Option<Learned> {
        // A place given to another source meanwhile may give that one's tenant for one packet.
        maps::LEARNED.get(globals.line(key))?.find(key)
    }

    #[inline(always)]
    fn line(&self, index: u32) -> Option<(&Entry, &Entry)> {
        let line = maps::SOURCES.get_ptr(index)?;
        // SAFETY: not null, aligned, and as long-lived as the program; `Entry` is transparent over `Source`. A place that
        // has become another source's meanwhile: one token of the wrong bucket.
        unsafe {
            let first = (&raw const (*line).0).cast::<Entry>();
            Some((&*first, &*first.add(1)))
        }
    }

    #[inline(always)]
    fn no_place(&self) {
        if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
            // SAFETY: this CPU's copy; XDP programs are not preempted by each other on one CPU.
            unsafe { (*counters).source_table_full += 1 }
        }
    }

    #[inline(always)]
    fn tenant(&self, number: u32) -> Option<&Tenant> {
        maps::TENANTS.get(number)
    }

    #[inline(always)]
    fn tenant_word(&self, number: u32) -> Option<&Word> {
        Self::word(maps::TENANT_WORDS.get_ptr(number))
    }

    #[inline(always)]
    fn shared(&self, index: u32) -> Option<&Word> {
        Self::word(maps::SHARED.get_ptr(index))
    }
}
