//! Disks that fill up or fail, and folders that vanish under a download (HOSTILE.md L1, L2).

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::support::fake_peer::{Answer, BLOCK, Behaviour, Content, FakeLeecher, FakeSeeder};
use super::support::{Gyre, Sample, machine, program, sample::text};
use super::{download, start};

const MIB: u64 = 1 << 20;

/// Takes what is left of a file system but for so many bytes.
fn fill(folder: &Path, left: u64) {
    let stat = nix::sys::statvfs::statvfs(folder).unwrap();
    let free = stat.blocks_available() * stat.fragment_size();
    let mut ballast = File::create(folder.join("ballast")).unwrap();
    let chunk = vec![1; 1 << 16];
    for _ in 0..free.saturating_sub(left) / chunk.len() as u64 {
        // The download takes its part meanwhile.
        if ballast.write_all(&chunk).is_err() {
            return;
        }
    }
}

/// A download onto a small file system that has just become full in the middle of it.
fn stuck(sample: &Sample, small: &machine::Mounted, seeder: &FakeSeeder, more: &[&str]) -> Gyre {
    let out = small.path().join("out");
    let peer = seeder.addr.to_string();
    let mut command = download(sample, &out, &["--no-trackers", "--peer", &peer]);
    command.args(["--limit-down", "8MiB"]).args(more);
    let mut gyre = start(command);
    gyre.wait_for("a part", |event| event["pieces_have"].as_u64() >= Some(8));
    fill(small.path(), 2 * MIB);
    let error = gyre.event("error");
    assert!(
        error["message"].as_str().unwrap().contains("no space left"),
        "{error}"
    );
    assert!(error["hint"].as_str().unwrap().contains("free some space"));
    assert_eq!(error["final"], false);
    gyre
}

#[test]
fn a_full_disk_stops_the_fetching_alone_until_there_is_space() {
    let sample = Sample::file(32 << 20, 262_144, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(120));
    let Some(small) = machine::Mounted::small("a_full_disk_stops_the_fetching", 40 * MIB) else {
        return;
    };
    let mut gyre = stuck(&sample, &small, &seeder, &[]);
    let figures = gyre.wait_for("the state", |event| event["state"] == "error");
    let sent = seeder.sent_bytes();
    // Seeding goes on.
    let port = port_of(&gyre);
    let mut leecher = FakeLeecher::connect(port, &content).unwrap();
    leecher.listen(Duration::from_millis(300));
    let piece = *leecher.offered().first().unwrap();
    assert!(leecher.unchoked(Duration::from_secs(15)));
    let block = leecher.fetch(piece, 0, BLOCK, Duration::from_secs(10));
    assert_eq!(
        block,
        Answer::Block(content.block(piece, 0, BLOCK).unwrap().to_vec())
    );
    drop(leecher);
    // No loop of fetching what cannot be written.
    gyre.wait_for("a later look", |event| {
        event["state"] == "error" && event["have_bytes"] == figures["have_bytes"]
    });
    std::thread::sleep(Duration::from_secs(6));
    assert!(seeder.sent_bytes() - sent < 4 * MIB, "it fetches in a loop");
    std::fs::remove_file(small.path().join("ballast")).unwrap();
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&small.path().join("out")));
    let errors = gyre.seen().iter().filter(|event| event["event"] == "error");
    assert_eq!(errors.count(), 1, "told once");
}

#[test]
fn a_disk_that_stays_full_is_given_up_on_and_nothing_is_lost() {
    let sample = Sample::file(32 << 20, 262_144, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(121));
    let Some(small) = machine::Mounted::small("a_disk_that_stays_full", 40 * MIB) else {
        return;
    };
    let mut gyre = stuck(&sample, &small, &seeder, &["--give-up", "8s"]);
    let error = gyre.event("error");
    assert!(
        error["message"].as_str().unwrap().contains("gave up"),
        "{error}"
    );
    assert!(
        error["message"].as_str().unwrap().contains("no space left"),
        "{error}"
    );
    assert_eq!(error["final"], true);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
    let ended = gyre
        .seen()
        .iter()
        .rev()
        .find(|event| event["event"] == "progress");
    let had = ended.unwrap()["pieces_have"].as_u64().unwrap();
    // The next run goes on from there.
    std::fs::remove_file(small.path().join("ballast")).unwrap();
    let out = small.path().join("out");
    let peer = seeder.addr.to_string();
    let mut again = start(download(&sample, &out, &["--no-trackers", "--peer", &peer]));
    let figures = again.wait_for("start", |event| {
        event["event"] == "progress" && event["state"] != "checking"
    });
    assert!(figures["pieces_have"].as_u64().unwrap() >= had);
    again.event("complete");
    assert_eq!(again.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
}

/// A download onto a small file system that has too little space from the start.
fn too_large(sample: &Sample, out: &Path, more: &[&str]) -> Gyre {
    let mut command = download(sample, out, &["--no-trackers"]);
    command.args(more);
    let mut gyre = start(command);
    let error = gyre.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("32.0 MiB are needed"), "{message}");
    assert!(message.contains(" are free"), "{message}");
    assert!(!message.contains("reserve"), "{message}");
    assert!(error["hint"].as_str().unwrap().contains("free some space"));
    assert_eq!(error["final"], false);
    gyre
}

