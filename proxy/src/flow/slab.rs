//! Flows by number: chunks that never move and never double, so memory follows the number of flows.

const CHUNK: usize = 64;

/// A slab of `T`s; a removed number is used again.
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    /// An empty slab.
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts one in and returns its number.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        let key = self.free.pop().unwrap_or_else(|| self.grow());
        self.chunks[key as usize / CHUNK][key as usize % CHUNK] = Some(value);
        self.len += 1;
        key
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, key: u32) -> Option<T> {
        let value = self.slot(key)?.take()?;
        self.free.push(key);
        self.len -= 1;
        Some(value)
    }

    /// One of them.
    #[inline]
    pub(super) fn get(&self, key: u32) -> Option<&T> {
        self.chunks.get(key as usize / CHUNK)?.get(key as usize % CHUNK)?.as_ref()
    }

    /// One of them, to change.
    #[inline]
    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.slot(key)?.as_mut()
    }

    /// The numbers in use.
    pub(super) fn keys(&self) -> Vec<u32> {
        (0..(self.chunks.len() * CHUNK) as u32).filter(|key| self.get(*key).is_some()).collect()
    }

    fn slot(&mut self, key: u32) -> Option<&mut Option<T>> {
        self.chunks.get_mut(key as usize / CHUNK)?.get_mut(key as usize % CHUNK)
    }

    fn grow(&mut self) -> u32 {
        let first = (self.chunks.len() * CHUNK) as u32;
        self.chunks.push((0..CHUNK).map(|_| None).collect());
        self.free.extend((first + 1..first + CHUNK as u32).rev());
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_stable_and_used_again() {
        let mut slab = Slab::new();
        let keys: Vec<u32> = (0..200).map(|n| slab.insert(n)).collect();
        assert_eq!(keys, (0..200).collect::<Vec<_>>());
        assert_eq!(slab.remove(70), Some(70));
        assert_eq!(slab.remove(70), None);
        assert_eq!(slab.get(70), None);
        assert_eq!(slab.len(), 199);
        assert_eq!(slab.insert(1000), 70);
        assert_eq!(slab.get_mut(70), Some(&mut 1000));
        assert_eq!(slab.keys().len(), 200);
        assert_eq!(slab.get(5000), None);
    }
}
