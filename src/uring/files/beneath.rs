//! Paths that cannot leave their root folder. All of these functions block: a dead file system holds them for ever.
//! Layer 4.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::{FileStamp, FsKind, OpenMode, place, stamp};
use crate::uring::socket;

/// openat2 answers EAGAIN when a rename raced with it: this often it is tried again.
const OPEN_TRIES_MAX: u32 = 8;

/// Opens a folder as a root for the `*_beneath` functions (blocks).
///
/// # Errors
///
/// As open(2).
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens a regular file below `root` (blocks). Symbolic links are followed as long as they stay below it.
///
/// # Errors
///
/// InvalidInput when `rel` is empty, absolute or contains `..`; EXDEV when a link leads out; InvalidData
/// when it is no regular file; EINVAL when O_DIRECT is not to be had; else as openat2(2).
pub fn open_beneath(root: &OwnedFd, rel: &Path, mode: OpenMode) -> io::Result<OwnedFd> {
    check_relative(rel)?;
    let flags = match mode {
        OpenMode::Read => OFlag::O_RDONLY,
        OpenMode::Write => OFlag::O_RDWR,
        OpenMode::Create => OFlag::O_RDWR | OFlag::O_CREAT,
        OpenMode::ReadDirect => OFlag::O_RDONLY | OFlag::O_DIRECT,
        OpenMode::WriteDirect => OFlag::O_RDWR | OFlag::O_DIRECT,
    };
    // O_NONBLOCK: a FIFO that somebody put there must not hold us.
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let fd = open_with(root, rel, flags)?;
    check_regular(&fd)?;
    // The ring would answer EAGAIN instead of waiting for the disk.
    socket::set_blocking(fd.as_fd())?;
    Ok(fd)
}

/// Opens a folder below `root` (blocks); the empty path is the root itself.
///
/// # Errors
///
/// As [`open_beneath`].
pub fn open_dir_beneath(root: &OwnedFd, rel: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
    if rel.as_os_str().is_empty() {
        return open_with(root, Path::new("."), flags);
    }
    check_relative(rel)?;
    open_with(root, rel, flags)
}

/// Makes the folder `rel` below `root` and all above it (blocks); returns those that were missing.
///
/// # Errors
///
/// As [`open_beneath`] and mkdirat(2).
pub fn mkdirs_beneath(root: &OwnedFd, rel: &Path) -> io::Result<Vec<PathBuf>> {
    if rel.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    check_relative(rel)?;
    let mut made = Vec::new();
    let mut parent = PathBuf::new();
    for name in rel.iter() {
        let path = parent.join(name);
        match open_dir_beneath(root, &path) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let dir = open_dir_beneath(root, &parent)?;
                match mkdirat(&dir, name, Mode::from_bits_truncate(0o777)) {
                    Ok(()) => made.push(path.clone()),
                    Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                open_dir_beneath(root, &path)?;
            }
            Err(e) => return Err(e),
        }
        parent = path;
    }
    Ok(made)
}

/// Identity and version of a file below `root`, without opening it for reading (blocks).
///
/// # Errors
///
/// As [`open_beneath`].
pub fn stamp_beneath(root: &OwnedFd, rel: &Path) -> io::Result<FileStamp> {
    check_relative(rel)?;
    stamp(&open_with(root, rel, OFlag::O_PATH)?)
}

/// As [`stamp_beneath`], for a regular file only: whatever else has its name is not opened and may block nobody.
///
/// # Errors
///
/// As [`open_beneath`].
pub fn file_stamp_beneath(root: &OwnedFd, rel: &Path) -> io::Result<FileStamp> {
    check_relative(rel)?;
    let fd = open_with(root, rel, OFlag::O_PATH)?;
    check_regular(&fd)?;
    stamp(&fd)
}

/// True when `rel` below `root` is itself a symbolic link (blocks).
pub fn is_link_beneath(root: &OwnedFd, rel: &Path) -> bool {
    let opened =
        check_relative(rel).and_then(|()| open_with(root, rel, OFlag::O_PATH | OFlag::O_NOFOLLOW));
    let kind = opened.and_then(|fd| Ok(fstat(&fd)?.st_mode & SFlag::S_IFMT.bits()));
    kind.is_ok_and(|kind| kind == SFlag::S_IFLNK.bits())
}

