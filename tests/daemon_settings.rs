//! What is set while `gyre daemon` runs: limits, trackers, the queue and ends of seeding, each in force at once and still
//! so after a restart.

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use support::fake_peer::Content;
use support::fake_tracker::{HttpTracker, ok, peers};
use support::program::{PATIENCE, command};
use support::raw_peer::{self, RawPeer};
use support::rpc::{DOWNLOAD_WAITS, DOWNLOADS, RpcDaemon as Daemon, SEED_WAITS, SEEDS};
use support::sample::text;
use support::{Gyre, Sample};

/// Fetches the sample from that address, with a command and a state of its own.
fn leech(sample: &Sample, from: SocketAddr) -> (Gyre, PathBuf) {
    let (state, out) = (text(&sample.dir("leech-state")), sample.dir("leech"));
    let leech = Gyre::start(&[
        "download",
        &text(&sample.torrent),
        "-o",
        &text(&out),
        "--state",
        &state,
        "--port",
        "0",
        "--peer",
        &from.to_string(),
        "--no-dht",
        "--no-lsd",
        "--no-trackers",
    ]);
    (leech, out)
}

#[test]
fn a_limit_of_one_torrent_holds_that_one_back_and_no_other() {
    let samples = [1, 2].map(|n| Sample::file((4 << 20) + n, 65_536, &[]));
    let state = samples[0].dir("state");
    let daemon = Daemon::start(&state, &[]);
    let ids = samples
        .each_ref()
        .map(|sample| daemon.add(&sample.torrent, &sample.data, false));
    ids.iter().for_each(|id| daemon.wait_status(*id, SEEDS));
    daemon.set(ids[0], json!({ "uploadLimit": 100, "uploadLimited": true }));
    assert_eq!(daemon.get(ids[0], "uploadLimit"), 100);
    let begun = Instant::now();
    let (mut slow, slow_out) = leech(&samples[0], daemon.addr);
    let (mut quick, quick_out) = leech(&samples[1], daemon.addr);
    assert_eq!(quick.wait_exit(PATIENCE), 0);
    assert!(samples[1].is_same_in(&quick_out));
    let sent = daemon.wait(ids[0], "uploadedEver", |sent| {
        sent.as_u64() >= Some(150_000)
    });
    let passed = begun.elapsed();
    let most = 100_000.0 * (passed.as_secs_f64() + 0.5);
    assert!(
        (sent.as_u64().unwrap() as f64) < most,
        "{sent} in {passed:?}"
    );
    daemon.set(ids[0], json!({ "uploadLimited": false }));
    assert_eq!(slow.wait_exit(PATIENCE), 0);
    assert!(samples[0].is_same_in(&slow_out));
    assert!(begun.elapsed() < Duration::from_secs(40), "it was lifted");
    daemon.terminate();

    let daemon = Daemon::start(&state, &[]);
    assert_eq!(daemon.get(ids[0], "uploadLimit"), 100);
    assert_eq!(daemon.get(ids[0], "uploadLimited"), false);
    daemon.terminate();
}

#[test]
fn a_torrent_above_the_sessions_limits_is_not_held_back_by_them() {
    let sample = Sample::file(6 << 20, 65_536, &[]);
    let daemon = Daemon::start(&sample.dir("state"), &["--limit-up", "20000"]);
    let id = daemon.add(&sample.torrent, &sample.data, false);
    daemon.wait_status(id, SEEDS);
    daemon.set(id, json!({ "honorsSessionLimits": false }));
    assert_eq!(daemon.get(id, "honorsSessionLimits"), false);
    let begun = Instant::now();
    let (mut leech, out) = leech(&sample, daemon.addr);
    assert_eq!(leech.wait_exit(PATIENCE), 0);
    assert!(sample.is_same_in(&out));
    // Within the limit it takes five minutes.
    assert!(begun.elapsed() < Duration::from_secs(100));
    daemon.terminate();
}

