//! Which piece to open next: rarest first, at random, or in order. Layer 2.
//!
//! Holds the pieces that may be opened, in one bucket per availability, each bucket in random order. A change of
//! availability moves a piece between neighbouring buckets in O(1); a pick looks at a bounded number of pieces and
//! then compares bitfields word by word. Which blocks of an open piece are asked for is `pieces`' matter.

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

/// The pieces that may be opened and how many connected peers have each.
#[derive(Clone, Debug)]
pub struct Picker {
    /// Copies of each piece among peers that do not have everything: seeds would add the same to all.
    copies: Vec<u16>,
    /// The openable pieces by `copies`.
    buckets: Vec<Vec<u32>>,
    /// Where a piece lies in its bucket, or `NOWHERE`.
    position: Vec<u32>,
    /// The openable pieces again, for comparisons with bitfields.
    openable: Bitfield,
    /// Nothing below this byte of `openable` is set.
    first_byte: usize,
    /// Connected peers that came with everything.
    seeds: u32,
    rng: Rng,
}

impl Picker {
    /// A picker that holds no piece yet.
    pub fn new(geometry: &Geometry, seed: u64) -> Self {
        let pieces = geometry.piece_count();
        Picker {
            copies: vec![0; pieces as usize],
            buckets: Vec::new(),
            position: vec![NOWHERE; pieces as usize],
            openable: Bitfield::new(pieces),
            first_byte: 0,
            seeds: 0,
            rng: Rng::new(seed),
        }
    }

    /// Puts a piece in or takes it out.
    pub fn set_openable(&mut self, piece: PieceIndex, is_openable: bool) {
        if is_openable && self.openable.set(piece) {
            self.first_byte = self.first_byte.min(piece.as_usize() / 8);
            self.insert(piece);
        } else if !is_openable && self.openable.clear(piece) {
            self.remove(piece);
        }
    }

    /// True when the piece may be opened.
    pub fn is_openable(&self, piece: PieceIndex) -> bool {
        self.openable.has(piece)
    }

    /// Number of pieces that may be opened.
    pub fn openable_count(&self) -> u32 {
        self.openable.count()
    }

    /// Number of pieces that may be opened and that a connected peer has.
    pub fn reachable_count(&self) -> u32 {
        let unreachable = match self.seeds {
            0 => self.buckets.first().map_or(0, Vec::len) as u32,
            _ => 0,
        };
        self.openable.count() - unreachable
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
        if self.openable.count() == 0 || have.is_none() {
            return None;
        }
        match order {
            PickOrder::Rarest => self.pick_rarest(have),
            PickOrder::Random => {
                let start = self.rng.below(self.openable.as_bytes().len() as u64) as usize;
                self.scan(have, start, 1)
            }
            PickOrder::Sequential => self.pick_first(have),
        }
    }

    /// The longest stretch of openable pieces that the peer has: its first piece and its length. Of a large torrent only
    /// a part is looked at, another one each time.
    pub fn longest_stretch(&mut self, have: &PeerHave) -> Option<(PieceIndex, u32)> {
        let pieces = self.copies.len() as u32;
        let last = pieces.saturating_sub(STRETCH_PIECES_MAX);
        let start = self.rng.below(u64::from(last) + 1) as u32;
        let mut best: Option<(PieceIndex, u32)> = None;
        let mut run = 0;
        for index in start..pieces.min(start + STRETCH_PIECES_MAX) {
            let piece = PieceIndex::new(index);
            let is_in = self.openable.has(piece) && have.has(piece);
            run = if is_in { run + 1 } else { 0 };
            if run > best.map_or(0, |(_, longest)| longest) {
                best = Some((PieceIndex::new(index + 1 - run), run));
            }
        }
        match best {
            None if last > 0 => self.pick_first(have).map(|piece| (piece, 1)),
            best => best,
        }
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        let mut held = 0;
        for (copies, bucket) in self.buckets.iter().enumerate() {
            for (position, &piece) in bucket.iter().enumerate() {
                let piece = PieceIndex::new(piece);
                assert!(self.openable.has(piece));
                assert_eq!(usize::from(self.copies[piece.as_usize()]), copies);
                assert_eq!(self.position[piece.as_usize()] as usize, position);
                held += 1;
            }
        }
        assert_eq!(held, self.openable.count());
        let below = &self.openable.as_bytes()[..self.first_byte];
        assert!(below.iter().all(|byte| *byte == 0));
    }

    fn pick_rarest(&mut self, have: &PeerHave) -> Option<PieceIndex> {
        let mut looked_at = 0;
        for bucket in &self.buckets {
            for &piece in bucket {
                let piece = PieceIndex::new(piece);
                if have.has(piece) {
                    return Some(piece);
                }
                looked_at += 1;
                if looked_at == WALK_MAX {
                    let start = self.rng.below(self.openable.as_bytes().len() as u64) as usize;
                    return self.scan(have, start, SAMPLE_MAX);
                }
            }
        }
        None
    }

