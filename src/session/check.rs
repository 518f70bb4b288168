//! Checking data that lies on disk, on all cores, on threads of its own. Layer 5.
//!
//! One function serves `--check full`, starts without a record and partial re-checks. A piece that
//! lies wholly in holes of sparse files is not read: its hash is that of zeros. Never called on the ring thread.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::disk::is_parts_file;
use super::hash_ahead::{self, Place, Plan, Work};
use super::resume_store::found;
use crate::base::{Bitfield, PieceIndex};
use crate::storage::layout::{FileLayout, Span};
use crate::storage::parts::PartsMap;
use crate::uring::files::{self, OpenMode};
use crate::uring::piece_state::PieceState;
use crate::uring::readahead::AheadFile;
use crate::wire::metainfo::{PieceHash, PieceHashes};

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
    let common = Common {
        job,
        source: &source,
        pieces: &pieces,
        grab,
        next: AtomicUsize::new(0),
        zeros: OnceLock::new(),
        progress,
        stop,
    };
    let work = || {
        let mut worker = Worker::new(&common);
        hash_ahead::run(&mut worker);
        (worker.good, worker.errors, worker.read_count)
    };
    // A thread has rings and memory: none for nothing, as when a seed wakes whose record covers all.
    let threads_max = pieces.len().div_ceil(grab);
    for (good, errors, read_count) in on_threads(job.threads, threads_max, work) {
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

/// Runs `work` on that many threads (0: one a core), at most `threads_max`, and collects what they return.
fn on_threads<T: Send>(threads: usize, threads_max: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    let count = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    };
    let count = count.min(threads_max);
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
    let is_there = is_parts_file(&file, parts).unwrap_or(false);
    is_there.then_some(file)
}

/// Where bytes are read from, shared by the threads.
struct Source<'a> {
    base: &'a OwnedFd,
    layout: &'a FileLayout,
    parts_map: &'a PartsMap,
    parts: Option<File>,
}

/// What the threads share besides.
struct Common<'a> {
    job: &'a CheckJob,
    source: &'a Source<'a>,
    pieces: &'a [PieceIndex],
    /// Pieces a thread takes at a time.
    grab: usize,
    next: AtomicUsize,
    zeros: OnceLock<PieceHash>,
    progress: &'a AtomicU64,
    stop: &'a AtomicBool,
}

/// Why a piece has no verdict.
enum NoVerdict {
    /// Some file is missing or too short: the piece is not there.
    NotThere,
    /// A file cannot be read.
    Unreadable(CheckError),
}

/// One thread's state.
struct Worker<'a> {
    common: &'a Common<'a>,
    /// What is left of the pieces taken.
    batch: std::slice::Iter<'a, PieceIndex>,
    open: Vec<(usize, Option<AheadFile>)>,
    parts: Option<AheadFile>,
    good: Vec<PieceIndex>,
    errors: Vec<CheckError>,
    read_count: u32,
}

impl Work for Worker<'_> {
    type Failure = NoVerdict;

    fn next(&mut self) -> Option<PieceIndex> {
        if let Some(piece) = self.batch.next() {
            return Some(*piece);
        }
        let common = self.common;
        let start = common.next.fetch_add(common.grab, Ordering::Relaxed);
        let end = start.saturating_add(common.grab).min(common.pieces.len());
        self.batch = common.pieces.get(start..end)?.iter();
        self.batch.next().copied()
    }

    fn plan(&mut self, piece: PieceIndex) -> Result<Plan, NoVerdict> {
        let layout = self.common.source.layout;
        let geometry = layout.geometry();
        let bytes = u64::from(geometry.piece_bytes(piece));
        let mut spans = Vec::new();
        for span in layout.spans(geometry.piece_offset(piece), bytes) {
            spans.push((self.place(piece, span)?, span.length));
        }
        if spans.iter().all(|(place, length)| is_hole(place, *length)) {
            return Ok(Plan::Known(self.hash_of_zeros(piece, bytes)));
        }
        self.read_count += 1;
        Ok(Plan::Read(spans))
    }

    fn tree_height(&self, piece: PieceIndex) -> Option<u32> {
        self.common.job.piece_hashes.tree_height(piece)
    }

    fn failure(&mut self, piece: PieceIndex, span: usize, error: io::Error) -> NoVerdict {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return NoVerdict::NotThere;
        }
        let layout = self.common.source.layout;
        let span = layout.piece_spans(piece).nth(span);
        let file = span.and_then(|span| layout.files().get(span.file));
        let path = file.map(|file| file.path.clone()).unwrap_or_default();
        NoVerdict::Unreadable(check_error(path, piece, &error))
    }

    fn on_bytes(&mut self, bytes: u64) {
        self.common.progress.fetch_add(bytes, Ordering::Relaxed);
    }

    fn done(&mut self, piece: PieceIndex, hash: Result<PieceHash, NoVerdict>, was_read: bool) {
        if !was_read {
            let geometry = self.common.source.layout.geometry();
            self.on_bytes(u64::from(geometry.piece_bytes(piece)));
        }
        match hash {
            Ok(hash) if hash == self.common.job.piece_hashes.get(piece) => self.good.push(piece),
            Ok(_) | Err(NoVerdict::NotThere) => {}
            Err(NoVerdict::Unreadable(error)) => self.errors.push(error),
        }
    }

    fn is_stopped(&self) -> bool {
        self.common.stop.load(Ordering::Relaxed)
    }
}

