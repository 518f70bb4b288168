//! Numbers about a torrent and its peers for whoever shows them. Layer 2.

use std::net::SocketAddr;

use crate::base::{Now, PeerId, PieceIndex};
use crate::swarm::PeerKey;
use crate::swarm::candidates::Source;
use crate::swarm::peer::{Incoming, Peer};
use crate::swarm::pipeline::PIPELINE_MAX;
use crate::swarm::sources::SourceCounts;
use crate::swarm::torrent::Torrent;

/// A snapshot of one torrent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TorrentStats {
    /// Payload stored in its place, in bytes, of this run; a piece that proves bad moves to `wasted_bytes`.
    pub downloaded_bytes: u64,
    /// The part of `downloaded_bytes` that came from web seeds.
    pub downloaded_web_bytes: u64,
    /// Payload sent, in bytes, of this run.
    pub uploaded_bytes: u64,
    /// Payload received for nothing, in bytes: duplicates, never requested, of bad pieces.
    pub wasted_bytes: u64,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    /// Connections that take up a place: one that is being closed for another's sake does not.
    pub peers_connected: u32,
    pub peers_half_open: u32,
    /// Connected peers by who named their address.
    pub peers_by_source: SourceCounts,
    /// The same of all connections of this run.
    pub connections_by_source: SourceCounts,
    /// Of all connections so far, those over uTP.
    pub connections_utp: u32,
    /// Addresses known, connected or not.
    pub peers_known: u32,
    /// Addresses refused because the user's list has them.
    pub peers_filtered: u32,
    /// Connected peers that have everything.
    pub seeds_connected: u32,
    /// Web seeds that may be asked for something that is missing.
    pub web_seeds: u32,
    pub pieces_have: u32,
    pub pieces_wanted: u32,
    pub pieces_wanted_have: u32,
    /// Bytes of wanted pieces not yet had.
    pub left_bytes: u64,
    /// Assembly memory reserved, in bytes.
    pub assembly_bytes: u64,
    /// Pieces found bad.
    pub bad_pieces: u32,
    /// Peers are shown one piece at a time (BEP 16).
    pub is_super_seeding: bool,
    pub is_complete: bool,
    pub is_paused: bool,
}

/// A snapshot of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    pub key: PeerKey,
    pub addr: SocketAddr,
    pub peer_id: PeerId,
    pub is_inbound: bool,
    /// Who named its address.
    pub source: Source,
    /// uTP carries it.
    pub is_utp: bool,
    /// Nothing of it can be read on the way. Only the session knows, which sets it.
    pub is_encrypted: bool,
    pub am_choking: bool,
    pub am_interested: bool,
    pub peer_choking: bool,
    pub peer_interested: bool,
    pub is_snubbed: bool,
    pub is_seed: bool,
    pub pieces_have: u32,
    pub downloaded_bytes: u64,
    pub uploaded_bytes: u64,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    /// Our requests it has not answered.
    pub requests_out: u32,
    /// Its requests we have not answered.
    pub requests_in: u32,
    /// `v` of its extension handshake, safe to print; empty when it did not say.
    pub client: String,
}

impl Torrent {
    /// A snapshot of the torrent's numbers.
    pub fn stats(&self, now: Now) -> TorrentStats {
        let pieces = &self.pieces;
        let placed = self.peers.iter().filter(|(_, peer)| peer.holds_credit);
        let is_seed = |peer: &Peer| peer.have.is_all() && !peer.is_web();
        let seeds = self.peers.iter().filter(|(_, peer)| is_seed(peer));
        TorrentStats {
            downloaded_bytes: self.downloaded_bytes,
            downloaded_web_bytes: self.downloaded_web_bytes,
            uploaded_bytes: self.up.total_bytes(),
            wasted_bytes: self.wasted_bytes,
            down_bytes_per_s: self.down.clone().bytes_per_s(now),
            up_bytes_per_s: self.up.clone().bytes_per_s(now),
            peers_connected: placed.count() as u32,
            peers_half_open: (self.dialing.len() + self.punching.len()) as u32,
            peers_by_source: self.staying().map(|(_, peer)| peer.source).collect(),
            connections_by_source: self.met,
            connections_utp: self.met_utp,
            peers_known: self.candidates.known_count() as u32,
            peers_filtered: self.candidates.filtered_count() as u32,
            seeds_connected: seeds.count() as u32,
            web_seeds: self.web_seeds_in_use(),
            pieces_have: pieces.have().count(),
            pieces_wanted: pieces.wanted().count(),
            pieces_wanted_have: pieces.wanted_have_count(),
            left_bytes: self.left_bytes(),
            assembly_bytes: pieces.reserved_bytes(),
            bad_pieces: self.bad_pieces,
            is_super_seeding: self.is_super_seeding(),
            is_complete: pieces.is_complete(),
            is_paused: self.is_paused,
        }
    }

