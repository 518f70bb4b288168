//! `piece layers` (BEP 52): the hashes of all pieces of the files that have more than one. Layer 1.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{FileEntry, MetainfoError};
use crate::base::Geometry;
use crate::wire::bencode::{Dict, Item};
use crate::wire::merkle::{self, HASHES_MAX, Node};
use crate::wire::message::HashRange;

/// The layer of each file that has one, by the file's root. What is in it was proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PieceLayers(Arc<Layers>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Layers {
    by_root: BTreeMap<Node, Layer>,
    /// Requests that fetch all of them.
    request_count: u32,
}

impl From<BTreeMap<Node, Layer>> for PieceLayers {
    fn from(by_root: BTreeMap<Node, Layer>) -> PieceLayers {
        let requests = |layer: &Layer| layer.need.count().div_ceil(HASHES_MAX.into());
        let request_count: u64 = by_root.values().map(requests).sum();
        PieceLayers(Arc::new(Layers {
            request_count: u32::try_from(request_count).unwrap_or(u32::MAX),
            by_root,
        }))
    }
}

/// The layer of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    need: LayerNeed,
    nodes: Vec<Node>,
    /// The layers from [`KEPT_FROM`] above it on, so that nothing that is asked of a long one has to hash all of it.
    above: Vec<Vec<Node>>,
}

/// Layers that are made anew for each answer: of at most 512 hashes.
const KEPT_FROM: u32 = HASHES_MAX.ilog2();

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

    const fn height(&self) -> u32 {
        merkle::piece_height(self.piece_length_bytes)
    }

    /// Layers above this one, the root's included.
    const fn layers(&self) -> u32 {
        merkle::file_height(self.length_bytes).saturating_sub(self.height())
    }

    /// The requests that fetch all of it with its proofs.
    pub fn ranges(&self) -> impl Iterator<Item = HashRange> + use<> {
        let need = *self;
        let count = u32::try_from(need.count()).unwrap_or(u32::MAX);
        (0..count)
            .step_by(HASHES_MAX as usize)
            .map(move |index| HashRange {
                root: need.root,
                base_layer: need.height(),
                index,
                length: (count - index).next_power_of_two().clamp(2, HASHES_MAX),
                proof_layers: need.layers().saturating_sub(1),
            })
    }

    /// Whether these hashes are the layer.
    pub fn is_met_by(&self, layer: &[Node]) -> bool {
        let root = merkle::root(layer, self.height(), self.layers());
        layer.len() as u64 == self.count() && root == self.root
    }
}

impl Layer {
    fn new(need: LayerNeed, nodes: Vec<Node>) -> Layer {
        let mut above = Vec::new();
        if need.layers() > KEPT_FROM {
            let mut layer = nodes.clone();
            for height in 0..need.layers() {
                if height >= KEPT_FROM {
                    above.push(layer.clone());
                }
                layer = merkle::above(&layer, need.height() + height);
            }
        }
        Layer { need, nodes, above }
    }

    /// The node so many layers above this one.
    fn node(&self, layers: u32, number: usize) -> Node {
        let height = self.need.height();
        if let Some(kept) = layers.checked_sub(KEPT_FROM) {
            let layer = self.above.get(kept as usize);
            let node = layer.and_then(|layer| layer.get(number)).copied();
            return node.unwrap_or_else(|| merkle::pad(height + layers));
        }
        let (first, end) = (number << layers, (number + 1) << layers);
        let below = self.nodes.get(first..end.min(self.nodes.len()));
        merkle::root(below.unwrap_or_default(), height, layers)
    }

    /// Hashes and uncles. `None` when that is no part of the layer.
    fn answer(&self, range: &HashRange) -> Option<Vec<Node>> {
        let layers = self.need.layers();
        let is_in_layer = range.base_layer == self.need.height()
            && (2..=HASHES_MAX).contains(&range.length)
            && range.length.is_power_of_two()
            && range.index.is_multiple_of(range.length)
            && u64::from(range.index) + u64::from(range.length) <= 1 << layers;
        if !is_in_layer || range.proof_layers >= layers {
            return None;
        }
        let (first, length) = (range.index as usize, range.length as usize);
        let mut hashes: Vec<Node> = (first..first + length)
            .map(|number| self.node(0, number))
            .collect();
        let within = range.length.ilog2();
        let mut number = first >> within;
        for layer in within..within + range.uncle_count() {
            hashes.push(self.node(layer, number ^ 1));
            number /= 2;
        }
        Some(hashes)
    }
}

impl PieceLayers {
    /// Takes in layers that meet their needs; others are left out.
    pub fn new(layers: impl IntoIterator<Item = (LayerNeed, Vec<Node>)>) -> PieceLayers {
        let layers = layers.into_iter();
        let good = layers.filter(|(need, layer)| need.is_met_by(layer));
        let layer = |(need, nodes): (LayerNeed, Vec<Node>)| (need.root, Layer::new(need, nodes));
        PieceLayers::from(good.map(layer).collect::<BTreeMap<_, _>>())
    }

    /// The layer of the file with that root.
    pub fn get(&self, root: &Node) -> Option<&[Node]> {
        self.0.by_root.get(root).map(|layer| layer.nodes.as_slice())
    }

    /// The answer to a `hash request`: the hashes, then those that prove them. `None` when it is to be rejected.
    pub fn answer(&self, range: &HashRange) -> Option<Vec<Node>> {
        self.0.by_root.get(&range.root)?.answer(range)
    }

    /// A node above the layer of the file with that root, so many layers up.
    pub(super) fn node(&self, root: &Node, layers: u32, number: u32) -> Option<Node> {
        let layer = self.0.by_root.get(root)?;
        Some(layer.node(layers, number as usize))
    }

    /// How many requests fetch all of them.
    pub fn request_count(&self) -> u32 {
        self.0.request_count
    }

    /// Whether no file has a layer.
    pub fn is_empty(&self) -> bool {
        self.0.by_root.is_empty()
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
        let mut lengths = BTreeMap::new();
        for (file_index, file) in files.iter().enumerate() {
            let Some(need) = LayerNeed::of(file, geometry.piece_length_bytes()) else {
                continue;
            };
            if let Some(&known) = lengths.get(&need.root) {
                // The same contents: a root stands for one length alone.
                if known != file.length_bytes {
                    return Err(MetainfoError::LayerWrong { file_index });
                }
                continue;
            }
            lengths.insert(need.root, file.length_bytes);
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
            layers.insert(need.root, Layer::new(need, nodes.to_vec()));
        }
        Ok(PieceLayers::from(layers))
    }

    /// The value of `piece layers`.
    pub(super) fn to_item(&self) -> Item<'_> {
        Item::dict(self.0.by_root.iter().map(|(root, layer)| {
            let layer = layer.nodes.as_flattened();
            (&root[..], Item::bytes(layer))
        }))
    }
}
