use std::time::Duration;

use super::*;
use crate::base::Rng;

/// A client that wants its turn again a while after it got it.
struct Wanting {
    torrent: u64,
    /// From the grant to the next request.
    away: Duration,
    got: u64,
    asks_at: Option<Now>,
}

/// A tree under virtual time, polled late by up to `late`.
struct World {
    tree: Bandwidth,
    now: Now,
    late: Duration,
    clients: Vec<Wanting>,
    rng: Rng,
    /// How often something was granted to those who waited.
    wakes: u64,
}

impl World {
    fn new(session: Option<u64>) -> World {
        World {
            tree: Bandwidth::new(session),
            now: Now::from_secs(100),
            late: Duration::from_millis(1),
            clients: Vec::new(),
            rng: Rng::new(7),
            wakes: 0,
        }
    }

    fn rules(&mut self, rules: &[Rule]) {
        let rules = rules.iter().enumerate();
        let rules = rules.map(|(id, rule)| (RuleId(id as u32), *rule)).collect();
        self.tree.set_rules(&rules, self.now);
    }

    /// A torrent in the place of those rules, with clients that are away so long between two requests.
    fn torrent(&mut self, rules: &[u32], cap: Option<u64>, clients: usize, away_ms: u64) -> u64 {
        let number = self.clients.len() as u64 + 1_000;
        let place = Place {
            rules: rules.iter().map(|id| RuleId(*id)).collect(),
            is_free: false,
        };
        let usual = Priority::Normal;
        self.tree.set_torrent(number, place, cap, usual, self.now);
        for _ in 0..clients {
            self.clients.push(Wanting {
                torrent: number,
                away: Duration::from_millis(away_ms),
                got: 0,
                asks_at: Some(self.now),
            });
        }
        number
    }

    fn granted(&mut self, client: usize, bytes: u64) {
        let one = &mut self.clients[client];
        one.got += bytes;
        one.asks_at = Some(self.now + one.away);
    }

    fn run(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        while self.now < end {
            for at in 0..self.clients.len() {
                let torrent = self.clients[at].torrent;
                while self.clients[at].asks_at.is_some_and(|at| at <= self.now) {
                    let bytes = self.tree.turn_bytes(torrent).unwrap_or(65_536);
                    self.clients[at].asks_at = None;
                    if self.tree.request(torrent, at as u64, bytes, self.now) == Grant::Now {
                        self.granted(at, bytes);
                        if self.clients[at].away.is_zero() && self.tree.rate(torrent).is_none() {
                            self.clients[at].asks_at = Some(self.now + Duration::from_micros(500));
                        }
                    }
                }
            }
            let granted = self.tree.poll(self.now);
            self.wakes += u64::from(!granted.is_empty());
            for (client, bytes) in granted {
                self.granted(client as usize, bytes);
            }
            let asks = self.clients.iter().filter_map(|one| one.asks_at).min();
            let due = self.tree.next_deadline();
            let late = self.late.as_micros() as u64;
            let due = due.map(|at| at + Duration::from_micros(self.rng.below(late + 1)));
            let next = [asks, due, Some(end)].into_iter().flatten().min().unwrap();
            self.now = next.max(self.now + Duration::from_micros(1));
        }
    }

    fn got(&self, torrent: u64) -> u64 {
        let own = self.clients.iter().filter(|one| one.torrent == torrent);
        own.map(|one| one.got).sum()
    }

    /// What each torrent got a second, after it has gone for 2 s.
    fn rates(&mut self, torrents: &[u64], secs: u64) -> Vec<u64> {
        self.run(2);
        let before: Vec<u64> = torrents.iter().map(|one| self.got(*one)).collect();
        self.run(secs);
        let after = torrents.iter().zip(before);
        after
            .map(|(one, before)| (self.got(*one) - before) / secs)
            .collect()
    }
}

#[track_caller]
fn near(got: u64, wanted: u64, percent: u64) {
    let slack = wanted * percent / 100;
    assert!(
        (wanted - slack..=wanted + slack).contains(&got),
        "{got}, not {wanted}"
    );
}

