//! The hash trees of BitTorrent v2 (BEP 52): SHA-256 over blocks of 16 KiB, and over pairs of hashes above. Layer 1.
//!
//! A layer's height is its distance from the leaves. Where a file ends before its tree does, leaves are zeros, and
//! what is above them follows from that.

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::base::BLOCK_BYTES;

/// A hash of the tree: of a leaf, of a node, or its root.
pub type Node = [u8; 32];

/// The highest tree there can be: so many layers above the leaves hold more bytes than a file has.
pub const HEIGHT_MAX: u32 = 49;

/// Hashes in one `hashes` message that are not uncles; BEP 52 asks for no more at a time.
pub const HASHES_MAX: u32 = 512;

/// The hash of one block, which may be the last of its file and short.
pub fn leaf(block: &[u8]) -> Node {
    Sha256::digest(block).into()
}

/// The hash above two.
pub fn parent(left: &Node, right: &Node) -> Node {
    Sha256::new()
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The node at that height over leaves that all lie behind the file's end.
pub fn pad(height: u32) -> Node {
    static PADS: OnceLock<Vec<Node>> = OnceLock::new();
    let pads = PADS.get_or_init(|| {
        let above = |node: &Node| Some(parent(node, node));
        std::iter::successors(Some([0; 32]), above)
            .take(HEIGHT_MAX as usize + 1)
            .collect()
    });
    pads.get(height as usize).copied().unwrap_or_default()
}

/// How many layers there are above so many nodes until one is left.
pub const fn layers_above(nodes: u64) -> u32 {
    nodes.next_power_of_two().trailing_zeros()
}

/// Height of the layer whose nodes are pieces.
pub const fn piece_height(piece_length_bytes: u32) -> u32 {
    (piece_length_bytes / BLOCK_BYTES).ilog2()
}

/// Height of the root over a file.
pub const fn file_height(length_bytes: u64) -> u32 {
    layers_above(length_bytes.div_ceil(BLOCK_BYTES as u64))
}

/// The root over the nodes of a layer at `height`, as many as the file has, after `layers` layers more.
pub fn root(nodes: &[Node], height: u32, layers: u32) -> Node {
    let mut nodes = nodes.to_vec();
    for layer in height..height + layers {
        nodes = above(&nodes, layer);
    }
    nodes
        .first()
        .copied()
        .unwrap_or_else(|| pad(height + layers))
}

/// The layer above these nodes at `height`.
pub fn above(nodes: &[Node], height: u32) -> Vec<Node> {
    let pairs = nodes.chunks(2).map(|pair| match pair {
        [left, right] => parent(left, right),
        [left] => parent(left, &pad(height)),
        _ => pad(height + 1),
    });
    pairs.collect()
}

/// Whether `nodes`, a power of two of them from number `first` on in the layer at `height`, lie below the root: `uncles`
/// are the siblings of what is above them, nearest first, up to the root.
pub fn is_proven(
    root_hash: &Node,
    nodes: &[Node],
    first: u64,
    height: u32,
    uncles: &[Node],
) -> bool {
    let layers = layers_above(nodes.len() as u64);
    let mut node = root(nodes, height, layers);
    let mut number = first >> layers;
    for uncle in uncles {
        node = match number.is_multiple_of(2) {
            true => parent(&node, uncle),
            false => parent(uncle, &node),
        };
        number /= 2;
    }
    number == 0 && node == *root_hash
}

/// A tree of a given height over bytes that come in order.
#[derive(Clone, Debug)]
pub struct TreeState {
    height: u32,
    /// Of the block that is not whole yet.
    block: Sha256,
    block_bytes: u32,
    leaves: u64,
    /// Roots of whole subtrees, the highest first: one for each bit that is set in `leaves`.
    roots: Vec<Node>,
}

impl TreeState {
    /// The state before the first byte.
    pub fn new(height: u32) -> TreeState {
        TreeState {
            height,
            block: Sha256::new(),
            block_bytes: 0,
            leaves: 0,
            roots: Vec::new(),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - self.block_bytes) as usize;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.block.update(now);
            self.block_bytes += now.len() as u32;
            bytes = later;
            if self.block_bytes == BLOCK_BYTES {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        let mut node: Node = self.block.finalize_reset().into();
        self.block_bytes = 0;
        let mut left = self.leaves;
        while left % 2 == 1
            && let Some(sibling) = self.roots.pop()
        {
            node = parent(&sibling, &node);
            left /= 2;
        }
        self.roots.push(node);
        self.leaves += 1;
    }

    /// The root. Of more bytes than the tree has leaves for it is no root of any torrent's.
    pub fn finalize(mut self) -> Node {
        if self.block_bytes > 0 {
            self.end_block();
        }
        let Some(mut node) = self.roots.pop() else {
            return pad(self.height);
        };
        // From the right, where leaves are missing, to the top.
        let mut height = self.leaves.trailing_zeros();
        while height < self.height {
            let is_right = self.leaves >> height & 1 == 1 && height > self.leaves.trailing_zeros();
            node = match is_right.then(|| self.roots.pop()).flatten() {
                Some(left) => parent(&left, &node),
                None => parent(&node, &pad(height)),
            };
            height += 1;
        }
        // Of more bytes than the tree has leaves for: what comes out stands for all of them, and is the root of none.
        while let Some(left) = self.roots.pop() {
            node = parent(&left, &node);
        }
        node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(bytes: &[u8]) -> Vec<Node> {
        bytes.chunks(BLOCK_BYTES as usize).map(leaf).collect()
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| ((at * 31) >> 5) as u8).collect()
    }

    #[test]
    fn a_tree_over_bytes_is_that_over_its_leaves_in_any_split() {
        for (blocks, extra) in [
            (0, 1),
            (1, 0),
            (2, 5),
            (3, 0),
            (5, 1),
            (8, 0),
            (11, 100),
            (16, 0),
        ] {
            let bytes = bytes(blocks * BLOCK_BYTES as usize + extra);
            for height in 4..6 {
                let expected = root(&leaves(&bytes), 0, height);
                for step in [1_000, 16_384, 1 << 20] {
                    let mut state = TreeState::new(height);
                    bytes.chunks(step).for_each(|part| state.update(part));
                    assert_eq!(
                        state.finalize(),
                        expected,
                        "{blocks} {extra} {height} {step}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_longer_than_its_tree_is_not_known_by_its_end() {
        for height in 0..3 {
            let blocks = (2 << height) + 1;
            let mut trees = [7, 8].map(|first| {
                let mut bytes = bytes(blocks * BLOCK_BYTES as usize);
                bytes[0] = first;
                let mut tree = TreeState::new(height);
                tree.update(&bytes);
                tree.finalize()
            });
            trees.sort_unstable();
            assert_ne!(trees[0], trees[1], "{height}");
        }
    }

    #[test]
    fn pads_are_roots_over_zeros() {
        assert_eq!(pad(0), [0; 32]);
        assert_eq!(pad(3), root(&[[0; 32]; 8], 0, 3));
        assert_eq!(root(&[], 2, 3), pad(5));
        assert_eq!(TreeState::new(4).finalize(), pad(4));
    }

    #[test]
    fn heights_of_pieces_and_files() {
        assert_eq!((piece_height(16_384), piece_height(1 << 20)), (0, 6));
        assert_eq!(
            (file_height(1), file_height(16_384), file_height(16_385)),
            (0, 0, 1)
        );
        assert_eq!(file_height(5 * 16_384), 3);
        assert!(file_height(i64::MAX as u64) <= HEIGHT_MAX);
    }

    #[test]
    fn proofs_hold_for_what_they_prove_and_nothing_else() {
        let all = leaves(&bytes(13 * BLOCK_BYTES as usize));
        let mut layers = vec![all.clone()];
        for height in 0..4 {
            layers.push(above(&layers[height as usize], height));
        }
        let top = layers[4][0];
        let (first, count) = (4, 4);
        let nodes = &all[first..first + count];
        // The siblings of node 1 at height 2 and of node 0 at height 3.
        let uncles = [layers[2][0], layers[3][1]];
        let (first, height) = (first as u64, 0);
        assert!(is_proven(&top, nodes, first, height, &uncles));
        assert!(!is_proven(&top, nodes, 8, height, &uncles), "another place");
        assert!(
            !is_proven(&top, nodes, first, height, &uncles[..1]),
            "no root"
        );
        let mut wrong = nodes.to_vec();
        wrong[2][0] ^= 1;
        assert!(!is_proven(&top, &wrong, first, height, &uncles));
        assert!(is_proven(&top, &all, 0, 0, &[]));
    }
}
