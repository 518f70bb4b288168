//! Reading files, and the watch over those that others may change. Layer 5.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::files::PARTS;
use super::{Changed, DiskError, DiskOp, DiskTorrent, Home, ReadError};
use crate::base::PieceIndex;
use crate::swarm::effects::UploadRun;
use crate::uring::buffers::Segment;
use crate::uring::files::{File, FileStamp, FsKind};

/// How often at most a file is looked at before it is read (HOSTILE.md L3).
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How a file looked when we last saw it, or wrote it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// None after a write of ours: the next look takes whatever it sees.
    pub seen: Option<FileStamp>,
    pub looked: Option<Instant>,
    /// Writes of ours under way.
    pub writing: u32,
    /// Writes of ours begun so far: a look that one fell into tells nothing.
    pub writes: u64,
}

impl DiskTorrent {
    /// The file ended too early: somebody cut it.
    pub(super) fn read_failed(
        &self,
        piece: PieceIndex,
        start: u64,
        length: u64,
        error: DiskError,
    ) -> ReadError {
        if error.kind != io::ErrorKind::UnexpectedEof && !is_gone(error.kind) {
            return error.into();
        }
        let spans = self.config.layout.spans(start, length);
        let by_path = spans
            .filter_map(|span| self.target(piece, &span).ok().flatten())
            .map(|(file, _)| file)
            .find(|file| self.full(&self.path_of(*file)) == error.path);
        match by_path {
            Some(file) => self.told_once(file),
            None => error.into(),
        }
    }

    /// Reads `range` of the segment from the torrent: byte 0 of the segment is byte `start` of the torrent.
    pub(super) async fn read_range(
        &self,
        piece: PieceIndex,
        start: u64,
        range: Range<usize>,
        mut buffer: Segment,
    ) -> (Result<(), DiskError>, Segment) {
        let mut at = range.start;
        let offset = start + range.start as u64;
        for span in self.config.layout.spans(offset, range.len() as u64) {
            let length = usize::try_from(span.length).unwrap_or(usize::MAX);
            let into = at..at.saturating_add(length);
            at = into.end;
            let (file, offset) = match self.target(piece, &span) {
                Ok(Some(target)) => target,
                Ok(None) => {
                    if let Some(zeros) = buffer.as_mut_slice().get_mut(into) {
                        zeros.fill(0);
                    }
                    continue;
                }
                Err(error) => return (Err(error), buffer),
            };
            // Before the file is opened: operations bound the open files.
            let _permit = self.lane.begin().await;
            let handle = match self.handle(file, false).await {
                Ok(handle) => handle,
                Err(error) => return (Err(error), buffer),
            };
            let read;
            (read, buffer) = handle.read_at(buffer, into, offset).await;
            let failed = match read {
                Ok(got) if got == length => continue,
                Ok(_) => io::ErrorKind::UnexpectedEof.into(),
                Err(error) => error,
            };
            self.hub.budget.close(self.id, file);
            return (Err(self.error(DiskOp::Read, file, &failed)), buffer);
        }
        (Ok(()), buffer)
    }

    /// Compares the file with what we last saw, at most once a second.
    pub(super) async fn look_for_changes(&self, file: usize) -> Result<(), ReadError> {
        if self.in_doubt.borrow().contains(&file) {
            return Err(ReadError::InDoubt);
        }
        let now = Instant::now();
        let watch = self
            .watches
            .borrow()
            .get(&file)
            .copied()
            .unwrap_or_default();
        if watch.looked.is_some_and(|at| now - at < LOOK_EVERY) {
            return Ok(());
        }
        // Set before the look: others need not look meanwhile.
        self.watches.borrow_mut().entry(file).or_default().looked = Some(now);
        let handle = match self.handle(file, false).await {
            Ok(handle) => handle,
            Err(error) if is_gone(error.kind) => {
                return Err(self.told_once(file));
            }
            Err(error) => return Err(error.into()),
        };
        let stamp = self.look(&handle).await;
        let stamp = stamp.map_err(|error| self.error(DiskOp::Stat, file, &error))?;
        let mut watches = self.watches.borrow_mut();
        let watch_now = watches.entry(file).or_default();
        let is_ours = watch_now.writing > 0 || watch_now.writes != watch.writes;
        let before = watch_now.seen.take();
        watch_now.seen = (!is_ours).then_some(stamp);
        let recorded = self.opened_stamp(file);
        drop(watches);
        let is_same = match before {
            _ if is_ours => true,
            // Whether more than its names changed, nobody knows.
            Some(before) if before.is_renamed(&stamp) => {
                self.doubt(self.pieces_in(file));
                true
            }
            Some(before) => before.is_same_version(&stamp),
            // Nothing of ours was written since the start: it must be the file we started with.
            None => recorded.is_none_or(|was| was == super::sync::record_stamp(stamp)),
        };
        if is_same && stamp.links > 0 {
            return Ok(());
        }
        Err(self.told_once(file))
    }

