//! Policies of `gyre daemon` that let only some of their torrents run, or be uploaded, at a time.

#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use support::Sample;
use support::program::PATIENCE;
use support::raw_peer::{RawPeer, message};
use support::rpc::{DOWNLOAD_WAITS, DOWNLOADS, RpcDaemon, SEED_WAITS, SEEDS};
use support::sample::text;

/// The message `interested` (BEP 3).
const INTERESTED: u8 = 2;

const ONE_DOWNLOAD: &str =
    "[[policy]]\nname = \"slow\"\nlabel = \"slow\"\ndownload-queue-size = 1\n";

/// Torrents without data and without peers: they download for ever.
fn add(daemon: &RpcDaemon, sample: &Sample, label: Option<&str>) -> u64 {
    let added = daemon.call(
        "torrent-add",
        json!({
            "filename": text(&sample.torrent), "download-dir": text(&sample.dir("empty")),
            "labels": label.into_iter().collect::<Vec<_>>(),
        }),
    );
    added["torrent-added"]["id"].as_u64().unwrap()
}

#[test]
fn a_policys_torrents_wait_for_each_other_and_for_nobody_else() {
    let samples = [1, 2, 3, 4].map(|n| Sample::file(100_000 + n, 16_384, &[]));
    let state = samples[0].dir("state");
    let file = samples[0].dir("config").with_extension("toml");
    std::fs::write(&file, ONE_DOWNLOAD).unwrap();
    let options = ["--config", &text(&file)];
    let daemon = RpcDaemon::start(&state, &options);
    let [a, b, c] = [0, 1, 2].map(|at: usize| add(&daemon, &samples[at], Some("slow")));
    let other = add(&daemon, &samples[3], None);
    daemon.wait_status(a, DOWNLOADS);
    daemon.wait_status(b, DOWNLOAD_WAITS);
    daemon.wait_status(c, DOWNLOAD_WAITS);
    daemon.wait_status(other, DOWNLOADS);
    let policy = daemon.call("policy-get", json!({}))["policies"][0].clone();
    assert_eq!(
        (
            &policy["torrents"],
            &policy["waiting"],
            &policy["downloadQueueSize"]
        ),
        (&json!(3), &json!(2), &json!(1)),
        "{policy}"
    );

    let metrics = daemon.text("/metrics");
    for line in [
        "torrents{policy=\"slow\"} 3",
        "torrents_waiting{policy=\"slow\"} 2",
        "in_force{policy=\"slow\"} 1",
    ] {
        assert!(
            metrics.contains(&format!("\ngyre_policy_{line}\n")),
            "{metrics}"
        );
    }
    assert_eq!(daemon.get(a, "policies"), json!(["slow"]));
    assert_eq!(daemon.get(other, "policies"), json!([]));

    // The order is that of the queue, and whoever runs goes on.
    daemon.call("queue-move-top", json!({ "ids": [c] }));
    assert_eq!(daemon.get(c, "queuePosition"), 0);
    daemon.wait_status(a, DOWNLOADS);
    daemon.call("torrent-stop", json!({ "ids": [a] }));
    daemon.wait_status(c, DOWNLOADS);
    daemon.wait_status(b, DOWNLOAD_WAITS);
    // Without the label it waits for nobody.
    daemon.call("torrent-set", json!({ "ids": [b], "labels": [] }));
    daemon.wait_status(b, DOWNLOADS);
    daemon.call("torrent-set", json!({ "ids": [b], "labels": ["slow"] }));
    daemon.call("torrent-start", json!({ "ids": [a] }));
    daemon.wait_status(a, DOWNLOAD_WAITS);
    daemon.terminate();

    // As remembered: only the first of the queue runs.
    let daemon = RpcDaemon::start(&state, &options);
    daemon.wait_status(c, DOWNLOADS);
    daemon.wait_status(a, DOWNLOAD_WAITS);
    daemon.wait_status(b, DOWNLOAD_WAITS);
    daemon.wait_status(other, DOWNLOADS);
    // More places, then none that are counted.
    std::fs::write(&file, ONE_DOWNLOAD.replace("= 1", "= 2")).unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    daemon.wait_status(a, DOWNLOADS);
    daemon.wait_status(b, DOWNLOAD_WAITS);
    std::fs::write(&file, ONE_DOWNLOAD).unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    daemon.wait_status(a, DOWNLOAD_WAITS);
    std::fs::write(&file, "").unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    daemon.wait_status(a, DOWNLOADS);
    daemon.wait_status(b, DOWNLOADS);
    daemon.terminate();
}

#[test]
fn seeds_of_a_policy_wait_in_a_line_of_their_own() {
    let samples = [1, 2].map(|n| Sample::file(100_000 + n, 16_384, &["http://127.0.0.9:1/a"]));
    let file = samples[0].dir("config").with_extension("toml");
    let policy = "[[policy]]\nname = \"a\"\ntracker = \"127.0.0.9\"\nseed-queue-size = 1\ndownload-queue-size = 1\n";
    std::fs::write(&file, policy).unwrap();
    let daemon = RpcDaemon::start(&samples[0].dir("state"), &["--config", &text(&file)]);
    let empty = add(
        &daemon,
        &Sample::file(50_000, 16_384, &["http://127.0.0.9:1/a"]),
        None,
    );
    let [a, b] = [0, 1].map(|at: usize| daemon.add(&samples[at].torrent, &samples[at].data, false));
    daemon.wait_status(empty, DOWNLOADS);
    // Nobody knows before its turn what is there.
    daemon.wait_status(a, DOWNLOAD_WAITS);
    daemon.call("torrent-stop", json!({ "ids": [empty] }));
    daemon.wait_status(a, SEEDS);
    daemon.wait_status(b, SEED_WAITS);
    daemon.call("torrent-stop", json!({ "ids": [a] }));
    daemon.wait_status(b, SEEDS);
    daemon.terminate();
}

