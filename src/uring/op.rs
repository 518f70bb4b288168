//! One submission path for every ring operation of our own (layer 4).
//!
//! Holds: the pairing of a ring entry with the memory and the file descriptor it names. Does not hold:
//! any particular operation (see `stream`, `udp`, `listener`, `files`).
//!
//! tokio-uring keeps the stored data of an operation whose future was dropped until the kernel has
//! completed it (`Lifecycle::Ignored`), so a dropped future never frees memory under the kernel. It is
//! dropped while the driver is borrowed: stored data must not start ring operations in its `Drop`.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;

use io_uring::{cqueue, opcode, squeue, types};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

thread_local! {
    /// Operations of this thread whose stored data is still owned by the ring.
    static IN_FLIGHT: Cell<usize> = const { Cell::new(0) };
}

/// Operations of this thread that the kernel may still be working on.
pub fn in_flight() -> usize {
    IN_FLIGHT.with(Cell::get)
}

/// Counts one operation for as long as its stored data lives.
struct Count;

impl Count {
    fn new() -> Count {
        IN_FLIGHT.with(|n| n.set(n.get() + 1));
        Count
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        // The thread may be on its way out: then nobody asks for the count any more.
        let _ = IN_FLIGHT.try_with(|n| n.set(n.get().saturating_sub(1)));
    }
}

/// Stored data of one operation: what the kernel reads, writes or names by number.
pub(crate) struct Held<D> {
    data: D,
    _count: Count,
}

/// Turns a completion into `(result, data)`.
pub(crate) struct Answer<D>(PhantomData<fn(D)>);

impl<D> OneshotOutputTransform for Answer<D> {
    type Output = (io::Result<u32>, D);
    type StoredData = Held<D>;

    fn transform_oneshot_output(self, held: Held<D>, cqe: cqueue::Entry) -> Self::Output {
        let result = match u32::try_from(cqe.result()) {
            Ok(n) => Ok(n),
            Err(_) => Err(io::Error::from_raw_os_error(-cqe.result())),
        };
        (result, held.data)
    }
}

/// A submitted operation; yields the result and the data it was given.
pub(crate) type Op<D> = InFlightOneshot<Held<D>, Answer<D>>;

/// Submits the entry that `entry` builds over `data`.
///
/// # Panics
///
/// Outside [`Ring::block_on`](super::ring::Ring::block_on).
///
/// # Safety
///
/// Every pointer in the entry must lead to memory that `data` owns (or keeps alive) at an address that does not change
/// when `data` itself is moved, nobody else may write that memory (nor read it, if the kernel writes
/// it) until `data` comes back, and `data` must own the file descriptor that the entry names. The entry
/// must complete exactly once.
pub(crate) unsafe fn submit<D: Unpin + 'static>(
    mut data: D,
    entry: impl FnOnce(&mut D) -> squeue::Entry,
) -> Op<D> {
    let sqe = entry(&mut data);
    let held = Held {
        data,
        _count: Count::new(),
    };
    UnsubmittedOneshot::new(held, Answer(PhantomData), sqe).submit()
}

/// Asks the kernel to cancel every operation of this ring (Linux 5.19).
pub(crate) async fn cancel_all() -> io::Result<u32> {
    // SAFETY: the entry names neither memory nor a file descriptor.
    let op = unsafe {
        submit((), |()| {
            opcode::AsyncCancel2::new(types::CancelBuilder::any()).build()
        })
    };
    op.await.0
}
