//! Files put in another place, by a second name or as a copy, synchronously: for threads of their own (layer 4).
//!
//! Everything here blocks. Nothing replaces what is there, and no path leaves its root.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, copy_file_range, renameat2};
use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, lseek};

use super::files;

/// Copied between two looks at whether to go on.
const PIECE_BYTES: u64 = 8 << 20;
/// Copied at a time where the kernel does not copy by itself.
const BUFFER_BYTES: usize = 1 << 20;
const NS_PER_S: i64 = 1_000_000_000;

/// Whether anything has this name, a link that leads nowhere too.
///
/// # Errors
/// As openat2(2).
pub fn exists_beneath(root: &OwnedFd, rel: &Path) -> io::Result<bool> {
    files::check_relative(rel)?;
    match files::open_with(root, rel, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a file that nobody had before.
///
/// # Errors
/// AlreadyExists; else as openat2(2).
pub fn create_new_beneath(root: &OwnedFd, rel: &Path) -> io::Result<OwnedFd> {
    files::check_relative(rel)?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    files::open_with(root, rel, flags)
}

/// Gives a file a second name below another root of the same file system.
///
/// # Errors
/// As linkat(2); EXDEV on another file system.
pub fn link_beneath(from: (&OwnedFd, &Path), to: (&OwnedFd, &Path)) -> io::Result<()> {
    let (from_dir, from_name) = files::split(from.0, from.1)?;
    let (to_dir, to_name) = files::split(to.0, to.1)?;
    let no_flags = AtFlags::empty();
    Ok(nix::unistd::linkat(
        &from_dir, from_name, &to_dir, to_name, no_flags,
    )?)
}

/// Makes a file that shares the bytes of `from` on the disk, durably; false where the file system knows no such thing.
///
/// # Errors
/// AlreadyExists; else as openat2(2) and fsync(2).
pub fn clone_new_beneath(from: &OwnedFd, root: &OwnedFd, rel: &Path) -> io::Result<bool> {
    let to = create_new_beneath(root, rel)?;
    let is_shared = share(from, &to);
    match is_shared {
        true => sync(&to)?,
        false => files::unlink_beneath(root, rel)?,
    }
    Ok(is_shared)
}

/// Gives the file `from` the name `to` that nothing has yet.
///
/// # Errors
/// AlreadyExists; else as renameat2(2).
pub fn rename_new_beneath(root: &OwnedFd, from: &Path, to: &Path) -> io::Result<()> {
    let (from_dir, from_name) = files::split(root, from)?;
    let (to_dir, to_name) = files::split(root, to)?;
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(&from_dir, from_name, &to_dir, to_name, flags) {
        // Some file systems cannot promise it.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            if exists_beneath(root, to)? {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            files::rename_beneath(root, from, to)
        }
        done => Ok(done?),
    }
}

/// Fills `to`, which is empty, with the first `bytes` of `from`: by sharing their place on the disk, else by the kernel,
/// else through memory of ours. Holes stay holes. `goes_on` hears how many bytes were done since it was last asked;
/// false, in the answer too, breaks it off.
///
/// # Errors
/// As read(2), write(2) and copy_file_range(2); UnexpectedEof when `from` is shorter.
pub fn copy(
    from: &OwnedFd,
    to: &OwnedFd,
    bytes: u64,
    mut goes_on: impl FnMut(u64) -> bool,
) -> io::Result<bool> {
    if share(from, to) {
        files::set_len(to, bytes)?;
        return Ok(goes_on(bytes));
    }
    files::set_len(to, bytes)?;
    let mut way = Way::Kernel;
    let mut at = 0;
    while at < bytes {
        let (start, end) = data_at(from, at, bytes);
        if !goes_on(start - at) {
            return Ok(false);
        }
        at = start;
        while at < end {
            let want = (end - at).min(PIECE_BYTES);
            let done = way.copy(from, to, at, want)?;
            if done == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += done;
            if !goes_on(done) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// How bytes get from one file to the other.
enum Way {
    Kernel,
    Memory(Vec<u8>),
}

impl Way {
    /// Copies up to `want` bytes at the offset; how many it were.
    fn copy(&mut self, from: &OwnedFd, to: &OwnedFd, at: u64, want: u64) -> io::Result<u64> {
        let offset = i64::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if let Way::Kernel = self {
            let (mut read, mut write) = (offset, offset);
            let length = usize::try_from(want).unwrap_or(BUFFER_BYTES);
            match copy_file_range(from, Some(&mut read), to, Some(&mut write), length) {
                Ok(done) if done > 0 => return Ok(done as u64),
                Err(Errno::EINTR) => return self.copy(from, to, at, want),
                Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG | Errno::EIO)) => {
                    return Err(error.into());
                }
                // Not between these two, or a file system that says 0 of files it cannot copy.
                Ok(_) | Err(_) => *self = Way::Memory(vec![0; BUFFER_BYTES]),
            }
        }
        let Way::Memory(buffer) = self else {
            return Ok(0);
        };
        let length = buffer
            .len()
            .min(usize::try_from(want).unwrap_or(usize::MAX));
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        let got = again(|| pread(from, buffer, offset))?;
        let mut left = buffer.get(..got).unwrap_or_default();
        let mut put_at = offset;
        while !left.is_empty() {
            let put = again(|| pwrite(to, left, put_at))?;
            if put == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            left = left.get(put..).unwrap_or_default();
            put_at = put_at.saturating_add(i64::try_from(put).unwrap_or(i64::MAX));
        }
        Ok(got as u64)
    }
}

fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

/// The next stretch of data at or behind `at`; up to the end where the file system knows no holes.
fn data_at(file: &OwnedFd, at: u64, bytes: u64) -> (u64, u64) {
    let seek = |from: u64, whence| {
        let found = lseek(file, i64::try_from(from).unwrap_or(i64::MAX), whence);
        found.map(|found| u64::try_from(found).unwrap_or(0))
    };
    let start = match seek(at, Whence::SeekData) {
        Ok(start) => start.clamp(at, bytes),
        // No data behind it.
        Err(Errno::ENXIO) => return (bytes, bytes),
        Err(_) => return (at, bytes),
    };
    match seek(start, Whence::SeekHole) {
        Ok(end) if end > start => (start, end.min(bytes)),
        _ => (start, bytes),
    }
}

/// Has both files share their bytes on the disk (FICLONE); false where that cannot be.
fn share(from: &OwnedFd, to: &OwnedFd) -> bool {
    // SAFETY: the request takes a descriptor as a number and touches no memory of ours.
    unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) == 0 }
}

