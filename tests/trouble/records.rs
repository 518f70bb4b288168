//! Resume records that are damaged, of another time, or of files that are gone (HOSTILE.md L4, L11).

use std::path::PathBuf;
use std::time::Duration;

use super::support::fake_peer::{Behaviour, Content, FakeSeeder};
use super::support::{Sample, machine};
use super::{assert_fails, download, seed, start};

/// A complete download in `out`, with its record.
fn done(sample: &Sample) -> (PathBuf, PathBuf) {
    let out = sample.dir("out");
    machine::copy(
        &sample.content,
        &out.join(sample.content.file_name().unwrap()),
    );
    let mut first = start(download(sample, &out, &["--no-trackers"]));
    assert_eq!(first.wait_exit(Duration::from_secs(20)), 0);
    let folder = sample.dir("state").join("resume");
    let mut records = std::fs::read_dir(folder).unwrap().flatten();
    let record = records.next().unwrap().path();
    assert!(records.next().is_none(), "one record");
    (out, record)
}

#[test]
fn a_damaged_record_is_kept_aside_and_the_data_hashed() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let (out, path) = done(&sample);
    let good = std::fs::read(&path).unwrap();
    let mut newer = good.clone();
    newer[8] = 99;
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let damages: [(&str, &[u8]); 6] = [
        ("empty", b""),
        ("cut", &good[..good.len() / 2]),
        ("last byte gone", &good[..good.len() - 1]),
        ("one bit", &flipped),
        ("newer", &newer),
        ("text", b"this is no record"),
    ];
    let bad = PathBuf::from(format!("{}.bad", path.display()));
    for (what, bytes) in damages {
        std::fs::write(&path, bytes).unwrap();
        let _ = std::fs::remove_file(&bad);
        let mut running = start(seed(&sample, &out, &["--no-trackers"]));
        let warning = running.event("warning");
        let message = warning["message"].as_str().unwrap();
        assert!(message.contains("record"), "{what}: {message}");
        let figures = running.wait_for("seeding", |event| event["state"] == "seeding");
        assert_eq!(figures["pieces_checked"], 16, "{what}");
        assert_eq!(figures["pieces_have"], 16, "{what}");
        assert_eq!(std::fs::read(&bad).unwrap(), bytes, "{what}");
        running.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(running.wait_exit(Duration::from_secs(10)), 143);
        // The new record is believed.
        let mut again = start(seed(&sample, &out, &["--no-trackers"]));
        let figures = again.wait_for("seeding", |event| event["state"] == "seeding");
        assert_eq!(figures["pieces_checked"], 0, "{what}");
        again.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(again.wait_exit(Duration::from_secs(10)), 143);
    }
}

