//! Which piece to open next: those wanted first before the others, and among them rarest first, at random, or in order.
//! Layer 2.
//!
//! Holds the pieces that may be opened, in one bucket per availability, each bucket in random order. A change of
//! availability moves a piece between neighbouring buckets in O(1); a pick looks at a bounded number of pieces and
//! then compares bitfields word by word. Pieces of another level have buckets of their own, which are there only where
//! levels are set. Which blocks of an open piece are asked for is `pieces`' matter.

use crate::base::{Bitfield, Geometry, PieceIndex, Rng};
use crate::swarm::peer::PeerHave;

/// Pieces looked at in order of rarity before bitfields are compared instead: a peer that has little of what is
/// missing must not cost a walk over 100,000 pieces.
const WALK_MAX: u32 = 256;

/// Candidates among which the rarest is taken after a comparison of bitfields.
const SAMPLE_MAX: u32 = 32;

/// Pieces among which a stretch is looked for: 64 GiB of usual ones, and no more than 0.1 ms.
const STRETCH_PIECES_MAX: u32 = 65_536;

/// Marks a piece that is in no bucket.
const NOWHERE: u32 = u32::MAX;

/// In which order pieces are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickOrder {
    /// The fewest copies first, ties at random.
    Rarest,
    /// Any piece: for the first few, when having something to trade counts for more than rarity.
    Random,
    /// The lowest index first.
    Sequential,
}

/// How early a piece is wanted: pieces of a level are opened before any of the next one that the peer has too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    First,
    #[default]
    Usual,
    Last,
}

/// The pieces that may be opened and how many connected peers have each.
#[derive(Clone, Debug)]
pub struct Picker {
    /// Copies of each piece among peers that do not have everything: seeds would add the same to all.
    copies: Vec<u16>,
    /// Where a piece lies in its bucket, or `NOWHERE`.
    position: Vec<u32>,
    /// One a piece; empty when all are usual.
    levels: Vec<Level>,
    /// The openable pieces, one shelf a level; a single one when all are usual.
    shelves: Vec<Shelf>,
    /// Connected peers that came with everything.
    seeds: u32,
    rng: Rng,
}

/// The openable pieces of one level.
#[derive(Clone, Debug)]
struct Shelf {
    /// By copies.
    buckets: Vec<Vec<u32>>,
    /// The same pieces again, for comparisons with bitfields.
    openable: Bitfield,
    /// Nothing below this byte of `openable` is set.
    first_byte: usize,
}

impl Shelf {
    fn new(pieces: u32) -> Shelf {
        Shelf {
            buckets: Vec::new(),
            openable: Bitfield::new(pieces),
            first_byte: 0,
        }
    }
}

impl Picker {
    /// A picker that holds no piece yet.
    pub fn new(geometry: &Geometry, seed: u64) -> Self {
        let pieces = geometry.piece_count();
        Picker {
            copies: vec![0; pieces as usize],
            position: vec![NOWHERE; pieces as usize],
            levels: Vec::new(),
            shelves: vec![Shelf::new(pieces)],
            seeds: 0,
            rng: Rng::new(seed),
        }
    }

    /// Puts a piece in or takes it out.
    pub fn set_openable(&mut self, piece: PieceIndex, is_openable: bool) {
        let at = self.shelf_of(piece);
        let shelf = &mut self.shelves[at];
        if is_openable && shelf.openable.set(piece) {
            shelf.first_byte = shelf.first_byte.min(piece.as_usize() / 8);
            self.insert(piece);
        } else if !is_openable && shelf.openable.clear(piece) {
            self.remove(piece);
        }
    }

    /// How early each piece is wanted from now on, one level a piece; `None` when all are alike.
    pub fn set_levels(&mut self, levels: Option<Vec<Level>>) {
        let pieces = self.copies.len();
        let mut levels = levels.unwrap_or_default();
        if !levels.is_empty() {
            levels.resize(pieces, Level::Usual);
        }
        if levels == self.levels {
            return;
        }
        let openable: Vec<PieceIndex> = self.openable().collect();
        for &piece in &openable {
            self.set_openable(piece, false);
        }
        let shelves = if levels.is_empty() { 1 } else { 3 };
        self.levels = levels;
        self.shelves = vec![Shelf::new(pieces as u32); shelves];
        for piece in openable {
            self.set_openable(piece, true);
        }
    }

    /// True when the piece may be opened.
    pub fn is_openable(&self, piece: PieceIndex) -> bool {
        self.shelves[self.shelf_of(piece)].openable.has(piece)
    }

    /// Eight of the pieces that may be opened, as a bitfield has them, for `Pieces::check`.
    pub fn openable_byte(&self, at: usize) -> u8 {
        let bytes = self.shelves.iter().map(|s| s.openable.as_bytes()[at]);
        bytes.fold(0, |all, byte| all | byte)
    }

