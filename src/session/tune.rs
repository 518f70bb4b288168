//! What of a torrent changes while it runs: its own limits, its priorities, its trackers, when its seeding ends. Layer 5.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::announce::Announcers;
use super::command::Limits;
use super::config::SeedAfter;
use super::door::Door;
use super::driver::Driver;
use super::pace::Pacer;
use super::shared::Shared;
use crate::swarm::bandwidth::{Place, Priority, RuleId};
use crate::swarm::picker::Level;
use crate::wire::metainfo::Metainfo;

/// How a torrent stands beside the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Its own; those of the session count too.
    pub limits: Limits,
    /// Unless this is set.
    pub ignores_session: bool,
    /// Connections at most; `None` is as many as the session has.
    pub peers_max: Option<u32>,
    /// Its share of what it has in common with others.
    pub priority: Priority,
    /// The rules that count for it, outermost first.
    pub rules: Arc<[RuleId]>,
    /// Once nothing is missing, peers are shown one piece at a time as long as there are no other seeds (BEP 16).
    pub super_seeds: bool,
    /// Files by index whose pieces come before the others, or behind them.
    pub file_priorities: BTreeMap<usize, Priority>,
}

/// All that a torrent takes over without ending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tuned {
    pub tuning: Tuning,
    pub is_sequential: bool,
    pub seed_after: SeedAfter,
    /// Trackers by tier (BEP 12).
    pub tiers: Arc<[Vec<String>]>,
    /// It may go on sleeping; false wakes a seed for good.
    pub may_sleep: bool,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
}

/// The limits that one torrent's connections keep to: its own, those of its rules, and those of the session.
pub struct Pace {
    shared: Rc<Shared>,
    /// Its number in both directions.
    torrent: u64,
    rules: RefCell<Arc<[RuleId]>>,
}

impl Pace {
    /// Of a torrent that starts with this tuning.
    pub fn new(shared: &Rc<Shared>, tuning: &Tuning) -> Rc<Pace> {
        let pace = Rc::new(Pace {
            shared: shared.clone(),
            torrent: shared.up.number(),
            rules: RefCell::default(),
        });
        pace.set(tuning);
        pace
    }

    /// Keeps to these limits from now on, those who wait already too.
    pub fn set(&self, tuning: &Tuning) {
        *self.rules.borrow_mut() = tuning.rules.clone();
        self.shared.slots.on_change();
        let (limits, clock) = (tuning.limits, &self.shared.clock);
        for (direction, rate) in [
            (Direction::Up, limits.up_bytes_per_s),
            (Direction::Down, limits.down_bytes_per_s),
        ] {
            let place = Place {
                rules: tuning.rules.to_vec(),
                is_free: tuning.ignores_session,
            };
            let pacer = self.pacer(direction);
            pacer.set_torrent(self.torrent, place, rate, tuning.priority, clock);
        }
    }

    /// Its number among those that share limits.
    pub const fn number(&self) -> u64 {
        self.torrent
    }

    /// The rules that count for it.
    pub fn rules(&self) -> Arc<[RuleId]> {
        self.rules.borrow().clone()
    }

    fn pacer(&self, direction: Direction) -> &Pacer {
        match direction {
            Direction::Up => &self.shared.up,
            Direction::Down => &self.shared.down,
        }
    }

    /// The lowest limit that counts, in bytes a second; `None` when bytes need not wait.
    pub fn rate(&self, direction: Direction) -> Option<u64> {
        self.pacer(direction).rate(self.torrent)
    }

    /// What a connection is to move at a time, in bytes; `None` without a limit.
    pub fn turn_bytes(&self, direction: Direction) -> Option<u64> {
        self.pacer(direction).turn_bytes(self.torrent)
    }

    /// A number for one connection, for both directions.
    pub fn client(&self) -> u64 {
        self.shared.up.number()
    }

    /// Waits until the connection may move `bytes`. One that is closing waits for nothing: nobody would forget it
    /// again.
    pub async fn acquire(
        &self,
        direction: Direction,
        client: u64,
        bytes: u64,
        is_closing: impl Fn() -> bool,
    ) {
        if !is_closing() {
            let (pacer, clock) = (self.pacer(direction), &self.shared.clock);
            pacer.acquire(self.torrent, client, bytes, clock).await;
        }
    }

    /// Forgets a connection; its waits end.
    pub fn forget(&self, client: u64) {
        self.shared.up.forget(client);
        self.shared.down.forget(client);
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.shared.up.remove_torrent(self.torrent);
        self.shared.down.remove_torrent(self.torrent);
    }
}

