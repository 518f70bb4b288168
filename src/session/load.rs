//! From a torrent's settings to files that are open and pieces that are known good. Layer 5.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::check::{self, CheckJob, CheckResult};
use super::config::{CheckMode, SessionEvent, TorrentConfig, TorrentProgress, TorrentState};
use super::contain::off_ring;
use super::disk::{DiskConfig, DiskError, DiskTorrent};
use super::error::SessionError;
use super::resume_store::{self, ResumeStore, SetAside};
use super::root_lock::{RootLock, RootLockError, Share};
use super::shared::Shared;
use super::trouble::{HANGS_AFTER, HUNG_HINT};
use crate::base::{Bitfield, PieceIndex};
use crate::storage::layout::{FileLayout, Span};
use crate::storage::parts::PartsMap;
use crate::storage::resume::{Counters, Observed, Reason, Record, RootKey, Verdict, judge};
use crate::storage::retry;
use crate::uring::files;

mod refuse;

use refuse::{refuse, refuse_absent, refuse_missing, too_long};

/// Files named in warnings of one kind; a torrent may have a million.
const FILES_NAMED_MAX: usize = 16;

/// A torrent ready to run.
pub struct Loaded {
    pub disk: Rc<DiskTorrent>,
    /// Pieces known good.
    pub have: Bitfield,
    /// Pieces of the selected files.
    pub wanted: Bitfield,
    pub counters: Counters,
    pub store: ResumeStore,
    /// The record to go on from.
    pub record: Record,
    /// Pieces that were read from disk to get here.
    pub pieces_checked: u32,
    /// How to look at pieces again.
    pub check_job: CheckJob,
    /// Held until the torrent ends.
    pub lock: RootLock,
}

/// What the blocking first look found.
struct Found {
    layout: Arc<FileLayout>,
    parts: Arc<PartsMap>,
    folder: PathBuf,
    root_path: PathBuf,
    /// One a file of the layout.
    selected: Vec<bool>,
    wanted: Bitfield,
    store: ResumeStore,
    /// Dropped before the lock is.
    new_root: NewRoot,
    lock: RootLock,
    record: Option<Record>,
    /// Files that cannot be used, and why.
    refused: Vec<DiskError>,
    /// Selected files with more bytes than the torrent gives them, as sentences.
    too_long: Vec<String>,
    set_aside: Vec<SetAside>,
    verdict: Verdict,
}

