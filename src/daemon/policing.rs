//! Policies put in force: what the session hears of them, and what becomes of torrents that reach their goals. Layer 6.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::control::backend::PolicyFigures;
use super::date::{local_now, unix_now_s};
use super::handle::Control;
use super::hooks::{Due, Hook};
use super::policy::{Deeds, Goal, InBook, POLICIES_MAX, Policy, Then};
use super::row::TorrentRow;
use super::torrents::Torrents;
use crate::base::InfoHash;
use crate::session::Command;
use crate::session::SeedAfter;
use crate::session::command::TorrentSnapshot;
use crate::session::tune::{Tuned, Tuning};

/// Schedules and goals are looked at this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Every so many looks all torrents are looked at, also those whose figures rest.
const LOOKS_AT_ALL: u64 = 60;
/// Torrents that are looked at in one go: nobody is to wait for thousands.
const ROWS_AT_A_TIME: usize = 128;

impl Torrents {
    /// What the row and the policies say of it, as the session takes it.
    pub fn tuning(&self, row: &TorrentRow) -> Tuning {
        let mut tuning = row.settings.tuning();
        let policies = self.policies.of(row);
        for one in &policies {
            if let Some(up) = self.throttle(row, one) {
                let own = &mut tuning.limits.up_bytes_per_s;
                *own = Some(own.map_or(up, |own| own.min(up)));
            }
        }
        let asked = policies.iter().any(|one| one.policy.super_seeds);
        tuning.super_seeds = row.settings.super_seeds.unwrap_or(asked);
        tuning.rules = policies.iter().map(|one| one.id).collect();
        tuning
    }

    /// When its seeding ends, by its own settings, by policies, or by those of the daemon.
    pub fn seeds_until(&self, row: &TorrentRow, mut daemons: SeedAfter) -> SeedAfter {
        // The narrowest policy that ends it says when.
        let ends = |goal: &Goal| matches!(goal.then, Then::Stop | Then::Remove);
        for one in self.policies.of(row) {
            if let Some(goal) = one.policy.goal.as_ref().filter(|goal| ends(goal)) {
                daemons.ratio = goal.ratio;
                daemons.time = goal.time;
            }
        }
        row.seed_after(daemons)
    }

    /// All that the session may take over while it runs.
    pub fn tuned(&self, row: &TorrentRow) -> Tuned {
        let seed_after = self.seeds_until(row, self.seed_after());
        Tuned {
            tuning: self.tuning(row),
            is_sequential: row.is_sequential,
            seed_after,
            tiers: row.trackers().into(),
            may_sleep: !row.must_run(seed_after),
        }
    }

    fn throttle(&self, row: &TorrentRow, one: &InBook) -> Option<u64> {
        let goal = one.policy.goal.as_ref()?;
        let Then::Throttle { up_bytes_per_s } = goal.then else {
            return None;
        };
        let is_reached = self.policies.is_reached(row.info_hash, one.id)
            || goal.is_reached(&row.deeds(row.uploaded_bytes, row.downloaded_bytes));
        is_reached.then_some(up_bytes_per_s)
    }
}

impl TorrentRow {
    fn deeds(&self, uploaded_bytes: u64, downloaded_bytes: u64) -> Deeds {
        let seeded = self
            .done_unix_s
            .map(|done| unix_now_s().saturating_sub(done));
        let seeded = seeded.and_then(|seeded| u64::try_from(seeded).ok());
        Deeds {
            uploaded_bytes,
            downloaded_bytes,
            wanted_bytes: self.wanted_bytes,
            seeded: seeded.map(Duration::from_secs),
        }
    }
}

impl Control {
    /// Tells the session the rules.
    pub(super) async fn tell_rules(&self) {
        let rules = Box::new(self.inner.torrents.policies.rules());
        let told = self
            .inner
            .session
            .ask(|reply| Command::SetRules { rules, reply });
        // A session that has ended needs no rules.
        let _ = told.await;
    }

    /// Takes other policies. Blocks until the session has them: not for its runtimes.
    pub fn apply_policies(&self, policies: Vec<Policy>) {
        let (torrents, session) = (&self.inner.torrents, &self.inner.session);
        let rows: Vec<_> = torrents.rows().values().cloned().collect();
        let before: Vec<Tuned> = rows.iter().map(|row| torrents.tuned(row)).collect();
        if !torrents.policies.replace(policies, local_now()) {
            return;
        }
        self.weigh_queue_anew();
        let rules = Box::new(torrents.policies.rules());
        let _ = session.ask_blocking(|reply| Command::SetRules { rules, reply });
        for (row, before) in rows.iter().zip(before) {
            let (info_hash, tuned) = (row.info_hash, Box::new(torrents.tuned(row)));
            if *tuned == before {
                continue;
            }
            // One that went meanwhile needs no rules.
            let _ = session.ask_blocking(|reply| Command::Tune {
                info_hash,
                tuned,
                reply,
            });
        }
    }

    /// Has the limits of policies count in their times.
    async fn keep_time(&self) {
        let policies = &self.inner.torrents.policies;
        if !policies.have_schedules() {
            return;
        }
        let changed = policies.keep_time(local_now());
        for one in &changed {
            let InBook { policy, is_on, .. } = &**one;
            info!(policy = policy.name, is_on, "its hours begin or end");
        }
        if !changed.is_empty() {
            self.weigh_queue_anew();
            self.tell_rules().await;
        }
    }

