//! The file tree of BitTorrent v2 (BEP 52), and whether it names the same files as a v1 part beside it. Layer 1.

use super::info::{attributes, checked_length, elements};
use super::{FileEntry, MetainfoError};
use crate::base::BLOCK_BYTES;
use crate::wire::bencode::Dict;
use crate::wire::merkle::Node;

/// Bytes that the paths of all files may take in memory. Files in one deep folder share their path in the tree but not
/// here, so that a small torrent could ask for gigabytes.
const PATHS_BYTES_MAX: usize = 128 * 1024 * 1024;

/// What one element of a path takes beside its bytes.
const ELEMENT_BYTES: usize = 32;

/// Pieces of a v2 torrent at most: as many as a `.torrent` of 64 MiB has hashes for. The tree alone may claim more
/// than anybody could ever prove.
pub(super) const PIECES_MAX: u32 = 2 * 1024 * 1024;

/// An open folder of the walk.
#[derive(Default)]
struct Level<'a> {
    last: Option<&'a [u8]>,
    entries: usize,
    is_file: bool,
}

impl<'a> Level<'a> {
    fn enter(&mut self, key: &'a [u8]) -> Result<(), MetainfoError> {
        if self.last.is_some_and(|last| last >= key) {
            return Err(bad("names that are not in order"));
        }
        self.last = Some(key);
        self.entries += 1;
        self.is_file |= key.is_empty();
        match self.is_file && self.entries > 1 {
            true => Err(bad("something that is both a file and a folder")),
            false => Ok(()),
        }
    }
}

fn bad(what: &'static str) -> MetainfoError {
    MetainfoError::BadTree { what }
}

/// The files of the tree in its order, which is that of the pieces.
///
/// # Errors
/// It is no tree of files; what is wrong with a file.
pub(super) fn files(tree: Dict<'_>) -> Result<Vec<FileEntry>, MetainfoError> {
    let mut walk = tree.walk();
    let (mut path, mut levels) = (Vec::new(), vec![Level::default()]);
    let (mut files, mut paths_bytes) = (Vec::new(), 0);
    while let Some(level) = levels.last_mut() {
        let Some(key) = walk.key() else {
            walk.leave();
            levels.pop();
            path.pop();
            continue;
        };
        level.enter(key)?;
        if !key.is_empty() {
            if !walk.enter() {
                return Err(bad("an entry that is no dictionary"));
            }
            path.push(key);
            levels.push(Level::default());
            continue;
        }
        if path.is_empty() {
            return Err(bad("a file without a name"));
        }
        paths_bytes += path
            .iter()
            .map(|name| name.len() + ELEMENT_BYTES)
            .sum::<usize>();
        if paths_bytes > PATHS_BYTES_MAX {
            return Err(bad("paths that are too long together"));
        }
        let properties = walk.value().and_then(|value| value.as_dict());
        let properties = properties.ok_or(bad("a file that is no dictionary"))?;
        let path = path.iter().map(|name| name.to_vec()).collect();
        files.push(file(files.len(), path, properties)?);
    }
    Ok(files)
}

fn file(file_index: usize, path: Vec<Vec<u8>>, dict: Dict<'_>) -> Result<FileEntry, MetainfoError> {
    let attributes = attributes(dict);
    if attributes.is_pad {
        return Err(bad("a pad file"));
    }
    let bad_file = |key, expected| MetainfoError::BadFile {
        file_index,
        key,
        expected,
    };
    let (mut length_bytes, mut pieces_root, mut symlink_target) = (0, None, Vec::new());
    if attributes.is_symlink {
        symlink_target = dict
            .list(b"symlink path")
            .and_then(elements)
            .unwrap_or_default();
    } else {
        let length = dict.int(b"length").ok_or(bad_file("length", "a number"))?;
        length_bytes = checked_length(file_index, length)?;
    }
    if length_bytes > 0 {
        let root = dict.bytes(b"pieces root").unwrap_or_default();
        let root = Node::try_from(root).ok().filter(|root| *root != [0; 32]);
        pieces_root = Some(root.ok_or(bad_file("pieces root", "32 bytes"))?);
    }
    Ok(FileEntry {
        path,
        length_bytes,
        attributes,
        symlink_target,
        pieces_root,
    })
}

/// A piece is a whole subtree of its file's hash tree.
pub(super) fn check_piece_length(got_bytes: u64) -> Result<(), MetainfoError> {
    match got_bytes.is_power_of_two() && got_bytes >= u64::from(BLOCK_BYTES) {
        true => Ok(()),
        false => Err(MetainfoError::PieceLengthV2 { got_bytes }),
    }
}

/// Gives the files of a v1 part the roots of the tree, which must name the same files, each at the start of a piece.
/// Empty files and links may differ: they have no bytes.
///
/// # Errors
/// The first file in which the two differ.
pub(super) fn join(
    files: &mut [FileEntry],
    tree: &[FileEntry],
    single_name: Option<&[u8]>,
    piece_length_bytes: u64,
) -> Result<(), MetainfoError> {
    let mut in_tree = tree.iter().filter(|file| file.length_bytes > 0);
    let mut offset: u64 = 0;
    for (file_index, file) in files.iter_mut().enumerate() {
        let start = offset;
        offset = offset.saturating_add(file.length_bytes);
        if file.attributes.is_pad || file.length_bytes == 0 {
            continue;
        }
        let same = in_tree.next().filter(|other| {
            let has_path = match single_name {
                Some(name) => other.path.len() == 1 && other.path[0] == name,
                None => other.path == file.path,
            };
            let is_aligned = start.is_multiple_of(piece_length_bytes);
            has_path && is_aligned && other.length_bytes == file.length_bytes
        });
        let same = same.ok_or(MetainfoError::Inconsistent { file_index })?;
        file.pieces_root = same.pieces_root;
    }
    match in_tree.next() {
        Some(_) => Err(MetainfoError::Inconsistent {
            file_index: files.len(),
        }),
        None => Ok(()),
    }
}
