//! Settings of a torrent that change while it runs. Layer 2.

use crate::swarm::effects::{CloseReason, Cx, PeerKey};
use crate::swarm::peer::Peer;
use crate::swarm::picker::Level;
use crate::swarm::torrent::Torrent;

impl Torrent {
    /// Keeps so many connections at most from now on, one at least. Those above it that are missed least are closed.
    pub fn set_peers_max(&mut self, peers_max: u32, cx: &mut Cx<'_>) {
        let peers_max = peers_max.max(1);
        if peers_max == self.cfg.peers_max {
            return;
        }
        let has_more = peers_max > self.cfg.peers_max;
        self.cfg.peers_max = peers_max;
        let worth = |peer: &Peer| {
            let rate = peer.pipeline.bytes_per_s(cx.now) + peer.up.clone().bytes_per_s(cx.now);
            let is_used = peer.am_interested || peer.peer_interested;
            (rate, is_used, std::cmp::Reverse(peer.connected_at))
        };
        let staying = self.staying().map(|(key, peer)| (worth(peer), key));
        let mut staying: Vec<(_, PeerKey)> = staying.collect();
        staying.sort_unstable_by_key(|one| one.0);
        let surplus = staying.len().saturating_sub(peers_max as usize);
        for (_, key) in staying.into_iter().take(surplus) {
            self.close(key, CloseReason::Replaced, cx);
        }
        if has_more {
            self.dial_at = Some(cx.now);
        }
        self.after_event();
    }

    /// How early each piece is wanted, one level a piece; `None` when all are alike. What is on its way goes on.
    pub fn set_levels(&mut self, levels: Option<Vec<Level>>, cx: &mut Cx<'_>) {
        self.pieces.picker_mut().set_levels(levels);
        self.pieces.bump();
        self.fill_all(cx);
        self.after_event();
    }

    /// Whether pieces are fetched in order, from the next one on.
    pub fn set_sequential(&mut self, is_sequential: bool, cx: &mut Cx<'_>) {
        if std::mem::replace(&mut self.cfg.is_sequential, is_sequential) != is_sequential {
            self.pieces.bump();
            self.fill_all(cx);
        }
        self.after_event();
    }

    /// Keeps to so many upload slots at most from now on.
    pub fn set_slots_max(&mut self, slots_max: Option<u32>, cx: &mut Cx<'_>) {
        if self.choker.set_slots_max(slots_max) {
            self.rechoke(cx);
        }
        self.after_event();
    }

    /// The lid on the upload slots.
    pub const fn slots_max(&self) -> Option<u32> {
        self.choker.slots_max()
    }

    /// Peers that want something of ours.
    pub fn wanting_count(&self) -> u32 {
        let wants = |peer: &Peer| peer.peer_interested && !peer.is_closing;
        let wanting = self.peers.iter().filter(|(_, peer)| wants(peer));
        u32::try_from(wanting.count()).unwrap_or(u32::MAX)
    }

    /// The limit of what is sent, in bytes a second: for the choker's automatic slots.
    pub const fn set_limit_up(&mut self, bytes_per_s: Option<u64>) {
        self.cfg.limit_up_bytes_per_s = bytes_per_s;
    }
}
