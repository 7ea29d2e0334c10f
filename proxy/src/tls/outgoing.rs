//! Content on its way into TLS records, laid out so that each record is sealed where its content was received.
//!
//! ```text
//!   ├─ header ─┤                                            (a frame's, right before the content, if there is any)
//!   [HEAD][····][content ······][TAIL][HEAD][content ······][TAIL][HEAD] …
//!               └── slot 0 ────┘            └── slot 1 ────┘
//! ```

use std::ops::Range;

use super::records::{CONTENT, HEAD, TAIL};

/// Most bytes of a header before the content.
pub const HEADER: usize = 16;
/// Content of slot 0; with a header in front it still fits a record.
pub const FIRST: usize = CONTENT - HEADER;
const START: usize = HEAD + HEADER;
const STRIDE: usize = CONTENT + TAIL + HEAD;

/// One direction's content, then its records.
pub struct Outgoing {
    bytes: Box<[u8]>,
    records: Range<usize>,
    /// Records that are not in `bytes`: those of rustls' own layer, and all of them where a KeyUpdate goes first.
    pub(super) spill: Vec<u8>,
}

impl Outgoing {
    /// One with so many slots.
    pub fn new(slots: usize) -> Self {
        Self { bytes: vec![0; START + slots * STRIDE].into_boxed_slice(), records: 0..0, spill: Vec::new() }
    }

    /// Content that fits into so many slots, bytes.
    pub const fn room(slots: usize) -> usize {
        FIRST + (slots - 1) * CONTENT
    }

    /// The places of the first `n` bytes of content, in order.
    pub fn slots(&mut self, n: usize) -> impl Iterator<Item = &mut [u8]> {
        let (mut rest, mut left, mut gap, mut size) = (&mut self.bytes[..], n, START, FIRST);
        std::iter::from_fn(move || {
            let take = left.min(size);
            if take == 0 {
                return None;
            }
            let (slot, behind) = std::mem::take(&mut rest).split_at_mut(gap).1.split_at_mut(take);
            (rest, left, gap, size) = (behind, left - take, TAIL + HEAD, CONTENT);
            Some(slot)
        })
    }

    /// Copies content to position `at` of it.
    pub fn put(&mut self, at: usize, content: &[u8]) {
        let (mut at, mut content) = (at, content);
        while !content.is_empty() {
            let (place, room) = place(at);
            let n = room.min(content.len());
            self.bytes[place..place + n].copy_from_slice(&content[..n]);
            (at, content) = (at + n, &content[n..]);
        }
    }

    /// What is to be sent.
    pub fn sealed(&self) -> &[u8] {
        if self.spill.is_empty() { &self.bytes[self.records.clone()] } else { &self.spill }
    }

    /// Puts `header` before `n` bytes of content and seals the records one after the other.
    pub(super) fn seal<E>(
        &mut self,
        header: &[u8],
        n: usize,
        mut seal: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.bytes[START - header.len()..START].copy_from_slice(header);
        let begin = START - header.len() - HEAD;
        let (mut from, mut content, mut left) = (begin, START, n);
        let mut room = FIRST;
        loop {
            let take = left.min(room);
            let end = content + take + TAIL;
            seal(&mut self.bytes[from..end])?;
            left -= take;
            if left == 0 {
                self.records = begin..end;
                return Ok(());
            }
            (from, content, room) = (end, end + HEAD, CONTENT);
        }
    }

    /// How many records `n` bytes of content make.
    pub(super) fn count(n: usize) -> u64 {
        (1 + n.saturating_sub(FIRST).div_ceil(CONTENT)) as u64
    }

    /// Header and content in one piece.
    pub(super) fn gather(&mut self, header: &[u8], n: usize) -> Vec<u8> {
        let mut whole = header.to_vec();
        self.slots(n).for_each(|slot| whole.extend_from_slice(slot));
        whole
    }

    /// Forgets the records that went before.
    pub(super) fn begin(&mut self) {
        (self.records, self.spill) = (0..0, Vec::new());
    }

    /// Puts a record before those that were sealed.
    pub(super) fn precede(&mut self, first: Vec<u8>) {
        if !first.is_empty() {
            self.spill = first;
            self.spill.extend_from_slice(&self.bytes[self.records.clone()]);
        }
    }
}

/// Where position `at` of the content lies, and how much of its slot is left from there.
fn place(at: usize) -> (usize, usize) {
    if at < FIRST {
        return (START + at, FIRST - at);
    }
    let (slot, within) = ((at - FIRST) / CONTENT, (at - FIRST) % CONTENT);
    (START + FIRST + TAIL + HEAD + slot * STRIDE + within, CONTENT - within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_lies_in_the_slots_and_in_the_records(
            n in 1usize..70_000, cut in 1usize..20_000, header in 0usize..=HEADER,
        ) {
            let content: Vec<u8> = (0..n).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut out = Outgoing::new(5);
            let mut at = 0;
            for piece in content.chunks(cut) {
                out.put(at, piece);
                at += piece.len();
            }
            prop_assert!(out.slots(n).flat_map(|slot| slot.iter().copied()).eq(content.iter().copied()));
            let header = vec![0xee; header];
            let mut seen = Vec::new();
            out.seal::<()>(&header, n, |record| {
                seen.extend_from_slice(&record[HEAD..record.len() - TAIL]);
                assert!(record.len() <= HEAD + CONTENT + TAIL);
                record[0] = 23;
                Ok(())
            }).unwrap();
            prop_assert_eq!(seen, [header.clone(), content].concat());
            let records = Outgoing::count(n) as usize;
            prop_assert_eq!(out.sealed().len(), header.len() + n + records * (HEAD + TAIL));
        }
    }
}
