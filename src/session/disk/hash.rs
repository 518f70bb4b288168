//! Verdicts: hashes of pieces in memory, streamed or on disk, and digests of their blocks. Layer 5.

use std::io;
use std::rc::Rc;

use super::write::{copy_run, segment_bytes};
use super::{DiskError, DiskOp, DiskTorrent};
use crate::base::PieceIndex;
use crate::storage::assembly::{HashTurn, Taken, runs};
use crate::uring::buffers::Segment;
use crate::uring::hasher::{Part, PieceState};
use crate::wire::merkle::Node;

/// Segments hashed in one job: as much as the core keeps of a piece that is hashed whole (a quarter of a 32 MiB pool).
const HASH_JOB_SEGMENTS_MAX: usize = 32;

impl DiskTorrent {
    /// Hashes the piece and compares (`Effect::Hash`). Blocks in memory stay there; what is on disk only is read back,
    /// less what was hashed on its way there.
    ///
    /// No block of the piece may be arriving.
    pub fn hash_piece(
        self: &Rc<Self>,
        piece: PieceIndex,
    ) -> impl Future<Output = Result<bool, DiskError>> + use<> {
        let this = Rc::clone(self);
        async move {
            let (state, done) = this.wait_for_progress(piece).await?;
            let count = this.assembly.borrow().segment_count(piece);
            let mut next = done;
            let mut state = state.unwrap_or_else(|| this.fresh_state(piece));
            while next < count {
                (next, state) = this.hash_some(piece, next, state).await?;
            }
            let is_good = state.finalize() == this.config.piece_hashes.get(piece);
            if is_good {
                this.check_pads(piece)?;
            }
            Ok(is_good)
        }
    }

    /// The piece's hash before its first byte.
    pub(super) fn fresh_state(&self, piece: PieceIndex) -> Box<PieceState> {
        let height = self.config.piece_hashes.tree_height(piece);
        Box::new(PieceState::new(height))
    }

    /// The running hash, once no flush is about to move it.
    async fn wait_for_progress(
        &self,
        piece: PieceIndex,
    ) -> Result<(Option<Box<PieceState>>, u32), DiskError> {
        loop {
            let moved = self.moved.notified();
            let progress = self.assembly.borrow_mut().take_progress(piece);
            if let Some(progress) = progress {
                return Ok(progress);
            }
            if !self.assembly.borrow().is_active(piece) {
                return Err(self.not_whole(piece));
            }
            moved.await;
        }
    }

    /// Hashes from segment `first` on: as many as lie whole in memory, else one that is read back. Returns the
    /// segment after them.
    async fn hash_some(
        &self,
        piece: PieceIndex,
        first: u32,
        state: Box<PieceState>,
    ) -> Result<(u32, Box<PieceState>), DiskError> {
        let mut taken = self.take_in_memory(piece, first);
        if taken.is_empty() {
            let buffer = self.load_segment(piece, first).await?;
            let all = 0..buffer.len();
            let done = self.hub.hasher.hash(state, vec![(buffer, all)]).await;
            return Ok((first + 1, done.state));
        }
        let mut tickets = Vec::with_capacity(taken.len());
        let mut parts = Vec::with_capacity(taken.len());
        for loan in taken.drain(..) {
            tickets.push(loan.ticket);
            let all = 0..loan.buffer.len();
            parts.push((loan.buffer, all));
        }
        let done = self.hub.hasher.hash(state, parts).await;
        let after = tickets.last().map_or(first, |ticket| ticket.segment) + 1;
        for (ticket, (buffer, _)) in tickets.into_iter().zip(done.parts) {
            self.give_back(ticket, buffer);
        }
        Ok((after, done.state))
    }

    fn give_back(&self, ticket: crate::storage::assembly::Ticket, buffer: Segment) {
        let freed = self
            .assembly
            .borrow_mut()
            .give_back(ticket, buffer, copy_run);
        drop(freed);
        self.moved.notify_waiters();
    }

    /// Borrows the segments from `first` on that lie whole in memory.
    fn take_in_memory(&self, piece: PieceIndex, first: u32) -> Vec<Taken<Segment>> {
        let mut assembly = self.assembly.borrow_mut();
        let count = assembly.segment_count(piece);
        let mut taken = Vec::new();
        for segment in first..count {
            let is_whole = assembly.blocks_in_memory(piece, segment)
                == assembly.segment_blocks(piece, segment);
            if !is_whole || taken.len() >= HASH_JOB_SEGMENTS_MAX {
                break;
            }
            taken.extend(assembly.take_segment(piece, segment));
        }
        taken
    }

    /// The whole segment in a buffer of its own: blocks on disk are read, blocks in memory copied.
    async fn load_segment(&self, piece: PieceIndex, segment: u32) -> Result<Segment, DiskError> {
        let (bytes, full) = {
            let assembly = self.assembly.borrow();
            let bytes = assembly.segment_bytes(piece, segment);
            (bytes, assembly.segment_blocks(piece, segment))
        };
        let mut buffer = self.hub.pool.alloc_or_heap(bytes as usize);
        let on_disk = loop {
            let moved = self.moved.notified();
            {
                let mut assembly = self.assembly.borrow_mut();
                let on_disk = assembly.blocks_on_disk(piece, segment);
                let held = assembly.blocks_in_memory(piece, segment);
                if on_disk | held == full {
                    if let Some(from) = assembly.buffer_mut(piece, segment) {
                        let mut held = runs(held, bytes);
                        if !held.all(|run| copy_run(from, &mut buffer, run)) {
                            return Err(self.not_whole(piece));
                        }
                    }
                    break on_disk;
                }
                if on_disk | held | assembly.blocks_lent(piece, segment) != full {
                    return Err(self.not_whole(piece));
                }
            }
            moved.await;
        };
        let start = self.segment_offset(piece, segment);
        for run in runs(on_disk, bytes) {
            let read;
            (read, buffer) = self.read_range(piece, start, run, buffer).await;
            read?;
        }
        Ok(buffer)
    }

