//! Who lists us, remembered: a restart announces nothing before its time. Layer 6.

use std::time::Duration;

use super::row::{LastAnnounce, TorrentRow};
use crate::session::command::Announced;

/// No tracker is left alone for longer, whatever clocks say.
const NEXT_MAX_S: i64 = 24 * 3_600;

impl TorrentRow {
    /// Takes over who lists us; `uptime` is the session's at `date`.
    pub(super) fn take_announce(
        &mut self,
        announced: Option<&Announced>,
        date: i64,
        uptime: Duration,
    ) {
        self.announced = announced.map(|announced| {
            let left = announced.next.saturating_sub(uptime).as_secs();
            LastAnnounce {
                tracker: announced.tracker.clone(),
                port: announced.port,
                next_unix_s: date.saturating_add(i64::try_from(left).unwrap_or(NEXT_MAX_S)),
            }
        });
    }

    /// The same for a session that begins at `date`.
    pub(super) fn last_announce(&self, date: i64) -> Option<Announced> {
        let last = self.announced.as_ref()?;
        let left = last.next_unix_s.saturating_sub(date).clamp(0, NEXT_MAX_S);
        Some(Announced {
            tracker: last.tracker.clone(),
            port: last.port,
            next: Duration::from_secs(u64::try_from(left).unwrap_or(0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_an_interval_is_left_after_a_restart_too() {
        let mut row = TorrentRow::default();
        assert_eq!(row.last_announce(0), None);
        let announced = Announced {
            tracker: "http://t".into(),
            port: 7,
            next: Duration::from_secs(1_900),
        };
        row.take_announce(Some(&announced), 1_000_000, Duration::from_secs(100));
        let left = |date| row.last_announce(date).unwrap().next.as_secs();
        assert_eq!(left(1_000_000), 1_800);
        assert_eq!(left(1_001_000), 800);
        assert_eq!(left(2_000_000), 0);
        // The clock was wrong.
        assert_eq!(left(0), 24 * 3_600);
        row.take_announce(None, 1, Duration::ZERO);
        assert_eq!(row.last_announce(1), None);
    }
}
