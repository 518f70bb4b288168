//! Bytes of pad files (BEP 47): zeros, whatever a torrent says (HOSTILE.md T12). Layer 5.
//!
//! Pads are on no disk and are sent as zeros. A torrent whose hashes were made over other bytes there has pieces that
//! can be fetched, but never kept or served: what comes for pads is therefore looked at.

use std::collections::BTreeSet;
use std::io;

use super::{DiskError, DiskOp, DiskTorrent};
use crate::base::{BlockRef, PieceIndex};
use crate::storage::layout::FileLayout;

/// Blocks under way that came with something else than zeros for a pad.
#[derive(Default)]
pub(super) struct OddPads {
    has_pads: bool,
    /// By piece and where they begin in it.
    blocks: BTreeSet<(PieceIndex, u32)>,
}

impl OddPads {
    pub fn new(layout: &FileLayout) -> OddPads {
        let mut files = layout.files().iter();
        OddPads {
            has_pads: files.any(|file| file.is_pad && file.length_bytes > 0),
            blocks: BTreeSet::new(),
        }
    }

    /// Nothing of the piece is kept.
    pub fn forget(&mut self, piece: PieceIndex) {
        self.blocks.retain(|(of, _)| *of != piece);
    }
}

impl DiskTorrent {
    /// Looks at payload on its way to its place: `bytes` are those of `block` from `offset_in_block` on.
    pub(super) fn look_at_pads(&self, block: BlockRef, offset_in_block: u32, bytes: &[u8]) {
        let mut odd = self.odd_pads.borrow_mut();
        if !odd.has_pads {
            return;
        }
        let key = (block.piece(), block.begin());
        if offset_in_block == 0 {
            odd.blocks.remove(&key);
        }
        let begin = u64::from(block.begin()) + u64::from(offset_in_block);
        let start = self.geometry().piece_offset(block.piece()) + begin;
        let layout = &self.config.layout;
        let is_odd = layout.spans(start, bytes.len() as u64).any(|span| {
            let is_pad = layout
                .files()
                .get(span.file)
                .is_some_and(|file| file.is_pad);
            let from = usize::try_from(span.stream_offset - start).ok();
            let rest = from.and_then(|from| bytes.get(from..)).unwrap_or_default();
            let length = usize::try_from(span.length).unwrap_or(usize::MAX);
            is_pad && rest.iter().take(length).any(|byte| *byte != 0)
        });
        if is_odd {
            odd.blocks.insert(key);
        }
    }

    /// A piece whose hash is right.
    ///
    /// # Errors
    /// When it is so only with bytes that no pad file has.
    pub(super) fn check_pads(&self, piece: PieceIndex) -> Result<(), DiskError> {
        let odd = self.odd_pads.borrow();
        let mut blocks = odd.blocks.range((piece, 0)..=(piece, u32::MAX));
        if blocks.next().is_none() {
            return Ok(());
        }
        let spans = self.config.layout.piece_spans(piece);
        let mut files = spans.map(|span| span.file);
        let layout_files = self.config.layout.files();
        let pad = files.find(|file| layout_files.get(*file).is_some_and(|file| file.is_pad));
        Err(DiskError::other(
            DiskOp::Keep,
            self.full(&pad.map(|pad| self.path_of(pad)).unwrap_or_default()),
            io::ErrorKind::Unsupported,
            format!(
                "piece {} of the torrent wants other bytes than zeros in this pad file",
                piece.get()
            ),
        ))
    }
}
