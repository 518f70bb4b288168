//! THE pool of payload memory: page-aligned, registered with the ring (layer 4).
//!
//! Holds: the regions, their allocation, the segments handed out. Does not hold: credits (the session
//! bounds who may take how much).
//!
//! Where locked memory is not limited the pool grows: one region is registered at first, each further one when those
//! before it are full, and given back when it was not needed for a while ([`Pool::trim`]). A box at rest then holds
//! 4 MiB. Where it is limited all is registered at once: what is left for later, somebody else of the same user takes.

use std::cell::{Cell, RefCell};
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use tokio::sync::Notify;
use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::buf::{IoBuf, IoBufMut};
use tracing::debug;

use super::buddy::{Buddy, ORDER_MAX, UNIT_BYTES};
use super::limits::{self, Limit};
use super::{registration, ring};

mod segment;

use segment::Home;
pub use segment::{Landing, Segment};

/// Longest segment of the pool (1 MiB): the longest single disk write.
pub const SEGMENT_BYTES_MAX: usize = UNIT_BYTES << ORDER_MAX;
/// The kernel registers at most 1 GiB as one buffer.
const REGION_BYTES_MAX: usize = 1 << 30;
/// A pool that grows does so in steps of a 64th, at least of this.
const STEP_BYTES_MIN: usize = 4 << 20;
const STEPS: usize = 64;
/// Regions of a pool: 256 GiB is beyond any machine this is for, and well under 1,024 buffers.
const REGIONS_MAX: usize = 256;
/// Registering less than this is not worth its entries.
const REGISTERED_BYTES_MIN: usize = SEGMENT_BYTES_MAX;
/// Locked memory of a killed process comes back late: this long is an ENOMEM retried.
const RETRY: Duration = Duration::from_millis(500);
/// Pause between two retries.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Alignment of segments, for O_DIRECT.
pub(crate) const PAGE_BYTES: usize = 4096;
/// A huge page where pages are 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What the pool turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolReport {
    /// Memory of the pool, in bytes.
    pub bytes: usize,
    /// How much of it is registered with the ring now, in bytes.
    pub registered_bytes: usize,
    /// The rest is registered when it is needed.
    pub grows: bool,
    /// For the operator, to be said once: why not all of it is registered.
    pub note: Option<String>,
}

