//! Files over the ring, and the synchronous calls around them (layer 4).
//!
//! Holds: reads and writes continued after short results; `beneath` has the paths that cannot leave their root folder.
//! Functions marked "blocks" belong on a blocking thread: a dead file system holds them for ever.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use io_uring::{opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fstat};

use super::buffers::Segment;
use super::op;

mod beneath;

pub(super) use beneath::{check_relative, open_with, split};
pub use beneath::{
    file_stamp_beneath, is_link_beneath, mkdirs_beneath, open_beneath, open_dir_beneath, open_root,
    place_beneath, rename_beneath, rmdir_beneath, stamp_beneath, symlink_beneath, unlink_beneath,
};

/// Stack of a thread that closes a file.
const CLOSE_STACK_BYTES: usize = 64 << 10;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Read an existing file.
    Read,
    /// Read and write an existing file.
    Write,
    /// Read and write, made when missing.
    Create,
    /// Read an existing file past the page cache (O_DIRECT): memory, offset and length in whole pages.
    ReadDirect,
    /// Read and write an existing file past the page cache, as above.
    WriteDirect,
}

/// Where a file system keeps its data, as far as waiting for it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// A known file system on a local device or in memory.
    Local,
    /// A network or FUSE file system, or one we do not know: any call may hang.
    Remote,
}

/// Identity and version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Last change of the content, in ns since 1970.
    pub mtime_ns: i64,
    /// Last change of content or attributes, in ns since 1970.
    pub ctime_ns: i64,
    /// Bytes of disk it occupies.
    pub allocated_bytes: u64,
    /// Names it has (hard links).
    pub links: u64,
    /// Whoever may read it may execute it.
    pub is_executable: bool,
}

impl FileStamp {
    /// Whether it is the same file with the same content: space that the file system moves about by itself (delayed
    /// allocation, compression) is no change.
    pub fn is_same_version(&self, other: &FileStamp) -> bool {
        let version = |stamp: &FileStamp| {
            let file = (stamp.device, stamp.inode, stamp.size_bytes);
            (file, stamp.mtime_ns, stamp.ctime_ns)
        };
        version(self) == version(other)
    }

    /// Whether it is the same file with another number of names, and no more is seen to have changed: that time of change
    /// is the name's, and may be the content's too.
    pub fn is_renamed(&self, other: &FileStamp) -> bool {
        let looks = |stamp: &FileStamp| {
            let file = (stamp.device, stamp.inode);
            (file, stamp.size_bytes, stamp.mtime_ns)
        };
        looks(self) == looks(other) && self.links != other.links && other.links > 0
    }
}

struct Inner {
    fd: ManuallyDrop<OwnedFd>,
    kind: FsKind,
}

/// An open file; clones share it. Closed when the last clone and operation are gone.
#[derive(Clone)]
pub struct File {
    inner: Rc<Inner>,
}

impl File {
    /// Takes an open file; looks up its file system's kind (blocks on a dead one).
    pub fn from_fd(fd: OwnedFd) -> File {
        let kind = statfs_kind(&fd);
        File::with_kind(fd, kind)
    }

    /// Takes an open file whose file system's kind is known.
    pub fn with_kind(fd: OwnedFd, kind: FsKind) -> File {
        File {
            inner: Rc::new(Inner {
                fd: ManuallyDrop::new(fd),
                kind,
            }),
        }
    }

    /// The kind it was opened with.
    pub fn kind(&self) -> FsKind {
        self.inner.kind
    }

    /// The descriptor, for the synchronous helpers.
    pub fn fd(&self) -> &OwnedFd {
        &self.inner.fd
    }

