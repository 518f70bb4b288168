//! Settings that change while torrents run or sleep. Layer 5.

use std::rc::Rc;

use super::Fleet;
use super::row::Run;
use crate::base::InfoHash;
use crate::session::announce::Announcers;
use crate::session::command::{CommandError, Limits, Rules, Sleep};
use crate::session::door::Door;
use crate::session::driver::Driver;
use crate::session::shared::Shared;
use crate::session::tune::Tuned;

impl Fleet {
    /// Puts other settings of a torrent in force, whatever it does. Of one that rests nothing is held here.
    pub(super) fn tune(
        self: &Rc<Self>,
        shared: &Rc<Shared>,
        info_hash: InfoHash,
        tuned: &Tuned,
    ) -> Result<(), CommandError> {
        let (wakes, sleeps_on, runs) = self.with_row(info_hash, |row| {
            // One that runs with trackers of its own goes on with them: it may sleep from its next start on.
            let sleeps = row.sleeps.take().filter(|_| tuned.may_sleep);
            row.sleeps = sleeps.map(|sleep| Sleep {
                tiers: tuned.tiers.clone(),
                ..sleep
            });
            let is_asleep = row.run == Run::Asleep;
            (
                is_asleep && row.sleeps.is_none(),
                is_asleep && row.sleeps.is_some(),
                row.run == Run::Under,
            )
        })?;
        let schedule = &shared.seed_trackers;
        if schedule.has(&info_hash) {
            schedule.set_tiers(shared, info_hash, &tuned.tiers);
        } else if sleeps_on {
            // It had no trackers until now.
            schedule.add(shared, info_hash, &tuned.tiers, None);
        }
        let door = shared.door(&info_hash);
        match &door {
            Some(Door::Torrent(driver)) => driver.take(tuned),
            Some(Door::Metadata(search)) => {
                let tiers = tuned.tiers.to_vec();
                Announcers::set_tiers(search.announcers(), Door::Metadata(search.clone()), tiers);
            }
            None => {}
        }
        // Its settings were asked for before, perhaps, and are not in force yet.
        if runs && !matches!(door, Some(Door::Torrent(_))) {
            shared.take_later(info_hash, tuned.clone());
        }
        if wakes {
            self.begin_now(shared, info_hash);
        }
        Ok(())
    }
}

/// Changes the limits of the whole session.
pub(super) fn set_limits(shared: &Shared, limits: Limits) {
    let Limits {
        up_bytes_per_s: up,
        down_bytes_per_s: down,
    } = limits;
    shared.up.set_session_rate(up, &shared.clock);
    shared.down.set_session_rate(down, &shared.clock);
    on_limits(shared);
}

/// Puts other rules in force; torrents keep theirs by name.
pub(super) fn set_rules(shared: &Shared, rules: &Rules) {
    shared.up.set_rules(&rules.up, &shared.clock);
    shared.down.set_rules(&rules.down, &shared.clock);
    shared.slots.set(rules.slots.clone());
    on_limits(shared);
}

fn on_limits(shared: &Shared) {
    let drivers: Vec<Rc<Driver>> = shared.torrents.borrow().values().cloned().collect();
    drivers.iter().for_each(Driver::on_limits);
}
