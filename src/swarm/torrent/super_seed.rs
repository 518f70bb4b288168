//! Super-seeding (BEP 16): what peers are told of our pieces while we are the only seeder, and when that ends.
//!
//! A peer that can hear us for somebody with nothing is *veiled*. The veil of one is lifted when it turns out to be a seed or
//! to want nothing more (BEP 21), that of all when there are seeds enough. What a peer was not told then follows as `have`
//! messages, made when its writer takes them, so that many peers of a large torrent hold no more than a number each.

use crate::base::{Bitfield, PieceIndex};
use crate::swarm::effects::{Cx, PeerKey};
use crate::swarm::peer::Peer;
use crate::swarm::super_seed::{Choice, SEEDS_ENOUGH, Scope, SuperSeed};
use crate::swarm::torrent::{ACTIVE_TICK, Torrent};
use crate::wire::extended::Extension;
use crate::wire::message::{Message, encode};

impl Torrent {
    /// True while peers are shown one piece at a time.
    pub const fn is_super_seeding(&self) -> bool {
        self.super_seed.is_some()
    }

    /// Whether peers that come from now on are shown one piece at a time. Those that know of all go on so; when it ends, all
    /// are told of everything.
    pub fn set_super_seeds(&mut self, super_seeds: bool, cx: &mut Cx<'_>) {
        if std::mem::replace(&mut self.cfg.super_seeds, super_seeds) != super_seeds {
            match super_seeds {
                true => self.begin_super_seeding(cx),
                false => self.end_super_seeding(cx),
            }
        }
        self.after_event();
    }

    /// Begins where it is wanted and nothing is missing.
    pub(super) fn begin_super_seeding(&mut self, cx: &Cx<'_>) {
        let has_all = !self.cfg.fetches || self.pieces.is_complete();
        if self.cfg.super_seeds && has_all && self.super_seed.is_none() {
            let pieces = self.cfg.geometry.piece_count();
            let cursor = self.rng.below(u64::from(pieces)) as u32;
            self.super_seed = Some(SuperSeed::new(pieces, cursor, cx.now));
        }
    }

    fn end_super_seeding(&mut self, cx: &mut Cx<'_>) {
        let veiled = self.super_seed.as_ref().map(|of| of.veiled().collect());
        let veiled: Vec<PeerKey> = veiled.unwrap_or_default();
        for key in veiled {
            self.open(key, cx);
        }
        self.super_seed = None;
    }

    /// True for a peer that does not know of all our pieces.
    pub(super) fn is_veiled(&self, key: PeerKey) -> bool {
        let super_seed = self.super_seed.as_ref();
        super_seed.is_some_and(|super_seed| super_seed.is_veiled(key))
    }

    /// A peer said which pieces it has, or that it has more.
    pub(super) fn on_super_news(
        &mut self,
        by: PeerKey,
        is_first: bool,
        has: impl Fn(PieceIndex) -> bool,
        cx: &mut Cx<'_>,
    ) {
        let Some(super_seed) = &mut self.super_seed else {
            return;
        };
        let earned = super_seed.on_news(by, is_first, has, cx.now);
        self.open_if_done(by, cx);
        for key in earned {
            self.show_next(key, cx);
        }
    }

    /// The first thing that is to be said to a peer about pieces, once it said which it has.
    pub(super) fn on_super_peer(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if self.is_veiled(key) {
            self.open_if_done(key, cx);
            self.show_next(key, cx);
        }
    }

    /// The peer wanted something that it was shown, and does not any more.
    pub(super) fn on_super_satisfied(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if let Some(super_seed) = &mut self.super_seed {
            super_seed.on_satisfied(key, cx.now);
            self.show_next(key, cx);
        }
    }