impl<'a> Worker<'a> {
    fn new(common: &'a Common<'a>) -> Self {
        let parts = common.source.parts.as_ref();
        let parts = parts.and_then(|parts| parts.try_clone().ok());
        Worker {
            common,
            batch: [].iter(),
            open: Vec::new(),
            parts: parts.map(|parts| AheadFile::new(parts.into())),
            good: Vec::new(),
            errors: Vec::new(),
            read_count: 0,
        }
    }

    /// Where the bytes of a span are.
    fn place(&mut self, piece: PieceIndex, span: Span) -> Result<Place, NoVerdict> {
        let source = self.common.source;
        let Some(file) = source.layout.files().get(span.file) else {
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
        match (slot, &self.parts) {
            (Some(offset), Some(parts)) => Ok(Place::At(parts.clone(), offset)),
            _ => Err(NoVerdict::NotThere),
        }
    }

    /// `None` when the file is not there.
    fn open_file(&mut self, file: usize) -> io::Result<Option<AheadFile>> {
        if let Some((_, opened)) = self.open.iter().find(|(number, _)| *number == file) {
            return Ok(opened.clone());
        }
        let source = self.common.source;
        let entry = source.layout.files().get(file);
        let path = entry
            .map(|entry| entry.path.as_path())
            .unwrap_or(Path::new(""));
        let opened = found(files::open_beneath(source.base, path, OpenMode::Read))?;
        let opened = opened.map(AheadFile::new);
        if self.open.len() >= OPEN_FILES_MAX {
            self.open.remove(0);
        }
        self.open.push((file, opened.clone()));
        Ok(opened)
    }

    fn hash_of_zeros(&self, piece: PieceIndex, bytes: u64) -> PieceHash {
        let geometry = self.common.source.layout.geometry();
        let height = self.tree_height(piece);
        // All trees over whole pieces are of one height.
        if bytes == u64::from(geometry.piece_length_bytes()) {
            let zeros = &self.common.zeros;
            *zeros.get_or_init(|| hash_zeros(bytes, height))
        } else {
            hash_zeros(bytes, height)
        }
    }
}

fn hash_zeros(bytes: u64, tree_height: Option<u32>) -> PieceHash {
    const ZEROS: &[u8] = &[0; 65_536];
    let mut state = PieceState::new(tree_height);
    let mut left = bytes;
    while left > 0 {
        let step = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        state.update(&ZEROS[..step]);
        left -= step as u64;
    }
    state.finalize()
}

/// True when the file is long enough and the span holds no written byte. File systems that do not tell say no.
fn is_hole(place: &Place, length: u64) -> bool {
    let Place::At(file, offset) = place else {
        return true;
    };
    let file = file.file();
    let (Ok(start), Ok(meta)) = (i64::try_from(*offset), file.metadata()) else {
        return false;
    };
    if meta.size() < offset + length {
        return false;
    }
    match lseek(file, start, Whence::SeekData) {
        Ok(data) => u64::try_from(data).is_ok_and(|data| data >= offset + length),
        Err(errno) => errno == Errno::ENXIO,
    }
}
