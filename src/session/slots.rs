//! Keeps torrents to the upload slots that they have in common. Layer 5.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use super::driver::Driver;
use super::shared::Shared;
use crate::swarm;
use crate::swarm::bandwidth::RuleId;
use crate::swarm::slots::{SharedSlots, Wish};

/// Slots are shared out anew this often: who wants some changes all the time.
const SHARE_INTERVAL: Duration = Duration::from_millis(500);

/// The slots of all rules, and who waits for a change of them.
#[derive(Default)]
pub struct Slots {
    shared: RefCell<SharedSlots>,
    changed: Notify,
}

impl Slots {
    /// Other rules from now on.
    pub fn set(&self, of_rules: BTreeMap<RuleId, u32>) {
        self.shared.borrow_mut().set(of_rules);
        self.changed.notify_one();
    }

    /// Rules of a torrent are others.
    pub fn on_change(&self) {
        if !self.shared.borrow().is_empty() {
            self.changed.notify_one();
        }
    }

    /// The lid of a torrent that begins: it has no slots before some were given to it.
    pub fn first(&self, rules: &[RuleId]) -> Option<u32> {
        self.shared.borrow().count_for(rules).then_some(0)
    }
}

/// Shares slots out until the session ends; without rules it waits for some.
pub(super) async fn keep(shared: Rc<Shared>) {
    loop {
        let is_empty = shared.slots.shared.borrow().is_empty();
        tokio::select! {
            () = tokio::time::sleep(SHARE_INTERVAL), if !is_empty => {}
            () = shared.slots.changed.notified() => {}
        }
        deal(&shared);
    }
}

fn deal(shared: &Shared) {
    let mut drivers: Vec<Rc<Driver>> = shared.torrents.borrow().values().cloned().collect();
    let wishes = drivers.iter().map(|driver| Wish {
        torrent: driver.pace.number(),
        peers: driver.read(swarm::Torrent::wanting_count),
        rules: driver.pace.rules().to_vec(),
    });
    let wishes: Vec<Wish> = wishes.collect();
    let lids = {
        let mut slots = shared.slots.shared.borrow_mut();
        slots.share_out(&wishes, shared.now())
    };
    let lid = |driver: &Rc<Driver>| lids.get(&driver.pace.number()).copied();
    let most = |lid: Option<u32>| lid.unwrap_or(u32::MAX);
    let before = |driver: &Rc<Driver>| driver.read(swarm::Torrent::slots_max);
    drivers.retain(|driver| lid(driver) != before(driver));
    // First those that have fewer than before: nobody gets a slot that another one still has.
    drivers.sort_by_key(|driver| most(lid(driver)) > most(before(driver)));
    for driver in &drivers {
        // A panic ends that torrent; the others get theirs.
        let _ = driver.try_call(|core, cx| core.set_slots_max(lid(driver), cx));
    }
}
