//! One writer a torrent: `flock` on the torrent's own root on disk. Layer 5.
//!
//! The root is the torrent's folder, or the file of a single-file torrent (created empty when a download starts and
//! it is not there yet). Locking the root itself, not a file of some state folder, also keeps commands with different
//! `--state` folders apart. Downloads lock it exclusively, seeds share it (HOSTILE.md L9). A file that is the root of
//! several torrents under several names is locked once for all those of this process: nobody writes it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::disk::{DiskError, DiskOp, plain_message};
use crate::storage::layout::FileLayout;
use crate::storage::resume::RootKey;
use crate::uring::files::{self, FsKind, OpenMode};

/// Who may use the root beside us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// `download`: nobody.
    Exclusive,
    /// `seed`: other seeds.
    Shared,
}

/// A process that holds a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command line, control characters replaced; empty when it cannot be read.
    pub command: String,
}

/// The root cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum RootLockError {
    /// Another process has it.
    #[error("{} is in use by {}", path.display(), describe(holder.as_ref()))]
    Held {
        path: PathBuf,
        holder: Option<Holder>,
    },
    /// The root of a torrent to seed does not exist.
    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },
    /// The root cannot be opened or created.
    #[error("cannot open {}: {}", path.display(), plain_message(source))]
    Io { path: PathBuf, source: io::Error },
}

impl RootLockError {
    /// True when something is in the root's place that is no such file or folder, or lies elsewhere.
    pub fn is_refusal(&self) -> bool {
        let RootLockError::Io { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::InvalidData
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::CrossesDevices
        )
    }

    /// What the user can do.
    pub fn hint(&self) -> String {
        match self {
            RootLockError::Held {
                holder: Some(holder),
                ..
            } => format!(
                "stop that process first (kill {}), or use another --output folder",
                holder.pid
            ),
            RootLockError::Held { .. } => {
                "stop the other process first, or use another --output folder".to_owned()
            }
            RootLockError::Missing { .. } => {
                "give the folder that holds the data with --data".to_owned()
            }
            RootLockError::Io { path, source } if self.is_refusal() => {
                DiskError::new(DiskOp::Open, path, source).hint().to_owned()
            }
            RootLockError::Io { .. } => {
                "check the folder's permissions and that its disk is there".to_owned()
            }
        }
    }
}

/// The lock; dropping it, and whatever shares it, lets the root go.
#[derive(Debug)]
pub struct RootLock {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    /// The lock ends with this descriptor.
    root: Option<OwnedFd>,
    kind: FsKind,
    key: RootKey,
}

/// What this process has locked.
static HELD: Mutex<BTreeMap<RootKey, Weak<Held>>> = Mutex::new(BTreeMap::new());

impl RootLock {
    /// Locks the torrent's root under `output`, without waiting. [`Share::Exclusive`] creates the root (and `output`)
    /// when it is not there.
    ///
    /// Blocks on the file system: call it off the ring thread.
    ///
    /// # Errors
    /// See [`RootLockError`].
    pub fn take(
        output: &Path,
        layout: &FileLayout,
        share: Share,
    ) -> Result<RootLock, RootLockError> {
        let path = output.join(layout.root_name());
        let fd = open_root(output, layout, share).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RootLockError::Missing { path: path.clone() },
            _ => RootLockError::Io {
                path: path.clone(),
                source,
            },
        })?;
        let io_error = |source: io::Error| RootLockError::Io {
            path: path.clone(),
            source,
        };
        let key = key_of(&fd).map_err(io_error)?;
        if files::try_lock(&fd, share == Share::Exclusive).map_err(io_error)? {
            return Ok(RootLock::hold(fd, key));
        }
        // A second name of a file: no torrent that has one writes it.
        let is_shared = !root_is_folder(layout) && files::stamp(&fd).map_err(io_error)?.links > 1;
        if is_shared && let Some(held) = held_here(key) {
            return Ok(RootLock { held });
        }
        Err(RootLockError::Held {
            holder: find_holder(key),
            path,
        })
    }

    /// Locks a file that is about to become a torrent's root.
    ///
    /// # Errors
    /// Those of `flock` and `fstat`; WouldBlock when another process has it.
    pub fn of_new(fd: OwnedFd) -> io::Result<RootLock> {
        match files::try_lock(&fd, true)? {
            true => key_of(&fd).map(|key| RootLock::hold(fd, key)),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn hold(fd: OwnedFd, key: RootKey) -> RootLock {
        let held = Arc::new(Held {
            kind: files::statfs_kind(&fd),
            root: Some(fd),
            key,
        });
        let mut table = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert(key, Arc::downgrade(&held));
        RootLock { held }
    }

    /// The identity of the root.
    pub fn key(&self) -> RootKey {
        self.held.key
    }
}

fn held_here(key: RootKey) -> Option<Arc<Held>> {
    let table = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    table.get(&key)?.upgrade()
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have locked it shared.
        if table
            .get(&self.key)
            .is_some_and(|held| held.strong_count() == 0)
        {
            table.remove(&self.key);
        }
        drop(table);
        if let Some(root) = self.root.take() {
            files::close(root, self.kind);
        }
    }
}

