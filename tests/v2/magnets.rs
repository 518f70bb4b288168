//! Links that name the v2 info_hash, alone or beside that of v1, and hashes asked of peers (HOSTILE.md W19).

use std::path::Path;

use gyre::base::Geometry;
use gyre::wire::merkle;
use gyre::wire::metainfo::Metainfo;

use crate::info_hashes::{gyre, tree};
use crate::libtorrent::{self, Peer};
use crate::support::raw_peer::{Hello, RawPeer, message};
use crate::support::sample::{noise, text};
use crate::transfers::{download, same, seed};

/// Content with files of one piece, of several, and of more than one request's worth.
fn content(folder: &Path) -> std::path::PathBuf {
    let content = folder.join("content");
    tree(&content);
    std::fs::write(content.join("large"), noise(10_000_000, 5)).unwrap();
    content
}

fn create(content: &Path, option: &str) -> (String, String) {
    let torrent = format!("{}{option}.torrent", text(content));
    let path = text(content);
    let arguments = [
        "create",
        &path,
        "-o",
        &torrent,
        "--piece-length",
        "16KiB",
        option,
    ];
    let made = gyre(&arguments);
    (torrent, made["magnet"].as_str().unwrap().to_owned())
}

fn folder_for(content: &Path, name: &str) -> std::path::PathBuf {
    let folder = content.parent().unwrap().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn links_are_followed_among_peers_of_gyre() {
    let folder = tempfile::tempdir().unwrap();
    let content = content(folder.path());
    for option in ["--v2", "--hybrid"] {
        let (torrent, link) = create(&content, option);
        assert!(link.contains("xt=urn:btmh:1220"));
        let (_seeder, addr) = seed(&torrent, &text(folder.path()));
        let out = folder_for(&content, &format!("out{option}"));
        download(&link, &text(&out), &addr);
        assert!(same(&content, &out.join("content")));
    }
}

#[test]
fn links_are_followed_from_libtorrent() {
    if !libtorrent::is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let content = content(folder.path());
    for option in ["--v2", "--hybrid"] {
        let (torrent, link) = create(&content, option);
        let seeder = Peer::start(&torrent, &text(folder.path()), None);
        let out = folder_for(&content, &format!("out{option}"));
        download(&link, &text(&out), &format!("127.0.0.1:{}", seeder.port));
        assert!(same(&content, &out.join("content")));
    }
}

#[test]
fn links_are_followed_by_libtorrent() {
    if !libtorrent::is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let content = content(folder.path());
    for option in ["--v2", "--hybrid"] {
        let (torrent, link) = create(&content, option);
        let (_seeder, addr) = seed(&torrent, &text(folder.path()));
        let out = folder_for(&content, &format!("out{option}"));
        Peer::start(&link, &text(&out), Some(&addr)).complete();
        assert!(same(&content, &out.join("content")));
    }
}

#[test]
fn hash_requests_are_answered_rejected_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let content = content(folder.path());
    let (torrent, _) = create(&content, "--v2");
    let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
    let geometry: &Geometry = &metainfo.info.geometry;
    let (mut seeder, addr) = seed(&torrent, &text(folder.path()));
    let files = metainfo.info.files.iter();
    let large = files.max_by_key(|file| file.length_bytes).unwrap();
    let root = large.pieces_root.unwrap();
    assert_eq!(geometry.piece_length_bytes(), 16_384);
    let hello = Hello::new(*metainfo.info_hash.as_bytes());
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    let mut peer = RawPeer::dial_as(addr.parse().unwrap(), &hello);
    let request = |fields: [u32; 4]| {
        let numbers: Vec<u8> = fields
            .iter()
            .flat_map(|field| field.to_be_bytes())
            .collect();
        message(21, &[&root[..], &numbers].concat())
    };
    // 611 pieces are 1,024 nodes: one uncle beside 512 of them.
    peer.send(&request([0, 0, 512, 9]));
    let hashes = peer.wait_for(22).body;
    assert_eq!(hashes.len(), 48 + 32 * 513);
    let layer = metainfo.piece_layers.get(&root).unwrap();
    assert_eq!(hashes[48..48 + 32 * 512], *layer[..512].as_flattened());
    let absurd = [
        [0, 0, 513, 9],
        [0, 1, 512, 9],
        [0, 1_024, 512, 9],
        [0, u32::MAX, 2, 9],
        [0, 0, 0, 0],
        [0, 0, 1 << 31, 9],
        [0, 0, 2, 10],
        [0, 0, 2, u32::MAX],
        [1, 0, 2, 1],
        [u32::MAX; 4],
    ];
    for fields in absurd {
        peer.send(&request(fields));
        assert_eq!(peer.wait_for(23).body, request(fields)[5..], "{fields:?}");
    }
    let stranger = message(21, &[&[7; 32][..], &[0; 16]].concat());
    peer.send(&stranger);
    peer.wait_for(23);
    let before = seeder.anonymous_bytes();
    let flood = request([0, 0, 512, 9]).repeat(20_000);
    // It may be closed before all of it is written.
    let _ = std::io::Write::write_all(&mut &peer.stream, &flood);
    peer.expect_close("a flood of hash requests");
    let growth = seeder.anonymous_bytes().saturating_sub(before);
    assert!(growth <= 4 << 20, "{growth} bytes");
    assert!(seeder.is_running());
}

