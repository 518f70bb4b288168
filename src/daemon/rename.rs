//! Other names for a torrent's files, folders and root. Layer 6.
//!
//! The row says what is to be renamed before it is, and remembers it afterwards; a start between the two does it again.

use std::sync::Arc;

use super::handle::{Control, ControlError};
use super::relocate::{Move, off_thread};
use super::row::{Origin, TorrentRow};
use crate::base::InfoHash;
use crate::session::{Job, Rename, SessionError, TorrentConfig, TorrentSource, rename};

/// Renames of one torrent: all are applied at every start, and nobody does it by the thousand by hand.
pub(super) const RENAMES_MAX: usize = 1_024;

impl Control {
    /// Gives a file or folder of a torrent another name; `path` begins with the torrent's root. Done when it returns.
    ///
    /// # Errors
    /// See [`ControlError`]: there is no such file, or something has the name.
    pub async fn rename(
        &self,
        info_hash: InfoHash,
        path: &str,
        name: &str,
    ) -> Result<(), ControlError> {
        let row = self.row(info_hash)?;
        if row.origin != Origin::Torrent {
            let text = "the torrent's files are not known yet";
            return Err(ControlError::BadValue(text.to_owned()));
        }
        if row.renames.len() >= RENAMES_MAX {
            let text = format!("a torrent has at most {RENAMES_MAX} other names");
            return Err(ControlError::BadValue(text));
        }
        let rename = Rename {
            path: path.trim_end_matches('/').to_owned(),
            name: name.to_owned(),
        };
        let this = self.inner.moves.begin(info_hash, false)?;
        let done = self.rename_held(info_hash, &this, rename).await;
        self.end_move(info_hash, &this).await;
        done
    }

    async fn rename_held(
        &self,
        info_hash: InfoHash,
        this: &Move,
        rename: Rename,
    ) -> Result<(), ControlError> {
        let wanted = rename.clone();
        self.on_config(info_hash, move |config| rename::check(config, &wanted))
            .await?;
        let intent = Some(rename.clone());
        self.change_row(info_hash, |row| row.renaming = intent)
            .await?;
        self.hold(info_hash, this).await;
        self.finish_rename(info_hash, rename).await
    }

    pub(super) async fn resume_rename(&self, info_hash: InfoHash, rename: Rename) {
        let Ok(this) = self.inner.moves.begin(info_hash, true) else {
            return;
        };
        if let Err(error) = self.finish_rename(info_hash, rename).await {
            let words = format!("a file was not renamed: {error}");
            self.inner.moves.tell(info_hash, words);
        }
        self.end_move(info_hash, &this).await;
    }

    async fn finish_rename(&self, info_hash: InfoHash, rename: Rename) -> Result<(), ControlError> {
        let wanted = rename.clone();
        let done = self
            .on_config(info_hash, move |config| rename::on_disk(config, &wanted))
            .await;
        self.change_row(info_hash, |row| {
            row.renaming = None;
            if done.is_ok() {
                row.renames.push(rename);
                row.name_by_root();
            }
        })
        .await?;
        done
    }

    /// Does something with the torrent's settings on a thread that may block.
    async fn on_config(
        &self,
        info_hash: InfoHash,
        work: impl FnOnce(&TorrentConfig) -> Result<(), SessionError> + Send + 'static,
    ) -> Result<(), ControlError> {
        let torrents = Arc::clone(&self.inner.torrents);
        let done = off_thread(move || match torrents.job(info_hash)? {
            Job::Torrent(config) => work(&config),
            Job::Magnet(_) => Ok(()),
        });
        let done = done
            .await
            .unwrap_or_else(|| Err(SessionError::new("there is no thread for it", "try again")));
        done.map_err(|error| ControlError::BadValue(error.to_string()))
    }
}

impl TorrentRow {
    /// What is shown is the root's name where it has another.
    pub(super) fn name_by_root(&mut self) {
        let is_root = |rename: &&Rename| !rename.path.contains('/');
        if let Some(root) = self.renames.iter().rev().find(is_root) {
            self.name = root.name.clone();
        }
    }
}
