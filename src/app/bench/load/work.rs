//! Which blocks a synthetic leecher asks for, in which order. Layer 7.

use std::collections::VecDeque;

use crate::base::{BLOCK_BYTES, Geometry, Rng};
use crate::wire::message::RawBlock;

/// Contiguous blocks of a torrent: the first, and how many.
type Run = (u64, u32);

/// All runs of a torrent in random order, shared by its connections: none comes twice in a turn.
pub struct Shuffled {
    runs: Vec<u32>,
    next: usize,
    run_blocks: u32,
    blocks: u64,
    once: bool,
    rng: Rng,
}

impl Shuffled {
    /// The share of one process: every `of`-th run, from the `number`-th on.
    pub fn new(
        blocks: u64,
        run_blocks: u32,
        (number, of): (u32, u32),
        once: bool,
        seed: u64,
    ) -> Shuffled {
        let run_blocks = run_blocks.max(1);
        let runs = u32::try_from(blocks.div_ceil(u64::from(run_blocks))).unwrap_or(u32::MAX);
        let mut shuffled = Shuffled {
            runs: (number..runs).step_by(of.max(1) as usize).collect(),
            next: 0,
            run_blocks,
            blocks,
            once,
            rng: Rng::new(seed),
        };
        shuffled.shuffle();
        shuffled
    }

    fn shuffle(&mut self) {
        for at in (1..self.runs.len()).rev() {
            let other = self.rng.below(at as u64 + 1) as usize;
            self.runs.swap(at, other);
        }
        self.next = 0;
    }

    fn next_run(&mut self) -> Option<Run> {
        if self.next >= self.runs.len() {
            if self.once {
                return None;
            }
            self.shuffle();
        }
        let run = *self.runs.get(self.next)?;
        self.next += 1;
        let first = u64::from(run) * u64::from(self.run_blocks);
        let left = self.blocks.saturating_sub(first);
        Some((first, u64::from(self.run_blocks).min(left) as u32))
    }
}

/// One connection's way through its torrent.
pub struct Walk {
    geometry: Geometry,
    blocks: u64,
    per_piece: u64,
    kind: Kind,
    /// Asked for and not answered when the other side choked us: asked for again first.
    again: VecDeque<RawBlock>,
}

enum Kind {
    Sequential { next: u64, left: Option<u64> },
    Shuffled { run: Run },
    Announced { pieces: VecDeque<u32>, block: u64 },
}

impl Walk {
    /// From the `number`-th of `of` evenly spread places on; with `once` to the next place only.
    pub fn sequential(geometry: Geometry, number: u32, of: u32, once: bool) -> Walk {
        let mut walk = Walk::new(geometry, Kind::Shuffled { run: (0, 0) });
        let place = |number: u32| walk.blocks * u64::from(number) / u64::from(of.max(1));
        let (next, end) = (place(number), place(number + 1));
        let left = once.then_some(end - next);
        walk.kind = Kind::Sequential { next, left };
        walk
    }

    /// Runs taken from a [`Shuffled`] list.
    pub fn shuffled(geometry: Geometry) -> Walk {
        Walk::new(geometry, Kind::Shuffled { run: (0, 0) })
    }

    /// Pieces as they are announced.
    pub fn announced(geometry: Geometry) -> Walk {
        let pieces = VecDeque::new();
        Walk::new(geometry, Kind::Announced { pieces, block: 0 })
    }

    fn new(geometry: Geometry, kind: Kind) -> Walk {
        Walk {
            blocks: blocks_of(&geometry),
            per_piece: u64::from(geometry.piece_length_bytes()).div_ceil(u64::from(BLOCK_BYTES)),
            geometry,
            kind,
            again: VecDeque::new(),
        }
    }

    /// Whether announcements are of interest.
    pub fn follows_announcements(&self) -> bool {
        matches!(self.kind, Kind::Announced { .. })
    }

    /// The other side has this piece.
    pub fn announce(&mut self, piece: u32) {
        if let Kind::Announced { pieces, .. } = &mut self.kind {
            pieces.push_back(piece);
        }
    }

    /// This request will not be answered.
    pub fn unanswered(&mut self, block: RawBlock) {
        self.again.push_back(block);
    }

