//! Another name for a file or folder of a torrent, on the disk. Layer 5. Blocks.

use std::io;
use std::path::Path;

use super::config::{Rename, TorrentConfig};
use super::error::SessionError;
use super::load;
use super::resume_store::found;
use crate::storage::layout::FileLayout;
use crate::uring::{copy, files};

/// Whether the torrent's files can be called so. `config` has the renames before it.
///
/// # Errors
/// Why not, in words for the user.
pub fn check(config: &TorrentConfig, rename: &Rename) -> Result<(), SessionError> {
    let layout = load::layout_of(config)?;
    let is_root = Path::new(&rename.path) == layout.root_name();
    let (_, located) = load::locate(config, layout.clone())?;
    if is_root && located.root_name() != layout.root_name() {
        let message = "the torrent's folder is that of its files, which has a name of its own";
        return Err(SessionError::new(message, "rename the folder itself"));
    }
    renamed(layout, rename)
}

/// Renames what is there; what is not there yet is made under its new name later. Done already is done.
///
/// # Errors
/// The torrent has no such path, something else has the name, or the file system refuses.
pub fn on_disk(config: &TorrentConfig, rename: &Rename) -> Result<(), SessionError> {
    let layout = load::layout_of(config)?;
    let (folder, located) = load::locate(config, layout.clone())?;
    renamed(layout.clone(), rename)?;
    let path = Path::new(&rename.path);
    // The data may lie under another root than the torrent names.
    let below = path.strip_prefix(layout.root_name()).unwrap_or(path);
    let old = match below.as_os_str().is_empty() {
        true => located.root_name().to_path_buf(),
        false => located.root_name().join(below),
    };
    let new = old.with_file_name(&rename.name);
    let cannot = |error: io::Error| {
        let shown = folder.join(&old);
        let message = match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("{} is there already", folder.join(&new).display())
            }
            _ => format!("{} cannot be renamed: {error}", shown.display()),
        };
        SessionError::new(message, "choose another name, or move away what has it")
    };
    let Some(base) = found(files::open_root(&folder)).map_err(cannot)? else {
        return Ok(());
    };
    if old == new || !copy::exists_beneath(&base, &old).map_err(cannot)? {
        return Ok(());
    }
    copy::rename_new_beneath(&base, &old, &new).map_err(cannot)?;
    let parent = new.parent().unwrap_or(Path::new(""));
    let synced = files::open_dir_beneath(&base, parent).and_then(|dir| files::sync_dir(&dir));
    synced.map_err(cannot)
}

fn renamed(layout: FileLayout, rename: &Rename) -> Result<(), SessionError> {
    let renamed = layout.renamed(Path::new(&rename.path), &rename.name);
    renamed.map(drop).map_err(|error| {
        let message = format!(
            "{:?} cannot be called {:?}: {error}",
            rename.path, rename.name
        );
        SessionError::new(
            message,
            "name a file of the torrent by its path, and a free name",
        )
    })
}
