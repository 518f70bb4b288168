//! Reading ahead on a worker thread: many reads under way, their bytes handed out in order (layer 4).
//!
//! For threads that hash whole torrents. Each has a small ring of its own, apart from the session's. What lies in the page
//! cache is read through it, all else past it (O_DIRECT), so that a check of a large torrent pushes nothing out. Where
//! there is no ring, or no O_DIRECT, plain blocking reads take their place.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use io_uring::{IoUring, opcode, types};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::buffers::{Aligned, PAGE_BYTES};
use super::files::{self, FsKind};
use super::map;

/// Longest single read: enough for full speed on spinning disks.
const READ_BYTES_MAX: usize = 1 << 20;
/// Shortest limit of a read, where many read ahead beside each other.
const READ_BYTES_LEAST: usize = 256 * 1024;
/// Reads under way at once on all threads together: what an NVMe drive needs to be busy.
const DEPTH: usize = 16;
/// And in each at least: one is hashed while the other is read.
const DEPTH_MIN: usize = 2;
/// Bytes read at a time from the page cache, by all that read ahead on one thread: they stay in the CPU's cache until they
/// are hashed.
const CACHED_BYTES: usize = 512 * 1024;

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
    /// What is at hand of the first in the queue.
    ready: Range<usize>,
    depth: usize,
    read_bytes_max: usize,
    cached: Vec<u8>,
}

impl ReadAhead {
    /// Makes the ring and its memory for one of the `beside` that a thread has. All of a thread take 8 MiB at least, so that
    /// many cores take more in all. Less where memory is refused.
    pub fn new(beside: usize) -> ReadAhead {
        let beside = beside.max(1);
        let read_bytes_max = (4 * READ_BYTES_MAX / beside).clamp(READ_BYTES_LEAST, READ_BYTES_MAX);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let depth = (DEPTH / (threads * beside)).max(DEPTH_MIN);
        let ring = IoUring::new(depth as u32 * 2).ok();
        let count = if ring.is_some() { depth } else { 0 };
        // A range may begin and end inside a page.
        let memory = || Aligned::new(read_bytes_max + 2 * PAGE_BYTES).ok();
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
            ready: 0..0,
            depth,
            read_bytes_max,
            cached: vec![0; CACHED_BYTES / beside],
        }
    }

    /// Longest range to be asked for at once, in bytes.
    pub fn read_bytes_max(&self) -> usize {
        self.read_bytes_max
    }

    /// Whether another range should be asked for before the next is taken.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.depth && (self.slots.is_empty() || !self.free.is_empty())
    }

    /// Asks for `bytes` (at most [`read_bytes_max`](Self::read_bytes_max)) of a file.
    pub fn push(&mut self, file: &AheadFile, offset: u64, bytes: usize) {
        let bytes = bytes.min(self.read_bytes_max);
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

    /// Waits until bytes of the oldest range are at hand; does nothing while there are some, or when no range is left.
    ///
    /// # Errors
    ///
    /// As pread(2); UnexpectedEof when the file ends before the range does. The range is forgotten then.
    pub fn fill(&mut self) -> io::Result<()> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        let Some(pending) = self.queue.front_mut() else {
            return Ok(());
        };
        let filled = match pending {
            Pending::Zeros { bytes } => {
                let part = self.cached.len().min(*bytes);
                self.cached[..part].fill(0);
                *bytes -= part;
                self.ready = 0..part;
                Ok(())
            }
            Pending::Cached {
                file,
                offset,
                bytes,
            } => {
                let part = self.cached.len().min(*bytes);
                let read = file.file().read_exact_at(&mut self.cached[..part], *offset);
                *offset += part as u64;
                *bytes -= part;
                self.ready = 0..part;
                read
            }
            Pending::Direct { slot, skip, bytes } => {
                let (slot, range) = (*slot, *skip..*skip + *bytes);
                *bytes = 0;
                self.wait(slot).and_then(|got| match got >= range.end {
                    true => {
                        self.ready = range;
                        Ok(())
                    }
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                })
            }
        };
        if filled.is_err() {
            self.ready = 0..0;
            self.end_range();
        }
        filled
    }

    /// The bytes at hand.
    pub fn bytes(&self) -> &[u8] {
        let memory = match self.queue.front() {
            Some(Pending::Direct { slot, .. }) => self.slots[*slot].memory.as_slice(),
            _ => &self.cached,
        };
        &memory[self.ready.clone()]
    }

    /// Goes past that many of the bytes at hand.
    pub fn consume(&mut self, bytes: usize) {
        self.ready.start = (self.ready.start + bytes).min(self.ready.end);
        let is_over = match self.queue.front() {
            Some(
                Pending::Zeros { bytes }
                | Pending::Cached { bytes, .. }
                | Pending::Direct { bytes, .. },
            ) => *bytes == 0,
            None => false,
        };
        if is_over && self.ready.is_empty() {
            self.end_range();
        }
    }

    fn end_range(&mut self) {
        if let Some(Pending::Direct { slot, .. }) = self.queue.pop_front() {
            self.free.push(slot);
        }
    }

    /// Forgets what was asked for.
    pub fn clear(&mut self) {
        self.ready = 0..0;
        for pending in std::mem::take(&mut self.queue) {
            if let Pending::Direct { slot, bytes, .. } = pending {
                // Of one that was begun the result has been taken.
                if bytes > 0 {
                    let _ = self.wait(slot);
                }
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

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.clear();
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
        let mut ahead = ReadAhead::new(1);
        let (mut asked, mut out) = (0, Vec::new());
        while out.len() < total {
            while asked < total && ahead.has_room() {
                let bytes = step.min(total - asked);
                ahead.push(file, asked as u64, bytes);
                asked += bytes;
            }
            next(&mut ahead, &mut out).unwrap();
        }
        out
    }

    /// All of the oldest range.
    fn next(ahead: &mut ReadAhead, out: &mut Vec<u8>) -> io::Result<()> {
        let ranges = ahead.queue.len();
        while ahead.queue.len() == ranges {
            ahead.fill()?;
            let bytes = ahead.bytes().len().min(1_000_000);
            out.extend_from_slice(&ahead.bytes()[..bytes]);
            ahead.consume(bytes);
        }
        Ok(())
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
        let mut ahead = ReadAhead::new(1);
        ahead.push(&file, content.len() as u64 - 10, 11);
        ahead.push(&file, 5, 10);
        ahead.push_zeros(3);
        let mut out = Vec::new();
        let error = next(&mut ahead, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        out.clear();
        next(&mut ahead, &mut out).unwrap();
        next(&mut ahead, &mut out).unwrap();
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
