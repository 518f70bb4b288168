//! Open files of all torrents: a bounded set of handles, least recently used out first. Layer 5.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::{DiskError, DiskOp, DiskTorrent};
use crate::session::handles::OPERATIONS_MAX;
use crate::storage::parts::{HEADER_USED_BYTES, PartsMap};
use crate::uring::files::{self, File, OpenMode};
use crate::uring::map::{self, FileMap};

/// Stands for the parts file where a file's number is asked for.
pub(super) const PARTS: usize = usize::MAX;

/// Number of the torrent, number of the file, and the way to its bytes.
type HandleKey = (u64, usize, Way);

/// Through the page cache, or past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Cached,
    Direct,
}

/// The handles kept open, over all torrents of the session.
pub struct FileBudget {
    open_max: usize,
    operations_max: usize,
    clock: Cell<u64>,
    open: RefCell<OpenFiles>,
}

#[derive(Default)]
struct OpenFiles {
    by_key: BTreeMap<HandleKey, Handle>,
    /// Time of last use to file.
    by_use: BTreeMap<u64, HandleKey>,
}

struct Handle {
    file: File,
    is_writable: bool,
    /// Made when first asked for.
    map: Option<Mapped>,
    used: u64,
}

/// Whether a file may be sent from the page cache.
#[derive(Clone)]
enum Mapped {
    Yes(FileMap),
    /// The kernel does not tell us what is resident, or refuses the mapping.
    No,
}

impl FileBudget {
    /// Keeps up to `open_max` files open (at least one). Handles in use by an operation stay open beyond that.
    pub fn new(open_max: usize) -> Rc<FileBudget> {
        FileBudget::with_operations(open_max, OPERATIONS_MAX)
    }

    /// The same, with at most `operations_max` operations under way on each device.
    pub fn with_operations(open_max: usize, operations_max: usize) -> Rc<FileBudget> {
        Rc::new(FileBudget {
            open_max: open_max.max(1),
            operations_max: operations_max.max(1),
            clock: Cell::new(0),
            open: RefCell::default(),
        })
    }

    pub(super) fn operations_max(&self) -> usize {
        self.operations_max
    }

    /// Files open now.
    pub fn open_count(&self) -> usize {
        self.open.borrow().by_key.len()
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn get(&self, key: HandleKey, needs_write: bool) -> Option<File> {
        let mut open = self.open.borrow_mut();
        let handle = open.by_key.get_mut(&key)?;
        if needs_write && !handle.is_writable {
            return None;
        }
        let before = std::mem::replace(&mut handle.used, self.tick());
        let (used, file) = (handle.used, handle.file.clone());
        open.by_use.remove(&before);
        open.by_use.insert(used, key);
        Some(file)
    }

    fn put(&self, key: HandleKey, file: File, is_writable: bool) {
        let used = self.tick();
        let handle = Handle {
            file,
            is_writable,
            map: None,
            used,
        };
        let mut open = self.open.borrow_mut();
        if let Some(before) = open.by_key.insert(key, handle) {
            open.by_use.remove(&before.used);
        }
        open.by_use.insert(used, key);
        while open.by_key.len() > self.open_max {
            let Some((_, oldest)) = open.by_use.pop_first() else {
                return;
            };
            open.by_key.remove(&oldest);
        }
    }

    fn map_of(&self, key: HandleKey) -> Option<Mapped> {
        self.open.borrow().by_key.get(&key)?.map.clone()
    }

    fn put_map(&self, key: HandleKey, map: Mapped) {
        if let Some(handle) = self.open.borrow_mut().by_key.get_mut(&key) {
            handle.map = Some(map);
        }
    }

    /// Closes the file unless an operation is using it.
    pub(super) fn close(&self, torrent: u64, file: usize) {
        let mut open = self.open.borrow_mut();
        for way in [Way::Cached, Way::Direct] {
            if let Some(handle) = open.by_key.remove(&(torrent, file, way)) {
                open.by_use.remove(&handle.used);
            }
        }
    }

    /// Closes all files of a torrent.
    pub(super) fn forget(&self, torrent: u64) {
        let mut open = self.open.borrow_mut();
        let OpenFiles { by_key, by_use } = &mut *open;
        let gone = (torrent, 0, Way::Cached)..=(torrent, usize::MAX, Way::Direct);
        let gone: Vec<HandleKey> = by_key.range(gone).map(|(key, _)| *key).collect();
        for key in gone {
            if let Some(handle) = by_key.remove(&key) {
                by_use.remove(&handle.used);
            }
        }
    }
}

impl DiskTorrent {
    /// The file's path, relative to the output folder.
    pub(super) fn path_of(&self, file: usize) -> PathBuf {
        if file == PARTS {
            return self.config.parts.path().clone();
        }
        let entry = self.config.layout.files().get(file);
        entry.map(|entry| entry.path.clone()).unwrap_or_default()
    }

