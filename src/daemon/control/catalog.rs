//! The list of torrents with what changed in it since when: for clients that ask only for that. Layer 6.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend::{Changes, Torrent};
use crate::base::InfoHash;
use crate::daemon::date::unix_now_s;

/// A torrent that changed or went within this time is *recently active*.
const RECENT: Duration = Duration::from_secs(60);
/// Removals remembered: whoever asks once a minute misses none until a thousand go at once, ten times over.
const REMOVED_MAX: usize = 10_000;
/// The list is not made anew more often than this for those who only look.
const FRESH: Duration = Duration::from_millis(400);

/// The list as it was last seen.
#[derive(Debug, Default)]
pub struct Catalog {
    /// In the order of their ids.
    entries: Vec<Entry>,
    ids: BTreeMap<InfoHash, u64>,
    removed: VecDeque<Removed>,
    /// What was removed at this number or before may be forgotten.
    forgotten: u64,
    /// Number of the last look that found a change.
    sequence: u64,
    looked: Option<Instant>,
    has_looked: bool,
}

/// It moves data, or was added within [`RECENT`].
fn is_at_work(torrent: &Torrent) -> bool {
    torrent.down_bytes_per_s + torrent.up_bytes_per_s > 0
        || unix_now_s() - torrent.added_unix_s <= RECENT.as_secs().cast_signed()
}

#[derive(Debug)]
struct Entry {
    torrent: Arc<Torrent>,
    sequence: u64,
    /// `None` of what was there at the first look and did not change since: nobody was told anything else.
    changed: Option<Instant>,
}

#[derive(Debug)]
struct Removed {
    id: u64,
    info_hash: InfoHash,
    sequence: u64,
    when: Instant,
}

