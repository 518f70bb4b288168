//! Which block a peer is asked for next. Layer 2.
//!
//! In this order: the piece it is at; a piece whose peer left it; a new piece; a piece of another peer; at the very
//! end a block that other peers owe already. Pieces stay with one peer where possible, so that a bad one has one source.
//!
//! A web seed goes on with the piece behind the one it is at, so that one request of HTTP covers many blocks, and takes
//! nothing that somebody owes already: what it was asked for cannot be cancelled.

use std::time::Duration;

use super::active::{Active, BlockState, FreeBlock};
use super::{Phase, Pieces};
use crate::base::{BlockRef, Now, PieceIndex};
use crate::swarm::effects::{Credits, PeerKey};
use crate::swarm::peer::PeerHave;
use crate::swarm::picker::PickOrder;
use crate::swarm::pipeline::Pipeline;
use crate::swarm::poison::Party;

/// Peers that may owe one block at the end of a download: the duplicate is what endgame wastes at most.
const ENDGAME_REQUESTS: u64 = 2;
/// One more may for each time that passes like this without a block of the piece: those asked may all be silent.
const ENDGAME_PATIENCE: Duration = Duration::from_secs(2);
/// A block is late, and worth asking for twice, when its piece has waited for twice the time in which the peer that
/// would be asked answered last; of a peer that has not answered yet this is the time.
const LATE_UNKNOWN: Duration = Duration::from_secs(1);
/// However silent they are.
const ENDGAME_REQUESTS_MAX: u64 = 8;
/// The same for a peer that has sent nothing yet: a crowd of silent ones must not stand in the way of those that send.
const ENDGAME_REQUESTS_UNPROVEN_MAX: u64 = 5;
/// Duplicates asked of one peer at a time; more would mostly be cancelled again.
const ENDGAME_DEPTH_MAX: u32 = 8;

/// After so long without progress a piece with blocks of a suspect is anybody's: it must not be left behind for good.
const MIX_AFTER: Duration = Duration::from_secs(3);

/// The peer that looks for a block.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub peer: PeerKey,
    pub party: Party,
    pub have: &'a PeerHave,
    /// While it chokes us only these pieces may be asked for (BEP 6, `allowed_fast`).
    pub only: Option<&'a [PieceIndex]>,
    /// The piece its last request was in.
    pub current: Option<PieceIndex>,
    /// It sent blocks of a bad piece: it shares no piece with anybody until that is cleared up.
    pub is_suspect: bool,
    /// A web seed (BEP 19): its requests are to follow each other in the torrent.
    pub is_web: bool,
    pub order: PickOrder,
    pub pipeline: &'a Pipeline,
}

/// What there is to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Block(BlockRef),
    /// Something, once assembly memory is free.
    Starved,
    Nothing,
}

impl Pieces {
    /// The next block to ask this peer for; memory for it is reserved. The caller sends the request and calls
    /// [`Pieces::on_requested`].
    pub fn choose(&mut self, asker: &Asker<'_>, now: Now, credits: &mut Credits) -> Choice {
        if asker.only.is_some() {
            return self.choose_allowed(asker, now, credits);
        }
        let mut is_starved = false;
        let found = self.choose_free(asker, now, credits, &mut is_starved);
        match found.or_else(|| self.duplicate(asker, now)) {
            Some(block) => Choice::Block(block),
            None if is_starved => Choice::Starved,
            None => Choice::Nothing,
        }
    }

    /// A block that nobody was asked for.
    fn choose_free(
        &mut self,
        asker: &Asker<'_>,
        now: Now,
        credits: &mut Credits,
        is_starved: &mut bool,
    ) -> Option<BlockRef> {
        let may_go_on = |piece: &PieceIndex| {
            self.may_join(*piece, asker, true) && !self.is_avoided(*piece, asker, now)
        };
        if let Some(piece) = asker.current.filter(may_go_on)
            && let Some(block) = self.free_block(piece, credits, is_starved)
        {
            if self.orphans.contains(&piece) {
                self.own(piece, asker);
            }
            return Some(block);
        }
        if asker.order == PickOrder::Sequential && !asker.is_suspect {
            return self
                .next_in_order(asker, now, credits, is_starved)
                .or_else(|| self.open_next(asker, now, credits, is_starved));
        }
        if asker.is_web
            && let Some(block) = self.follow_on(asker, now, credits, is_starved)
        {
            return Some(block);
        }
        self.adopt(asker, now, credits, is_starved)
            .or_else(|| self.open_next(asker, now, credits, is_starved))
            .or_else(|| self.join(asker, now, credits, is_starved))
    }

