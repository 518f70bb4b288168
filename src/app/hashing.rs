//! Hashes of a torrent's pieces from plain files, on all cores. Layer 7.
//!
//! Used by `create` and `verify`, which run without the session's ring.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, SyncSender};

use crate::base::{Geometry, PieceIndex};
use crate::session::hash_ahead::{self, Place, Plan, Work};
use crate::uring::readahead::AheadFile;
use crate::wire::metainfo::PieceHash;

/// A worker takes this much of neighbouring pieces at a time.
const GRAB_BYTES: u32 = 4 << 20;

/// Files a worker keeps open.
const OPEN_FILES_MAX: usize = 8;

/// Answers that may wait for the caller; a worker then pauses.
const ANSWERS_MAX: usize = 256;

/// A file's place in the torrent's bytes.
#[derive(Clone, Debug)]
pub struct SourceFile {
    pub path: PathBuf,
    /// Where it starts in the torrent.
    pub offset: u64,
    pub length_bytes: u64,
    /// Zeros that are on no disk (BEP 47).
    pub is_pad: bool,
}

/// Why a piece has no hash.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct ReadError {
    /// Index of the file.
    pub file: usize,
    /// `UnexpectedEof` when the file is shorter than it should be.
    pub cause: io::Error,
}

/// The hash of a piece, or the file that kept it from having one.
pub type HashedPiece = Result<PieceHash, ReadError>;

/// The height of the tree over each piece, where its hash is the root of one.
pub type TreeHeight<'a> = &'a (dyn Fn(PieceIndex) -> Option<u32> + Sync);

/// Pieces have a SHA-1.
pub const NO_TREES: TreeHeight<'static> = &|_| None;

/// Hashes every piece and hands each answer to `on_piece`, in no fixed order, until it breaks off.
///
/// `files` are in the order of the torrent and cover all of `geometry`.
pub fn hash_pieces(
    files: &[SourceFile],
    geometry: &Geometry,
    tree_height: TreeHeight<'_>,
    on_piece: impl FnMut(PieceIndex, HashedPiece) -> ControlFlow<()>,
) {
    hash_opened(files, geometry, tree_height, open, on_piece);
}

/// A regular file; a named pipe in its place must not hold us.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a regular file",
        )),
    }
}

/// As [`hash_pieces`], with files opened by `open`, which must not block.
pub fn hash_opened(
    files: &[SourceFile],
    geometry: &Geometry,
    tree_height: TreeHeight<'_>,
    open: impl Fn(&Path) -> io::Result<File> + Sync,
    mut on_piece: impl FnMut(PieceIndex, HashedPiece) -> ControlFlow<()>,
) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let grab = GRAB_BYTES / geometry.piece_length_bytes().max(1);
    let common = Common {
        files,
        geometry,
        tree_height,
        grab: grab.max(1),
        next: AtomicU32::new(0),
        is_stopped: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let (answers, inbox) = mpsc::sync_channel(ANSWERS_MAX);
        for _ in 0..threads {
            let answers = answers.clone();
            let (common, open) = (&common, &open);
            scope.spawn(move || hash_ahead::run(&mut Worker::new(common, open, answers)));
        }
        drop(answers);
        for (piece, hash) in inbox {
            if on_piece(piece, hash).is_break() {
                common.is_stopped.store(true, Ordering::Relaxed);
                return;
            }
        }
    });
}

/// What the workers share.
struct Common<'a> {
    files: &'a [SourceFile],
    geometry: &'a Geometry,
    tree_height: TreeHeight<'a>,
    /// Pieces a worker takes at a time.
    grab: u32,
    next: AtomicU32,
    is_stopped: AtomicBool,
}

/// One thread's share.
struct Worker<'a, F> {
    common: &'a Common<'a>,
    open_file: &'a F,
    answers: SyncSender<(PieceIndex, HashedPiece)>,
    batch: Range<u32>,
    open: VecDeque<(usize, AheadFile)>,
    is_unheard: bool,
}

impl<'a, F: Fn(&Path) -> io::Result<File>> Worker<'a, F> {
    fn new(
        common: &'a Common<'a>,
        open_file: &'a F,
        answers: SyncSender<(PieceIndex, HashedPiece)>,
    ) -> Self {
        Worker {
            common,
            open_file,
            answers,
            batch: 0..0,
            open: VecDeque::new(),
            is_unheard: false,
        }
    }

    fn file(&mut self, index: usize) -> io::Result<AheadFile> {
        if let Some((_, file)) = self.open.iter().find(|(open, _)| *open == index) {
            return Ok(file.clone());
        }
        let path = self.common.files.get(index).map(|file| &file.path);
        let opened = (self.open_file)(path.ok_or(io::ErrorKind::NotFound)?)?;
        let file = AheadFile::new(opened.into());
        if self.open.len() >= OPEN_FILES_MAX {
            self.open.pop_front();
        }
        self.open.push_back((index, file.clone()));
        Ok(file)
    }
}

