//! Ties a torrent to its trackers: one announce loop for each listen family (BEP 7). Layer 5.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{Instrument, debug};

use super::announce_task::{AnnounceHandle, AnnounceOutcome, AnnounceTarget, announce_loop};
use super::config::TorrentConfig;
use super::contain::{caught, count_panic};
use super::driver::Driver;
use crate::swarm::announce::AnnounceConfig;
use crate::swarm::candidates::Source;
use crate::wire::tracker::{Counters, Event, Family};

/// The announce loops of one torrent.
#[derive(Default)]
pub struct Announcers {
    loops: RefCell<Vec<Loop>>,
}

struct Loop {
    handle: AnnounceHandle,
    task: JoinHandle<()>,
    is_failing: Rc<Cell<bool>>,
}

impl Announcers {
    /// Starts announcing over every family that is listened on.
    pub fn start(driver: &Rc<Driver>, config: &TorrentConfig) {
        let tiers = &config.metainfo.announce_tiers;
        if tiers.is_empty() {
            return;
        }
        let shared = driver.shared();
        let key = shared.random() as u32;
        for family in shared.families.iter().copied() {
            let target = AnnounceTarget {
                info_hash: driver.info_hash(),
                peer_id: shared.our_id,
                port: shared.port.get(),
                key,
                family,
            };
            let announce_config = AnnounceConfig {
                interval_min: shared.config.announce_interval_min,
                ..AnnounceConfig::default()
            };
            let handle = AnnounceHandle::new();
            let is_failing = Rc::new(Cell::new(false));
            let (of_loop, tiers) = (driver.clone(), tiers.clone());
            let (steered, failing) = (handle.clone(), is_failing.clone());
            let start = move || {
                let (of_counters, of_outcome) = (of_loop.clone(), of_loop.clone());
                let failing = failing.clone();
                announce_loop(
                    of_loop.shared().trackers.clone(),
                    target.clone(),
                    tiers.clone(),
                    announce_config.clone(),
                    steered.clone(),
                    move || counters(&of_counters),
                    move |outcome| on_outcome(&of_outcome, &failing, outcome),
                )
            };
            let running = keep_announcing(driver.clone(), handle.clone(), start);
            let span = tracing::debug_span!("announce", ?family);
            let task = tokio_uring::spawn(running.instrument(span));
            driver.announcers.loops.borrow_mut().push(Loop {
                handle,
                task,
                is_failing,
            });
        }
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

    /// Announces `stopped` as far as `limit` allows.
    pub async fn stop(&self, limit: Duration) {
        let loops = self.loops.take();
        loops.iter().for_each(|running| running.handle.stop(limit));
        for running in loops {
            // A tracker task that panicked has nothing more to say.
            let _ = running.task.await;
        }
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
    driver: Rc<Driver>,
    handle: AnnounceHandle,
    start: impl Fn() -> W,
) {
    while caught(async { start().await }).await.is_err() {
        count_panic(driver.shared(), "announcing was broken off");
        driver.tell_trouble(
            "announcing to the trackers was broken off by an error in the program".to_owned(),
            "it goes on later; please report it with the log (-vv)",
        );
        let pause = driver.shared().config.announce_interval_min;
        tokio::select! {
            () = handle.stopping() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Payload since `started`, which every run announces anew (BEP 3).
fn counters(driver: &Driver) -> Counters {
    let stats = driver.read(|core| core.stats(driver.shared().now()));
    Counters {
        uploaded_bytes: stats.uploaded_bytes,
        downloaded_bytes: stats.downloaded_bytes,
        left_bytes: stats.left_bytes,
    }
}

fn on_outcome(driver: &Rc<Driver>, is_failing: &Cell<bool>, outcome: AnnounceOutcome) {
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
                driver.add_candidates(Source::Tracker, &response.peers);
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
            tell_if_all_fail(driver, &tracker, &message);
        }
        AnnounceOutcome::Silent {
            tracker,
            family,
            message,
            is_all_failing,
        } => {
            debug!(tracker, ?family, "no answer yet");
            is_failing.set(is_all_failing);
            tell_if_all_fail(driver, &tracker, &message);
        }
    }
}

/// One family without a tracker is common; the user hears only when none is left.
fn tell_if_all_fail(driver: &Driver, tracker: &str, message: &str) {
    if driver.announcers.is_all_failing() {
        driver.tell_trouble(
            format!("no tracker answers: {tracker}: {message}"),
            "it goes on trying; check the network, or name a peer with --peer",
        );
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
