//! Seeds that sleep until somebody asks for one. Layer 5.
//!
//! A seed asleep is a row, an entry of the announcing schedule and its info_hash among those that wake it: no metadata, no
//! files, no core. Its record is weighed when it wakes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Fleet;
use super::row::{Behind, Run};
use crate::base::InfoHash;
use crate::session::contain::{Serves, keep_up};
use crate::session::shared::Shared;

/// Each that runs holds its metadata, a lock and files. Beyond so many, those without a peer do not stay up for long.
const AWAKE_MAX: usize = 500;
/// They have so long to be asked for.
const AWAKE_FOR: Duration = Duration::from_secs(5);

impl Fleet {
    /// Has a torrent run, or sleep until somebody asks for it.
    pub(super) fn begin(self: &Rc<Self>, shared: &Rc<Shared>, info_hash: InfoHash) {
        let sleep = {
            let table = &mut *self.table.borrow_mut();
            let row = table.rows.get_mut(&info_hash);
            let row = row.filter(|row| row.is_wanted && !row.checks_all);
            let sleep = row.and_then(|row| row.fall_asleep());
            if sleep.is_some() {
                table.touch(info_hash);
            }
            sleep
        };
        let Some(sleep) = sleep else {
            return self.begin_now(shared, info_hash);
        };
        shared.let_sleep(info_hash, sleep.second);
        let schedule = &shared.seed_trackers;
        schedule.add(shared, info_hash, &sleep.tiers, sleep.announced.as_ref());
    }

    /// Takes over which trackers list whom.
    pub(super) fn note_announces(&self, shared: &Shared) {
        for info_hash in shared.seed_trackers.take_told() {
            let announced = shared.seed_trackers.standing(shared, &info_hash);
            let mut table = self.table.borrow_mut();
            table.change(info_hash, |row| row.announced = announced);
        }
    }

    /// Announces those that may sleep, as long as the session runs.
    pub(super) fn announce_seeds(&self, shared: &Rc<Shared>) -> JoinHandle<()> {
        let work = |shared: Rc<Shared>| shared.seed_trackers.clone().run(shared);
        keep_up(shared, "announcing seeds", Serves::Strangers, work)
    }

    /// Wakes those that somebody asks for.
    pub(super) fn wake_wanted(self: &Rc<Self>, shared: &Rc<Shared>) {
        let mut found = shared.seed_trackers.take_found();
        let mut wanted: BTreeSet<InfoHash> = found.keys().copied().collect();
        wanted.extend(std::iter::from_fn(|| shared.sleepers.next_wanted()));
        for info_hash in wanted {
            let run = self.table.borrow().rows.get(&info_hash).map(|row| row.run);
            match run {
                Some(Run::Asleep) => {
                    if let Some(peers) = found.remove(&info_hash) {
                        self.peers_of_next_run(info_hash, peers);
                    }
                    self.begin_now(shared, info_hash);
                }
                Some(Run::Ending(Behind::Sleep)) => {
                    let _ = self.with_row(info_hash, |row| row.run = Run::Ending(Behind::Begin));
                }
                _ => {}
            }
        }
    }

    /// Lets those sleep that nobody asks for: a look at each that runs.
    pub(super) fn let_idle_sleep(&self, shared: &Rc<Shared>) {
        let now = shared.now();
        let table = &mut *self.table.borrow_mut();
        let mut sleepy = Vec::new();
        let awake_max = AWAKE_MAX.min(shared.runs_max / 2);
        let after_max = match table.session.running > awake_max {
            true => AWAKE_FOR,
            false => Duration::MAX,
        };
        for info_hash in &table.awake {
            let row = table.rows.get_mut(info_hash);
            if let Some(row) = row
                && row.is_sleepy(now, after_max)
            {
                row.run = Run::Ending(Behind::Sleep);
                sleepy.push(*info_hash);
            }
        }
        for info_hash in sleepy {
            table.touch(info_hash);
            shared.seed_trackers.expect(info_hash);
            shared.stop_torrent(&info_hash);
        }
    }

    fn peers_of_next_run(&self, info_hash: InfoHash, peers: Vec<SocketAddr>) {
        let _ = self.with_row(info_hash, |row| row.peers = peers);
    }
}
