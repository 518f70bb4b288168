//! Hashing data that lies on disk, on all cores, with blocking reads on threads of its own. Layer 5.
//!
//! One function serves `gyre verify`, `--check full`, starts without a record and partial re-checks. A piece that
//! lies wholly in holes of sparse files is not read: its hash is that of zeros. Never called on the ring thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha1::{Digest, Sha1};

use super::resume_store::found;
use crate::base::{Bitfield, PieceIndex};
use crate::storage::layout::{FileLayout, Span};
use crate::storage::parts::{HEADER_USED_BYTES, PartsMap};
use crate::uring::files::{self, OpenMode};
use crate::wire::metainfo::PieceHashes;

/// Bytes of one read: large enough for full speed on spinning disks, small enough for the CPU's cache.
const READ_BYTES: usize = 1 << 20;
/// A thread takes this many bytes of neighbouring pieces at a time, so that each disk head moves rarely.
const GRAB_BYTES: u64 = 16 << 20;
/// Open files a thread keeps: pieces come in order, so few files are near.
const OPEN_FILES_MAX: usize = 8;
/// Errors listed; a dying disk has many of the same kind.
const ERRORS_MAX: usize = 64;

/// What to check.
#[derive(Clone, Debug)]
pub struct CheckJob {
    /// Where the bytes lie.
    pub layout: Arc<FileLayout>,
    /// Where bytes of unselected files lie.
    pub parts: Arc<PartsMap>,
    /// The output folder.
    pub root: PathBuf,
    /// What they must hash to.
    pub piece_hashes: PieceHashes,
    /// The pieces to look at.
    pub pieces: Bitfield,
    /// Threads to use; 0 is one a core.
    pub threads: usize,
}

/// How a file stands, by its length alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// There, with at least its length.
    Present,
    /// Longer than it should be; the bytes past the end are nobody's.
    TooLong { got_bytes: u64 },
    /// Ends too early.
    TooShort { got_bytes: u64 },
    /// Not there.
    Missing,
    /// A pad file, or one that no checked piece touches.
    NotChecked,
}

/// A file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckError {
    /// The file, relative to the output folder.
    pub path: PathBuf,
    /// The first piece that met it.
    pub piece: PieceIndex,
    /// The cause.
    pub kind: io::ErrorKind,
    /// The cause in the system's words.
    pub message: String,
}

/// What checking found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// The checked pieces whose hash is right.
    pub good: Bitfield,
    /// The checked pieces that could not be read although their files are there (HOSTILE.md C4: nobody's fault).
    pub unreadable: Bitfield,
    /// Of the checked pieces those with bytes on disk: they were read. The others lie in holes or are not there.
    pub read_count: u32,
    /// One a file of the layout.
    pub files: Vec<FileState>,
    /// The first errors met, one a file.
    pub errors: Vec<CheckError>,
    /// True when `stop` ended it early: pieces not in `good` may still be good.
    pub is_stopped: bool,
}

impl CheckResult {
    /// Files that are not there.
    pub fn missing_files(&self) -> impl Iterator<Item = usize> + '_ {
        let is_missing = |(_, state): &(usize, &FileState)| **state == FileState::Missing;
        self.files
            .iter()
            .enumerate()
            .filter(is_missing)
            .map(|(file, _)| file)
    }
}

