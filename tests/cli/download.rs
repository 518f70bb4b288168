//! `gyre download`: what is fetched, where to, and what is believed of what is there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::{download, gyre, run_all, seed};
use crate::support::program::PATIENCE;
use crate::support::sample::text;
use crate::support::{Gyre, Sample};

/// Paths below a folder, sorted.
fn tree(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => paths.push(entry.path()),
            }
        }
    }
    let shown = |path: &std::path::PathBuf| text(path.strip_prefix(folder).unwrap());
    let mut paths: Vec<String> = paths.iter().map(shown).collect();
    paths.sort();
    paths
}

/// A seed of the sample and where it listens.
fn seeder(sample: &Sample) -> (Gyre, String) {
    let mut seeder = Gyre::start(&seed(sample, &[]));
    let addr = seeder.listening().to_string();
    (seeder, addr)
}

#[test]
fn only_selected_files_are_made_and_the_rest_can_follow() {
    let files = [
        ("a", 30_000),
        ("dir/b.txt", 30_000),
        ("c", 0),
        ("d", 30_000),
    ];
    let sample = Sample::tree(&files, 16_384, &[]);
    let (_seeder, peer) = seeder(&sample);
    let out = sample.dir("out");
    let select = ["--peer", &peer, "--select", "*.txt", "--select", "1"];
    let done = run_all(&download(&sample, &out, &select));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(
        tree(&out),
        ["sample/.gyre-parts", "sample/c", "sample/dir/b.txt"]
    );
    let copied = std::fs::read(out.join("sample/dir/b.txt")).unwrap();
    assert_eq!(
        copied,
        std::fs::read(sample.content.join("dir/b.txt")).unwrap()
    );
    let done = run_all(&download(&sample, &out, &["--peer", &peer]));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(sample.is_same_in(&out));
    assert_eq!(tree(&out).len(), 4, "the parts file is gone");
}

#[test]
fn lists_show_what_a_selection_would_fetch() {
    let sample = Sample::tree(&[("a.txt", 3), ("b", 5)], 16_384, &[]);
    let torrent = text(&sample.torrent);
    let all = gyre(&["download", &torrent, "--list"]).stdout;
    assert_eq!(all.lines().count(), 2);
    assert!(all.contains("     1          5 B  sample/b"), "{all}");
    let some = gyre(&[
        "download", &torrent, "--list", "--select", "*.txt", "--json",
    ]);
    let some = some.json();
    assert_eq!(some["event"], "files");
    assert_eq!(some["files"].as_array().unwrap().len(), 1);
    assert_eq!(some["files"][0]["path"], "sample/a.txt");
    let none = gyre(&["download", &torrent, "--select", "*.ogg"]);
    let (message, hint) = none.refusal(2);
    assert!(
        message.contains("*.ogg") && hint.contains("--list"),
        "{message}"
    );
}

#[test]
fn several_torrents_are_fetched_at_once_and_one_named_twice_counts_once() {
    let samples = [
        Sample::file(50_000, 16_384, &[]),
        Sample::tree(&[("a", 9), ("b", 9)], 16_384, &[]),
    ];
    let (_first, first) = seeder(&samples[0]);
    let (_second, second) = seeder(&samples[1]);
    let out = samples[0].dir("out");
    let other = text(&samples[1].torrent);
    let peers = [
        "--peer", &first, "--peer", &second, &other, &other, "--json",
    ];
    let done = run_all(&download(&samples[0], &out, &peers));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(samples.iter().all(|sample| sample.is_same_in(&out)));
    let count = |name: &str| {
        let event = format!("{{\"event\":\"{name}\"");
        done.stdout
            .lines()
            .filter(|line| line.starts_with(&event))
            .count()
    };
    assert_eq!(
        (count("metadata"), count("complete"), count("ended")),
        (2, 2, 2)
    );
}

#[test]
fn sequential_pieces_come_from_the_front() {
    let sample = Sample::file(8 << 20, 65_536, &[]);
    let (_seeder, peer) = seeder(&sample);
    let out = sample.dir("out");
    let options = ["--sequential", "--limit-down", "3MB", "--peer", &peer];
    let mut leech = Gyre::start(&download(&sample, &out, &options));
    leech.wait_for("a third", |event| event["pieces_have"].as_u64() >= Some(40));
    leech.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(leech.wait_exit(PATIENCE), 130);
    let (torrent, out) = (text(&sample.torrent), text(&out));
    let verdict = gyre(&["verify", &torrent, "--data", &out, "--json"]).json();
    let have = verdict["pieces_have"].as_u64().unwrap();
    let first_bad = verdict["bad_pieces"][0][0].as_u64().unwrap();
    // The last few may have been under way side by side.
    assert!(first_bad + 8 >= have && have < 128, "{first_bad} of {have}");
}

