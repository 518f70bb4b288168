//! Requests that move: what lies deep in one peer's queue is asked of another that would answer sooner.
//!
//! Without it a piece that a slow seed was asked for comes from that seed, however many others have it meanwhile: a
//! first seeder would send most of its data several times.

use std::time::Duration;

use crate::base::{BLOCK_BYTES, BlockRef, Now, PieceIndex};
use crate::swarm::effects::{Cx, PeerKey};
use crate::swarm::peer::{Peer, raw};
use crate::swarm::torrent::Torrent;
use crate::swarm::torrent::download::may_be_asked;
use crate::wire::message::Message;

/// A move must save at least this much, beyond halving the wait: estimates are coarse, and a move costs two messages.
const GAIN_MIN: Duration = Duration::from_millis(200);
/// A peer that has sent nothing yet is taken to answer at this pace.
const UNKNOWN_BYTES_PER_S: u64 = 1_000_000;
/// Requests that a peer may owe which has sent nothing yet, when some are moved to it.
const UNPROVEN_MAX: u32 = 4;
/// Who owes blocks and sends none for so long is not at work.
const SILENT_MIN: Duration = Duration::from_secs(2);
/// A peer that has sent nothing yet may be far away: it is given so long to begin. What it owes at the end of a torrent is
/// asked for a second time sooner.
const BEGIN_MIN: Duration = Duration::from_millis(1_500);
/// Peers whose queues are looked at for one that has nothing to do.
const VICTIMS_MAX: usize = 8;

impl Torrent {
    /// The peer has got a piece: it may have blocks of it sooner than whoever was asked for them.
    pub(super) fn take_over_piece(&mut self, key: PeerKey, piece: PieceIndex, cx: &mut Cx<'_>) {
        if let Some(owner) = self.pieces.owner(piece).filter(|owner| *owner != key) {
            self.take_over_from(key, owner, Some(piece), cx);
        }
    }

    /// Peers with nothing to do help those with the longest queues.
    pub(super) fn take_over_for_idle(&mut self, cx: &mut Cx<'_>) {
        let epoch = self.pieces.epoch();
        let idle = self.peers.iter().filter(|(_, peer)| {
            peer.nothing_at_epoch == epoch && peer.pipeline.room() > 0 && !peer.peer_choking
        });
        let idle: Vec<PeerKey> = idle.map(|(key, _)| PeerKey(key)).collect();
        if idle.is_empty() {
            return;
        }
        let busy = self.peers.iter().filter(|(_, p)| !p.pipeline.is_empty());
        let mut busy: Vec<(Duration, PeerKey)> = busy
            .map(|(key, peer)| (wait(peer, peer.pipeline.len(), cx.now), PeerKey(key)))
            .collect();
        busy.sort_unstable_by(|a, b| b.cmp(a));
        for key in idle {
            for (_, victim) in busy.iter().take(VICTIMS_MAX) {
                if *victim != key {
                    self.take_over_from(key, *victim, None, cx);
                }
            }
        }
    }

    /// Moves requests from the end of the victim's queue as long as the peer would answer them sooner.
    fn take_over_from(
        &mut self,
        key: PeerKey,
        victim: PeerKey,
        only: Option<PieceIndex>,
        cx: &mut Cx<'_>,
    ) {
        while let Some(block) = self.find_move(key, victim, only, cx.now) {
            if let Some(peer) = self.peers.get_mut(victim.0) {
                let withdrawn = peer.pipeline.withdraw(block);
                for block in withdrawn.sent {
                    peer.send(victim, &Message::Cancel(raw(block)), cx);
                }
            }
            if let Some(peer) = self.peers.get_mut(key.0) {
                // Asked for before it is released: the block is never free, its piece keeps its owner.
                self.pieces.on_requested(block);
                self.pieces.on_released(block);
                peer.pipeline.push(block);
                peer.wake(key, cx);
            }
            self.tick_by(cx.now + super::ACTIVE_TICK);
        }
    }

    fn find_move(
        &self,
        key: PeerKey,
        victim: PeerKey,
        only: Option<PieceIndex>,
        now: Now,
    ) -> Option<BlockRef> {
        let peer = self.peers.get(key.0)?;
        let victim = self.peers.get(victim.0)?;
        let is_able = may_be_asked(peer, now) && !peer.peer_choking && !peer.is_suspect;
        if self.is_paused || self.is_stopping || !is_able || peer.pipeline.room() == 0 {
            return None;
        }
        if !peer.pipeline.is_proven() {
            // A crowd that promises and sends nothing must not pass the last requests round among itself.
            let is_at_work =
                victim.pipeline.is_proven() && victim.pipeline.owes_since(now) < SILENT_MIN;
            let is_tried = peer.pipeline.len() >= UNPROVEN_MAX;
            if is_tried || is_at_work && only.is_none() {
                return None;
            }
        }
        // What a web seed was asked for it sends all the same: only of a silent one it goes to others.
        let is_bound = victim.is_web() && victim.pipeline.owes_since(now) < SILENT_MIN;
        if !victim.pipeline.is_proven() && victim.pipeline.owes_since(now) < BEGIN_MIN {
            return None;
        }
        let own_wait = wait(peer, peer.pipeline.len() + 1, now);
        let mut ahead = victim.pipeline.len();
        for block in victim.pipeline.iter_back() {
            if wait(victim, ahead, now) < own_wait * 2 + GAIN_MIN {
                return None;
            }
            ahead -= 1;
            let piece = block.piece();
            let is_meant = only.is_none_or(|only| only == piece);
            let is_fit = peer.offers().has(piece)
                && self.pieces.is_movable(block)
                && (!is_bound || victim.pipeline.is_unsent(block));
            if is_meant && is_fit && !peer.pipeline.contains(block) {
                return Some(block);
            }
        }
        None
    }
}

/// About how long the peer takes for this many blocks: no less than it has been silent already, since who owes and says
/// nothing will most likely go on like that.
fn wait(peer: &Peer, blocks: u32, now: Now) -> Duration {
    let rate = match peer.pipeline.busy_bytes_per_s(now) {
        0 => UNKNOWN_BYTES_PER_S,
        rate => rate,
    };
    let micros = u64::from(blocks) * u64::from(BLOCK_BYTES) * 1_000_000 / rate;
    Duration::from_micros(micros).max(peer.pipeline.owes_since(now))
}
