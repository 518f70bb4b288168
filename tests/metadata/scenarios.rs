//! Who is among the peers, and what must come of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use gyre::base::Rng;

use crate::world::{Kind, World};

/// Seeds of each scenario in a quick run.
const QUICK_SEEDS: u64 = 40;

fn each_seed(run: impl Fn(u64)) {
    let count = std::env::var("GYRE_SIM_SEEDS").ok();
    let count = count.and_then(|text| text.parse().ok());
    for seed in 0..count.unwrap_or(QUICK_SEEDS) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("failed with seed {seed}");
            resume_unwind(panic);
        }
    }
}

fn kinds(of: &[(usize, Kind)], seed: u64) -> Vec<Kind> {
    let each = of.iter().flat_map(|(count, kind)| vec![*kind; *count]);
    let mut all: Vec<Kind> = each.collect();
    Rng::new(seed).shuffle(&mut all);
    all
}

fn found(world: &World) {
    assert!(world.found.as_ref() == Some(&world.metadata), "other bytes");
    assert!(!world.is_banned(Kind::Honest), "an honest peer is banned");
}

#[test]
fn honest_peers_share_the_work_and_no_piece_is_fetched_twice() {
    each_seed(|seed| {
        let all = kinds(&[(4, Kind::Honest), (2, Kind::Dead)], seed);
        let mut world = World::new(64 * 16_384 + 7, &all, all.len(), seed);
        let seconds = world.run(Duration::from_secs(10));
        found(&world);
        assert!(seconds <= 5, "{seconds} s");
        let asked = world.asked(Kind::Honest);
        // At the end, pieces that are late may be asked of another.
        assert!(asked <= world.piece_count() + 16, "{asked} requests");
    });
}

#[test]
fn three_liars_of_five_are_outlasted_and_banned() {
    each_seed(|seed| {
        let all = kinds(&[(2, Kind::Honest), (3, Kind::Liar)], seed);
        let mut world = World::new(40 * 16_384, &all, all.len(), seed);
        world.run(Duration::from_secs(60));
        found(&world);
    });
}

#[test]
fn one_honest_peer_among_thirty_liars_is_found() {
    each_seed(|seed| {
        let all = kinds(&[(1, Kind::Honest), (30, Kind::Liar)], seed);
        let mut world = World::new(10 * 16_384, &all, all.len(), seed);
        world.run(Duration::from_secs(120));
        found(&world);
    });
}

#[test]
fn sizes_that_disagree_do_not_stand_in_each_others_way() {
    each_seed(|seed| {
        let sizes = [1, 30 << 20, 100_000, 12_345_678].map(Kind::SizeLiar);
        let liars = sizes.map(|kind| (2, kind));
        let all = kinds(&[&[(1, Kind::Honest)], &liars[..]].concat(), seed);
        let mut world = World::new(300_000, &all, all.len(), seed);
        let seconds = world.run(Duration::from_secs(60));
        found(&world);
        assert!(seconds <= 20, "{seconds} s");
    });
}

#[test]
fn rejecters_are_backed_off_from_and_others_asked() {
    each_seed(|seed| {
        let all = kinds(&[(1, Kind::Honest), (4, Kind::Rejecter)], seed);
        let mut world = World::new(40 * 16_384, &all, all.len(), seed);
        world.run(Duration::from_secs(30));
        found(&world);
        let asked = world.asked(Kind::Rejecter);
        assert!(asked <= 4 * 30, "{asked} requests to those who reject");
    });
}

#[test]
fn stallers_delay_and_do_not_stop() {
    each_seed(|seed| {
        let all = kinds(&[(1, Kind::Honest), (5, Kind::Staller)], seed);
        let mut world = World::new(30 * 16_384, &all, all.len(), seed);
        world.run(Duration::from_secs(30));
        found(&world);
    });
}

#[test]
fn liars_rejecters_and_stallers_together_are_outlasted() {
    each_seed(|seed| {
        let all = kinds(
            &[
                (2, Kind::Honest),
                (4, Kind::Liar),
                (4, Kind::Staller),
                (4, Kind::Rejecter),
                (3, Kind::SizeLiar(30 << 20)),
                (5, Kind::Dead),
            ],
            seed,
        );
        let mut world = World::new(20 * 16_384 + 1, &all, all.len(), seed);
        world.run(Duration::from_secs(180));
        found(&world);
    });
}

#[test]
fn a_peer_without_metadata_leads_to_those_that_have_it() {
    each_seed(|seed| {
        let all = [Kind::Teller, Kind::Honest, Kind::Honest];
        let mut world = World::new(50_000, &all, 1, seed);
        let seconds = world.run(Duration::from_secs(20));
        found(&world);
        assert!(seconds <= 5, "{seconds} s");
    });
}

#[test]
fn metadata_of_one_byte_and_of_the_longest_are_fetched() {
    for bytes in [1, 16_384, 16_385, 30 << 20] {
        let mut world = World::new(bytes, &[Kind::Honest; 4], 4, 5);
        world.run(Duration::from_secs(300));
        found(&world);
    }
}
