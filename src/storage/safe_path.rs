//! Names from a torrent made safe for a file system (HOSTILE.md T8–T10). Layer 3.
//!
//! What a torrent says is never trusted with a path. Every element is made harmless by itself, then the torrent
//! as a whole is cleared of collisions. The result depends on nothing but the torrent, so a later run finds the
//! same files. The rules, in order:
//!
//! - invalid UTF-8, `/`, `\`, control characters and characters that change the writing direction become `_`;
//! - `.` becomes `_`, `..` becomes `__`, names that begin with `.gyre-` (our own files) begin with `_gyre-`;
//! - empty elements are left out, a path with none left is `_`;
//! - elements over 255 bytes are cut and carry `~` and eight digits of the SHA-1 of the original;
//! - of two files with one path, or paths that differ in case only, or a file and a folder with one name, the
//!   later gets `~2` (`~3` …) before its extension. Folders that differ in case only are left as they are.
//!
//! Links already on the disk are the business of whoever opens files (`openat2` with RESOLVE_BENEATH).

use crate::wire::metainfo::Info;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The longest name of one file or folder that Linux file systems take (NAME_MAX).
pub const ELEMENT_BYTES_MAX: usize = 255;

/// The longest path a system call takes, without its closing NUL (PATH_MAX); files are opened from the output
/// folder's descriptor, so that folder's own path does not count.
pub const PATH_BYTES_MAX: usize = 4_095;

/// An extension longer than this is no extension worth keeping apart.
const EXTENSION_BYTES_MAX: usize = 16;

/// As long as the longest suffix that a collision can lead to.
const SUFFIX_WIDEST: &str = "~4294967295";

/// Why a torrent's files cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path of file {file_index} is longer than {max_bytes} bytes")]
    TooLong { file_index: usize, max_bytes: usize },
}

/// One path a file, relative to the output folder: the torrent's root name first if there are several files.
///
/// No path leaves the output folder, and no two files that are written share one. Pad files (BEP 47) are never
/// written: their paths are harmless but may repeat.
///
/// # Errors
/// A path over [`PATH_BYTES_MAX`].
pub fn safe_paths(info: &Info) -> Result<Vec<PathBuf>, PathError> {
    let root = root_name(info);
    if !info.is_multi_file {
        return Ok(info.files.iter().map(|_| PathBuf::from(&root)).collect());
    }
    let mut names = Names::default();
    let files = info.files.iter().enumerate();
    files
        .map(|(file_index, file)| {
            let elements = safe_elements(&file.path);
            let too_long = PathError::TooLong {
                file_index,
                max_bytes: PATH_BYTES_MAX,
            };
            // Before the elements are looked at one by one: their number is a stranger's.
            if path_bytes(&root, &elements) > PATH_BYTES_MAX {
                return Err(too_long);
            }
            let elements = if file.attributes.is_pad {
                elements
            } else {
                names.place(elements)
            };
            if path_bytes(&root, &elements) > PATH_BYTES_MAX {
                return Err(too_long);
            }
            let mut path = PathBuf::from(&root);
            path.extend(elements);
            Ok(path)
        })
        .collect()
}

/// The torrent's name as one safe element: the folder of a torrent with several files, else its file.
pub fn root_name(info: &Info) -> String {
    safe_name(&info.name)
}

/// The name of a torrent as one safe element.
pub fn safe_name(name: &str) -> String {
    safe_element(name.as_bytes()).unwrap_or_else(|| "_".to_owned())
}

/// Whether a name that somebody chose can be taken as it is.
pub fn is_safe_name(name: &str) -> bool {
    safe_element(name.as_bytes()).as_deref() == Some(name)
}

fn path_bytes(root: &str, elements: &[String]) -> usize {
    root.len() + elements.iter().map(|name| name.len() + 1).sum::<usize>()
}

/// At least one element, each safe by itself.
fn safe_elements(raw: &[Vec<u8>]) -> Vec<String> {
    let mut elements: Vec<String> = raw.iter().filter_map(|raw| safe_element(raw)).collect();
    if elements.is_empty() {
        elements.push("_".to_owned());
    }
    elements
}

