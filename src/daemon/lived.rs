//! How long torrents have downloaded and seeded, through restarts. Layer 6, pure.
//!
//! Time is counted in seconds that the daemon has lived since its state was made: what passes while no daemon runs counts for
//! nobody, and a row need not be written as long as its torrent does the same.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Time that the daemon has lived.
#[derive(Clone, Copy, Debug)]
pub struct Lived {
    before_s: u64,
    since: Instant,
}

impl Lived {
    /// It begins at `now`, and has lived so long before.
    pub const fn new(before_s: u64, now: Instant) -> Lived {
        Lived {
            before_s,
            since: now,
        }
    }

    /// Seconds in all.
    pub fn seconds(&self, now: Instant) -> u64 {
        self.before_s
            .saturating_add(now.saturating_duration_since(self.since).as_secs())
    }
}

/// What a torrent does that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    Download,
    Seed,
}

/// What a row remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// Until what it does now began.
    pub downloading_s: u64,
    pub seeding_s: u64,
    /// What it does, and how long the daemon had lived then.
    pub work: Option<(Work, u64)>,
}

impl Times {
    /// It does this now, at that second of the daemon's life.
    pub fn turn_to(&mut self, work: Option<Work>, lived_s: u64) {
        if self.work.map(|(work, _)| work) == work {
            return;
        }
        if let Some((work, since_s)) = self.work.take() {
            let total_s = match work {
                Work::Download => &mut self.downloading_s,
                Work::Seed => &mut self.seeding_s,
            };
            *total_s = total_s.saturating_add(lived_s.saturating_sub(since_s));
        }
        self.work = work.map(|work| (work, lived_s));
    }

    /// Time spent with that.
    pub fn elapsed(&self, work: Work, lived: &Lived) -> Elapsed {
        let total_s = match work {
            Work::Download => self.downloading_s,
            Work::Seed => self.seeding_s,
        };
        let since_s = self
            .work
            .and_then(|(now, since)| (now == work).then_some(since));
        let Some(since_s) = since_s else {
            return Elapsed {
                before_s: total_s,
                since: None,
            };
        };
        let earlier_s = lived.before_s.saturating_sub(since_s);
        let later = Duration::from_secs(since_s.saturating_sub(lived.before_s));
        Elapsed {
            before_s: total_s.saturating_add(earlier_s),
            since: lived.since.checked_add(later),
        }
    }
}

/// A time that may be running on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elapsed {
    before_s: u64,
    since: Option<Instant>,
}

impl Elapsed {
    /// Seconds by now.
    pub fn seconds(&self, now: Instant) -> u64 {
        let since = self.since.map(|since| now.saturating_duration_since(since));
        self.before_s
            .saturating_add(since.unwrap_or_default().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_while_it_does_the_same_and_through_restarts() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let lived = Lived::new(100, start);
        let mut times = Times::default();
        times.turn_to(Some(Work::Download), lived.seconds(at(10)));
        let downloading = times.elapsed(Work::Download, &lived);
        assert_eq!(downloading.seconds(at(15)), 5);
        assert_eq!(
            times.elapsed(Work::Download, &lived),
            downloading,
            "the same while it goes on"
        );
        times.turn_to(Some(Work::Seed), lived.seconds(at(20)));
        let remembered = times.clone();
        times.turn_to(Some(Work::Seed), lived.seconds(at(25)));
        assert_eq!(times, remembered, "nothing is to be written");
        assert_eq!(times.elapsed(Work::Download, &lived).seconds(at(60)), 10);
        assert_eq!(times.elapsed(Work::Seed, &lived).seconds(at(50)), 30);
        // That daemon ended then, and another begins an hour later.
        let again = Lived::new(lived.seconds(at(50)), at(3650));
        let seeding = times.elapsed(Work::Seed, &again);
        assert_eq!(seeding.seconds(at(3655)), 35);
        times.turn_to(None, again.seconds(at(3655)));
        assert_eq!(times.elapsed(Work::Seed, &again).seconds(at(9999)), 35);
    }
}
