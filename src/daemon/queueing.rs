//! The queue at work: who waits, whose turn comes, and moving torrents in it. Layer 6.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handle::{Control, ControlError};
use super::policy::InBook;
use super::queue::{Entry, Kind, QueueLimits, Turn, plan, renumbered};
use super::row::TorrentRow;
use super::store::Write;
use crate::base::InfoHash;
use crate::session::command::{Activity, TorrentSnapshot};
use crate::session::{Command, Outcome, TorrentState};

/// Who waits for a place, and what the others were let run as.
#[derive(Default)]
pub struct Queue {
    /// `None` waits.
    places: BTreeMap<InfoHash, Option<Kind>>,
    /// Payload of those that run, and since when it is that much.
    moved: BTreeMap<InfoHash, (u64, Instant)>,
    /// The limits have changed since it was last looked at.
    is_anew: bool,
}

impl Queue {
    /// Those that wait.
    pub fn waiting(&self) -> BTreeSet<InfoHash> {
        let waiting = self.places.iter().filter(|(_, place)| place.is_none());
        waiting.map(|(info_hash, _)| *info_hash).collect()
    }

    /// Whether that one waits.
    pub fn is_waiting(&self, info_hash: &InfoHash) -> bool {
        self.places.get(info_hash) == Some(&None)
    }

    /// True when the torrent has moved nothing for so long.
    fn is_stalled(&mut self, shown: &TorrentSnapshot, after: Option<Duration>) -> bool {
        let progress = &shown.progress;
        let moved = progress.total_downloaded_bytes + progress.total_uploaded_bytes;
        let now = Instant::now();
        let entry = self.moved.entry(shown.info_hash());
        let (before, since) = entry.or_insert((moved, now));
        if *before != moved || progress.state == TorrentState::Checking {
            (*before, *since) = (moved, now);
        }
        after.is_some_and(|after| now.duration_since(*since) >= after)
    }

    fn entry(
        &mut self,
        row: &TorrentRow,
        shown: Option<&TorrentSnapshot>,
        limits: &QueueLimits,
        policies: &[Arc<InBook>],
    ) -> Option<Entry> {
        let info_hash = row.info_hash;
        let place = self.places.get(&info_hash).copied();
        let is_waiting = place == Some(None);
        let is_over = |shown: &&TorrentSnapshot| {
            let is_done =
                shown.activity == Activity::Stopped && shown.outcome == Some(Outcome::Done);
            !is_waiting && (is_done || shown.activity == Activity::Failed)
        };
        if !row.is_wanted || row.leaving.is_some() || shown.filter(is_over).is_some() {
            self.forget(&info_hash);
            return None;
        }
        let runs_as = place.flatten();
        if runs_as.is_none() {
            self.moved.remove(&info_hash);
        }
        let minutes = limits.stalled.get();
        let stalled_after = minutes.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
        let is_stalled = match shown {
            Some(shown) if runs_as.is_some() => self.is_stalled(shown, stalled_after),
            _ => false,
        };
        let rules = policies.iter().filter(|one| one.is_for(row));
        Some(Entry {
            info_hash,
            kind: kind(row, shown, runs_as),
            runs_as,
            is_stalled,
            skips: row.settings.skips_queue,
            rules: rules.map(|one| one.id).collect(),
        })
    }

    fn forget(&mut self, info_hash: &InfoHash) {
        self.places.remove(info_hash);
        self.moved.remove(info_hash);
    }
}

/// What a torrent takes a place for. While it is checked nobody knows better than before.
fn kind(row: &TorrentRow, shown: Option<&TorrentSnapshot>, runs_as: Option<Kind>) -> Kind {
    let is_whole = |have: u64, wanted: u64| match wanted > 0 && have >= wanted {
        true => Kind::Seed,
        false => Kind::Download,
    };
    let told = shown.filter(|shown| {
        let is_told = shown.activity != Activity::Failed && shown.progress.pieces > 0;
        is_told && !shown.progress.is_preparing()
    });
    match (told, runs_as) {
        (Some(shown), Some(before)) if shown.progress.state == TorrentState::Checking => before,
        (Some(shown), _) if shown.progress.state != TorrentState::Checking => {
            is_whole(shown.progress.have_bytes, shown.progress.total_bytes)
        }
        _ => is_whole(row.have_bytes, row.wanted_bytes),
    }
}

/// The order of the queue; of equal numbers the older torrent is first.
pub fn in_order(rows: &mut [Arc<TorrentRow>]) {
    rows.sort_unstable_by_key(|row| (row.settings.queue, row.number));
}

impl Control {
    /// True when somebody may have to wait.
    pub(super) fn has_queue(&self) -> bool {
        self.inner.kept().now.queue.are_on() || self.inner.torrents.policies.have_places()
    }

    /// The next look weighs those that run too.
    pub(super) fn weigh_queue_anew(&self) {
        self.inner.queue().is_anew = true;
    }

    /// Who of those that are remembered waits at the start.
    pub(super) fn begin_queue(&self) -> BTreeSet<InfoHash> {
        if !self.has_queue() {
            return BTreeSet::new();
        }
        self.turns(false, true);
        self.inner.queue().waiting()
    }

