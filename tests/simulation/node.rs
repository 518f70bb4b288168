//! One simulated machine: its torrent, its line, its disk and what the checks remember of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use gyre::base::{BlockRef, Now, PeerId, PieceIndex};
use gyre::storage::retry::{Refusal, Retries};
use gyre::swarm::{Credits, Effect, PeerKey, Torrent};

use crate::disk::Disk;
use crate::spec::NodeSpec;

/// Dials that may be under way at once.
pub const HALF_OPEN_MAX: u32 = 8;
/// Connections of one session.
pub const CONNECTIONS_MAX: u32 = 200;

/// Figures of the present life of a torrent, counted outside of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Payload of blocks that came whole.
    pub whole_bytes: u64,
    /// All payload that came.
    pub payload_bytes: u64,
    pub sent_bytes: u64,
}

/// One machine.
pub struct Node {
    pub spec: NodeSpec,
    /// `None` while it is down or has not joined.
    pub torrent: Option<Torrent>,
    /// Number of the present life; answers for an earlier one are dropped.
    pub life: u32,
    pub disk: Disk,
    pub credits: Credits,
    pub effects: Vec<Effect>,
    pub peers: BTreeMap<PeerKey, (usize, usize)>,
    pub half_open: u32,
    pub timer: Option<Now>,
    pub timer_number: u64,
    pub timers_in_a_row: u32,
    /// Connections with something to send, in turn.
    pub line: VecDeque<(usize, usize)>,
    pub is_line_busy: bool,
    pub down_free_at: Now,
    /// Blocks being received into their place, and by which connection.
    pub owned: BTreeMap<BlockRef, (usize, usize)>,
    pub tally: Tally,
    pub announce_due: bool,
    pub own_dials: u32,
    pub completed_at: Option<Now>,
    /// Over all lives.
    pub banned: Vec<IpAddr>,
    pub sent_bytes_ever: u64,
    /// Pieces that were had and lost: what was said of them before may still wait to be sent.
    pub lost: BTreeSet<PieceIndex>,
    /// Bad pieces with bad blocks of this other node.
    pub bad_pieces_of: BTreeMap<usize, u32>,
    /// Bytes of bad blocks that it took into their place, by the node that sent them, over all lives.
    pub bad_bytes_of: BTreeMap<usize, u64>,
    /// Bytes of blocks that came for nothing because others had sent them, over all lives.
    pub duplicate_bytes: u64,
    /// Of those, the ones of blocks that were there or on their way already.
    pub twice_bytes: u64,
    /// How far its clock is ahead of the world's.
    pub ahead: Duration,
    /// Writes begun, over all lives.
    pub writes: u64,
    /// Why the disk refuses writes, or did, and until when.
    pub refusing: Option<(Refusal, Now)>,
    /// How long after that the next write went well.
    pub recovered_after: Option<Duration>,
    pub retries: Retries,
    /// Nothing is fetched until the disk is tried again.
    pub is_recovering: bool,
    /// Pieces whose last write was refused.
    pub refused: BTreeSet<PieceIndex>,
    /// When a refused piece was last written again.
    pub retried: BTreeMap<PieceIndex, Now>,
}

impl Node {
    /// A machine that has not joined yet.
    pub fn new(spec: NodeSpec, disk: Disk) -> Self {
        Node {
            credits: full_credits(&spec),
            spec,
            torrent: None,
            life: 0,
            disk,
            effects: Vec::new(),
            peers: BTreeMap::new(),
            half_open: 0,
            timer: None,
            timer_number: 0,
            timers_in_a_row: 0,
            line: VecDeque::new(),
            is_line_busy: false,
            down_free_at: Now::ZERO,
            owned: BTreeMap::new(),
            tally: Tally::default(),
            announce_due: false,
            own_dials: 0,
            completed_at: None,
            banned: Vec::new(),
            sent_bytes_ever: 0,
            lost: BTreeSet::new(),
            bad_pieces_of: BTreeMap::new(),
            bad_bytes_of: BTreeMap::new(),
            duplicate_bytes: 0,
            twice_bytes: 0,
            ahead: Duration::ZERO,
            writes: 0,
            refusing: None,
            recovered_after: None,
            retries: Retries::default(),
            is_recovering: false,
            refused: BTreeSet::new(),
            retried: BTreeMap::new(),
        }
    }

    /// The torrent of a node that is up.
    pub fn torrent(&self) -> &Torrent {
        self.torrent.as_ref().expect("the node is up")
    }
}

/// What a session starts with.
pub fn full_credits(spec: &NodeSpec) -> Credits {
    Credits {
        assembly_bytes: spec.budget_bytes,
        connections: CONNECTIONS_MAX,
        dials: HALF_OPEN_MAX,
    }
}

/// Where the node listens.
pub fn address(node: usize) -> SocketAddr {
    let number = u16::try_from(node).expect("few nodes");
    let [high, low] = number.to_be_bytes();
    SocketAddr::new(Ipv4Addr::new(1, 0, high, low).into(), 6881)
}

/// Which node an address belongs to.
pub fn node_at(ip: IpAddr) -> usize {
    match ip {
        IpAddr::V4(ip) => usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]])),
        IpAddr::V6(_) => unreachable!("the simulated net is IPv4"),
    }
}

/// The node's peer id.
pub fn peer_id(node: usize, life: u32) -> PeerId {
    let mut bytes = *b"-GY0001-xxxxxxxxxxxx";
    bytes[8..16].copy_from_slice(&(node as u64).to_be_bytes());
    bytes[16..].copy_from_slice(&life.to_be_bytes());
    PeerId::new(bytes)
}
