//! Writing a `.torrent` (BEP 3, 12, 19, 27, 52) in canonical bencode. Layer 1.

use super::{Kind, LayerNeed, Metainfo, MetainfoError, PieceLayers};
use crate::wire::bencode::{DEPTH_MAX, Item};
use crate::wire::merkle::{self, Node};
use std::collections::BTreeMap;

/// Pieces that an automatic piece length aims to stay at or under.
const PIECES_AIM_MAX: u64 = 2_000;
/// One block: shorter pieces only add hashes.
const PIECE_LENGTH_AUTO_MIN: u32 = 16 * 1024;
/// Longer pieces waste more when one block is bad.
const PIECE_LENGTH_AUTO_MAX: u32 = 16 * 1024 * 1024;

/// A piece length that makes about 1,000 to 2,000 pieces: a power of two from 16 KiB to 16 MiB.
pub fn choose_piece_length(total_bytes: u64) -> u32 {
    let mut length = PIECE_LENGTH_AUTO_MIN;
    while length < PIECE_LENGTH_AUTO_MAX && total_bytes.div_ceil(u64::from(length)) > PIECES_AIM_MAX
    {
        length *= 2;
    }
    length
}

/// A file in the tree of a v2 torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFile {
    /// Elements below the root name; that name alone for a single file.
    pub path: Vec<Vec<u8>>,
    pub length_bytes: u64,
    /// The root of each piece in order; where there is but one, that is the file's.
    pub pieces: Vec<Node>,
}

/// Collects what goes into a `.torrent`.
#[derive(Clone, Debug, Default)]
pub struct MetainfoBuilder {
    name: Vec<u8>,
    piece_length_bytes: u32,
    pieces: Vec<u8>,
    content: Content,
    tree: Vec<TreeFile>,
    layers: PieceLayers,
    is_private: bool,
    source: Option<String>,
    announce_tiers: Vec<Vec<String>>,
    web_seeds: Vec<String>,
    comment: Option<String>,
    created_by: Option<String>,
    creation_date: Option<i64>,
}

#[derive(Clone, Debug)]
enum Content {
    Single {
        length_bytes: u64,
    },
    Multi(Vec<(Vec<Vec<u8>>, u64)>),
    /// A tree, and no v1 part.
    None,
}

impl Default for Content {
    fn default() -> Self {
        Content::Multi(Vec::new())
    }
}

impl MetainfoBuilder {
    /// Starts with the root name and the piece length in bytes.
    pub fn new(name: impl Into<Vec<u8>>, piece_length_bytes: u32) -> Self {
        MetainfoBuilder {
            name: name.into(),
            piece_length_bytes,
            ..MetainfoBuilder::default()
        }
    }

    /// Makes it a single-file torrent of this length.
    pub fn single_file(mut self, length_bytes: u64) -> Self {
        self.content = Content::Single { length_bytes };
        self
    }

    /// Makes it a multi-file torrent: path elements below the root name, and length, in the order of the bytes.
    pub fn files(mut self, files: Vec<(Vec<Vec<u8>>, u64)>) -> Self {
        self.content = Content::Multi(files);
        self
    }

    /// Leaves out the v1 part.
    pub fn v2_only(mut self) -> Self {
        self.content = Content::None;
        self
    }

    /// Makes it a torrent of BitTorrent v2: the files in the order of their paths, by element. Beside a v1 part it
    /// becomes a hybrid; [`MetainfoBuilder::files`] then names pad files too, with an empty path.
    pub fn tree(mut self, files: Vec<TreeFile>) -> Self {
        let piece_length_bytes = self.piece_length_bytes;
        let layer = |file: &TreeFile| {
            let need = LayerNeed {
                root: file.root(piece_length_bytes)?,
                length_bytes: file.length_bytes,
                piece_length_bytes,
            };
            (file.pieces.len() > 1).then(|| (need, file.pieces.clone()))
        };
        self.layers = PieceLayers::new(files.iter().filter_map(layer));
        self.tree = files;
        self
    }

    /// The SHA-1 of every piece, one behind the other.
    pub fn pieces(mut self, hashes: Vec<u8>) -> Self {
        self.pieces = hashes;
        self
    }

