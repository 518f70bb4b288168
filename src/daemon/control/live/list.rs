//! The list of torrents: what did not change since the last look is not made again. Layer 6.
//!
//! A look goes once over rows and board side by side and compares where things lie; it copies and follows only what is
//! new. Ten thousand torrents at rest take it about a millisecond.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use super::{Live, queue};
use crate::base::InfoHash;
use crate::daemon::control::backend::Torrent;
use crate::daemon::handle::Listed;
use crate::daemon::row::TorrentRow;
use crate::session::command::TorrentSnapshot;

/// The list as it was last made, in the order of info_hashes.
#[derive(Default)]
pub struct List(Vec<Entry>);

struct Entry {
    info_hash: InfoHash,
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
    /// Number in the queue, and its own.
    order: (i64, u64),
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
enum Found {
    Same(Entry),
    /// With its place in the queue before.
    New(Listed, u64),
}

impl Found {
    fn order(&self) -> (i64, u64) {
        match self {
            Found::Same(entry) => entry.seen.order,
            Found::New(listed, _) => order(&listed.row),
        }
    }
}

fn order(row: &TorrentRow) -> (i64, u64) {
    (row.settings.queue, row.number)
}

impl Live {
    /// All torrents by number.
    pub(super) fn list(&self) -> Vec<Arc<Torrent>> {
        let mut list = self.list.borrow_mut();
        let moved = self.control.moved();
        let (found, is_order_same) = self.look(std::mem::take(&mut list.0), &moved);
        let places = (!is_order_same).then(|| queue::places(found.iter().map(Found::order)));
        let lacks = |found: &Found| match found {
            Found::New(listed, _) => listed.row.lacks_facts(),
            Found::Same(_) => false,
        };
        if found.iter().any(lacks) {
            self.lacks.notify_one();
        }
        let entries = found.into_iter().enumerate().map(|(at, found)| {
            let place = |before: u64| match &places {
                Some(places) => places.get(at).copied().unwrap_or(before),
                None => before,
            };
            match found {
                Found::Same(mut entry) => {
                    let before = entry.torrent.queue_position;
                    if place(before) != before {
                        Arc::make_mut(&mut entry.torrent).queue_position = place(before);
                    }
                    entry
                }
                Found::New(listed, before) => self.entry(&listed, &moved, place(before)),
            }
        });
        list.0 = entries.collect();
        let mut numbered: Vec<_> = list
            .0
            .iter()
            .map(|e| (e.seen.order.1, &e.torrent))
            .collect();
        numbered.sort_unstable_by_key(|(number, _)| *number);
        numbered
            .into_iter()
            .map(|(_, torrent)| torrent.clone())
            .collect()
    }

    /// What is there now beside what was there before, and whether the queue's order is the same.
    fn look(&self, before: Vec<Entry>, moved: &BTreeSet<InfoHash>) -> (Vec<Found>, bool) {
        let mut found = Vec::with_capacity(before.len() + 1);
        let mut is_order_same = true;
        let mut before = before.into_iter().peekable();
        self.control.each(|info_hash, row, shown, is_waiting| {
            while before
                .next_if(|entry| entry.info_hash < info_hash)
                .is_some()
            {
                is_order_same = false;
            }
            let old = before.next_if(|entry| entry.info_hash == info_hash);
            let has_moved = !moved.is_empty() && moved.contains(&info_hash);
            let old_order = old.as_ref().map(|entry| entry.seen.order);
            let old_place = old.as_ref().map_or(0, |entry| entry.torrent.queue_position);
            if let Some(entry) = old
                && !has_moved
                && entry.seen.is_same(row, shown, is_waiting)
            {
                found.push(Found::Same(entry));
            } else if row.leaving.is_none() {
                is_order_same &= old_order == Some(order(row));
                let listed = Listed {
                    row: row.clone(),
                    shown: shown.cloned(),
                    is_waiting,
                };
                found.push(Found::New(listed, old_place));
            } else {
                is_order_same &= old_order.is_none();
            }
        });
        is_order_same &= before.next().is_none();
        (found, is_order_same)
    }

    fn entry(&self, listed: &Listed, moved: &BTreeSet<InfoHash>, place: u64) -> Entry {
        let info_hash = listed.row.info_hash;
        Entry {
            info_hash,
            seen: Seen {
                row: Arc::downgrade(&listed.row),
                shown: listed.shown.as_ref().map_or_else(Weak::new, Arc::downgrade),
                is_waiting: listed.is_waiting,
                has_moved: moved.contains(&info_hash),
                order: order(&listed.row),
            },
            torrent: Arc::new(self.torrent(listed, place)),
        }
    }
}
