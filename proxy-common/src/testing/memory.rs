//! The maps as collections, and a clock that stands where it is put.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::{cell::Cell as StdCell, cell::OnceCell, collections::HashMap, vec::Vec};

use crate::{
    bucket::Cell,
    map::{Address, Destination, Globals, Learned, Source, SourceKey, Tenant, shared},
    verdict::{SourceEntry, Tables},
};

/// All tables in memory.
pub struct Memory {
    /// The time.
    pub now: StdCell<u64>,
    /// `GLOBALS`.
    pub globals: Option<Globals>,
    /// `DESTINATIONS`, and `PORTS` by it.
    pub destinations: HashMap<Destination, u32>,
    /// `PREFIXES`, by length and address.
    pub prefixes: Vec<(u32, Address, u32)>,
    /// `LEARNED`.
    pub learned: HashMap<SourceKey, Learned>,
    /// `TENANTS`.
    pub tenants: Vec<Tenant>,
    /// `TENANT_WORDS`.
    pub words: Vec<AtomicU64>,
    shared: Vec<AtomicU64>,
    sources: Vec<Slot>,
    /// Sources that found no place.
    pub table_full: StdCell<u64>,
}

/// A place of the table of sources: filled once, never moved, so that references to it stay good.
#[derive(Default)]
pub struct Slot {
    key: OnceCell<SourceKey>,
    word: AtomicU64,
    prefix: AtomicU64,
    passed: AtomicU32,
    shed: AtomicU32,
}

impl SourceEntry for Slot {
    fn word(&self) -> &impl Cell {
        &self.word
    }

    fn prefix(&self) -> u64 {
        self.prefix.load(Relaxed)
    }

    fn set_prefix(&self, prefix: u64) {
        self.prefix.store(prefix, Relaxed);
    }

    fn count(&self, passed: bool) {
        if passed { &self.passed } else { &self.shed }.fetch_add(1, Relaxed);
    }
}

impl Memory {
    /// Empty tables, room for `sources` sources and `tenants` tenants.
    pub fn new(sources: usize, tenants: usize) -> Memory {
        let words = |count| core::iter::repeat_with(AtomicU64::default).take(count).collect();
        Memory {
            now: StdCell::new(0),
            globals: None,
            destinations: HashMap::new(),
            prefixes: Vec::new(),
            learned: HashMap::new(),
            tenants: std::vec![Tenant::UNLIMITED; tenants],
            words: words(tenants),
            shared: words(shared::COUNT as usize),
            sources: core::iter::repeat_with(Slot::default).take(sources).collect(),
            table_full: StdCell::new(0),
        }
    }

    /// The source's place, or the free one it would get; `None` if all are taken.
    fn slot(&self, key: SourceKey) -> Option<&Slot> {
        let size = self.sources.len();
        let start = (key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        let mut places = (0..size).map(|i| &self.sources[(start + i) % size]);
        places.find(|slot| slot.key.get().is_none_or(|k| *k == key))
    }

    /// Passed and shed SYNs of a source.
    pub fn source_counts(&self, key: SourceKey) -> Option<(u32, u32)> {
        let slot = self.slot(key).filter(|slot| slot.key.get().is_some())?;
        Some((slot.passed.load(Relaxed), slot.shed.load(Relaxed)))
    }
}

impl Tables for Memory {
    type Word = AtomicU64;
    type Source = Slot;

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn globals(&self) -> Option<&Globals> {
        self.globals.as_ref()
    }

    fn port(&self, port: u16) -> bool {
        self.destinations.keys().any(|d| d.port == u32::from(port))
    }

    fn destination(&self, key: &Destination) -> Option<u32> {
        self.destinations.get(key).copied()
    }

    fn prefix(&self, source: &Address) -> Option<u32> {
        let bits = u128::from_be_bytes(source.0);
        let inside = |length: u32, address: &Address| {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            (bits ^ u128::from_be_bytes(address.0)) & mask == 0
        };
        let around = self.prefixes.iter().filter(|(length, address, _)| inside(*length, address));
        around.max_by_key(|(length, ..)| *length).map(|(.., number)| *number)
    }

    fn learned(&self, key: SourceKey) -> Option<Learned> {
        self.learned.get(&key).copied()
    }

    fn source(&self, key: SourceKey) -> Option<&Slot> {
        self.slot(key).filter(|slot| slot.key.get().is_some())
    }

    fn add_source(&self, key: SourceKey, entry: Source) {
        match self.slot(key) {
            Some(slot) => {
                let _ = slot.key.set(key);
                slot.word.store(entry.full_at, Relaxed);
                slot.prefix.store(entry.prefix, Relaxed);
                slot.passed.store(entry.passed, Relaxed);
            }
            None => self.table_full.set(self.table_full.get() + 1),
        }
    }

    fn tenant(&self, number: u32) -> Option<&Tenant> {
        self.tenants.get(number as usize)
    }

    fn tenant_word(&self, number: u32) -> Option<&AtomicU64> {
        self.words.get(number as usize)
    }

    fn shared(&self, index: u32) -> Option<&AtomicU64> {
        self.shared.get(index as usize)
    }
}
