//! From what is remembered of a torrent to what a session runs. Layer 6.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::cross::Cross;
use super::folder::StateFolder;
use super::policy::Book;
use super::row::{Facts, Origin, TorrentRow};
use super::scrub::Scrubbed;
use super::store::Write;
use super::writer::Writer;
use crate::base::{ChangeLog, InfoHash};
use crate::session::{
    CheckMode, DataPlace, Job, MagnetConfig, Preallocate, SeedAfter, SessionError, TorrentConfig,
    TorrentSource,
};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;

/// What is remembered, and what of it changed lately.
#[derive(Default)]
pub struct Rows {
    rows: BTreeMap<InfoHash, Arc<TorrentRow>>,
    log: ChangeLog<InfoHash>,
}

impl Rows {
    /// A row that is going to change.
    pub fn get_mut(&mut self, info_hash: &InfoHash) -> Option<&mut Arc<TorrentRow>> {
        let row = self.rows.get_mut(info_hash)?;
        self.log.note(*info_hash);
        Some(row)
    }

    /// Puts a row there, in the place of what was there.
    pub fn insert(&mut self, info_hash: InfoHash, row: Arc<TorrentRow>) {
        self.log.note(info_hash);
        self.rows.insert(info_hash, row);
    }

    /// Takes a row away.
    pub fn remove(&mut self, info_hash: &InfoHash) {
        self.log.note(*info_hash);
        self.rows.remove(info_hash);
    }

    /// What was changed, in order.
    pub const fn log(&self) -> &ChangeLog<InfoHash> {
        &self.log
    }
}

impl Deref for Rows {
    type Target = BTreeMap<InfoHash, Arc<TorrentRow>>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

impl FromIterator<(InfoHash, Arc<TorrentRow>)> for Rows {
    fn from_iter<I: IntoIterator<Item = (InfoHash, Arc<TorrentRow>)>>(rows: I) -> Rows {
        Rows {
            rows: rows.into_iter().collect(),
            log: ChangeLog::default(),
        }
    }
}

/// Every torrent that is remembered, in memory, in the state file and as .torrent files.
pub struct Torrents {
    pub folder: StateFolder,
    pub writer: Writer,
    pub rows: Mutex<Rows>,
    /// The daemon's own limits of seeding.
    pub seed_after: Mutex<SeedAfter>,
    pub policies: Book,
    pub cross: Cross,
    pub scrubbed: Scrubbed,
    /// Itself, for what it lends to magnet links.
    pub own: Weak<Torrents>,
}

impl Torrents {
    /// The rows. What holds them waits for nothing.
    pub fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A torrent's metadata (blocks).
    ///
    /// # Errors
    /// It is not here, or not what it was, in words for the user.
    pub fn metainfo(&self, info_hash: InfoHash) -> Result<Metainfo, SessionError> {
        let hint = "remove the torrent and add it again; its data stays";
        let bytes = self.folder.load_torrent(info_hash).map_err(|error| {
            let message = format!("the .torrent file of {info_hash} cannot be read: {error}");
            SessionError::new(message, hint)
        })?;
        match Metainfo::parse(&bytes).map(|metainfo| metainfo.called(info_hash)) {
            Ok(metainfo) if metainfo.info_hash == info_hash => Ok(metainfo),
            Ok(_) => {
                let message = format!("the .torrent file of {info_hash} is that of another");
                Err(SessionError::new(message, hint))
            }
            Err(error) => {
                let message = format!("the .torrent file of {info_hash} cannot be used: {error}");
                Err(SessionError::new(message, hint))
            }
        }
    }

