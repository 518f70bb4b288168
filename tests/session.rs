//! The whole program over real sockets: a seeder and a leecher find each other by `--peer`.

mod support;

use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Gyre, Sample, sample::text};

#[test]
fn a_download_from_a_seeder_is_complete_and_equal() {
    let sample = Sample::tree(
        &[
            ("a/one", 1),
            ("b/empty", 0),
            ("c/big", 3 << 20),
            ("d", 70_001),
        ],
        65_536,
        &[],
    );
    let (state, out) = (text(&sample.dir("state")), sample.dir("out"));
    let torrent = text(&sample.torrent);
    let mut seed = Gyre::start(&[
        "seed",
        &torrent,
        "--data",
        &text(&sample.data),
        "--state",
        &state,
        "--port",
        "0",
    ]);
    let addr = seed.listening().to_string();
    let mut leech = Gyre::start(&[
        "download",
        &torrent,
        "-o",
        &text(&out),
        "--state",
        &state,
        "--port",
        "0",
        "--peer",
        &addr,
    ]);
    leech.event("complete");
    assert_eq!(leech.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
    seed.signal(Signal::SIGTERM);
    assert_eq!(seed.wait_exit(Duration::from_secs(10)), 143);
}
