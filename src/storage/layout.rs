//! Which bytes of a torrent lie in which file: BEP 3 "files", BEP 47 pad files and links. Layer 3.
//! Names come from `safe_path`; nothing here touches a disk.

use super::safe_path::{PATH_BYTES_MAX, PathError, is_safe_name, root_name, safe_paths};
use crate::base::{Geometry, PieceIndex};
use crate::wire::metainfo::Info;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// Warnings kept; each link of a hostile torrent could cause one.
const WARNINGS_MAX: usize = 32;

/// All files of one torrent in the order of its bytes.
#[derive(Clone, Debug)]
pub struct FileLayout {
    geometry: Geometry,
    root_name: PathBuf,
    files: Vec<LayoutFile>,
    /// Indices of the files that hold bytes: what spans are searched in.
    filled: Vec<usize>,
    warnings: Vec<String>,
}

/// One file and where its bytes are in the torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutFile {
    /// Safe, relative to the output folder.
    pub path: PathBuf,
    /// Of its first byte, in the torrent.
    pub offset: u64,
    pub length_bytes: u64,
    /// Never on the disk: zeros of a BEP 47 pad file, or a link that was dropped (which has no bytes).
    pub is_pad: bool,
    pub is_executable: bool,
    /// What the link says, relative to its own folder; it names something of the same torrent.
    pub symlink: Option<PathBuf>,
}

/// A run of bytes inside one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index into [`FileLayout::files`].
    pub file: usize,
    /// Inside the file.
    pub file_offset: u64,
    /// At least 1.
    pub length: u64,
    /// Inside the torrent.
    pub stream_offset: u64,
}

/// Why a torrent's files cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("the files have {got_bytes} bytes where the torrent has {expected_bytes}")]
    LengthMismatch { expected_bytes: u64, got_bytes: u64 },
}

/// Why something of a torrent cannot have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenameError {
    #[error("that is no name for a file")]
    BadName,
    #[error("the torrent has no such file or folder")]
    Unknown,
    #[error("something else of the torrent has that name")]
    Taken,
    #[error("its path would be too long")]
    TooLong,
    #[error("the torrent has links, which would lead nowhere")]
    HasLinks,
}

impl LayoutFile {
    /// Offset in the torrent just behind its last byte.
    pub const fn end(&self) -> u64 {
        self.offset + self.length_bytes
    }

    /// Whether a regular file with this path is to be on the disk.
    pub const fn is_regular(&self) -> bool {
        !self.is_pad && self.symlink.is_none()
    }
}

