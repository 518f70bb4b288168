//! `gyre seed`: where the data may lie, what is served of it, and when it ends.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{download, run_all, seed, seed_from};
use crate::support::program::PATIENCE;
use crate::support::{Gyre, Sample};

fn copy_all(from: &Path, to: &Path) {
    if from.is_file() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        copy_all(&entry.path(), &to.join(entry.file_name()));
    }
}

/// Downloads from a seed of that data; the seed's first figures.
fn serves(sample: &Sample, data: &Path, out: &str) -> serde_json::Value {
    let mut seeder = Gyre::start(&seed_from(sample, data, &[]));
    let peer = seeder.listening().to_string();
    let first = seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let out = sample.dir(out);
    let done = run_all(&download(sample, &out, &["--peer", &peer]));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(sample.is_same_in(&out));
    first
}

#[test]
fn data_may_be_the_parent_the_content_folder_or_the_file_itself() {
    let tree = Sample::tree(&[("a", 50_000), ("b/c", 50_000)], 16_384, &[]);
    let renamed = tree.folder.path().join("renamed");
    copy_all(&tree.content, &renamed);
    serves(&tree, &tree.data, "one");
    serves(&tree, &tree.content, "two");
    serves(&tree, &renamed, "three");
    let file = Sample::file(50_000, 16_384, &[]);
    let renamed = file.folder.path().join("renamed.dat");
    copy_all(&file.content, &renamed);
    serves(&file, &file.content, "one");
    let first = serves(&file, &renamed, "two");
    assert_eq!(first["have_bytes"], 50_000);
}

#[test]
fn incomplete_data_is_served_as_far_as_it_is_good_and_nothing_is_fetched() {
    let sample = Sample::tree(&[("a", 163_840), ("b", 163_840)], 16_384, &[]);
    let data = sample.folder.path().join("partial");
    copy_all(&sample.content, &data.join("sample"));
    std::fs::remove_file(data.join("sample/b")).unwrap();
    let mut whole = Gyre::start(&seed(&sample, &[]));
    let peer = whole.listening().to_string();
    let mut partial = Gyre::start(&seed_from(&sample, &data, &["--peer", &peer]));
    let warning = partial.event("warning");
    assert!(
        warning["message"]
            .as_str()
            .unwrap()
            .contains("10 of 20 pieces")
    );
    assert_ne!(warning["hint"], "");
    let addr = partial
        .seen()
        .iter()
        .find_map(|event| event["addr"].as_str());
    let port = addr.unwrap().rsplit(':').next().unwrap();
    let peer = format!("127.0.0.1:{port}");
    let out = sample.dir("out");
    let more = ["--peer", &peer, "--select", "a", "--json"];
    let done = run_all(&download(&sample, &out, &more));
    assert_eq!(done.code, 0, "{}", done.stderr);
    partial.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(partial.wait_exit(PATIENCE), 143);
    let last = partial
        .seen()
        .iter()
        .rev()
        .find(|event| event["event"] == "progress");
    let last = last.unwrap();
    assert_eq!(
        (&last["downloaded_bytes"], &last["pieces_have"]),
        (&0.into(), &10.into())
    );
    assert!(!data.join("sample/b").exists());
}

#[test]
fn without_any_good_data_a_seed_ends_with_3() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let other = sample.dir("other");
    let missing = run_all(&seed_from(&sample, &other, &["-q"]));
    let (message, hint) = missing.refusal(3);
    assert!(
        message.contains("sample.bin") && hint.contains("--data"),
        "{message}"
    );
    std::fs::write(other.join("sample.bin"), vec![1; 100_000]).unwrap();
    let wrong = run_all(&seed_from(&sample, &other, &["-q"]));
    let (message, _) = wrong.refusal(3);
    assert!(message.contains("good"), "{message}");
    let nowhere = sample.folder.path().join("nowhere");
    let (message, _) = run_all(&seed_from(&sample, &nowhere, &["-q"])).refusal(3);
    assert!(message.contains("nowhere"), "{message}");
    let tree = Sample::tree(&[("a", 100), ("b", 100)], 16_384, &[]);
    // What is not there at all is said before anything else.
    let empty = sample.dir("empty");
    let json = run_all(&seed_from(&sample, &empty, &["--json"]));
    assert_eq!(json.code, 3);
    let only: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(only["event"], "error");
    let json = run_all(&seed_from(&tree, &other, &["--json"]));
    assert_eq!(json.code, 3);
    let events: Vec<serde_json::Value> = json
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [.., error, progress, ended] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(error["event"], "error");
    assert_eq!(
        (&progress["event"], &progress["state"]),
        (&"progress".into(), &"error".into())
    );
    assert_eq!(ended["outcome"], "incomplete");
}

#[test]
fn seeding_ends_by_time_and_by_ratio_with_all_or_part_of_the_data() {
    let sample = Sample::tree(&[("a", 100_000), ("b", 100_000)], 16_384, &[]);
    let partial = sample.folder.path().join("partial");
    copy_all(&sample.content, &partial.join("sample"));
    std::fs::remove_file(partial.join("sample/b")).unwrap();
    let since = Instant::now();
    let mut timed = Gyre::start(&seed_from(&sample, &partial, &["--seed-time", "1s"]));
    let mut by_ratio = Gyre::start(&seed(&sample, &["--seed-ratio", "1"]));
    let peer = by_ratio.listening().to_string();
    let out = sample.dir("out");
    let mut leech = Gyre::start(&download(
        &sample,
        &out,
        &["--peer", &peer, "--seed-time", "1s"],
    ));
    leech.event("complete");
    let complete_at = Instant::now();
    assert_eq!(by_ratio.wait_exit(PATIENCE), 0);
    assert_eq!(timed.wait_exit(PATIENCE), 0);
    assert!(since.elapsed() >= Duration::from_secs(1));
    assert_eq!(leech.wait_exit(PATIENCE), 0);
    assert!(complete_at.elapsed() >= Duration::from_millis(500));
    let mut again = Gyre::start(&seed(&sample, &["--seed-ratio", "1"]));
    let warning = again.event("warning");
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains("in earlier runs"), "{message}");
    assert_eq!(again.wait_exit(PATIENCE), 0);
}

#[test]
fn seeding_to_a_ratio_ends_there_however_much_is_asked_for() {
    let sample = Sample::file(64 << 20, 262_144, &[]);
    // Several peers at full speed: within the second between two looks they would take all.
    let mut by_ratio = Gyre::start(&seed(&sample, &["--seed-ratio", "0.5"]));
    let peer = by_ratio.listening().to_string();
    let leeches: Vec<Gyre> = ["one", "two", "three"]
        .map(|name| {
            let out = sample.dir(name);
            Gyre::start(&download(&sample, &out, &["--peer", &peer]))
        })
        .into();
    assert_eq!(by_ratio.wait_exit(PATIENCE), 0);
    drop(leeches);
    let last = by_ratio.seen().iter().rev();
    let last = last.clone().find(|event| event["event"] == "progress");
    let uploaded = last.unwrap()["uploaded_bytes"].as_u64().unwrap();
    let wanted = 32 << 20;
    assert!(
        (wanted..wanted + (1 << 20)).contains(&uploaded),
        "{uploaded}"
    );
}
