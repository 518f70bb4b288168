//! Reading ahead on a worker thread: many reads under way, their bytes handed out in order (layer 4).
//!
//! For threads that hash whole torrents. Each has a small ring of its own, apart from the session's. What lies in the page
//! cache is read through it, all else past it (O_DIRECT), so that a check of a large torrent pushes nothing out. Where
//! there is no ring, or no O_DIRECT, plain blocking reads take their place.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use io_uring::{IoUring, opcode, types};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::buffers::{Aligned, PAGE_BYTES};
use super::files::{self, FsKind};
use super::map;

/// Longest single read: enough for full speed on spinning disks.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// Reads under way at once on all threads together, one a core: what an NVMe drive needs to be busy.
const DEPTH: usize = 16;
/// And on one thread at least: one is hashed while the other is read.
const DEPTH_MIN: usize = 2;
/// Bytes read at a time from the page cache: they stay in the CPU's cache until they are hashed.
const CACHED_BYTES: usize = 128 * 1024;

/// A file open for reading ahead; clones share it.
#[derive(Clone)]
pub struct AheadFile {
    inner: Rc<Inner>,
}

struct Inner {
    file: std::fs::File,
    kind: FsKind,
    is_told: bool,
    /// Past the page cache; opened when first needed.
    direct: OnceCell<Option<OwnedFd>>,
}

impl AheadFile {
    /// Takes a file that is open for reading.
    pub fn new(fd: OwnedFd) -> AheadFile {
        let kind = files::statfs_kind(&fd);
        let is_told = map::tells_residency(&fd);
        AheadFile {
            inner: Rc::new(Inner {
                file: fd.into(),
                kind,
                is_told,
                direct: OnceCell::new(),
            }),
        }
    }

    /// Whether both are one open file.
    pub fn is_same(&self, other: &AheadFile) -> bool {
        Rc::ptr_eq(&self.inner, &other.inner)
    }

    /// The file itself.
    pub fn file(&self) -> &std::fs::File {
        &self.inner.file
    }

    /// The descriptor for a read past the page cache, unless the range lies in it or that is not to be had.
    fn direct(&self, offset: u64, bytes: usize) -> Option<&OwnedFd> {
        let inner = &self.inner;
        let may = inner.kind == FsKind::Local && inner.is_told;
        if !may || map::is_cached(&inner.file, offset, bytes as u64) {
            return None;
        }
        inner
            .direct
            .get_or_init(|| reopen_direct(&inner.file))
            .as_ref()
    }
}

/// The same file past the page cache, through its entry in /proc: its name may lead elsewhere by now.
fn reopen_direct(file: &std::fs::File) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).ok()?;
    let flags = fcntl(&fd, FcntlArg::F_GETFL).ok()?;
    OFlag::from_bits_retain(flags)
        .contains(OFlag::O_DIRECT)
        .then_some(fd)
}

/// One range to be handed out, in order of asking.
enum Pending {
    /// Read when its turn comes.
    Cached {
        file: AheadFile,
        offset: u64,
        bytes: usize,
    },
    /// Under way in that slot.
    Direct {
        slot: usize,
        skip: usize,
        bytes: usize,
    },
    Zeros {
        bytes: usize,
    },
}

struct Slot {
    memory: Aligned,
    /// Keeps the descriptor of the read under way open.
    file: Option<AheadFile>,
    /// The result, once it is there.
    result: Option<io::Result<usize>>,
}

/// Reads in order with some under way.
pub struct ReadAhead {
    /// `None` where the kernel gives no ring.
    ring: Option<IoUring>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    queue: VecDeque<Pending>,
    depth: usize,
    cached: Vec<u8>,
}

