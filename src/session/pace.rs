//! Keeping a session, or one torrent, to its rate limits: tasks wait here for their share of bandwidth. Layer 5.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tracing::trace;

use super::clock::Clock;
use crate::swarm::bandwidth::{Bandwidth, Grant, Priority};

/// One direction's limit, shared by all peers of a session or a torrent.
pub struct Pacer {
    bandwidth: RefCell<Bandwidth>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<u64>>>,
    next_client: Cell<u64>,
    wake: tokio::sync::Notify,
}

impl Pacer {
    /// `None` is no limit, and costs nothing.
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        Pacer {
            bandwidth: RefCell::new(Bandwidth::new(bytes_per_s)),
            waiting: RefCell::default(),
            next_client: Cell::new(0),
            wake: tokio::sync::Notify::new(),
        }
    }

    /// True with a limit.
    pub fn is_limited(&self) -> bool {
        !self.bandwidth.borrow().is_unlimited()
    }

    /// The limit, in bytes a second.
    pub fn rate(&self) -> Option<u64> {
        self.bandwidth.borrow().rate()
    }

    /// Changes the limit, for those who wait already too.
    pub fn set_rate(&self, bytes_per_s: Option<u64>, clock: &Clock) {
        self.bandwidth
            .borrow_mut()
            .set_rate(bytes_per_s, clock.now());
        self.wake.notify_one();
    }

    /// A number for one connection, to be fair by.
    pub fn client(&self) -> u64 {
        let client = self.next_client.get();
        self.next_client.set(client + 1);
        client
    }

    /// Waits until the connection may move `bytes`; at once without a limit.
    pub async fn acquire(&self, client: u64, bytes: u64, priority: Priority, clock: &Clock) {
        let bandwidth = &self.bandwidth;
        let grant = bandwidth
            .borrow_mut()
            .request_as(priority, client, bytes, clock.now());
        if grant == Grant::Now {
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
