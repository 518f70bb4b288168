//! The session's monotonic clock: the only place that turns real time into [`Now`]. Layer 5.

use std::time::Instant;

use crate::base::Now;

/// Starts at [`Now::ZERO`] when it is made; a changed wall clock does not move it (HOSTILE.md L10).
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Clock {
            start: Instant::now(),
        }
    }

    /// The present moment.
    pub fn now(&self) -> Now {
        Now::from_micros(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The moment as the runtime's timers take it.
    pub fn instant(&self, now: Now) -> tokio::time::Instant {
        tokio::time::Instant::from_std(
            self.start + std::time::Duration::from_micros(now.as_micros()),
        )
    }
}