    /// A piece that the peer leaves alone while it comes along without it: it holds blocks of a suspect, or the peer is
    /// one. More blocks would come for nothing if the suspect lied, and would blur who did.
    fn is_avoided(&self, piece: PieceIndex, asker: &Asker<'_>, now: Now) -> bool {
        let Some(active) = self.get(piece).filter(|_| !self.suspects.is_empty()) else {
            return false;
        };
        // A suspect has a piece for itself: not while others owe blocks of it.
        if asker.is_suspect && active.owner != Some(asker.peer) && active.is_owed() {
            return true;
        }
        let is_foreign = |party: &Party| *party != asker.party;
        let mut foreign = active.sources.iter().filter(|party| is_foreign(party));
        let is_mixed = foreign.any(|party| asker.is_suspect || self.suspects.contains(party));
        is_mixed && now.since(active.progress_at) < MIX_AFTER
    }

    /// True when every block that can be had was asked for: then the last ones are asked for twice.
    pub fn is_endgame(&self) -> bool {
        self.picker.reachable_count() == 0 && self.open.is_empty() && !self.active.is_empty()
    }

    fn choose_allowed(&mut self, asker: &Asker<'_>, now: Now, credits: &mut Credits) -> Choice {
        let mut is_starved = false;
        let current = asker.current.into_iter();
        for piece in current.chain(asker.only.unwrap_or(&[]).iter().copied()) {
            if !asker.have.has(piece) {
                continue;
            }
            if self.picker.is_openable(piece)
                && !self.open(piece, asker.peer, asker.is_suspect, now, credits)
            {
                is_starved = true;
                continue;
            }
            if self.may_join(piece, asker, false)
                && let Some(block) = self.free_block(piece, credits, &mut is_starved)
            {
                return Choice::Block(block);
            }
        }
        match is_starved {
            true => Choice::Starved,
            false => Choice::Nothing,
        }
    }

    /// The piece behind the one the web seed is at, if nobody else is at it.
    fn follow_on(
        &mut self,
        asker: &Asker<'_>,
        now: Now,
        credits: &mut Credits,
        is_starved: &mut bool,
    ) -> Option<BlockRef> {
        let next = self.geometry.piece(asker.current?.get().checked_add(1)?)?;
        if !asker.have.has(next) || self.is_avoided(next, asker, now) {
            return None;
        }
        if self.picker.is_openable(next) {
            if !self.picker.is_of_first_level(next) {
                return None;
            }
            if !self.open(next, asker.peer, asker.is_suspect, now, credits) {
                *is_starved = true;
                return None;
            }
        }
        if self.orphans.contains(&next) {
            self.own(next, asker);
        }
        let is_own = self.owner(next) == Some(asker.peer);
        is_own
            .then(|| self.free_block(next, credits, is_starved))
            .flatten()
    }

    /// Where a web seed begins: at the longest stretch of missing pieces, in its middle when somebody is coming up to
    /// it.
    fn pick_stretch(&mut self, have: &PeerHave) -> Option<PieceIndex> {
        let (first, pieces) = self.picker.longest_stretch(have)?;
        let before = first.get().checked_sub(1).map(PieceIndex::new);
        let is_come_up_to = before.is_some_and(|before| self.get(before).is_some());
        let skipped = if is_come_up_to { pieces / 2 } else { 0 };
        Some(PieceIndex::new(first.get() + skipped))
    }

    /// Takes over a piece that its peer left.
    fn adopt(
        &mut self,
        asker: &Asker<'_>,
        now: Now,
        credits: &mut Credits,
        is_starved: &mut bool,
    ) -> Option<BlockRef> {
        let mut from = PieceIndex::new(0);
        while let Some(&piece) = self.orphans.range(from..).next() {
            from = PieceIndex::new(piece.get() + 1);
            if !asker.have.has(piece) || self.is_avoided(piece, asker, now) {
                continue;
            }
            if let Some(block) = self.free_block(piece, credits, is_starved) {
                self.own(piece, asker);
                return Some(block);
            }
        }
        None
    }

    fn own(&mut self, piece: PieceIndex, asker: &Asker<'_>) {
        if let Some(active) = self.get_mut(piece) {
            active.owner = Some(asker.peer);
            active.is_alone |= asker.is_suspect;
        }
        self.relist(piece);
    }

    fn open_next(
        &mut self,
        asker: &Asker<'_>,
        now: Now,
        credits: &mut Credits,
        is_starved: &mut bool,
    ) -> Option<BlockRef> {
        // What clears up a suspicion comes first.
        let is_next =
            |piece: &&PieceIndex| self.picker.is_openable(**piece) && asker.have.has(**piece);
        let alone = self.alone.iter().find(is_next).copied();
        let piece = alone.or_else(|| match (asker.is_web, asker.order) {
            (true, PickOrder::Rarest | PickOrder::Random) => self.pick_stretch(asker.have),
            _ => self.picker.pick(asker.have, asker.order),
        })?;
        if !self.open(piece, asker.peer, asker.is_suspect, now, credits) {
            *is_starved = true;
            return None;
        }
        self.free_block(piece, credits, is_starved)
    }

