//! Connections: who is taken in, who must make room, and what remains when one ends.

use std::net::SocketAddr;

use crate::swarm::candidates::Parting;
use crate::swarm::effects::{CloseReason, Cx, PeerKey};
use crate::swarm::peer::Peer;
use crate::swarm::poison::Party;
use crate::swarm::torrent::{ACTIVE_TICK, Connected, Refusal, Torrent};

impl Torrent {
    /// Takes in a connection and queues its first messages. An inbound one takes a `connections` credit, a dialed one
    /// keeps the one its dial took; both come back with `on_disconnected`.
    ///
    /// # Errors
    /// The peer is not wanted: the runtime closes the connection and calls nothing more for it (its credit is back).
    pub fn on_connected(&mut self, conn: Connected, cx: &mut Cx<'_>) -> Result<PeerKey, Refusal> {
        let was_dialed = !conn.is_inbound && self.dialing.remove(&conn.addr);
        if was_dialed {
            cx.credits.connections += 1;
        }
        if let Err(refusal) = self.admit(&conn, cx) {
            self.on_refused(&conn, refusal, was_dialed, cx);
            return Err(refusal);
        }
        cx.credits.connections -= 1;
        let mut peer = Peer::new(conn, self.have_log.len(), cx.now);
        peer.is_suspect = self.suspects.suspects(conn.addr, conn.peer_id);
        self.candidates.on_connected(conn.addr);
        let key = PeerKey(self.peers.insert(peer));
        self.greet(key, cx);
        self.tick_by(cx.now + ACTIVE_TICK);
        self.after_event();
        Ok(key)
    }

    /// A dial ended without a handshake; gives its connection credit back.
    pub fn on_dial_failed(&mut self, addr: SocketAddr, cx: &mut Cx<'_>) {
        if self.dialing.remove(&addr) {
            cx.credits.connections += 1;
            self.candidates.on_dial_failed(addr, cx.now);
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
        if peer.is_starved {
            self.starved.retain(|starved| *starved != key);
        }
        cx.credits.connections += 1;
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
        self.dial(cx);
        self.after_event();
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
        let is_same =
            |peer: &Peer| peer.conn.peer_id == conn.peer_id || peer.conn.addr == conn.addr;
        if self.peers.iter().any(|(_, peer)| is_same(peer)) {
            return Err(Refusal::Duplicate);
        }
        if cx.credits.connections == 0 {
            return Err(Refusal::Full);
        }
        let staying = self.peers.iter().filter(|(_, peer)| !peer.is_closing);
        if staying.count() < self.cfg.peers_max as usize {
            return Ok(());
        }
        let replaceable = self.replaceable(cx.now).ok_or(Refusal::Full)?;
        self.close(replaceable, CloseReason::Replaced, cx);
        Ok(())
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
