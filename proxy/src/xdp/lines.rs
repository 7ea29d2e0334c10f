//! Tables that userspace alone writes and the program reads a line at a time: protected destinations and known sources.

use std::collections::{BTreeMap, HashMap};

use aya::maps::{Array, MapData, MapError};
use mksgate_common::{
    destinations::{self, Block},
    known::{Known, KnownLine},
    map::{Destination, Globals, Learned, SourceKey},
};

/// `DESTINATIONS`: the half that is not in use is written, then [`Destinations::point`] makes it the one that holds.
pub(super) struct Destinations {
    map: Array<MapData, Block>,
    /// What the kernel has, half by half.
    halves: [Vec<Block>; 2],
    current: usize,
}

impl Destinations {
    pub fn new(map: Array<MapData, Block>) -> Destinations {
        let half = vec![Block::default(); (map.len() / 2) as usize];
        Destinations { map, halves: [half.clone(), half], current: 0 }
    }

    /// Goes on with what the kernel has, of which the half that begins at `first` holds.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn go_on(&mut self, first: u32) -> Result<(), MapError> {
        let blocks = self.halves[0].len();
        for (index, block) in self.map.iter().enumerate().take(2 * blocks) {
            self.halves[index / blocks][index % blocks] = block?;
        }
        self.current = usize::from(first != 0);
        Ok(())
    }

    /// Values of the table, both halves.
    pub fn len(&self) -> u32 {
        self.map.len()
    }

    /// They can be laid out with this seed.
    pub fn hold(all: &HashMap<Destination, u32>, blocks: u32, seed: u64) -> bool {
        lay_out(all, blocks, seed).is_some()
    }

    /// Writes them where no packet looks yet.
    ///
    /// # Errors
    /// [`Destinations::hold`] would have said so, or what the kernel said.
    pub fn write(&mut self, all: &HashMap<Destination, u32>, seed: u64) -> Result<(), MapError> {
        let blocks = self.halves[0].len() as u32;
        let table =
            lay_out(all, blocks, seed).ok_or(MapError::OutOfBounds { index: blocks, max_entries: blocks })?;
        let next = 1 - self.current;
        let from = next as u32 * blocks;
        for (index, (new, old)) in (from..).zip(table.iter().zip(&mut self.halves[next])) {
            if new != old {
                self.map.set(index, new, 0)?;
                *old = *new;
            }
        }
        self.current = next;
        Ok(())
    }

    /// Tells the program which half holds.
    pub fn point(&self, globals: &mut Globals) {
        globals.blocks = self.halves[0].len() as u32;
        globals.destinations = self.current as u32 * globals.blocks;
    }
}

/// In order, so that the same ones are always laid out alike.
fn lay_out(all: &HashMap<Destination, u32>, blocks: u32, seed: u64) -> Option<Vec<Block>> {
    let ordered: BTreeMap<_, _> =
        all.iter().map(|(key, tenant)| ((key.address.bytes(), key.port), (*key, *tenant))).collect();
    destinations::build(ordered.into_values(), blocks, seed)
}

/// `LEARNED`, and a copy of the lines in use.
pub(super) struct KnownSources {
    map: Array<MapData, KnownLine>,
    lines: HashMap<u32, KnownLine>,
}

impl KnownSources {
    pub fn new(map: Array<MapData, KnownLine>) -> KnownSources {
        KnownSources { map, lines: HashMap::new() }
    }

    /// Goes on with what the kernel has.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn go_on(&mut self) -> Result<(), MapError> {
        for (index, line) in (0..).zip(self.map.iter()) {
            let line = line?;
            if line.all().next().is_some() {
                self.lines.insert(index, line);
            }
        }
        Ok(())
    }

    /// Lines of the table.
    pub fn len(&self) -> u32 {
        self.map.len()
    }

    /// What is known of a source; `index` is its line.
    pub fn get(&self, index: u32, key: SourceKey) -> Option<Learned> {
        self.lines.get(&index)?.find(key).filter(|learned| learned.expires != 0)
    }

    /// Makes a source known.
    pub fn put(&mut self, index: u32, key: SourceKey, learned: Learned) -> Result<(), MapError> {
        let line = self.lines.entry(index).or_default();
        line.put(key, learned);
        self.map.set(index, *line, 0)
    }

    /// Forgets what `stale` says.
    pub fn forget(&mut self, stale: impl Fn(&Known) -> bool) -> Result<(), MapError> {
        let mut changed = Ok(());
        let map = &mut self.map;
        self.lines.retain(|index, line| {
            if line.forget(&stale)
                && let Err(error) = map.set(*index, *line, 0)
            {
                changed = Err(error);
            }
            line.all().next().is_some()
        });
        changed
    }

    /// Every known source.
    pub fn all(&self) -> impl Iterator<Item = (SourceKey, Learned)> + '_ {
        self.lines.values().flat_map(KnownLine::all)
    }
}