    /// Reads into `range` of the segment; fewer bytes than asked for mean the end of the file.
    ///
    /// # Errors
    ///
    /// As pread(2).
    ///
    /// # Panics
    ///
    /// If the range leaves the segment.
    pub async fn read_at(
        &self,
        segment: Segment,
        range: Range<usize>,
        offset: u64,
    ) -> (io::Result<usize>, Segment) {
        let mut data = self.transfer(segment, &range);
        let mut done = 0;
        while done < range.len() {
            let at = Spot::new(&range, done, offset);
            // SAFETY: the stored data owns the file and the segment, whose memory does not move;
            // the range was checked against it, and its buffer number is that of its region.
            let op = unsafe { op::submit(data, |(inner, segment)| at.read(inner, segment)) };
            let result;
            (result, data) = op.await;
            match result {
                Ok(0) => break,
                Ok(n) => done += n as usize,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(e), data.1),
            }
        }
        (Ok(done), data.1)
    }

    /// Writes `range` of the segment.
    ///
    /// # Errors
    ///
    /// As pwrite(2); part of the range may have been written.
    ///
    /// # Panics
    ///
    /// If the range leaves the segment.
    pub async fn write_at(
        &self,
        segment: Segment,
        range: Range<usize>,
        offset: u64,
    ) -> (io::Result<()>, Segment) {
        let mut data = self.transfer(segment, &range);
        let mut done = 0;
        while done < range.len() {
            let at = Spot::new(&range, done, offset);
            // SAFETY: as in `read_at`.
            let op = unsafe { op::submit(data, |(inner, segment)| at.write(inner, segment)) };
            let result;
            (result, data) = op.await;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), data.1),
                Ok(n) => done += n as usize,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(e), data.1),
            }
        }
        (Ok(()), data.1)
    }

    fn transfer(&self, segment: Segment, range: &Range<usize>) -> (Rc<Inner>, Segment) {
        assert!(range.start <= range.end && range.end <= segment.len());
        (Rc::clone(&self.inner), segment)
    }

    /// Makes written data durable (fdatasync).
    ///
    /// # Errors
    ///
    /// As fdatasync(2): after one, nothing written since the last good one is known to be on disk.
    pub async fn fdatasync(&self) -> io::Result<()> {
        // SAFETY: the stored data owns the file; the entry names no memory.
        let op = unsafe {
            op::submit(Rc::clone(&self.inner), |inner| {
                opcode::Fsync::new(types::Fd(inner.fd.as_raw_fd()))
                    .flags(types::FsyncFlags::DATASYNC)
                    .build()
            })
        };
        op.await.0.map(drop)
    }

    /// Reserves disk space for the range, growing the file if it ends before.
    ///
    /// # Errors
    ///
    /// As fallocate(2).
    pub async fn fallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fallocate_with(offset, length, 0).await
    }

    /// Gives the range back to the file system; it reads as zeros afterwards.
    ///
    /// # Errors
    ///
    /// As fallocate(2).
    pub async fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate_with(offset, length, mode).await
    }

    async fn fallocate_with(&self, offset: u64, length: u64, mode: i32) -> io::Result<()> {
        // SAFETY: the stored data owns the file; the entry names no memory.
        let op = unsafe {
            op::submit(Rc::clone(&self.inner), |inner| {
                opcode::Fallocate::new(types::Fd(inner.fd.as_raw_fd()), length)
                    .offset(offset)
                    .mode(mode)
                    .build()
            })
        };
        op.await.0.map(drop)
    }

    /// Identity and version now (blocks on a dead file system).
    ///
    /// # Errors
    ///
    /// As fstat(2).
    pub fn stamp(&self) -> io::Result<FileStamp> {
        stamp(&self.inner.fd)
    }
}

/// The part of a transfer that is still to be done.
struct Spot {
    start: usize,
    length: u32,
    offset: u64,
}

impl Spot {
    fn new(range: &Range<usize>, done: usize, offset: u64) -> Spot {
        Spot {
            start: range.start + done,
            length: u32::try_from(range.len() - done).unwrap_or(u32::MAX),
            offset: offset.saturating_add(done as u64),
        }
    }

    fn read(&self, inner: &Inner, segment: &Segment) -> squeue::Entry {
        let fd = types::Fd(inner.fd.as_raw_fd());
        let start = segment.start().wrapping_add(self.start);
        let entry = match segment.buf_index() {
            Some(index) => opcode::ReadFixed::new(fd, start, self.length, index)
                .offset(self.offset)
                .build(),
            None => opcode::Read::new(fd, start, self.length)
                .offset(self.offset)
                .build(),
        };
        inner.placed(entry)
    }

    fn write(&self, inner: &Inner, segment: &Segment) -> squeue::Entry {
        let fd = types::Fd(inner.fd.as_raw_fd());
        let start = segment.start().wrapping_add(self.start);
        let entry = match segment.buf_index() {
            Some(index) => opcode::WriteFixed::new(fd, start, self.length, index)
                .offset(self.offset)
                .build(),
            None => opcode::Write::new(fd, start, self.length)
                .offset(self.offset)
                .build(),
        };
        inner.placed(entry)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the field is not used after this: `self` is being dropped.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        close(fd, self.kind);
    }
}

impl Inner {
    /// Where a file system may hang the operation goes to a worker thread of the kernel at once.
    fn placed(&self, entry: squeue::Entry) -> squeue::Entry {
        match self.kind {
            FsKind::Local => entry,
            FsKind::Remote => entry.flags(squeue::Flags::ASYNC),
        }
    }
}

/// Closes a descriptor, on another thread where the file system may hang: closing waits for its answer.
pub fn close(fd: OwnedFd, kind: FsKind) {
    if kind == FsKind::Remote {
        let thread = std::thread::Builder::new().stack_size(CLOSE_STACK_BYTES);
        // Without a thread it is closed here, with the closure.
        let _ = thread.name("gyre-close".into()).spawn(move || drop(fd));
    }
}

/// Identity and version of an open file or folder (blocks).
///
/// # Errors
///
/// As fstat(2).
pub fn stamp(fd: &OwnedFd) -> io::Result<FileStamp> {
    let stat = fstat(fd)?;
    let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
    Ok(FileStamp {
        device: stat.st_dev,
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
        allocated_bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
        links: stat.st_nlink,
        is_executable: stat.st_mode & executable_bits(stat.st_mode)
            == executable_bits(stat.st_mode),
    })
}

/// Cuts or grows a file; what it grows by is a hole (blocks).
///
/// # Errors
///
/// As ftruncate(2).
pub fn set_len(fd: &OwnedFd, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    Ok(nix::unistd::ftruncate(fd, length)?)
}

