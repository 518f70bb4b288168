//! The list of torrents: what did not change since the last look is not made again. Layer 6.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use super::{Facts, Live, queue};
use crate::base::InfoHash;
use crate::daemon::control::backend::Torrent;
use crate::daemon::handle::Listed;
use crate::daemon::row::TorrentRow;

/// The list as it was last made.
#[derive(Default)]
pub struct List(BTreeMap<InfoHash, (Seen, Arc<Torrent>)>);

/// What an entry was made of. Rows and facts are changed by putting others in their place, and a place that is pointed
/// at is not given to another.
struct Seen {
    row: Weak<TorrentRow>,
    /// Revision of what the session showed.
    shown: Option<u64>,
    facts: Option<Rc<Facts>>,
    is_waiting: bool,
    place: u64,
    /// Its files are on their way, or it is told why they did not go.
    has_moved: bool,
}

impl Seen {
    fn is_same(&self, now: &Seen) -> bool {
        let is_same_facts = match (&self.facts, &now.facts) {
            (Some(one), Some(other)) => Rc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        self.row.ptr_eq(&now.row)
            && self.shown == now.shown
            && is_same_facts
            && self.is_waiting == now.is_waiting
            && self.place == now.place
            // How far it is changes by itself.
            && !self.has_moved
            && !now.has_moved
    }
}

impl Live {
    /// All torrents by number.
    pub(super) fn list(&self) -> Vec<Arc<Torrent>> {
        let mut listed = self.control.torrents();
        listed.sort_by_key(|listed| listed.row.number);
        self.tidy_facts(&listed);
        let places = queue::places(&listed);
        let mut list = self.list.borrow_mut();
        let is_other = list.0.len() != listed.len();
        let mut torrents = Vec::with_capacity(listed.len());
        for (one, place) in listed.iter().zip(places) {
            let seen = self.seen(one, place);
            let info_hash = one.row.info_hash;
            let torrent = match list.0.get(&info_hash) {
                Some((before, torrent)) if before.is_same(&seen) => torrent.clone(),
                _ => {
                    let torrent = Arc::new(self.torrent(one, place));
                    list.0.insert(info_hash, (seen, torrent.clone()));
                    torrent
                }
            };
            torrents.push(torrent);
        }
        if is_other && list.0.len() != listed.len() {
            let there: BTreeSet<_> = listed.iter().map(|one| one.row.info_hash).collect();
            list.0.retain(|info_hash, _| there.contains(info_hash));
        }
        torrents
    }

    fn seen(&self, listed: &Listed, place: u64) -> Seen {
        let info_hash = &listed.row.info_hash;
        let moved_share = self.control.moved_share(info_hash);
        Seen {
            row: Arc::downgrade(&listed.row),
            shown: listed.shown.as_ref().map(|shown| shown.revision),
            facts: self.facts.borrow().get(info_hash).cloned(),
            is_waiting: listed.is_waiting,
            place,
            has_moved: moved_share.is_some() || self.control.move_trouble(info_hash).is_some(),
        }
    }

    /// Has facts read that are missing, and forgets those of torrents that went.
    fn tidy_facts(&self, listed: &[Listed]) {
        let lacks = {
            let facts = self.facts.borrow();
            let is_missing =
                |one: &Listed| one.row.pieces > 0 && !facts.contains_key(&one.row.info_hash);
            listed.iter().any(is_missing)
        };
        if lacks {
            self.lacks.notify_one();
        } else if self.facts.borrow().len() > listed.len() {
            let there: BTreeSet<_> = listed.iter().map(|one| one.row.info_hash).collect();
            let mut facts = self.facts.borrow_mut();
            facts.retain(|info_hash, _| there.contains(info_hash));
        }
    }
}
