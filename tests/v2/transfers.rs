//! Data between Gyre and libtorrent, each way.

use std::path::Path;
use std::time::Duration;

use crate::info_hashes::{gyre, tree};
use crate::libtorrent::{self, Peer};
use crate::support::Gyre;
use crate::support::sample::{noise, text};

pub fn same(left: &Path, right: &Path) -> bool {
    if !left.is_dir() {
        return std::fs::read(left).ok() == std::fs::read(right).ok();
    }
    let mut entries = std::fs::read_dir(left).unwrap().flatten();
    entries.all(|entry| same(&entry.path(), &right.join(entry.file_name())))
}

/// A seeder of Gyre's over content in a folder.
pub fn seed(torrent: &str, folder: &str) -> (Gyre, String) {
    let state = format!("{folder}/state-of-seed");
    let mut seed = Gyre::start(&[
        "seed", torrent, "--data", folder, "--state", &state, "--port", "0",
    ]);
    let addr = seed.listening().to_string();
    (seed, addr)
}

/// Fetches from one peer until all is there.
pub fn download(source: &str, to: &str, peer: &str) {
    let state = format!("{to}-state");
    let mut leech = Gyre::start(&[
        "download", source, "-o", to, "--state", &state, "--port", "0", "--peer", peer,
    ]);
    leech.wait_for_within("complete", Duration::from_secs(300), |event| {
        event["event"] == "complete"
    });
    assert_eq!(leech.wait_exit(Duration::from_secs(30)), 0);
}

fn both_ways(content: &Path, option: &str) {
    if !libtorrent::is_here() {
        return;
    }
    let folder = content.parent().unwrap();
    let (data, torrent) = (text(folder), text(&folder.join("x.torrent")));
    gyre(&["create", &text(content), "-f", "-o", &torrent, option]);
    let name = content.file_name().unwrap();
    let out = |name: &str| {
        let out = folder.join(format!("{option}-{name}"));
        std::fs::create_dir_all(&out).unwrap();
        out
    };

    let ours = out("ours");
    let seeder = Peer::start(&torrent, &data, None);
    download(
        &torrent,
        &text(&ours),
        &format!("127.0.0.1:{}", seeder.port),
    );
    assert!(same(content, &ours.join(name)));
    drop(seeder);

    let theirs = out("theirs");
    let (_seeder, addr) = seed(&torrent, &data);
    Peer::start(&torrent, &text(&theirs), Some(&addr)).complete();
    assert!(same(content, &theirs.join(name)));

    let again = out("again");
    download(&torrent, &text(&again), &addr);
    assert!(same(content, &again.join(name)));
}

#[test]
fn a_tree_of_two_hundred_files_goes_both_ways() {
    for option in ["--v2", "--hybrid"] {
        let folder = tempfile::tempdir().unwrap();
        let content = folder.path().join("content");
        tree(&content);
        both_ways(&content, option);
    }
}

/// 1 GiB with `GYRE_LONG=1`.
#[test]
fn a_large_file_goes_both_ways() {
    let bytes = match std::env::var_os("GYRE_LONG") {
        Some(_) => 1 << 30,
        None => 16 << 20,
    };
    for option in ["--v2", "--hybrid"] {
        let folder = tempfile::tempdir().unwrap();
        let content = folder.path().join("content");
        std::fs::write(&content, noise(bytes + 12_345, 3)).unwrap();
        both_ways(&content, option);
    }
}
