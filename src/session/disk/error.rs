//! What a disk operation can fail with, in words for the user. Layer 5.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::base::{PieceIndex, io_cause};

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    Open,
    Create,
    Fit,
    Allocate,
    Read,
    Write,
    Sync,
    Stat,
    Hash,
    Keep,
    Shorten,
    SetMode,
    Copy,
}

impl fmt::Display for DiskOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskOp::Open => "open",
            DiskOp::Create => "create",
            DiskOp::Fit => "fit the torrent into",
            DiskOp::Allocate => "reserve space for",
            DiskOp::Read => "read",
            DiskOp::Write => "write",
            DiskOp::Sync => "sync",
            DiskOp::Stat => "look at",
            DiskOp::Hash => "hash",
            DiskOp::Keep => "keep",
            DiskOp::Shorten => "shorten",
            DiskOp::SetMode => "set the permissions of",
            DiskOp::Copy => "copy, so that it can be written apart from its other names,",
        })
    }
}

/// A disk operation failed. Prints as one sentence; [`Self::hint`] says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {op} {}: {message}", path.display())]
pub struct DiskError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was tried.
    pub op: DiskOp,
    /// The kind of failure.
    pub kind: io::ErrorKind,
    /// The system's number, if it came from the system.
    pub errno: Option<i32>,
    message: String,
}

impl DiskError {
    /// Wraps an error of the system.
    pub fn new(op: DiskOp, path: impl AsRef<Path>, error: &io::Error) -> DiskError {
        DiskError {
            path: path.as_ref().to_owned(),
            op,
            kind: error.kind(),
            errno: error.raw_os_error(),
            message: plain_message(error),
        }
    }

    /// An error found by ourselves.
    pub(super) fn other(
        op: DiskOp,
        path: impl AsRef<Path>,
        kind: io::ErrorKind,
        message: impl Into<String>,
    ) -> DiskError {
        DiskError {
            path: path.as_ref().to_owned(),
            op,
            kind,
            errno: None,
            message: message.into(),
        }
    }

    /// True when space (or quota) ran out: fetching may go on by itself once there is some (HOSTILE.md L1).
    pub fn is_disk_full(&self) -> bool {
        matches!(
            self.kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// True when the process or machine is out of file handles: worth another try soon.
    pub fn is_out_of_handles(&self) -> bool {
        matches!(self.errno, Some(libc::EMFILE | libc::ENFILE))
    }

    /// True when the torrent asks for what no disk can do: trying again is in vain.
    pub fn is_torrents_fault(&self) -> bool {
        self.op == DiskOp::Keep
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self.kind {
            _ if self.is_torrents_fault() => {
                "the torrent was made wrongly and can never be complete: use another"
            }
            _ if self.is_out_of_handles() => "raise the limit of open files (ulimit -n)",
            io::ErrorKind::StorageFull => "free some space on that disk",
            io::ErrorKind::QuotaExceeded => "free some space within your quota",
            io::ErrorKind::ReadOnlyFilesystem => {
                "the file system is read-only: look for disk errors in the system log, or mount it writable"
            }
            io::ErrorKind::PermissionDenied => {
                "check owner and permissions of the file and its folder"
            }
            io::ErrorKind::NotFound => {
                "put the file back, or check the data again with --check full"
            }
            io::ErrorKind::CrossesDevices => {
                "a link leads out of the folder: put the file itself in its place, or use another folder"
            }
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::InvalidData
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory => {
                "something else has that name: move it away, or use another folder"
            }
            io::ErrorKind::TooManyLinks => {
                "remove one of the links, or use another --output folder"
            }
            _ => match self.errno {
                Some(libc::EIO) => "the disk reports an error: look at the system log",
                Some(libc::ELOOP | libc::EXDEV) => {
                    "a link leads out of the folder: put the file itself in its place, or use another folder"
                }
                _ => "look at the system log, and check the data with gyre verify",
            },
        }
    }
}

/// The error's cause in words.
pub fn plain_message(error: &io::Error) -> String {
    // Only paths that must stay below a folder are opened here: the system's "cross-device link" means a link out.
    if error.kind() == io::ErrorKind::CrossesDevices {
        return "a symbolic link leads out of the folder".to_owned();
    }
    io_cause(error)
}

/// Why a run could not be read for sending.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Somebody else changed the file: take these pieces from the offer and check them again (HOSTILE.md L3).
    #[error(transparent)]
    Changed(#[from] Changed),
    /// Such a change was told before, and the check is not over.
    #[error("it is being checked again")]
    InDoubt,
    /// The piece had been taken over unhashed, and its hash is another: it is not had.
    #[error("piece {} is not what the torrent says", .0.get())]
    Disproved(PieceIndex),
}

impl ReadError {
    /// The task that read it ended early.
    pub(crate) fn lost() -> ReadError {
        let message = "the task that read it ended early";
        ReadError::Disk(DiskError::other(
            DiskOp::Read,
            "",
            io::ErrorKind::Other,
            message,
        ))
    }
}

/// A file is not as we left it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} was changed by another program", path.display())]
pub struct Changed {
    /// The file, relative to the output folder.
    pub path: PathBuf,
    /// All pieces with bytes of it.
    pub pieces: Vec<PieceIndex>,
    /// Its number in the layout.
    pub(super) file: usize,
}

/// Written data could not be made durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct SyncError {
    /// The first failure.
    pub error: DiskError,
    /// All pieces written since the last good sync: the kernel may have dropped their pages. Clear their bits and
    /// check them from disk.
    pub pieces: Vec<PieceIndex>,
}
