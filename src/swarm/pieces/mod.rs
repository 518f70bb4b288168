//! The state of every piece, the pieces on their way, and the account of assembly memory. Layer 2.
//!
//! Credits are deducted here and nowhere else: what all active pieces hold reserved is what this torrent owes the
//! session. Emits no effects: outcomes are returned to `torrent`.

mod active;
mod check;
mod choose;
mod memory;

use std::collections::BTreeSet;

use slab::Slab;

use crate::base::{BLOCK_BYTES, Bitfield, BlockRef, Geometry, Now, PieceIndex};
use crate::swarm::effects::{Credits, PeerKey};
use crate::swarm::peer::PeerHave;
use crate::swarm::picker::Picker;
use crate::swarm::poison::Party;

pub use active::{Completes, Mode, Phase};
pub use choose::{Asker, Choice};

use active::{Active, BlockState, block_number, segment_of};

/// Pieces above this part of the session's assembly memory are streamed.
const WHOLE_PIECE_DIVISOR: u64 = 4;
/// Memory that opening a piece or a segment leaves alone, so that blocks already asked for find a place when the
/// memory they were asked for with was needed elsewhere.
const FLOOR_DIVISOR: u64 = 16;
const FLOOR_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PieceState {
    Missing,
    /// Index into `Pieces::active`.
    Active(u32),
    Have,
}

/// A piece that was given up and whose memory is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped;

/// All pieces of a torrent.
#[derive(Clone, Debug)]
pub struct Pieces {
    geometry: Geometry,
    states: Vec<PieceState>,
    active: Slab<Active>,
    have: Bitfield,
    wanted: Bitfield,
    picker: Picker,
    /// Active pieces with free blocks.
    open: BTreeSet<PieceIndex>,
    /// Those of `open` that have no owner.
    orphans: BTreeSet<PieceIndex>,
    /// Pieces of which a bad copy came from several sources: fetched from one peer alone next time.
    alone: BTreeSet<PieceIndex>,
    /// Whoever has a block in a bad copy that is not cleared up.
    suspects: Vec<Party>,
    reserved_bytes: u64,
    whole_bytes_max: u64,
    floor_bytes: u64,
    /// Grows whenever there may be something to ask for that was not there before.
    epoch: u64,
    wanted_have_count: u32,
}

impl Pieces {
    /// Pieces of which `have` are done and `wanted` are to be fetched; nothing is ever opened unless `fetches`.
    pub fn new(
        geometry: Geometry,
        have: Bitfield,
        wanted: Bitfield,
        budget_bytes: u64,
        seed: u64,
    ) -> Self {
        let states = geometry.pieces().map(|piece| match have.has(piece) {
            true => PieceState::Have,
            false => PieceState::Missing,
        });
        let mut pieces = Pieces {
            states: states.collect(),
            active: Slab::new(),
            have,
            wanted: Bitfield::new(geometry.piece_count()),
            picker: Picker::new(&geometry, seed),
            geometry,
            open: BTreeSet::new(),
            orphans: BTreeSet::new(),
            alone: BTreeSet::new(),
            suspects: Vec::new(),
            reserved_bytes: 0,
            whole_bytes_max: budget_bytes / WHOLE_PIECE_DIVISOR,
            floor_bytes: (budget_bytes / FLOOR_DIVISOR).min(FLOOR_BYTES_MAX),
            epoch: 1,
            wanted_have_count: 0,
        };
        pieces.select(wanted);
        pieces
    }

    /// The sizes of this torrent.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Pieces verified and written.
    pub const fn have(&self) -> &Bitfield {
        &self.have
    }

    /// Pieces to be fetched.
    pub const fn wanted(&self) -> &Bitfield {
        &self.wanted
    }

    /// Wanted pieces that are had.
    pub const fn wanted_have_count(&self) -> u32 {
        self.wanted_have_count
    }

    /// True when every wanted piece is had.
    pub const fn is_complete(&self) -> bool {
        self.wanted_have_count == self.wanted.count()
    }

    /// True when the piece is wanted and not had.
    pub fn is_needed(&self, piece: PieceIndex) -> bool {
        self.wanted.has(piece) && !self.have.has(piece)
    }

    /// How many of these pieces are wanted and not had.
    pub fn needed_count(&self, of: &PeerHave) -> u32 {
        match of {
            PeerHave::None => 0,
            PeerHave::Some(bits) => bits.count_common(&self.wanted, &self.have),
            PeerHave::All => self.wanted.count() - self.wanted_have_count,
        }
    }

