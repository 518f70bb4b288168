//! When a torrent whose disk refused a write fetches again, and when it gives up. Pure: time comes in. Layer 3.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::Now;

/// Before the first try, and between looks at a full disk (HOSTILE.md L1).
pub const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Before every further one: no piece is fetched and written in vain more often than this. Three tries fill a minute
/// (HOSTILE.md L2).
pub const TRY_EVERY: Duration = Duration::from_secs(30);
/// Between tries when no file could be opened for want of handles: others give theirs back soon (HOSTILE.md L5).
pub const HANDLES_WAIT: Duration = Duration::from_secs(1);
/// Tries after errors of one file.
pub const TRIES_MAX: u32 = 3;
/// Errors of one file count together within this time, whatever other files do: fetching the piece again may take most
/// of it.
const ERROR_MEMORY: Duration = Duration::from_secs(600);

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No space, or no more of it for us.
    Full,
    /// No file descriptors.
    NoHandles,
    /// Anything else.
    Error,
}

/// The refusals of one torrent's disk.
#[derive(Clone, Debug, Default)]
pub struct Retries {
    /// The file that erred last, when, and how often so far.
    erring: Option<(PathBuf, Now, u32)>,
    refused_at: Option<Now>,
    wait: Duration,
}

impl Retries {
    /// A write to the file was refused: how long to wait before the next try (or, with a full disk, before the first look
    /// at its space); `None` when it has been tried often enough.
    pub fn on_refusal(&mut self, refusal: Refusal, path: &Path, now: Now) -> Option<Duration> {
        let before = self.refused_at.replace(now);
        let is_again = before.is_some_and(|at| now.since(at) <= ERROR_MEMORY);
        self.wait = match refusal {
            Refusal::NoHandles => HANDLES_WAIT,
            _ if is_again => TRY_EVERY,
            _ => FIRST_WAIT,
        };
        let is_last = refusal == Refusal::Error && self.count_error(path, now) > TRIES_MAX;
        (!is_last).then_some(self.wait)
    }

    /// What was under way then is refused as well.
    pub fn on_another(&mut self, now: Now) {
        self.refused_at = Some(now);
    }

    /// What is left of the wait.
    pub fn left(&self, now: Now) -> Duration {
        let until = self.refused_at.map_or(Now::ZERO, |at| at + self.wait);
        until.since(now)
    }

    /// Another error of this file: how many came together.
    fn count_error(&mut self, path: &Path, now: Now) -> u32 {
        let before = self.erring.take();
        let before = before
            .filter(|(file, at, _)| file == path && now.since(*at) <= ERROR_MEMORY)
            .map_or(0, |(_, _, count)| count);
        self.erring = Some((path.to_owned(), now, before + 1));
        before + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_file_count_together_until_they_are_old() {
        let mut retries = Retries::default();
        let (a, b) = (Path::new("a"), Path::new("b"));
        assert_eq!(retries.count_error(a, Now::from_secs(1_000)), 1);
        assert_eq!(retries.count_error(a, Now::from_secs(1_060)), 2);
        assert_eq!(retries.count_error(a, Now::from_secs(1_600)), 3);
        assert_eq!(retries.count_error(a, Now::from_secs(2_201)), 1);
        assert_eq!(retries.count_error(b, Now::from_secs(2_202)), 1);
    }

    #[test]
    fn an_erring_file_is_tried_three_times_over_a_minute() {
        let mut retries = Retries::default();
        let mut now = Now::from_secs(100);
        let mut tried = Vec::new();
        while let Some(wait) = retries.on_refusal(Refusal::Error, Path::new("a"), now) {
            now = now + wait;
            tried.push(now.since(Now::from_secs(100)).as_secs());
        }
        assert_eq!(tried, [5, 35, 65]);
    }

    #[test]
    fn a_disk_that_fills_again_and_again_is_not_tried_in_a_loop() {
        let mut retries = Retries::default();
        let path = Path::new("a");
        let mut refused = |at| retries.on_refusal(Refusal::Full, path, Now::from_secs(at));
        assert_eq!(refused(100), Some(FIRST_WAIT));
        for at in [106, 140, 500] {
            assert_eq!(refused(at), Some(TRY_EVERY));
        }
        assert_eq!(refused(2_000), Some(FIRST_WAIT));
    }

    #[test]
    fn the_wait_begins_with_the_last_of_what_was_under_way() {
        let mut retries = Retries::default();
        for at in [100, 110] {
            let _ = retries.on_refusal(Refusal::Full, Path::new("a"), Now::from_secs(at));
        }
        retries.on_another(Now::from_secs(120));
        assert_eq!(retries.left(Now::from_secs(140)), Duration::from_secs(10));
        assert_eq!(retries.left(Now::from_secs(150)), Duration::ZERO);
    }
}