impl Catalog {
    /// The number to ask for changes behind.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// True when it is worth a new look.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| now - looked >= FRESH)
    }

    /// Something was changed: whoever looks next is to see it.
    pub const fn outdate(&mut self) {
        self.looked = None;
    }

    /// True when there is a list to which changes can be added.
    pub const fn has_looked(&self) -> bool {
        self.has_looked
    }

    /// Takes the list as it is now.
    pub fn look(&mut self, torrents: Vec<Arc<Torrent>>, now: Instant) {
        let there: BTreeSet<u64> = torrents.iter().map(|torrent| torrent.id).collect();
        let gone = self.entries.iter().map(|entry| entry.torrent.id);
        let gone = gone.filter(|id| !there.contains(id)).collect();
        let changed = torrents;
        self.take(Changes { changed, gone }, now);
    }

    /// Takes what became of the list.
    pub fn take(&mut self, changes: Changes, now: Instant) {
        self.looked = Some(now);
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        let next = self.sequence + 1;
        let mut is_changed = false;
        let gone: BTreeSet<u64> = changes.gone.into_iter().collect();
        if !gone.is_empty() {
            let before = self.entries.len();
            let went = self
                .entries
                .extract_if(.., |entry| gone.contains(&entry.torrent.id));
            for entry in went {
                let torrent = entry.torrent;
                self.ids.remove(&torrent.info_hash);
                self.removed.push_back(Removed {
                    id: torrent.id,
                    info_hash: torrent.info_hash,
                    sequence: next,
                    when: now,
                });
            }
            is_changed = self.entries.len() < before;
            while self.removed.len() > REMOVED_MAX {
                if let Some(removed) = self.removed.pop_front() {
                    self.forgotten = removed.sequence;
                }
            }
        }
        let mut new = Vec::new();
        for torrent in changes.changed {
            let mut entry = Entry {
                sequence: next,
                changed: (!is_first || is_at_work(&torrent)).then_some(now),
                torrent,
            };
            match self.at(entry.torrent.id) {
                Some(before) if before.torrent == entry.torrent => {
                    // The one that the list holds: it is not to be there twice.
                    before.torrent = entry.torrent;
                    continue;
                }
                Some(before) => std::mem::swap(before, &mut entry),
                None => {
                    self.ids.insert(entry.torrent.info_hash, entry.torrent.id);
                    new.push(entry);
                }
            }
            is_changed = true;
        }
        if !new.is_empty() {
            self.entries.append(&mut new);
            self.entries.sort_by_key(|entry| entry.torrent.id);
        }
        if is_changed {
            self.sequence = next;
        }
    }

    fn at(&mut self, id: u64) -> Option<&mut Entry> {
        let at = self
            .entries
            .binary_search_by_key(&id, |entry| entry.torrent.id);
        at.ok().and_then(|at| self.entries.get_mut(at))
    }

    /// Every torrent, by id.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Torrent>> {
        self.entries.iter().map(|entry| &entry.torrent)
    }

    /// One of them.
    pub fn get(&self, id: u64) -> Option<&Arc<Torrent>> {
        let at = self
            .entries
            .binary_search_by_key(&id, |entry| entry.torrent.id);
        at.ok()
            .and_then(|at| self.entries.get(at))
            .map(|entry| &entry.torrent)
    }

    /// The one of that info_hash.
    pub fn find(&self, info_hash: &InfoHash) -> Option<&Arc<Torrent>> {
        self.ids.get(info_hash).and_then(|id| self.get(*id))
    }

    /// What changed behind that number, and the ids that went.
    pub fn since(&self, sequence: u64) -> (Vec<Arc<Torrent>>, Vec<u64>) {
        let changed = self.entries.iter();
        let changed = changed.filter(|entry| entry.sequence > sequence);
        let removed = self
            .removed
            .iter()
            .filter(|removed| removed.sequence > sequence);
        (
            changed.map(|entry| entry.torrent.clone()).collect(),
            removed.map(|removed| removed.id).collect(),
        )
    }

    /// The info_hashes that went behind that number, and did not come back.
    pub fn removed_since(&self, sequence: u64) -> Vec<InfoHash> {
        let removed = self.removed.iter();
        let removed = removed.filter(|removed| removed.sequence > sequence);
        let hashes = removed.map(|removed| removed.info_hash);
        // One of them may be back.
        let hashes: BTreeSet<InfoHash> =
            hashes.filter(|hash| !self.ids.contains_key(hash)).collect();
        hashes.into_iter().collect()
    }

    /// Whether all that went behind that number is still known.
    pub const fn knows_since(&self, sequence: u64) -> bool {
        self.forgotten <= sequence
    }

    /// What changed within the last minute, and the ids that went.
    pub fn recent(&self, now: Instant) -> (Vec<Arc<Torrent>>, Vec<u64>) {
        let changed = self.entries.iter();
        let is_recent = |changed: Instant| now - changed <= RECENT;
        let changed = changed.filter(|entry| entry.changed.is_some_and(is_recent));
        let removed = self
            .removed
            .iter()
            .filter(|removed| now - removed.when <= RECENT);
        (
            changed.map(|entry| entry.torrent.clone()).collect(),
            removed.map(|removed| removed.id).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn torrent(id: u8, name: &str) -> Arc<Torrent> {
        let torrent = Torrent::nothing(id.into(), InfoHash::new([id; 20]), name);
        Arc::new(torrent)
    }

    fn ids(torrents: &[Arc<Torrent>]) -> Vec<u64> {
        torrents.iter().map(|torrent| torrent.id).collect()
    }

    #[test]
    fn only_what_changed_is_told_and_what_went_is_named() {
        let mut catalog = Catalog::default();
        let now = Instant::now();
        catalog.look(vec![torrent(1, "a"), torrent(2, "b")], now);
        let first = catalog.sequence();
        let later = now + RECENT + Duration::from_secs(1);
        catalog.look(vec![torrent(1, "a"), torrent(2, "c")], later);
        let (changed, removed) = catalog.since(first);
        assert_eq!((ids(&changed), removed), (vec![2], vec![]));
        let (changed, _) = catalog.recent(later);
        assert_eq!(ids(&changed), [2], "the other did not change for a minute");
        let second = catalog.sequence();
        catalog.look(vec![torrent(1, "a")], later);
        let (changed, removed) = catalog.since(second);
        assert_eq!((ids(&changed), removed), (vec![], vec![2]));
        assert_eq!(catalog.removed_since(second), [InfoHash::new([2; 20])]);
        assert!(catalog.knows_since(first));
        catalog.look(vec![torrent(1, "a")], later);
        assert_eq!(catalog.sequence(), second + 1, "nothing changed");
    }

    #[test]
    fn changes_are_taken_as_a_look_at_all_would_find_them() {
        let mut catalog = Catalog::default();
        let now = Instant::now();
        catalog.look(vec![torrent(1, "a"), torrent(2, "b"), torrent(4, "d")], now);
        let first = catalog.sequence();
        let changes = Changes {
            changed: vec![torrent(4, "e"), torrent(3, "c"), torrent(1, "a")],
            gone: vec![2, 9],
        };
        catalog.take(changes, now);
        assert_eq!(
            catalog.all().map(|one| one.id).collect::<Vec<_>>(),
            [1, 3, 4]
        );
        let (changed, removed) = catalog.since(first);
        assert_eq!((ids(&changed), removed), (vec![3, 4], vec![2]));
        let found = |id: u8| catalog.find(&InfoHash::new([id; 20])).map(|one| &*one.name);
        assert_eq!((found(4), found(2)), (Some("e"), None));
        let second = catalog.sequence();
        catalog.take(Changes::default(), now);
        assert_eq!(catalog.sequence(), second, "nothing changed");
    }

    #[test]
    fn one_that_comes_back_under_another_id_is_found_there() {
        let mut catalog = Catalog::default();
        let now = Instant::now();
        catalog.look(vec![torrent(1, "a")], now);
        let first = catalog.sequence();
        let back = Torrent {
            id: 7,
            ..Torrent::clone(&torrent(1, "a"))
        };
        let changes = Changes {
            changed: vec![back.into()],
            gone: vec![1],
        };
        catalog.take(changes, now);
        let found = catalog.find(&InfoHash::new([1; 20]));
        assert_eq!(found.map(|one| one.id), Some(7));
        assert!(catalog.removed_since(first).is_empty());
    }

    #[test]
    fn what_was_there_before_anybody_looked_is_not_recent_unless_it_is_at_work() {
        let mut catalog = Catalog::default();
        let now = Instant::now();
        let busy = Torrent {
            up_bytes_per_s: 1,
            ..Torrent::clone(&torrent(2, "b"))
        };
        let added = Torrent {
            added_unix_s: unix_now_s(),
            ..Torrent::clone(&torrent(3, "c"))
        };
        catalog.look(vec![torrent(1, "a"), busy.into(), added.into()], now);
        assert_eq!(ids(&catalog.recent(now).0), [2, 3]);
        assert_eq!(ids(&catalog.since(0).0), [1, 2, 3]);
        let mut empty = Catalog::default();
        empty.look(vec![], now);
        empty.look(vec![torrent(1, "a")], now);
        assert_eq!(
            ids(&empty.recent(now).0),
            [1],
            "it came after the first look"
        );
    }

    #[test]
    fn whoever_looks_behind_a_change_sees_it() {
        let mut catalog = Catalog::default();
        let now = Instant::now();
        catalog.look(vec![torrent(1, "a"), torrent(3, "c")], now);
        assert!(!catalog.is_stale(now));
        catalog.outdate();
        assert!(catalog.is_stale(now));
        let first = catalog.sequence();
        catalog.look(vec![torrent(2, "b"), torrent(3, "c"), torrent(9, "i")], now);
        let (changed, removed) = catalog.since(first);
        assert_eq!((ids(&changed), removed), (vec![2, 9], vec![1]));
        assert_eq!(
            catalog.get(3).map(|torrent| torrent.name.as_str()),
            Some("c")
        );
        assert!(catalog.get(1).is_none());
    }
}
