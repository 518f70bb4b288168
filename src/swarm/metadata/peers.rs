//! Connections of the search: who is dialed, who is taken in, who goes.

use std::net::SocketAddr;

use super::{
    ASKED_MAX, AttemptKey, DIAL_RETRY, FAILURES_MAX, MetadataCx, MetadataEffect, MetadataSwarm,
    REPLACEABLE_AFTER, REST_FIRST, REST_MAX, SLOW_AFTER, TICK, USELESS_AFTER, WANT_PEERS_BELOW,
    WANT_PEERS_PAUSE,
};
use crate::base::Now;
use crate::swarm::PeerFault;
use crate::swarm::candidates::{Parting, Source};
use crate::swarm::effects::PeerKey;
use crate::swarm::peer::{KEEP_ALIVE_AFTER, SILENT_AFTER, USELESS_PER_S_MAX};
use crate::swarm::pex::PexIn;
use crate::swarm::poison::Party;
use crate::swarm::torrent::{Connected, Refusal};
use crate::wire::extended::{Extension, PeerExtensions};
use crate::wire::handshake::Reserved;
use crate::wire::message::{Message, encode};

/// One connected peer.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub conn: Connected,
    /// Who named its address.
    pub source: Source,
    pub party: Party,
    pub connected_at: Now,
    pub is_closing: bool,
    pub parting: Parting,
    pub is_extended: bool,
    pub extensions: PeerExtensions,
    pub listen_addr: Option<SocketAddr>,
    /// `metadata_size` of its extension handshake.
    pub size_bytes: Option<u32>,
    pub attempt: Option<AttemptKey>,
    /// Copies that it worked at.
    pub turn_count: u32,
    /// Pieces it was asked for, and when.
    pub asked: Vec<(u32, Now)>,
    /// Parts of piece layers it was asked for, and when.
    pub hashes_asked: Vec<(usize, Now)>,
    /// It sent part of a copy that proved bad.
    pub is_suspect: bool,
    pub rests_until: Now,
    /// Rejects and silences since its last piece.
    pub failure_count: u32,
    pub has_sent: bool,
    pub pex: PexIn,
    pub outbox: Vec<u8>,
    pub is_woken: bool,
    pub woken_at: Now,
    pub heard_at: Now,
    pub sent_at: Now,
    useless_count: u32,
    useless_since: Now,
}

impl Holder {
    fn new(conn: Connected, source: Source, now: Now) -> Self {
        Holder {
            conn,
            source,
            party: Party::new(conn.addr, conn.peer_id),
            connected_at: now,
            is_closing: false,
            parting: Parting::Broken,
            is_extended: Reserved::new(conn.reserved).has_extended(),
            extensions: PeerExtensions::default(),
            listen_addr: None,
            size_bytes: None,
            attempt: None,
            turn_count: 0,
            asked: Vec::new(),
            hashes_asked: Vec::new(),
            is_suspect: false,
            rests_until: Now::ZERO,
            failure_count: 0,
            has_sent: false,
            pex: PexIn::new(now),
            outbox: Vec::new(),
            is_woken: false,
            woken_at: now,
            heard_at: now,
            sent_at: now,
            useless_count: 0,
            useless_since: now,
        }
    }

    /// It says that it has the metadata and takes requests for it.
    pub fn has_metadata(&self) -> bool {
        self.size_bytes.is_some() && self.extensions.id(Extension::UtMetadata).is_some()
    }

    /// It can be given a copy to work at.
    pub fn is_free(&self, now: Now) -> bool {
        !self.is_closing && self.attempt.is_none() && self.has_metadata() && now >= self.rests_until
    }

    /// It failed: nothing is asked of it for a while.
    pub fn rest(&mut self, now: Now) {
        let factor = 1_u32 << self.failure_count.min(16);
        self.rests_until = now + REST_FIRST.saturating_mul(factor).min(REST_MAX);
        self.failure_count = self.failure_count.saturating_add(1);
    }

    pub fn is_slow(&self, now: Now) -> bool {
        let asked = self.asked.iter().map(|(_, at)| *at);
        let oldest = asked
            .chain(self.hashes_asked.iter().map(|(_, at)| *at))
            .min();
        oldest.is_some_and(|at| now.since(at) >= SLOW_AFTER)
    }

    pub fn why_close(&self, now: Now) -> Option<Parting> {
        let is_stuck = self.is_woken && now.since(self.woken_at) >= SLOW_AFTER;
        if is_stuck || now.since(self.heard_at) >= SILENT_AFTER {
            return Some(Parting::Broken);
        }
        let is_late = now.since(self.connected_at) >= USELESS_AFTER && !self.has_metadata();
        let is_useless = self.failure_count >= FAILURES_MAX || is_late;
        is_useless.then_some(Parting::Useless)
    }

    /// May go when others wait to be dialed.
    fn is_replaceable(&self, now: Now) -> bool {
        let is_idle = !self.has_metadata() || self.rests_until > now;
        !self.is_closing && is_idle && now.since(self.connected_at) >= REPLACEABLE_AFTER
    }

