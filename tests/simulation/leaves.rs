//! Torrents of BitTorrent v2, whose bad blocks are told from the good ones (BEP 52).

use gyre::base::Rng;

use crate::node;
use crate::scenarios::{KIB, any_line, leech, nothing_more, poisoner, run, seed};
use crate::spec::{Faults, Spec};
use crate::world::World;

/// Exactly those who sent a bad block are banned by whoever took it.
fn judge_bans(world: &World) {
    for (number, n) in world.nodes.iter().enumerate() {
        for sender in n.bad_bytes_of.keys() {
            let ip = node::address(*sender).ip();
            assert!(n.banned.contains(&ip), "node {number} has not banned {ip}");
        }
        for ip in &n.banned {
            let sender = node::node_at(*ip);
            assert!(n.bad_bytes_of.contains_key(&sender), "node {number}: {ip}");
        }
    }
}

/// What was thrown away is what was bad, and not a byte more; blocks that came twice at the end aside.
fn judge_waste(world: &World) {
    let mut bad_bytes = 0;
    for (number, n) in world.nodes.iter().enumerate() {
        let stats = n.torrent().stats(world.now + n.ahead);
        let bad: u64 = n.bad_bytes_of.values().sum();
        let thrown_away = stats.wasted_bytes - n.duplicate_bytes;
        assert_eq!(thrown_away, bad, "node {number}");
        bad_bytes += bad;
    }
    assert!(bad_bytes > 0, "nobody was sent a bad block");
}

#[test]
fn three_poisoners_of_ten_cost_their_bad_blocks_alone() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (64 * KIB) << rng.below(5);
        let mut spec = Spec::new(
            "three_poisoners_of_ten_cost_their_bad_blocks_alone",
            40 * piece_length - rng.below(piece_length),
            piece_length,
        );
        spec = spec.v2().with(2, seed()).with(5, leech());
        for _ in 0..3 {
            spec = spec.with(1, poisoner(10 + rng.below(91)));
        }
        if rng.chance(30) {
            spec.nodes
                .iter_mut()
                .for_each(|node| node.is_sequential = true);
        }
        spec
    }
    run(10, build, |world| {
        judge_bans(world);
        judge_waste(world);
    });
}

#[test]
fn bad_blocks_are_found_while_everything_goes_wrong() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (32 * KIB) << rng.below(6);
        let mut spec = Spec::new(
            "bad_blocks_are_found_while_everything_goes_wrong",
            40 * piece_length - rng.below(piece_length),
            piece_length,
        );
        spec.plain_percent = rng.below(101);
        spec.latency_ms = (1, 1 + rng.below(400));
        spec.faults = Faults {
            until_secs: 60,
            cut_every_ms: 1_000 + rng.below(5_000),
            crash_every_ms: 10_000 + rng.below(30_000),
            write_percent: rng.below(10),
            read_percent: rng.below(30),
            lose_every_ms: 5_000 + rng.below(60_000),
            slow_percent: rng.below(20),
            stall_every_ms: rng.below(2) * (2_000 + rng.below(20_000)),
            ..Faults::default()
        };
        spec.deadline_secs = 3_600;
        spec = spec.v2().with(1, any_line(rng, seed()));
        for _ in 0..2 + rng.below(4) {
            let mut node = any_line(rng, leech());
            node.budget_bytes = (2 + rng.below(8)) << 20;
            node.is_sequential = rng.chance(30);
            spec = spec.with(1, node);
        }
        for _ in 0..1 + rng.below(3) {
            spec = spec.with(1, poisoner(5 + rng.below(60)));
        }
        spec
    }
    run(20, build, nothing_more);
}
