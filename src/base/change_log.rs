//! Which keys of a table changed since when.

use std::collections::{BTreeSet, VecDeque};

/// Changes that are kept: whoever looks once a second misses none of 10,000 torrents that change at once.
const CHANGES_MAX: usize = 16_384;

/// The last changes of a table, numbered from 1. Whoever remembers the number of its last look is told what changed since, and
/// need not look at everything.
#[derive(Clone, Debug)]
pub struct ChangeLog<K> {
    /// Oldest first; the last one is `number`.
    keys: VecDeque<K>,
    number: u64,
}

impl<K> Default for ChangeLog<K> {
    fn default() -> ChangeLog<K> {
        ChangeLog {
            keys: VecDeque::new(),
            number: 0,
        }
    }
}

impl<K: Copy + Ord> ChangeLog<K> {
    /// Number of the last change, 0 before the first.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The entry of that key was put there, changed or taken away.
    pub fn note(&mut self, key: K) {
        if self.keys.len() == CHANGES_MAX {
            self.keys.pop_front();
        }
        self.keys.push_back(key);
        self.number += 1;
    }

    /// Keys that changed behind that number; `None` when some of them may be forgotten.
    pub fn since(&self, number: u64) -> Option<BTreeSet<K>> {
        let count = usize::try_from(self.number.saturating_sub(number)).ok()?;
        let first = self.keys.len().checked_sub(count)?;
        Some(self.keys.range(first..).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_remembers_a_number_is_told_what_changed_behind_it() {
        let mut log = ChangeLog::default();
        assert_eq!(log.since(0), Some(BTreeSet::new()));
        for key in [3, 1, 3] {
            log.note(key);
        }
        assert_eq!(log.number(), 3);
        assert_eq!(log.since(0), Some([1, 3].into()));
        assert_eq!(log.since(2), Some([3].into()));
        assert_eq!(log.since(3), Some(BTreeSet::new()));
    }

    #[test]
    fn whoever_comes_too_late_is_told_so() {
        let mut log = ChangeLog::default();
        for key in 0..=CHANGES_MAX {
            log.note(key);
        }
        assert_eq!(log.since(0), None);
        assert_eq!(log.since(1).map(|keys| keys.len()), Some(CHANGES_MAX));
    }
}
