//! Corrupt and silent peers against the whole program: the download completes, exactly the liars are banned, and little
//! is wasted (HOSTILE.md C1–C3, C5).

mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::fake_peer::{Behaviour, Content, Corrupt, FakeSeeder};
use support::{Gyre, Sample, sample::text};

/// Bad pieces that a liar may have a part in before it is banned (HOSTILE.md C3).
const BAD_PIECES_MAX: usize = 4;
/// The same where all peers work on the same pieces: what all have begun when the first verdict comes is lost.
const BAD_SHARED_PIECES_MAX: usize = 12;

/// Downloads from these seeders alone, to the end; the time it took and the events.
fn download(sample: &Sample, seeders: &[FakeSeeder], more: &[&str]) -> (Duration, Vec<Value>) {
    let out = sample.dir("out");
    let mut arguments = vec!["download".to_owned(), text(&sample.torrent)];
    arguments.extend(["-o".to_owned(), text(&out)]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port", "0", "--no-trackers"].map(String::from));
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    for seeder in seeders {
        arguments.extend(["--peer".to_owned(), seeder.addr.to_string()]);
    }
    let started = Instant::now();
    let mut gyre = Gyre::start(&arguments);
    gyre.event("complete");
    let took = started.elapsed();
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out), "the copy differs");
    (took, gyre.seen().to_vec())
}

fn banned(events: &[Value]) -> BTreeSet<Ipv4Addr> {
    let bans = events.iter().filter(|event| event["event"] == "banned");
    bans.map(|event| event["ip"].as_str().unwrap().parse().unwrap())
        .collect()
}

fn wasted_bytes(events: &[Value]) -> u64 {
    let last = events
        .iter()
        .rev()
        .find(|event| event["event"] == "progress");
    last.unwrap()["wasted_bytes"].as_u64().unwrap()
}

/// Ten seeders on addresses of their own, of which those at `liars` behave as `lie` says.
fn ten(content: &Content, base: u8, liars: &[u8], lie: impl Fn(&mut Behaviour)) -> Vec<FakeSeeder> {
    several(10, content, base, liars, lie)
}

/// As [`ten`], so many.
fn several(
    count: u8,
    content: &Content,
    base: u8,
    liars: &[u8],
    lie: impl Fn(&mut Behaviour),
) -> Vec<FakeSeeder> {
    let start = |at: u8| {
        let mut behaviour = Behaviour::honest(base + at);
        lie(&mut behaviour);
        if !liars.contains(&at) {
            behaviour.corrupt = Corrupt::Never;
        }
        FakeSeeder::start(content, behaviour)
    };
    (0..count).map(start).collect()
}

fn check(
    sample: &Sample,
    seeders: &[FakeSeeder],
    liars: &[u8],
    events: &[Value],
    pieces_max: usize,
) {
    let wanted: BTreeSet<Ipv4Addr> = liars
        .iter()
        .map(|at| match seeders[usize::from(*at)].addr.ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => unreachable!("seeders listen on IPv4"),
        })
        .collect();
    assert_eq!(banned(events), wanted, "exactly the liars are banned");
    let size = std::fs::metadata(&sample.content).unwrap().len();
    let wasted = wasted_bytes(events);
    // A piece that came whole twice had failed its hash; one that was still arriving when the liar was banned had not.
    let piece_bytes = u64::from(sample.piece_length);
    let served = |piece| seeders.iter().map(move |seeder| seeder.served_of(piece));
    let is_refetched = |piece: u32| served(piece).sum::<u64>() >= 2 * piece_bytes;
    for at in liars {
        let counts = seeders[usize::from(*at)].counts();
        let spoilt = counts.corrupt_pieces.lock().unwrap().clone();
        let pieces = spoilt.iter().filter(|piece| is_refetched(**piece)).count();
        println!(
            "liar {at}: {} corrupt blocks in {} pieces, {pieces} of them whole, {} connections",
            counts.corrupt_blocks.load(Ordering::SeqCst),
            spoilt.len(),
            counts.connections.load(Ordering::SeqCst)
        );
        assert!(
            (1..=pieces_max).contains(&pieces),
            "liar {at} spoilt {pieces} pieces"
        );
    }
    println!("wasted {wasted} of {size} bytes");
    assert!(wasted * 4 <= size, "wasted {wasted} of {size} bytes");
}

