//! Forgetting a torrent: its resume records, and its files when that is asked for. Layer 5. Blocks.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::command::{Removed, TorrentSource};
use super::config::{Job, TorrentConfig};
use super::error::SessionError;
use super::load;
use super::resume_store::{ResumeStore, found};
use crate::base::InfoHash;
use crate::storage::parts::PartsMap;
use crate::uring::files;

/// Files named among those that are still there; a torrent may have a million.
const KEPT_NAMED_MAX: usize = 16;

/// Removes the torrent's records and, with `with_data`, its files and the folders that are empty then. Whatever else lies
/// there stays.
pub fn remove(
    state_dir: &Path,
    info_hash: InfoHash,
    source: &dyn TorrentSource,
    with_data: bool,
) -> Removed {
    let mut removed = Removed::default();
    if with_data {
        let data = source.job(info_hash).and_then(|job| match job {
            Job::Torrent(config) => remove_data(&config, &mut removed),
            // Nothing was fetched yet.
            Job::Magnet(_) => Ok(()),
        });
        if let Err(error) = data {
            removed.kept.push(error.to_string());
        }
    }
    let records = ResumeStore::open(state_dir).and_then(|store| store.remove_all(info_hash));
    if let Err(error) = records {
        let text = format!("its resume record cannot be removed: {error}");
        removed.kept.push(text);
    }
    removed
}

fn remove_data(config: &TorrentConfig, removed: &mut Removed) -> Result<(), SessionError> {
    let (folder, layout) = load::locate(config, load::layout_of(config)?)?;
    let parts = PartsMap::new(&layout, config.metainfo.info_hash);
    let cannot = |error: io::Error| {
        SessionError::new(
            format!("cannot open {}: {error}", folder.display()),
            "check the folder and its permissions",
        )
    };
    let Some(base) = found(files::open_root(&folder)).map_err(cannot)? else {
        return Ok(());
    };
    let mut folders = BTreeSet::new();
    let regular = layout.files().iter().filter(|file| file.is_regular());
    let paths = regular.map(|file| file.path.as_path());
    for path in paths.chain([parts.path().as_path()]) {
        folders.extend(path.ancestors().skip(1).map(Path::to_path_buf));
        let gone =
            files::file_stamp_beneath(&base, path).and_then(|_| files::unlink_beneath(&base, path));
        match found(gone) {
            Ok(there) => removed.files += u64::from(there.is_some()),
            Err(error) if removed.kept.len() < KEPT_NAMED_MAX => {
                let path = folder.join(path);
                removed
                    .kept
                    .push(format!("{} stays: {error}", path.display()));
            }
            Err(_) => {}
        }
    }
    let links = layout.files().iter().filter(|file| file.symlink.is_some());
    for link in links.filter(|link| files::is_link_beneath(&base, &link.path)) {
        // A link of ours that cannot go keeps its folder, which says enough.
        let _ = files::unlink_beneath(&base, &link.path);
    }
    folders.remove(&PathBuf::new());
    // The deepest come last in their order. One with something in it stays.
    for path in folders.iter().rev() {
        let _ = files::rmdir_beneath(&base, path);
    }
    Ok(())
}
