//! The clock value handed to every pure function; nothing in layers 0–3 reads a clock.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// A moment on the session's monotonic clock, in microseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(u64);

impl Now {
    /// The start of the clock.
    pub const ZERO: Now = Now(0);

    /// Builds a moment from microseconds since the start of the clock.
    pub const fn from_micros(micros: u64) -> Self {
        Now(micros)
    }

    /// Builds a moment from milliseconds since the start of the clock.
    pub const fn from_millis(millis: u64) -> Self {
        Now(millis.saturating_mul(1_000))
    }

    /// Builds a moment from whole seconds since the start of the clock.
    pub const fn from_secs(secs: u64) -> Self {
        Now(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since the start of the clock.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero when `earlier` lies in the future.
    pub const fn since(self, earlier: Now) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Now {
    type Output = Now;

    /// Saturates at the end of the clock.
    fn add(self, duration: Duration) -> Now {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Now(self.0.saturating_add(micros))
    }
}

impl fmt::Display for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
