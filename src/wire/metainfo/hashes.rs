//! What the pieces of a torrent must hash to: SHA-1 of each (BEP 3), or the roots of their trees (BEP 52). Layer 1.

use std::sync::Arc;

use super::{FileEntry, MetainfoError, PieceLayers};
use crate::base::{Geometry, PieceIndex};
use crate::wire::merkle::{self, Node};

/// The hash of one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceHash {
    /// SHA-1 of its bytes.
    Sha1([u8; 20]),
    /// The root of the tree over its blocks.
    Root(Node),
}

/// The hash of every piece.
#[derive(Clone, PartialEq, Eq)]
pub struct PieceHashes(Hashes);

#[derive(Clone, PartialEq, Eq)]
enum Hashes {
    Sha1(Arc<[u8]>),
    Trees(Arc<[Tree]>),
}

/// The tree over a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tree {
    root: Node,
    /// Lower than that of other pieces where a file has no more than one.
    height: u8,
}

impl PieceHash {
    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            PieceHash::Sha1(hash) => hash,
            PieceHash::Root(root) => root,
        }
    }
}

impl PieceHashes {
    /// Wraps the value of `pieces`: 20 bytes a piece.
    ///
    /// # Errors
    /// The length is not a multiple of 20.
    pub fn new(bytes: &[u8]) -> Result<Self, MetainfoError> {
        if !bytes.len().is_multiple_of(20) {
            return Err(MetainfoError::PiecesNotHashes {
                got_bytes: bytes.len(),
            });
        }
        Ok(PieceHashes(Hashes::Sha1(Arc::from(bytes))))
    }

    /// The roots over the pieces of files that each start a piece.
    ///
    /// # Errors
    /// A file has no root, or more than one piece and no layer.
    pub fn of_trees(
        files: &[FileEntry],
        geometry: &Geometry,
        layers: &PieceLayers,
    ) -> Result<Self, MetainfoError> {
        let piece_length_bytes = geometry.piece_length_bytes();
        let mut trees = Vec::new();
        for (file_index, file) in files.iter().enumerate() {
            if file.length_bytes == 0 {
                continue;
            }
            let missing = MetainfoError::LayerMissing { file_index };
            let root = file.pieces_root.ok_or(missing.clone())?;
            if file.length_bytes <= u64::from(piece_length_bytes) {
                let height = merkle::file_height(file.length_bytes) as u8;
                trees.push(Tree { root, height });
                continue;
            }
            let height = merkle::piece_height(piece_length_bytes) as u8;
            let layer = layers.get(&root).ok_or(missing)?;
            if layer.len() as u64 != file.length_bytes.div_ceil(piece_length_bytes.into()) {
                return Err(MetainfoError::LayerWrong { file_index });
            }
            trees.extend(layer.iter().map(|root| Tree {
                root: *root,
                height,
            }));
        }
        let got = trees.len();
        if u32::try_from(got) != Ok(geometry.piece_count()) {
            return Err(MetainfoError::PieceCountMismatch {
                total_bytes: geometry.total_bytes(),
                piece_length_bytes,
                expected: geometry.piece_count(),
                got,
            });
        }
        Ok(PieceHashes(Hashes::Trees(trees.into())))
    }

    /// What this piece must hash to.
    ///
    /// # Panics
    /// If the piece is none of this torrent's: [`Geometry`] hands out only such that are.
    pub fn get(&self, piece: PieceIndex) -> PieceHash {
        match &self.0 {
            Hashes::Sha1(hashes) => {
                let start = piece.as_usize() * 20;
                let mut hash = [0; 20];
                hash.copy_from_slice(&hashes[start..start + 20]);
                PieceHash::Sha1(hash)
            }
            Hashes::Trees(trees) => PieceHash::Root(trees[piece.as_usize()].root),
        }
    }

    /// The height of the tree over this piece; `None` where pieces have a SHA-1.
    ///
    /// # Panics
    /// As [`PieceHashes::get`].
    pub fn tree_height(&self, piece: PieceIndex) -> Option<u32> {
        match &self.0 {
            Hashes::Sha1(_) => None,
            Hashes::Trees(trees) => Some(trees[piece.as_usize()].height.into()),
        }
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        match &self.0 {
            Hashes::Sha1(hashes) => hashes.len() / 20,
            Hashes::Trees(trees) => trees.len(),
        }
    }

    /// All in the order of the pieces.
    pub fn iter(&self) -> impl Iterator<Item = PieceHash> + '_ {
        (0..self.count() as u32).map(|piece| self.get(PieceIndex::new(piece)))
    }
}

impl std::fmt::Debug for PieceHashes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PieceHashes({})", self.count())
    }
}
