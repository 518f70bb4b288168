//! Blocks on their way to the disk, under any order of arrivals, loans, failures and verdicts, beside a flat model.
//!
//! A buffer has one byte a block: the mark of the arrival that filled it.

use gyre::base::{BLOCK_BYTES, BlockRef, Geometry, PieceIndex};
use gyre::storage::assembly::{Assembly, HashTurn, SEGMENT_BLOCKS, Ticket};

const PIECES: u32 = 3;
/// Three segments, the last one short.
const PIECE_BLOCKS: u32 = 2 * SEGMENT_BLOCKS + 5;
const SEGMENTS: u32 = PIECE_BLOCKS.div_ceil(SEGMENT_BLOCKS);
const LOANS_MAX: usize = 24;

/// One byte a block.
type Marks = Vec<u8>;

struct Loan {
    ticket: Ticket,
    buffer: Marks,
    /// The running hash has it, or will never want it.
    is_hashed: bool,
}

struct Store {
    assembly: Assembly<Marks, Marks>,
    geometry: Geometry,
    /// By piece and block: what lies on the disk, and what has arrived since the piece began.
    disk: Vec<Marks>,
    arrived: Vec<Vec<Option<u8>>>,
    arriving: Vec<BlockRef>,
    loans: Vec<Loan>,
    read_backs: Vec<Ticket>,
    next_mark: u8,
}

/// Assembly: no block is lost, doubled or mixed with one of an earlier try, and all memory comes back.
pub fn assembly(data: &[u8]) {
    let mut store = Store::new(data.first().copied().unwrap_or(0));
    let mut script = data.iter().copied().skip(1);
    while let Some(op) = script.next() {
        let (a, b) = (script.next().unwrap_or(0), script.next().unwrap_or(0));
        store.step(op, usize::from(a), b);
        store.check();
    }
    store.end();
}

impl Store {
    fn new(kind: u8) -> Store {
        let piece_bytes = u64::from(PIECE_BLOCKS * BLOCK_BYTES);
        // The last piece ends within a block, and in another segment from run to run.
        let missing = u64::from(kind) * u64::from(BLOCK_BYTES) / 8 + 1;
        let total = piece_bytes * u64::from(PIECES) - missing.min(piece_bytes - 1);
        let geometry = Geometry::new(total, piece_bytes).expect("a good shape");
        Store {
            assembly: Assembly::new(geometry.clone()),
            geometry,
            disk: vec![vec![0; PIECE_BLOCKS as usize]; PIECES as usize],
            arrived: vec![vec![None; PIECE_BLOCKS as usize]; PIECES as usize],
            arriving: Vec::new(),
            loans: Vec::new(),
            read_backs: Vec::new(),
            next_mark: 0,
        }
    }

    fn step(&mut self, op: u8, a: usize, b: u8) {
        let piece = PieceIndex::new(u32::from(b) % PIECES);
        let segment = u32::from(b >> 4) % SEGMENTS;
        match op % 17 {
            0..=2 => self.arrive(piece, a as u32 % PIECE_BLOCKS),
            3 => self.arrive_all(piece, segment),
            4 | 5 if !self.arriving.is_empty() => {
                let block = self.arriving.swap_remove(a % self.arriving.len());
                self.assembly.block_done(block);
                let mark = self.mark_in_memory(block);
                self.arrived[block.piece().as_usize()][at(block)] = Some(mark);
            }
            6 if !self.arriving.is_empty() => {
                let block = self.arriving.swap_remove(a % self.arriving.len());
                self.assembly.block_abandoned(block);
            }
            7 | 8 if self.loans.len() < LOANS_MAX => self.flush(piece, segment),
            9 if self.loans.len() < LOANS_MAX => self.take_piece(piece),
            10 | 11 if !self.loans.is_empty() => self.end_loan(a % self.loans.len(), true),
            12 if !self.loans.is_empty() => self.end_loan(a % self.loans.len(), false),
            13 => self.read_back(piece, a),
            14 if a < 64 => self.discard(piece),
            15 => self.verdict(piece),
            16 => self.drop_some(piece, a as u32),
            _ => {}
        }
    }

    fn arrive_all(&mut self, piece: PieceIndex, segment: u32) {
        let first = segment * SEGMENT_BLOCKS;
        for number in first..first + SEGMENT_BLOCKS {
            self.arrive(piece, number);
        }
        for block in std::mem::take(&mut self.arriving) {
            if block.piece() == piece && at(block) as u32 / SEGMENT_BLOCKS == segment {
                self.assembly.block_done(block);
                let mark = self.mark_in_memory(block);
                self.arrived[piece.as_usize()][at(block)] = Some(mark);
            } else {
                self.arriving.push(block);
            }
        }
    }

