//! `piece layers` (BEP 52): the hashes of all pieces of the files that have more than one. Layer 1.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{FileEntry, MetainfoError};
use crate::base::Geometry;
use crate::wire::bencode::{Dict, Item};
use crate::wire::merkle::{self, Node};

/// The layer of each file that has one, by the file's root. What is in it was proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PieceLayers(Arc<BTreeMap<Node, Vec<Node>>>);

/// A layer that a torrent needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNeed {
    /// The file's.
    pub root: Node,
    pub length_bytes: u64,
    pub piece_length_bytes: u32,
}

impl LayerNeed {
    /// What the file needs; `None` when its root says all.
    pub fn of(file: &FileEntry, piece_length_bytes: u32) -> Option<LayerNeed> {
        let is_long = file.length_bytes > u64::from(piece_length_bytes);
        Some(LayerNeed {
            root: file.pieces_root.filter(|_| is_long)?,
            length_bytes: file.length_bytes,
            piece_length_bytes,
        })
    }

    /// Hashes in the layer.
    pub const fn count(&self) -> u64 {
        self.length_bytes.div_ceil(self.piece_length_bytes as u64)
    }

    /// Whether these hashes are the layer.
    pub fn is_met_by(&self, layer: &[Node]) -> bool {
        let height = merkle::piece_height(self.piece_length_bytes);
        let layers = merkle::file_height(self.length_bytes).saturating_sub(height);
        layer.len() as u64 == self.count() && merkle::root(layer, height, layers) == self.root
    }
}

impl PieceLayers {
    /// Takes in layers that meet their needs; others are left out.
    pub fn new(layers: impl IntoIterator<Item = (LayerNeed, Vec<Node>)>) -> PieceLayers {
        let layers = layers.into_iter();
        let good = layers.filter(|(need, layer)| need.is_met_by(layer));
        PieceLayers(Arc::new(
            good.map(|(need, layer)| (need.root, layer)).collect(),
        ))
    }

    /// The layer of the file with that root.
    pub fn get(&self, root: &Node) -> Option<&[Node]> {
        self.0.get(root).map(Vec::as_slice)
    }

    /// Whether no file has a layer.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the value of `piece layers`: those that `files` need, each held against its root.
    ///
    /// # Errors
    /// One is missing, has another number of hashes, or is not below its root.
    pub(super) fn read(
        dict: Option<Dict<'_>>,
        files: &[FileEntry],
        geometry: &Geometry,
    ) -> Result<PieceLayers, MetainfoError> {
        let given: BTreeMap<&[u8], &[u8]> = dict
            .into_iter()
            .flat_map(Dict::iter)
            .filter_map(|(root, layer)| Some((root, layer.as_bytes()?)))
            .collect();
        let mut layers = BTreeMap::new();
        for (file_index, file) in files.iter().enumerate() {
            let Some(need) = LayerNeed::of(file, geometry.piece_length_bytes()) else {
                continue;
            };
            if layers.contains_key(&need.root) {
                continue; // the same contents
            }
            let bytes = given
                .get(&need.root[..])
                .ok_or(MetainfoError::LayerMissing { file_index })?;
            if bytes.len() as u64 != need.count() * 32 {
                return Err(MetainfoError::LayerLength {
                    file_index,
                    expected: need.count(),
                    got_bytes: bytes.len(),
                });
            }
            let (nodes, _) = bytes.as_chunks::<32>();
            if !need.is_met_by(nodes) {
                return Err(MetainfoError::LayerWrong { file_index });
            }
            layers.insert(need.root, nodes.to_vec());
        }
        Ok(PieceLayers(Arc::new(layers)))
    }

    /// The value of `piece layers`.
    pub(super) fn to_item(&self) -> Item<'_> {
        Item::dict(self.0.iter().map(|(root, layer)| {
            let layer = layer.as_flattened();
            (&root[..], Item::bytes(layer))
        }))
    }
}
