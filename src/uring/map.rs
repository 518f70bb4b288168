//! Read-only mappings of files whose bytes only the kernel reads, and what of a file lies in the page cache (layer 4).
//!
//! A send names slices of a mapping, so that bytes go from the page cache to the socket without passing through memory
//! of ours. Program code never reads a mapping: a file cut by somebody else would end it with SIGBUS, while the kernel
//! only answers EFAULT.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::files;

/// Page size of the page cache on every platform that this crate is built for.
const PAGE_BYTES: u64 = 4096;
/// Number of cachestat(2) (Linux 6.5) on all architectures.
const SYS_CACHESTAT: libc::c_long = 451;

struct Inner {
    start: NonNull<libc::c_void>,
    bytes: NonZeroUsize,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `FileMap::new`; no reference into it was ever made, and operations that
        // name it hold an Rc of it.
        let _ = unsafe { munmap(self.start, self.bytes.get()) };
    }
}

/// A file's bytes by address, for the kernel. Clones share it; unmapped when the last one and the last operation are
/// gone.
#[derive(Clone)]
pub struct FileMap {
    inner: Rc<Inner>,
}

impl FileMap {
    /// Maps the first `bytes` of a file opened for reading. The file may be shorter: a send past its end fails.
    ///
    /// # Errors
    ///
    /// As mmap(2); InvalidInput for no bytes at all.
    pub fn new(file: &OwnedFd, bytes: u64) -> io::Result<FileMap> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bytes = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory, and no reference into
        // it is ever made.
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file,
                0,
            )?
        };
        Ok(FileMap {
            inner: Rc::new(Inner { start, bytes }),
        })
    }

    /// Bytes it covers.
    pub fn len(&self) -> u64 {
        self.inner.bytes.get() as u64
    }

    /// Never true: an empty file has no mapping.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address of `length` bytes from `offset` on, for the kernel alone.
    pub(crate) fn slice(&self, offset: u64, length: usize) -> Option<*const u8> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(length)?;
        (end <= self.inner.bytes.get())
            .then(|| self.inner.start.as_ptr().cast::<u8>().wrapping_add(start) as *const u8)
    }

    /// Whether every page of the range lies in the page cache, by mincore(2).
    fn is_resident(&self, offset: u64, length: u64) -> io::Result<bool> {
        let first = offset / PAGE_BYTES * PAGE_BYTES;
        let length = usize::try_from(offset + length - first).map_err(io::Error::other)?;
        let start = self
            .slice(first, length)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut pages = vec![0_u8; length.div_ceil(PAGE_BYTES as usize)];
        // SAFETY: the range lies inside the mapping, and the vector has a byte for each of its pages.
        let result = unsafe { libc::mincore(start.cast_mut().cast(), length, pages.as_mut_ptr()) };
        nix::errno::Errno::result(result)?;
        Ok(pages.iter().all(|page| page & 1 == 1))
    }
}

impl std::fmt::Debug for FileMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileMap")
            .field("bytes", &self.inner.bytes)
            .finish_non_exhaustive()
    }
}

#[repr(C)]
struct CachestatRange {
    offset: u64,
    length: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether every page of the range (at least one byte) lies in the page cache: a send from the mapping does not wait
/// for the disk. Anything unknown is "no". Ask only for files of [`tells_residency`].
pub fn is_resident(file: &OwnedFd, map: &FileMap, offset: u64, length: u64) -> bool {
    match cachestat(file.as_raw_fd(), offset, length) {
        Ok(is_cached) => is_cached,
        Err(_) => map.is_resident(offset, length).unwrap_or(false),
    }
}

/// As [`is_resident`] without a mapping. Kernels that cannot tell (before 6.5) say "yes".
pub fn is_cached(file: &impl AsRawFd, offset: u64, length: u64) -> bool {
    cachestat(file.as_raw_fd(), offset, length).unwrap_or(true)
}

fn cachestat(fd: RawFd, offset: u64, length: u64) -> io::Result<bool> {
    let range = CachestatRange { offset, length };
    let mut stat = Cachestat::default();
    // SAFETY: the kernel reads the one structure and writes the other during the call, and keeps neither.
    let result =
        unsafe { libc::syscall(SYS_CACHESTAT, fd, &raw const range, &raw mut stat, 0_u32) };
    nix::errno::Errno::result(result)?;
    let last = offset.saturating_add(length.saturating_sub(1));
    Ok(stat.cached > last / PAGE_BYTES - offset / PAGE_BYTES)
}

/// Whether the kernel tells this process the truth about the file's pages: only if the process owns the file or may
/// write it.
pub fn tells_residency(file: &OwnedFd) -> bool {
    let Ok(stat) = nix::sys::stat::fstat(file) else {
        return false;
    };
    let user = nix::unistd::geteuid();
    user.is_root() || stat.st_uid == user.as_raw() || files::is_writable(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// In this folder, not among temporary files: those may lie in memory, where pages cannot be dropped.
    fn file(bytes: usize) -> (std::fs::File, OwnedFd) {
        let mut file = tempfile::tempfile_in(".").unwrap();
        file.write_all(&vec![7; bytes]).unwrap();
        let fd = file.try_clone().unwrap().into();
        (file, fd)
    }

    #[test]
    fn slices_stay_inside_the_mapping() {
        let (_file, fd) = file(10_000);
        let map = FileMap::new(&fd, 10_000).unwrap();
        assert!(map.slice(0, 10_000).is_some());
        assert!(map.slice(9_999, 1).is_some());
        assert!(map.slice(9_999, 2).is_none());
        assert!(map.slice(u64::MAX, 1).is_none());
        assert!(FileMap::new(&fd, 0).is_err());
    }

    #[test]
    fn fresh_pages_are_resident_and_dropped_ones_are_not() {
        let (file, fd) = file(1 << 20);
        let map = FileMap::new(&fd, 1 << 20).unwrap();
        assert!(tells_residency(&fd));
        assert!(is_resident(&fd, &map, 0, 1 << 20));
        assert!(map.is_resident(5_000, 20_000).unwrap());
        file.sync_all().unwrap();
        nix::fcntl::posix_fadvise(
            &file,
            0,
            0,
            nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )
        .unwrap();
        assert!(!is_resident(&fd, &map, 0, 1 << 20));
        assert!(!map.is_resident(0, 1 << 20).unwrap());
    }

    #[test]
    fn a_range_past_the_end_of_the_file_is_not_resident() {
        let (_file, fd) = file(4096);
        let map = FileMap::new(&fd, 1 << 20).unwrap();
        assert!(!is_resident(&fd, &map, 0, 8192));
    }
}
