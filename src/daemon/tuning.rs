//! What of one torrent may change while it runs, and changing it. Layer 6.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::control::backend::{Limit, SeedLimit};
use super::handle::{Control, ControlError};
use super::row::TorrentRow;
use crate::base::InfoHash;
use crate::session::command::Limits;
use crate::session::tune::Tuning;
use crate::session::{Command, SeedAfter};
use crate::swarm::announce::TRACKERS_MAX;
use crate::swarm::bandwidth::Priority;

/// A seed ratio above any that is reached: seeds for ever.
const RATIO_NEVER: f64 = 1e300;

/// Settings of one torrent; those that are missing in the state take their defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TorrentSettings {
    pub down: Limit,
    pub up: Limit,
    /// The session's limits do not count for it.
    pub ignores_session: bool,
    pub peers_max: Option<u32>,
    /// -1, 0 or 1: its share of the session's limits.
    pub priority: i8,
    /// -1 or 1 by index of the file; those that are missing have 0.
    pub file_priorities: BTreeMap<usize, i8>,
    /// Trackers by tier in place of those that the torrent names.
    pub trackers: Option<Vec<Vec<String>>>,
    /// No ratio ends its seeding, whatever the daemon says.
    pub seeds_at_any_ratio: bool,
    /// Minutes without an upload that end its seeding.
    pub seed_idle: SeedLimit,
    /// Places in the queue are in the order of this number.
    pub queue: i64,
    /// It waits for nobody.
    pub skips_queue: bool,
    /// Whether it super-seeds (BEP 16); `None` is as its policies say.
    pub super_seeds: Option<bool>,
}

impl TorrentSettings {
    /// As the session takes them.
    pub fn tuning(&self) -> Tuning {
        let rate = |limit: Limit| limit.is_on.then_some(limit.bytes_per_s.max(1));
        let files = self.file_priorities.iter();
        let files = files.map(|(index, number)| (*index, Priority::from_number(*number)));
        Tuning {
            limits: Limits {
                up_bytes_per_s: rate(self.up),
                down_bytes_per_s: rate(self.down),
            },
            ignores_session: self.ignores_session,
            peers_max: self.peers_max,
            priority: Priority::from_number(self.priority),
            file_priorities: files.collect(),
            ..Tuning::default()
        }
    }
}

impl TorrentRow {
    /// Its trackers, whoever named them.
    pub fn trackers(&self) -> &[Vec<String>] {
        self.settings.trackers.as_deref().unwrap_or(&self.tiers)
    }

    /// The ratio that ends its seeding.
    pub fn ratio_limit(&self) -> SeedLimit {
        match self.seed_ratio {
            _ if self.settings.seeds_at_any_ratio => SeedLimit::Never,
            None => SeedLimit::Session,
            Some(ratio) if ratio >= RATIO_NEVER => SeedLimit::Never,
            Some(ratio) => SeedLimit::Own(ratio),
        }
    }

    /// Sets what [`TorrentRow::ratio_limit`] tells.
    pub fn set_ratio_limit(&mut self, limit: SeedLimit) {
        self.settings.seeds_at_any_ratio = limit == SeedLimit::Never;
        self.seed_ratio = match limit {
            SeedLimit::Own(ratio) => Some(ratio),
            SeedLimit::Session | SeedLimit::Never => None,
        };
    }

    /// When its seeding ends, in a daemon that has these limits for all.
    pub fn seed_after(&self, daemons: SeedAfter) -> SeedAfter {
        let pick = |own: SeedLimit, daemons: Option<f64>| match own {
            SeedLimit::Session => daemons,
            SeedLimit::Own(value) => Some(value),
            SeedLimit::Never => None,
        };
        let idle_s = daemons.idle.map(|idle| idle.as_secs_f64());
        let own_idle = match self.settings.seed_idle {
            SeedLimit::Own(minutes) => SeedLimit::Own(minutes * 60.0),
            other => other,
        };
        let idle = pick(own_idle, idle_s).map(Duration::try_from_secs_f64);
        SeedAfter {
            seeds: true,
            ratio: pick(self.ratio_limit(), daemons.ratio),
            time: daemons.time,
            // More than a duration holds is for ever.
            idle: idle.and_then(Result::ok),
        }
    }

    /// Whether a seed must run to be ended. A ratio that is not reached is not reached while it sleeps either.
    pub fn must_run(&self, after: SeedAfter) -> bool {
        let base_bytes = self.downloaded_bytes.max(self.wanted_bytes).max(1);
        let is_reached = |ratio: f64| self.uploaded_bytes as f64 >= ratio * base_bytes as f64;
        after.ratio.is_some_and(is_reached) || after.time.is_some() || after.idle.is_some()
    }
}

