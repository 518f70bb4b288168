//! Where the pieces of a torrent lie in the hash trees of their files, and the leaves below them (BEP 52). Layer 1.
//!
//! Leaves are in no .torrent: whoever has a piece can compute its own. They tell which block of a piece is bad.

use std::sync::Arc;

use super::{Info, PieceLayers};
use crate::base::{BLOCK_BYTES, Geometry, PieceIndex};
use crate::wire::merkle::{self, HASHES_MAX, Node};
use crate::wire::message::HashRange;

/// The longest piece whose leaves are asked for or given away: to prove any of them all of it has to be hashed.
pub const LEAVES_PIECE_BYTES_MAX: u32 = 16 << 20;

/// Leaves in one answer of ours: libtorrent asks for those of a whole piece at once.
const ANSWER_LEAVES_MAX: u32 = LEAVES_PIECE_BYTES_MAX / BLOCK_BYTES;

/// The trees of all files of a torrent, down to the pieces.
#[derive(Clone, Debug)]
pub struct PieceTrees(Arc<Trees>);

#[derive(Debug)]
struct Trees {
    piece_length_bytes: u32,
    /// In the order of the torrent, those that have a tree.
    files: Vec<FileTree>,
    /// Numbers of `files` in the order of their roots.
    by_root: Vec<u32>,
    layers: PieceLayers,
}

#[derive(Clone, Copy, Debug)]
struct FileTree {
    root: Node,
    first_piece: u32,
    length_bytes: u64,
}

/// The tree over one piece, as a part of that over its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceTree {
    pub piece: PieceIndex,
    /// Of the file's tree.
    pub file_root: Node,
    /// Of the piece's own.
    pub root: Node,
    /// Layers between `root` and the leaves.
    pub height: u32,
    /// Number of the piece's first leaf in the file's tree.
    pub first_leaf: u32,
    /// What the file has of the piece: without the pad behind it in a hybrid.
    pub bytes: u32,
}

impl PieceTrees {
    /// The trees of a torrent; `None` when no file has one.
    pub fn of(info: &Info, layers: &PieceLayers) -> Option<PieceTrees> {
        let files = info.files.iter();
        let files = files.map(|file| (file.pieces_root, file.length_bytes));
        PieceTrees::new(files, &info.geometry, layers)
    }

    /// The trees over files by root and length in bytes, in the order of the torrent. `None` when there are none.
    pub fn new(
        files: impl IntoIterator<Item = (Option<Node>, u64)>,
        geometry: &Geometry,
        layers: &PieceLayers,
    ) -> Option<PieceTrees> {
        let piece_length_bytes = geometry.piece_length_bytes();
        let is_v2 = piece_length_bytes.is_power_of_two() && piece_length_bytes >= BLOCK_BYTES;
        let (mut trees, mut offset) = (Vec::new(), 0_u64);
        for (root, length_bytes) in files {
            let start = geometry.file_start(offset);
            offset = start.checked_add(length_bytes)?;
            let piece = start / u64::from(piece_length_bytes);
            let is_aligned = start.is_multiple_of(piece_length_bytes.into());
            if let (Some(root), true) = (root, is_aligned && length_bytes > 0) {
                trees.push(FileTree {
                    root,
                    first_piece: u32::try_from(piece).ok()?,
                    length_bytes,
                });
            }
        }
        let mut by_root: Vec<u32> = (0..trees.len() as u32).collect();
        by_root.sort_by_key(|number| trees.get(*number as usize).map(|file| file.root));
        let is_any = is_v2 && !trees.is_empty();
        is_any.then(|| {
            PieceTrees(Arc::new(Trees {
                piece_length_bytes,
                files: trees,
                by_root,
                layers: layers.clone(),
            }))
        })
    }

    /// The hashes of the pieces of long files.
    pub fn layers(&self) -> &PieceLayers {
        &self.0.layers
    }

    /// The tree over a piece; `None` where it is not known.
    pub fn piece(&self, piece: PieceIndex) -> Option<PieceTree> {
        let files = &self.0.files;
        let behind = files.partition_point(|file| file.first_piece <= piece.get());
        let file = files.get(behind.checked_sub(1)?)?;
        self.piece_of(file, piece.get() - file.first_piece)
    }

