//! What other programs keep of their torrents beside the .torrent files: the resume files of qBittorrent, Transmission and
//! rtorrent, as values. Layer 1, pure.
//!
//! These files are bencode that anybody may have written: everything is read through the scanner, what has the wrong type
//! counts as left out, and nothing here is a path or a number that may be used as it is. `daemon::import` looks at the disk.

mod qbittorrent;
mod rtorrent;
#[cfg(test)]
mod tests;
mod transmission;

pub use qbittorrent::parse as parse_qbittorrent;
pub use rtorrent::parse as parse_rtorrent;
pub use transmission::parse as parse_transmission;

use super::bencode::{BencodeError, Dict, List, Value, scan};
use crate::base::{BLOCK_BYTES, Bitfield, Geometry, InfoHash, PieceIndex};

/// Labels taken of one torrent; people use a handful.
pub const LABELS_MAX: usize = 64;
/// The longest label, in characters.
pub const LABEL_CHARS_MAX: usize = 256;
/// The longest path, as the kernel takes it.
pub const PATH_BYTES_MAX: usize = 4_096;
/// Trackers and web seeds taken, as of a .torrent.
const URLS_MAX: usize = super::metainfo::TRACKERS_MAX;
const URL_BYTES_MAX: usize = super::metainfo::URL_BYTES_MAX;
/// Things named as left behind; each kind is named once.
const LEFT_MAX: usize = 16;

/// What a program kept of one torrent. Paths are raw bytes as they were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Foreign {
    /// Where the file itself says so.
    pub info_hash: Option<InfoHash>,
    pub name: Option<String>,
    pub place: Place,
    pub have: Have,
    /// How each file has to look for its pieces to count; empty where that was not kept.
    pub looks: Vec<Look>,
    /// Pieces that the program itself was not sure of.
    pub uncertain: Vec<u32>,
    /// Files that are not to be fetched.
    pub unwanted: Vec<usize>,
    /// Files that are to come before (1) or after (-1) the others.
    pub file_priorities: Vec<(usize, i8)>,
    /// Its share among torrents: -1, 0 or 1.
    pub priority: i8,
    /// Bytes a second.
    pub down_limit: Option<u64>,
    pub up_limit: Option<u64>,
    pub ignores_session: bool,
    /// Paths of files, from the folder of the torrent's root on; empty text is a file that has its own name, an empty list
    /// says so of all.
    pub renamed: Vec<Vec<u8>>,
    pub labels: Vec<String>,
    pub is_paused: bool,
    pub is_sequential: bool,
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    pub added_unix_s: Option<i64>,
    pub done_unix_s: Option<i64>,
    pub active_unix_s: Option<i64>,
    pub seed_ratio: Option<f64>,
    /// No ratio ends its seeding.
    pub seeds_at_any_ratio: bool,
    /// Minutes without an upload that end its seeding.
    pub idle_minutes: Option<u32>,
    /// By tier; `None` where the .torrent's own are used.
    pub trackers: Option<Vec<Vec<String>>>,
    /// Beside those of `trackers` or of the .torrent.
    pub more_trackers: Vec<String>,
    pub web_seeds: Option<Vec<String>>,
    /// What has no counterpart here, in words for the user.
    pub left: Vec<&'static str>,
}

/// Where the data lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Unknown,
    /// The folder that holds the torrent's root.
    Beside(Vec<u8>),
    /// The root itself, whatever it is called.
    Root(Vec<u8>),
}

/// What the program had, in its own form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Have {
    #[default]
    Nothing,
    All,
    /// A bit a piece, in the wire's order.
    Bits(Vec<u8>),
    /// A byte a piece; its lowest bit says that it is had.
    Bytes(Vec<u8>),
    /// A bit for each 16 KiB of the torrent; a piece is had when all of it is, and sure when `checked` has its bit.
    Blocks {
        blocks: Option<Vec<u8>>,
        checked: Option<Vec<u8>>,
    },
    /// So many pieces; said only of none and all.
    Count(i64),
}

/// How a file has to look for its pieces to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Last changed at this time, in seconds since 1970.
    ChangedAt(i64),
    /// Last changed then or earlier.
    NotAfter(i64),
    /// The program was not sure of it.
    Uncertain,
}

/// The pieces of one torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Had, and sure.
    pub have: Bitfield,
    /// Had, as far as the program knew, and to be hashed before anybody believes it.
    pub uncertain: Bitfield,
}

/// Why a resume file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    #[error("its resume file is damaged: {0}")]
    Bencode(#[from] BencodeError),
    #[error("its resume file is no dictionary")]
    NotADictionary,
    #[error("its list of pieces has {got_bytes} bytes where the torrent needs {expected_bytes}")]
    BadPieces {
        expected_bytes: usize,
        got_bytes: usize,
    },
    #[error("its resume file says that {got} of {expected} pieces are there, and not which")]
    BadCount { expected: u32, got: i64 },
}

impl Have {
    /// The pieces, for a torrent of this geometry.
    ///
    /// # Errors
    /// It is the list of another torrent.
    pub fn pieces(&self, geometry: &Geometry) -> Result<Pieces, ForeignError> {
        let count = geometry.piece_count();
        let none = Bitfield::new(count);
        let sure = |have| Pieces {
            have,
            uncertain: none.clone(),
        };
        match self {
            Have::Nothing | Have::Count(0) => Ok(sure(none.clone())),
            Have::All => Ok(sure(Bitfield::full(count))),
            Have::Count(got) if *got == i64::from(count) => Ok(sure(Bitfield::full(count))),
            Have::Count(got) => Err(ForeignError::BadCount {
                expected: count,
                got: *got,
            }),
            Have::Bits(bits) => {
                let expected_bytes = count.div_ceil(8) as usize;
                check_length(bits, expected_bytes)?;
                Ok(sure(picked(geometry, |piece| {
                    has_bit(bits, piece.as_usize())
                })))
            }
            Have::Bytes(bytes) => {
                check_length(bytes, count as usize)?;
                let is_had = |piece: PieceIndex| {
                    let byte = bytes.get(piece.as_usize());
                    byte.is_some_and(|byte| byte & 1 != 0)
                };
                Ok(sure(picked(geometry, is_had)))
            }
            Have::Blocks { blocks, checked } => {
                of_blocks(geometry, blocks.as_deref(), checked.as_deref())
            }
        }
    }
}

