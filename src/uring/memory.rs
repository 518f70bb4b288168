//! The allocator of the C library, told what a program that runs for months wants (layer 4).

/// From so many bytes on, memory is a mapping of its own, and goes back when it is freed.
const OWN_MAPPING_BYTES: libc::c_int = 256 << 10;

/// Heaps: that of the ring thread, and one of all other threads. With one a thread, as the library makes them, what many
/// threads freed lies in as many places: a daemon with 5,000 seeds takes a tenth more.
const HEAPS_MAX: libc::c_int = 2;

/// Fixes the number of heaps, and the size from which memory is mapped by itself: the library would raise it to that of the
/// largest answer ever made, and keep as much for ever. To be called once, before threads are made.
pub fn settle() {
    // SAFETY: the calls change settings of the allocator and touch no memory of ours.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
    }
}

/// Gives back what is free: half a millisecond with 5,000 torrents, longer when something large was just done.
pub fn give_back() {
    // SAFETY: the call returns pages that hold nothing allocated; the library locks what it works on.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