    /// The daemon's own limits of seeding.
    pub fn seed_after(&self) -> SeedAfter {
        let seed_after = self.seed_after.lock();
        *seed_after.unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits of seeding from now on.
    pub fn set_seed_after(&self, seed_after: SeedAfter) {
        let held = self.seed_after.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = seed_after;
    }

    pub(super) fn config(&self, row: &TorrentRow, mut metainfo: Metainfo) -> TorrentConfig {
        if let Some(trackers) = &row.settings.trackers {
            metainfo.announce_tiers.clone_from(trackers);
        }
        TorrentConfig {
            web_seeds: metainfo.web_seeds.clone(),
            metainfo: Arc::new(metainfo),
            folder: row.folder.clone(),
            place: DataPlace {
                is_expected: row.expects_data(),
                renames: row.renames.clone(),
                suspects: Vec::new(),
            },
            fetches: row.fetches,
            check: CheckMode::Auto,
            preallocate: Preallocate::default(),
            is_sequential: row.is_sequential,
            selected_files: row.selected_files.clone(),
            peers: match row.have_bytes < row.wanted_bytes {
                true => row.peers.clone(),
                false => Vec::new(),
            },
            trackers: true,
            seed_after: self.seeds_until(row, self.seed_after()),
            tuning: self.tuning(row),
        }
    }

    /// Keeps the metadata that a link led to, and runs the torrent (blocks).
    fn on_metadata(&self, metainfo: Metainfo) -> Result<Option<TorrentConfig>, SessionError> {
        let info_hash = metainfo.info_hash;
        let cannot = |error: String| {
            let message = format!("the metadata of {info_hash} cannot be kept: {error}");
            SessionError::new(message, "make room in the state folder")
        };
        let torrent = metainfo.to_torrent();
        let saved = self.folder.save_torrent(info_hash, &torrent);
        saved.map_err(|error| cannot(error.to_string()))?;
        let written = {
            let mut rows = self.rows();
            let Some(row) = rows.get_mut(&info_hash) else {
                return Ok(None);
            };
            let row = Arc::make_mut(row);
            row.describe(&metainfo);
            self.writer.begin(vec![Write::Put(Box::new(row.clone()))])
        };
        written.done_blocking().map_err(cannot)?;
        self.look_for_files(info_hash, &AtomicBool::new(false))?;
        let row = self.rows().get(&info_hash).cloned();
        Ok(row.map(|row| self.config(&row, metainfo)))
    }
}

impl TorrentSource for Torrents {
    fn before_run(&self, info_hash: InfoHash, is_stopped: &AtomicBool) -> Result<(), SessionError> {
        self.look_for_files(info_hash, is_stopped)
    }

    fn job(&self, info_hash: InfoHash) -> Result<Job, SessionError> {
        let row = self.rows().get(&info_hash).cloned();
        let row = row.ok_or_else(|| {
            SessionError::new(
                format!("nothing is remembered of {info_hash}"),
                "add it again",
            )
        })?;
        let link = match &row.origin {
            Origin::Torrent => {
                let metainfo = self.metainfo(info_hash)?;
                return Ok(Job::Torrent(self.config(&row, metainfo)));
            }
            Origin::Magnet(link) => link.parse::<Magnet>(),
        };
        let mut link = link.map_err(|error| {
            let message = format!("the link of {info_hash} cannot be used: {error}");
            SessionError::new(message, "remove the torrent and add it again")
        })?;
        if let Some(trackers) = &row.settings.trackers {
            link.trackers = trackers.concat();
        }
        let own = self.own.clone();
        Ok(Job::Magnet(MagnetConfig {
            link,
            peers: Vec::new(),
            trackers: true,
            on_metadata: Arc::new(move |metainfo| match own.upgrade() {
                Some(torrents) => torrents.on_metadata(metainfo),
                None => Ok(None),
            }),
        }))
    }
}

impl TorrentRow {
    /// Takes over what the metadata says.
    pub fn describe(&mut self, metainfo: &Metainfo) {
        let info = &metainfo.info;
        let is_selected = |index: usize| {
            let selected = self.selected_files.as_ref();
            selected.is_none_or(|files| files.contains(&index))
        };
        let files = info.files.iter().enumerate();
        let wanted = files.filter(|(index, _)| is_selected(*index));
        self.wanted_bytes = wanted.map(|(_, file)| file.length_bytes).sum();
        if let Origin::Magnet(link) = &self.origin
            && let Ok(link) = link.parse::<Magnet>()
            && !info.is_private
        {
            // Their numbers: names are looked up once, on the way to the metadata.
            self.peers = link.peers.iter().flat_map(|peer| peer.parse()).collect();
        }
        self.origin = Origin::Torrent;
        self.name = info.name.clone();
        self.name_by_root();
        self.is_private = info.is_private;
        self.tiers = metainfo.announce_tiers.clone();
        self.files = info.files.len() as u64;
        self.pieces = info.geometry.piece_count();
        self.facts = Some(Box::new(Facts::of(metainfo)));
    }
}
