//! One piece on its way: the state of its blocks and segments. Layer 2.

use crate::base::{BLOCK_BYTES, BlockRef, Geometry, Now, PieceIndex, SEGMENT_BYTES};
use crate::swarm::PeerKey;
use crate::swarm::poison::Party;

/// Blocks in a full segment.
const SEGMENT_BLOCKS: u32 = SEGMENT_BYTES / BLOCK_BYTES;

/// Where one block is; it is in exactly one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Nobody was asked for it.
    Free,
    /// Asked for; `requests` peers owe it.
    Requested,
    /// One peer's payload is going into its place.
    Receiving,
    /// In assembly memory.
    InMemory,
    /// In its file.
    OnDisk,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub state: BlockState,
    /// Outstanding requests for it, the one being received not counted.
    pub requests: u8,
    /// Who sent it: index into `Active::sources`.
    pub source: u16,
}

/// A run of blocks that share assembly memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segment {
    pub bytes: u32,
    pub blocks: u8,
    pub free: u8,
    pub receiving: u8,
    pub in_memory: u8,
    pub on_disk: u8,
    /// Its bytes are deducted from the session's account.
    pub is_reserved: bool,
    /// An `Effect::FlushSegment` is not answered yet.
    pub is_flushing: bool,
}

/// How memory is held for the piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of it, until hashed and written.
    Whole,
    /// Segment by segment, each written as soon as it is full.
    Streamed,
}

/// How far the piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Blocks are asked for.
    Fetching,
    /// All of it is here, and one of its sources is in as many bad copies as are borne: not hashed before that is
    /// cleared up.
    Held,
    /// `Effect::Hash` is not answered yet.
    Hashing,
    /// Its hash was wrong, and which of its blocks are bad is being found out.
    Sifting,
    /// `Effect::DigestBlocks` is not answered yet.
    Digesting { is_good: bool },
    /// `Effect::Write` is not answered yet.
    Writing,
    /// Given up; waits for receives and writes under way to end.
    Dropping,
}

/// What `Active::next_free` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreeBlock {
    /// Memory is held for it.
    Ready(u32),
    /// The segment's memory must be reserved first.
    NeedsSegment(u32),
    None,
}

/// What the arrival of a block completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completes {
    Nothing,
    /// A segment of a streamed piece: flush it.
    Segment(u32),
    /// The piece: hash it.
    Piece,
}

#[derive(Clone, Debug)]
pub(super) struct Active {
    pub piece: PieceIndex,
    pub mode: Mode,
    pub phase: Phase,
    /// The peer that opened or took over the piece; others join only when there is nothing else for them, so that a
    /// bad piece has one source as a rule.
    pub owner: Option<PeerKey>,
    /// Nobody but the owner may join.
    pub is_alone: bool,
    pub blocks: Vec<Block>,
    pub segments: Vec<Segment>,
    pub sources: Vec<Party>,
    pub free: u32,
    pub here: u32,
    pub receiving: u32,
    pub flushing: u32,
    pub opened_at: Now,
    pub progress_at: Now,
    /// No segment below has a free block.
    first_free_segment: u32,
}

impl Active {
    pub fn new(geometry: &Geometry, piece: PieceIndex, mode: Mode, now: Now) -> Self {
        let block_count = geometry.block_count(piece);
        let free = Block {
            state: BlockState::Free,
            requests: 0,
            source: 0,
        };
        let segments = (0..geometry.segment_count(piece)).map(|segment| {
            let bytes = geometry.segment_bytes(piece, segment);
            let blocks = bytes.div_ceil(BLOCK_BYTES) as u8;
            Segment {
                bytes,
                blocks,
                free: blocks,
                ..Segment::default()
            }
        });
        Active {
            piece,
            mode,
            phase: Phase::Fetching,
            owner: None,
            is_alone: false,
            blocks: vec![free; block_count as usize],
            segments: segments.collect(),
            sources: Vec::new(),
            free: block_count,
            here: 0,
            receiving: 0,
            flushing: 0,
            opened_at: now,
            progress_at: now,
            first_free_segment: 0,
        }
    }

    /// Bytes of memory held.
    pub fn reserved_bytes(&self) -> u64 {
        let reserved = self.segments.iter().filter(|segment| segment.is_reserved);
        reserved.map(|segment| u64::from(segment.bytes)).sum()
    }

