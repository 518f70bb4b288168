//! Peers drawn as words: `A10` is interested and sends us 10 kB/s; `+` is unchoked, `s` snubbed, `n` not interested, `z`
//! takes nothing of what we would send.

use super::*;
use crate::base::Slots;

struct World {
    choker: Choker,
    peers: Vec<ChokeInput>,
    takes_nothing: Vec<bool>,
    rng: Rng,
    is_seeding: bool,
    total_up: u64,
    limit_up: Option<u64>,
}

fn world(slots: UploadSlots, seed_choker: SeedChoker, drawing: &str) -> World {
    let mut keys = Slots::new();
    let peers = drawing
        .split_whitespace()
        .map(|word| {
            let digits: String = word.chars().filter(char::is_ascii_digit).collect();
            let rate = digits.parse::<u64>().unwrap_or(0) * 1_000;
            ChokeInput {
                peer: PeerKey(keys.insert(())),
                is_interested: !word.contains('n'),
                is_unchoked: word.contains('+'),
                down_bytes_per_s: rate,
                up_bytes_per_s: rate,
                unchoked_at: Now::ZERO,
                sent_since_unchoke_bytes: 0,
                used_at: Now::ZERO,
                is_snubbed: word.contains('s'),
                connected_at: Now::ZERO,
            }
        })
        .collect();
    let takes_nothing = drawing.split_whitespace().map(|word| word.contains('z'));
    World {
        takes_nothing: takes_nothing.collect(),
        choker: Choker::new(ChokerConfig { slots, seed_choker }),
        peers,
        rng: Rng::new(1),
        is_seeding: false,
        total_up: 0,
        limit_up: None,
    }
}

fn leech(slots: u32, drawing: &str) -> World {
    world(UploadSlots::Fixed(slots), SeedChoker::RoundRobin, drawing)
}

fn seed(slots: u32, drawing: &str) -> World {
    let mut w = leech(slots, drawing);
    w.is_seeding = true;
    w
}

impl World {
    /// One call, its changes applied; returns who is unchoked afterwards.
    fn at(&mut self, secs: u64) -> Vec<usize> {
        let now = Now::from_secs(secs);
        let takers = self.peers.iter_mut().zip(&self.takes_nothing);
        for (peer, _) in takers.filter(|(peer, takes_nothing)| peer.is_unchoked && !**takes_nothing)
        {
            peer.used_at = now;
        }
        let changes = self.choker.rechoke(
            now,
            self.is_seeding,
            &self.peers,
            self.total_up,
            self.limit_up,
            &mut self.rng,
        );
        for change in changes {
            let peer = self
                .peers
                .iter_mut()
                .find(|p| p.peer == change.peer)
                .unwrap();
            assert_ne!(peer.is_unchoked, change.unchoke, "a change must change");
            peer.is_unchoked = change.unchoke;
            if change.unchoke {
                peer.unchoked_at = now;
                peer.sent_since_unchoke_bytes = 0;
            }
        }
        self.unchoked()
    }

    fn unchoked(&self) -> Vec<usize> {
        (0..self.peers.len())
            .filter(|at| self.peers[*at].is_unchoked)
            .collect()
    }
}

#[test]
fn the_fastest_senders_are_unchoked_and_one_by_lot() {
    let mut w = leech(3, "5 90 1 80 2 3");
    let unchoked = w.at(0);
    assert_eq!(unchoked.len(), 3);
    assert!(unchoked.contains(&1) && unchoked.contains(&3));
}

#[test]
fn the_optimistic_slot_moves_every_thirty_seconds() {
    let mut w = leech(2, "90 1 1 1 1");
    let mut holders = Vec::new();
    for secs in (0..300).step_by(10) {
        let unchoked = w.at(secs);
        assert_eq!(unchoked.len(), 2);
        assert_eq!(unchoked[0], 0);
        holders.push(unchoked[1]);
    }
    for turn in holders.chunks(3) {
        assert!(turn.iter().all(|holder| *holder == turn[0]), "{holders:?}");
    }
    for pair in holders.chunks(3).collect::<Vec<_>>().windows(2) {
        assert_ne!(pair[0][0], pair[1][0], "{holders:?}");
    }
}

