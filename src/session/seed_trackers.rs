//! Announces of seeds that may sleep: one schedule for all of them, whether they run or not. Layer 5.
//!
//! When to announce to whom is each torrent's `swarm::announce`, one a family. Here is the order among thousands: those
//! due first go first, a few at a time, so that a start with 10,000 of them is a steady trickle and no storm.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;

use super::announce::Announcing;
use super::announce_task::{
    AnnounceOutcome, AnnounceTarget, STOPPED_TIMEOUT, announce_once, report, send_stopped,
};
use super::command::Announced;
use super::contain::{caught, count_panic};
use super::shared::Shared;
use crate::base::{InfoHash, Now};
use crate::swarm::announce::{AnnounceConfig, AnnounceJob, Announcer, TrackerStatus};
use crate::swarm::candidates::Source;
use crate::wire::tracker::{Counters, Event, Family};

/// From one look at the schedule to the next while something is due.
const TICK: Duration = Duration::from_millis(100);
/// Announces begun in one look: 80 a second, which one tracker of all torrents takes without a thought, so that it hears
/// less than 100 in any second however they bunch on the way.
const PER_TICK_MAX: usize = 8;
/// Announces under way at once: trackers that do not answer hold so many sockets and no more.
const UNDER_WAY_MAX: usize = 100;
/// Torrents that say goodbye at the end of a session: it waits for none of them for long.
const GOODBYES_MAX: usize = 100;
/// Peers asked for: whoever wants something from a seed dials it as well.
const NUMWANT: u32 = 30;

/// All of a session's seeds that may sleep.
#[derive(Default)]
pub struct SeedTrackers {
    seeds: RefCell<BTreeMap<InfoHash, Seed>>,
    /// When each has something to announce next.
    due: RefCell<BTreeSet<(Now, InfoHash)>>,
    under_way: Cell<usize>,
    changed: Notify,
    /// Those that run and announce by themselves, and are about to go to sleep.
    expected: RefCell<BTreeSet<InfoHash>>,
    /// Those asleep that a tracker named peers of, and the peers.
    found: RefCell<BTreeMap<InfoHash, Vec<SocketAddr>>>,
    /// Those of which it has changed who lists them.
    told: RefCell<BTreeSet<InfoHash>>,
}

struct Seed {
    announcers: Vec<(Family, Announcer)>,
    key: u32,
    queued_at: Option<Now>,
    /// Sent by the runs of this session that are over.
    uploaded_bytes: u64,
}

impl SeedTrackers {
    /// Announces this seed from now on; at once, unless a tracker lists it from before.
    pub fn add(
        &self,
        shared: &Shared,
        info_hash: InfoHash,
        tiers: &[Vec<String>],
        before: Option<&Announced>,
    ) {
        if tiers.is_empty() || self.seeds.borrow().contains_key(&info_hash) {
            return;
        }
        let config = AnnounceConfig {
            interval_min: shared.config.announce_interval_min,
            numwant: NUMWANT,
            ..AnnounceConfig::default()
        };
        let now = shared.now();
        // At another port than it was told nobody finds us.
        let before = before.filter(|before| before.port == shared.port.get());
        let of = |family: &Family| {
            let seed = shared.random();
            let mut announcer = Announcer::new(tiers.to_vec(), config.clone(), seed, now);
            if let Some(before) = before {
                announcer.resume(&before.tracker, now + before.next, now);
            }
            (*family, announcer)
        };
        let seed = Seed {
            announcers: shared.families.iter().map(of).collect(),
            key: shared.random() as u32,
            queued_at: None,
            uploaded_bytes: 0,
        };
        self.seeds.borrow_mut().insert(info_hash, seed);
        self.told.borrow_mut().insert(info_hash);
        self.queue(info_hash);
    }

    /// It is about to go to sleep: its announces are to be handed over.
    pub fn expect(&self, info_hash: InfoHash) {
        if !self.has(&info_hash) {
            self.expected.borrow_mut().insert(info_hash);
        }
    }

