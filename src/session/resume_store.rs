//! Resume records as files in the state folder, and the look at a torrent's files at start. Layer 5.
//!
//! One file a torrent and root: `resume/<info_hash>-<device>-<inode>.resume`. Written to a temporary file, synced,
//! renamed, and the folder synced. Every function blocks: call them off the ring thread.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::debug;

use crate::base::InfoHash;
use crate::storage::layout::FileLayout;
use crate::storage::parts::PartsMap;
use crate::storage::resume::{FileStamp, Observed, RECORD_BYTES_MAX, Record, RootKey};
use crate::uring::files;

/// No record takes so long to be written: whoever has the writer's process number by then is somebody else.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// Names tried for a record that is kept aside: something that cannot be replaced may have the first.
const BAD_NAMES_MAX: u32 = 10;

/// Makes temporary names of this process differ.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// What was found in a folder is believed for so long: thousands of torrents that start do not read all names for each.
/// Records of other processes are found by their own names whatever was found before.
const LISTED_FOR: Duration = Duration::from_secs(60);

/// The folder that was read last by this process.
static LISTED: Mutex<Option<Listed>> = Mutex::new(None);

struct Listed {
    folder: PathBuf,
    when: Instant,
    /// Torrents that have a record there, under whatever name; more only when one went since.
    torrents: BTreeSet<InfoHash>,
}

/// The folder of records.
#[derive(Clone, Debug)]
pub struct ResumeStore {
    folder: PathBuf,
}

/// What the store knew of a torrent at a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The record of this very root.
    Found(Box<Record>),
    /// A record of this torrent at this path, but the root there is gone or is another file or folder. Weigh it with
    /// `judge` as usual: what it misses is listed there.
    Moved(Box<Record>),
    /// Nothing.
    None,
}

/// What loading brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// The record, if any.
    pub loaded: Loaded,
    /// Unusable records.
    pub set_aside: Vec<SetAside>,
}

/// A record that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it was.
    pub path: PathBuf,
    /// What is the matter with it.
    pub why: String,
    /// Its name now; `None` when it could not be moved.
    pub kept_as: Option<PathBuf>,
}