/// Hashes the pieces of the job. `progress` counts bytes done; setting `stop` ends it within one read.
pub fn check(job: &CheckJob, progress: &AtomicU64, stop: &AtomicBool) -> CheckResult {
    let piece_count = job.layout.geometry().piece_count();
    let mut result = CheckResult {
        good: Bitfield::new(piece_count),
        unreadable: Bitfield::new(piece_count),
        read_count: 0,
        files: vec![FileState::NotChecked; job.layout.files().len()],
        errors: Vec::new(),
        is_stopped: false,
    };
    let base = match files::open_root(&job.root) {
        Ok(base) => base,
        Err(error) => {
            report_no_root(job, &error, &mut result);
            return result;
        }
    };
    look_at_files(job, &base, &mut result);
    let source = Source {
        base: &base,
        layout: &job.layout,
        parts_map: &job.parts,
        parts: open_parts(&base, &job.parts),
    };
    let pieces: Vec<PieceIndex> = job.pieces.iter().collect();
    let piece_bytes = u64::from(job.layout.geometry().piece_length_bytes());
    let grab = usize::try_from(GRAB_BYTES / piece_bytes)
        .unwrap_or(1)
        .max(1);
    let next = AtomicUsize::new(0);
    let zeros = OnceLock::new();
    let work = || {
        let mut worker = Worker::new(job, &source, &zeros);
        worker.run(&pieces, grab, &next, progress, stop);
        (worker.good, worker.errors, worker.read_count)
    };
    for (good, errors, read_count) in on_threads(job.threads, work) {
        result.read_count += read_count;
        good.iter().for_each(|piece| {
            result.good.set(*piece);
        });
        for error in errors {
            result.unreadable.set(error.piece);
            let is_told = result.errors.iter().any(|told| told.path == error.path);
            if !is_told && result.errors.len() < ERRORS_MAX {
                result.errors.push(error);
            }
        }
    }
    result.is_stopped = stop.load(Ordering::Relaxed);
    result
}

/// Lets the kernel forget what it holds in memory of the job's files, so that the next check reads the disk.
pub fn drop_cached(job: &CheckJob) {
    let Ok(base) = files::open_root(&job.root) else {
        return;
    };
    let of_pieces = job.pieces.iter();
    let touched: BTreeSet<usize> = of_pieces
        .flat_map(|piece| job.layout.files_of_piece(piece))
        .collect();
    let paths = touched
        .iter()
        .filter_map(|file| job.layout.files().get(*file))
        .map(|file| file.path.as_path())
        .chain([job.parts.path().as_path()]);
    for path in paths {
        // What cannot be opened is no good for the check either.
        if let Ok(fd) = files::open_beneath(&base, path, OpenMode::Read) {
            files::drop_cached(&fd);
        }
    }
}

/// Runs `work` on that many threads (0: one a core) and collects what they return.
fn on_threads<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    let count = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    };
    std::thread::scope(|scope| {
        let spawn = |_| scope.spawn(&work);
        let handles: Vec<_> = (0..count).map(spawn).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, T>| match handle.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        handles.into_iter().map(join).collect()
    })
}

fn report_no_root(job: &CheckJob, error: &io::Error, result: &mut CheckResult) {
    for (state, file) in result.files.iter_mut().zip(job.layout.files()) {
        if file.is_regular() {
            *state = FileState::Missing;
        }
    }
    if error.kind() != io::ErrorKind::NotFound {
        result.unreadable = job.pieces.clone();
        let piece = job.pieces.iter().next().unwrap_or(PieceIndex::new(0));
        result
            .errors
            .push(check_error(job.root.clone(), piece, error));
    }
}

fn check_error(path: PathBuf, piece: PieceIndex, error: &io::Error) -> CheckError {
    CheckError {
        path,
        piece,
        kind: error.kind(),
        message: error.to_string(),
    }
}

/// Finds out how long each file is that the job touches.
fn look_at_files(job: &CheckJob, base: &OwnedFd, result: &mut CheckResult) {
    let is_whole = job.pieces.is_full();
    for (index, (state, file)) in result.files.iter_mut().zip(job.layout.files()).enumerate() {
        let is_touched = || {
            let mut pieces = job.layout.pieces_of_file(index);
            is_whole || pieces.any(|piece| job.pieces.has(PieceIndex::new(piece)))
        };
        if !file.is_regular() || !is_touched() {
            continue;
        }
        let stamp = files::file_stamp_beneath(base, &file.path);
        *state = match stamp.map(|stamp| stamp.size_bytes) {
            Err(_) => FileState::Missing,
            Ok(got_bytes) if got_bytes < file.length_bytes => FileState::TooShort { got_bytes },
            Ok(got_bytes) if got_bytes > file.length_bytes => FileState::TooLong { got_bytes },
            Ok(_) => FileState::Present,
        };
    }
}

/// The parts file, when there is one and it is this torrent's.
fn open_parts(base: &OwnedFd, parts: &PartsMap) -> Option<File> {
    if parts.is_empty() {
        return None;
    }
    let fd = files::open_beneath(base, parts.path(), OpenMode::Read).ok()?;
    let file = File::from(fd);
    let mut header = [0; HEADER_USED_BYTES];
    file.read_exact_at(&mut header, 0).ok()?;
    parts.check_header(&header).ok()?;
    Some(file)
}

