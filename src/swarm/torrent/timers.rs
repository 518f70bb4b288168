//! What happens because time passed: chokes, dials, keep-alives, snubs, silence.

use std::time::Duration;

use crate::base::{Key, Now};
use crate::swarm::effects::{CloseReason, Cx, Effect, PeerKey};
use crate::swarm::peer::{Incoming, KEEP_ALIVE_AFTER, Peer, SILENT_AFTER};
use crate::swarm::pipeline::{SNUB_AFTER, Silence};
use crate::swarm::torrent::{
    ACTIVE_TICK, DIAL_RETRY, ENDGAME_TICK, IDLE_TICK, Torrent, WANT_PEERS_BELOW, WANT_PEERS_PAUSE,
};
use crate::wire::message::Message;

/// A peer that takes longer than this for one block is closed, however steadily it drips: nobody else can be asked for
/// the block as long.
const BLOCK_AFTER: Duration = Duration::from_secs(120);
/// The same where another would send the block at once.
const HELD_UP_AFTER: Duration = Duration::from_secs(30);
/// And where nothing else is left to fetch.
const HELD_UP_LAST_AFTER: Duration = Duration::from_secs(8);
/// A peer that takes nothing of what it asked for in this time is closed (HOSTILE.md C6).
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// Two seeds may hold a connection for so long: time to hear of new pieces or of a change of mind.
const USELESS_AFTER: Duration = Duration::from_secs(10);

impl Torrent {
    pub(super) fn deadline(&self) -> Option<Now> {
        if self.is_stopping {
            return None;
        }
        let choke_at = self.choker.next_deadline();
        let ours = [self.tick_at, self.dial_at, self.fill_at, self.news_at];
        let ours = ours
            .into_iter()
            .chain([choke_at, self.deferred_at, self.pex_at, self.sift_at]);
        ours.flatten().min()
    }

    pub(super) fn timer(&mut self, cx: &mut Cx<'_>) {
        if self.is_stopping {
            return;
        }
        if self.fill_at.is_some_and(|at| at <= cx.now) {
            self.fill_all(cx);
            self.feed_starved(cx);
        }
        if self.deferred_at.is_some_and(|at| at <= cx.now) {
            self.wake_deferred(cx);
        }
        if self.sift_at.is_some_and(|at| at <= cx.now) {
            self.review_sifts(cx);
        }
        if self.news_at.is_some_and(|at| at <= cx.now) {
            self.tell_news(cx);
        }
        if self.pex_at.is_some_and(|at| at <= cx.now) {
            self.exchange_peers(cx);
        }
        if self.choker.next_deadline().is_some_and(|at| at <= cx.now) {
            self.rechoke(cx);
        }
        if self.tick_at.is_some_and(|at| at <= cx.now) {
            self.tick(cx);
        }
        if self.dial_at.is_some_and(|at| at <= cx.now) {
            self.dial(cx);
        }
    }

    /// Makes sure that the next tick comes no later than `at`.
    pub(super) fn tick_by(&mut self, at: Now) {
        self.tick_at = Some(self.tick_at.map_or(at, |tick_at| tick_at.min(at)));
    }

    /// Dials while there are addresses, places and credits.
    pub(super) fn dial(&mut self, cx: &mut Cx<'_>) {
        self.dial_at = None;
        if self.is_stopping {
            return;
        }
        let peers_max = self.cfg.peers_max as usize;
        while self.places_taken() < peers_max {
            if self
                .candidates
                .next_deadline(cx.now)
                .is_none_or(|at| at > cx.now)
            {
                break;
            }
            if cx.credits.dials == 0 || cx.credits.connections == 0 {
                self.dial_at = Some(cx.now + DIAL_RETRY);
                return;
            }
            let Some(addr) = self.candidates.next_dial(cx.now) else {
                break;
            };
            // The peer came to us meanwhile and left again: the dial that is still under way says what becomes of it.
            if !self.dialing.insert(addr) {
                continue;
            }
            cx.credits.dials -= 1;
            cx.credits.connections -= 1;
            cx.fx.push(Effect::Dial { addr });
        }
        let used = self.places_taken();
        if used >= peers_max {
            return;
        }
        // `next_dial` sorts out what is ready: a deadline that has passed without an address is looked at again later.
        let deadline = self.candidates.next_deadline(cx.now);
        self.dial_at = deadline.map(|at| at.max(cx.now + DIAL_RETRY));
        let is_far = deadline.is_none_or(|at| at.since(cx.now) > WANT_PEERS_PAUSE);
        let is_short = used < peers_max.min(WANT_PEERS_BELOW) && is_far;
        let is_idle = !self.cfg.fetches || self.pieces.is_complete();
        if is_short && !is_idle {
            self.want_peers(cx);
        }
    }

    /// Connections and dials, those that are being closed included.
    pub(super) fn places_taken(&self) -> usize {
        let peers = self.peers.iter().filter(|(_, peer)| !peer.is_web());
        peers.count() + self.dialing.len() + self.punching.len()
    }

    fn want_peers(&mut self, cx: &mut Cx<'_>) {
        if cx.now >= self.want_peers_at {
            self.want_peers_at = cx.now + WANT_PEERS_PAUSE;
            cx.fx.push(Effect::WantPeers);
        }
    }