    fn piece_of(&self, file: &FileTree, number: u32) -> Option<PieceTree> {
        let piece_length_bytes = self.0.piece_length_bytes;
        let start = u64::from(number) * u64::from(piece_length_bytes);
        let left = file
            .length_bytes
            .checked_sub(start)
            .filter(|left| *left > 0)?;
        let is_whole_file = file.length_bytes <= u64::from(piece_length_bytes);
        let (root, height) = match is_whole_file {
            true => (file.root, merkle::file_height(file.length_bytes)),
            false => {
                let layer = self.0.layers.get(&file.root)?;
                let height = merkle::piece_height(piece_length_bytes);
                (*layer.get(number as usize)?, height)
            }
        };
        Some(PieceTree {
            piece: PieceIndex::new(file.first_piece + number),
            file_root: file.root,
            root,
            height,
            first_leaf: number.checked_mul(piece_length_bytes / BLOCK_BYTES)?,
            // Not above the piece length.
            bytes: left.min(piece_length_bytes.into()) as u32,
        })
    }

    /// The pieces that hold what a request for leaves is about: the same one of each file with that root. None when the
    /// request is to be rejected: leaves of several pieces, or what is not in the tree.
    pub fn pieces_asked<'t>(&'t self, range: &HashRange) -> impl Iterator<Item = PieceTree> + 't {
        let range = *range;
        let trees = &self.0;
        let root_of = |number: &u32| trees.files.get(*number as usize).map(|file| file.root);
        let first = trees
            .by_root
            .partition_point(|number| root_of(number) < Some(range.root));
        let same = trees.by_root.iter().skip(first);
        let same = same.take_while(move |number| root_of(number) == Some(range.root));
        let files = same.filter_map(|number| trees.files.get(*number as usize));
        files.filter_map(move |file| self.piece_asked(file, &range))
    }

    fn piece_asked(&self, file: &FileTree, range: &HashRange) -> Option<PieceTree> {
        let number = range.index / (self.0.piece_length_bytes / BLOCK_BYTES);
        let tree = self.piece_of(file, number)?;
        let leaves = 1_u32.checked_shl(tree.height)?;
        let is_in_piece = range.base_layer == 0
            && (2..=leaves.min(ANSWER_LEAVES_MAX)).contains(&range.length)
            && range.length.is_power_of_two()
            && range.index.is_multiple_of(range.length)
            && range.index - tree.first_leaf < leaves;
        let is_provable = range.proof_layers < merkle::file_height(file.length_bytes);
        let is_short = tree.bytes <= LEAVES_PIECE_BYTES_MAX;
        (is_in_piece && is_provable && is_short).then_some(tree)
    }

    /// The answer to a request that [`PieceTrees::pieces_asked`] has this piece for: the hashes, then those that prove
    /// them. `leaves` are those of the piece's blocks.
    pub fn answer(
        &self,
        range: &HashRange,
        tree: &PieceTree,
        leaves: &[Node],
    ) -> Option<Vec<Node>> {
        let first = range.index.checked_sub(tree.first_leaf)? as usize;
        let asked = leaves.iter().skip(first).copied();
        let pads = std::iter::repeat(merkle::pad(0));
        let mut hashes: Vec<Node> = asked.chain(pads).take(range.length as usize).collect();
        let within = range.length.checked_ilog2()?;
        let mut number = range.index >> within;
        for height in within..within + range.uncle_count() {
            let uncle = number ^ 1;
            hashes.push(match height.checked_sub(tree.height) {
                None => {
                    let first = u64::from(uncle) << height;
                    let first = usize::try_from(first).ok()? - tree.first_leaf as usize;
                    let below = leaves.iter().skip(first).take(1 << height);
                    merkle::root(&below.copied().collect::<Vec<_>>(), 0, height)
                }
                Some(layers) => self.0.layers.node(&tree.file_root, layers, uncle)?,
            });
            number /= 2;
        }
        Some(hashes)
    }
}

impl PieceTree {
    /// Number of its blocks, each of which has a leaf.
    pub const fn block_count(&self) -> u32 {
        self.bytes.div_ceil(BLOCK_BYTES)
    }

