//! When to announce to which tracker, for one torrent and one address family (BEP 3, 7, 12, 31). Layer 2.
//!
//! Trackers are tried tier by tier until one answers; that one moves to the front of its tier and is asked again after
//! its interval. Speaks no protocol: `session::announce_task` makes the announces and reports how they went.

use std::time::Duration;

use crate::base::{Now, Rng};
use crate::wire::tracker::{AnnounceRefusal, AnnounceResponse, Event, RetryIn};

/// Trackers kept of one torrent. Real ones list up to a few dozen; each costs a try per round when all are dead.
pub const TRACKERS_MAX: usize = 200;

/// `stopped` announces made when a torrent stops; more would not fit the time a shutdown has.
pub const STOPPED_MAX: usize = 16;

/// Longest time between announces, whatever the tracker says.
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Used when a tracker gives no interval; what most public trackers give.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1_800);

/// Early announces for want of peers keep this distance when the tracker gives no `min interval`.
const MIN_INTERVAL_DEFAULT: Duration = Duration::from_secs(300);

/// Longest pause after failures in a row: a tracker that comes back is found within the hour.
const BACKOFF_MAX: Duration = Duration::from_secs(3_600);

/// Longest jitter added to an interval: spreads clients that started together, without being forgotten by the tracker.
const JITTER_MAX: Duration = Duration::from_secs(60);

/// Limits of one [`Announcer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceConfig {
    /// Peers asked for in each announce.
    pub numwant: u32,
    /// Shortest interval honoured. Smaller than a minute only for one's own test swarm.
    pub interval_min: Duration,
    /// Pause after a first failure; doubles with each further one.
    pub backoff_first: Duration,
}

impl Default for AnnounceConfig {
    fn default() -> Self {
        AnnounceConfig {
            numwant: 200,
            interval_min: Duration::from_secs(60),
            backoff_first: Duration::from_secs(30),
        }
    }
}

/// Names one announce given out; the answer must carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(u64);

/// One announce to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceJob {
    pub id: JobId,
    /// As written in the torrent, unchecked.
    pub url: String,
    pub event: Option<Event>,
    pub numwant: u32,
    /// To be sent back to this tracker.
    pub tracker_id: Option<Vec<u8>>,
    /// It answered the last time that it was asked.
    pub is_answering: bool,
    /// All others fail or are of no use.
    pub is_last_hope: bool,
}

/// Why an announce brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnnounceFailure {
    /// Not reached, or no sensible answer. The text is safe to print.
    Unreachable(String),
    /// The tracker answered with a refusal.
    Refused(AnnounceRefusal),
    /// The URL can never work (unknown scheme, no address in this family).
    Unusable(String),
}

/// How one tracker is doing, for displays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackerStatus {
    /// As written in the torrent, unchecked.
    pub url: String,
    /// From 0.
    pub tier: usize,
    pub state: TrackerState,
    pub seeders: Option<u32>,
    pub leechers: Option<u32>,
    /// The last failure or warning, safe to print.
    pub message: Option<String>,
    pub failures_in_row: u32,
    /// Peers in its last answer.
    pub peers: u32,
    /// When it last answered or failed to.
    pub asked: Option<Now>,
    /// When it is asked next; `None` while it is being asked, and of one that is not asked again.
    pub next: Option<Now>,
}

/// Where a tracker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackerState {
    /// Not asked yet.
    Idle,
    /// An announce is under way.
    Announcing,
    /// Its last announce worked.
    Working,
    /// Its last announce failed; tried again later.
    Failing,
    /// Will not be asked again (BEP 31 `never`, or an unusable URL).
    Disabled,
}

#[derive(Debug)]
struct Tracker {
    url: String,
    tier: usize,
    state: TrackerState,
    /// It holds us in its list: owed a `stopped`.
    is_told_started: bool,
    is_owed_completed: bool,
    /// Not asked before this moment: back-off, BEP 31.
    not_before: Now,
    /// An early announce is polite from this moment (`min interval`).
    early_from: Now,
    /// It named the time to come back itself (BEP 31).
    is_told_to_wait: bool,
    last_success: Option<Now>,
    failures_in_row: u32,
    /// When it last answered or failed to, and the peers it named.
    asked: Option<Now>,
    peers: u32,
    tracker_id: Option<Vec<u8>>,
    seeders: Option<u32>,
    leechers: Option<u32>,
    message: Option<String>,
}

