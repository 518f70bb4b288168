//! What a resume record is worth when files are not as it says.

mod disk_world;

use std::fs;
use std::os::unix::fs::FileExt;

use disk_world::{World, fetch, on_ring, specs};
use gyre::base::{Bitfield, PieceIndex, Rng};
use gyre::session::resume_store::{Loaded, ResumeStore, observe};
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

#[test]
fn a_record_saved_since_the_folder_was_read_is_found_by_its_path() {
    let world = World::new(16_384, &specs("40000"), 1);
    let record = recorded(&world);
    let state = tempfile::tempdir().unwrap();
    let store = ResumeStore::open(state.path()).unwrap();
    let root_path = world.output().join("root");
    let load = |info_hash| store.load(info_hash, None, &root_path).unwrap().loaded;
    assert_eq!(load(world.info_hash), Loaded::None);
    store.save(&record).unwrap();
    let record = Record {
        root_path: root_path.as_os_str().as_encoded_bytes().to_vec(),
        ..record
    };
    store.save(&record).unwrap();
    assert_eq!(load(world.info_hash), Loaded::Moved(Box::new(record)));
    assert_eq!(load(gyre::base::InfoHash::new([9; 20])), Loaded::None);
}

/// What a failing disk or a careless copy makes of a file: other bits, other bytes, lost sectors, a wrong end.
fn damaged(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let at = rng.below(good.len() as u64) as usize;
    let end = (at + 1 + rng.below(64) as usize).min(good.len());
    match rng.below(9) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at..end]
            .iter_mut()
            .for_each(|byte| *byte = rng.below(256) as u8),
        2 => bytes[at..end].fill(0),
        3 => bytes.truncate(at),
        4 => bytes.extend((0..=rng.below(64)).map(|_| rng.below(256) as u8)),
        5 => drop(bytes.drain(at..end)),
        6 => bytes.splice(at..at, good[at..end].to_vec()).for_each(drop),
        7 => {
            let other = rng.below(good.len() as u64) as usize;
            bytes.swap(at, other);
        }
        _ => bytes = (0..good.len()).map(|_| rng.below(256) as u8).collect(),
    }
    bytes
}

#[test]
fn a_thousand_damaged_records_are_each_found_out_and_the_data_is_hashed() {
    const DAMAGES: u32 = 1_000;
    let world = World::new(16_384, &specs("40000 30000 60000"), 1);
    let record = recorded(&world);
    let info_hash = world.info_hash;
    let root_path = world.output().join("root");
    let state = tempfile::tempdir().unwrap();
    let store = ResumeStore::open(state.path()).unwrap();
    store.save(&record).unwrap();
    let folder = state.path().join("resume");
    let path = fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = fs::read(&path).unwrap();
    // A piece is spoilt such that only a hash tells: whoever trusts a record has it falsely.
    let spoilt = fs::File::options().write(true).open(world.path(0)).unwrap();
    let modified = spoilt.metadata().unwrap().modified().unwrap();
    spoilt.write_all_at(b"not what was here", 100).unwrap();
    spoilt.set_modified(modified).unwrap();
    assert!(
        verdict(&world, &record).trusted.is_full(),
        "the record itself is believed"
    );
    let mut rng = Rng::new(7);
    let mut done = 0;
    while done < DAMAGES {
        let bytes = damaged(&good, &mut rng);
        if bytes == good {
            continue;
        }
        done += 1;
        fs::write(&path, &bytes).unwrap();
        let observed = observe(world.output(), &world.layout, &world.parts)
            .unwrap()
            .observed;
        let report = store.load(info_hash, observed.root, &root_path).unwrap();
        assert_eq!(report.loaded, Loaded::None, "damage {done}");
        let [aside] = &report.set_aside[..] else {
            panic!("damage {done}: {:?}", report.set_aside);
        };
        assert_eq!(fs::read(aside.kept_as.as_ref().unwrap()).unwrap(), bytes);
        let verdict = judge(None, &observed, &world.layout);
        assert_eq!(verdict.trusted.count(), 0, "damage {done}");
        let found = world.check(verdict.to_hash).good;
        let missed: Vec<u32> = (world.layout.geometry().pieces())
            .filter(|piece| !found.has(*piece))
            .map(PieceIndex::get)
            .collect();
        assert_eq!(missed, [0], "damage {done}");
    }
}