    /// Looks at every peer: once a second while something is fetched, every ten seconds otherwise.
    fn tick(&mut self, cx: &mut Cx<'_>) {
        self.tick_at = None;
        self.trim_have_log();
        self.review_line(cx);
        let pieces = self.cfg.geometry.piece_count();
        let is_done = !self.cfg.fetches || self.pieces.is_complete();
        let mut is_active = false;
        for key in self.peers.keys() {
            let key = PeerKey(key);
            if self.holds_up(key, cx.now) {
                self.close(key, CloseReason::Silent, cx);
            }
            let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing) else {
                continue;
            };
            if let Some(reason) = why_close(peer, is_done, cx.now) {
                self.close(key, reason, cx);
                continue;
            }
            let is_quiet = peer.outbox.is_empty() && cx.now.since(peer.sent_at) >= KEEP_ALIVE_AFTER;
            if is_quiet {
                peer.send(key, &Message::KeepAlive, cx);
            }
            is_active |= !peer.pipeline.is_empty() || peer.pipeline.is_snubbed();
            is_active |= !peer.uploads.is_empty();
            is_active |= peer.rests_until > cx.now || !peer.withheld.is_empty();
            peer.review_withheld(pieces, cx.now);
            if peer.is_web() {
                // Its runtime ends it when it falls silent: it cannot be told to send nothing more.
                continue;
            }
            match peer.pipeline.check_silence(cx.now) {
                Silence::None => {}
                Silence::Snubbed => self.snub(key, cx),
                Silence::ProbeDue => self.probe(key, cx),
            }
        }
        self.pieces.bump();
        self.release_held(cx);
        self.fill_all(cx);
        self.feed_starved(cx);
        self.take_over_for_idle(cx);
        is_active |= !self.starved.is_empty() || !self.pieces.held().is_empty();
        let useless_soon = self.peers.iter().any(|(_, peer)| peer.idle_since.is_some());
        let pause = match (self.pieces.is_endgame(), is_active || useless_soon) {
            (true, true) => ENDGAME_TICK,
            (false, true) => ACTIVE_TICK,
            (_, false) => IDLE_TICK,
        };
        if !self.peers.is_empty() {
            self.tick_by(cx.now + pause);
        }
        self.super_seed_tick(cx);
        self.make_room_to_dial(cx);
        if self.dial_at.is_none() {
            self.dial(cx);
        }
    }

    /// The peer drips a block that another would send at once.
    fn holds_up(&self, key: PeerKey, now: Now) -> bool {
        let Some(peer) = self.peers.get(key.0) else {
            return false;
        };
        let Some(Incoming::Block(block)) = peer.incoming else {
            return false;
        };
        let would_send = |(other, peer): (Key, &Peer)| {
            let is_asked = !peer.peer_choking && !peer.pipeline.is_snubbed() && !peer.is_closing;
            other != key.0 && is_asked && peer.offers().has(block.piece())
        };
        let limit = match self.pieces.is_endgame() {
            true => HELD_UP_LAST_AFTER,
            false => HELD_UP_AFTER,
        };
        now.since(peer.incoming_at) >= limit && self.peers.iter().any(would_send)
    }

    /// All places are taken while somebody waits to be dialed who may have what is missing.
    fn make_room_to_dial(&mut self, cx: &mut Cx<'_>) {
        let used = self.staying().count() + self.dialing.len() + self.punching.len();
        let is_full = used >= self.cfg.peers_max as usize || cx.credits.connections == 0;
        let fetches = self.cfg.fetches && !self.pieces.is_complete();
        if is_full
            && fetches
            && let Some(addr) = self.candidates.peek_dial(cx.now)
        {
            self.make_room(addr.ip(), cx);
        }
    }

    /// Forgets what everybody was told. Without losses the log ends when all pieces are here; a disk that loses pieces
    /// again and again must not make it grow for ever.
    fn trim_have_log(&mut self) {
        if self.have_log.len() <= self.cfg.geometry.piece_count() as usize {
            return;
        }
        let cursors = self.peers.iter().map(|(_, peer)| peer.have_cursor);
        let told = cursors.min().unwrap_or(self.have_log.len());
        self.have_log.drain(..told);
        for (_, peer) in self.peers.iter_mut() {
            peer.have_cursor -= told;
        }
    }
}

fn why_close(peer: &mut Peer, is_done: bool, now: Now) -> Option<CloseReason> {
    let is_receiving = matches!(peer.incoming, Some(Incoming::Block(_)));
    let is_dripping = is_receiving && now.since(peer.incoming_at) >= BLOCK_AFTER;
    // While it is received nobody else may be asked for the block.
    let is_dead =
        is_receiving && now.since(peer.incoming_at) >= SNUB_AFTER && peer.pipeline.is_silent(now);
    if is_dripping || is_dead {
        return Some(CloseReason::Silent);
    }
    if peer.is_web() {
        return None;
    }
    // Blocks that wait count too: the writer takes none while the socket is full.
    let owes_upload = peer.uploads.in_flight_blocks() > 0 || !peer.uploads.is_empty();
    let is_stuck = owes_upload && now.since(peer.upload_progress_at) >= STUCK_AFTER
        || peer.is_woken && now.since(peer.woken_at) >= STUCK_AFTER;
    if is_stuck || now.since(peer.heard_at) >= SILENT_AFTER {
        return Some(CloseReason::Silent);
    }
    let is_useless = is_done && peer.is_seed() && !peer.peer_interested && !peer.am_interested;
    if !is_useless {
        peer.idle_since = None;
        return None;
    }
    let since = *peer.idle_since.get_or_insert(now);
    (now.since(since) >= USELESS_AFTER).then_some(CloseReason::Useless)
}
