//! Requests we send and blocks that come: pipelines, placement, snubs, endgame.

use std::time::Duration;

use crate::base::{BlockRef, Now, PieceIndex};
use crate::swarm::effects::{Cx, Effect, PeerKey};
use crate::swarm::peer::{
    Incoming, OUTBOX_BYTES_MAX, Peer, PeerFault, STRAY_REJECTS_MAX, UNREQUESTED_MAX, limit, raw,
};
use crate::swarm::picker::PickOrder;
use crate::swarm::pieces::{Asker, Choice, Completes};
use crate::swarm::pipeline::{Asked, Withdrawn};
use crate::swarm::torrent::{
    ENDGAME_TICK, FILL_PAUSE, FIRST_RANDOM_PIECES, Placement, SPILL_PAUSE, Torrent,
};
use crate::wire::message::{Message, RawBlock};

/// A peer that unchokes us twice within this time is asked for nothing until it has passed: choking takes all requests
/// back, and nobody changes its mind that often (HOSTILE.md W10).
const FLAP: Duration = Duration::from_secs(1);

impl Torrent {
    /// Sends requests to the peer while it has room and there is something to ask for.
    pub(super) fn fill(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if self.is_paused || self.is_stopping || !self.cfg.fetches {
            return;
        }
        let order = self.order();
        let mut has_sent = false;
        loop {
            let Some(peer) = self.peers.get_mut(key.0) else {
                return;
            };
            let is_idle = peer.pipeline.room() == 0 || peer.nothing_at_epoch == self.pieces.epoch();
            if is_idle || !may_be_asked(peer, cx.now) {
                break;
            }
            let asker = asker(key, peer, order);
            match self.pieces.choose(&asker, cx.now, cx.credits) {
                Choice::Block(block) => {
                    peer.current = Some(block.piece());
                    peer.pipeline.push(block);
                    peer.wake(key, cx);
                    self.pieces.on_requested(block);
                    has_sent = true;
                }
                Choice::Starved => {
                    self.on_starved(key, cx);
                    break;
                }
                Choice::Nothing => {
                    peer.nothing_at_epoch = self.pieces.epoch();
                    break;
                }
            }
        }
        if has_sent {
            self.tick_by(cx.now + super::ACTIVE_TICK);
        }
        if self.pieces.is_endgame() {
            self.tick_by(cx.now + ENDGAME_TICK);
        }
    }

    /// Looks for work for every peer that has room: something became free to ask for. At once after a quiet time, else
    /// once for many such events: chokes and rejects of some peers must not cost a look at all peers each.
    pub(super) fn fill_all(&mut self, cx: &mut Cx<'_>) {
        if cx.now < self.fill_from {
            self.fill_at = Some(self.fill_from);
            return;
        }
        self.fill_at = None;
        self.fill_from = cx.now + FILL_PAUSE;
        for key in self.peers.keys() {
            self.fill(PeerKey(key), cx);
        }
    }

    /// Gives peers that waited for assembly memory their turn, in the order in which they began to wait.
    pub(super) fn feed_starved(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..self.starved.len() {
            let Some(key) = self.starved.pop_front() else {
                return;
            };
            let Some(peer) = self.peers.get_mut(key.0) else {
                continue;
            };
            peer.is_starved = false;
            self.fill(key, cx);
            let still = |torrent: &Torrent| torrent.peers.get(key.0).is_some_and(|p| p.is_starved);
            if still(self) {
                // It keeps its place at the front: nobody behind it could be served either.
                if self.starved.back() == Some(&key) {
                    self.starved.rotate_right(1);
                }
                return;
            }
        }
    }