    /// The order of openable pieces, and how many copies of each there are.
    pub const fn picker(&self) -> &Picker {
        &self.picker
    }

    /// The order of openable pieces, told of every peer's pieces.
    pub const fn picker_mut(&mut self) -> &mut Picker {
        &mut self.picker
    }

    /// Assembly memory this torrent holds, in bytes.
    pub const fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    /// Grows whenever there may be something new to ask for.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes every peer look again for something to ask for.
    pub const fn bump(&mut self) {
        self.epoch += 1;
    }

    /// How far an active piece is.
    pub fn phase(&self, piece: PieceIndex) -> Option<Phase> {
        self.get(piece).map(|active| active.phase)
    }

    /// How memory is held for an active piece.
    pub fn mode(&self, piece: PieceIndex) -> Option<Mode> {
        self.get(piece).map(|active| active.mode)
    }

    /// True when this peer fetches the piece and nobody else may.
    pub fn is_owned_alone(&self, piece: PieceIndex, peer: PeerKey) -> bool {
        let is_so = |active: &Active| active.is_alone && active.owner == Some(peer);
        self.get(piece).is_some_and(is_so)
    }

    /// The peer that a piece under way belongs to.
    pub fn owner(&self, piece: PieceIndex) -> Option<PeerKey> {
        self.get(piece)?.owner
    }

    /// True when the block was asked for, has not begun to arrive, and may be asked of any peer.
    pub fn is_movable(&self, block: BlockRef) -> bool {
        let is_so = |active: &Active| {
            let state = active.blocks[block_number(block) as usize].state;
            let is_requested = state == BlockState::Requested;
            is_requested && active.phase == Phase::Fetching && !active.is_alone
        };
        self.get(block.piece()).is_some_and(is_so)
    }

    /// True when the block was asked for, has not begun to arrive, and has memory that waits for it.
    pub fn is_foreseen(&self, block: BlockRef) -> bool {
        let is_so = |active: &Active| {
            let number = block_number(block);
            let state = active.blocks[number as usize].state;
            let segment = &active.segments[segment_of(number)];
            active.may_receive(number) && state == BlockState::Requested && segment.is_reserved
        };
        self.get(block.piece()).is_some_and(is_so)
    }

    /// Number of pieces on their way.
    pub fn active_count(&self) -> usize {
        self.active.len()
    }

    /// Whoever sent blocks of an active piece.
    pub fn sources(&self, piece: PieceIndex) -> &[Party] {
        self.get(piece).map_or(&[], |active| &active.sources)
    }

    /// Bytes of an active piece that are in memory or on disk.
    pub fn here_bytes(&self, piece: PieceIndex) -> u64 {
        let Some(active) = self.get(piece) else {
            return 0;
        };
        // Only the last block may be shorter than the others.
        let last = active.blocks.len() as u32 - 1;
        let last_bytes = self.geometry.piece_bytes(piece) - last * BLOCK_BYTES;
        let short_bytes = (BLOCK_BYTES - last_bytes) * u32::from(active.is_here(last));
        u64::from(active.here) * u64::from(BLOCK_BYTES) - u64::from(short_bytes)
    }

    /// The part of [`Pieces::here_bytes`] that web seeds sent.
    pub fn here_web_bytes(&self, piece: PieceIndex) -> u64 {
        self.web_bytes_of(piece, 0..self.geometry.block_count(piece))
    }

    /// Bytes of those among these blocks that are here and that web seeds sent.
    pub fn web_bytes_of(&self, piece: PieceIndex, blocks: impl IntoIterator<Item = u32>) -> u64 {
        let Some(active) = self.get(piece) else {
            return 0;
        };
        let is_web = |at: &u32| {
            let block = active.blocks.get(*at as usize);
            let party = block.and_then(|block| active.sources.get(usize::from(block.source)));
            active.is_here(*at) && matches!(party, Some(Party::Web(_)))
        };
        let from_web = blocks.into_iter().filter(is_web);
        from_web
            .filter_map(|at| self.geometry.block(piece, at))
            .map(|block| u64::from(block.length()))
            .sum()
    }

