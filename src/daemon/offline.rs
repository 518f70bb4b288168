//! The state of a daemon that does not run: read, and added to. Layer 6. Blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::folder::StateFolder;
use super::row::TorrentRow;
use super::store::{State, Store, Write};
use crate::base::InfoHash;
use crate::session::SessionError;
use crate::session::resume_store::ResumeStore;
use crate::storage::resume::Record;

/// Rows that are written at once: each commit waits for the disk.
const BATCH_ROWS_MAX: usize = 256;

/// The state, locked: no daemon begins meanwhile.
pub struct Offline {
    folder: StateFolder,
    /// None where it is only read.
    store: Option<Store>,
    rows: BTreeMap<InfoHash, TorrentRow>,
    records: ResumeStore,
    waiting: Vec<Write>,
    /// The highest number that a torrent was given.
    number: u64,
    lived_s: u64,
    set_aside: Option<(String, PathBuf)>,
}

impl Offline {
    /// Takes the state folder, or makes it, and reads the state. A file that cannot be used is set aside.
    ///
    /// # Errors
    /// A daemon has it, or it cannot be used.
    pub fn open(path: &Path) -> Result<Offline, SessionError> {
        let folder = take(path)?;
        let file = folder.store();
        let (store, state) = Store::open(&file).map_err(|error| error.of(&file))?;
        Offline::of(folder, Some(store), state)
    }

    /// The same for who only reads: the state file is left as it is, whatever that is.
    ///
    /// # Errors
    /// A daemon has it, or it cannot be used.
    pub fn read(path: &Path) -> Result<Offline, SessionError> {
        let folder = take(path)?;
        let file = folder.store();
        let state = Store::read(&file).map_err(|error| error.of(&file))?;
        Offline::of(folder, None, state)
    }

    fn of(
        folder: StateFolder,
        store: Option<Store>,
        state: State,
    ) -> Result<Offline, SessionError> {
        let path = folder.path();
        let State {
            rows,
            kept,
            set_aside,
        } = state;
        let records = ResumeStore::open(path)
            .map_err(|error| cannot(format!("cannot use {}: {error}", path.display())))?;
        let number = rows.values().map(|row| row.number).max().unwrap_or(0);
        Ok(Offline {
            folder,
            store,
            rows,
            records,
            waiting: Vec::new(),
            number,
            lived_s: kept.map_or(0, |kept| kept.lived_s),
            set_aside,
        })
    }

    /// Whether there is a state that could be opened.
    pub fn is_there(path: &Path) -> bool {
        path.join("daemon.redb").exists()
    }

    /// A state file that could not be used, why, and its name now.
    pub const fn set_aside(&self) -> Option<&(String, PathBuf)> {
        self.set_aside.as_ref()
    }

    /// State files that could not be used and were set aside some time.
    pub fn set_aside_before(&self) -> Vec<PathBuf> {
        let is_one = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with("daemon.redb.bad-"))
        };
        let entries = std::fs::read_dir(self.folder.path()).into_iter().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(is_one).collect()
    }

    /// Seconds that its daemon had lived.
    pub const fn lived_s(&self) -> u64 {
        self.lived_s
    }

    /// What is remembered, by info_hash.
    pub const fn rows(&self) -> &BTreeMap<InfoHash, TorrentRow> {
        &self.rows
    }

    /// The resume records of a torrent, at whatever roots.
    ///
    /// # Errors
    /// Their folder cannot be read.
    pub fn records(&self, info_hash: InfoHash) -> Result<Vec<Record>, SessionError> {
        let found = self.records.all(info_hash);
        found.map_err(|error| cannot(format!("the resume records cannot be read: {error}")))
    }

    /// The bytes of a torrent's .torrent file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn torrent(&self, info_hash: InfoHash) -> Result<Vec<u8>, SessionError> {
        let read = self.folder.load_torrent(info_hash);
        read.map_err(|error| {
            let message = format!("the .torrent file of {info_hash} cannot be read: {error}");
            cannot(message)
        })
    }

    /// Takes a torrent in: what lies beside its row is on disk before the row is.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn put(
        &mut self,
        mut row: TorrentRow,
        torrent: Option<&[u8]>,
        records: &[Record],
    ) -> Result<(), SessionError> {
        let kept = |error: std::io::Error| cannot(format!("the state cannot be written: {error}"));
        if let Some(bytes) = torrent {
            self.folder
                .save_torrent(row.info_hash, bytes)
                .map_err(kept)?;
        }
        for record in records {
            self.records.save(record).map_err(kept)?;
        }
        self.number += 1;
        row.number = self.number;
        self.change(row)
    }

    /// Writes a row anew.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn change(&mut self, row: TorrentRow) -> Result<(), SessionError> {
        self.rows.insert(row.info_hash, row.clone());
        self.waiting.push(Write::Put(Box::new(row)));
        match self.waiting.len() >= BATCH_ROWS_MAX {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Has everything on disk.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn flush(&mut self) -> Result<(), SessionError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let Some(store) = &mut self.store else {
            return Err(cannot("the state was opened to be read".to_owned()));
        };
        store.commit(&waiting).map_err(|error| {
            SessionError::new(
                format!("the state cannot be written: {error}"),
                error.hint(),
            )
        })
    }
}

fn take(path: &Path) -> Result<StateFolder, SessionError> {
    StateFolder::take(path).map_err(|error| {
        let hint = "stop the daemon first, or name another folder with --state";
        SessionError::new(error.to_string(), hint)
    })
}

fn cannot(message: String) -> SessionError {
    SessionError::new(
        message,
        "name another folder with --state, or make room there",
    )
}
