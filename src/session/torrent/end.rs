//! The end of a torrent: trackers and peers hear of it, and what was fetched is on disk. Layer 5.

use std::convert::Infallible;
use std::time::Duration;

use tracing::warn;

use super::{Running, TICK};
use crate::session::config::{Outcome, SessionEvent};
use crate::session::error::SessionError;
use crate::swarm;

/// A shutdown waits this long for connections and disk work; the whole must fit in ten seconds (HOSTILE.md L12).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(4);
/// And this long for trackers to hear `stopped`.
pub(super) const STOPPED_TIMEOUT: Duration = Duration::from_secs(5);

impl Running<'_> {
    /// A seed that goes to sleep is announced on as if nothing had happened; else trackers hear that it stops.
    async fn end_announcing(&self) {
        let (shared, info_hash) = (self.driver.shared(), self.driver.info_hash());
        if shared.seed_trackers.is_expected(&info_hash) {
            let announcing = self.driver.announcers.hand_over().await;
            shared.seed_trackers.adopt(shared, info_hash, announcing);
        } else {
            self.driver.announcers.stop(STOPPED_TIMEOUT).await;
        }
    }

    /// Tells figures until dropped, where the disk takes longer than between two of them.
    async fn tell_saving(&self) -> Infallible {
        let first = tokio::time::Instant::now() + TICK;
        let mut tick = tokio::time::interval_at(first, TICK);
        loop {
            tick.tick().await;
            self.driver.state.set(self.state(self.was_complete));
            self.shared.emit(SessionEvent::Progress(self.progress()));
        }
    }

    /// Says goodbye to trackers and peers, syncs, and records the end, which is a failure after all when what was
    /// fetched is not on disk.
    pub(super) async fn end(&mut self, outcome: Outcome) -> Outcome {
        let announced = self.end_announcing();
        let saved = async {
            self.driver.end_dials();
            if self.driver.try_call(|core, cx| core.stop(cx)).is_err() {
                self.driver.close_all();
            }
            let drained = tokio::time::timeout(DRAIN_TIMEOUT, self.driver.drained()).await;
            // A save that is under way is waited for below.
            if drained.is_err() && !self.checkpointer.is_saving() {
                warn!("some connections or disk operations did not end in time");
            }
            self.driver.disk().end_copies();
            self.checkpointer
                .close(&self.driver, outcome != Outcome::Done)
                .await
        };
        let saved = async {
            tokio::select! {
                saved = saved => saved,
                never = self.tell_saving(), if outcome == Outcome::Done => match never {},
            }
        };
        let ((), saved) = tokio::join!(announced, saved);
        // A sync that failed beside the end, or a check that followed it, took back what was called complete.
        let is_whole = self.driver.read(swarm::Torrent::is_complete);
        let saved = match saved {
            Ok(()) if self.driver.trouble.is_in_doubt() || !is_whole => {
                let told = self.driver.trouble.last_told();
                let message = told.unwrap_or_else(|| "data that was fetched is gone".to_owned());
                Err(SessionError::new(message, "run the same command again"))
            }
            saved => saved,
        };
        let outcome = match saved {
            Err(error) if outcome == Outcome::Done && self.config.fetches => {
                self.fail(error.to_string(), error.hint().to_owned());
                Outcome::Failed
            }
            _ => outcome,
        };
        self.timer.abort();
        self.shared.remove_torrent(&self.driver.info_hash());
        if outcome != Outcome::Failed {
            let is_complete = self.driver.read(swarm::Torrent::is_complete);
            self.driver.state.set(self.state(is_complete));
        }
        let mut last = self.progress();
        (last.peers, last.peers_encrypted, last.peers_obfuscated) = (0, 0, 0);
        last.peers_utp = 0;
        last.peers_by_source = swarm::SourceCounts::new();
        last.web_seeds = 0;
        self.shared.emit(SessionEvent::Progress(last));
        outcome
    }
}

/// Nothing of a torrent goes on behind its end, also when that is a panic.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.timer.abort();
        self.shared.remove_torrent(&self.driver.info_hash());
        self.driver.end_dials();
        if std::thread::panicking() {
            // Its end was not run: what it holds goes back to the others.
            let _ = self.driver.try_call(|core, cx| core.stop(cx));
        }
        self.driver.close_all();
    }
}