#[test]
fn a_torrent_that_cannot_fit_waits_for_space_before_anything_is_fetched() {
    let sample = Sample::file(32 << 20, 262_144, &[]);
    let seeder = FakeSeeder::start(&Content::of(&sample), Behaviour::honest(133));
    let peer = seeder.addr.to_string();
    let name = "a_torrent_that_cannot_fit_waits";
    let Some(small) = machine::Mounted::small(name, 40 * MIB) else {
        return;
    };
    for how in ["none", "sparse"] {
        fill(small.path(), 20 * MIB);
        let sent = seeder.sent_bytes();
        let out = small.path().join(how);
        let mut gyre = too_large(&sample, &out, &["--peer", &peer, "--preallocate", how]);
        gyre.wait_for("the state", |event| event["state"] == "error");
        assert_eq!(seeder.sent_bytes(), sent);
        std::fs::remove_file(small.path().join("ballast")).unwrap();
        gyre.event("complete");
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
        assert!(sample.is_same_in(&out));
        let errors = gyre.seen().iter().filter(|event| event["event"] == "error");
        assert_eq!(errors.count(), 1, "told once");
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn a_torrent_that_never_fits_is_given_up_on_when_asked_to_and_leaves_nothing() {
    let sample = Sample::file(32 << 20, 262_144, &[]);
    let Some(small) = machine::Mounted::small("a_torrent_that_never_fits", 20 * MIB) else {
        return;
    };
    let out = small.path().join("out");
    let mut gyre = too_large(&sample, &out, &["--give-up", "2s"]);
    let error = gyre.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("gave up") && message.contains("are needed"),
        "{message}"
    );
    assert_eq!(error["final"], true);
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
    assert!(!out.join("sample.bin").exists());
}

/// A download of which every write past `kib` fails with EFBIG: what a dying disk looks like from here.
fn limited(sample: &Sample, seeder: &FakeSeeder, kib: u32, more: &[&str]) -> Gyre {
    let mut command = program::clean(std::process::Command::new("sh"));
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2);
    let gyre = program::command();
    command.args(["-c", &script, "sh"]).arg(gyre.get_program());
    command.args(["download", &text(&sample.torrent), "--port", "0"]);
    command.args(["-o", &text(&sample.dir("out"))]);
    command.args(["--state", &text(&sample.dir("state"))]);
    command.args(["--peer", &seeder.addr.to_string(), "--no-trackers"]);
    command
        .args(["--preallocate", "none", "--sequential"])
        .args(more);
    start(command)
}

#[test]
fn a_disk_that_errs_is_tried_again_now_and_then_and_not_in_a_loop() {
    let is_long = std::env::var("GYRE_LONG").is_ok_and(|value| value == "1");
    let sample = Sample::file(16 << 20, 262_144, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(122));
    let more: &[&str] = if is_long { &[] } else { &["--give-up", "22s"] };
    let started = Instant::now();
    let mut gyre = limited(&sample, &seeder, 4_096, more);
    let error = gyre.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("sample.bin") && message.contains("file too large"),
        "{message}"
    );
    assert_eq!(error["final"], false);
    let last = gyre.wait_for_within("the end", Duration::from_secs(150), |event| {
        event["event"] == "error" && event["final"] == true
    });
    assert!(
        last["message"].as_str().unwrap().contains("sample.bin"),
        "{last}"
    );
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 1);
    let took = started.elapsed();
    println!("{took:?}, {} MiB sent", seeder.sent_bytes() / MIB);
    if is_long {
        assert!(
            (55..110).contains(&took.as_secs()),
            "three tries over a minute: {took:?}"
        );
    }
    // What was good plus a few tries' worth of what is in flight at once.
    assert!(seeder.sent_bytes() < 4 * 24 * MIB);
}

