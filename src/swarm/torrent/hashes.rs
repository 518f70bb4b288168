//! Hashes of pieces for peers that have the metadata of a v2 torrent and nothing else (BEP 52, "hash request").

use crate::base::Now;
use crate::swarm::effects::{Cx, PeerKey};
use crate::swarm::peer::PeerFault;
use crate::swarm::torrent::Torrent;
use crate::wire::message::{HashRange, Message};

/// A connection gets all layers so often at once, as with metadata.
const COPIES_MAX: u32 = 2;
/// And a few requests more, so that small layers may be asked for again.
const REQUESTS_MORE: u32 = 16;
/// Requests answered a second after that: each takes up to 16 KiB of the line and some hundred hashes to prove.
const REQUESTS_PER_S: u32 = 8;

/// How many requests of a peer are still answered.
#[derive(Clone, Copy, Debug)]
pub struct HashAllowance {
    /// `None` before the first request.
    left: Option<u32>,
    refilled_at: Now,
}

impl Default for HashAllowance {
    fn default() -> Self {
        HashAllowance {
            left: None,
            refilled_at: Now::ZERO,
        }
    }
}

impl HashAllowance {
    /// Takes one of a torrent whose layers need so many requests; false when there is none left.
    fn take(&mut self, whole: u32, now: Now) -> bool {
        let most = whole
            .saturating_mul(COPIES_MAX)
            .saturating_add(REQUESTS_MORE);
        let left = self.left.get_or_insert(most);
        let seconds = now.since(self.refilled_at).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX);
            *left = left
                .saturating_add(more.saturating_mul(REQUESTS_PER_S))
                .min(most);
            self.refilled_at = now;
        }
        let is_left = *left > 0;
        *left = left.saturating_sub(1);
        is_left
    }
}

impl Torrent {
    /// Answers with what was asked for and its proof, has leaves read, or rejects: what is not ours to give, and what
    /// comes too fast.
    pub(super) fn on_hash_request(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let (Some(peer), Some(trees)) = (self.peers.get_mut(key.0), &self.cfg.trees) else {
            return self.reject_hashes(key, range, cx);
        };
        if !peer.hashes.take(trees.layers().request_count(), cx.now) {
            return self.reject_hashes(key, range, cx);
        }
        match trees.layers().answer(range) {
            Some(hashes) => self.send_hashes(key, range, Some(&hashes), cx),
            None if self.read_leaves(key, range, cx) => {}
            None => return self.reject_hashes(key, range, cx),
        }
        Ok(())
    }

    fn reject_hashes(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        // A reject is as long as the request: one that floods is counted like any other.
        peer.count_useless(cx.now)?;
        peer.send(key, &Message::HashReject(*range), cx);
        Ok(())
    }
}