#[derive(Debug)]
struct InFlight {
    id: JobId,
    tracker: usize,
    event: Option<Event>,
}

/// The state machine. Ask [`Announcer::next_announce`] at [`Announcer::next_deadline`] and after every event.
#[derive(Debug)]
pub struct Announcer {
    config: AnnounceConfig,
    /// In the order of trying: tier by tier, shuffled within each.
    trackers: Vec<Tracker>,
    in_flight: Option<InFlight>,
    /// When the next round through the trackers may begin.
    due: Now,
    wants_peers: bool,
    is_stopping: bool,
    next_job: u64,
    rng: Rng,
}

impl Announcer {
    /// A state machine that wants to announce at once. Of the tiers, duplicates and all beyond [`TRACKERS_MAX`] are
    /// left out.
    pub fn new(tiers: Vec<Vec<String>>, config: AnnounceConfig, seed: u64, now: Now) -> Self {
        let mut rng = Rng::new(seed);
        let mut trackers: Vec<Tracker> = Vec::new();
        for (tier, mut urls) in tiers.into_iter().enumerate() {
            rng.shuffle(&mut urls);
            for url in urls {
                let is_new = trackers.iter().all(|tracker| tracker.url != url);
                if is_new && trackers.len() < TRACKERS_MAX {
                    trackers.push(Tracker::new(url, tier, now));
                }
            }
        }
        // A box has one of these a seed and family.
        trackers.shrink_to_fit();
        Announcer {
            config,
            trackers,
            in_flight: None,
            due: now,
            wants_peers: false,
            is_stopping: false,
            next_job: 0,
            rng,
        }
    }

    /// When [`Announcer::next_announce`] may have something; `None` while an announce is under way, while stopping, or
    /// when no tracker is usable.
    pub fn next_deadline(&self) -> Option<Now> {
        if self.in_flight.is_some() || self.is_stopping {
            return None;
        }
        self.usable().map(|tracker| self.ready_at(tracker)).min()
    }

    /// The announce to make now, if any. At most one is under way at a time; report how it went.
    pub fn next_announce(&mut self, now: Now) -> Option<AnnounceJob> {
        if self.in_flight.is_some() || self.is_stopping {
            return None;
        }
        let index = self.trackers.iter().position(|tracker| {
            tracker.state != TrackerState::Disabled && self.ready_at(tracker) <= now
        })?;
        let tracker = self.trackers.get_mut(index)?;
        let event = match (tracker.is_told_started, tracker.is_owed_completed) {
            (false, _) => Some(Event::Started),
            (true, true) => Some(Event::Completed),
            (true, false) => None,
        };
        tracker.state = TrackerState::Announcing;
        let job = self.make_job(index, event, self.config.numwant)?;
        self.in_flight = Some(InFlight {
            id: job.id,
            tracker: index,
            event,
        });
        Some(job)
    }

    /// The announce worked. Unknown or outdated ids are ignored.
    pub fn on_success(&mut self, id: JobId, response: &AnnounceResponse, now: Now) {
        let Some(flight) = self.in_flight.take_if(|flight| flight.id == id) else {
            return;
        };
        let config = &self.config;
        let interval = clamp(response.interval_secs, config, INTERVAL_DEFAULT);
        let min_interval = clamp(
            response.min_interval_secs,
            config,
            MIN_INTERVAL_DEFAULT.min(interval),
        );
        let interval = interval.max(min_interval);
        self.due = now + interval + self.jitter(interval / 10);
        self.wants_peers = false;
        let Some(tracker) = self.trackers.get_mut(flight.tracker) else {
            return;
        };
        tracker.on_success(flight.event, response, now, min_interval);
        self.promote(flight.tracker);
        self.check();
    }

    /// The announce failed: the next tracker's turn, or a pause that doubles with each failure in a row.
    pub fn on_failure(&mut self, id: JobId, failure: AnnounceFailure, now: Now) {
        let Some(flight) = self.in_flight.take_if(|flight| flight.id == id) else {
            return;
        };
        // 2^20 times any first pause is far over the lid.
        let failures = self
            .trackers
            .get(flight.tracker)
            .map_or(0, |tracker| tracker.failures_in_row.min(20));
        let pause = self
            .config
            .backoff_first
            .saturating_mul(1 << failures)
            .min(BACKOFF_MAX);
        let pause = pause + self.jitter(pause / 4);
        if let Some(tracker) = self.trackers.get_mut(flight.tracker) {
            tracker.on_failure(failure, now, pause);
        }
        self.check();
    }