    /// The lowest piece under way, whether its peer left it or may be helped.
    fn next_in_order(
        &mut self,
        asker: &Asker<'_>,
        now: Now,
        credits: &mut Credits,
        is_starved: &mut bool,
    ) -> Option<BlockRef> {
        let mut from = PieceIndex::new(0);
        while let Some(&piece) = self.open.range(from..).next() {
            from = PieceIndex::new(piece.get() + 1);
            let is_orphan = self.orphans.contains(&piece) && asker.have.has(piece);
            let is_open = is_orphan || self.may_join(piece, asker, false);
            if !is_open || self.is_avoided(piece, asker, now) {
                continue;
            }
            if let Some(block) = self.free_block(piece, credits, is_starved) {
                if is_orphan {
                    self.own(piece, asker);
                }
                return Some(block);
            }
        }
        None
    }

    /// Helps with another peer's piece, the lowest first.
    fn join(
        &mut self,
        asker: &Asker<'_>,
        now: Now,
        credits: &mut Credits,
        is_starved: &mut bool,
    ) -> Option<BlockRef> {
        let mut from = PieceIndex::new(0);
        while let Some(&piece) = self.open.range(from..).next() {
            from = PieceIndex::new(piece.get() + 1);
            let is_open = self.may_join(piece, asker, false);
            if !is_open || self.is_avoided(piece, asker, now) {
                continue;
            }
            if let Some(block) = self.free_block(piece, credits, is_starved) {
                return Some(block);
            }
        }
        None
    }

    /// A block that other peers owe: the last asked for first, since that one is answered last.
    fn duplicate(&self, asker: &Asker<'_>, now: Now) -> Option<BlockRef> {
        let is_busy = asker.pipeline.len() >= ENDGAME_DEPTH_MAX
            || asker.pipeline.owes_since(now) >= ENDGAME_PATIENCE;
        if asker.is_suspect || asker.is_web || is_busy || !self.is_endgame() {
            return None;
        }
        let shared = self
            .active
            .iter()
            .map(|(_, active)| active)
            .filter(|active| {
                active.phase == Phase::Fetching
                    && active.here < active.blocks.len() as u32
                    && !active.is_alone
                    && asker.have.has(active.piece)
            });
        shared
            .into_iter()
            .find_map(|active| self.duplicate_in(active, asker, now))
    }

    fn duplicate_in(&self, active: &Active, asker: &Asker<'_>, now: Now) -> Option<BlockRef> {
        let silent = now.since(active.progress_at);
        // Where the line is full every answer takes long: a second one would only come behind the first.
        let usual = asker.pipeline.answered_in();
        let late_after = usual.map_or(LATE_UNKNOWN, |usual| ENDGAME_PATIENCE.min(2 * usual));
        if silent < late_after {
            return None;
        }
        let limit = match asker.pipeline.is_proven() {
            false => ENDGAME_REQUESTS_UNPROVEN_MAX,
            true => ENDGAME_REQUESTS_MAX,
        };
        let requests_max =
            (ENDGAME_REQUESTS + silent.as_secs() / ENDGAME_PATIENCE.as_secs()).min(limit);
        for (number, block) in active.blocks.iter().enumerate().rev() {
            let is_owed = block.state == BlockState::Requested;
            if !is_owed || u64::from(block.requests) >= requests_max {
                continue;
            }
            let block = self.geometry.block(active.piece, number as u32)?;
            if !asker.pipeline.contains(block) {
                return Some(block);
            }
        }
        None
    }

    /// Whether the peer may be asked for blocks of this active piece.
    fn may_join(&self, piece: PieceIndex, asker: &Asker<'_>, is_current: bool) -> bool {
        let Some(active) = self.get(piece) else {
            return false;
        };
        let is_own = active.owner == Some(asker.peer);
        let is_shared = !active.is_alone && !asker.is_suspect;
        let is_allowed = asker.only.is_none_or(|only| only.contains(&piece));
        active.free > 0
            && is_allowed
            && asker.have.has(piece)
            && (is_own || is_shared || (is_current && active.owner.is_none()))
    }

    /// A free block of an active piece whose memory is held or can be reserved now.
    fn free_block(
        &mut self,
        piece: PieceIndex,
        credits: &mut Credits,
        is_starved: &mut bool,
    ) -> Option<BlockRef> {
        let number = match self.get_mut(piece)?.next_free() {
            FreeBlock::Ready(number) => number,
            FreeBlock::None => return None,
            FreeBlock::NeedsSegment(segment) => {
                let bytes = u64::from(self.geometry.segment_bytes(piece, segment));
                if !self.may_reserve(bytes, credits) {
                    *is_starved = true;
                    return None;
                }
                self.deduct(bytes, credits);
                let active = self.get_mut(piece)?;
                active.segments[segment as usize].is_reserved = true;
                match active.next_free() {
                    FreeBlock::Ready(number) => number,
                    _ => return None,
                }
            }
        };
        self.geometry.block(piece, number)
    }
}