/// Where bytes are read from, shared by the threads.
struct Source<'a> {
    base: &'a OwnedFd,
    layout: &'a FileLayout,
    parts_map: &'a PartsMap,
    parts: Option<File>,
}

/// Why a piece has no verdict.
enum NoVerdict {
    /// Some file is missing or too short: the piece is not there.
    NotThere,
    /// A file cannot be read.
    Unreadable(CheckError),
    /// The check was stopped.
    Stopped,
}

/// One thread's state.
struct Worker<'a> {
    job: &'a CheckJob,
    source: &'a Source<'a>,
    zeros: &'a OnceLock<[u8; 20]>,
    open: Vec<(usize, Option<Arc<File>>)>,
    buffer: Vec<u8>,
    good: Vec<PieceIndex>,
    errors: Vec<CheckError>,
    read_count: u32,
}

impl<'a> Worker<'a> {
    fn new(job: &'a CheckJob, source: &'a Source<'a>, zeros: &'a OnceLock<[u8; 20]>) -> Self {
        Worker {
            job,
            source,
            zeros,
            open: Vec::new(),
            buffer: vec![0; READ_BYTES],
            good: Vec::new(),
            errors: Vec::new(),
            read_count: 0,
        }
    }

    fn run(
        &mut self,
        pieces: &[PieceIndex],
        grab: usize,
        next: &AtomicUsize,
        progress: &AtomicU64,
        stop: &AtomicBool,
    ) {
        loop {
            let start = next.fetch_add(grab, Ordering::Relaxed);
            let end = start.saturating_add(grab).min(pieces.len());
            let Some(batch) = pieces.get(start..end).filter(|batch| !batch.is_empty()) else {
                return;
            };
            for &piece in batch {
                match self.hash_piece(piece, progress, stop) {
                    Ok(hash) if hash == self.job.piece_hashes.get(piece) => self.good.push(piece),
                    Ok(_) | Err(NoVerdict::NotThere) => {}
                    Err(NoVerdict::Unreadable(error)) => self.errors.push(error),
                    Err(NoVerdict::Stopped) => return,
                }
            }
        }
    }

    /// The piece's SHA-1. All its bytes count as progress, read or not.
    fn hash_piece(
        &mut self,
        piece: PieceIndex,
        progress: &AtomicU64,
        stop: &AtomicBool,
    ) -> Result<[u8; 20], NoVerdict> {
        let geometry = self.source.layout.geometry();
        let bytes = geometry.piece_bytes(piece);
        let mut left = u64::from(bytes);
        let hash = self.hash_spans(piece, &mut left, progress, stop);
        progress.fetch_add(left, Ordering::Relaxed);
        hash
    }

