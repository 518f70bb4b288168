//! Too few file handles (HOSTILE.md L5).

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use super::start;
use super::support::fake_peer::{Answer, BLOCK, Behaviour, Content, FakeLeecher, FakeSeeder};
use super::support::raw_peer::dial_from;
use super::support::rpc::{DOWNLOADS, RpcDaemon, STOPPED, WAITS_FOR_CHECK};
use super::support::{Gyre, Sample, machine, program, sample::text};

/// Few, and enough for the program itself, some connections and some files.
const HANDLES: u32 = 64;
/// Torrents that run at once, however few handles there are.
const RUNS: usize = 8;
/// What accepting may take of a core while every accept fails.
const ACCEPT_SHARE_MAX: f64 = 0.05;
/// When newcomers must be served again once there are handles.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

fn limited(arguments: &[&str]) -> Gyre {
    let mut command = program::clean(std::process::Command::new("prlimit"));
    command.arg(format!("--nofile={HANDLES}"));
    command.arg(program::command().get_program());
    command.args(arguments);
    start(command)
}

/// A leecher that comes again until it is let in.
fn arrive(addr: SocketAddr, content: &Content) -> FakeLeecher {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(mut leecher) = FakeLeecher::connect(addr, content)
            && leecher.unchoked(Duration::from_secs(5))
        {
            return leecher;
        }
        assert!(Instant::now() < until, "nobody is let in");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fetches one block, which must come as it is.
#[track_caller]
fn assert_served(leecher: &mut FakeLeecher, content: &Content, piece: u32) {
    let got = leecher.fetch(piece, 0, BLOCK, Duration::from_secs(10));
    let wanted = content.block(piece, 0, BLOCK).unwrap();
    assert!(
        got == Answer::Block(wanted.to_vec()),
        "piece {piece} did not come"
    );
}

fn seeder(sample: &Sample) -> Gyre {
    limited(&[
        "seed",
        &text(&sample.torrent),
        "--data",
        &text(&sample.data),
        "--state",
        &text(&sample.dir("state")),
        "--port",
        "0",
        "--no-trackers",
    ])
}

#[test]
fn strangers_take_no_handles_that_files_and_peers_need() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let content = Content::of(&sample);
    let mut seeder = seeder(&sample);
    let addr = seeder.listening();
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let mut first = FakeLeecher::connect(addr, &content).unwrap();
    assert!(first.unchoked(Duration::from_secs(20)));
    let strangers: Vec<_> = (0..100)
        .map(|_| std::net::TcpStream::connect(addr).unwrap())
        .collect();
    // Its file was not open yet: there is a handle for it.
    assert_served(&mut first, &content, 3);
    std::thread::sleep(Duration::from_millis(500));
    assert!(seeder.open_files() < HANDLES as usize - 8);
    drop(strangers);
    let mut last = arrive(addr, &content);
    assert_served(&mut last, &content, 5);
}

#[test]
fn without_handles_accepting_waits_and_does_not_spin() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let content = Content::of(&sample);
    let mut seeder = seeder(&sample);
    let addr = seeder.listening();
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let mut first = FakeLeecher::connect(addr, &content).unwrap();
    assert!(first.unchoked(Duration::from_secs(20)));
    assert_served(&mut first, &content, 3);
    // Somebody takes the limit away: every accept fails from now on.
    limit(&seeder, 3);
    let waiting: Vec<_> = (0..20)
        .map(|at| dial_from([127, 8, 0, 1 + at].into(), addr, None).unwrap())
        .collect();
    let (cpu, at) = (seeder.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let spent = seeder.cpu() - cpu;
    let share = spent.as_secs_f64() / at.elapsed().as_secs_f64();
    println!("{:.1} % of a core", share * 100.0);
    assert!(share < ACCEPT_SHARE_MAX, "it spins: {spent:?}");
    assert_served(&mut first, &content, 4);
    limit(&seeder, HANDLES);
    let at = Instant::now();
    // Those that came while there was no handle are still there, and in its way.
    let mut last = arrive(addr, &content);
    assert_served(&mut last, &content, 5);
    println!("recovered after {:?}", at.elapsed());
    assert!(at.elapsed() <= RECOVERY_MAX, "{:?}", at.elapsed());
    drop(waiting);
    let warnings = seeder
        .seen()
        .iter()
        .filter(|event| event["event"] == "warning");
    assert_eq!(warnings.count(), 0, "no piece was called lost");
}

/// Changes the soft limit of a running program.
fn limit(gyre: &Gyre, handles: u32) {
    let (pid, limit) = (
        gyre.pid().to_string(),
        format!("--nofile={handles}:{HANDLES}"),
    );
    machine::system("prlimit", &["--pid", &pid, &limit].map(OsStr::new)).unwrap();
}

#[test]
fn a_torrent_of_more_files_than_handles_is_fetched_and_seeded() {
    let files: Vec<(String, usize)> = (0..150)
        .map(|n| (format!("d{}/f{n:03}", n % 7), 20_000))
        .collect();
    let files: Vec<(&str, usize)> = files
        .iter()
        .map(|(path, size)| (path.as_str(), *size))
        .collect();
    let sample = Sample::tree(&files, 32_768, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(150));
    let out = sample.dir("out");
    let mut gyre = limited(&[
        "download",
        &text(&sample.torrent),
        "-o",
        &text(&out),
        "--state",
        &text(&sample.dir("state")),
        "--port",
        "0",
        "--no-trackers",
        "--peer",
        &seeder.addr.to_string(),
    ]);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
    let errors = gyre.seen().iter().filter(|event| event["event"] == "error");
    assert_eq!(errors.count(), 0);
}

#[test]
fn more_torrents_than_handles_allow_wait_for_a_place_and_get_it() {
    let samples: Vec<Sample> = (0..RUNS + 4)
        .map(|n| Sample::file(100_000 + n, 16_384, &[]))
        .collect();
    let daemon = RpcDaemon::start_limited(128, &samples[0].dir("state"), &[]);
    // Without data and without peers each runs for ever.
    let add = |sample: &Sample| daemon.add(&sample.torrent, &sample.dir("empty"), false);
    let ids: Vec<u64> = samples.iter().map(add).collect();
    let (first, last) = ids.split_at(RUNS);
    for id in first {
        daemon.wait_status(*id, DOWNLOADS);
    }
    let waiting = |id: &u64| daemon.get(*id, "status") == WAITS_FOR_CHECK;
    assert!(last.iter().all(waiting), "more than {RUNS} run");
    // What waits can be stopped, and takes no place afterwards.
    daemon.call("torrent-stop", json!({ "ids": [last[0]] }));
    daemon.wait_status(last[0], STOPPED);
    daemon.call("torrent-stop", json!({ "ids": first }));
    for id in &last[1..] {
        daemon.wait_status(*id, DOWNLOADS);
    }
    assert_eq!(daemon.get(last[0], "status"), STOPPED);
    daemon.terminate();
}