/// Locks the root, weighs the record, hashes what it does not cover, opens the files. `None` when stopped meanwhile.
///
/// # Errors
/// What keeps this torrent from starting, in words for the user.
pub async fn load(
    shared: &Rc<Shared>,
    config: &TorrentConfig,
) -> Result<Option<Loaded>, SessionError> {
    let (state_dir, of) = (shared.config.state_dir.clone(), config.clone());
    let found = off_ring(move || look(&state_dir, &of));
    let found = told_when_late(shared, config, found);
    let files_done = Arc::new(AtomicU64::new(0));
    let files_to_prepare = config.metainfo.info.files.len() as u64;
    let start = TorrentProgress {
        files_to_prepare,
        ..nothing_yet(config, TorrentState::Checking)
    };
    let Some(found) = prepared(shared, found, start, &files_done).await else {
        return Ok(None);
    };
    let mut found = found?;
    for SetAside { path, why, kept_as } in &found.set_aside {
        let message = match kept_as {
            Some(name) => format!("{why}: kept as {}", name.display()),
            None => format!("{why}: {} is left as it is", path.display()),
        };
        let hint = "the data is hashed instead; what is there may be deleted";
        warn_user(shared, config, message, hint);
    }
    for error in first_of(&found.refused) {
        let message = format!("{error}: done without it");
        warn_user(shared, config, message, error.hint());
    }
    for message in first_of(&found.too_long) {
        let hint = "copy it now if you need what lies behind that length";
        warn_user(shared, config, message.clone(), hint);
    }
    let Some(result) = hash(shared, config, &found).await? else {
        return Ok(None);
    };
    let mut have = found.verdict.trusted.clone();
    result.good.iter().for_each(|piece| {
        have.set(piece);
    });
    let is_told = |path: &Path| {
        let told = found.folder.join(path);
        found.refused.iter().any(|refused| refused.path == told)
    };
    for error in result.errors.iter().filter(|error| !is_told(&error.path)) {
        warn!(path = %error.path.display(), error = error.message, "cannot be read");
    }
    let disk_config = DiskConfig {
        layout: found.layout.clone(),
        parts: found.parts.clone(),
        info_hash: config.metainfo.info_hash,
        piece_hashes: config.metainfo.info.piece_hashes.clone(),
        output: found.folder.clone(),
        selected: found.selected.clone(),
        preallocate: config.preallocate,
        is_writer: config.fetches,
        are_names_synced: found.verdict.reason == Reason::Clean,
    };
    let mut checked = checking(config, &found, 0);
    checked.have_bytes = bytes_of(config, &have);
    checked.pieces_have = have.count();
    checked.files_to_prepare = files_to_prepare;
    let Some(disk) = open_disk(shared, config, disk_config, checked, &files_done).await? else {
        return Ok(None);
    };
    found.new_root.keep();
    let doubted = found.record.as_ref().and_then(|record| {
        let is_believed = config.check == CheckMode::Auto;
        record.unproven.as_ref().filter(|_| is_believed)
    });
    let doubted = doubted.map(Bitfield::iter).into_iter().flatten();
    disk.doubt(doubted.filter(|piece| found.verdict.trusted.has(*piece)));
    let is_recorded = |piece| config.check == CheckMode::Auto && found.verdict.trusted.has(piece);
    disk.found_good(have.iter().filter(|piece| !is_recorded(*piece)));
    if disk.cannot_reserve() {
        let folder = found.folder.display();
        let message = format!("the file system of {folder} cannot reserve space: it may fill up");
        warn_user(
            shared,
            config,
            message,
            "leave out --preallocate full there",
        );
    }
    let counters = found
        .record
        .as_ref()
        .map_or_else(fresh_counters, |record| record.counters);
    let record = fresh_record(config, &found, have.clone(), counters);
    let check_job = check_job(config, &found);
    Ok(Some(Loaded {
        disk,
        have,
        wanted: found.wanted,
        counters,
        store: found.store,
        record,
        pieces_checked: result.read_count,
        check_job,
        lock: found.lock,
    }))
}

/// Opens the files, and waits as long as there is too little space for them (HOSTILE.md L1). `None` when stopped
/// meanwhile.
async fn open_disk(
    shared: &Rc<Shared>,
    config: &TorrentConfig,
    disk_config: DiskConfig,
    figures: TorrentProgress,
    files_done: &Arc<AtomicU64>,
) -> Result<Option<Rc<DiskTorrent>>, SessionError> {
    let waiting = TorrentProgress {
        state: TorrentState::Error,
        files_to_prepare: 0,
        ..figures.clone()
    };
    let mut since = None;
    loop {
        let hub = &shared.disks;
        let opening = DiskTorrent::open_counting(hub, disk_config.clone(), files_done.clone());
        let shown = match since {
            None => figures.clone(),
            Some(_) => waiting.clone(),
        };
        let error = match prepared(shared, opening, shown, files_done).await {
            None => return Ok(None),
            Some(Ok(disk)) => return Ok(Some(disk)),
            Some(Err(error)) => error,
        };
        let fatal = |message| SessionError::new(message, error.hint());
        if !error.is_disk_full() || !config.fetches {
            return Err(fatal(error.to_string()));
        }
        let now = shared.now();
        if since.is_none() {
            warn!(%error, "waiting for space");
            shared.emit(SessionEvent::Error {
                info_hash: Some(config.metainfo.info_hash),
                message: error.to_string(),
                hint: error.hint().to_owned(),
                is_final: false,
            });
        }
        let waited = now.since(*since.get_or_insert(now));
        let left = (shared.config.give_up).map(|limit| limit.saturating_sub(waited));
        if left == Some(Duration::ZERO) {
            let name = super::torrent::quoted(config);
            return Err(fatal(format!("gave up on {name}: {error}")));
        }
        let pause = tokio::time::sleep(left.unwrap_or(retry::FIRST_WAIT).min(retry::FIRST_WAIT));
        let Some(()) = prepared(shared, pause, waiting.clone(), files_done).await else {
            return Ok(None);
        };
    }
}