    /// True when no piece of an earlier level may be opened.
    pub fn is_of_first_level(&self, piece: PieceIndex) -> bool {
        let earlier = &self.shelves[..self.shelf_of(piece)];
        earlier.iter().all(|shelf| shelf.openable.count() == 0)
    }

    /// Number of pieces that may be opened.
    pub fn openable_count(&self) -> u32 {
        self.shelves
            .iter()
            .map(|shelf| shelf.openable.count())
            .sum()
    }

    /// Number of pieces that may be opened and that a connected peer has.
    pub fn reachable_count(&self) -> u32 {
        let without_copy = |shelf: &Shelf| shelf.buckets.first().map_or(0, Vec::len) as u32;
        let unreachable = match self.seeds {
            0 => self.shelves.iter().map(without_copy).sum(),
            _ => 0,
        };
        self.openable_count() - unreachable
    }

    /// Copies of the piece among peers that do not have everything.
    pub fn copies(&self, piece: PieceIndex) -> u32 {
        u32::from(self.copies[piece.as_usize()])
    }

    /// A peer came with these pieces.
    pub fn on_peer_has(&mut self, have: &PeerHave) {
        match have {
            PeerHave::None => {}
            PeerHave::All => self.seeds += 1,
            PeerHave::Some(bits) => bits.iter().for_each(|piece| self.on_copy_added(piece)),
        }
    }

    /// A peer with these pieces is gone.
    pub fn on_peer_gone(&mut self, have: &PeerHave) {
        match have {
            PeerHave::None => {}
            PeerHave::All => self.seeds -= 1,
            PeerHave::Some(bits) => bits.iter().for_each(|piece| self.on_copy_removed(piece)),
        }
    }

    /// A peer that does not have everything got one more piece.
    pub fn on_copy_added(&mut self, piece: PieceIndex) {
        self.set_copies(piece, self.copies[piece.as_usize()].saturating_add(1));
    }

    /// A peer that does not have everything lost a piece.
    pub fn on_copy_removed(&mut self, piece: PieceIndex) {
        self.set_copies(piece, self.copies[piece.as_usize()].saturating_sub(1));
    }

    /// The piece this peer should be asked for next, if it has any that may be opened.
    pub fn pick(&mut self, have: &PeerHave, order: PickOrder) -> Option<PieceIndex> {
        if have.is_none() {
            return None;
        }
        (0..self.shelves.len()).find_map(|at| self.pick_at(at, have, order))
    }

    fn pick_at(&mut self, at: usize, have: &PeerHave, order: PickOrder) -> Option<PieceIndex> {
        if self.shelves[at].openable.count() == 0 {
            return None;
        }
        match order {
            PickOrder::Rarest => self.pick_rarest(at, have),
            PickOrder::Random => {
                let start = self.random_byte();
                self.scan(at, have, start, 1)
            }
            PickOrder::Sequential => self.pick_first(at, have),
        }
    }

    /// The longest stretch of openable pieces that the peer has, within the first level that there is one of: its first
    /// piece and its length. Of a large torrent only a part is looked at, another one each time.
    pub fn longest_stretch(&mut self, have: &PeerHave) -> Option<(PieceIndex, u32)> {
        (0..self.shelves.len()).find_map(|at| self.stretch_at(at, have))
    }

    fn stretch_at(&mut self, at: usize, have: &PeerHave) -> Option<(PieceIndex, u32)> {
        if self.shelves[at].openable.count() == 0 {
            return None;
        }
        let pieces = self.copies.len() as u32;
        let last = pieces.saturating_sub(STRETCH_PIECES_MAX);
        let start = self.rng.below(u64::from(last) + 1) as u32;
        let mut best: Option<(PieceIndex, u32)> = None;
        let mut run = 0;
        for index in start..pieces.min(start + STRETCH_PIECES_MAX) {
            let piece = PieceIndex::new(index);
            let is_in = self.shelves[at].openable.has(piece) && have.has(piece);
            run = if is_in { run + 1 } else { 0 };
            if run > best.map_or(0, |(_, longest)| longest) {
                best = Some((PieceIndex::new(index + 1 - run), run));
            }
        }
        match best {
            None if last > 0 => self.pick_first(at, have).map(|piece| (piece, 1)),
            best => best,
        }
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        for (at, shelf) in self.shelves.iter().enumerate() {
            let mut held = 0;
            for (copies, bucket) in shelf.buckets.iter().enumerate() {
                for (position, &piece) in bucket.iter().enumerate() {
                    let piece = PieceIndex::new(piece);
                    assert!(shelf.openable.has(piece));
                    assert_eq!(self.shelf_of(piece), at);
                    assert_eq!(usize::from(self.copies[piece.as_usize()]), copies);
                    assert_eq!(self.position[piece.as_usize()] as usize, position);
                    held += 1;
                }
            }
            assert_eq!(held, shelf.openable.count());
            let below = &shelf.openable.as_bytes()[..shelf.first_byte];
            assert!(below.iter().all(|byte| *byte == 0));
        }
    }

