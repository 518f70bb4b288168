//! `.torrent` files of BitTorrent v2, good and bad (HOSTILE.md T13 to T15).

use gyre::storage::layout::FileLayout;
use gyre::wire::magnet::Magnet;
use gyre::wire::merkle::{self, Node};
use gyre::wire::metainfo::{
    Kind, LayerNeed, Metainfo, MetainfoBuilder, MetainfoError, PieceLayers, TreeFile,
    layers_needed, parse_info,
};
use proptest::prelude::*;

use crate::support::sample::noise;

const PIECE_LENGTH: u32 = 32_768;

/// A file of the tree over these bytes.
fn file(path: &[&str], bytes: &[u8]) -> TreeFile {
    let pieces = bytes.chunks(PIECE_LENGTH as usize).map(|piece| {
        let height = match bytes.len() <= PIECE_LENGTH as usize {
            true => merkle::file_height(bytes.len() as u64),
            false => merkle::piece_height(PIECE_LENGTH),
        };
        let leaves: Vec<Node> = piece.chunks(16_384).map(merkle::leaf).collect();
        merkle::root(&leaves, 0, height)
    });
    TreeFile {
        path: path.iter().map(|name| name.as_bytes().to_vec()).collect(),
        length_bytes: bytes.len() as u64,
        pieces: pieces.collect(),
    }
}

fn sample() -> (Vec<u8>, Metainfo) {
    let files = vec![
        file(&["a", "empty"], &[]),
        file(&["a", "large"], &noise(100_000, 1)),
        file(&["b"], &noise(20_000, 2)),
        file(&["c"], &noise(65_536, 3)),
    ];
    let builder = MetainfoBuilder::new("n", PIECE_LENGTH)
        .v2_only()
        .tree(files);
    builder.build().unwrap()
}

/// The sample with some of its bytes replaced by as many.
fn changed(from: &[u8], to: &[u8]) -> MetainfoError {
    let (mut bytes, _) = sample();
    let at = bytes.windows(from.len()).position(|window| window == from);
    bytes.splice(at.unwrap()..at.unwrap() + from.len(), to.iter().copied());
    Metainfo::parse(&bytes).unwrap_err()
}

#[test]
fn files_start_pieces_and_the_last_piece_of_each_is_short() {
    let (bytes, m) = sample();
    assert_eq!(m.info.kind, Kind::V2);
    assert_eq!(m.info_hash, m.info_hashes.v2().unwrap().truncated());
    let geometry = &m.info.geometry;
    let lengths: Vec<u32> = geometry
        .pieces()
        .map(|piece| geometry.piece_bytes(piece))
        .collect();
    assert_eq!(
        lengths,
        [32_768, 32_768, 32_768, 1_696, 20_000, 32_768, 32_768]
    );
    let layout = FileLayout::new(&m.info).unwrap();
    let offsets: Vec<u64> = layout.files().iter().map(|file| file.offset).collect();
    assert_eq!(offsets, [0, 0, 4 * 32_768, 5 * 32_768]);
    assert_eq!(layout.files()[1].path.to_str(), Some("n/a/large"));
    assert_eq!(m.to_torrent(), bytes, "written as it was read");
}

#[test]
fn a_lone_file_is_the_torrent() {
    let lone = file(&["lone"], &noise(5, 1));
    let builder = MetainfoBuilder::new("n", PIECE_LENGTH)
        .v2_only()
        .tree(vec![lone]);
    let (_, m) = builder.build().unwrap();
    assert!(!m.info.is_multi_file && m.info.name == "lone");
    let layout = FileLayout::new(&m.info).unwrap();
    assert_eq!(layout.files()[0].path.to_str(), Some("lone"));
}

