//! Changes of torrents and of the session, from the words of the protocols into what is remembered. Layer 6.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Live;
use crate::base::InfoHash;
use crate::daemon::control::backend::{
    Change, Limit, NewTorrent, Refusal, SeedLimit, SessionChange,
};
use crate::daemon::control::view;
use crate::daemon::{LiveSettings, TorrentRow};
use crate::swarm::announce::TRACKERS_MAX;

/// A rate above any line; what is asked for beyond it is as good as this.
const RATE_MAX_BYTES_PER_S: u64 = 1 << 50;

/// What of a change goes into the row as it is.
#[derive(Debug, Default)]
pub struct Wish {
    labels: Option<Vec<String>>,
    seed_ratio: Option<SeedLimit>,
    seed_idle: Option<SeedLimit>,
    down: Option<Limit>,
    up: Option<Limit>,
    honors_session: Option<bool>,
    peers_max: Option<u32>,
    priority: Option<i8>,
    is_sequential: Option<bool>,
    super_seeds: Option<bool>,
    trackers: Option<Vec<Vec<String>>>,
    pub(super) priorities: Option<BTreeMap<usize, i8>>,
}

impl Wish {
    /// True when it changes nothing.
    pub const fn is_nothing(&self) -> bool {
        self.labels.is_none()
            && self.seed_ratio.is_none()
            && self.seed_idle.is_none()
            && self.down.is_none()
            && self.up.is_none()
            && self.honors_session.is_none()
            && self.peers_max.is_none()
            && self.priority.is_none()
            && self.is_sequential.is_none()
            && self.super_seeds.is_none()
            && self.trackers.is_none()
            && self.priorities.is_none()
    }

    /// Puts it into the row.
    pub fn take(self, row: &mut TorrentRow) {
        let capped = |limit: Limit| Limit {
            bytes_per_s: limit.bytes_per_s.min(RATE_MAX_BYTES_PER_S),
            ..limit
        };
        if let Some(limit) = self.seed_ratio {
            row.set_ratio_limit(limit);
        }
        if let Some(labels) = self.labels {
            row.labels = labels;
        }
        row.is_sequential = self.is_sequential.unwrap_or(row.is_sequential);
        let settings = &mut row.settings;
        settings.seed_idle = self.seed_idle.unwrap_or(settings.seed_idle);
        settings.down = self.down.map_or(settings.down, capped);
        settings.up = self.up.map_or(settings.up, capped);
        if let Some(honors) = self.honors_session {
            settings.ignores_session = !honors;
        }
        settings.super_seeds = self.super_seeds.or(settings.super_seeds);
        settings.peers_max = self.peers_max.or(settings.peers_max);
        settings.priority = self.priority.unwrap_or(settings.priority);
        if let Some(trackers) = self.trackers {
            settings.trackers = Some(trackers);
        }
        if let Some(priorities) = self.priorities {
            settings.file_priorities = priorities;
        }
    }
}

/// What a torrent that is added is to have from its first moment on, but for its files.
pub fn wish(torrent: &NewTorrent) -> Wish {
    Wish {
        peers_max: torrent.peers_max,
        priority: torrent.priority,
        is_sequential: torrent.is_sequential.then_some(true),
        ..Wish::default()
    }
}

/// Takes a change of the session.
pub fn take_session(settings: &mut LiveSettings, change: SessionChange) {
    let SessionChange {
        downloads,
        limit_down,
        limit_up,
        seed_ratio,
        starts_added,
        seed_idle_minutes,
        alt,
        download_queue,
        seed_queue,
        queue_stalled,
    } = change;
    let capped = |limit: Limit| Limit {
        bytes_per_s: limit.bytes_per_s.min(RATE_MAX_BYTES_PER_S),
        ..limit
    };
    if let Some(downloads) = downloads {
        settings.downloads = downloads;
    }
    settings.down = limit_down.map_or(settings.down, capped);
    settings.up = limit_up.map_or(settings.up, capped);
    settings.seed_ratio = seed_ratio.unwrap_or(settings.seed_ratio);
    settings.starts_added = starts_added.unwrap_or(settings.starts_added);
    if let Some(minutes) = seed_idle_minutes {
        let idle = minutes.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
        settings.seed_idle = idle;
    }
    if let Some(mut alt) = alt {
        alt.down_bytes_per_s = alt.down_bytes_per_s.min(RATE_MAX_BYTES_PER_S);
        alt.up_bytes_per_s = alt.up_bytes_per_s.min(RATE_MAX_BYTES_PER_S);
        settings.alt = alt;
    }
    let queue = &mut settings.queue;
    queue.downloads = download_queue.unwrap_or(queue.downloads);
    queue.seeds = seed_queue.unwrap_or(queue.seeds);
    queue.stalled = queue_stalled.unwrap_or(queue.stalled);
}