#[test]
fn three_liars_of_ten_are_banned_when_every_piece_has_one_source() {
    let sample = Sample::file(48 << 20, 65_536, &[]);
    let content = Content::of(&sample);
    let liars = [1, 4, 8];
    let seeders = ten(&content, 10, &liars, |behaviour| {
        behaviour.corrupt = Corrupt::Always;
        // Slow enough that all ten have a part in it.
        behaviour.bytes_per_s = Some(2 << 20);
    });
    let (_, events) = download(&sample, &seeders, &[]);
    check(&sample, &seeders, &liars, &events, BAD_PIECES_MAX);
}

#[test]
fn six_liars_of_twenty_are_banned_after_four_bad_pieces_each() {
    let sample = Sample::file(32 << 20, 65_536, &[]);
    let content = Content::of(&sample);
    assert_eq!(content.piece_count(), 512);
    let liars = [2, 5, 9, 12, 16, 19];
    let seeders = several(20, &content, 140, &liars, |behaviour| {
        behaviour.corrupt = Corrupt::OneIn(2);
        // Slow enough that all have a part in it.
        behaviour.bytes_per_s = Some(512 << 10);
    });
    let (_, events) = download(&sample, &seeders, &[]);
    check(&sample, &seeders, &liars, &events, BAD_PIECES_MAX);
}

#[test]
fn three_liars_of_ten_are_banned_when_every_piece_has_several_sources() {
    // In order, all peers work on the same few pieces.
    let sample = Sample::file(64 << 20, 1 << 20, &[]);
    let content = Content::of(&sample);
    let liars = [0, 5, 9];
    let seeders = ten(&content, 30, &liars, |behaviour| {
        behaviour.corrupt = Corrupt::OneIn(3);
        behaviour.bytes_per_s = Some(1 << 20);
    });
    let (_, events) = download(&sample, &seeders, &["--sequential"]);
    let sources = |piece| seeders.iter().filter(|s| s.served_of(piece) > 0).count();
    let shared = (0..content.piece_count()).filter(|piece| sources(*piece) > 1);
    let shared = shared.count();
    assert!(shared > 8, "only {shared} of 64 pieces had several sources");
    check(&sample, &seeders, &liars, &events, BAD_SHARED_PIECES_MAX);
}

#[test]
fn one_liar_among_peers_that_share_every_piece_is_found_and_nobody_else() {
    // Two pieces and ten peers: there is no piece that a single peer could have.
    let sample = Sample::file(8 << 20, 4 << 20, &[]);
    let content = Content::of(&sample);
    let seeders = ten(&content, 50, &[3], |behaviour| {
        behaviour.corrupt = Corrupt::OneIn(5);
        behaviour.bytes_per_s = Some(1 << 20);
    });
    let (_, events) = download(&sample, &seeders, &[]);
    let liar = seeders[3].counts();
    assert!(liar.corrupt_blocks.load(Ordering::SeqCst) > 0);
    assert_eq!(banned(&events), [Ipv4Addr::new(127, 0, 0, 53)].into());
}

#[test]
fn peers_that_unchoke_and_stay_silent_hold_nothing_up() {
    let sample = Sample::file(24 << 20, 262_144, &[]);
    let content = Content::of(&sample);
    let silent = |at: u8| {
        let mut behaviour = Behaviour::honest(at);
        behaviour.is_silent = true;
        FakeSeeder::start(&content, behaviour)
    };
    let mut honest = Behaviour::honest(73);
    honest.bytes_per_s = Some(8 << 20);
    let seeders = [
        silent(70),
        silent(71),
        silent(72),
        FakeSeeder::start(&content, honest),
    ];
    let (took, events) = download(&sample, &seeders, &[]);
    println!("took {took:?} where 3 s are needed");

    for seeder in &seeders[..3] {
        assert!(seeder.counts().requests.load(Ordering::SeqCst) > 0);
    }
    assert!(took < Duration::from_secs(10), "took {took:?}");
    assert!(banned(&events).is_empty());
}