    /// Every policy with what its torrents do, from the top.
    pub fn policy_figures(&self) -> Vec<PolicyFigures> {
        let policies = self.inner.torrents.policies.policies();
        if policies.is_empty() {
            return Vec::new();
        }
        let listed = self.torrents();
        let figures = policies.iter().map(|in_book| {
            let policy = &in_book.policy;
            let mut figures = PolicyFigures::of(policy.clone(), in_book.is_on);
            for one in listed.iter().filter(|one| in_book.is_for(&one.row)) {
                figures.torrents += 1;
                figures.waiting += u64::from(one.is_waiting);
                let progress = one.shown.as_ref().map(|shown| &shown.progress);
                let moved = progress.map_or((0, 0), |progress| {
                    (
                        progress.total_uploaded_bytes,
                        progress.total_downloaded_bytes,
                    )
                });
                figures.uploaded_bytes += one.row.uploaded_bytes.max(moved.0);
                figures.downloaded_bytes += one.row.downloaded_bytes.max(moved.1);
                let Some(shown) = &one.shown else { continue };
                figures.reached += u64::from(is_reached(policy, &one.row, shown));
                figures.up_bytes_per_s += shown.progress.up_bytes_per_s;
                figures.down_bytes_per_s += shown.progress.down_bytes_per_s;
            }
            figures
        });
        figures.collect()
    }

    /// Names of the policies that are for a torrent, from the top.
    pub fn policies_of(&self, row: &TorrentRow) -> Vec<String> {
        let of = self.inner.torrents.policies.of(row);
        of.iter().map(|one| one.policy.name.clone()).collect()
    }

    /// Looks at the goals of those whose figures changed behind that number; the number now.
    async fn look_at_goals(&self, since: u64, hooks: &mpsc::Sender<Due>) -> u64 {
        let torrents = &self.inner.torrents;
        let policies = torrents.policies.policies();
        if policies.iter().all(|one| one.policy.goal.is_none()) {
            return 0;
        }
        let (now, changed) = self.inner.session.changed(since);
        let mut reached = Vec::new();
        for some in changed.chunks(ROWS_AT_A_TIME) {
            for shown in some {
                let row = torrents.rows().get(&shown.info_hash()).cloned();
                let Some(row) = row.filter(|row| row.leaving.is_none()) else {
                    continue;
                };
                let goals = policies.iter().filter(|one| one.policy.goal.is_some());
                for one in goals.filter(|one| one.is_for(&row)) {
                    if is_reached(&one.policy, &row, shown) {
                        reached.push((row.info_hash, one.clone()));
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        for (info_hash, one) in reached {
            if torrents.policies.note_reached(info_hash, one.id)
                && !self.on_goal(info_hash, &one.policy, hooks).await
            {
                torrents.policies.forget_reached(info_hash, one.id);
            }
        }
        now
    }

    /// False when it is to be done at a later look.
    async fn on_goal(
        &self,
        info_hash: InfoHash,
        policy: &Policy,
        hooks: &mpsc::Sender<Due>,
    ) -> bool {
        let name = &policy.name;
        match policy.goal.as_ref().map(|goal| &goal.then) {
            Some(Then::Throttle { up_bytes_per_s }) => {
                info!(%info_hash, policy = name, up_bytes_per_s, "goal reached: throttled");
                // One that went meanwhile needs no limit.
                let _ = self.put_in_force(info_hash).await;
            }
            Some(Then::Remove) => {
                info!(%info_hash, policy = name, "goal reached: removed, its data stays");
                if let Err(error) = self.remove(info_hash, false).await {
                    warn!(%info_hash, policy = name, %error, "it is not removed");
                }
            }
            Some(Then::Run(hook)) => return self.run_hook(info_hash, name, hook, hooks).await,
            // The session ends it by itself.
            Some(Then::Stop) | None => {}
        }
        true
    }

    /// Has the program run that a policy names, if it was not before: that it was is on disk first. False when it is to be tried
    /// again.
    async fn run_hook(
        &self,
        info_hash: InfoHash,
        policy: &str,
        hook: &Hook,
        hooks: &mpsc::Sender<Due>,
    ) -> bool {
        let Ok(turn) = hooks.try_reserve() else {
            return false;
        };
        let policies = self.inner.torrents.policies.policies();
        let mut is_news = false;
        let noted = self.change_row(info_hash, |row| {
            if row.hooks_run.len() >= POLICIES_MAX {
                let is_there = |name: &String| policies.iter().any(|one| one.policy.name == *name);
                row.hooks_run.retain(is_there);
            }
            is_news = row.hooks_run.insert(policy.to_owned());
        });
        if let Err(error) = noted.await {
            warn!(%info_hash, policy, %error, "its program is not run yet");
            return false;
        }
        if !is_news {
            return true;
        }
        info!(%info_hash, policy, "goal reached: a program is run");
        turn.send(Due {
            info_hash,
            hook: hook.clone(),
            policy: Some(policy.to_owned()),
        });
        true
    }
}

fn is_reached(policy: &Policy, row: &TorrentRow, shown: &TorrentSnapshot) -> bool {
    let progress = &shown.progress;
    let uploaded_bytes = row.uploaded_bytes.max(progress.total_uploaded_bytes);
    let downloaded_bytes = row.downloaded_bytes.max(progress.total_downloaded_bytes);
    let goal = policy.goal.as_ref();
    goal.is_some_and(|goal| goal.is_reached(&row.deeds(uploaded_bytes, downloaded_bytes)))
}

/// Looks after schedules and goals until the daemon ends.
pub async fn watch(control: Control, hooks: mpsc::Sender<Due>) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut looks) = (0, 0_u64);
    loop {
        look.tick().await;
        control.keep_time().await;
        // Time passes for torrents whose figures rest too, other policies come to be for them, and a program that could not
        // be run may be by now.
        looks += 1;
        if looks.is_multiple_of(LOOKS_AT_ALL) {
            seen = 0;
        }
        seen = control.look_at_goals(seen, &hooks).await;
    }
}
