//! Which blocks of which piece lie in memory, on disk, or in a buffer that I/O has borrowed. Layer 3.
//!
//! A piece is cut into segments of [`SEGMENT_BYTES`]; each segment has at most one buffer here. I/O borrows a buffer
//! with a `take_*` call and ends with [`Assembly::give_back`] or [`Assembly::written`]. Every loan carries the epoch
//! of its piece, so an answer that comes after [`Assembly::discard`] changes nothing.
//! Generic over the buffer `B` and the running hash `H`: this module moves no byte and hashes none.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::base::{BLOCK_BYTES, BlockRef, Geometry, PieceIndex, SEGMENT_BYTES};

/// Blocks in a full segment; a segment's block set is a `u16`.
pub const SEGMENT_BLOCKS: u32 = SEGMENT_BYTES / BLOCK_BYTES;

/// Where a block's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the segment in its piece.
    pub segment: u32,
    /// First byte of the block in the segment's buffer.
    pub offset_in_segment: u32,
    /// Set when the segment has no buffer: insert one of this many bytes first.
    pub needs_buffer: Option<u32>,
}

/// Names one loan of a segment's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The piece.
    pub piece: PieceIndex,
    /// Number of the segment in its piece.
    pub segment: u32,
    /// The whole blocks in the buffer, bit 0 being the segment's first.
    pub blocks: u16,
    /// This segment carries the running hash on: hash it when [`Assembly::hash_turn`] says so.
    pub is_hashed: bool,
    epoch: u64,
    hash_epoch: u64,
}

/// A buffer on loan.
#[derive(Debug)]
pub struct Taken<B> {
    /// Hand it back with the buffer, or alone once the blocks are on disk.
    pub ticket: Ticket,
    /// The segment's memory.
    pub buffer: B,
    /// Blocks whose bytes are still arriving: copy them into a fresh buffer and insert it.
    pub keep: u16,
}

/// What a promise to hash is worth at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashTurn {
    /// The running hash has come just up to this segment.
    Now,
    /// Segments before this one are still being hashed.
    Wait,
    /// The piece was discarded or its running hash began again: nobody waits for this segment.
    Void,
}

/// All assembly state of one torrent.
#[derive(Debug)]
pub struct Assembly<B, H = ()> {
    geometry: Geometry,
    active: BTreeMap<PieceIndex, Active<B, H>>,
    next_epoch: u64,
}

#[derive(Debug)]
struct Active<B, H> {
    epoch: u64,
    segments: Vec<Slot<B>>,
    /// Segments from the front whose hashing is done or promised to a loan.
    hash_promised: u32,
    /// Segments from the front that the running hash holds.
    hash_done: u32,
    /// Counts how often the running hash began again.
    hash_epoch: u64,
    hash: Option<H>,
}

/// One segment. The four sets are disjoint.
#[derive(Debug)]
struct Slot<B> {
    buffer: Option<B>,
    receiving: u16,
    held: u16,
    lent: u16,
    on_disk: u16,
}

impl<B> Slot<B> {
    const fn new() -> Self {
        Slot {
            buffer: None,
            receiving: 0,
            held: 0,
            lent: 0,
            on_disk: 0,
        }
    }
}

impl<B, H> Assembly<B, H> {
    /// Nothing active.
    pub fn new(geometry: Geometry) -> Self {
        Assembly {
            geometry,
            active: BTreeMap::new(),
            next_epoch: 0,
        }
    }

    /// Number of segments in the piece.
    pub fn segment_count(&self, piece: PieceIndex) -> u32 {
        self.geometry.piece_bytes(piece).div_ceil(SEGMENT_BYTES)
    }

    /// Bytes in this segment: the last of a piece may be shorter; 0 past the end.
    pub fn segment_bytes(&self, piece: PieceIndex, segment: u32) -> u32 {
        let begin = segment.saturating_mul(SEGMENT_BYTES);
        let left = self.geometry.piece_bytes(piece).saturating_sub(begin);
        left.min(SEGMENT_BYTES)
    }

