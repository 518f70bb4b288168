//! What the torrents of one file system share of the disk: operations, threads, memory for reads. Each file system has
//! its own, so that one that hangs takes nothing from the others (HOSTILE.md L13). Layer 5.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::{COPY_BYTES_MAX, READ_BYTES_MAX};
use crate::session::contain::off_ring;
use crate::uring::files::FsKind;
use crate::uring::ring::HUNG_OPERATIONS_MAX;

/// Blocking calls at once on one file system that may hang: the threads for them are shared by all.
const REMOTE_CALLS_MAX: usize = 8;
/// The same where calls end.
const LOCAL_CALLS_MAX: usize = 64;
/// Memory of runs read from one file system that may hang: a run of 256 KiB for each of its operations.
const REMOTE_READ_BYTES_MAX: usize = HUNG_OPERATIONS_MAX * (256 << 10);

/// One file system.
pub(super) struct Lane {
    kind: FsKind,
    operations: Semaphore,
    calls: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    reads_max: usize,
    copies: Arc<Semaphore>,
    /// Whose piece is read for its leaves.
    pub leaf_turn: Semaphore,
    /// When those under way began, in order; of a file system that may hang.
    began: RefCell<BTreeMap<u64, Instant>>,
    next: Cell<u64>,
}

/// One operation under way, until dropped.
pub(super) struct Operation<'l> {
    lane: &'l Lane,
    number: u64,
    _permit: Option<SemaphorePermit<'l>>,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if self.lane.kind == FsKind::Remote {
            self.lane.began.borrow_mut().remove(&self.number);
        }
    }
}

impl Lane {
    /// `reads` and `copies` are the memory that all local file systems share: for what the disk brings, and for what lay
    /// in the page cache.
    pub fn new(
        kind: FsKind,
        operations_max: usize,
        reads: &Arc<Semaphore>,
        copies: &Arc<Semaphore>,
    ) -> Rc<Lane> {
        let (operations, calls, reads, reads_max) = match kind {
            FsKind::Local => (
                operations_max,
                LOCAL_CALLS_MAX,
                Arc::clone(reads),
                READ_BYTES_MAX,
            ),
            FsKind::Remote => (
                operations_max.min(HUNG_OPERATIONS_MAX),
                REMOTE_CALLS_MAX,
                Arc::new(Semaphore::new(REMOTE_READ_BYTES_MAX)),
                REMOTE_READ_BYTES_MAX,
            ),
        };
        Rc::new(Lane {
            kind,
            operations: Semaphore::new(operations),
            calls: Arc::new(Semaphore::new(calls)),
            reads,
            reads_max,
            copies: Arc::clone(copies),
            leaf_turn: Semaphore::new(1),
            began: RefCell::default(),
            next: Cell::new(0),
        })
    }

    /// Waits until one more operation may be under way.
    pub async fn begin(&self) -> Operation<'_> {
        let permit = self.operations.acquire().await;
        self.note(permit.ok())
    }

    /// The same for one that may take long where nothing is wrong.
    pub async fn begin_long(&self) -> Option<SemaphorePermit<'_>> {
        self.operations.acquire().await.ok()
    }

    fn note<'l>(&'l self, permit: Option<SemaphorePermit<'l>>) -> Operation<'l> {
        let number = self.next.get();
        if self.kind == FsKind::Remote {
            self.next.set(number + 1);
            self.began.borrow_mut().insert(number, Instant::now());
        }
        Operation {
            lane: self,
            number,
            _permit: permit,
        }
    }

    /// Runs a blocking call on another thread, once one of this file system's share is free.
    pub async fn off_ring<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let permit = Arc::clone(&self.calls).acquire_owned().await;
        let _operation = self.note(None);
        off_ring(move || {
            let done = work();
            // Held by the thread: whoever waited may have gone long before.
            drop(permit);
            done
        })
        .await
    }

    /// Waits, in order of asking, until a run may hold `bytes` of memory.
    pub async fn read_memory(&self, bytes: usize) -> OwnedSemaphorePermit {
        share(&self.reads, bytes, self.reads_max).await
    }

    /// The same for a run that lies in the page cache.
    pub async fn copy_memory(&self, bytes: usize) -> OwnedSemaphorePermit {
        share(&self.copies, bytes, COPY_BYTES_MAX).await
    }

    /// Whether a read of that many bytes would get its memory at once.
    pub fn may_read(&self, bytes: u32) -> bool {
        self.reads.available_permits() >= bytes as usize
    }

    /// How long the oldest operation on a file system that may hang has been waiting.
    pub fn stuck_for(&self) -> Duration {
        let began = self.began.borrow();
        let oldest = began.first_key_value();
        oldest.map_or(Duration::ZERO, |(_, began)| began.elapsed())
    }
}

/// A share of a memory of `bytes_max` bytes.
async fn share(memory: &Arc<Semaphore>, bytes: usize, bytes_max: usize) -> OwnedSemaphorePermit {
    let permits = u32::try_from(bytes.min(bytes_max)).unwrap_or(0);
    let permit = Arc::clone(memory).acquire_many_owned(permits).await;
    permit.expect("the semaphore is never closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_brings_and_what_lay_in_the_page_cache_do_not_wait_for_each_other() {
        let reads = Arc::new(Semaphore::new(READ_BYTES_MAX));
        let copies = Arc::new(Semaphore::new(COPY_BYTES_MAX));
        let lane = Lane::new(FsKind::Local, 4, &reads, &copies);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.unwrap().block_on(async {
            let all = lane.copy_memory(2 * COPY_BYTES_MAX).await;
            assert_eq!(copies.available_permits(), 0, "and not more than all");
            let _read = lane.read_memory(READ_BYTES_MAX - 1).await;
            assert!(lane.may_read(1) && !lane.may_read(2));
            let next = tokio::time::timeout(Duration::ZERO, lane.copy_memory(1));
            assert!(next.await.is_err(), "copies are bounded");
            drop(all);
            drop(lane.copy_memory(1).await);
        });
    }
}