impl Live {
    pub(super) async fn change_torrent(
        &self,
        info_hash: InfoHash,
        change: Change,
    ) -> Result<(), Refusal> {
        if change.group.as_ref().is_some_and(|group| !group.is_empty()) {
            return Err(Refusal::Unsupported("a bandwidth group"));
        }
        let trackers = change.trackers.as_ref();
        if trackers.is_some_and(|tiers| tiers.iter().flatten().count() > TRACKERS_MAX) {
            let words = format!("a torrent has at most {TRACKERS_MAX} trackers");
            return Err(Refusal::BadValue(words));
        }
        let (mut selected_files, mut priorities) = (None, None);
        if !change.files.is_empty() {
            let listed = self.control.torrent(info_hash);
            let row = listed.ok_or(Refusal::Unknown(info_hash))?.row;
            let count = usize::try_from(row.files).unwrap_or(0);
            selected_files = view::select(count, row.selected_files.as_deref(), &change.files)?;
            let before = &row.settings.file_priorities;
            priorities = view::priorities(count, before, &change.files)?;
        }
        if selected_files.is_some() || change.labels.is_some() {
            let change = crate::daemon::Change {
                labels: change.labels,
                selected_files,
                ..crate::daemon::Change::default()
            };
            self.control.change(info_hash, change).await?;
        }
        let wish = Wish {
            // These are checked on their way.
            labels: None,
            seed_ratio: change.seed_ratio,
            seed_idle: change.seed_idle,
            down: change.down,
            up: change.up,
            honors_session: change.honors_session,
            peers_max: change.peers_max,
            priority: change.priority,
            is_sequential: change.is_sequential,
            super_seeds: change.super_seeds,
            trackers: change.trackers,
            priorities,
        };
        if !wish.is_nothing() {
            self.control.tune(info_hash, |row| wish.take(row)).await?;
        }
        if let Some(place) = change.queue_position {
            let order = |all: &mut Vec<InfoHash>| super::queue::put(all, info_hash, place);
            self.control.reorder_queue(order).await?;
        }
        Ok(())
    }

    /// A torrent that is there takes over trackers of the same one that was added again. A private one only when its
    /// .torrent names them: a link is not part of what its tracker hands out (BEP 27).
    pub(super) async fn merge(
        &self,
        info_hash: InfoHash,
        tiers: &[Vec<String>],
        is_torrent: bool,
    ) -> Result<(), Refusal> {
        let listed = self.control.torrent(info_hash);
        let is_private = listed.is_some_and(|listed| listed.row.is_private);
        if is_private && !is_torrent {
            return Ok(());
        }
        Ok(self.control.merge_trackers(info_hash, tiers).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_changes_what_it_names_and_nothing_else() {
        let mut row = TorrentRow::default();
        row.settings.up = Limit {
            bytes_per_s: 7,
            is_on: true,
        };
        let before = row.clone();
        Wish::default().take(&mut row);
        assert_eq!(row, before);
        let wish = Wish {
            honors_session: Some(false),
            seed_ratio: Some(SeedLimit::Never),
            ..Wish::default()
        };
        assert!(!wish.is_nothing());
        wish.take(&mut row);
        assert!(row.settings.ignores_session);
        assert_eq!(row.ratio_limit(), SeedLimit::Never);
        assert_eq!(row.settings.up, before.settings.up);
    }
}
