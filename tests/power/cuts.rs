//! The power goes at any moment of a download: the records left never claim a piece that is not there whole
//! (HOSTILE.md L8).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use gyre::base::{Bitfield, Rng};
use gyre::session::check::{CheckJob, check};
use gyre::session::resume_store::{Loaded, ResumeStore, SetAside, observe};
use gyre::storage::layout::FileLayout;
use gyre::storage::parts::PartsMap;
use gyre::storage::resume::{Record, judge};
use gyre::wire::metainfo::Metainfo;

use crate::trace::{Bench, End, Run};
use crate::tree::{Durable, Op, Tree};

/// Cuts of one trace: quick run and long run.
const CUTS: [usize; 2] = [250, 1000];
/// Of these, so many are started from by the real command: quick run and long run.
const STARTS: [usize; 2] = [6, 50];

const FILES: [(&str, usize); 4] = [
    ("a", 1_500_000),
    ("b/c", 2_000_000),
    ("d", 40_000),
    ("e", 1_700_000),
];
const NAMES: [&str; 4] = ["a", "b/c", "d", "e"];

fn is_long() -> bool {
    std::env::var("GYRE_LONG").is_ok_and(|value| value == "1")
}

/// What the start of a download makes of what is left.
struct Start {
    metainfo: Metainfo,
    layout: Arc<FileLayout>,
    parts: Arc<PartsMap>,
}

/// One start's figures.
struct Found {
    /// Records that are not whole.
    set_aside: Vec<SetAside>,
    record: Option<Record>,
    trusted: Bitfield,
    is_missing: bool,
    /// Trusted and not good.
    false_haves: u32,
    /// Recorded and neither trusted nor found good.
    lost: usize,
}

impl Start {
    fn new(bench: &Bench) -> Start {
        let bytes = std::fs::read(&bench.sample.torrent).unwrap();
        let metainfo = Metainfo::parse(&bytes).unwrap();
        let layout = FileLayout::new(&metainfo.info).unwrap();
        Start {
            parts: Arc::new(PartsMap::new(&layout, metainfo.info_hash)),
            layout: Arc::new(layout),
            metainfo,
        }
    }

    /// The steps of a start, in its order: look, load, weigh. Then what is trusted is read after all.
    fn look(&self, bench: &Bench) -> Found {
        let observed = match observe(&bench.out(), &self.layout, &self.parts) {
            Ok(seen) => seen.observed,
            Err(error) => panic!("the files cannot be looked at: {error}"),
        };
        let store = ResumeStore::open(&bench.state()).unwrap();
        store.remove_stale();
        let root_path = bench.out().join(self.layout.root_name());
        let info_hash = self.metainfo.info_hash;
        let report = store.load(info_hash, observed.root, &root_path).unwrap();
        let set_aside = report.set_aside;
        let record = match report.loaded {
            Loaded::Found(record) | Loaded::Moved(record) => Some(*record),
            Loaded::None => None,
        };
        let verdict = judge(record.as_ref(), &observed, &self.layout);
        let job = CheckJob {
            layout: self.layout.clone(),
            parts: self.parts.clone(),
            root: bench.out(),
            piece_hashes: self.metainfo.info.piece_hashes.clone(),
            pieces: Bitfield::full(self.layout.geometry().piece_count()),
            threads: 1,
        };
        let good = check(&job, &AtomicU64::new(0), &AtomicBool::new(false)).good;
        let is_found =
            |piece| good.has(piece) && (verdict.trusted.has(piece) || verdict.to_hash.has(piece));
        let have = record.iter().flat_map(|record| record.have.iter());
        Found {
            set_aside,
            lost: have.filter(|piece| !is_found(*piece)).count(),
            record,
            is_missing: !verdict.missing.is_empty(),
            false_haves: verdict
                .trusted
                .iter()
                .filter(|piece| !good.has(*piece))
                .count() as u32,
            trusted: verdict.trusted,
        }
    }
}

/// Numbers that `GYRE_POWER_SEED` repeats.
fn random() -> Rng {
    let seed = std::env::var("GYRE_POWER_SEED").ok();
    let seed = seed.map_or_else(
        || u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    );
    println!("repeat with GYRE_POWER_SEED={seed}");
    Rng::new(seed)
}

/// Where the power goes: half of the times beside a sync or a new name, where the order counts.
fn moments(ops: &[Op], rng: &mut Rng) -> Vec<usize> {
    let is_close = |op: &Op| !matches!(op, Op::Write { .. } | Op::Length { .. });
    let close: Vec<usize> = (0..ops.len()).filter(|at| is_close(&ops[*at])).collect();
    let mut moments: Vec<usize> = (0..CUTS[usize::from(is_long())])
        .map(|cut| match cut % 2 {
            0 => rng.below(ops.len() as u64 + 1) as usize,
            _ => (*rng.pick(&close).unwrap() + rng.below(3) as usize).min(ops.len()),
        })
        .collect();
    moments.sort_unstable();
    moments
}

