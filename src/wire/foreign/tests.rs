//! Resume files as the programs write them.

use super::*;
use crate::wire::bencode::Item;

fn geometry() -> Geometry {
    // Three pieces of two blocks, the last of one and a bit.
    Geometry::new(2 * 32_768 + 20_000, 32_768).unwrap()
}

fn have(pieces: &Pieces) -> (Vec<u32>, Vec<u32>) {
    let list = |bits: &Bitfield| bits.iter().map(PieceIndex::get).collect();
    (list(&pieces.have), list(&pieces.uncertain))
}

fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, Item<'a>)>) -> Item<'a> {
    Item::dict(
        entries
            .into_iter()
            .map(|(key, item)| (key.as_bytes(), item)),
    )
}

fn ints(values: impl IntoIterator<Item = i64>) -> Item<'static> {
    Item::List(values.into_iter().map(Item::Int).collect())
}

fn texts<'a>(values: &[&'a str]) -> Item<'a> {
    Item::List(values.iter().map(|text| Item::text(text)).collect())
}

#[test]
fn a_torrent_of_qbittorrent_is_read() {
    let file = dict([
        ("file-format", Item::text("libtorrent resume file")),
        ("info-hash", Item::bytes(vec![7; 20])),
        ("save_path", Item::text("/data/now")),
        ("qBt-savePath", Item::text("/data/later")),
        ("qBt-category", Item::text("linux")),
        ("qBt-tags", texts(&["iso", "linux", " "])),
        ("qBt-ratioLimit", Item::Int(2_500)),
        ("qBt-seedingTimeLimit", Item::Int(-2)),
        ("paused", Item::Int(1)),
        ("auto_managed", Item::Int(0)),
        ("total_uploaded", Item::Int(10)),
        ("total_downloaded", Item::Int(-10)),
        ("added_time", Item::Int(1_600_000_000)),
        ("completed_time", Item::Int(0)),
        ("pieces", Item::bytes(vec![1, 0, 3])),
        ("file_priority", ints([4, 0, 7])),
        ("upload_rate_limit", Item::Int(5)),
        ("download_rate_limit", Item::Int(-1)),
        ("super_seeding", Item::Int(1)),
        (
            "trackers",
            Item::List(vec![texts(&["http://a/x", "no url"]), texts(&[])]),
        ),
        ("url-list", texts(&["http://w/"])),
    ]);
    let foreign = parse_qbittorrent(&file.encode()).unwrap();
    assert_eq!(foreign.info_hash, Some(InfoHash::new([7; 20])));
    assert_eq!(foreign.place, Place::Beside(b"/data/now".to_vec()));
    assert_eq!(foreign.labels, ["category:linux", "iso", "linux"]);
    assert_eq!(foreign.seed_ratio, Some(2.5));
    assert!(foreign.is_paused);
    assert_eq!((foreign.uploaded_bytes, foreign.downloaded_bytes), (10, 0));
    assert_eq!(
        (foreign.added_unix_s, foreign.done_unix_s),
        (Some(1_600_000_000), None)
    );
    assert_eq!(foreign.unwanted, [1]);
    assert_eq!(foreign.trackers, Some(vec![vec!["http://a/x".to_owned()]]));
    assert_eq!(foreign.web_seeds, Some(vec!["http://w/".to_owned()]));
    assert_eq!(foreign.file_priorities, [(2, 1)]);
    assert_eq!((foreign.up_limit, foreign.down_limit), (Some(5), None));
    assert_eq!(foreign.left, ["super-seeding"]);
    let pieces = foreign.have.pieces(&geometry()).unwrap();
    assert_eq!(have(&pieces), (vec![0, 2], vec![]));
}

#[test]
fn a_managed_torrent_of_qbittorrent_that_waits_is_not_stopped() {
    let file = dict([("paused", Item::Int(1)), ("auto_managed", Item::Int(1))]);
    assert!(!parse_qbittorrent(&file.encode()).unwrap().is_paused);
}

