//! Ties a torrent, or the search for its metadata, to its trackers: one announce loop for each listen family (BEP 7).
//! Layer 5.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{Instrument, debug};

use super::announce_task::{
    AnnounceHandle, AnnounceOutcome, AnnounceTarget, STOPPED_TIMEOUT, announce_loop,
};
use super::contain::{caught, count_panic};
use super::door::Door;
use super::shared::Shared;
use crate::base::InfoHash;
use crate::swarm::announce::{AnnounceConfig, Announcer, TrackerStatus};
use crate::swarm::candidates::Source;
use crate::wire::tracker::{Counters, Event, Family};

/// The announce loops of one info_hash. They outlive the search for its metadata, so that trackers hear `started` once.
#[derive(Default)]
pub struct Announcers {
    loops: RefCell<Vec<Loop>>,
    /// Who is told what they find.
    door: RefCell<Option<Door>>,
    /// What trackers know us by, whatever our address.
    key: Cell<u32>,
}

/// The state of announces that another goes on with.
pub struct Announcing {
    /// What trackers know us by.
    pub key: u32,
    pub announcers: Vec<(Family, Announcer)>,
}

struct Loop {
    family: Family,
    /// Announces the second name of a hybrid.
    is_second: bool,
    handle: AnnounceHandle,
    task: JoinHandle<()>,
    is_failing: Rc<Cell<bool>>,
}

impl Announcers {
    /// Starts announcing over every family that is listened on.
    pub fn start(this: &Rc<Self>, door: Door, tiers: Vec<Vec<String>>) {
        if tiers.is_empty() {
            return;
        }
        let (shared, info_hash) = (door.shared().clone(), door.info_hash());
        this.go_on(door);
        this.key.set(shared.random() as u32);
        Announcers::begin(this, &shared, info_hash, false, tiers);
    }

    /// Starts announcing a hybrid under its second name too, beside what was started.
    pub fn start_second(
        this: &Rc<Self>,
        shared: &Rc<Shared>,
        second: InfoHash,
        tiers: Vec<Vec<String>>,
    ) {
        if !tiers.is_empty() {
            Announcers::begin(this, shared, second, true, tiers);
        }
    }

    fn begin(
        this: &Rc<Self>,
        shared: &Rc<Shared>,
        info_hash: InfoHash,
        is_second: bool,
        tiers: Vec<Vec<String>>,
    ) {
        let key = this.key.get();
        for family in shared.announce_families().iter().copied() {
            let target = AnnounceTarget {
                info_hash,
                peer_id: shared.our_id,
                port: shared.announced_port(),
                key,
                family,
            };
            let announce_config = AnnounceConfig {
                interval_min: shared.config.announce_interval_min,
                ..AnnounceConfig::default()
            };
            let handle = AnnounceHandle::new();
            let is_failing = Rc::new(Cell::new(false));
            let (of_loop, tiers) = (this.clone(), tiers.clone());
            let (steered, failing) = (handle.clone(), is_failing.clone());
            let (trackers, of_clock) = (shared.trackers.clone(), shared.clone());
            let start = move || {
                let (of_counters, of_outcome) = (of_loop.clone(), of_loop.clone());
                let failing = failing.clone();
                let tiers = steered.last_tiers().unwrap_or_else(|| tiers.clone());
                let clock = of_clock.clone();
                announce_loop(
                    trackers.clone(),
                    target.clone(),
                    (tiers, announce_config.clone()),
                    steered.clone(),
                    move || clock.now(),
                    move || of_counters.counters(),
                    move |outcome| of_outcome.on_outcome(&failing, outcome),
                )
            };
            let running = keep_announcing(this.clone(), handle.clone(), start);
            let span = tracing::debug_span!("announce", ?family);
            let task = tokio_uring::spawn(running.instrument(span));
            this.loops.borrow_mut().push(Loop {
                family,
                is_second,
                handle,
                task,
                is_failing,
            });
        }
    }

    /// Other trackers from now on, by tier.
    pub fn set_tiers(this: &Rc<Self>, door: Door, tiers: Vec<Vec<String>>) {
        if this.loops.borrow().is_empty() {
            return Announcers::start(this, door, tiers);
        }
        for running in this.loops.borrow().iter() {
            running.handle.set_tiers(tiers.clone());
        }
    }

    /// What is found from now on is for another.
    pub fn go_on(&self, door: Door) {
        self.door.replace(Some(door));
    }

    fn door(&self) -> Option<Door> {
        self.door.borrow().clone()
    }

    fn counters(&self) -> Counters {
        let door = self.door();
        door.map_or_else(Counters::default, |door| door.counters())
    }

    /// The download has just been finished.
    pub fn completed(&self) {
        self.loops
            .borrow()
            .iter()
            .for_each(|running| running.handle.completed());
    }

