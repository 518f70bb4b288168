//! The requests one peer waits for us to serve. Layer 2.
//!
//! A request leaves this queue exactly once: into a run handed to the sender, by cancel, or by a reject or drop when
//! the peer is choked. Blocks are looked up through an index, so a cancel costs the same however long the queue is.

use std::collections::{BTreeMap, VecDeque};

use crate::base::BlockRef;
use crate::swarm::effects::UploadRun;

/// Blocks in one run: 256 KiB, what one send or one disk read moves well.
pub const UPLOAD_RUN_BLOCKS_MAX: usize = 16;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It waits.
    Yes,
    /// The same range waits already; it is served once.
    Already,
    /// The queue is as long as was advertised.
    Full,
}

/// Requests in the order they came, and the run now being sent.
#[derive(Clone, Debug, Default)]
pub struct Uploads {
    /// `None` is a cancelled request whose place was not reached yet.
    queue: VecDeque<Option<BlockRef>>,
    /// Where each waiting request stands: its number counted from the first ever queued.
    index: BTreeMap<BlockRef, u64>,
    /// The number of the queue's front.
    front: u64,
    in_flight_blocks: u32,
    in_flight_bytes: u64,
}

impl Uploads {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a request unless `queue_max` wait already.
    pub fn push(&mut self, block: BlockRef, queue_max: u32) -> Enqueued {
        if self.index.contains_key(&block) {
            return Enqueued::Already;
        }
        if self.len().saturating_add(self.in_flight_blocks) >= queue_max {
            return Enqueued::Full;
        }
        self.index
            .insert(block, self.front + self.queue.len() as u64);
        self.queue.push_back(Some(block));
        Enqueued::Yes
    }

    /// Takes a waiting request out; false when none waits (it may be under way).
    pub fn cancel(&mut self, block: BlockRef) -> bool {
        let Some(number) = self.index.remove(&block) else {
            return false;
        };
        self.queue[(number - self.front) as usize] = None;
        self.trim();
        true
    }

    /// Number of requests that wait.
    pub fn len(&self) -> u32 {
        self.index.len() as u32
    }

    /// True when no request waits.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Number of blocks handed out and neither sent nor failed.
    pub const fn in_flight_blocks(&self) -> u32 {
        self.in_flight_blocks
    }

    /// Their payload.
    pub const fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Takes the next contiguous run: at most `UPLOAD_RUN_BLOCKS_MAX` blocks and `max_bytes`, but at least one block. It
    /// begins with the first block that `may_go`.
    pub fn next_run(
        &mut self,
        max_bytes: u32,
        mut may_go: impl FnMut(BlockRef) -> bool,
    ) -> Option<UploadRun> {
        let is_first = |waiting: &Option<BlockRef>| waiting.is_some_and(&mut may_go);
        let start = self.queue.iter().position(is_first)?;
        let mut blocks: Vec<BlockRef> = Vec::with_capacity(UPLOAD_RUN_BLOCKS_MAX);
        let mut bytes = 0;
        for place in self.queue.range_mut(start..) {
            // Cancelled requests in between do not end a run.
            let Some(next) = *place else { continue };
            let follows = blocks.last().is_none_or(|last| {
                next.piece() == last.piece()
                    && next.begin() == last.end()
                    && bytes + u64::from(next.length()) <= u64::from(max_bytes)
            });
            if !follows || blocks.len() == UPLOAD_RUN_BLOCKS_MAX {
                break;
            }
            bytes += u64::from(next.length());
            blocks.push(next);
            self.index.remove(&next);
            *place = None;
        }
        self.trim();
        self.in_flight_blocks += blocks.len() as u32;
        self.in_flight_bytes += bytes;
        Some(UploadRun { blocks })
    }

    /// A run handed out was sent or given up; returns its bytes.
    pub fn finish_run(&mut self, run: &UploadRun) -> u64 {
        let bytes = run.blocks.iter().map(|b| u64::from(b.length())).sum();
        self.in_flight_blocks = self
            .in_flight_blocks
            .saturating_sub(run.blocks.len() as u32);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
        bytes
    }

