//! Policies of `gyre daemon` that let only some of their torrents run at a time.

#[path = "support/mod.rs"]
mod support;

use nix::sys::signal::Signal;
use serde_json::json;
use support::Sample;
use support::rpc::{DOWNLOAD_WAITS, DOWNLOADS, RpcDaemon, SEED_WAITS, SEEDS};
use support::sample::text;

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