#[test]
fn preallocation_decides_how_much_disk_a_file_takes_at_first() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    for (how, length, blocks) in [
        ("none", 0, 0),
        ("sparse", 1 << 20, 0),
        ("full", 1 << 20, 2048),
    ] {
        let out = sample.dir(how);
        let options = ["--preallocate", how, "--give-up", "0s", "--check", "full"];
        let done = run_all(&download(&sample, &out, &options));
        assert_eq!(done.code, 1, "{}", done.stderr);
        let file = std::fs::metadata(out.join("sample.bin")).unwrap();
        assert_eq!(file.len(), length, "{how}");
        assert!(
            file.blocks() >= blocks && (blocks > 0 || file.blocks() < 64),
            "{how}"
        );
    }
}

#[test]
fn giving_up_is_an_error_that_keeps_what_is_there() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let out = sample.dir("out");
    let mut leech = Gyre::start(&download(&sample, &out, &["--give-up", "1s"]));
    let error = leech.event("error");
    assert_eq!(error["final"], true);
    assert!(error["message"].as_str().unwrap().contains("gave up"));
    assert_ne!(error["hint"], "");
    let last = leech.event("progress");
    assert_eq!(last["state"], "error");
    assert_eq!(leech.event("ended")["outcome"], "failed");
    assert_eq!(leech.wait_exit(Duration::from_secs(10)), 1);
}

#[test]
fn a_download_whose_last_peer_is_gone_is_stalled_and_without_a_rate() {
    let sample = Sample::file(40_000_000, 262_144, &[]);
    let mut seeder = Gyre::start(&seed(&sample, &["--limit-up", "4MB"]));
    let peer = seeder.listening().to_string();
    let options = ["--peer", &peer];
    let mut leech = Gyre::start(&download(&sample, &sample.dir("out"), &options));
    let is_quick = |event: &Value| event["down_bytes_per_s"].as_u64() > Some(1_000_000);
    let busy = leech.wait_for("a rate", is_quick);
    assert_eq!(busy["state"], "downloading");
    seeder.kill9();
    let alone = leech.wait_for("no peer", |event| event["peers"] == 0);
    assert_eq!(alone["state"], "stalled", "{alone}");
    assert_eq!(alone["down_bytes_per_s"], 0, "{alone}");
}

#[test]
fn a_download_whose_peers_all_fall_silent_is_stalled_within_ten_seconds() {
    let sample = Sample::file(40_000_000, 262_144, &[]);
    let mut seeder = Gyre::start(&seed(&sample, &["--limit-up", "4MB"]));
    let peer = seeder.listening().to_string();
    let options = ["--peer", &peer];
    let mut leech = Gyre::start(&download(&sample, &sample.dir("out"), &options));
    let is_quick = |event: &Value| event["down_bytes_per_s"].as_u64() > Some(1_000_000);
    leech.wait_for("a rate", is_quick);
    seeder.signal(nix::sys::signal::Signal::SIGSTOP);
    let is_stalled = |event: &Value| event["state"] == "stalled";
    let stalled = leech.wait_for_within("no rate", Duration::from_secs(11), is_stalled);
    assert_eq!(
        (&stalled["peers"], &stalled["down_bytes_per_s"]),
        (&1.into(), &0.into())
    );
}

/// A start with these options: pieces hashed and pieces found good.
fn start(sample: &Sample, out: &Path, more: &[&str]) -> (u64, u64) {
    let more = [&["--give-up", "0s"], more].concat();
    let mut leech = Gyre::start(&download(sample, out, &more));
    leech.wait_exit(PATIENCE);
    let number = |event: &Value, field: &str| event[field].as_u64().unwrap();
    let last = leech
        .seen()
        .iter()
        .rev()
        .find(|event| event["event"] == "progress");
    let last = last.unwrap();
    (number(last, "pieces_checked"), number(last, "pieces_have"))
}