    /// Whether its announces are to be handed over.
    pub fn is_expected(&self, info_hash: &InfoHash) -> bool {
        self.expected.borrow().contains(info_hash)
    }

    /// Goes on with what a run has announced, or says goodbye for it when it is to end after all.
    pub fn adopt(&self, shared: &Rc<Shared>, info_hash: InfoHash, announcing: Announcing) {
        let is_expected = self.expected.borrow_mut().remove(&info_hash);
        if announcing.announcers.is_empty() || self.has(&info_hash) {
            return;
        }
        let announcers = announcing.announcers.into_iter();
        let announcers = announcers.map(|(family, mut announcer)| {
            announcer.set_numwant(NUMWANT);
            (family, announcer)
        });
        let seed = Seed {
            announcers: announcers.collect(),
            key: announcing.key,
            queued_at: None,
            uploaded_bytes: 0,
        };
        self.seeds.borrow_mut().insert(info_hash, seed);
        match is_expected {
            true => self.queue(info_hash),
            false => self.remove(shared, info_hash),
        }
    }

    /// Those of which it has changed since the last call who lists them.
    pub fn take_told(&self) -> BTreeSet<InfoHash> {
        self.told.take()
    }

    /// The tracker that lists a seed.
    pub fn standing(&self, shared: &Shared, info_hash: &InfoHash) -> Option<Announced> {
        let seeds = self.seeds.borrow();
        let mut announcers = seeds.get(info_hash)?.announcers.iter();
        let (tracker, at) = announcers.find_map(|(_, announcer)| announcer.standing())?;
        Some(Announced {
            tracker: tracker.to_owned(),
            port: shared.port.get(),
            next: at.since(Now::ZERO),
        })
    }

    /// True for a seed that is announced here.
    pub fn has(&self, info_hash: &InfoHash) -> bool {
        self.seeds.borrow().contains_key(info_hash)
    }

    /// Other trackers of a seed that is announced here.
    pub fn set_tiers(&self, shared: &Rc<Shared>, info_hash: InfoHash, tiers: &[Vec<String>]) {
        let mut goodbyes = Vec::new();
        if let Some(seed) = self.seeds.borrow_mut().get_mut(&info_hash) {
            let counters = counters(shared, info_hash, seed);
            let now = shared.now();
            for (family, announcer) in &mut seed.announcers {
                let jobs = announcer.set_tiers(tiers.to_vec(), now);
                goodbyes.push((target(shared, info_hash, seed.key, *family), jobs, counters));
            }
        }
        self.told.borrow_mut().insert(info_hash);
        for (target, jobs, counters) in goodbyes {
            let shared = shared.clone();
            tokio_uring::spawn(async move {
                let clients = shared.trackers.clone();
                let sent = send_stopped(clients, target, jobs, counters, STOPPED_TIMEOUT);
                if caught(sent).await.is_err() {
                    count_panic(&shared, "saying goodbye to a tracker");
                }
            });
        }
        self.queue(info_hash);
    }

    /// Says goodbye, and announces it no more. A run that was about to hand over says goodbye itself.
    pub fn remove(&self, shared: &Rc<Shared>, info_hash: InfoHash) {
        self.expected.borrow_mut().remove(&info_hash);
        let Some(goodbye) = self.goodbye(shared, info_hash) else {
            return;
        };
        tokio_uring::spawn(goodbye);
    }

    /// What it sent in a run that is over.
    pub fn on_run_over(&self, info_hash: &InfoHash, uploaded_bytes: u64) {
        self.expected.borrow_mut().remove(info_hash);
        if let Some(seed) = self.seeds.borrow_mut().get_mut(info_hash) {
            seed.uploaded_bytes += uploaded_bytes;
        }
    }

