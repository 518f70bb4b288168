//! Upload slots that torrents have in common: how many each may give away, so that no rule's are exceeded. Layer 2, pure.
//!
//! Every torrent has a choker of its own. What is shared out here is a lid on its slots: one each in turn, until nobody wants
//! more or nothing is left. Who has had some for a while lets others go first, so that a few slots serve many torrents.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bandwidth::RuleId;
use crate::base::Now;

/// As long as a turn of the seeder's rota.
const TURN: Duration = Duration::from_secs(60);

/// What one torrent would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub torrent: u64,
    /// Peers that want something of it.
    pub peers: u32,
    /// The rules that count for it.
    pub rules: Vec<RuleId>,
}

/// The slots of all rules that have some.
#[derive(Clone, Debug, Default)]
pub struct SharedSlots {
    of_rules: BTreeMap<RuleId, u32>,
    turns: BTreeMap<u64, Turn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// It has slots since then.
    Has(Now),
    /// It has waited since then.
    Waits(Now),
}

impl SharedSlots {
    /// Other rules from now on.
    pub fn set(&mut self, of_rules: BTreeMap<RuleId, u32>) {
        self.of_rules = of_rules;
    }

    /// True when there is nothing to be shared.
    pub fn is_empty(&self) -> bool {
        self.of_rules.is_empty()
    }

    /// Whether a torrent with these rules has slots in common with others.
    pub fn count_for(&self, rules: &[RuleId]) -> bool {
        rules.iter().any(|rule| self.of_rules.contains_key(rule))
    }

    /// The most slots of each torrent that has some in common with others. No rule's are exceeded, and none is kept back that a
    /// torrent under it would have.
    pub fn share_out(&mut self, wishes: &[Wish], now: Now) -> BTreeMap<u64, u32> {
        let concerned = wishes.iter().filter(|wish| self.count_for(&wish.rules));
        let mut concerned: Vec<&Wish> = concerned.collect();
        concerned.sort_by_key(|wish| (self.rank(wish.torrent, now), wish.torrent));
        let mut left = self.of_rules.clone();
        let mut given: BTreeMap<u64, u32> = BTreeMap::new();
        let mut wanting = concerned.clone();
        while !wanting.is_empty() {
            wanting.retain(|wish| {
                let has = given.entry(wish.torrent).or_default();
                let is_over = |rule: &RuleId| left.get(rule) == Some(&0);
                if *has >= wish.peers || wish.rules.iter().any(is_over) {
                    return false;
                }
                *has += 1;
                for rule in &wish.rules {
                    left.entry(*rule).and_modify(|left| *left -= 1);
                }
                true
            });
        }
        let turns = concerned.iter().map(|wish| {
            let has = given.get(&wish.torrent).is_some_and(|slots| *slots > 0);
            let turn = match (self.turns.get(&wish.torrent), has) {
                (Some(Turn::Has(since)), true) if now.since(*since) < TURN => Turn::Has(*since),
                (_, true) => Turn::Has(now),
                (Some(Turn::Waits(since)), false) if wish.peers > 0 => Turn::Waits(*since),
                (_, false) => Turn::Waits(now),
            };
            (wish.torrent, turn)
        });
        self.turns = turns.collect();
        given
    }

    /// Who goes first: whose turn is not over, then who waits, the longest first, then the others.
    fn rank(&self, torrent: u64, now: Now) -> (u8, Now) {
        match self.turns.get(&torrent) {
            Some(Turn::Has(since)) if now.since(*since) < TURN => (0, *since),
            Some(Turn::Waits(since)) => (1, *since),
            None => (1, now),
            Some(Turn::Has(since)) => (2, *since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules by number with their slots, and torrents as `peers:rules`, numbered from 0: what each gets.
    fn shared(slots: &mut SharedSlots, wishes: &str, now: Now) -> Vec<Option<u32>> {
        let wishes: Vec<Wish> = wishes
            .split(' ')
            .zip(0..)
            .map(|(word, torrent)| {
                let (peers, rules) = word.split_once(':').unwrap();
                let rules = rules.chars().filter_map(|c| c.to_digit(10));
                Wish {
                    torrent,
                    peers: peers.parse().unwrap(),
                    rules: rules.map(RuleId).collect(),
                }
            })
            .collect();
        let given = slots.share_out(&wishes, now);
        let of = |wish: &Wish| given.get(&wish.torrent).copied();
        wishes.iter().map(of).collect()
    }

    fn slots(of_rules: &[(u32, u32)]) -> SharedSlots {
        let mut slots = SharedSlots::default();
        let of_rules = of_rules.iter().map(|(rule, slots)| (RuleId(*rule), *slots));
        slots.set(of_rules.collect());
        slots
    }

    fn at(seconds: u64) -> Now {
        Now::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn slots_go_round_until_nobody_wants_more_or_none_are_left() {
        let mut one = slots(&[(1, 7)]);
        assert_eq!(
            shared(&mut one, "9:1 9:1 1:1 5:", at(0)),
            [Some(3), Some(3), Some(1), None]
        );
        assert_eq!(
            shared(&mut one, "1:1 0:1 2:1", at(1)),
            [Some(1), Some(0), Some(2)]
        );
    }

    #[test]
    fn a_torrent_keeps_to_all_of_its_rules() {
        let mut two = slots(&[(1, 2), (2, 4)]);
        assert_eq!(
            shared(&mut two, "9:12 9:2 9:1", at(0)),
            [Some(1), Some(3), Some(1)]
        );
        assert_eq!(shared(&mut slots(&[(1, 0)]), "9:1", at(0)), [Some(0)]);
    }

    #[test]
    fn with_fewer_slots_than_torrents_all_have_their_turn() {
        let mut one = slots(&[(1, 1)]);
        let wishes = "9:1 9:1 9:1";
        let holder = |slots: &mut SharedSlots, second| {
            let got = shared(slots, wishes, at(second));
            assert_eq!(got.iter().flatten().sum::<u32>(), 1);
            got.iter().position(|slots| *slots == Some(1))
        };
        assert_eq!(holder(&mut one, 0), Some(0));
        assert_eq!(holder(&mut one, 59), Some(0), "a turn lasts");
        assert_eq!(holder(&mut one, 60), Some(1));
        assert_eq!(holder(&mut one, 119), Some(1));
        assert_eq!(holder(&mut one, 120), Some(2));
        assert_eq!(holder(&mut one, 180), Some(0));
        // Whoever wants none leaves it to others at once.
        assert_eq!(shared(&mut one, "0:1 9:1 9:1", at(181))[1], Some(1));
    }
}
