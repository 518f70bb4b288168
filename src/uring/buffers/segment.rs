//! Memory handed out by the pool, and ranges of it that are written from outside (layer 4).
//!
//! A receive puts blocks straight into their places while other blocks of the same segment arrive, are hashed or
//! written. So a segment's memory may be shared with landings, and every byte has one owner at any time.

use std::cell::RefCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

use super::{Mapping, Shared};

/// Where memory came from.
pub(super) enum Home {
    Pool {
        shared: Rc<Shared>,
        region: usize,
        unit: u32,
        order: u8,
        buf_index: Option<u16>,
    },
    Heap {
        shared: Rc<Shared>,
        _mapping: Mapping,
    },
}

/// What a segment and its landings share; given back with the last of them.
struct Memory {
    start: NonNull<u8>,
    /// Bytes, all of them initialised.
    capacity: usize,
    home: Home,
    /// The ranges of the landings, which do not overlap.
    landings: RefCell<Vec<Range<usize>>>,
}

impl Memory {
    fn is_landing(&self, range: &Range<usize>) -> bool {
        let landings = self.landings.borrow();
        let mut landings = landings.iter();
        landings.any(|other| other.start < range.end && range.start < other.end)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &self.home {
            Home::Pool {
                shared,
                region,
                unit,
                order,
                ..
            } => {
                shared.regions.borrow_mut()[*region]
                    .buddy
                    .free(*unit, *order);
                let bytes_free = shared.bytes_free.get() + self.capacity;
                shared.bytes_free.set(bytes_free);
                shared.freed.notify_waiters();
            }
            Home::Heap { shared, .. } => {
                let heap_bytes = shared.heap_bytes.get() - self.capacity;
                shared.heap_bytes.set(heap_bytes);
                shared.freed.notify_waiters();
            }
        }
    }
}

/// Owned, page-aligned memory of a [`Pool`](super::Pool); dropping it gives it back, once nothing lands in it any more.
///
/// Shapes: `len` bytes are visible, `capacity` are there; all of them are initialised.
pub struct Segment {
    memory: Rc<Memory>,
    len: usize,
}

impl Segment {
    pub(super) fn new(start: NonNull<u8>, len: usize, capacity: usize, home: Home) -> Segment {
        let memory = Rc::new(Memory {
            start,
            capacity,
            home,
            landings: RefCell::default(),
        });
        Segment { memory, len }
    }

    /// Visible bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is visible.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes there are.
    pub fn capacity(&self) -> usize {
        self.memory.capacity
    }

    /// Makes `len` bytes visible.
    ///
    /// # Panics
    ///
    /// If `len` is beyond the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "length beyond the segment's capacity"
        );
        self.len = len;
    }

    /// Whether the memory is registered with the ring.
    pub fn is_registered(&self) -> bool {
        self.buf_index().is_some()
    }

    /// The visible bytes.
    ///
    /// # Panics
    ///
    /// If something lands in them.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes(0..self.len).expect("nothing lands here")
    }

    /// The visible bytes, to write.
    ///
    /// # Panics
    ///
    /// If something lands in them.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        assert!(
            !self.memory.is_landing(&(0..self.len)),
            "nothing lands here"
        );
        // SAFETY: the memory has `capacity >= len` initialised bytes at `start`. No landing has any of them, none can be
        // made while `self` is borrowed, and `&mut self` makes it the only view.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }

    /// Some of the visible bytes; `None` where something lands in them, or past the end.
    pub fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        let is_inside = range.start <= range.end && range.end <= self.len;
        if !is_inside || self.memory.is_landing(&range) {
            return None;
        }
        // SAFETY: the range lies in the memory's initialised bytes. No landing has any of them, and neither can one be made
        // nor can they be written while `self` is borrowed.
        unsafe {
            let start = self.memory.start.as_ptr().add(range.start);
            Some(std::slice::from_raw_parts(start, range.len()))
        }
    }

    /// Has the range written to from outside, past this segment; `None` where something lands already, or past the end.
    pub fn land(&mut self, range: Range<usize>) -> Option<Landing> {
        let is_inside = range.start < range.end && range.end <= self.len;
        if !is_inside || self.memory.is_landing(&range) {
            return None;
        }
        self.memory.landings.borrow_mut().push(range.clone());
        Some(Landing {
            memory: Rc::clone(&self.memory),
            range,
        })
    }

    /// Puts bytes at `at`, unless they are a landing's that lie there already. False, and nothing is written, where
    /// something else lands, or past the end.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> bool {
        let range = at..at.saturating_add(bytes.len());
        if range.end > self.len {
            return false;
        }
        let into = self.start().wrapping_add(at);
        if std::ptr::eq(into, bytes.as_ptr()) {
            return true;
        }
        if self.memory.is_landing(&range) {
            return false;
        }
        // SAFETY: the range lies in the memory, no landing has any of it, and `&mut self` excludes every other view of the
        // segment. So `bytes`, if of this memory at all, are those of a landing elsewhere in it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), into, bytes.len()) };
        true
    }

    /// Puts what the other segment has in the range into the same range here, where nothing lands in either of them. True
    /// when that is all of it.
    pub fn put_from(&mut self, from: &Segment, range: Range<usize>) -> bool {
        let (mut at, mut is_all) = (range.start, true);
        while at < range.end {
            let landings = from.memory.landings.borrow();
            let next = landings.iter().filter(|other| other.end > at);
            let next = next.min_by_key(|other| other.start).cloned();
            drop(landings);
            let next = next.unwrap_or(range.end..range.end);
            let end = next.start.clamp(at, range.end);
            let bytes = from.bytes(at..end);
            let is_put = bytes.is_some_and(|bytes| self.put(at, bytes));
            is_all &= is_put && next.start >= range.end;
            at = next.end;
        }
        is_all
    }

    /// First byte, for a ring entry or a hash worker.
    pub(crate) fn start(&self) -> *mut u8 {
        self.memory.start.as_ptr()
    }

    /// Number of the registered buffer it lies in.
    pub(crate) fn buf_index(&self) -> Option<u16> {
        match self.memory.home {
            Home::Pool { buf_index, .. } => buf_index,
            Home::Heap { .. } => None,
        }
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .field("buf_index", &self.buf_index())
            .finish_non_exhaustive()
    }
}

/// A range of a segment for somebody else to write, the kernel above all. As long as it lives, the segment neither shows
/// nor writes these bytes, and the memory stays.
pub struct Landing {
    memory: Rc<Memory>,
    range: Range<usize>,
}

impl Landing {
    /// Bytes of the range, at least one.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the range lies in the memory's initialised bytes, and this landing alone has them.
        unsafe { std::slice::from_raw_parts(self.start(), self.len()) }
    }

    /// Its bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes it the only view.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len()) }
    }

    /// First byte, for a ring entry.
    pub(crate) fn start(&self) -> *mut u8 {
        self.memory.start.as_ptr().wrapping_add(self.range.start)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut landings = self.memory.landings.borrow_mut();
        landings.retain(|range| *range != self.range);
    }
}

impl std::fmt::Debug for Landing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Landing")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