    /// A snapshot of every peer, in slot order, web seeds left out.
    pub fn peers(&self, now: Now) -> Vec<PeerStats> {
        let pieces = self.cfg.geometry.piece_count();
        let peers = self.peers.iter().filter(|(_, peer)| !peer.is_web());
        let peers = peers.map(|(key, peer)| PeerStats {
            key: PeerKey(key),
            addr: peer.conn.addr,
            peer_id: peer.conn.peer_id,
            is_inbound: peer.conn.is_inbound,
            source: peer.source,
            is_utp: peer.is_utp,
            is_encrypted: false,
            am_choking: peer.am_choking,
            am_interested: peer.am_interested,
            peer_choking: peer.peer_choking,
            peer_interested: peer.peer_interested,
            is_snubbed: peer.pipeline.is_snubbed(),
            is_seed: peer.have.is_all(),
            pieces_have: peer.have.count(pieces),
            downloaded_bytes: peer.pipeline.total_bytes(),
            uploaded_bytes: peer.up.total_bytes(),
            down_bytes_per_s: peer.pipeline.bytes_per_s(now),
            up_bytes_per_s: peer.up.clone().bytes_per_s(now),
            requests_out: peer.pipeline.len(),
            requests_in: peer.uploads.len(),
            client: peer.client.clone(),
        });
        peers.collect()
    }

    /// Checks every invariant.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        self.pieces.check();
        if let Some(super_seed) = &self.super_seed {
            super_seed.check();
            assert!(
                super_seed
                    .veiled()
                    .all(|key| self.peers.get(key.0).is_some())
            );
        }
        self.leaf_reads.check();
        self.check_sifts();
        let (mut requests, mut receiving, mut starved) = (0, 0, 0);
        for (key, peer) in self.peers.iter() {
            peer.uploads.check();
            peer.pex_out.check();
            peer.holes.check();
            let waiting = peer.uploads.len() + peer.uploads.in_flight_blocks();
            assert!(waiting <= self.cfg.reqq, "upload queue within reqq");
            assert!(
                peer.pipeline.len() <= PIPELINE_MAX,
                "outstanding within the limit"
            );
            assert!(!peer.is_closing || peer.pipeline.is_empty());
            requests += peer.pipeline.len();
            receiving += u32::from(matches!(peer.incoming, Some(Incoming::Block(_))));
            starved += usize::from(peer.is_starved);
            assert_eq!(self.starved.contains(&PeerKey(key)), peer.is_starved);
            let hidden = peer.withheld.len() as u32;
            let pieces = self.cfg.geometry.piece_count();
            assert_eq!(
                peer.offers().count(pieces) + hidden,
                peer.have.count(pieces),
                "withheld pieces"
            );
            assert!(peer.have_cursor <= self.have_log.len());
            assert_eq!(
                self.pieces.needed_count(&peer.have),
                peer.needed_count,
                "pieces needed of a peer"
            );
        }
        assert_eq!(starved, self.starved.len());
        assert_eq!(
            requests,
            self.pieces.request_count(),
            "each request is in one pipeline"
        );
        assert_eq!(
            receiving,
            self.pieces.receiving_count(),
            "each receive has its peer"
        );
        assert!(
            self.staying().count() <= self.cfg.peers_max as usize,
            "peers that stay"
        );
    }

    fn left_bytes(&self) -> u64 {
        let geometry = &self.cfg.geometry;
        let (have, wanted) = (self.pieces.have(), self.pieces.wanted());
        let left = u64::from(wanted.count() - self.pieces.wanted_have_count());
        let bytes = left * u64::from(geometry.piece_length_bytes());
        let is_left = |piece: &PieceIndex| wanted.has(*piece) && !have.has(*piece);
        let short = geometry.short_pieces().filter(is_left);
        let lacking = |piece| geometry.piece_length_bytes() - geometry.piece_bytes(piece);
        bytes - short.map(|piece| u64::from(lacking(piece))).sum::<u64>()
    }
}