    /// Assembly memory that an active piece holds, in bytes.
    pub fn memory_bytes(&self, piece: PieceIndex) -> u64 {
        self.get(piece).map_or(0, Active::reserved_bytes)
    }

    /// When an active piece was opened, or went on because some of it was bad.
    pub fn opened_at(&self, piece: PieceIndex) -> Option<Now> {
        self.get(piece).map(|active| active.opened_at)
    }

    /// The index into [`Pieces::sources`] of each block.
    pub fn block_sources(&self, piece: PieceIndex) -> Vec<u16> {
        let blocks = self.get(piece).map_or(&[][..], |active| &active.blocks);
        blocks.iter().map(|block| block.source).collect()
    }

    /// Replaces the set of wanted pieces; the caller gives up what is on its way and not wanted any more.
    pub fn select(&mut self, wanted: Bitfield) {
        self.wanted = wanted;
        for piece in self.geometry.pieces() {
            let is_missing = self.states[piece.as_usize()] == PieceState::Missing;
            let is_openable = is_missing && self.wanted.has(piece);
            self.picker.set_openable(piece, is_openable);
        }
        let had = |piece: &PieceIndex| self.have.has(*piece);
        self.wanted_have_count = self.wanted.iter().filter(had).count() as u32;
        self.epoch += 1;
    }

    /// One more request is outstanding for the block, which lies in an active piece.
    pub fn on_requested(&mut self, block: BlockRef) {
        let Some(active) = self.get_mut(block.piece()) else {
            return;
        };
        active.request(block_number(block));
        self.relist(block.piece());
    }

    /// A request will not be answered any more: withdrawn, rejected, forgotten.
    pub fn on_released(&mut self, block: BlockRef) {
        let Some(active) = self.get_mut(block.piece()) else {
            return;
        };
        if active.release(block_number(block)) {
            active.owner = None;
            self.epoch += 1;
            self.relist(block.piece());
        }
    }

    /// False when an active piece is to come from another peer alone.
    pub fn may_come_from(&self, piece: PieceIndex, from: (PeerKey, Party)) -> bool {
        self.get(piece)
            .is_some_and(|active| active.may_come_from(from))
    }

    /// A payload begins: takes the block for one peer. False when its place is taken or when there is no memory.
    pub fn begin_receive(&mut self, block: BlockRef, credits: &mut Credits) -> bool {
        let number = block_number(block);
        let Some(active) = self.get_mut(block.piece()) else {
            return false;
        };
        if !active.may_receive(number) {
            return false;
        }
        let segment = &mut active.segments[segment_of(number)];
        if !segment.is_reserved {
            let bytes = u64::from(segment.bytes);
            if credits.assembly_bytes < bytes {
                return false;
            }
            segment.is_reserved = true;
            self.deduct(bytes, credits);
        }
        if let Some(active) = self.get_mut(block.piece()) {
            active.begin_receive(number);
        }
        self.relist(block.piece());
        true
    }

    /// The payload will not be finished.
    pub fn abort_receive(&mut self, block: BlockRef) {
        let Some(active) = self.get_mut(block.piece()) else {
            return;
        };
        if active.abort_receive(block_number(block)) {
            active.owner = None;
            self.epoch += 1;
        }
        self.relist(block.piece());
    }

    /// The payload is in its place. Also tells whether other peers still owe the block.
    pub fn finish_receive(&mut self, block: BlockRef, from: Party, now: Now) -> (Completes, bool) {
        let Some(active) = self.get_mut(block.piece()) else {
            return (Completes::Nothing, false);
        };
        let number = block_number(block);
        let completes = active.finish_receive(number, from, now);
        let has_rivals = active.blocks[number as usize].requests > 0;
        match (active.phase, completes) {
            (Phase::Dropping, _) => return (Completes::Nothing, has_rivals),
            (_, Completes::Piece) => active.phase = Phase::Hashing,
            (_, Completes::Segment(segment)) => active.begin_flush(segment),
            (_, Completes::Nothing) => {}
        }
        (completes, has_rivals)
    }

    /// A flush ended well. True when the whole piece is on disk now: hash it.
    pub fn on_flushed(&mut self, piece: PieceIndex, segment: u32, credits: &mut Credits) -> bool {
        let Some(active) = self.get_mut(piece) else {
            return false;
        };
        if segment as usize >= active.segments.len() {
            return false;
        }
        if active.phase == Phase::Dropping {
            active.end_any_flush();
            return false;
        }
        let freed_bytes = active.end_flush(segment);
        let is_done = active.phase == Phase::Fetching && active.is_on_disk();
        if is_done {
            active.phase = Phase::Hashing;
        }
        self.give_back(freed_bytes, credits);
        self.relist(piece);
        is_done
    }