#[test]
fn a_download_keeps_to_its_own_limit() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let seed_state = sample.dir("seed");
    let seed = Daemon::start(&seed_state, &[]);
    let id = seed.add(&sample.torrent, &sample.data, false);
    seed.wait_status(id, SEEDS);
    let tracker = HttpTracker::saying(ok(&peers(&[seed.addr])));
    let daemon = Daemon::start(&sample.dir("state"), &[]);
    let own = daemon.add(&sample.torrent, &sample.dir("out"), true);
    let limits = json!({ "downloadLimit": 200, "downloadLimited": true });
    daemon.set(own, limits);
    daemon.set(own, json!({ "trackerAdd": [tracker.url()] }));
    daemon.call("torrent-start", json!({ "ids": [own] }));
    daemon.wait(own, "downloadedEver", |bytes| bytes.as_u64() > Some(0));
    let begun = Instant::now();
    let before = daemon.get(own, "downloadedEver").as_u64().unwrap();
    daemon.wait(own, "percentDone", |share| *share == 1.0);
    let least = (f64::from(1 << 20) - before as f64) / 200_000.0 - 1.5;
    assert!(
        begun.elapsed().as_secs_f64() > least,
        "{:?}",
        begun.elapsed()
    );
    daemon.terminate();
}

#[test]
fn with_a_limit_of_peers_those_above_it_are_sent_away() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let info_hash = Content::of(&sample).info_hash;
    let daemon = Daemon::start(&sample.dir("state"), &[]);
    let id = daemon.add(&sample.torrent, &sample.data, false);
    daemon.wait_status(id, SEEDS);
    let mut there: Vec<RawPeer> = (0..3)
        .map(|_| RawPeer::dial(daemon.addr, info_hash))
        .collect();
    daemon.wait(id, "peersConnected", |count| *count == 3);
    daemon.set(id, json!({ "peer-limit": 1 }));
    daemon.wait(id, "peersConnected", |count| *count == 1);
    assert_eq!(daemon.get(id, "peer-limit"), 1);
    there.clear();
    daemon.terminate();
}

#[test]
fn trackers_change_while_a_torrent_runs_and_while_it_sleeps_and_stay_changed() {
    let none = || HttpTracker::saying(ok(&peers(&[])));
    let (first, second, third) = (none(), none(), none());
    let sample = Sample::file(100_000, 16_384, &[&first.url()]);
    let state = sample.dir("state");
    let daemon = Daemon::start(&state, &[]);
    let id = daemon.add(&sample.torrent, &sample.data, false);
    assert_eq!(first.next().parameter("event"), Some("started"));
    daemon.wait_status(id, SEEDS);
    // Other settings are nothing to a tracker.
    daemon.set(id, json!({ "uploadLimit": 100 }));
    daemon.set(id, json!({ "trackerList": second.url() }));
    assert_eq!(second.next().parameter("event"), Some("started"));
    loop {
        let get = first.next();
        assert_ne!(get.parameter("event"), Some("started"));
        if get.is_stopped() {
            break;
        }
    }
    let listed = daemon.get(id, "trackerList");
    assert_eq!(listed.as_str().unwrap().trim(), second.url());
    daemon.terminate();
    while !second.next().is_stopped() {}

    // What has everything sleeps from the start on.
    let daemon = Daemon::start(&state, &[]);
    assert_eq!(second.next().parameter("event"), Some("started"));
    daemon.set(id, json!({ "trackerList": third.url() }));
    assert_eq!(third.next().parameter("event"), Some("started"));
    while !second.next().is_stopped() {}
    // The tracker counts an announce before its answer is here.
    let stats = daemon.wait(id, "trackerStats", |stats| {
        stats[0]["lastAnnounceSucceeded"] == true
    });
    assert_eq!(stats[0]["announce"], third.url(), "{stats}");
    let time = |field: &str| stats[0][field].as_i64().unwrap();
    let (asked, next) = (time("lastAnnounceTime"), time("nextAnnounceTime"));
    assert!(asked > 1_700_000_000 && next > asked + 60, "{stats}");
    assert_eq!(stats[0]["lastAnnouncePeerCount"], 0, "{stats}");
    daemon.wait(id, "secondsSeeding", |seconds| seconds.as_u64() > Some(0));
    daemon.terminate();
}

#[test]
fn a_torrent_that_is_added_again_brings_its_trackers() {
    let tracker = HttpTracker::saying(ok(&peers(&[])));
    let sample = Sample::file(100_000, 16_384, &["http://127.0.0.1:9/announce"]);
    let daemon = Daemon::start(&sample.dir("state"), &[]);
    let id = daemon.add(&sample.torrent, &sample.data, false);
    let link = daemon.wait(id, "magnetLink", |link| *link != "");
    let link = format!("{}&tr={}", link.as_str().unwrap(), tracker.url());
    let added = daemon.call("torrent-add", json!({ "filename": link }));
    assert_eq!(added["torrent-duplicate"]["id"], id, "{added}");
    let trackers = daemon.get(id, "trackers");
    assert_eq!(trackers[1]["announce"], tracker.url(), "{trackers}");
    assert_eq!(trackers[1]["tier"], 1);
    // The first one does not answer.
    assert_eq!(tracker.next().parameter("event"), Some("started"));
    daemon.terminate();
}

