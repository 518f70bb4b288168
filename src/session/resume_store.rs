//! Resume records as files in the state folder, and the look at a torrent's files at start. Layer 5.
//!
//! One file a torrent and root: `resume/<info_hash>-<device>-<inode>.resume`. Written to a temporary file, synced,
//! renamed, and the folder synced. Every function blocks: call them off the ring thread.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::InfoHash;
use crate::storage::layout::FileLayout;
use crate::storage::parts::PartsMap;
use crate::storage::resume::{FileStamp, Observed, RECORD_BYTES_MAX, Record, RootKey};
use crate::uring::files;

/// Makes temporary names of this process differ.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

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
    /// Unreadable records, now kept under these names, and why.
    pub set_aside: Vec<(PathBuf, String)>,
}

impl ResumeStore {
    /// Opens, or creates, the folder `resume` in the state folder.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(state_dir: &Path) -> io::Result<ResumeStore> {
        let folder = state_dir.join("resume");
        fs::create_dir_all(&folder)?;
        Ok(ResumeStore { folder })
    }

    /// Finds the record of the torrent: by its root's identity, else by the root's path.
    ///
    /// Damaged records and those of later versions are renamed to `*.bad` and reported (HOSTILE.md L11).
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
        if root.is_some()
            && let Some(record) = load_one(&self.path(info_hash, root), info_hash, &mut set_aside)?
            && record.root == root
        {
            let loaded = Loaded::Found(Box::new(record));
            return Ok(LoadReport { loaded, set_aside });
        }
        let mut loaded = Loaded::None;
        let prefix = format!("{info_hash}-");
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().map(OsStrExt::as_bytes);
            let is_ours =
                |name: &[u8]| name.starts_with(prefix.as_bytes()) && name.ends_with(b".resume");
            if !name.is_some_and(is_ours) {
                continue;
            }
            if let Some(record) = load_one(&path, info_hash, &mut set_aside)?
                && record.root_path == root_path.as_os_str().as_bytes()
            {
                loaded = Loaded::Moved(Box::new(record));
            }
        }
        Ok(LoadReport { loaded, set_aside })
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
fn load_one(
    path: &Path,
    info_hash: InfoHash,
    set_aside: &mut Vec<(PathBuf, String)>,
) -> io::Result<Option<Record>> {
    let Some(file) = found(File::open(path))? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    let why = match Record::decode(&bytes) {
        Ok(record) if record.info_hash == info_hash => return Ok(Some(record)),
        Ok(_) => "record of another torrent".to_owned(),
        Err(error) => error.to_string(),
    };
    set_aside.push(keep_aside(path, why)?);
    Ok(None)
}

fn keep_aside(path: &Path, why: String) -> io::Result<(PathBuf, String)> {
    let mut name = path.as_os_str().to_owned();
    name.push(".bad");
    let bad = PathBuf::from(name);
    fs::rename(path, &bad)?;
    Ok((bad, why))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