/// HOSTILE.md W21.
#[test]
fn leaves_are_given_away_proven_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let content = content(folder.path());
    for option in ["--v2", "--hybrid"] {
        let torrent = format!("{}-leaves{option}.torrent", text(&content));
        let path = text(&content);
        let piece_length = ["--piece-length", "64KiB"];
        let create = ["create", &path, "-o", &torrent, option];
        gyre(&[&create[..], &piece_length].concat());
        let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
        let (mut seeder, addr) = seed(&torrent, &text(folder.path()));
        let hello = Hello::new(*metainfo.info_hash.as_bytes());
        seeder.wait_for("seeding", |event| event["state"] == "seeding");
        let mut peer = RawPeer::dial_as(addr.parse().unwrap(), &hello);

        let files = metainfo.info.files.iter();
        let large = files.max_by_key(|file| file.length_bytes).unwrap();
        let root = large.pieces_root.unwrap();
        let bytes = std::fs::read(content.join("large")).unwrap();
        let leaves: Vec<[u8; 32]> = bytes.chunks(16_384).map(merkle::leaf).collect();
        let request = |fields: [u32; 4]| {
            let numbers = fields.iter().flat_map(|field| field.to_be_bytes());
            message(21, &[&root[..], &numbers.collect::<Vec<u8>>()].concat())
        };
        // 611 blocks: the last piece has three, and as many more leaves are zeros as there are up to 1,024.
        for (first, proof_layers) in [(0, 1), (100, 9), (608, 1), (608, 9)] {
            peer.send(&request([0, first, 4, proof_layers]));
            let answer = peer.wait_for(22).body;
            let (hashes, _) = answer[48..].as_chunks::<32>();
            let (nodes, uncles) = hashes.split_at(4);
            let real = leaves.iter().skip(first as usize).take(4);
            let mut expected: Vec<[u8; 32]> = real.copied().collect();
            expected.resize(4, [0; 32]);
            assert_eq!(nodes, expected, "{option} {first}");
            assert_eq!(uncles.len() as u32, proof_layers - 1);
            let is_proven = merkle::is_proven(&root, nodes, first.into(), 0, uncles);
            assert_eq!(is_proven, proof_layers == 9, "{option} {first}");
        }
        // Several pieces, nothing of the file, odd numbers, no such proof.
        for fields in [[0, 0, 8, 1], [0, 612, 4, 1], [0, 1, 4, 1], [0, 0, 4, 10]] {
            peer.send(&request(fields));
            assert_eq!(peer.wait_for(23).body, request(fields)[5..], "{fields:?}");
        }
        let before = seeder.anonymous_bytes();
        let started = std::time::Instant::now();
        let flood = request([0, 0, 4, 9]).repeat(20_000);
        // It may be closed before all of it is written.
        let _ = std::io::Write::write_all(&mut &peer.stream, &flood);
        peer.expect_close("a flood of requests for leaves");
        let growth = seeder.anonymous_bytes().saturating_sub(before);
        assert!(growth <= 4 << 20, "{growth} bytes");
        println!("closed after {:?}", started.elapsed());
        // Who asks now is answered.
        let mut other = RawPeer::dial_as(addr.parse().unwrap(), &hello);
        other.send(&request([0, 4, 4, 1]));
        other.wait_for(22);
        assert!(seeder.is_running());
    }
}
