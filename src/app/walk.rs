//! Which files `gyre create` puts into a torrent, in which order. Layer 7.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::escape::terminal_path;
use super::exit::{Failure, io_cause};

/// Folders inside folders that are entered; deeper ones are a loop or an accident.
const DEPTH_MAX: usize = 256;

/// One regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Path elements below the start; empty when the start itself is a file.
    pub elements: Vec<Vec<u8>>,
    pub path: PathBuf,
    pub length_bytes: u64,
    /// How it looked, to notice changes.
    look: Look,
}

/// Inode, length and time of the last change of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    inode: u64,
    length_bytes: u64,
    mtime: (i64, i64),
}

impl Look {
    fn of(metadata: &fs::Metadata) -> Look {
        Look {
            inode: metadata.ino(),
            length_bytes: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Found {
    /// True when the file no longer looks as it did when it was found.
    pub fn has_changed(&self) -> bool {
        fs::metadata(&self.path).map_or(true, |metadata| Look::of(&metadata) != self.look)
    }
}

/// What a walk came to.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// Sorted by raw path bytes.
    pub files: Vec<Found>,
    /// The start is a single file.
    pub is_single_file: bool,
    /// What was left out, as sentences.
    pub warnings: Vec<String>,
}

/// Lists the files below `start`. Symbolic links are followed, as other tools do; `leave_out` is not listed.
///
/// # Errors
/// Something cannot be read, or links form a loop.
pub fn walk(start: &Path, leave_out: Option<&Path>) -> Result<Walk, Failure> {
    let mut walk = Walk::default();
    let metadata = fs::metadata(start).map_err(|error| unreadable(start, &error))?;
    if metadata.is_file() {
        walk.is_single_file = true;
        walk.files.push(Found {
            elements: Vec::new(),
            path: start.to_owned(),
            length_bytes: metadata.len(),
            look: Look::of(&metadata),
        });
        return Ok(walk);
    }
    if !metadata.is_dir() {
        return Err(Failure::new(
            format!("{} is neither a file nor a folder", terminal_path(start)),
            "name a regular file or a folder",
        ));
    }
    let left_out = leave_out.and_then(|path| path.canonicalize().ok());
    let mut walker = Walker {
        walk: &mut walk,
        left_out,
        ancestors: vec![(metadata.dev(), metadata.ino())],
        elements: Vec::new(),
    };
    walker.folder(start)?;
    walk.files
        .sort_by_cached_key(|file| file.elements.join(&b'/'));
    Ok(walk)
}

struct Walker<'a> {
    walk: &'a mut Walk,
    left_out: Option<PathBuf>,
    /// Device and inode of the folders now inside of.
    ancestors: Vec<(u64, u64)>,
    elements: Vec<Vec<u8>>,
}

impl Walker<'_> {
    fn folder(&mut self, folder: &Path) -> Result<(), Failure> {
        let entries = fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(folder, &error))?;
            let path = entry.path();
            let metadata = fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            self.elements.push(entry.file_name().as_bytes().to_vec());
            self.entry(path, &metadata)?;
            self.elements.pop();
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, metadata: &fs::Metadata) -> Result<(), Failure> {
        if metadata.is_dir() {
            let identity = (metadata.dev(), metadata.ino());
            if self.ancestors.contains(&identity) || self.ancestors.len() >= DEPTH_MAX {
                return Err(Failure::new(
                    format!(
                        "{} leads back into a folder that holds it",
                        terminal_path(&path)
                    ),
                    "remove the symbolic link, or share a folder without it",
                ));
            }
            self.ancestors.push(identity);
            self.folder(&path)?;
            self.ancestors.pop();
        } else if !metadata.is_file() {
            let shown = terminal_path(&path);
            self.walk
                .warnings
                .push(format!("{shown} is no regular file and is left out"));
        } else if self.is_left_out(&path) {
            let shown = terminal_path(&path);
            self.walk.warnings.push(format!(
                "{shown} is the .torrent to be written and is left out"
            ));
        } else {
            self.walk.files.push(Found {
                elements: self.elements.clone(),
                path,
                length_bytes: metadata.len(),
                look: Look::of(metadata),
            });
        }
        Ok(())
    }

    fn is_left_out(&self, path: &Path) -> bool {
        self.left_out
            .as_ref()
            .is_some_and(|left_out| path.canonicalize().is_ok_and(|path| path == *left_out))
    }
}

/// A path that cannot be read.
pub fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::NotFound if fs::symlink_metadata(path).is_ok() => {
            "it is a symbolic link to nothing: remove it or restore what it points to"
        }
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check the permissions of the file and its folders",
        _ => "check the file system",
    };
    Failure::new(
        format!("cannot read {}: {}", terminal_path(path), io_cause(error)),
        hint,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_are_sorted_by_raw_path_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a/z", "a.x", "B", "ä"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let walk = walk(folder.path(), None).unwrap();
        let names = walk.files.iter().map(|file| file.elements.join(&b'/'));
        let names: Vec<String> = names.map(|n| String::from_utf8(n).unwrap()).collect();
        assert_eq!(names, ["B", "a.x", "a/z", "b", "ä"]);
    }

    #[test]
    fn links_are_followed_and_loops_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/f"), "x").unwrap();
        symlink("d", folder.path().join("l")).unwrap();
        assert_eq!(walk(folder.path(), None).unwrap().files.len(), 2);
        symlink("..", folder.path().join("d/up")).unwrap();
        assert!(walk(folder.path(), None).is_err());
    }

    #[test]
    fn broken_links_are_errors_with_their_own_hint() {
        let folder = tempfile::tempdir().unwrap();
        symlink("nowhere", folder.path().join("l")).unwrap();
        let failure = walk(folder.path(), None).unwrap_err();
        assert!(failure.hint().contains("symbolic link"));
    }
}
