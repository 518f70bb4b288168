//! Seeds that sleep: known by their info_hashes alone until somebody asks for one. Layer 5.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::Notify;

use super::door::Door;
use super::shared::Shared;
use crate::base::InfoHash;

/// Who sleeps, and who is to be woken.
#[derive(Default)]
pub struct Sleepers {
    /// Those that may be woken, each with its second name if it has one. One that runs stays among them as long as it may
    /// sleep again.
    all: RefCell<BTreeMap<InfoHash, Option<InfoHash>>>,
    /// From the second names of hybrids to those they stand for.
    seconds: RefCell<BTreeMap<InfoHash, InfoHash>>,
    wanted: RefCell<BTreeSet<InfoHash>>,
    /// Woken when somebody is wanted, or was found peers of.
    pub changed: Notify,
    /// Woken when somebody runs, or will not.
    settled: Notify,
}

impl Sleepers {
    /// It may be woken from now on, by its second name too if it has one.
    pub fn insert(&self, info_hash: InfoHash, second: Option<InfoHash>) {
        self.all.borrow_mut().insert(info_hash, second);
        if let Some(second) = second {
            self.seconds.borrow_mut().insert(second, info_hash);
        }
    }

    /// It may not be woken any more; its second name, if it had one.
    pub fn remove(&self, info_hash: &InfoHash) -> Option<InfoHash> {
        let second = self.all.borrow_mut().remove(info_hash).flatten();
        self.wanted.borrow_mut().remove(info_hash);
        self.settled.notify_waiters();
        let mut seconds = self.seconds.borrow_mut();
        // By now it may stand for another that has the same v2 part.
        let second = second.filter(|second| seconds.get(second) == Some(info_hash))?;
        seconds.remove(&second);
        Some(second)
    }

    /// Whether this is a name of one that may be woken.
    pub fn has(&self, name: &InfoHash) -> bool {
        self.first(name).is_some()
    }

    fn first(&self, name: &InfoHash) -> Option<InfoHash> {
        let is_first = self.all.borrow().contains_key(name);
        let second = || self.seconds.borrow().get(name).copied();
        is_first.then_some(*name).or_else(second)
    }

    /// Asks for the one of that name to be woken; false when there is none that can be.
    pub fn want(&self, name: &InfoHash) -> bool {
        let first = self.first(name);
        if let Some(info_hash) = first {
            self.wanted.borrow_mut().insert(info_hash);
            self.changed.notify_one();
        }
        first.is_some()
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
            if !self.sleepers.want(&info_hash) {
                return None;
            }
            settled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_name_goes_with_the_one_it_stands_for() {
        let [a, b, c, second, shared] = [1, 2, 3, 4, 5].map(|name| InfoHash::new([name; 20]));
        let sleepers = Sleepers::default();
        sleepers.insert(a, Some(second));
        sleepers.insert(b, Some(shared));
        sleepers.insert(c, Some(shared));
        assert!(
            [a, b, c, second, shared]
                .iter()
                .all(|name| sleepers.has(name))
        );
        assert_eq!(sleepers.remove(&a), Some(second));
        assert!(!sleepers.has(&a) && !sleepers.has(&second));
        assert_eq!(sleepers.remove(&a), None);
        assert_eq!(sleepers.remove(&b), None, "it is another's by now");
        assert!(sleepers.want(&shared));
        assert_eq!(sleepers.next_wanted(), Some(c));
        assert_eq!(sleepers.remove(&c), Some(shared));
        assert!(!sleepers.has(&shared));
    }
}
