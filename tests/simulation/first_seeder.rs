//! The first seeder of a torrent, with and without super-seeding (BEP 16).

use gyre::base::Rng;

use crate::scenarios::{KIB, MIB, any_line, leech, run, seed};
use crate::spec::{Faults, NodeSpec, Role, Spec};
use crate::world::World;

/// A seeder whose line is no bottleneck, and ten leechers.
fn first_seeder(name: &'static str, rng: &mut Rng, super_seeds: bool) -> Spec {
    let mut spec = Spec::new(name, 8 * MIB - rng.below(MIB), 64 * KIB);
    let mut quick = seed();
    quick.up_bytes_per_s = 20_000_000;
    quick.super_seeds = super_seeds;
    spec.deadline_secs = 900;
    spec.with(1, quick).with(10, leech())
}

/// What the seeder sent, in hundredths of the content.
fn percent_sent(world: &World) -> u64 {
    world.nodes[0].sent_bytes_ever * 100 / world.spec.geometry.total_bytes()
}

#[test]
fn a_super_seeder_sends_little_more_than_one_copy() {
    fn build(rng: &mut Rng) -> Spec {
        first_seeder("a_super_seeder_sends_little_more_than_one_copy", rng, true)
    }
    run(8, build, |world| {
        let percent = percent_sent(world);
        assert!(percent <= 120, "the super-seeder sent {percent} %");
    });
}

#[test]
fn without_super_seeding_a_quick_seeder_sends_several_copies() {
    fn build(rng: &mut Rng) -> Spec {
        let name = "without_super_seeding_a_quick_seeder_sends_several_copies";
        first_seeder(name, rng, false)
    }
    run(3, build, |world| {
        let percent = percent_sent(world);
        assert!(percent >= 200, "the seeder sent {percent} %");
    });
}

#[test]
fn super_seeding_ends_for_everybody_whatever_goes_wrong() {
    fn build(rng: &mut Rng) -> Spec {
        let name = "super_seeding_ends_for_everybody_whatever_goes_wrong";
        let mut spec = Spec::new(name, MIB + rng.below(2 * MIB), 64 * KIB);
        spec.plain_percent = rng.below(101);
        spec.faults = Faults {
            until_secs: 60,
            cut_every_ms: 2_000 + rng.below(10_000),
            crash_every_ms: 10_000 + rng.below(60_000),
            lose_every_ms: 5_000 + rng.below(30_000),
            ..Faults::default()
        };
        spec.deadline_secs = 3_600;
        let mut first = any_line(rng, seed());
        first.super_seeds = true;
        spec = spec.with(1, first).with(rng.below(2) as usize, leech());
        for _ in 0..1 + rng.below(5) {
            spec = spec.with(1, any_line(rng, leech()));
        }
        for role in [Role::Silent, Role::Staller] {
            spec = spec.with(rng.below(2) as usize, NodeSpec::new(role));
        }
        spec
    }
    run(20, build, |_| {});
}
