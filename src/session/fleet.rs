//! The torrents of a session that takes commands: which run, which rest, and what is shown of them. Layer 5.
//!
//! Lives on the ring thread. A torrent that does not run is a row here and nothing else: its settings are asked of the
//! [`TorrentSource`] each time that it begins.

mod asked;
mod asleep;
mod row;
mod tune;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tracing::{debug, warn};

use super::command::{
    Board, Command, CommandError, NewTorrent, Removed, Reply, TorrentSource, Trouble,
};
use super::config::{CheckMode, Job, Outcome, SessionEvent, TorrentState};
use super::contain::{caught, count_panic, off_ring};
use super::error::SessionError;
use super::removal;
use super::run::run_contained;
use super::shared::Shared;
use crate::base::{InfoHash, Now};
use asked::{details, reannounce};
use row::{Behind, Row, Run, Table};
use tune::{set_limits, set_rules};

/// The board is brought up to date this often.
const TICK: Duration = Duration::from_secs(1);
/// And so soon where somebody was reading it.
const RETRY: Duration = Duration::from_millis(20);
/// Torrents whose settings are fetched at once: each takes a thread that may wait for a disk.
const SOURCED_MAX: usize = 8;
/// How long one that is to stop is waited for while that is under way: a disk that hangs lets nobody wait for ever.
const SOURCE_END: Duration = Duration::from_secs(3);

/// All torrents of a session.
pub struct Fleet {
    source: Arc<dyn TorrentSource>,
    board: Board,
    table: RefCell<Table>,
    sourced: Arc<Semaphore>,
    /// Somebody had to wait for a place, and it was said.
    has_waited: Cell<bool>,
    /// Woken when a run, or a removal, is over.
    over: Notify,
}

/// The answer to a command, given once the board shows what it did.
type Answer = Option<(Reply<()>, Result<(), CommandError>)>;

impl Fleet {
    /// A fleet without torrents.
    pub fn new(source: Arc<dyn TorrentSource>, board: Board) -> Rc<Fleet> {
        Rc::new(Fleet {
            source,
            board,
            table: RefCell::default(),
            sourced: Arc::new(Semaphore::new(SOURCED_MAX)),
            has_waited: Cell::default(),
            over: Notify::new(),
        })
    }

