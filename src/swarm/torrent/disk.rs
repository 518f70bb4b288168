//! Answers of hasher and disk: a piece's way from complete to had, or back to missing; who is to blame.

use std::time::Duration;

use crate::base::{Now, PieceIndex};
use crate::swarm::effects::{CloseReason, Cx, Effect, PeerKey};
use crate::swarm::peer::Peer;
use crate::swarm::pieces::{Mode, Phase};
use crate::swarm::poison::Party;
use crate::swarm::torrent::{BANNED_LOCAL_MAX, NEWS_PAUSE, Torrent};

/// Bad copies shared with others that may wait at once with blocks of one party: with one bad piece of its own it is
/// banned after four (HOSTILE.md C3).
const SHARED_BAD_MAX: usize = 3;
/// A piece is held back from hashing no longer than this: a good copy of what is in doubt may not be to be had.
const HELD_MAX: Duration = Duration::from_secs(10);

impl Torrent {
    /// All blocks of the piece are here.
    pub(super) fn on_whole(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        self.pieces.set_phase(piece, Phase::Held);
        if self.is_in_doubt(piece, cx.now) {
            self.tick_by(cx.now + super::ACTIVE_TICK);
            return;
        }
        self.pieces.set_phase(piece, Phase::Hashing);
        cx.fx.push(Effect::Hash { piece });
    }

    /// Has pieces hashed that were held back and need not be any more.
    pub(super) fn release_held(&mut self, cx: &mut Cx<'_>) {
        if self.bad_pieces == 0 {
            // Nothing is ever held in a swarm without bad pieces, and a hash is answered thousands of times a second.
            return;
        }
        for (piece, whole_at) in self.pieces.held() {
            if cx.now.since(whole_at) >= HELD_MAX || !self.is_in_doubt(piece, cx.now) {
                self.pieces.set_phase(piece, Phase::Hashing);
                cx.fx.push(Effect::Hash { piece });
            }
        }
    }

    /// One of the sources that share the piece may be in as many bad copies as are borne: whether it lied is known
    /// soon, and then this piece is given up unhashed or as good as others. Where blocks can be judged one by one there is
    /// nothing to wait for.
    fn is_in_doubt(&self, piece: PieceIndex, now: Now) -> bool {
        let sources = self.pieces.sources(piece);
        let is_full = |party: &Party| {
            self.suspects.count_of(*party) + self.pieces.in_judgement(*party) >= SHARED_BAD_MAX
        };
        let is_shared = self.bad_pieces > 0 && sources.len() > 1;
        is_shared && sources.iter().any(is_full) && !self.can_sift(piece, now)
    }

    pub(super) fn hashed(&mut self, piece: PieceIndex, is_good: bool, cx: &mut Cx<'_>) {
        if self.pieces.phase(piece) != Some(Phase::Hashing) {
            return;
        }
        match is_good {
            true if self.suspects.has(piece) => self.digest(piece, true, cx),
            true => self.accept(piece, cx),
            false => self.on_bad_piece(piece, cx),
        }
        self.release_held(cx);
    }

    pub(super) fn digested(
        &mut self,
        piece: PieceIndex,
        digests: Option<Vec<u64>>,
        cx: &mut Cx<'_>,
    ) {
        match self.pieces.phase(piece) {
            Some(Phase::Digesting { is_good: true }) => {
                let liars = self.suspects.judge(piece, digests.as_deref());
                self.review_suspects();
                for liar in liars {
                    self.ban(liar, cx);
                }
                self.accept(piece, cx);
                self.release_held(cx);
            }
            Some(Phase::Digesting { is_good: false }) => {
                if let Some(digests) = digests {
                    let parties = self.pieces.sources(piece).to_vec();
                    let sources = self.pieces.block_sources(piece);
                    self.suspects.add(piece, parties, &sources, &digests);
                }
                self.pieces.fetch_alone(piece);
                self.give_up(piece, false, cx);
                self.review_suspects();
                self.release_held(cx);
            }
            _ => {}
        }
    }

    pub(super) fn written(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        if self.pieces.phase(piece) == Some(Phase::Writing) {
            self.on_have(piece, cx);
        }
    }

    pub(super) fn write_failed(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        let Some(phase) = self.pieces.phase(piece) else {
            return;
        };
        let ends_flush = matches!(phase, Phase::Fetching | Phase::Dropping);
        self.give_up(piece, ends_flush, cx);
    }

    pub(super) fn flushed(&mut self, piece: PieceIndex, segment: u32, cx: &mut Cx<'_>) {
        if self.pieces.on_flushed(piece, segment, cx.credits) {
            self.on_whole(piece, cx);
        }
        self.settle(piece, cx);
        self.feed_starved(cx);
    }

    /// Ends a piece that is not worth going on with.
    pub(super) fn give_up(&mut self, piece: PieceIndex, ends_flush: bool, cx: &mut Cx<'_>) {
        self.pieces.give_up(piece, ends_flush);
        self.withdraw_everywhere(piece, cx);
        self.settle(piece, cx);
    }

    /// Frees a piece that was given up as soon as nothing is under way for it.
    pub(super) fn settle(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        if self.pieces.try_drop(piece, cx.credits).is_some() {
            cx.fx.push(Effect::Discard { piece });
            self.fill_all(cx);
            self.feed_starved(cx);
        }
    }

