//! The direct engines against real files: whole pages past the page cache, page borders through it.

mod disk_world;

use disk_world::{World, fetch, on_ring_with, read, specs};
use gyre::base::{Bitfield, PieceIndex};
use gyre::session::disk::{DiskTorrent, Engines, SendEngine, WriteEngine};
use std::os::unix::fs::FileExt;

const DIRECT: Engines = Engines {
    send: SendEngine::Copy,
    write: WriteEngine::Direct,
};

/// Beside the sources, not among temporary files: those may lie in memory, where nothing goes past the page cache.
fn world(piece_length: u64, files: &str, seed: u64) -> World {
    let mut world = World::new(piece_length, &specs(files), seed);
    world.folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    world
}

/// Resident pages of a file, by cachestat(2) through the library.
fn is_cached(world: &World, file: usize) -> bool {
    let path = world.path(file);
    let bytes = std::fs::metadata(&path).unwrap().len();
    let fd = std::fs::File::open(path).unwrap().into();
    let map = gyre::uring::map::FileMap::new(&fd, bytes).unwrap();
    gyre::uring::map::is_resident(&fd, &map, 0, bytes)
}

#[test]
fn pieces_that_begin_anywhere_in_files_are_written_whole_and_read_back() {
    let world = world(1 << 18, "300001 p50 700003 1 0 900000 5000", 3);
    on_ring_with(DIRECT, async |hub| {
        let torrent = DiskTorrent::open(&hub, world.config(true)).await.unwrap();
        // From the last piece to the first, so that page borders are met from both sides.
        let pieces: Vec<PieceIndex> = world.layout.geometry().pieces().collect();
        for piece in pieces.iter().rev() {
            assert!(fetch(&world, &torrent, *piece).await.unwrap());
        }
        torrent.sync().await.unwrap();
        assert_eq!(world.check(world.all()).good, world.all());
        for piece in pieces {
            let blocks = world.blocks(piece);
            let expected: Vec<u8> = blocks
                .iter()
                .flat_map(|block| world.bytes_of(*block))
                .copied()
                .collect();
            // The first time past the page cache, the second time through it.
            for _ in 0..2 {
                for (some, bytes) in blocks.chunks(3).zip(expected.chunks(3 * 16_384)) {
                    assert!(read(&torrent, some).await.unwrap() == bytes);
                }
            }
        }
    });
}

#[test]
fn aligned_pieces_leave_no_pages_behind_and_the_last_page_may_be_short() {
    let world = world(1 << 20, "3146001", 4);
    on_ring_with(DIRECT, async |hub| {
        let torrent = DiskTorrent::open(&hub, world.config(true)).await.unwrap();
        for piece in world.layout.geometry().pieces() {
            assert!(fetch(&world, &torrent, piece).await.unwrap());
        }
        torrent.sync().await.unwrap();
        assert!(!is_cached(&world, 0), "the pages went past the page cache");
        assert_eq!(world.check(world.all()).good, world.all());
        let last = PieceIndex::new(3);
        let blocks = world.blocks(last);
        assert!(read(&torrent, &blocks).await.unwrap() == world.bytes_of(blocks[0]));
    });
}

#[test]
fn a_direct_read_sees_what_was_just_written_through_the_page_cache() {
    let world = world(1 << 18, "262144", 5);
    on_ring_with(DIRECT, async |hub| {
        let torrent = DiskTorrent::open(&hub, world.config(true)).await.unwrap();
        let piece = PieceIndex::new(0);
        assert!(fetch(&world, &torrent, piece).await.unwrap());
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(world.path(0))
            .unwrap();
        file.write_all_at(&[9; 100], 50).unwrap();
        let block = world.blocks(piece)[0];
        let mut expected = world.bytes_of(block).to_vec();
        expected[50..150].fill(9);
        assert!(read(&torrent, &[block]).await.unwrap() == expected);
        let mut pieces = Bitfield::new(1);
        pieces.set(piece);
        assert_eq!(world.check(pieces).good.count(), 0);
    });
}
