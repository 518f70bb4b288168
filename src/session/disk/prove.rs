//! Pieces that are taken to be good and that nobody hashed: each is hashed before any of it is sent for the first time.
//! Layer 5.
//!
//! They come with a record (files of another torrent or another program), or from a file that got or lost a name beside
//! ours: its time of change says no more then whether its bytes are the same.

use std::cell::RefCell;
use std::collections::BTreeSet;

use tokio::sync::Notify;

use super::{DiskTorrent, ReadError};
use crate::base::{Bitfield, PieceIndex};
use crate::wire::metainfo::PieceHash;

/// What is not proven yet.
#[derive(Default)]
pub(super) struct Proofs {
    /// `None` for nothing, as with nearly every torrent.
    open: RefCell<Option<Bitfield>>,
    under_way: RefCell<BTreeSet<PieceIndex>>,
    /// Hashed and bad; told once.
    failed: RefCell<BTreeSet<PieceIndex>>,
    /// Rung whenever a proof ends.
    over: Notify,
}

/// A proof under way, until dropped.
struct Turn<'a>(&'a Proofs, PieceIndex);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.under_way.borrow_mut().remove(&self.1);
        self.0.over.notify_waiters();
    }
}

impl Proofs {
    fn has(&self, piece: PieceIndex) -> bool {
        let open = self.open.borrow();
        open.as_ref().is_some_and(|open| open.has(piece))
    }
}

impl DiskTorrent {
    /// These pieces are to be hashed before they are sent.
    pub fn doubt(&self, pieces: impl IntoIterator<Item = PieceIndex>) {
        let count = self.geometry().piece_count();
        let mut open = self.proofs.open.borrow_mut();
        for piece in pieces {
            open.get_or_insert_with(|| Bitfield::new(count)).set(piece);
        }
    }

    /// The piece was hashed and is good.
    pub fn proven(&self, piece: PieceIndex) {
        let mut open = self.proofs.open.borrow_mut();
        let Some(pieces) = open.as_mut() else {
            return;
        };
        pieces.clear(piece);
        if pieces.count() == 0 {
            *open = None;
        }
        self.proofs.failed.borrow_mut().remove(&piece);
    }

    /// Those among `have` that nobody hashed; `None` for none.
    pub fn unproven(&self, have: &Bitfield) -> Option<Bitfield> {
        let open = self.proofs.open.borrow();
        let mut pieces = open.as_ref()?.clone();
        let gone: Vec<PieceIndex> = pieces.iter().filter(|piece| !have.has(*piece)).collect();
        for piece in gone {
            pieces.clear(piece);
        }
        (pieces.count() > 0).then_some(pieces)
    }

    /// How many are not proven.
    pub fn unproven_count(&self) -> u32 {
        let open = self.proofs.open.borrow();
        open.as_ref().map_or(0, Bitfield::count)
    }

    /// Hashes the piece, if nobody has. Those who ask for it meanwhile wait.
    ///
    /// # Errors
    /// It is not good ([`ReadError::Disproved`], once), or cannot be read.
    pub(super) async fn prove(&self, piece: PieceIndex) -> Result<(), ReadError> {
        loop {
            let over = self.proofs.over.notified();
            if !self.proofs.has(piece) {
                return Ok(());
            }
            if self.proofs.failed.borrow().contains(&piece) {
                return Err(ReadError::InDoubt);
            }
            if self.proofs.under_way.borrow_mut().insert(piece) {
                break;
            }
            over.await;
        }
        let _turn = Turn(&self.proofs, piece);
        if self.hash_on_disk(piece).await? == self.config.piece_hashes.get(piece) {
            self.proven(piece);
            return Ok(());
        }
        self.proofs.failed.borrow_mut().insert(piece);
        Err(ReadError::Disproved(piece))
    }

    /// The hash of what the files hold of the piece.
    async fn hash_on_disk(&self, piece: PieceIndex) -> Result<PieceHash, ReadError> {
        let mut state = self.fresh_state(piece);
        for segment in 0..self.geometry().segment_count(piece) {
            let bytes = self.geometry().segment_bytes(piece, segment) as usize;
            let start = self.segment_offset(piece, segment);
            let _memory = self.lane.read_memory(bytes).await;
            let buffer = self.hub.pool.alloc_or_heap(bytes);
            let (read, buffer) = self.read_range(piece, start, 0..bytes, buffer).await;
            read.map_err(|error| self.read_failed(piece, start, bytes as u64, error))?;
            let done = self.hub.hasher.hash(state, vec![(buffer, 0..bytes)]).await;
            state = done.state;
        }
        Ok(state.finalize())
    }
}