    pub fn send(&mut self, key: PeerKey, message: &Message<'_>, cx: &mut MetadataCx<'_>) {
        if self.is_closing {
            return;
        }
        encode(message, &mut self.outbox);
        if !self.is_woken {
            self.is_woken = true;
            self.woken_at = cx.now;
            cx.fx.push(MetadataEffect::WakeWriter(key));
        }
    }

    pub fn keep_alive(&mut self, key: PeerKey, cx: &mut MetadataCx<'_>) {
        if self.outbox.is_empty() && cx.now.since(self.sent_at) >= KEEP_ALIVE_AFTER {
            self.send(key, &Message::KeepAlive, cx);
        }
    }

    /// Counts a message that changes nothing.
    pub fn count_useless(&mut self, now: Now) -> Result<(), PeerFault> {
        if now.since(self.useless_since) >= TICK {
            self.useless_since = now;
            self.useless_count = 0;
        }
        self.useless_count += 1;
        match self.useless_count > USELESS_PER_S_MAX {
            true => Err(PeerFault::Flood {
                got: self.useless_count,
                max: USELESS_PER_S_MAX,
            }),
            false => Ok(()),
        }
    }
}

impl MetadataSwarm {
    /// Takes in a connection. An inbound one takes a `connections` credit, a dialed one keeps the one its dial took;
    /// both come back with `on_disconnected`.
    ///
    /// # Errors
    /// The peer is not wanted: the runtime closes the connection and calls nothing more for it (its credit is back).
    pub fn on_connected(
        &mut self,
        conn: Connected,
        cx: &mut MetadataCx<'_>,
    ) -> Result<PeerKey, Refusal> {
        let was_dialed = !conn.is_inbound && self.dialing.remove(&conn.addr);
        if was_dialed {
            cx.credits.connections += 1;
        }
        if let Err(refusal) = self.admit(&conn, cx) {
            if was_dialed {
                match refusal {
                    Refusal::Ourselves => self.candidates.add_own(conn.addr),
                    Refusal::Duplicate => {
                        let parting = Parting::Duplicate;
                        self.candidates.on_disconnected(conn.addr, parting, cx.now);
                    }
                    _ => {
                        let parting = Parting::Useless;
                        self.candidates.on_disconnected(conn.addr, parting, cx.now);
                    }
                }
            }
            return Err(refusal);
        }
        cx.credits.connections -= 1;
        self.peers_met = self.peers_met.saturating_add(1);
        self.candidates.on_connected(conn.addr);
        let source = match conn.is_inbound {
            true => Source::Inbound,
            false => (self.candidates.source_of(conn.addr)).unwrap_or(Source::User),
        };
        let key = PeerKey(self.peers.insert(Holder::new(conn, source, cx.now)));
        self.greet(key, cx);
        self.tick_at.get_or_insert(cx.now + TICK);
        self.after_event();
        Ok(key)
    }

    /// A dial ended without a handshake; gives its connection credit back.
    pub fn on_dial_failed(&mut self, addr: SocketAddr, cx: &mut MetadataCx<'_>) {
        if self.dialing.remove(&addr) {
            cx.credits.connections += 1;
            self.candidates.on_dial_failed(addr, cx.now);
            self.dial(cx);
        }
        self.after_event();
    }

    /// The connection is gone; a stale key is ignored. Its connection credit is back.
    pub fn on_disconnected(&mut self, key: PeerKey, cx: &mut MetadataCx<'_>) {
        self.release(key);
        let Some(peer) = self.peers.remove(key.0) else {
            return;
        };
        cx.credits.connections += 1;
        if let Some(AttemptKey(attempt)) = peer.attempt {
            let of = self.attempts.get(attempt);
            // A copy that is being hashed stays until the answer.
            if of.is_some_and(|of| of.solo == Some(key) && !of.is_whole()) {
                self.attempts.remove(attempt);
            }
        }
        let parting = match peer.parting {
            Parting::Broken if peer.has_sent => Parting::Useful,
            parting => parting,
        };
        let addrs = [Some(peer.conn.addr), peer.listen_addr];
        for addr in addrs.into_iter().flatten() {
            self.candidates.on_disconnected(addr, parting, cx.now);
        }
        self.assign_all(cx);
        self.dial(cx);
        self.after_event();
    }

    fn admit(&mut self, conn: &Connected, cx: &mut MetadataCx<'_>) -> Result<(), Refusal> {
        if self.is_stopping {
            return Err(Refusal::Stopping);
        }
        if conn.peer_id == self.cfg.our_id {
            return Err(Refusal::Ourselves);
        }
        let is_liar = |party: &Party| party.is_behind(conn.addr, conn.peer_id);
        if self.candidates.is_banned(conn.addr.ip()) || self.banned_local.iter().any(is_liar) {
            return Err(Refusal::Banned);
        }
        let is_same =
            |peer: &Holder| peer.conn.peer_id == conn.peer_id || peer.conn.addr == conn.addr;
        if self.staying().any(|(_, peer)| is_same(peer)) {
            return Err(Refusal::Duplicate);
        }
        if self.staying().count() >= self.cfg.peers_max as usize {
            self.replace_one(cx);
            if self.staying().count() >= self.cfg.peers_max as usize {
                return Err(Refusal::Full);
            }
        }
        match cx.credits.connections {
            0 => Err(Refusal::Full),
            _ => Ok(()),
        }
    }