impl FileLayout {
    /// Lays out the torrent's files.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(info: &Info) -> Result<FileLayout, LayoutError> {
        let paths = safe_paths(info)?;
        let mut files = Vec::with_capacity(paths.len());
        let (mut offset, mut got_bytes): (u64, u64) = (0, 0);
        for (path, entry) in paths.into_iter().zip(&info.files) {
            if entry.length_bytes > 0 {
                offset = info.geometry.file_start(offset);
            }
            files.push(LayoutFile {
                path,
                offset,
                length_bytes: entry.length_bytes,
                is_pad: entry.attributes.is_pad,
                is_executable: entry.attributes.is_executable,
                symlink: None,
            });
            offset = offset.saturating_add(entry.length_bytes);
            got_bytes = got_bytes.saturating_add(entry.length_bytes);
        }
        let expected_bytes = info.geometry.total_bytes();
        if got_bytes != expected_bytes {
            return Err(LayoutError::LengthMismatch {
                expected_bytes,
                got_bytes,
            });
        }
        let mut warnings = Vec::new();
        if info.files.iter().any(|file| file.attributes.is_symlink) {
            resolve_links(info, &mut files, &mut warnings);
        }
        let holds_bytes =
            |(index, file): (usize, &LayoutFile)| (file.length_bytes > 0).then_some(index);
        Ok(FileLayout {
            geometry: info.geometry.clone(),
            root_name: PathBuf::from(root_name(info)),
            filled: files.iter().enumerate().filter_map(holds_bytes).collect(),
            files,
            warnings,
        })
    }

    /// The same files under another top element, for data that was renamed; `None` unless `name` is one plain element.
    pub fn renamed_root(mut self, name: &OsStr) -> Option<FileLayout> {
        let root = PathBuf::from(name);
        if root.file_name() != Some(name) {
            return None;
        }
        for file in &mut self.files {
            let below: PathBuf = file.path.components().skip(1).collect();
            file.path = if below.as_os_str().is_empty() {
                root.clone()
            } else {
                root.join(below)
            };
        }
        self.root_name = root;
        Some(self)
    }

    /// The same files with another name for the last part of `path`, which is a file or a folder of the torrent or its root.
    ///
    /// # Errors
    /// See [`RenameError`].
    pub fn renamed(mut self, path: &Path, name: &str) -> Result<FileLayout, RenameError> {
        if !is_safe_name(name) {
            return Err(RenameError::BadName);
        }
        let new = path.with_file_name(name);
        // Every path begins with an empty one, which names nothing.
        let is_name = path.file_name().is_some();
        if !is_name || !self.files.iter().any(|file| file.path.starts_with(path)) {
            return Err(RenameError::Unknown);
        }
        if new == path {
            return Ok(self);
        }
        let is_root = path == self.root_name;
        let mut stored = self.files.iter().filter(|file| !file.is_pad);
        if stored.any(|file| file.path.starts_with(&new)) {
            return Err(RenameError::Taken);
        }
        // What a link says is relative to its own folder: only the root may change around it.
        if !is_root && self.files.iter().any(|file| file.symlink.is_some()) {
            return Err(RenameError::HasLinks);
        }
        for file in &mut self.files {
            let Ok(below) = file.path.strip_prefix(path) else {
                continue;
            };
            file.path = match below.as_os_str().is_empty() {
                true => new.clone(),
                false => new.join(below),
            };
            if file.path.as_os_str().len() > PATH_BYTES_MAX {
                return Err(RenameError::TooLong);
            }
        }
        if is_root {
            self.root_name = new;
        }
        Ok(self)
    }

    /// The files in the order of the torrent's bytes.
    pub fn files(&self) -> &[LayoutFile] {
        &self.files
    }

    /// The top element of every path: a folder, or the file of a single-file torrent.
    pub fn root_name(&self) -> &Path {
        &self.root_name
    }

    /// Sizes of the torrent.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What was left out, for the user's eyes.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The runs that make up this range of the torrent, in order, without gaps. What lies past the end of the
    /// torrent is left out. Spans of pad files are among them, empty files never.
    pub fn spans(&self, offset: u64, length: u64) -> impl Iterator<Item = Span> + '_ {
        let end = offset.saturating_add(length);
        let filled = self.filled.get(self.first_filled(offset)..);
        let files = filled.unwrap_or_default().iter().copied();
        files
            .filter_map(|index| Some((index, self.files.get(index)?)))
            .take_while(move |(_, file)| file.offset < end)
            .map(move |(index, file)| {
                let start = file.offset.max(offset);
                Span {
                    file: index,
                    file_offset: start - file.offset,
                    length: file.end().min(end) - start,
                    stream_offset: start,
                }
            })
            .filter(|span| span.length > 0)
    }

    /// The runs that make up one piece.
    pub fn piece_spans(&self, piece: PieceIndex) -> impl Iterator<Item = Span> + '_ {
        let bytes = u64::from(self.geometry.piece_bytes(piece));
        self.spans(self.geometry.piece_offset(piece), bytes)
    }

    /// Indices of the files from the first to the last that has bytes in this piece; empty files may lie between.
    pub fn files_of_piece(&self, piece: PieceIndex) -> Range<usize> {
        let offset = self.geometry.piece_offset(piece);
        let end = offset + u64::from(self.geometry.piece_bytes(piece));
        let first = self.first_filled(offset);
        let last = self.first_filled(end.saturating_sub(1));
        match (self.filled.get(first), self.filled.get(last)) {
            (Some(&first), Some(&last)) if offset < end => first..last + 1,
            _ => 0..0,
        }
    }

    /// Indices of the pieces that have bytes of this file; empty for an empty file.
    pub fn pieces_of_file(&self, file: usize) -> Range<u32> {
        let piece_length = u64::from(self.geometry.piece_length_bytes());
        let count = self.geometry.piece_count();
        let number = |piece: u64| u32::try_from(piece).unwrap_or(count).min(count);
        match self.files.get(file) {
            Some(file) if file.length_bytes > 0 => {
                number(file.offset / piece_length)..number(file.end().div_ceil(piece_length))
            }
            _ => 0..0,
        }
    }

    /// Position in `filled` of the first file that ends behind this offset.
    fn first_filled(&self, offset: u64) -> usize {
        self.filled.partition_point(|&index| {
            self.files
                .get(index)
                .is_some_and(|file| file.end() <= offset)
        })
    }
}

/// A path as the torrent has it, without empty elements.
fn plain(raw: &[Vec<u8>]) -> Vec<&[u8]> {
    let elements = raw.iter().map(Vec::as_slice);
    elements.filter(|element| !element.is_empty()).collect()
}

/// Points each BEP 47 link at the file or folder of this torrent that it names, or drops it (HOSTILE.md T11).
///
/// The target is looked up among the torrent's own paths, never interpreted: it cannot lead anywhere else.
fn resolve_links(info: &Info, files: &mut [LayoutFile], warnings: &mut Vec<String>) {
    let mut by_path: BTreeMap<Vec<&[u8]>, usize> = BTreeMap::new();
    for (index, entry) in info.files.iter().enumerate() {
        if !entry.attributes.is_pad {
            by_path.entry(plain(&entry.path)).or_insert(index);
        }
    }
    for (index, entry) in info.files.iter().enumerate() {
        if !entry.attributes.is_symlink || entry.attributes.is_pad {
            continue;
        }
        let target = plain(&entry.symlink_target);
        let is_above = plain(&entry.path).starts_with(&target);
        // The first path not before the target is the target itself, or below it if it is a folder.
        let found = by_path
            .range(target.clone()..)
            .next()
            .filter(|(path, _)| !target.is_empty() && !is_above && path.starts_with(&target))
            .and_then(|(_, &found)| files.get(found));
        let link = found.and_then(|found| {
            // The torrent's root name comes before the elements of the target.
            let target: PathBuf = found.path.components().take(target.len() + 1).collect();
            let link = relative(&files.get(index)?.path, &target);
            (link.as_os_str().len() <= PATH_BYTES_MAX).then_some(link)
        });
        let Some(file) = files.get_mut(index) else {
            continue;
        };
        if link.is_none() {
            // Nothing is made in its place.
            file.is_pad = true;
            if warnings.len() < WARNINGS_MAX {
                warnings.push(format!(
                    "file {index} is a link to nothing in this torrent and is left out"
                ));
            }
        }
        file.symlink = link;
    }
}

/// What a link at `from` has to say to lead to `to`; both are relative to one folder and without `..`.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let folder = from.parent().unwrap_or(Path::new(""));
    let common = folder
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = folder
        .components()
        .skip(common)
        .map(|_| Component::ParentDir);
    up.chain(to.components().skip(common)).collect()
}

#[cfg(test)]
mod tests;
