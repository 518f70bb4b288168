//! The swarms that are tried, and the figures each must keep.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;

use gyre::base::{Bitfield, Now, PieceIndex, Rng};
use gyre::swarm::{SeedChoker, UploadSlots};

use crate::node::Node;
use crate::spec::{Faults, NodeSpec, Role, Spec};
use crate::world::World;

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// Seeds of the scenario in which everything goes wrong, in a quick run.
const QUICK_SEEDS: u64 = 200;

/// Runs a scenario with some seeds; a failure names the seed that repeats it.
pub fn run(quick_count: u64, build: fn(&mut Rng) -> Spec, judge: fn(&World)) {
    run_with(quick_count, &[], build, judge);
}

/// The same, and the rare seeds too, whatever the count.
pub fn run_with(quick_count: u64, rare: &[u64], build: fn(&mut Rng) -> Spec, judge: fn(&World)) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match (number("GYRE_SIM_SEED"), number("GYRE_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => 0..(quick_count * count / QUICK_SEEDS).max(1),
        (None, None) => 0..quick_count,
    };
    let is_one = number("GYRE_SIM_SEED").is_some();
    let rare = rare.iter().copied().filter(|_| !is_one);
    let seeds: Vec<u64> = seeds.chain(rare).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut figures = Figures::default();
        while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            figures = figures.and(run_one(seed, build, judge));
        }
        figures
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(seeds.len());
    let all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        ended.into_iter().fold(Figures::default(), |all, ended| {
            all.and(ended.unwrap_or_else(|panic| resume_unwind(panic)))
        })
    });
    eprintln!(
        "{}: {} seeds, slowest swarm done at {} s, at most {} % wasted, {} bad pieces of one peer, {} events, digest {:016x}",
        all.name,
        seeds.len(),
        all.slowest_secs,
        all.waste_percent,
        all.bad_pieces,
        all.event_count,
        all.digest
    );
}

fn run_one(seed: u64, build: fn(&mut Rng) -> Spec, judge: fn(&World)) -> Figures {
    let mut rng = Rng::new(seed);
    let spec = build(&mut rng);
    let name = spec.name;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(spec, rng.next_u64());
        world.run();
        judge(&world);
        world
    }));
    match result {
        Ok(world) => world.figures(),
        Err(panic) => {
            eprintln!("repeat with: GYRE_SIM_SEED={seed} cargo test --test simulation {name}");
            resume_unwind(panic);
        }
    }
}

/// What is told of one run, or of many: the worst of each, and sums.
#[derive(Default)]
struct Figures {
    name: &'static str,
    slowest_secs: u64,
    waste_percent: u64,
    bad_pieces: u32,
    event_count: u64,
    /// The same when every run of two builds went the same way.
    digest: u64,
}

impl Figures {
    fn and(self, other: Figures) -> Figures {
        Figures {
            name: self.name.max(other.name),
            slowest_secs: self.slowest_secs.max(other.slowest_secs),
            waste_percent: self.waste_percent.max(other.waste_percent),
            bad_pieces: self.bad_pieces.max(other.bad_pieces),
            event_count: self.event_count + other.event_count,
            digest: self.digest.wrapping_add(other.digest),
        }
    }
}

impl World {
    fn figures(&self) -> Figures {
        let sent = self.nodes.iter().map(|n| n.sent_bytes_ever);
        // The lot that would be drawn next depends on all that were drawn before.
        let next_lot = self.rng.clone().next_u64();
        Figures {
            name: self.spec.name,
            slowest_secs: self.finished_at().as_micros() / 1_000_000,
            waste_percent: self.waste_percent(),
            bad_pieces: self.bad_pieces_max(),
            event_count: self.event_count,
            digest: sent.fold(next_lot, |digest, bytes| digest.rotate_left(7) ^ bytes),
        }
    }

    /// When the last honest node was done.
    pub fn finished_at(&self) -> Now {
        let times = self.nodes.iter().filter_map(|n| n.completed_at);
        times.max().unwrap_or(Now::ZERO)
    }

    /// Wasted bytes of all honest leechers for each hundred bytes they wanted.
    pub fn waste_percent(&self) -> u64 {
        self.percent_of_leechers(|_, wasted_bytes| wasted_bytes)
    }

    /// The same without blocks that came twice: at the end of a small torrent on fast lines these are many, and no lie.
    fn loss_percent(&self) -> u64 {
        self.percent_of_leechers(|n, wasted_bytes| wasted_bytes.saturating_sub(n.twice_bytes))
    }