    /// The file, opened if need be: for reading, or for both. Writing creates it.
    pub(super) async fn handle(&self, file: usize, needs_write: bool) -> Result<File, DiskError> {
        let key = (self.id, file, Way::Cached);
        if let Some(file) = self.hub.budget.get(key, needs_write) {
            return Ok(file);
        }
        let path = self.path_of(file);
        let base = Arc::clone(&self.base);
        let parts = (file == PARTS).then(|| Arc::clone(&self.config.parts));
        let opened = self
            .lane
            .off_ring({
                let path = path.clone();
                move || open(&base, &path, needs_write, parts.as_deref())
            })
            .await;
        let (fd, is_new) =
            opened.map_err(|error| DiskError::new(DiskOp::Open, self.full(&path), &error))?;
        if is_new {
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            self.unsynced.borrow_mut().folders.insert(parent);
        }
        // Opened before a copy took its name, and here only now: a copy has its name for good.
        let is_old = |fd: &OwnedFd| {
            let stamp = files::stamp(fd);
            stamp.is_ok_and(|stamp| self.is_replaced(file, stamp.inode))
        };
        let fd = match self.has_copies() && is_old(&fd) {
            true => files::open_beneath(&self.base, &path, OpenMode::Write)
                .map_err(|error| DiskError::new(DiskOp::Open, self.full(&path), &error))?,
            false => fd,
        };
        let handle = File::with_kind(fd, self.kind);
        self.hub.budget.put(key, handle.clone(), needs_write);
        Ok(handle)
    }

    /// The file past the page cache, for writing; `None` where that is not to be had. It exists: the buffered handle
    /// made it.
    pub(super) async fn direct_handle(&self, file: usize) -> Option<File> {
        self.direct(file, true).await
    }

    /// The file past the page cache, for reading; `None` where that is not to be had.
    pub(super) async fn direct_reader(&self, file: usize) -> Option<File> {
        match self.refuses_direct.get() {
            true => None,
            false => self.direct(file, false).await,
        }
    }

    async fn direct(&self, file: usize, needs_write: bool) -> Option<File> {
        let key = (self.id, file, Way::Direct);
        if let Some(file) = self.hub.budget.get(key, needs_write) {
            return Some(file);
        }
        let mode = if needs_write {
            OpenMode::WriteDirect
        } else {
            OpenMode::ReadDirect
        };
        let (base, path) = (Arc::clone(&self.base), self.path_of(file));
        match self
            .lane
            .off_ring(move || files::open_beneath(&base, &path, mode))
            .await
        {
            Ok(fd) => {
                let inode = files::stamp(&fd).map(|stamp| stamp.inode);
                if self.has_copies() && inode.is_ok_and(|inode| self.is_replaced(file, inode)) {
                    return None;
                }
                let handle = File::with_kind(fd, self.kind);
                self.hub.budget.put(key, handle.clone(), needs_write);
                Some(handle)
            }
            Err(error) => {
                if error.raw_os_error() == Some(libc::EINVAL) {
                    self.refuse_direct();
                }
                None
            }
        }
    }

    /// The file and its mapping, of the length that the torrent gives it; `None` when it must be read instead.
    pub(super) async fn mapping(&self, file: usize) -> Result<Option<(File, FileMap)>, DiskError> {
        if file == PARTS {
            return Ok(None);
        }
        let handle = self.handle(file, false).await?;
        let key = (self.id, file, Way::Cached);
        let mapped = match self.hub.budget.map_of(key) {
            Some(mapped) => mapped,
            None => {
                let bytes = self
                    .config
                    .layout
                    .files()
                    .get(file)
                    .map_or(0, |entry| entry.length_bytes);
                let map = FileMap::new(handle.fd(), bytes).ok();
                let is_told = map::tells_residency(handle.fd());
                let mapped = map.filter(|_| is_told).map_or(Mapped::No, Mapped::Yes);
                self.hub.budget.put_map(key, mapped.clone());
                mapped
            }
        };
        Ok(match mapped {
            Mapped::Yes(map) => Some((handle, map)),
            Mapped::No => None,
        })
    }

    /// The path as the user knows it.
    pub(super) fn full(&self, path: &Path) -> PathBuf {
        self.config.output.join(path)
    }

    pub(super) fn error(&self, op: DiskOp, file: usize, error: &io::Error) -> DiskError {
        DiskError::new(op, self.full(&self.path_of(file)), error)
    }
}

/// True when the file begins as a parts file of the torrent does; false when that, or some of it, never reached the disk.
///
/// # Errors
/// It cannot be read, or is not ours.
pub fn is_parts_file(file: &std::fs::File, parts: &PartsMap) -> io::Result<bool> {
    let mut header = [0; HEADER_USED_BYTES];
    let mut length = 0;
    while let Some(rest) = header.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let header = header.get(..length).unwrap_or_default();
    parts.check_header(header).map_err(io::Error::other)
}

/// Opens a file and says whether it is new. A parts file gets, or must have, its header.
fn open(
    base: &OwnedFd,
    path: &Path,
    needs_write: bool,
    parts: Option<&PartsMap>,
) -> io::Result<(OwnedFd, bool)> {
    let existing = if needs_write {
        OpenMode::Write
    } else {
        OpenMode::Read
    };
    let (fd, is_new) = match files::open_beneath(base, path, existing) {
        Ok(fd) => (fd, false),
        Err(error) if needs_write && error.kind() == io::ErrorKind::NotFound => {
            (files::open_beneath(base, path, OpenMode::Create)?, true)
        }
        Err(error) => return Err(error),
    };
    // What is read ahead of a request may never be asked for.
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM;
    let _ = nix::fcntl::posix_fadvise(&fd, 0, 0, advice);
    let Some(parts) = parts else {
        return Ok((fd, is_new));
    };
    let file = std::fs::File::from(fd);
    let is_there = is_parts_file(&file, parts)?;
    if !is_there && !needs_write {
        return Err(io::ErrorKind::NotFound.into());
    }
    if !is_there {
        file.write_all_at(parts.header(), 0)?;
    }
    Ok((file.into(), is_new))
}
