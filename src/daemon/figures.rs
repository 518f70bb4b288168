//! What the session shows of torrents, taken over into their rows, in memory and on disk. Layer 6.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::date::unix_now_s;
use super::handle::Control;
use super::lived::Work;
use super::row::TorrentRow;
use super::store::Write;
use super::writer::Pending;
use crate::base::InfoHash;
use crate::session::command::{Activity, TorrentSnapshot};
use crate::session::{Outcome, TorrentState};

/// Rows that are looked at in one go: after a round of announces thousands change at once, and whoever asks for one of them
/// meanwhile is not to wait for all.
const ROWS_AT_A_TIME: usize = 128;

/// Figures that are on their way to the disk.
pub struct Taken {
    /// Number of the board's last change when they were taken.
    number: u64,
    commits: Vec<(Vec<InfoHash>, Pending)>,
}

/// Up to where figures were kept.
#[derive(Default)]
pub struct Seen {
    number: u64,
    /// Changed in memory, and not known to be on disk.
    missing: BTreeSet<InfoHash>,
}

impl Taken {
    /// Completes when all of them are on disk.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn done(self, seen: &mut Seen) -> Result<(), String> {
        let mut result = Ok(());
        seen.number = self.number;
        // Whoever gives up waiting does not know of any of them.
        seen.missing = self
            .commits
            .iter()
            .flat_map(|(some, _)| some)
            .copied()
            .collect();
        for (some, commit) in self.commits {
            let done = commit.done().await;
            if done.is_ok() {
                for info_hash in &some {
                    seen.missing.remove(info_hash);
                }
            }
            result = result.and(done);
        }
        result
    }
}

impl Control {
    /// Brings the figures of rows up to what the session shows, of those that changed since, and those that are missing.
    pub(super) async fn take_figures(&self, since: &Seen) -> Taken {
        let uptime = self.session().uptime;
        let (number, changed) = self.inner.session.changed(since.number);
        let mut changed: BTreeSet<InfoHash> =
            changed.iter().map(|shown| shown.info_hash()).collect();
        changed.extend(&since.missing);
        let changed: Vec<InfoHash> = changed.into_iter().collect();
        let mut commits = Vec::new();
        for some in changed.chunks(ROWS_AT_A_TIME) {
            commits.extend(self.take_some(some, &since.missing, uptime));
            tokio::task::yield_now().await;
        }
        Taken { number, commits }
    }

    /// Of so few that they are done in one go. Any of them may have been removed, and even added again, meanwhile.
    fn take_some(
        &self,
        some: &[InfoHash],
        missing: &BTreeSet<InfoHash>,
        uptime: Duration,
    ) -> Option<(Vec<InfoHash>, Pending)> {
        let date = unix_now_s();
        let lived_s = self.lived().seconds(Instant::now());
        let waits = {
            let queue = self.inner.queue();
            let some = some.iter();
            some.map(|info_hash| queue.is_waiting(info_hash))
                .collect::<Vec<_>>()
        };
        let mut rows = self.inner.torrents.rows();
        let (written, writes): (Vec<_>, Vec<_>) = self.inner.session.with_torrents(|board| {
            let seen = some.iter().zip(waits).filter_map(|(info_hash, waits)| {
                let row = rows.get(info_hash)?;
                let mut changed = TorrentRow::clone(row);
                if let Some(shown) = board.get(info_hash) {
                    changed.take_announce(shown.announced.as_ref(), date, uptime);
                    changed.take_figures(shown, date, lived_s, waits);
                }
                (changed != **row || missing.contains(info_hash)).then(|| {
                    rows.insert(*info_hash, Arc::new(changed.clone()));
                    (*info_hash, Write::Put(Box::new(changed)))
                })
            });
            seen.unzip()
        });
        // Under the lock of the rows: what is asked for first is written first.
        (!writes.is_empty()).then(|| (written, self.inner.torrents.writer.begin(writes)))
    }
}

impl TorrentRow {
    /// Takes over what is shown of it.
    fn take_figures(&mut self, shown: &TorrentSnapshot, date: i64, lived_s: u64, is_waiting: bool) {
        let progress = &shown.progress;
        let is_done = shown.activity == Activity::Stopped && shown.outcome == Some(Outcome::Done);
        // Of one that waits for another run this is the end of an earlier one.
        if is_done && !is_waiting {
            self.is_wanted = false;
        }
        if shown.activity != Activity::Failed && progress.pieces > 0 && !progress.is_preparing() {
            self.have_bytes = progress.have_bytes;
            self.pieces_have = progress.pieces_have;
        }
        let is_proven = progress.is_loaded() && progress.pieces_unproven == 0;
        if progress.pieces > 0 && (is_proven || progress.pieces_checked >= progress.pieces) {
            self.is_unproven = false;
        }
        let moved = (
            progress.total_downloaded_bytes,
            progress.total_uploaded_bytes,
        );
        if moved.0 > self.downloaded_bytes || moved.1 > self.uploaded_bytes {
            self.active_unix_s = Some(date);
        }
        self.downloaded_bytes = self.downloaded_bytes.max(moved.0);
        self.uploaded_bytes = self.uploaded_bytes.max(moved.1);
        let is_complete = self.have_bytes >= self.wanted_bytes && self.wanted_bytes > 0;
        if is_complete {
            self.done_unix_s.get_or_insert(date);
        }
        let is_checking = progress.state == TorrentState::Checking;
        let work = match shown.activity {
            Activity::Asleep => Some(Work::Seed),
            Activity::Running if is_checking => self.times.work.map(|(work, _)| work),
            Activity::Running if is_complete => Some(Work::Seed),
            Activity::Running => Some(Work::Download),
            _ => None,
        };
        self.times.turn_to(work, lived_s);
    }
}
