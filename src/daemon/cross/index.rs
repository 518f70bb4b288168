//! Which torrents have files of which length, and which roots have the same name. Layer 6.
//!
//! A look costs what changed since the one before: with a hundred thousand torrents, going over all of them for each that is
//! added would take longer than anything else of adding it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::base::InfoHash;
use crate::daemon::row::TorrentRow;
use crate::daemon::torrents::{Rows, Torrents};
use crate::storage::safe_path::safe_name;
use crate::wire::metainfo::Metainfo;

/// Torrents whose files are looked at for one that is added, those first that have most of its lengths.
pub const SOURCES_MAX: usize = 16;
/// Torrents that are counted for one length, and for all lengths of one torrent: a length that so many have tells nothing.
const SAME_LENGTH_MAX: usize = 1_024;
const COUNTED_MAX: usize = 65_536;
/// Torrents that went and are still in it, beside half of those that are there.
const GONE_MAX: usize = 1_024;

/// The index of all torrents.
#[derive(Default)]
pub struct Index {
    /// Hash of a length and number of a torrent.
    lengths: BTreeSet<(u32, u32)>,
    /// Hash of a root's name and number of a torrent. A name that it has no more may be there too.
    names: BTreeSet<(u32, u32)>,
    torrents: BTreeMap<u32, InfoHash>,
    /// Without metadata yet: their lengths are missing.
    without: BTreeSet<InfoHash>,
    /// The last change of the rows that is in it; `None` before the first look.
    seen: Option<u64>,
    gone: usize,
}

/// What is remembered of a torrent.
type Row = Arc<TorrentRow>;

impl Index {
    /// Takes in what changed since the last time. For lengths it reads the .torrent files of those that came.
    pub fn update(&mut self, torrents: &Torrents, has_lengths: bool) {
        let changed = {
            let rows = torrents.rows();
            let number = rows.log().number();
            let changed = self.seen.and_then(|seen| rows.log().since(seen));
            self.seen = Some(number);
            let changed = changed.unwrap_or_else(|| rows.keys().copied().collect());
            let row = |info_hash: &InfoHash| rows.get(info_hash).cloned();
            let changed = changed.iter().map(|info_hash| (*info_hash, row(info_hash)));
            changed.collect::<Vec<(InfoHash, Option<Row>)>>()
        };
        for (info_hash, row) in changed {
            match row {
                Some(row) => self.take(torrents, &row, has_lengths),
                None => {
                    self.without.remove(&info_hash);
                    self.gone += 1;
                }
            }
        }
        if self.gone > GONE_MAX + self.torrents.len() / 2 {
            self.forget_gone(&torrents.rows());
        }
    }

    fn take(&mut self, torrents: &Torrents, row: &TorrentRow, has_lengths: bool) {
        let Ok(number) = u32::try_from(row.number) else {
            return;
        };
        self.names.insert((mix(safe_name(&row.name)), number));
        let is_new = self.torrents.insert(number, row.info_hash).is_none();
        if !has_lengths || !is_new && !self.without.contains(&row.info_hash) {
            return;
        }
        match torrents.metainfo(row.info_hash) {
            Ok(metainfo) => {
                self.without.remove(&row.info_hash);
                let lengths = lengths(&metainfo).into_iter();
                self.lengths
                    .extend(lengths.map(|bytes| (mix(bytes), number)));
            }
            Err(_) => drop(self.without.insert(row.info_hash)),
        }
    }

    fn forget_gone(&mut self, rows: &Rows) {
        let is_there = |number: u32, info_hash: &InfoHash| {
            let row = rows.get(info_hash);
            row.is_some_and(|row| row.number == u64::from(number))
        };
        self.torrents
            .retain(|number, info_hash| is_there(*number, info_hash));
        let torrents = &self.torrents;
        self.lengths
            .retain(|(_, number)| torrents.contains_key(number));
        self.names
            .retain(|(_, number)| torrents.contains_key(number));
        self.gone = 0;
    }