    /// The lowest free block whose memory is held, else the lowest segment with free blocks.
    pub fn next_free(&mut self) -> FreeBlock {
        if self.free == 0 || self.phase != Phase::Fetching {
            return FreeBlock::None;
        }
        let mut is_first = true;
        let mut unreserved = None;
        for index in self.first_free_segment..self.segments.len() as u32 {
            let segment = &self.segments[index as usize];
            if segment.free == 0 {
                continue;
            }
            if std::mem::take(&mut is_first) {
                self.first_free_segment = index;
            }
            if segment.is_flushing {
                continue;
            }
            if segment.is_reserved {
                return FreeBlock::Ready(self.free_block_of(index));
            }
            unreserved = unreserved.or(Some(index));
        }
        unreserved.map_or(FreeBlock::None, FreeBlock::NeedsSegment)
    }

    pub fn request(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        entry.requests += 1;
        if entry.state == BlockState::Free {
            entry.state = BlockState::Requested;
            self.free -= 1;
            self.segments[segment_of(block)].free -= 1;
        }
    }

    /// One request less; true when the block is free again.
    pub fn release(&mut self, block: u32) -> bool {
        let entry = &mut self.blocks[block as usize];
        entry.requests = entry.requests.saturating_sub(1);
        let is_freed = entry.state == BlockState::Requested && entry.requests == 0;
        if is_freed {
            self.set_free(block);
        }
        is_freed
    }

    /// True when a payload may go into the block's place now, memory aside.
    pub fn may_receive(&self, block: u32) -> bool {
        let state = self.blocks[block as usize].state;
        self.phase == Phase::Fetching
            && matches!(state, BlockState::Free | BlockState::Requested)
            && !self.segments[segment_of(block)].is_flushing
    }

    /// False when the piece is to come from another peer alone.
    pub fn may_come_from(&self, (peer, party): (PeerKey, Party)) -> bool {
        let is_its = match self.owner {
            Some(owner) => owner == peer,
            None => self.sources.iter().all(|source| *source == party),
        };
        !self.is_alone || is_its
    }

    /// True when somebody was asked for a block that is not here yet.
    pub fn is_owed(&self) -> bool {
        self.free + self.here < self.blocks.len() as u32
    }

    pub fn begin_receive(&mut self, block: u32) {
        let segment = &mut self.segments[segment_of(block)];
        let entry = &mut self.blocks[block as usize];
        if entry.state == BlockState::Free {
            self.free -= 1;
            segment.free -= 1;
        }
        entry.state = BlockState::Receiving;
        segment.receiving += 1;
        self.receiving += 1;
    }

    /// True when the block is free again.
    pub fn abort_receive(&mut self, block: u32) -> bool {
        self.end_receive(block);
        let entry = &mut self.blocks[block as usize];
        if entry.requests > 0 {
            entry.state = BlockState::Requested;
            return false;
        }
        self.set_free(block);
        true
    }

    pub fn finish_receive(&mut self, block: u32, from: Party, now: Now) -> Completes {
        self.end_receive(block);
        let source = self.source_index(from);
        let entry = &mut self.blocks[block as usize];
        entry.state = BlockState::InMemory;
        entry.source = source;
        let at = segment_of(block);
        self.segments[at].in_memory += 1;
        self.here += 1;
        self.progress_at = now;
        self.completes(at as u32)
    }

    /// True when the block is in memory or in its file.
    pub fn is_here(&self, block: u32) -> bool {
        let state = self.blocks.get(block as usize).map(|block| block.state);
        matches!(state, Some(BlockState::InMemory | BlockState::OnDisk))
    }

    pub fn is_full(&self) -> bool {
        self.here as usize == self.blocks.len()
    }

    /// Marks what is in memory as on its way to disk.
    pub fn begin_flush(&mut self, segment: u32) {
        self.segments[segment as usize].is_flushing = true;
        self.flushing += 1;
    }

    /// One flush of a piece that was given up has ended, well or badly. Failures name no segment, so any will do: its
    /// memory is freed with the piece, once none is awaited any more.
    pub fn end_any_flush(&mut self) {
        if let Some(segment) = self.segments.iter_mut().find(|s| s.is_flushing) {
            segment.is_flushing = false;
            self.flushing -= 1;
        }
    }

    /// The blocks that were in memory are on disk; returns the bytes whose memory is free.
    pub fn end_flush(&mut self, segment: u32) -> u64 {
        let first = segment * SEGMENT_BLOCKS;
        let at = &mut self.segments[segment as usize];
        if !std::mem::take(&mut at.is_flushing) {
            return 0;
        }
        self.flushing -= 1;
        at.on_disk += std::mem::take(&mut at.in_memory);
        for block in &mut self.blocks[first as usize..][..usize::from(at.blocks)] {
            if block.state == BlockState::InMemory {
                block.state = BlockState::OnDisk;
            }
        }
        let was_reserved = std::mem::take(&mut at.is_reserved);
        u64::from(at.bytes) * u64::from(was_reserved)
    }