    /// The next block to ask for.
    pub fn next(&mut self, shuffled: Option<&mut Shuffled>) -> Option<RawBlock> {
        if let Some(block) = self.again.pop_front() {
            return Some(block);
        }
        match &mut self.kind {
            Kind::Sequential { next, left } => {
                if let Some(left) = left {
                    *left = left.checked_sub(1)?;
                }
                let block = *next;
                *next = (*next + 1) % self.blocks;
                Some(self.block(block))
            }
            Kind::Shuffled { run } => {
                if run.1 == 0 {
                    *run = shuffled?.next_run()?;
                }
                let block = run.0;
                *run = (run.0 + 1, run.1 - 1);
                Some(self.block(block))
            }
            Kind::Announced { pieces, block } => {
                let index = u64::from(*pieces.front()?) * self.per_piece + *block;
                *block += 1;
                let piece_end = self.geometry.piece(*pieces.front()?)?;
                if *block >= u64::from(self.geometry.block_count(piece_end)) {
                    pieces.pop_front();
                    *block = 0;
                }
                Some(self.block(index))
            }
        }
    }

    /// The n-th block of the torrent, pieces one behind the other.
    fn block(&self, index: u64) -> RawBlock {
        let piece = (index / self.per_piece) as u32;
        let begin = (index % self.per_piece) as u32 * BLOCK_BYTES;
        let piece_bytes = self
            .geometry
            .piece(piece)
            .map_or(0, |piece| self.geometry.piece_bytes(piece));
        RawBlock {
            piece,
            begin,
            length: piece_bytes.saturating_sub(begin).min(BLOCK_BYTES),
        }
    }
}

/// Blocks of a torrent.
pub fn blocks_of(geometry: &Geometry) -> u64 {
    let count = |piece| u64::from(geometry.block_count(piece));
    let all = u64::from(geometry.piece_count());
    let first = geometry.piece(0).map_or(0, count);
    let last = geometry
        .piece(geometry.piece_count().saturating_sub(1))
        .map_or(0, count);
    first * all.saturating_sub(1) + last
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn geometry() -> Geometry {
        // Five pieces of two blocks, the last of one block and a short one.
        Geometry::new(4 * 32_768 + 20_000, 32_768).unwrap()
    }

    fn all(walk: &mut Walk, mut shuffled: Option<&mut Shuffled>) -> Vec<RawBlock> {
        std::iter::from_fn(|| walk.next(shuffled.as_deref_mut())).collect()
    }

    #[test]
    fn sequential_walks_of_all_connections_cover_the_torrent_once() {
        let mut seen = Vec::new();
        for number in 0..3 {
            seen.extend(all(
                &mut Walk::sequential(geometry(), number, 3, true),
                None,
            ));
        }
        let distinct: BTreeSet<RawBlock> = seen.iter().copied().collect();
        assert_eq!((seen.len(), distinct.len()), (10, 10));
        let bytes: u64 = seen.iter().map(|block| u64::from(block.length)).sum();
        assert_eq!(bytes, geometry().total_bytes());
    }

    #[test]
    fn shuffled_runs_of_all_processes_cover_the_torrent_once() {
        let mut seen = Vec::new();
        for number in 0..2 {
            let mut list = Shuffled::new(10, 3, (number, 2), true, 7);
            seen.extend(all(&mut Walk::shuffled(geometry()), Some(&mut list)));
        }
        let distinct: BTreeSet<RawBlock> = seen.iter().copied().collect();
        assert_eq!((seen.len(), distinct.len()), (10, 10));
    }

    #[test]
    fn announced_pieces_are_asked_for_in_their_order_and_whole() {
        let mut walk = Walk::announced(geometry());
        assert_eq!(walk.next(None), None);
        walk.announce(4);
        walk.announce(1);
        let blocks: Vec<_> = all(&mut walk, None)
            .iter()
            .map(|block| (block.piece, block.begin, block.length))
            .collect();
        assert_eq!(
            blocks,
            [
                (4, 0, 16_384),
                (4, 16_384, 3_616),
                (1, 0, 16_384),
                (1, 16_384, 16_384)
            ]
        );
    }
}