    /// How its trackers are doing.
    pub fn status(&self, info_hash: &InfoHash) -> Vec<(Family, TrackerStatus)> {
        let seeds = self.seeds.borrow();
        let announcers = seeds
            .get(info_hash)
            .into_iter()
            .flat_map(|seed| &seed.announcers);
        let status = announcers.flat_map(|(family, announcer)| {
            let status = announcer.status().into_iter();
            status.map(|status| (*family, status))
        });
        status.collect()
    }

    /// Asks for peers as soon as the trackers allow.
    pub fn want_peers(&self, info_hash: InfoHash) {
        if let Some(seed) = self.seeds.borrow_mut().get_mut(&info_hash) {
            let announcers = seed.announcers.iter_mut();
            announcers.for_each(|(_, announcer)| announcer.on_want_peers());
        }
        self.queue(info_hash);
    }

    /// Seeds asleep that a tracker named peers of since the last call.
    pub fn take_found(&self) -> BTreeMap<InfoHash, Vec<SocketAddr>> {
        self.found.take()
    }

    /// Announces what is due. Runs as long as the session.
    pub async fn run(self: Rc<Self>, shared: Rc<Shared>) {
        loop {
            // Without a way out every announce would count as a failure of its tracker.
            shared.trackers.way.opened().await;
            let now = shared.now();
            for _ in 0..PER_TICK_MAX {
                if self.under_way.get() >= UNDER_WAY_MAX || !self.begin_next(&shared, now) {
                    break;
                }
            }
            let first = self.due.borrow().first().map(|(at, _)| *at);
            let pause = first.map_or(Duration::MAX, |at| at.since(now)).max(TICK);
            tokio::select! {
                () = tokio::time::sleep(pause.min(Duration::from_secs(3_600))) => {}
                () = self.changed.notified(), if pause > TICK => {}
            }
        }
    }

    /// Says goodbye for as many as the end of a session has time for.
    pub async fn end(&self, shared: &Rc<Shared>) {
        self.expected.borrow_mut().clear();
        let all: Vec<InfoHash> = self.seeds.borrow().keys().copied().collect();
        let goodbyes = all.into_iter().take(GOODBYES_MAX);
        let goodbyes: Vec<_> = goodbyes
            .filter_map(|info_hash| self.goodbye(shared, info_hash))
            .map(tokio_uring::spawn)
            .collect();
        for goodbye in goodbyes {
            let _ = goodbye.await;
        }
    }

    fn goodbye(
        &self,
        shared: &Rc<Shared>,
        info_hash: InfoHash,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let mut seed = self.seeds.borrow_mut().remove(&info_hash)?;
        if let Some(at) = seed.queued_at {
            self.due.borrow_mut().remove(&(at, info_hash));
        }
        self.found.borrow_mut().remove(&info_hash);
        self.told.borrow_mut().insert(info_hash);
        let (shared, counters) = (shared.clone(), counters(shared, info_hash, &seed));
        Some(async move {
            let key = seed.key;
            for (family, announcer) in &mut seed.announcers {
                let jobs = announcer.on_stopping();
                let (clients, target) = (
                    shared.trackers.clone(),
                    target(&shared, info_hash, key, *family),
                );
                let sent = send_stopped(clients, target, jobs, counters, STOPPED_TIMEOUT);
                if caught(sent).await.is_err() {
                    count_panic(&shared, "saying goodbye to a tracker");
                }
            }
        })
    }

    /// Puts it where it belongs in the schedule.
    fn queue(&self, info_hash: InfoHash) {
        let mut seeds = self.seeds.borrow_mut();
        let Some(seed) = seeds.get_mut(&info_hash) else {
            return;
        };
        let next = seed
            .announcers
            .iter()
            .filter_map(|(_, next)| next.next_deadline())
            .min();
        let mut due = self.due.borrow_mut();
        if let Some(at) = std::mem::replace(&mut seed.queued_at, next) {
            due.remove(&(at, info_hash));
        }
        if let Some(at) = next {
            due.insert((at, info_hash));
        }
        self.changed.notify_one();
    }

