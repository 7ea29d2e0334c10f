//! The maps as collections, and a clock that stands where it is put.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::{cell::Cell as StdCell, collections::HashMap, vec::Vec};

use crate::{
    bucket::Cell,
    map::{Address, Destination, Globals, Learned, SourceKey, Tenant, WAYS, shared},
    sources::Place,
    verdict::Tables,
};

/// All tables in memory.
pub struct Memory {
    /// The time.
    pub now: StdCell<u64>,
    /// `GLOBALS`, see [`Memory::publish`].
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
    lines: Vec<[Slot; WAYS]>,
    /// Sources that found no place.
    pub table_full: StdCell<u64>,
}

/// A place of the table of sources.
#[derive(Default)]
pub struct Slot {
    key: AtomicU64,
    word: AtomicU64,
    prefix: AtomicU64,
    passed: AtomicU32,
    shed: AtomicU32,
}

impl Place for Slot {
    fn key(&self) -> SourceKey {
        SourceKey(self.key.load(Relaxed))
    }

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

    fn start(&self, key: SourceKey, full_at: u64, prefix: u64) {
        self.key.store(key.0, Relaxed);
        self.word.store(full_at, Relaxed);
        self.prefix.store(prefix, Relaxed);
        self.passed.store(1, Relaxed);
        self.shed.store(0, Relaxed);
    }
}

impl Memory {
    /// Empty tables, room for `sources` sources (at least [`WAYS`]) and `tenants` tenants.
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
            lines: core::iter::repeat_with(Default::default).take(sources.div_ceil(WAYS).max(1)).collect(),
            table_full: StdCell::new(0),
        }
    }

    /// Publishes these, for the table of sources as it is here.
    pub fn publish(&mut self, globals: Globals) {
        let (seed, lines) = (0x9e37_79b9_7f4a_7c15, self.lines.len() as u32);
        self.globals = Some(Globals { seed, lines, ..globals });
    }

    /// Passed and shed SYNs of a source.
    pub fn source_counts(&self, key: SourceKey) -> Option<(u32, u32)> {
        let slot = self.lines.iter().flatten().find(|slot| slot.key() == key)?;
        Some((slot.passed.load(Relaxed), slot.shed.load(Relaxed)))
    }
}

impl Tables for Memory {
    type Word = AtomicU64;
    type Place = Slot;

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn globals(&self) -> Option<&Globals> {
        self.globals.as_ref()
    }

    fn port(&self, port: u16) -> bool {
        self.destinations.keys().any(|d| d.port == port)
    }

    fn destination(&self, key: &Destination, _: &Globals) -> Option<u32> {
        self.destinations.get(key).copied()
    }

    fn prefix(&self, source: &Address) -> Option<u32> {
        let bits = u128::from_be_bytes(source.bytes());
        let inside = |length: u32, address: &Address| {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            (bits ^ u128::from_be_bytes(address.bytes())) & mask == 0
        };
        let around = self.prefixes.iter().filter(|(length, address, _)| inside(*length, address));
        around.max_by_key(|(length, ..)| *length).map(|(.., number)| *number)
    }

    fn learned(&self, key: SourceKey, _: &Globals) -> Option<Learned> {
        self.learned.get(&key).copied()
    }

    fn line(&self, index: u32) -> Option<(&Slot, &Slot)> {
        let [first, second] = self.lines.get(index as usize)?;
        Some((first, second))
    }

    fn no_place(&self) {
        self.table_full.set(self.table_full.get() + 1);
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