/// Waits for what looks at files or makes them, and tells once a second how many are ready. `None` when stopped
/// meanwhile: a file system that hangs holds its thread, not the shutdown (HOSTILE.md L13).
async fn prepared<T>(
    shared: &Rc<Shared>,
    work: impl Future<Output = T>,
    figures: TorrentProgress,
    files_done: &AtomicU64,
) -> Option<T> {
    const EVERY: Duration = Duration::from_secs(1);
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            () = shared.torrent_stopping(figures.info_hash) => return None,
            _ = tick.tick() => shared.emit(SessionEvent::Progress(TorrentProgress {
                files_prepared: files_done.load(Ordering::Relaxed),
                ..figures.clone()
            })),
        }
    }
}

/// Waits for what should be quick, and says so when it is not.
async fn told_when_late<T>(
    shared: &Rc<Shared>,
    config: &TorrentConfig,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(HANGS_AFTER) => tell_hang(shared, config),
    }
    work.await
}

fn tell_hang(shared: &Shared, config: &TorrentConfig) {
    let folder = super::torrent::folder(config);
    let folder = folder.join(&config.metainfo.info.name);
    let message = format!("the file system of {} does not answer", folder.display());
    warn_user(shared, config, message, HUNG_HINT);
}

pub(super) fn fresh_counters() -> Counters {
    let added = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Counters {
        added_unix_s: i64::try_from(added.as_secs()).unwrap_or(i64::MAX),
        ..Counters::default()
    }
}

fn fresh_record(
    config: &TorrentConfig,
    found: &Found,
    have: Bitfield,
    counters: Counters,
) -> Record {
    use std::os::unix::ffi::OsStrExt;
    Record {
        info_hash: config.metainfo.info_hash,
        root: Some(found.lock.key()),
        root_path: found.root_path.as_os_str().as_bytes().to_vec(),
        is_open: true,
        have,
        files: Vec::new(),
        parts: None,
        counters,
        unproven: None,
    }
}

/// Looks whether there is anything to seed in the folder that was named, before a session says that it runs.
///
/// # Errors
/// Nothing of that name is there, or it cannot be used.
pub fn find_data(config: &TorrentConfig) -> Result<(), SessionError> {
    let (folder, layout) = locate(config, layout_of(config)?)?;
    lock_root(config, &folder, &layout, Share::Shared).map(drop)
}

pub(super) fn layout_of(config: &TorrentConfig) -> Result<FileLayout, SessionError> {
    let layout = FileLayout::new(&config.metainfo.info).map_err(|error| {
        SessionError::new(
            format!("this torrent cannot be stored: {error}"),
            "the torrent is malformed",
        )
    })?;
    let mut renames = config.place.renames.iter();
    renames.try_fold(layout, |layout, rename| {
        let renamed = layout.renamed(Path::new(&rename.path), &rename.name);
        renamed.map_err(|error| {
            let message = format!("{} cannot be called {}: {error}", rename.path, rename.name);
            SessionError::new(message, "remove the torrent and add it again")
        })
    })
}

fn lock_root(
    config: &TorrentConfig,
    folder: &Path,
    layout: &FileLayout,
    share: Share,
) -> Result<RootLock, SessionError> {
    RootLock::take(folder, layout, share).map_err(|error| match &error {
        RootLockError::Missing { .. } => SessionError::no_data(error.to_string(), error.hint()),
        _ if error.is_refusal() && !config.fetches => {
            SessionError::no_data(error.to_string(), error.hint())
        }
        _ => SessionError::new(error.to_string(), error.hint()),
    })
}