    /// The requests that fetch all leaves, each proven up to the piece's root. None for a piece of one block: its leaf is
    /// its root.
    pub fn ranges(&self) -> impl Iterator<Item = HashRange> + use<> {
        let tree = *self;
        let length = (1_u32 << tree.height.min(31)).min(HASHES_MAX);
        let blocks = if tree.height == 0 {
            0
        } else {
            tree.block_count()
        };
        (0..blocks)
            .step_by(length as usize)
            .map(move |first| HashRange {
                root: tree.file_root,
                base_layer: 0,
                index: tree.first_leaf + first,
                length,
                proof_layers: tree.height - 1,
            })
    }

    /// What an answer to one of [`PieceTree::ranges`] says, without the leaves behind the file's end; `None` when it does
    /// not lead to the piece's root.
    pub fn proven<'h>(&self, range: &HashRange, hashes: &'h [Node]) -> Option<&'h [Node]> {
        let (leaves, uncles) = hashes.split_at_checked(range.length as usize)?;
        let first = range.index.checked_sub(self.first_leaf)?;
        let is_it = uncles.len() == range.uncle_count() as usize
            && merkle::is_proven(&self.root, leaves, first.into(), 0, uncles);
        let real = self.block_count().saturating_sub(first) as usize;
        is_it.then(|| leaves.get(..real).unwrap_or(leaves))
    }

    /// Whether these are the leaves of its blocks.
    pub fn is_over(&self, leaves: &[Node]) -> bool {
        leaves.len() == self.block_count() as usize
            && merkle::root(leaves, 0, self.height) == self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::metainfo::LayerNeed;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn leaves(first: u64, blocks: u64) -> Vec<Node> {
        let leaf = |block: u64| merkle::leaf(&block.to_be_bytes());
        (first..first + blocks).map(leaf).collect()
    }

    /// Files of so many blocks, each of different contents, and of one byte less.
    fn trees(blocks: &[u64], piece_blocks: u64) -> PieceTrees {
        let piece_length_bytes = piece_blocks * BLOCK;
        let (mut files, mut layers) = (Vec::new(), Vec::new());
        for (number, blocks) in (0u64..).zip(blocks) {
            let all = leaves(number * 1_000, *blocks);
            let length_bytes = blocks * BLOCK - 1;
            let root = merkle::root(&all, 0, merkle::file_height(length_bytes));
            files.push((Some(root), length_bytes));
            let need = LayerNeed {
                root,
                length_bytes,
                piece_length_bytes: piece_length_bytes as u32,
            };
            let height = merkle::piece_height(need.piece_length_bytes);
            let pieces = all.chunks(piece_blocks as usize);
            let layer = pieces.map(|piece| merkle::root(piece, 0, height));
            if *blocks > piece_blocks {
                layers.push((need, layer.collect()));
            }
        }
        let lengths = files.iter().map(|(_, length)| *length);
        let geometry = Geometry::of_aligned_files(lengths, piece_length_bytes).unwrap();
        PieceTrees::new(files, &geometry, &PieceLayers::new(layers)).unwrap()
    }

    #[test]
    fn pieces_are_found_by_number_and_by_what_is_asked() {
        let trees = trees(&[3, 9, 1], 4);
        let piece = |number| trees.piece(PieceIndex::new(number));
        let of = |number| piece(number).map(|tree| (tree.height, tree.first_leaf, tree.bytes));
        assert_eq!(of(0), Some((2, 0, 3 * BLOCK_BYTES - 1)), "a file of one");
        assert_eq!(of(1), Some((2, 0, 4 * BLOCK_BYTES)));
        assert_eq!(of(3), Some((2, 8, BLOCK_BYTES - 1)));
        assert_eq!(of(4), Some((0, 0, BLOCK_BYTES - 1)));
        assert_eq!(of(5), None);
        for number in 0..5 {
            let tree = piece(number).unwrap();
            for range in tree.ranges() {
                assert_eq!(trees.pieces_asked(&range).next(), Some(tree));
            }
        }
    }

    #[test]
    fn answers_prove_the_leaves_of_every_piece_and_lies_do_not() {
        for (blocks, piece_blocks) in [(3, 4), (9, 4), (64, 2), (700, 1_024), (2_100, 1_024)] {
            let trees = trees(&[5, blocks], piece_blocks);
            let all = leaves(1_000, blocks);
            for number in 0..blocks.div_ceil(piece_blocks) {
                let first = 5_u64.div_ceil(piece_blocks);
                let tree = trees.piece(PieceIndex::new((first + number) as u32));
                let tree = tree.unwrap();
                let below = all.chunks(piece_blocks as usize).nth(number as usize);
                let below = below.unwrap();
                assert!(tree.is_over(below) && !tree.is_over(&below[1..]));
                let mut got = Vec::new();
                for range in tree.ranges() {
                    let mut hashes = trees.answer(&range, &tree, below).unwrap();
                    got.extend_from_slice(tree.proven(&range, &hashes).unwrap());
                    assert_eq!(tree.proven(&range, &hashes[1..]), None);
                    for at in [0, hashes.len() - 1] {
                        hashes[at][0] ^= 1;
                        assert_eq!(tree.proven(&range, &hashes), None);
                        hashes[at][0] ^= 1;
                    }
                }
                assert_eq!(got, if tree.height == 0 { &[] } else { below });
            }
        }
    }

    /// As libtorrent asks: proofs that go on above the piece.
    #[test]
    fn proofs_go_as_high_as_is_asked() {
        let trees = trees(&[70], 4);
        let all = leaves(0, 70);
        let file_height = merkle::file_height(70 * BLOCK);
        for (index, length) in [(0, 2), (2, 2), (64, 4), (68, 4), (68, 2)] {
            for proof_layers in 0..file_height {
                let tree = trees.piece(PieceIndex::new(index / 4)).unwrap();
                let range = HashRange {
                    root: tree.file_root,
                    base_layer: 0,
                    index,
                    length,
                    proof_layers,
                };
                assert_eq!(trees.pieces_asked(&range).next(), Some(tree));
                let below = &all[tree.first_leaf as usize..];
                let below = &below[..below.len().min(4)];
                let hashes = trees.answer(&range, &tree, below).unwrap();
                let (nodes, uncles) = hashes.split_at(length as usize);
                assert_eq!(uncles.len(), range.uncle_count() as usize);
                let is_proven = merkle::is_proven(&range.root, nodes, index.into(), 0, uncles);
                assert_eq!(is_proven, proof_layers + 1 == file_height, "{range:?}");
            }
        }
    }

    #[test]
    fn what_is_in_no_piece_is_nobodys() {
        let trees = trees(&[9, 9], 4);
        let tree = trees.piece(PieceIndex::new(0)).unwrap();
        let good = tree.ranges().next().unwrap();
        let asked = |change: &dyn Fn(&mut HashRange)| {
            let mut range = good;
            change(&mut range);
            trees.pieces_asked(&range).count()
        };
        assert_eq!(asked(&|_| ()), 1);
        let absurd: [&dyn Fn(&mut HashRange); 12] = [
            &|range| range.root = [7; 32],
            &|range| range.base_layer = 1,
            &|range| range.base_layer = u32::MAX,
            &|range| range.index = 1,
            &|range| range.index = 12,
            &|range| range.index = u32::MAX - 3,
            &|range| range.length = 0,
            &|range| range.length = 1,
            &|range| range.length = 3,
            &|range| range.length = 8,
            &|range| range.length = 1 << 31,
            &|range| range.proof_layers = 4,
        ];
        for (number, change) in absurd.into_iter().enumerate() {
            assert_eq!(asked(change), 0, "{number}");
        }
    }

    #[test]
    fn of_two_files_with_the_same_contents_either_will_do() {
        let single = trees(&[3], 4);
        let root = single.piece(PieceIndex::new(0)).unwrap().file_root;
        let geometry = Geometry::of_aligned_files([3 * BLOCK; 2], 4 * BLOCK).unwrap();
        let files = [(Some(root), 3 * BLOCK); 2];
        let trees = PieceTrees::new(files, &geometry, &PieceLayers::default()).unwrap();
        let range = trees
            .piece(PieceIndex::new(1))
            .unwrap()
            .ranges()
            .next()
            .unwrap();
        let pieces: Vec<u32> = trees
            .pieces_asked(&range)
            .map(|tree| tree.piece.get())
            .collect();
        assert_eq!(pieces, [0, 1]);
    }
}