    /// BEP 27.
    pub fn private(mut self, is_private: bool) -> Self {
        self.is_private = is_private;
        self
    }

    /// `source`, which makes the info_hash differ between trackers.
    pub fn source(mut self, source: Option<String>) -> Self {
        self.source = source;
        self
    }

    /// BEP 12 tiers; empty ones are left out.
    pub fn announce_tiers(mut self, tiers: Vec<Vec<String>>) -> Self {
        self.announce_tiers = tiers;
        self.announce_tiers.retain(|tier| !tier.is_empty());
        self
    }

    /// BEP 19.
    pub fn web_seeds(mut self, urls: Vec<String>) -> Self {
        self.web_seeds = urls;
        self
    }

    /// Free text for people.
    pub fn comment(mut self, comment: Option<String>) -> Self {
        self.comment = comment;
        self
    }

    /// The program that made the torrent.
    pub fn created_by(mut self, created_by: Option<String>) -> Self {
        self.created_by = created_by;
        self
    }

    /// Seconds since 1970.
    pub fn creation_date(mut self, seconds: Option<i64>) -> Self {
        self.creation_date = seconds;
        self
    }

    /// The bytes of the `.torrent`, and what our own reader makes of them.
    ///
    /// # Errors
    /// What a reader would object to: no bytes, a piece count that does not match, a bad piece length.
    pub fn build(&self) -> Result<(Vec<u8>, Metainfo), MetainfoError> {
        let mut root: BTreeMap<&[u8], Item<'_>> = BTreeMap::new();
        root.insert(b"info", self.info()?);
        if let Some(first) = self.announce_tiers.first().and_then(|tier| tier.first()) {
            root.insert(b"announce", Item::text(first));
        }
        if self.announce_tiers.iter().map(Vec::len).sum::<usize>() > 1 {
            let tiers = self.announce_tiers.iter().map(|tier| texts(tier)).collect();
            root.insert(b"announce-list", Item::List(tiers));
        }
        if !self.tree.is_empty() {
            root.insert(b"piece layers", self.layers.to_item());
        }
        if !self.web_seeds.is_empty() {
            root.insert(b"url-list", texts(&self.web_seeds));
        }
        if let Some(comment) = &self.comment {
            root.insert(b"comment", Item::text(comment));
        }
        if let Some(created_by) = &self.created_by {
            root.insert(b"created by", Item::text(created_by));
        }
        if let Some(seconds) = self.creation_date {
            root.insert(b"creation date", Item::Int(seconds));
        }
        let bytes = Item::Dict(root).encode();
        let metainfo = Metainfo::parse(&bytes)?;
        Ok((bytes, metainfo))
    }

    fn info(&self) -> Result<Item<'_>, MetainfoError> {
        let mut info: BTreeMap<&[u8], Item<'_>> = BTreeMap::new();
        info.insert(b"name", Item::bytes(&self.name[..]));
        info.insert(b"piece length", Item::Int(self.piece_length_bytes.into()));
        if !self.tree.is_empty() {
            info.insert(b"file tree", self.file_tree()?);
            info.insert(b"meta version", Item::Int(2));
        }
        if !matches!(self.content, Content::None) {
            info.insert(b"pieces", Item::bytes(&self.pieces[..]));
        }
        if self.is_private {
            info.insert(b"private", Item::Int(1));
        }
        if let Some(source) = &self.source {
            info.insert(b"source", Item::text(source));
        }
        match &self.content {
            Content::None => {}
            Content::Single { length_bytes } => {
                info.insert(b"length", length(0, *length_bytes)?);
            }
            Content::Multi(files) => {
                let files = files.iter().enumerate().map(|(index, (path, bytes))| {
                    if path.is_empty() {
                        return pad(index, *bytes);
                    }
                    let path = path.iter().map(|element| Item::bytes(&element[..]));
                    Ok(Item::dict([
                        (&b"length"[..], length(index, *bytes)?),
                        (&b"path"[..], Item::List(path.collect())),
                    ]))
                });
                let files = files.collect::<Result<Vec<_>, MetainfoError>>()?;
                info.insert(b"files", Item::List(files));
            }
        }
        Ok(Item::Dict(info))
    }

    fn file_tree(&self) -> Result<Item<'_>, MetainfoError> {
        let mut tree = BTreeMap::new();
        for (index, file) in self.tree.iter().enumerate() {
            // Two dictionaries lie around the tree, two more around what is said of the file.
            if file.path.len() > DEPTH_MAX - 4 {
                return Err(MetainfoError::BadTree {
                    what: "folders that are too deep",
                });
            }
            let mut folder: &mut BTreeMap<&[u8], Item<'_>> = &mut tree;
            for element in &file.path {
                let entry = folder.entry(element).or_insert_with(|| Item::dict([]));
                let Item::Dict(inner) = entry else {
                    return Err(MetainfoError::BadTree {
                        what: "something that is both a file and a folder",
                    });
                };
                folder = inner;
            }
            let mut properties =
                BTreeMap::from([(&b"length"[..], length(index, file.length_bytes)?)]);
            if let Some(root) = file.root(self.piece_length_bytes) {
                properties.insert(b"pieces root", Item::bytes(root.to_vec()));
            }
            folder.insert(b"", Item::Dict(properties));
        }
        Ok(Item::Dict(tree))
    }
}

