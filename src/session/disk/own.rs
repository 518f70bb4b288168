//! A file that has more names than ours is never written: whoever has to write it gets a copy of its own first, under the
//! name that it had. Layer 5.
//!
//! Whether it has is asked of the open file before each write, so a name that it was given a moment ago counts too. The copy
//! is on the disk before it takes the name, so a power cut finds one or the other, whole (HOSTILE.md L17).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha1::{Digest, Sha1};
use tokio::sync::Mutex;
use tracing::info;

use super::{DiskError, DiskOp, DiskTorrent};
use crate::session::contain::off_ring;
use crate::session::root_lock::RootLock;
use crate::storage::resume::RootKey;
use crate::uring::copy;
use crate::uring::files::{self, File, FileStamp, OpenMode};

/// The copies of one torrent's files.
#[derive(Default)]
pub(super) struct Owning {
    /// One copy at a time.
    turn: Mutex<()>,
    /// The file that is being copied: what is open of it may be the other's by now.
    under_way: Cell<Option<usize>>,
    /// Inodes of copies made. An older one has but the other's name left, and must not be taken for ours.
    inodes: RefCell<BTreeMap<usize, u64>>,
    /// The torrent ends: what is being copied is not to take the file's name any more.
    is_over: Arc<AtomicBool>,
    /// Of a torrent of one file, which is its root.
    root: RefCell<Option<RootLock>>,
}

impl DiskTorrent {
    /// The file, opened for writing, and how it looks. It has one name.
    pub(super) async fn own_handle(&self, file: usize) -> Result<(File, FileStamp), DiskError> {
        let mut is_anew = false;
        loop {
            if self.owning.under_way.get() == Some(file) {
                drop(self.owning.turn.lock().await);
            }
            let handle = match self.handle(file, true).await {
                // What was linked from elsewhere may be another user's.
                Err(error) if error.kind == io::ErrorKind::PermissionDenied => {
                    let handle = self.handle(file, false).await.map_err(|_| error.clone())?;
                    let stamp = self.look(&handle).await;
                    let is_shared = stamp.is_ok_and(|stamp| stamp.links > 1);
                    is_shared.then_some(handle).ok_or(error)?
                }
                handle => handle?,
            };
            let stamp = self.look(&handle).await;
            let stamp = stamp.map_err(|error| self.error(DiskOp::Stat, file, &error))?;
            // From here to the return nothing is waited for.
            if self.owning.under_way.get() == Some(file) {
                continue;
            }
            if self.is_replaced(file, stamp.inode) {
                self.hub.budget.close(self.id, file);
                // What has the name even so, somebody put there.
                if std::mem::replace(&mut is_anew, true) {
                    self.owning.inodes.borrow_mut().remove(&file);
                }
                continue;
            }
            if stamp.links <= 1 {
                return Ok((handle, stamp));
            }
            self.take_own(file).await?;
        }
    }

    /// Makes sure that the file has no name but ours.
    pub(super) async fn take_own(&self, file: usize) -> Result<(), DiskError> {
        let _turn = self.owning.turn.lock().await;
        let path = self.path_of(file);
        let (base, is_over) = (Arc::clone(&self.base), self.owning.is_over.clone());
        let is_root = path == self.config.layout.root_name();
        let name = path.clone();
        // How the file looks from now on is our doing.
        self.begin_write(file);
        self.owning.under_way.set(Some(file));
        let copied = off_ring(move || own(&base, &name, is_root, &is_over)).await;
        if let Ok(Some((stamp, _))) = &copied {
            self.owning.inodes.borrow_mut().insert(file, stamp.inode);
        }
        self.hub.budget.close(self.id, file);
        self.owning.under_way.set(None);
        self.end_write(file);
        let copied = copied.map_err(|error| self.error(DiskOp::Copy, file, &error))?;
        let Some((stamp, root)) = copied else {
            return Ok(());
        };
        self.set_stamp(file, Some(super::sync::record_stamp(stamp)));
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        self.unsynced.borrow_mut().folders.insert(folder);
        if root.is_some() {
            *self.owning.root.borrow_mut() = root;
        }
        info!(path = %self.full(&path).display(), "copied: it is to be written, and has other names too");
        Ok(())
    }

    /// The file was copied, and this is not the copy.
    pub(super) fn is_replaced(&self, file: usize, inode: u64) -> bool {
        let inodes = self.owning.inodes.borrow();
        inodes.get(&file).is_some_and(|ours| *ours != inode)
    }

    /// Some file was copied in this run.
    pub(super) fn has_copies(&self) -> bool {
        !self.owning.inodes.borrow().is_empty()
    }

    /// From now on no copy takes a file's name.
    pub fn end_copies(&self) {
        self.owning.is_over.store(true, Ordering::SeqCst);
    }

    /// The torrent's root, where it is a file that was copied in this run.
    pub fn own_root(&self) -> Option<RootKey> {
        self.owning.root.borrow().as_ref().map(RootLock::key)
    }
}