    /// The set of all blocks of this segment.
    pub fn segment_blocks(&self, piece: PieceIndex, segment: u32) -> u16 {
        let count = self.segment_bytes(piece, segment).div_ceil(BLOCK_BYTES);
        let ones = (1_u32 << count) - 1;
        u16::try_from(ones).unwrap_or(u16::MAX)
    }

    /// Where the block goes, from now on counted as arriving. The first block of a piece makes the piece active.
    pub fn place(&mut self, block: BlockRef) -> Place {
        let (segment, bit) = locate(block);
        let bytes = self.segment_bytes(block.piece(), segment);
        let slot = self.slot_or_new(block.piece(), segment);
        let is_stored = (slot.held | slot.lent | slot.on_disk) & bit != 0;
        if !is_stored {
            slot.receiving |= bit;
        }
        Place {
            segment,
            offset_in_segment: block.begin() % SEGMENT_BYTES,
            needs_buffer: slot.buffer.is_none().then_some(bytes),
        }
    }

    /// Where the block will go, which does not count as arriving yet, or when it `is_begun`, where the rest of it goes.
    /// `None` when its place is taken otherwise.
    pub fn foresee(&mut self, block: BlockRef, is_begun: bool) -> Option<Place> {
        let (segment, bit) = locate(block);
        let bytes = self.segment_bytes(block.piece(), segment);
        let slot = self.slot_or_new(block.piece(), segment);
        let is_arriving = slot.receiving & bit != 0;
        let is_here = (slot.held | slot.lent | slot.on_disk) & bit != 0;
        (is_arriving == is_begun && !is_here).then(|| Place {
            segment,
            offset_in_segment: block.begin() % SEGMENT_BYTES,
            needs_buffer: slot.buffer.is_none().then_some(bytes),
        })
    }

    /// The blocks of the segment's buffer that came, all of them or in part.
    pub fn blocks_begun(&self, piece: PieceIndex, segment: u32) -> u16 {
        self.slot(piece, segment)
            .map_or(0, |slot| slot.held | slot.receiving)
    }

    /// Gives the segment its memory, of [`Self::segment_bytes`] bytes. Returns the buffer when it has one already or
    /// the piece is not active.
    pub fn insert_buffer(&mut self, piece: PieceIndex, segment: u32, buffer: B) -> Option<B> {
        match self.slot_mut(piece, segment) {
            Some(slot) if slot.buffer.is_none() => {
                slot.buffer = Some(buffer);
                None
            }
            _ => Some(buffer),
        }
    }

    /// The segment's memory, to copy into.
    pub fn buffer_mut(&mut self, piece: PieceIndex, segment: u32) -> Option<&mut B> {
        self.slot_mut(piece, segment)?.buffer.as_mut()
    }

    /// The block's last byte is in its place.
    pub fn block_done(&mut self, block: BlockRef) {
        let (segment, bit) = locate(block);
        if let Some(slot) = self.slot_mut(block.piece(), segment)
            && slot.receiving & bit != 0
        {
            slot.receiving &= !bit;
            slot.held |= bit;
        }
    }

    /// The block's sender is gone before its last byte: its memory is free when nothing else lies in the segment.
    pub fn block_abandoned(&mut self, block: BlockRef) -> Option<B> {
        let (segment, bit) = locate(block);
        let slot = self.slot_mut(block.piece(), segment)?;
        slot.receiving &= !bit;
        (slot.receiving | slot.held == 0)
            .then(|| slot.buffer.take())
            .flatten()
    }

    /// The block was here and proved bad: it is missing again, and the piece is hashed from its start. Its memory is free
    /// when nothing else lies in the segment.
    ///
    /// Nothing of the piece may be on loan.
    pub fn block_dropped(&mut self, block: BlockRef) -> Option<B> {
        let (segment, bit) = locate(block);
        let active = self.active.get_mut(&block.piece())?;
        (active.hash, active.hash_done, active.hash_promised) = (None, 0, 0);
        active.hash_epoch += 1;
        let slot = active.segments.get_mut(segment as usize)?;
        slot.held &= !bit;
        slot.on_disk &= !bit;
        (slot.receiving | slot.held == 0)
            .then(|| slot.buffer.take())
            .flatten()
    }