/// Anonymous memory, page-aligned and zeroed.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Memory that a huge page fits into begins at one, and asks for them: every byte of payload goes through it more
    /// than once, and the kernel pins and writes few large pages for less than many small ones.
    fn new(bytes: usize) -> io::Result<Mapping> {
        let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
        if bytes < HUGE_PAGE_BYTES {
            return Mapping::anywhere(bytes);
        }
        let mut mapping = Mapping::anywhere(bytes + HUGE_PAGE_BYTES - PAGE_BYTES)?;
        mapping.keep_aligned(bytes);
        // SAFETY: the advice concerns this mapping and changes nothing of what it holds. A kernel without huge pages
        // refuses it, and that is well.
        let _ = unsafe { madvise(mapping.start.cast(), bytes, MmapAdvise::MADV_HUGEPAGE) };
        Ok(mapping)
    }

    fn anywhere(bytes: usize) -> io::Result<Mapping> {
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe { mmap_anonymous(None, length, protection, flags)? };
        Ok(Mapping {
            start: start.cast(),
            bytes: length.get(),
        })
    }

    /// Gives the pages back to the system. What was in them is gone; the next bytes there are zeros.
    fn discard(&self) {
        // SAFETY: the mapping is anonymous and stays as it is; its callers have nothing in it that they still need.
        let _ = unsafe { madvise(self.start.cast(), self.bytes, MmapAdvise::MADV_DONTNEED) };
    }

    /// Gives back what is before the first huge page and behind `bytes` from there.
    fn keep_aligned(&mut self, bytes: usize) {
        let before = self.start.align_offset(HUGE_PAGE_BYTES);
        let Some(behind) = self.bytes.checked_sub(before + bytes) else {
            return;
        };
        // SAFETY: `before + bytes + behind` is the length of the mapping, all ranges are whole pages of it, and nothing
        // refers to any of it yet.
        unsafe {
            if before > 0 {
                let _ = munmap(self.start.cast(), before);
            }
            self.start = self.start.add(before);
            if behind > 0 {
                let _ = munmap(self.start.add(bytes).cast(), behind);
            }
        }
        self.bytes = bytes;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`; segments and the registry hold an Rc of it, so
        // no reference into it is left.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}

/// Page-aligned memory outside any pool, zeroed at first.
pub(crate) struct Aligned(Mapping);

impl Aligned {
    /// At least `bytes` of it.
    pub fn new(bytes: usize) -> io::Result<Aligned> {
        Mapping::new(bytes).map(Aligned)
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is `bytes` of initialised memory that only this value names.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.bytes) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes it the only view.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.bytes) }
    }
}

/// A region as tokio-uring's registry wants it; `None` keeps its number free for one that is registered later.
struct RegionBuf(Option<Rc<Mapping>>);

impl RegionBuf {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |memory| memory.bytes)
    }
}

// SAFETY: the mapping neither moves nor shrinks while the Rc lives, and all of it is initialised. The kernel takes a
// null pointer with no bytes for a number without a buffer.
unsafe impl IoBuf for RegionBuf {
    fn stable_ptr(&self) -> *const u8 {
        let memory = self.0.as_ref();
        memory.map_or(std::ptr::null(), |memory| memory.start.as_ptr())
    }

    fn bytes_init(&self) -> usize {
        self.bytes()
    }

    fn bytes_total(&self) -> usize {
        self.bytes()
    }
}

// SAFETY: as above. The registry itself never reads or writes the memory: nothing is checked out of it.
unsafe impl IoBufMut for RegionBuf {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        let memory = self.0.as_ref();
        memory.map_or(std::ptr::null_mut(), |memory| memory.start.as_ptr())
    }

    unsafe fn set_init(&mut self, _: usize) {}
}

/// One mapping, its free lists, and its number with the ring if it has one.
struct Region {
    memory: Rc<Mapping>,
    buddy: Buddy,
    buf_index: Option<u16>,
    /// Something was taken from it at the last [`Pool::trim`] or since.
    is_wanted: bool,
}

impl Region {
    fn new(bytes: usize, buf_index: Option<u16>) -> io::Result<Region> {
        let memory = Rc::new(Mapping::new(bytes)?);
        let units = u32::try_from(bytes / UNIT_BYTES).map_err(io::Error::other)?;
        Ok(Region {
            memory,
            buddy: Buddy::new(units),
            buf_index,
            is_wanted: false,
        })
    }

    /// Nothing is taken from it.
    fn is_free(&self) -> bool {
        self.buddy.units_free() as usize * UNIT_BYTES == self.memory.bytes
    }
}

/// What bounds the registration.
#[derive(Clone, Copy)]
struct Bounds {
    memlock: Limit,
    region_bytes_max: usize,
    /// Regions can be registered one by one.
    grows: bool,
}

impl Bounds {
    fn here() -> Bounds {
        let memlock = limits::memlock();
        Bounds {
            memlock,
            region_bytes_max: REGION_BYTES_MAX,
            grows: memlock == Limit::Unlimited && registration::is_possible(),
        }
    }

    /// Length of a pool's regions, but for the last.
    fn region_bytes(&self, bytes: usize) -> usize {
        if !self.grows {
            return self.region_bytes_max;
        }
        let step = (bytes / STEPS).next_multiple_of(SEGMENT_BYTES_MAX);
        step.max(STEP_BYTES_MIN).min(self.region_bytes_max)
    }

    /// Whether the limit as such leaves room, so that waiting for late memory makes sense.
    fn may_hold(&self, bytes: usize) -> bool {
        match self.memlock {
            Limit::Unlimited => true,
            Limit::Bytes(n) => u64::try_from(bytes).is_ok_and(|bytes| bytes < n),
        }
    }

    /// The size to try after `bytes` failed: 1 MiB under the limit (the ring shares it), else half.
    fn smaller(&self, bytes: usize) -> usize {
        let whole = |bytes: usize| bytes / SEGMENT_BYTES_MAX * SEGMENT_BYTES_MAX;
        match self.memlock {
            Limit::Bytes(n) if !self.may_hold(bytes) => {
                whole(usize::try_from(n).unwrap_or(bytes)).saturating_sub(SEGMENT_BYTES_MAX)
            }
            _ => whole(bytes / 2),
        }
    }
}

struct Shared {
    regions: RefCell<Vec<Region>>,
    /// How many of them, from the first, are in use, at least so many. The others are not registered.
    open: Cell<usize>,
    open_min: usize,
    register: RefCell<Register>,
    bytes_free: Cell<usize>,
    heap_bytes: Cell<usize>,
    freed: Notify,
}

/// Has the ring know one more region by its number, or forget it.
type Register = Box<dyn FnMut(u16, Option<(NonNull<u8>, usize)>) -> io::Result<()>>;

/// Handle of the pool; clones share it.
#[derive(Clone)]
pub struct Pool {
    shared: Rc<Shared>,
}

impl Pool {
    /// Makes a pool of about `bytes` (rounded up to 1 MiB). Where locked memory is limited it registers as much of it
    /// as the kernel takes, and the rest is plain memory; else the rest is registered when it is needed.
    ///
    /// Call it once per ring, inside [`Ring::block_on`](super::ring::Ring::block_on), before other
    /// I/O. It may sleep up to half a second.
    ///
    /// # Errors
    ///
    /// When the address space itself is refused.
    pub fn new(bytes: usize) -> io::Result<(Pool, PoolReport)> {
        Pool::with_registrar(bytes, Bounds::here(), register)
    }

    /// Makes a pool that is not registered with any ring.
    ///
    /// # Errors
    ///
    /// When the address space itself is refused.
    pub fn plain(bytes: usize) -> io::Result<Pool> {
        let (pool, _) = Pool::with_registrar(bytes, Bounds::here(), |_| {
            Err(io::ErrorKind::Unsupported.into())
        })?;
        Ok(pool)
    }

    /// Shrinks the registered part on ENOMEM; `registrar` decides.
    fn with_registrar(
        bytes: usize,
        bounds: Bounds,
        mut registrar: impl FnMut(&[Option<Rc<Mapping>>]) -> io::Result<()>,
    ) -> io::Result<(Pool, PoolReport)> {
        let bytes = bytes
            .clamp(SEGMENT_BYTES_MAX, REGION_BYTES_MAX * REGIONS_MAX)
            .next_multiple_of(SEGMENT_BYTES_MAX);
        let deadline = Instant::now() + RETRY;
        let mut want = bytes;
        let (mut cause, _spare) = match ring::spare() {
            Ok(spare) => (None, spare),
            Err(error) => (Some(error), None),
        };
        if cause.is_some() {
            want = 0;
        }
        while want >= REGISTERED_BYTES_MIN {
            let regions = regions_of(want, bounds.region_bytes(want), true)?;
            let at_once = if bounds.grows { 1 } else { regions.len() };
            let memories = regions.iter().enumerate();
            let memories = memories.map(|(i, r)| (i < at_once).then(|| Rc::clone(&r.memory)));
            let Err(error) = registrar(&memories.collect::<Vec<_>>()) else {
                return Pool::assemble(bytes, regions, at_once, cause);
            };
            let is_no_memory = error.raw_os_error() == Some(libc::ENOMEM);
            cause.get_or_insert(error);
            if !is_no_memory {
                break;
            }
            if bounds.may_hold(want) && Instant::now() < deadline {
                std::thread::sleep(RETRY_PAUSE);
            } else {
                want = bounds.smaller(want);
            }
        }
        Pool::assemble(bytes, Vec::new(), 0, cause)
    }

    /// Of `regions`, which have numbers with the ring, so many are registered. Plain memory makes up for what they lack.
    fn assemble(
        bytes: usize,
        mut regions: Vec<Region>,
        registered: usize,
        error: Option<io::Error>,
    ) -> io::Result<(Pool, PoolReport)> {
        let sum = |regions: &[Region]| regions.iter().map(|r| r.memory.bytes).sum::<usize>();
        let registered_bytes = sum(&regions[..registered]);
        let numbered_bytes = sum(&regions);
        let grows = registered < regions.len();
        if numbered_bytes < bytes {
            regions.extend(regions_of(bytes - numbered_bytes, REGION_BYTES_MAX, false)?);
        }
        let note = error
            .filter(|_| numbered_bytes < bytes)
            .map(|e| note(bytes, numbered_bytes, &e));
        let open = if grows { registered } else { regions.len() };
        let shared = Shared {
            open: Cell::new(open),
            open_min: open,
            register: RefCell::new(Box::new(registration::set)),
            regions: RefCell::new(regions),
            bytes_free: Cell::new(bytes),
            heap_bytes: Cell::new(0),
            freed: Notify::new(),
        };
        let report = PoolReport {
            bytes,
            registered_bytes,
            grows,
            note,
        };
        let pool = Pool {
            shared: Rc::new(shared),
        };
        Ok((pool, report))
    }

    /// What a segment of `len` bytes takes of a pool, in bytes.
    pub fn capacity_of(len: usize) -> usize {
        Buddy::order_of(len).map_or(len, |order| UNIT_BYTES << order)
    }

    /// A segment of `len` bytes, or nothing when the pool is full, too fragmented, or `len` is
    /// beyond [`SEGMENT_BYTES_MAX`]. Never blocks. Its bytes are whatever was there before.
    pub fn alloc(&self, len: usize) -> Option<Segment> {
        let order = Buddy::order_of(len)?;
        let mut regions = self.shared.regions.borrow_mut();
        let (index, unit) = loop {
            let open = self.shared.open.get();
            let mut in_use = regions.iter_mut().take(open).enumerate();
            if let Some(found) = in_use.find_map(|(i, r)| Some((i, r.buddy.alloc(order)?))) {
                break found;
            }
            self.open_next(regions.get_mut(open)?);
        };
        let region = &mut regions[index];
        region.is_wanted = true;
        let capacity = UNIT_BYTES << order;
        self.shared
            .bytes_free
            .set(self.shared.bytes_free.get() - capacity);
        // SAFETY: the buddy allocator hands out units inside the region only.
        let start = unsafe { region.memory.start.add(unit as usize * UNIT_BYTES) };
        let home = Home::Pool {
            shared: Rc::clone(&self.shared),
            region: index,
            unit,
            order,
            buf_index: region.buf_index,
        };
        Some(Segment::new(start, len, capacity, home))
    }

    /// Takes one more region into use: registered if the kernel takes it, as plain memory otherwise.
    fn open_next(&self, region: &mut Region) {
        self.shared.open.set(self.shared.open.get() + 1);
        let Some(number) = region.buf_index else {
            return;
        };
        let memory = &region.memory;
        let mut register = self.shared.register.borrow_mut();
        if let Err(error) = register(number, Some((memory.start, memory.bytes))) {
            region.buf_index = None;
            debug!(%error, bytes = memory.bytes, "buffers stay unregistered");
        }
    }

    /// Gives the memory of regions back to the system, from the last, that were not needed since the call before.
    pub fn trim(&self) {
        let mut regions = self.shared.regions.borrow_mut();
        while let Some(last) = self.shared.open.get().checked_sub(1)
            && last >= self.shared.open_min
            && let Some(region) = regions
                .get(last)
                .filter(|region| region.is_free() && !region.is_wanted)
        {
            if let Some(number) = region.buf_index
                && let Err(error) = (self.shared.register.borrow_mut())(number, None)
            {
                debug!(%error, bytes = region.memory.bytes, "buffers stay registered");
                break;
            }
            region.memory.discard();
            self.shared.open.set(last);
        }
        for region in regions.iter_mut() {
            region.is_wanted = !region.is_free();
        }
    }

    /// Like [`Pool::alloc`], with page-aligned memory of its own when the pool has none; callers bound
    /// how much of that there is.
    ///
    /// # Panics
    ///
    /// When the address space is exhausted, as any allocation.
    pub fn alloc_or_heap(&self, len: usize) -> Segment {
        if let Some(segment) = self.alloc(len) {
            return segment;
        }
        let mapping = Mapping::new(len).expect("out of memory");
        let heap_bytes = self.shared.heap_bytes.get() + mapping.bytes;
        self.shared.heap_bytes.set(heap_bytes);
        let (start, capacity) = (mapping.start, mapping.bytes);
        let home = Home::Heap {
            shared: Rc::clone(&self.shared),
            _mapping: mapping,
        };
        Segment::new(start, len, capacity, home)
    }

    /// Bytes of the pool, free or not.
    pub fn bytes(&self) -> usize {
        let regions = self.shared.regions.borrow();
        regions.iter().map(|region| region.memory.bytes).sum()
    }

    /// Free bytes of the pool, in whatever pieces.
    pub fn free_bytes(&self) -> usize {
        self.shared.bytes_free.get()
    }

    /// Bytes of segments that live outside the pool now.
    pub fn heap_bytes(&self) -> usize {
        self.shared.heap_bytes.get()
    }

    /// Waits until a segment is given back after this call. All waiters wake.
    pub async fn wait_free(&self) {
        self.shared.freed.notified().await;
    }

    /// Checks the books against the free lists.
    pub fn check(&self) {
        let regions = self.shared.regions.borrow();
        regions.iter().for_each(|r| r.buddy.check());
        let units: u32 = regions.iter().map(|r| r.buddy.units_free()).sum();
        assert_eq!(units as usize * UNIT_BYTES, self.free_bytes());
    }
}

/// Regions of `region_bytes_max` each and a last shorter one, numbered as they will be registered.
fn regions_of(
    bytes: usize,
    region_bytes_max: usize,
    is_registered: bool,
) -> io::Result<Vec<Region>> {
    let count = bytes.div_ceil(region_bytes_max);
    (0..count)
        .map(|i| {
            let bytes = (bytes - i * region_bytes_max).min(region_bytes_max);
            let buf_index = u16::try_from(i).ok().filter(|_| is_registered);
            Region::new(bytes, buf_index)
        })
        .collect()
}

/// Registers the regions with the ring of this thread; buffer numbers are their positions.
fn register(memories: &[Option<Rc<Mapping>>]) -> io::Result<()> {
    let bufs = memories.iter().map(|memory| RegionBuf(memory.clone()));
    FixedBufRegistry::new(bufs).register()
}

fn note(bytes: usize, registered_bytes: usize, error: &io::Error) -> String {
    const MIB: usize = 1 << 20;
    format!(
        "{} of {} MiB of buffers are registered with the ring ({error}); the rest works, a little slower. \
         Raise RLIMIT_MEMLOCK (ulimit -l) or lower --buffers",
        registered_bytes / MIB,
        bytes / MIB
    )
}

#[cfg(test)]
mod tests;
