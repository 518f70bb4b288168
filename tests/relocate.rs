//! Files of a torrent that a daemon moves to another folder: served meanwhile, whole afterwards, and as they were when it
//! cannot be done (HOSTILE.md L14).

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gyre::session::relocate::{MoveProgress, Mover, RelocateError, Start};
use gyre::session::tune::Tuning;
use gyre::session::{CheckMode, Preallocate, SeedAfter, TorrentConfig};
use gyre::wire::metainfo::Metainfo;
use support::fake_peer::{Answer, Content, FakeLeecher};
use support::hanging::{Hang, HangingMount};
use support::machine::Mounted;
use support::program::PATIENCE;
use support::{Daemon, Sample};

const BLOCK: u32 = 16_384;
const MIB: usize = 1 << 20;

/// Everything below a folder, sorted.
fn all_in(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        all.push(entry.path());
        if entry.path().is_dir() {
            all.extend(all_in(&entry.path()));
        }
    }
    all.sort();
    all
}

fn tree(files: usize, bytes: usize) -> Sample {
    let names: Vec<String> = (0..files)
        .map(|n| format!("folder {}/{n}", n % 3))
        .collect();
    let files: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), bytes)).collect();
    Sample::tree(&files, 65_536, &[])
}

/// The torrent's settings, as a daemon has them.
fn config(sample: &Sample) -> TorrentConfig {
    let bytes = std::fs::read(&sample.torrent).unwrap();
    TorrentConfig {
        metainfo: Arc::new(Metainfo::parse(&bytes).unwrap()),
        folder: sample.data.clone(),
        place: gyre::session::DataPlace::default(),
        fetches: true,
        check: CheckMode::Auto,
        preallocate: Preallocate::default(),
        is_sequential: false,
        selected_files: None,
        peers: Vec::new(),
        trackers: false,
        web_seeds: Vec::new(),
        seed_after: SeedAfter {
            seeds: true,
            ratio: None,
            time: None,
            idle: None,
        },
        tuning: Tuning::default(),
    }
}

/// A peer that asks for block after block, whatever happens, until it is told to end.
struct Constant {
    is_over: Arc<AtomicBool>,
    blocks: Arc<AtomicU64>,
    thread: JoinHandle<u64>,
}

impl Constant {
    fn start(addr: SocketAddr, content: Content) -> Constant {
        let (is_over, blocks) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (over, count) = (is_over.clone(), blocks.clone());
        let thread = std::thread::spawn(move || fetch_on(addr, &content, &over, &count));
        Constant {
            is_over,
            blocks,
            thread,
        }
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }

