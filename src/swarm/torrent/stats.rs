//! Numbers about a torrent and its peers for whoever shows them. Layer 2.

use std::net::SocketAddr;

use crate::base::PeerId;
use crate::swarm::PeerKey;

/// A snapshot of one torrent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TorrentStats {
    /// Payload stored in its place, in bytes, of this run; a piece that proves bad moves to `wasted_bytes`.
    pub downloaded_bytes: u64,
    /// Payload sent, in bytes, of this run.
    pub uploaded_bytes: u64,
    /// Payload received for nothing, in bytes: duplicates, never requested, of bad pieces.
    pub wasted_bytes: u64,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub peers_connected: u32,
    pub peers_half_open: u32,
    /// Addresses known, connected or not.
    pub peers_known: u32,
    /// Connected peers that have everything.
    pub seeds_connected: u32,
    pub pieces_have: u32,
    pub pieces_wanted: u32,
    pub pieces_wanted_have: u32,
    /// Bytes of wanted pieces not yet had.
    pub left_bytes: u64,
    /// Assembly memory reserved, in bytes.
    pub assembly_bytes: u64,
    /// Pieces found bad.
    pub bad_pieces: u32,
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
    /// `v` of its extension handshake, escaped by nobody yet.
    pub client: String,
}
