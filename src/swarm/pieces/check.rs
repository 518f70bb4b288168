//! The invariants of all pieces, and counts taken the slow way for `Torrent::check`. Layer 2.

use super::active::{Active, Phase};
use super::{PieceState, Pieces};

impl Pieces {
    /// Checks every invariant.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        self.picker.check();
        let mut reserved_bytes = 0;
        for (slot, active) in &self.active {
            active.check();
            let state = self.states[active.piece.as_usize()];
            assert_eq!(state, PieceState::Active(slot as u32));
            assert!(!self.have.has(active.piece));
            let is_open = active.phase == Phase::Fetching && active.free > 0;
            assert_eq!(self.open.contains(&active.piece), is_open);
            let is_orphan = is_open && active.owner.is_none();
            assert_eq!(self.orphans.contains(&active.piece), is_orphan);
            reserved_bytes += active.reserved_bytes();
        }
        assert_eq!(reserved_bytes, self.reserved_bytes, "the memory account");
        assert!(self.open.len() <= self.active.len() && self.orphans.len() <= self.open.len());
        for (at, states) in self.states.chunks(8).enumerate() {
            let (mut had, mut missing) = (0, 0);
            for (bit, state) in states.iter().enumerate() {
                had |= u8::from(*state == PieceState::Have) << (7 - bit);
                missing |= u8::from(*state == PieceState::Missing) << (7 - bit);
            }
            let pieces = at * 8..at * 8 + 8;
            assert_eq!(self.have.as_bytes()[at], had, "had of {pieces:?}");
            let openable = missing & self.wanted.as_bytes()[at];
            let are_in = self.picker.openable_byte(at);
            assert_eq!(are_in, openable, "openable of {pieces:?}");
        }
        let left = self.wanted.count_common(&self.wanted, &self.have);
        assert_eq!(self.wanted.count() - left, self.wanted_have_count);
    }

    /// Requests outstanding in all active pieces, counted the slow way for `Torrent::check`.
    pub fn request_count(&self) -> u32 {
        let blocks = self.active.iter().flat_map(|(_, active)| &active.blocks);
        blocks.map(|block| u32::from(block.requests)).sum()
    }

    /// Payloads under way, counted the slow way for `Torrent::check`.
    pub fn receiving_count(&self) -> u32 {
        self.active.iter().map(|(_, active)| active.receiving).sum()
    }

    /// Pieces whose bad blocks are being found out, counted the slow way for `Torrent::check`.
    pub fn sifting_count(&self) -> usize {
        let is_so = |active: &Active| active.phase == Phase::Sifting;
        self.active.iter().filter(|(_, a)| is_so(a)).count()
    }
}