    fn hash_spans(
        &mut self,
        piece: PieceIndex,
        left: &mut u64,
        progress: &AtomicU64,
        stop: &AtomicBool,
    ) -> Result<[u8; 20], NoVerdict> {
        if stop.load(Ordering::Relaxed) {
            return Err(NoVerdict::Stopped);
        }
        let source = self.source;
        let geometry = source.layout.geometry();
        let start = geometry.piece_offset(piece);
        let mut places = Vec::new();
        for span in source.layout.spans(start, *left) {
            places.push((span, self.place(piece, span)?));
        }
        let is_hole = |(span, place): &(Span, Place)| place.is_hole(span.length);
        if places.iter().all(is_hole) {
            return Ok(self.hash_of_zeros(*left));
        }
        self.read_count += 1;
        let mut sha1 = Sha1::new();
        for (span, place) in places {
            let mut at = 0;
            while at < span.length {
                if stop.load(Ordering::Relaxed) {
                    return Err(NoVerdict::Stopped);
                }
                let step =
                    usize::try_from(span.length - at).map_or(READ_BYTES, |n| n.min(READ_BYTES));
                let chunk = &mut self.buffer[..step];
                place.read(chunk, at).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => NoVerdict::NotThere,
                    _ => {
                        let file = source.layout.files().get(span.file);
                        let path = file.map(|file| file.path.clone()).unwrap_or_default();
                        NoVerdict::Unreadable(check_error(path, piece, &error))
                    }
                })?;
                sha1.update(&*chunk);
                at += step as u64;
                *left = left.saturating_sub(step as u64);
                progress.fetch_add(step as u64, Ordering::Relaxed);
            }
        }
        Ok(sha1.finalize().into())
    }

    /// Where the bytes of a span are.
    fn place(&mut self, piece: PieceIndex, span: Span) -> Result<Place, NoVerdict> {
        let source = self.source;
        let file = source.layout.files().get(span.file);
        let Some(file) = file else {
            return Err(NoVerdict::NotThere);
        };
        if !file.is_regular() {
            return Ok(Place::Zeros);
        }
        let opened = self.open_file(span.file).map_err(|error| {
            NoVerdict::Unreadable(check_error(file.path.clone(), piece, &error))
        })?;
        if let Some(opened) = opened {
            return Ok(Place::At(opened, span.file_offset));
        }
        let begin = span.stream_offset - source.layout.geometry().piece_offset(piece);
        let slot = u32::try_from(begin)
            .ok()
            .and_then(|begin| source.parts_map.offset(piece, begin));
        let parts = source.parts.as_ref().map(File::try_clone);
        match (slot, parts) {
            (Some(offset), Some(Ok(parts))) => Ok(Place::At(Arc::new(parts), offset)),
            _ => Err(NoVerdict::NotThere),
        }
    }

    /// `None` when the file is not there.
    fn open_file(&mut self, file: usize) -> io::Result<Option<Arc<File>>> {
        if let Some((_, opened)) = self.open.iter().find(|(number, _)| *number == file) {
            return Ok(opened.clone());
        }
        let entry = self.source.layout.files().get(file);
        let path = entry
            .map(|entry| entry.path.as_path())
            .unwrap_or(Path::new(""));
        let opened = found(files::open_beneath(self.source.base, path, OpenMode::Read))?;
        let opened = opened.map(|fd| Arc::new(File::from(fd)));
        if self.open.len() >= OPEN_FILES_MAX {
            self.open.remove(0);
        }
        self.open.push((file, opened.clone()));
        Ok(opened)
    }

    fn hash_of_zeros(&self, bytes: u64) -> [u8; 20] {
        let piece_bytes = u64::from(self.source.layout.geometry().piece_length_bytes());
        if bytes == piece_bytes {
            *self.zeros.get_or_init(|| hash_zeros(bytes))
        } else {
            hash_zeros(bytes)
        }
    }
}

fn hash_zeros(bytes: u64) -> [u8; 20] {
    const ZEROS: &[u8] = &[0; 65_536];
    let mut sha1 = Sha1::new();
    let mut left = bytes;
    while left > 0 {
        let step = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        sha1.update(&ZEROS[..step]);
        left -= step as u64;
    }
    sha1.finalize().into()
}

/// Where a span's bytes are.
enum Place {
    /// A pad file's: nowhere.
    Zeros,
    /// From this offset of an open file.
    At(Arc<File>, u64),
}

impl Place {
    fn read(&self, chunk: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Place::Zeros => {
                chunk.fill(0);
                Ok(())
            }
            Place::At(file, offset) => file.read_exact_at(chunk, offset + at),
        }
    }

    /// True when the file is long enough and the span holds no written byte. File systems that do not tell say no.
    fn is_hole(&self, length: u64) -> bool {
        let Place::At(file, offset) = self else {
            return true;
        };
        let (Ok(start), Ok(meta)) = (i64::try_from(*offset), file.metadata()) else {
            return false;
        };
        if meta.size() < offset + length {
            return false;
        }
        match lseek(file.as_ref(), start, Whence::SeekData) {
            Ok(data) => u64::try_from(data).is_ok_and(|data| data >= offset + length),
            Err(errno) => errno == Errno::ENXIO,
        }
    }
}

