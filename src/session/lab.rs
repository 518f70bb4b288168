//! What a running session knows of its own delays and of what it uses. Layer 5.
//!
//! The ring thread's timers are compared with the clock, and requests are followed from their arrival to the kernel: a few a
//! second, chosen by time, so that the others cost a look at a flag. For `gyre bench` one of each peer is always followed, and
//! the figures are told as events.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::SessionEvent;
use super::shared::Shared;
use crate::base::Histogram;
use crate::swarm::UploadRun;
use crate::uring::op;
use crate::wire::message::RawBlock;

/// The event loop's timers are compared with the clock this often, and by a session that tells its delays.
const NAP: Duration = Duration::from_millis(250);
const TELLING_NAP: Duration = Duration::from_millis(5);
/// And the figures told this often.
const TELL: Duration = Duration::from_secs(1);
/// A request followed for longer was withdrawn.
const FOLLOW_MAX: Duration = Duration::from_secs(30);

/// The stages of a request.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// From its arrival until it is taken for sending.
    Queued,
    /// Until its bytes are at hand, in a mapping or in memory.
    Read,
    /// Until the kernel has all of them.
    Sent,
}

/// What a session is like from inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// How late the event loop's timers were, in µs.
    pub loop_lag: Histogram,
    /// How long requests that were followed took in each [`Stage`], in µs.
    pub stages: [Histogram; 3],
    /// The pool's memory, what of it is free, and what lies outside of it because it had none.
    pub buffer_bytes: u64,
    pub buffer_free_bytes: u64,
    pub buffer_heap_bytes: u64,
    /// Operations that the kernel works on.
    pub operations: u64,
}

/// The delays of one session, in µs.
#[derive(Default)]
pub struct Lab {
    /// Told as events, of one request a peer.
    tells: bool,
    /// The next request that comes is followed.
    is_due: Cell<bool>,
    loop_lag: RefCell<Histogram>,
    stages: [RefCell<Histogram>; 3],
    health: RefCell<Arc<Health>>,
}

impl Lab {
    /// `tells` is for `gyre bench`.
    pub fn new(tells: bool) -> Lab {
        Lab {
            tells,
            ..Lab::default()
        }
    }

    /// As it was a second ago at most.
    pub fn health(&self) -> Arc<Health> {
        self.health.borrow().clone()
    }

    /// Whether the request that just came is to be followed, should its peer have none that is.
    fn takes_next(&self) -> bool {
        self.tells || self.is_due.take()
    }

    fn look(&self, shared: &Shared) -> Health {
        Health {
            loop_lag: self.loop_lag.borrow().clone(),
            stages: self.stages.each_ref().map(|stage| stage.borrow().clone()),
            buffer_bytes: shared.pool.bytes() as u64,
            buffer_free_bytes: shared.pool.free_bytes() as u64,
            buffer_heap_bytes: shared.pool.heap_bytes() as u64,
            operations: op::in_flight() as u64,
        }
    }

    fn add(&self, stage: Stage, time: Duration) {
        if let Some(histogram) = self.stages.get(stage as usize) {
            histogram.borrow_mut().add(micros(time));
        }
    }

    /// Names and values: p50, p99 and p99.9 of each delay.
    fn figures(&self) -> Vec<(String, u64)> {
        let [queued, read, sent] = &self.stages;
        let named = [
            ("loop_lag", &self.loop_lag),
            ("request_queued", queued),
            ("request_read", read),
            ("request_sent", sent),
        ];
        let mut figures = Vec::new();
        for (name, histogram) in named {
            for (label, q) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
                if let Some(us) = histogram.borrow().quantile(q) {
                    figures.push((format!("{name}_{label}_us"), us));
                }
            }
        }
        figures
    }
}

/// Watches the event loop and puts the figures up, as long as the session runs.
pub async fn watch(shared: Rc<Shared>) {
    let lab = &shared.lab;
    let nap = if lab.tells { TELLING_NAP } else { NAP };
    let mut told_at = Instant::now();
    let mut is_warm = false;
    loop {
        let start = Instant::now();
        tokio::time::sleep(nap).await;
        let late = start.elapsed().saturating_sub(nap);
        lab.is_due.set(true);
        // The start of a session is no part of what is measured.
        if is_warm {
            lab.loop_lag.borrow_mut().add(micros(late));
        }
        if told_at.elapsed() >= TELL {
            (told_at, is_warm) = (Instant::now(), true);
            *lab.health.borrow_mut() = Arc::new(lab.look(&shared));
            if lab.tells {
                shared.emit(SessionEvent::Lab(lab.figures()));
            }
        }
    }
}

/// The one request of a peer that is followed.
#[derive(Default)]
pub struct Followed(Cell<Option<(RawBlock, Instant)>>);

impl Followed {
    /// A request came.
    pub fn on_request(&self, shared: &Shared, request: RawBlock) {
        if !shared.lab.takes_next() {
            return;
        }
        let is_free = self
            .0
            .get()
            .is_none_or(|(_, since)| since.elapsed() > FOLLOW_MAX);
        if is_free {
            self.0.set(Some((request, Instant::now())));
        }
    }

    /// The stage of the followed request ends, if it is in that run.
    pub fn on_stage(&self, shared: &Shared, run: &UploadRun, stage: Stage) {
        let lab = &shared.lab;
        let Some((request, since)) = self.0.get() else {
            return;
        };
        let is_it = |block: &crate::base::BlockRef| {
            (block.piece().get(), block.begin()) == (request.piece, request.begin)
        };
        if !run.blocks.iter().any(is_it) {
            return;
        }
        lab.add(stage, since.elapsed());
        let next = (request, Instant::now());
        self.0.set(match stage {
            Stage::Sent => None,
            Stage::Queued | Stage::Read => Some(next),
        });
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
