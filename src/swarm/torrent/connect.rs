//! Connections: who is taken in, who must make room, and what remains when one ends.

use std::net::SocketAddr;
use std::time::Duration;

use crate::swarm::candidates::{Parting, Source};
use crate::swarm::effects::{CloseReason, Cx, PeerKey};
use crate::swarm::peer::Peer;
use crate::swarm::poison::Party;
use crate::swarm::torrent::{ACTIVE_TICK, Connected, Refusal, Torrent};

/// Two peers that dial each other at the same time are connected twice within this time of each other.
const CROSSING_MAX: Duration = Duration::from_secs(10);

impl Torrent {
    /// Takes in a connection and queues its first messages. An inbound one takes a `connections` credit, a dialed one
    /// keeps the one its dial took; both come back with `on_disconnected`.
    ///
    /// # Errors
    /// The peer is not wanted: the runtime closes the connection and calls nothing more for it (its credit is back).
    pub fn on_connected(&mut self, conn: Connected, cx: &mut Cx<'_>) -> Result<PeerKey, Refusal> {
        let was_dialed = !conn.is_inbound && self.dialing.remove(&conn.addr);
        let was_punched = !conn.is_inbound && !was_dialed && self.punching.remove(&conn.addr);
        if was_dialed || was_punched {
            cx.credits.connections += 1;
        }
        if let Err(refusal) = self.admit(&conn, cx) {
            // The book has not heard of a dial at a relay's word.
            let is_in_book = was_dialed || was_punched && refusal == Refusal::Ourselves;
            self.on_refused(&conn, refusal, is_in_book, cx);
            return Err(refusal);
        }
        cx.credits.connections -= 1;
        let source = match conn.is_inbound {
            true => Source::Inbound,
            false if was_punched => Source::Pex,
            false => (self.candidates.source_of(conn.addr)).unwrap_or(Source::User),
        };
        self.met.add(source);
        let mut peer = Peer::new(conn, source, self.have_log.len(), cx.now);
        peer.was_punched = was_punched;
        peer.is_suspect = self.suspects.suspects(|party| peer.is_of(party));
        self.candidates.on_connected(conn.addr);
        let key = PeerKey(self.peers.insert(peer));
        self.greet(key, cx);
        if !conn.is_inbound {
            self.on_pex_news(cx.now);
        }
        self.tick_by(cx.now + ACTIVE_TICK);
        self.after_event();
        Ok(key)
    }

    /// A dial ended without a handshake; gives its connection credit back.
    pub fn on_dial_failed(&mut self, addr: SocketAddr, cx: &mut Cx<'_>) {
        if self.dialing.remove(&addr) {
            cx.credits.connections += 1;
            if self.is_connected_to(addr) {
                self.candidates.on_connected(addr);
            } else {
                self.candidates.on_dial_failed(addr, cx.now);
                self.ask_for_rendezvous(addr, cx);
            }
            self.dial(cx);
        } else if self.punching.remove(&addr) {
            // The two were under way to one address, and what connected was the other.
            cx.credits.connections += 1;
            self.dial(cx);
        }
        self.after_event();
    }

    /// The connection is gone; a stale key is ignored. A block it was receiving is free again, and its connection
    /// credit is back.
    pub fn on_disconnected(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        self.drop_incoming(key, cx);
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        peer.is_closing = true;
        self.release_all(key, cx);
        let Some(peer) = self.peers.remove(key.0) else {
            return;
        };
        self.pieces.picker_mut().on_peer_gone(&peer.have);
        self.claims.on_gone(key);
        self.leaf_reads.forget(key);
        if let Some(super_seed) = &mut self.super_seed {
            super_seed.on_gone(key, peer.conn.addr.ip());
        }
        if peer.is_starved {
            self.starved.retain(|starved| *starved != key);
        }
        cx.credits.connections += u32::from(peer.holds_credit);
        if !peer.is_web() {
            self.remember_parting(&peer, cx);
        }
        self.dial(cx);
        self.after_event();
    }

    /// The address book hears how the connection went.
    fn remember_parting(&mut self, peer: &Peer, cx: &Cx<'_>) {
        let has_moved = peer.up.total_bytes() > 0 || peer.pipeline.total_bytes() > 0;
        let parting = match peer.parting {
            Parting::Broken if has_moved => Parting::Useful,
            parting => parting,
        };
        for addr in [Some(peer.conn.addr), peer.listen_addr]
            .into_iter()
            .flatten()
        {
            self.candidates.on_disconnected(addr, parting, cx.now);
        }
        if peer.reachable_at().is_some() {
            self.on_pex_news(cx.now);
        }
    }

    fn admit(&mut self, conn: &Connected, cx: &mut Cx<'_>) -> Result<(), Refusal> {
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
        self.judge_duplicate(conn, cx)?;
        let is_full = self.staying().count() >= self.cfg.peers_max as usize;
        if (is_full || cx.credits.connections == 0) && !self.make_room(conn.addr.ip(), cx) {
            return Err(Refusal::Full);
        }
        Ok(())
    }

    /// One connection a peer. When two dial each other at the same time, both keep the one that the greater peer id
    /// dialed; else each might refuse what the other keeps.
    fn judge_duplicate(&mut self, conn: &Connected, cx: &mut Cx<'_>) -> Result<(), Refusal> {
        let is_same =
            |peer: &Peer| peer.conn.peer_id == conn.peer_id || peer.conn.addr == conn.addr;
        let mut same = self.staying().filter(|(_, peer)| is_same(peer));
        let Some((key, peer)) = same.next() else {
            return Ok(());
        };
        let is_crossing = peer.conn.peer_id == conn.peer_id
            && peer.conn.addr.ip() == conn.addr.ip()
            && peer.conn.is_inbound != conn.is_inbound
            && cx.now.since(peer.connected_at) < CROSSING_MAX;
        let is_better = (conn.peer_id > self.cfg.our_id) == conn.is_inbound;
        if !is_crossing || !is_better || same.next().is_some() {
            return Err(Refusal::Duplicate);
        }
        drop(same);
        self.close(key, CloseReason::Duplicate, cx);
        self.release_credit(key, cx);
        Ok(())
    }

    /// The connection's credit is free before the connection is gone.
    pub(super) fn release_credit(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if let Some(peer) = self.peers.get_mut(key.0)
            && std::mem::take(&mut peer.holds_credit)
        {
            cx.credits.connections += 1;
        }
    }

    fn on_refused(
        &mut self,
        conn: &Connected,
        refusal: Refusal,
        was_dialed: bool,
        cx: &mut Cx<'_>,
    ) {
        if !was_dialed {
            return;
        }
        match refusal {
            Refusal::Ourselves => self.candidates.add_own(conn.addr),
            Refusal::Duplicate => {
                self.candidates
                    .on_disconnected(conn.addr, Parting::Duplicate, cx.now);
            }
            Refusal::Full | Refusal::Banned | Refusal::Stopping => {
                self.candidates
                    .on_disconnected(conn.addr, Parting::Useless, cx.now);
            }
        }
    }
}