#[test]
fn new_peers_are_drawn_thrice_as_often() {
    let mut new_count = 0;
    for seed in 0..600 {
        let mut w = leech(2, "90 1 1");
        w.rng = Rng::new(seed);
        w.peers[2].connected_at = Now::from_secs(100);
        new_count += usize::from(w.at(110).contains(&2));
    }
    assert!((400..=500).contains(&new_count), "{new_count} of 600");
}

#[test]
fn snubbing_peers_keep_no_regular_slot() {
    let mut w = leech(2, "90s+ 10 9");
    assert!(w.at(100).contains(&1));
}

#[test]
fn a_slightly_faster_peer_takes_no_slot() {
    let mut w = leech(1, "100+ 110");
    assert_eq!(w.at(100), [0]);
    w.peers[1].down_bytes_per_s = 120_000;
    assert_eq!(w.at(110), [1]);
}

#[test]
fn an_unchoked_peer_keeps_its_slot_for_ten_seconds() {
    let mut w = leech(1, "1");
    assert_eq!(w.at(0), [0]);
    let mut faster = w.peers[0];
    let mut keys = Slots::new();
    keys.insert(());
    faster.peer = PeerKey(keys.insert(()));
    faster.is_unchoked = false;
    faster.down_bytes_per_s = 1_000_000;
    w.peers.push(faster);
    w.takes_nothing.push(false);
    w.choker.next_round = Now::ZERO;
    assert_eq!(w.at(9), [0]);
    assert_eq!(w.at(19), [1]);
}

#[test]
fn free_slots_are_given_between_rounds() {
    let mut w = leech(3, "n n 5");
    assert_eq!(w.at(0), [2]);
    assert!(w.choker.has_free_slot(1));
    w.peers[0].is_interested = true;
    w.peers[1].is_interested = true;
    assert_eq!(w.at(1), [0, 1, 2], "no wait for the round");
    assert!(!w.choker.has_free_slot(3));
}

#[test]
fn between_rounds_nobody_is_choked() {
    let mut w = leech(2, "1 2 3");
    let first = w.at(0);
    for p in &mut w.peers {
        p.down_bytes_per_s = 0;
    }
    assert_eq!(w.at(5), first);
}

#[test]
fn uninterested_peers_take_no_slot_but_stay_while_there_is_room() {
    let mut w = leech(2, "n+ 1");
    assert_eq!(w.at(20), [0, 1]);
    let mut w = leech(2, "n+ 1 2");
    assert_eq!(w.at(20), [1, 2]);
}

#[test]
fn no_slots_means_no_uploads() {
    let mut w = leech(0, "1+ 2 3");
    assert_eq!(w.at(20), [0usize; 0]);
    assert!(!w.choker.has_free_slot(0));
}

#[test]
fn a_seeder_serves_everybody_in_turn() {
    let mut w = seed(2, "1 1 1 1 1 1");
    let mut turns = [0; 6];
    for secs in (0..1_800).step_by(10) {
        for at in w.at(secs) {
            turns[at] += 1;
            w.peers[at].sent_since_unchoke_bytes += 2 * 1024 * 1024;
        }
    }
    for count in turns {
        assert!((50..=70).contains(&count), "{turns:?}");
    }
}

#[test]
fn a_turn_lasts_until_its_bytes_are_sent_or_its_time_is_over() {
    let mut w = seed(1, "1 1");
    let mut changed_at = Vec::new();
    let mut holder = w.at(0);
    for secs in (10..400).step_by(10) {
        let now = w.at(secs);
        if now != holder {
            changed_at.push(secs);
        }
        holder = now;
    }
    assert_eq!(changed_at, [180, 360]);
}

#[test]
fn the_fastest_takers_stay_with_a_seeder_told_so() {
    let mut w = world(
        UploadSlots::Fixed(3),
        SeedChoker::FastestUpload,
        "90+ 80+ 1+ 1 1",
    );
    w.is_seeding = true;
    let mut seen = [false; 5];
    for secs in (100..700).step_by(10) {
        let unchoked = w.at(secs);
        assert!(unchoked.contains(&0) && unchoked.contains(&1));
        assert_eq!(unchoked.len(), 3);
        seen[unchoked[2]] = true;
    }
    assert_eq!(seen, [false, false, true, true, true]);
}