/// Peers of each torrent that are not choked.
fn unchoked(daemon: &RpcDaemon, ids: &[u64]) -> Vec<usize> {
    let peers = |id: &u64| daemon.get(*id, "peers").as_array().unwrap().clone();
    let count = |id: &u64| {
        let peers = peers(id);
        peers
            .iter()
            .filter(|peer| peer["peerIsChoked"] == false)
            .count()
    };
    // They are asked one after the other: what is the same twice was so at one time.
    let mut before: Vec<usize> = ids.iter().map(count).collect();
    loop {
        let now: Vec<usize> = ids.iter().map(count).collect();
        if now == before {
            return now;
        }
        before = now;
    }
}

fn wait_unchoked(daemon: &RpcDaemon, ids: &[u64], is_it: impl Fn(&[usize]) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = unchoked(daemon, ids);
        // The first two have three slots in common.
        assert!(now[0] + now[1] <= 3, "{now:?}");
        if is_it(&now) {
            return;
        }
        assert!(Instant::now() < end, "{now:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn torrents_of_a_policy_share_its_upload_slots() {
    let samples = [1, 2, 3].map(|n| Sample::file(100_000 + n, 16_384, &[]));
    let file = samples[0].dir("config").with_extension("toml");
    let policy = "[[policy]]\nname = \"few\"\nlabel = \"few\"\nupload-slots = 3\n";
    std::fs::write(&file, policy).unwrap();
    let daemon = RpcDaemon::start(&samples[0].dir("state"), &["--config", &text(&file)]);
    let ids = samples
        .each_ref()
        .map(|sample| daemon.add(&sample.torrent, &sample.data, false));
    ids.iter().for_each(|id| daemon.wait_status(*id, SEEDS));
    for id in &ids[..2] {
        daemon.set(*id, json!({ "labels": ["few"] }));
    }
    let come = |sample: &Sample| {
        let mut peer = RawPeer::dial(daemon.addr, sample.info_hash);
        peer.send(&message(INTERESTED, &[]));
        peer
    };
    let come = |at: usize| -> Vec<RawPeer> { (0..4).map(|_| come(&samples[at])).collect() };
    let first = come(0);
    wait_unchoked(&daemon, &ids, |now| now[0] == 3);
    // Others that want some get theirs, and a torrent without the label has its own.
    let _others = [come(1), come(2)];
    wait_unchoked(&daemon, &ids, |now| {
        now[0] + now[1] == 3 && now[1] > 0 && now[2] == 4
    });
    drop(first);
    wait_unchoked(&daemon, &ids, |now| now[1] == 3);
    daemon.set(ids[1], json!({ "labels": [] }));
    wait_unchoked(&daemon, &[ids[0], ids[0], ids[1]], |now| now[2] == 4);
    daemon.terminate();
}

/// By the device of their data, through a link too; which one that is, is known before a torrent begins.
#[test]
fn torrents_on_a_device_wait_for_each_other() {
    const MOUNT: &str = "/dev/shm";
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    let samples = [1, 2, 3].map(|n| Sample::file(100_000 + n, 16_384, &[]));
    let own = samples[0].folder.path();
    if device(Path::new(MOUNT)) == device(own)
        || device(Path::new(MOUNT)) == device(Path::new("/dev"))
    {
        eprintln!("skipped: {MOUNT} is no file system of its own");
        return;
    }
    let there = tempfile::tempdir_in(MOUNT).unwrap();
    let link = own.join("link");
    std::os::unix::fs::symlink(there.path(), &link).unwrap();
    let file = samples[0].dir("config").with_extension("toml");
    let policy = |device: &str| {
        format!("[[policy]]\nname = \"disk\"\ndevice = \"{device}\"\ndownload-queue-size = 1\n")
    };
    std::fs::write(&file, policy(MOUNT)).unwrap();
    let (state, options) = (samples[0].dir("state"), ["--config", &text(&file)]);
    let daemon = RpcDaemon::start(&state, &options);
    let [a, b] = [there.path(), &link].map(|folder| folder.join("new"));
    let [a, b, other] = [(0, a), (1, b), (2, samples[2].dir("empty"))]
        .map(|(at, folder): (usize, PathBuf)| daemon.add(&samples[at].torrent, &folder, false));
    daemon.wait_status(a, DOWNLOADS);
    daemon.wait_status(b, DOWNLOAD_WAITS);
    daemon.wait_status(other, DOWNLOADS);
    let told = daemon.call("policy-get", json!({}))["policies"][0].clone();
    assert_eq!(
        (&told["torrents"], &told["device"]),
        (&json!(2), &json!(MOUNT)),
        "{told}"
    );
    daemon.terminate();

    let daemon = RpcDaemon::start(&state, &options);
    daemon.wait_status(a, DOWNLOADS);
    daemon.wait_status(b, DOWNLOAD_WAITS);
    // Nothing is mounted there: nobody waits for it, and the log says so.
    std::fs::write(&file, policy(&text(there.path()))).unwrap();
    daemon.gyre.signal(Signal::SIGHUP);
    daemon.wait_status(b, DOWNLOADS);
    let end = Instant::now() + PATIENCE;
    while !daemon
        .gyre
        .stderr()
        .contains("its device is not mounted there")
    {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.terminate();
}
