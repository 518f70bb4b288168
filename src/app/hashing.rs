//! SHA-1 of a torrent's pieces from plain files, on all cores. Layer 6.
//!
//! Used by `create` and `verify`, which run without a ring.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;

use sha1::{Digest, Sha1};

use crate::base::{Geometry, PieceIndex};

/// Read at a time: large enough for the disk, small enough for the cache.
const READ_BYTES: usize = 256 * 1024;

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
pub type PieceHash = Result<[u8; 20], ReadError>;

/// Hashes every piece and hands each answer to `on_piece`, in no fixed order, until it breaks off.
///
/// `files` are in the order of the torrent and cover all of `geometry`.
pub fn hash_pieces(
    files: &[SourceFile],
    geometry: &Geometry,
    on_piece: impl FnMut(PieceIndex, PieceHash) -> ControlFlow<()>,
) {
    hash_opened(files, geometry, open, on_piece);
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
    open: impl Fn(&Path) -> io::Result<File> + Sync,
    mut on_piece: impl FnMut(PieceIndex, PieceHash) -> ControlFlow<()>,
) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU32::new(0);
    let is_stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (answers, inbox) = mpsc::sync_channel(ANSWERS_MAX);
        for _ in 0..threads {
            let answers = answers.clone();
            let (next, is_stopped, open) = (&next, &is_stopped, &open);
            scope.spawn(move || {
                let mut reader = Reader::new(files, open);
                while !is_stopped.load(Ordering::Relaxed) {
                    let Some(piece) = geometry.piece(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    if answers.send((piece, reader.hash(geometry, piece))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(answers);
        for (piece, hash) in inbox {
            if on_piece(piece, hash).is_break() {
                is_stopped.store(true, Ordering::Relaxed);
                return;
            }
        }
    });
}

/// One worker's open file and buffer.
struct Reader<'a, F> {
    files: &'a [SourceFile],
    open_file: &'a F,
    open: Option<(usize, File)>,
    buffer: Vec<u8>,
}

impl<'a, F: Fn(&Path) -> io::Result<File>> Reader<'a, F> {
    fn new(files: &'a [SourceFile], open_file: &'a F) -> Self {
        Reader {
            files,
            open_file,
            open: None,
            buffer: vec![0; READ_BYTES],
        }
    }

    fn hash(&mut self, geometry: &Geometry, piece: PieceIndex) -> PieceHash {
        let mut sha1 = Sha1::new();
        let mut at = geometry.piece_offset(piece);
        let end = at + u64::from(geometry.piece_bytes(piece));
        let mut index = self
            .files
            .partition_point(|file| file.offset + file.length_bytes <= at);
        while at < end {
            let Some(file) = self.files.get(index) else {
                let cause = io::ErrorKind::UnexpectedEof.into();
                return Err(ReadError { file: index, cause });
            };
            let span_end = end.min(file.offset + file.length_bytes);
            self.span(index, at - file.offset, span_end - at, &mut sha1)
                .map_err(|cause| ReadError { file: index, cause })?;
            at = span_end;
            index += 1;
        }
        Ok(sha1.finalize().into())
    }

    fn span(
        &mut self,
        index: usize,
        mut at: u64,
        mut left: u64,
        sha1: &mut Sha1,
    ) -> io::Result<()> {
        let is_pad = self.files.get(index).is_some_and(|file| file.is_pad);
        while left > 0 {
            let want = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
            let got = if is_pad {
                if let Some(zeros) = self.buffer.get_mut(..want) {
                    zeros.fill(0);
                }
                want
            } else {
                self.read(index, at, want)?
            };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sha1.update(self.buffer.get(..got).unwrap_or_default());
            at += got as u64;
            left -= got as u64;
        }
        Ok(())
    }

    fn read(&mut self, index: usize, at: u64, want: usize) -> io::Result<usize> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != index) {
            let path = self.files.get(index).map(|file| &file.path);
            let path = path.ok_or(io::ErrorKind::NotFound)?;
            self.open = Some((index, (self.open_file)(path)?));
        }
        let Some((_, file)) = &self.open else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let buffer = self.buffer.get_mut(..want).unwrap_or_default();
        loop {
            match file.read_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        hash_pieces(&files, &geometry, |piece, hash| {
            let start = geometry.piece_offset(piece) as usize;
            let end = start + geometry.piece_bytes(piece) as usize;
            let expected: [u8; 20] = Sha1::digest(&all[start..end]).into();
            assert_eq!(hash.unwrap(), expected);
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
        hash_pieces(&files, &geometry, |piece, hash| {
            answers.push((piece.get(), hash.map_err(|e| (e.file, e.cause.kind()))));
            ControlFlow::Continue(())
        });
        answers.sort_by_key(|(piece, _)| *piece);
        assert!(answers[0].1.is_ok());
        assert_eq!(answers[1].1, Err((1, io::ErrorKind::UnexpectedEof)));
        assert_eq!(answers[2].1, Err((2, io::ErrorKind::NotFound)));
    }
}
