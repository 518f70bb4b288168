//! One node's memory and disk: a tag a block. A tag is good when it is the one that its place demands.

use std::collections::BTreeMap;

use gyre::base::{BLOCK_BYTES, Bitfield, BlockRef, Geometry, PieceIndex};
use gyre::wire::merkle::{self, Node};

/// Blocks of one assembly segment of 256 KiB.
const SEGMENT_BLOCKS: usize = 16;

/// The content of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u64);

impl Tag {
    /// The leaf of a block with this content.
    pub fn leaf(self) -> Node {
        merkle::leaf(&self.0.to_be_bytes())
    }
}

/// The tag of the true content.
pub fn good_tag(piece: PieceIndex, block: usize) -> Tag {
    Tag((u64::from(piece.get()) << 32) | block as u64)
}

/// A tag that no true block has; it says who made it.
pub const fn bad_tag(sender: usize, random: u64) -> Tag {
    Tag(1 << 63 | (sender as u64) << 48 | random >> 16)
}

/// Who made a bad tag.
pub fn bad_sender(tag: &Tag) -> Option<usize> {
    (tag.0 >> 63 == 1).then_some((tag.0 >> 48 & 0x7fff) as usize)
}

type Blocks = Vec<Option<Tag>>;

/// What a node holds of the torrent's content.
#[derive(Clone, Debug)]
pub struct Disk {
    geometry: Geometry,
    written: Vec<Blocks>,
    memory: BTreeMap<PieceIndex, Blocks>,
    /// Bytes of the blocks in `memory`.
    memory_bytes: u64,
    /// Pieces that the core called had.
    pub checkpoint: Bitfield,
}

impl Disk {
    /// An empty disk, or one with everything.
    pub fn new(geometry: Geometry, has_all: bool) -> Self {
        let blocks = |piece| {
            let count = geometry.block_count(piece) as usize;
            (0..count).map(move |block| has_all.then(|| good_tag(piece, block)))
        };
        let pieces = geometry.piece_count();
        Disk {
            written: geometry.pieces().map(|p| blocks(p).collect()).collect(),
            geometry,
            memory: BTreeMap::new(),
            memory_bytes: 0,
            checkpoint: match has_all {
                true => Bitfield::full(pieces),
                false => Bitfield::new(pieces),
            },
        }
    }

    /// The process died: memory is gone, and so is what was written of pieces not yet had.
    pub fn crash(&mut self) {
        self.memory.clear();
        self.memory_bytes = 0;
        for piece in self.geometry.pieces() {
            if !self.checkpoint.has(piece) {
                self.written[piece.as_usize()].fill(None);
            }
        }
    }

    /// Puts a received block into memory.
    pub fn store(&mut self, block: BlockRef, tag: Tag) {
        let piece = block.piece();
        let count = self.geometry.block_count(piece) as usize;
        let blocks = self
            .memory
            .entry(piece)
            .or_insert_with(|| vec![None; count]);
        let slot = &mut blocks[index(block)];
        assert_eq!(*slot, None, "{block:?} is stored twice");
        *slot = Some(tag);
        self.memory_bytes += u64::from(block.length());
    }

    /// True when the block is in memory or on disk.
    pub fn has_block(&self, block: BlockRef) -> bool {
        let memory = self.memory.get(&block.piece());
        let in_memory = memory.and_then(|blocks| blocks[index(block)]);
        in_memory.or(self.read(block)).is_some()
    }

    /// What an upload reads.
    pub fn read(&self, block: BlockRef) -> Option<Tag> {
        self.written[block.piece().as_usize()][index(block)]
    }

    /// The piece as it stands, memory over disk.
    pub fn blocks(&self, piece: PieceIndex) -> Blocks {
        let mut blocks = self.written[piece.as_usize()].clone();
        if let Some(memory) = self.memory.get(&piece) {
            for (block, tag) in blocks.iter_mut().zip(memory) {
                *block = tag.or(*block);
            }
        }
        blocks
    }

    /// True when every block on disk is the true one.
    pub fn is_written_well(&self, piece: PieceIndex) -> bool {
        is_good(piece, &self.written[piece.as_usize()])
    }

    /// The blocks of the piece, or of one segment of it, that memory holds now.
    pub fn plan_write(&self, piece: PieceIndex, segment: Option<u32>) -> Vec<(usize, Tag)> {
        let Some(blocks) = self.memory.get(&piece) else {
            return Vec::new();
        };
        let is_in = |block: usize| segment.is_none_or(|s| block / SEGMENT_BLOCKS == s as usize);
        let present = blocks
            .iter()
            .enumerate()
            .filter_map(|(at, tag)| Some((at, (*tag)?)));
        present.filter(|(at, _)| is_in(*at)).collect()
    }

    /// The write has ended well: the blocks leave memory.
    pub fn commit_write(&mut self, piece: PieceIndex, plan: &[(usize, Tag)]) {
        for (at, tag) in plan {
            self.written[piece.as_usize()][*at] = Some(*tag);
            self.forget(piece, *at);
        }
        if let Some(blocks) = self.memory.get(&piece)
            && blocks.iter().all(Option::is_none)
        {
            self.memory.remove(&piece);
        }
    }

    /// Forgets what memory holds of the piece, and what was spilled of it.
    pub fn discard(&mut self, piece: PieceIndex) {
        let blocks = self.memory.get(&piece).map_or(0, Vec::len);
        (0..blocks).for_each(|at| self.forget(piece, at));
        self.memory.remove(&piece);
        if !self.checkpoint.has(piece) {
            self.written[piece.as_usize()].fill(None);
        }
    }

    /// Forgets these blocks of the piece alone.
    pub fn drop_blocks(&mut self, piece: PieceIndex, blocks: &[u32]) {
        for block in blocks {
            self.written[piece.as_usize()][*block as usize] = None;
            self.forget(piece, *block as usize);
        }
    }

    /// Takes a block out of memory.
    fn forget(&mut self, piece: PieceIndex, at: usize) {
        let blocks = self.memory.get_mut(&piece);
        if blocks.is_some_and(|blocks| blocks[at].take().is_some()) {
            let block = self
                .geometry
                .block(piece, at as u32)
                .expect("a block of it");
            self.memory_bytes -= u64::from(block.length());
        }
    }

    /// The leaf of each block of the piece; `None` when it is not whole.
    pub fn leaves(&self, piece: PieceIndex) -> Option<Vec<Node>> {
        let blocks = self.blocks(piece).into_iter();
        blocks.map(|tag| tag.map(Tag::leaf)).collect()
    }

    /// A piece that was had is gone.
    pub fn lose(&mut self, piece: PieceIndex) {
        self.checkpoint.clear(piece);
        self.written[piece.as_usize()].fill(None);
    }

    /// Bytes of blocks in memory.
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

/// True when all blocks are there and true.
pub fn is_good(piece: PieceIndex, blocks: &[Option<Tag>]) -> bool {
    let mut numbered = blocks.iter().enumerate();
    numbered.all(|(at, tag)| *tag == Some(good_tag(piece, at)))
}

fn index(block: BlockRef) -> usize {
    (block.begin() / BLOCK_BYTES) as usize
}
