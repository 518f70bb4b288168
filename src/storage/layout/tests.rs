use super::*;
use crate::wire::metainfo::{FileAttributes, FileEntry, Kind, PieceHashes};
use proptest::prelude::*;

/// Words of `path=length`, with `!pad` or `->target` behind it.
fn info(piece_length: u64, files: &str) -> Info {
    let elements = |path: &str| path.split('/').map(|e| e.as_bytes().to_vec()).collect();
    let entry = |word: &str| {
        let (word, is_pad) = match word.strip_suffix("!pad") {
            Some(word) => (word, true),
            None => (word, false),
        };
        let (word, target) = match word.split_once("->") {
            Some((word, target)) => (word, Some(target)),
            None => (word, None),
        };
        let (path, length) = word.split_once('=').unwrap_or((word, "0"));
        FileEntry {
            path: elements(path),
            length_bytes: length.parse().unwrap(),
            attributes: FileAttributes {
                is_pad,
                is_symlink: target.is_some(),
                ..FileAttributes::default()
            },
            symlink_target: target.map(elements).unwrap_or_default(),
            pieces_root: None,
        }
    };
    let files: Vec<_> = files.split_whitespace().map(entry).collect();
    let total = files.iter().map(|file| file.length_bytes).sum();
    let geometry = Geometry::new(total, piece_length).unwrap();
    let hashes = vec![0; 20 * geometry.piece_count() as usize];
    Info {
        name: "r".to_owned(),
        geometry,
        piece_hashes: PieceHashes::new(&hashes).unwrap(),
        files,
        is_multi_file: true,
        is_private: false,
        source: None,
        kind: Kind::V1,
    }
}

#[test]
fn files_folders_and_the_root_take_other_names_and_no_taken_or_unsafe_ones() {
    let paths = |layout: &FileLayout| {
        let paths = layout
            .files()
            .iter()
            .map(|file| file.path.display().to_string());
        paths.collect::<Vec<_>>().join(" ")
    };
    let of = || layout(16_384, "a/x=1 a/y=2 b=3");
    let to = |path: &str, name: &str| of().renamed(Path::new(path), name);
    assert_eq!(paths(&to("r/a/x", "z").unwrap()), "r/a/z r/a/y r/b");
    assert_eq!(paths(&to("r/a", "c").unwrap()), "r/c/x r/c/y r/b");
    let root = to("r", "s").unwrap();
    assert_eq!(paths(&root), "s/a/x s/a/y s/b");
    assert_eq!(root.root_name(), Path::new("s"));
    for (path, name, why) in [
        ("r/a/x", "y", RenameError::Taken),
        ("r/b", "a", RenameError::Taken),
        ("r/b", "..", RenameError::BadName),
        ("r/b", "x/y", RenameError::BadName),
        ("r/b", ".gyre-parts", RenameError::BadName),
        ("r/b", "", RenameError::BadName),
        ("r/a/q", "z", RenameError::Unknown),
        ("../r", "z", RenameError::Unknown),
        ("", "z", RenameError::Unknown),
        ("/", "z", RenameError::Unknown),
        ("//", "z", RenameError::Unknown),
        (".", "z", RenameError::Unknown),
        ("./", "z", RenameError::Unknown),
        ("..", "z", RenameError::Unknown),
    ] {
        assert_eq!(to(path, name).unwrap_err(), why, "{path} {name}");
    }
    let links = layout(16_384, "a/x=1 l->a/x");
    let error = links.clone().renamed(Path::new("r/a"), "z").unwrap_err();
    assert_eq!(error, RenameError::HasLinks);
    assert!(links.renamed(Path::new("r"), "s").is_ok());
}

fn layout(piece_length: u64, files: &str) -> FileLayout {
    FileLayout::new(&info(piece_length, files)).unwrap()
}

fn spans(layout: &FileLayout, offset: u64, length: u64) -> Vec<(usize, u64, u64, u64)> {
    let fields = |s: Span| (s.file, s.file_offset, s.length, s.stream_offset);
    layout.spans(offset, length).map(fields).collect()
}

#[test]
fn spans_cross_files_and_skip_empty_ones() {
    let l = layout(10, "a=4 e=0 b=3 p=5!pad f=0 c=8");
    assert_eq!(
        spans(&l, 2, 12),
        [(0, 2, 2, 2), (2, 0, 3, 4), (3, 0, 5, 7), (5, 0, 2, 12)]
    );
    assert_eq!(spans(&l, 4, 1), [(2, 0, 1, 4)]);
    assert_eq!(spans(&l, 19, 100), [(5, 7, 1, 19)]);
    assert_eq!(spans(&l, 20, 1), []);
    assert_eq!(spans(&l, 5, 0), []);
    assert_eq!(spans(&l, u64::MAX, u64::MAX), []);
    assert!(l.files()[3].is_pad && !l.files()[3].is_regular());
    assert_eq!(l.root_name(), Path::new("r"));
    assert_eq!(l.files()[5].path, Path::new("r/c"));
    assert_eq!(l.files()[5].offset, 12);
}