    /// Does what commands say until the session is to end, then ends every torrent. Returns who waits for that end.
    pub async fn run(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        mut commands: mpsc::Receiver<Command>,
    ) -> Vec<Reply<()>> {
        let mut shutdowns = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_shown = self.publish(shared);
        let announcing = self.announce_seeds(shared);
        loop {
            let mut is_tick = false;
            let command = tokio::select! {
                biased;
                () = shared.stopping() => break,
                _ = tick.tick() => {
                    is_tick = true;
                    None
                }
                () = shared.sleepers.changed.notified() => None,
                () = tokio::time::sleep(RETRY), if !is_shown => None,
                command = commands.recv() => match command {
                    None => break,
                    Some(Command::Shutdown { reply }) => {
                        shutdowns.push(reply);
                        break;
                    }
                    command => command,
                },
            };
            let answer = command.and_then(|command| self.on_command(shared, command));
            self.rest_after_checks(shared);
            self.wake_wanted(shared);
            if is_tick {
                self.let_idle_sleep(shared);
            }
            self.note_announces(shared);
            is_shown = self.publish(shared);
            if let Some((reply, result)) = answer {
                let _ = reply.send(result);
            }
        }
        commands.close();
        shared.stop();
        announcing.abort();
        tokio::join!(self.wait_for_ends(), shared.seed_trackers.end(shared));
        self.note_announces(shared);
        for _ in 0..50 {
            if self.publish(shared) {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        shutdowns
    }

    /// How each torrent's last run ended.
    pub fn outcomes(&self) -> Vec<(InfoHash, Outcome)> {
        let table = self.table.borrow();
        let outcomes = table.outcomes.iter();
        outcomes
            .map(|(info_hash, end)| (*info_hash, *end))
            .collect()
    }

    /// Takes what the session tells into the rows.
    pub fn on_event(&self, event: &SessionEvent) {
        let table = &mut *self.table.borrow_mut();
        match event {
            SessionEvent::Listening { addr } => table.session.listening.push(*addr),
            SessionEvent::Progress(progress) => table.on_progress(progress),
            SessionEvent::Error {
                info_hash: Some(info_hash),
                message,
                hint,
                is_final,
            } => table.change(*info_hash, |row| {
                row.trouble = Some(Trouble {
                    message: message.clone(),
                    hint: hint.clone(),
                    is_final: *is_final,
                });
            }),
            SessionEvent::Complete { info_hash, .. } => {
                table.change(*info_hash, |row| row.trouble = None);
            }
            _ => {}
        }
    }

    async fn wait_for_ends(&self) {
        loop {
            let over = self.over.notified();
            let is_over = {
                let table = self.table.borrow();
                table.removals == 0 && table.rows.values().all(|row| !row.is_running())
            };
            if is_over {
                return;
            }
            over.await;
        }
    }

    fn on_command(self: &Rc<Self>, shared: &Rc<Shared>, command: Command) -> Answer {
        match command {
            Command::Add { torrent, reply } => {
                let added = self.add(shared, *torrent);
                shared.admit();
                Some((reply, added))
            }
            Command::AddAll { torrents, reply } => {
                let results = torrents
                    .into_iter()
                    .map(|torrent| self.add(shared, torrent));
                let refused = results.filter_map(Result::err).collect();
                shared.admit();
                let _ = reply.send(Ok(refused));
                None
            }
            Command::Start { info_hash, reply } => Some((reply, self.start(shared, info_hash))),
            Command::Stop { info_hash, reply } => Some((reply, self.stop(shared, info_hash))),
            Command::Verify { info_hash, reply } => Some((reply, self.verify(shared, info_hash))),
            Command::Reload { info_hash, reply } => {
                let done = self.with_row(info_hash, |row| row.is_running());
                if done == Ok(true) {
                    self.begin_anew(shared, info_hash);
                }
                Some((reply, done.map(|_| ())))
            }
            Command::End { info_hash, reply } => {
                self.end_told(shared, info_hash, reply);
                None
            }
            Command::Suspect {
                info_hash,
                pieces,
                reply,
            } => Some((reply, self.suspect(shared, info_hash, pieces))),
            Command::BeginAnew { info_hash, reply } => {
                let done = self.with_row(info_hash, |row| {
                    // Nobody knows whether it is whole there.
                    if let Some(sleep) = &mut row.sleeps {
                        sleep.is_whole = false;
                    }
                    row.run
                });
                match done {
                    Ok(Run::Asleep) => self.begin_now(shared, info_hash),
                    Ok(Run::Under | Run::Ending(_)) => self.begin_anew(shared, info_hash),
                    _ => {}
                }
                Some((reply, done.map(|_| ())))
            }
            Command::Reannounce { info_hash, reply } => {
                let done = self.with_row(info_hash, |_| ());
                if done.is_ok() {
                    reannounce(shared, &info_hash);
                }
                Some((reply, done))
            }
            Command::Tune {
                info_hash,
                tuned,
                reply,
            } => Some((reply, self.tune(shared, info_hash, &tuned))),
            Command::SetLimits { limits, reply } => {
                set_limits(shared, limits);
                Some((reply, Ok(())))
            }
            Command::SetRules { rules, reply } => {
                set_rules(shared, &rules);
                Some((reply, Ok(())))
            }
            Command::Remove {
                info_hash,
                with_data,
                reply,
            } => {
                self.remove(shared, info_hash, with_data, reply);
                None
            }
            Command::Details { info_hash, reply } => {
                let known = self.with_row(info_hash, |_| ());
                let _ = reply.send(known.map(|()| details(shared, &info_hash)));
                None
            }
            // Taken out before.
            Command::Shutdown { .. } => None,
        }
    }

    /// Changes a row that is there to stay.
    fn with_row<R>(
        &self,
        info_hash: InfoHash,
        change: impl FnOnce(&mut Row) -> R,
    ) -> Result<R, CommandError> {
        let table = &mut *self.table.borrow_mut();
        let row = table.rows.get_mut(&info_hash);
        let row = row.ok_or(CommandError::Unknown(info_hash))?;
        if row.leaving.is_some() {
            return Err(CommandError::Leaving(info_hash));
        }
        let result = change(row);
        table.touch(info_hash);
        Ok(result)
    }

    fn add(self: &Rc<Self>, shared: &Rc<Shared>, torrent: NewTorrent) -> Result<(), CommandError> {
        let info_hash = torrent.figures.info_hash;
        {
            let table = &mut *self.table.borrow_mut();
            match table.rows.get(&info_hash) {
                Some(row) if row.leaving.is_some() => return Err(CommandError::Leaving(info_hash)),
                Some(_) => return Err(CommandError::Present(info_hash)),
                None => {}
            }
            let row = Row {
                progress: torrent.figures,
                outcome: None,
                trouble: None,
                revision: 0,
                is_wanted: torrent.runs,
                run: Run::No,
                leaving: None,
                enders: Vec::new(),
                sleeps: torrent.sleeps,
                announced: None,
                peers: Vec::new(),
                idle_since: None,
                suspects: Vec::new(),
                checks_all: false,
                rests_after_check: false,
                is_waiting: false,
                is_counted_asleep: false,
            };
            table.rows.insert(info_hash, Box::new(row));
            table.touch(info_hash);
        }
        if torrent.runs {
            self.begin(shared, info_hash);
        }
        Ok(())
    }

    fn start(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        info_hash: InfoHash,
    ) -> Result<(), CommandError> {
        let run = self.with_row(info_hash, |row| {
            row.is_wanted = true;
            row.rests_after_check = false;
            row.run
        })?;
        if run == Run::No {
            self.begin(shared, info_hash);
        }
        Ok(())
    }

    fn stop(&self, shared: &Rc<Shared>, info_hash: InfoHash) -> Result<(), CommandError> {
        let is_running = self.with_row(info_hash, |row| {
            row.is_wanted = false;
            row.end()
        })?;
        self.stop_announcing(shared, info_hash);
        if is_running {
            shared.stop_torrent(&info_hash);
        }
        Ok(())
    }

    /// One that may sleep is announced by the schedule, which hears that this is over.
    fn stop_announcing(&self, shared: &Rc<Shared>, info_hash: InfoHash) {
        shared.forget_sleeper(&info_hash);
        shared.seed_trackers.remove(shared, info_hash);
    }

    fn verify(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        info_hash: InfoHash,
    ) -> Result<(), CommandError> {
        let run = self.with_row(info_hash, |row| {
            row.checks_all = true;
            row.rests_after_check = !row.is_wanted;
            row.run
        })?;
        match run {
            Run::No | Run::Asleep => self.begin_now(shared, info_hash),
            _ => self.begin_anew(shared, info_hash),
        }
        Ok(())
    }

    /// Ends the run under way, and has another begin behind it.
    fn begin_anew(&self, shared: &Shared, info_hash: InfoHash) {
        let anew = self.with_row(info_hash, |row| row.run = Run::Ending(Behind::Begin));
        if anew.is_ok() {
            shared.stop_torrent(&info_hash);
        }
    }

    /// Those that were only to be checked stop once they are.
    fn rest_after_checks(&self, shared: &Rc<Shared>) {
        let is_checked = |row: &Row| {
            row.rests_after_check
                && row.run == Run::Under
                && !row.checks_all
                && row.progress.state != TorrentState::Checking
        };
        let table = self.table.borrow();
        let changed = table.dirty.iter();
        let checked = changed.filter(|of| table.rows.get(of).is_some_and(|row| is_checked(row)));
        let checked: Vec<InfoHash> = checked.copied().collect();
        drop(table);
        for info_hash in checked {
            let _ = self.stop(shared, info_hash);
        }
    }

    fn remove(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        info_hash: InfoHash,
        with_data: bool,
        reply: Reply<Removed>,
    ) {
        let is_running = {
            let table = &mut *self.table.borrow_mut();
            let Some(row) = table.rows.get_mut(&info_hash) else {
                let _ = reply.send(Err(CommandError::Unknown(info_hash)));
                return;
            };
            let is_first = row.leaving.is_none();
            let leaving = row.leaving.get_or_insert_default();
            leaving.with_data |= with_data;
            leaving.replies.push(reply);
            row.is_wanted = false;
            let is_running = row.end();
            table.touch(info_hash);
            if !is_first {
                return;
            }
            is_running
        };
        self.stop_announcing(shared, info_hash);
        match is_running {
            false => self.forget(shared, info_hash),
            true => shared.stop_torrent(&info_hash),
        }
    }

    /// Starts a run.
    fn begin_now(self: &Rc<Self>, shared: &Rc<Shared>, info_hash: InfoHash) {
        let checks_all = {
            let table = &mut *self.table.borrow_mut();
            let Some(row) = table.rows.get_mut(&info_hash) else {
                return;
            };
            row.run = Run::Under;
            row.is_waiting = shared.runs.available_permits() == 0;
            row.trouble = None;
            row.outcome = None;
            row.progress.state = TorrentState::Checking;
            table.session.running += 1;
            table.awake.insert(info_hash);
            let checks_all = std::mem::take(&mut row.checks_all);
            table.touch(info_hash);
            checks_all
        };
        shared.expect_end(info_hash);
        let (fleet, shared) = (self.clone(), shared.clone());
        tokio_uring::spawn(async move {
            let living = caught(fleet.live(&shared, info_hash, checks_all)).await;
            let outcome = living.unwrap_or_else(|_| {
                count_panic(&shared, "a torrent's run");
                Outcome::Failed
            });
            shared.forget_end(&info_hash);
            fleet.on_run_over(&shared, info_hash, outcome);
        });
    }

    /// One run from its settings to its end.
    async fn live(&self, shared: &Rc<Shared>, info_hash: InfoHash, checks_all: bool) -> Outcome {
        if shared.runs.available_permits() == 0 {
            self.table.borrow_mut().set_waiting(info_hash, true);
            if !self.has_waited.replace(true) {
                let runs = shared.runs_max;
                warn!(
                    runs,
                    "further torrents wait until others end or sleep; hint: raise the limit of open files"
                );
            }
        }
        let place = tokio::select! {
            biased;
            place = shared.runs.acquire() => place,
            () = shared.torrent_stopping(info_hash) => return Outcome::Stopped,
        };
        self.table.borrow_mut().set_waiting(info_hash, false);
        let turn = tokio::select! {
            biased;
            turn = self.sourced.clone().acquire_owned() => turn,
            () = shared.torrent_stopping(info_hash) => return Outcome::Stopped,
        };
        let source = self.source.clone();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let is_over = is_stopped.clone();
        let job = off_ring(move || {
            // Held by the thread: whoever waited may have gone long before.
            let _turn = turn;
            source.before_run(info_hash, &is_over)?;
            source.job(info_hash)
        });
        let mut job = std::pin::pin!(caught(job));
        let job = tokio::select! {
            job = &mut job => job,
            () = shared.torrent_stopping(info_hash) => {
                is_stopped.store(true, Ordering::Relaxed);
                match tokio::time::timeout(SOURCE_END, job).await {
                    Ok(job) => job,
                    Err(_) => {
                        warn!(%info_hash, "the state folder or a disk does not answer; it is not waited for");
                        return Outcome::Stopped;
                    }
                }
            }
        };
        let job = match job {
            Ok(job) => job,
            Err(panicked) => Err(SessionError::new(
                format!("the torrent cannot be started: {panicked}"),
                "please report it with the log (-vv)",
            )),
        };
        let job = job.and_then(|job| match job.info_hash() == info_hash {
            true => Ok(job),
            false => Err(SessionError::new(
                format!("what is kept as {info_hash} is another torrent"),
                "remove the torrent and add it again",
            )),
        });
        let mut job = match job {
            Ok(job) => job,
            Err(error) => {
                self.fail(shared, info_hash, &error);
                return error.outcome();
            }
        };
        if let Job::Torrent(config) = &mut job {
            if checks_all {
                config.check = CheckMode::Full;
            }
            let mut table = self.table.borrow_mut();
            if let Some(row) = table.rows.get_mut(&info_hash) {
                // One schedule announces all that may sleep.
                let is_scheduled = shared.seed_trackers.has(&info_hash);
                config.trackers &= !is_scheduled;
                config.peers.append(&mut row.peers);
                config.place.suspects.append(&mut row.suspects);
            }
        }
        let is_still_to_run = {
            let table = self.table.borrow();
            let row = table.rows.get(&info_hash);
            row.is_some_and(|row| row.run == Run::Under)
        };
        if !is_still_to_run {
            return Outcome::Stopped;
        }
        let (_, outcome) = run_contained(shared.clone(), job).await;
        // Its files are closed: another may open its own.
        drop(place);
        outcome
    }

    fn fail(&self, shared: &Shared, info_hash: InfoHash, error: &SessionError) {
        shared.emit(SessionEvent::Error {
            info_hash: Some(info_hash),
            message: error.to_string(),
            hint: error.hint().to_owned(),
            is_final: true,
        });
    }

    fn on_run_over(self: &Rc<Self>, shared: &Rc<Shared>, info_hash: InfoHash, outcome: Outcome) {
        debug!(%info_hash, ?outcome, "a run is over");
        let enders;
        let next = {
            let table = &mut *self.table.borrow_mut();
            table.session.running = table.session.running.saturating_sub(1);
            table.awake.remove(&info_hash);
            table.outcomes.insert(info_hash, outcome);
            table.settle(info_hash);
            let Some(row) = table.rows.get_mut(&info_hash) else {
                return;
            };
            let behind = match row.run {
                Run::Ending(behind) => behind,
                _ => Behind::Rest,
            };
            let sent_bytes = row.progress.uploaded_bytes;
            shared.seed_trackers.on_run_over(&info_hash, sent_bytes);
            row.run = Run::No;
            row.outcome = Some(outcome);
            row.progress.state = match outcome {
                Outcome::Failed | Outcome::Incomplete => TorrentState::Error,
                Outcome::Done | Outcome::Stopped => TorrentState::Paused,
            };
            // What was to be done is done.
            row.is_wanted &= outcome != Outcome::Done;
            let is_restarted = row.is_wanted && outcome == Outcome::Stopped;
            let next = match row.leaving.is_some() {
                true => Next::Forget,
                false if shared.is_stopping() => Next::Rest,
                false if behind == Behind::Sleep && outcome == Outcome::Stopped => Next::Sleep,
                false if behind == Behind::Begin || is_restarted => Next::Begin,
                false => Next::Rest,
            };
            enders = std::mem::take(&mut row.enders);
            table.touch(info_hash);
            next
        };
        for ender in enders {
            let _ = ender.send(Ok(()));
        }
        match next {
            Next::Forget => self.forget(shared, info_hash),
            // With a check to be made it does not fall asleep before that.
            Next::Begin => self.begin_now(shared, info_hash),
            Next::Sleep => self.begin(shared, info_hash),
            Next::Rest => self.stop_announcing(shared, info_hash),
        }
        self.over.notify_waiters();
    }

    /// The last of a torrent that does not run any more.
    fn forget(self: &Rc<Self>, shared: &Rc<Shared>, info_hash: InfoHash) {
        self.table.borrow_mut().removals += 1;
        let (fleet, state_dir) = (self.clone(), shared.config.state_dir.clone());
        let shared = shared.clone();
        tokio_uring::spawn(async move {
            let with_data = fleet.is_leaving_with_data(&info_hash);
            let source = fleet.source.clone();
            let work = move || removal::remove(&state_dir, info_hash, &*source, with_data);
            let removed = caught(off_ring(work)).await.unwrap_or_else(|_| {
                count_panic(&shared, "a removal");
                Removed::default()
            });
            for kept in &removed.kept {
                warn!(%info_hash, "{kept}");
            }
            let replies = {
                let table = &mut *fleet.table.borrow_mut();
                let row = table.take_out(&info_hash);
                table.outcomes.remove(&info_hash);
                table.removals -= 1;
                table.touch(info_hash);
                row.and_then(|row| row.leaving)
            };
            fleet.publish(&shared);
            for reply in replies.unwrap_or_default().replies {
                let _ = reply.send(Ok(removed.clone()));
            }
            fleet.over.notify_waiters();
        });
    }

    fn is_leaving_with_data(&self, info_hash: &InfoHash) -> bool {
        let table = self.table.borrow();
        let leaving = table.rows.get(info_hash);
        leaving.is_some_and(|row| {
            row.leaving
                .as_ref()
                .is_some_and(|leaving| leaving.with_data)
        })
    }

    /// Puts what changed on the board; false when that must be tried again.
    fn publish(&self, shared: &Shared) -> bool {
        let table = &mut *self.table.borrow_mut();
        table.count_asleep();
        let session = &mut table.session;
        session.torrents = table.rows.len();
        session.uptime = shared.now().since(Now::ZERO);
        session.panics = shared.panics.get() + shared.disks.hash_panics();
        session.health = shared.lab.health();
        session.limits.up_bytes_per_s = shared.up.session_rate();
        session.limits.down_bytes_per_s = shared.down.session_rate();
        let rows = &table.rows;
        let changes = table.dirty.iter().map(|info_hash| {
            let shown = rows.get(info_hash).map(|row| Arc::new(row.snapshot()));
            (*info_hash, shown)
        });
        let is_shown = self.board.try_put(&table.session, &changes.collect());
        if is_shown {
            table.dirty.clear();
        }
        is_shown
    }
}

/// What comes behind a run.
enum Next {
    Rest,
    Sleep,
    Begin,
    Forget,
}