/// Gives `to` the permissions, the owner as far as we may, and the time of change of `from`, which were `mtime_ns` then.
///
/// # Errors
/// As fchmod(2) and utimensat(2).
pub fn take_looks(from: &OwnedFd, to: &OwnedFd, mtime_ns: i64) -> io::Result<()> {
    let look = fstat(from)?;
    // Only root may give files away.
    let (user, group) = (look.st_uid.into(), look.st_gid.into());
    let _ = nix::unistd::fchown(to, Some(user), Some(group));
    fchmod(to, Mode::from_bits_truncate(look.st_mode & 0o777))?;
    let mtime = TimeSpec::new(mtime_ns.div_euclid(NS_PER_S), mtime_ns.rem_euclid(NS_PER_S));
    Ok(futimens(to, &TimeSpec::UTIME_OMIT, &mtime)?)
}

/// Makes data and attributes of a file durable.
///
/// # Errors
/// As fsync(2).
pub fn sync(fd: &OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::fsync(fd)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

    fn opened(folder: &Path) -> OwnedFd {
        files::open_root(folder).unwrap()
    }

    #[test]
    fn a_copy_has_the_bytes_the_holes_and_the_looks() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let source = fs::File::create(&from).unwrap();
        source.set_len(40 << 20).unwrap();
        source.write_all_at(&[7; 5_000], 33 << 20).unwrap();
        source
            .set_permissions(fs::Permissions::from_mode(0o750))
            .unwrap();
        let root = opened(folder.path());
        let target = create_new_beneath(&root, Path::new("to")).unwrap();
        let source: OwnedFd = fs::File::open(&from).unwrap().into();
        let before = files::stamp(&source).unwrap();
        let mut told = 0;
        let whole = copy(&source, &target, before.size_bytes, |bytes| {
            told += bytes;
            true
        });
        assert!(whole.unwrap());
        assert_eq!(told, 40 << 20);
        take_looks(&source, &target, before.mtime_ns).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        let looks = fs::metadata(&to).unwrap();
        assert_eq!(looks.permissions().mode() & 0o777, 0o750);
        assert_eq!(files::stamp(&target).unwrap().mtime_ns, before.mtime_ns);
        assert!(looks.blocks() * 512 < 1 << 20, "holes were filled");
    }

    #[test]
    fn a_copy_through_memory_is_the_same_and_one_that_is_broken_off_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| ((n * 7) >> 3) as u8).collect();
        fs::write(folder.path().join("from"), &bytes).unwrap();
        let root = opened(folder.path());
        let source = files::open_beneath(&root, Path::new("from"), files::OpenMode::Read).unwrap();
        let target = create_new_beneath(&root, Path::new("to")).unwrap();
        let mut way = Way::Memory(vec![0; 1 << 16]);
        let mut at = 0;
        while at < 3_000_000 {
            at += way.copy(&source, &target, at, 3_000_000 - at).unwrap();
        }
        assert!(fs::read(folder.path().join("to")).unwrap() == bytes);
        let other = create_new_beneath(&root, Path::new("other")).unwrap();
        assert!(!copy(&source, &other, 3_000_000, |_| false).unwrap());
    }

    #[test]
    fn nothing_that_is_there_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        fs::write(folder.path().join("b"), "b").unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("c")).unwrap();
        let root = opened(folder.path());
        let (a, b, c) = (Path::new("a"), Path::new("b"), Path::new("c"));
        for there in [b, c] {
            let is_there = |error: io::Error| error.kind() == io::ErrorKind::AlreadyExists;
            assert!(is_there(rename_new_beneath(&root, a, there).unwrap_err()));
            assert!(is_there(
                link_beneath((&root, a), (&root, there)).unwrap_err()
            ));
            assert!(is_there(create_new_beneath(&root, there).unwrap_err()));
            assert!(exists_beneath(&root, there).unwrap());
        }
        assert_eq!(fs::read(folder.path().join("b")).unwrap(), b"b");
        assert!(link_beneath((&root, a), (&root, Path::new("../d"))).is_err());
        rename_new_beneath(&root, a, Path::new("d")).unwrap();
        assert!(!exists_beneath(&root, a).unwrap());
    }
}