    /// Drops the waiting requests that `keep` refuses and hands each to `dropped`, in order.
    pub fn retain(&mut self, keep: impl Fn(BlockRef) -> bool, mut dropped: impl FnMut(BlockRef)) {
        for waiting in &mut self.queue {
            if let Some(block) = waiting.filter(|block| !keep(*block)) {
                self.index.remove(&block);
                *waiting = None;
                dropped(block);
            }
        }
        self.trim();
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        let waiting = self.queue.iter().flatten().count();
        assert_eq!(waiting, self.index.len());
        for (block, number) in &self.index {
            let at = (number - self.front) as usize;
            assert_eq!(self.queue[at], Some(*block));
        }
        assert!(!matches!(self.queue.front(), Some(None)));
    }

    /// Keeps the front a waiting request, and the tombstones fewer than the places of one full queue.
    fn trim(&mut self) {
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.front += 1;
        }
        while let Some(None) = self.queue.back() {
            self.queue.pop_back();
        }
        if self.queue.len() > 64 && self.queue.len() > 2 * self.index.len() {
            self.compact();
        }
    }

    /// Squeezes tombstones out; paid for by the cancels that made them.
    fn compact(&mut self) {
        self.queue.retain(Option::is_some);
        for (at, block) in self.queue.iter().flatten().enumerate() {
            self.index.insert(*block, self.front + at as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BLOCK_BYTES, Geometry};

    fn block(piece: u32, index: u32) -> BlockRef {
        let geometry = Geometry::new(64 << 20, 1 << 20).unwrap();
        let piece = geometry.piece(piece).unwrap();
        geometry.block(piece, index).unwrap()
    }

    fn queue(blocks: &[(u32, u32)]) -> Uploads {
        let mut uploads = Uploads::new();
        for &(piece, index) in blocks {
            assert_eq!(uploads.push(block(piece, index), 512), Enqueued::Yes);
        }
        uploads.check();
        uploads
    }

    #[test]
    fn runs_are_contiguous_blocks_of_one_piece() {
        let mut u = queue(&[(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]);
        let lengths: Vec<usize> =
            std::iter::from_fn(|| u.next_run(1 << 20, |_| true).map(|run| run.blocks.len()))
                .collect();
        assert_eq!(lengths, [3, 1, 1]);
        u.check();
    }

    #[test]
    fn a_run_keeps_to_its_bytes_but_always_has_a_block() {
        let mut u = queue(&[(0, 0), (0, 1), (0, 2)]);
        assert_eq!(u.next_run(1, |_| true).unwrap().blocks.len(), 1);
        assert_eq!(
            u.next_run(2 * BLOCK_BYTES, |_| true).unwrap().blocks.len(),
            2
        );
        assert_eq!(u.next_run(1, |_| true), None);
    }

    #[test]
    fn queue_is_bounded_and_serves_a_range_once() {
        let mut u = queue(&[(0, 0), (0, 1)]);
        assert_eq!(u.push(block(0, 0), 512), Enqueued::Already);
        assert_eq!(u.push(block(0, 2), 2), Enqueued::Full);
        let run = u.next_run(1 << 20, |_| true).unwrap();
        assert_eq!(u.push(block(0, 2), 2), Enqueued::Full, "two are under way");
        u.finish_run(&run);
        assert_eq!(u.push(block(0, 2), 2), Enqueued::Yes);
    }

    #[test]
    fn cancels_leave_nothing_behind_however_many() {
        let mut u = Uploads::new();
        for round in 0..1_000u32 {
            for index in 0..64 {
                u.push(block(round % 64, index), 512);
            }
            for index in (0..64).filter(|index| index % 8 != round % 8) {
                assert!(u.cancel(block(round % 64, index)));
            }
            u.check();
            assert!(u.queue.len() <= 1_100);
            while round % 16 == 0
                && let Some(run) = u.next_run(1 << 20, |_| true)
            {
                u.finish_run(&run);
            }
        }
    }

    #[test]
    fn retain_reports_what_it_drops_in_order() {
        let mut u = queue(&[(0, 0), (1, 0), (0, 1), (2, 0)]);
        let mut dropped = Vec::new();
        u.retain(|b| b.piece().get() == 0, |b| dropped.push(b));
        assert_eq!(dropped, [block(1, 0), block(2, 0)]);
        u.check();
        assert_eq!(u.next_run(1 << 20, |_| true).unwrap().blocks.len(), 2);
    }
}