    /// The download has just been finished: the tracker in use is told at once, others when they are next asked.
    pub fn on_completed(&mut self) {
        let in_flight = self.in_flight.as_ref().map(|flight| flight.tracker);
        for (index, tracker) in self.trackers.iter_mut().enumerate() {
            // A tracker whose `started` is under way may have been given a `left` that is not 0.
            tracker.is_owed_completed |= tracker.is_told_started || in_flight == Some(index);
        }
    }

    /// Nobody waits for the answer to what is under way any more: it is asked for again.
    pub fn on_broken_off(&mut self) {
        let Some(flight) = self.in_flight.take() else {
            return;
        };
        if let Some(tracker) = self.trackers.get_mut(flight.tracker) {
            tracker.state = TrackerState::Idle;
        }
        self.check();
    }

    /// Peers are running out: announces as early as the tracker's `min interval` allows.
    pub fn on_want_peers(&mut self) {
        self.wants_peers = true;
    }

    /// There is a way out again after there was none: failures say nothing about the trackers, and peers are wanted. What
    /// a tracker asked for itself is kept.
    pub fn on_way_back(&mut self, now: Now) {
        for tracker in &mut self.trackers {
            if tracker.state == TrackerState::Failing && !tracker.is_told_to_wait {
                tracker.failures_in_row = 0;
                tracker.not_before = now;
            }
        }
        if self
            .trackers
            .iter()
            .all(|tracker| tracker.state != TrackerState::Working)
        {
            self.due = self.due.min(now);
        }
        self.wants_peers = true;
    }

    /// That tracker lists us from an earlier run and is to be asked at `at`: none is asked sooner, but for want of peers.
    pub fn resume(&mut self, url: &str, at: Now, now: Now) {
        let place = self.trackers.iter().position(|tracker| tracker.url == url);
        let Some(tracker) = place.and_then(|place| self.trackers.get_mut(place)) else {
            return;
        };
        tracker.state = TrackerState::Working;
        tracker.is_told_started = true;
        tracker.early_from = at.min(now + MIN_INTERVAL_DEFAULT);
        self.due = self.due.max(at).min(now + INTERVAL_MAX);
        place.into_iter().for_each(|place| self.promote(place));
        self.check();
    }

    /// The tracker that lists us, and when one is asked again.
    pub fn standing(&self) -> Option<(&str, Now)> {
        let lists_us = |tracker: &&Tracker| tracker.is_told_started && !tracker.is_failing();
        let tracker = self.trackers.iter().find(lists_us)?;
        Some((&tracker.url, self.due))
    }

    /// Other trackers from now on. Those that stay keep what is known of them. Gives the `stopped` announces for those
    /// that go and know us; their outcome need not be reported.
    pub fn set_tiers(&mut self, tiers: Vec<Vec<String>>, now: Now) -> Vec<AnnounceJob> {
        let urls = tiers.iter().enumerate();
        let mut urls = urls.flat_map(|(tier, urls)| urls.iter().map(move |url| (tier, url)));
        let is_there = |(tier, url): (usize, &String)| {
            let mut trackers = self.trackers.iter();
            trackers.any(|tracker| tracker.tier == tier && tracker.url == *url)
        };
        if tiers.iter().flatten().count() == self.trackers.len() && urls.all(is_there) {
            return Vec::new();
        }
        let mut old = std::mem::take(&mut self.trackers);
        let in_flight = self.in_flight.take();
        let asked = in_flight
            .as_ref()
            .and_then(|flight| old.get(flight.tracker));
        let asked = asked.map(|tracker| tracker.url.clone());
        for (tier, mut urls) in tiers.into_iter().enumerate() {
            self.rng.shuffle(&mut urls);
            for url in urls {
                let is_new = self.trackers.iter().all(|tracker| tracker.url != url);
                if !is_new || self.trackers.len() >= TRACKERS_MAX {
                    continue;
                }
                let known = old.iter().position(|tracker| tracker.url == url);
                self.trackers.push(match known {
                    Some(place) => Tracker {
                        tier,
                        ..old.swap_remove(place)
                    },
                    None => Tracker::new(url, tier, now),
                });
            }
        }
        let still = |url: &String| self.trackers.iter().position(|one| one.url == *url);
        match (in_flight, asked.as_ref().and_then(still)) {
            (Some(flight), Some(tracker)) => self.in_flight = Some(InFlight { tracker, ..flight }),
            // Its `started` may have arrived though the answer has not.
            _ => {
                let gone = old
                    .iter_mut()
                    .find(|tracker| Some(&tracker.url) == asked.as_ref());
                gone.into_iter()
                    .for_each(|tracker| tracker.is_told_started = true);
            }
        }
        let is_working = |tracker: &Tracker| tracker.state == TrackerState::Working;
        if !self.trackers.first().is_some_and(is_working) {
            // Those before the one that works are tried at once, and it is not asked sooner than it likes.
            self.due = self.due.min(now);
            for tracker in self.trackers.iter_mut().filter(|one| is_working(one)) {
                tracker.not_before = tracker.not_before.max(tracker.early_from);
            }
        }
        let gone = old.into_iter().filter(|tracker| tracker.is_told_started);
        let goodbyes = gone.take(STOPPED_MAX).map(|tracker| {
            self.next_job += 1;
            AnnounceJob {
                id: JobId(self.next_job - 1),
                is_answering: tracker.last_success.is_some() && tracker.failures_in_row == 0,
                url: tracker.url,
                event: Some(Event::Stopped),
                numwant: 0,
                tracker_id: tracker.tracker_id,
                is_last_hope: false,
            }
        });
        let goodbyes = goodbyes.collect();
        self.check();
        goodbyes
    }

