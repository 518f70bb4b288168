//! What is left to do once all that was asked for is there: lengths and permissions. Layer 5.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::{DiskError, DiskOp, DiskTorrent, Home};
use crate::uring::files::{self, OpenMode};

/// A file that is not yet as the torrent says.
struct Unfinished {
    file: usize,
    path: PathBuf,
    /// Longer than this.
    cut_to: Option<u64>,
    /// To be made executable (BEP 47, attribute `x`).
    is_executable: bool,
}

impl DiskTorrent {
    /// Cuts selected files that are longer than the torrent says, and sets the executable bits that it asks for. Call it
    /// when the torrent is complete; the next sync makes it durable.
    ///
    /// Returns what could not be done: the data is good all the same.
    pub async fn finish(&self) -> Vec<DiskError> {
        let mut errors = Vec::new();
        if !self.config.is_writer {
            return errors;
        }
        let wanted = self.config.layout.files().iter().enumerate();
        let wanted: Vec<Unfinished> = wanted
            .filter(|(file, _)| self.home(*file) == Home::File && self.is_selected(*file))
            .map(|(file, entry)| Unfinished {
                file,
                path: entry.path.clone(),
                cut_to: Some(entry.length_bytes),
                is_executable: entry.is_executable,
            })
            .collect();
        let base = Arc::clone(&self.base);
        let unfinished = self.lane.off_ring(move || {
            let looked = wanted.into_iter().filter_map(|file| look(&base, file));
            looked.collect::<Vec<Unfinished>>()
        });
        for unfinished in unfinished.await {
            let file = unfinished.file;
            if let Err(error) = self.take_own(file).await {
                errors.push(error);
                continue;
            }
            let base = Arc::clone(&self.base);
            // How the file looks afterwards is our doing.
            self.begin_write(file);
            let done = self.lane.off_ring(move || finish(&base, &unfinished)).await;
            self.end_write(file);
            errors.extend(done.err().map(|(op, error)| self.error(op, file, &error)));
        }
        errors
    }
}

/// What the file lacks, if anything. What cannot be looked at is not there to be finished.
fn look(base: &OwnedFd, mut file: Unfinished) -> Option<Unfinished> {
    let stamp = files::file_stamp_beneath(base, &file.path).ok()?;
    file.cut_to = file.cut_to.filter(|length| stamp.size_bytes > *length);
    // For a permission alone no file is copied that others have too.
    let is_shared = stamp.links > 1 && file.cut_to.is_none();
    file.is_executable = file.is_executable && !stamp.is_executable && !is_shared;
    (file.cut_to.is_some() || file.is_executable).then_some(file)
}

fn finish(base: &OwnedFd, file: &Unfinished) -> Result<(), (DiskOp, io::Error)> {
    if let Some(length) = file.cut_to {
        files::open_beneath(base, &file.path, OpenMode::Write)
            .and_then(|fd| files::set_len(&fd, length))
            .map_err(|error| (DiskOp::Shorten, error))?;
    }
    if file.is_executable {
        files::open_beneath(base, &file.path, OpenMode::Read)
            .and_then(|fd| files::set_executable(&fd))
            .map_err(|error| (DiskOp::SetMode, error))?;
    }
    Ok(())
}