const MB: u64 = 1_000_000;

#[test]
fn a_high_limit_wakes_up_for_several_turns_at_a_time() {
    for rate in [100 * MB, 1_250 * MB] {
        let mut world = World::new(Some(rate));
        world.late = Duration::ZERO;
        let one = world.torrent(&[], None, 8, 0);
        let got = world.rates(&[one], 8)[0];
        near(got, rate, 1);
        assert!(world.wakes <= 10 * 150, "{} times at {rate}", world.wakes);
    }
}

#[test]
fn the_rate_holds_within_three_percent() {
    for rate in [100_000, MB, 12_345_678, 100 * MB, 1_250 * MB] {
        for late_ms in [0, 3, 20, 100] {
            let mut world = World::new(Some(rate));
            world.late = Duration::from_millis(late_ms);
            let one = world.torrent(&[], None, 5, 0);
            let got = world.rates(&[one], 8)[0];
            near(got, rate, 3);
        }
    }
}

#[test]
fn clients_of_different_demand_get_the_same() {
    let mut tree = Bandwidth::new(Some(2 * MB));
    let mut now = Now::from_secs(1);
    tree.set_torrent(1, Place::default(), None, Priority::Normal, now);
    let wanted = [16_384, 262_144, 65_536, 16_384];
    let mut got = [0; 4];
    let ask = |tree: &mut Bandwidth, got: &mut [u64; 4], client: u64, now| {
        let bytes = wanted[client as usize];
        while tree.request(1, client, bytes, now) == Grant::Now {
            got[client as usize] += bytes;
        }
    };
    (0..4).for_each(|client| ask(&mut tree, &mut got, client, now));
    while now < Now::from_secs(21) {
        now = tree.next_deadline().unwrap().max(now);
        for (client, bytes) in tree.poll(now) {
            got[client as usize] += bytes;
            ask(&mut tree, &mut got, client, now);
        }
    }
    got.iter().for_each(|bytes| near(*bytes, 10 * MB, 10));
}

#[test]
fn priorities_share_a_line_four_to_two_to_one() {
    let mut world = World::new(Some(7 * MB));
    let torrents = [Priority::Low, Priority::Normal, Priority::High].map(|priority| {
        let one = world.torrent(&[], None, 3, 1);
        let now = world.now;
        world
            .tree
            .set_torrent(one, Place::default(), None, priority, now);
        one
    });
    let rates = world.rates(&torrents, 10);
    for (rate, wanted) in rates.iter().zip([MB, 2 * MB, 4 * MB]) {
        near(*rate, wanted, 5);
    }
}

#[test]
fn torrents_share_alike_however_many_clients_they_have() {
    let mut world = World::new(Some(10 * MB));
    let torrents = [
        world.torrent(&[], None, 1, 2),
        world.torrent(&[], None, 20, 2),
    ];
    let rates = world.rates(&torrents, 10);
    rates.iter().for_each(|rate| near(*rate, 5 * MB, 5));
}

#[test]
fn a_limited_torrent_gets_its_rate_though_its_clients_come_back_late() {
    for away_ms in [0, 5, 20, 40] {
        let mut world = World::new(None);
        world.late = Duration::from_millis(20);
        let torrents = [
            world.torrent(&[], Some(MB), 1, away_ms),
            world.torrent(&[], None, 1, 0),
        ];
        near(world.rates(&torrents, 10)[0], MB, 3);
    }
}

#[test]
fn all_of_a_rule_keep_to_its_cap_together_and_leave_the_rest_to_others() {
    let mut world = World::new(Some(20 * MB));
    world.rules(&[Rule {
        cap: Some(6 * MB),
        share: None,
    }]);
    let torrents = [
        world.torrent(&[0], None, 4, 1),
        world.torrent(&[0], None, 4, 1),
        world.torrent(&[], None, 4, 1),
    ];
    let rates = world.rates(&torrents, 10);
    near(rates[0], 3 * MB, 4);
    near(rates[1], 3 * MB, 4);
    near(rates[2], 14 * MB, 4);
}