    #[inline]
    fn shelf_of(&self, piece: PieceIndex) -> usize {
        match self.levels.get(piece.as_usize()) {
            None | Some(Level::First) => 0,
            Some(Level::Usual) => 1,
            Some(Level::Last) => 2,
        }
    }

    fn openable(&self) -> impl Iterator<Item = PieceIndex> {
        self.shelves.iter().flat_map(|shelf| shelf.openable.iter())
    }

    fn random_byte(&mut self) -> usize {
        let bytes = self.copies.len().div_ceil(8);
        self.rng.below(bytes as u64) as usize
    }

    fn pick_rarest(&mut self, at: usize, have: &PeerHave) -> Option<PieceIndex> {
        let mut looked_at = 0;
        for bucket in &self.shelves[at].buckets {
            for &piece in bucket {
                let piece = PieceIndex::new(piece);
                if have.has(piece) {
                    return Some(piece);
                }
                looked_at += 1;
                if looked_at == WALK_MAX {
                    let start = self.random_byte();
                    return self.scan(at, have, start, SAMPLE_MAX);
                }
            }
        }
        None
    }

    fn pick_first(&mut self, at: usize, have: &PeerHave) -> Option<PieceIndex> {
        let shelf = &mut self.shelves[at];
        let bytes = shelf.openable.as_bytes();
        let ahead = bytes[shelf.first_byte..]
            .iter()
            .position(|byte| *byte != 0)?;
        shelf.first_byte += ahead;
        first_common(shelf.openable.as_bytes(), have, shelf.first_byte)
    }

    /// The rarest of up to `sample_max` pieces in both sets, from byte `start` on and round to it.
    fn scan(
        &self,
        shelf: usize,
        have: &PeerHave,
        start: usize,
        sample_max: u32,
    ) -> Option<PieceIndex> {
        let bytes = self.shelves[shelf].openable.as_bytes();
        let mut best: Option<PieceIndex> = None;
        let mut seen = 0;
        let mut at = start;
        let mut is_wrapped = false;
        while seen < sample_max {
            let found = first_common(bytes, have, at);
            let Some(found) = found.filter(|f| !is_wrapped || f.as_usize() / 8 < start) else {
                if is_wrapped || found.is_some() {
                    break;
                }
                is_wrapped = true;
                at = 0;
                continue;
            };
            seen += 1;
            if best.is_none_or(|best| self.copies(found) < self.copies(best)) {
                best = Some(found);
            }
            at = found.as_usize() / 8 + 1;
        }
        best
    }

    fn set_copies(&mut self, piece: PieceIndex, copies: u16) {
        let is_held = self.position[piece.as_usize()] != NOWHERE;
        if is_held {
            self.remove(piece);
        }
        self.copies[piece.as_usize()] = copies;
        if is_held {
            self.insert(piece);
        }
    }

    /// Appends to its bucket and trades places with a random member, so that the bucket stays shuffled.
    fn insert(&mut self, piece: PieceIndex) {
        let copies = usize::from(self.copies[piece.as_usize()]);
        let at = self.shelf_of(piece);
        let buckets = &mut self.shelves[at].buckets;
        if buckets.len() <= copies {
            buckets.resize_with(copies + 1, Vec::new);
        }
        let bucket = &mut buckets[copies];
        let last = bucket.len();
        bucket.push(piece.get());
        let other = self.rng.below(last as u64 + 1) as usize;
        bucket.swap(last, other);
        self.position[bucket[last] as usize] = last as u32;
        self.position[bucket[other] as usize] = other as u32;
    }

    fn remove(&mut self, piece: PieceIndex) {
        let at = self.shelf_of(piece);
        let copies = usize::from(self.copies[piece.as_usize()]);
        let bucket = &mut self.shelves[at].buckets[copies];
        let position = self.position[piece.as_usize()] as usize;
        bucket.swap_remove(position);
        if let Some(&moved) = bucket.get(position) {
            self.position[moved as usize] = position as u32;
        }
        self.position[piece.as_usize()] = NOWHERE;
    }
}

/// The lowest piece at or behind byte `start` that is in both sets.
fn first_common(openable: &[u8], have: &PeerHave, start: usize) -> Option<PieceIndex> {
    let theirs = match have {
        PeerHave::None => return None,
        PeerHave::All => openable,
        PeerHave::Some(bits) => bits.as_bytes(),
    };
    let (ours, theirs) = (openable.get(start..)?, theirs.get(start..)?);
    let mut at = start;
    for (ours, theirs) in ours.chunks(8).zip(theirs.chunks(8)) {
        let common = word(ours) & word(theirs);
        if common != 0 {
            return Some(PieceIndex::new(at as u32 * 8 + common.leading_zeros()));
        }
        at += 8;
    }
    None
}

/// Up to eight bytes with the first bit of the first byte on top.
fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests;