impl TreeFile {
    /// The root over the whole file; an empty one has none.
    fn root(&self, piece_length_bytes: u32) -> Option<Node> {
        match self.pieces.as_slice() {
            [] => None,
            [root] => Some(*root),
            pieces => {
                let height = merkle::piece_height(piece_length_bytes);
                let layers = merkle::file_height(self.length_bytes).saturating_sub(height);
                Some(merkle::root(pieces, height, layers))
            }
        }
    }
}

/// A pad file, by the name that other programs give them.
fn pad(file_index: usize, length_bytes: u64) -> Result<Item<'static>, MetainfoError> {
    let name = length_bytes.to_string().into_bytes();
    let path = vec![Item::bytes(&b".pad"[..]), Item::bytes(name)];
    Ok(Item::dict([
        (&b"attr"[..], Item::bytes(&b"p"[..])),
        (&b"length"[..], length(file_index, length_bytes)?),
        (&b"path"[..], Item::List(path)),
    ]))
}

/// The `.torrent` around an info dictionary that stays as it is, canonical or not: the hash covers its bytes.
pub(super) fn around_info(metainfo: &Metainfo) -> Vec<u8> {
    let (announce_tiers, web_seeds) = (&metainfo.announce_tiers, &metainfo.web_seeds);
    // In the order of the keys: `announce`, `announce-list`, `info`, `piece layers`, `url-list`.
    let mut before: BTreeMap<&[u8], Item<'_>> = BTreeMap::new();
    let mut urls = announce_tiers.iter().flatten();
    if let Some(first) = urls.next() {
        before.insert(b"announce", Item::text(first));
    }
    if urls.next().is_some() {
        let tiers = announce_tiers.iter().map(|tier| texts(tier)).collect();
        before.insert(b"announce-list", Item::List(tiers));
    }
    let mut bytes = Item::Dict(before).encode();
    bytes.pop();
    bytes.extend_from_slice(b"4:info");
    bytes.extend_from_slice(&metainfo.info_bytes);
    if metainfo.info.kind == Kind::V2 || !metainfo.piece_layers.is_empty() {
        bytes.extend_from_slice(b"12:piece layers");
        bytes.extend_from_slice(&metainfo.piece_layers.to_item().encode());
    }
    if !web_seeds.is_empty() {
        bytes.extend_from_slice(b"8:url-list");
        bytes.extend_from_slice(&texts(web_seeds).encode());
    }
    bytes.push(b'e');
    bytes
}

fn texts(texts: &[String]) -> Item<'_> {
    Item::List(texts.iter().map(|text| Item::text(text)).collect())
}

fn length(file_index: usize, length_bytes: u64) -> Result<Item<'static>, MetainfoError> {
    i64::try_from(length_bytes)
        .map(Item::Int)
        .map_err(|_| MetainfoError::LengthOverflow { file_index })
}