/// Sets the executable bits for those who may read (blocks).
///
/// # Errors
///
/// As fchmod(2).
pub fn set_executable(fd: &OwnedFd) -> io::Result<()> {
    let mode = fstat(fd)?.st_mode & 0o7777;
    let mode = Mode::from_bits_truncate(mode | executable_bits(mode));
    Ok(nix::sys::stat::fchmod(fd, mode)?)
}

/// The bits that let everybody execute who may read.
const fn executable_bits(mode: u32) -> u32 {
    (mode & 0o444) >> 2
}

/// Lets the kernel forget the file's clean pages: what is read next comes from the disk (blocks).
pub fn drop_cached(fd: &OwnedFd) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    // A file system that keeps no pages has nothing to forget.
    let _ = posix_fadvise(fd, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Makes the names in a folder durable (blocks).
///
/// # Errors
///
/// As fsync(2).
pub fn sync_dir(fd: &OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::fsync(fd)?)
}

/// Makes a folder and those above it such that no power cut takes them again: their names are synced too, where that can
/// be done (blocks).
///
/// # Errors
///
/// As mkdir(2).
pub fn make_folder(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.is_dir()).collect();
    std::fs::create_dir_all(path)?;
    let parents = missing.iter().filter_map(|path| path.parent());
    for parent in parents.map(|path| match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }) {
        // A folder that may not be read cannot be opened to be synced, and some file systems sync none.
        let _ = open_root(parent).and_then(|fd| sync_dir(&fd));
    }
    Ok(())
}

/// Which kind of file system an open file lies on (blocks on a dead one).
pub fn statfs_kind(fd: &OwnedFd) -> FsKind {
    /// Magic numbers of statfs(2): ext2/3/4, XFS, btrfs, tmpfs, ramfs, F2FS, bcachefs, ZFS, overlayfs, JFS, NILFS, exFAT, FAT.
    const LOCAL: [u32; 13] = [
        0xEF53,
        0x5846_5342,
        0x9123_683E,
        0x0102_1994,
        0x8584_58F6,
        0xF2F5_2010,
        0xCA45_1A4E,
        0x2FC1_2FC1,
        0x794C_7630,
        0x3153_464A,
        0x3434,
        0x2011_BAB0,
        0x4D44,
    ];
    let Ok(stat) = nix::sys::statfs::fstatfs(fd) else {
        return FsKind::Remote;
    };
    // The field's width differs between architectures; the numbers have 32 bits.
    let magic = stat.filesystem_type().0 as u32;
    if LOCAL.contains(&magic) {
        FsKind::Local
    } else {
        FsKind::Remote
    }
}

/// Device and kind of the file system that an open file or folder lies on (blocks).
///
/// # Errors
///
/// As fstat(2).
pub fn place(fd: &OwnedFd) -> io::Result<(u64, FsKind)> {
    Ok((stamp(fd)?.device, statfs_kind(fd)))
}

/// Whether this process may write the open file (blocks).
pub fn is_writable(fd: &OwnedFd) -> bool {
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: the path is an empty C string, read during the call.
    unsafe { libc::faccessat(fd.as_raw_fd(), c"".as_ptr(), libc::W_OK, flags) == 0 }
}

/// Bytes an ordinary user may still write to the file system of `fd` (blocks); all there can be where it does not tell.
///
/// # Errors
///
/// As fstatvfs(2).
pub fn free_bytes(fd: &OwnedFd) -> io::Result<u64> {
    let stat = nix::sys::statvfs::fstatvfs(fd)?;
    if stat.blocks() == 0 {
        return Ok(u64::MAX);
    }
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Takes an advisory lock on an open file or folder without waiting; it ends with the last copy of
/// the descriptor (flock(2)). `false`: somebody else has it.
///
/// # Errors
///
/// As flock(2).
pub fn try_lock(fd: &OwnedFd, is_exclusive: bool) -> io::Result<bool> {
    let kind = if is_exclusive {
        libc::LOCK_EX
    } else {
        libc::LOCK_SH
    };
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::flock(fd.as_raw_fd(), kind | libc::LOCK_NB) };
    match Errno::result(result) {
        Ok(_) => Ok(true),
        Err(Errno::EWOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_no_part_of_a_files_version_and_all_that_a_writer_changes_is() {
        let stamp = FileStamp {
            device: 1,
            inode: 2,
            size_bytes: 3,
            mtime_ns: 4,
            ctime_ns: 5,
            allocated_bytes: 6,
            links: 1,
            is_executable: false,
        };
        let allocated_bytes = 4096;
        let moved = FileStamp {
            allocated_bytes,
            ..stamp
        };
        assert!(stamp.is_same_version(&moved));
        for other in [
            FileStamp { device: 9, ..stamp },
            FileStamp { inode: 9, ..stamp },
            FileStamp {
                size_bytes: 9,
                ..stamp
            },
            FileStamp {
                mtime_ns: 9,
                ..stamp
            },
            FileStamp {
                ctime_ns: 9,
                ..stamp
            },
        ] {
            assert!(!stamp.is_same_version(&other));
        }
    }
}