    /// Two may have looked at the same time.
    fn told_once(&self, file: usize) -> ReadError {
        let changed = self.changed_unless_told(file);
        changed.map_or(ReadError::InDoubt, ReadError::Changed)
    }

    /// Starts afresh with the file, unless it is being checked already.
    pub fn changed_unless_told(&self, file: usize) -> Option<Changed> {
        let is_told = self.in_doubt.borrow().contains(&file);
        (!is_told).then(|| self.changed(file))
    }

    /// Files with bytes of the piece that are files of their own.
    pub fn own_files_of(&self, piece: PieceIndex) -> Vec<usize> {
        let files = self.config.layout.files_of_piece(piece);
        files
            .filter(|file| self.home(*file) == Home::File)
            .collect()
    }

    /// How the file looked when it was last looked at, or when its last check began.
    pub fn seen_of(&self, file: usize) -> Option<FileStamp> {
        self.watches.borrow().get(&file)?.seen
    }

    /// Writes of ours to the file so far.
    pub fn writes_of(&self, file: usize) -> u64 {
        let watches = self.watches.borrow();
        watches.get(&file).map_or(0, |watch| watch.writes)
    }

    /// The files of a run are shorter than they were: the kernel could not send them.
    pub fn on_cut(&self, run: &UploadRun) -> Vec<Changed> {
        let files: BTreeSet<usize> = run
            .blocks
            .iter()
            .flat_map(|block| self.config.layout.files_of_piece(block.piece()))
            .filter(|file| self.home(*file) == Home::File)
            .collect();
        let is_told = |file: &usize| self.in_doubt.borrow().contains(file);
        let untold: Vec<usize> = files.into_iter().filter(|file| !is_told(file)).collect();
        untold.into_iter().map(|file| self.changed(file)).collect()
    }

    /// How the file looked when the torrent was opened or last synced; `None` when it was written since.
    fn opened_stamp(&self, file: usize) -> Option<crate::storage::resume::FileStamp> {
        if self.config.is_writer {
            return None;
        }
        let stamps = self.stamps.borrow();
        if file == PARTS {
            stamps.parts
        } else {
            stamps.files.get(file).copied().flatten()
        }
    }

    /// How the file looks; a file system that may hang is asked off the ring thread.
    pub(super) async fn look(&self, handle: &File) -> io::Result<FileStamp> {
        if self.kind == FsKind::Local {
            return handle.stamp();
        }
        let fd = handle.fd().try_clone()?;
        self.lane
            .off_ring(move || crate::uring::files::stamp(&fd))
            .await
    }

    /// Starts afresh with the file: its pieces are in doubt until a check of them ends, the next read opens what is
    /// there.
    pub(super) fn changed(&self, file: usize) -> Changed {
        self.in_doubt.borrow_mut().insert(file);
        self.lengths.borrow_mut().told(file);
        self.hub.budget.close(self.id, file);
        let mut watches = self.watches.borrow_mut();
        let watch = watches.entry(file).or_default();
        watch.seen = None;
        watch.looked = Some(Instant::now());
        drop(watches);
        self.forget_stamp(file);
        Changed {
            path: self.path_of(file),
            pieces: self.pieces_in(file),
            file,
        }
    }

    /// The pieces with bytes of it.
    fn pieces_in(&self, file: usize) -> Vec<PieceIndex> {
        if file == PARTS {
            let is_here = |piece: &PieceIndex| self.config.parts.offset(*piece, 0).is_some();
            return self.geometry().pieces().filter(is_here).collect();
        }
        let pieces = self.config.layout.pieces_of_file(file);
        pieces.map(PieceIndex::new).collect()
    }
}

/// Nothing of that name is a file that may be read.
fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidData
            | io::ErrorKind::CrossesDevices
            | io::ErrorKind::PermissionDenied
    )
}