    /// Bans a party for good and closes every connection of it.
    pub(super) fn ban(&mut self, party: Party, cx: &mut Cx<'_>) {
        match party {
            Party::Ip(ip) => {
                if self.candidates.ban(ip) {
                    cx.fx.push(Effect::Ban { ip });
                }
            }
            Party::Local(..) => {
                let is_known = self.banned_local.contains(&party);
                if !is_known && self.banned_local.len() < BANNED_LOCAL_MAX {
                    self.banned_local.push(party);
                }
            }
            Party::Web(seed) => {
                if self.banned_web.insert(seed) {
                    cx.fx.push(Effect::BanWebSeed { seed });
                }
            }
        }
        for key in self.peers.keys() {
            let key = PeerKey(key);
            if self.peers.get(key.0).is_some_and(|peer| peer.is_of(&party)) {
                self.close(key, CloseReason::Banned, cx);
            }
        }
        // What it sent of other pieces is as bad: to fetch the rest of them would be for nothing, unless the bad blocks can be
        // told from the good ones then.
        let tainted = self.pieces.tainted_by(party).into_iter();
        let lost = tainted.filter(|piece| !self.can_sift(*piece, cx.now));
        for piece in lost.collect::<Vec<_>>() {
            self.waste(piece);
            self.give_up(piece, false, cx);
        }
    }

    fn on_bad_piece(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        self.bad_pieces += 1;
        if !self.begin_sift(piece, cx) {
            self.on_bad_copy(piece, cx);
        }
    }

    /// Nobody can say which blocks are bad: the whole piece is fetched again, from one peer alone where it came from several.
    pub(super) fn on_bad_copy(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        self.waste(piece);
        match self.pieces.sources(piece) {
            &[party] => {
                self.give_up(piece, false, cx);
                self.ban(party, cx);
            }
            _ => {
                self.mark_suspects(piece, cx);
                self.digest(piece, false, cx);
            }
        }
    }

    fn digest(&mut self, piece: PieceIndex, is_good: bool, cx: &mut Cx<'_>) {
        self.pieces.set_phase(piece, Phase::Digesting { is_good });
        cx.fx.push(Effect::DigestBlocks { piece });
    }

    /// The piece is right: write it, or have it when its blocks were written as they came.
    fn accept(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        if self.pieces.mode(piece) == Some(Mode::Streamed) {
            self.on_have(piece, cx);
            return;
        }
        self.pieces.set_phase(piece, Phase::Writing);
        cx.fx.push(Effect::Write { piece });
    }

    fn on_have(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        let was_complete = self.pieces.is_complete();
        self.pieces.on_have(piece, cx.credits);
        self.have_log.push(piece);
        cx.fx.push(Effect::Have { piece });
        let is_wanted = self.pieces.wanted().has(piece);
        let mut satisfied = Vec::new();
        for (key, peer) in self.peers.iter_mut() {
            if is_wanted && peer.have.has(piece) {
                peer.needed_count = peer.needed_count.saturating_sub(1);
                if peer.needed_count == 0 {
                    satisfied.push(PeerKey(key));
                }
            }
        }
        for key in satisfied {
            self.update_interest(key, cx);
        }
        self.tell_news(cx);
        if self.pieces.is_complete() && !was_complete {
            self.on_complete(cx);
        }
        self.feed_starved(cx);
    }

    /// Wakes the writers of peers that have not heard of all our pieces: at once after a quiet time, in batches while
    /// pieces come fast, so that a piece does not cost a send to every peer.
    pub(super) fn tell_news(&mut self, cx: &mut Cx<'_>) {
        self.keep_veiled();
        if cx.now < self.news_from {
            self.news_at = Some(self.news_from);
            return;
        }
        self.news_at = None;
        self.news_from = cx.now + NEWS_PAUSE;
        let (log, pieces) = (&self.have_log, &self.pieces);
        for (key, peer) in self.peers.iter_mut() {
            if peer.is_web() {
                // It is told nothing.
                peer.have_cursor = log.len();
                continue;
            }
            if peer.skip_old_news(log, pieces.have()) {
                peer.wake(PeerKey(key), cx);
            }
        }
    }

    fn on_complete(&mut self, cx: &mut Cx<'_>) {
        cx.fx.push(Effect::Complete);
        self.candidates.set_complete(true);
        self.begin_super_seeding(cx);
        self.announce_upload_only(true, cx);
        self.tick_by(cx.now + super::ACTIVE_TICK);
        self.rechoke(cx);
    }

    /// From now on the sources of the piece share no piece with anybody. What they owe of shared ones is taken back.
    fn mark_suspects(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        let parties = self.pieces.sources(piece).to_vec();
        let mut suspects = self.suspects.parties();
        suspects.extend(&parties);
        self.pieces.set_suspects(suspects);
        for party in &parties {
            for piece in self.pieces.tainted_by(*party) {
                self.withdraw_everywhere(piece, cx);
            }
        }
        let is_named = |peer: &Peer| !peer.is_suspect && parties.contains(&peer.party);
        let named = self.peers.iter().filter(|(_, peer)| is_named(peer));
        let named: Vec<PeerKey> = named.map(|(key, _)| PeerKey(key)).collect();
        for key in named {
            if let Some(peer) = self.peers.get_mut(key.0) {
                peer.is_suspect = true;
                peer.current = None;
            }
            self.take_back_shared(key, cx);
        }
    }

    fn review_suspects(&mut self) {
        for (_, peer) in self.peers.iter_mut() {
            peer.is_suspect = self.suspects.suspects(|party| peer.is_of(party));
        }
        self.pieces.set_suspects(self.suspects.parties());
    }
}
