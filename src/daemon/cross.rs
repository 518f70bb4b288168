//! Files of torrents that are added, looked for among those of the torrents that are there. Layer 6. Blocks: for threads
//! that may.
//!
//! It happens before a torrent's first run, and again after a kill, until its row says that it was done. Lengths alone tell
//! which torrents are worth a look: eight bytes a file are kept of them, from the first look on.

mod index;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use index::Index;

use super::row::{Origin, TorrentRow};
use super::store::Write;
use super::torrents::Torrents;
use crate::base::InfoHash;
use crate::session::cross::{CrossError, Crossed, cross};
use crate::session::{Rename, SessionError, TorrentConfig};
use crate::storage::safe_path::{root_name, safe_name};
use crate::uring::random::random;
use crate::wire::metainfo::Metainfo;

/// Whether and where files are looked for.
pub struct Cross {
    is_on: bool,
    index: Mutex<Index>,
}

impl Cross {
    pub fn new(is_on: bool) -> Cross {
        Cross {
            is_on,
            index: Mutex::default(),
        }
    }

    /// The index, brought up to date.
    fn index(&self, torrents: &Torrents) -> MutexGuard<'_, Index> {
        let index = self.index.lock();
        let mut index = index.unwrap_or_else(PoisonError::into_inner);
        index.update(torrents, self.is_on);
        index
    }
}

impl Torrents {
    /// Does before a torrent's first run what is to be done then.
    ///
    /// # Errors
    /// What was done could not be kept.
    pub fn look_for_files(
        &self,
        info_hash: InfoHash,
        is_stopped: &AtomicBool,
    ) -> Result<(), SessionError> {
        let row = self.rows().get(&info_hash).cloned();
        let Some(row) = row.filter(|row| row.crosses && row.origin == Origin::Torrent) else {
            return Ok(());
        };
        let mut config = self.config(&row, self.metainfo(info_hash)?);
        let rename = self.other_root(&row, &config);
        config.place.renames.extend(rename.clone());
        let found = match self.find(&row, &config, is_stopped) {
            Ok(found) => found,
            Err(CrossError::Stopped) => return Ok(()),
            Err(error) => {
                warn!(%info_hash, %error, "its files are not looked for among those of others");
                None
            }
        };
        if let Some(found) = &found {
            tell(info_hash, found);
        }
        self.keep_found(info_hash, rename, found.is_some())
    }

    fn find(
        &self,
        row: &TorrentRow,
        config: &TorrentConfig,
        is_stopped: &AtomicBool,
    ) -> Result<Option<Crossed>, CrossError> {
        if !self.cross.is_on {
            return Ok(None);
        }
        let others = self.others(row, &config.metainfo);
        let seed = random().map_or(row.number, u64::from_le_bytes);
        cross(config, &others, self.folder.path(), seed, is_stopped)
    }

    fn keep_found(
        &self,
        info_hash: InfoHash,
        rename: Option<Rename>,
        is_found: bool,
    ) -> Result<(), SessionError> {
        let (kept, before) = {
            let mut rows = self.rows();
            let Some(row) = rows.get_mut(&info_hash) else {
                return Ok(());
            };
            let before = row.clone();
            let row = Arc::make_mut(row);
            row.crosses = false;
            row.is_unproven |= is_found;
            if let Some(rename) = rename {
                row.renames.push(rename);
                row.name_by_root();
            }
            (
                self.writer.begin(vec![Write::Put(Box::new(row.clone()))]),
                before,
            )
        };
        kept.done_blocking().map_err(|error| {
            self.rows().insert(info_hash, before);
            let message = format!("what was found of {info_hash} cannot be kept: {error}");
            SessionError::new(message, "make room in the state folder")
        })
    }

