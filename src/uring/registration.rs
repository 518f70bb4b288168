//! Registering buffers with the ring of this thread after its start (layer 4).
//!
//! tokio-uring registers once and keeps the ring's descriptor to itself. It is found by looking which one came with the
//! ring. A ring of one issuer takes registrations from the thread that made it alone, and where two rings came at once
//! nothing is taken for ours.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::{fs, io, mem};

/// `IORING_REGISTER_BUFFERS_UPDATE` of the kernel's interface (Linux 5.13).
const BUFFERS_UPDATE: libc::c_uint = 16;

/// `struct io_uring_rsrc_update2` of the kernel's interface.
#[repr(C)]
struct Update {
    offset: u32,
    reserved: u32,
    /// Address of `count` iovecs.
    buffers: u64,
    tags: u64,
    count: u32,
    reserved2: u32,
}

thread_local! {
    static RING: Cell<Option<RawFd>> = const { Cell::new(None) };
}

/// The rings of this process, before one more is made.
pub(super) struct Before(BTreeSet<RawFd>);

impl Before {
    pub fn now() -> Before {
        Before(rings())
    }

    /// The one that came meanwhile is this thread's. When two came, another thread made one too: none is taken.
    pub fn note_new(&self) {
        let now = rings();
        let mut new = now.difference(&self.0);
        RING.set(match (new.next(), new.next()) {
            (Some(&fd), None) => Some(fd),
            _ => None,
        });
    }
}

/// The ring of this thread goes.
pub(super) fn forget() {
    RING.set(None);
}

/// Descriptors of rings; none where `/proc` is not to be had.
fn rings() -> BTreeSet<RawFd> {
    let entries = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let is_ring = |entry: &fs::DirEntry| {
        let link = fs::read_link(entry.path());
        link.is_ok_and(|link| link.as_os_str() == "anon_inode:[io_uring]")
    };
    let rings = entries.filter(is_ring);
    rings
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether [`set`] can work on this thread.
pub(super) fn is_possible() -> bool {
    RING.get().is_some()
}

/// Registers memory under a number that is free, or gives the number free again. The memory is the caller's to keep as
/// long as operations name it; the kernel holds its pages until the number is free and no operation names them.
///
/// # Errors
///
/// Of the system call: ENOMEM when no more memory may be locked.
pub(super) fn set(number: u16, memory: Option<(NonNull<u8>, usize)>) -> io::Result<()> {
    let ring = RING.get().ok_or(io::ErrorKind::Unsupported)?;
    let buffer = libc::iovec {
        iov_base: memory.map_or(std::ptr::null_mut(), |(start, _)| start.as_ptr().cast()),
        iov_len: memory.map_or(0, |(_, bytes)| bytes),
    };
    let update = Update {
        offset: number.into(),
        reserved: 0,
        buffers: (&raw const buffer) as u64,
        tags: 0,
        count: 1,
        reserved2: 0,
    };
    // SAFETY: both structures are the kernel's own and outlive the call, which copies them. Pinning pages changes none of
    // them; who owns the memory stays the same.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            BUFFERS_UPDATE,
            &raw const update,
            mem::size_of::<Update>(),
        )
    };
    match done {
        // How many were updated.
        1 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
