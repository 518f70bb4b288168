//! The demo's folder for everything it makes, gone when dropped. Layer 7.

use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::app::escape::terminal_path;
use crate::app::exit::{Failure, io_cause};
use crate::app::size;

/// Folders of that name are taken this often before there must be something wrong.
const TRIES: u32 = 10;

/// A folder of our own below the system's one for temporary files.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it, if there is room for so many bytes.
    ///
    /// # Errors
    /// There is not, or it cannot be made.
    pub fn make(bytes: u64) -> Result<Folder, Failure> {
        const HINT: &str = "name a folder with room that you may write to in TMPDIR";
        let parent = std::env::temp_dir();
        let failed = |cause: &dyn std::fmt::Display| {
            let message = format!(
                "cannot make a folder in {}: {cause}",
                terminal_path(&parent)
            );
            Failure::new(message, HINT)
        };
        let space = statvfs(&parent).map_err(|error| failed(&io_cause(&error.into())))?;
        let free = space
            .blocks_available()
            .saturating_mul(space.fragment_size());
        if free < bytes {
            return Err(Failure::new(
                format!(
                    "{} has {} free, the demo needs {}",
                    terminal_path(&parent),
                    size::bytes(free),
                    size::bytes(bytes),
                ),
                format!("{HINT}, or use a smaller --size"),
            ));
        }
        let mut last = None;
        for _ in 0..TRIES {
            // The standard library's hash keys are the system's random bytes.
            let random = RandomState::new().build_hasher().finish() >> 32;
            let path = parent.join(format!("gyre-demo-{random:08x}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Folder(path)),
                Err(error) => last = Some(error),
            }
        }
        Err(failed(&last.as_ref().map(io_cause).unwrap_or_default()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes it.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn remove(self) -> Result<(), Failure> {
        fs::remove_dir_all(&self.0).map_err(|error| {
            let path = terminal_path(&self.0);
            let message = format!("cannot remove {path}: {}", io_cause(&error));
            Failure::new(message, "remove it by hand")
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After `remove` there is nothing left; otherwise something else has failed, and that is told.
        let _ = fs::remove_dir_all(&self.0);
    }
}
