//! Policies: which torrents they are for, and what they say of these. Layer 6.
//!
//! A policy names a device or folder, a tracker, a label or a single torrent, or several of these; all that fit a torrent count
//! for it, in this order: those for devices, folders and everything, for trackers, for labels, for torrents, and as they
//! stand in the settings file. Their caps and shares are rules of the session's bandwidth
//! ([`crate::swarm::bandwidth`]); their goals are looked after by `policing.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::control::rpc::tracker_host as host;
use super::hooks::Hook;
use super::queue::Places;
use super::row::TorrentRow;
use super::schedule::{Moment, Schedule};
use crate::base::InfoHash;
use crate::session::command::Rules;
use crate::swarm::bandwidth::{Rule, RuleId};

/// Policies of one daemon: operators have a handful, and each torrent is held against all of them.
pub const POLICIES_MAX: usize = 256;

/// One policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// What it is called; no two are called the same.
    pub name: String,
    /// Where a file system is mounted.
    pub device: Option<PathBuf>,
    /// Torrents that lie in it or below it.
    pub folder: Option<PathBuf>,
    /// A host, or the domain of several; in small letters.
    pub tracker: Option<String>,
    pub label: Option<String>,
    pub torrent: Option<InfoHash>,
    /// When its limits count; its goal always does. `None` is always.
    pub schedule: Option<Schedule>,
    /// Of all its torrents together.
    pub cap_up_bytes_per_s: Option<u64>,
    pub cap_down_bytes_per_s: Option<u64>,
    /// Its guaranteed part, in [`crate::swarm::bandwidth::SHARE_WHOLE`]ths.
    pub share: Option<u16>,
    /// Peers that all its torrents together upload to at a time.
    pub slots: Option<u32>,
    /// How many of its torrents run at a time.
    pub places: Places,
    /// Its torrents super-seed (BEP 16).
    pub super_seeds: bool,
    /// For each of its torrents.
    pub goal: Option<Goal>,
}

/// How long each torrent is to seed, and what then.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    /// Uploaded ÷ max(downloaded, selected size).
    pub ratio: Option<f64>,
    /// Since it was complete.
    pub time: Option<Duration>,
    pub then: Then,
}

/// What comes of a torrent that has reached its goal.
#[derive(Clone, Debug, PartialEq)]
pub enum Then {
    /// It uploads at most so fast from then on.
    Throttle {
        up_bytes_per_s: u64,
    },
    Stop,
    /// It stops and is taken off the list; its data stays.
    Remove,
    /// A program is run for it, once; it goes on.
    Run(Hook),
}

impl Then {
    /// As it is written.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Then::Throttle { .. } => "throttle",
            Then::Stop => "stop",
            Then::Remove => "remove",
            Then::Run(_) => "hook",
        }
    }
}

/// What a torrent has done for its goal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deeds {
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    pub wanted_bytes: u64,
    /// Since it was complete.
    pub seeded: Option<Duration>,
}

impl Goal {
    /// Whichever of ratio and time comes first.
    pub fn is_reached(&self, deeds: &Deeds) -> bool {
        let base_bytes = deeds.downloaded_bytes.max(deeds.wanted_bytes).max(1) as f64;
        let has = |ratio: f64| deeds.uploaded_bytes as f64 >= ratio * base_bytes;
        let is_time = |time: Duration| deeds.seeded.is_some_and(|seeded| seeded >= time);
        self.ratio.is_some_and(has) || self.time.is_some_and(is_time)
    }
}

impl Policy {
    /// Whether it is for that torrent, as far as the row says: nothing is asked of its device.
    fn is_for(&self, row: &TorrentRow) -> bool {
        let has_tracker = |domain: &String| {
            let mut urls = row.trackers().iter().flatten();
            urls.any(|url| is_within(host(url), domain))
        };
        self.tracker.as_ref().is_none_or(has_tracker)
            && self
                .label
                .as_ref()
                .is_none_or(|label| row.labels.contains(label))
            && self.torrent.is_none_or(|torrent| torrent == row.info_hash)
            && (self.folder.as_ref()).is_none_or(|folder| row.folder.starts_with(folder))
    }