impl<F: Fn(&Path) -> io::Result<File>> Work for Worker<'_, F> {
    type Failure = ReadError;

    fn next(&mut self) -> Option<PieceIndex> {
        if self.batch.is_empty() {
            let count = self.common.geometry.piece_count();
            let start = self
                .common
                .next
                .fetch_add(self.common.grab, Ordering::Relaxed);
            self.batch = start.min(count)..start.saturating_add(self.common.grab).min(count);
        }
        self.common.geometry.piece(self.batch.next()?)
    }

    fn plan(&mut self, piece: PieceIndex) -> Result<Plan, ReadError> {
        let (files, geometry) = (self.common.files, self.common.geometry);
        let mut at = geometry.piece_offset(piece);
        let end = at + u64::from(geometry.piece_bytes(piece));
        let mut index = first_file(files, at);
        let mut spans = Vec::new();
        while at < end {
            let failed = |cause| ReadError { file: index, cause };
            let Some(file) = files.get(index) else {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            };
            let span_end = end.min(file.offset + file.length_bytes);
            let place = match file.is_pad || span_end == at {
                true => Place::Zeros,
                false => Place::At(self.file(index).map_err(failed)?, at - file.offset),
            };
            // Empty files too: the numbers of spans are those of files.
            spans.push((place, span_end - at));
            (at, index) = (span_end, index + 1);
        }
        Ok(Plan::Read(spans))
    }

    fn tree_height(&self, piece: PieceIndex) -> Option<u32> {
        (self.common.tree_height)(piece)
    }

    fn failure(&mut self, piece: PieceIndex, span: usize, cause: io::Error) -> ReadError {
        let first = first_file(self.common.files, self.common.geometry.piece_offset(piece));
        ReadError {
            file: first + span,
            cause,
        }
    }

    fn on_bytes(&mut self, _: u64) {}

    fn done(&mut self, piece: PieceIndex, hash: HashedPiece, _: bool) {
        self.is_unheard |= self.answers.send((piece, hash)).is_err();
    }

    fn is_stopped(&self) -> bool {
        self.is_unheard || self.common.is_stopped.load(Ordering::Relaxed)
    }
}

/// The first file with bytes at or behind `at`.
fn first_file(files: &[SourceFile], at: u64) -> usize {
    files.partition_point(|file| file.offset + file.length_bytes <= at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha1::{Digest, Sha1};

    fn world(lengths: &[usize]) -> (tempfile::TempDir, Vec<SourceFile>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, mut all) = (Vec::new(), Vec::new());
        for (index, length) in lengths.iter().enumerate() {
            let bytes: Vec<u8> = (0..*length).map(|i| (i * 7 + index * 31) as u8).collect();
            let path = folder.path().join(index.to_string());
            std::fs::write(&path, &bytes).unwrap();
            files.push(SourceFile {
                path,
                offset: all.len() as u64,
                length_bytes: *length as u64,
                is_pad: false,
            });
            all.extend(bytes);
        }
        (folder, files, all)
    }

    #[test]
    fn pieces_across_files_hash_like_the_flat_bytes() {
        let (_folder, files, all) = world(&[10, 0, 700_000, 0, 3, 40_000]);
        let geometry = Geometry::new(all.len() as u64, 32_768).unwrap();
        let mut seen = 0;
        hash_pieces(&files, &geometry, NO_TREES, |piece, hash| {
            let start = geometry.piece_offset(piece) as usize;
            let end = start + geometry.piece_bytes(piece) as usize;
            let expected: [u8; 20] = Sha1::digest(&all[start..end]).into();
            assert_eq!(hash.unwrap(), PieceHash::Sha1(expected));
            seen += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(seen, geometry.piece_count());
    }

    #[test]
    fn short_and_missing_files_are_named() {
        let (folder, files, all) = world(&[100, 100, 100]);
        std::fs::write(folder.path().join("1"), b"short").unwrap();
        std::fs::remove_file(folder.path().join("2")).unwrap();
        let geometry = Geometry::new(all.len() as u64, 100).unwrap();
        let mut answers = Vec::new();
        hash_pieces(&files, &geometry, NO_TREES, |piece, hash| {
            answers.push((piece.get(), hash.map_err(|e| (e.file, e.cause.kind()))));
            ControlFlow::Continue(())
        });
        answers.sort_by_key(|(piece, _)| *piece);
        assert!(answers[0].1.is_ok());
        assert_eq!(answers[1].1, Err((1, io::ErrorKind::UnexpectedEof)));
        assert_eq!(answers[2].1, Err((2, io::ErrorKind::NotFound)));
    }
}
