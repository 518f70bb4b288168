//! What keeps a torrent from starting on the files that are there, in words for the user. Layer 5.

use std::path::Path;

use crate::session::config::{CheckMode, TorrentConfig};
use crate::session::disk::{DiskError, DiskOp};
use crate::session::error::SessionError;
use crate::storage::layout::FileLayout;
use crate::storage::resume::{Observed, Verdict};

/// Where data was and is not, its disk is missing: nothing is made in the mount point's place (HOSTILE.md L15).
pub(super) fn refuse_absent(
    config: &TorrentConfig,
    folder: &Path,
    root: &Path,
) -> Result<(), SessionError> {
    let root = folder.join(root);
    // Whoever has all of it checked takes it as it is.
    let is_asked = config.place.is_expected && config.check != CheckMode::Full;
    if !is_asked || std::fs::symlink_metadata(&root).is_ok() {
        return Ok(());
    }
    let what = match folder.is_dir() {
        true => root,
        false => folder.to_owned(),
    };
    Err(SessionError::no_data(
        format!("missing files: {} is not there", what.display()),
        "mount the disk or restore the files: the torrent goes on by itself then",
    ))
}

/// Recorded data that is gone is never fetched again silently (HOSTILE.md L4).
pub(super) fn refuse_missing(
    config: &TorrentConfig,
    layout: &FileLayout,
    verdict: Verdict,
) -> Result<Verdict, SessionError> {
    let Some(first) = verdict
        .missing
        .first()
        .and_then(|file| layout.files().get(*file))
    else {
        return Ok(verdict);
    };
    if !config.fetches {
        return Ok(verdict);
    }
    let (first, folder) = (first.path.display(), config.folder.display());
    let what = match verdict.missing.len() {
        1 => format!("a file that was fetched is missing: {first} in {folder}"),
        count => {
            format!("{count} files that were fetched are missing, the first is {first} in {folder}")
        }
    };
    Err(SessionError::new(
        what,
        "mount or restore them, or fetch what is missing again with --check full",
    ))
}

/// Files that cannot be used: a download needs the selected ones, a seed does without.
pub(super) fn refuse(
    config: &TorrentConfig,
    folder: &Path,
    layout: &FileLayout,
    selected: &[bool],
    refused: &[(usize, std::io::Error)],
) -> Result<Vec<DiskError>, SessionError> {
    let mut errors = Vec::new();
    for (file, error) in refused {
        let path = layout.files().get(*file).map(|file| file.path.as_path());
        let path = folder.join(path.unwrap_or(Path::new("")));
        let error = DiskError::new(DiskOp::Open, path, error);
        if config.fetches && selected.get(*file).copied().unwrap_or(true) {
            return Err(SessionError::new(error.to_string(), error.hint()));
        }
        errors.push(error);
    }
    Ok(errors)
}

/// Selected files whose bytes behind the torrent's end will be cut off: never without a word (they may be somebody's).
pub(super) fn too_long(
    config: &TorrentConfig,
    folder: &Path,
    layout: &FileLayout,
    selected: &[bool],
    observed: &Observed,
) -> Vec<String> {
    let files = layout.files().iter().zip(&observed.files).zip(selected);
    files
        .filter(|(_, is_selected)| config.fetches && **is_selected)
        .filter_map(|((file, stamp), _)| Some((file, (*stamp)?.size_bytes)))
        .filter(|(file, got_bytes)| *got_bytes > file.length_bytes)
        .map(|(file, got_bytes)| {
            format!(
                "{} has {got_bytes} bytes where the torrent has {}: it is cut to that length when all is there",
                folder.join(&file.path).display(),
                file.length_bytes,
            )
        })
        .collect()
}