    /// A block that nobody has sent yet begins to arrive.
    fn arrive(&mut self, piece: PieceIndex, number: u32) {
        let Some(block) = self.geometry.block(piece, number) else {
            return;
        };
        let is_here = self.arrived[piece.as_usize()][at(block)].is_some();
        if is_here || self.arriving.contains(&block) {
            return;
        }
        let place = self.assembly.place(block);
        assert_eq!(place.segment, number / SEGMENT_BLOCKS);
        let slot = number % SEGMENT_BLOCKS;
        assert_eq!(place.offset_in_segment, slot * BLOCK_BYTES);
        if let Some(bytes) = place.needs_buffer {
            assert_eq!(bytes, self.assembly.segment_bytes(piece, place.segment));
            let fresh = vec![0; SEGMENT_BLOCKS as usize];
            let refused = self.assembly.insert_buffer(piece, place.segment, fresh);
            assert!(refused.is_none(), "a buffer that was wanted is refused");
        }
        self.next_mark = self.next_mark.wrapping_add(1).max(1);
        let buffer = self.assembly.buffer_mut(piece, place.segment);
        buffer.expect("a block that arrives has memory")[slot as usize] = self.next_mark;
        self.arriving.push(block);
    }

    fn mark_in_memory(&mut self, block: BlockRef) -> u8 {
        let number = at(block) as u32;
        let buffer = self
            .assembly
            .buffer_mut(block.piece(), number / SEGMENT_BLOCKS);
        buffer.expect("a block that has come is in memory")[(number % SEGMENT_BLOCKS) as usize]
    }

    fn flush(&mut self, piece: PieceIndex, segment: u32) {
        let taken = self.assembly.take_segment_for_flush(piece, segment);
        if let Some(taken) = taken {
            self.lend(taken.ticket, taken.buffer, taken.keep);
        }
    }

    fn take_piece(&mut self, piece: PieceIndex) {
        for taken in self.assembly.take_piece(piece) {
            assert!(!taken.ticket.is_hashed);
            self.lend(taken.ticket, taken.buffer, taken.keep);
        }
    }

    fn lend(&mut self, ticket: Ticket, buffer: Marks, keep: u16) {
        assert_ne!(ticket.blocks, 0, "a loan of nothing");
        assert_eq!(ticket.blocks & keep, 0);
        for (slot, mark) in marks(ticket.blocks, &buffer) {
            let number = ticket.segment * SEGMENT_BLOCKS + slot;
            let arrived = self.arrived[ticket.piece.as_usize()][number as usize];
            assert_eq!(Some(mark), arrived, "{ticket:?} block {slot}");
        }
        if keep != 0 {
            let mut fresh = vec![0; SEGMENT_BLOCKS as usize];
            marks(keep, &buffer).for_each(|(slot, mark)| fresh[slot as usize] = mark);
            let assembly = &mut self.assembly;
            let refused = assembly.insert_buffer(ticket.piece, ticket.segment, fresh);
            assert!(refused.is_none(), "no room for what is arriving");
        }
        let is_hashed = !ticket.is_hashed;
        self.loans.push(Loan {
            ticket,
            buffer,
            is_hashed,
        });
    }

    /// Hashes in turn, then writes or fails to.
    fn end_loan(&mut self, index: usize, is_good: bool) {
        let loan = &mut self.loans[index];
        let ticket = loan.ticket;
        if !loan.is_hashed {
            match self.assembly.hash_turn(ticket) {
                HashTurn::Wait => return,
                HashTurn::Void => {}
                HashTurn::Now => {
                    let all = self.assembly.segment_blocks(ticket.piece, ticket.segment);
                    assert_eq!(ticket.blocks, all, "a part of a segment is hashed");
                    let hash = self.assembly.take_hash(ticket);
                    let mut hash = hash.unwrap_or_default();
                    hash.extend(marks(all, &loan.buffer).map(|(_, mark)| mark));
                    self.assembly.put_hash(ticket, hash);
                }
            }
            loan.is_hashed = true;
        }
        let Loan { buffer, .. } = self.loans.swap_remove(index);
        if !is_good {
            self.assembly.give_back(ticket, buffer, |from, to, range| {
                let end = range.end.div_ceil(BLOCK_BYTES as usize);
                let slots = range.start / BLOCK_BYTES as usize..end;
                to[slots.clone()].copy_from_slice(&from[slots]);
                true
            });
            return;
        }
        if self.assembly.is_current(ticket) {
            for (slot, mark) in marks(ticket.blocks, &buffer) {
                let number = ticket.segment * SEGMENT_BLOCKS + slot;
                self.disk[ticket.piece.as_usize()][number as usize] = mark;
            }
        }
        self.assembly.written(ticket);
    }