impl Driver {
    /// Takes over what changed, trackers too.
    pub(super) fn take(self: &Rc<Self>, tuned: &Tuned) {
        self.tune(tuned);
        if self.has_trackers() {
            let door = Door::Torrent(self.clone());
            Announcers::set_tiers(&self.announcers, door, tuned.tiers.to_vec());
        }
    }

    fn tune(self: &Rc<Self>, tuned: &Tuned) {
        self.seed_after.set(tuned.seed_after);
        self.apply(&tuned.tuning);
        let is_sequential = tuned.is_sequential;
        self.call(|core, cx| core.set_sequential(is_sequential, cx));
        self.changed.notify_one();
    }

    /// Puts a tuning in force.
    pub(super) fn apply(self: &Rc<Self>, tuning: &Tuning) {
        self.pace.set(tuning);
        let peers_max = peers_max(self.shared(), tuning);
        let levels = levels(self.metainfo(), &tuning.file_priorities);
        self.call(|core, cx| {
            core.set_peers_max(peers_max, cx);
            core.set_levels(levels, cx);
            core.set_super_seeds(tuning.super_seeds, cx);
        });
        self.on_limits();
    }

    /// The limits of the session or of this torrent are others.
    pub(super) fn on_limits(self: &Rc<Self>) {
        let limit = self.pace.rate(Direction::Up);
        self.call(|core, _| core.set_limit_up(limit));
    }
}

/// Connections of one torrent.
pub(super) fn peers_max(shared: &Shared, tuning: &Tuning) -> u32 {
    let sessions = shared.config.peers_max;
    tuning.peers_max.map_or(sessions, |own| own.min(sessions))
}

/// How early each piece is wanted: as early as the most wanted of its files. `None` when all are alike.
fn levels(metainfo: &Metainfo, files: &BTreeMap<usize, Priority>) -> Option<Vec<Level>> {
    if files.is_empty() {
        return None;
    }
    let info = &metainfo.info;
    let piece_bytes = u64::from(info.geometry.piece_length_bytes()).max(1);
    let count = info.geometry.piece_count() as usize;
    let mut levels: Vec<Option<Level>> = vec![None; count];
    let mut begin = 0_u64;
    for (index, file) in info.files.iter().enumerate() {
        begin = info.geometry.file_start(begin);
        let end = begin.saturating_add(file.length_bytes);
        let level = match files.get(&index).copied().unwrap_or_default() {
            Priority::High => Level::First,
            Priority::Normal => Level::Usual,
            Priority::Low => Level::Last,
        };
        let first = usize::try_from(begin / piece_bytes).unwrap_or(count);
        let behind = usize::try_from(end.div_ceil(piece_bytes)).unwrap_or(count);
        let pieces = levels.get_mut(first.min(count)..behind.min(count));
        for piece in pieces.unwrap_or_default() {
            *piece = Some(piece.map_or(level, |other| other.min(level)));
        }
        begin = end;
    }
    let levels: Vec<Level> = levels.into_iter().map(Option::unwrap_or_default).collect();
    let is_mixed = levels.iter().any(|level| *level != Level::Usual);
    is_mixed.then_some(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of these lengths in pieces of 16,384 bytes.
    fn torrent(lengths: &[u64]) -> Metainfo {
        let mut files = String::new();
        for (index, length) in lengths.iter().enumerate() {
            files.push_str(&format!("d6:lengthi{length}e4:pathl1:{index}ee"));
        }
        let total: u64 = lengths.iter().sum();
        let hashes = usize::try_from(total.div_ceil(16_384)).unwrap() * 20;
        let mut bytes =
            format!("d4:infod5:filesl{files}e4:name1:t12:piece lengthi16384e6:pieces{hashes}:")
                .into_bytes();
        bytes.extend(vec![1; hashes]);
        bytes.extend(b"ee");
        Metainfo::parse(&bytes).unwrap()
    }

    #[test]
    fn a_piece_is_as_wanted_as_the_most_wanted_of_its_files() {
        // Pieces: 0 and half of 1, the rest of 1 and 2, 3.
        let metainfo = torrent(&[16_384 + 8_192, 8_192 + 16_384, 16_384]);
        let of = |files: &[(usize, Priority)]| levels(&metainfo, &files.iter().copied().collect());
        use Level::{First, Last, Usual};
        assert_eq!(of(&[]), None);
        assert_eq!(
            of(&[(1, Priority::High), (2, Priority::Low)]),
            Some(vec![Usual, First, First, Last])
        );
        assert_eq!(
            of(&[(0, Priority::Low), (7, Priority::High)]),
            Some(vec![Last, Usual, Usual, Usual])
        );
        assert_eq!(of(&[(0, Priority::Normal)]), None);
    }
}
