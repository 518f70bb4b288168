//! What the core asks of the runtime, and what the runtime lends the core for one call. Layer 2.

use std::net::{IpAddr, SocketAddr};

use crate::base::{BlockRef, Key, Now, PieceIndex};

/// Names one connected peer of one torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub Key);

/// Names one web seed of one torrent: its position in the list of those in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebSeedId(pub u16);

/// Scarce things of the whole session. The core deducts before it emits an effect that needs one, and gives back
/// when the event arrives that ends the need; the runtime only passes the same account into every call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credits {
    /// Bytes of assembly memory (piece segments) not promised to any piece.
    pub assembly_bytes: u64,
    /// Connections (half-open ones included) that may still be made.
    pub connections: u32,
    /// Dials that may start now (half-open limit and dials a second).
    pub dials: u32,
}

/// Lent to the core for one call.
pub struct Cx<'a> {
    pub now: Now,
    pub credits: &'a mut Credits,
    /// Executed in order by the runtime after the call returns; answers come back as events, never recursively.
    pub fx: &'a mut Vec<Effect>,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer broke the protocol.
    Fault(super::peer::PeerFault),
    /// Nothing heard, or nothing taken, for too long.
    Silent,
    /// Neither side has anything for the other (seed to seed).
    Useless,
    /// It sent corrupt data.
    Banned,
    /// The user's list of addresses has it.
    Blocked,
    /// The same peer is connected already, or it is us.
    Duplicate,
    /// Its place goes to a more useful peer.
    Replaced,
    /// The torrent stops.
    Stopping,
}

/// One thing the runtime must do. Every variant names the event that answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The peer has messages to take (`take_messages`) or uploads to pull (`next_upload`), the connection to a web seed
    /// blocks to ask for (`next_web_run`).
    WakeWriter(PeerKey),
    /// Shut the connection down. Answer: `on_disconnected`.
    Close { peer: PeerKey, reason: CloseReason },
    /// Dial. Answer: `on_connected` or `on_dial_failed`. One `dials` and one `connections` credit were taken.
    Dial { addr: SocketAddr },
    /// Dial over uTP alone and at once: the peer there does the same (BEP 55). Answer: `on_connected` or `on_punch_failed`.
    /// One `dials` and one `connections` credit were taken.
    Punch { addr: SocketAddr },
    /// Every block of the piece is in place: hash it. Answer: `on_piece_hashed`.
    Hash { piece: PieceIndex },
    /// The hash is right: write what is still in memory. Answer: `on_piece_written` or `on_piece_write_failed`.
    Write { piece: PieceIndex },
    /// Streamed pieces: write the blocks of this segment now in memory, in `first_block..first_block + count`, and
    /// free its memory (hash in order as it goes). Answer: `on_segment_flushed` or `on_piece_write_failed`.
    FlushSegment { piece: PieceIndex, segment: u32 },
    /// Forget what memory holds of the piece. No answer.
    Discard { piece: PieceIndex },
    /// Forget these blocks of the piece, in memory and on disk; the others stay. No answer.
    DropBlocks { piece: PieceIndex, blocks: Vec<u32> },
    /// Hash each block of the piece, from memory or from disk (BEP 52). Answer: `on_leaves_hashed`.
    HashLeaves { piece: PieceIndex },
    /// Digest each block of the piece, from memory or from disk. Answer: `on_block_digests`.
    DigestBlocks { piece: PieceIndex },
    /// Hash each block of a piece that we have, of which the first `bytes` are meant, for peers that ask (BEP 52). Answer:
    /// `on_leaves_read`.
    ReadLeaves { piece: PieceIndex, bytes: u32 },
    /// Disconnect this address everywhere and refuse it from now on. No answer.
    Ban { ip: IpAddr },
    /// The web seed sent corrupt data: use it no more. Its connections are closed. No answer.
    BanWebSeed { seed: WebSeedId },
    /// The piece is verified and written: checkpoint it. No answer.
    Have { piece: PieceIndex },
    /// Every wanted piece is here. No answer.
    Complete,
    /// Candidates have run low: announce soon if the tracker allows. No answer.
    WantPeers,
    /// A peer has a DHT node there (BEP 5, `port`). No answer.
    DhtNode { addr: SocketAddr },
}

impl Effect {
    /// The piece of which something is forgotten: before that is done no more of it is to be taken in.
    pub const fn forgets(&self) -> Option<PieceIndex> {
        match self {
            Effect::Discard { piece } | Effect::DropBlocks { piece, .. } => Some(*piece),
            _ => None,
        }
    }
}

/// Blocks of one piece, contiguous, handed out for sending. Answer: `on_sent` or `on_upload_failed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRun {
    /// 1..=`UPLOAD_RUN_BLOCKS_MAX` blocks in sending order, each beginning where the one before ended.
    pub blocks: Vec<BlockRef>,
}