    /// Forgets the piece and frees what memory holds of it.
    pub fn discard(&mut self, piece: PieceIndex) -> bool {
        self.active.remove(&piece).is_some()
    }

    /// True when any block of the piece was placed and the piece was not discarded since.
    pub fn is_active(&self, piece: PieceIndex) -> bool {
        self.active.contains_key(&piece)
    }

    /// The active pieces in order.
    pub fn active_pieces(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.active.keys().copied()
    }

    /// Bytes of the buffers held here, those on loan not counted.
    pub fn memory_bytes(&self) -> u64 {
        let of_piece = |(piece, active): (&PieceIndex, &Active<B, H>)| {
            (0u32..)
                .zip(&active.segments)
                .filter(|(_, slot)| slot.buffer.is_some())
                .map(|(segment, _)| u64::from(self.segment_bytes(*piece, segment)))
                .sum::<u64>()
        };
        self.active.iter().map(of_piece).sum()
    }

    /// Borrows the segment's buffer with its whole blocks; `None` when it has no whole block.
    pub fn take_segment(&mut self, piece: PieceIndex, segment: u32) -> Option<Taken<B>> {
        let active = self.active.get_mut(&piece)?;
        let (epoch, hash_epoch) = (active.epoch, active.hash_epoch);
        let slot = active.segments.get_mut(segment as usize)?;
        if slot.held == 0 {
            return None;
        }
        let buffer = slot.buffer.take()?;
        let blocks = std::mem::take(&mut slot.held);
        slot.lent |= blocks;
        let ticket = Ticket {
            piece,
            segment,
            blocks,
            is_hashed: false,
            epoch,
            hash_epoch,
        };
        Some(Taken {
            ticket,
            buffer,
            keep: slot.receiving,
        })
    }

    /// As [`Self::take_segment`]; when the whole segment is there and the running hash has come, or will come, just
    /// up to it, the loan also promises to hash it.
    pub fn take_segment_for_flush(&mut self, piece: PieceIndex, segment: u32) -> Option<Taken<B>> {
        let full = self.segment_blocks(piece, segment);
        let mut taken = self.take_segment(piece, segment)?;
        let active = self.active.get_mut(&piece)?;
        if taken.ticket.blocks == full && active.hash_promised == segment {
            active.hash_promised += 1;
            taken.ticket.is_hashed = true;
        }
        Some(taken)
    }

    /// Borrows every segment of the piece that has whole blocks in memory, in order.
    pub fn take_piece(&mut self, piece: PieceIndex) -> Vec<Taken<B>> {
        let segments = 0..self.segment_count(piece);
        segments
            .filter_map(|segment| self.take_segment(piece, segment))
            .collect()
    }

    /// Promises to read back and hash the next segment of the running hash, when all of it is on disk.
    pub fn take_read_back(&mut self, piece: PieceIndex) -> Option<Ticket> {
        let segment = self.active.get(&piece)?.hash_promised;
        let full = self.segment_blocks(piece, segment);
        let active = self.active.get_mut(&piece)?;
        let slot = active.segments.get(segment as usize)?;
        if slot.on_disk != full {
            return None;
        }
        active.hash_promised += 1;
        Some(Ticket {
            piece,
            segment,
            blocks: 0,
            is_hashed: true,
            epoch: active.epoch,
            hash_epoch: active.hash_epoch,
        })
    }

    /// Ends a loan without a write. A buffer that arrived meanwhile stays; `copy(from, into, range)` then moves the
    /// blocks of the loan into it, and the loan's buffer comes back to be freed, as it does after a discard. Blocks that
    /// cannot be moved are in memory no more.
    pub fn give_back(
        &mut self,
        ticket: Ticket,
        buffer: B,
        mut copy: impl FnMut(&B, &mut B, Range<usize>) -> bool,
    ) -> Option<B> {
        let bytes = self.segment_bytes(ticket.piece, ticket.segment);
        let Some(slot) = self.slot_of(ticket) else {
            return Some(buffer);
        };
        slot.lent &= !ticket.blocks;
        slot.held |= ticket.blocks;
        match slot.buffer.as_mut() {
            None => {
                slot.buffer = Some(buffer);
                None
            }
            Some(newer) => {
                for run in runs(ticket.blocks, bytes) {
                    let blocks = blocks_in(&run);
                    if !copy(&buffer, newer, run) {
                        slot.held &= !blocks;
                    }
                }
                Some(buffer)
            }
        }
    }

