//! The heap, counted a thread: how much one input took at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Less than nothing where another thread's memory is given back.
    static HELD_BYTES: Cell<i64> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<i64> = const { Cell::new(0) };
}

struct Counted;

#[global_allocator]
static HEAP: Counted = Counted;

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        add(new_size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

fn add(bytes: i64) {
    let held = HELD_BYTES.get() + bytes;
    HELD_BYTES.set(held);
    PEAK_BYTES.set(PEAK_BYTES.get().max(held));
}

/// Runs it, and says what it had allocated at once on this thread.
pub fn peak_bytes_of<T>(what: impl FnOnce() -> T) -> (T, u64) {
    let before = HELD_BYTES.get();
    PEAK_BYTES.set(before);
    let outcome = what();
    (outcome, (PEAK_BYTES.get() - before) as u64)
}

#[test]
fn the_most_that_was_held_at_once_is_told() {
    let twice_and_once = || {
        drop([vec![1u8; 1000], vec![2u8; 1000]]);
        vec![3u8; 1500]
    };
    let (kept, peak_bytes) = peak_bytes_of(twice_and_once);
    assert_eq!((kept.len(), peak_bytes), (1500, 2000));
}
