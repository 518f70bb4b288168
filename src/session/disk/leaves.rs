//! Leaves of pieces that we have, for peers that ask (BEP 52). Layer 5.
//!
//! Strangers have us read and hash for a few bytes of theirs, so a session reads for that at a steady rate, whoever asks
//! and in however many torrents, and one piece at a time from each file system: one that hangs takes nothing from the
//! others (HOSTILE.md L13).

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::DiskTorrent;
use crate::base::{PieceIndex, SEGMENT_BYTES};
use crate::uring::ring;
use crate::wire::merkle::Node;

/// What is read for leaves a second, in bytes: strangers must not have a disk kept busy.
const BYTES_PER_S: u32 = 16 << 20;

/// Holds readings back to the rate of the session.
pub(super) struct LeafPace {
    line: Semaphore,
    next_at: Cell<Instant>,
}

impl LeafPace {
    pub fn new() -> LeafPace {
        LeafPace {
            line: Semaphore::new(1),
            next_at: Cell::new(Instant::now()),
        }
    }

    /// Waits for the turn on a file system, then, in order of asking, until so much may be read. Nobody else reads there
    /// until the answer is dropped; `None` when nobody waits for it any more.
    async fn take<'l>(
        &self,
        lane: &'l Semaphore,
        bytes: u32,
        is_awaited: impl Fn() -> bool,
    ) -> Option<SemaphorePermit<'l>> {
        // In this order: who waits for one that hangs stands in nobody's way.
        let turn = lane.acquire().await.ok()?;
        let _line = self.line.acquire().await.ok()?;
        tokio::time::sleep_until(self.next_at.get()).await;
        if !is_awaited() {
            return None;
        }
        let takes = Duration::from_secs(1) * bytes / BYTES_PER_S;
        self.next_at.set(Instant::now() + takes);
        Some(turn)
    }
}

impl DiskTorrent {
    /// The leaf of each block within the first `bytes` of a piece on disk (`Effect::ReadLeaves`); `None` when it cannot be
    /// read, when nobody waits for it any more once its turn has come, or when `ended` comes first.
    pub async fn read_leaves(
        self: &Rc<Self>,
        piece: PieceIndex,
        bytes: u32,
        is_awaited: impl Fn() -> bool,
        ended: impl Future<Output = ()>,
    ) -> Option<Vec<Node>> {
        let mut ended = pin!(ended);
        let pace = &self.hub.leaf_pace;
        let _turn = tokio::select! {
            turn = pace.take(&self.lane.leaf_turn, bytes, is_awaited) => turn?,
            () = &mut ended => return None,
        };
        let (mut leaves, mut begin) = (Vec::new(), 0);
        while begin < bytes {
            let length = SEGMENT_BYTES.min(bytes - begin);
            let memory = tokio::select! {
                memory = self.lane.read_memory(length as usize) => memory,
                () = &mut ended => return None,
            };
            // A task of its own: it must not be dropped half-way.
            let this = Rc::clone(self);
            let part = ring::spawn(this.read_some_leaves(piece, begin, length, memory));
            tokio::select! {
                part = part => leaves.extend(part.ok()??),
                () = &mut ended => return None,
            }
            begin = begin.saturating_add(SEGMENT_BYTES);
        }
        Some(leaves)
    }

    async fn read_some_leaves(
        self: Rc<Self>,
        piece: PieceIndex,
        begin: u32,
        length: u32,
        _memory: OwnedSemaphorePermit,
    ) -> Option<Vec<Node>> {
        let part = 0..length as usize;
        let buffer = self.hub.pool.alloc_or_heap(part.len());
        let start = self.geometry().piece_offset(piece) + u64::from(begin);
        let (read, buffer) = self.read_range(piece, start, part.clone(), buffer).await;
        read.ok()?;
        let done = self.hub.hasher.hash_leaves(vec![(buffer, part)]).await;
        Some(done.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    /// Runs under a clock that is put forward whenever all wait.
    fn in_no_time(work: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build();
        runtime.unwrap().block_on(work);
    }

    #[test]
    fn a_file_system_that_hangs_stops_no_other() {
        in_no_time(async {
            let pace = LeafPace::new();
            let [hung, other] = [(); 2].map(|()| Semaphore::new(1));
            let _turn = pace.take(&hung, MIB, || true).await.unwrap();
            let mut second = pin!(pace.take(&hung, MIB, || true));
            let moment = Duration::from_secs(1);
            assert!(tokio::time::timeout(moment, &mut second).await.is_err());
            let there = tokio::time::timeout(moment, pace.take(&other, MIB, || true)).await;
            assert!(there.is_ok_and(|turn| turn.is_some()));
        });
    }

    #[test]
    fn all_file_systems_together_keep_to_the_rate() {
        in_no_time(async {
            let pace = LeafPace::new();
            let began = Instant::now();
            let lanes = [(); 4].map(|()| Semaphore::new(1));
            for lane in lanes.iter().cycle().take(9) {
                assert!(pace.take(lane, BYTES_PER_S / 2, || true).await.is_some());
            }
            let took = began.elapsed();
            assert!(took >= Duration::from_secs(4), "{took:?}");
            assert!(took < Duration::from_secs(5), "{took:?}");
        });
    }

    #[test]
    fn what_nobody_waits_for_any_more_costs_no_time() {
        in_no_time(async {
            let pace = LeafPace::new();
            let lane = Semaphore::new(1);
            let began = Instant::now();
            for _ in 0..9 {
                assert!(pace.take(&lane, BYTES_PER_S, || false).await.is_none());
            }
            assert!(pace.take(&lane, BYTES_PER_S, || true).await.is_some());
            assert!(began.elapsed() < Duration::from_secs(1));
        });
    }
}