#[test]
fn metadata_is_whole_with_the_layers_that_it_names() {
    let (_, m) = sample();
    let needs = layers_needed(&m.info_bytes).unwrap();
    assert_eq!(needs.iter().map(LayerNeed::count).sum::<u64>(), 4 + 2);
    let link = Magnet::from_metainfo(&m);
    let link: Magnet = link.to_string().parse().unwrap();
    let from = |layers: &PieceLayers| Metainfo::from_magnet(&link, m.info_bytes.clone(), layers);
    let missing = from(&PieceLayers::default());
    assert!(matches!(
        missing,
        Err(MetainfoError::LayerMissing { file_index: 1 })
    ));
    let layer = |need: &LayerNeed| m.piece_layers.get(&need.root).unwrap().to_vec();
    let layers = needs.iter().map(|need| (*need, layer(need)));
    assert_eq!(
        from(&PieceLayers::new(layers)).unwrap().info.piece_hashes,
        m.info.piece_hashes
    );
    let wrong = needs.iter().map(|need| {
        let mut layer = layer(need);
        layer[1][0] ^= 1;
        (*need, layer)
    });
    assert!(PieceLayers::new(wrong).is_empty(), "none is below its root");
}

#[test]
fn layers_are_held_against_the_roots() {
    let (_, m) = sample();
    let root = m.info.files[1].pieces_root.unwrap();
    let first = m.piece_layers.get(&root).unwrap()[0];
    let mut wrong = first;
    wrong[0] ^= 1;
    assert_eq!(
        changed(&first, &wrong),
        MetainfoError::LayerWrong { file_index: 1 }
    );
    let (bytes, _) = sample();
    let at = bytes
        .windows(12)
        .position(|window| window == b"piece layers")
        .unwrap();
    let cut = [&bytes[..at - 3], b"e"].concat();
    assert_eq!(
        Metainfo::parse(&cut).unwrap_err(),
        MetainfoError::LayerMissing { file_index: 1 }
    );
    // T14: as if the file had other bytes than its layer.
    assert_eq!(
        changed(b"i100000e", b"i900000e"),
        MetainfoError::LayerLength {
            file_index: 1,
            expected: 28,
            got_bytes: 128
        }
    );
    let absurd = changed(b"i100000e", b"i9000000000000000e");
    assert!(
        matches!(absurd, MetainfoError::TooManyPieces { .. }),
        "{absurd}"
    );
    assert!(matches!(
        changed(b"i100000e", b"i-1e"),
        MetainfoError::BadLength { .. }
    ));
}

#[test]
fn trees_that_are_none_are_refused_by_name() {
    let told = |from: &[u8], to: &[u8]| changed(from, to).to_string();
    assert!(told(b"i32768e", b"i32769e").contains("power of two"));
    assert!(told(b"i32768e", b"i8192e").contains("power of two"));
    assert!(told(b"11:pieces root32:", b"11:pieces_root32:").contains("pieces root"));
}

