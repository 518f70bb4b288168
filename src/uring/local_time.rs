//! The time of day where the machine stands (layer 4).

use std::mem::MaybeUninit;

/// Day of the week, from Monday as 0, and minute of the day of that moment, in seconds since 1970, by the machine's time zone
/// (`TZ`, `/etc/localtime`) as it was when first asked. `None` where the system cannot tell.
pub fn day_and_minute(unix_s: i64) -> Option<(u8, u16)> {
    let seconds: libc::time_t = unix_s;
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both point to memory of ours that lives through the call, which keeps neither. It reads `TZ`, and nothing in this
    // program changes the environment.
    let told = unsafe { libc::localtime_r(&raw const seconds, parts.as_mut_ptr()) };
    if told.is_null() {
        return None;
    }
    // SAFETY: any bytes are a `tm`, and these were set by the call.
    let parts = unsafe { parts.assume_init() };
    // They count from Sunday.
    let day = u8::try_from((parts.tm_wday + 6) % 7).ok()?;
    let minute = u16::try_from(parts.tm_hour * 60 + parts.tm_min).ok()?;
    Some((day, minute))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_follow_each_other_wherever_the_machine_stands() {
        // Noon of a Thursday by UTC: no zone is so far off that it is another day but the next or the one before.
        let (day, minute) = day_and_minute(43_200).unwrap();
        assert!((2..=4).contains(&day) && minute < 1_440, "{day} {minute}");
        let week_later = day_and_minute(43_200 + 7 * 86_400).unwrap();
        assert_eq!(week_later.0, day);
        let next = day_and_minute(43_200 + 86_400).unwrap();
        assert_eq!(next.0, (day + 1) % 7);
    }
}