    /// Peers to ask for from now on.
    pub fn set_numwant(&mut self, numwant: u32) {
        self.config.numwant = numwant;
    }

    /// The torrent stops. Gives the `stopped` announces for all trackers that know us, the most recently heard first;
    /// nothing else is announced from here on, and their outcome need not be reported.
    pub fn on_stopping(&mut self) -> Vec<AnnounceJob> {
        self.is_stopping = true;
        if let Some(flight) = self.in_flight.take()
            && let Some(tracker) = self.trackers.get_mut(flight.tracker)
        {
            // Its `started` may have arrived though the answer has not.
            tracker.is_told_started = true;
        }
        let mut told: Vec<usize> = (0..self.trackers.len())
            .filter(|&index| self.trackers.get(index).is_some_and(|t| t.is_told_started))
            .collect();
        told.sort_by_key(|&index| {
            let heard = self.trackers.get(index).and_then(|t| t.last_success);
            std::cmp::Reverse(heard)
        });
        told.truncate(STOPPED_MAX);
        for tracker in &mut self.trackers {
            tracker.is_told_started = false;
        }
        told.into_iter()
            .filter_map(|index| self.make_job(index, Some(Event::Stopped), 0))
            .collect()
    }

    /// All trackers in the order they are tried.
    pub fn status(&self) -> Vec<TrackerStatus> {
        let status = |tracker: &Tracker| {
            let is_over = self.is_stopping || tracker.state == TrackerState::Disabled;
            let is_asked = tracker.state == TrackerState::Announcing;
            TrackerStatus {
                next: (!is_over && !is_asked).then(|| self.ready_at(tracker)),
                ..tracker.status()
            }
        };
        self.trackers.iter().map(status).collect()
    }

    /// True when trackers were given but every one of them failed last time or is disabled.
    pub fn is_all_failing(&self) -> bool {
        !self.trackers.is_empty() && self.trackers.iter().all(Tracker::is_failing)
    }

    fn usable(&self) -> impl Iterator<Item = &Tracker> {
        self.trackers
            .iter()
            .filter(|tracker| tracker.state != TrackerState::Disabled)
    }

    fn ready_at(&self, tracker: &Tracker) -> Now {
        let is_working = tracker.state == TrackerState::Working;
        let due = if is_working && tracker.is_owed_completed {
            Now::ZERO
        } else if is_working && self.wants_peers {
            self.due.min(tracker.early_from)
        } else {
            self.due
        };
        due.max(tracker.not_before)
    }

    fn make_job(
        &mut self,
        index: usize,
        event: Option<Event>,
        numwant: u32,
    ) -> Option<AnnounceJob> {
        let tracker = self.trackers.get(index)?;
        let id = JobId(self.next_job);
        self.next_job += 1;
        let mut others = self.trackers.iter().enumerate();
        let is_last_hope = others.all(|(other, tracker)| other == index || tracker.is_failing());
        Some(AnnounceJob {
            id,
            url: tracker.url.clone(),
            event,
            numwant,
            tracker_id: tracker.tracker_id.clone(),
            is_answering: tracker.last_success.is_some() && tracker.failures_in_row == 0,
            is_last_hope,
        })
    }