impl ResumeStore {
    /// Opens, or creates, the folder `resume` in the state folder.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(state_dir: &Path) -> io::Result<ResumeStore> {
        let folder = state_dir.join("resume");
        files::make_folder(&folder)?;
        Ok(ResumeStore { folder })
    }

    /// Whether the folder may have a record of the torrent. Now and then this reads all names in it, and removes what
    /// writers that were killed left half-written.
    fn may_have(&self, info_hash: &InfoHash) -> bool {
        let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |one: &Listed| one.folder == self.folder && one.when.elapsed() < LISTED_FOR;
        let known = listed.take().filter(is_known);
        let known = known.unwrap_or_else(|| Listed {
            folder: self.folder.clone(),
            when: Instant::now(),
            torrents: self.remove_stale(),
        });
        listed.insert(known).torrents.contains(info_hash)
    }

    /// Removes what writers that were killed left half-written; nothing that may still be written to. Whatever cannot be
    /// removed stays. Returns the torrents that records are of.
    pub fn remove_stale(&self) -> BTreeSet<InfoHash> {
        let mut torrents = BTreeSet::new();
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return torrents;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.get(..40)?.parse().ok());
            torrents.extend::<Option<InfoHash>>(of);
            let Some(writer) = temporary_writer(&name) else {
                continue;
            };
            let age = entry.metadata().and_then(|file| file.modified());
            let age = age.ok().and_then(|at| at.elapsed().ok());
            let is_old = age.is_some_and(|age| age >= TEMPORARY_AGE);
            let is_stale = match process_name(writer) {
                None => true,
                // The number may have gone to another program since.
                Some(name) => is_old && Some(name) != process_name(std::process::id()),
            };
            if is_stale {
                let removed = fs::remove_file(entry.path());
                debug!(path = %entry.path().display(), is_removed = removed.is_ok(), "half-written record of a process that is gone");
            }
        }
        torrents
    }

    /// Finds the record of the torrent: by its root's identity, else by the root's path.
    ///
    /// Damaged records, those of other versions, and whatever else has the name of one are renamed to `*.bad` and reported
    /// (HOSTILE.md L11).
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn load(
        &self,
        info_hash: InfoHash,
        root: Option<RootKey>,
        root_path: &Path,
    ) -> io::Result<LoadReport> {
        let mut set_aside = Vec::new();
        let may_have = self.may_have(&info_hash);
        if root.is_some()
            && let Some(record) = load_one(&self.path(info_hash, root), info_hash, &mut set_aside)
            && record.root == root
        {
            let loaded = Loaded::Found(Box::new(record));
            return Ok(LoadReport { loaded, set_aside });
        }
        let mut loaded = Loaded::None;
        if set_aside.is_empty() && !may_have {
            return Ok(LoadReport { loaded, set_aside });
        }
        let prefix = format!("{info_hash}-");
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().map(OsStrExt::as_bytes);
            let is_ours =
                |name: &[u8]| name.starts_with(prefix.as_bytes()) && name.ends_with(b".resume");
            if !name.is_some_and(is_ours) {
                continue;
            }
            if set_aside.iter().any(|aside| aside.path == path) {
                continue;
            }
            if let Some(record) = load_one(&path, info_hash, &mut set_aside)
                && record.root_path == root_path.as_os_str().as_bytes()
            {
                loaded = Loaded::Moved(Box::new(record));
            }
        }
        Ok(LoadReport { loaded, set_aside })
    }

    /// The record of the torrent at this root, if it can be used; nothing is set aside, and the folder is not listed.
    pub fn at(&self, info_hash: InfoHash, root: RootKey) -> Option<Record> {
        let bytes = read_record(&self.path(info_hash, Some(root))).ok()??;
        let record = Record::decode(&bytes).ok();
        record.filter(|record| record.info_hash == info_hash && record.root == Some(root))
    }

    /// The records of the torrent at whatever roots, those that can be used; nothing is set aside.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(&self, info_hash: InfoHash) -> io::Result<Vec<Record>> {
        let prefix = format!("{info_hash}-");
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
            if !name.starts_with(prefix.as_bytes()) || !name.ends_with(b".resume") {
                continue;
            }
            let bytes = read_record(&path).ok().flatten().unwrap_or_default();
            let record = Record::decode(&bytes).ok();
            records.extend(record.filter(|record| record.info_hash == info_hash));
        }
        Ok(records)
    }

    /// Replaces the record of the torrent and root, safe against a crash at any moment.
    ///
    /// The data it claims must have been synced before (`DiskTorrent::sync`).
    ///
    /// # Errors
    /// Those of the file system; the old record is then still in place.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        let path = self.path(record.info_hash, record.root);
        let number = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("tmp-{}-{number}", std::process::id()));
        let written = write_synced(&temporary, &record.encode())
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| File::open(&self.folder)?.sync_all());
        if written.is_err() {
            // The rename may have happened already; then there is nothing to remove.
            let _ = fs::remove_file(&temporary);
        }
        let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listed) = listed.as_mut().filter(|one| one.folder == self.folder) {
            listed.torrents.insert(record.info_hash);
        }
        written
    }

    /// Forgets the torrent at this root. Nothing there is no error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, info_hash: InfoHash, root: Option<RootKey>) -> io::Result<()> {
        match fs::remove_file(self.path(info_hash, root)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets the torrent at every root, records that were kept aside too.
    ///
    /// # Errors
    /// Those of the file system; what could be removed is.
    pub fn remove_all(&self, info_hash: InfoHash) -> io::Result<()> {
        let prefix = format!("{info_hash}-");
        let mut result = Ok(());
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
                result = result.and(found(fs::remove_file(entry.path())).map(drop));
            }
        }
        result
    }

    fn path(&self, info_hash: InfoHash, root: Option<RootKey>) -> PathBuf {
        let (device, inode) = root.map_or((0, 0), |root| (root.device, root.inode));
        self.folder
            .join(format!("{info_hash}-{device:x}-{inode:x}.resume"))
    }
}

/// What lies where a torrent's files should be.
#[derive(Debug)]
pub struct Seen {
    /// The files that may be used.
    pub observed: Observed,
    /// Files in whose place something else lies, or that cannot be reached, and why.
    pub refused: Vec<(usize, io::Error)>,
}

