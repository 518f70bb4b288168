//! Corrupt peers in a torrent of BitTorrent v2: their bad blocks are found one by one, exactly they are banned, and what
//! was good stays (HOSTILE.md C7, C8).

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use crate::libtorrent::{self, Peer};
use crate::support::fake_peer::{BLOCK, Behaviour, Content, Corrupt, FakeSeeder, Hashes};
use crate::support::sample::text;
use crate::support::{Gyre, Sample};
use crate::transfers::seed;

const BLOCK_BYTES: u64 = BLOCK as u64;

/// Ten seeders on addresses of their own; those at `liars` corrupt a third of their blocks. `change` has the last word.
fn ten(
    sample: &Sample,
    base: u8,
    liars: &[u8],
    change: impl Fn(u8, &mut Behaviour),
) -> Vec<FakeSeeder> {
    let content = Content::of(sample).with_tree();
    let start = |at: u8| {
        let mut behaviour = Behaviour::honest(base + at);
        behaviour.bytes_per_s = Some(1 << 20);
        if liars.contains(&at) {
            behaviour.corrupt = Corrupt::OneIn(3);
        }
        change(at, &mut behaviour);
        FakeSeeder::start(&content, behaviour)
    };
    (0..10).map(start).collect()
}

/// Downloads from these peers alone to the end; the events.
fn download(sample: &Sample, peers: &[String], more: &[&str]) -> Vec<Value> {
    let out = sample.dir("out");
    let mut arguments = vec!["download".to_owned(), text(&sample.torrent)];
    arguments.extend(["-o".to_owned(), text(&out)]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port", "0", "--no-trackers"].map(String::from));
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    for peer in peers {
        arguments.extend(["--peer".to_owned(), peer.clone()]);
    }
    let mut gyre = Gyre::start(&arguments);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out), "the copy differs");
    gyre.seen().to_vec()
}

fn from_ten(sample: &Sample, seeders: &[FakeSeeder], more: &[&str]) -> Vec<Value> {
    let peers: Vec<String> = seeders.iter().map(|s| s.addr.to_string()).collect();
    download(sample, &peers, more)
}

/// Exactly these are banned.
fn check_bans(seeders: &[FakeSeeder], liars: &[u8], events: &[Value]) {
    let bans = events.iter().filter(|event| event["event"] == "banned");
    let banned: BTreeSet<&str> = bans.map(|event| event["ip"].as_str().unwrap()).collect();
    let addr = |at: &u8| seeders[usize::from(*at)].addr.ip().to_string();
    let wanted: BTreeSet<String> = liars.iter().map(addr).collect();
    assert_eq!(banned, wanted.iter().map(String::as_str).collect());
}

fn wasted_bytes(events: &[Value]) -> u64 {
    let mut progress = events.iter().rev();
    let last = progress.find(|event| event["event"] == "progress");
    last.unwrap()["wasted_bytes"].as_u64().unwrap()
}

/// Bad blocks that were sent, and requests for leaves that came.
fn counts(seeders: &[FakeSeeder]) -> (u64, u64) {
    let of = |seeder: &FakeSeeder| {
        let counts = seeder.counts();
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::SeqCst);
        (load(&counts.corrupt_blocks), load(&counts.hash_requests))
    };
    let each = seeders.iter().map(of);
    each.fold((0, 0), |(bad, asked), (more, more_asked)| {
        (bad + more, asked + more_asked)
    })
}

fn check(seeders: &[FakeSeeder], liars: &[u8], events: &[Value]) {
    check_bans(seeders, liars, events);
    let (bad, asked) = counts(seeders);
    let wasted = wasted_bytes(events) / BLOCK_BYTES;
    println!("{wasted} blocks wasted for {bad} bad ones, leaves asked for {asked} times");
    assert!(bad > 0);
    assert!(
        wasted <= 2 * bad,
        "{wasted} blocks wasted for {bad} bad ones"
    );
}

#[test]
fn three_liars_of_ten_cost_little_more_than_their_bad_blocks_where_all_share_every_piece() {
    // In order, all peers work on the same few pieces.
    let sample = Sample::v2_file(64 << 20, 1 << 20);
    let liars = [0, 5, 9];
    let seeders = ten(&sample, 10, &liars, |_, _| ());
    let events = from_ten(&sample, &seeders, &["--sequential"]);
    check(&seeders, &liars, &events);
}

#[test]
fn three_liars_of_ten_cost_little_more_than_their_bad_blocks_where_pieces_have_one_source() {
    let sample = Sample::v2_file(64 << 20, 1 << 20);
    let liars = [2, 3, 7];
    let seeders = ten(&sample, 30, &liars, |_, _| ());
    let events = from_ten(&sample, &seeders, &[]);
    check(&seeders, &liars, &events);
}

#[test]
fn who_lies_about_leaves_is_banned_and_frames_nobody() {
    let sample = Sample::v2_file(32 << 20, 1 << 20);
    // The first two send good blocks and wrong leaves; nobody else says anything, so both are asked.
    let seeders = ten(&sample, 50, &[4, 8], |at, behaviour| {
        behaviour.hashes = match at < 2 {
            true => Hashes::Wrong,
            false => Hashes::Rejected,
        };
    });
    let events = from_ten(&sample, &seeders, &["--sequential"]);
    check_bans(&seeders, &[0, 1, 4, 8], &events);
}

#[test]
fn without_leaves_liars_are_found_all_the_same() {
    let sample = Sample::v2_file(32 << 20, 1 << 20);
    let liars = [3];
    let seeders = ten(&sample, 70, &liars, |at, behaviour| {
        behaviour.hashes = match at % 2 {
            0 => Hashes::Rejected,
            _ => Hashes::Unanswered,
        };
    });
    let events = from_ten(&sample, &seeders, &["--sequential"]);
    check_bans(&seeders, &liars, &events);
    assert!(counts(&seeders).1 > 0, "nobody was asked");
}

/// A third of what the liar sends is bad: without leaves at least three times as much would go as was bad.
fn beside_a_liar(sample: &Sample, last_byte: u8, seed: &str) {
    let mut behaviour = Behaviour::honest(last_byte);
    behaviour.corrupt = Corrupt::OneIn(3);
    behaviour.hashes = Hashes::Rejected;
    // Slow enough that both are connected when its first bad block is found.
    behaviour.bytes_per_s = Some(4 << 20);
    let liar = FakeSeeder::start(&Content::of(sample), behaviour);
    let peers = [liar.addr.to_string(), seed.to_owned()];
    let events = download(sample, &peers, &["--sequential"]);
    check(&[liar], &[0], &events);
}

#[test]
fn leaves_are_asked_of_a_seed_of_gyre() {
    let sample = Sample::v2_file(32 << 20, 1 << 20);
    let (mut seed, addr) = seed(&text(&sample.torrent), &text(&sample.data));
    seed.wait_for("seeding", |event| event["state"] == "seeding");
    beside_a_liar(&sample, 90, &addr);
}

#[test]
fn leaves_are_asked_of_a_seed_of_libtorrent() {
    if !libtorrent::is_here() {
        return;
    }
    let sample = Sample::v2_file(32 << 20, 1 << 20);
    let mut seed = Peer::start(&text(&sample.torrent), &text(&sample.data), None);
    seed.has_all();
    beside_a_liar(&sample, 91, &format!("127.0.0.1:{}", seed.port));
}
