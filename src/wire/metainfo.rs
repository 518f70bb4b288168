//! What a `.torrent` says: BEP 3, 12, 19, 27, 47, 52. Layer 1.
//!
//! Reading is in `metainfo/parse.rs`, `metainfo/info.rs`, `metainfo/tree.rs` (the file tree of v2) and `metainfo/layers.rs`
//! (the hashes of its pieces), what lies below those in `metainfo/piece_trees.rs`, writing in `metainfo/build.rs`. Names and paths are
//! as the torrent has them: not safe for a file system (see `storage::safe_path`) nor for a terminal.

mod build;
mod hashes;
mod info;
mod layers;
mod parse;
mod piece_trees;
mod tree;

use crate::base::{Geometry, GeometryError, InfoHash, InfoHashes};
use crate::wire::bencode::BencodeError;
use crate::wire::magnet::Magnet;
use crate::wire::merkle::Node;
use std::sync::Arc;

pub use build::{MetainfoBuilder, TreeFile, choose_piece_length};
pub use hashes::{PieceHash, PieceHashes};
pub use info::{is_info_of, layers_needed, parse_info};
pub use layers::{LayerNeed, PieceLayers};
pub use piece_trees::{LEAVES_PIECE_BYTES_MAX, PieceTree, PieceTrees};

/// The longest `.torrent` that is looked at; one with 2 million pieces has 40 MiB (HOSTILE.md T2).
pub const TORRENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The longest info dictionary taken from peers (HOSTILE.md T2, W14; libtorrent's figure).
pub const METADATA_BYTES_MAX: usize = 30 * 1024 * 1024;

/// Tracker URLs kept; public torrents carry a few hundred at most.
pub const TRACKERS_MAX: usize = 1_000;

/// Web seed URLs kept; each is a connection we might open.
pub const WEB_SEEDS_MAX: usize = 256;

/// DHT nodes kept; a handful is enough to enter the DHT.
pub const NODES_MAX: usize = 256;

/// The longest URL kept; trackers' passkey URLs have some 100 bytes, browsers stop at about 2,000.
pub const URL_BYTES_MAX: usize = 4_096;

/// Warnings kept; a hostile file could cause one a file entry.
pub const WARNINGS_MAX: usize = 32;

/// A whole `.torrent`.
#[derive(Clone, Debug)]
pub struct Metainfo {
    pub info: Info,
    /// What the torrent is known by here: see [`InfoHashes::main`]; or what the link says that it came by.
    pub info_hash: InfoHash,
    pub info_hashes: InfoHashes,
    /// Hashes of the pieces of long files (BEP 52); of a hybrid they may be missing.
    pub piece_layers: PieceLayers,
    /// Tracker URLs by tier (BEP 12); a lone `announce` is one tier.
    pub announce_tiers: Vec<Vec<String>>,
    /// BEP 19 `url-list`.
    pub web_seeds: Vec<String>,
    pub comment: Option<String>,
    pub created_by: Option<String>,
    /// Seconds since 1970.
    pub creation_date: Option<i64>,
    /// DHT nodes, host and port (BEP 5).
    pub nodes: Vec<(String, u16)>,
    /// What was odd but did not matter, for the user's eyes.
    pub warnings: Vec<String>,
    /// The raw bytes of the info dictionary, which peers may ask for (BEP 9).
    pub info_bytes: Arc<[u8]>,
}

/// The info dictionary: what the info_hash covers.
#[derive(Clone, Debug)]
pub struct Info {
    /// For display; invalid UTF-8 is replaced. Not safe as a path.
    pub name: String,
    pub geometry: Geometry,
    pub piece_hashes: PieceHashes,
    /// In the order of the torrent's bytes; exactly one for a single-file torrent.
    pub files: Vec<FileEntry>,
    pub is_multi_file: bool,
    /// BEP 27: peers only from the torrent's trackers.
    pub is_private: bool,
    pub source: Option<String>,
    pub kind: Kind,
}

/// Which protocol versions the torrent can be shared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    V1,
    /// BEP 52 alone.
    V2,
    /// BEP 52 keys beside the v1 keys; pieces are verified by their SHA-1.
    Hybrid,
}

/// One file of the torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Raw path elements as in the torrent, without its root name; empty for a single-file torrent.
    pub path: Vec<Vec<u8>>,
    pub length_bytes: u64,
    pub attributes: FileAttributes,
    /// Raw elements of BEP 47 `symlink path`, from the torrent's root; empty if this is no symlink.
    pub symlink_target: Vec<Vec<u8>>,
    /// BEP 52: the root over the file's blocks, where it has any.
    pub pieces_root: Option<Node>,
}

/// BEP 47 `attr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileAttributes {
    /// `p`: zeros that fill up a piece.
    pub is_pad: bool,
    /// `x`
    pub is_executable: bool,
    /// `h`
    pub is_hidden: bool,
    /// `l`
    pub is_symlink: bool,
}

