//! Keeping a session to its rate limits: tasks wait here for their share of bandwidth. Layer 5.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tracing::trace;

use super::clock::Clock;
use crate::swarm::bandwidth::{Bandwidth, Grant, Place, Priority, Rule, RuleId};

/// One direction's limits: the session's, those of rules, and those of torrents.
pub struct Pacer {
    bandwidth: RefCell<Bandwidth>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<u64>>>,
    next_number: Cell<u64>,
    wake: tokio::sync::Notify,
}

impl Pacer {
    /// `None` is no limit, and costs nothing.
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        Pacer {
            bandwidth: RefCell::new(Bandwidth::new(bytes_per_s)),
            waiting: RefCell::default(),
            next_number: Cell::new(0),
            wake: tokio::sync::Notify::new(),
        }
    }

    /// The session's limit, in bytes a second.
    pub fn session_rate(&self) -> Option<u64> {
        self.bandwidth.borrow().session_rate()
    }

    /// Changes it, for those who wait already too.
    pub fn set_session_rate(&self, bytes_per_s: Option<u64>, clock: &Clock) {
        let now = clock.now();
        self.bandwidth
            .borrow_mut()
            .set_session_rate(bytes_per_s, now);
        self.wake.notify_one();
    }

    /// Other rules from now on.
    pub fn set_rules(&self, rules: &BTreeMap<RuleId, Rule>, clock: &Clock) {
        self.bandwidth.borrow_mut().set_rules(rules, clock.now());
        self.wake.notify_one();
    }

    /// Takes a torrent in, or gives it another place and limit.
    pub fn set_torrent(
        &self,
        torrent: u64,
        place: Place,
        bytes_per_s: Option<u64>,
        priority: Priority,
        clock: &Clock,
    ) {
        let mut bandwidth = self.bandwidth.borrow_mut();
        bandwidth.set_torrent(torrent, place, bytes_per_s, priority, clock.now());
        self.wake.notify_one();
    }

    /// The torrent has ended.
    pub fn remove_torrent(&self, torrent: u64) {
        self.bandwidth.borrow_mut().remove_torrent(torrent);
    }

    /// The lowest limit that counts for a torrent, in bytes a second.
    pub fn rate(&self, torrent: u64) -> Option<u64> {
        self.bandwidth.borrow().rate(torrent)
    }

    /// What a connection of the torrent is to ask for at a time; `None` without a limit.
    pub fn turn_bytes(&self, torrent: u64) -> Option<u64> {
        self.bandwidth.borrow().turn_bytes(torrent)
    }

    /// A number for one torrent or connection, to be fair by.
    pub fn number(&self) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }

    /// Waits until the connection may move `bytes`; at once without a limit.
    pub async fn acquire(&self, torrent: u64, client: u64, bytes: u64, clock: &Clock) {
        let (grant, is_due) = {
            let mut bandwidth = self.bandwidth.borrow_mut();
            let grant = bandwidth.request(torrent, client, bytes, clock.now());
            (grant, bandwidth.has_granted())
        };
        if grant == Grant::Now {
            if is_due {
                self.wake.notify_one();
            }
            return;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(client, sender);
        self.wake.notify_one();
        // The sender is dropped only when the session ends.
        let _ = receiver.await;
    }

    /// Forgets a connection; a wait of its own ends.
    pub fn forget(&self, client: u64) {
        self.bandwidth.borrow_mut().forget(client);
        self.waiting.borrow_mut().remove(&client);
    }

    /// Hands out bandwidth as it accrues. Runs as long as the session.
    pub async fn run(&self, clock: Clock) {
        let bandwidth = &self.bandwidth;
        // Whoever waits already did so when an earlier run broke off, perhaps between its grant and hearing of it.
        for (client, sender) in self.waiting.take() {
            bandwidth.borrow_mut().forget(client);
            let _ = sender.send(0);
        }
        loop {
            let deadline = bandwidth.borrow().next_deadline();
            match deadline {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(clock.instant(at)) => {}
                        () = self.wake.notified() => {}
                    }
                }
                None => self.wake.notified().await,
            }
            let granted = bandwidth.borrow_mut().poll(clock.now());
            trace!(clients = granted.len(), "bandwidth granted");
            for (client, bytes) in granted {
                if let Some(sender) = self.waiting.borrow_mut().remove(&client) {
                    // A connection that stopped waiting has closed; its share is lost once.
                    let _ = sender.send(bytes);
                }
            }
        }
    }
}