    /// Lets the running hash catch up with segments that went to disk before their turn.
    pub(super) async fn read_back_ahead(&self, piece: PieceIndex) {
        loop {
            let Some(ticket) = self.assembly.borrow_mut().take_read_back(piece) else {
                return;
            };
            if self.wait_for_turn(ticket).await == HashTurn::Void {
                return;
            }
            let Ok(buffer) = self.load_segment(piece, ticket.segment).await else {
                // The verdict reads it again, and reports what is wrong with the disk.
                self.assembly.borrow_mut().reset_hash(ticket);
                self.moved.notify_waiters();
                return;
            };
            let state = self.assembly.borrow_mut().take_hash(ticket);
            let state = state.unwrap_or_else(|| self.fresh_state(piece));
            let all = 0..buffer.len();
            let done = self.hub.hasher.hash(state, vec![(buffer, all)]).await;
            self.assembly.borrow_mut().put_hash(ticket, done.state);
            self.moved.notify_waiters();
        }
    }

    /// A keyed digest of each block of the piece, from memory or from disk (`Effect::DigestBlocks`); `None` when the
    /// piece is not whole or cannot be read.
    pub fn digest_blocks(
        self: &Rc<Self>,
        piece: PieceIndex,
    ) -> impl Future<Output = Option<Vec<u64>>> + use<> {
        // A discard may follow at once: everything in memory is borrowed now.
        let taken = self.assembly.borrow_mut().take_piece(piece);
        let this = Rc::clone(self);
        async move {
            let (hasher, key) = (&this.hub.hasher, this.hub.digest_key);
            let digest = async |parts| {
                let done = hasher.digest_blocks(parts, key).await;
                (done.digests, done.parts)
            };
            this.each_segment(piece, taken, digest).await
        }
    }

    /// The leaf of each block of the piece, from memory or from disk (`Effect::HashLeaves`); `None` when the piece is not
    /// whole or cannot be read.
    pub fn hash_leaves(
        self: &Rc<Self>,
        piece: PieceIndex,
    ) -> impl Future<Output = Option<Vec<Node>>> + use<> {
        let taken = self.assembly.borrow_mut().take_piece(piece);
        let this = Rc::clone(self);
        async move {
            let hash = async |parts| {
                let done = this.hub.hasher.hash_leaves(parts).await;
                (done.leaves, done.parts)
            };
            this.each_segment(piece, taken, hash).await
        }
    }

    /// What `work` says of the bytes of the piece, one segment after the other.
    async fn each_segment<T>(
        &self,
        piece: PieceIndex,
        taken: Vec<Taken<Segment>>,
        work: impl AsyncFn(Vec<Part>) -> (Vec<T>, Vec<Part>),
    ) -> Option<Vec<T>> {
        let count = self.assembly.borrow().segment_count(piece);
        let mut all = Vec::new();
        let mut loans = taken.into_iter().peekable();
        let mut is_whole = true;
        for segment in 0..count {
            let loan = loans.next_if(|loan| loan.ticket.segment == segment);
            let (ticket, buffer) = match loan {
                Some(loan) => (Some(loan.ticket), self.complete(loan).await),
                None => (None, self.read_segment(piece, segment).await),
            };
            let (buffer, is_read) = buffer;
            is_whole &= is_read;
            let buffer = if is_whole {
                let whole = 0..buffer.len();
                let (mut done, mut parts) = work(vec![(buffer, whole)]).await;
                all.append(&mut done);
                parts.remove(0).0
            } else {
                buffer
            };
            if let Some(ticket) = ticket {
                self.give_back(ticket, buffer);
            }
        }
        is_whole.then_some(all)
    }

    /// Fills the blocks that the loan lacks from disk. False when that fails.
    async fn complete(&self, loan: Taken<Segment>) -> (Segment, bool) {
        let ticket = loan.ticket;
        let full = self
            .assembly
            .borrow()
            .segment_blocks(ticket.piece, ticket.segment);
        self.read_blocks(
            ticket.piece,
            ticket.segment,
            full & !ticket.blocks,
            loan.buffer,
        )
        .await
    }

    async fn read_segment(&self, piece: PieceIndex, segment: u32) -> (Segment, bool) {
        let (bytes, full) = {
            let assembly = self.assembly.borrow();
            let bytes = assembly.segment_bytes(piece, segment);
            (bytes, assembly.segment_blocks(piece, segment))
        };
        let buffer = self.hub.pool.alloc_or_heap(bytes as usize);
        self.read_blocks(piece, segment, full, buffer).await
    }

    async fn read_blocks(
        &self,
        piece: PieceIndex,
        segment: u32,
        blocks: u16,
        mut buffer: Segment,
    ) -> (Segment, bool) {
        let start = self.segment_offset(piece, segment);
        for run in runs(blocks, segment_bytes(&buffer)) {
            let read;
            (read, buffer) = self.read_range(piece, start, run, buffer).await;
            if read.is_err() {
                return (buffer, false);
            }
        }
        (buffer, true)
    }

    fn not_whole(&self, piece: PieceIndex) -> DiskError {
        let name = self.config.layout.root_name();
        let message = format!("piece {} is not whole in memory", piece.get());
        DiskError::other(
            DiskOp::Hash,
            self.full(name),
            io::ErrorKind::InvalidInput,
            message,
        )
    }
}
