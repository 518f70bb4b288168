//! Trackers that are down and swarms without peers: told, waited out, given up on only when asked to (HOSTILE.md K9).

use std::io::Write;
use std::time::{Duration, Instant};

use super::support::Sample;
use super::support::fake_peer::{Behaviour, Content, FakeSeeder};
use super::support::fake_tracker::{HttpTracker, Reserved, Then, ok, peers};
use super::{download, seed, start};

#[test]
fn a_tracker_that_is_down_is_told_and_found_when_it_comes_up() {
    let reserved = Reserved::new();
    let url = format!("http://{}/announce", reserved.addr);
    let sample = Sample::file(2 << 20, 65_536, &[&url]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(130));
    let out = sample.dir("out");
    let mut gyre = start(download(&sample, &out, &["--no-ipv6"]));
    let error = gyre.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("tracker"), "{message}");
    assert!(
        !message.contains("announce"),
        "a URL may hold a passkey: {message}"
    );
    assert_eq!(error["final"], false);
    let answer = ok(&peers(&[seeder.addr]));
    let tracker = HttpTracker::start_on(reserved.listen(), move |_, stream| {
        let _ = stream.write_all(&answer);
        Then::Close
    });
    // By itself, within the back-off after a first failure.
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
    let first = tracker.next();
    assert_eq!(first.parameter("event"), Some("started"));
    let is_same = |event: &&serde_json::Value| event["message"] == error["message"];
    assert_eq!(gyre.seen().iter().filter(is_same).count(), 1, "told once");
}

#[test]
fn a_tracker_that_stays_down_is_given_up_on_when_asked_to() {
    let reserved = Reserved::new();
    let url = format!("http://{}/announce", reserved.addr);
    let sample = Sample::file(2 << 20, 65_536, &[&url, "udp://127.0.0.1:1/announce"]);
    let started = Instant::now();
    let mut gyre = start(download(&sample, &sample.dir("out"), &["--give-up", "3s"]));
    let last = gyre.wait_for("the end", |event| event["final"] == true);
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("gave up"), "{message}");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(15),
        "{took:?}"
    );
    let ended = gyre.seen().last().unwrap();
    assert_eq!(ended["outcome"], "failed");
}

#[test]
fn a_swarm_without_peers_is_given_up_on_when_asked_to() {
    let sample = Sample::file(2 << 20, 65_536, &[]);
    let options = ["--no-trackers", "--give-up", "2s"];
    let mut gyre = start(download(&sample, &sample.dir("out"), &options));
    let error = gyre.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("gave up"), "{message}");
    assert!(
        error["hint"].as_str().unwrap().contains("same command"),
        "{error}"
    );
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
}

#[test]
fn a_peer_that_vanishes_is_found_again_and_giving_up_counts_from_its_last_byte() {
    let sample = Sample::file(8 << 20, 65_536, &[]);
    let content = Content::of(&sample);
    let mut slow = Behaviour::honest(131);
    slow.bytes_per_s = Some(2 << 20);
    let first = FakeSeeder::start(&content, slow);
    let second = FakeSeeder::start(
        &content,
        Behaviour {
            ip: [127, 0, 0, 132].into(),
            ..slow
        },
    );
    let out = sample.dir("out");
    let (one, two) = (first.addr.to_string(), second.addr.to_string());
    // Longer than the silence, shorter than the whole.
    let options = [
        "--no-trackers",
        "--peer",
        &one,
        "--peer",
        &two,
        "--give-up",
        "3s",
    ];
    let mut gyre = start(download(&sample, &out, &options));
    gyre.wait_for("a part", |event| event["pieces_have"].as_u64() >= Some(20));
    drop(first);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
}

#[test]
fn giving_up_says_that_the_peers_lack_what_is_missing() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let partial = sample.dir("partial");
    let content = std::fs::read(&sample.content).unwrap();
    std::fs::write(partial.join("sample.bin"), &content[..content.len() / 2]).unwrap();
    let mut seeder = start(seed(&sample, &partial, &["--no-trackers"]));
    let peer = seeder.listening().to_string();
    let options = ["--no-trackers", "--peer", &peer, "--give-up", "3s"];
    let mut gyre = start(download(&sample, &sample.dir("out"), &options));
    let error = gyre.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("has none of the 8 pieces that are missing"),
        "{message}"
    );
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
}