#[test]
fn downloads_and_seeds_wait_for_their_turn() {
    let samples = [1, 2, 3].map(|n| Sample::file(100_000 + n, 16_384, &[]));
    let state = samples[0].dir("state");
    let limits = ["--download-queue-size", "1", "--seed-queue-size", "1"];
    let daemon = Daemon::start(&state, &limits);
    let ids = samples
        .each_ref()
        .map(|sample| daemon.add(&sample.torrent, &sample.dir("empty"), false));
    daemon.wait_status(ids[0], DOWNLOADS);
    daemon.wait_status(ids[1], DOWNLOAD_WAITS);
    daemon.wait_status(ids[2], DOWNLOAD_WAITS);
    daemon.call("queue-move-top", json!({ "ids": [ids[2]] }));
    assert_eq!(daemon.get(ids[2], "queuePosition"), 0);
    assert_eq!(daemon.get(ids[0], "queuePosition"), 1);
    daemon.call("torrent-stop", json!({ "ids": [ids[0]] }));
    daemon.wait_status(ids[2], DOWNLOADS);
    daemon.wait_status(ids[1], DOWNLOAD_WAITS);
    daemon.call("torrent-start-now", json!({ "ids": [ids[0]] }));
    daemon.wait_status(ids[0], DOWNLOADS);
    daemon.wait_status(ids[2], DOWNLOADS);
    daemon.call("torrent-stop", json!({ "ids": [ids[0]] }));
    daemon.terminate();

    let daemon = Daemon::start(&state, &limits);
    daemon.wait_status(ids[2], DOWNLOADS);
    daemon.wait_status(ids[1], DOWNLOAD_WAITS);
    // More room is taken at once.
    daemon.call("session-set", json!({ "download-queue-size": 5 }));
    daemon.wait_status(ids[1], DOWNLOADS);
    daemon.call("session-set", json!({ "download-queue-size": 1 }));
    daemon.wait_status(ids[1], DOWNLOAD_WAITS);
    daemon.call(
        "session-set",
        json!({ "download-queue-enabled": false, "seed-queue-size": 1 }),
    );
    daemon.wait_status(ids[1], DOWNLOADS);
    daemon.terminate();
}

#[test]
fn seeds_wait_in_a_line_of_their_own() {
    let samples = [1, 2].map(|n| Sample::file(100_000 + n, 16_384, &[]));
    let state = samples[0].dir("state");
    let daemon = Daemon::start(&state, &[]);
    let ids = samples
        .each_ref()
        .map(|sample| daemon.add(&sample.torrent, &sample.data, false));
    ids.iter().for_each(|id| daemon.wait_status(*id, SEEDS));
    let queue = json!({ "seed-queue-size": 1, "seed-queue-enabled": true });
    daemon.call("session-set", queue);
    daemon.wait_status(ids[1], SEED_WAITS);
    daemon.wait_status(ids[0], SEEDS);
    daemon.terminate();
    // It was remembered.
    let daemon = Daemon::start(&state, &[]);
    daemon.wait_status(ids[1], SEED_WAITS);
    daemon.wait_status(ids[0], SEEDS);
    daemon.call("torrent-stop", json!({ "ids": [ids[0]] }));
    daemon.wait_status(ids[1], SEEDS);
    daemon.terminate();
}

