//! Seeds that sleep: known by info_hash alone until somebody asks for one. Layer 5.

use std::cell::RefCell;
use std::collections::BTreeSet;

use tokio::sync::Notify;

use super::door::Door;
use super::shared::Shared;
use crate::base::InfoHash;

/// Who sleeps, and who is to be woken.
#[derive(Default)]
pub struct Sleepers {
    /// Those that may be woken; one that runs stays among them as long as it may sleep again.
    all: RefCell<BTreeSet<InfoHash>>,
    wanted: RefCell<BTreeSet<InfoHash>>,
    /// Woken when somebody is wanted, or was found peers of.
    pub changed: Notify,
    /// Woken when somebody runs, or will not.
    settled: Notify,
}

impl Sleepers {
    /// It may be woken from now on.
    pub fn insert(&self, info_hash: InfoHash) {
        self.all.borrow_mut().insert(info_hash);
    }

    /// It may not be woken any more.
    pub fn remove(&self, info_hash: &InfoHash) {
        self.all.borrow_mut().remove(info_hash);
        self.wanted.borrow_mut().remove(info_hash);
        self.settled.notify_waiters();
    }

    /// Whether it may be woken.
    pub fn has(&self, info_hash: &InfoHash) -> bool {
        self.all.borrow().contains(info_hash)
    }

    /// Asks for it to be woken; false for one that cannot be.
    pub fn want(&self, info_hash: InfoHash) -> bool {
        let is_there = self.has(&info_hash);
        if is_there {
            self.wanted.borrow_mut().insert(info_hash);
            self.changed.notify_one();
        }
        is_there
    }

    /// One that is to be woken.
    pub fn next_wanted(&self) -> Option<InfoHash> {
        self.wanted.borrow_mut().pop_first()
    }

    /// Somebody runs.
    pub fn on_running(&self) {
        self.settled.notify_waiters();
    }
}

impl Shared {
    /// Who takes connections for that info_hash; a seed that sleeps is woken first.
    pub async fn door_or_wake(&self, info_hash: InfoHash) -> Option<Door> {
        loop {
            let settled = self.sleepers.settled.notified();
            if let Some(door) = self.door(&info_hash) {
                return Some(door);
            }
            if !self.sleepers.want(info_hash) {
                return None;
            }
            settled.await;
        }
    }
}
