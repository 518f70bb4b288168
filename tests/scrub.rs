//! Torrents read again in the background: what rots on the disk is found before a peer asks for it, and fetched again
//! (HOSTILE.md L18).

#[path = "support/mod.rs"]
mod support;

use std::fs::{File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use support::program::PATIENCE;
use support::raw_peer::RawPeer;
use support::sample::text;
use support::{Daemon, Gyre, Sample};

const PIECE: usize = 16_384;
const PIECES: u64 = 20;

fn start(sample: &Sample) -> Daemon {
    let state = sample.folder.path().join("state");
    let options = ["--scrub-rate", "1GiB", "--scrub-period", "1s"];
    Daemon::start_with(&state, &options)
}

fn sample() -> Sample {
    let sample = Sample::file(PIECES as usize * PIECE, PIECE as u32, &[]);
    // Where the daemon has it; a copy is left to seed from.
    let copy = sample.dir("copy");
    let name = sample.content.file_name().unwrap();
    std::fs::copy(&sample.content, copy.join(name)).unwrap();
    sample
}

/// Other bytes in a piece, as a disk would have it: nothing else tells of them.
fn rot(path: &Path, piece: usize) {
    let file = File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"rotten", (piece * PIECE + 77) as u64)
        .unwrap();
    file.set_times(FileTimes::new().set_modified(modified))
        .unwrap();
}

#[track_caller]
fn count_until(daemon: &mut Daemon, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    // The reading comes behind all else that this machine does.
    let end = Instant::now() + 5 * PATIENCE;
    loop {
        let count = daemon.ask(json!({ "do": "count" }));
        if is_it(&count) {
            return count;
        }
        assert!(
            Instant::now() < end,
            "{what}: {count}\n{}",
            daemon.gyre.stderr()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn scrubbed(daemon: &mut Daemon) -> u64 {
    let count = daemon.ask(json!({ "do": "count" }));
    count["scrubbed_bytes"].as_u64().unwrap()
}

/// Waits until so much more was read.
#[track_caller]
fn read_more(daemon: &mut Daemon, bytes: u64) {
    let end = scrubbed(daemon) + bytes;
    count_until(daemon, "read again", |count| {
        count["scrubbed_bytes"].as_u64() >= Some(end)
    });
}

#[test]
fn what_rots_under_a_seeder_is_found_and_fetched_again() {
    let sample = sample();
    let good = std::fs::read(&sample.content).unwrap();
    let mut daemon = start(&sample);
    let addr = daemon.gyre.listening();
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    read_more(&mut daemon, PIECES * PIECE as u64);
    assert_eq!(daemon.ask(json!({ "do": "count" }))["rotten_pieces"], 0);
    rot(&sample.content, 7);
    count_until(&mut daemon, "rot", |count| count["rotten_pieces"] == 1);
    daemon.torrent_until("dropped", |torrent| torrent["pieces_have"] == PIECES - 1);
    let state = sample.dir("seeder.state");
    let _seeder = Gyre::start(&[
        "seed",
        &text(&sample.torrent),
        "--data",
        &text(&sample.folder.path().join("copy")),
        "--state",
        &text(&state),
        "--port",
        "0",
        "--no-trackers",
        "--bind",
        "127.0.0.1",
        "--buffers",
        "4MiB",
        "--peer",
        &addr.to_string(),
    ]);
    daemon.torrent_until("mended", |torrent| torrent["pieces_have"] == PIECES);
    assert!(
        std::fs::read(&sample.content).unwrap() == good,
        "{info_hash}"
    );
    daemon.terminate();
}

#[test]
fn what_rots_while_a_torrent_is_stopped_is_not_believed_when_it_starts() {
    let sample = sample();
    let mut daemon = start(&sample);
    let addr = daemon.gyre.listening();
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    daemon.ask(json!({ "do": "stop", "info_hash": info_hash }));
    daemon.torrent_until("stopped", |torrent| torrent["activity"] == "Stopped");
    rot(&sample.content, 11);
    // The session has heard of it once it is found again.
    count_until(&mut daemon, "rot", |count| {
        count["rotten_pieces"].as_u64() >= Some(2)
    });
    daemon.ask(json!({ "do": "start", "info_hash": info_hash }));
    daemon.torrent_until("started", |torrent| torrent["activity"] == "Running");
    let torrent = daemon.torrent_until("looked at", |torrent| {
        torrent["state"] == "stalled" || torrent["state"] == "seeding"
    });
    assert_eq!(torrent["pieces_have"], PIECES - 1, "{torrent}");
    assert_eq!(torrent["pieces_checked"], 1, "{torrent}");
    let mut peer = RawPeer::dial(addr, sample.info_hash);
    peer.get_unchoked();
    assert_eq!(peer.fetch(12, 0, PIECE as u32).len(), PIECE);
    daemon.terminate();
}

#[test]
fn what_is_changed_by_somebody_is_no_rot_and_nothing_is_read_unasked() {
    let files = [("a", 5 * PIECE), ("b", 10 * PIECE)];
    let sample = Sample::tree(&files, PIECE as u32, &[]);
    let mut unasked = Daemon::start(&sample.dir("other.state"));
    unasked.add(&sample, &sample.data);
    unasked.seeding();
    let mut daemon = start(&sample);
    let copy = sample.dir("place");
    std::fs::create_dir(copy.join("sample")).unwrap();
    for (name, _) in files {
        std::fs::copy(sample.content.join(name), copy.join("sample").join(name)).unwrap();
    }
    daemon.add(&sample, &copy);
    daemon.seeding();
    read_more(&mut daemon, 15 * PIECE as u64);
    let file = File::options()
        .write(true)
        .open(copy.join("sample/a"))
        .unwrap();
    file.write_all_at(b"changed", 3 * PIECE as u64).unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    file.set_modified(later).unwrap();
    // The rest of a turn that was under way, and all of one behind it.
    read_more(&mut daemon, 25 * PIECE as u64);
    let count = daemon.ask(json!({ "do": "count" }));
    assert_eq!(count["rotten_pieces"], 0, "{count}");
    assert_eq!(scrubbed(&mut unasked), 0);
    daemon.terminate();
    unasked.terminate();
}