#[test]
fn a_share_is_guaranteed_and_lent_while_nobody_wants_it() {
    let mut world = World::new(Some(20 * MB));
    world.rules(&[Rule {
        cap: None,
        share: Some(SHARE_WHOLE / 2),
    }]);
    // One client that is away for long beside many that are not.
    let (few, many) = (
        world.torrent(&[0], None, 1, 15),
        world.torrent(&[], None, 30, 0),
    );
    let rates = world.rates(&[few, many], 10);
    near(rates[0], 10 * MB, 4);
    near(rates[1], 10 * MB, 4);
    let idle = world.clients.iter_mut().filter(|one| one.torrent == few);
    idle.for_each(|one| one.away = Duration::from_secs(1_000));
    let rates = world.rates(&[few, many], 10);
    near(rates[1], 20 * MB, 3);
}

#[test]
fn a_share_within_a_share_is_a_part_of_it() {
    let half = Rule {
        cap: None,
        share: Some(SHARE_WHOLE / 2),
    };
    let mut world = World::new(Some(16 * MB));
    world.rules(&[half, half]);
    let torrents = [
        world.torrent(&[0, 1], None, 2, 1),
        world.torrent(&[0], None, 10, 1),
        world.torrent(&[], None, 10, 1),
        world.torrent(&[], None, 10, 1),
    ];
    let rates = world.rates(&torrents, 10);
    rates.iter().for_each(|rate| near(*rate, 4 * MB, 5));
}

#[test]
fn a_share_holds_within_the_cap_of_another_rule() {
    let mut world = World::new(None);
    world.rules(&[
        Rule {
            cap: Some(10 * MB),
            share: None,
        },
        Rule {
            cap: None,
            share: Some(SHARE_WHOLE / 2),
        },
    ]);
    let torrents = [
        world.torrent(&[0, 1], None, 1, 2),
        world.torrent(&[0], None, 9, 2),
        world.torrent(&[0], None, 9, 2),
    ];
    let rates = world.rates(&torrents, 10);
    near(rates[0], 5 * MB, 4);
    near(rates[1], 2 * MB + MB / 2, 4);
    // Throttled, it leaves the others what it does not use.
    let place = Place {
        rules: vec![RuleId(0), RuleId(1)],
        is_free: false,
    };
    let now = world.now;
    let usual = Priority::Normal;
    world
        .tree
        .set_torrent(torrents[0], place, Some(MB), usual, now);
    let rates = world.rates(&torrents, 10);
    near(rates[0], MB, 3);
    near(rates[1], 4 * MB + MB / 2, 4);
}

/// Beside others that nothing but the session's limit holds.
#[test]
fn a_share_is_a_part_of_the_cap_above_it_and_not_of_the_line() {
    let mut world = World::new(Some(100 * MB));
    let capped = Rule {
        cap: Some(10 * MB),
        share: None,
    };
    let shared = Rule {
        cap: None,
        share: Some(SHARE_WHOLE / 2),
    };
    world.rules(&[capped, shared]);
    // Those without the share are there first.
    let other = world.torrent(&[0], None, 5, 1);
    let outside = world.torrent(&[], None, 5, 1);
    let part = world.torrent(&[0, 1], None, 1, 1);
    let rates = world.rates(&[part, other, outside], 10);
    near(rates[0], 5 * MB, 5);
    near(rates[1], 5 * MB, 5);
    near(rates[2], 90 * MB, 5);
}

/// A scope weighs as its torrents do: where its limit is no limit, all torrents get the same.
#[test]
fn a_scope_gets_what_its_torrents_would_get_alone() {
    let mut world = World::new(Some(12 * MB));
    let capped = Rule {
        cap: Some(100 * MB),
        share: None,
    };
    let shared = Rule {
        cap: None,
        share: Some(SHARE_WHOLE / 2),
    };
    world.rules(&[capped, shared]);
    let torrents = [
        world.torrent(&[0, 1], None, 4, 1),
        world.torrent(&[0], None, 4, 1),
        world.torrent(&[], None, 4, 1),
    ];
    let rates = world.rates(&torrents, 10);
    rates.iter().for_each(|rate| near(*rate, 4 * MB, 6));
    // One that wants nothing does not weigh.
    let idle = world
        .clients
        .iter_mut()
        .filter(|one| one.torrent == torrents[1]);
    idle.for_each(|one| one.away = Duration::from_secs(1_000));
    let rates = world.rates(&torrents, 10);
    near(rates[0], 6 * MB, 6);
    near(rates[2], 6 * MB, 6);
}

