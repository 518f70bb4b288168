//! What a running session tells of its own delays, for `gyre bench`. Layer 5.
//!
//! Off unless asked for: then one request a peer is followed from its arrival to the kernel, and the ring thread's
//! timers are compared with the clock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::config::SessionEvent;
use super::shared::Shared;
use crate::base::Histogram;
use crate::swarm::UploadRun;
use crate::wire::message::RawBlock;

/// The event loop's timers are compared with the clock this often.
const NAP: Duration = Duration::from_millis(5);
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

/// The delays of one session, in µs.
#[derive(Default)]
pub struct Lab {
    loop_lag: RefCell<Histogram>,
    stages: [RefCell<Histogram>; 3],
}

impl Lab {
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

/// Watches the event loop and tells the figures, as long as the session runs.
pub async fn watch(shared: Rc<Shared>) {
    let Some(lab) = &shared.lab else { return };
    let mut told_at = Instant::now();
    let mut is_warm = false;
    loop {
        let start = Instant::now();
        tokio::time::sleep(NAP).await;
        let late = start.elapsed().saturating_sub(NAP);
        // The start of a session is no part of what is measured.
        if is_warm {
            lab.loop_lag.borrow_mut().add(micros(late));
        }
        if told_at.elapsed() >= TELL {
            (told_at, is_warm) = (Instant::now(), true);
            shared.emit(SessionEvent::Lab(lab.figures()));
        }
    }
}

/// The one request of a peer that is followed.
#[derive(Default)]
pub struct Followed(Cell<Option<(RawBlock, Instant)>>);

impl Followed {
    /// A request came.
    pub fn on_request(&self, shared: &Shared, request: RawBlock) {
        if shared.lab.is_none() {
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
        let Some(lab) = &shared.lab else { return };
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
