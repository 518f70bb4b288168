//! Several commands at once.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::support::fake_peer::{Behaviour, Content, FakeSeeder};
use super::support::{Sample, sample::text};
use super::{assert_fails, download, seed, start};

#[test]
fn two_downloads_share_a_folder_and_a_state() {
    let first = Sample::file(8 << 20, 65_536, &[]);
    let second = Sample::tree(&[("a", 3 << 20), ("b/c", 2 << 20)], 65_536, &[]);
    let (one, two) = (Content::of(&first), Content::of(&second));
    let mut slow = Behaviour::honest(100);
    slow.bytes_per_s = Some(4 << 20);
    let seeders = [FakeSeeder::start(&one, slow), FakeSeeder::start(&two, slow)];
    let out = first.dir("out");
    let state = text(&first.dir("state"));
    let with = |sample: &Sample, seeder: &FakeSeeder| {
        let peer = seeder.addr.to_string();
        let mut command = download(sample, &out, &["--peer", &peer, "--no-trackers"]);
        command.args(["--state", &state]);
        start(command)
    };
    let mut left = with(&first, &seeders[0]);
    let mut right = with(&second, &seeders[1]);
    left.event("complete");
    right.event("complete");
    assert_eq!(left.wait_exit(Duration::from_secs(20)), 0);
    assert_eq!(right.wait_exit(Duration::from_secs(20)), 0);
    assert!(first.is_same_in(&out) && second.is_same_in(&out));
    // Each has its own record: neither hashes again.
    for sample in [&first, &second] {
        let mut command = seed(sample, &out, &["--no-trackers"]);
        command.args(["--state", &state]);
        let mut again = start(command);
        let figures = again.wait_for("seeding", |event| event["state"] == "seeding");
        assert_eq!(figures["pieces_checked"], 0);
    }
}

#[test]
fn the_second_download_of_a_torrent_says_who_has_it() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let out = sample.dir("out");
    let mut first = start(download(&sample, &out, &["--no-trackers"]));
    first.wait_for("start", |event| event["state"] == "stalled");
    let pid = first.pid().to_string();
    assert_fails(download(&sample, &out, &["--no-trackers"]), 1, &pid, &pid);
    assert_fails(
        download(&sample, &out, &["--no-trackers"]),
        1,
        "gyre download",
        "stop",
    );
    assert_fails(seed(&sample, &out, &["--no-trackers"]), 1, &pid, "stop");
    // Another state folder changes nothing: the files are the same.
    let mut other = download(&sample, &out, &["--no-trackers"]);
    other.args(["--state", &text(&sample.dir("other"))]);
    assert_fails(other, 1, &pid, &pid);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait_exit(Duration::from_secs(10)), 143);
    let mut next = start(download(&sample, &out, &["--no-trackers"]));
    next.wait_for("start", |event| event["state"] == "stalled");
}

#[test]
fn seeds_share_their_data_and_keep_a_download_out() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let mut one = start(seed(&sample, &sample.data, &["--no-trackers"]));
    let mut two = start(seed(&sample, &sample.data, &["--no-trackers"]));
    one.wait_for("seeding", |event| event["state"] == "seeding");
    two.wait_for("seeding", |event| event["state"] == "seeding");
    assert_fails(
        download(&sample, &sample.data, &["--no-trackers"]),
        1,
        "is in use by process",
        "stop",
    );
}