    /// Moves an active piece on.
    pub fn set_phase(&mut self, piece: PieceIndex, phase: Phase) {
        if let Some(active) = self.get_mut(piece) {
            active.phase = phase;
            self.relist(piece);
        }
    }

    /// The piece is verified and written.
    pub fn on_have(&mut self, piece: PieceIndex, credits: &mut Credits) {
        self.remove(piece, credits);
        self.states[piece.as_usize()] = PieceState::Have;
        self.alone.remove(&piece);
        if self.have.set(piece) && self.wanted.has(piece) {
            self.wanted_have_count += 1;
        }
    }

    /// A bad copy came from several sources: the next one comes from one peer alone.
    pub fn fetch_alone(&mut self, piece: PieceIndex) {
        self.alone.insert(piece);
    }

    /// These blocks of a whole piece are bad and missing again, the others are good: anybody may be asked for them.
    pub fn take_back(&mut self, piece: PieceIndex, blocks: &[u32], now: Now) {
        let Some(active) = self.get_mut(piece) else {
            return;
        };
        for block in blocks {
            active.take_back(*block);
        }
        active.trim_sources();
        active.phase = Phase::Fetching;
        active.owner = None;
        active.is_alone = false;
        (active.opened_at, active.progress_at) = (now, now);
        self.epoch += 1;
        self.relist(piece);
    }

    /// Names those whose blocks are not to be mixed with others as far as that can be helped.
    pub fn set_suspects(&mut self, suspects: Vec<Party>) {
        self.suspects = suspects;
        self.epoch += 1;
    }

    /// A piece that was had is gone.
    pub fn on_lost(&mut self, piece: PieceIndex) -> bool {
        if !self.have.clear(piece) {
            return false;
        }
        self.states[piece.as_usize()] = PieceState::Missing;
        if self.wanted.has(piece) {
            self.wanted_have_count -= 1;
            self.picker.set_openable(piece, true);
        }
        self.epoch += 1;
        true
    }

    /// A piece that was gone is there again; false when it is had or on its way by now.
    pub fn on_found(&mut self, piece: PieceIndex) -> bool {
        if !matches!(self.states[piece.as_usize()], PieceState::Missing) {
            return false;
        }
        self.states[piece.as_usize()] = PieceState::Have;
        self.picker.set_openable(piece, false);
        self.alone.remove(&piece);
        if self.have.set(piece) && self.wanted.has(piece) {
            self.wanted_have_count += 1;
        }
        true
    }

    /// Gives up an active piece: nothing more is asked for or stored. One flush answer less is awaited when
    /// `ends_flush`. Its requests must be withdrawn by the caller.
    pub fn give_up(&mut self, piece: PieceIndex, ends_flush: bool) {
        let Some(active) = self.get_mut(piece) else {
            return;
        };
        active.phase = Phase::Dropping;
        if ends_flush {
            active.end_any_flush();
        }
        self.relist(piece);
    }

    /// Removes a piece that was given up once nothing is under way for it any more; it may be opened again then.
    pub fn try_drop(&mut self, piece: PieceIndex, credits: &mut Credits) -> Option<Dropped> {
        let active = self.get(piece)?;
        let is_quiet = active.receiving == 0 && active.flushing == 0;
        if active.phase != Phase::Dropping || !is_quiet {
            return None;
        }
        self.remove(piece, credits);
        self.states[piece.as_usize()] = PieceState::Missing;
        self.picker.set_openable(piece, self.wanted.has(piece));
        self.epoch += 1;
        Some(Dropped)
    }

    /// The peer works for us no more: its pieces are anybody's.
    pub fn disown(&mut self, peer: PeerKey) {
        let owned = self
            .active
            .iter_mut()
            .filter(|(_, a)| a.owner == Some(peer));
        let owned: Vec<PieceIndex> = owned
            .map(|(_, active)| {
                active.owner = None;
                active.piece
            })
            .collect();
        for piece in owned {
            self.relist(piece);
            self.epoch += 1;
        }
    }