    /// A block that is here is missing again.
    pub fn take_back(&mut self, block: u32) {
        let Some(entry) = self.blocks.get(block as usize) else {
            return;
        };
        let segment = &mut self.segments[segment_of(block)];
        match entry.state {
            BlockState::InMemory => segment.in_memory -= 1,
            BlockState::OnDisk => segment.on_disk -= 1,
            _ => return,
        }
        self.here -= 1;
        self.set_free(block);
    }

    /// Forgets sources of which no block is here any more.
    pub fn trim_sources(&mut self) {
        let all = std::mem::take(&mut self.sources);
        for block in 0..self.blocks.len() as u32 {
            let party = all.get(usize::from(self.blocks[block as usize].source));
            if let Some(party) = party.filter(|_| self.is_here(block)) {
                self.blocks[block as usize].source = self.source_index(*party);
            }
        }
    }

    /// True when every block is in its file.
    pub fn is_on_disk(&self) -> bool {
        let on_disk = |segment: &Segment| segment.on_disk == segment.blocks;
        self.segments.iter().all(on_disk)
    }

    /// # Panics
    /// When an invariant is broken.
    pub fn check(&self) {
        let (mut free, mut receiving, mut here, mut blocks) = (0, 0, 0, 0);
        for (index, segment) in self.segments.iter().enumerate() {
            let first = index * SEGMENT_BLOCKS as usize;
            let mut counts = [0; 5];
            for block in &self.blocks[first..][..usize::from(segment.blocks)] {
                counts[block.state as usize] += 1;
                assert!(block.state != BlockState::Requested || block.requests > 0);
                assert!(block.state != BlockState::Free || block.requests == 0);
            }
            let count = |state| counts[state as usize];
            assert_eq!(count(BlockState::Free), segment.free);
            assert_eq!(count(BlockState::Receiving), segment.receiving);
            assert_eq!(count(BlockState::InMemory), segment.in_memory);
            assert_eq!(count(BlockState::OnDisk), segment.on_disk);
            let holds = segment.receiving + segment.in_memory > 0;
            assert!(!holds || segment.is_reserved, "bytes without memory");
            assert!(!segment.is_flushing || segment.is_reserved);
            assert!(segment.free == 0 || index as u32 >= self.first_free_segment);
            free += u32::from(segment.free);
            receiving += u32::from(segment.receiving);
            here += u32::from(segment.in_memory) + u32::from(segment.on_disk);
            blocks += usize::from(segment.blocks);
        }
        assert_eq!(blocks, self.blocks.len());
        assert_eq!(free, self.free);
        assert_eq!(receiving, self.receiving);
        assert_eq!(here, self.here);
        let flushing = self.segments.iter().filter(|s| s.is_flushing).count();
        assert_eq!(flushing as u32, self.flushing);
        let is_fetching = matches!(self.phase, Phase::Fetching | Phase::Dropping);
        assert!(is_fetching || self.is_full());
    }

    fn completes(&self, segment: u32) -> Completes {
        let at = &self.segments[segment as usize];
        match self.mode {
            Mode::Whole if self.is_full() => Completes::Piece,
            Mode::Streamed if at.in_memory + at.on_disk == at.blocks => Completes::Segment(segment),
            _ => Completes::Nothing,
        }
    }

    fn end_receive(&mut self, block: u32) {
        self.segments[segment_of(block)].receiving -= 1;
        self.receiving -= 1;
    }

    fn set_free(&mut self, block: u32) {
        self.blocks[block as usize].state = BlockState::Free;
        let segment = segment_of(block);
        self.segments[segment].free += 1;
        self.free += 1;
        self.first_free_segment = self.first_free_segment.min(segment as u32);
    }

    fn free_block_of(&self, segment: u32) -> u32 {
        let first = segment * SEGMENT_BLOCKS;
        let blocks = &self.blocks[first as usize..];
        let at = blocks.iter().position(|b| b.state == BlockState::Free);
        first + at.expect("the segment counts a free block") as u32
    }

    fn source_index(&mut self, from: Party) -> u16 {
        let known = self.sources.iter().rposition(|party| *party == from);
        let index = known.unwrap_or_else(|| {
            self.sources.push(from);
            self.sources.len() - 1
        });
        // A piece has at most 32,768 blocks and no more sources than that.
        index as u16
    }
}

/// The segment a block lies in.
pub(super) fn segment_of(block: u32) -> usize {
    (block / SEGMENT_BLOCKS) as usize
}

/// The number of a block on the request grid.
pub(super) fn block_number(block: BlockRef) -> u32 {
    block.begin() / BLOCK_BYTES
}