/// A download of several files at 4 MiB/s, a third of which is done.
fn under_way(sample: &Sample, last_byte: u8, out: &Path, more: &[&str]) -> (Gyre, FakeSeeder) {
    let mut slow = Behaviour::honest(last_byte);
    slow.bytes_per_s = Some(4 << 20);
    let seeder = FakeSeeder::start(&Content::of(sample), slow);
    let peer = seeder.addr.to_string();
    let mut command = download(sample, out, &["--no-trackers", "--peer", &peer]);
    command.args(more);
    let mut gyre = start(command);
    gyre.wait_for("a part", |event| event["pieces_have"].as_u64() >= Some(20));
    (gyre, seeder)
}

fn tree() -> Sample {
    Sample::tree(
        &[("a", 6 << 20), ("b", 6 << 20), ("c/d", 4 << 20)],
        262_144,
        &[],
    )
}

#[test]
fn a_folder_that_vanishes_under_a_download_is_an_error_and_no_success() {
    let sample = tree();
    let out = sample.dir("out");
    let (mut gyre, _seeder) = under_way(&sample, 123, &out, &["--give-up", "6s"]);
    std::fs::remove_dir_all(out.join("sample")).unwrap();
    let error = gyre.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("sample/"), "{message}");
    assert_eq!(error["final"], false);
    assert_eq!(gyre.wait_exit(Duration::from_secs(40)), 1);
    let is_complete = |event: &serde_json::Value| event["event"] == "complete";
    assert!(!gyre.seen().iter().any(is_complete));
}

#[test]
fn a_file_that_vanishes_under_a_download_is_told_and_fetched_again() {
    for (last_byte, how) in [(124, "sparse"), (125, "none")] {
        let sample = tree();
        let out = sample.dir("out");
        let (mut gyre, _seeder) = under_way(&sample, last_byte, &out, &["--preallocate", how]);
        let path = out.join("sample/a");
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
        let warning = gyre.event("warning");
        let message = warning["message"].as_str().unwrap();
        assert!(message.contains("sample/a"), "{message}");
        gyre.event("complete");
        assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
        assert!(sample.is_same_in(&out));
    }
}

/// Downloads while somebody does harm to its first file; whatever that was, the end is good data, or none that is said to
/// be good.
fn harmed(last_byte: u8, more: &[&str], harm: fn(&Path)) {
    let sample = tree();
    let out = sample.dir("out");
    let (mut gyre, _seeder) = under_way(&sample, last_byte, &out, more);
    harm(&out.join("sample/a"));
    let warning = gyre.event("warning");
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains("sample/a"), "{message}");
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out), "{more:?}");
}

#[test]
fn a_file_that_is_cut_under_a_download_is_told_and_fetched_again() {
    let cut = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(1_000).unwrap();
    };
    harmed(126, &[], cut);
    harmed(127, &["--preallocate", "none", "--sequential"], cut);
    // The last piece of the file gives it its length again.
    harmed(128, &["--sequential"], cut);
}

#[test]
fn a_file_that_is_replaced_under_a_download_is_told_and_fetched_again() {
    harmed(129, &[], |path| {
        let length = std::fs::metadata(path).unwrap().len();
        let other = path.with_extension("new");
        File::create(&other).unwrap().set_len(length).unwrap();
        std::fs::rename(other, path).unwrap();
    });
}

fn port_of(gyre: &Gyre) -> std::net::SocketAddr {
    let listening = gyre.seen().iter().find(|event| {
        event["event"] == "listening" && !event["addr"].as_str().unwrap().starts_with('[')
    });
    let addr: std::net::SocketAddr = listening.unwrap()["addr"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    (std::net::Ipv4Addr::LOCALHOST, addr.port()).into()
}

#[test]
fn where_space_cannot_be_reserved_the_download_goes_on_and_says_so() {
    let Some(mounted) = machine::Mounted::plain("where_space_cannot_be_reserved") else {
        return;
    };
    let sample = Sample::tree(&[("a", 300_000), ("b", 200_000), ("z", 0)], 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(125));
    let peer = seeder.addr.to_string();
    for (preallocate, warnings) in [("full", 1), ("sparse", 0), ("none", 0)] {
        let out = mounted.path().join(preallocate);
        let more = [
            "--no-trackers",
            "--peer",
            &peer,
            "--preallocate",
            preallocate,
        ];
        let mut running = start(download(&sample, &out, &more));
        running.event("complete");
        assert_eq!(running.wait_exit(Duration::from_secs(20)), 0);
        assert!(sample.is_same_in(&out));
        let told = running.seen().iter();
        let told = told.filter(|event| event["event"] == "warning");
        let told: Vec<String> = told.map(|warning| warning["message"].to_string()).collect();
        assert_eq!(told.len(), warnings, "{preallocate}: {told:?}");
        assert!(
            told.iter().all(|message| message.contains("reserve")),
            "{told:?}"
        );
    }
}