/// Everything that blocks before hashing.
fn look(state_dir: &Path, config: &TorrentConfig) -> Result<Found, SessionError> {
    let info = &config.metainfo.info;
    let own = layout_of(config)?;
    refuse_absent(config, &super::torrent::folder(config), Path::new(""))?;
    let (folder, layout) = locate(config, own)?;
    refuse_absent(config, &folder, layout.root_name())?;
    let selected = selected(config, layout.files().len());
    let wanted = wanted_pieces(&layout, &selected);
    let parts = PartsMap::new(&layout, config.metainfo.info_hash);
    let in_folder = |error: std::io::Error| {
        SessionError::new(
            format!("cannot use {}: {error}", folder.display()),
            "check the folder and its permissions",
        )
    };
    if config.fetches {
        files::make_folder(&folder).map_err(in_folder)?;
    }
    let seen = resume_store::observe(&folder, &layout, &parts).map_err(in_folder)?;
    let (observed, refused) = (seen.observed, seen.refused);
    let share = if config.fetches {
        Share::Exclusive
    } else {
        Share::Shared
    };
    let lock = lock_root(config, &folder, &layout, share)?;
    let refused = refuse(config, &folder, &layout, &selected, &refused)?;
    let too_long = too_long(config, &folder, &layout, &selected, &observed);
    let new_root = NewRoot(
        observed
            .root
            .is_none()
            .then(|| folder.join(layout.root_name())),
    );
    let in_state = |error: std::io::Error| {
        SessionError::new(
            format!(
                "cannot use the state folder {}: {error}",
                state_dir.display()
            ),
            "name one that you may write with --state",
        )
    };
    let store = ResumeStore::open(state_dir).map_err(in_state)?;
    let root_path = root_path(&folder, &layout);
    let root: Option<RootKey> = observed.root;
    let report = store
        .load(config.metainfo.info_hash, root, &root_path)
        .map_err(in_state)?;
    let record = match report.loaded {
        resume_store::Loaded::Found(record) | resume_store::Loaded::Moved(record) => Some(*record),
        resume_store::Loaded::None => None,
    };
    let verdict = judge(record.as_ref(), &observed, &layout);
    let verdict = match config.check {
        CheckMode::Auto => refuse_missing(config, &layout, doubting(config, verdict))?,
        CheckMode::Full => everything(info.geometry.piece_count()),
        CheckMode::None => what_is_there(&layout, &observed),
    };
    Ok(Found {
        layout: Arc::new(layout),
        parts: Arc::new(parts),
        folder,
        root_path,
        selected,
        wanted,
        store,
        new_root,
        lock,
        record,
        refused,
        too_long,
        set_aside: report.set_aside,
        verdict,
    })
}

/// A root that this start made: taken away again, if nothing is in it, when the start fails.
struct NewRoot(Option<PathBuf>);

impl NewRoot {
    /// The start succeeded.
    fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for NewRoot {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        // A folder with something in it refuses to go, and so must a file.
        let removed =
            std::fs::remove_dir(path).or_else(|error| match std::fs::symlink_metadata(path)? {
                file if file.is_file() && file.len() == 0 => std::fs::remove_file(path),
                _ => Err(error),
            });
        debug!(path = %path.display(), is_removed = removed.is_ok(), "new root of a failed start");
    }
}

/// Where the root lies, whatever folder the command was started in: records are found by it.
pub(super) fn root_path(folder: &Path, layout: &FileLayout) -> PathBuf {
    let folder = std::fs::canonicalize(folder)
        .or_else(|_| std::path::absolute(folder))
        .unwrap_or_else(|_| folder.to_owned());
    folder.join(layout.root_name())
}

/// One a file: fetched or not. Pad files are never asked for.
fn selected(config: &TorrentConfig, file_count: usize) -> Vec<bool> {
    match &config.selected_files {
        None => vec![true; file_count],
        Some(files) => {
            let mut selected = vec![false; file_count];
            for file in files {
                if let Some(place) = selected.get_mut(*file) {
                    *place = true;
                }
            }
            selected
        }
    }
}

fn wanted_pieces(layout: &FileLayout, selected: &[bool]) -> Bitfield {
    let mut wanted = Bitfield::new(layout.geometry().piece_count());
    for (file, _) in selected
        .iter()
        .enumerate()
        .filter(|(_, is_selected)| **is_selected)
    {
        for piece in layout.pieces_of_file(file) {
            wanted.set(PieceIndex::new(piece));
        }
    }
    wanted
}

/// Pieces that somebody read and found bad are not trusted.
fn doubting(config: &TorrentConfig, mut verdict: Verdict) -> Verdict {
    for piece in &config.place.suspects {
        if verdict.trusted.has(*piece) {
            verdict.trusted.clear(*piece);
            verdict.to_hash.set(*piece);
        }
    }
    verdict
}

/// Hash all of it.
fn everything(piece_count: u32) -> Verdict {
    Verdict {
        trusted: Bitfield::new(piece_count),
        to_hash: Bitfield::full(piece_count),
        reason: Reason::NoRecord,
        missing: Vec::new(),
    }
}