    /// Begins the announce that is due first; false when none is.
    fn begin_next(self: &Rc<Self>, shared: &Rc<Shared>, now: Now) -> bool {
        let first = self.due.borrow().first().copied();
        let Some((_, info_hash)) = first.filter(|(at, _)| *at <= now) else {
            return false;
        };
        let next = {
            let mut seeds = self.seeds.borrow_mut();
            seeds.get_mut(&info_hash).and_then(|seed| {
                let counters = counters(shared, info_hash, seed);
                let mut announcers = seed.announcers.iter_mut().enumerate();
                let (at, family, job) = announcers.find_map(|(at, (family, announcer))| {
                    Some((at, *family, announcer.next_announce(now)?))
                })?;
                Some((
                    at,
                    target(shared, info_hash, seed.key, family),
                    job,
                    counters,
                ))
            })
        };
        self.queue(info_hash);
        let Some((at, target, job, counters)) = next else {
            return true;
        };
        self.under_way.set(self.under_way.get() + 1);
        let (this, shared) = (self.clone(), shared.clone());
        tokio_uring::spawn(async move {
            let work = this.announce(&shared, at, target, job, counters);
            if caught(work).await.is_err() {
                count_panic(&shared, "announcing a seed");
            }
            this.under_way.set(this.under_way.get() - 1);
            this.changed.notify_one();
        });
        true
    }

    async fn announce(
        &self,
        shared: &Rc<Shared>,
        at: usize,
        target: AnnounceTarget,
        job: AnnounceJob,
        counters: Counters,
    ) {
        let info_hash = target.info_hash;
        // Large, and only a few are under way at once.
        let result = Box::pin(announce_once(&shared.trackers, &target, &job, counters)).await;
        let outcome = {
            let mut seeds = self.seeds.borrow_mut();
            let Some(seed) = seeds.get_mut(&info_hash) else {
                return;
            };
            let Some((_, announcer)) = seed.announcers.get_mut(at) else {
                return;
            };
            report(announcer, &target, job, result, shared.now())
        };
        self.told.borrow_mut().insert(info_hash);
        self.queue(info_hash);
        match outcome {
            AnnounceOutcome::Announced {
                tracker,
                event,
                response,
                ..
            } => {
                debug!(%info_hash, tracker, ?event, peers = response.peers.len(), "announced");
                // Seeds want nothing of a seed.
                if event != Some(Event::Stopped) && response.leechers != Some(0) {
                    self.on_peers(shared, info_hash, response.peers);
                }
            }
            AnnounceOutcome::Failed {
                tracker, message, ..
            } => debug!(%info_hash, tracker, message, "announce failed"),
            AnnounceOutcome::Silent { .. } => {}
        }
    }

    fn on_peers(&self, shared: &Shared, info_hash: InfoHash, peers: Vec<SocketAddr>) {
        let running = shared.torrents.borrow().get(&info_hash).cloned();
        match running {
            Some(driver) => driver.add_candidates(Source::Tracker, &peers),
            None if peers.is_empty() => {}
            None => {
                self.found.borrow_mut().insert(info_hash, peers);
                shared.sleepers.changed.notify_one();
            }
        }
    }
}

/// What the next announce tells: payload since `started`.
fn counters(shared: &Shared, info_hash: InfoHash, seed: &Seed) -> Counters {
    let running = shared.torrents.borrow().get(&info_hash).cloned();
    let stats = running.map(|driver| driver.read(|core| core.stats(shared.now())));
    let stats = stats.unwrap_or_default();
    Counters {
        uploaded_bytes: seed.uploaded_bytes + stats.uploaded_bytes,
        downloaded_bytes: stats.downloaded_bytes,
        left_bytes: stats.left_bytes,
    }
}

fn target(shared: &Shared, info_hash: InfoHash, key: u32, family: Family) -> AnnounceTarget {
    AnnounceTarget {
        info_hash,
        peer_id: shared.our_id,
        port: shared.port.get(),
        key,
        family,
    }
}