/// Why bytes are no torrent we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    #[error("{got_bytes} bytes are more than the {max_bytes} a torrent may have")]
    TooLarge { got_bytes: usize, max_bytes: usize },
    #[error("not a torrent: {0}")]
    Bencode(BencodeError),
    #[error("it has more than {max} values, the most that is read of one torrent")]
    TooManyValues { max: usize },
    #[error("not a torrent: the top level is not a dictionary")]
    NotADictionary,
    #[error("`{key}` is missing")]
    Missing { key: &'static str },
    #[error("`{key}` is not {expected}")]
    WrongType {
        key: &'static str,
        expected: &'static str,
    },
    /// Piece length zero, negative or above 512 MiB (HOSTILE.md T5).
    #[error("piece length {got_bytes} is outside 1..={max_bytes}")]
    BadPieceLength { got_bytes: i64, max_bytes: u32 },
    #[error("`pieces` has {got_bytes} bytes, not a multiple of 20")]
    PiecesNotHashes { got_bytes: usize },
    #[error(
        "{total_bytes} bytes in pieces of {piece_length_bytes} need {expected} hashes, but there are {got}"
    )]
    PieceCountMismatch {
        total_bytes: u64,
        piece_length_bytes: u32,
        expected: u32,
        got: usize,
    },
    #[error("file {file_index} has the length {got_bytes}")]
    BadLength { file_index: usize, got_bytes: i64 },
    #[error("the lengths of the files overflow at file {file_index}")]
    LengthOverflow { file_index: usize },
    #[error("file {file_index}: `{key}` is missing or not {expected}")]
    BadFile {
        file_index: usize,
        key: &'static str,
        expected: &'static str,
    },
    #[error("the torrent holds no byte: all lengths are zero")]
    Empty,
    #[error("{pieces} pieces are more than the protocol can number")]
    TooManyPieces { pieces: u64 },
    #[error("piece length {got_bytes} is no power of two from 16 KiB on, as v2 demands")]
    PieceLengthV2 { got_bytes: u64 },
    #[error("`file tree` has {what}")]
    BadTree { what: &'static str },
    /// The two halves of a hybrid are of different files (BEP 52, "upgrade path").
    #[error("the v1 and the v2 part differ at file {file_index}")]
    Inconsistent { file_index: usize },
    #[error("`piece layers` has nothing for file {file_index}")]
    LayerMissing { file_index: usize },
    #[error(
        "`piece layers` has {got_bytes} bytes for file {file_index}, which needs {expected} hashes"
    )]
    LayerLength {
        file_index: usize,
        expected: u64,
        got_bytes: usize,
    },
    #[error("`piece layers` has hashes for file {file_index} that are not its own")]
    LayerWrong { file_index: usize },
    /// HOSTILE.md T13.
    #[error("unsupported: meta version {version} without a v1 part")]
    UnknownVersion { version: i64 },
    #[error("the metadata of {got} was sent for {expected}")]
    WrongInfoHash {
        expected: InfoHashes,
        got: InfoHashes,
    },
}

impl From<BencodeError> for MetainfoError {
    fn from(error: BencodeError) -> MetainfoError {
        match error {
            // As well-formed as any: only too large.
            BencodeError::TooManyTokens { max, .. } => MetainfoError::TooManyValues { max },
            error => MetainfoError::Bencode(error),
        }
    }
}

impl From<GeometryError> for MetainfoError {
    fn from(error: GeometryError) -> Self {
        match error {
            GeometryError::BadPieceLength {
                got_bytes,
                max_bytes,
            } => MetainfoError::BadPieceLength {
                got_bytes: i64::try_from(got_bytes).unwrap_or(i64::MAX),
                max_bytes,
            },
            GeometryError::Empty => MetainfoError::Empty,
            GeometryError::TooManyPieces { pieces } => MetainfoError::TooManyPieces { pieces },
        }
    }
}

impl Metainfo {
    /// Reads a whole `.torrent`.
    ///
    /// # Errors
    /// See [`MetainfoError`]; oddities that do not matter are in [`Metainfo::warnings`].
    pub fn parse(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
        parse::parse(bytes)
    }

    /// What peers sent as the info dictionary that a magnet link names (BEP 9), with the link's trackers, each a tier
    /// of its own, and its web seeds. `layers` are those that [`layers_needed`] names.
    ///
    /// # Errors
    /// See [`MetainfoError`]; the rules are those of a `.torrent`, and the info_hashes must be the link's.
    pub fn from_magnet(
        link: &Magnet,
        info_bytes: Arc<[u8]>,
        layers: &PieceLayers,
    ) -> Result<Metainfo, MetainfoError> {
        let (info, info_hashes, warnings) = parse_info(&info_bytes, layers)?;
        if !link.info_hashes.are_met_by(&info_hashes) {
            return Err(MetainfoError::WrongInfoHash {
                expected: link.info_hashes,
                got: info_hashes,
            });
        }
        let trackers = link.trackers.iter();
        Ok(Metainfo {
            info,
            info_hash: link.info_hash,
            info_hashes,
            piece_layers: layers.clone(),
            announce_tiers: trackers.map(|url| vec![url.clone()]).collect(),
            web_seeds: link.web_seeds.clone(),
            comment: None,
            created_by: None,
            creation_date: None,
            nodes: Vec::new(),
            warnings,
            info_bytes,
        })
    }

    /// The other name that a hybrid goes by on the wire: it has a swarm under each.
    pub fn second_info_hash(&self) -> Option<InfoHash> {
        let v2 = self.info_hashes.v2().map(|v2| v2.truncated());
        let mut names = [self.info_hashes.v1(), v2].into_iter().flatten();
        names.find(|name| *name != self.info_hash)
    }

    /// The same known by the other name, if that is what it is called: a link may have named a hybrid by its v2 info_hash alone.
    pub fn called(mut self, name: InfoHash) -> Metainfo {
        if self.second_info_hash() == Some(name) {
            self.info_hash = name;
        }
        self
    }

    /// The `.torrent` file of it: the info dictionary byte for byte, piece layers, trackers and web seeds, nothing else.
    pub fn to_torrent(&self) -> Vec<u8> {
        build::around_info(self)
    }
}

/// Warnings with a lid.
#[derive(Default)]
struct Warnings(Vec<String>);

impl Warnings {
    fn add(&mut self, text: impl Into<String>) {
        if self.0.len() < WARNINGS_MAX {
            self.0.push(text.into());
        }
    }
}
