//! Web seeds (BEP 19) as sources of blocks: connections that have every piece, never choke, and are told nothing.
//!
//! The core does not know what a web seed is made of. It takes no place of a peer, has no part in choking, dialing and
//! uploads, and its requests are handed out as runs that follow each other in the torrent.

use std::collections::BTreeSet;

use crate::base::{BlockRef, PieceIndex};
use crate::swarm::effects::{Cx, PeerKey, WebSeedId};
use crate::swarm::peer::{Peer, PeerHave};
use crate::swarm::poison::Party;
use crate::swarm::torrent::{ACTIVE_TICK, Refusal, Torrent};

impl Torrent {
    /// One more connection to a web seed may be asked for everything but `gone` pieces. Ends with `on_disconnected`.
    ///
    /// # Errors
    /// It sent corrupt data before, or the torrent is stopping.
    pub fn on_web_seed(
        &mut self,
        seed: WebSeedId,
        gone: &[PieceIndex],
        cx: &mut Cx<'_>,
    ) -> Result<PeerKey, Refusal> {
        if self.is_stopping {
            return Err(Refusal::Stopping);
        }
        if self.banned_web.contains(&seed) {
            return Err(Refusal::Banned);
        }
        let pieces = self.cfg.geometry.piece_count();
        let mut have = PeerHave::All;
        for piece in gone {
            have.clear(*piece, pieces);
        }
        let mut peer = Peer::web(seed, have, self.have_log.len(), cx.now);
        let party = Party::Web(seed);
        peer.is_suspect = self.suspects.suspects(|other| *other == party);
        self.pieces.picker_mut().on_peer_has(&peer.have);
        let key = PeerKey(self.peers.insert(peer));
        self.recount_needed(key);
        self.update_interest(key, cx);
        self.fill(key, cx);
        self.tick_by(cx.now + ACTIVE_TICK);
        self.after_event();
        Ok(key)
    }

    /// The next blocks to ask a web seed for, each beginning where the one before ended; empty when there are none: it
    /// is woken when there are. Each is answered by `on_piece_header` and what follows it, or by `on_disconnected`.
    pub fn next_web_run(&mut self, key: PeerKey, cx: &mut Cx<'_>) -> Vec<BlockRef> {
        let geometry = &self.cfg.geometry;
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Vec::new();
        };
        peer.is_woken = false;
        if peer.is_closing {
            return Vec::new();
        }
        peer.sent_at = cx.now;
        peer.pipeline.next_run_to_send(geometry, cx.now)
    }

    /// True when nothing that is missing can be had of the web seed.
    pub fn is_web_seed_useless(&self, key: PeerKey) -> bool {
        let peer = self.peers.get(key.0);
        peer.is_none_or(|peer| peer.needed_count == 0)
    }

    /// True when every piece that is missing is among these.
    pub fn is_missing_only(&self, pieces: &BTreeSet<PieceIndex>) -> bool {
        let (wanted, have) = (self.pieces.wanted(), self.pieces.have());
        wanted
            .iter_without(have)
            .all(|piece| pieces.contains(&piece))
    }

    /// True while the peer owes this block.
    pub fn is_owed(&self, key: PeerKey, block: BlockRef) -> bool {
        let peer = self.peers.get(key.0);
        peer.is_some_and(|peer| peer.pipeline.contains(block))
    }

    /// Web seeds that may be asked for something that is missing.
    pub(super) fn web_seeds_in_use(&self) -> u32 {
        let is_used = |peer: &Peer| peer.needed_count > 0 && !peer.is_closing;
        let used = self.peers.iter().filter(|(_, peer)| is_used(peer));
        let mut seeds: Vec<WebSeedId> = used.filter_map(|(_, peer)| peer.web_seed()).collect();
        seeds.sort_unstable();
        seeds.dedup();
        seeds.len() as u32
    }
}