    pub(super) fn place(
        &mut self,
        key: PeerKey,
        header: RawBlock,
        cx: &mut Cx<'_>,
    ) -> Result<Placement, PeerFault> {
        self.drop_incoming(key, cx);
        let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing) else {
            return Ok(Placement::Scratch);
        };
        peer.heard_at = cx.now;
        peer.has_spoken = true;
        peer.incoming = Some(Incoming::Scratch);
        peer.incoming_at = cx.now;
        let asked = peer.pipeline.take(header, cx.now);
        let block = match asked {
            Asked::Outstanding(block) | Asked::Late(block) => {
                // A piece that was given up, or blocks of it, and opened again in this very call is not forgotten yet.
                let piece = Some(block.piece());
                let is_reborn = self.pieces.opened_at(block.piece()) == Some(cx.now)
                    && cx.fx.iter().any(|effect| effect.forgets() == piece);
                // What is owed still is taken in though the piece has become another peer's since: thrown away it would
                // be asked for again, and peers that own the piece by turns would never finish it.
                let is_owed = asked == Asked::Outstanding(block);
                let from = (key, peer.party);
                let is_welcome = is_owed || self.pieces.may_come_from(block.piece(), from);
                let is_taken =
                    is_welcome && !is_reborn && self.pieces.begin_receive(block, cx.credits);
                if is_owed {
                    self.pieces.on_released(block);
                }
                is_taken.then_some(block)
            }
            Asked::No => {
                peer.unrequested_count += 1;
                limit(peer.unrequested_count, UNREQUESTED_MAX, |got, max| {
                    PeerFault::TooManyUnrequested { got, max }
                })?;
                None
            }
        };
        Ok(block.map_or(Placement::Scratch, |block| {
            peer.incoming = Some(Incoming::Block(block));
            Placement::Store(block)
        }))
    }

    pub(super) fn on_bytes(&mut self, key: PeerKey, n_bytes: u32, cx: &mut Cx<'_>) {
        self.down.add(u64::from(n_bytes), cx.now);
        if let Some(peer) = self.peers.get_mut(key.0) {
            peer.heard_at = cx.now;
            peer.pipeline.on_bytes(n_bytes, cx.now);
        }
    }

    pub(super) fn stored(&mut self, key: PeerKey, block: BlockRef, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        if peer.incoming != Some(Incoming::Block(block)) {
            return;
        }
        peer.incoming = None;
        peer.on_block(key, cx);
        let bytes = u64::from(block.length());
        self.downloaded_bytes += bytes;
        self.downloaded_web_bytes += bytes * u64::from(peer.is_web());
        let (completes, has_rivals) = self.pieces.finish_receive(block, peer.party, cx.now);
        if has_rivals {
            self.cancel_rivals(key, block, cx);
        }
        let piece = block.piece();
        match completes {
            Completes::Piece => self.on_whole(piece, cx),
            Completes::Segment(segment) => cx.fx.push(Effect::FlushSegment { piece, segment }),
            Completes::Nothing => self.settle(piece, cx),
        }
        self.fill(key, cx);
    }

    pub(super) fn discarded(&mut self, key: PeerKey, header: RawBlock, cx: &mut Cx<'_>) {
        self.wasted_bytes += u64::from(header.length);
        if let Some(peer) = self.peers.get_mut(key.0) {
            peer.incoming = None;
            peer.on_block(key, cx);
        }
        self.fill(key, cx);
    }

    pub(super) fn on_choke(&mut self, key: PeerKey, cx: &mut Cx<'_>) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        peer.count_useless(cx.now)?;
        peer.peer_choking = true;
        peer.current = None;
        let withdrawn = peer.pipeline.withdraw_pieces(&peer.allowed_in, false);
        self.release(key, &withdrawn, cx);
        Ok(())
    }

    pub(super) fn on_unchoke(&mut self, key: PeerKey, cx: &mut Cx<'_>) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        peer.count_useless(cx.now)?;
        if !std::mem::replace(&mut peer.peer_choking, false) {
            return Ok(());
        }
        let last = peer.unchoked_us_at.replace(cx.now);
        if last.is_some_and(|at| cx.now.since(at) < FLAP) {
            // Whoever flaps is not worth the work at once.
            peer.rests_until = cx.now + FLAP;
            self.tick_by(cx.now + FLAP);
            return Ok(());
        }
        peer.nothing_at_epoch = 0;
        if peer.pipeline.is_snubbed() {
            self.probe(key, cx);
        }
        self.fill(key, cx);
        Ok(())
    }

    pub(super) fn on_reject(
        &mut self,
        key: PeerKey,
        header: RawBlock,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        match peer.pipeline.take_rejected(header) {
            Asked::Late(_) => {}
            Asked::No => {
                peer.stray_reject_count += 1;
                limit(peer.stray_reject_count, STRAY_REJECTS_MAX, |got, max| {
                    PeerFault::TooManyStrayRejects { got, max }
                })?;
            }
            Asked::Outstanding(block) => {
                peer.count_useless(cx.now)?;
                // Asked again at once it would refuse again.
                peer.allowed_in.retain(|piece| *piece != block.piece());
                if !peer.peer_choking {
                    peer.withhold(block.piece(), self.cfg.geometry.piece_count(), cx.now);
                }
                self.pieces.on_released(block);
                self.withdraw_piece(key, block.piece(), cx);
                self.tick_by(cx.now + super::ACTIVE_TICK);
                self.fill_all(cx);
            }
        }
        Ok(())
    }

    /// Takes all requests back from a peer that owes them for too long. It may still answer the oldest.
    pub(super) fn snub(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        peer.current = None;
        let withdrawn = peer.pipeline.withdraw_snubbed(cx.now);
        for block in withdrawn.sent.iter().skip(1) {
            peer.send(key, &Message::Cancel(raw(*block)), cx);
        }
        self.release(key, &withdrawn, cx);
    }

    /// Cancels what the peer owes of pieces that others have a part in.
    pub(super) fn take_back_shared(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get(key.0) else {
            return;
        };
        let mut owed: Vec<PieceIndex> = peer.pipeline.iter().map(|b| b.piece()).collect();
        owed.sort_unstable();
        owed.dedup();
        for piece in owed {
            if !self.pieces.is_owned_alone(piece, key) {
                self.withdraw_piece(key, piece, cx);
            }
        }
        self.fill_all(cx);
    }

    /// Asks a snubbed peer for one block, which anybody else may be asked for too: it may have come back to life.
    pub(super) fn probe(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let order = self.order();
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        if self.is_paused || !self.cfg.fetches || !may_be_asked(peer, cx.now) {
            return;
        }
        let choice = self
            .pieces
            .choose(&asker(key, peer, order), cx.now, cx.credits);
        let block = match choice {
            Choice::Block(block) => Some(block),
            _ => None,
        };
        if let Some(before) = peer.pipeline.set_probe(block, cx.now) {
            peer.send(key, &Message::Cancel(raw(before)), cx);
        }
        if let Some(block) = block {
            peer.send(key, &Message::Request(raw(block)), cx);
        }
        self.pieces.disown(key);
    }

    /// Takes the peer's requests back without telling it, because it is choking us or leaves.
    pub(super) fn release_all(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let withdrawn = peer.pipeline.withdraw_all();
        self.release_leaves(key, cx.now);
        self.release(key, &withdrawn, cx);
    }

    /// Cancels what every peer owes of a piece that is given up.
    pub(super) fn withdraw_everywhere(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        for key in self.peers.keys() {
            self.withdraw_piece(PeerKey(key), piece, cx);
        }
    }

    /// Ends a payload that will not come: the block is free again.
    pub(super) fn drop_incoming(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let incoming = self
            .peers
            .get_mut(key.0)
            .and_then(|peer| peer.incoming.take());
        if let Some(Incoming::Block(block)) = incoming {
            self.pieces.abort_receive(block);
            self.settle(block.piece(), cx);
        }
    }

    fn release(&mut self, key: PeerKey, withdrawn: &Withdrawn, cx: &mut Cx<'_>) {
        for block in withdrawn.iter() {
            self.pieces.on_released(block);
        }
        self.pieces.disown(key);
        self.fill_all(cx);
    }

    /// Cancels what the peer owes of a piece.
    pub(super) fn withdraw_piece(&mut self, key: PeerKey, piece: PieceIndex, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        if peer.current == Some(piece) {
            peer.current = None;
        }
        let withdrawn = peer.pipeline.withdraw_pieces(&[piece], true);
        for block in &withdrawn.sent {
            peer.send(key, &Message::Cancel(raw(*block)), cx);
        }
        for block in withdrawn.iter() {
            self.pieces.on_released(block);
        }
    }

    /// The block came from one peer: cancels it at the others (endgame).
    fn cancel_rivals(&mut self, winner: PeerKey, block: BlockRef, cx: &mut Cx<'_>) {
        let mut rivals = Vec::new();
        for (key, peer) in self.peers.iter_mut() {
            let key = PeerKey(key);
            if key == winner {
                continue;
            }
            let withdrawn = peer.pipeline.withdraw(block);
            rivals.extend(withdrawn.iter().map(|_| key));
            for block in withdrawn.sent {
                peer.send(key, &Message::Cancel(raw(block)), cx);
            }
        }
        for key in rivals {
            self.pieces.on_released(block);
            self.fill(key, cx);
        }
    }

    fn on_starved(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_starved) {
            peer.is_starved = true;
            self.starved.push_back(key);
        }
        self.tick_by(cx.now + super::ACTIVE_TICK);
        if cx.now < self.spill_at {
            return;
        }
        self.spill_at = cx.now + SPILL_PAUSE;
        for (piece, segment) in self.pieces.spill(cx.now, cx.credits) {
            cx.fx.push(Effect::FlushSegment { piece, segment });
        }
    }

    /// Counts what is thrown away of a piece that is given up.
    pub(super) fn waste(&mut self, piece: PieceIndex) {
        let bytes = self.pieces.here_bytes(piece);
        self.wasted_bytes += bytes;
        self.downloaded_bytes -= bytes;
        self.downloaded_web_bytes -= self.pieces.here_web_bytes(piece);
    }

    fn order(&self) -> PickOrder {
        match (self.cfg.is_sequential, self.pieces.have().count()) {
            (true, _) => PickOrder::Sequential,
            (false, 0..FIRST_RANDOM_PIECES) => PickOrder::Random,
            (false, _) => PickOrder::Rarest,
        }
    }
}

/// Whether requests may be sent to the peer at all.
pub(super) fn may_be_asked(peer: &Peer, now: Now) -> bool {
    let is_blocked = peer.peer_choking && peer.allowed_in.is_empty();
    let is_full = peer.outbox.len() > OUTBOX_BYTES_MAX;
    !is_blocked && !is_full && !peer.is_closing && peer.needed_count > 0 && peer.rests_until <= now
}

fn asker(key: PeerKey, peer: &Peer, order: PickOrder) -> Asker<'_> {
    Asker {
        peer: key,
        party: peer.party,
        have: peer.offers(),
        only: peer.peer_choking.then_some(&peer.allowed_in),
        current: peer.current,
        is_suspect: peer.is_suspect,
        is_web: peer.is_web(),
        order,
        pipeline: &peer.pipeline,
    }
}