    /// The torrents with most of these lengths, of those that `is_there` says so of.
    pub fn most(
        &self,
        lengths: &BTreeSet<u64>,
        is_there: impl Fn(&InfoHash, u64) -> bool,
    ) -> Vec<InfoHash> {
        // Hits of lengths that few have, then of the others.
        let mut hits: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        let mut counted = 0;
        for bytes in lengths {
            let hash = mix(*bytes);
            let same = self.lengths.range((hash, 0)..=(hash, u32::MAX));
            let same: Vec<u32> = same
                .map(|(_, number)| *number)
                .take(SAME_LENGTH_MAX)
                .collect();
            counted += same.len();
            if counted > COUNTED_MAX {
                break;
            }
            let is_rare = same.len() < SAME_LENGTH_MAX;
            for number in same {
                let (rare, common) = hits.entry(number).or_default();
                *(if is_rare { rare } else { common }) += 1;
            }
        }
        let mut most: Vec<(u32, (usize, usize))> = hits.into_iter().collect();
        most.sort_by_key(|(number, hits)| (std::cmp::Reverse(*hits), *number));
        let known = most.into_iter().filter_map(|(number, _)| {
            let info_hash = self.torrents.get(&number)?;
            is_there(info_hash, number.into()).then_some(*info_hash)
        });
        known.take(SOURCES_MAX).collect()
    }

    /// Torrents whose roots may have that name.
    pub fn named(&self, root: &str) -> impl Iterator<Item = InfoHash> {
        let hash = mix(root);
        let same = self.names.range((hash, 0)..=(hash, u32::MAX));
        same.filter_map(|(_, number)| self.torrents.get(number).copied())
    }
}

/// Lengths of a torrent's files, each once.
pub fn lengths(metainfo: &Metainfo) -> BTreeSet<u64> {
    let files = metainfo.info.files.iter();
    let stored = files.filter(|file| !file.attributes.is_pad && file.length_bytes > 0);
    stored.map(|file| file.length_bytes).collect()
}

/// Two values that mix to one cost a look in vain.
fn mix(value: impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    (hasher.finish() >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(lengths: impl IntoIterator<Item = (u64, u32)>) -> Index {
        let mut index = Index::default();
        for (bytes, number) in lengths {
            index.lengths.insert((mix(bytes), number));
            index.torrents.insert(number, hash(number));
        }
        index
    }

    fn hash(number: u32) -> InfoHash {
        InfoHash::new([u8::try_from(number % 251).unwrap(); 20])
    }

    #[test]
    fn torrents_with_most_of_the_lengths_come_first_and_not_too_many() {
        let index = index((1..=40).map(|number| (7, number)).chain([(8, 30)]));
        let most = index.most(&BTreeSet::from([7, 8]), |other, _| *other != hash(1));
        assert_eq!(most.len(), SOURCES_MAX);
        assert_eq!(most[..3], [hash(30), hash(2), hash(3)]);
        assert!(index.most(&BTreeSet::from([9]), |_, _| true).is_empty());
    }

    #[test]
    fn a_length_that_very_many_have_is_not_counted_to_the_end() {
        let last = u32::try_from(SAME_LENGTH_MAX).unwrap() + 9;
        let index = index((1..=last).map(|number| (7, number)).chain([(8, last)]));
        let most = index.most(&BTreeSet::from([7, 8]), |_, _| true);
        let found = (most[0], most.len());
        assert_eq!(found, (hash(last), SOURCES_MAX), "the other length tells");
    }

    #[test]
    fn roots_are_found_by_their_names_and_what_went_is_forgotten() {
        let mut index = Index::default();
        for (name, number) in [("a", 1), ("b", 2), ("a", 3)] {
            index.names.insert((mix(safe_name(name)), number));
            index.torrents.insert(number, hash(number));
        }
        assert_eq!(index.named("a").collect::<Vec<_>>(), [hash(1), hash(3)]);
        let row = TorrentRow {
            number: 3,
            info_hash: hash(3),
            ..TorrentRow::default()
        };
        index.forget_gone(&[(hash(3), Arc::new(row))].into_iter().collect());
        assert_eq!(index.named("a").collect::<Vec<_>>(), [hash(3)]);
        assert_eq!(index.named("b").count(), 0);
    }
}
