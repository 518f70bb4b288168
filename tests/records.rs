//! What a resume record is worth when files are not as it says.

mod disk_world;

use std::fs;

use disk_world::{World, fetch, on_ring, specs};
use gyre::base::{Bitfield, PieceIndex};
use gyre::session::resume_store::observe;
use gyre::storage::resume::{Record, Verdict, judge};

/// Fetches all of it, and gives the record of a clean end.
fn recorded(world: &World) -> Record {
    on_ring(async |hub| {
        let config = world.config(true);
        let torrent = gyre::session::disk::DiskTorrent::open(&hub, config)
            .await
            .unwrap();
        for piece in world.layout.geometry().pieces() {
            assert!(fetch(world, &torrent, piece).await.unwrap());
        }
        torrent.sync().await.unwrap();
        let have = Bitfield::full(world.layout.geometry().piece_count());
        let root = observe(world.output(), &world.layout, &world.parts)
            .unwrap()
            .observed;
        world.record(&torrent, root.root, &have, false)
    })
}

fn verdict(world: &World, record: &Record) -> Verdict {
    let observed = observe(world.output(), &world.layout, &world.parts)
        .unwrap()
        .observed;
    judge(Some(record), &observed, &world.layout)
}

#[test]
fn an_emptied_file_counts_as_missing() {
    let world = World::new(16_384, &specs("40000 40000"), 1);
    let record = recorded(&world);
    assert!(verdict(&world, &record).trusted.is_full());
    fs::write(world.path(1), b"").unwrap();
    let verdict = verdict(&world, &record);
    assert_eq!(verdict.missing, [1]);
    assert!(verdict.trusted.has(PieceIndex::new(0)));
    assert!(!verdict.trusted.has(PieceIndex::new(4)));
}

#[test]
fn a_recorded_piece_without_any_file_is_not_trusted() {
    let world = World::new(16_384, &specs("40000 40000"), 1);
    let mut record = recorded(&world);
    // Somebody changed the file while we ran, so the record says nothing about it; then it was removed.
    record.files[1] = None;
    fs::remove_file(world.path(1)).unwrap();
    let verdict = verdict(&world, &record);
    let trusted: Vec<u32> = verdict.trusted.iter().map(PieceIndex::get).collect();
    assert_eq!(trusted, [0, 1]);
}