    /// Active pieces not hashed yet of which this party sent a block.
    pub fn tainted_by(&self, party: Party) -> Vec<PieceIndex> {
        let is_tainted = |active: &Active| {
            matches!(active.phase, Phase::Fetching | Phase::Held) && active.sources.contains(&party)
        };
        let tainted = self.active.iter().filter(|(_, active)| is_tainted(active));
        tainted.map(|(_, active)| active.piece).collect()
    }

    /// Active pieces that blocks are asked for, or that are held.
    pub fn fetching(&self) -> Vec<PieceIndex> {
        let is_meant = |active: &Active| matches!(active.phase, Phase::Fetching | Phase::Held);
        let fetching = self.active.iter().filter(|(_, active)| is_meant(active));
        fetching.map(|(_, active)| active.piece).collect()
    }

    /// Pieces held back from hashing, the lowest first, and when the last block of each came.
    pub fn held(&self) -> Vec<(PieceIndex, Now)> {
        let held = self.active.iter().filter(|(_, a)| a.phase == Phase::Held);
        let mut held: Vec<_> = held.map(|(_, a)| (a.piece, a.progress_at)).collect();
        held.sort_unstable();
        held
    }

    /// Pieces from this party and others of which nobody knows yet whether they are good.
    pub fn in_judgement(&self, party: Party) -> usize {
        let is_meant = |active: &Active| {
            let is_judged = matches!(
                active.phase,
                Phase::Hashing | Phase::Sifting | Phase::Digesting { is_good: false }
            );
            is_judged && active.sources.len() > 1 && active.sources.contains(&party)
        };
        self.active.iter().filter(|(_, a)| is_meant(a)).count()
    }

    /// Opens a missing piece if there is memory for its first blocks.
    fn open(
        &mut self,
        piece: PieceIndex,
        owner: PeerKey,
        is_alone: bool,
        now: Now,
        credits: &mut Credits,
    ) -> bool {
        let bytes = u64::from(self.geometry.piece_bytes(piece));
        let mode = match bytes <= self.whole_bytes_max {
            true => Mode::Whole,
            false => Mode::Streamed,
        };
        let first_bytes = match mode {
            Mode::Whole => bytes,
            Mode::Streamed => u64::from(self.geometry.segment_bytes(piece, 0)),
        };
        if !self.may_reserve(first_bytes, credits) {
            return false;
        }
        self.deduct(first_bytes, credits);
        let mut active = Active::new(&self.geometry, piece, mode, now);
        active.owner = Some(owner);
        active.is_alone = is_alone || self.alone.contains(&piece);
        match mode {
            Mode::Whole => active
                .segments
                .iter_mut()
                .for_each(|s| s.is_reserved = true),
            Mode::Streamed => active.segments[0].is_reserved = true,
        }
        let slot = self.active.insert(active);
        self.states[piece.as_usize()] = PieceState::Active(slot as u32);
        self.picker.set_openable(piece, false);
        self.relist(piece);
        true
    }

    fn remove(&mut self, piece: PieceIndex, credits: &mut Credits) {
        let PieceState::Active(slot) = self.states[piece.as_usize()] else {
            return;
        };
        let active = self.active.remove(slot as usize);
        self.give_back(active.reserved_bytes(), credits);
        self.open.remove(&piece);
        self.orphans.remove(&piece);
    }

    /// Brings `open` and `orphans` in step with the piece.
    fn relist(&mut self, piece: PieceIndex) {
        let Some(active) = self.get(piece) else {
            return;
        };
        let is_open = active.phase == Phase::Fetching && active.free > 0;
        let is_orphan = is_open && active.owner.is_none();
        relist(&mut self.open, piece, is_open);
        relist(&mut self.orphans, piece, is_orphan);
    }

    fn get(&self, piece: PieceIndex) -> Option<&Active> {
        match self.states.get(piece.as_usize())? {
            PieceState::Active(slot) => self.active.get(*slot as usize),
            _ => None,
        }
    }

    fn get_mut(&mut self, piece: PieceIndex) -> Option<&mut Active> {
        match self.states.get(piece.as_usize())? {
            PieceState::Active(slot) => self.active.get_mut(*slot as usize),
            _ => None,
        }
    }
}

fn relist(set: &mut BTreeSet<PieceIndex>, piece: PieceIndex, is_in: bool) {
    if is_in {
        set.insert(piece);
    } else {
        set.remove(&piece);
    }
}
