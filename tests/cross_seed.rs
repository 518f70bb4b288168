//! Torrents whose files other torrents have already: seeded without being fetched or hashed again, and nothing written into
//! what is shared, whatever the torrent says (HOSTILE.md L17).

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::program::{PATIENCE, command};
use support::raw_peer::{RawPeer, message, request};
use support::sample::{noise, text};
use support::{Daemon, Gyre, Sample};

const PIECE: usize = 16_384;
/// Of the message `piece`.
const PIECE_ID: u8 = 7;

/// Another torrent in the sample's folder: its files under other names, or other files of the same lengths.
struct Twin {
    /// Folder that holds the content.
    data: PathBuf,
    torrent: PathBuf,
    info_hash: String,
    /// The content's name.
    root: String,
}

impl Twin {
    /// Of what `make` puts at the path that it is given.
    fn make(sample: &Sample, name: &str, root: &str, make: impl FnOnce(&Path)) -> Twin {
        let data = sample.dir(&format!("{name}.data"));
        make(&data.join(root));
        let torrent = sample.folder.path().join(format!("{name}.torrent"));
        let mut create = command();
        create.args([
            "create",
            "--json",
            "--piece-length",
            &PIECE.to_string(),
            "-o",
        ]);
        let output = create.arg(&torrent).arg(data.join(root)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        Twin {
            data,
            torrent,
            info_hash: made["info_hash"].as_str().unwrap().to_owned(),
            root: root.to_owned(),
        }
    }

    /// Of a tree of the sample with all names changed.
    fn renamed(sample: &Sample, name: &str) -> Twin {
        Twin::make(sample, name, "other root", |root| {
            std::fs::create_dir_all(root.join("sub")).unwrap();
            for (at, path) in files(&sample.content).iter().enumerate() {
                // The same order: pieces go over the ends of files.
                std::fs::copy(path, root.join(format!("sub/{at}.other"))).unwrap();
            }
        })
    }

    fn is_same_in(&self, root: &Path) -> bool {
        let original = self.data.join(&self.root);
        let (ours, theirs) = (files(&original), files(root));
        ours.len() == theirs.len()
            && ours.iter().zip(&theirs).all(|(ours, theirs)| {
                std::fs::read(ours).unwrap() == std::fs::read(theirs).unwrap()
            })
    }
}

/// The files below a path, sorted; the path itself if it is one.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        all.extend(files(&entry.path()));
    }
    all.sort();
    all
}

/// What must never change of a file that is shared.
fn looks(path: &Path) -> Vec<(u64, i64, Vec<u8>)> {
    let look = |path: &PathBuf| {
        let stat = std::fs::metadata(path).unwrap();
        let mtime = stat.mtime() * 1_000_000_000 + stat.mtime_nsec();
        (stat.ino(), mtime, std::fs::read(path).unwrap())
    };
    files(path).iter().map(look).collect()
}

fn inodes(path: &Path) -> Vec<u64> {
    let inode = |path: &PathBuf| std::fs::metadata(path).unwrap().ino();
    files(path).iter().map(inode).collect()
}

fn hex(info_hash: &str) -> [u8; 20] {
    let byte = |at: usize| u8::from_str_radix(&info_hash[2 * at..2 * at + 2], 16).unwrap();
    std::array::from_fn(byte)
}

