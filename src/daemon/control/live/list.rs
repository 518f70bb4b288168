//! The list of torrents, kept: a look makes anew only what changed since the one before. Layer 6.
//!
//! Rows and board tell which torrents they put in the place of others, so a look costs what changed and not what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use super::{Live, queue};
use crate::base::InfoHash;
use crate::daemon::control::backend::{Changes, Torrent};
use crate::daemon::handle::{Control, Listed, Mark};
use crate::daemon::row::TorrentRow;
use crate::session::command::TorrentSnapshot;

/// The list as it was last made.
#[derive(Default)]
pub struct List {
    entries: BTreeMap<InfoHash, Entry>,
    /// `None` before the first look.
    seen: Option<Mark>,
    /// Those that waited for their turn, and those whose files were on their way: neither rows nor board tell.
    waiting: BTreeSet<InfoHash>,
    moved: BTreeSet<InfoHash>,
    /// The largest of the numbers in the queue.
    last: Order,
}

/// A torrent's number in the queue, and its own.
type Order = (i64, u64);

struct Entry {
    seen: Seen,
    torrent: Arc<Torrent>,
}

/// What an entry was made of. Rows and what is shown of them are changed by putting others in their place, and a place
/// that is pointed at is not given to another.
struct Seen {
    row: Weak<TorrentRow>,
    shown: Weak<TorrentSnapshot>,
    is_waiting: bool,
    /// Its files are on their way, or it is told why they did not go: how far it is changes by itself.
    has_moved: bool,
    order: Order,
}

fn lies_there<T>(before: &Weak<T>, now: Option<&Arc<T>>) -> bool {
    match now {
        Some(now) => std::ptr::eq(before.as_ptr(), Arc::as_ptr(now)),
        None => before.ptr_eq(&Weak::new()),
    }
}

impl Seen {
    fn is_same(
        &self,
        row: &Arc<TorrentRow>,
        shown: Option<&Arc<TorrentSnapshot>>,
        is_waiting: bool,
    ) -> bool {
        lies_there(&self.row, Some(row))
            && lies_there(&self.shown, shown)
            && self.is_waiting == is_waiting
            && !self.has_moved
    }
}

/// What a look finds.
#[derive(Default)]
struct Found {
    new: Vec<Listed>,
    gone: Vec<InfoHash>,
}

impl Live {
    /// All torrents by number.
    pub(super) fn list(&self) -> Vec<Arc<Torrent>> {
        self.look();
        let list = self.list.borrow();
        let mut torrents: Vec<_> = list.entries.values().map(|e| e.torrent.clone()).collect();
        torrents.sort_unstable_by_key(|torrent| torrent.id);
        torrents
    }

    /// Brings the list up to date.
    pub(super) fn look(&self) -> Changes {
        let mut list = self.list.borrow_mut();
        let moved = self.control.moved();
        let waiting = self.control.waiting();
        let found = list.find(&self.control, &moved, waiting);
        if found.new.iter().any(|listed| listed.row.lacks_facts()) {
            self.lacks.notify_one();
        }
        let mut changes = Changes::default();
        let gone = found.gone.iter().filter_map(|one| list.entries.remove(one));
        changes.gone.extend(gone.map(|entry| entry.torrent.id));
        let mut is_order_same = true;
        let mut changed = BTreeSet::new();
        for listed in found.new {
            let info_hash = listed.row.info_hash;
            let before = list.entries.get(&info_hash);
            // Removed and added again since: it is another one.
            let before = before.filter(|before| {
                let is_same = before.torrent.id == listed.row.number;
                changes.gone.extend((!is_same).then_some(before.torrent.id));
                is_same
            });
            let order = (listed.row.settings.queue, listed.row.number);
            let place = match before {
                Some(before) => {
                    is_order_same &= before.seen.order == order;
                    before.torrent.queue_position
                }
                None => {
                    is_order_same &= order > list.last;
                    list.entries.len() as u64
                }
            };
            list.last = list.last.max(order);
            let seen = Seen {
                row: Arc::downgrade(&listed.row),
                shown: listed.shown.as_ref().map_or_else(Weak::new, Arc::downgrade),
                is_waiting: listed.is_waiting,
                has_moved: moved.contains(&info_hash),
                order,
            };
            let torrent = Arc::new(self.torrent(&listed, place));
            list.entries.insert(info_hash, Entry { seen, torrent });
            changed.insert(info_hash);
        }
        list.moved = moved;
        if !is_order_same || !changes.gone.is_empty() {
            list.number_places(&mut changed);
        }
        let changed = changed.iter().filter_map(|one| list.entries.get(one));
        changes.changed = changed.map(|entry| entry.torrent.clone()).collect();
        changes
    }
}

impl List {
    /// What is other than it was, and what is not there any more.
    fn find(
        &mut self,
        control: &Control,
        moved: &BTreeSet<InfoHash>,
        waiting: BTreeSet<InfoHash>,
    ) -> Found {
        let mut found = Found::default();
        self.seen = control.look(self.seen, |mark, changed, rows, shown| {
            let keys: BTreeSet<InfoHash> = match changed {
                None => rows.keys().chain(self.entries.keys()).copied().collect(),
                Some(mut changed) => {
                    changed.extend(self.waiting.symmetric_difference(&waiting));
                    changed.extend(moved.union(&self.moved));
                    changed
                }
            };
            for info_hash in keys {
                let row = rows.get(&info_hash).filter(|row| row.leaving.is_none());
                let Some(row) = row else {
                    if self.entries.contains_key(&info_hash) {
                        found.gone.push(info_hash);
                    }
                    continue;
                };
                let (shown, is_waiting) = (shown.get(&info_hash), waiting.contains(&info_hash));
                let before = self.entries.get(&info_hash);
                let is_same = before.is_some_and(|one| one.seen.is_same(row, shown, is_waiting));
                if !is_same || moved.contains(&info_hash) {
                    found.new.push(Listed {
                        row: row.clone(),
                        shown: shown.cloned(),
                        is_waiting,
                    });
                }
            }
            Some(mark)
        });
        self.waiting = waiting;
        found
    }

    /// Counts the places in the queue anew; whose place is another is added to `changed`.
    fn number_places(&mut self, changed: &mut BTreeSet<InfoHash>) {
        let places = queue::places(self.entries.values().map(|entry| entry.seen.order));
        for ((info_hash, entry), place) in self.entries.iter_mut().zip(places) {
            if entry.torrent.queue_position != place {
                Arc::make_mut(&mut entry.torrent).queue_position = place;
                changed.insert(*info_hash);
            }
        }
        let last = self.entries.values().map(|entry| entry.seen.order).max();
        self.last = last.unwrap_or_default();
    }
}