/// Trust all of it, but for what the files are too short for: bytes that are not there cannot be good.
fn what_is_there(layout: &FileLayout, observed: &Observed) -> Verdict {
    let piece_count = layout.geometry().piece_count();
    let mut verdict = Verdict {
        to_hash: Bitfield::new(piece_count),
        ..everything(piece_count)
    };
    let is_there = |span: &Span| {
        let file = layout.files().get(span.file);
        let stamp = observed.files.get(span.file).copied().flatten();
        file.is_some_and(|file| !file.is_regular())
            || stamp.is_some_and(|stamp| span.file_offset + span.length <= stamp.size_bytes)
    };
    for piece in layout.geometry().pieces() {
        if layout.piece_spans(piece).all(|span| is_there(&span)) {
            verdict.trusted.set(piece);
        }
    }
    verdict
}

/// The output folder. Data to seed may also be named by its own folder or file.
pub(super) fn locate(
    config: &TorrentConfig,
    layout: FileLayout,
) -> Result<(PathBuf, FileLayout), SessionError> {
    let folder = super::torrent::folder(config);
    if config.fetches {
        return Ok((folder, layout));
    }
    resume_store::locate(&folder, layout).map_err(|error| {
        SessionError::new(
            format!("cannot open {}: {error}", folder.display()),
            "give the folder that holds the data with --data",
        )
    })
}

fn first_of<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter().take(FILES_NAMED_MAX)
}

fn warn_user(shared: &Shared, config: &TorrentConfig, message: String, hint: &str) {
    shared.emit(SessionEvent::Warning {
        info_hash: Some(config.metainfo.info_hash),
        message,
        hint: hint.to_owned(),
    });
}

async fn hash(
    shared: &Rc<Shared>,
    config: &TorrentConfig,
    found: &Found,
) -> Result<Option<CheckResult>, SessionError> {
    let job = check_job(config, found);
    let pieces = job.pieces.count();
    if pieces > 0 {
        info!(pieces, reason = ?found.verdict.reason, "checking data");
    }
    let progress = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut running = {
        let (progress, stop) = (progress.clone(), stop.clone());
        std::pin::pin!(off_ring(move || check::check(&job, &progress, &stop)))
    };
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let (mut before, mut moved_at) = (0, shared.now());
    let mut is_told = false;
    loop {
        tokio::select! {
            result = &mut running => return Ok((!result.is_stopped).then_some(result)),
            () = shared.torrent_stopping(config.metainfo.info_hash) => stop.store(true, Ordering::Relaxed),
            _ = tick.tick() => {
                let checked_bytes = progress.load(Ordering::Relaxed);
                if checked_bytes != before {
                    (before, moved_at) = (checked_bytes, shared.now());
                }
                if !is_told && shared.now().since(moved_at) >= HANGS_AFTER {
                    is_told = true;
                    tell_hang(shared, config);
                }
                shared.emit(SessionEvent::Progress(checking(config, found, checked_bytes)));
            }
        }
        if stop.load(Ordering::Relaxed) {
            // Ends within one read, unless the file system hangs: then nobody waits for it.
            let _ = tokio::time::timeout(Duration::from_secs(5), running).await;
            return Ok(None);
        }
    }
}

fn check_job(config: &TorrentConfig, found: &Found) -> CheckJob {
    CheckJob {
        layout: found.layout.clone(),
        parts: found.parts.clone(),
        root: found.folder.clone(),
        piece_hashes: config.metainfo.info.piece_hashes.clone(),
        pieces: found.verdict.to_hash.clone(),
        threads: 0,
    }
}

fn checking(config: &TorrentConfig, found: &Found, checked_bytes: u64) -> TorrentProgress {
    TorrentProgress {
        have_bytes: bytes_of(config, &found.verdict.trusted),
        total_bytes: bytes_of(config, &found.wanted),
        checked_bytes,
        pieces_have: found.verdict.trusted.count(),
        ..nothing_yet(config, TorrentState::Checking)
    }
}

fn bytes_of(config: &TorrentConfig, pieces: &Bitfield) -> u64 {
    let geometry = &config.metainfo.info.geometry;
    let bytes = pieces
        .iter()
        .map(|piece| u64::from(geometry.piece_bytes(piece)));
    bytes.sum()
}

/// The figures of a torrent of which nothing is known good.
pub fn nothing_yet(config: &TorrentConfig, state: TorrentState) -> TorrentProgress {
    let geometry = &config.metainfo.info.geometry;
    TorrentProgress {
        total_bytes: geometry.total_bytes(),
        pieces: geometry.piece_count(),
        ..TorrentProgress::nothing(
            config.metainfo.info_hash,
            config.metainfo.info.name.clone(),
            state,
        )
    }
}
