use std::collections::BTreeSet;

use super::*;
use crate::base::Rng;

fn row(number: u64) -> TorrentRow {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    TorrentRow {
        info_hash: InfoHash::new(bytes),
        number,
        name: format!("torrent number {number}"),
        ..TorrentRow::default()
    }
}

fn filled(path: &Path) -> Rows {
    let mut store = Store::open(path).unwrap().0;
    for batch in 0..5 {
        let writes: Vec<Write> = (0..40)
            .map(|n| Write::Put(Box::new(row(batch * 40 + n))))
            .collect();
        store.commit(&writes).unwrap();
    }
    store.commit(&[Write::Remove(row(17).info_hash)]).unwrap();
    drop(store);
    let (_, opened) = Store::open(path).unwrap();
    assert!(opened.set_aside.is_none());
    opened.rows
}

#[test]
fn what_was_committed_is_there_again_and_what_was_removed_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let rows = filled(&folder.path().join("state"));
    assert_eq!(rows.len(), 199);
    assert!(!rows.contains_key(&row(17).info_hash));
    assert_eq!(rows[&row(18).info_hash], row(18));
}

#[test]
fn a_commit_that_failed_is_not_in_the_file_although_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let rows = filled(&path);
    let mut store = Store::open(&path).unwrap().0;
    let before = store.sum;
    let mut renamed = row(18);
    renamed.name = "another".to_owned();
    let writes = [
        Write::Remove(row(3).info_hash),
        Write::Put(Box::new(renamed.clone())),
        Write::Put(Box::new(row(500))),
        Write::Remove(renamed.info_hash),
        Write::Keep(Box::default()),
    ];
    // As when the disk took it and then said that it did not.
    let database = store.database.take().unwrap();
    let mut undo = Vec::new();
    let after = commit(&database, before, &writes, &mut undo).unwrap();
    drop(database);
    store.undo = undo;
    assert!(after != before && store.is_unsure());
    store.recover().unwrap();
    assert!(store.sum == before && !store.is_unsure());
    drop(store);
    let (mut store, opened) = Store::open(&path).unwrap();
    assert!(opened.set_aside.is_none() && opened.kept.is_none());
    assert!(opened.rows == rows);
    store.commit(&[Write::Put(Box::new(row(501)))]).unwrap();
}

#[test]
fn a_file_that_was_closed_is_never_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..64 {
        let mut rng = Rng::new(seed);
        let path = folder.path().join(format!("state-{seed}"));
        let mut store = Store::open(&path).unwrap().0;
        let mut rows = BTreeSet::new();
        for _ in 0..rng.below(8) {
            if rng.below(3) == 0 {
                let kept = Box::new(Kept::default());
                store.commit(&[Write::Keep(kept)]).unwrap();
                continue;
            }
            let numbers = 0..=rng.below(3);
            rows.extend(numbers.clone());
            let writes: Vec<Write> = numbers.map(|n| Write::Put(Box::new(row(n)))).collect();
            store.commit(&writes).unwrap();
        }
        drop(store);
        let (_, opened) = Store::open(&path).unwrap();
        assert!(opened.set_aside.is_none(), "seed {seed}");
        assert_eq!(opened.rows.len(), rows.len(), "seed {seed}");
    }
}

#[test]
fn a_file_that_cannot_be_reached_is_not_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let held = Store::open(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::InUse)));
    drop(held);
    std::fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let Err(StoreError::Io(error)) = Store::open(&path) else {
        panic!("a link to itself was opened");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    assert!(std::fs::symlink_metadata(&path).unwrap().is_symlink());
}

#[test]
fn settings_are_kept_beside_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut store = Store::open(&path).unwrap().0;
    let mut kept = Kept::default();
    kept.now.seed_ratio = Some(1.25);
    let writes = [
        Write::Keep(Box::new(kept.clone())),
        Write::Put(Box::new(row(3))),
    ];
    store.commit(&writes).unwrap();
    drop(store);
    let mut told = Vec::new();
    let opened = Store::open_telling(&path, &mut |one| match one {
        Told::Kept(kept) => told.push(kept.cloned()),
        Told::SetAside(why, _) => panic!("{why}"),
    });
    let (_, opened) = opened.unwrap();
    assert_eq!(told, [Some(kept.clone())]);
    assert_eq!(opened.kept, Some(kept));
    assert_eq!(opened.rows.len(), 1);
}

#[test]
fn a_newer_file_and_what_is_none_are_set_aside_under_new_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    filled(&path);
    {
        let store = Store::open(&path).unwrap().0;
        let database = store.database.as_ref().unwrap();
        let transaction = database.begin_write().unwrap();
        let version = 2_u32.to_le_bytes();
        let mut about = transaction.open_table(ABOUT).unwrap();
        about.insert("version", version.as_slice()).unwrap();
        drop(about);
        transaction.commit().unwrap();
    }
    let (why, first) = Store::open(&path).unwrap().1.set_aside.unwrap();
    assert_eq!(why, "it is of version 2, this program knows version 1");
    std::fs::write(&path, "no state").unwrap();
    let (_store, opened) = Store::open(&path).unwrap();
    let (_, second) = opened.set_aside.unwrap();
    assert!(opened.rows.is_empty());
    assert!(first.exists() && second.exists() && first != second);
}

#[test]
fn a_file_damaged_anywhere_is_set_aside_or_read_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let rows = filled(&path);
    let whole = std::fs::read(&path).unwrap();
    let mut rng = Rng::new(11);
    let mut below = |n: usize| usize::try_from(rng.next_u64()).unwrap() % n;
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut kept, mut aside) = (0, 0);
    for round in 0..1_000 {
        let mut bytes = whole.clone();
        match below(4) {
            0 => bytes.truncate(below(whole.len())),
            1 => bytes[..].rotate_left(1 + below(4_096)),
            2 => {
                let (from, length) = (below(whole.len()), 1 + below(4_096));
                bytes[from..].iter_mut().take(length).for_each(|b| *b = 0);
            }
            _ => {
                let at = below(whole.len());
                bytes[at] ^= 1 << below(8);
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let (store, opened) = Store::open(&path).unwrap();
        match opened.set_aside {
            Some((_, moved)) => {
                assert!(opened.rows.is_empty());
                assert_eq!(
                    std::fs::metadata(&moved).unwrap().len() > 0,
                    !bytes.is_empty()
                );
                std::fs::remove_file(moved).unwrap();
                aside += 1;
            }
            None => {
                assert!(opened.rows == rows, "round {round}: false rows");
                kept += 1;
            }
        }
        drop(store);
        std::fs::remove_file(&path).unwrap();
    }
    std::panic::set_hook(hook);
    assert!(aside > 100, "{aside} set aside, {kept} kept");
}
