//! Where bytes of unselected files go: the slots of one sparse `.gyre-parts` file. Layer 3, pure.
//!
//! Only a piece that touches several files can hold bytes of both a selected and an unselected one. These border
//! pieces are numbered in order, whatever the selection, and each number is a slot of one piece length: the map
//! needs no table on disk and stays right when the selection changes. Unused slots are holes and cost nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sha1::{Digest, Sha1};

use super::layout::FileLayout;
use crate::base::{InfoHash, PieceIndex};

/// The file's name in the torrent's root folder.
const NAME: &str = ".gyre-parts";
/// First bytes of the file.
const MAGIC: &[u8; 8] = b"GYREPART";
/// Raised when header or slots change.
const VERSION: u32 = 1;
/// Slots start on a page border.
pub const HEADER_BYTES: u64 = 4096;
/// The header's used bytes: magic, version, piece length, total length, info_hash, SHA-1 over these.
pub const HEADER_USED_BYTES: usize = 64;

/// The slots of one torrent.
#[derive(Clone, Debug)]
pub struct PartsMap {
    path: PathBuf,
    header: [u8; HEADER_USED_BYTES],
    piece_length_bytes: u32,
    /// Border piece to slot.
    slots: BTreeMap<PieceIndex, u32>,
}

/// A file in the parts file's place is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the parts file is damaged or belongs to another torrent")]
pub struct PartsHeaderError;

/// Bytes to copy out of the parts file into a file that was not selected before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// The file in the layout.
    pub file: usize,
    /// First byte in that file.
    pub file_offset: u64,
    /// First byte in the parts file.
    pub parts_offset: u64,
    /// Bytes to copy.
    pub length_bytes: u64,
}

impl PartsMap {
    /// The slots of this layout.
    pub fn new(layout: &FileLayout, info_hash: InfoHash) -> PartsMap {
        let is_border = |piece: &PieceIndex| stored_files(layout, *piece).nth(1).is_some();
        let pieces = layout.geometry().pieces().filter(is_border);
        let slots = pieces.zip(0u32..).collect();
        PartsMap {
            path: free_name(layout),
            header: header(layout, info_hash),
            piece_length_bytes: layout.geometry().piece_length_bytes(),
            slots,
        }
    }

    /// The parts file, relative to the output folder.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// True when no piece touches two files: the torrent never needs a parts file.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The bytes a parts file of this torrent begins with.
    pub fn header(&self) -> &[u8; HEADER_USED_BYTES] {
        &self.header
    }

    /// Checks the first bytes of a file found, at most [`HEADER_USED_BYTES`] of them. False when some never reached the disk:
    /// a power cut leaves zeros in their place, or a file that ends before them. Then no record counts on what the file holds.
    ///
    /// # Errors
    /// When they are not those of this torrent.
    pub fn check_header(&self, bytes: &[u8]) -> Result<bool, PartsHeaderError> {
        let mut pairs = bytes.iter().zip(&self.header);
        if !pairs.all(|(found, ours)| found == ours || *found == 0) {
            return Err(PartsHeaderError);
        }
        Ok(bytes == self.header)
    }

    /// Where byte `begin` of the piece lies in the parts file; `None` when the piece has no slot.
    pub fn offset(&self, piece: PieceIndex, begin: u32) -> Option<u64> {
        let slot = *self.slots.get(&piece)?;
        let start = u64::from(slot) * u64::from(self.piece_length_bytes);
        Some(HEADER_BYTES + start + u64::from(begin))
    }

    /// What the file takes over from the parts file when it becomes selected.
    pub fn plan_exports(&self, layout: &FileLayout, file: usize) -> Vec<Export> {
        let geometry = layout.geometry();
        let pieces = layout.pieces_of_file(file).map(PieceIndex::new);
        let borders = pieces.filter(|piece| self.slots.contains_key(piece));
        let spans = borders.flat_map(|piece| {
            let bytes = u64::from(geometry.piece_bytes(piece));
            layout
                .spans(geometry.piece_offset(piece), bytes)
                .map(move |span| (piece, span))
        });
        spans
            .filter(|(_, span)| span.file == file)
            .filter_map(|(piece, span)| {
                let begin = span.stream_offset - geometry.piece_offset(piece);
                let begin = u32::try_from(begin).ok()?;
                Some(Export {
                    file,
                    file_offset: span.file_offset,
                    parts_offset: self.offset(piece, begin)?,
                    length_bytes: span.length,
                })
            })
            .collect()
    }
}

/// The files with bytes on disk that the piece touches.
fn stored_files(layout: &FileLayout, piece: PieceIndex) -> impl Iterator<Item = usize> + '_ {
    let is_stored = |file: &usize| {
        let file = layout.files().get(*file);
        file.is_some_and(|file| file.is_regular() && file.length_bytes > 0)
    };
    layout.files_of_piece(piece).filter(is_stored)
}

/// `.gyre-parts`, with a number behind it when the torrent has a file or folder of that name.
fn free_name(layout: &FileLayout) -> PathBuf {
    let root = layout.root_name();
    let is_taken = |path: &PathBuf| {
        let files = layout.files().iter();
        files.into_iter().any(|file| file.path.starts_with(path))
    };
    let numbered = (1u32..).map(|number| root.join(format!("{NAME}-{number}")));
    std::iter::once(root.join(NAME))
        .chain(numbered)
        .find(|path| !is_taken(path))
        .unwrap_or_else(|| root.join(NAME))
}

fn header(layout: &FileLayout, info_hash: InfoHash) -> [u8; HEADER_USED_BYTES] {
    let geometry = layout.geometry();
    let mut header = [0; HEADER_USED_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&geometry.piece_length_bytes().to_le_bytes());
    header[16..24].copy_from_slice(&geometry.total_bytes().to_le_bytes());
    header[24..44].copy_from_slice(info_hash.as_bytes());
    let checksum = Sha1::digest(&header[..44]);
    header[44..].copy_from_slice(&checksum);
    header
}