/// Trackers of both, those that are there first; `None` when nothing is new.
pub fn merged(there: &[Vec<String>], added: &[Vec<String>]) -> Option<Vec<Vec<String>>> {
    let mut all = there.to_vec();
    let mut count = there.iter().flatten().count();
    for tier in added {
        let mut new = Vec::new();
        for url in tier {
            let is_there = all.iter().flatten().chain(&new).any(|one| one == url);
            if !is_there && count < TRACKERS_MAX {
                new.push(url.clone());
                count += 1;
            }
        }
        if !new.is_empty() {
            all.push(new);
        }
    }
    (all.len() > there.len()).then_some(all)
}

impl Control {
    /// Changes what of a torrent may change while it runs, on disk and in the session.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn tune(
        &self,
        info_hash: InfoHash,
        change: impl FnOnce(&mut TorrentRow),
    ) -> Result<(), ControlError> {
        self.change_row(info_hash, change).await?;
        self.put_in_force(info_hash).await
    }

    /// Takes over trackers that a torrent does not have yet.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn merge_trackers(
        &self,
        info_hash: InfoHash,
        added: &[Vec<String>],
    ) -> Result<(), ControlError> {
        let listed = self.torrent(info_hash);
        let row = listed.ok_or(ControlError::Unknown(info_hash))?.row;
        if merged(row.trackers(), added).is_none() {
            return Ok(());
        }
        let take = |row: &mut TorrentRow| {
            if let Some(all) = merged(row.trackers(), added) {
                row.settings.trackers = Some(all);
            }
        };
        self.tune(info_hash, take).await
    }

    /// Tells the session what the row says.
    pub(super) async fn put_in_force(&self, info_hash: InfoHash) -> Result<(), ControlError> {
        let row = self.inner.torrents.rows().get(&info_hash).cloned();
        let row = row.ok_or(ControlError::Unknown(info_hash))?;
        let tuned = Box::new(self.inner.torrents.tuned(&row));
        let asked = self.inner.session.ask(|reply| Command::Tune {
            info_hash,
            tuned,
            reply,
        });
        Ok(asked.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_of_seeding_is_the_torrents_own_the_daemons_or_none() {
        let daemons = SeedAfter {
            seeds: true,
            ratio: Some(2.0),
            time: None,
            idle: Some(Duration::from_secs(600)),
        };
        let mut row = TorrentRow::default();
        assert_eq!(row.seed_after(daemons), daemons);
        row.set_ratio_limit(SeedLimit::Own(0.5));
        row.settings.seed_idle = SeedLimit::Own(2.0);
        let after = row.seed_after(daemons);
        assert_eq!(
            (after.ratio, after.idle),
            (Some(0.5), Some(Duration::from_secs(120)))
        );
        assert_eq!(row.ratio_limit(), SeedLimit::Own(0.5));
        row.set_ratio_limit(SeedLimit::Never);
        row.settings.seed_idle = SeedLimit::Never;
        assert!(!row.must_run(row.seed_after(daemons)));
        assert_eq!(row.ratio_limit(), SeedLimit::Never);
        row.set_ratio_limit(SeedLimit::Session);
        assert_eq!(row.seed_after(daemons).ratio, Some(2.0));
    }

    #[test]
    fn a_seed_sleeps_until_its_ratio_is_reached() {
        let mut row = TorrentRow {
            wanted_bytes: 100,
            downloaded_bytes: 40,
            uploaded_bytes: 149,
            ..TorrentRow::default()
        };
        row.set_ratio_limit(SeedLimit::Own(1.5));
        let must_run = |row: &TorrentRow| row.must_run(row.seed_after(SeedAfter::default()));
        assert!(!must_run(&row));
        row.uploaded_bytes = 150;
        assert!(must_run(&row));
        row.set_ratio_limit(SeedLimit::Never);
        assert!(!must_run(&row));
        row.settings.seed_idle = SeedLimit::Own(5.0);
        assert!(must_run(&row));
    }

    #[test]
    fn trackers_that_are_new_follow_those_that_are_there() {
        let tiers = |tiers: &[&[&str]]| -> Vec<Vec<String>> {
            let own = |tier: &&[&str]| tier.iter().map(|url| (*url).to_owned()).collect();
            tiers.iter().map(own).collect()
        };
        let there = tiers(&[&["a", "b"]]);
        assert_eq!(merged(&there, &tiers(&[&["b"], &["a"]])), None);
        assert_eq!(
            merged(&there, &tiers(&[&["b", "c", "c"], &["d"]])),
            Some(tiers(&[&["a", "b"], &["c"], &["d"]]))
        );
    }
}
