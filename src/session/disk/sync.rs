//! Durability: what was written becomes what a resume record may claim. Layer 5.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::files::{PARTS, off_ring};
use super::{DiskError, DiskOp, DiskTorrent, SyncError};
use crate::base::PieceIndex;
use crate::storage::resume::FileStamp;
use crate::uring::{files, ring};

/// Files synced at once: enough for the device to merge its flushes.
const SYNCS_MAX: usize = 16;

impl DiskTorrent {
    /// Makes durable what was written: data of every file touched since the last good sync, then the folders with new
    /// entries. Freeze the bits before, commit the frozen bits (and [`Self::stamps`]) after.
    ///
    /// # Errors
    /// With all pieces written since the last good sync: these must be checked from disk again. They are not
    /// reported a second time.
    pub async fn sync(self: &Rc<Self>) -> Result<(), SyncError> {
        let work = std::mem::take(&mut *self.unsynced.borrow_mut());
        let result = match self.sync_files(&work.files).await {
            Ok(()) => self.sync_folders(&work.folders).await,
            Err(error) => Err(error),
        };
        let Err(error) = result else {
            return Ok(());
        };
        let mut unsynced = self.unsynced.borrow_mut();
        unsynced.files.extend(work.files);
        unsynced.folders.extend(work.folders);
        let pieces: Vec<PieceIndex> = work.pieces.into_iter().collect();
        Err(SyncError { error, pieces })
    }

    /// True when nothing was written since the last good sync.
    pub fn is_synced(&self) -> bool {
        let unsynced = self.unsynced.borrow();
        unsynced.files.is_empty() && unsynced.folders.is_empty()
    }

    async fn sync_files(self: &Rc<Self>, files: &BTreeSet<usize>) -> Result<(), DiskError> {
        let files: Vec<usize> = files.iter().copied().collect();
        let mut result = Ok(());
        for some in files.chunks(SYNCS_MAX) {
            let sync = |file: &usize| ring::spawn(Rc::clone(self).sync_file(*file));
            let tasks: Vec<_> = some.iter().map(sync).collect();
            for task in tasks {
                let synced = task.await.unwrap_or_else(|_| {
                    let error = std::io::Error::other("the task that synced it ended early");
                    Err(self.error(DiskOp::Sync, PARTS, &error))
                });
                result = result.and(synced);
            }
        }
        result
    }

    async fn sync_file(self: Rc<Self>, file: usize) -> Result<(), DiskError> {
        let handle = self.handle(file, true).await?;
        let synced = handle.fdatasync().await;
        synced.map_err(|error| self.error(DiskOp::Sync, file, &error))?;
        let stamp = self.look(&handle).await;
        let stamp = stamp.map_err(|error| self.error(DiskOp::Stat, file, &error))?;
        self.set_stamp(file, Some(record_stamp(stamp)));
        Ok(())
    }

    fn set_stamp(&self, file: usize, stamp: Option<FileStamp>) {
        let mut stamps = self.stamps.borrow_mut();
        if file == PARTS {
            stamps.parts = stamp;
        } else if let Some(place) = stamps.files.get_mut(file) {
            *place = stamp;
        }
    }

    /// The record must not claim a file that somebody else changed.
    pub(super) fn forget_stamp(&self, file: usize) {
        self.set_stamp(file, None);
    }

    /// Looks at the files again: for the record, once a re-check has accepted what others changed.
    ///
    /// # Errors
    /// The first file that cannot be looked at; a missing one is no error.
    pub async fn refresh_stamps(&self, pieces: &[PieceIndex]) -> Result<(), DiskError> {
        let layout = Arc::clone(&self.config.layout);
        let of_pieces = pieces
            .iter()
            .flat_map(|piece| layout.files_of_piece(*piece));
        let wanted: BTreeSet<usize> = of_pieces.chain([PARTS]).collect();
        let paths: Vec<(usize, PathBuf)> = wanted
            .into_iter()
            .filter(|file| *file == PARTS || self.home(*file) == super::Home::File)
            .map(|file| (file, self.path_of(file)))
            .collect();
        let base = Arc::clone(&self.base);
        let looked = off_ring(move || {
            let look = |(file, path): (usize, PathBuf)| {
                let stamp = files::stamp_beneath(&base, &path);
                (file, crate::session::resume_store::found(stamp))
            };
            paths.into_iter().map(look).collect::<Vec<_>>()
        })
        .await;
        for (file, stamp) in looked {
            let stamp = stamp.map_err(|error| self.error(DiskOp::Stat, file, &error))?;
            self.set_stamp(file, stamp.map(record_stamp));
        }
        Ok(())
    }

    async fn sync_folders(&self, folders: &BTreeSet<PathBuf>) -> Result<(), DiskError> {
        if folders.is_empty() {
            return Ok(());
        }
        let base = Arc::clone(&self.base);
        let output = self.config.output.clone();
        let folders = folders.clone();
        off_ring(move || {
            folders.iter().try_for_each(|folder| {
                files::open_dir_beneath(&base, folder)
                    .and_then(|fd| files::sync_dir(&fd))
                    .map_err(|error| DiskError::new(DiskOp::Sync, output.join(folder), &error))
            })
        })
        .await
    }
}

/// What a record keeps of a file's look.
pub(super) fn record_stamp(stamp: files::FileStamp) -> FileStamp {
    crate::session::resume_store::stamp_of(stamp)
}