    /// Peers are running out.
    pub fn want_peers(&self) {
        self.loops
            .borrow()
            .iter()
            .for_each(|running| running.handle.want_peers());
    }

    /// How each tracker is doing over each family.
    pub fn status(&self) -> Vec<(Family, TrackerStatus)> {
        let loops = self.loops.borrow();
        let of = |running: &Loop| {
            let (family, status) = (running.family, running.handle.status());
            status.into_iter().map(move |status| (family, status))
        };
        let first = loops.iter().filter(|running| !running.is_second);
        first.flat_map(of).collect()
    }

    /// Ends without a word to the trackers; what comes out goes on announcing. Empty when nothing was announced. A hybrid
    /// that sleeps goes by its first name only: trackers hear that the second stops.
    pub async fn hand_over(&self) -> Announcing {
        let loops = self.loops.take();
        let (second, loops): (Vec<Loop>, Vec<Loop>) =
            loops.into_iter().partition(|running| running.is_second);
        second
            .iter()
            .for_each(|running| running.handle.stop(STOPPED_TIMEOUT));
        loops.iter().for_each(|running| running.handle.hand_over());
        let mut announcers = Vec::new();
        for running in loops {
            let _ = running.task.await;
            let kept = running.handle.take_kept();
            announcers.extend(kept.map(|announcer| (running.family, announcer)));
        }
        for running in second {
            let _ = running.task.await;
        }
        self.door.take();
        Announcing {
            key: self.key.get(),
            announcers,
        }
    }

    /// Announces `stopped` as far as `limit` allows.
    pub async fn stop(&self, limit: Duration) {
        let loops = self.loops.take();
        loops.iter().for_each(|running| running.handle.stop(limit));
        for running in loops {
            // A tracker task that panicked has nothing more to say.
            let _ = running.task.await;
        }
        self.door.take();
    }

    fn is_all_failing(&self) -> bool {
        self.loops
            .borrow()
            .iter()
            .all(|running| running.is_failing.get())
    }
}

/// Announces until told to stop. A panic is one of these trackers alone: peers go on, and the trackers are asked anew
/// after the shortest interval, so that an answer that breaks us is not fetched in a loop.
async fn keep_announcing<W: Future<Output = ()>>(
    announcers: Rc<Announcers>,
    handle: AnnounceHandle,
    start: impl Fn() -> W,
) {
    while caught(async { start().await }).await.is_err() {
        let Some(door) = announcers.door() else {
            return;
        };
        count_panic(door.shared(), "announcing was broken off");
        door.tell_trouble(
            "announcing to the trackers was broken off by an error in the program".to_owned(),
            "it goes on later; please report it with the log (-vv)",
        );
        let pause = door.shared().config.announce_interval_min;
        tokio::select! {
            () = handle.stopping() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Announcers {
    fn on_outcome(&self, is_failing: &Cell<bool>, outcome: AnnounceOutcome) {
        let Some(door) = self.door() else { return };
        match outcome {
            AnnounceOutcome::Announced {
                tracker,
                event,
                response,
                next_in,
                ..
            } => {
                let peers = response.peers.len();
                debug!(
                    tracker,
                    ?event,
                    peers,
                    seeders = response.seeders,
                    ?next_in,
                    "announced"
                );
                is_failing.set(false);
                if event != Some(Event::Stopped) {
                    door.add_candidates(Source::Tracker, &response.peers);
                }
            }
            AnnounceOutcome::Failed {
                tracker,
                family,
                message,
                next_in,
                is_all_failing,
            } => {
                debug!(tracker, ?family, message, ?next_in, "announce failed");
                is_failing.set(is_all_failing);
                self.tell_if_all_fail(&door, &tracker, &message);
            }
            AnnounceOutcome::Silent {
                tracker,
                family,
                message,
                is_all_failing,
            } => {
                debug!(tracker, ?family, "no answer yet");
                is_failing.set(is_all_failing);
                self.tell_if_all_fail(&door, &tracker, &message);
            }
        }
    }

    /// One family without a tracker is common; the user hears only when none is left.
    fn tell_if_all_fail(&self, door: &Door, tracker: &str, message: &str) {
        // Without a way out that is what the user was told.
        if self.is_all_failing() && door.shared().way.is_open() {
            door.tell_trouble(
                format!("no tracker answers: {tracker}: {message}"),
                "it goes on trying; check the network, or name a peer with --peer",
            );
        }
    }
}

/// The families that listeners at these addresses serve.
pub fn families(addrs: &[std::net::SocketAddr]) -> Vec<Family> {
    let mut families = Vec::new();
    for addr in addrs {
        let family = if addr.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        if !families.contains(&family) {
            families.push(family);
        }
    }
    families
}