/// One element made safe by itself, or nothing if it is empty.
fn safe_element(raw: &[u8]) -> Option<String> {
    let mut name = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        name.extend(chunk.valid().chars().map(|c| match is_unsafe(c) {
            true => '_',
            false => c,
        }));
        if !chunk.invalid().is_empty() {
            name.push('_');
        }
    }
    match name.as_str() {
        "" => return None,
        "." => return Some("_".to_owned()),
        ".." => return Some("__".to_owned()),
        _ => {}
    }
    if name
        .get(..6)
        .is_some_and(|start| start.eq_ignore_ascii_case(".gyre-"))
    {
        name.replace_range(..1, "_");
    }
    if name.len() > ELEMENT_BYTES_MAX {
        let digest: [u8; 20] = Sha1::digest(raw).into();
        let [a, b, c, d, ..] = digest;
        name = with_suffix(&name, &format!("~{a:02x}{b:02x}{c:02x}{d:02x}"));
    }
    Some(name)
}

/// Separators, control characters, and what changes the direction of writing or breaks lines.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '/' | '\\' | char::REPLACEMENT_CHARACTER)
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        )
        || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Puts the suffix before the extension, cutting the stem so that all fits into one element.
fn with_suffix(name: &str, suffix: &str) -> String {
    let (stem, extension) = match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= EXTENSION_BYTES_MAX => name.split_at(dot),
        _ => (name, ""),
    };
    let room = ELEMENT_BYTES_MAX.saturating_sub(suffix.len() + extension.len());
    let cut = (0..=room.min(stem.len()))
        .rev()
        .find(|&end| stem.is_char_boundary(end))
        .unwrap_or(0);
    let stem = stem.get(..cut).unwrap_or_default();
    format!("{stem}{suffix}{extension}")
}

/// Names that differ in case only become one; upper case first unites what has two lower-case forms.
fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    name.chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

/// A folder, by number; the torrent's root is 0. Folders that differ in case only share one number.
type FolderId = u32;

/// The names taken so far in every folder.
#[derive(Default)]
struct Names {
    taken: BTreeSet<(FolderId, String)>,
    folders: BTreeMap<(FolderId, String), Folder>,
    /// The last suffix tried for a name, so that many collisions stay cheap. Names that are equal once they are
    /// cut to make room for a suffix share it, or each would try all that the others took.
    suffixes: BTreeMap<(FolderId, String), u32>,
}

#[derive(Clone)]
struct Folder {
    id: FolderId,
    /// The name it had to take because a file has its own.
    other_name: Option<String>,
}

impl Names {
    /// The path with every name in it made unlike all others.
    fn place(&mut self, mut elements: Vec<String>) -> Vec<String> {
        let mut parent = 0;
        if let Some((file, folders)) = elements.split_last_mut() {
            for name in folders {
                let folder = self.folder(parent, name);
                parent = folder.id;
                if let Some(other_name) = folder.other_name {
                    *name = other_name;
                }
            }
            if let Some(other_name) = self.take(parent, file) {
                *file = other_name;
            }
        }
        elements
    }

    fn folder(&mut self, parent: FolderId, name: &str) -> Folder {
        let key = (parent, fold(name));
        if let Some(folder) = self.folders.get(&key) {
            return folder.clone();
        }
        let folder = Folder {
            // Fewer folders than bytes in the torrent, so the number fits.
            id: u32::try_from(self.folders.len() + 1).unwrap_or(u32::MAX),
            other_name: self.take(parent, name),
        };
        self.folders.insert(key, folder.clone());
        folder
    }

