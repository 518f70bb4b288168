//! The info dictionary: BEP 3, 27, 47, 52. Layer 1.

use super::{
    FileAttributes, FileEntry, Info, Kind, LayerNeed, METADATA_BYTES_MAX, MetainfoError,
    PieceHashes, PieceLayers, Warnings, tree,
};
use crate::base::{Geometry, InfoHash, InfoHashV2, InfoHashes, PIECE_LENGTH_BYTES_MAX};
use crate::wire::bencode::{self, Dict, List, Value};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Reads an info dictionary that came from peers (BEP 9): the info, its hashes and warnings. `layers` are those that
/// [`layers_needed`] names.
///
/// # Errors
/// See [`MetainfoError`].
pub fn parse_info(
    info_bytes: &[u8],
    layers: &PieceLayers,
) -> Result<(Info, InfoHashes, Vec<String>), MetainfoError> {
    let mut warnings = Warnings::default();
    let draft = draft(info_bytes, &mut warnings)?;
    let hashes = draft.hashes;
    let (info, _) = draft.finish(|_, _| Ok(layers.clone()), &mut warnings)?;
    Ok((info, hashes, warnings.0))
}

/// The layers without which the torrent of an info dictionary is of no use: of v2 alone, those of its long files.
///
/// # Errors
/// See [`MetainfoError`].
pub fn layers_needed(info_bytes: &[u8]) -> Result<Vec<LayerNeed>, MetainfoError> {
    let draft = draft(info_bytes, &mut Warnings::default())?;
    if draft.kind != Kind::V2 {
        return Ok(Vec::new());
    }
    let piece_length_bytes = draft.geometry.piece_length_bytes();
    let need = |file: &FileEntry| LayerNeed::of(file, piece_length_bytes);
    let mut needs: Vec<LayerNeed> = draft.files.iter().filter_map(need).collect();
    needs.sort_unstable_by_key(|need| need.root);
    needs.dedup_by_key(|need| need.root);
    Ok(needs)
}

fn draft<'a>(info_bytes: &'a [u8], warnings: &mut Warnings) -> Result<Draft<'a>, MetainfoError> {
    if info_bytes.len() > METADATA_BYTES_MAX {
        return Err(MetainfoError::TooLarge {
            got_bytes: info_bytes.len(),
            max_bytes: METADATA_BYTES_MAX,
        });
    }
    let scanned = bencode::scan(info_bytes)?;
    Draft::read(
        scanned.dict().ok_or(MetainfoError::NotADictionary)?,
        warnings,
    )
}

/// An info dictionary before the hashes of its pieces.
pub(super) struct Draft<'a> {
    dict: Dict<'a>,
    pub(super) hashes: InfoHashes,
    kind: Kind,
    files: Vec<FileEntry>,
    is_multi_file: bool,
    geometry: Geometry,
    name: String,
}

impl<'a> Draft<'a> {
    pub(super) fn read(dict: Dict<'a>, warnings: &mut Warnings) -> Result<Self, MetainfoError> {
        let kind = kind(dict, warnings)?;
        let hashes = info_hashes(dict.raw(), kind);
        let piece_length_bytes = piece_length(dict)?;
        let mut name = name(dict, hashes.main(), warnings);
        let tree = match kind {
            Kind::V1 => Vec::new(),
            Kind::V2 | Kind::Hybrid => {
                tree::check_piece_length(piece_length_bytes)?;
                tree::files(file_tree(dict)?)?
            }
        };
        let (files, is_multi_file, geometry) = if kind == Kind::V2 {
            let (files, is_multi_file) = named(tree, &mut name);
            total_bytes(&files)?;
            let lengths = files.iter().map(|file| file.length_bytes);
            let geometry = Geometry::of_aligned_files(lengths, piece_length_bytes)?;
            if geometry.piece_count() > tree::PIECES_MAX {
                let pieces = geometry.piece_count().into();
                return Err(MetainfoError::TooManyPieces { pieces });
            }
            (files, is_multi_file, geometry)
        } else {
            let (mut files, is_multi_file) = files(dict, warnings)?;
            let geometry = Geometry::new(total_bytes(&files)?, piece_length_bytes)?;
            if kind == Kind::Hybrid {
                let raw_name = dict.bytes(b"name").unwrap_or_default();
                let single_name = (!is_multi_file).then_some(raw_name);
                tree::join(&mut files, &tree, single_name, piece_length_bytes)?;
            }
            (files, is_multi_file, geometry)
        };
        Ok(Draft {
            dict,
            hashes,
            kind,
            files,
            is_multi_file,
            geometry,
            name,
        })
    }