    /// Whether its limits count at that time.
    pub fn is_on(&self, at: Moment) -> bool {
        let schedule = self.schedule.as_ref();
        schedule.is_none_or(|schedule| schedule.holds(at))
    }

    /// The narrower, the further from the top.
    const fn level(&self) -> u8 {
        match (&self.torrent, &self.label, &self.tracker) {
            (Some(_), _, _) => 3,
            (None, Some(_), _) => 2,
            (None, None, Some(_)) => 1,
            (None, None, None) => 0,
        }
    }
}

/// Whether a host is that domain or one below it.
fn is_within(host: &str, domain: &str) -> bool {
    let host = host.trim_end_matches('.').as_bytes();
    let split = host.len().checked_sub(domain.len());
    let split = split.and_then(|at| host.split_at_checked(at));
    split.is_some_and(|(above, end)| {
        end.eq_ignore_ascii_case(domain.as_bytes()) && (above.is_empty() || above.ends_with(b"."))
    })
}

/// Folders as rows have them.
pub type Folders = BTreeSet<PathBuf>;

/// A policy, and the name that the session knows it by.
#[derive(Clone, Debug, PartialEq)]
pub struct InBook {
    pub id: RuleId,
    pub policy: Policy,
    /// It is one of the times in which its limits count.
    pub is_on: bool,
    /// Folders that were on its device when they were last looked at.
    folders: Arc<Folders>,
}

impl InBook {
    /// Whether it is for that torrent.
    pub fn is_for(&self, row: &TorrentRow) -> bool {
        let is_on_device = self.policy.device.is_none() || self.folders.contains(&row.folder);
        self.policy.is_for(row) && is_on_device
    }

    fn has_places(&self) -> bool {
        self.is_on && self.policy.places.are_limited()
    }
}