#[test]
fn seeding_ends_by_ratio_and_idleness_but_not_of_torrents_that_never_end() {
    let samples = [1, 2, 3].map(|n| Sample::file(100_000 + n, 16_384, &[]));
    let state = samples[0].dir("state");
    let daemon = Daemon::start(&state, &["--seed-idle", "500ms"]);
    let ids = samples
        .each_ref()
        .map(|sample| daemon.add(&sample.torrent, &sample.data, true));
    daemon.set(ids[1], json!({ "seedIdleMode": 2 }));
    daemon.set(
        ids[2],
        json!({ "seedIdleMode": 2, "seedRatioMode": 1, "seedRatioLimit": 0 }),
    );
    daemon.call("torrent-start", json!({ "ids": ids }));
    for id in [ids[0], ids[2]] {
        daemon.wait(id, "isFinished", |is_finished| *is_finished == true);
    }
    assert_eq!(daemon.get(ids[1], "status"), SEEDS);
    // While it runs: from never to a ratio that it has.
    daemon.call(
        "session-set",
        json!({ "seedRatioLimit": 0, "seedRatioLimited": true }),
    );
    daemon.wait(ids[1], "isFinished", |is_finished| *is_finished == true);
    daemon.set(ids[1], json!({ "seedRatioMode": 2 }));
    daemon.call("torrent-start", json!({ "ids": [ids[1]] }));
    daemon.wait_status(ids[1], SEEDS);
    assert_eq!(daemon.get(ids[1], "seedRatioMode"), 2);
    daemon.terminate();
}