    /// Ends a loan: its blocks are on disk and its buffer is free.
    pub fn written(&mut self, ticket: Ticket) {
        if let Some(slot) = self.slot_of(ticket) {
            slot.lent &= !ticket.blocks;
            slot.on_disk |= ticket.blocks;
        }
    }

    /// The blocks of the segment that are on disk.
    pub fn blocks_on_disk(&self, piece: PieceIndex, segment: u32) -> u16 {
        self.slot(piece, segment).map_or(0, |slot| slot.on_disk)
    }

    /// The whole blocks of the segment that are in memory, not on loan.
    pub fn blocks_in_memory(&self, piece: PieceIndex, segment: u32) -> u16 {
        self.slot(piece, segment).map_or(0, |slot| slot.held)
    }

    /// The blocks of the segment that I/O has borrowed.
    pub fn blocks_lent(&self, piece: PieceIndex, segment: u32) -> u16 {
        self.slot(piece, segment).map_or(0, |slot| slot.lent)
    }

    /// True when any block of the piece went to disk before its verdict.
    pub fn is_streamed(&self, piece: PieceIndex) -> bool {
        let is_on_disk = |active: &Active<B, H>| active.segments.iter().any(|s| s.on_disk != 0);
        self.active.get(&piece).is_some_and(is_on_disk)
    }

    /// Whether the holder of this ticket may hash now.
    pub fn hash_turn(&self, ticket: Ticket) -> HashTurn {
        match self.of_hash(ticket) {
            None => HashTurn::Void,
            Some(active) if active.hash_done == ticket.segment => HashTurn::Now,
            Some(_) => HashTurn::Wait,
        }
    }

    /// True when the piece was not discarded since the loan.
    pub fn is_current(&self, ticket: Ticket) -> bool {
        self.of(ticket).is_some()
    }

    /// Takes the running hash; `None` before the first segment. Only the holder of the turn calls it.
    pub fn take_hash(&mut self, ticket: Ticket) -> Option<H> {
        self.of_hash(ticket)?;
        self.active.get_mut(&ticket.piece)?.hash.take()
    }

    /// The running hash now holds the segment of this ticket too.
    pub fn put_hash(&mut self, ticket: Ticket, hash: H) {
        if self.of_hash(ticket).is_some()
            && let Some(active) = self.active.get_mut(&ticket.piece)
        {
            active.hash = Some(hash);
            active.hash_done = ticket.segment + 1;
        }
    }

    /// A segment promised to the running hash could not be hashed: the running hash begins again from the front and
    /// all promises are void.
    pub fn reset_hash(&mut self, ticket: Ticket) {
        if self.of_hash(ticket).is_some()
            && let Some(active) = self.active.get_mut(&ticket.piece)
        {
            active.hash = None;
            active.hash_done = 0;
            active.hash_promised = 0;
            active.hash_epoch += 1;
        }
    }

    /// Starts the verdict: the running hash, and the number of segments it holds from the front. `None` while
    /// promised segments are not hashed yet.
    pub fn take_progress(&mut self, piece: PieceIndex) -> Option<(Option<H>, u32)> {
        let active = self.active.get_mut(&piece)?;
        if active.hash_done != active.hash_promised {
            return None;
        }
        let done = std::mem::take(&mut active.hash_done);
        active.hash_promised = 0;
        active.hash_epoch += 1;
        Some((active.hash.take(), done))
    }

    /// True when every block of the piece is in memory, on loan or on disk.
    pub fn is_whole(&self, piece: PieceIndex) -> bool {
        self.active.get(&piece).is_some_and(|active| {
            (0u32..).zip(&active.segments).all(|(segment, slot)| {
                slot.held | slot.lent | slot.on_disk == self.segment_blocks(piece, segment)
            })
        })
    }