impl ReadAhead {
    /// Makes the ring and its memory (16 MiB shared by as many threads as there are cores; less where memory is refused).
    pub fn new() -> ReadAhead {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let depth = (DEPTH / threads).max(DEPTH_MIN);
        let ring = IoUring::new(depth as u32 * 2).ok();
        let count = if ring.is_some() { depth } else { 0 };
        // A range may begin and end inside a page.
        let memory = || Aligned::new(READ_BYTES_MAX + 2 * PAGE_BYTES).ok();
        let slot = |memory| Slot {
            memory,
            file: None,
            result: None,
        };
        let slots: Vec<Slot> = std::iter::repeat_with(memory)
            .take(count)
            .flatten()
            .map(slot)
            .collect();
        ReadAhead {
            free: (0..slots.len()).collect(),
            ring,
            slots,
            queue: VecDeque::new(),
            depth,
            cached: vec![0; CACHED_BYTES],
        }
    }

    /// Whether another range should be asked for before the next is taken.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.depth && (self.slots.is_empty() || !self.free.is_empty())
    }

    /// Asks for `bytes` (at most [`READ_BYTES_MAX`]) of a file.
    pub fn push(&mut self, file: &AheadFile, offset: u64, bytes: usize) {
        let bytes = bytes.min(READ_BYTES_MAX);
        let direct = file.direct(offset, bytes).map(AsRawFd::as_raw_fd);
        let (Some(fd), Some(ring), Some(&slot)) = (direct, &mut self.ring, self.free.last()) else {
            self.queue.push_back(Pending::Cached {
                file: file.clone(),
                offset,
                bytes,
            });
            return;
        };
        let skip = (offset % PAGE_BYTES as u64) as usize;
        let length = (skip + bytes).next_multiple_of(PAGE_BYTES);
        let start = self.slots[slot].memory.as_mut_slice().as_mut_ptr();
        let entry = opcode::Read::new(types::Fd(fd), start, length as u32)
            .offset(offset - skip as u64)
            .build()
            .user_data(slot as u64);
        // SAFETY: the slot owns the memory, which is at least `length` bytes and does not move, and an `Rc` of the
        // file; both are left alone until the completion is taken, for which `drop` waits too.
        let is_queued = unsafe { ring.submission().push(&entry).is_ok() };
        if !is_queued {
            // A full ring: nothing is under way in the slot.
            self.queue.push_back(Pending::Cached {
                file: file.clone(),
                offset,
                bytes,
            });
            return;
        }
        // When this fails the entry waits in the ring and goes with the next one, so the slot is taken all the same.
        let _ = ring.submit();
        self.free.pop();
        self.slots[slot].file = Some(file.clone());
        self.queue.push_back(Pending::Direct { slot, skip, bytes });
    }

    /// Asks for zeros.
    pub fn push_zeros(&mut self, bytes: usize) {
        self.queue.push_back(Pending::Zeros { bytes });
    }

    /// Hands the bytes of the oldest range to `take`, in one or more parts.
    ///
    /// # Errors
    ///
    /// As pread(2); UnexpectedEof when the file ends before the range does. Some parts may have been handed out.
    ///
    /// # Panics
    ///
    /// When nothing was asked for.
    pub fn next(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        match self.queue.pop_front().expect("a range was asked for") {
            Pending::Zeros { bytes } => {
                self.cached.fill(0);
                for_each_part(bytes, |_, part| take(&self.cached[..part]));
                Ok(())
            }
            Pending::Cached {
                file,
                offset,
                bytes,
            } => {
                let mut result = Ok(());
                for_each_part(bytes, |at, part| {
                    if result.is_ok() {
                        let into = &mut self.cached[..part];
                        result = file.file().read_exact_at(into, offset + at as u64);
                        if result.is_ok() {
                            take(into);
                        }
                    }
                });
                result
            }
            Pending::Direct { slot, skip, bytes } => {
                let result = self.wait(slot);
                let taken = result.and_then(|got| {
                    let memory = self.slots[slot].memory.as_slice();
                    match memory
                        .get(skip..skip + bytes)
                        .filter(|_| got >= skip + bytes)
                    {
                        Some(bytes) => {
                            take(bytes);
                            Ok(())
                        }
                        None => Err(io::ErrorKind::UnexpectedEof.into()),
                    }
                });
                self.free.push(slot);
                taken
            }
        }
    }

    /// Forgets what was asked for.
    pub fn clear(&mut self) {
        for pending in std::mem::take(&mut self.queue) {
            if let Pending::Direct { slot, .. } = pending {
                let _ = self.wait(slot);
                self.free.push(slot);
            }
        }
    }

    fn wait(&mut self, slot: usize) -> io::Result<usize> {
        let Some(ring) = &mut self.ring else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        loop {
            for done in ring.completion() {
                let result = usize::try_from(done.result())
                    .map_err(|_| io::Error::from_raw_os_error(-done.result()));
                if let Some(slot) = usize::try_from(done.user_data())
                    .ok()
                    .and_then(|n| self.slots.get_mut(n))
                {
                    slot.result = Some(result);
                    slot.file = None;
                }
            }
            if let Some(result) = self.slots[slot].result.take() {
                return result;
            }
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                // The kernel may still write into the slot: its memory must not be used again.
                Err(error) => panic!("waiting for a read failed: {error}"),
            }
        }
    }
}

