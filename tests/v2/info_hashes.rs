//! Torrents of each kind, made by one program and read by the other.

use std::path::Path;

use serde_json::Value;

use crate::libtorrent;
use crate::support::program;
use crate::support::sample::{noise, text};

const PIECE_LENGTH: &str = "65536";

/// Two hundred files in folders, some empty, some ending with a block or a piece.
pub fn tree(root: &Path) {
    let lengths = [1, 100, 16_384, 16_385, 0, 65_536, 65_537, 131_072, 300_001];
    for at in 0..200 {
        let path = match at % 4 {
            0 => root.join(format!("top {at}")),
            1 => root.join(format!("e{}/f{at}", at % 7)),
            2 => root.join(format!("d{}/f{at}", at % 7)),
            _ => root.join(format!("d{}/e/f{at}", at % 7)),
        };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, noise(lengths[at % lengths.len()], at as u64 + 1)).unwrap();
    }
}

pub fn gyre(arguments: &[&str]) -> Value {
    let output = program::command().args(arguments).arg("--json").output();
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Both info_hashes as `lt.py` prints them.
fn said(shown: &Value) -> String {
    let v2 = shown["info_hash_v2"].as_str();
    let v1 = match shown["kind"].as_str() == Some("v2") {
        true => "-",
        false => shown["info_hash"].as_str().unwrap(),
    };
    format!("{v1} {}", v2.unwrap_or("-"))
}

#[test]
fn each_program_finds_the_info_hashes_of_the_others_torrents() {
    if !libtorrent::is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    tree(&folder.path().join("tree"));
    std::fs::write(folder.path().join("single"), noise(1_000_001, 7)).unwrap();
    for content in ["tree", "single"] {
        let content = text(&folder.path().join(content));
        for (kind, option) in [
            ("v1", None),
            ("v2", Some("--v2")),
            ("hybrid", Some("--hybrid")),
        ] {
            let theirs = format!("{content}-{kind}-lt.torrent");
            libtorrent::run(&["make", &content, &theirs, PIECE_LENGTH, kind]);
            let shown = gyre(&["info", &theirs]);
            assert_eq!(shown["kind"], kind);
            assert_eq!(
                said(&shown),
                libtorrent::run(&["hashes", &theirs]),
                "{theirs}"
            );

            let ours = format!("{content}-{kind}.torrent");
            let mut create = vec![
                "create",
                &content,
                "-o",
                &ours,
                "--piece-length",
                PIECE_LENGTH,
            ];
            create.extend(option);
            gyre(&create);
            let hashes = libtorrent::run(&["hashes", &ours]);
            assert_eq!(said(&gyre(&["info", &ours])), hashes, "{ours}");
            if kind == "v2" {
                assert_eq!(hashes, said(&shown), "the same data has one v2 info_hash");
            }

            for torrent in [&theirs, &ours] {
                let data = text(folder.path());
                let verdict = gyre(&["verify", torrent, "--data", &data]);
                assert_eq!(verdict["complete"], true, "{torrent}");
            }
        }
    }
}

#[test]
fn files_of_a_hybrid_come_in_the_order_of_the_tree() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    // As text `d.x/b` comes first, by elements `d/a`.
    for path in ["d/a", "d.x/b"] {
        let path = content.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, noise(20_000, 1)).unwrap();
    }
    let torrent = text(&folder.path().join("x.torrent"));
    gyre(&["create", &text(&content), "-o", &torrent, "--hybrid"]);
    let shown = gyre(&["info", &torrent]);
    assert_eq!(shown["files"][0]["path"], "content/d/a");
    if libtorrent::is_here() {
        assert_eq!(said(&shown), libtorrent::run(&["hashes", &torrent]));
    }
}

#[test]
fn wrong_bytes_are_found_by_their_tree() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    tree(&content);
    for option in ["--v2", "--hybrid"] {
        let torrent = text(&folder.path().join(format!("x{option}.torrent")));
        let path = text(&content);
        gyre(&[
            "create",
            &path,
            "-o",
            &torrent,
            "--piece-length",
            "32768",
            option,
        ]);
        let changed = content.join("top 8");
        let good = std::fs::read(&changed).unwrap();
        let mut bad = good.clone();
        bad[299_999] ^= 1;
        std::fs::write(&changed, &bad).unwrap();
        let data = text(folder.path());
        let output = program::command()
            .args(["verify", &torrent, "--data", &data, "--json"])
            .output();
        let verdict: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        std::fs::write(&changed, &good).unwrap();
        let bad = verdict["bad_pieces"].as_array().unwrap();
        assert_eq!(bad.len(), 1, "{bad:?}");
        let files = verdict["files"].as_array().unwrap();
        let wrong = files.iter().filter(|file| file["state"] != "good");
        let wrong: Vec<&str> = wrong.filter_map(|file| file["path"].as_str()).collect();
        assert_eq!(wrong, ["content/top 8"]);
    }
}
