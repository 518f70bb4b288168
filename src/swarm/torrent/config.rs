//! What a torrent is told once, when it starts, and the small values of its interface. Layer 2.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::base::{Bitfield, BlockRef, Geometry, InfoHash, PeerId};
use crate::swarm::choker::{SeedChoker, UploadSlots};
use crate::wire::metainfo::{METADATA_BYTES_MAX, PieceTrees};

/// Requests a peer may leave unanswered with us; what the extension handshake advertises (BEP 10, `reqq`).
pub const REQQ_DEFAULT: u32 = 512;

/// The fixed settings of one torrent.
#[derive(Clone, Debug)]
pub struct TorrentConfig {
    pub geometry: Geometry,
    /// Pieces verified and on disk.
    pub have: Bitfield,
    /// Pieces of the selected files.
    pub wanted: Bitfield,
    /// Pieces are fetched in order instead of rarest first.
    pub is_sequential: bool,
    /// False for a torrent that only seeds what it has and never requests.
    pub fetches: bool,
    /// Seed of all randomness: one seed and one order of events repeat a whole run.
    pub seed: u64,
    pub our_id: PeerId,
    /// The allowed fast sets follow from it (BEP 6).
    pub info_hash: InfoHash,
    /// BEP 27: peers come from trackers alone.
    pub is_private: bool,
    /// Connections of this torrent at most, half-open ones included.
    pub peers_max: u32,
    pub upload_slots: UploadSlots,
    /// A lid on them, whatever they are ([`crate::swarm::slots`]).
    pub slots_max: Option<u32>,
    pub seed_choker: SeedChoker,
    /// Requests a peer may queue here; advertised as `reqq`.
    pub reqq: u32,
    /// The whole session's assembly memory; pieces up to a quarter of it are kept whole until hashed.
    pub assembly_budget_bytes: u64,
    /// Advertised as `p` in the extension handshake; 0 when nobody can dial us.
    pub listen_port: u16,
    /// The UDP port of our DHT node, told to peers that have one too; `None` without one, and for a private torrent.
    pub dht_port: Option<u16>,
    /// Advertised as `v` in the extension handshake.
    pub client_version: String,
    /// The raw info dictionary, for peers that have none (BEP 9); `None` serves nobody.
    pub metadata: Option<Arc<[u8]>>,
    /// The hash trees of the files (BEP 52), for peers that ask for hashes and to find bad blocks by; `None` where there
    /// are none.
    pub trees: Option<PieceTrees>,
    /// Peers are told of each other, and believed (BEP 11); never in a private torrent.
    pub exchanges_peers: bool,
    /// Peers that nobody can dial are connected with each other through others (BEP 55); needs uTP and peer exchange.
    pub punches_holes: bool,
    /// Once nothing is missing, peers are shown one piece at a time as long as there are no other seeds (BEP 16).
    pub super_seeds: bool,
    /// The session's upload limit, for the choker's automatic slots.
    pub limit_up_bytes_per_s: Option<u64>,
}

impl TorrentConfig {
    /// Length of the metadata that is served; longer than peers take is none.
    pub(super) fn metadata_size_bytes(&self) -> Option<u32> {
        let length = self.metadata.as_ref()?.len();
        let size = u32::try_from(length).ok()?;
        (length <= METADATA_BYTES_MAX && size > 0).then_some(size)
    }

    /// True when peers are exchanged (BEP 11, BEP 27).
    pub(super) const fn has_pex(&self) -> bool {
        self.exchanges_peers && !self.is_private
    }

    /// True when holes are punched, and helped with (BEP 55): whoever is told of peers may ask for them.
    pub(super) const fn has_holepunch(&self) -> bool {
        self.punches_holes && self.has_pex()
    }

    /// A leecher of everything with the usual settings.
    pub fn new(geometry: Geometry, our_id: PeerId, seed: u64) -> Self {
        let pieces = geometry.piece_count();
        TorrentConfig {
            geometry,
            have: Bitfield::new(pieces),
            wanted: Bitfield::full(pieces),
            is_sequential: false,
            fetches: true,
            seed,
            our_id,
            info_hash: InfoHash::new([0; 20]),
            is_private: false,
            peers_max: 200,
            upload_slots: UploadSlots::Auto,
            slots_max: None,
            seed_choker: SeedChoker::RoundRobin,
            reqq: REQQ_DEFAULT,
            assembly_budget_bytes: 32 << 20,
            listen_port: 0,
            client_version: client_version(),
            metadata: None,
            trees: None,
            exchanges_peers: true,
            punches_holes: true,
            dht_port: None,
            super_seeds: false,
            limit_up_bytes_per_s: None,
        }
    }
}

/// Name and version, as peers are told.
pub fn client_version() -> String {
    format!("Gyre {}", env!("CARGO_PKG_VERSION"))
}

/// A connection whose handshake is done on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    pub addr: SocketAddr,
    pub is_inbound: bool,
    pub peer_id: PeerId,
    /// The reserved bytes of its handshake (BEP 6, BEP 10).
    pub reserved: [u8; 8],
    /// It shook hands by the torrent's v2 info_hash: by the v1 name of a hybrid, hashes must not be asked for (BEP 52).
    pub is_v2: bool,
}

/// Why a connection is not taken in; the runtime closes it and tells the core nothing more about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The torrent or the session has all the peers it may have.
    #[error("no place for another peer")]
    Full,
    /// It sent corrupt data before.
    #[error("the address is banned")]
    Banned,
    /// The same peer is connected already (HOSTILE.md H3).
    #[error("this peer is connected already")]
    Duplicate,
    /// It is us (HOSTILE.md H3).
    #[error("connected to ourselves")]
    Ourselves,
    /// The torrent is being stopped.
    #[error("the torrent is stopping")]
    Stopping,
}

/// Where the payload of a `piece` message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Into its place: until `on_block_stored` or the disconnect this peer alone owns the block.
    Store(BlockRef),
    /// Nowhere: not requested, a duplicate, or owned by another peer. Answer: `on_block_discarded`.
    Scratch,
}
