//! What a download leaves when it is complete: the files that the torrent names, as it describes them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::support::fake_peer::{Behaviour, Content, FakeSeeder};
use super::support::{Gyre, Sample, machine};
use super::{download, seed, start};

const LIMIT: Duration = Duration::from_secs(20);

fn warnings(gyre: &Gyre) -> Vec<&str> {
    let warnings = gyre.seen().iter();
    let warnings = warnings.filter(|event| event["event"] == "warning");
    warnings.map(|w| w["message"].as_str().unwrap()).collect()
}

fn append(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.extend(b"mine");
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_that_is_too_long_is_cut_when_all_is_there_and_not_without_a_word() {
    let sample = Sample::tree(&[("a", 200_000), ("b", 100_000), ("z", 0)], 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(120));
    let peer = seeder.addr.to_string();
    let out = sample.dir("out");
    // One file is there and too long, one is fetched into a longer one, one should be empty.
    machine::copy(&sample.content, &out.join("sample"));
    std::fs::write(out.join("sample/b"), vec![7; 150_000]).unwrap();
    append(&out.join("sample/a"));
    append(&out.join("sample/z"));
    // A seed changes nothing.
    let mut only_seeds = start(seed(&sample, &out, &["--no-trackers"]));
    only_seeds.wait_for("seeding", |event| event["state"] == "seeding");
    drop(only_seeds);
    assert_eq!(std::fs::read(out.join("sample/a")).unwrap().len(), 200_004);
    let mut running = start(download(&sample, &out, &["--no-trackers", "--peer", &peer]));
    running.event("complete");
    let warned = warnings(&running);
    for name in [
        "sample/a has 200004",
        "sample/b has 150000",
        "sample/z has 4",
    ] {
        let told = warned.iter().filter(|message| message.contains(name));
        assert_eq!(told.count(), 1, "{name}: {warned:?}");
    }
    assert_eq!(running.wait_exit(LIMIT), 0);
    assert!(sample.is_same_in(&out));
    // The record is of the files as they are now.
    let mut again = start(download(&sample, &out, &["--no-trackers"]));
    assert_eq!(again.wait_exit(LIMIT), 0);
    assert!(warnings(&again).is_empty(), "{:?}", warnings(&again));
    let mut figures = again.seen().iter().rev();
    let figures = figures.find(|event| event["event"] == "progress");
    assert_eq!(figures.unwrap()["pieces_checked"], 0);
    // Complete data that grew is cut too; what nobody asked for is left alone.
    append(&out.join("sample/a"));
    append(&out.join("sample/b"));
    let mut first = start(download(&sample, &out, &["--no-trackers", "--select", "0"]));
    assert_eq!(first.wait_exit(LIMIT), 0);
    assert_eq!(std::fs::read(out.join("sample/a")).unwrap().len(), 200_000);
    assert_eq!(std::fs::read(out.join("sample/b")).unwrap().len(), 100_004);
}

#[test]
fn the_parts_file_goes_when_nothing_in_it_is_needed() {
    let files = [("a", 100_000), ("b", 100_000), ("c", 100_000), ("z", 0)];
    let sample = Sample::tree(&files, 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(121));
    let peer = seeder.addr.to_string();
    let out = sample.dir("out");
    let parts = out.join("sample/.gyre-parts");
    let run = |selected: &[&str]| {
        let more = [&["--no-trackers", "--peer", &peer], selected].concat();
        let mut running = start(download(&sample, &out, &more));
        running.event("complete");
        assert_eq!(running.wait_exit(LIMIT), 0, "{}", running.stderr());
    };
    run(&["--select", "1"]);
    assert!(parts.exists());
    // Nothing of the empty file that is left out can be in it.
    run(&["--select", "0", "--select", "1", "--select", "2"]);
    assert!(!parts.exists());
    assert!(!out.join("sample/z").exists());
    // Left by a power cut before anything of it reached the disk.
    std::fs::write(&parts, b"").unwrap();
    run(&[]);
    assert!(!parts.exists());
    assert!(sample.is_same_in(&out));
}

#[test]
fn a_parts_file_whose_beginning_was_lost_in_a_power_cut_is_used_anew_and_that_of_another_is_named()
{
    let sample = Sample::tree(&[("a", 100_000), ("b", 100_000)], 65_536, &[]);
    let content = Content::of(&sample);
    let seeder = FakeSeeder::start(&content, Behaviour::honest(122));
    let peer = seeder.addr.to_string();
    let begin = |out: &Path, bytes: &[u8]| {
        std::fs::create_dir_all(out.join("sample")).unwrap();
        std::fs::write(out.join("sample/.gyre-parts"), bytes).unwrap();
        let more = ["--no-trackers", "--peer", &peer, "--select", "1"];
        start(download(&sample, out, &more))
    };
    // Its length came first.
    let out = sample.dir("lost");
    let mut running = begin(&out, &[0; 70_000]);
    running.event("complete");
    assert_eq!(running.wait_exit(LIMIT), 0, "{}", running.stderr());
    // The same file, with half of what it begins with.
    let mut torn = std::fs::read(out.join("sample/.gyre-parts")).unwrap();
    torn[24..64].fill(0);
    let mut running = begin(&sample.dir("torn"), &torn);
    running.event("complete");
    assert_eq!(running.wait_exit(LIMIT), 0, "{}", running.stderr());
    torn[24] = torn[24].wrapping_add(1);
    torn[25..44].fill(7);
    let mut running = begin(&sample.dir("other"), &torn);
    let told = running.event("error");
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains("another torrent"),
        "{told}"
    );
    assert_eq!(running.wait_exit(LIMIT), 1);
}

#[test]
fn files_that_the_torrent_calls_executable_are_so_once_complete() {
    let sample = Sample::tree(&[("run", 70_000), ("read", 70_000)], 65_536, &[]);
    // `attr` comes first among the keys of a file.
    let torrent = std::fs::read(&sample.torrent).unwrap();
    let plain = b"d6:lengthi70000e4:pathl3:runee";
    let at = torrent
        .windows(plain.len())
        .position(|window| window == plain);
    let at = at.expect("the file's entry");
    let mut marked = torrent;
    marked.splice(at + 1..at + 1, b"4:attr1:x".iter().copied());
    std::fs::write(&sample.torrent, marked).unwrap();
    let out = sample.dir("out");
    machine::copy(&sample.content, &out.join("sample"));
    let mode = |name: &str| {
        let path = out.join("sample").join(name);
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    let set = |name: &str| {
        let permissions = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(out.join("sample").join(name), permissions).unwrap();
    };
    set("run");
    set("read");
    let mut running = start(download(&sample, &out, &["--no-trackers", "--seed"]));
    running.event("complete");
    assert_eq!((mode("run"), mode("read")), (0o750, 0o640));
    // A change of ours is none to be told of.
    running.wait_for("seeding", |event| event["state"] == "seeding");
    assert!(warnings(&running).is_empty(), "{:?}", warnings(&running));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.wait_exit(LIMIT), 143);
    // A link in a file's place is not followed out of the folder.
    let outside = sample.folder.path().join("outside");
    std::fs::copy(sample.content.join("run"), &outside).unwrap();
    std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::remove_file(out.join("sample/run")).unwrap();
    std::os::unix::fs::symlink(&outside, out.join("sample/run")).unwrap();
    let mut linked = start(download(&sample, &out, &["--no-trackers"]));
    assert_eq!(linked.wait_exit(LIMIT), 1);
    let mode = std::fs::metadata(&outside).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}
