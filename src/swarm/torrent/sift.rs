//! Bad pieces that are verified by hash trees: the leaves are asked of a peer, the bad blocks are dropped and their senders
//! banned, and the good ones stay (BEP 52, "hash request" of base layer 0).
//!
//! Where nobody can be asked or nobody answers, a bad piece ends as in v1 (`on_bad_copy`).

use std::time::Duration;

use crate::base::{BLOCK_BYTES, Now, PieceIndex};
use crate::swarm::effects::{Cx, Effect, PeerKey};
use crate::swarm::peer::{Peer, PeerFault};
use crate::swarm::pieces::Phase;
use crate::swarm::poison::Party;
use crate::swarm::sift::Sift;
use crate::swarm::torrent::Torrent;
use crate::wire::merkle::Node;
use crate::wire::message::{HashRange, Message};
use crate::wire::metainfo::{LEAVES_PIECE_BYTES_MAX, PieceTree};

/// Pieces sifted at once.
const SIFTS_MAX: usize = 64;
/// The part of the session's assembly memory that pieces being sifted may hold: the rest is for those that come well.
const MEMORY_DIVISOR: u64 = 2;
/// Requests for leaves that one peer may owe, each answered with up to 16 KiB; libtorrent's figure.
const OWED_MAX: usize = 2;
/// Who rejected is not asked again before this time has passed: it may have been asked too much at once.
const REST_REJECTED: Duration = Duration::from_secs(10);
/// The same of one that did not answer.
const REST_LATE: Duration = Duration::from_secs(60);

impl Torrent {
    /// The piece is bad: finds out which of its blocks are. False when that cannot be.
    pub(super) fn begin_sift(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) -> bool {
        let Some(tree) = self.tree_to_sift(piece) else {
            return false;
        };
        let held_bytes = |piece: &PieceIndex| self.pieces.memory_bytes(*piece);
        let held: u64 = self.sifts.keys().map(held_bytes).sum();
        let memory_max = self.cfg.assembly_budget_bytes / MEMORY_DIVISOR;
        let has_room = self.sifts.len() < SIFTS_MAX && held + held_bytes(&piece) <= memory_max;
        if !has_room || self.is_stopping || !self.can_sift(piece, cx.now) {
            return false;
        }
        self.sifts.insert(piece, Sift::new(tree));
        self.pieces.set_phase(piece, Phase::Sifting);
        cx.fx.push(Effect::HashLeaves { piece });
        self.ask_for_leaves(piece, cx);
        true
    }

    /// Whether bad blocks of this piece can be told from good ones as things stand: then it need not be given up because
    /// one of its sources lied.
    pub(super) fn can_sift(&self, piece: PieceIndex, now: Now) -> bool {
        let mut peers = self.peers.iter();
        self.tree_to_sift(piece).is_some() && peers.any(|(_, peer)| may_know(peer, piece, now))
    }

    fn tree_to_sift(&self, piece: PieceIndex) -> Option<PieceTree> {
        // Pieces of a hybrid are verified by their SHA-1: whoever made trees of other contents would have us ban the honest.
        let trees = self.cfg.trees.as_ref();
        let trees = trees.filter(|_| self.cfg.geometry.is_aligned());
        let tree = trees?.piece(piece)?;
        // Of a piece of one block it is known who sent it.
        let is_one = tree.block_count() < 2;
        (!is_one && tree.bytes <= LEAVES_PIECE_BYTES_MAX).then_some(tree)
    }

