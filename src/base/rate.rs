//! Measuring a rate and keeping to one.

use std::time::Duration;

use super::Now;

/// Length of one measuring interval.
const INTERVAL: Duration = Duration::from_millis(500);
/// After so long without a byte the rate is zero: an average alone would need half a minute to fade from a fast line.
const SILENCE: Duration = Duration::from_secs(8);

/// A moving average of bytes a second over the last few seconds.
#[derive(Clone, Debug)]
pub struct RateMeter {
    interval_start: Now,
    interval_bytes: u64,
    bytes_per_s: f64,
    total_bytes: u64,
    is_warm: bool,
    last_at: Now,
}

impl RateMeter {
    /// A meter that has seen nothing.
    pub const fn new(now: Now) -> Self {
        RateMeter {
            interval_start: now,
            interval_bytes: 0,
            bytes_per_s: 0.0,
            total_bytes: 0,
            is_warm: false,
            last_at: now,
        }
    }

    /// Counts bytes that moved at `now`.
    pub fn add(&mut self, bytes: u64, now: Now) {
        self.roll(now);
        self.last_at = now;
        self.interval_bytes = self.interval_bytes.saturating_add(bytes);
        self.total_bytes = self.total_bytes.saturating_add(bytes);
    }

    /// The present rate in bytes a second.
    pub fn bytes_per_s(&mut self, now: Now) -> u64 {
        self.roll(now);
        self.bytes_per_s as u64
    }

    /// All bytes ever counted.
    pub const fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn roll(&mut self, now: Now) {
        let passed = now.since(self.interval_start);
        if passed < INTERVAL {
            return;
        }
        let secs = passed.as_secs_f64();
        let sample = self.interval_bytes as f64 / secs;
        // A time constant of 2 s; the first sample counts in full so that a meter is useful at once.
        let weight = if self.is_warm {
            1.0 - (-secs / 2.0).exp()
        } else {
            1.0
        };
        self.bytes_per_s += (sample - self.bytes_per_s) * weight;
        if now.since(self.last_at) >= SILENCE {
            self.bytes_per_s = 0.0;
        }
        self.is_warm = self.is_warm || self.interval_bytes > 0;
        self.interval_bytes = 0;
        self.interval_start = now;
    }
}

/// A token bucket in bytes; it may go into debt so that one large transfer is never split.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    bytes_per_s: Option<u64>,
    burst_bytes: u64,
    tokens: f64,
    refilled_at: Now,
}

impl TokenBucket {
    /// A bucket of `bytes_per_s`, or an unlimited one for `None`. It holds a tenth of a second.
    pub fn new(bytes_per_s: Option<u64>, now: Now) -> Self {
        let burst_bytes = (bytes_per_s.unwrap_or(0) / 10).max(16 * 1024);
        TokenBucket {
            bytes_per_s,
            burst_bytes,
            tokens: burst_bytes as f64,
            refilled_at: now,
        }
    }

    /// True when no rate was set.
    pub const fn is_unlimited(&self) -> bool {
        self.bytes_per_s.is_none()
    }

    /// Takes `bytes` and returns how long to wait before the next `take`: zero while there is credit.
    pub fn take(&mut self, bytes: u64, now: Now) -> Duration {
        let Some(rate) = self.bytes_per_s else {
            return Duration::ZERO;
        };
        self.refill(rate, now);
        self.tokens -= bytes as f64;
        self.wait(rate)
    }

    /// How long until there is credit again; zero when there is some.
    pub fn ready_in(&mut self, now: Now) -> Duration {
        let Some(rate) = self.bytes_per_s else {
            return Duration::ZERO;
        };
        self.refill(rate, now);
        self.wait(rate)
    }

    fn wait(&self, rate: u64) -> Duration {
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((-self.tokens / rate.max(1) as f64).min(3_600.0))
    }

    fn refill(&mut self, rate: u64, now: Now) {
        let earned = now.since(self.refilled_at).as_secs_f64() * rate as f64;
        self.tokens = (self.tokens + earned).min(self.burst_bytes as f64);
        self.refilled_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meter_follows_a_steady_rate_and_decays_to_zero() {
        let mut meter = RateMeter::new(Now::ZERO);
        for step in 1..=100 {
            meter.add(100_000, Now::from_millis(step * 100));
        }
        let rate = meter.bytes_per_s(Now::from_millis(10_000));
        assert!((900_000..=1_100_000).contains(&rate), "{rate}");
        assert!(meter.bytes_per_s(Now::from_secs(14)) > 0);
        assert_eq!(meter.bytes_per_s(Now::from_secs(18)), 0);
        assert_eq!(meter.total_bytes(), 10_000_000);
    }

    #[test]
    fn bucket_holds_its_rate_over_time() {
        let mut bucket = TokenBucket::new(Some(1_000_000), Now::ZERO);
        let mut now = Now::ZERO;
        let mut sent = 0;
        while now < Now::from_secs(10) {
            let wait = bucket.take(16_384, now);
            sent += 16_384;
            now = now + wait;
        }
        assert!((9_900_000..=10_200_000).contains(&sent), "{sent}");
    }

    #[test]
    fn unlimited_bucket_never_waits() {
        let mut bucket = TokenBucket::new(None, Now::ZERO);
        assert_eq!(bucket.take(u64::MAX, Now::ZERO), Duration::ZERO);
    }
}