    /// Lets those run whose turn it is; `is_anew` sends others back to wait. Without limits nobody waits.
    pub(super) async fn settle_queue(&self, is_anew: bool) {
        let has_queue = self.has_queue();
        if !has_queue && self.inner.queue().places.is_empty() {
            return;
        }
        for (info_hash, turn) in self.turns(is_anew, false) {
            let session = &self.inner.session;
            // One that went meanwhile has no turn.
            let _ = match turn {
                // It starts when its files are where they go.
                Turn::Begin(_) if self.inner.moves.holds(&info_hash) => Ok(()),
                Turn::Begin(_) => {
                    session
                        .ask(|reply| Command::Start { info_hash, reply })
                        .await
                }
                Turn::Wait => {
                    session
                        .ask(|reply| Command::Stop { info_hash, reply })
                        .await
                }
                Turn::GoOn(_) => Ok(()),
            };
        }
        if !has_queue {
            self.inner.queue().places.clear();
            self.inner.queue().moved.clear();
        }
    }

    /// Takes the turns; what they are is to be told the session, which `is_start` is not to know them yet.
    fn turns(&self, is_anew: bool, is_start: bool) -> Vec<(InfoHash, Turn)> {
        let limits = self.inner.kept().now.queue;
        let policies = self.inner.torrents.policies.with_places();
        let of_rules = policies.iter().map(|one| (one.id, one.policy.places));
        let of_rules = of_rules.collect();
        let mut queue = self.inner.queue();
        let is_anew = std::mem::take(&mut queue.is_anew) || is_anew;
        let mut rows: Vec<Arc<TorrentRow>> = self.inner.torrents.rows().values().cloned().collect();
        in_order(&mut rows);
        let is_there = |info_hash: &InfoHash| self.inner.session.torrent(info_hash);
        let mut coming = BTreeSet::new();
        let entries = rows.iter().filter_map(|row| {
            let shown = is_there(&row.info_hash);
            let runs = matches!(queue.places.get(&row.info_hash), Some(Some(_)));
            if shown.is_none() && !is_start && !runs {
                coming.insert(row.info_hash);
                return None;
            }
            // One that ran before there was a queue has its place already.
            if let Some(shown) = &shown
                && !queue.places.contains_key(&row.info_hash)
                && shown.activity.is_up()
            {
                let kind = kind(row, Some(shown), None);
                queue.places.insert(row.info_hash, Some(kind));
            }
            queue.entry(row, shown.as_deref(), &limits, &policies)
        });
        let entries: Vec<Entry> = entries.collect();
        let known: BTreeSet<InfoHash> = entries.iter().map(|entry| entry.info_hash).collect();
        queue
            .places
            .retain(|info_hash, _| known.contains(info_hash) || coming.contains(info_hash));
        queue.moved.retain(|info_hash, _| known.contains(info_hash));
        for entry in &entries {
            queue.places.entry(entry.info_hash).or_insert(None);
        }
        let turns = plan(&entries, &limits, &of_rules, is_anew);
        for (info_hash, turn) in &turns {
            let place = match turn {
                Turn::Begin(kind) | Turn::GoOn(kind) => Some(*kind),
                Turn::Wait => None,
            };
            queue.places.insert(*info_hash, place);
        }
        turns
    }

    /// Lets a torrent run, when its turn comes or, with `now`, whoever else runs.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn let_run(&self, info_hash: InfoHash, now: bool) -> Result<(), ControlError> {
        self.change_row(info_hash, |row| {
            row.is_wanted = true;
            row.settings.skips_queue = now;
        })
        .await?;
        // It starts when its files are where they go.
        if self.inner.moves.holds(&info_hash) {
            return Ok(());
        }
        if self.has_queue() {
            let shown = self.inner.session.torrent(&info_hash);
            let runs = shown.is_some_and(|shown| shown.activity.is_up());
            if !runs {
                self.inner.queue().places.insert(info_hash, None);
            }
            self.settle_queue(false).await;
            return Ok(());
        }
        let asked = self
            .inner
            .session
            .ask(|reply| Command::Start { info_hash, reply });
        Ok(asked.await?)
    }

    /// Puts torrents into another order: `order` is given all of them in their present one.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn reorder_queue(
        &self,
        order: impl FnOnce(&mut Vec<InfoHash>),
    ) -> Result<(), ControlError> {
        let (written, before) = {
            let mut rows = self.inner.torrents.rows();
            let there = rows.values().filter(|row| row.leaving.is_none());
            let mut there: Vec<Arc<TorrentRow>> = there.cloned().collect();
            in_order(&mut there);
            let numbered = there.iter().map(|row| (row.info_hash, row.settings.queue));
            let numbered: Vec<(InfoHash, i64)> = numbered.collect();
            let mut wanted = numbered.iter().map(|(info_hash, _)| *info_hash).collect();
            order(&mut wanted);
            let (mut writes, mut before) = (Vec::new(), Vec::new());
            for (info_hash, number) in renumbered(&numbered, &wanted) {
                if let Some(row) = rows.get_mut(&info_hash) {
                    before.push((info_hash, row.settings.queue));
                    let row = Arc::make_mut(row);
                    row.settings.queue = number;
                    writes.push(Write::Put(Box::new(row.clone())));
                }
            }
            (self.inner.torrents.writer.begin(writes), before)
        };
        if let Err(error) = written.done().await {
            let mut rows = self.inner.torrents.rows();
            for (info_hash, number) in before {
                if let Some(row) = rows.get_mut(&info_hash) {
                    Arc::make_mut(row).settings.queue = number;
                }
            }
            return Err(ControlError::NotKept(error));
        }
        self.settle_queue(false).await;
        Ok(())
    }
}
