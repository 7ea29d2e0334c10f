//! The table of sources known by a ticket: lines of four places, a source's line told by the same secret hash as in `SOURCES`.
//! Userspace alone writes it, so a flood of spoofed sources cannot wash it out; a look is one line of the cache.

use core::mem::{align_of, size_of};

use crate::map::{Learned, SourceKey};

/// A known source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Whose the word is.
    pub key: SourceKey,
    /// Nanoseconds at which it ends, the lowest 16 bits replaced by the tenant's number. So both change together.
    word: u64,
}

/// A value of `LEARNED`: a line of the cache.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownLine(pub [Known; KNOWN_WAYS]);

/// Places in a [`KnownLine`].
pub const KNOWN_WAYS: usize = 4;

const _: () = assert!(size_of::<KnownLine>() == 64 && align_of::<KnownLine>() == 64);

/// A tenant's number is below: `MAX_TENANT` of `mksgate::xdp`.
const TENANT: u64 = 0xffff;

impl Known {
    /// Ends up to 65 µs early. A tenant past 65,535 is none, and taken for nobody's.
    pub const fn new(key: SourceKey, learned: Learned) -> Known {
        let tenant = if learned.tenant as u64 > TENANT { 0 } else { learned.tenant as u64 };
        Known { key, word: learned.expires & !TENANT | tenant }
    }

    /// What is known; of nobody, that it ended long ago.
    #[inline(always)]
    pub const fn learned(&self) -> Learned {
        Learned { expires: self.word & !TENANT, tenant: (self.word & TENANT) as u32 }
    }
}

impl KnownLine {
    /// What is known of the source.
    #[inline(always)]
    pub fn find(&self, key: SourceKey) -> Option<Learned> {
        let mut way = 0;
        while way < KNOWN_WAYS {
            if self.0[way].key.0 == key.0 {
                return Some(self.0[way].learned());
            }
            way += 1;
        }
        None
    }

    /// Makes the source known. Where four others are, the one whose time ends first gives way.
    pub fn put(&mut self, key: SourceKey, learned: Learned) {
        let places = &mut self.0;
        let its_own = places.iter().position(|known| known.key == key);
        let first = (0..KNOWN_WAYS).min_by_key(|way| places[*way].word).unwrap_or(0);
        places[its_own.unwrap_or(first)] = Known::new(key, learned);
    }

    /// Forgets what `stale` says; true if there was any.
    pub fn forget(&mut self, stale: impl Fn(&Known) -> bool) -> bool {
        let before = *self;
        self.0
            .iter_mut()
            .filter(|known| known.word != 0 && stale(known))
            .for_each(|known| *known = Known::default());
        *self != before
    }

    /// Those who have a place.
    pub fn all(&self) -> impl Iterator<Item = (SourceKey, Learned)> + '_ {
        self.0.iter().filter(|known| known.word != 0).map(|known| (known.key, known.learned()))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn at(expires: u64, tenant: u32) -> Learned {
        Learned { expires: expires << 16, tenant }
    }

    #[test]
    fn a_source_is_found_and_replaced_in_its_place() {
        let mut line = KnownLine::default();
        line.put(SourceKey(7), at(5, 3));
        line.put(SourceKey(8), at(6, 0));
        line.put(SourceKey(7), at(9, 65_535));
        assert_eq!((line.find(SourceKey(7)), line.find(SourceKey(8))), (Some(at(9, 65_535)), Some(at(6, 0))));
        assert_eq!(line.find(SourceKey(9)), None);
        assert!(line.find(SourceKey(0)).is_none_or(|l| l.expires == 0), "an empty place knows nothing");
        assert!(line.forget(|known| known.key == SourceKey(7)) && !line.forget(|k| k.key == SourceKey(7)));
        assert_eq!(line.all().collect::<Vec<_>>(), [(SourceKey(8), at(6, 0))]);
    }

    #[test]
    fn the_one_that_ends_first_gives_way() {
        let mut line = KnownLine::default();
        for key in 1..=5 {
            line.put(SourceKey(key), at(100 - key, 1));
        }
        let mut left: Vec<u64> = line.all().map(|(key, _)| key.0).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 2, 3, 5], "the fourth ended first when the fifth came");
    }
}