/// Looks at a torrent's root and files. Call it before anything is created or written there. Nothing is opened: a named
/// pipe or a device in a file's place holds nobody.
///
/// # Errors
/// When the folder cannot be looked at; what is missing is no error.
pub fn observe(output: &Path, layout: &FileLayout, parts: &PartsMap) -> io::Result<Seen> {
    let mut seen = Seen {
        observed: Observed {
            root: None,
            files: vec![None; layout.files().len()],
            parts: None,
        },
        refused: Vec::new(),
    };
    let Some(base) = found(files::open_root(output))? else {
        return Ok(seen);
    };
    let observed = &mut seen.observed;
    // Whoever locks a root that cannot be reached says why.
    let root = files::stamp_beneath(&base, layout.root_name()).ok();
    observed.root = root.map(|stamp| RootKey {
        device: stamp.device,
        inode: stamp.inode,
    });
    if observed.root.is_none() {
        return Ok(seen);
    }
    let places = observed.files.iter_mut().zip(layout.files()).enumerate();
    for (index, (stamp, file)) in places.filter(|(_, (_, file))| file.is_regular()) {
        match found(files::file_stamp_beneath(&base, &file.path)) {
            Ok(there) => *stamp = there.map(stamp_of),
            Err(error) => seen.refused.push((index, error)),
        }
    }
    if !parts.is_empty() {
        let there = files::file_stamp_beneath(&base, parts.path());
        observed.parts = there.ok().map(stamp_of);
    }
    Ok(seen)
}

/// The folder that holds the torrent's root, and the root's name there: `folder` itself, or, when that is the content or
/// its copy under another name, the folder around it.
///
/// # Errors
/// When `folder` is not there.
pub fn locate(folder: &Path, layout: FileLayout) -> io::Result<(PathBuf, FileLayout)> {
    if fs::symlink_metadata(folder.join(layout.root_name())).is_ok() {
        return Ok((folder.to_owned(), layout));
    }
    let full = fs::canonicalize(folder)?;
    if let (Some(parent), Some(name)) = (full.parent(), full.file_name())
        && let Some(layout) = layout.clone().renamed_root(name)
        && full.is_dir() == super::root_lock::root_is_folder(&layout)
    {
        return Ok((parent.to_owned(), layout));
    }
    Ok((folder.to_owned(), layout))
}

/// What a record keeps of a file's look.
pub fn stamp_of(stamp: files::FileStamp) -> FileStamp {
    FileStamp {
        inode: stamp.inode,
        size_bytes: stamp.size_bytes,
        mtime_ns: stamp.mtime_ns,
    }
}

/// Turns "does not exist" into `None`.
pub(super) fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

/// Reads one record; what cannot be used is kept aside.
fn load_one(path: &Path, info_hash: InfoHash, set_aside: &mut Vec<SetAside>) -> Option<Record> {
    let why = match read_record(path) {
        Ok(None) => return None,
        Ok(Some(bytes)) => match Record::decode(&bytes) {
            Ok(record) if record.info_hash == info_hash => return Some(record),
            Ok(_) => "record of another torrent".to_owned(),
            Err(error) => error.to_string(),
        },
        Err(error) => format!("the resume record cannot be read: {error}"),
    };
    set_aside.push(SetAside {
        path: path.to_owned(),
        why,
        kept_as: keep_aside(path),
    });
    None
}

/// The record's bytes; `None` when there is none. A named pipe in its place holds nobody.
fn read_record(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let Some(file) = found(options.open(path))? else {
        return Ok(None);
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Moves it out of the way, over what an earlier time kept there if that can be.
fn keep_aside(path: &Path) -> Option<PathBuf> {
    let bad = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(match number {
            0 => ".bad".to_owned(),
            number => format!(".bad-{number}"),
        });
        PathBuf::from(name)
    };
    let mut names = (0..BAD_NAMES_MAX).map(bad);
    names.find(|bad| fs::rename(path, bad).is_ok())
}

/// The process whose temporary file has this name: `<info_hash>-<device>-<inode>.tmp-<pid>-<number>`.
fn temporary_writer(name: &OsStr) -> Option<u32> {
    let (record, temporary) = name.to_str()?.split_once(".tmp-")?;
    let (pid, number) = temporary.split_once('-')?;
    let info_hash = record.split('-').next()?;
    let is_hash = info_hash.len() == 40 && info_hash.bytes().all(|b| b.is_ascii_hexdigit());
    let is_ours = is_hash && number.parse::<u64>().is_ok();
    pid.parse().ok().filter(|_| is_ours)
}

/// What a running process calls itself.
fn process_name(pid: u32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/comm")).ok()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
