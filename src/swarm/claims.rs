//! First copies first: while the line is the bottleneck, a piece that nobody else has goes to one peer at a time, and
//! the others get it from that one. Layer 2.
//!
//! Holds which piece is on its way to whom. A claim ends when the piece is announced by anybody, or when nothing of it
//! was handed out for a while. Only the order of answers changes: every request is answered as long as it stands.

use std::collections::BTreeMap;
use std::time::Duration;

use super::PeerKey;
use crate::base::{Now, PieceIndex};

/// A claim stands for so long after the last blocks were sent: the peer asks for more, or verifies and announces it.
const SENT_FOR: Duration = Duration::from_secs(2);
/// And for so long after blocks were handed out: a peer that takes them slower is not worth waiting for.
const HANDED_OUT_FOR: Duration = Duration::from_secs(10);
/// With less work than this queued by all peers the line is not the bottleneck, and nobody is made to wait.
const BACKLOG_MIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
struct Claim {
    peer: PeerKey,
    until: Now,
}

/// The pieces now on their way to a first peer.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    by_piece: BTreeMap<PieceIndex, Claim>,
    is_on: bool,
}

impl Claims {
    /// Nothing is claimed.
    pub fn new() -> Self {
        Self::default()
    }

    /// True while the line is the bottleneck.
    pub const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Looks at the line: `queued_bytes` of all peers wait while `bytes_per_s` go out. Forgets old claims.
    pub fn review(&mut self, queued_bytes: u64, bytes_per_s: u64, now: Now) {
        let millis = u64::try_from(BACKLOG_MIN.as_millis()).unwrap_or(u64::MAX);
        self.is_on = bytes_per_s > 0 && queued_bytes >= bytes_per_s.saturating_mul(millis) / 1_000;
        self.by_piece.retain(|_, claim| claim.until > now);
    }

    /// True when another peer is being sent the piece.
    pub fn is_claimed(&self, piece: PieceIndex, peer: PeerKey, now: Now) -> bool {
        let claim = self.by_piece.get(&piece);
        claim.is_some_and(|claim| claim.peer != peer && claim.until > now)
    }

    /// Blocks of the piece are handed out for the peer.
    pub fn on_handed_out(&mut self, piece: PieceIndex, peer: PeerKey, now: Now) {
        if self.is_on && !self.is_claimed(piece, peer, now) {
            let until = now + HANDED_OUT_FOR;
            self.by_piece.insert(piece, Claim { peer, until });
        }
    }

    /// They were sent, or given up.
    pub fn on_sent(&mut self, piece: PieceIndex, peer: PeerKey, now: Now) {
        let claim = self.by_piece.get_mut(&piece);
        if let Some(claim) = claim.filter(|claim| claim.peer == peer) {
            claim.until = now + SENT_FOR;
        }
    }

    /// The peer is gone.
    pub fn on_gone(&mut self, peer: PeerKey) {
        self.by_piece.retain(|_, claim| claim.peer != peer);
    }
}