    /// A segment on disk is promised to the running hash, or one promised has its turn, or cannot be read.
    fn read_back(&mut self, piece: PieceIndex, a: usize) {
        if self.read_backs.len() < LOANS_MAX
            && let Some(ticket) = self.assembly.take_read_back(piece)
        {
            self.read_backs.push(ticket);
        }
        if self.read_backs.is_empty() {
            return;
        }
        let index = a % self.read_backs.len();
        let ticket = self.read_backs[index];
        match self.assembly.hash_turn(ticket) {
            HashTurn::Wait => return,
            HashTurn::Now if a >= 32 => {
                let hash = self.assembly.take_hash(ticket);
                let mut hash = hash.unwrap_or_default();
                let full = self.assembly.segment_blocks(ticket.piece, ticket.segment);
                let first = (ticket.segment * SEGMENT_BLOCKS) as usize;
                let on_disk = &self.disk[ticket.piece.as_usize()][first..];
                hash.extend(&on_disk[..full.count_ones() as usize]);
                self.assembly.put_hash(ticket, hash);
            }
            HashTurn::Now | HashTurn::Void => self.assembly.reset_hash(ticket),
        }
        self.read_backs.swap_remove(index);
    }

    fn discard(&mut self, piece: PieceIndex) {
        let was_active = self.assembly.is_active(piece);
        assert_eq!(self.assembly.discard(piece), was_active);
        self.arriving.retain(|block| block.piece() != piece);
        self.arrived[piece.as_usize()].fill(None);
    }

    /// Blocks of a whole piece prove bad: every fourth from one on.
    fn drop_some(&mut self, piece: PieceIndex, first: u32) {
        let is_lent = self.loans.iter().any(|loan| loan.ticket.piece == piece);
        if is_lent || !self.assembly.is_whole(piece) {
            return;
        }
        for number in (first % PIECE_BLOCKS..PIECE_BLOCKS).step_by(4) {
            if let Some(block) = self.geometry.block(piece, number) {
                self.assembly.block_dropped(block);
                self.arrived[piece.as_usize()][at(block)] = None;
            }
        }
    }

    /// The running hash holds what arrived, from the front.
    fn verdict(&mut self, piece: PieceIndex) {
        if !self.assembly.is_whole(piece) {
            return;
        }
        if let Some((hash, segments)) = self.assembly.take_progress(piece) {
            let blocks = self
                .geometry
                .block_count(piece)
                .min(segments * SEGMENT_BLOCKS);
            let arrived = &self.arrived[piece.as_usize()][..blocks as usize];
            let arrived: Option<Marks> = arrived.iter().copied().collect();
            assert_eq!(hash.unwrap_or_default(), arrived.expect("whole"));
        }
    }

    fn check(&mut self) {
        self.assembly.check();
        for piece in self.geometry.pieces() {
            let mut is_whole = true;
            for segment in 0..self.assembly.segment_count(piece) {
                is_whole &= self.check_segment(piece, segment);
            }
            let is_whole = is_whole && self.assembly.is_active(piece);
            assert_eq!(self.assembly.is_whole(piece), is_whole, "{piece:?}");
        }
    }

    /// Everything that arrived is in one place, and unspoilt. True when all of the segment is here.
    fn check_segment(&mut self, piece: PieceIndex, segment: u32) -> bool {
        let held = self.assembly.blocks_in_memory(piece, segment);
        let on_disk = self.assembly.blocks_on_disk(piece, segment);
        let here = held | on_disk | self.assembly.blocks_lent(piece, segment);
        let first = segment * SEGMENT_BLOCKS;
        for slot in 0..SEGMENT_BLOCKS {
            let number = (first + slot) as usize;
            let arrived = self.arrived[piece.as_usize()]
                .get(number)
                .copied()
                .flatten();
            let bit = 1 << slot;
            assert_eq!(here & bit != 0, arrived.is_some(), "{piece:?} {number}");
            if held & bit != 0 {
                let buffer = self.assembly.buffer_mut(piece, segment);
                let mark = buffer.map(|buffer| buffer[slot as usize]);
                assert_eq!(mark, arrived, "{piece:?} {number} in memory");
            }
            if on_disk & bit != 0 {
                let mark = self.disk[piece.as_usize()][number];
                assert_eq!(Some(mark), arrived, "{piece:?} {number} on disk");
            }
        }
        here == self.assembly.segment_blocks(piece, segment)
    }

    fn end(&mut self) {
        // Promises are kept in the order they were made: a round each is enough.
        for _ in 0..2 * LOANS_MAX {
            for index in (0..self.loans.len()).rev() {
                self.end_loan(index, true);
            }
            for index in (0..self.read_backs.len()).rev() {
                self.read_back(PieceIndex::new(0), 64 * self.read_backs.len() + index);
            }
        }
        assert!(self.loans.is_empty(), "a loan waits for ever");
        for piece in self.geometry.pieces() {
            self.verdict(piece);
            self.discard(piece);
        }
        self.check();
        assert_eq!(self.assembly.memory_bytes(), 0);
    }
}

/// The number of the block in its piece.
fn at(block: BlockRef) -> usize {
    (block.begin() / BLOCK_BYTES) as usize
}

fn marks(blocks: u16, buffer: &[u8]) -> impl Iterator<Item = (u32, u8)> + '_ {
    let slots = (0..).zip(buffer.iter().copied());
    slots.filter(move |(slot, _)| blocks >> slot & 1 == 1)
}
