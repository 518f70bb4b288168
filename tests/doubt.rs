//! Between the change of a file by others and the verdict of the check that follows, nothing of it is sent, however
//! long the check takes (HOSTILE.md L3).

mod disk_world;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;

use disk_world::{World, fetch, on_ring, read, specs};
use gyre::base::PieceIndex;
use gyre::session::disk::{Changed, DiskHub, DiskTorrent, ReadError};

/// A file is looked at once a second.
const LOOK: Duration = Duration::from_millis(1_100);

async fn seeded(world: &World, hub: &Rc<DiskHub>) -> Rc<DiskTorrent> {
    let torrent = DiskTorrent::open(hub, world.config(true)).await.unwrap();
    for piece in world.layout.geometry().pieces() {
        assert!(fetch(world, &torrent, piece).await.unwrap());
    }
    torrent.sync().await.unwrap();
    DiskTorrent::open(hub, world.config(false)).await.unwrap()
}

fn spoil(world: &World, file: usize) {
    let file = File::options().write(true).open(world.path(file)).unwrap();
    file.write_all_at(b"something else", 100).unwrap();
}

async fn changed(world: &World, torrent: &DiskTorrent, piece: u32) -> Changed {
    let blocks = world.blocks(PieceIndex::new(piece));
    match read(torrent, &blocks).await {
        Err(ReadError::Changed(changed)) => changed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_changed_file_is_not_sent_until_its_check_ends() {
    let world = World::new(16_384, &specs("65536 65536"), 3);
    on_ring(async |hub| {
        let torrent = seeded(&world, &hub).await;
        let of = |piece| world.blocks(PieceIndex::new(piece));
        assert!(read(&torrent, &of(0)).await.is_ok());
        spoil(&world, 0);
        tokio::time::sleep(LOOK).await;
        let told = changed(&world, &torrent, 3).await;
        assert_eq!(told.pieces.len(), 4, "all pieces of that file");
        // Told once; all of the file waits, the other file does not.
        for _ in 0..2 {
            let refused = read(&torrent, &of(1)).await;
            assert!(matches!(refused, Err(ReadError::InDoubt)), "{refused:?}");
            tokio::time::sleep(LOOK / 2).await;
        }
        assert!(read(&torrent, &of(5)).await.is_ok());
        torrent.begin_check(&told.pieces).await.unwrap();
        let refused = read(&torrent, &of(1)).await;
        assert!(matches!(refused, Err(ReadError::InDoubt)), "{refused:?}");
        torrent.end_check(&told);
        assert!(read(&torrent, &of(1)).await.is_ok());
        tokio::time::sleep(LOOK).await;
        assert!(read(&torrent, &of(1)).await.is_ok(), "no change since");
    });
}

#[test]
fn a_change_during_a_check_is_another_change() {
    let world = World::new(16_384, &specs("65536 65536"), 4);
    on_ring(async |hub| {
        let torrent = seeded(&world, &hub).await;
        let _ = read(&torrent, &world.blocks(PieceIndex::new(0))).await;
        spoil(&world, 0);
        tokio::time::sleep(LOOK).await;
        let told = changed(&world, &torrent, 0).await;
        torrent.begin_check(&told.pieces).await.unwrap();
        // Behind the back of the check, which has read this part already.
        tokio::time::sleep(Duration::from_millis(20)).await;
        spoil(&world, 0);
        torrent.end_check(&told);
        tokio::time::sleep(LOOK).await;
        changed(&world, &torrent, 0).await;
    });
}

#[test]
fn files_that_are_gone_or_replaced_are_found_once() {
    let world = World::new(16_384, &specs("65536 65536 65536"), 5);
    on_ring(async |hub| {
        let torrent = seeded(&world, &hub).await;
        assert!(torrent.look_for_gone(None).await.is_empty());
        std::fs::remove_file(world.path(0)).unwrap();
        let other = world.path(1).with_extension("other");
        std::fs::copy(world.path(1), &other).unwrap();
        std::fs::rename(other, world.path(1)).unwrap();
        let gone = torrent.look_for_gone(None).await;
        let pieces: Vec<usize> = gone.iter().map(|changed| changed.pieces.len()).collect();
        assert_eq!(pieces, [4, 4]);
        assert!(torrent.look_for_gone(None).await.is_empty());
    });
}
