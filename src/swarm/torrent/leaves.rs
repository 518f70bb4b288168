//! Leaves of our pieces for peers that look for a bad block (BEP 52, "hash request" of base layer 0). They are kept
//! nowhere: the piece is read and hashed when somebody asks.

use crate::base::{Now, PieceIndex};
use crate::swarm::effects::{Cx, Effect, PeerKey};
use crate::swarm::peer::OUTBOX_BYTES_MAX;
use crate::swarm::torrent::Torrent;
use crate::wire::merkle::Node;
use crate::wire::message::{HASH_RANGE_BYTES, HashRange, Message};
use crate::wire::metainfo::{LEAVES_PIECE_BYTES_MAX, PieceTree};

/// Pieces of one torrent that are being read for that, or wait for it.
const READS_MAX: usize = 8;
/// Requests of one peer that wait; libtorrent and we ask for no more at a time.
const WAITING_MAX: usize = 2;
/// What is read for one peer at once: two of the longest pieces.
const BURST_BYTES: u32 = 2 * LEAVES_PIECE_BYTES_MAX;
/// And each second after that.
const BYTES_PER_S: u32 = 1 << 20;

/// How much is still read for one peer.
#[derive(Clone, Copy, Debug)]
pub struct LeafAllowance {
    left_bytes: u32,
    refilled_at: Now,
}

impl Default for LeafAllowance {
    fn default() -> Self {
        LeafAllowance {
            left_bytes: BURST_BYTES,
            refilled_at: Now::ZERO,
        }
    }
}

impl LeafAllowance {
    /// Takes so much; false when there is less left.
    fn take(&mut self, bytes: u32, now: Now) -> bool {
        let seconds = now.since(self.refilled_at).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX);
            let more = more.saturating_mul(BYTES_PER_S);
            self.left_bytes = self.left_bytes.saturating_add(more).min(BURST_BYTES);
            self.refilled_at = now;
        }
        let left = self.left_bytes.checked_sub(bytes);
        self.left_bytes = left.unwrap_or(self.left_bytes);
        left.is_some()
    }
}

/// A piece being read, and who waits for what of it.
#[derive(Clone, Debug)]
struct Read {
    tree: PieceTree,
    waiting: Vec<(PeerKey, HashRange)>,
}

/// The pieces being read.
#[derive(Clone, Debug, Default)]
pub(super) struct LeafReads(Vec<Read>);

impl LeafReads {
    /// Requests of this peer that wait.
    fn waiting_of(&self, key: PeerKey) -> usize {
        let waiting = self.0.iter().flat_map(|read| &read.waiting);
        waiting.filter(|(of, _)| *of == key).count()
    }

    /// The peer is gone.
    pub fn forget(&mut self, key: PeerKey) {
        for read in &mut self.0 {
            read.waiting.retain(|(of, _)| *of != key);
        }
    }

    fn end(&mut self, piece: PieceIndex) -> Option<Read> {
        let at = self.0.iter().position(|read| read.tree.piece == piece)?;
        Some(self.0.remove(at))
    }

    /// # Panics
    /// When an invariant is broken.
    pub fn check(&self) {
        assert!(self.0.len() <= READS_MAX, "pieces read for their leaves");
        for (key, _) in self.0.iter().flat_map(|read| &read.waiting) {
            assert!(self.waiting_of(*key) <= WAITING_MAX, "leaves asked for");
        }
    }
}

impl Torrent {
    /// Has the piece read that the request is about; false when it is to be rejected.
    pub(super) fn read_leaves(&mut self, key: PeerKey, range: &HashRange, cx: &mut Cx<'_>) -> bool {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return false;
        };
        let trees = self.cfg.trees.iter();
        let mut asked = trees.flat_map(|trees| trees.pieces_asked(range));
        let Some(tree) = asked.find(|tree| self.pieces.have().has(tree.piece)) else {
            return false;
        };
        if self.leaf_reads.waiting_of(key) >= WAITING_MAX {
            return false;
        }
        let reads = &mut self.leaf_reads.0;
        if let Some(read) = reads.iter_mut().find(|read| read.tree.piece == tree.piece) {
            read.waiting.push((key, *range));
            return true;
        }
        if reads.len() >= READS_MAX || !peer.leaves.take(tree.bytes, cx.now) {
            return false;
        }
        reads.push(Read {
            tree,
            waiting: vec![(key, *range)],
        });
        let (piece, bytes) = (tree.piece, tree.bytes);
        cx.fx.push(Effect::ReadLeaves { piece, bytes });
        true
    }

    /// True as long as anybody waits for what [`Effect::ReadLeaves`] is to bring of the piece.
    pub fn awaits_leaves(&self, piece: PieceIndex) -> bool {
        let mut reads = self.leaf_reads.0.iter();
        reads.any(|read| read.tree.piece == piece && !read.waiting.is_empty())
    }

    /// Answers [`Effect::ReadLeaves`] with a leaf a block; `None` when the piece could not be read.
    pub fn on_leaves_read(&mut self, piece: PieceIndex, leaves: Option<&[Node]>, cx: &mut Cx<'_>) {
        let Some(read) = self.leaf_reads.end(piece) else {
            return;
        };
        // What has rotted on the disk is no reason to be taken for a liar.
        let leaves = leaves.filter(|leaves| read.tree.is_over(leaves));
        for (key, range) in read.waiting {
            let trees = self.cfg.trees.as_ref();
            let answer = trees
                .zip(leaves)
                .and_then(|(trees, leaves)| trees.answer(&range, &read.tree, leaves));
            self.send_hashes(key, &range, answer.as_deref(), cx);
        }
        self.after_event();
    }

    /// Answers a request for hashes, or rejects it.
    pub(super) fn send_hashes(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        hashes: Option<&[Node]>,
        cx: &mut Cx<'_>,
    ) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let range = *range;
        let room = OUTBOX_BYTES_MAX.saturating_sub(peer.outbox.len() + HASH_RANGE_BYTES);
        let message = match hashes.map(<[Node]>::as_flattened) {
            Some(hashes) if hashes.len() < room => Message::Hashes { range, hashes },
            _ => Message::HashReject(range),
        };
        peer.send(key, &message, cx);
    }
}