    /// Asks whoever may know the leaves, those first who sent nothing of the piece.
    fn ask_for_leaves(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        while let Some(sift) = self.sifts.get(&piece).filter(|sift| sift.is_free()) {
            let sources = self.pieces.sources(piece);
            let cost = |(key, peer): (_, &Peer)| {
                let key = PeerKey(key);
                let owed = self.leaves_owed(key);
                let is_it = may_know(peer, piece, cx.now) && sift.may_ask(key) && owed < OWED_MAX;
                let has_part = peer.is_suspect || sources.contains(&peer.party);
                is_it.then_some((has_part, owed, key))
            };
            let Some((.., key)) = self.peers.iter().filter_map(cost).min() else {
                break;
            };
            let range = self
                .sifts
                .get_mut(&piece)
                .and_then(|sift| sift.ask(key, cx.now));
            if let (Some(range), Some(peer)) = (range, self.peers.get_mut(key.0)) {
                peer.send(key, &Message::HashRequest(range), cx);
            }
        }
        let late_at = self.sifts.values().filter_map(Sift::next_deadline).min();
        self.sift_at = self.sift_at.into_iter().chain(late_at).min();
    }

    fn leaves_owed(&self, key: PeerKey) -> usize {
        self.sifts.values().map(|sift| sift.owed_count(key)).sum()
    }

    /// Answers [`Effect::HashLeaves`] with a leaf a block; `None` when the piece could not be read.
    pub fn on_leaves_hashed(
        &mut self,
        piece: PieceIndex,
        leaves: Option<Vec<Node>>,
        cx: &mut Cx<'_>,
    ) {
        if let Some(sift) = self.sifts.get_mut(&piece) {
            match leaves {
                Some(leaves) if !self.is_stopping => sift.set_ours(leaves),
                _ => return self.end_sift(piece, cx),
            }
            self.judge_blocks(piece, cx);
        }
        self.after_event();
    }

    /// Hashes that we asked for, if we did.
    pub(super) fn on_hashes(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        bytes: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(piece) = self.sifted_by(key, range) else {
            return self.on_useless(key, cx);
        };
        let (hashes, rest) = bytes.as_chunks::<32>();
        let sift = self.sifts.get_mut(&piece);
        if !rest.is_empty() || !sift.is_some_and(|sift| sift.store(key, range, hashes)) {
            if let Some(party) = self.peers.get(key.0).map(|peer| peer.party) {
                self.ban(party, cx);
            }
            return Err(PeerFault::WrongHashes);
        }
        self.judge_blocks(piece, cx);
        self.ask_all_for_leaves(cx);
        Ok(())
    }

    /// The peer does not know the leaves, or gives none away.
    pub(super) fn on_hash_reject(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        if self.sifted_by(key, range).is_none() {
            return self.on_useless(key, cx);
        }
        self.rest_from_leaves(key, REST_REJECTED, cx.now);
        self.review_sifts(cx);
        Ok(())
    }

    fn sifted_by(&self, key: PeerKey, range: &HashRange) -> Option<PieceIndex> {
        let mut sifts = self.sifts.iter();
        let found = sifts.find(|(_, sift)| sift.is_owed(key, range))?;
        Some(*found.0)
    }

    /// What the peer owes of leaves is asked of others, once this call is over.
    pub(super) fn release_leaves(&mut self, key: PeerKey, now: Now) {
        for sift in self.sifts.values_mut() {
            if sift.release(key) {
                self.sift_at = Some(now);
            }
        }
    }

    fn rest_from_leaves(&mut self, key: PeerKey, rest: Duration, now: Now) {
        self.release_leaves(key, now);
        if let Some(peer) = self.peers.get_mut(key.0) {
            peer.knows_leaves_from = now + rest;
        }
    }

    /// Asks others where somebody is late, and gives up where nobody is left to ask.
    pub(super) fn review_sifts(&mut self, cx: &mut Cx<'_>) {
        self.sift_at = None;
        let late = self.sifts.values().flat_map(|sift| sift.late(cx.now));
        let late: Vec<PeerKey> = late.collect();
        for key in late {
            self.rest_from_leaves(key, REST_LATE, cx.now);
        }
        self.ask_all_for_leaves(cx);
        // While blocks are hashed, their memory is on loan.
        let sifts = self.sifts.iter().filter(|(_, sift)| sift.has_ours());
        let in_vain = sifts.filter(|(piece, sift)| {
            let may_ask = |key, peer| sift.may_ask(key) && may_know(peer, **piece, cx.now);
            let mut peers = self.peers.iter();
            sift.is_free() && !peers.any(|(key, peer)| may_ask(PeerKey(key), peer))
        });
        let in_vain: Vec<PieceIndex> = in_vain.map(|(piece, _)| *piece).collect();
        for piece in in_vain {
            self.end_sift(piece, cx);
        }
    }