#[test]
fn a_torrent_of_transmission_is_read_with_either_spelling() {
    for (added, dnd) in [("added-date", "dnd"), ("added_date", "dnd")] {
        let file = dict([
            ("destination", Item::text("/data")),
            (added, Item::Int(5)),
            (dnd, ints([0, 1])),
            ("paused", Item::Int(0)),
            ("labels", texts(&["a"])),
            ("uploaded", Item::Int(3)),
            ("priority", ints([0, -1])),
            (
                "idle-limit",
                dict([("idle-limit", Item::Int(30)), ("idle-mode", Item::Int(1))]),
            ),
            (
                "speed-limit-up",
                dict([
                    ("speed", Item::Int(2)),
                    ("use-global-speed-limit", Item::Int(0)),
                    ("use-speed-limit", Item::Int(1)),
                ]),
            ),
            (
                "speed-limit-down",
                dict([
                    ("speed-Bps", Item::Int(9)),
                    ("use-speed-limit", Item::Int(0)),
                ]),
            ),
            (
                "ratio-limit",
                dict([
                    ("ratio-limit", Item::text("1.5")),
                    ("ratio-mode", Item::Int(1)),
                ]),
            ),
            (
                "progress",
                dict([
                    // The first piece, half of the second, and the last.
                    ("blocks", Item::bytes(vec![0b1110_1100])),
                    ("pieces", Item::bytes(vec![0b1000_0000])),
                    ("mtimes", ints([9, 0])),
                ]),
            ),
        ]);
        let foreign = parse_transmission(&file.encode()).unwrap();
        assert_eq!(foreign.place, Place::Beside(b"/data".to_vec()));
        assert_eq!(foreign.added_unix_s, Some(5));
        assert_eq!(foreign.unwanted, [1]);
        assert_eq!(foreign.seed_ratio, Some(1.5));
        assert_eq!((foreign.up_limit, foreign.down_limit), (Some(2_048), None));
        assert_eq!(foreign.file_priorities, [(1, -1)]);
        assert_eq!(foreign.idle_minutes, Some(30));
        assert!(foreign.ignores_session && foreign.left.is_empty());
        assert_eq!(foreign.looks, [Look::ChangedAt(9), Look::Uncertain]);
        let pieces = foreign.have.pieces(&geometry()).unwrap();
        assert_eq!(
            have(&pieces),
            (vec![0], vec![2]),
            "the last one was not verified"
        );
    }
}

#[test]
fn words_stand_for_all_and_none_and_times_of_old_versions_count() {
    let of = |blocks: &str, times: Item<'static>| {
        let progress = dict([("blocks", Item::text(blocks)), ("time-checked", times)]);
        let file = dict([("progress", progress)]).encode();
        parse_transmission(&file).unwrap()
    };
    let list = |values: &[i64]| Item::List(vec![ints(values.iter().copied())]);
    let all = of("all", ints([4, 0]));
    assert_eq!(have(&all.have.pieces(&geometry()).unwrap()).0, [0, 1, 2]);
    assert_eq!(all.looks, [Look::NotAfter(4), Look::Uncertain]);
    assert_eq!(of("none", list(&[5, 1, 2])).looks, [Look::NotAfter(5)]);
    assert_eq!(of("none", list(&[5, 1, 0])).looks, [Look::Uncertain]);
    assert_eq!(of("none", ints([])).have, Have::Nothing);
}

#[test]
fn both_files_of_rtorrent_are_read() {
    let library = dict([
        ("bitfield", Item::bytes(vec![0b1110_0000])),
        ("uncertain_pieces", Item::bytes(vec![0, 0, 0, 1, 9])),
        (
            "files",
            Item::List(vec![
                dict([("mtime", Item::Int(8)), ("priority", Item::Int(1))]),
                dict([("mtime", Item::Int(-1)), ("priority", Item::Int(0))]),
            ]),
        ),
        (
            "trackers",
            dict([
                ("dht://", dict([("extra_tracker", Item::Int(1))])),
                ("http://own/", dict([("enabled", Item::Int(1))])),
                ("udp://extra:1", dict([("extra_tracker", Item::Int(1))])),
            ]),
        ),
    ]);
    let program = dict([
        ("directory", Item::text("/data/root")),
        ("custom1", Item::text("tv%20shows%2")),
        ("state", Item::Int(0)),
        ("total_uploaded", Item::Int(12)),
        ("timestamp.finished", Item::Int(6)),
        ("custom", dict([("addtime", Item::text("77\n"))])),
    ]);
    let of = |is_multi_file| {
        parse_rtorrent(
            Some(&library.encode()),
            Some(&program.encode()),
            is_multi_file,
        )
        .unwrap()
    };
    let foreign = of(true);
    assert_eq!(foreign.place, Place::Root(b"/data/root".to_vec()));
    assert_eq!(of(false).place, Place::Beside(b"/data/root".to_vec()));
    assert_eq!(foreign.labels, ["tv shows%2"]);
    assert!(foreign.is_paused);
    assert_eq!(
        (foreign.added_unix_s, foreign.done_unix_s),
        (Some(77), Some(6))
    );
    assert_eq!(foreign.more_trackers, ["udp://extra:1"]);
    assert_eq!(foreign.unwanted, [1]);
    assert_eq!(foreign.uncertain, [1]);
    assert_eq!(foreign.looks, [Look::ChangedAt(8), Look::Uncertain]);
    assert_eq!(
        have(&foreign.have.pieces(&geometry()).unwrap()).0,
        [0, 1, 2]
    );
}

#[test]
fn a_list_of_pieces_of_another_length_is_refused() {
    for wrong in [
        Have::Bytes(vec![1; 4]),
        Have::Bits(vec![0xff; 2]),
        Have::Bits(vec![]),
        Have::Count(2),
        Have::Count(-1),
        Have::Blocks {
            blocks: Some(vec![0; 2]),
            checked: None,
        },
        Have::Blocks {
            blocks: None,
            checked: Some(vec![0; 2]),
        },
    ] {
        assert!(wrong.pieces(&geometry()).is_err(), "{wrong:?}");
    }
    assert_eq!(
        have(&Have::Count(3).pieces(&geometry()).unwrap()).0,
        [0, 1, 2]
    );
    assert_eq!(have(&Have::Count(0).pieces(&geometry()).unwrap()).0, [0; 0]);
}
