//! The state folder: one daemon at a time, and the .torrent files in it. Layer 6. Blocks.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::base::InfoHash;
use crate::uring::files;

/// The state folder of a running daemon.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// The lock ends with this descriptor.
    _lock: OwnedFd,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("another daemon{} has the state folder {}", pid.map_or(String::new(), |pid| format!(" (process {pid})")), path.display())]
    Held { path: PathBuf, pid: Option<u32> },
    #[error("cannot use the state folder {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl StateFolder {
    /// Makes the folder if need be and locks it.
    ///
    /// # Errors
    /// Another daemon has it, or it cannot be made.
    pub fn take(path: &Path) -> Result<StateFolder, FolderError> {
        let failed = |source| FolderError::Io {
            path: path.to_owned(),
            source,
        };
        files::make_folder(&path.join("torrents")).map_err(failed)?;
        let lock = path.join("daemon.lock");
        let options = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(&lock);
        let file = options.map_err(failed)?;
        let lock: OwnedFd = file.try_clone().map_err(failed)?.into();
        if !files::try_lock(&lock, true).map_err(failed)? {
            let text = io::read_to_string(file).unwrap_or_default();
            return Err(FolderError::Held {
                path: path.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        file.set_len(0).map_err(failed)?;
        writeln!(&file, "{}", std::process::id()).map_err(failed)?;
        Ok(StateFolder {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state file.
    pub fn store(&self) -> PathBuf {
        self.path.join("daemon.redb")
    }

    fn torrent(&self, info_hash: InfoHash) -> PathBuf {
        self.path
            .join("torrents")
            .join(format!("{info_hash}.torrent"))
    }

    /// The torrent's .torrent file.
    ///
    /// # Errors
    /// As `read`.
    pub fn load_torrent(&self, info_hash: InfoHash) -> io::Result<Vec<u8>> {
        fs::read(self.torrent(info_hash))
    }

    /// Keeps a .torrent file: on disk, with its name, when it returns.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save_torrent(&self, info_hash: InfoHash, bytes: &[u8]) -> io::Result<()> {
        let path = self.torrent(info_hash);
        let temporary = path.with_extension("tmp");
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        let named = written.and_then(|()| fs::rename(&temporary, &path));
        if named.is_err() {
            // A part of it would take the last room of a disk that is full.
            let _ = fs::remove_file(&temporary);
        }
        named?;
        File::open(self.path.join("torrents"))?.sync_all()
    }

    /// Forgets a .torrent file. One that is not there is none.
    pub fn remove_torrent(&self, info_hash: InfoHash) {
        // What stays is found by nobody, and replaced when the torrent is added anew.
        let _ = fs::remove_file(self.torrent(info_hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_that_cannot_be_kept_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let folder = StateFolder::take(root.path()).unwrap();
        let info_hash = InfoHash::new([5; 20]);
        fs::create_dir(folder.torrent(info_hash)).unwrap();
        folder.save_torrent(info_hash, b"d4:infodee").unwrap_err();
        let left = fs::read_dir(root.path().join("torrents")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [folder.torrent(info_hash)]);
    }

    #[test]
    fn the_second_daemon_hears_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::take(folder.path()).unwrap();
        let second = StateFolder::take(folder.path()).unwrap_err().to_string();
        let pid = format!("(process {})", std::process::id());
        assert!(second.contains(&pid), "{second}");
        drop(first);
        StateFolder::take(folder.path()).unwrap();
    }
}