    fn ask_all_for_leaves(&mut self, cx: &mut Cx<'_>) {
        let pieces: Vec<PieceIndex> = self.sifts.keys().copied().collect();
        for piece in pieces {
            self.ask_for_leaves(piece, cx);
        }
    }

    /// The torrent stops: nobody answers any more.
    pub(super) fn end_sifts(&mut self, cx: &mut Cx<'_>) {
        self.sift_at = None;
        let hashed = self.sifts.iter().filter(|(_, sift)| sift.has_ours());
        let hashed: Vec<PieceIndex> = hashed.map(|(piece, _)| *piece).collect();
        for piece in hashed {
            self.end_sift(piece, cx);
        }
    }

    /// Which blocks are bad is not to be found out.
    fn end_sift(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        self.sifts.remove(&piece);
        match self.is_stopping {
            true => self.give_up(piece, false, cx),
            false => self.on_bad_copy(piece, cx),
        }
    }

    /// Drops the bad blocks and bans their senders, once all leaves are here. A piece that nobody wants any more, or with
    /// blocks that are all right, is given up.
    fn judge_blocks(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        let verdict = self.sifts.get(&piece).and_then(Sift::verdict);
        let Some(blocks) = verdict else {
            // Perhaps nobody was left to ask while the blocks were hashed.
            return self.review_sifts(cx);
        };
        self.sifts.remove(&piece);
        let (parties, sources) = (self.pieces.sources(piece), self.pieces.block_sources(piece));
        let sender = |block: &u32| parties.get(usize::from(*sources.get(*block as usize)?));
        let mut liars: Vec<Party> = blocks.iter().filter_map(sender).copied().collect();
        liars.sort_unstable();
        liars.dedup();
        // Where each block is right and the piece is not, memory or disk erred: nobody is to blame.
        let goes_on = !blocks.is_empty() && self.pieces.wanted().has(piece);
        match goes_on {
            true => self.waste_blocks(piece, &blocks),
            false => self.waste(piece),
        }
        for liar in liars {
            self.ban(liar, cx);
        }
        if goes_on {
            self.pieces.take_back(piece, &blocks, cx.now);
            cx.fx.push(Effect::DropBlocks { piece, blocks });
            self.fill_all(cx);
        } else {
            self.give_up(piece, false, cx);
        }
        self.release_held(cx);
    }

    /// # Panics
    /// When an invariant is broken.
    pub(super) fn check_sifts(&self) {
        assert!(self.sifts.len() <= SIFTS_MAX, "pieces being sifted");
        assert_eq!(self.sifts.len(), self.pieces.sifting_count());
        for (piece, sift) in &self.sifts {
            assert_eq!(self.pieces.phase(*piece), Some(Phase::Sifting));
            sift.check();
        }
        for key in self.peers.keys() {
            assert!(self.leaves_owed(PeerKey(key)) <= OWED_MAX, "leaves owed");
        }
    }

    fn waste_blocks(&mut self, piece: PieceIndex, blocks: &[u32]) {
        for block in blocks {
            let block = self.cfg.geometry.block(piece, *block);
            let bytes = block.map_or(u64::from(BLOCK_BYTES), |block| block.length().into());
            self.wasted_bytes += bytes;
            self.downloaded_bytes -= bytes;
        }
        self.downloaded_web_bytes -= self.pieces.web_bytes_of(piece, blocks.iter().copied());
    }
}

/// Whether the peer may be asked for leaves of the piece.
fn may_know(peer: &Peer, piece: PieceIndex, now: Now) -> bool {
    let is_v2 = peer.conn.is_v2 && !peer.is_web() && !peer.is_closing;
    is_v2 && peer.knows_leaves_from <= now && peer.have.has(piece)
}
