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
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// The longest name of one file or folder that Linux file systems take (NAME_MAX).
pub const ELEMENT_BYTES_MAX: usize = 255;

/// The longest path a system call takes, without its closing NUL (PATH_MAX); files are opened from the output
/// folder's descriptor, so that folder's own path does not count.
pub const PATH_BYTES_MAX: usize = 4_095;

/// An extension longer than this is no extension worth keeping apart.
const EXTENSION_BYTES_MAX: usize = 16;

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
    safe_element(info.name.as_bytes()).unwrap_or_else(|| "_".to_owned())
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
    name.chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

/// A folder, by number; the torrent's root is 0. Folders that differ in case only share one number.
type FolderId = u32;

/// The names taken so far in every folder. Looked up only, never walked: its order means nothing.
#[derive(Default)]
struct Names {
    taken: HashSet<(FolderId, String)>,
    folders: HashMap<(FolderId, String), Folder>,
    /// The last suffix tried for a name, so that many collisions on one name stay cheap.
    suffixes: HashMap<(FolderId, String), u32>,
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
        let number = self.suffixes.entry(key).or_insert(1);
        loop {
            *number += 1;
            let other_name = with_suffix(name, &format!("~{number}"));
            if self.taken.insert((parent, fold(&other_name))) {
                return Some(other_name);
            }
        }
    }
}
