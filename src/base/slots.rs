//! A slab whose keys carry a generation, so a stale key never finds the slot's next tenant.

use slab::Slab;

/// Names one entry of a [`Slots`]; never valid again once that entry is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// The slot's number, small and dense: for arrays kept beside the slots.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// A growable table of `T` with stable keys, iterated in slot order.
#[derive(Clone, Debug)]
pub struct Slots<T> {
    slab: Slab<(u32, T)>,
    next_generation: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots {
            slab: Slab::new(),
            next_generation: 0,
        }
    }
}

impl<T> Slots<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry.
    ///
    /// # Panics
    /// When 2³² entries are in use, which every caller's own limit excludes.
    pub fn insert(&mut self, value: T) -> Key {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let index =
            u32::try_from(self.slab.insert((generation, value))).expect("fewer than 2^32 slots");
        Key { index, generation }
    }

    /// The entry, unless it was removed.
    pub fn get(&self, key: Key) -> Option<&T> {
        self.slab
            .get(key.index())
            .filter(|(generation, _)| *generation == key.generation)
            .map(|(_, value)| value)
    }

    /// The entry, unless it was removed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slab
            .get_mut(key.index())
            .filter(|(generation, _)| *generation == key.generation)
            .map(|(_, value)| value)
    }

    /// Takes the entry out, unless it was removed before.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        Some(self.slab.remove(key.index()).1)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// All entries in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slab
            .iter()
            .map(|(index, (generation, value))| (key(index, *generation), value))
    }

    /// All entries in slot order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.slab
            .iter_mut()
            .map(|(index, (generation, value))| (key(index, *generation), value))
    }

    /// All keys in slot order.
    pub fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

fn key(index: usize, generation: u32) -> Key {
    // `insert` refuses a slot number beyond u32.
    Key {
        index: index as u32,
        generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_does_not_find_the_next_tenant() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!(first.index(), second.index());
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&'b'));
    }
}
