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
        if !self.files.iter().any(|file| file.path.starts_with(path)) {
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
mod tests {
    use super::*;
    use crate::wire::metainfo::{FileAttributes, FileEntry, Kind, PieceHashes};
    use proptest::prelude::*;

    /// Words of `path=length`, with `!pad` or `->target` behind it.
    fn info(piece_length: u64, files: &str) -> Info {
        let elements = |path: &str| path.split('/').map(|e| e.as_bytes().to_vec()).collect();
        let entry = |word: &str| {
            let (word, is_pad) = match word.strip_suffix("!pad") {
                Some(word) => (word, true),
                None => (word, false),
            };
            let (word, target) = match word.split_once("->") {
                Some((word, target)) => (word, Some(target)),
                None => (word, None),
            };
            let (path, length) = word.split_once('=').unwrap_or((word, "0"));
            FileEntry {
                path: elements(path),
                length_bytes: length.parse().unwrap(),
                attributes: FileAttributes {
                    is_pad,
                    is_symlink: target.is_some(),
                    ..FileAttributes::default()
                },
                symlink_target: target.map(elements).unwrap_or_default(),
                pieces_root: None,
            }
        };
        let files: Vec<_> = files.split_whitespace().map(entry).collect();
        let total = files.iter().map(|file| file.length_bytes).sum();
        let geometry = Geometry::new(total, piece_length).unwrap();
        let hashes = vec![0; 20 * geometry.piece_count() as usize];
        Info {
            name: "r".to_owned(),
            geometry,
            piece_hashes: PieceHashes::new(&hashes).unwrap(),
            files,
            is_multi_file: true,
            is_private: false,
            source: None,
            kind: Kind::V1,
        }
    }

    #[test]
    fn files_folders_and_the_root_take_other_names_and_no_taken_or_unsafe_ones() {
        let paths = |layout: &FileLayout| {
            let paths = layout
                .files()
                .iter()
                .map(|file| file.path.display().to_string());
            paths.collect::<Vec<_>>().join(" ")
        };
        let of = || layout(16_384, "a/x=1 a/y=2 b=3");
        let to = |path: &str, name: &str| of().renamed(Path::new(path), name);
        assert_eq!(paths(&to("r/a/x", "z").unwrap()), "r/a/z r/a/y r/b");
        assert_eq!(paths(&to("r/a", "c").unwrap()), "r/c/x r/c/y r/b");
        let root = to("r", "s").unwrap();
        assert_eq!(paths(&root), "s/a/x s/a/y s/b");
        assert_eq!(root.root_name(), Path::new("s"));
        for (path, name, why) in [
            ("r/a/x", "y", RenameError::Taken),
            ("r/b", "a", RenameError::Taken),
            ("r/b", "..", RenameError::BadName),
            ("r/b", "x/y", RenameError::BadName),
            ("r/b", ".gyre-parts", RenameError::BadName),
            ("r/b", "", RenameError::BadName),
            ("r/a/q", "z", RenameError::Unknown),
            ("../r", "z", RenameError::Unknown),
        ] {
            assert_eq!(to(path, name).unwrap_err(), why, "{path} {name}");
        }
        let links = layout(16_384, "a/x=1 l->a/x");
        let error = links.clone().renamed(Path::new("r/a"), "z").unwrap_err();
        assert_eq!(error, RenameError::HasLinks);
        assert!(links.renamed(Path::new("r"), "s").is_ok());
    }

    fn layout(piece_length: u64, files: &str) -> FileLayout {
        FileLayout::new(&info(piece_length, files)).unwrap()
    }

    fn spans(layout: &FileLayout, offset: u64, length: u64) -> Vec<(usize, u64, u64, u64)> {
        let fields = |s: Span| (s.file, s.file_offset, s.length, s.stream_offset);
        layout.spans(offset, length).map(fields).collect()
    }

    #[test]
    fn spans_cross_files_and_skip_empty_ones() {
        let l = layout(10, "a=4 e=0 b=3 p=5!pad f=0 c=8");
        assert_eq!(
            spans(&l, 2, 12),
            [(0, 2, 2, 2), (2, 0, 3, 4), (3, 0, 5, 7), (5, 0, 2, 12)]
        );
        assert_eq!(spans(&l, 4, 1), [(2, 0, 1, 4)]);
        assert_eq!(spans(&l, 19, 100), [(5, 7, 1, 19)]);
        assert_eq!(spans(&l, 20, 1), []);
        assert_eq!(spans(&l, 5, 0), []);
        assert_eq!(spans(&l, u64::MAX, u64::MAX), []);
        assert!(l.files()[3].is_pad && !l.files()[3].is_regular());
        assert_eq!(l.root_name(), Path::new("r"));
        assert_eq!(l.files()[5].path, Path::new("r/c"));
        assert_eq!(l.files()[5].offset, 12);
    }

    #[test]
    fn pieces_and_files_know_each_other() {
        let l = layout(10, "a=4 e=0 b=16 c=1");
        let piece = |index| l.geometry().piece(index).unwrap();
        assert_eq!(l.files_of_piece(piece(0)), 0..3);
        assert_eq!(l.files_of_piece(piece(1)), 2..3);
        assert_eq!(l.files_of_piece(piece(2)), 3..4);
        assert_eq!(l.pieces_of_file(0), 0..1);
        assert_eq!(l.pieces_of_file(1), 0..0);
        assert_eq!(l.pieces_of_file(2), 0..2);
        assert_eq!(l.pieces_of_file(3), 2..3);
        assert_eq!(l.pieces_of_file(4), 0..0);
        assert_eq!(
            l.piece_spans(piece(2)).map(|span| span.length).sum::<u64>(),
            1
        );
    }

    #[test]
    fn lengths_that_do_not_fit_the_geometry_are_an_error() {
        let mut info = info(10, "a=4 b=4");
        info.files[1].length_bytes = u64::MAX;
        assert!(matches!(
            FileLayout::new(&info),
            Err(LayoutError::LengthMismatch { .. })
        ));
    }

    #[test]
    fn links_name_something_of_the_same_torrent() {
        let l = layout(10, "d/a=1 d/l->d/a l->d x/y/l->d/a x/b=1 k->x/y/l");
        let links: Vec<_> = l.files().iter().map(|f| f.symlink.as_deref()).collect();
        let link = |text| Some(Path::new(text));
        assert_eq!(
            links,
            [
                None,
                link("a"),
                link("d"),
                link("../../d/a"),
                None,
                link("x/y/l")
            ]
        );
        assert!(l.warnings().is_empty());
    }

    #[test]
    fn links_that_lead_out_or_nowhere_are_dropped() {
        let l = layout(
            10,
            "a=1 p=1!pad l0->.. l1->/etc/passwd l2->missing l3->../../a l4-> l5->p d/l6->d l7->l7 l8->a/b",
        );
        for file in &l.files()[2..] {
            assert_eq!(file.symlink, None, "{file:?}");
            assert!(file.is_pad && !file.is_regular());
        }
        assert_eq!(l.warnings().len(), 9);
    }

    #[test]
    fn a_pad_file_is_never_a_link() {
        let l = layout(10, "a=1 a->a!pad b->a!pad");
        assert_eq!(l.files()[2].symlink, None);
        assert!(!l.files()[1].is_regular() && !l.files()[2].is_regular());
    }

    #[test]
    fn links_follow_renamed_targets() {
        let l = layout(10, "a=1 a/b=1 l->a/b ..=1 m->..");
        assert_eq!(l.files()[2].symlink.as_deref(), Some(Path::new("a~2/b")));
        assert_eq!(l.files()[4].symlink.as_deref(), Some(Path::new("__")));
    }

    proptest! {
        #[test]
        fn spans_agree_with_a_flat_map_of_bytes(
            lengths in proptest::collection::vec(prop_oneof![Just(0_u64), 0..9_u64], 1..12),
            piece_length in 1..12_u64,
            (offset, length) in (0..90_u64, 0..90_u64),
        ) {
            prop_assume!(lengths.iter().sum::<u64>() > 0);
            let words: Vec<_> = lengths.iter().enumerate().map(|(i, len)| format!("f{i}={len}")).collect();
            let l = layout(piece_length, &words.join(" "));
            let flat: Vec<(usize, u64)> = lengths.iter().enumerate()
                .flat_map(|(file, &len)| (0..len).map(move |at| (file, at))).collect();
            let bytes = |spans: Vec<Span>| -> Vec<(usize, u64)> {
                spans.iter().flat_map(|s| (0..s.length).map(|at| (s.file, s.file_offset + at))).collect()
            };
            let expected: Vec<_> = flat.iter().copied()
                .skip(offset as usize).take(length as usize).collect();
            prop_assert_eq!(bytes(l.spans(offset, length).collect()), expected);
            for piece in l.geometry().pieces() {
                let of_piece: Vec<_> = l.piece_spans(piece).map(|span| span.file).collect();
                let range = l.files_of_piece(piece);
                prop_assert_eq!(range, of_piece[0]..of_piece[of_piece.len() - 1] + 1);
                for file in 0..lengths.len() {
                    let has = l.pieces_of_file(file).contains(&piece.get());
                    prop_assert_eq!(has, of_piece.contains(&file));
                }
            }
        }
    }
}