    fn percent_of_leechers(&self, lost_bytes: impl Fn(&Node, u64) -> u64) -> u64 {
        let leechers = self.nodes.iter().filter(|n| n.spec.role == Role::Leech);
        let (mut lost, mut wanted) = (0, 0);
        for n in leechers {
            let stats = n.torrent().stats(self.now + n.ahead);
            lost += lost_bytes(n, stats.wasted_bytes);
            wanted += self.spec.geometry.total_bytes();
        }
        (lost * 100).checked_div(wanted).unwrap_or(0)
    }

    /// Bad pieces that one node had of one poisoner at most before the ban.
    pub fn bad_pieces_max(&self) -> u32 {
        let counts = self.nodes.iter().flat_map(|n| n.bad_pieces_of.values());
        counts.copied().max().unwrap_or(0)
    }

    fn poisoner_count(&self) -> usize {
        let is_poisoner = |role| matches!(role, Role::Poisoner { .. });
        self.nodes
            .iter()
            .filter(|n| is_poisoner(n.spec.role))
            .count()
    }
}

/// A size that is rarely a whole number of pieces or blocks.
pub fn odd(rng: &mut Rng, about: u64) -> u64 {
    about / 2 + rng.below(about) + 1
}

pub fn leech() -> NodeSpec {
    NodeSpec::new(Role::Leech)
}

pub fn seed() -> NodeSpec {
    NodeSpec::new(Role::Seed)
}

pub fn poisoner(percent: u64) -> NodeSpec {
    NodeSpec::new(Role::Poisoner { percent })
}

/// A line by lot, from 50 kB/s to 5 MB/s.
pub fn any_line(rng: &mut Rng, mut node: NodeSpec) -> NodeSpec {
    node.up_bytes_per_s = 50_000 + rng.below(1_000_000) * rng.below(6);
    node.down_bytes_per_s = 200_000 + rng.below(5_000_000);
    node.joins_ms = rng.below(10_000);
    node
}

pub fn nothing_more(_: &World) {}

#[test]
fn one_seed_feeds_one_leecher() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (16 * KIB) << rng.below(5);
        let spec = Spec::new(
            "one_seed_feeds_one_leecher",
            odd(rng, 2 * MIB),
            piece_length,
        );
        spec.with(1, seed()).with(1, leech())
    }
    run(20, build, |world| {
        assert_eq!(
            world.waste_percent(),
            0,
            "nothing is fetched twice from one seed"
        );
    });
}

#[test]
fn tiny_torrents_work() {
    fn build(rng: &mut Rng) -> Spec {
        let (bytes, piece_length) = (1 + rng.below(50_000), 1 + rng.below(40_000));
        let spec = Spec::new("tiny_torrents_work", bytes, piece_length);
        spec.with(1, seed()).with(3, leech())
    }
    run(20, build, nothing_more);
}

#[test]
fn a_swarm_of_mixed_lines_finishes() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (32 * KIB) << rng.below(4);
        let mut spec = Spec::new(
            "a_swarm_of_mixed_lines_finishes",
            odd(rng, 2 * MIB),
            piece_length,
        );
        spec.plain_percent = rng.below(3) * 50;
        for _ in 0..2 + rng.below(6) {
            spec = spec.with(1, any_line(rng, leech()));
        }
        spec.with(1, seed())
    }
    run(20, build, nothing_more);
}

#[test]
fn churn_and_cut_connections_lose_nothing() {
    fn build(rng: &mut Rng) -> Spec {
        let mut spec = Spec::new(
            "churn_and_cut_connections_lose_nothing",
            odd(rng, 3 * MIB),
            64 * KIB,
        );
        spec.faults = Faults {
            until_secs: 60,
            cut_every_ms: 500,
            crash_every_ms: 5_000,
            ..Faults::default()
        };
        spec.plain_percent = 30;
        let mut slow = seed();
        slow.up_bytes_per_s = 100_000 + rng.below(500_000);
        spec = spec.with(1, slow);
        for _ in 0..3 + rng.below(3) {
            spec = spec.with(1, any_line(rng, leech()));
        }
        spec
    }
    run(16, build, nothing_more);
}

pub fn judge_poison(world: &World) {
    let percent = world.loss_percent();
    assert!(percent <= 25, "{percent} % lost to poisoners");
    let (mut total, mut pairs) = (0, 0);
    for (node, n) in world.nodes.iter().enumerate() {
        for (poisoner, count) in &n.bad_pieces_of {
            // HOSTILE.md C3.
            assert!(
                *count <= 4,
                "{count} bad pieces of {poisoner} at node {node}"
            );
            total += count;
            pairs += 1;
        }
    }
    assert!(total <= 2 * pairs, "{total} bad pieces for {pairs} bans");
}