#[test]
fn a_free_torrent_is_above_the_sessions_limit_and_not_above_rules() {
    let mut world = World::new(Some(MB));
    world.rules(&[Rule {
        cap: Some(5 * MB),
        share: None,
    }]);
    let free = world.torrent(&[0], None, 2, 1);
    let place = Place {
        rules: vec![RuleId(0)],
        is_free: true,
    };
    let now = world.now;
    let usual = Priority::Normal;
    world.tree.set_torrent(free, place, None, usual, now);
    let held = world.torrent(&[], None, 2, 1);
    assert_eq!(
        (world.tree.rate(free), world.tree.rate(held)),
        (Some(5 * MB), Some(MB))
    );
    let rates = world.rates(&[free, held], 10);
    near(rates[0], 5 * MB, 3);
    near(rates[1], MB, 3);
}

#[test]
fn without_a_limit_nobody_waits() {
    let mut tree = Bandwidth::new(None);
    tree.set_torrent(1, Place::default(), None, Priority::Normal, Now::ZERO);
    assert_eq!(tree.request(1, 1, u64::MAX, Now::ZERO), Grant::Now);
    assert_eq!((tree.next_deadline(), tree.turn_bytes(1)), (None, None));
}

#[test]
fn limits_can_be_changed_and_lifted_while_somebody_waits() {
    let mut tree = Bandwidth::new(Some(0));
    tree.set_torrent(1, Place::default(), None, Priority::Normal, Now::ZERO);
    assert_eq!(tree.request(1, 1, 1_000, Now::ZERO), Grant::Wait);
    assert_eq!(tree.next_deadline(), None, "nothing goes at rate 0");
    let later = Now::from_secs(10);
    assert_eq!(tree.poll(later), []);
    tree.set_session_rate(Some(1_000), later);
    assert!(tree.next_deadline().unwrap() <= later);
    assert_eq!(tree.poll(Now::from_secs(11)), [(1, 1_000)]);
    assert_eq!(tree.request(1, 1, 1 << 40, Now::from_secs(11)), Grant::Wait);
    tree.set_session_rate(None, Now::from_secs(11));
    assert_eq!(tree.poll(Now::from_secs(11)), [(1, 1 << 40)]);
}

#[test]
fn whoever_leaves_takes_its_place_in_line_along() {
    let mut world = World::new(Some(MB));
    world.rules(&[Rule {
        cap: Some(MB / 2),
        share: Some(SHARE_WHOLE / 4),
    }]);
    let gone = world.torrent(&[0], None, 3, 0);
    let stays = world.torrent(&[], None, 3, 0);
    world.run(1);
    world.tree.remove_torrent(gone);
    world.clients.retain(|one| one.torrent == stays);
    world.tree.forget(3);
    assert!(world.tree.waiting_count() <= 2);
    world.rules(&[]);
    world.tree.check();
    world.tree.remove_torrent(stays);
    assert_eq!(world.tree.waiting_count(), 0);
    assert!(world.tree.groups.is_empty() && world.tree.shares.is_empty());
    assert!(world.tree.clients.is_empty());
}

#[test]
fn idle_time_is_worth_one_burst() {
    let mut tree = Bandwidth::new(Some(MB));
    tree.set_torrent(1, Place::default(), None, Priority::Normal, Now::ZERO);
    let later = Now::from_secs(1_000);
    let mut got = 0;
    while tree.request(1, 1, 10_000, later) == Grant::Now {
        got += 10_000;
    }
    assert_eq!(got, 50_000);
}
