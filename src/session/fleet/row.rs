//! One row a torrent: what it is to do, what it does, and what is shown of it. Layer 5.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::{InfoHash, Now, PieceIndex};
use crate::session::command::{
    Activity, Announced, Removed, Reply, SessionSnapshot, Sleep, TorrentSnapshot, Trouble,
};
use crate::session::config::{Outcome, TorrentProgress, TorrentState};

#[derive(Default)]
pub(super) struct Table {
    /// In boxes: nodes of the map are half empty when it grew in order.
    pub(super) rows: BTreeMap<InfoHash, Box<Row>>,
    /// What the board does not show yet, rows that are gone among it.
    pub(super) dirty: BTreeSet<InfoHash>,
    /// Those with a run, also one that is about to end.
    pub(super) awake: BTreeSet<InfoHash>,
    pub(super) session: SessionSnapshot,
    pub(super) outcomes: BTreeMap<InfoHash, Outcome>,
    pub(super) removals: usize,
}

pub(super) struct Row {
    pub(super) progress: TorrentProgress,
    pub(super) outcome: Option<Outcome>,
    pub(super) trouble: Option<Trouble>,
    pub(super) revision: u64,
    /// It is to run.
    pub(super) is_wanted: bool,
    pub(super) run: Run,
    /// Its run waits for a place.
    pub(super) is_waiting: bool,
    /// Somebody waits for it to be gone.
    pub(super) leaving: Option<Leaving>,
    /// Who waits for the end of this run.
    pub(super) enders: Vec<Reply<()>>,
    pub(super) sleeps: Option<Sleep>,
    /// The tracker that lists it, as far as the schedule for many knows.
    pub(super) announced: Option<Announced>,
    /// Addresses for the next run.
    pub(super) peers: Vec<SocketAddr>,
    /// It has been without peers since then.
    pub(super) idle_since: Option<Now>,
    /// Pieces that the next run does not believe in.
    pub(super) suspects: Vec<PieceIndex>,
    /// The next run hashes everything.
    pub(super) checks_all: bool,
    /// This run was begun only to check.
    pub(super) rests_after_check: bool,
    /// [`SessionSnapshot::asleep`] has it in.
    pub(super) is_counted_asleep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    No,
    Under,
    /// It was asked to end, and what comes then.
    Ending(Behind),
    /// It runs as soon as somebody asks for it.
    Asleep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Rest,
    Begin,
    Sleep,
}

#[derive(Default)]
pub(super) struct Leaving {
    pub(super) with_data: bool,
    pub(super) replies: Vec<Reply<Removed>>,
}

impl Table {
    /// The row, or that it is gone, is to be shown.
    pub(super) fn touch(&mut self, info_hash: InfoHash) {
        self.session.revision += 1;
        if let Some(row) = self.rows.get_mut(&info_hash) {
            row.revision = self.session.revision;
        }
        self.dirty.insert(info_hash);
    }

    pub(super) fn change(&mut self, info_hash: InfoHash, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.rows.get_mut(&info_hash) {
            change(row);
            self.touch(info_hash);
        }
    }

    /// Whether its run waits for a place.
    pub(super) fn set_waiting(&mut self, info_hash: InfoHash, is_waiting: bool) {
        let row = self.rows.get(&info_hash);
        if row.is_some_and(|row| row.is_waiting != is_waiting) {
            self.change(info_hash, |row| row.is_waiting = is_waiting);
        }
    }

    /// Brings the number of those asleep up to what changed.
    pub(super) fn count_asleep(&mut self) {
        for info_hash in &self.dirty {
            if let Some(row) = self.rows.get_mut(info_hash) {
                let is_asleep = row.run == Run::Asleep;
                match (row.is_counted_asleep, is_asleep) {
                    (false, true) => self.session.asleep += 1,
                    (true, false) => self.session.asleep -= 1,
                    _ => {}
                }
                row.is_counted_asleep = is_asleep;
            }
        }
    }

    pub(super) fn take_out(&mut self, info_hash: &InfoHash) -> Option<Box<Row>> {
        let row = self.rows.remove(info_hash)?;
        self.session.asleep -= usize::from(row.is_counted_asleep);
        Some(row)
    }