/// A signal, or memory is short for the moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

impl Default for ReadAhead {
    fn default() -> Self {
        ReadAhead::new()
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Cuts `bytes` into parts of the buffer for cached reads: calls with offset and length.
fn for_each_part(bytes: usize, mut act: impl FnMut(usize, usize)) {
    let mut at = 0;
    while at < bytes {
        let part = CACHED_BYTES.min(bytes - at);
        act(at, part);
        at += part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// In this folder, not among temporary files: those may lie in memory.
    fn file(content: &[u8], is_dropped: bool) -> AheadFile {
        let mut file = tempfile::tempfile_in(".").unwrap();
        file.write_all(content).unwrap();
        if is_dropped {
            file.sync_all().unwrap();
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
        }
        AheadFile::new(file.into())
    }

    fn content() -> Vec<u8> {
        (0..5_000_123_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    }

    /// All of the file in ranges of that length, with a few under way.
    fn read_all(file: &AheadFile, total: usize, step: usize) -> Vec<u8> {
        let mut ahead = ReadAhead::new();
        let (mut asked, mut out) = (0, Vec::new());
        while out.len() < total {
            while asked < total && ahead.has_room() {
                let bytes = step.min(total - asked);
                ahead.push(file, asked as u64, bytes);
                asked += bytes;
            }
            ahead.next(|part| out.extend_from_slice(part)).unwrap();
        }
        out
    }

    #[test]
    fn ranges_come_in_order_whether_cached_or_not() {
        let content = content();
        for (is_dropped, step) in [
            (true, 1 << 20),
            (true, 77_777),
            (false, 1 << 20),
            (false, 77_777),
        ] {
            let file = file(&content, is_dropped);
            assert!(
                read_all(&file, content.len(), step) == content,
                "{is_dropped} {step}"
            );
        }
    }

    #[test]
    fn a_file_that_ends_early_is_an_error_and_the_next_range_comes_all_the_same() {
        let content = content();
        let file = file(&content, true);
        let mut ahead = ReadAhead::new();
        ahead.push(&file, content.len() as u64 - 10, 11);
        ahead.push(&file, 5, 10);
        ahead.push_zeros(3);
        assert_eq!(
            ahead.next(|_| ()).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        let mut out = Vec::new();
        ahead.next(|part| out.extend_from_slice(part)).unwrap();
        ahead.next(|part| out.extend_from_slice(part)).unwrap();
        assert_eq!(out, [&content[5..15], &[0; 3]].concat());
    }

    #[test]
    fn what_was_read_past_the_page_cache_is_not_in_it_afterwards() {
        let content = content();
        let file = file(&content, true);
        read_all(&file, content.len(), READ_BYTES_MAX);
        assert!(!map::is_cached(file.file(), 0, content.len() as u64));
    }
}