/// Removes the file `rel` below `root` (blocks).
///
/// # Errors
///
/// As [`open_beneath`] and unlinkat(2).
pub fn unlink_beneath(root: &OwnedFd, rel: &Path) -> io::Result<()> {
    let (dir, name) = split(root, rel)?;
    let flag = nix::unistd::UnlinkatFlags::NoRemoveDir;
    Ok(nix::unistd::unlinkat(&dir, name, flag)?)
}

/// Removes the empty folder `rel` below `root` (blocks).
///
/// # Errors
///
/// As [`open_beneath`] and unlinkat(2).
pub fn rmdir_beneath(root: &OwnedFd, rel: &Path) -> io::Result<()> {
    let (dir, name) = split(root, rel)?;
    let flag = nix::unistd::UnlinkatFlags::RemoveDir;
    Ok(nix::unistd::unlinkat(&dir, name, flag)?)
}

/// Gives the file `from` the name `to`, both below `root` (blocks); replaces what is there.
///
/// # Errors
///
/// As [`open_beneath`] and renameat(2).
pub fn rename_beneath(root: &OwnedFd, from: &Path, to: &Path) -> io::Result<()> {
    let (from_dir, from_name) = split(root, from)?;
    let (to_dir, to_name) = split(root, to)?;
    Ok(nix::fcntl::renameat(
        &from_dir, from_name, &to_dir, to_name,
    )?)
}

/// Makes the symbolic link `rel` below `root` (blocks). Where it points is not looked at: opening through it is.
///
/// # Errors
///
/// As [`open_beneath`] and symlinkat(2).
pub fn symlink_beneath(root: &OwnedFd, target: &Path, rel: &Path) -> io::Result<()> {
    let (dir, name) = split(root, rel)?;
    Ok(nix::unistd::symlinkat(target, &dir, name)?)
}

/// The same for a name below `root` (blocks).
///
/// # Errors
///
/// As [`open_beneath`].
pub fn place_beneath(root: &OwnedFd, rel: &Path) -> io::Result<(u64, FsKind)> {
    check_relative(rel)?;
    place(&open_with(root, rel, OFlag::O_PATH)?)
}

/// The folder and the last element of a path below `root`.
pub(in crate::uring) fn split<'a>(
    root: &OwnedFd,
    rel: &'a Path,
) -> io::Result<(OwnedFd, &'a OsStr)> {
    check_relative(rel)?;
    let name = rel.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = rel.parent().unwrap_or(Path::new(""));
    Ok((open_dir_beneath(root, parent)?, name))
}

fn check_regular(fd: &OwnedFd) -> io::Result<()> {
    let kind = fstat(fd)?.st_mode & SFlag::S_IFMT.bits();
    let what = match SFlag::from_bits_truncate(kind) {
        SFlag::S_IFREG => return Ok(()),
        SFlag::S_IFDIR => "it is a folder",
        SFlag::S_IFIFO => "it is a named pipe",
        SFlag::S_IFSOCK => "it is a socket",
        _ => "it is a device",
    };
    let error = format!("{what}, not a regular file");
    Err(io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(in crate::uring) fn check_relative(rel: &Path) -> io::Result<()> {
    let is_normal = |c: Component<'_>| matches!(c, Component::Normal(_));
    if rel.as_os_str().is_empty() || !rel.components().all(is_normal) {
        let error = format!("{} is not a path inside the folder", rel.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    Ok(())
}

pub(in crate::uring) fn open_with(root: &OwnedFd, rel: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let mode = if flags.contains(OFlag::O_CREAT) {
        Mode::from_bits_truncate(0o666)
    } else {
        Mode::empty()
    };
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(resolve);
        tries += 1;
        match openat2(root, rel, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if tries < OPEN_TRIES_MAX => {}
            result => return Ok(result?),
        }
    }
}
