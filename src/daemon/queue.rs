//! Whose turn it is when only some torrents may download or seed at a time. Layer 6, pure.
//!
//! Everybody stands in one line, and in one for each policy of its own that has places: it runs once all of them have one for
//! it. Whoever runs goes on running: a place is given up when its torrent stops, ends, or turns from a download into a seed.
//! Only other limits have everything weighed anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::control::backend::Count;
use crate::base::InfoHash;
use crate::swarm::bandwidth::RuleId;

/// How many torrents run at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueLimits {
    pub downloads: Count,
    pub seeds: Count,
    /// Minutes without payload until a torrent takes no place.
    pub stalled: Count,
}

impl QueueLimits {
    /// True when somebody may have to wait.
    pub const fn are_on(&self) -> bool {
        self.downloads.is_on || self.seeds.is_on
    }

    const fn places(&self) -> Places {
        const fn most(count: Count) -> Option<u64> {
            match count.is_on {
                true => Some(count.value),
                false => None,
            }
        }
        Places {
            downloads: most(self.downloads),
            seeds: most(self.seeds),
        }
    }
}

/// How many torrents of one line run at a time; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    pub downloads: Option<u64>,
    pub seeds: Option<u64>,
}

impl Places {
    /// True when somebody may have to wait.
    pub const fn are_limited(&self) -> bool {
        self.downloads.is_some() || self.seeds.is_some()
    }

    const fn of(&self, kind: Kind) -> Option<u64> {
        match kind {
            Kind::Download => self.downloads,
            Kind::Seed => self.seeds,
        }
    }
}

/// What a torrent takes a place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Download,
    Seed,
}

/// One torrent that is to run.
#[derive(Clone, Debug)]
pub struct Entry {
    pub info_hash: InfoHash,
    pub kind: Kind,
    /// What it was let run as; `None` waits.
    pub runs_as: Option<Kind>,
    /// It moved nothing for long: it takes no place.
    pub is_stalled: bool,
    /// It waits for nobody and takes no place.
    pub skips: bool,
    /// The policies whose lines it stands in.
    pub rules: Vec<RuleId>,
}

/// What becomes of a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Begin(Kind),
    /// It runs, as something else from now on.
    GoOn(Kind),
    Wait,
}

/// The places that are taken so far, by line: that of all, and those of policies.
struct Taken<'a> {
    places: Places,
    of_rules: &'a BTreeMap<RuleId, Places>,
    counts: BTreeMap<(Option<RuleId>, Kind), u64>,
}

impl Taken<'_> {
    fn is_free(&self, line: Option<RuleId>, kind: Kind) -> bool {
        let places = match line {
            None => Some(&self.places),
            Some(rule) => self.of_rules.get(&rule),
        };
        let most = places.and_then(|places| places.of(kind));
        let taken = self.counts.get(&(line, kind)).copied().unwrap_or(0);
        most.is_none_or(|most| taken < most)
    }

    /// Gives it a place in each of its lines, if all have one.
    fn take(&mut self, entry: &Entry) -> bool {
        let mut lines = lines(entry);
        let is_free = lines.all(|line| self.is_free(line, entry.kind));
        if is_free {
            self.count(entry);
        }
        is_free
    }

    fn count(&mut self, entry: &Entry) {
        for line in lines(entry).filter(|_| !entry.is_stalled) {
            *self.counts.entry((line, entry.kind)).or_default() += 1;
        }
    }
}

fn lines(entry: &Entry) -> impl Iterator<Item = Option<RuleId>> {
    std::iter::once(None).chain(entry.rules.iter().copied().map(Some))
}

/// What changes for those in the queue, first place first, by the places of all and of policies; `is_anew` weighs those that
/// run too.
pub fn plan(
    entries: &[Entry],
    limits: &QueueLimits,
    of_rules: &BTreeMap<RuleId, Places>,
    is_anew: bool,
) -> Vec<(InfoHash, Turn)> {
    let mut taken = Taken {
        places: limits.places(),
        of_rules,
        counts: BTreeMap::new(),
    };
    let keeps = |entry: &Entry| entry.runs_as == Some(entry.kind) && !is_anew;
    for entry in entries.iter().filter(|entry| keeps(entry) && !entry.skips) {
        taken.count(entry);
    }
    let mut turns = Vec::new();
    for entry in entries.iter().filter(|entry| !keeps(entry)) {
        let may_run = entry.skips || taken.take(entry);
        let turn = match (may_run, entry.runs_as) {
            (true, None) => Turn::Begin(entry.kind),
            (true, Some(kind)) if kind != entry.kind => Turn::GoOn(entry.kind),
            (false, Some(_)) => Turn::Wait,
            (true, Some(_)) | (false, None) => continue,
        };
        turns.push((entry.info_hash, turn));
    }
    turns
}

