//! Durability: what was written becomes what a resume record may claim. Layer 5.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::files::PARTS;
use super::{Changed, DiskError, DiskOp, DiskTorrent, Home, SyncError};
use crate::base::PieceIndex;
use crate::storage::layout::LayoutFile;
use crate::storage::resume::FileStamp;
use crate::uring::files::FsKind;
use crate::uring::{files, ring};

/// Files synced at once: enough for the device to merge its flushes.
const SYNCS_MAX: usize = 16;
/// Up to so many files, all of them are looked at whenever some are.
const LOOKED_AT_MAX: usize = 1_024;

/// What should be found under a name.
struct Expected {
    file: usize,
    path: PathBuf,
    /// Unknown of what was not looked at yet.
    inode: Option<u64>,
}

impl DiskTorrent {
    /// Makes durable what was written: data of every file touched since the last good sync, then the folders with new
    /// entries. Freeze the bits before, commit the frozen bits (and [`Self::stamps`]) after. Returns the files touched.
    ///
    /// # Errors
    /// With all pieces written since the last good sync: these must be checked from disk again. They are not
    /// reported a second time.
    pub async fn sync(self: &Rc<Self>) -> Result<BTreeSet<usize>, SyncError> {
        let work = std::mem::take(&mut *self.unsynced.borrow_mut());
        let result = match self.sync_files(&work.files).await {
            Ok(()) => self.sync_folders(&work.folders).await,
            Err(error) => Err(error),
        };
        let Err(error) = result else {
            return Ok(work.files);
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

    /// These pieces are good as they lie there, and no record of ours claims them yet. Whoever wrote them, a run of ours
    /// that was killed among others, may not have synced them: the next sync does (HOSTILE.md L8). They were hashed.
    pub fn found_good(&self, pieces: impl IntoIterator<Item = PieceIndex>) {
        let mut unsynced = self.unsynced.borrow_mut();
        for piece in pieces {
            self.proven(piece);
            unsynced.pieces.insert(piece);
            for span in self.config.layout.piece_spans(piece) {
                match self.home(span.file) {
                    Home::File => unsynced.files.insert(span.file),
                    Home::Parts => unsynced.files.insert(PARTS),
                    Home::Zeros => false,
                };
            }
        }
    }

    async fn sync_files(self: &Rc<Self>, files: &BTreeSet<usize>) -> Result<(), DiskError> {
        let left: Vec<usize> = files.iter().rev().copied().collect();
        let left = Rc::new(RefCell::new(left));
        let sync_rest = |disk: Rc<Self>, left: Rc<RefCell<Vec<usize>>>| async move {
            let mut result = Ok(());
            loop {
                let next = left.borrow_mut().pop();
                let Some(file) = next else { return result };
                let synced = Rc::clone(&disk).sync_file(file).await;
                result = result.and(synced);
            }
        };
        let at_once = files.len().min(SYNCS_MAX);
        let sync = |_| ring::spawn(sync_rest(Rc::clone(self), Rc::clone(&left)));
        let tasks: Vec<_> = (0..at_once).map(sync).collect();
        let mut result = Ok(());
        for task in tasks {
            let synced = task.await.unwrap_or_else(|_| {
                let error = io::Error::other("the task that synced it ended early");
                Err(self.error(DiskOp::Sync, PARTS, &error))
            });
            result = result.and(synced);
        }
        result
    }

    async fn sync_file(self: Rc<Self>, file: usize) -> Result<(), DiskError> {
        let _permit = self.lane.begin_long().await;
        if !self.config.is_writer {
            // What others wrote; a file system that may not be written has nothing to sync.
            if let Ok(handle) = self.handle(file, false).await {
                let _ = handle.fdatasync().await;
            }
            return Ok(());
        }
        let handle = self.handle(file, true).await?;
        let synced = handle.fdatasync().await;
        synced.map_err(|error| self.error(DiskOp::Sync, file, &error))?;
        let stamp = self.look(&handle).await;
        let stamp = stamp.map_err(|error| self.error(DiskOp::Stat, file, &error))?;
        self.lengths.borrow_mut().look(file, stamp.size_bytes);
        let before = self.stamps.borrow().files.get(file).copied().flatten();
        let is_other = before.is_some_and(|before| before.inode != stamp.inode);
        if is_other && self.kind == FsKind::Local {
            self.lengths.borrow_mut().replaced(file);
        }
        self.set_stamp(file, Some(record_stamp(stamp)));
        Ok(())
    }

    pub(super) fn set_stamp(&self, file: usize, stamp: Option<FileStamp>) {
        let mut stamps = self.stamps.borrow_mut();
        if file == PARTS {
            stamps.parts = stamp;
        } else if let Some(place) = stamps.files.get_mut(file) {
            *place = stamp;
        }
    }

    /// Files that somebody removed, replaced or cut: what was written to them is lost however well it was synced. Looks
    /// at those `among` these, or at all where `among` is `None` or they are not many. Told once a file.
    pub async fn look_for_gone(&self, among: Option<&BTreeSet<usize>>) -> Vec<Changed> {
        let stamps = self.stamps();
        let file_count = stamps.files.len();
        let wanted = match among {
            Some(files) if file_count > LOOKED_AT_MAX => files.clone(),
            _ => (0..file_count).chain([PARTS]).collect(),
        };
        // A file that was written and not synced yet has no stamp, but must be there.
        let expected = |file: usize| match (file, self.home(file)) {
            (PARTS, _) => stamps.parts.map(|stamp| Some(stamp.inode)),
            (_, Home::File) if self.is_to_be_there(file) => {
                let stamp = stamps.files.get(file).copied().flatten();
                let is_written = among.is_none_or(|files| files.contains(&file));
                // Where nothing is written, what was not there before is not gone.
                let is_expected = stamp.is_some() || (self.config.is_writer && is_written);
                is_expected.then(|| stamp.map(|stamp| stamp.inode))
            }
            _ => None,
        };
        let is_told = |file: &usize| self.in_doubt.borrow().contains(file);
        let look = |file: usize| {
            Some(Expected {
                file,
                path: self.path_of(file),
                inode: expected(file)?,
            })
        };
        let looks = wanted.into_iter().filter(|file| !is_told(file));
        let looks: Vec<Expected> = looks.filter_map(look).collect();
        let base = Arc::clone(&self.base);
        let looked = self
            .lane
            .off_ring(move || {
                let look = |expected: Expected| {
                    let found = regular(files::file_stamp_beneath(&base, &expected.path));
                    (expected, found)
                };
                looks.into_iter().map(look).collect::<Vec<_>>()
            })
            .await;
        let gone = looked.into_iter().filter_map(|(expected, found)| {
            self.is_gone(&expected, found).then_some(expected.file)
        });
        let gone: Vec<usize> = gone.filter(|file| !is_told(file)).collect();
        gone.into_iter().map(|file| self.changed(file)).collect()
    }

    /// Whether the file is missing, another one, or shorter than it was.
    fn is_gone(&self, expected: &Expected, found: io::Result<Option<files::FileStamp>>) -> bool {
        let mut lengths = self.lengths.borrow_mut();
        match found {
            Ok(Some(stamp)) => {
                lengths.look(expected.file, stamp.size_bytes);
                // Elsewhere the numbers may change by themselves.
                let is_other = expected.inode.is_some_and(|inode| inode != stamp.inode);
                (is_other && self.kind == FsKind::Local) || lengths.is_damaged(expected.file)
            }
            Ok(None) => true,
            // What cannot be looked at will be met by a read or write.
            Err(_) => false,
        }
    }

    fn is_to_be_there(&self, file: usize) -> bool {
        let has_bytes = |file: &LayoutFile| file.is_regular() && file.length_bytes > 0;
        self.is_selected(file) && self.config.layout.files().get(file).is_some_and(has_bytes)
    }

    /// The record must not claim a file that somebody else changed.
    pub(super) fn forget_stamp(&self, file: usize) {
        self.set_stamp(file, None);
    }

    /// Looks at the files of these pieces, which are about to be checked again: what the check finds good is good of
    /// files that look like this, for the record and for the next look. A change after this look is one of its own.
    ///
    /// # Errors
    /// The first file that cannot be looked at; a missing one is no error.
    pub async fn begin_check(&self, pieces: &[PieceIndex]) -> Result<(), DiskError> {
        let files = self.files_of(pieces).into_iter();
        let files = files.filter(|file| *file == PARTS || self.home(*file) == Home::File);
        for (file, stamp) in self.look_by_name(files.collect()).await {
            let stamp = stamp.map_err(|error| self.error(DiskOp::Stat, file, &error))?;
            self.set_stamp(file, stamp.map(record_stamp));
            let bytes = stamp.map_or(0, |stamp| stamp.size_bytes);
            self.lengths.borrow_mut().found(file, bytes);
            if let Some(watch) = self.watches.borrow_mut().get_mut(&file)
                && watch.writing == 0
            {
                watch.seen = stamp;
            }
        }
        Ok(())
    }

    /// How files of these names look now; what cannot be looked at is not there.
    pub async fn look_at_names(&self, files: Vec<usize>) -> Vec<(usize, Option<files::FileStamp>)> {
        let looked = self.look_by_name(files).await.into_iter();
        looked
            .map(|(file, found)| (file, found.ok().flatten()))
            .collect()
    }

    async fn look_by_name(
        &self,
        files: Vec<usize>,
    ) -> Vec<(usize, io::Result<Option<files::FileStamp>>)> {
        let named = files.into_iter().map(|file| (file, self.path_of(file)));
        let named: Vec<(usize, PathBuf)> = named.collect();
        let base = Arc::clone(&self.base);
        self.lane
            .off_ring(move || {
                let look = |(file, path): (usize, PathBuf)| {
                    (file, regular(files::file_stamp_beneath(&base, &path)))
                };
                named.into_iter().map(look).collect()
            })
            .await
    }

    /// The check of a changed file is over: what it found bad is no longer had, the rest may be sent.
    pub fn end_check(&self, changed: &Changed) {
        self.in_doubt.borrow_mut().remove(&changed.file);
    }

    /// The files with bytes of these pieces, and the parts file.
    fn files_of(&self, pieces: &[PieceIndex]) -> BTreeSet<usize> {
        let layout = &self.config.layout;
        let of_pieces = pieces
            .iter()
            .flat_map(|piece| layout.files_of_piece(*piece));
        of_pieces.chain([PARTS]).collect()
    }

    async fn sync_folders(&self, folders: &BTreeSet<PathBuf>) -> Result<(), DiskError> {
        if folders.is_empty() {
            return Ok(());
        }
        let base = Arc::clone(&self.base);
        let output = self.config.output.clone();
        let folders = folders.clone();
        self.lane
            .off_ring(move || {
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

/// No file where there is none, or something else in its place.
fn regular(stamp: io::Result<files::FileStamp>) -> io::Result<Option<files::FileStamp>> {
    match stamp {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        stamp => crate::session::resume_store::found(stamp),
    }
}