/// Puts a copy in the place of a file with several names; `None` when it has one. The copy of a root comes locked.
fn own(
    base: &OwnedFd,
    path: &Path,
    is_root: bool,
    is_over: &AtomicBool,
) -> io::Result<Option<(FileStamp, Option<RootLock>)>> {
    let from = files::open_beneath(base, path, OpenMode::Read)?;
    let before = files::stamp(&from)?;
    if before.links <= 1 {
        return Ok(None);
    }
    let temporary = temporary(path);
    let to = match copy::create_new_beneath(base, &temporary) {
        // Of a copy that was cut off by a kill, or of a run that did not end in time and will find it gone.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            files::unlink_beneath(base, &temporary)?;
            copy::create_new_beneath(base, &temporary)?
        }
        created => created?,
    };
    let goes_on = |_| !is_over.load(Ordering::SeqCst);
    let put = || -> io::Result<(FileStamp, Option<RootLock>)> {
        let is_whole = copy::copy(&from, &to, before.size_bytes, goes_on)?;
        copy::take_looks(&from, &to, before.mtime_ns)?;
        copy::sync(&to)?;
        let root = match is_root {
            true => Some(RootLock::of_new(to.try_clone()?)?),
            false => None,
        };
        let (now, named) = (files::stamp(&from)?, files::file_stamp_beneath(base, path)?);
        let version = |stamp: &FileStamp| (stamp.inode, stamp.size_bytes, stamp.mtime_ns);
        if !is_whole || is_over.load(Ordering::SeqCst) {
            return Err(io::Error::other("the torrent ends"));
        }
        if [now, named]
            .iter()
            .any(|now| version(now) != version(&before))
        {
            return Err(io::Error::other("it was changed meanwhile"));
        }
        if !is_ours(base, &temporary, &to) {
            return Err(io::Error::other("another copy took its place"));
        }
        files::rename_beneath(base, &temporary, path)?;
        Ok((files::stamp(&to)?, root))
    };
    let done = put();
    if done.is_err() && is_ours(base, &temporary, &to) {
        let _ = files::unlink_beneath(base, &temporary);
    }
    done.map(Some)
}

/// Whether the name is still that of this file: a later run may have begun a copy of its own there.
fn is_ours(base: &OwnedFd, path: &Path, file: &OwnedFd) -> bool {
    let named = files::file_stamp_beneath(base, path).map(|stamp| stamp.inode);
    let ours = files::stamp(file).map(|stamp| stamp.inode);
    matches!((named, ours), (Ok(named), Ok(ours)) if named == ours)
}

/// Beside the file, so that it can take its name; the same each time, so that what a kill leaves there is found.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let sum = Sha1::digest(name);
    let mark: String = sum
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    path.with_file_name(format!(".gyre-copy-{mark}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_with_two_names_is_copied_and_one_with_one_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        fs::write(&theirs, b"bytes").unwrap();
        fs::hard_link(&theirs, &ours).unwrap();
        let base = files::open_root(folder.path()).unwrap();
        let (path, is_over) = (Path::new("ours"), AtomicBool::new(false));
        let before = files::file_stamp_beneath(&base, Path::new("theirs")).unwrap();
        let (stamp, root) = own(&base, path, true, &is_over).unwrap().unwrap();
        assert_ne!(stamp.inode, before.inode);
        assert_eq!((stamp.links, stamp.mtime_ns), (1, before.mtime_ns));
        assert_eq!(root.unwrap().key().inode, stamp.inode);
        assert_eq!(fs::read(&ours).unwrap(), b"bytes");
        let after = files::file_stamp_beneath(&base, Path::new("theirs")).unwrap();
        assert_eq!(
            (after.inode, after.mtime_ns),
            (before.inode, before.mtime_ns)
        );
        assert!(own(&base, path, true, &is_over).unwrap().is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_copy_that_was_cut_off_left_gives_way_to_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        fs::write(&theirs, b"bytes").unwrap();
        fs::hard_link(&theirs, &ours).unwrap();
        fs::write(folder.path().join(temporary(Path::new("ours"))), b"by").unwrap();
        let base = files::open_root(folder.path()).unwrap();
        let copied = own(&base, Path::new("ours"), false, &AtomicBool::new(false)).unwrap();
        assert_eq!(copied.unwrap().0.links, 1);
        assert_eq!(fs::read(&ours).unwrap(), b"bytes");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_copy_of_a_torrent_that_ends_takes_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        fs::write(&theirs, b"bytes").unwrap();
        fs::hard_link(&theirs, &ours).unwrap();
        let base = files::open_root(folder.path()).unwrap();
        let is_over = AtomicBool::new(true);
        assert!(own(&base, Path::new("ours"), false, &is_over).is_err());
        let stamp = files::file_stamp_beneath(&base, Path::new("ours")).unwrap();
        assert_eq!(stamp.links, 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