/// Hashes files into pieces for a new torrent, in the given order, as one stream. `progress` counts bytes done.
///
/// # Errors
/// Those of reading, with the path in the text; a file whose length or modification time changes meanwhile is one too.
pub fn hash_pieces(
    files: &[(PathBuf, u64)],
    piece_length_bytes: u32,
    threads: usize,
    progress: &AtomicU64,
) -> io::Result<Vec<[u8; 20]>> {
    let mut starts = BTreeMap::new();
    let mut total = 0_u64;
    let mut before = Vec::with_capacity(files.len());
    for (index, (path, length)) in files.iter().enumerate() {
        before.push(unchanged(path, *length, None)?);
        if *length > 0 {
            starts.insert(total, index);
        }
        total = total
            .checked_add(*length)
            .ok_or_else(|| io::Error::other("the files are too long together"))?;
    }
    let piece_bytes = u64::from(piece_length_bytes.max(1));
    let piece_count = total.div_ceil(piece_bytes);
    let next = AtomicU64::new(0);
    let grab = (GRAB_BYTES / piece_bytes).max(1);
    let failed = AtomicBool::new(false);
    let work = || -> io::Result<Vec<(u64, [u8; 20])>> {
        let mut reader = StreamReader::new(files, &starts);
        let mut done = Vec::new();
        loop {
            let first = next.fetch_add(grab, Ordering::Relaxed);
            if first >= piece_count || failed.load(Ordering::Relaxed) {
                return Ok(done);
            }
            for piece in first..(first + grab).min(piece_count) {
                let start = piece * piece_bytes;
                let end = (start + piece_bytes).min(total);
                let hash = reader.hash(start, end, progress).inspect_err(|_| {
                    failed.store(true, Ordering::Relaxed);
                })?;
                done.push((piece, hash));
            }
        }
    };
    let mut hashes = Vec::new();
    for done in on_threads(threads, work) {
        hashes.extend(done?);
    }
    for ((path, length), stamp) in files.iter().zip(before) {
        unchanged(path, *length, Some(stamp))?;
    }
    hashes.sort_unstable_by_key(|(piece, _)| *piece);
    Ok(hashes.into_iter().map(|(_, hash)| hash).collect())
}

/// The file's modification time, after checking its length and, if given, that it is the same as before.
fn unchanged(path: &Path, length: u64, before: Option<(i64, i64)>) -> io::Result<(i64, i64)> {
    let meta = std::fs::metadata(path).map_err(|error| with_path(path, &error))?;
    let stamp = (meta.mtime(), meta.mtime_nsec());
    if meta.len() != length || before.is_some_and(|before| before != stamp) {
        return Err(changed(path));
    }
    Ok(stamp)
}

fn changed(path: &Path) -> io::Error {
    io::Error::other(format!("{} changed while it was read", path.display()))
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads several files as one stream.
struct StreamReader<'a> {
    files: &'a [(PathBuf, u64)],
    /// Offset in the stream to file, files without bytes left out.
    starts: &'a BTreeMap<u64, usize>,
    open: Option<(usize, File)>,
    buffer: Vec<u8>,
}

impl<'a> StreamReader<'a> {
    fn new(files: &'a [(PathBuf, u64)], starts: &'a BTreeMap<u64, usize>) -> Self {
        StreamReader {
            files,
            starts,
            open: None,
            buffer: vec![0; READ_BYTES],
        }
    }

    fn hash(&mut self, start: u64, end: u64, progress: &AtomicU64) -> io::Result<[u8; 20]> {
        let mut sha1 = Sha1::new();
        let mut at = start;
        while at < end {
            let step = self.read(at, end)?;
            sha1.update(&self.buffer[..step]);
            at += step as u64;
            progress.fetch_add(step as u64, Ordering::Relaxed);
        }
        Ok(sha1.finalize().into())
    }

    /// Fills the buffer from `at`, not past `end` nor past the file's end.
    fn read(&mut self, at: u64, end: u64) -> io::Result<usize> {
        let found = self.starts.range(..=at).next_back();
        let entry = found.and_then(|(start, file)| Some((*start, *file, self.files.get(*file)?)));
        let (start, file, (path, length)) =
            entry.ok_or_else(|| io::Error::other("read outside the files"))?;
        if !matches!(&self.open, Some((number, _)) if *number == file) {
            let opened = File::open(path).map_err(|error| with_path(path, &error))?;
            self.open = Some((file, opened));
        }
        let Some((_, opened)) = &self.open else {
            return Err(changed(path));
        };
        let left = (start + length).min(end).saturating_sub(at);
        let step = usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
        match opened.read_exact_at(&mut self.buffer[..step], at - start) {
            Ok(()) => Ok(step),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(changed(path)),
            Err(error) => Err(with_path(path, &error)),
        }
    }
}