    /// The info with the hashes of its pieces. `layers` gives the layers of the files.
    pub(super) fn finish(
        self,
        layers: impl FnOnce(&[FileEntry], &Geometry) -> Result<PieceLayers, MetainfoError>,
        warnings: &mut Warnings,
    ) -> Result<(Info, PieceLayers), MetainfoError> {
        let (mut given, mut piece_hashes) = (PieceLayers::default(), None);
        match self.kind {
            Kind::V1 => {}
            Kind::V2 => {
                given = layers(&self.files, &self.geometry)?;
                let hashes = PieceHashes::of_trees(&self.files, &self.geometry, &given)?;
                piece_hashes = Some(hashes);
            }
            Kind::Hybrid => match layers(&self.files, &self.geometry) {
                Ok(layers) => given = layers,
                // All pieces have a SHA-1.
                Err(error) => warnings.add(format!("of the v2 part: {error}")),
            },
        }
        let piece_hashes = match piece_hashes {
            Some(hashes) => hashes,
            None => sha1_hashes(self.dict, &self.geometry)?,
        };
        let info = Info {
            name: self.name,
            geometry: self.geometry,
            piece_hashes,
            files: self.files,
            is_multi_file: self.is_multi_file,
            is_private: self.dict.int(b"private").is_some_and(|flag| flag != 0),
            source: text(self.dict, b"source.utf-8", b"source"),
            kind: self.kind,
        };
        Ok((info, given))
    }
}

/// Whether these bytes are the info dictionary that the hashes name.
pub fn is_info_of(info_bytes: &[u8], hashes: &InfoHashes) -> bool {
    let kind = match hashes {
        InfoHashes::V1(_) => Kind::V1,
        InfoHashes::V2(_) => Kind::V2,
        InfoHashes::Both(..) => Kind::Hybrid,
    };
    info_hashes(info_bytes, kind) == *hashes
}

fn info_hashes(info_bytes: &[u8], kind: Kind) -> InfoHashes {
    let v1 = || InfoHash::new(Sha1::digest(info_bytes).into());
    let v2 = || InfoHashV2::new(Sha256::digest(info_bytes).into());
    match kind {
        Kind::V1 => InfoHashes::V1(v1()),
        Kind::V2 => InfoHashes::V2(v2()),
        Kind::Hybrid => InfoHashes::Both(v1(), v2()),
    }
}

