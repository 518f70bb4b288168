//! `--ip-filter`: listed addresses are neither dialed nor heard, and SIGHUP has the list read anew.

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::fake_peer::{Behaviour, Content, FakeSeeder};
use support::fake_tracker::{HttpTracker, ok, peers};
use support::raw_peer::{Hello, RawPeer};
use support::sample::text;
use support::{Gyre, Sample};

fn list(sample: &Sample, content: &str) -> PathBuf {
    let path = sample.folder.path().join("list.txt");
    std::fs::write(&path, content).unwrap();
    path
}

fn download(sample: &Sample, list: &Path, more: &[&str]) -> Gyre {
    let mut arguments = vec!["download".to_owned(), text(&sample.torrent)];
    arguments.extend(["-o".to_owned(), text(&sample.dir("out"))]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--ip-filter".to_owned(), text(list)]);
    arguments.extend(["--port", "0"].map(String::from));
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Gyre::start(&arguments)
}

fn seed(sample: &Sample, list: &Path) -> Gyre {
    Gyre::start(&[
        "seed",
        &text(&sample.torrent),
        "--data",
        &text(&sample.data),
        "--state",
        &text(&sample.dir("state")),
        "--ip-filter",
        &text(list),
        "--port",
        "0",
        "--bind",
        "127.0.0.1",
    ])
}

fn connections(seeder: &FakeSeeder) -> u64 {
    seeder.counts().connections.load(Ordering::SeqCst)
}

#[test]
fn listed_peers_are_not_dialed_whoever_names_them() {
    let sample = Sample::file(200_000, 1 << 14, &[]);
    let content = Content::of(&sample);
    let blocked = [
        FakeSeeder::start(&content, Behaviour::honest(21)),
        FakeSeeder::start(&content, Behaviour::honest(22)),
    ];
    let free = FakeSeeder::start(&content, Behaviour::honest(30));
    let tracker = HttpTracker::saying(ok(&peers(&[blocked[0].addr, free.addr])));
    let torrent = sample.folder.path().join("t.torrent");
    let made = support::program::command()
        .args([
            "create",
            "--quiet",
            "--piece-length",
            "16KiB",
            "-a",
            &tracker.url(),
            "-o",
            &text(&torrent),
        ])
        .arg(&sample.content)
        .output()
        .unwrap();
    assert!(made.status.success());
    let list = list(
        &sample,
        "some name:127.0.0.20-127.0.0.21\n127.000.000.022 - 127.0.0.29 , 10 , x\n",
    );
    let mut arguments = vec!["download".to_owned(), text(&torrent)];
    arguments.extend([
        "-o".to_owned(),
        text(&sample.dir("out")),
        "--ip-filter".to_owned(),
        text(&list),
    ]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port".to_owned(), "0".to_owned()]);
    arguments.extend(["--peer".to_owned(), blocked[1].addr.to_string()]);
    let mut gyre = Gyre::start(&arguments);
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&sample.dir("out")));
    assert_eq!(blocked.iter().map(connections).sum::<u64>(), 0);
    let last = gyre
        .seen()
        .iter()
        .rev()
        .find(|event| event["event"] == "progress")
        .unwrap();
    assert_eq!(last["peers_filtered"], 2, "{last}");
}

#[test]
fn listed_peers_that_connect_are_closed_before_any_byte() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let list = list(&sample, "127.0.0.40/30\n");
    let mut gyre = seed(&sample, &list);
    let to = gyre.listening();
    let hello = Hello::new(sample.info_hash);
    assert!(
        RawPeer::dial_at([127, 0, 0, 41], to, &hello).is_err(),
        "no handshake"
    );
    assert!(RawPeer::dial_at([127, 0, 0, 44], to, &hello).is_ok());
    let seen = gyre.wait_for("the count", |event| {
        event["peers_filtered"].as_u64() > Some(0)
    });
    assert_eq!(seen["peers_filtered"], 1);
}

#[test]
fn a_list_read_anew_closes_whom_it_has_and_lets_in_whom_it_has_no_more() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let path = list(&sample, "127.0.0.51\n");
    let mut gyre = seed(&sample, &path);
    let to = gyre.listening();
    let hello = Hello::new(sample.info_hash);
    let mut connected = RawPeer::dial_at([127, 0, 0, 52], to, &hello).unwrap();
    gyre.wait_for("a peer", |event| event["peers"] == 1);
    list(&sample, "127.0.0.52\n");
    gyre.signal(Signal::SIGHUP);
    connected.expect_close("it is listed now");
    assert!(RawPeer::dial_at([127, 0, 0, 52], to, &hello).is_err());
    let other = RawPeer::dial_at([127, 0, 0, 51], to, &hello);
    assert!(other.is_ok(), "it is listed no more");
    // One that cannot be read changes nothing.
    std::fs::remove_file(&path).unwrap();
    gyre.signal(Signal::SIGHUP);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("stays in force"), "{message}");
    assert!(RawPeer::dial_at([127, 0, 0, 52], to, &hello).is_err());
    assert!(RawPeer::dial_at([127, 0, 0, 51], to, &hello).is_ok());
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
}

#[test]
fn a_download_leaves_a_peer_that_is_listed_while_it_runs() {
    let sample = Sample::file(4_000_000, 1 << 16, &[]);
    let mut behaviour = Behaviour::honest(61);
    behaviour.bytes_per_s = Some(100_000);
    let slow = FakeSeeder::start(&Content::of(&sample), behaviour);
    let path = list(&sample, "# nobody yet\n");
    let peer = slow.addr.to_string();
    let mut gyre = download(&sample, &path, &["--peer", &peer]);
    gyre.wait_for("payload", |event| {
        event["downloaded_bytes"].as_u64() > Some(0)
    });
    list(&sample, "127.0.0.61");
    gyre.signal(Signal::SIGHUP);
    let after = gyre.wait_for("the end of it", |event| {
        event["event"] == "progress" && event["peers"] == 0 && event["peers_known"] == 0
    });
    assert!(after["peers_filtered"].as_u64() > Some(0), "{after}");
    let before = connections(&slow);
    for _ in 0..3 {
        assert_eq!(gyre.event("progress")["peers"], 0);
    }
    assert_eq!(connections(&slow), before, "it is not dialed again");
}

#[test]
fn lines_that_are_none_are_told_once_and_a_list_that_is_none_is_an_error() {
    let sample = Sample::file(100_000, 1 << 14, &[]);
    let path = list(&sample, "# x\n127.0.0.70\nnonsense\n\nmore nonsense\n");
    let mut gyre = seed(&sample, &path);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.starts_with("2 lines of ") && message.ends_with("line 3"),
        "{message}"
    );
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
    for (content, cause) in [
        (Some("<html>\n"), "none of its lines"),
        (None, "no such file"),
    ] {
        match content {
            Some(content) => drop(list(&sample, content)),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let mut gyre = seed(&sample, &path);
        let error = gyre.event("error");
        let message = error["message"].as_str().unwrap().to_lowercase();
        assert!(message.contains(cause), "{message}");
        assert!(!error["hint"].as_str().unwrap().is_empty());
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
    }
}
