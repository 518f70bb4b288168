//! What torrents are told to do: actions, limits, queue, folders, files. Layer 6.

use super::{Answer, Call, Fault, gone_is_fine};
use crate::daemon::control::backend::{
    Action, Backend, Change, FileChange, Limit, QueueMove, Refusal, SeedLimit, TorrentLimits,
};
use crate::daemon::control::json::{Dialect, Json};

impl<B: Backend> Call<'_, B> {
    pub(super) async fn act(&self, action: Action) -> Result<(), Fault> {
        for torrent in self.chosen("hashes")? {
            gone_is_fine(self.backend().act(torrent.info_hash, action).await)?;
        }
        Ok(())
    }

    pub(super) async fn force_start(&self) -> Result<(), Fault> {
        self.params.need("value")?;
        match self.params.flag("value") {
            Some(true) => self.act(Action::StartNow).await,
            _ => self.act(Action::Start).await,
        }
    }

    pub(super) async fn delete(&self) -> Result<(), Fault> {
        let with_data = self.params.flag("deleteFiles").unwrap_or(false);
        for torrent in self.chosen("hashes")? {
            let removed = self.backend().remove(torrent.info_hash, with_data).await;
            gone_is_fine(removed)?;
        }
        Ok(())
    }

    pub(super) async fn queue(&self, to: QueueMove) -> Result<(), Fault> {
        let chosen = self.chosen("hashes")?;
        let hashes: Vec<_> = chosen.iter().map(|torrent| torrent.info_hash).collect();
        Ok(self.backend().move_in_queue(&hashes, to).await?)
    }

    /// The same change of every torrent that `hashes` names.
    async fn change_chosen(&self, change: &Change) -> Result<(), Fault> {
        for torrent in self.chosen("hashes")? {
            let changed = self.backend().change(torrent.info_hash, change.clone());
            gone_is_fine(changed.await)?;
        }
        Ok(())
    }

    pub(super) async fn toggle_sequential(&self) -> Result<(), Fault> {
        for torrent in self.chosen("hashes")? {
            let change = Change {
                is_sequential: Some(!torrent.is_sequential),
                ..Change::default()
            };
            gone_is_fine(self.backend().change(torrent.info_hash, change).await)?;
        }
        Ok(())
    }

    pub(super) async fn set_super_seeding(&self) -> Result<(), Fault> {
        let change = Change {
            super_seeds: Some(self.params.flag("value").unwrap_or(false)),
            ..Change::default()
        };
        self.change_chosen(&change).await
    }

    pub(super) async fn set_share_limits(&self) -> Result<(), Fault> {
        self.params.need("hashes")?;
        let change = self.share_limits()?;
        if change == Change::default() {
            return Err(Fault::bad("Missing required parameters: ratioLimit"));
        }
        self.change_chosen(&change).await
    }

    /// `ratioLimit`, `seedingTimeLimit` and `inactiveSeedingTimeLimit`: -2 as the session has it, -1 never.
    pub(super) fn share_limits(&self) -> Result<Change, Fault> {
        if self
            .params
            .int("seedingTimeLimit")?
            .is_some_and(|limit| limit >= 0)
        {
            return Err(Fault::unsupported("an end of seeding by time"));
        }
        let ratio = self.params.float("ratioLimit")?;
        let idle = self.params.float("inactiveSeedingTimeLimit")?;
        Ok(Change {
            seed_ratio: ratio
                .map(|ratio| seed_limit("ratioLimit", ratio))
                .transpose()?,
            seed_idle: idle
                .map(|idle| seed_limit("inactiveSeedingTimeLimit", idle))
                .transpose()?,
            ..Change::default()
        })
    }

    pub(super) async fn set_limit(&self, is_down: bool) -> Result<(), Fault> {
        self.params.need("limit")?;
        let limit = self.params.int("limit")?.map(limit_of);
        self.change_chosen(&Change {
            down: limit.filter(|_| is_down),
            up: limit.filter(|_| !is_down),
            ..Change::default()
        })
        .await
    }

    /// A limit of each torrent in bytes a second, -1 without one, by its info_hash.
    pub(super) fn limits(&self, of: fn(&TorrentLimits) -> Limit) -> Result<Answer, Fault> {
        let mut json = Json::new(Dialect::Old);
        json.open(b'{');
        for torrent in self.chosen("hashes")? {
            json.key_as_is(&torrent.info_hash.to_string());
            json.int(super::fields::rate(of(&torrent.limits)));
        }
        json.close(b'}');
        Ok(Answer::Json(json.into_bytes()))
    }

    pub(super) async fn set_location(&self, method: &str) -> Result<(), Fault> {
        let (hashes, folder) = match method {
            "torrents/setSavePath" => ("id", "path"),
            _ => ("hashes", "location"),
        };
        let folder = self.params.need(folder)?.trim();
        if folder.is_empty() {
            return Err(Fault::bad("Save path cannot be empty"));
        }
        let folder = self.rpc.allow(folder).await?;
        for torrent in self.chosen(hashes)? {
            let moved = self.backend().relocate(torrent.info_hash, &folder, true);
            gone_is_fine(moved.await)?;
        }
        Ok(())
    }

    /// Of the two paths, only the last name may differ.
    pub(super) async fn rename(&self) -> Result<(), Fault> {
        let torrent = self.one()?;
        let old = self.params.need("oldPath")?.trim_matches('/');
        let new = self.params.need("newPath")?.trim_matches('/');
        let split = |path: &'_ str| path.rfind('/').map_or(0, |at| at + 1);
        let (parent, name) = new.split_at(split(new));
        let (old_parent, old_name) = old.split_at(split(old));
        let is_name = !name.is_empty() && name != "." && name != ".." && name.len() <= 255;
        if !is_name || name.contains(char::is_control) || old_name.is_empty() {
            return Err(Fault::conflict("that is no name of a file"));
        }
        if parent != old_parent {
            return Err(Fault::unsupported("another folder within a torrent"));
        }
        match self.backend().rename(torrent.info_hash, old, name).await {
            // In their words, what stands against a name is a conflict.
            Err(Refusal::BadValue(words)) => Err(Fault::conflict(words)),
            done => Ok(done?),
        }
    }

    pub(super) async fn file_priority(&self) -> Result<(), Fault> {
        let torrent = self.one()?;
        let ids = self.params.need("id")?;
        let priority = match self.params.need("priority")?.trim() {
            "0" => None,
            "1" => Some(0),
            "6" | "7" => Some(1),
            _ => return Err(Fault::bad("Priority is not valid")),
        };
        let parsed: Result<Vec<usize>, _> = ids.split('|').map(|id| id.trim().parse()).collect();
        let indices = parsed.map_err(|_| Fault::bad("File IDs must be integers"))?;
        let count = usize::try_from(torrent.files).unwrap_or(usize::MAX);
        if !super::fields::has_metadata(&torrent) {
            return Err(Fault::conflict("the torrent's metadata is not here yet"));
        }
        if indices.iter().any(|index| *index >= count) {
            return Err(Fault::conflict("File ID is not valid"));
        }
        let mut files = vec![(FileChange::Wanted(priority.is_some()), indices.clone())];
        files.extend(priority.map(|priority| (FileChange::Priority(priority), indices)));
        let change = Change {
            files,
            ..Change::default()
        };
        Ok(self.backend().change(torrent.info_hash, change).await?)
    }
}

fn seed_limit(name: &str, limit: f64) -> Result<SeedLimit, Fault> {
    match limit {
        -2.0 => Ok(SeedLimit::Session),
        -1.0 => Ok(SeedLimit::Never),
        limit if limit >= 0.0 => Ok(SeedLimit::Own(limit)),
        _ => Err(Fault::bad(format!("{name} is -2, -1 or from 0"))),
    }
}

/// Bytes a second; 0 and less are no limit.
pub(super) fn limit_of(bytes_per_s: i64) -> Limit {
    let bytes_per_s = u64::try_from(bytes_per_s).unwrap_or(0);
    Limit {
        bytes_per_s,
        is_on: bytes_per_s > 0,
    }
}
