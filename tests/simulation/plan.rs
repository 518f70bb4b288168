//! Figures that the project names: disks that refuse at any write, poisoners in a crowd, clocks that leap.

use std::time::Duration;

use gyre::base::Rng;
use gyre::storage::retry::Refusal;

use crate::scenarios::{KIB, leech, nothing_more, odd, poisoner, run, run_with, seed};
use crate::spec::{Faults, Outage, Spec};
use crate::world::World;

/// Writes of a leecher of which each is the first to be refused in some run.
const WRITES: u64 = 500;
/// How soon after the cause is gone a write must go well.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// A disk that refuses from that write on, for a time by lot; how long after that the next write went well.
fn refuse_from(write: u64, refusal: Refusal) -> Duration {
    let mut rng = Rng::new(write << 1 | u64::from(refusal == Refusal::Full));
    let lasts = match refusal {
        Refusal::Full => Duration::from_millis(1 + rng.below(300_000)),
        // Three tries fill a minute; then the command ends, as it should.
        _ => Duration::from_millis(1 + rng.below(60_000)),
    };
    let pieces = WRITES + 20;
    let mut spec = Spec::new(
        "a_disk_may_refuse_at_any_write",
        pieces * 16 * KIB,
        16 * KIB,
    );
    let mut broken = leech();
    broken.outage = Some(Outage::new(refusal, write, lasts));
    spec = spec.with(1, seed()).with(1, broken);
    let mut world = World::new(spec, rng.next_u64());
    world.run();
    let n = &world.nodes[1];
    assert_eq!(
        n.life, 1,
        "{refusal:?} at write {write} for {lasts:?} ended it"
    );
    let (_, until) = n.refusing.expect("there was a write of that number");
    let done = n.completed_at.expect("it is complete");
    // A refusal that lasts shorter than what was under way may be met by nobody else.
    let recovered = n.recovered_after.unwrap_or_default();
    assert!(
        recovered <= RECOVERY_MAX && done.since(until) <= RECOVERY_MAX * 2,
        "{refusal:?} at write {write} for {lasts:?}: {recovered:?}, done {:?} after its end",
        done.since(until)
    );
    recovered
}

/// Each of the first 500 writes is the first that is refused. That no piece is tried twice in 30 seconds is asserted at
/// each write.
fn refuse_at_every_write(refusal: Refusal) {
    let recovered = (0..WRITES).map(|write| refuse_from(write, refusal));
    let slowest = recovered.max().unwrap();
    println!("{refusal:?} at each of {WRITES} writes: recovered within {slowest:?}");
}

#[test]
fn a_disk_that_fills_up_at_any_write_is_gone_on_with() {
    refuse_at_every_write(Refusal::Full);
}

#[test]
fn a_disk_that_errs_at_any_write_is_gone_on_with() {
    refuse_at_every_write(Refusal::Error);
}

#[test]
fn six_poisoners_of_twenty_are_banned_after_four_bad_pieces_each() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (32 * KIB) << rng.below(3);
        let total = 512 * piece_length - rng.below(piece_length);
        let name = "six_poisoners_of_twenty_are_banned_after_four_bad_pieces_each";
        let mut spec = Spec::new(name, total, piece_length);
        spec = spec.with(1, leech()).with(14, seed());
        for _ in 0..6 {
            spec = spec.with(1, poisoner(20 + rng.below(81)));
        }
        spec
    }
    // In these most is wasted, or several shared pieces fail at once.
    run_with(10, &[68, 74, 105], build, |world| {
        let n = &world.nodes[0];
        // Whoever got to send anything bad; the download may be over before all six did.
        assert_eq!(n.banned.len(), n.bad_pieces_of.len());
        assert!(!n.banned.is_empty());
        assert!(world.bad_pieces_max() <= 4, "{:?}", n.bad_pieces_of);
        let waste = world.waste_percent();
        assert!(waste <= 25, "{waste} % wasted");
    });
}

#[test]
fn disks_that_refuse_now_and_then_are_gone_on_with() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (32 * KIB) << rng.below(6);
        let name = "disks_that_refuse_now_and_then_are_gone_on_with";
        let mut spec = Spec::new(name, odd(rng, 4096 * KIB), piece_length);
        spec.faults = Faults {
            until_secs: 200,
            outage_every_ms: 1_000 + rng.below(30_000),
            slow_percent: rng.below(30),
            ..Faults::default()
        };
        let mut slow = seed();
        slow.up_bytes_per_s = 50_000 + rng.below(500_000);
        spec.with(1, slow).with(3, leech())
    }
    run(12, build, nothing_more);
}

#[test]
fn clocks_that_leap_ahead_and_lines_that_stall_hold_nobody_up_for_good() {
    fn build(rng: &mut Rng) -> Spec {
        let name = "clocks_that_leap_ahead_and_lines_that_stall_hold_nobody_up_for_good";
        let mut spec = Spec::new(name, odd(rng, 4096 * KIB), 64 * KIB);
        spec.faults = Faults {
            until_secs: 120,
            stall_every_ms: 1_000 + rng.below(10_000),
            jump_every_ms: 1_000 + rng.below(20_000),
            ..Faults::default()
        };
        let mut slow = seed();
        slow.up_bytes_per_s = 100_000 + rng.below(500_000);
        spec.with(1, slow).with(4, leech())
    }
    run(12, build, nothing_more);
}