#[test]
fn one_poisoner_is_found_and_banned() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (32 * KIB) << rng.below(4);
        let total = 40 * piece_length + rng.below(20 * piece_length);
        let mut spec = Spec::new("one_poisoner_is_found_and_banned", total, piece_length);
        spec = spec.with(1, poisoner(20 + rng.below(81))).with(1, seed());
        spec.with(2 + rng.below(3) as usize, leech())
    }
    // In these most is wasted.
    run_with(16, &[20, 88, 224, 310], build, |world| {
        judge_poison(world);
        for (node, n) in world.nodes.iter().enumerate() {
            let was_hit = n.bad_pieces_of.values().sum::<u32>() > 0;
            assert_eq!(
                was_hit,
                !n.banned.is_empty(),
                "node {node} was fed bad pieces"
            );
        }
    });
}

#[test]
fn thirty_percent_poisoners_do_not_stop_the_swarm() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (64 * KIB) << rng.below(3);
        let mut spec = Spec::new(
            "thirty_percent_poisoners_do_not_stop_the_swarm",
            80 * piece_length - rng.below(piece_length),
            piece_length,
        );
        spec = spec.with(1, seed()).with(6, leech());
        for _ in 0..3 {
            spec = spec.with(1, poisoner(10 + rng.below(91)));
        }
        spec
    }
    run(10, build, |world| {
        assert_eq!(world.poisoner_count(), 3);
        judge_poison(world);
    });
}

#[test]
fn failed_writes_are_fetched_again() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (32 * KIB) << rng.below(6);
        let mut spec = Spec::new(
            "failed_writes_are_fetched_again",
            odd(rng, 4 * MIB),
            piece_length,
        );
        spec.faults = Faults {
            until_secs: 90,
            write_percent: 5 + rng.below(40),
            ..Faults::default()
        };
        let mut small = leech();
        small.budget_bytes = 2 * MIB;
        spec.with(1, seed()).with(2, leech()).with(1, small)
    }
    run(12, build, nothing_more);
}

#[test]
fn failed_reads_blame_nobody() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (64 * KIB) << rng.below(5);
        let mut spec = Spec::new("failed_reads_blame_nobody", odd(rng, 4 * MIB), piece_length);
        spec.faults = Faults {
            until_secs: 60,
            read_percent: 5 + rng.below(40),
            ..Faults::default()
        };
        let mut small = leech();
        small.budget_bytes = 2 * MIB;
        let mut poor_disk = seed();
        poor_disk.is_steady = false;
        spec = spec.with(1, poor_disk).with(2, leech()).with(2, small);
        spec.with(rng.below(2) as usize, poisoner(40))
    }
    run(12, build, nothing_more);
}

#[test]
fn a_slow_seeder_sends_little_more_than_one_copy() {
    fn build(rng: &mut Rng) -> Spec {
        let mut spec = Spec::new(
            "a_slow_seeder_sends_little_more_than_one_copy",
            6 * MIB - rng.below(MIB),
            128 * KIB,
        );
        let mut slow = seed();
        slow.up_bytes_per_s = 100_000 + rng.below(200_000);
        let mut quick = leech();
        quick.up_bytes_per_s = 1_000_000;
        spec.deadline_secs = 600;
        spec.with(1, slow).with(6, quick)
    }
    run(10, build, |world| {
        let sent = world.nodes[0].sent_bytes_ever;
        let total = world.spec.geometry.total_bytes();
        assert!(
            sent * 2 <= total * 3,
            "the seeder sent {sent} bytes of {total}"
        );
    });
}

#[test]
fn fifty_peers_finish() {
    fn build(rng: &mut Rng) -> Spec {
        let mut spec = Spec::new("fifty_peers_finish", odd(rng, 2 * MIB), 64 * KIB);
        spec = spec.with(1, seed());
        for _ in 0..49 {
            spec = spec.with(1, any_line(rng, leech()));
        }
        spec
    }
    run(2, build, nothing_more);
}

#[test]
fn silent_peers_are_worked_around() {
    fn build(rng: &mut Rng) -> Spec {
        let mut spec = Spec::new(
            "silent_peers_are_worked_around",
            odd(rng, 2 * MIB),
            64 * KIB,
        );
        spec.deadline_secs = 600;
        let silent = NodeSpec::new(Role::Silent);
        let staller = NodeSpec::new(Role::Staller);
        let mut late = seed();
        late.joins_ms = rng.below(2) * 5_000;
        spec = spec
            .with(1 + rng.below(3) as usize, silent)
            .with(rng.below(3) as usize, staller);
        spec.with(1, late).with(1 + rng.below(3) as usize, leech())
    }
    run(16, build, nothing_more);
}