    pub(super) fn staying(&self) -> impl Iterator<Item = (PeerKey, &Holder)> {
        let staying = self.peers.iter().filter(|(_, peer)| !peer.is_closing);
        staying.map(|(key, peer)| (PeerKey(key), peer))
    }

    /// Closes a connection; what it was asked for is anybody's at once.
    pub(super) fn close(&mut self, key: PeerKey, parting: Parting, cx: &mut MetadataCx<'_>) {
        self.release(key);
        let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing) else {
            return;
        };
        peer.is_closing = true;
        peer.parting = parting;
        cx.fx.push(MetadataEffect::Close(key));
    }

    /// Takes back what a peer was asked for.
    pub(super) fn release(&mut self, key: PeerKey) {
        self.release_hashes(key);
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let asked = std::mem::take(&mut peer.asked);
        let attempt = peer.attempt.and_then(|of| self.attempts.get_mut(of.0));
        if let Some(attempt) = attempt {
            asked
                .iter()
                .for_each(|(piece, _)| attempt.give_back(*piece));
        }
    }

    /// Asks a peer for as many pieces of its copy as it should owe us.
    pub(super) fn ask(&mut self, key: PeerKey, cx: &mut MetadataCx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let attempt = peer.attempt.and_then(|of| self.attempts.get_mut(of.0));
        let id = peer.extensions.id(Extension::UtMetadata);
        let (Some(attempt), Some(id)) = (attempt, id) else {
            return;
        };
        if peer.is_closing || cx.now < peer.rests_until {
            return;
        }
        while peer.asked.len() < ASKED_MAX
            && let Some(piece) = attempt.next_piece(&peer.asked, cx.now)
        {
            peer.asked.push((piece, cx.now));
            let request = crate::wire::ut_metadata::MetadataMessage::Request { piece };
            let mut payload = Vec::new();
            request.encode(&mut payload);
            let (id, payload) = (id.get(), payload.as_slice());
            peer.send(key, &Message::Extended { id, payload }, cx);
        }
    }

    /// Dials while there are addresses, places and credits.
    pub(super) fn dial(&mut self, cx: &mut MetadataCx<'_>) {
        self.dial_at = None;
        if self.is_stopping {
            return;
        }
        let peers_max = self.cfg.peers_max as usize;
        let is_ready = |at: Option<Now>| at.is_some_and(|at| at <= cx.now);
        while self.peers.len() + self.dialing.len() < peers_max
            && is_ready(self.candidates.next_deadline(cx.now))
        {
            if cx.credits.dials == 0 || cx.credits.connections == 0 {
                self.dial_at = Some(cx.now + DIAL_RETRY);
                return;
            }
            let Some(addr) = self.candidates.next_dial(cx.now) else {
                break;
            };
            if !self.dialing.insert(addr) {
                continue;
            }
            cx.credits.dials -= 1;
            cx.credits.connections -= 1;
            cx.fx.push(MetadataEffect::Dial { addr });
        }
        let used = self.peers.len() + self.dialing.len();
        if used >= peers_max {
            return;
        }
        let deadline = self.candidates.next_deadline(cx.now);
        self.dial_at = deadline.map(|at| at.max(cx.now + DIAL_RETRY));
        let holders = self.staying().filter(|(_, peer)| peer.has_metadata());
        if holders.count() < WANT_PEERS_BELOW && cx.now >= self.want_peers_at {
            self.want_peers_at = cx.now + WANT_PEERS_PAUSE;
            cx.fx.push(MetadataEffect::WantPeers);
        }
    }

    /// All places are taken while somebody waits to be dialed who may have the metadata.
    pub(super) fn make_room_to_dial(&mut self, cx: &mut MetadataCx<'_>) {
        let used = self.staying().count() + self.dialing.len();
        let is_full = used >= self.cfg.peers_max as usize || cx.credits.connections == 0;
        if is_full && self.candidates.peek_dial(cx.now).is_some() {
            self.replace_one(cx);
        }
    }

    /// Closes the peer that is missed least, if any can be missed.
    fn replace_one(&mut self, cx: &mut MetadataCx<'_>) {
        let of_use = |peer: &Holder| (peer.has_metadata(), peer.connected_at);
        let staying = self.staying();
        let replaceable = staying.filter(|(_, peer)| peer.is_replaceable(cx.now));
        let least = replaceable.min_by_key(|(_, peer)| of_use(peer));
        if let Some(key) = least.map(|(key, _)| key) {
            self.close(key, Parting::Useless, cx);
        }
    }
}
