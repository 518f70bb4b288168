//! The date, for what is remembered with one, and the time of the week. Layer 6.

use std::time::{SystemTime, UNIX_EPOCH};

use super::schedule::Moment;
use crate::uring::local_time;

/// Seconds since 1970.
pub fn unix_now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// The minute of the week where the machine stands; where that is not known, by UTC.
pub fn local_now() -> Moment {
    let now = unix_now_s();
    let by_utc = || {
        // 1970 began on a Thursday.
        let day = now.div_euclid(86_400) + 3;
        let minute = now.rem_euclid(86_400) / 60;
        Some((
            u8::try_from(day.rem_euclid(7)).ok()?,
            u16::try_from(minute).ok()?,
        ))
    };
    let local = local_time::day_and_minute(now).or_else(by_utc);
    let (day, minute) = local.unwrap_or_default();
    Moment { day, minute }
}