#[test]
fn checks_believe_records_hash_everything_or_trust_what_is_there() {
    let files = [("a", 100_000), ("b", 100_000)];
    let sample = Sample::tree(&files, 16_384, &[]);
    let pieces = 13;
    let out = sample.dir("out");
    let copy = |name: &str| {
        std::fs::create_dir_all(out.join("sample")).unwrap();
        std::fs::copy(sample.content.join(name), out.join("sample").join(name)).unwrap();
    };
    assert_eq!(
        start(&sample, &sample.dir("empty"), &["--check", "none"]),
        (0, 0)
    );
    // Only a: the pieces that b has bytes of cannot be good.
    copy("a");
    assert_eq!(start(&sample, &out, &["--check", "none"]), (0, 6));
    copy("b");
    assert_eq!(start(&sample, &out, &["--check", "full"]), (pieces, pieces));
    assert_eq!(start(&sample, &out, &[]), (0, pieces));
    let mut bytes = std::fs::read(out.join("sample/a")).unwrap();
    bytes[0] ^= 1;
    std::fs::write(out.join("sample/a"), bytes).unwrap();
    assert_eq!(
        start(&sample, &out, &["--check", "full"]),
        (pieces, pieces - 1)
    );
    assert_eq!(start(&sample, &out, &["--check", "none"]), (0, pieces));
}

#[test]
fn a_torrent_larger_than_the_disk_is_given_up_on_before_anything_is_made() {
    use gyre::wire::metainfo::MetainfoBuilder;
    let folder = tempfile::tempdir().unwrap();
    // 64 TiB of which nobody needs the hashes.
    let (piece_length, pieces) = (512u64 << 20, 131_072u64);
    let builder = MetainfoBuilder::new("huge.bin", piece_length as u32);
    let builder = builder.single_file(piece_length * pieces);
    let builder = builder.pieces(vec![7; pieces as usize * 20]);
    let torrent = folder.path().join("huge.torrent");
    std::fs::write(&torrent, builder.build().unwrap().0).unwrap();
    let out = folder.path().join("out");
    let (torrent, state) = (text(&torrent), text(&folder.path().join("state")));
    let done = gyre(&[
        "download",
        &torrent,
        "-o",
        &text(&out),
        "--state",
        &state,
        "--port",
        "0",
        "--no-trackers",
        "--give-up",
        "1s",
        "--json",
    ]);
    assert_eq!(done.code, 1);
    let events = done.stdout.lines();
    let events = events.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let errors: Vec<_> = events.filter(|event| event["event"] == "error").collect();
    let [told, last] = &errors[..] else {
        panic!("{errors:?}");
    };
    assert_eq!(
        (&told["final"], &last["final"]),
        (&false.into(), &true.into())
    );
    let (message, hint) = (told["message"].to_string(), told["hint"].to_string());
    assert!(
        message.contains("64.0 TiB") || message.contains("GiB"),
        "{message}"
    );
    assert!(hint.contains("space"), "{hint}");
    assert!(tree(&out).is_empty(), "{:?}", tree(&out));
}

#[test]
fn making_very_many_files_shows_how_far_it_is() {
    use gyre::wire::metainfo::MetainfoBuilder;
    let folder = tempfile::tempdir().unwrap();
    let file = |at: u32| (vec![format!("f{at}").into_bytes()], u64::from(at == 0));
    let builder = MetainfoBuilder::new("many", 16_384).files((0..200_000).map(file).collect());
    let builder = builder.pieces(vec![7; 20]);
    let torrent = folder.path().join("many.torrent");
    std::fs::write(&torrent, builder.build().unwrap().0).unwrap();
    let (out, state) = (folder.path().join("out"), folder.path().join("state"));
    let (torrent, out, state) = (text(&torrent), text(&out), text(&state));
    let arguments = ["download", &torrent, "-o", &out, "--state", &state];
    let mut leech = Gyre::start(&[&arguments[..], &["--port", "0", "--no-trackers"]].concat());
    let is_made = |event: &Value| event["files_prepared"].as_u64() > Some(0);
    let made = leech.wait_for("files made", is_made);
    assert_eq!(made["state"], "checking");
    assert_eq!(made["files_to_prepare"], 200_000);
    leech.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(leech.wait_exit(Duration::from_secs(10)), 130);
}

#[test]
fn data_that_is_gone_is_refused_without_a_trace() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let out = sample.dir("out");
    std::fs::copy(&sample.content, out.join("sample.bin")).unwrap();
    assert_eq!(run_all(&download(&sample, &out, &[])).code, 0);
    std::fs::remove_file(out.join("sample.bin")).unwrap();
    for _ in 0..2 {
        let done = run_all(&download(&sample, &out, &["-q", "--give-up", "5s"]));
        let (message, hint) = done.refusal(1);
        assert!(message.contains("sample.bin"), "{message}");
        assert!(hint.contains("--check full"), "{hint}");
        assert!(tree(&out).is_empty());
    }
}