#[test]
fn automatic_slots_follow_the_rate() {
    let drawing = "1 ".repeat(150);
    let mut w = world(UploadSlots::Auto, SeedChoker::RoundRobin, &drawing);
    w.is_seeding = true;
    assert_eq!(w.at(0).len(), 4);
    assert_eq!(w.choker.next_deadline(), Some(Now::from_secs(1)));
    w.total_up = 300_000_000;
    assert_eq!(w.at(1).len(), 100, "a fast line is found out in a second");
    w.total_up = 1_000_000;
    assert_eq!(w.at(10).len(), 96, "no slot is lost before ten seconds");
    for secs in (20..200).step_by(10) {
        w.at(secs);
    }
    assert_eq!(w.unchoked().len(), 24);
}

#[test]
fn automatic_slots_under_a_limit_follow_the_limit() {
    let drawing = "1 ".repeat(50);
    let mut w = world(UploadSlots::Auto, SeedChoker::RoundRobin, &drawing);
    w.limit_up = Some(1_000_000);
    w.total_up = 300_000_000;
    assert_eq!(w.at(0).len(), 24);
    assert_eq!(w.choker.next_deadline(), Some(Now::from_secs(10)));
}

#[test]
fn peers_that_take_nothing_do_not_keep_a_newcomer_waiting() {
    for (limit_up, crowd) in [(None, 40), (Some(1_000_000), 40), (None, 400)] {
        let drawing = "0z ".repeat(crowd) + "0";
        let mut w = world(UploadSlots::Auto, SeedChoker::RoundRobin, &drawing);
        (w.is_seeding, w.limit_up) = (true, limit_up);
        let mut now = 0;
        while !w.at(now).contains(&crowd) {
            now = w.choker.next_deadline().unwrap().since(Now::ZERO).as_secs();
            assert!(now < 30, "{limit_up:?} {crowd}: still choked");
        }
        // It is the only one that takes anything: nobody pushes it out.
        for secs in (now..now + 100).step_by(10) {
            w.peers[crowd].up_bytes_per_s = 5_000;
            assert!(w.at(secs).contains(&crowd));
        }
    }
}

#[test]
fn a_fixed_number_of_slots_is_kept_and_the_idle_come_last() {
    for seed_choker in [SeedChoker::RoundRobin, SeedChoker::FastestUpload] {
        let mut w = world(UploadSlots::Fixed(2), seed_choker, "0z+ 0z+ 0 0");
        w.is_seeding = true;
        assert_eq!(w.at(9), [0, 1]);
        assert_eq!(w.at(19), [2, 3]);
    }
}

#[test]
fn who_gives_keeps_its_slot_though_it_takes_nothing() {
    let mut w = leech(2, "50z+ 0 0 0");
    for secs in (10..100).step_by(10) {
        assert!(w.at(secs).contains(&0));
    }
}

#[test]
fn a_torrent_nobody_wants_needs_no_timer() {
    let mut w = leech(4, "n n");
    w.at(0);
    assert_eq!(w.choker.next_deadline(), None);
    w.peers[0].is_interested = true;
    w.at(3);
    assert_eq!(w.choker.next_deadline(), Some(Now::from_secs(10)));
}

#[test]
fn a_lid_holds_at_once_and_against_everybody() {
    for slots in [UploadSlots::Fixed(4), UploadSlots::Auto] {
        let mut w = world(slots, SeedChoker::RoundRobin, "A1 B2 C3 D4 E5");
        w.is_seeding = true;
        w.at(1);
        assert_eq!(w.unchoked().len(), 4);
        assert!(w.choker.set_slots_max(Some(2)) && !w.choker.set_slots_max(Some(2)));
        assert_eq!(w.choker.slots(), 2);
        w.at(2);
        assert_eq!(w.unchoked().len(), 2, "they had theirs for a second only");
        assert!(!w.choker.has_free_slot(2));
        w.choker.set_slots_max(Some(3));
        w.at(3);
        assert_eq!(w.unchoked().len(), 3);
        w.choker.set_slots_max(Some(0));
        w.at(4);
        assert_eq!(w.unchoked().len(), 0);
        w.choker.set_slots_max(None);
        w.at(5);
        assert_eq!(w.unchoked().len(), 4);
    }
}

#[test]
fn under_a_lid_an_idle_peer_that_is_unchoked_holds_its_slot() {
    let mut w = seed(4, "A1+n B2 C3");
    w.choker.set_slots_max(Some(2));
    w.at(1);
    assert_eq!(w.unchoked().len(), 2);
}