/// Transmission's two bit fields; `None` is all. Trailing zeros may have been left out.
fn of_blocks(
    geometry: &Geometry,
    blocks: Option<&[u8]>,
    checked: Option<&[u8]>,
) -> Result<Pieces, ForeignError> {
    let block_count = geometry.total_bytes().div_ceil(u64::from(BLOCK_BYTES));
    let longest = usize::try_from(block_count.div_ceil(8)).unwrap_or(usize::MAX);
    let at_most = |bits: Option<&[u8]>, expected_bytes: usize| match bits {
        Some(bits) if bits.len() > expected_bytes => Err(ForeignError::BadPieces {
            expected_bytes,
            got_bytes: bits.len(),
        }),
        _ => Ok(()),
    };
    at_most(blocks, longest)?;
    at_most(checked, geometry.piece_count().div_ceil(8) as usize)?;
    let is_whole = |piece: PieceIndex| {
        let Some(blocks) = blocks else { return true };
        let begin = geometry.piece_offset(piece);
        let end = begin + u64::from(geometry.piece_bytes(piece));
        let first = begin / u64::from(BLOCK_BYTES);
        let last = end.div_ceil(u64::from(BLOCK_BYTES));
        (first..last).all(|block| usize::try_from(block).is_ok_and(|at| has_bit(blocks, at)))
    };
    let is_checked = |piece: PieceIndex| checked.is_none_or(|bits| has_bit(bits, piece.as_usize()));
    Ok(Pieces {
        have: picked(geometry, |piece| is_whole(piece) && is_checked(piece)),
        uncertain: picked(geometry, |piece| is_whole(piece) && !is_checked(piece)),
    })
}

fn picked(geometry: &Geometry, is_it: impl Fn(PieceIndex) -> bool) -> Bitfield {
    let mut bits = Bitfield::new(geometry.piece_count());
    for piece in geometry.pieces().filter(|piece| is_it(*piece)) {
        bits.set(piece);
    }
    bits
}

fn has_bit(bits: &[u8], at: usize) -> bool {
    let byte = bits.get(at / 8);
    byte.is_some_and(|byte| byte & (0x80 >> (at % 8)) != 0)
}

fn check_length(got: &[u8], expected_bytes: usize) -> Result<(), ForeignError> {
    match got.len() == expected_bytes {
        true => Ok(()),
        false => Err(ForeignError::BadPieces {
            expected_bytes,
            got_bytes: got.len(),
        }),
    }
}

impl Foreign {
    /// Names something that stays behind, once.
    fn leave(&mut self, what: &'static str) {
        if self.left.len() < LEFT_MAX && !self.left.contains(&what) {
            self.left.push(what);
        }
    }

    fn leave_if(&mut self, is_there: bool, what: &'static str) {
        if is_there {
            self.leave(what);
        }
    }

    /// Takes a label that is none yet and has a usable length.
    fn label(&mut self, label: &str) {
        let label = label.trim();
        let is_usable = !label.is_empty() && label.chars().count() <= LABEL_CHARS_MAX;
        if !is_usable || self.labels.len() >= LABELS_MAX {
            return self.leave_if(
                !label.is_empty(),
                "a label that is too long, or one too many",
            );
        }
        if !self.labels.iter().any(|known| known == label) {
            self.labels.push(label.to_owned());
        }
    }
}

/// The dictionary that a file holds.
fn document<'a>(bytes: &'a [u8]) -> Result<Dict<'a>, ForeignError> {
    scan(bytes)?.dict().ok_or(ForeignError::NotADictionary)
}

/// A number that counts something; what is negative counts nothing.
fn count(dict: Dict<'_>, key: &[u8]) -> u64 {
    let value = dict.int(key).unwrap_or(0);
    u64::try_from(value).unwrap_or(0)
}

/// A time in seconds since 1970, if it was ever set.
fn time(dict: Dict<'_>, key: &[u8]) -> Option<i64> {
    dict.int(key).filter(|time| *time > 0)
}

fn is_set(dict: Dict<'_>, key: &[u8]) -> bool {
    dict.int(key).is_some_and(|value| value != 0)
}

fn path(dict: Dict<'_>, key: &[u8]) -> Option<Vec<u8>> {
    let path = dict.bytes(key)?;
    (!path.is_empty() && path.len() <= PATH_BYTES_MAX).then(|| path.to_vec())
}

fn paths(list: List<'_>) -> Vec<Vec<u8>> {
    let path = |value: Value<'_>| {
        let bytes = value.as_bytes().unwrap_or_default();
        bytes.get(..PATH_BYTES_MAX).unwrap_or(bytes).to_vec()
    };
    list.iter().map(path).collect()
}

/// Texts that look like URLs.
fn urls(list: List<'_>) -> Vec<String> {
    let texts = list.iter().filter_map(Value::as_str);
    let usable = texts.filter(|url| is_url(url));
    usable.take(URLS_MAX).map(str::to_owned).collect()
}

fn is_url(text: &str) -> bool {
    let is_plain = !text.chars().any(|c| c.is_control() || c == ' ');
    text.len() <= URL_BYTES_MAX && is_plain && text.contains("://")
}