#[test]
fn recorded_files_that_are_gone_are_never_fetched_again_unasked() {
    let sample = Sample::tree(&[("a", 200_000), ("b/c", 300_000), ("d", 1)], 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(110));
    let (out, _) = done(&sample);
    let peer = ["--no-trackers", "--peer", &seeder.addr.to_string()].map(String::from);
    let peer = peer.each_ref().map(String::as_str);
    let moved = sample.folder.path().join("moved");
    // One file; then all of them; then the folder itself, as when a disk is not mounted.
    std::fs::remove_file(out.join("sample/b/c")).unwrap();
    for _ in 0..2 {
        assert_fails(download(&sample, &out, &peer), 1, "missing", "--check full");
    }
    std::fs::rename(out.join("sample"), &moved).unwrap();
    for _ in 0..2 {
        assert_fails(download(&sample, &out, &peer), 1, "missing", "--check full");
    }
    std::fs::remove_dir(&out).unwrap();
    for _ in 0..2 {
        assert_fails(download(&sample, &out, &peer), 1, "missing", "--check full");
    }
    assert_eq!(seeder.sent_bytes(), 0);
    // Mounted again, and asked for.
    std::fs::create_dir_all(&out).unwrap();
    std::fs::rename(&moved, out.join("sample")).unwrap();
    let mut full = start(download(
        &sample,
        &out,
        &[&peer[..], &["--check", "full"]].concat(),
    ));
    full.event("complete");
    assert_eq!(full.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
    assert!(
        seeder.sent_bytes() < 500_000,
        "the file that was there is kept"
    );
}

#[test]
fn files_changed_between_two_runs_are_hashed_again() {
    let sample = Sample::tree(&[("a", 200_000), ("b", 300_000)], 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(111));
    let (out, _) = done(&sample);
    let path = out.join("sample/b");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let peer = seeder.addr.to_string();
    let mut again = start(download(&sample, &out, &["--no-trackers", "--peer", &peer]));
    again.event("complete");
    assert_eq!(again.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
    let last = again
        .seen()
        .iter()
        .rev()
        .find(|event| event["event"] == "progress");
    assert_eq!(
        last.unwrap()["pieces_checked"],
        5,
        "those of the file that was touched"
    );
}

#[test]
fn a_record_that_cannot_be_written_is_told_and_stops_nothing() {
    let sample = Sample::file(8 << 20, 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(112));
    let Some(small) = machine::Mounted::small("a_record_that_cannot_be_written", 64 << 10) else {
        return;
    };
    std::fs::create_dir(small.path().join("resume")).unwrap();
    std::fs::write(small.path().join("ballast"), vec![1; 60 << 10]).unwrap();
    let mut ballast = 60 << 10;
    while std::fs::write(small.path().join(format!("more{ballast}")), vec![1; 4096]).is_ok() {
        ballast += 4096;
    }
    let out = sample.dir("out");
    let peer = seeder.addr.to_string();
    let mut command = download(&sample, &out, &["--no-trackers", "--peer", &peer]);
    command.arg("--state").arg(small.path());
    let mut running = start(command);
    let error = running.event("error");
    assert!(
        error["message"].as_str().unwrap().contains("record"),
        "{error}"
    );
    assert_eq!(error["final"], false);
    running.event("complete");
    assert_eq!(running.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
}

#[test]
fn something_else_in_a_records_place_is_moved_away_and_the_record_written() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    let (out, path) = done(&sample);
    let bad = |more: &str| PathBuf::from(format!("{}.bad{more}", path.display()));
    let run = |what: &str, put: &dyn Fn()| {
        std::fs::remove_file(&path).unwrap();
        put();
        let mut running = start(seed(&sample, &out, &["--no-trackers"]));
        let figures = running.wait_for("seeding", |event| event["state"] == "seeding");
        assert_eq!(figures["pieces_have"], 16, "{what}");
        let warnings = running.seen().iter();
        let warnings = warnings.filter(|event| event["event"] == "warning");
        let warnings: Vec<String> = warnings.map(|w| w["message"].to_string()).collect();
        assert_eq!(warnings.len(), 1, "{what}: {warnings:?}");
        assert!(warnings[0].contains("record"), "{what}: {warnings:?}");
        running.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(running.wait_exit(Duration::from_secs(10)), 143, "{what}");
        assert!(path.is_file(), "{what}");
    };
    run("a folder", &|| std::fs::create_dir(&path).unwrap());
    assert!(bad("").is_dir());
    // Neither is a folder with something in it replaced.
    std::fs::write(bad("").join("mine"), "mine").unwrap();
    run("another folder", &|| {
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("mine"), "mine").unwrap();
    });
    assert!(bad("").join("mine").is_file() && bad("-1").join("mine").is_file());
    run("a named pipe", &|| {
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    });
    run("a link to itself", &|| {
        std::os::unix::fs::symlink(&path, &path).unwrap();
    });
}

#[test]
fn a_record_that_cannot_be_read_counts_as_none() {
    let sample = Sample::file(1 << 20, 65_536, &[]);
    machine::open_to_all(sample.folder.path());
    let (out, path) = done(&sample);
    machine::open_to_all(&sample.dir("state"));
    machine::open_to_all(path.parent().unwrap());
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(&path, closed).unwrap();
    let plain = seed(&sample, &out, &["--no-trackers", "--json"]);
    let mut command = machine::as_ordinary_user(&[]);
    command.args(plain.get_args());
    let mut running = super::support::Gyre::spawn(command);
    let warning = running.event("warning");
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains("record cannot be read"), "{message}");
    let figures = running.wait_for("seeding", |event| event["state"] == "seeding");
    assert_eq!(figures["pieces_checked"], 16);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.wait_exit(Duration::from_secs(10)), 143);
}

#[test]
fn half_written_records_of_the_dead_are_removed_and_others_left() {
    let sample = Sample::file(100_000, 65_536, &[]);
    let (out, path) = done(&sample);
    let mut living = start(seed(&sample, &out, &["--no-trackers"]));
    living.wait_for("seeding", |event| event["state"] == "seeding");
    // A process number that nobody has any more.
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let put = |pid: u32, hours: u64| {
        let temporary = path.with_extension(format!("tmp-{pid}-{hours}"));
        let file = std::fs::File::create(&temporary).unwrap();
        let at = std::time::SystemTime::now() - Duration::from_secs(hours * 3_600);
        file.set_modified(at).unwrap();
        temporary
    };
    let stale = [
        put(gone.id(), 0),
        put(gone.id(), 2),
        put(std::process::id(), 2),
    ];
    let kept = [
        put(std::process::id(), 0),
        put(living.pid(), 0),
        put(living.pid(), 2),
        path.with_file_name("notes.tmp-1-1"),
    ];
    std::fs::write(&kept[3], "mine").unwrap();
    let mut other = start(seed(&sample, &out, &["--no-trackers"]));
    other.wait_for("seeding", |event| event["state"] == "seeding");
    let there = |paths: &[PathBuf]| paths.iter().filter(|path| path.exists()).count();
    assert_eq!((there(&stale), there(&kept)), (0, 4));
}