/// A torrent around a tree as written.
fn around(tree: &str) -> String {
    let info = format!("d9:file tree{tree}12:meta versioni2e4:name1:n12:piece lengthi16384ee");
    let torrent = format!("d4:info{info}12:piece layersdee");
    match Metainfo::parse(torrent.as_bytes()) {
        Ok(m) => format!("{} files", m.info.files.len()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn entries_of_a_tree_are_either_files_or_folders() {
    let file = format!("d0:d6:lengthi1e11:pieces root32:{}ee", "r".repeat(32));
    assert_eq!(around(&format!("d1:a{file}e")), "1 files");
    assert!(around(&file).contains("a file without a name"));
    let both = format!("d0:d6:lengthi0ee1:b{file}e");
    assert!(around(&format!("d1:a{both}e")).contains("both a file and a folder"));
    assert!(around("d1:ai1ee").contains("no dictionary"));
    assert!(around("d1:ad0:i1eee").contains("no dictionary"));
    assert!(around("d1:ad0:d4:attr1:p6:lengthi1eeee").contains("a pad file"));
    assert!(around(&format!("d1:b{file}1:a{file}e")).contains("not in order"));
    // Paths are made safe as those of v1.
    let escape = around(&format!("d2:..d3:etc{file}ee"));
    assert_eq!(escape, "1 files");
}

#[test]
fn a_few_bytes_that_share_long_paths_take_no_gigabytes() {
    // 90 folders of long names around many files: T15.
    let name = "x".repeat(3_000);
    let file = format!("d0:d6:lengthi1e11:pieces root32:{}ee", "r".repeat(32));
    let files: String = (0..10_000).map(|at| format!("5:{at:05}{file}")).collect();
    let open = format!("d3000:{name}").repeat(90);
    let tree = format!("{open}d{files}e{}", "e".repeat(90));
    assert!(around(&tree).contains("too long together"));
}

#[test]
fn both_parts_of_a_hybrid_name_the_same_files() {
    let files = || vec![file(&["a"], &noise(20_000, 1)), file(&["b"], &noise(10, 2))];
    let path = |name: &str| vec![name.as_bytes().to_vec()];
    let hybrid = |v1: Vec<(Vec<Vec<u8>>, u64)>| {
        let total: u64 = v1.iter().map(|(_, length)| length).sum();
        let pieces = vec![7; 20 * total.div_ceil(PIECE_LENGTH.into()) as usize];
        MetainfoBuilder::new("n", PIECE_LENGTH)
            .files(v1)
            .pieces(pieces)
            .tree(files())
            .build()
            .map(|(_, m)| m)
    };
    let pad = (Vec::new(), 12_768);
    let good = hybrid(vec![(path("a"), 20_000), pad.clone(), (path("b"), 10)]).unwrap();
    assert_eq!(good.info.kind, Kind::Hybrid);
    assert_eq!(
        good.info.files[2].pieces_root,
        files()[1].pieces.first().copied()
    );
    assert!(good.info.files[1].attributes.is_pad);
    let second = good.second_info_hash().unwrap();
    assert_eq!(second, good.info_hashes.v2().unwrap().truncated());
    let first = good.info_hash;
    let called = good.clone().called(second);
    assert_eq!(
        (called.info_hash, called.second_info_hash()),
        (second, Some(first))
    );
    assert_eq!(good.called(first).info_hash, first);
    let tail = (Vec::new(), 32_758);
    assert!(
        hybrid(vec![
            (path("a"), 20_000),
            pad.clone(),
            (path("b"), 10),
            tail
        ])
        .is_ok()
    );
    let bad = [
        vec![(path("a"), 20_000), (path("b"), 10)],
        vec![(path("a"), 20_000), pad.clone(), (path("c"), 10)],
        vec![(path("a"), 20_000), pad.clone(), (path("b"), 11)],
        vec![(path("a"), 20_000)],
        vec![(path("b"), 10), (Vec::new(), 32_758), (path("a"), 20_000)],
    ];
    for v1 in bad {
        let error = hybrid(v1.clone()).unwrap_err();
        assert!(
            matches!(error, MetainfoError::Inconsistent { .. }),
            "{v1:?}: {error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn mutated_torrents_never_panic_and_stay_consistent(
        mutations in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0_u8..4, prop_oneof![
                proptest::sample::select(b"0123456789ilde:-./".to_vec()), any::<u8>()]), 1..6),
    ) {
        let (mut bytes, _) = sample();
        for (at, kind, byte) in mutations {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes.insert(at, byte),
                1 => drop(bytes.remove(at)),
                _ => bytes[at] = byte,
            }
        }
        if let Ok(m) = Metainfo::parse(&bytes) {
            let total: u64 = m.info.files.iter().map(|file| file.length_bytes).sum();
            prop_assert_eq!(total, m.info.geometry.total_bytes());
            prop_assert_eq!(m.info.piece_hashes.count(), m.info.geometry.piece_count() as usize);
            let (_, info_hashes, _) = parse_info(&m.info_bytes, &m.piece_layers).unwrap();
            prop_assert_eq!(info_hashes, m.info_hashes);
            if let Ok(layout) = FileLayout::new(&m.info) {
                let pieces = m.info.geometry.pieces();
                let covered: u64 = pieces
                    .flat_map(|piece| layout.piece_spans(piece).collect::<Vec<_>>())
                    .map(|span| span.length)
                    .sum();
                prop_assert_eq!(covered, total);
                prop_assert!(layout.files().iter().all(|file| file.path.starts_with(layout.root_name())));
            }
        }
    }
}
