//! The table of sources' buckets: lines of [`WAYS`](crate::map::WAYS) places, and a source's line told by a hash that is
//! secret. A look is one line of the cache, and nothing is ever allocated.
//!
//! Who gets a place where all are taken:
//!
//! * a bucket that is full again says nothing that a new one would not say, nor does one that another rate has left further
//!   behind than this one could: its place is free;
//! * else the one that lacks least gives way, if it lacks no more than the newcomer will;
//! * else the newcomer goes without, is counted, and meets every other limit.
//!
//! So a source loses at most one token's worth of its past to another one, spoofed sources of a SYN each never displace a
//! loud one, and a source that keeps to its rate is never shed for what others do.

use crate::{
    bucket::{self, Cell},
    map::{Globals, SourceKey},
    verdict::Tables,
};

/// A place of a line: a [`Source`](crate::map::Source), wherever it lies.
pub trait Place {
    /// Whose it is.
    fn key(&self) -> SourceKey;
    /// The bucket's word.
    fn word(&self) -> &impl Cell;
    /// What `PREFIXES` said, see [`Source::prefix`](crate::map::Source::prefix).
    fn prefix(&self) -> u64;
    /// Sets it.
    fn set_prefix(&self, prefix: u64);
    /// Tells whether the bucket gave a token.
    fn count(&self, passed: bool);
    /// Gives the place to a source whose first SYN has passed. Two CPUs may do so at once, and the source of the one gets
    /// the bucket of the other: both have given their first token.
    fn start(&self, key: SourceKey, full_at: u64, prefix: u64);
}

/// Where a source's bucket is, or could be.
pub struct Seat<'a, P> {
    place: Option<&'a P>,
    its_own: bool,
}

impl<'a, P> Seat<'a, P> {
    /// Nowhere.
    pub const NONE: Self = Seat { place: None, its_own: false };

    /// The place, if it is the source's already.
    #[inline(always)]
    pub fn of_it(&self) -> Option<&'a P> {
        if self.its_own { self.place } else { None }
    }
}

/// The source's place, or else the one in its line that lacks least.
#[inline(always)]
pub fn find<'a, T: Tables>(key: SourceKey, globals: &Globals, tables: &'a T, now: u64) -> Seat<'a, T::Place> {
    let Some((first, second)) = tables.line(globals.line(key)) else { return Seat::NONE };
    if first.key() == key {
        return Seat { place: Some(first), its_own: true };
    }
    if second.key() == key {
        return Seat { place: Some(second), its_own: true };
    }
    let owed = |place: &T::Place| globals.source.owed(place.word().load(), now);
    let least = if owed(second) < owed(first) { second } else { first };
    Seat { place: Some(least), its_own: false }
}

/// Takes a token of the source's bucket, which starts full; `prefix` is kept for the next time.
#[inline(always)]
pub fn take<T: Tables>(
    key: SourceKey,
    seat: &Seat<'_, T::Place>,
    prefix: u64,
    globals: &Globals,
    tables: &T,
    now: u64,
) -> bool {
    if let Some(place) = seat.of_it() {
        let given = bucket::take(place.word(), &globals.source, now);
        place.count(given);
        return given;
    }
    let Some(full_at) = globals.source.next(0, now) else { return false };
    match seat.place {
        Some(place) if globals.source.owed(place.word().load(), now) <= full_at => {
            place.start(key, full_at, prefix)
        }
        _ => tables.no_place(),
    }
    true
}
