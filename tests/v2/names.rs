//! A hybrid has a swarm under each of its info_hashes, and is in both.

use std::io::Read;
use std::net::TcpListener;

use gyre::wire::metainfo::Metainfo;

use crate::info_hashes::gyre;
use crate::libtorrent::{self, Peer};
use crate::support::Gyre;
use crate::support::fake_tracker::{HttpTracker, ok, peers};
use crate::support::raw_peer::{Hello, RawPeer};
use crate::support::sample::{noise, text};
use crate::transfers::{download, same, seed};

struct World {
    folder: tempfile::TempDir,
    content: std::path::PathBuf,
    torrent: String,
    /// That names the v2 info_hash alone.
    link: String,
    names: [[u8; 20]; 2],
}

fn world(more: &[&str]) -> World {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    std::fs::create_dir_all(&content).unwrap();
    std::fs::write(content.join("a"), noise(300_000, 1)).unwrap();
    std::fs::write(content.join("b"), noise(100_000, 2)).unwrap();
    let (path, torrent) = (text(&content), text(&folder.path().join("x.torrent")));
    let create = [
        "create",
        &path,
        "-o",
        &torrent,
        "--hybrid",
        "--piece-length",
        "64KiB",
    ];
    gyre(&[&create, more].concat());
    let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
    let v2 = metainfo.info_hashes.v2().unwrap();
    World {
        folder,
        content,
        torrent,
        link: format!("magnet:?xt=urn:btmh:1220{v2}"),
        names: [metainfo.info_hashes.v1().unwrap(), v2.truncated()].map(|name| *name.as_bytes()),
    }
}

#[test]
fn peers_that_know_the_v2_info_hash_alone_are_served_and_asked() {
    let w = world(&[]);
    let data = text(w.folder.path());
    let out = |name: &str| {
        let out = w.folder.path().join(name);
        std::fs::create_dir_all(&out).unwrap();
        out
    };
    let (mut seeder, addr) = seed(&w.torrent, &data);
    let ours = out("ours");
    download(&w.link, &text(&ours), &addr);
    assert!(same(&w.content, &ours.join("content")));
    if libtorrent::is_here() {
        let theirs = out("theirs");
        Peer::start(&w.link, &text(&theirs), Some(&addr)).complete();
        assert!(same(&w.content, &theirs.join("content")));
    }
    seeder.wait_for("seeding", |event| event["state"] == "seeding");
    for name in w.names {
        let peer = RawPeer::dial(addr.parse().unwrap(), name);
        assert_eq!(
            peer.theirs[28..48],
            name,
            "it answers by the name that it was asked by"
        );
    }
    assert!(seeder.is_running());
}

#[test]
fn who_refuses_the_first_name_is_dialed_by_the_second() {
    let w = world(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (data, state) = (text(w.folder.path()), text(&w.folder.path().join("state")));
    let _seeder = Gyre::start(&[
        "seed",
        &w.torrent,
        "--data",
        &data,
        "--state",
        &state,
        "--port",
        "0",
        "--peer",
        &addr,
        "--encryption",
        "off",
        "--no-utp",
    ]);
    let mut hello = [0; 68];
    let (mut first, _) = listener.accept().unwrap();
    first.read_exact(&mut hello).unwrap();
    assert_eq!(hello[28..48], w.names[0]);
    drop(first);
    let peer = RawPeer::accept(&listener, &Hello::new(w.names[1]));
    assert_eq!(peer.theirs[28..48], w.names[1]);
    assert_eq!(peer.theirs[27] & 0x10, 0x10, "BitTorrent v2 is spoken");
}

#[test]
fn trackers_are_told_of_both_names_and_of_their_end() {
    let tracker = HttpTracker::start(|_, stream| {
        use std::io::Write;
        let _ = stream.write_all(&ok(&peers(&[])));
        crate::support::fake_tracker::Then::Close
    });
    let w = world(&["--announce", &tracker.url()]);
    let (data, state) = (text(w.folder.path()), text(&w.folder.path().join("state")));
    let seeder = Gyre::start(&[
        "seed",
        &w.torrent,
        "--data",
        &data,
        "--state",
        &state,
        "--port",
        "0",
        "--no-ipv6",
    ]);
    let encoded = w.names.map(|name| {
        let code = |byte: &u8| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => {
                char::from(*byte).to_string()
            }
            _ => format!("%{byte:02x}"),
        };
        name.iter().map(code).collect::<String>().to_lowercase()
    });
    let hear = |stopped: bool| {
        let mut left: Vec<&String> = encoded.iter().collect();
        while !left.is_empty() {
            let get = tracker.next();
            let name = get.parameter("info_hash").unwrap().to_lowercase();
            if get.is_stopped() == stopped {
                left.retain(|expected| **expected != name);
            }
        }
    };
    hear(false);
    seeder.signal(nix::sys::signal::Signal::SIGTERM);
    hear(true);
}