    /// Takes the name in this folder, or returns the name taken instead.
    fn take(&mut self, parent: FolderId, name: &str) -> Option<String> {
        let key = (parent, fold(name));
        if self.taken.insert(key.clone()) {
            return None;
        }
        let cut_key = (parent, fold(&with_suffix(name, SUFFIX_WIDEST)));
        let number = self.suffixes.entry(cut_key).or_insert(1);
        loop {
            *number += 1;
            let other_name = with_suffix(name, &format!("~{number}"));
            if self.taken.insert((parent, fold(&other_name))) {
                return Some(other_name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Geometry;
    use crate::wire::metainfo::{FileAttributes, FileEntry, Kind, PieceHashes};
    use proptest::prelude::*;
    use std::path::Component;

    fn info(name: &str, paths: &[&[&[u8]]]) -> Info {
        let entry = |path: &&[&[u8]]| FileEntry {
            path: path.iter().map(|element| element.to_vec()).collect(),
            length_bytes: 1,
            attributes: FileAttributes::default(),
            symlink_target: Vec::new(),
            pieces_root: None,
        };
        Info {
            name: name.to_owned(),
            geometry: Geometry::new(paths.len() as u64, 16_384).unwrap(),
            piece_hashes: PieceHashes::new(&[0; 20]).unwrap(),
            files: paths.iter().map(entry).collect(),
            is_multi_file: true,
            is_private: false,
            source: None,
            kind: Kind::V1,
        }
    }

    fn safe(paths: &[&[&[u8]]]) -> Vec<String> {
        let paths = safe_paths(&info("r", paths)).unwrap();
        paths
            .iter()
            .map(|path| path.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn elements_that_could_escape_are_made_harmless() {
        assert_eq!(
            safe(&[&[b"..", b"..", b"etc", b"passwd"]]),
            ["r/__/__/etc/passwd"]
        );
        assert_eq!(safe(&[&[b".", b"/", b"/abs"]]), ["r/_/_/_abs"]);
        assert_eq!(
            safe(&[&[b"a/../b", b"c\\d", b"e\0f"]]),
            ["r/a_.._b/c_d/e_f"]
        );
        assert_eq!(safe(&[&[b"a\nb\x1b[2J\x7f"]]), ["r/a_b_[2J_"]);
        assert_eq!(
            safe(&[&["x\u{202e}gpj.exe\u{85}".as_bytes()]]),
            ["r/x_gpj.exe_"]
        );
        assert_eq!(
            safe(&[&[b".Gyre-parts"], &[b".gyre"]]),
            ["r/_Gyre-parts", "r/.gyre"]
        );
        assert_eq!(
            safe(&[&["...".as_bytes(), "été ö".as_bytes()]]),
            ["r/.../été ö"]
        );
    }

    #[test]
    fn the_root_name_is_made_safe_too() {
        for (name, root) in [
            ("..", "__"),
            ("/etc", "_etc"),
            ("", "_"),
            ("a\u{fffd}", "a_"),
        ] {
            let mut info = info(name, &[&[b"f"]]);
            assert_eq!(safe_paths(&info), Ok(vec![PathBuf::from(root).join("f")]));
            info.is_multi_file = false;
            assert_eq!(safe_paths(&info), Ok(vec![PathBuf::from(root)]));
        }
    }

    #[test]
    fn empty_names_and_invalid_utf8_are_substituted() {
        assert_eq!(safe(&[&[b"", b"a", b"", b"b"]]), ["r/a/b"]);
        assert_eq!(safe(&[&[], &[b""], &[b"", b""]]), ["r/_", "r/_~2", "r/_~3"]);
        assert_eq!(safe(&[&[b"a\xff\xfeb"], &[b"a\xc3"]]), ["r/a__b", "r/a_"]);
    }

    #[test]
    fn long_elements_are_cut_and_stay_apart() {
        let long = |end: &str| format!("{}{end}.tar", "é".repeat(200)).into_bytes();
        let (a, b) = (long("a"), long("b"));
        let paths = safe(&[&[&a], &[&b], &[&a]]);
        for path in &paths {
            let name = path.strip_prefix("r/").unwrap();
            assert!(
                name.len() <= ELEMENT_BYTES_MAX && name.ends_with(".tar"),
                "{name}"
            );
        }
        assert_ne!(paths[0], paths[1]);
        assert_ne!(paths[0], paths[2]);
        assert!(paths[2].ends_with("~2.tar"));
    }

    #[test]
    fn a_path_too_long_for_the_system_is_an_error() {
        let deep: Vec<&[u8]> = vec![b"abc"; 2_000];
        let error = safe_paths(&info("r", &[&[b"ok"], &deep])).unwrap_err();
        let expected = PathError::TooLong {
            file_index: 1,
            max_bytes: PATH_BYTES_MAX,
        };
        assert_eq!(error, expected);
        let fits: Vec<&[u8]> = vec![b"a"; (PATH_BYTES_MAX - 1) / 2];
        assert!(safe_paths(&info("r", &[&fits])).is_ok());
    }

    #[test]
    fn equal_paths_and_paths_differing_in_case_are_renamed() {
        assert_eq!(
            safe(&[&[b"a.txt"], &[b"A.TXT"], &[b"a.txt"], &[b"a~2.txt"]]),
            ["r/a.txt", "r/A~2.TXT", "r/a~3.txt", "r/a~2~2.txt"]
        );
        let (sharp, double) = ("Straße".as_bytes(), "STRASSE".as_bytes());
        assert_eq!(safe(&[&[sharp], &[double]]), ["r/Straße", "r/STRASSE~2"]);
        // Folders may differ in case: what is inside must not.
        assert_eq!(
            safe(&[&[b"D", b"a"], &[b"d", b"b"], &[b"d", b"A"]]),
            ["r/D/a", "r/d/b", "r/d/A~2"]
        );
    }

    #[test]
    fn a_file_and_a_folder_never_share_a_name() {
        assert_eq!(
            safe(&[&[b"a"], &[b"a", b"b"], &[b"A", b"c"]]),
            ["r/a", "r/a~2/b", "r/a~2/c"]
        );
        assert_eq!(safe(&[&[b"a", b"b"], &[b"a"]]), ["r/a/b", "r/a~2"]);
        assert_eq!(
            safe(&[&[b"a"], &[b"a", b"b"], &[b"a~2", b"b"]]),
            ["r/a", "r/a~2/b", "r/a~2~2/b"]
        );
    }

    #[test]
    fn pad_files_take_no_name_from_others() {
        let mut info = info("r", &[&[b".pad", b"1"], &[b".pad", b"1"], &[b".pad"]]);
        info.files[0].attributes.is_pad = true;
        info.files[1].attributes.is_pad = true;
        let paths = safe_paths(&info).unwrap();
        assert_eq!(paths, ["r/.pad/1", "r/.pad/1", "r/.pad"].map(PathBuf::from));
    }

    #[test]
    fn a_hundred_thousand_equal_paths_take_no_time() {
        let path: &[&[u8]] = &[b"d", b"same"];
        let paths = safe(&vec![path; 100_000]);
        assert_eq!(paths[99_999], "r/d/same~100000");
    }

    #[test]
    fn collisions_of_long_names_with_one_stem_take_no_time() {
        let names: Vec<Vec<u8>> = (0..20_000)
            .map(|n| format!("{}{n:05}", "x".repeat(250)).into_bytes())
            .collect();
        let paths: Vec<[&[u8]; 1]> = names.iter().chain(&names).map(|name| [&name[..]]).collect();
        let paths: Vec<&[&[u8]]> = paths.iter().map(|path| &path[..]).collect();
        let safe: BTreeSet<_> = safe(&paths).into_iter().collect();
        assert_eq!(safe.len(), 40_000);
    }

    fn element() -> impl Strategy<Value = Vec<u8>> {
        let tricky: [&[u8]; 14] = [
            b"a", b"A", b"b", b"..", b".", b"", b"/", b"a~2", b"a/b", b"a_b", b"\xff", b"_", b"__",
            b"a.b",
        ];
        prop_oneof![
            8 => proptest::sample::select(tricky.map(<[u8]>::to_vec).to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..300),
            1 => "\\PC{1,4}".prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn no_path_escapes_and_no_two_collide(
            name in "\\PC{0,3}|\\.\\.|/",
            paths in proptest::collection::vec(proptest::collection::vec(element(), 0..4), 1..20),
        ) {
            let borrowed: Vec<Vec<&[u8]>> =
                paths.iter().map(|path| path.iter().map(Vec::as_slice).collect()).collect();
            let borrowed: Vec<&[&[u8]]> = borrowed.iter().map(Vec::as_slice).collect();
            let info = info(&name, &borrowed);
            let safe = safe_paths(&info).unwrap();
            prop_assert_eq!(&safe, &safe_paths(&info).unwrap());
            let folded: Vec<String> = safe.iter().map(|path| fold(path.to_str().unwrap())).collect();
            for (index, path) in safe.iter().enumerate() {
                prop_assert!(path.components().count() >= 2);
                for component in path.components() {
                    prop_assert!(matches!(component, Component::Normal(name) if name.len() <= 255));
                }
                for other in folded.iter().take(index) {
                    prop_assert_ne!(other, &folded[index]);
                    let below = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
                    prop_assert!(!below(other, &folded[index]) && !below(&folded[index], other));
                }
            }
        }
    }
}
