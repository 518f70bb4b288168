//! One limit: bytes that may be moved, earned as time passes. Layer 2, pure.

use std::time::Duration;

use super::{NEVER, TURN_BYTES_MAX};
use crate::base::Now;

/// Unused rate is kept for a twentieth of a second when nobody asked for it.
const BURST_PER_S: u64 = 20;
/// And for a quarter while it is in use: a busy thread comes back late, and loses nothing by that.
const BUSY_BURST_PER_S: u64 = 4;
/// In use is what was drawn from so lately.
const BUSY_FOR: Duration = Duration::from_millis(250);
/// A limit that is high enough for several turns in this time is waited for this long, and then serves several at once: to
/// wake up for each of them would cost more than to send it.
const WAITS_PER_S: u64 = 100;
/// Tokens are counted in millionths of a byte, so no rate is lost to rounding.
const MICRO: i128 = 1_000_000;

/// A rate, and what of it may be moved now. Whoever moves bytes may overdraw it once; then all wait until it is even.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    bytes_per_s: Option<u64>,
    tokens_micro: i128,
    refilled_at: Now,
    taken_at: Option<Now>,
    /// Somebody waits for it.
    is_blocked: bool,
}

impl Bucket {
    pub(super) const fn new(bytes_per_s: Option<u64>) -> Bucket {
        Bucket {
            bytes_per_s,
            tokens_micro: 0,
            refilled_at: Now::ZERO,
            taken_at: None,
            is_blocked: false,
        }
    }

    pub(super) const fn rate(&self) -> Option<u64> {
        self.bytes_per_s
    }

    /// False when it is this rate already. What was overdrawn is owed at the new rate for no longer than a moment.
    pub(super) fn set_rate(&mut self, bytes_per_s: Option<u64>, now: Now) -> bool {
        if self.bytes_per_s == bytes_per_s {
            return false;
        }
        self.refill(now);
        self.bytes_per_s = bytes_per_s;
        let most = self.tokens_max(now);
        self.tokens_micro = self.tokens_micro.clamp(-most, most);
        true
    }

    /// Until when nobody may draw from it; `None` is now. Of a high limit several turns come together first. The same for whoever asks meanwhile, so that nobody is looked at
    /// before another for having asked earlier.
    pub(super) fn blocked_until(&mut self, now: Now) -> Option<Now> {
        let rate = self.bytes_per_s?;
        self.refill(now);
        let least = match self.is_blocked {
            true => i128::from((rate / WAITS_PER_S).saturating_sub(TURN_BYTES_MAX)) * MICRO,
            false => 0,
        };
        self.is_blocked = self.tokens_micro <= least;
        if !self.is_blocked {
            return None;
        }
        if rate == 0 {
            return Some(NEVER);
        }
        let short = self.tokens_micro.abs_diff(least) + 1;
        let micros = u64::try_from(short.div_ceil(u128::from(rate))).unwrap_or(u64::MAX);
        Some(now + Duration::from_micros(micros))
    }

    pub(super) fn take(&mut self, bytes: u64, now: Now) {
        if self.bytes_per_s.is_some() {
            self.tokens_micro -= i128::from(bytes) * MICRO;
            self.taken_at = Some(now);
        }
    }

    fn refill(&mut self, now: Now) {
        let passed =
            i128::from(u64::try_from(now.since(self.refilled_at).as_micros()).unwrap_or(0));
        self.refilled_at = self.refilled_at.max(now);
        let earned = i128::from(self.bytes_per_s.unwrap_or(0)) * passed;
        self.tokens_micro = (self.tokens_micro + earned).min(self.tokens_max(now));
    }

    fn tokens_max(&self, now: Now) -> i128 {
        let is_busy = self.taken_at.is_some_and(|at| now.since(at) <= BUSY_FOR);
        let per_s = if is_busy {
            BUSY_BURST_PER_S
        } else {
            BURST_PER_S
        };
        i128::from(self.bytes_per_s.unwrap_or(0).div_ceil(per_s)) * MICRO
    }
}