#[test]
fn pieces_and_files_know_each_other() {
    let l = layout(10, "a=4 e=0 b=16 c=1");
    let piece = |index| l.geometry().piece(index).unwrap();
    assert_eq!(l.files_of_piece(piece(0)), 0..3);
    assert_eq!(l.files_of_piece(piece(1)), 2..3);
    assert_eq!(l.files_of_piece(piece(2)), 3..4);
    assert_eq!(l.pieces_of_file(0), 0..1);
    assert_eq!(l.pieces_of_file(1), 0..0);
    assert_eq!(l.pieces_of_file(2), 0..2);
    assert_eq!(l.pieces_of_file(3), 2..3);
    assert_eq!(l.pieces_of_file(4), 0..0);
    assert_eq!(
        l.piece_spans(piece(2)).map(|span| span.length).sum::<u64>(),
        1
    );
}

#[test]
fn lengths_that_do_not_fit_the_geometry_are_an_error() {
    let mut info = info(10, "a=4 b=4");
    info.files[1].length_bytes = u64::MAX;
    assert!(matches!(
        FileLayout::new(&info),
        Err(LayoutError::LengthMismatch { .. })
    ));
}

#[test]
fn links_name_something_of_the_same_torrent() {
    let l = layout(10, "d/a=1 d/l->d/a l->d x/y/l->d/a x/b=1 k->x/y/l");
    let links: Vec<_> = l.files().iter().map(|f| f.symlink.as_deref()).collect();
    let link = |text| Some(Path::new(text));
    assert_eq!(
        links,
        [
            None,
            link("a"),
            link("d"),
            link("../../d/a"),
            None,
            link("x/y/l")
        ]
    );
    assert!(l.warnings().is_empty());
}

#[test]
fn links_that_lead_out_or_nowhere_are_dropped() {
    let l = layout(
        10,
        "a=1 p=1!pad l0->.. l1->/etc/passwd l2->missing l3->../../a l4-> l5->p d/l6->d l7->l7 l8->a/b",
    );
    for file in &l.files()[2..] {
        assert_eq!(file.symlink, None, "{file:?}");
        assert!(file.is_pad && !file.is_regular());
    }
    assert_eq!(l.warnings().len(), 9);
}

#[test]
fn a_pad_file_is_never_a_link() {
    let l = layout(10, "a=1 a->a!pad b->a!pad");
    assert_eq!(l.files()[2].symlink, None);
    assert!(!l.files()[1].is_regular() && !l.files()[2].is_regular());
}

#[test]
fn links_follow_renamed_targets() {
    let l = layout(10, "a=1 a/b=1 l->a/b ..=1 m->..");
    assert_eq!(l.files()[2].symlink.as_deref(), Some(Path::new("a~2/b")));
    assert_eq!(l.files()[4].symlink.as_deref(), Some(Path::new("__")));
}

proptest! {
    #[test]
    fn spans_agree_with_a_flat_map_of_bytes(
        lengths in proptest::collection::vec(prop_oneof![Just(0_u64), 0..9_u64], 1..12),
        piece_length in 1..12_u64,
        (offset, length) in (0..90_u64, 0..90_u64),
    ) {
        prop_assume!(lengths.iter().sum::<u64>() > 0);
        let words: Vec<_> = lengths.iter().enumerate().map(|(i, len)| format!("f{i}={len}")).collect();
        let l = layout(piece_length, &words.join(" "));
        let flat: Vec<(usize, u64)> = lengths.iter().enumerate()
            .flat_map(|(file, &len)| (0..len).map(move |at| (file, at))).collect();
        let bytes = |spans: Vec<Span>| -> Vec<(usize, u64)> {
            spans.iter().flat_map(|s| (0..s.length).map(|at| (s.file, s.file_offset + at))).collect()
        };
        let expected: Vec<_> = flat.iter().copied()
            .skip(offset as usize).take(length as usize).collect();
        prop_assert_eq!(bytes(l.spans(offset, length).collect()), expected);
        for piece in l.geometry().pieces() {
            let of_piece: Vec<_> = l.piece_spans(piece).map(|span| span.file).collect();
            let range = l.files_of_piece(piece);
            prop_assert_eq!(range, of_piece[0]..of_piece[of_piece.len() - 1] + 1);
            for file in 0..lengths.len() {
                let has = l.pieces_of_file(file).contains(&piece.get());
                prop_assert_eq!(has, of_piece.contains(&file));
            }
        }
    }
}
