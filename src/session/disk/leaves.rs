//! Leaves of pieces that we have, for peers that ask (BEP 52). Layer 5.
//!
//! Strangers have us read and hash for a few bytes of theirs, so all of a session's reading for that goes one piece after
//! the other at a steady rate, whoever asks and in however many torrents.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::DiskTorrent;
use crate::base::{PieceIndex, SEGMENT_BYTES};
use crate::wire::merkle::Node;

/// What is read for leaves a second, in bytes: a few percent of one core.
const BYTES_PER_S: u32 = 64 << 20;

/// Whose turn it is.
pub(super) struct LeafTurns {
    turn: Semaphore,
    next_at: Cell<Instant>,
}

impl LeafTurns {
    pub fn new() -> LeafTurns {
        LeafTurns {
            turn: Semaphore::new(1),
            next_at: Cell::new(Instant::now()),
        }
    }

    /// Waits, in order of asking, until so much may be read; nobody else reads until the turn is dropped.
    async fn take(&self, bytes: u32) -> Option<SemaphorePermit<'_>> {
        let turn = self.turn.acquire().await.ok()?;
        tokio::time::sleep_until(self.next_at.get().into()).await;
        let takes = Duration::from_secs(1) * bytes / BYTES_PER_S;
        self.next_at.set(Instant::now() + takes);
        Some(turn)
    }
}

impl DiskTorrent {
    /// The leaf of each block within the first `bytes` of a piece on disk (`Effect::ReadLeaves`); `None` when it cannot be
    /// read, or `ended` comes before its turn.
    pub async fn read_leaves(
        &self,
        piece: PieceIndex,
        bytes: u32,
        ended: impl Future<Output = ()>,
    ) -> Option<Vec<Node>> {
        let _turn = tokio::select! {
            turn = self.hub.leaf_turns.take(bytes) => turn?,
            () = ended => return None,
        };
        let (mut leaves, mut begin) = (Vec::new(), 0);
        while begin < bytes {
            let part = 0..SEGMENT_BYTES.min(bytes - begin) as usize;
            let _memory = self.lane.read_memory(part.len()).await;
            let buffer = self.hub.pool.alloc_or_heap(part.len());
            let start = self.geometry().piece_offset(piece) + u64::from(begin);
            let (read, buffer) = self.read_range(piece, start, part.clone(), buffer).await;
            read.ok()?;
            let done = self.hub.hasher.hash_leaves(vec![(buffer, part)]).await;
            leaves.extend(done.leaves);
            begin = begin.saturating_add(SEGMENT_BYTES);
        }
        Some(leaves)
    }
}