    fn pick_first(&mut self, have: &PeerHave) -> Option<PieceIndex> {
        let bytes = self.openable.as_bytes();
        let ahead = bytes[self.first_byte..]
            .iter()
            .position(|byte| *byte != 0)?;
        self.first_byte += ahead;
        first_common(self.openable.as_bytes(), have, self.first_byte)
    }

    /// The rarest of up to `sample_max` pieces in both sets, from byte `start` on and round to it.
    fn scan(&self, have: &PeerHave, start: usize, sample_max: u32) -> Option<PieceIndex> {
        let bytes = self.openable.as_bytes();
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
        if self.buckets.len() <= copies {
            self.buckets.resize_with(copies + 1, Vec::new);
        }
        let bucket = &mut self.buckets[copies];
        let last = bucket.len();
        bucket.push(piece.get());
        let other = self.rng.below(last as u64 + 1) as usize;
        bucket.swap(last, other);
        self.position[bucket[last] as usize] = last as u32;
        self.position[bucket[other] as usize] = other as u32;
    }

    fn remove(&mut self, piece: PieceIndex) {
        let bucket = &mut self.buckets[usize::from(self.copies[piece.as_usize()])];
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
mod tests {
    use super::*;

    /// `avail` gives the copies of each openable piece, `-` one that is not openable.
    fn picker(avail: &str) -> Picker {
        let avail: Vec<&str> = avail.split(' ').collect();
        let geometry = Geometry::new(avail.len() as u64, 1).unwrap();
        let mut picker = Picker::new(&geometry, 1);
        for (piece, copies) in avail.iter().enumerate() {
            let piece = PieceIndex::new(piece as u32);
            if let Ok(copies) = copies.parse::<u16>() {
                picker.set_openable(piece, true);
                for _ in 0..copies {
                    picker.on_copy_added(piece);
                }
            }
        }
        picker.check();
        picker
    }

    /// `x` marks the pieces a peer has.
    fn has(pieces: &str) -> PeerHave {
        let pieces: Vec<&str> = pieces.split(' ').collect();
        let mut bits = Bitfield::new(pieces.len() as u32);
        for (piece, _) in pieces.iter().enumerate().filter(|(_, mark)| **mark == "x") {
            bits.set(PieceIndex::new(piece as u32));
        }
        PeerHave::Some(bits)
    }

    fn piece(index: u32) -> Option<PieceIndex> {
        Some(PieceIndex::new(index))
    }

    #[test]
    fn the_rarest_openable_piece_the_peer_has_comes_first() {
        let mut p = picker("3 1 2 - 1");
        assert_eq!(p.pick(&has("x . x x ."), PickOrder::Rarest), piece(2));
        assert_eq!(p.pick(&has(". . . x ."), PickOrder::Rarest), None);
        p.on_peer_has(&has(". . x . ."));
        p.on_peer_has(&has(". . x . ."));
        p.check();
        assert_eq!(p.pick(&has("x . x . ."), PickOrder::Rarest), piece(0));
        p.on_peer_gone(&has(". . x . ."));
        p.on_peer_gone(&has(". . x . ."));
        p.check();
        assert_eq!(p.pick(&has("x . x . ."), PickOrder::Rarest), piece(2));
    }

    #[test]
    fn ties_are_broken_at_random_by_the_seed() {
        let geometry = Geometry::new(64, 1).unwrap();
        let first = |seed| {
            let mut p = Picker::new(&geometry, seed);
            geometry
                .pieces()
                .for_each(|piece| p.set_openable(piece, true));
            p.pick(&PeerHave::All, PickOrder::Rarest)
        };
        assert_eq!(first(5), first(5));
        assert!((0..8).any(|seed| first(seed) != first(5)));
    }

    #[test]
    fn sequential_takes_the_lowest_and_follows_what_comes_back() {
        let mut p = picker("- 5 0 1");
        assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(1));
        p.set_openable(PieceIndex::new(1), false);
        assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(2));
        p.set_openable(PieceIndex::new(0), true);
        assert_eq!(p.pick(&PeerHave::All, PickOrder::Sequential), piece(0));
        p.check();
    }

    #[test]
    fn a_peer_with_one_rare_match_among_many_is_found_after_the_walk() {
        let geometry = Geometry::new(100_003, 1).unwrap();
        let mut p = Picker::new(&geometry, 9);
        geometry
            .pieces()
            .for_each(|piece| p.set_openable(piece, true));
        for index in [0, 63, 64, 50_000, 100_002] {
            let mut bits = Bitfield::new(100_003);
            bits.set(PieceIndex::new(index));
            let have = PeerHave::Some(bits);
            assert_eq!(p.pick(&have, PickOrder::Rarest), piece(index));
            assert_eq!(p.pick(&have, PickOrder::Random), piece(index));
        }
    }

    #[test]
    fn nothing_openable_picks_nothing() {
        let mut p = picker("- - -");
        for order in [PickOrder::Rarest, PickOrder::Random, PickOrder::Sequential] {
            assert_eq!(p.pick(&PeerHave::All, order), None);
            assert_eq!(p.pick(&PeerHave::None, order), None);
        }
    }
}