/// The numbers that put torrents into the order of `wanted`: only as many change as must. `there` is the present order
/// with its numbers.
pub fn renumbered(there: &[(InfoHash, i64)], wanted: &[InfoHash]) -> Vec<(InfoHash, i64)> {
    let is_rising = there.windows(2).all(|pair| match pair {
        [(_, one), (_, next)] => one < next,
        _ => true,
    });
    let number = |(place, (_, number)): (usize, &(InfoHash, i64))| match is_rising {
        true => *number,
        // Some share a number.
        false => i64::try_from(place).unwrap_or(i64::MAX) + 1,
    };
    let numbers = there.iter().enumerate().map(number);
    let before: BTreeMap<InfoHash, i64> = there.iter().copied().collect();
    let wanted = wanted.iter().copied().zip(numbers);
    let is_changed = |(info_hash, number): &(InfoHash, i64)| before.get(info_hash) != Some(number);
    wanted.filter(is_changed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(name: char) -> InfoHash {
        InfoHash::new([name as u8; 20])
    }

    /// One a word: its name, `d` or `s` for what it is, then `r` if it runs, `x` if it runs as the other kind, `z` if it
    /// is stalled, `!` if it skips the queue, and the numbers of its policies.
    fn entries(words: &str) -> Vec<Entry> {
        let entry = |word: &str| {
            let mut marks = word.chars();
            let name = marks.next().unwrap();
            let (kind, other) = match marks.next() {
                Some('d') => (Kind::Download, Kind::Seed),
                _ => (Kind::Seed, Kind::Download),
            };
            Entry {
                info_hash: hash(name),
                kind,
                runs_as: match (word.contains('r'), word.contains('x')) {
                    (true, _) => Some(kind),
                    (_, true) => Some(other),
                    _ => None,
                },
                is_stalled: word.contains('z'),
                skips: word.contains('!'),
                rules: word
                    .chars()
                    .filter_map(|c| c.to_digit(10))
                    .map(RuleId)
                    .collect(),
            }
        };
        words.split(' ').map(entry).collect()
    }

    fn told(words: &str, downloads: u64, seeds: u64, is_anew: bool) -> String {
        let count = |value| Count { value, is_on: true };
        let limits = QueueLimits {
            downloads: count(downloads),
            seeds: count(seeds),
            stalled: Count::default(),
        };
        told_by(words, &limits, &BTreeMap::new(), is_anew)
    }

    fn told_by(
        words: &str,
        limits: &QueueLimits,
        of_rules: &BTreeMap<RuleId, Places>,
        is_anew: bool,
    ) -> String {
        let mut told = String::new();
        for (info_hash, turn) in plan(&entries(words), limits, of_rules, is_anew) {
            told.push(info_hash.as_bytes()[0] as char);
            told.push(match turn {
                Turn::Begin(_) => '+',
                Turn::GoOn(_) => '=',
                Turn::Wait => '-',
            });
        }
        told
    }

    #[test]
    fn the_first_in_line_run_and_downloads_and_seeds_are_two_lines() {
        assert_eq!(told("Ad Bs Cd Ds Ed", 2, 1, false), "A+B+C+");
        assert_eq!(told("Ad Bd", 0, 0, false), "");
    }

    #[test]
    fn whoever_runs_goes_on_though_others_were_moved_before_it() {
        assert_eq!(told("Ad Bdr Cd", 1, 1, false), "");
        assert_eq!(told("Ad Bdr Cd", 2, 1, false), "A+");
    }

    #[test]
    fn lower_limits_send_the_last_ones_back_to_wait() {
        assert_eq!(told("Adr Bdr Cdr", 1, 1, true), "B-C-");
        assert_eq!(told("Ad Bdr", 1, 1, true), "A+B-");
    }

    #[test]
    fn a_download_that_is_done_goes_on_as_a_seed_if_there_is_a_place() {
        assert_eq!(told("Asx Bd", 1, 1, false), "A=B+");
        assert_eq!(told("Asx Bsr Cd", 1, 1, false), "A-C+");
    }

    #[test]
    fn the_stalled_take_no_place_and_neither_do_those_that_skip() {
        assert_eq!(told("Adrz Bd Cd", 1, 1, false), "B+");
        assert_eq!(told("Adr! Bd Cd!", 1, 1, false), "B+C+");
        assert_eq!(told("Adr! Bdr", 0, 0, true), "B-");
    }

    #[test]
    fn a_policys_line_is_one_of_its_own_and_holds_up_nobody_else() {
        let places = |downloads| Places {
            downloads: Some(downloads),
            seeds: None,
        };
        let of_rules = [(RuleId(1), places(1)), (RuleId(2), places(2))].into();
        let session = |most| QueueLimits {
            downloads: Count {
                value: most,
                is_on: most > 0,
            },
            ..QueueLimits::default()
        };
        let told = |words, most, is_anew| told_by(words, &session(most), &of_rules, is_anew);
        // The second of policy 1 waits, and those behind it do not.
        assert_eq!(told("Ad1 Bd1 Cd2 Dd Ed2 Fd2 Gs1", 0, false), "A+C+D+E+G+");
        // Who waits for one line takes no place in another.
        assert_eq!(told("Ad1 Bd12 Cd2 Dd2", 0, false), "A+C+D+");
        assert_eq!(told("Ad1 Bd1 Cd2 Dd", 2, false), "A+C+");
        assert_eq!(told("Ad1 Bd1r Cd2", 0, false), "C+");
        assert_eq!(told("Ad1 Bd1r", 0, true), "A+B-");
        assert_eq!(told("Ad1rz Bd1 Cd1", 0, false), "B+");
    }

    #[test]
    fn without_limits_nobody_waits() {
        let none = QueueLimits::default();
        let turns = plan(&entries("Ad Bd Cs"), &none, &BTreeMap::new(), false);
        assert_eq!(turns.len(), 3);
        assert!(!QueueLimits::default().are_on());
    }

    #[test]
    fn a_move_changes_the_numbers_between_and_no_others() {
        let [a, b, c, d] = ['a', 'b', 'c', 'd'].map(hash);
        let there = [(a, 1), (b, 5), (c, 7), (d, 9)];
        assert_eq!(renumbered(&there, &[a, c, b, d]), [(c, 5), (b, 7)]);
        let tied = [(a, 0), (b, 0), (c, 3)];
        assert_eq!(renumbered(&tied, &[b, a, c]), [(b, 1), (a, 2)]);
    }
}