fn file_tree(dict: Dict<'_>) -> Result<Dict<'_>, MetainfoError> {
    let key = "file tree";
    let value = dict
        .get(b"file tree")
        .ok_or(MetainfoError::Missing { key })?;
    value.as_dict().ok_or(MetainfoError::WrongType {
        key,
        expected: "a dictionary",
    })
}

/// The files of a tree, and whether there is a folder around them: a lone file at the top is the torrent.
fn named(mut files: Vec<FileEntry>, name: &mut String) -> (Vec<FileEntry>, bool) {
    if let [file] = files.as_mut_slice()
        && let [lone] = file.path.as_slice()
        && !file.attributes.is_symlink
    {
        *name = String::from_utf8_lossy(lone).into_owned();
        file.path = Vec::new();
        return (files, false);
    }
    (files, true)
}

/// The first key if it is UTF-8, else the second with invalid bytes replaced.
pub(super) fn text(dict: Dict<'_>, utf8_key: &[u8], key: &[u8]) -> Option<String> {
    let exact = dict.str(utf8_key).map(str::to_owned);
    exact.or_else(|| {
        dict.bytes(key)
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    })
}

/// Whether there is a v1 part, and whether it is all there is (HOSTILE.md T13).
fn kind(dict: Dict<'_>, warnings: &mut Warnings) -> Result<Kind, MetainfoError> {
    let has_v1 = dict.get(b"pieces").is_some();
    let has_tree = dict.get(b"file tree").is_some();
    match dict.get(b"meta version").map(Value::as_int) {
        Some(Some(2)) if has_v1 => Ok(Kind::Hybrid),
        Some(Some(2)) => Ok(Kind::V2),
        None if has_tree && !has_v1 => Err(MetainfoError::Missing {
            key: "meta version",
        }),
        None | Some(Some(1)) => Ok(Kind::V1),
        Some(version) if has_v1 => {
            warnings.add(match version {
                Some(version) => format!("meta version {version} is unknown, the v1 part is used"),
                None => "`meta version` is not a number, the v1 part is used".to_owned(),
            });
            Ok(Kind::V1)
        }
        Some(Some(version)) => Err(MetainfoError::UnknownVersion { version }),
        Some(None) => Err(MetainfoError::WrongType {
            key: "meta version",
            expected: "a number",
        }),
    }
}

fn piece_length(dict: Dict<'_>) -> Result<u64, MetainfoError> {
    let key = "piece length";
    let value = dict
        .get(b"piece length")
        .ok_or(MetainfoError::Missing { key })?;
    let got_bytes = value.as_int().ok_or(MetainfoError::WrongType {
        key,
        expected: "a number",
    })?;
    let max_bytes = PIECE_LENGTH_BYTES_MAX;
    u64::try_from(got_bytes)
        .ok()
        .filter(|length| (1..=u64::from(max_bytes)).contains(length))
        .ok_or(MetainfoError::BadPieceLength {
            got_bytes,
            max_bytes,
        })
}

fn sha1_hashes(dict: Dict<'_>, geometry: &Geometry) -> Result<PieceHashes, MetainfoError> {
    let key = "pieces";
    let value = dict.get(b"pieces").ok_or(MetainfoError::Missing { key })?;
    let bytes = value.as_bytes().ok_or(MetainfoError::WrongType {
        key,
        expected: "a string",
    })?;
    if !bytes.len().is_multiple_of(20) {
        return Err(MetainfoError::PiecesNotHashes {
            got_bytes: bytes.len(),
        });
    }
    let got = bytes.len() / 20;
    let expected = geometry.piece_count();
    if u32::try_from(got) != Ok(expected) {
        return Err(MetainfoError::PieceCountMismatch {
            total_bytes: geometry.total_bytes(),
            piece_length_bytes: geometry.piece_length_bytes(),
            expected,
            got,
        });
    }
    PieceHashes::new(bytes)
}

fn name(dict: Dict<'_>, info_hash: InfoHash, warnings: &mut Warnings) -> String {
    match text(dict, b"name.utf-8", b"name").filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => {
            warnings.add("the torrent has no name, its info_hash stands in");
            info_hash.to_string()
        }
    }
}

/// The files, and whether they came from `files`.
fn files(dict: Dict<'_>, warnings: &mut Warnings) -> Result<(Vec<FileEntry>, bool), MetainfoError> {
    let Some(value) = dict.get(b"files") else {
        return Ok((vec![single_file(dict)?], false));
    };
    let list = value.as_list().ok_or(MetainfoError::WrongType {
        key: "files",
        expected: "a list",
    })?;
    if dict.get(b"length").is_some() {
        warnings.add("both `files` and `length` are there, `files` is used");
    }
    let files = list
        .iter()
        .enumerate()
        .map(|(file_index, entry)| file(file_index, entry, warnings))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((files, true))
}