    /// Lifts the veil of a peer that wants nothing more, and of all when such ones are enough.
    pub(super) fn open_if_done(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let is_done = self.peers.get(key.0).is_some_and(Peer::is_seed);
        if !is_done || !self.is_super_seeding() {
            return;
        }
        self.open(key, cx);
        let is_seed = |peer: &Peer| peer.have.is_all() && !peer.is_web() && !peer.is_closing;
        let seeds = self.peers.iter().filter(|(_, peer)| is_seed(peer)).count();
        if seeds < SEEDS_ENOUGH as usize {
            return;
        }
        tracing::debug!(seeds, "super-seeding ends");
        self.end_super_seeding(cx);
    }

    /// Tells one peer of everything.
    fn open(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if !self.is_veiled(key) {
            return;
        }
        if let Some(super_seed) = &mut self.super_seed {
            super_seed.open(key);
        }
        let is_upload_only = !self.cfg.fetches || self.pieces.is_complete();
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        peer.unveil_from = Some(0);
        if let Some(id) = peer.extensions.id(Extension::UploadOnly) {
            let payload = [u8::from(is_upload_only)];
            let (id, payload) = (id.get(), payload.as_slice());
            peer.send(key, &Message::Extended { id, payload }, cx);
        }
        peer.wake(key, cx);
    }

    /// Shows the peer what it may be shown now, if anything.
    fn show_next(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let (Some(super_seed), Some(peer)) = (&self.super_seed, self.peers.get(key.0)) else {
            return;
        };
        let is_alone = self.is_alone(key);
        if let Some(scope) = super_seed.scope(key, peer.peer_interested, is_alone, cx.now) {
            self.show(key, scope, cx);
        }
    }

    fn show(&mut self, key: PeerKey, scope: Scope, cx: &mut Cx<'_>) {
        let (Some(super_seed), Some(peer)) = (&mut self.super_seed, self.peers.get_mut(key.0))
        else {
            return;
        };
        let picker = self.pieces.picker();
        let choice = Choice {
            ours: self.pieces.have(),
            peer_has: &|piece| peer.have.has(piece),
            copies: &|piece| picker.copies(piece),
        };
        let ip = peer.conn.addr.ip();
        if let Some(piece) = super_seed.show(key, ip, scope, &choice, cx.now) {
            let piece = piece.get();
            peer.send(key, &Message::Have { piece }, cx);
        }
    }

    /// Nobody else is there who lacks anything.
    fn is_alone(&self, key: PeerKey) -> bool {
        let mut peers = self.peers.iter();
        !peers.any(|(other, peer)| {
            other != key.0 && !peer.is_closing && !peer.is_web() && !peer.is_seed()
        })
    }

    /// Looks at all whom nobody passed anything on for, or who said nothing of pieces.
    pub(super) fn super_seed_tick(&mut self, cx: &mut Cx<'_>) {
        let Some(super_seed) = self.super_seed.as_ref().filter(|of| of.has_veiled()) else {
            return;
        };
        let veiled: Vec<PeerKey> = super_seed.veiled().collect();
        for key in veiled {
            self.show_next(key, cx);
        }
        let stalled = self.super_seed.as_ref().and_then(|of| of.stalled(cx.now));
        if let Some(key) = stalled {
            self.show(key, Scope::Any, cx);
        }
        self.tick_by(cx.now + ACTIVE_TICK);
    }

    /// Veiled peers hear of nothing that came since.
    pub(super) fn keep_veiled(&mut self) {
        let Some(super_seed) = &self.super_seed else {
            return;
        };
        for key in super_seed.veiled() {
            if let Some(peer) = self.peers.get_mut(key.0) {
                peer.have_cursor = self.have_log.len();
            }
        }
    }
}

/// Appends `have` messages for all that the peer was not told, up to about `end` bytes of `out`.
pub(super) fn unveil(peer: &mut Peer, ours: &Bitfield, out: &mut Vec<u8>, end: usize) {
    let pieces = ours.len();
    while let Some(index) = peer.unveil_from.filter(|_| out.len() < end) {
        if index >= pieces {
            peer.unveil_from = None;
            return;
        }
        let piece = PieceIndex::new(index);
        peer.unveil_from = Some(index + 1);
        if ours.has(piece) && !peer.have.has(piece) {
            encode(&Message::Have { piece: index }, out);
        }
    }
}