#[test]
fn settings_of_a_state_file_that_turns_out_to_be_damaged_are_forgotten() {
    let sample = Sample::file(1_000, 16_384, &[]);
    let (state, config) = (sample.dir("state"), sample.dir("").join("gyre.toml"));
    std::fs::write(&config, "limit-up = \"1000000\"\n").unwrap();
    let path = text(&config);
    let daemon = Daemon::start(&state, &["--config", &path]);
    daemon.add(&sample.torrent, &sample.data, false);
    daemon.call("session-set", json!({ "speed-limit-up": 500 }));
    daemon.terminate();
    // What is damaged is the torrent's row: the settings, which are read before it, are as they were.
    let file = state.join("daemon.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    let name = b"\"name\":\"sample.bin\"";
    let rows = bytes.windows(name.len()).enumerate();
    let rows: Vec<usize> = rows
        .filter(|(_, at)| at == name)
        .map(|(at, _)| at)
        .collect();
    assert!(!rows.is_empty());
    for at in rows {
        bytes[at + 9] ^= 1;
    }
    std::fs::write(&file, bytes).unwrap();

    // The first to read it ends beside the reading, for a reason of its own.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut program = command();
    program.args(["daemon", "--port", &port, "--bind", "127.0.0.1"]);
    program.args(["--config", &path, "--api", "off"]);
    program.args(["--dht", "false", "--lsd", "false", "--port-map", "false"]);
    program.args(["--downloads", &text(&sample.data), "--state", &text(&state)]);
    let mut first = Gyre::spawn(program);
    assert_eq!(first.wait_exit(PATIENCE), 1);
    let told = first.stderr();
    let aside = state.join("daemon.redb.bad-1");
    assert!(told.contains(&text(&aside)), "{told}");
    for _ in 0..2 {
        let daemon = Daemon::start(&state, &["--config", &path]);
        let known = daemon.call("torrent-get", json!({ "fields": ["id"] }));
        assert_eq!(known["torrents"], json!([]));
        assert_eq!(daemon.session("speed-limit-up"), 1_000);
        daemon.terminate();
    }
    assert!(aside.exists());
    assert!(!state.join("daemon.redb.bad-2").exists());
}

#[test]
fn what_is_set_survives_a_restart_until_the_settings_file_says_something_else() {
    let sample = Sample::file(1_000, 16_384, &[]);
    let (state, file) = (sample.dir("state"), sample.dir("").join("gyre.toml"));
    std::fs::write(&file, "limit-up = \"1000000\"\nlimit-down = \"1000000\"\n").unwrap();
    let path = text(&file);
    let daemon = Daemon::start(&state, &["--config", &path]);
    assert_eq!(daemon.session("speed-limit-up"), 1_000);
    let change = json!({
        "speed-limit-up": 500, "speed-limit-down": 600, "idle-seeding-limit-enabled": true,
        "alt-speed-up": 7, "start-added-torrents": false,
    });
    daemon.call("session-set", change);
    daemon.terminate();

    let daemon = Daemon::start(&state, &["--config", &path]);
    assert_eq!(daemon.session("speed-limit-up"), 500);
    assert_eq!(daemon.session("speed-limit-down"), 600);
    assert_eq!(daemon.session("idle-seeding-limit"), 30);
    assert_eq!(daemon.session("alt-speed-up"), 7);
    assert_eq!(daemon.session("start-added-torrents"), false);
    std::fs::write(&file, "limit-up = \"2000000\"\nlimit-down = \"1000000\"\n").unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    let end = Instant::now() + PATIENCE;
    while daemon.session("speed-limit-up") != 2_000 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(daemon.session("speed-limit-down"), 600);
    daemon.terminate();
}

#[test]
fn files_of_high_priority_are_asked_for_first_and_those_of_low_priority_last() {
    let pieces = 8;
    let length = pieces * 16_384;
    let files = [("a", length), ("b", length), ("c", length)];
    let sample = Sample::tree(&files, 16_384, &[]);
    let content = Content::of(&sample);
    let daemon = Daemon::start(&sample.dir("state"), &[]);
    let id = daemon.add(&sample.torrent, &sample.dir("out"), true);
    daemon.set(id, json!({ "priority-low": [0], "priority-high": [2] }));
    daemon.call("torrent-start", json!({ "ids": [id] }));
    daemon.wait_status(id, DOWNLOADS);
    let mut peer = RawPeer::dial(daemon.addr, content.info_hash);
    peer.send(&raw_peer::message(5, &[0xff; 3]));
    peer.send(&raw_peer::message(1, &[]));
    let mut levels = Vec::new();
    while levels.len() < 3 * pieces {
        let asked = peer.wait_for(6).numbers();
        let (piece, begin, length) = (asked[0], asked[1], asked[2]);
        levels.push(2 - piece as usize / pieces);
        let block = content.block(piece, begin, length).unwrap();
        peer.send(&raw_peer::piece(piece, begin, block));
    }
    assert!(levels.is_sorted(), "{levels:?}");
    daemon.wait(id, "percentDone", |share| *share == 1.0);
    daemon.terminate();
}

#[test]
fn limits_of_torrents_are_set_from_the_command_line() {
    let sample = Sample::file(1_000, 16_384, &[]);
    let state = sample.dir("state");
    let daemon = Daemon::start(&state, &[]);
    let id = daemon.add(&sample.torrent, &sample.data, false);
    let run = |words: &[&str]| {
        let mut ctl = command();
        ctl.args(["ctl", "--state"]).arg(&state).args(words);
        let output = ctl.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let told = run(&["limit", &id.to_string(), "--up", "2000000"]);
    assert!(
        told.contains("sample.bin: down no limit, up 1.91 MiB/s"),
        "{told}"
    );
    assert_eq!(daemon.get(id, "uploadLimit"), 2_000);
    assert_eq!(daemon.get(id, "uploadLimited"), true);
    assert_eq!(daemon.session("speed-limit-up-enabled"), false);
    daemon.terminate();
}

#[test]
fn of_several_torrents_those_that_cannot_be_added_are_named_and_the_others_added() {
    let sample = Sample::file(1_000, 16_384, &[]);
    let state = sample.dir("state");
    let daemon = Daemon::start(&state, &[]);
    let (missing, noise) = (
        sample.folder.path().join("none"),
        sample.folder.path().join("noise"),
    );
    std::fs::write(&noise, "noise").unwrap();
    let mut ctl = command();
    ctl.args(["ctl", "--state"]).arg(&state).args(["add", "-o"]);
    ctl.arg(&sample.data)
        .args([&missing, &noise, &sample.torrent]);
    let output = ctl.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    for source in [&missing, &noise] {
        assert!(told.contains(&text(source)), "{told}");
    }
    let hint = "hint: name a .torrent file or a magnet link";
    assert_eq!(told.matches(hint).count(), 2, "{told}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.ends_with(" added\n"), "{told}");
    daemon.terminate();
}

#[test]
fn priorities_of_files_are_remembered_and_shown() {
    let sample = Sample::tree(&[("a", 40_000), ("b", 40_000)], 16_384, &[]);
    let state = sample.dir("state");
    let daemon = Daemon::start(&state, &[]);
    let id = daemon.add(&sample.torrent, &sample.dir("out"), false);
    daemon.set(
        id,
        json!({ "priority-high": [1], "priority-low": [0], "bandwidthPriority": 1 }),
    );
    assert_eq!(daemon.get(id, "priorities"), json!([-1, 1]));
    let refused = daemon.ask("torrent-set", json!({ "ids": [id], "priority-high": [2] }));
    assert!(refused.unwrap_err().contains("no file 2"));
    daemon.terminate();
    let daemon = Daemon::start(&state, &[]);
    assert_eq!(daemon.get(id, "priorities"), json!([-1, 1]));
    assert_eq!(daemon.get(id, "bandwidthPriority"), 1);
    daemon.terminate();
}