    /// BEP 12: the tracker that answered becomes the first of its tier.
    fn promote(&mut self, index: usize) {
        let Some(tier) = self.trackers.get(index).map(|tracker| tracker.tier) else {
            return;
        };
        let first = self
            .trackers
            .iter()
            .position(|tracker| tracker.tier == tier)
            .unwrap_or(index);
        if let Some(span) = self.trackers.get_mut(first..=index) {
            span.rotate_right(1);
        }
    }

    fn jitter(&mut self, limit: Duration) -> Duration {
        let limit = limit.min(JITTER_MAX);
        let micros = u64::try_from(limit.as_micros()).unwrap_or(0);
        Duration::from_micros(self.rng.below(micros))
    }

    /// Debug builds look at the invariants after every change.
    fn check(&self) {
        debug_assert!(
            self.trackers.is_sorted_by_key(|tracker| tracker.tier),
            "tiers stay together"
        );
        let announcing = self
            .trackers
            .iter()
            .filter(|tracker| tracker.state == TrackerState::Announcing)
            .count();
        debug_assert_eq!(announcing, usize::from(self.in_flight.is_some()));
    }
}

impl Tracker {
    fn new(url: String, tier: usize, now: Now) -> Self {
        Tracker {
            url,
            tier,
            state: TrackerState::Idle,
            is_told_started: false,
            is_owed_completed: false,
            not_before: now,
            early_from: now,
            is_told_to_wait: false,
            last_success: None,
            asked: None,
            peers: 0,
            failures_in_row: 0,
            tracker_id: None,
            seeders: None,
            leechers: None,
            message: None,
        }
    }

    const fn is_failing(&self) -> bool {
        matches!(self.state, TrackerState::Failing | TrackerState::Disabled)
    }

    fn on_success(
        &mut self,
        event: Option<Event>,
        response: &AnnounceResponse,
        now: Now,
        min_interval: Duration,
    ) {
        self.state = TrackerState::Working;
        self.is_told_started = true;
        if event == Some(Event::Completed) {
            self.is_owed_completed = false;
        }
        self.failures_in_row = 0;
        self.asked = Some(now);
        self.peers = u32::try_from(response.peers.len()).unwrap_or(u32::MAX);
        self.not_before = now;
        self.is_told_to_wait = false;
        self.early_from = now + min_interval;
        self.last_success = Some(now);
        // BEP 3: a tracker id once given stays valid until another is given.
        if response.tracker_id.is_some() {
            self.tracker_id.clone_from(&response.tracker_id);
        }
        self.seeders = response.seeders;
        self.leechers = response.leechers;
        self.message.clone_from(&response.warning);
    }

    fn on_failure(&mut self, failure: AnnounceFailure, now: Now, pause: Duration) {
        self.failures_in_row = self.failures_in_row.saturating_add(1);
        self.asked = Some(now);
        self.state = TrackerState::Failing;
        self.not_before = now + pause;
        self.is_told_to_wait = false;
        let message = match failure {
            AnnounceFailure::Unreachable(text) => text,
            AnnounceFailure::Unusable(text) => {
                self.state = TrackerState::Disabled;
                text
            }
            AnnounceFailure::Refused(refusal) => {
                match refusal.retry_in {
                    Some(RetryIn::Never) => self.state = TrackerState::Disabled,
                    Some(RetryIn::After(wait)) => {
                        self.is_told_to_wait = true;
                        self.not_before = now + wait.clamp(pause.min(BACKOFF_MAX), INTERVAL_MAX);
                    }
                    None => {}
                }
                refusal.reason
            }
        };
        self.message = Some(message);
    }

    fn status(&self) -> TrackerStatus {
        TrackerStatus {
            url: self.url.clone(),
            tier: self.tier,
            state: self.state,
            seeders: self.seeders,
            leechers: self.leechers,
            message: self.message.clone(),
            failures_in_row: self.failures_in_row,
            peers: self.peers,
            asked: self.asked,
            next: None,
        }
    }
}

fn clamp(secs: Option<u64>, config: &AnnounceConfig, default: Duration) -> Duration {
    secs.map_or(default, Duration::from_secs)
        .max(config.interval_min)
        .min(INTERVAL_MAX)
}

#[cfg(test)]
mod tests;
