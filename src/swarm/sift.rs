//! A bad piece of a torrent with hash trees (BEP 52): its leaves, as they came and as they should be, tell which of its
//! blocks are bad. Layer 2.
//!
//! Leaves are proven by the piece's root, so whoever sends them cannot frame anybody.

use std::time::Duration;

use crate::base::Now;
use crate::swarm::effects::PeerKey;
use crate::wire::merkle::Node;
use crate::wire::message::HashRange;
use crate::wire::metainfo::PieceTree;

/// A peer that has not sent the leaves by then is not waited for any longer.
const ANSWER_AFTER: Duration = Duration::from_secs(6);

/// The bad piece, and what is known of its leaves.
#[derive(Clone, Debug)]
pub struct Sift {
    tree: PieceTree,
    /// Of the blocks as they came, once they are hashed.
    ours: Option<Vec<Node>>,
    parts: Vec<Part>,
    /// Who was asked in vain.
    tried: Vec<PeerKey>,
}

/// Leaves that one request is for.
#[derive(Clone, Debug)]
struct Part {
    range: HashRange,
    state: PartState,
}

#[derive(Clone, Debug)]
enum PartState {
    Free,
    Asked { peer: PeerKey, until: Now },
    Here(Vec<Node>),
}

impl Sift {
    /// Nothing is known yet.
    pub fn new(tree: PieceTree) -> Sift {
        let free = |range| Part {
            range,
            state: PartState::Free,
        };
        Sift {
            parts: tree.ranges().map(free).collect(),
            tree,
            ours: None,
            tried: Vec::new(),
        }
    }

    /// The blocks were hashed.
    pub fn set_ours(&mut self, leaves: Vec<Node>) {
        self.ours = Some(leaves);
    }

    /// True once the blocks were hashed.
    pub const fn has_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// True when the peer has not been asked in vain.
    pub fn may_ask(&self, peer: PeerKey) -> bool {
        !self.tried.contains(&peer)
    }

    /// Leaves that nobody is asked for.
    pub fn is_free(&self) -> bool {
        let is_free = |part: &Part| matches!(part.state, PartState::Free);
        self.parts.iter().any(is_free)
    }

    /// What the peer is to be asked for next: it owes that from now on.
    pub fn ask(&mut self, peer: PeerKey, now: Now) -> Option<HashRange> {
        let is_free = |part: &&mut Part| matches!(part.state, PartState::Free);
        let part = self.parts.iter_mut().find(is_free)?;
        let until = now + ANSWER_AFTER;
        part.state = PartState::Asked { peer, until };
        Some(part.range)
    }

    /// True when the peer owes the leaves of this range.
    pub fn is_owed(&self, peer: PeerKey, range: &HashRange) -> bool {
        let is_it = |part: &Part| part.range == *range && part.owed_by() == Some(peer);
        self.parts.iter().any(is_it)
    }

    /// Requests that the peer owes.
    pub fn owed_count(&self, peer: PeerKey) -> usize {
        let owed = self.parts.iter().filter_map(Part::owed_by);
        owed.filter(|by| *by == peer).count()
    }

    /// The peer answered; false when that does not lead to the piece's root.
    pub fn store(&mut self, peer: PeerKey, range: &HashRange, hashes: &[Node]) -> bool {
        let is_it = |part: &&mut Part| part.range == *range && part.owed_by() == Some(peer);
        let Some(part) = self.parts.iter_mut().find(is_it) else {
            return false;
        };
        let proven = self.tree.proven(range, hashes);
        if let Some(leaves) = proven {
            part.state = PartState::Here(leaves.to_vec());
        }
        proven.is_some()
    }

    /// The peer sends nothing more: others are to be asked. True when it owed something.
    pub fn release(&mut self, peer: PeerKey) -> bool {
        let mut is_released = false;
        for part in &mut self.parts {
            if part.owed_by() == Some(peer) {
                part.state = PartState::Free;
                is_released = true;
            }
        }
        if is_released {
            self.tried.push(peer);
        }
        is_released
    }

    /// Those who owe leaves for too long.
    pub fn late(&self, now: Now) -> Vec<PeerKey> {
        let late = self.parts.iter().filter_map(|part| match part.state {
            PartState::Asked { peer, until } if until <= now => Some(peer),
            _ => None,
        });
        late.collect()
    }