    /// Torrents that may have files of this one.
    fn others(&self, row: &TorrentRow, metainfo: &Metainfo) -> Vec<TorrentConfig> {
        let own = row.info_hash;
        let rows: Vec<Arc<TorrentRow>> = {
            let index = self.cross.index(self);
            let rows = self.rows();
            let there = |info_hash: &InfoHash, number: u64| {
                let row = rows.get(info_hash).filter(|row| row.number == number);
                row.is_some_and(|other| {
                    let is_other = other.info_hash != own;
                    is_other && other.leaving.is_none() && !other.is_on_its_way()
                })
            };
            let others = index.most(&index::lengths(metainfo), there);
            let found = others.iter().filter_map(|info_hash| rows.get(info_hash));
            found.cloned().collect()
        };
        let configs = rows.iter();
        configs
            .filter_map(|row| Some(self.config(row, self.metainfo(row.info_hash).ok()?)))
            .collect()
    }

    /// Another name for the root of a torrent, where one that was there before has it: two torrents do not share a folder's
    /// files (HOSTILE.md L17).
    fn other_root(&self, row: &TorrentRow, config: &TorrentConfig) -> Option<Rename> {
        let root = root_of(row, config);
        let named: Vec<InfoHash> = self.cross.index(self).named(&root).collect();
        let namesakes: Vec<Arc<TorrentRow>> = {
            let rows = self.rows();
            let named = named.iter().filter_map(|info_hash| rows.get(info_hash));
            let is_namesake = |other: &&Arc<TorrentRow>| {
                let is_before = other.info_hash != row.info_hash && other.number < row.number;
                // The name of a row is that of its root, before it was made safe.
                is_before && safe_name(&other.name) == root
            };
            named.filter(is_namesake).cloned().collect()
        };
        let folder = std::fs::canonicalize(&row.folder).ok();
        let is_taken = namesakes.iter().any(|other| {
            // One folder may be called by two names.
            let is_same =
                || folder.is_some() && std::fs::canonicalize(&other.folder).ok() == folder;
            other.folder == row.folder || is_same()
        });
        is_taken.then(|| Rename {
            name: name_apart(&root, row.info_hash, config.metainfo.info.is_multi_file),
            path: root,
        })
    }
}

fn root_of(row: &TorrentRow, config: &TorrentConfig) -> String {
    let is_root = |rename: &&Rename| !rename.path.contains('/');
    let renamed = row.renames.iter().rev().find(is_root);
    let own = || root_name(&config.metainfo.info);
    renamed.map_or_else(own, |rename| rename.name.clone())
}

/// The name with a piece of the info_hash in it; what follows the last dot of a file's name stays behind it.
fn name_apart(name: &str, info_hash: InfoHash, is_folder: bool) -> String {
    let mark: String = info_hash.to_string().chars().take(8).collect();
    let path = Path::new(name);
    let stem = path.file_stem().and_then(OsStr::to_str);
    let name = match (stem, path.extension().and_then(OsStr::to_str)) {
        (Some(stem), Some(extension)) if !is_folder => format!("{stem}.{mark}.{extension}"),
        _ => format!("{name}.{mark}"),
    };
    // One that is too long now is cut, and stays another than it was.
    safe_name(&name)
}

fn tell(info_hash: InfoHash, found: &Crossed) {
    let Crossed {
        files,
        bytes,
        shared_files,
        hashed_pieces,
        is_whole,
        ..
    } = found;
    info!(%info_hash, files, bytes, shared_files, hashed_pieces, is_whole, "files found among those of other torrents");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_apart_keeps_its_ending() {
        let hash = InfoHash::new([0xab; 20]);
        assert_eq!(name_apart("a.b.mkv", hash, false), "a.b.abababab.mkv");
        assert_eq!(name_apart("a.b", hash, true), "a.b.abababab");
        assert_eq!(name_apart("a", hash, false), "a.abababab");
        let long = "é".repeat(127);
        let apart = name_apart(&long, hash, true);
        assert!(
            apart != long && crate::storage::safe_path::is_safe_name(&apart),
            "{apart}"
        );
    }
}