    #[track_caller]
    fn wait_for(&self, blocks: u64) {
        let end = Instant::now() + PATIENCE;
        while self.blocks() < blocks {
            assert!(
                Instant::now() < end && !self.thread.is_finished(),
                "no more blocks"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many connections ended that had brought blocks.
    fn end(self) -> u64 {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn fetch_on(addr: SocketAddr, content: &Content, is_over: &AtomicBool, count: &AtomicU64) -> u64 {
    let mut ends = 0;
    let mut at: u64 = 0;
    let blocks_in_piece = u64::from(content.piece_length / BLOCK);
    let all = u64::from(content.piece_count()) * blocks_in_piece;
    let mut patience = Instant::now() + PATIENCE;
    while !is_over.load(Ordering::SeqCst) {
        assert!(Instant::now() < patience, "nobody serves");
        let Some(mut peer) = FakeLeecher::connect(addr, content) else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        if !peer.unchoked(Duration::from_secs(5)) {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        let mut has_fetched = false;
        while !is_over.load(Ordering::SeqCst) {
            // Another part of the torrent each time.
            let block = at.wrapping_mul(7_919) % all;
            let piece = u32::try_from(block / blocks_in_piece).unwrap();
            let begin = u32::try_from(block % blocks_in_piece).unwrap() * BLOCK;
            let end = content.piece_range(piece).len() as u32;
            if begin >= end {
                at += 1;
                continue;
            }
            let length = BLOCK.min(end - begin);
            match peer.fetch(piece, begin, length, Duration::from_secs(30)) {
                Answer::Block(bytes) => {
                    let right = content.block(piece, begin, length).unwrap();
                    assert!(bytes == right, "wrong bytes of piece {piece} at {begin}");
                }
                Answer::Closed => {
                    ends += u64::from(has_fetched);
                    break;
                }
                failed => panic!("piece {piece} at {begin}: {failed:?}"),
            }
            (at, has_fetched) = (at + 1, true);
            patience = Instant::now() + PATIENCE;
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
    ends
}

#[test]
fn a_seed_is_served_from_the_old_file_system_until_all_is_on_the_new_one() {
    let test = "a_seed_is_served_from_the_old_file_system";
    let is_long = std::env::var_os("GYRE_LONG").is_some();
    let bytes = if is_long { 64 * MIB } else { 3 * MIB };
    let Some(mounted) = Mounted::small(test, 16 * bytes as u64 + (64 << 20)) else {
        return;
    };
    let sample = tree(16, bytes);
    let content = Content::of(&sample);
    std::fs::write(sample.content.join("not of the torrent"), "stays").unwrap();
    let mut daemon = Daemon::start(&sample.dir("state"));
    let addr = daemon.gyre.listening();
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    let peer = Constant::start(addr, content.clone());
    peer.wait_for(20);
    let target = mounted.path().join("deeper/down");
    let before = peer.blocks();
    assert_eq!(daemon.relocate(&info_hash, &target, true), None);
    daemon.torrent_until("committed", |torrent| {
        torrent["folder"] == target.to_str().unwrap()
    });
    let meanwhile = peer.blocks() - before;
    let moved = daemon.moved();
    assert_eq!(moved["move_trouble"], serde_json::Value::Null);
    daemon.seeding();
    peer.wait_for(peer.blocks() + 50);
    let ends = peer.end();
    println!("{meanwhile} blocks during the move, {ends} connections ended");
    assert!(meanwhile > 0, "nothing was served during the move");
    assert!(
        ends <= 1,
        "{ends} connections ended, one may when it switches"
    );
    let seeding = daemon.seeding();
    assert_eq!(seeding["pieces_checked"], 0, "hashed anew: {seeding}");
    let there: Vec<u8> = {
        let mut files = all_in(&target);
        files.retain(|path| path.is_file());
        files
            .iter()
            .flat_map(|path| std::fs::read(path).unwrap())
            .collect()
    };
    assert!(there == *content.bytes, "the files are not the same");
    let left = all_in(&sample.data);
    assert_eq!(
        left,
        [
            sample.content.clone(),
            sample.content.join("not of the torrent")
        ]
    );
    daemon.terminate();
    let mut daemon = Daemon::start(&sample.dir("state"));
    assert_eq!(daemon.seeding()["pieces_checked"], 0);
    daemon.terminate();
}

#[test]
fn within_a_file_system_nothing_is_copied_and_one_file_moves_too() {
    let sample = Sample::file(3 * MIB, 65_536, &[]);
    let content = Content::of(&sample);
    let mut daemon = Daemon::start(&sample.dir("state"));
    let addr = daemon.gyre.listening();
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    let inode =
        |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&sample.content);
    let peer = Constant::start(addr, content);
    peer.wait_for(5);
    for name in ["first", "second"] {
        let target = sample.folder.path().join(name);
        assert_eq!(daemon.relocate(&info_hash, &target, true), None);
        let moved = daemon.moved();
        assert_eq!(moved["folder"], target.to_str().unwrap(), "{moved}");
        assert_eq!(daemon.seeding()["pieces_checked"], 0);
        assert_eq!(inode(&target.join("sample.bin")), before);
        peer.wait_for(peer.blocks() + 5);
    }
    assert_eq!(all_in(&sample.data), Vec::<PathBuf>::new());
    assert_eq!(
        all_in(&sample.folder.path().join("first")),
        Vec::<PathBuf>::new()
    );
    assert!(peer.end() <= 2);
    daemon.terminate();
}

#[test]
fn a_move_that_was_killed_in_the_middle_goes_on_with_the_next_start() {
    let test = "a_move_that_was_killed";
    let sample = tree(24, MIB);
    let (behind, target) = (sample.dir("behind"), sample.dir("target"));
    let Some(mount) = HangingMount::new(test, &behind, &target, Hang::Untaken) else {
        return;
    };
    let mut daemon = Daemon::start(&sample.dir("state"));
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    assert_eq!(daemon.relocate(&info_hash, &target, true), None);
    let files = || {
        let all = all_in(&behind.join("sample"));
        all.iter().filter(|path| path.is_file()).count()
    };
    let end = Instant::now() + PATIENCE;
    while files() < 3 {
        assert!(Instant::now() < end, "{}", daemon.gyre.stderr());
        std::thread::sleep(Duration::from_millis(1));
    }
    mount.hang();
    let copied = files();
    assert!(copied < 24, "it is over already");
    daemon.gyre.kill9();
    mount.resume();
    assert!(
        sample.is_same_in(&sample.data),
        "the old place lost something"
    );

    let mut daemon = Daemon::start(&sample.dir("state"));
    daemon.moved();
    let seeding = daemon.seeding();
    assert_eq!(seeding["folder"], target.to_str().unwrap(), "{seeding}");
    assert_eq!(seeding["pieces_checked"], 0, "{seeding}");
    assert_eq!(all_in(&sample.data), Vec::<PathBuf>::new());
    // What shows the copies is the folder behind the mount; the sample's own files are gone.
    assert_eq!(files(), 24);
    let names: BTreeSet<_> = all_in(&behind)
        .into_iter()
        .filter(|path| path.is_file())
        .collect();
    assert_eq!(names.len(), 24, "something else was left: {names:?}");
    daemon.terminate();
}

#[test]
fn a_download_rests_while_it_is_moved_and_goes_on_from_there() {
    let test = "a_download_rests_while_it_is_moved";
    let Some(mounted) = Mounted::small(test, 64 << 20) else {
        return;
    };
    let sample = tree(6, MIB);
    let half = sample.dir("half");
    let copied = sample.content.join("folder 0");
    std::fs::create_dir_all(half.join("sample")).unwrap();
    support::machine::copy(&copied, &half.join("sample/folder 0"));
    let mut daemon = Daemon::start(&sample.dir("state"));
    let info_hash = daemon.add(&sample, &half);
    let has_some = |torrent: &serde_json::Value| {
        torrent["state"] != "checking" && torrent["pieces_have"].as_u64() > Some(0)
    };
    let before = daemon.torrent_until("checked", has_some)["pieces_have"].clone();
    assert_eq!(daemon.relocate(&info_hash, mounted.path(), true), None);
    let moved = daemon.moved();
    assert_eq!(moved["folder"], mounted.path().to_str().unwrap(), "{moved}");
    let after = daemon.torrent_until("it runs again", |torrent| {
        has_some(torrent) && torrent["activity"] == "Running"
    });
    assert_eq!(after["pieces_have"], before, "{after}");
    assert_eq!(all_in(&half), Vec::<PathBuf>::new());
    daemon.terminate();
}

#[test]
fn another_folder_without_a_move_is_looked_at_anew() {
    let sample = tree(4, MIB);
    let other = sample.dir("other");
    support::machine::copy(&sample.content, &other.join("sample"));
    std::fs::write(other.join("sample/folder 0/0"), vec![0; MIB]).unwrap();
    let mut daemon = Daemon::start(&sample.dir("state"));
    let info_hash = daemon.add(&sample, &sample.data);
    let whole = daemon.seeding()["pieces_have"].clone();
    assert_eq!(daemon.relocate(&info_hash, &other, false), None);
    let is_other = |torrent: &serde_json::Value| {
        torrent["state"] == "stalled" && torrent["pieces_have"].as_u64() < whole.as_u64()
    };
    let other = daemon.torrent_until("the other data", is_other);
    assert!(other["pieces_have"].as_u64() > Some(0), "{other}");
    assert!(
        sample.is_same_in(&sample.data),
        "the old files are not touched"
    );
    daemon.terminate();
}

#[test]
fn what_is_there_already_is_never_replaced_and_stops_the_move_before_it_begins() {
    let sample = tree(4, MIB);
    let other = sample.dir("other");
    let theirs = other.join("sample/folder 0/0");
    std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    // The same length: it is somebody's all the same.
    std::fs::write(&theirs, vec![7; MIB]).unwrap();
    let mut daemon = Daemon::start(&sample.dir("state"));
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    let refused = daemon.relocate(&info_hash, &other, true).unwrap();
    assert!(refused.contains("folder 0/0 is there already"), "{refused}");
    assert_eq!(std::fs::read(&theirs).unwrap(), vec![7; MIB]);
    let torrent = daemon.torrent();
    assert_eq!(torrent["folder"], sample.data.to_str().unwrap());
    assert_eq!(torrent["state"], "seeding", "it never stopped: {torrent}");
    assert!(sample.is_same_in(&sample.data));
    assert_eq!(
        daemon.relocate(&info_hash, &sample.data, true),
        None,
        "to itself"
    );
    assert!(sample.is_same_in(&sample.data));
    daemon.terminate();
}

#[test]
fn a_link_at_the_new_place_leads_nothing_out_of_it() {
    let sample = tree(4, MIB);
    let (other, outside) = (sample.dir("other"), sample.dir("outside"));
    std::os::unix::fs::symlink(&outside, other.join("sample")).unwrap();
    let mover = Mover::open(&config(&sample), &other, Start::Fresh, true);
    assert!(mover.is_err());
    assert_eq!(all_in(&outside), Vec::<PathBuf>::new());
    assert!(sample.is_same_in(&sample.data));
}

#[test]
fn a_disk_that_is_too_small_or_fills_up_leaves_the_old_place_and_no_copies() {
    let test = "a_disk_that_is_too_small_or_fills_up";
    let sample = tree(8, MIB);
    let Some(small) = Mounted::small(test, 4 << 20) else {
        return;
    };
    let target = small.path().join("new");
    match Mover::open(&config(&sample), &target, Start::Fresh, true) {
        Err(RelocateError::NoRoom { needed_bytes, .. }) => assert!(needed_bytes >= 8 << 20),
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(
        all_in(small.path()),
        Vec::<PathBuf>::new(),
        "a folder was left"
    );
    let Some(enough) = Mounted::small(test, 12 << 20) else {
        return;
    };
    let target = enough.path().join("new");
    let mut mover = Mover::open(&config(&sample), &target, Start::Fresh, true).unwrap();
    let theirs = enough.path().join("theirs");
    std::fs::write(&theirs, vec![1; 7 * MIB]).unwrap();
    match mover.copy(&MoveProgress::default()) {
        Err(RelocateError::Io { source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
        }
        other => panic!("{other:?}"),
    }
    mover.discard();
    assert_eq!(all_in(enough.path()), [theirs]);
    assert!(sample.is_same_in(&sample.data));
}

#[test]
fn what_changes_while_it_is_copied_is_copied_anew_before_the_switch() {
    let test = "what_changes_while_it_is_copied";
    let sample = tree(4, MIB);
    let Some(mounted) = Mounted::small(test, 64 << 20) else {
        return;
    };
    let mut mover = Mover::open(&config(&sample), mounted.path(), Start::Fresh, true).unwrap();
    assert!(!mover.is_quick());
    let progress = MoveProgress::default();
    mover.copy(&progress).unwrap();
    assert!((progress.share() - 1.0).abs() < 1e-9);
    let changed = sample.content.join("folder 1/1");
    std::fs::write(&changed, vec![9; MIB / 2]).unwrap();
    mover.settle(&sample.dir("state"), &progress).unwrap();
    let copy = mounted.path().join("sample/folder 1/1");
    assert_eq!(std::fs::read(copy).unwrap(), vec![9; MIB / 2]);
    // Behind the commit somebody puts a file of theirs in the old place.
    std::fs::write(&changed, "theirs").unwrap();
    let kept = mover.remove_old(&sample.dir("state"));
    assert!(
        kept.len() == 1 && kept[0].contains("folder 1/1"),
        "{kept:?}"
    );
    assert_eq!(std::fs::read(&changed).unwrap(), b"theirs");
}

#[test]
fn ctl_moves_and_shows_and_the_roots_are_kept_to() {
    let sample = tree(4, MIB);
    let state = sample.dir("state");
    let (roots, outside) = (sample.dir("roots"), sample.dir("outside"));
    let roots_given = roots.to_str().unwrap();
    let mut daemon = Daemon::start_with(&state, &["--api-roots", roots_given]);
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    let ctl = |arguments: &[&str]| {
        let mut command = support::program::command();
        command
            .arg("ctl")
            .args(arguments)
            .arg("--state")
            .arg(&state);
        let output = command.output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(told).unwrap())
    };
    let (is_done, told) = ctl(&["move", &info_hash, "--to", outside.to_str().unwrap()]);
    assert!(!is_done && told.contains("outside those"), "{told}");
    let target = roots.join("new");
    let (is_done, told) = ctl(&["move", &info_hash, "--to", target.to_str().unwrap()]);
    assert!(is_done, "{told}");
    daemon.moved();
    assert!(sample.data.exists() && all_in(&sample.data).is_empty());
    // The list is looked at anew now and then.
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, shown) = ctl(&["show", &info_hash]);
        if shown.contains(target.to_str().unwrap()) && shown.contains("seeding") {
            break;
        }
        assert!(Instant::now() < end, "{shown}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(target.join("sample/folder 0/0").exists());
    daemon.terminate();
}

#[test]
fn files_folders_and_the_root_are_renamed_and_stay_so() {
    let sample = tree(4, MIB);
    let content = Content::of(&sample);
    let mut daemon = Daemon::start(&sample.dir("state"));
    let addr = daemon.gyre.listening();
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    let rename = |daemon: &mut Daemon, path: &str, name: &str| {
        let asked = serde_json::json!({
            "do": "rename", "info_hash": info_hash, "path": path, "name": name,
        });
        daemon.ask(asked)["error"].as_str().map(str::to_owned)
    };
    for (path, name) in [
        ("sample/folder 0/0", "zero"),
        ("sample/folder 0", "first"),
        ("sample", "other root"),
        ("other root/first/zero", "nil"),
    ] {
        assert_eq!(rename(&mut daemon, path, name), None, "{path}");
    }
    for (path, name) in [
        ("sample/folder 1", "x"),
        ("other root/first", "folder 1"),
        ("other root", "../out"),
        ("", "z"),
        ("/", "z"),
        ("./", "z"),
    ] {
        assert!(rename(&mut daemon, path, name).is_some(), "{path}");
    }
    std::fs::write(sample.data.join("taken"), "theirs").unwrap();
    let taken = rename(&mut daemon, "other root", "taken").unwrap();
    assert!(taken.contains("is there already"), "{taken}");
    let seeding = daemon.seeding();
    assert_eq!(seeding["pieces_checked"], 0, "{seeding}");
    assert_eq!(seeding["name"], "other root");
    let peer = Constant::start(addr, content);
    peer.wait_for(50);
    peer.end();
    assert!(sample.data.join("other root/first/nil").exists());
    assert!(!sample.content.exists());
    daemon.gyre.kill9();
    let mut daemon = Daemon::start(&sample.dir("state"));
    let seeding = daemon.seeding();
    assert_eq!(
        (&seeding["name"], &seeding["trouble"]),
        (&"other root".into(), &serde_json::Value::Null)
    );
    daemon.terminate();
}

#[test]
fn a_move_that_was_killed_behind_the_switch_takes_the_old_files_away_later() {
    let test = "a_move_that_was_killed_behind_the_switch";
    let sample = tree(24, 65_536);
    let (shown, target) = (sample.dir("shown"), sample.dir("target"));
    let Some(mount) = HangingMount::new(test, &sample.data, &shown, Hang::Untaken) else {
        return;
    };
    let mut daemon = Daemon::start(&sample.dir("state"));
    let info_hash = daemon.add(&sample, &shown);
    daemon.seeding();
    assert_eq!(daemon.relocate(&info_hash, &target, true), None);
    daemon.torrent_until("committed", |torrent| {
        torrent["folder"] == target.to_str().unwrap()
    });
    mount.hang();
    daemon.gyre.kill9();
    mount.resume();
    println!("{} left", all_in(&sample.data).len());
    let mut daemon = Daemon::start(&sample.dir("state"));
    daemon.moved();
    let seeding = daemon.seeding();
    assert_eq!(seeding["folder"], target.to_str().unwrap(), "{seeding}");
    assert_eq!(all_in(&sample.data), Vec::<PathBuf>::new());
    let files = all_in(&target.join("sample"));
    assert_eq!(files.iter().filter(|path| path.is_file()).count(), 24);
    daemon.terminate();
}

#[test]
fn a_torrent_that_is_removed_while_it_moves_leaves_nothing_at_either_place() {
    let test = "a_torrent_that_is_removed_while_it_moves";
    let sample = tree(24, MIB);
    let (behind, target) = (sample.dir("behind"), sample.dir("target"));
    let Some(_mount) = HangingMount::new(test, &behind, &target, Hang::Untaken) else {
        return;
    };
    let mut daemon = Daemon::start(&sample.dir("state"));
    let info_hash = daemon.add(&sample, &sample.data);
    daemon.seeding();
    assert_eq!(daemon.relocate(&info_hash, &target, true), None);
    let busy = daemon
        .relocate(&info_hash, &sample.dir("third"), true)
        .unwrap();
    assert!(busy.contains("are being moved"), "{busy}");
    let end = Instant::now() + PATIENCE;
    while all_in(&behind.join("sample")).len() < 4 {
        assert!(Instant::now() < end, "{}", daemon.gyre.stderr());
        std::thread::sleep(Duration::from_millis(1));
    }
    let asked = serde_json::json!({
        "do": "remove", "info_hash": info_hash, "with_data": true,
    });
    let removed = daemon.ask(asked);
    assert_eq!(removed["error"], serde_json::Value::Null, "{removed}");
    assert_eq!(all_in(&behind), Vec::<PathBuf>::new());
    assert_eq!(all_in(&sample.data), Vec::<PathBuf>::new());
    daemon.terminate();
}