#[test]
fn sequential_leechers_finish() {
    fn build(rng: &mut Rng) -> Spec {
        let mut spec = Spec::new("sequential_leechers_finish", odd(rng, 2 * MIB), 64 * KIB);
        let mut in_order = any_line(rng, leech());
        in_order.is_sequential = true;
        spec = spec.with(1, seed()).with(3, in_order);
        spec.with(rng.below(3) as usize, leech())
    }
    run(12, build, nothing_more);
}

#[test]
fn selected_pieces_are_fetched_and_no_others() {
    fn build(rng: &mut Rng) -> Spec {
        let mut spec = Spec::new(
            "selected_pieces_are_fetched_and_no_others",
            odd(rng, 3 * MIB),
            64 * KIB,
        );
        spec = spec.with(1, seed());
        for _ in 0..4 {
            let mut wanted = Bitfield::new(spec.geometry.piece_count());
            for piece in spec.geometry.pieces() {
                if rng.chance(40) {
                    wanted.set(piece);
                }
            }
            wanted.set(PieceIndex::new(0));
            let mut picky = any_line(rng, leech());
            picky.wanted = Some(wanted);
            spec = spec.with(1, picky);
        }
        spec
    }
    run(12, build, |world| {
        for n in &world.nodes[1..] {
            assert_eq!(Some(n.torrent().have()), n.spec.wanted.as_ref());
        }
    });
}

#[test]
fn large_pieces_stream_through_a_small_budget() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = MIB << rng.below(2);
        let mut spec = Spec::new(
            "large_pieces_stream_through_a_small_budget",
            odd(rng, 8 * MIB),
            piece_length,
        );
        if rng.chance(50) {
            spec.faults = Faults {
                until_secs: 40,
                cut_every_ms: 2_000,
                write_percent: 2,
                ..Faults::default()
            };
        }
        let mut small = leech();
        small.budget_bytes = MIB + MIB * rng.below(3);
        spec = spec.with(2, seed()).with(3, small);
        spec.with(rng.below(2) as usize, poisoner(5))
    }
    run(12, build, nothing_more);
}

#[test]
fn lost_pieces_are_fetched_again() {
    fn build(rng: &mut Rng) -> Spec {
        let mut spec = Spec::new("lost_pieces_are_fetched_again", odd(rng, 2 * MIB), 64 * KIB);
        spec.faults = Faults {
            until_secs: 60,
            lose_every_ms: 2_000,
            ..Faults::default()
        };
        spec.with(1, seed()).with(3, any_line(rng, leech()))
    }
    run(10, build, nothing_more);
}

#[test]
fn everything_at_once_still_finishes() {
    fn build(rng: &mut Rng) -> Spec {
        let piece_length = (32 * KIB) << rng.below(6);
        let mut spec = Spec::new(
            "everything_at_once_still_finishes",
            odd(rng, 3 * MIB),
            piece_length,
        );
        spec.plain_percent = rng.below(101);
        spec.latency_ms = (1, 1 + rng.below(400));
        spec.faults = Faults {
            until_secs: 120,
            cut_every_ms: 1_000 + rng.below(10_000),
            crash_every_ms: 10_000 + rng.below(60_000),
            write_percent: rng.below(10),
            read_percent: rng.below(10),
            lose_every_ms: 5_000 + rng.below(60_000),
            outage_every_ms: rng.below(2) * (10_000 + rng.below(60_000)),
            slow_percent: rng.below(20),
            stall_every_ms: rng.below(2) * (2_000 + rng.below(20_000)),
            jump_every_ms: rng.below(2) * (5_000 + rng.below(60_000)),
        };
        spec.deadline_secs = 3_600;
        spec = spec.with(1, any_line(rng, seed()));
        for _ in 0..2 + rng.below(4) {
            let mut node = any_line(rng, leech());
            node.budget_bytes = MIB + rng.below(8 * MIB);
            node.is_sequential = rng.chance(30);
            node.slots = match rng.chance(30) {
                true => UploadSlots::Fixed(1 + rng.below(4) as u32),
                false => UploadSlots::Auto,
            };
            if rng.chance(30) {
                node.seed_choker = SeedChoker::FastestUpload;
            }
            spec = spec.with(1, node);
        }
        for role in [Role::Silent, Role::Staller, Role::Poisoner { percent: 50 }] {
            spec = spec.with(rng.below(2) as usize, NodeSpec::new(role));
        }
        spec
    }
    run(QUICK_SEEDS, build, nothing_more);
}