    /// Panics on a broken invariant.
    pub fn check(&self) {
        for (piece, active) in &self.active {
            assert!(active.hash_done <= active.hash_promised, "{piece:?}");
            for (segment, slot) in (0u32..).zip(&active.segments) {
                let sets = [slot.receiving, slot.held, slot.lent, slot.on_disk];
                let ones: u32 = sets.iter().map(|set| set.count_ones()).sum();
                let union = sets.iter().fold(0, |all, set| all | set);
                assert_eq!(ones, union.count_ones(), "{piece:?} {segment}: disjoint");
                let outside = union & !self.segment_blocks(*piece, segment);
                assert_eq!(outside, 0, "{piece:?} {segment}: inside");
                assert!(slot.held == 0 || slot.buffer.is_some(), "{piece:?}");
            }
        }
    }

    fn slot_or_new(&mut self, piece: PieceIndex, segment: u32) -> &mut Slot<B> {
        let count = self.segment_count(piece).max(segment + 1);
        let next_epoch = &mut self.next_epoch;
        let active = self.active.entry(piece).or_insert_with(|| {
            *next_epoch += 1;
            Active {
                epoch: *next_epoch,
                segments: (0..count).map(|_| Slot::new()).collect(),
                hash_promised: 0,
                hash_done: 0,
                hash_epoch: 0,
                hash: None,
            }
        });
        &mut active.segments[segment as usize]
    }

    fn slot(&self, piece: PieceIndex, segment: u32) -> Option<&Slot<B>> {
        self.active.get(&piece)?.segments.get(segment as usize)
    }

    fn slot_mut(&mut self, piece: PieceIndex, segment: u32) -> Option<&mut Slot<B>> {
        let active = self.active.get_mut(&piece)?;
        active.segments.get_mut(segment as usize)
    }

    fn of(&self, ticket: Ticket) -> Option<&Active<B, H>> {
        let active = self.active.get(&ticket.piece)?;
        (active.epoch == ticket.epoch).then_some(active)
    }

    fn of_hash(&self, ticket: Ticket) -> Option<&Active<B, H>> {
        self.of(ticket)
            .filter(|active| active.hash_epoch == ticket.hash_epoch)
    }

    fn of_mut(&mut self, ticket: Ticket) -> Option<&mut Active<B, H>> {
        let active = self.active.get_mut(&ticket.piece)?;
        (active.epoch == ticket.epoch).then_some(active)
    }

    fn slot_of(&mut self, ticket: Ticket) -> Option<&mut Slot<B>> {
        let active = self.of_mut(ticket)?;
        active.segments.get_mut(ticket.segment as usize)
    }
}

/// The byte ranges of a block set inside its segment of `segment_bytes`, neighbours joined.
pub fn runs(blocks: u16, segment_bytes: u32) -> impl Iterator<Item = Range<usize>> {
    let mut block = 0;
    std::iter::from_fn(move || {
        while block < SEGMENT_BLOCKS && blocks & (1 << block) == 0 {
            block += 1;
        }
        let first = block;
        while block < SEGMENT_BLOCKS && blocks & (1 << block) != 0 {
            block += 1;
        }
        let end = (block * BLOCK_BYTES).min(segment_bytes) as usize;
        let start = (first * BLOCK_BYTES) as usize;
        (start < end).then_some(start..end)
    })
}

/// The blocks that a run of [`runs`] is of.
fn blocks_in(run: &Range<usize>) -> u16 {
    let numbers = 0..SEGMENT_BLOCKS;
    let is_in = |number: &u32| run.contains(&((number * BLOCK_BYTES) as usize));
    numbers
        .filter(is_in)
        .fold(0, |set, number| set | 1 << number)
}

/// The block's segment, and its bit there.
fn locate(block: BlockRef) -> (u32, u16) {
    let bit = 1_u16 << (block.begin() % SEGMENT_BYTES / BLOCK_BYTES);
    (block.begin() / SEGMENT_BYTES, bit)
}

#[cfg(test)]
mod tests;