    pub(super) fn on_progress(&mut self, progress: &TorrentProgress) {
        let info_hash = progress.info_hash;
        let Some(row) = self.rows.get_mut(&info_hash) else {
            return;
        };
        if row.progress == *progress {
            return;
        }
        let session = &mut self.session;
        let old = &row.progress;
        // Counters begin anew with each run.
        let moved = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        session.uploaded_bytes += moved(progress.uploaded_bytes, old.uploaded_bytes);
        session.downloaded_bytes += moved(progress.downloaded_bytes, old.downloaded_bytes);
        session.add_rates(old, progress);
        if progress.down_bytes_per_s > 0 || progress.state == TorrentState::Seeding {
            let is_over = |trouble: &Trouble| trouble.is_final;
            row.trouble = row.trouble.take().filter(is_over);
        }
        row.progress = progress.clone();
        self.touch(info_hash);
    }

    /// Nothing moves behind the end of a run.
    pub(super) fn settle(&mut self, info_hash: InfoHash) {
        let Some(row) = self.rows.get_mut(&info_hash) else {
            return;
        };
        let mut still = row.progress.clone();
        (still.up_bytes_per_s, still.down_bytes_per_s, still.peers) = (0, 0, 0);
        self.session.add_rates(&row.progress, &still);
        row.progress = still;
    }
}

impl SessionSnapshot {
    pub(super) fn add_rates(&mut self, old: &TorrentProgress, new: &TorrentProgress) {
        let sum = |all: u64, old: u64, new: u64| all.saturating_sub(old).saturating_add(new);
        self.up_bytes_per_s = sum(self.up_bytes_per_s, old.up_bytes_per_s, new.up_bytes_per_s);
        self.down_bytes_per_s = sum(
            self.down_bytes_per_s,
            old.down_bytes_per_s,
            new.down_bytes_per_s,
        );
        self.peers = self
            .peers
            .saturating_sub(old.peers)
            .saturating_add(new.peers);
    }
}

impl Row {
    pub(super) const fn is_running(&self) -> bool {
        matches!(self.run, Run::Under | Run::Ending(_))
    }

    /// Asks for its end; true when that is to be waited for.
    pub(super) fn end(&mut self) -> bool {
        let is_running = self.is_running();
        self.run = match is_running {
            true => Run::Ending(Behind::Rest),
            false => Run::No,
        };
        if !is_running && self.progress.state == TorrentState::Seeding {
            self.progress.state = TorrentState::Paused;
        }
        is_running
    }

    /// How it sleeps, told once which tracker listed it before this session; `None` when it is not one to sleep now.
    pub(super) fn fall_asleep(&mut self) -> Option<Sleep> {
        let sleep = self.sleeps.as_mut().filter(|sleep| sleep.is_whole)?;
        let sleeping = sleep.clone();
        sleep.announced = None;
        self.run = Run::Asleep;
        self.idle_since = None;
        self.progress.state = TorrentState::Seeding;
        Some(sleeping)
    }

    /// Whether it was without peers for long enough, which is at most `after_max`.
    pub(super) fn is_sleepy(&mut self, now: Now, after_max: Duration) -> bool {
        let Some(sleep) = &mut self.sleeps else {
            return false;
        };
        let progress = &self.progress;
        let is_idle = self.run == Run::Under
            && !self.rests_after_check
            && progress.state == TorrentState::Seeding
            && progress.peers == 0
            && progress.pieces_have == progress.pieces;
        if !is_idle {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        let is_sleepy = now.since(since) >= sleep.after.min(after_max);
        sleep.is_whole |= is_sleepy;
        is_sleepy
    }

    pub(super) fn snapshot(&self) -> TorrentSnapshot {
        TorrentSnapshot {
            progress: self.progress.clone(),
            activity: self.activity(),
            outcome: self.outcome,
            trouble: self.trouble.clone(),
            announced: self.announced.clone(),
            revision: self.revision,
        }
    }

    pub(super) const fn activity(&self) -> Activity {
        match self.run {
            Run::Under if self.is_waiting => Activity::Waiting,
            Run::Under => Activity::Running,
            Run::Ending(_) => Activity::Stopping,
            Run::Asleep => Activity::Asleep,
            Run::No => match self.outcome {
                Some(Outcome::Failed | Outcome::Incomplete) if self.is_wanted => Activity::Failed,
                _ => Activity::Stopped,
            },
        }
    }
}