    /// When the first of those who owe leaves is late.
    pub fn next_deadline(&self) -> Option<Now> {
        let untils = self.parts.iter().filter_map(|part| match part.state {
            PartState::Asked { until, .. } => Some(until),
            _ => None,
        });
        untils.min()
    }

    /// The numbers of the bad blocks; `None` before all leaves are here.
    pub fn verdict(&self) -> Option<Vec<u32>> {
        let ours = self.ours.as_ref()?;
        let mut theirs = Vec::with_capacity(ours.len());
        for part in &self.parts {
            let PartState::Here(leaves) = &part.state else {
                return None;
            };
            theirs.extend_from_slice(leaves);
        }
        let pairs = (0u32..).zip(ours.iter().zip(&theirs));
        let bad = pairs.filter(|(_, (ours, theirs))| ours != theirs);
        Some(bad.map(|(number, _)| number).collect())
    }

    /// # Panics
    /// When an invariant is broken.
    pub fn check(&self) {
        for peer in &self.tried {
            assert_eq!(
                self.owed_count(*peer),
                0,
                "asked again after it was in vain"
            );
        }
        let blocks = self.tree.block_count() as usize;
        let is_one_each = self.ours.as_ref().is_none_or(|ours| ours.len() == blocks);
        assert!(is_one_each, "a leaf a block");
    }
}

impl Part {
    fn owed_by(&self) -> Option<PeerKey> {
        match self.state {
            PartState::Asked { peer, .. } => Some(peer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BLOCK_BYTES, Geometry, PieceIndex, Slots};
    use crate::wire::merkle;
    use crate::wire::metainfo::{PieceLayers, PieceTrees};

    const BLOCKS: u32 = 1_000;

    /// A piece of a file that has no other, its leaves, and the answers to what is asked of it.
    fn world() -> (Sift, Vec<Node>, impl Fn(&HashRange) -> Vec<Node>) {
        let leaves: Vec<Node> = (0..BLOCKS)
            .map(|n| merkle::leaf(&n.to_be_bytes()))
            .collect();
        let length_bytes = u64::from(BLOCKS * BLOCK_BYTES);
        let root = merkle::root(&leaves, 0, merkle::file_height(length_bytes));
        let geometry = Geometry::new(length_bytes, 16 << 20).unwrap();
        let files = [(Some(root), length_bytes)];
        let trees = PieceTrees::new(files, &geometry, &PieceLayers::default()).unwrap();
        let tree = trees.piece(PieceIndex::new(0)).unwrap();
        let all = leaves.clone();
        let answer = move |range: &HashRange| trees.answer(range, &tree, &all).unwrap();
        (Sift::new(tree), leaves, answer)
    }

    #[test]
    fn a_long_piece_is_judged_once_all_its_parts_are_here() {
        let (mut sift, mut leaves, answer) = world();
        let mut keys = Slots::new();
        let [a, b] = [(); 2].map(|()| PeerKey(keys.insert(())));
        let now = Now::from_secs(1);
        let first = sift.ask(a, now).unwrap();
        let second = sift.ask(b, now).unwrap();
        assert_eq!(sift.ask(a, now), None);
        assert!(sift.store(b, &second, &answer(&second)));
        for block in [0, 511, 512, 999] {
            leaves[block][7] ^= 1;
        }
        sift.set_ours(leaves);
        assert_eq!(sift.verdict(), None);
        assert!(!sift.store(b, &first, &answer(&first)), "asked of another");
        assert!(sift.store(a, &first, &answer(&first)));
        assert_eq!(sift.verdict(), Some(vec![0, 511, 512, 999]));
    }

    #[test]
    fn what_a_late_peer_owes_is_asked_of_others() {
        let (mut sift, _, answer) = world();
        let mut keys = Slots::new();
        let [a, b] = [(); 2].map(|()| PeerKey(keys.insert(())));
        let now = Now::from_secs(1);
        let range = sift.ask(a, now).unwrap();
        let at = sift.next_deadline().unwrap();
        assert_eq!(sift.late(now), []);
        assert_eq!(sift.late(at), [a]);
        assert!(sift.release(a) && !sift.release(b));
        assert!(!sift.may_ask(a) && sift.may_ask(b));
        assert!(!sift.store(a, &range, &answer(&range)));
        assert_eq!(sift.ask(b, now), Some(range));
    }
}