/// Device and inode of an open file or folder.
///
/// # Errors
/// Those of `fstat`.
pub fn key_of(fd: &OwnedFd) -> io::Result<RootKey> {
    let stamp = files::stamp(fd)?;
    Ok(RootKey {
        device: stamp.device,
        inode: stamp.inode,
    })
}

/// True when the torrent's root is a folder.
pub fn root_is_folder(layout: &FileLayout) -> bool {
    let first = layout.files().first();
    first.is_some_and(|file| file.path.as_path() != layout.root_name())
}

fn open_root(output: &Path, layout: &FileLayout, share: Share) -> io::Result<OwnedFd> {
    let is_creating = share == Share::Exclusive;
    if is_creating {
        files::make_folder(output)?;
    }
    let base = files::open_root(output)?;
    let root = layout.root_name();
    match (root_is_folder(layout), is_creating) {
        (true, true) => {
            files::mkdirs_beneath(&base, root)?;
            files::open_dir_beneath(&base, root)
        }
        (true, false) => files::open_dir_beneath(&base, root),
        (false, true) => files::open_beneath(&base, root, OpenMode::Create),
        (false, false) => files::open_beneath(&base, root, OpenMode::Read),
    }
}

fn describe(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) if holder.command.is_empty() => format!("process {}", holder.pid),
        Some(holder) => format!("process {} ({})", holder.pid, holder.command),
        None => "another process".to_owned(),
    }
}

/// Looks the lock up in `/proc/locks`.
fn find_holder(key: RootKey) -> Option<Holder> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let own = std::process::id();
    let pids = lock_pids(&locks, key.inode);
    let pid = pids
        .iter()
        .copied()
        .find(|pid| *pid != own)
        .or(pids.first().copied())?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(Holder {
        pid,
        command: printable(&command),
    })
}

/// The processes that hold a `flock` on this inode. The device is not compared: some file systems show another one
/// there than `stat` does.
fn lock_pids(locks: &str, inode: u64) -> Vec<u32> {
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let kind = fields.next()?;
        let pid = fields.nth(2)?.parse::<u32>().ok()?;
        let place = fields.next()?;
        let is_ours = kind == "FLOCK" && place.rsplit(':').next()?.parse() == Ok(inode);
        (is_ours && pid != 0).then_some(pid)
    };
    locks.lines().filter_map(of_line).collect()
}

/// A command line as one line of text, cut to a readable length.
fn printable(command: &[u8]) -> String {
    /// Enough to recognise a command by.
    const COMMAND_CHARS_MAX: usize = 200;
    String::from_utf8_lossy(command)
        .trim_end_matches('\0')
        .chars()
        .map(|c| if c == '\0' { ' ' } else { c })
        .map(|c| if c.is_control() { '?' } else { c })
        .take(COMMAND_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_found_by_inode_and_only_flocks_count() {
        let locks = "1: FLOCK  ADVISORY  WRITE 1234 08:01:77 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 99 08:01:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 55 08:01:78 0 EOF\n\
                     garbage\n";
        assert_eq!(lock_pids(locks, 77), [1234]);
        assert_eq!(lock_pids(locks, 78), [55]);
        assert!(lock_pids(locks, 1).is_empty());
    }

    #[test]
    fn command_lines_are_made_safe_for_a_terminal() {
        assert_eq!(
            printable(b"gyre\0download\0\x1b[2J\0"),
            "gyre download ?[2J"
        );
    }
}