/// The trees of so many cuts, each with its moment.
fn cuts(before: &Tree, ops: &[Op], is_lying: bool, rng: &mut Rng) -> Vec<(usize, Tree)> {
    let mut durable = Durable::new(before.clone());
    durable.is_lying = is_lying;
    let mut done = 0;
    let mut trees = Vec::new();
    for moment in moments(ops, rng) {
        ops[done..moment].iter().for_each(|op| durable.push(op));
        done = moment;
        trees.push((moment, durable.cut(rng)));
    }
    trees
}

fn describe(ops: &[Op]) -> String {
    let count = |is_it: fn(&Op) -> bool| ops.iter().filter(|op| is_it(op)).count();
    format!(
        "{} operations: {} writes, {} syncs, {} records",
        ops.len(),
        count(|op| matches!(op, Op::Write { .. })),
        count(|op| matches!(op, Op::Sync { .. })),
        count(|op| matches!(op, Op::Rename { .. })),
    )
}

/// Cuts the power of a trace again and again. No record may claim what is not there, every piece of the record that is
/// left must be trusted, and downloads must go on from what is left.
fn cut_again_and_again(bench: &Bench, runs: &[Run], last: &[&str], selected: &[&str]) {
    let (before, ops) = bench.trace(runs);
    println!("{}", describe(&ops));
    let mut rng = random();
    let start = Start::new(bench);
    let trees = cuts(&before, &ops, false, &mut rng);
    let begun = Instant::now();
    let (mut with_record, mut trusted) = (0, 0);
    for (moment, tree) in &trees {
        bench.disk.show(tree.clone());
        let found = start.look(bench);
        let near = &ops[moment.saturating_sub(3)..*moment];
        assert!(found.set_aside.is_empty(), "{:?}", found.set_aside);
        assert_eq!(found.false_haves, 0, "cut {moment} behind {near:?}");
        assert!(!found.is_missing, "cut {moment} behind {near:?}");
        assert_eq!(
            found.lost, 0,
            "recorded and lost, cut {moment} behind {near:?}"
        );
        with_record += usize::from(found.record.is_some());
        trusted += u64::from(found.trusted.count());
    }
    println!(
        "{} cuts, {with_record} with a record, {trusted} pieces trusted, 0 of them false, {:?}",
        trees.len(),
        begun.elapsed()
    );
    assert!(
        with_record > trees.len() / 3 && trusted > 2 * trees.len() as u64,
        "records were left"
    );
    for _ in 0..STARTS[usize::from(is_long())] {
        let (moment, tree) = rng.pick(&trees).unwrap();
        bench.disk.show(tree.clone());
        let mut gyre = bench.quick(last);
        gyre.event("complete");
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
        assert!(bench.has_files(selected), "cut {moment}");
    }
}

#[test]
fn no_power_cut_leaves_a_record_that_claims_what_is_not_there() {
    let name = "no_power_cut_leaves_a_record_that_claims";
    // Nothing of the way to the output folder is there yet.
    let Some(bench) = Bench::new(name, 201, &FILES, "new/out") else {
        return;
    };
    let run = |end| Run { more: &[], end };
    let runs = [
        run(End::Stopped(40)),
        run(End::Killed(80)),
        // Long enough for a record of its own accord.
        run(End::Complete),
    ];
    cut_again_and_again(&bench, &runs, &[], &NAMES);
}

#[test]
fn no_power_cut_leaves_a_record_that_claims_more_of_a_selection() {
    let name = "no_power_cut_leaves_a_record_that_claims_more_of_a_selection";
    let Some(bench) = Bench::new(name, 202, &FILES, "out") else {
        return;
    };
    const NONE: &[&str] = &["--select", "a", "--select", "e", "--preallocate", "none"];
    const FULL: &[&str] = &["--preallocate", "full"];
    let runs = [
        Run {
            more: NONE,
            end: End::Killed(60),
        },
        Run {
            more: NONE,
            end: End::Stopped(120),
        },
        // What lies in the parts file moves to its place.
        Run {
            more: FULL,
            end: End::Killed(230),
        },
        Run {
            more: FULL,
            end: End::Complete,
        },
    ];
    cut_again_and_again(&bench, &runs, FULL, &NAMES);
}

#[test]
fn a_disk_that_only_says_that_it_syncs_is_found_out() {
    let name = "a_disk_that_only_says_that_it_syncs";
    let Some(bench) = Bench::new(name, 203, &FILES, "out") else {
        return;
    };
    let run = |end| Run { more: &[], end };
    let runs = [
        run(End::Stopped(40)),
        run(End::Stopped(80)),
        run(End::Killed(120)),
    ];
    let (before, ops) = bench.trace(&runs);
    let start = Start::new(&bench);
    // The test's own test: without syncs there are records, whole or not, that claim too much.
    let is_caught = cuts(&before, &ops, true, &mut random())
        .into_iter()
        .any(|(_, tree)| {
            bench.disk.show(tree);
            start.look(&bench).false_haves > 0
        });
    assert!(is_caught);
}
