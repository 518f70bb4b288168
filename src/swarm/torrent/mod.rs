//! One torrent's swarm: what the runtime tells it and asks of it. Layer 2.

mod config;
mod stats;

use std::net::{IpAddr, SocketAddr};

use crate::base::{Bitfield, BlockRef, Now, PieceIndex};
use crate::swarm::effects::{Cx, PeerKey, UploadRun};
use crate::swarm::peer::PeerFault;
use crate::wire::message::{Message, RawBlock};

pub use config::{
    Connected, Placement, REQQ_DEFAULT, Refusal, SeedChoker, TorrentConfig, UploadSlots,
};
pub use stats::{PeerStats, TorrentStats};

/// Where an address came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    User,
    Tracker,
    Pex,
    Inbound,
}

/// All decisions about one torrent.
pub struct Torrent {}

#[allow(unused_variables)]
impl Torrent {
    /// A torrent without peers.
    pub fn new(cfg: TorrentConfig, now: Now) -> Self {
        todo!()
    }

    /// Takes in a connection and queues its first messages; a dialled one keeps the credits its dial took.
    ///
    /// # Errors
    /// The peer is not wanted: the runtime closes the connection and calls nothing more for it (all credits are back).
    pub fn on_connected(&mut self, conn: Connected, cx: &mut Cx<'_>) -> Result<PeerKey, Refusal> {
        todo!()
    }
    /// A dial ended without a handshake; gives the connection credit back.
    pub fn on_dial_failed(&mut self, addr: SocketAddr, cx: &mut Cx<'_>) {
        todo!()
    }
    /// The connection is gone; a stale key is ignored. A block it was receiving is free again.
    pub fn on_disconnected(&mut self, peer: PeerKey, cx: &mut Cx<'_>) {
        todo!()
    }
    /// One whole message other than `piece`.
    ///
    /// # Errors
    /// The peer broke the protocol: the runtime closes the connection, then calls `on_disconnected`.
    pub fn on_message(
        &mut self,
        peer: PeerKey,
        message: &Message<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        todo!()
    }
    /// A `piece` message begins: says where its payload goes.
    ///
    /// # Errors
    /// As [`Torrent::on_message`].
    pub fn on_piece_header(
        &mut self,
        peer: PeerKey,
        header: RawBlock,
        cx: &mut Cx<'_>,
    ) -> Result<Placement, PeerFault> {
        todo!()
    }
    /// Bytes of a payload arrived (progress for rates and the snub clock); the counts of one block add up to its length.
    pub fn on_block_bytes(&mut self, peer: PeerKey, n_bytes: u32, cx: &mut Cx<'_>) {
        todo!()
    }
    /// The whole payload is in its place.
    pub fn on_block_stored(&mut self, peer: PeerKey, block: BlockRef, cx: &mut Cx<'_>) {
        todo!()
    }
    /// The whole payload went to scratch.
    pub fn on_block_discarded(&mut self, peer: PeerKey, header: RawBlock, cx: &mut Cx<'_>) {
        todo!()
    }

    /// Answers `Effect::Hash`.
    pub fn on_piece_hashed(&mut self, piece: PieceIndex, is_good: bool, cx: &mut Cx<'_>) {
        todo!()
    }
    /// Answers `Effect::Write`.
    pub fn on_piece_written(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        todo!()
    }
    /// Answers `Effect::Write`, `Effect::FlushSegment` or `Effect::Hash` (read back failed) after a disk error: the piece is missing again.
    pub fn on_piece_write_failed(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        todo!()
    }
    /// Answers `Effect::FlushSegment`.
    pub fn on_segment_flushed(&mut self, piece: PieceIndex, segment: u32, cx: &mut Cx<'_>) {
        todo!()
    }
    /// Answers `Effect::DigestBlocks`; `None` after a disk error.
    pub fn on_block_digests(
        &mut self,
        piece: PieceIndex,
        digests: Option<Vec<u64>>,
        cx: &mut Cx<'_>,
    ) {
        todo!()
    }
    /// Stops or resumes fetching; uploads go on.
    pub fn set_paused(&mut self, is_paused: bool, cx: &mut Cx<'_>) {
        todo!()
    }
    /// Pieces that were had are gone from disk.
    pub fn on_pieces_lost(&mut self, pieces: &[PieceIndex], cx: &mut Cx<'_>) {
        todo!()
    }
    /// Replaces the set of wanted pieces.
    pub fn select(&mut self, wanted: Bitfield, cx: &mut Cx<'_>) {
        todo!()
    }
    /// True while a peer could be given requests but for assembly credits.
    pub fn is_starved(&self) -> bool {
        todo!()
    }
    /// Credits came back elsewhere in the session.
    pub fn on_credits(&mut self, cx: &mut Cx<'_>) {
        todo!()
    }

    /// The next run of blocks to send to the peer, at most `max_bytes` (one block is always allowed).
    pub fn next_upload(
        &mut self,
        peer: PeerKey,
        max_bytes: u32,
        cx: &mut Cx<'_>,
    ) -> Option<UploadRun> {
        todo!()
    }
    /// The run was handed to the kernel whole.
    pub fn on_sent(&mut self, peer: PeerKey, run: &UploadRun, cx: &mut Cx<'_>) {
        todo!()
    }
    /// The run could not be read and nothing of it was sent: rejects its blocks (BEP 6) or forgets them.
    pub fn on_upload_failed(&mut self, peer: PeerKey, run: &UploadRun, cx: &mut Cx<'_>) {
        todo!()
    }
    /// Appends encoded control messages, about `max_bytes` at most; returns the bytes appended.
    pub fn take_messages(
        &mut self,
        peer: PeerKey,
        out: &mut Vec<u8>,
        max_bytes: usize,
        cx: &mut Cx<'_>,
    ) -> usize {
        todo!()
    }
    /// True when `take_messages` or `next_upload` has something.
    pub fn has_output(&self, peer: PeerKey) -> bool {
        todo!()
    }

    /// Addresses to dial.
    pub fn on_candidates(&mut self, source: Source, addrs: &[SocketAddr], cx: &mut Cx<'_>) {
        todo!()
    }
    /// When `on_timer` must be called next.
    pub fn next_deadline(&self) -> Option<Now> {
        todo!()
    }
    /// Time has passed.
    pub fn on_timer(&mut self, cx: &mut Cx<'_>) {
        todo!()
    }
    /// Closes every peer and dials no more.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        todo!()
    }

    /// The pieces verified and written.
    pub fn have(&self) -> &Bitfield {
        todo!()
    }
    /// True when every wanted piece is had.
    pub fn is_complete(&self) -> bool {
        todo!()
    }
    /// A snapshot of the torrent's numbers.
    pub fn stats(&self, now: Now) -> TorrentStats {
        todo!()
    }
    /// A snapshot of every peer, in slot order.
    pub fn peers(&self, now: Now) -> Vec<PeerStats> {
        todo!()
    }
    /// The addresses banned so far, in order of their ban.
    pub fn banned(&self) -> &[IpAddr] {
        todo!()
    }
    /// Checks every invariant.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        todo!()
    }
}