fn single_file(dict: Dict<'_>) -> Result<FileEntry, MetainfoError> {
    let value = dict
        .get(b"length")
        .ok_or(MetainfoError::Missing { key: "length" })?;
    let length = value.as_int().ok_or(MetainfoError::WrongType {
        key: "length",
        expected: "a number",
    })?;
    let mut attributes = attributes(dict);
    // The one file is the content: it can be neither filling nor a link.
    attributes.is_pad = false;
    attributes.is_symlink = false;
    Ok(FileEntry {
        path: Vec::new(),
        length_bytes: checked_length(0, length)?,
        attributes,
        symlink_target: Vec::new(),
        pieces_root: None,
    })
}

fn file(
    file_index: usize,
    entry: Value<'_>,
    warnings: &mut Warnings,
) -> Result<FileEntry, MetainfoError> {
    let dict = entry.as_dict().ok_or(MetainfoError::BadFile {
        file_index,
        key: "files",
        expected: "a dictionary",
    })?;
    let path = path(dict).ok_or(MetainfoError::BadFile {
        file_index,
        key: "path",
        expected: "a list of strings",
    })?;
    let attributes = attributes(dict);
    let length = dict.get(b"length").and_then(Value::as_int);
    // A link takes no bytes of the torrent, whatever its length says (BEP 47; libtorrent does the same).
    let length_bytes = if attributes.is_symlink {
        if length.is_some_and(|length| length != 0) {
            warnings.add(format!(
                "file {file_index} is a link with a length, taken as 0"
            ));
        }
        0
    } else {
        let length = length.ok_or(MetainfoError::BadFile {
            file_index,
            key: "length",
            expected: "a number",
        })?;
        checked_length(file_index, length)?
    };
    let symlink_target = if attributes.is_symlink {
        dict.list(b"symlink path")
            .and_then(elements)
            .unwrap_or_default()
    } else {
        Vec::new()
    };
    Ok(FileEntry {
        path,
        length_bytes,
        attributes,
        symlink_target,
        pieces_root: None,
    })
}

pub(super) fn checked_length(file_index: usize, got_bytes: i64) -> Result<u64, MetainfoError> {
    u64::try_from(got_bytes).map_err(|_| MetainfoError::BadLength {
        file_index,
        got_bytes,
    })
}

fn total_bytes(files: &[FileEntry]) -> Result<u64, MetainfoError> {
    let mut total: u64 = 0;
    for (file_index, file) in files.iter().enumerate() {
        // File offsets are signed 64-bit numbers to the kernel.
        total = total
            .checked_add(file.length_bytes)
            .filter(|total| i64::try_from(*total).is_ok())
            .ok_or(MetainfoError::LengthOverflow { file_index })?;
    }
    Ok(total)
}

/// `path.utf-8` if it is what it says, else `path`.
fn path(dict: Dict<'_>) -> Option<Vec<Vec<u8>>> {
    let utf8 = dict
        .list(b"path.utf-8")
        .filter(|list| !list.is_empty() && list.iter().all(|entry| entry.as_str().is_some()));
    elements(utf8.or_else(|| dict.list(b"path"))?)
}

pub(super) fn elements(list: List<'_>) -> Option<Vec<Vec<u8>>> {
    list.iter()
        .map(|entry| entry.as_bytes().map(<[u8]>::to_vec))
        .collect()
}

pub(super) fn attributes(dict: Dict<'_>) -> FileAttributes {
    let attr = dict.bytes(b"attr").unwrap_or_default();
    FileAttributes {
        is_pad: attr.contains(&b'p'),
        is_executable: attr.contains(&b'x'),
        is_hidden: attr.contains(&b'h'),
        is_symlink: attr.contains(&b'l'),
    }
}
