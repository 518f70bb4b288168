//! Torrents of v2 alone and hybrids in the daemon: seeded, through a restart and asleep too, to whoever knows any of
//! their names.

use std::path::{Path, PathBuf};

use gyre::wire::metainfo::Metainfo;
use serde_json::json;

use crate::info_hashes::{gyre, tree};
use crate::libtorrent::{self, Peer};
use crate::support::Daemon;
use crate::support::sample::text;
use crate::transfers::{download, same};

struct World {
    folder: tempfile::TempDir,
    content: PathBuf,
}

impl World {
    fn out(&self, name: &str) -> String {
        let out = self.folder.path().join(name);
        std::fs::create_dir_all(&out).unwrap();
        text(&out)
    }

    fn check(&self, out: &str) {
        assert!(same(&self.content, &Path::new(out).join("content")));
    }
}

fn is_seeded_through_a_restart(option: &str) {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    tree(&content);
    let world = World { folder, content };
    let (data, path) = (text(world.folder.path()), text(&world.content));
    let torrent = format!("{data}/x.torrent");
    let create = ["create", &path, "-o", &torrent, option];
    gyre(&[&create[..], &["--piece-length", "64KiB"]].concat());
    let metainfo = Metainfo::parse(&std::fs::read(&torrent).unwrap()).unwrap();
    let v2 = metainfo.info_hashes.v2().unwrap();
    let link = format!("magnet:?xt=urn:btmh:1220{v2}");

    let state = world.folder.path().join("state");
    let mut daemon = Daemon::start(&state);
    let addr = daemon.gyre.listening().to_string();
    let add = json!({ "do": "add", "torrent": torrent, "folder": data });
    let added = daemon.ask(add)["info_hash"].clone();
    assert_eq!(added, metainfo.info_hash.to_string());
    daemon.seeding();
    for (name, source) in [("file", &torrent), ("link", &link)] {
        let out = world.out(name);
        download(source, &out, &addr);
        world.check(&out);
    }
    if libtorrent::is_here() {
        let out = world.out("libtorrent");
        Peer::start(&torrent, &out, Some(&addr)).complete();
        world.check(&out);
    }
    daemon.terminate();

    let mut daemon = Daemon::start(&state);
    let addr = daemon.gyre.listening().to_string();
    let asleep = daemon.torrent_until("asleep", |torrent| torrent["activity"] == "Asleep");
    assert_eq!(asleep["state"], "seeding");
    let out = world.out("again");
    download(&link, &out, &addr);
    world.check(&out);
    let awake = daemon.seeding();
    assert_eq!(awake["pieces_checked"], 0, "the record was trusted");
    if libtorrent::is_here() {
        let out = world.out("libtorrent again");
        Peer::start(&link, &out, Some(&addr)).complete();
        world.check(&out);
    }
    daemon.terminate();
}

#[test]
fn a_torrent_of_v2_alone_is_seeded_through_a_restart() {
    is_seeded_through_a_restart("--v2");
}

#[test]
fn a_hybrid_is_seeded_through_a_restart() {
    is_seeded_through_a_restart("--hybrid");
}
