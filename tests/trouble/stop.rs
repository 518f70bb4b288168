//! SIGTERM and SIGINT under load (HOSTILE.md L12). `GYRE_LONG=1` runs the full size.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::support::fake_peer::{Answer, BLOCK, Behaviour, Content, FakeLeecher, FakeSeeder};
use super::support::fake_tracker::{HttpTracker, Then, ok, peers};
use super::support::{Gyre, Sample, sample::text};
use super::{download, eventually, seed, start};

/// A download in full swing from several seeders, with leechers that take what it has.
fn busy(sample: &Sample, seeders: &[FakeSeeder], more: &[&str]) -> Gyre {
    let out = sample.dir("out");
    let mut command = download(sample, &out, &["--seed"]);
    for seeder in seeders {
        command.args(["--peer", &seeder.addr.to_string()]);
    }
    command.args(more);
    start(command)
}

#[test]
fn sigterm_under_load_saves_says_goodbye_and_leaves_in_time() {
    let is_long = std::env::var("GYRE_LONG").is_ok_and(|value| value == "1");
    let rounds = if is_long { 50 } else { 5 };
    // Each at another moment of the download.
    let slowest = (0..rounds).map(|round| stop_under_load(40 + round * 37 % 300));
    println!(
        "{rounds} of {rounds} left, the last after {:?}",
        slowest.max()
    );
}

/// Stops a download that also serves once it has so many pieces; how long that took.
fn stop_under_load(pieces: u64) -> Duration {
    let answer = ok(&peers(&[]));
    let tracker = HttpTracker::start(move |_, stream| {
        let _ = stream.write_all(&answer);
        Then::Close
    });
    let sample = Sample::file(128 << 20, 262_144, &[&tracker.url()]);
    let content = Content::of(&sample);
    let seeders: Vec<FakeSeeder> = (140..144)
        .map(|at| FakeSeeder::start(&content, Behaviour::honest(at)))
        .collect();
    let mut gyre = busy(&sample, &seeders, &["--limit-down", "30MB", "--no-ipv6"]);
    let addr = gyre.listening();
    let is_over = Arc::new(AtomicBool::new(false));
    let leechers: Vec<_> = (0..4)
        .map(|_| {
            let (content, is_over) = (content.clone(), is_over.clone());
            std::thread::spawn(move || take(addr, &content, &is_over))
        })
        .collect();
    gyre.wait_for("a part", |event| {
        event["pieces_have"].as_u64() >= Some(pieces)
    });
    let at = Instant::now();
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(12)), 143);
    let took = at.elapsed();
    assert!(took <= Duration::from_secs(10), "{took:?}");
    is_over.store(true, Ordering::SeqCst);
    let taken: u64 = leechers
        .into_iter()
        .map(|leecher| leecher.join().unwrap())
        .sum();
    assert!(taken > 0, "nobody was served");
    let events: Vec<_> =
        std::iter::from_fn(|| tracker.next_within(Duration::from_secs(1))).collect();
    assert!(events.iter().any(|get| get.is_stopped()), "{events:?}");
    let last = gyre
        .seen()
        .iter()
        .rev()
        .find(|event| event["event"] == "progress")
        .unwrap()
        .clone();
    // All that was verified is recorded: nothing is hashed again.
    let out = sample.dir("out");
    let mut again = start(seed(&sample, &out, &["--no-trackers"]));
    let figures = again.wait_for("seeding", |event| event["state"] == "seeding");
    assert_eq!(figures["pieces_checked"], 0);
    assert_eq!(figures["pieces_have"], last["pieces_have"]);
    took
}

/// Fetches whatever is offered until it is over; how many blocks came.
fn take(addr: std::net::SocketAddr, content: &Content, is_over: &AtomicBool) -> u64 {
    let mut taken = 0;
    while !is_over.load(Ordering::SeqCst) {
        let Some(mut leecher) = FakeLeecher::connect(addr, content) else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        leecher.listen(Duration::from_millis(200));
        if !leecher.unchoked(Duration::from_secs(3)) {
            continue;
        }
        let offered: Vec<u32> = leecher.offered().iter().copied().collect();
        for piece in offered {
            match leecher.fetch(piece, 0, BLOCK, Duration::from_secs(2)) {
                Answer::Block(block) => {
                    assert_eq!(block, content.block(piece, 0, BLOCK).unwrap());
                    taken += 1;
                }
                Answer::Closed => break,
                _ => {}
            }
        }
    }
    taken
}

#[test]
fn a_stop_does_not_wait_for_a_tracker_that_does_not_answer() {
    // It takes connections and is silent.
    let tracker = HttpTracker::start(|_, _| {
        std::thread::sleep(Duration::from_secs(60));
        Then::Close
    });
    let sample = Sample::file(1 << 20, 65_536, &[&tracker.url()]);
    let mut gyre = start(seed(&sample, &sample.data, &["--no-ipv6"]));
    tracker.next();
    let at = Instant::now();
    gyre.signal(Signal::SIGINT);
    assert_eq!(gyre.wait_exit(Duration::from_secs(12)), 130);
    assert!(at.elapsed() < Duration::from_secs(10), "{:?}", at.elapsed());
}

#[test]
fn the_second_signal_leaves_at_once() {
    let is_told = Arc::new(AtomicBool::new(false));
    let told = is_told.clone();
    // It answers `started` and never `stopped`: the clean end takes seconds.
    let answer = ok(&peers(&[]));
    let tracker = HttpTracker::start(move |get, stream| {
        if get.is_stopped() {
            told.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_secs(60));
        }
        let _ = stream.write_all(&answer);
        Then::Close
    });
    let sample = Sample::file(1 << 20, 65_536, &[&tracker.url()]);
    let mut gyre = start(seed(&sample, &sample.data, &["--no-ipv6"]));
    tracker.next();
    gyre.wait_for("seeding", |event| event["state"] == "seeding");
    std::thread::sleep(Duration::from_millis(300));
    gyre.signal(Signal::SIGTERM);
    eventually("`stopped`", Duration::from_secs(10), || {
        is_told.load(Ordering::SeqCst)
    });
    let at = Instant::now();
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(10)), 143);
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
}

#[test]
fn a_stop_in_the_middle_of_a_check_is_clean() {
    let sample = Sample::file(256 << 20, 1 << 20, &[]);
    let mut gyre = start(seed(
        &sample,
        &sample.data,
        &["--check", "full", "--no-trackers"],
    ));
    gyre.wait_for("checking", |event| event["state"] == "checking");
    gyre.signal(Signal::SIGINT);
    assert_eq!(gyre.wait_exit(Duration::from_secs(10)), 130);
    assert!(!gyre.stderr().contains("panicked") && !gyre.stderr().contains("fault"));
    let folder = text(&sample.dir("state"));
    assert!(std::path::Path::new(&folder).exists());
}