fn add(daemon: &mut Daemon, torrent: &Path, folder: &Path) -> String {
    let answer = daemon.ask(json!({
        "do": "add", "torrent": text(torrent), "folder": text(folder),
    }));
    answer["info_hash"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

#[track_caller]
fn until(daemon: &mut Daemon, info_hash: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + 3 * PATIENCE;
    loop {
        let list = daemon.ask(json!({ "do": "list" }))["torrents"].take();
        let torrents = list.as_array().unwrap();
        let torrent = torrents.iter().find(|one| one["info_hash"] == info_hash);
        if let Some(torrent) = torrent.filter(|torrent| is_it(torrent)) {
            return torrent.clone();
        }
        assert!(Instant::now() < end, "{list}\n{}", daemon.gyre.stderr());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn seeding(daemon: &mut Daemon, info_hash: &str) -> Value {
    until(daemon, info_hash, |torrent| torrent["state"] == "seeding")
}

/// A daemon that seeds the sample from where it lies, with a record that says so.
struct World {
    sample: Sample,
    daemon: Daemon,
    addr: SocketAddr,
}

impl World {
    fn new(sample: Sample) -> World {
        World::with(sample, &[])
    }

    fn with(sample: Sample, options: &[&str]) -> World {
        let state = sample.folder.path().join("state");
        let mut daemon = Daemon::start_with(&state, options);
        let addr = daemon.gyre.listening();
        let original = daemon.add(&sample, &sample.data);
        seeding(&mut daemon, &original);
        let end = Instant::now() + PATIENCE;
        let is_there = || {
            let records = std::fs::read_dir(state.join("resume"));
            records.into_iter().flatten().flatten().any(|record| {
                let name = record.file_name().into_string().unwrap();
                name.starts_with(&original) && name.ends_with(".resume")
            })
        };
        while !is_there() {
            assert!(Instant::now() < end, "no record");
            std::thread::sleep(Duration::from_millis(10));
        }
        World {
            sample,
            daemon,
            addr,
        }
    }

    /// The sample as a twin of itself.
    fn original(&self) -> Twin {
        let hash = self.sample.info_hash.iter();
        Twin {
            data: self.sample.data.clone(),
            torrent: self.sample.torrent.clone(),
            info_hash: hash.map(|byte| format!("{byte:02x}")).collect(),
            root: self
                .sample
                .content
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
        }
    }

    /// A command beside the daemon that dials it.
    fn beside(&self, verb: &str, torrent: &Path, place: &str, folder: &Path) -> Gyre {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let state = self.sample.dir(&format!("beside.{number}"));
        Gyre::start(&[
            verb,
            &text(torrent),
            place,
            &text(folder),
            "--state",
            &text(&state),
            "--port",
            "0",
            "--no-trackers",
            "--no-dht",
            "--no-lsd",
            "--no-port-map",
            "--bind",
            "127.0.0.1",
            "--buffers",
            "4MiB",
            "--peer",
            &self.addr.to_string(),
        ])
    }

    /// What a peer gets of a torrent from the daemon.
    #[track_caller]
    fn fetch(&self, twin: &Twin, name: &str) {
        let output = self.sample.dir(name);
        let mut leecher = self.beside("download", &twin.torrent, "--output", &output);
        assert_eq!(leecher.wait_exit(PATIENCE), 0, "{}", leecher.stderr());
        assert!(twin.is_same_in(&output.join(&twin.root)));
    }
}

fn tree() -> Sample {
    // Sorted as they are in the torrent.
    Sample::tree(
        &[
            ("a.bin", 40 * PIECE + 77),
            ("b.nfo", 300),
            ("c/d.bin", 25 * PIECE),
            ("c/e.bin", 60_001),
        ],
        PIECE as u32,
        &[],
    )
}

#[test]
fn the_same_files_under_other_names_are_seeded_without_being_hashed_again() {
    let mut world = World::new(tree());
    let twin = Twin::renamed(&world.sample, "twin");
    let before = looks(&world.sample.content);
    let folder = world.sample.dir("place");
    let added = add(&mut world.daemon, &twin.torrent, &folder);
    assert_eq!(added, twin.info_hash);
    let torrent = seeding(&mut world.daemon, &added);
    assert_eq!(torrent["pieces_checked"], 0, "{torrent}");
    assert_eq!(torrent["is_unproven"], true, "{torrent}");
    let root = folder.join(&twin.root);
    assert!(twin.is_same_in(&root));
    let unproven = |torrent: &Value| torrent["pieces_unproven"].as_u64().unwrap();
    // One piece a file, the ends of all and four more are hashed, at most.
    assert!(unproven(&torrent) >= 69 - 4 - 8 - 4, "{torrent}");
    world.fetch(&twin, "leech");
    // What was sent was hashed before.
    until(&mut world.daemon, &added, |torrent| unproven(torrent) == 0);
    // That its files got second names did not have the original hashed.
    let original = world.original();
    world.fetch(&original, "leech of the original");
    let torrent = seeding(&mut world.daemon, &original.info_hash);
    assert_eq!(torrent["pieces_have"], 69, "{torrent}");
    let told = world.daemon.gyre.stderr();
    assert!(!told.contains("changed by another"), "{told}");
    assert_eq!(looks(&world.sample.content), before);
    world.daemon.terminate();
}

#[test]
fn what_is_not_proven_is_so_behind_a_kill_and_a_restart() {
    let mut world = World::new(tree());
    let twin = Twin::renamed(&world.sample, "twin");
    let folder = world.sample.dir("place");
    let added = add(&mut world.daemon, &twin.torrent, &folder);
    let before = seeding(&mut world.daemon, &added)["pieces_unproven"].clone();
    world.daemon.gyre.kill9();
    world.daemon = Daemon::start(&world.sample.folder.path().join("state"));
    world.addr = world.daemon.gyre.listening();
    until(&mut world.daemon, &added, |torrent| {
        torrent["activity"] == "Asleep" || torrent["state"] == "seeding"
    });
    // It may sleep until somebody asks.
    let _peer = RawPeer::dial(world.addr, hex(&added));
    let torrent = seeding(&mut world.daemon, &added);
    assert_eq!(torrent["pieces_unproven"], before, "{torrent}");
    assert_eq!(torrent["pieces_checked"], 0, "{torrent}");
    world.fetch(&twin, "leech");
    until(&mut world.daemon, &added, |torrent| {
        torrent["pieces_unproven"] == 0
    });
    world.daemon.terminate();
}

#[test]
fn a_torrent_of_one_file_shares_it_with_another_while_both_run() {
    let mut world = World::new(Sample::file(100 * PIECE + 5, PIECE as u32, &[]));
    let content = world.sample.content.clone();
    let twin = Twin::make(&world.sample, "twin", "other name.bin", |root| {
        std::fs::copy(&content, root).unwrap();
    });
    let before = looks(&content);
    let folder = world.sample.data.clone();
    let added = add(&mut world.daemon, &twin.torrent, &folder);
    seeding(&mut world.daemon, &added);
    world.fetch(&twin, "leech");
    assert_eq!(looks(&content), before);
    world.daemon.terminate();
}

#[test]
fn a_torrent_that_claims_other_contents_of_the_same_lengths_and_names_changes_nothing() {
    claims_other_contents(&[], |world| world.sample.data.clone());
}

#[test]
fn neither_does_one_that_names_the_folder_otherwise_where_nothing_is_looked_for() {
    claims_other_contents(&["--cross-seed", "false"], |world| {
        let link = world.sample.folder.path().join("link");
        std::os::unix::fs::symlink(&world.sample.data, &link).unwrap();
        link
    });
}

/// Adds a torrent of the same names and lengths to the very folder that the original lies in, and lets it have its data.
fn claims_other_contents(options: &[&str], folder: impl FnOnce(&World) -> PathBuf) {
    let mut world = World::with(tree(), options);
    let content = world.sample.content.clone();
    let root = content.file_name().unwrap().to_str().unwrap().to_owned();
    let hostile = Twin::make(&world.sample, "hostile", &root, |root| {
        for (at, path) in files(&content).iter().enumerate() {
            let to = root.join(path.strip_prefix(&content).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            let length = std::fs::metadata(path).unwrap().len() as usize;
            std::fs::write(to, noise(length, 100 + at as u64)).unwrap();
        }
    });
    let before = looks(&content);
    let folder = folder(&world);
    let added = add(&mut world.daemon, &hostile.torrent, &folder);
    let _seeder = world.beside("seed", &hostile.torrent, "--data", &hostile.data);
    let torrent = seeding(&mut world.daemon, &added);
    assert_eq!(torrent["is_unproven"], false, "{torrent}");
    let own = folder.join(torrent["name"].as_str().unwrap());
    assert_ne!(own, content);
    assert!(hostile.is_same_in(&own));
    assert_eq!(looks(&content), before);
    world.daemon.terminate();
}

#[test]
fn a_piece_that_the_sample_missed_is_never_sent_wrong_and_fetched_into_a_copy() {
    let mut world = World::new(Sample::file(600 * PIECE, PIECE as u32, &[]));
    let content = world.sample.content.clone();
    let before = looks(&content);
    // Nobody knows which pieces are looked at: one that is found out gets no file.
    let (hostile, added, bad) = (300..)
        .find_map(|bad| {
            let name = format!("hostile {bad}.bin");
            let hostile = Twin::make(&world.sample, &name, &name, |root| {
                let mut bytes = std::fs::read(&content).unwrap();
                bytes[bad * PIECE + 100] ^= 1;
                std::fs::write(root, bytes).unwrap();
            });
            let folder = world.sample.dir("place");
            let added = add(&mut world.daemon, &hostile.torrent, &folder);
            let torrent = until(&mut world.daemon, &added, |torrent| {
                torrent["state"] == "seeding" || torrent["state"] == "stalled"
            });
            (torrent["state"] == "seeding").then_some((hostile, added, bad))
        })
        .unwrap();
    // It is asked for by a peer that has no other source.
    let mut peer = RawPeer::dial(world.addr, hex(&added));
    peer.send(&message(2, &[]));
    peer.get_unchoked();
    let piece = bad as u32;
    assert_eq!(peer.fetch(piece + 1, 0, 16_384).len(), 16_384);
    peer.send(&request(piece, 0, 16_384));
    until(&mut world.daemon, &added, |torrent| {
        torrent["pieces_have"] == 599
    });
    peer.send(&request(piece + 2, 0, 16_384));
    let frame = peer.wait_for(PIECE_ID);
    let (next, ..) = frame.block();
    assert_eq!(next, piece + 2, "the bad piece was sent");
    // What is right by its hashes comes from others, and changes a copy.
    let _seeder = world.beside("seed", &hostile.torrent, "--data", &hostile.data);
    seeding(&mut world.daemon, &added);
    assert_eq!(looks(&content), before);
    world.fetch(&hostile, "leech");
    drop(peer);
    assert_eq!(looks(&content), before);
    world.daemon.terminate();
}

#[test]
fn what_is_missing_is_fetched_and_never_written_into_what_is_shared() {
    let mut world = World::new(tree());
    let content = world.sample.content.clone();
    // Each file is followed by one that nobody has: every end of a shared file lies in a piece that is to be fetched.
    let more = Twin::make(&world.sample, "more", "more", |root| {
        std::fs::create_dir_all(root).unwrap();
        for (at, path) in files(&content).iter().enumerate() {
            std::fs::copy(path, root.join(format!("{at}.a"))).unwrap();
            std::fs::write(root.join(format!("{at}.b")), noise(9_000, 50 + at as u64)).unwrap();
        }
    });
    let before = looks(&content);
    let folder = world.sample.dir("place");
    let added = add(&mut world.daemon, &more.torrent, &folder);
    let found = until(&mut world.daemon, &added, |torrent| {
        torrent["state"] == "stalled" || torrent["state"] == "downloading"
    });
    assert_eq!(found["pieces_checked"], 0, "{found}");
    assert!(found["pieces_have"].as_u64().unwrap() >= 60, "{found}");
    let root = folder.join(&more.root);
    let _seeder = world.beside("seed", &more.torrent, "--data", &more.data);
    seeding(&mut world.daemon, &added);
    assert!(more.is_same_in(&root));
    assert_eq!(looks(&content), before);
    let (ours, theirs) = (inodes(&root), inodes(&content));
    assert!(
        ours.iter().all(|inode| !theirs.contains(inode)),
        "what was written is still shared"
    );
    world.fetch(&more, "leech");
    world.daemon.terminate();
}
