//! A piece being hashed, in whichever way its torrent asks for (layer 4).

use super::sha1_lanes::{self, Sha1State};
use crate::wire::merkle::TreeState;
use crate::wire::metainfo::PieceHash;

/// The hash of a piece so far.
#[derive(Clone)]
pub enum PieceState {
    /// SHA-1 of all bytes.
    Sha1(Sha1State),
    /// SHA-256 of each block, and of pairs above.
    Tree(TreeState),
}

impl PieceState {
    /// The state before the first byte: of a tree of that height, or of SHA-1.
    pub fn new(tree_height: Option<u32>) -> PieceState {
        match tree_height {
            Some(height) => PieceState::Tree(TreeState::new(height)),
            None => PieceState::Sha1(Sha1State::new()),
        }
    }

    /// Adds bytes on the calling thread.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            PieceState::Sha1(state) => state.update(bytes),
            PieceState::Tree(state) => state.update(bytes),
        }
    }

    /// The hash of all bytes added.
    pub fn finalize(self) -> PieceHash {
        match self {
            PieceState::Sha1(state) => PieceHash::Sha1(state.finalize()),
            PieceState::Tree(state) => PieceHash::Root(state.finalize()),
        }
    }
}

/// Adds to each state its bytes, those of SHA-1 side by side.
pub fn update_all(streams: &mut [(&mut PieceState, &[u8])]) {
    let mut side_by_side = Vec::with_capacity(streams.len());
    for (state, bytes) in streams {
        match state {
            PieceState::Sha1(state) => side_by_side.push((state, *bytes)),
            PieceState::Tree(state) => state.update(bytes),
        }
    }
    sha1_lanes::update_all(&mut side_by_side);
}
