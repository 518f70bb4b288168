//! What a simulated swarm is made of.

use std::time::Duration;

use crate::disk;

use gyre::base::{Bitfield, Geometry};
use gyre::storage::retry::Refusal;
use gyre::swarm::{SeedChoker, UploadSlots};
use gyre::wire::merkle;
use gyre::wire::metainfo::{LayerNeed, PieceLayers, PieceTrees};

/// How a node behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Starts with everything.
    Seed,
    /// Starts with nothing.
    Leech,
    /// Claims everything and corrupts so many blocks in a hundred.
    Poisoner { percent: u64 },
    /// Claims everything, unchokes, takes requests and never sends a block.
    Silent,
    /// Sends half of one block and then nothing.
    Staller,
}

impl Role {
    /// True for those that must be done in the end and must never be banned.
    pub const fn is_honest(self) -> bool {
        matches!(self, Role::Seed | Role::Leech)
    }

    /// True for those that start with every piece.
    pub const fn has_all(self) -> bool {
        !matches!(self, Role::Leech)
    }
}

/// A disk that refuses all writes for a while.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    pub refusal: Refusal,
    /// The first write that is refused, counted from 0.
    pub from_write: u64,
    pub lasts: Duration,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub role: Role,
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    pub budget_bytes: u64,
    pub is_sequential: bool,
    pub super_seeds: bool,
    /// `None` wants everything.
    pub wanted: Option<Bitfield>,
    pub slots: UploadSlots,
    pub seed_choker: SeedChoker,
    /// When it joins.
    pub joins_ms: u64,
    /// Never crashes, never loses a disk operation.
    pub is_steady: bool,
    pub outage: Option<Outage>,
}

impl NodeSpec {
    /// A node on a line of 2 MB/s up and 10 MB/s down.
    pub fn new(role: Role) -> Self {
        NodeSpec {
            role,
            up_bytes_per_s: 2_000_000,
            down_bytes_per_s: 10_000_000,
            budget_bytes: 8 << 20,
            is_sequential: false,
            super_seeds: false,
            wanted: None,
            slots: UploadSlots::Auto,
            seed_choker: SeedChoker::RoundRobin,
            joins_ms: 0,
            is_steady: matches!(role, Role::Seed),
            outage: None,
        }
    }
}

/// What goes wrong, until [`Faults::until_secs`]; afterwards nothing does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub until_secs: u64,
    /// A connection somewhere is cut about this often.
    pub cut_every_ms: u64,
    /// A node crashes about this often and comes back within half a minute.
    pub crash_every_ms: u64,
    /// Failing writes in a hundred.
    pub write_percent: u64,
    /// Failing reads in a hundred: of uploads, of hashing, of digests.
    pub read_percent: u64,
    /// A node loses a piece that it had about this often.
    pub lose_every_ms: u64,
    /// A disk fills up or errs about this often, and is well again after a while.
    pub outage_every_ms: u64,
    /// Disk work in a hundred that takes up to five seconds.
    pub slow_percent: u64,
    /// A connection about this often: nothing moves on it for up to 90 seconds, then it is slower or quicker than before.
    pub stall_every_ms: u64,
    /// A node's clock leaps ahead about this often, by a second to a year.
    pub jump_every_ms: u64,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub geometry: Geometry,
    pub nodes: Vec<NodeSpec>,
    pub faults: Faults,
    pub latency_ms: (u64, u64),
    /// Connections in a hundred without the fast extension.
    pub plain_percent: u64,
    /// Every honest node must be done by then.
    pub deadline_secs: u64,
    /// Of a torrent of BitTorrent v2.
    pub trees: Option<PieceTrees>,
}

impl Spec {
    /// A swarm on one geometry with no faults.
    pub fn new(name: &'static str, total_bytes: u64, piece_length_bytes: u64) -> Self {
        Spec {
            name,
            geometry: Geometry::new(total_bytes, piece_length_bytes).expect("a possible torrent"),
            nodes: Vec::new(),
            faults: Faults::default(),
            latency_ms: (2, 60),
            plain_percent: 15,
            deadline_secs: 1_800,
            trees: None,
        }
    }

    /// The same torrent with hash trees: one file with pieces of a power of two.
    pub fn v2(mut self) -> Self {
        let lengths = [self.geometry.total_bytes()];
        let piece_length_bytes = self.geometry.piece_length_bytes().into();
        let aligned = Geometry::of_aligned_files(lengths, piece_length_bytes);
        self.geometry = aligned.expect("the same torrent");
        let geometry = &self.geometry;
        let need = |root| LayerNeed {
            root,
            length_bytes: geometry.total_bytes(),
            piece_length_bytes: geometry.piece_length_bytes(),
        };
        let height = merkle::piece_height(geometry.piece_length_bytes());
        let leaves = |piece| {
            let blocks = 0..geometry.block_count(piece) as usize;
            let leaves = blocks.map(|block| disk::good_tag(piece, block).leaf());
            leaves.collect::<Vec<_>>()
        };
        let layer = geometry.pieces();
        let layer = layer.map(|piece| merkle::root(&leaves(piece), 0, height));
        let layer: Vec<_> = layer.collect();
        let file_height = merkle::file_height(geometry.total_bytes());
        let root = merkle::root(&layer, height, file_height - height);
        let layers = PieceLayers::new([(need(root), layer)]);
        assert!(!layers.is_empty(), "a torrent of several pieces");
        let files = [(Some(root), geometry.total_bytes())];
        self.trees = PieceTrees::new(files, geometry, &layers);
        self
    }

    /// Adds `count` nodes of one kind.
    pub fn with(mut self, count: usize, node: NodeSpec) -> Self {
        self.nodes.extend(std::iter::repeat_n(node, count));
        self
    }
}