/// The policies in force.
#[derive(Default)]
pub struct Book {
    inner: Mutex<Inner>,
    /// There are others.
    pub changed: Notify,
    /// Held by whoever looks at devices.
    pub looking: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Inner {
    /// From the top.
    policies: Arc<[Arc<InBook>]>,
    /// Every policy that ever was has its number for good, so that no torrent is held to one that it was not meant for.
    numbers: BTreeMap<String, RuleId>,
    /// Folders whose device is known.
    looked_at: Folders,
    /// Whose goals are reached by figures that no row has yet.
    reached: BTreeSet<(InfoHash, RuleId)>,
}

impl Book {
    /// With these policies.
    pub fn new(policies: Vec<Policy>, now: Moment) -> Book {
        let book = Book::default();
        book.replace(policies, now);
        book
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Others from now on; false when they are the same.
    pub fn replace(&self, mut policies: Vec<Policy>, now: Moment) -> bool {
        policies.sort_by_key(Policy::level);
        let inner = &mut *self.inner();
        let same = |(before, after): (&Arc<InBook>, &Policy)| before.policy == *after;
        if inner.policies.len() == policies.len() && inner.policies.iter().zip(&policies).all(same)
        {
            return false;
        }
        let numbers = &mut inner.numbers;
        let numbered = policies.into_iter().map(|policy| {
            let next = RuleId(u32::try_from(numbers.len()).unwrap_or(u32::MAX));
            let id = *numbers.entry(policy.name.clone()).or_insert(next);
            let is_same = |one: &&Arc<InBook>| one.id == id && one.policy.device == policy.device;
            let before = inner.policies.iter().find(is_same);
            Arc::new(InBook {
                id,
                is_on: policy.is_on(now),
                folders: before.map(|one| one.folders.clone()).unwrap_or_default(),
                policy,
            })
        });
        inner.policies = numbered.collect();
        inner.looked_at.clear();
        inner.reached.clear();
        self.changed.notify_one();
        true
    }

    /// Has the limits of each count or not, as its schedule says; those that changed.
    pub fn keep_time(&self, now: Moment) -> Vec<Arc<InBook>> {
        let inner = &mut *self.inner();
        let is_due = |one: &Arc<InBook>| one.is_on != one.policy.is_on(now);
        if !inner.policies.iter().any(is_due) {
            return Vec::new();
        }
        let policies = inner.policies.iter().map(|one| match is_due(one) {
            true => Arc::new(InBook {
                is_on: !one.is_on,
                ..InBook::clone(one)
            }),
            false => one.clone(),
        });
        let changed = inner.policies.iter().map(is_due).collect::<Vec<_>>();
        inner.policies = policies.collect();
        let policies = inner.policies.iter().zip(changed);
        let changed = policies.filter(|(_, is_changed)| *is_changed);
        changed.map(|(one, _)| one.clone()).collect()
    }

    /// Puts in place which folders are on the device of each policy, and which were looked at; those for which it is news.
    pub fn set_folders(&self, of_rules: &BTreeMap<RuleId, Folders>, looked_at: Folders) -> Folders {
        let inner = &mut *self.inner();
        inner.looked_at = looked_at;
        let mut changed = Folders::new();
        let policies = inner
            .policies
            .iter()
            .map(|one| match of_rules.get(&one.id) {
                Some(folders) if *folders != *one.folders => {
                    changed.extend(folders.symmetric_difference(&one.folders).cloned());
                    Arc::new(InBook {
                        folders: Arc::new(folders.clone()),
                        ..InBook::clone(one)
                    })
                }
                _ => one.clone(),
            });
        inner.policies = policies.collect();
        changed
    }

    /// Whether the device of that folder is known.
    pub fn has_looked_at(&self, folder: &Path) -> bool {
        self.inner().looked_at.contains(folder)
    }

    /// Policies of devices, and where these are mounted.
    pub fn devices(&self) -> Vec<(RuleId, PathBuf)> {
        let policies = self.policies();
        let devices = policies
            .iter()
            .filter_map(|one| Some((one.id, one.policy.device.clone()?)));
        devices.collect()
    }

    /// True when there are such.
    pub fn have_devices(&self) -> bool {
        let policies = &self.inner().policies;
        policies.iter().any(|one| one.policy.device.is_some())
    }

    /// True when the time matters.
    pub fn have_schedules(&self) -> bool {
        let policies = &self.inner().policies;
        policies.iter().any(|one| one.policy.schedule.is_some())
    }

    /// All of them, from the top.
    pub fn policies(&self) -> Arc<[Arc<InBook>]> {
        self.inner().policies.clone()
    }

    /// Those by which torrents may have to wait now.
    pub fn with_places(&self) -> Vec<Arc<InBook>> {
        let policies = self.policies();
        let limited = policies.iter().filter(|one| one.has_places());
        limited.cloned().collect()
    }

    /// True when there are such.
    pub fn have_places(&self) -> bool {
        let policies = &self.inner().policies;
        policies.iter().any(|one| one.has_places())
    }

    /// As the session takes them.
    pub fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        for one in self.policies().iter() {
            let InBook {
                id, policy, is_on, ..
            } = &**one;
            let rule = |cap: Option<u64>| match is_on {
                true => Rule {
                    cap,
                    share: policy.share,
                },
                false => Rule::default(),
            };
            rules
                .slots
                .extend(policy.slots.filter(|_| *is_on).map(|slots| (*id, slots)));
            rules.up.insert(*id, rule(policy.cap_up_bytes_per_s));
            rules.down.insert(*id, rule(policy.cap_down_bytes_per_s));
        }
        rules
    }

    /// Those that count for a torrent.
    pub fn of(&self, row: &TorrentRow) -> Vec<Arc<InBook>> {
        let policies = self.policies();
        let counts = policies.iter().filter(|one| one.is_for(row));
        counts.cloned().collect()
    }

    /// Notes a goal as reached; false when it was so already.
    pub fn note_reached(&self, info_hash: InfoHash, rule: RuleId) -> bool {
        self.inner().reached.insert((info_hash, rule))
    }

    /// What was to be done then could not be: it counts as not reached yet.
    pub fn forget_reached(&self, info_hash: InfoHash, rule: RuleId) {
        self.inner().reached.remove(&(info_hash, rule));
    }

    /// The torrent is gone.
    pub fn forget(&self, info_hash: InfoHash) {
        self.inner().reached.retain(|(of, _)| *of != info_hash);
    }

    /// Whether its goal is noted as reached.
    pub fn is_reached(&self, info_hash: InfoHash, rule: RuleId) -> bool {
        self.inner().reached.contains(&(info_hash, rule))
    }
}

#[cfg(test)]
mod tests;
