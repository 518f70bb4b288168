//! `.torrent` files, good, odd and hostile: HOSTILE.md T1–T13 through the public interface.

use gyre::base::PIECE_LENGTH_BYTES_MAX;
use gyre::storage::layout::FileLayout;
use gyre::wire::bencode::BencodeError;
use gyre::wire::magnet::Magnet;
use gyre::wire::metainfo::{
    Kind, METADATA_BYTES_MAX, Metainfo, MetainfoBuilder, MetainfoError, PieceHash, PieceLayers,
    TORRENT_BYTES_MAX, TRACKERS_MAX, choose_piece_length, parse_info,
};
use proptest::prelude::*;

/// `12:text` for text, so that torrents below need no counting.
fn s(text: &str) -> String {
    format!("{}:{text}", text.len())
}

/// A dictionary from entries as written, keys in the order given.
fn d(entries: &[(&str, String)]) -> String {
    let entries: String = entries.iter().map(|(key, value)| s(key) + value).collect();
    format!("d{entries}e")
}

fn l(values: &[String]) -> String {
    format!("l{}e", values.concat())
}

fn i(number: i64) -> String {
    format!("i{number}e")
}

fn hashes(count: usize) -> String {
    s(&"h".repeat(20 * count))
}

/// A torrent around these entries of `info`.
fn torrent(info: &[(&str, String)]) -> Vec<u8> {
    d(&[("info", d(info))]).into_bytes()
}

fn single(length: String, piece_length: String, pieces: String) -> Vec<u8> {
    torrent(&[
        ("length", length),
        ("name", s("n")),
        ("piece length", piece_length),
        ("pieces", pieces),
    ])
}

/// A multi-file torrent of one piece around these file dictionaries.
fn multi(files: &[String]) -> Vec<u8> {
    torrent(&[
        ("files", l(files)),
        ("name", s("n")),
        ("piece length", i(65_536)),
        ("pieces", hashes(1)),
    ])
}

fn file(length: i64, path: &[&str]) -> String {
    let path: Vec<_> = path.iter().map(|element| s(element)).collect();
    d(&[("length", i(length)), ("path", l(&path))])
}

fn parse(bytes: &[u8]) -> Metainfo {
    Metainfo::parse(bytes).unwrap()
}

fn error(bytes: &[u8]) -> MetainfoError {
    Metainfo::parse(bytes).unwrap_err()
}

#[test]
fn a_single_file_torrent_is_read() {
    let m = parse(&single(i(40_000), i(16_384), hashes(3)));
    assert_eq!(m.info.name, "n");
    assert!(!m.info.is_multi_file && !m.info.is_private);
    assert_eq!(m.info.kind, Kind::V1);
    assert_eq!(m.info.geometry.piece_count(), 3);
    assert_eq!(m.info.piece_hashes.count(), 3);
    let last = m.info.geometry.piece(2).unwrap();
    assert_eq!(m.info.piece_hashes.get(last), PieceHash::Sha1([b'h'; 20]));
    assert_eq!(m.info.files.len(), 1);
    assert_eq!(m.info.files[0].length_bytes, 40_000);
    assert!(m.warnings.is_empty());
    let layout = FileLayout::new(&m.info).unwrap();
    assert_eq!(layout.files()[0].path.to_str(), Some("n"));
    let (info, info_hash, warnings) = parse_info(&m.info_bytes, &m.piece_layers).unwrap();
    assert_eq!(
        (info.name, info_hash, warnings),
        (m.info.name, m.info_hashes, m.warnings)
    );
}

#[test]
fn everything_around_the_info_dictionary_is_read() {
    let info = [
        ("length", i(1)),
        ("name", s("n")),
        ("piece length", i(16_384)),
        ("pieces", hashes(1)),
        ("private", i(1)),
        ("source", s("SRC")),
    ];
    let tiers = l(&[
        l(&[s("http://a/"), s(" udp://b:1 "), s("http://a/")]),
        l(&[]),
        s("http://c/"),
        l(&[s("bad url"), i(3)]),
    ]);
    let bytes = d(&[
        ("announce", s("http://ignored/")),
        ("announce-list", tiers),
        ("comment", s("caf\u{e9}")),
        ("created by", s("me")),
        ("creation date", i(1_700_000_000)),
        ("info", d(&info)),
        (
            "nodes",
            l(&[
                l(&[s("h.example"), i(6881)]),
                l(&[s("x"), i(70_000)]),
                i(1),
                l(&[]),
            ]),
        ),
        ("url-list", l(&[s("http://w/"), s("")])),
    ]);
    let m = parse(bytes.as_bytes());
    assert_eq!(
        m.announce_tiers,
        [vec!["http://a/", "udp://b:1"], vec!["http://c/"]]
    );
    assert_eq!(m.web_seeds, ["http://w/"]);
    assert_eq!(m.comment.as_deref(), Some("caf\u{e9}"));
    assert_eq!(m.created_by.as_deref(), Some("me"));
    assert_eq!(m.creation_date, Some(1_700_000_000));
    assert_eq!(m.nodes, [("h.example".to_owned(), 6881)]);
    assert!(m.info.is_private);
    assert_eq!(m.info.source.as_deref(), Some("SRC"));
    let magnet = Magnet::from_metainfo(&m);
    assert_eq!(magnet.trackers, ["http://a/", "udp://b:1", "http://c/"]);
    assert_eq!(magnet.to_string().parse(), Ok(magnet));
}

#[test]
fn announce_alone_is_one_tier_and_a_lone_web_seed_is_taken() {
    let info = d(&[
        ("length", i(1)),
        ("name", s("n")),
        ("piece length", i(1)),
        ("pieces", hashes(1)),
    ]);
    let bytes = d(&[
        ("announce", s("http://a/")),
        ("announce-list", l(&[l(&[s("")])])),
        ("info", info),
        ("url-list", s("http://w/")),
    ]);
    let m = parse(bytes.as_bytes());
    assert_eq!(m.announce_tiers, [["http://a/"]]);
    assert_eq!(m.web_seeds, ["http://w/"]);
}

#[test]
fn trackers_are_capped() {
    let urls: Vec<_> = (0..3 * TRACKERS_MAX)
        .map(|n| l(&[s(&format!("http://t/{n}"))]))
        .collect();
    let info = d(&[
        ("length", i(1)),
        ("name", s("n")),
        ("piece length", i(1)),
        ("pieces", hashes(1)),
    ]);
    let m = parse(d(&[("announce-list", l(&urls)), ("info", info)]).as_bytes());
    assert_eq!(m.announce_tiers.len(), TRACKERS_MAX);
}

#[test]
fn trailing_bytes_are_a_warning() {
    let bytes = single(i(1), i(1), hashes(1));
    let longer = [&bytes[..], b"\r\n"].concat();
    let m = parse(&longer);
    assert_eq!(m.warnings, ["2 bytes behind the torrent are ignored"]);
    assert_eq!(m.info_hash, parse(&bytes).info_hash);
}

#[test]
fn unsorted_keys_keep_the_hash_of_the_raw_bytes() {
    let info = d(&[
        ("pieces", hashes(1)),
        ("piece length", i(1)),
        ("name", s("n")),
        ("length", i(1)),
    ]);
    let m = parse(d(&[("info", info.clone())]).as_bytes());
    assert_eq!(&m.info_bytes[..], info.as_bytes());
    assert_eq!(m.warnings, ["dictionary keys are not in order"]);
    assert_ne!(m.info_hash, parse(&single(i(1), i(1), hashes(1))).info_hash);
    assert!(matches!(
        error(&torrent(&[
            ("name", s("a")),
            ("length", i(1)),
            ("name", s("b"))
        ])),
        MetainfoError::Bencode(BencodeError::DuplicateKey { .. })
    ));
}

#[test]
fn the_info_hash_is_the_sha1_of_the_raw_info_dictionary() {
    // SHA-1 of `d6:lengthi1e4:name1:n12:piece lengthi1e6:pieces20:hhhhhhhhhhhhhhhhhhhhe`.
    let m = parse(&single(i(1), i(1), hashes(1)));
    assert_eq!(
        m.info_hash.to_string(),
        "a2619d44d98ce63d0d22b4eaef3ab4f638a32ebb"
    );
}

#[test]
fn what_is_no_torrent_is_an_error() {
    assert!(matches!(error(b""), MetainfoError::Bencode(_)));
    assert!(matches!(
        error(b"<html>"),
        MetainfoError::Bencode(BencodeError::UnexpectedByte { offset: 0, .. })
    ));
    assert_eq!(error(b"le"), MetainfoError::NotADictionary);
    assert_eq!(error(b"de"), MetainfoError::Missing { key: "info" });
    assert!(matches!(
        error(b"d4:infoi1ee"),
        MetainfoError::WrongType { key: "info", .. }
    ));
    assert!(matches!(
        error(&b"l".repeat(1_000_000)),
        MetainfoError::Bencode(BencodeError::TooDeep { .. })
    ));
    let many = [b"d4:infol".as_slice(), &b"i1e".repeat(3_000_001), b"ee"].concat();
    let error = error(&many).to_string();
    assert!(error.contains("more than 3000000 values"), "{error}");
    assert!(!error.contains("not a torrent"), "{error}");
}

#[test]
fn sizes_are_capped() {
    assert!(matches!(
        error(&vec![b'd'; TORRENT_BYTES_MAX + 1]),
        MetainfoError::TooLarge { .. }
    ));
    let metadata = vec![b'd'; METADATA_BYTES_MAX + 1];
    assert!(matches!(
        parse_info(&metadata, &PieceLayers::default()),
        Err(MetainfoError::TooLarge { .. })
    ));
}

#[test]
fn two_million_pieces_load() {
    let count = 2 * 1024 * 1024;
    let m = parse(&single(
        i(count * 16_384),
        i(16_384),
        hashes(count as usize),
    ));
    assert_eq!(i64::from(m.info.geometry.piece_count()), count);
}

#[test]
fn bad_piece_lengths_are_errors() {
    for got_bytes in [
        0,
        -1,
        i64::from(PIECE_LENGTH_BYTES_MAX) + 1,
        i64::MAX,
        i64::MIN,
    ] {
        let max_bytes = PIECE_LENGTH_BYTES_MAX;
        let expected = MetainfoError::BadPieceLength {
            got_bytes,
            max_bytes,
        };
        assert_eq!(error(&single(i(1), i(got_bytes), hashes(1))), expected);
    }
    assert!(Metainfo::parse(&single(i(1), i(PIECE_LENGTH_BYTES_MAX.into()), hashes(1))).is_ok());
    let missing = torrent(&[("length", i(1)), ("name", s("n")), ("pieces", hashes(1))]);
    assert_eq!(
        error(&missing),
        MetainfoError::Missing {
            key: "piece length"
        }
    );
    assert!(matches!(
        error(&single(i(1), s("1"), hashes(1))),
        MetainfoError::WrongType { .. }
    ));
}

#[test]
fn a_wrong_number_of_hashes_names_both_numbers() {
    let got_bytes = 19;
    let bytes = single(i(1), i(1), s(&"h".repeat(got_bytes)));
    assert_eq!(error(&bytes), MetainfoError::PiecesNotHashes { got_bytes });
    for got in [0, 1, 3] {
        let expected = MetainfoError::PieceCountMismatch {
            total_bytes: 20_000,
            piece_length_bytes: 16_384,
            expected: 2,
            got,
        };
        assert_eq!(error(&single(i(20_000), i(16_384), hashes(got))), expected);
    }
    let text = error(&single(i(20_000), i(16_384), hashes(3))).to_string();
    assert!(text.contains("need 2 hashes, but there are 3"), "{text}");
    assert!(matches!(
        error(&single(i(i64::MAX), i(1), hashes(1))),
        MetainfoError::TooManyPieces { .. }
    ));
}

#[test]
fn bad_lengths_are_errors() {
    let bad = |file_index, got_bytes| MetainfoError::BadLength {
        file_index,
        got_bytes,
    };
    assert_eq!(error(&single(i(-1), i(1), hashes(1))), bad(0, -1));
    assert_eq!(
        error(&multi(&[file(1, &["a"]), file(-5, &["b"])])),
        bad(1, -5)
    );
    let overflow = MetainfoError::LengthOverflow { file_index: 1 };
    assert_eq!(
        error(&multi(&[file(i64::MAX, &["a"]), file(1, &["b"])])),
        overflow
    );
    assert_eq!(
        error(&multi(&[file(0, &["a"]), file(0, &["b"])])),
        MetainfoError::Empty
    );
    assert_eq!(error(&multi(&[])), MetainfoError::Empty);
    assert_eq!(error(&single(i(0), i(1), hashes(0))), MetainfoError::Empty);
}

#[test]
fn malformed_file_entries_are_errors() {
    let bad = |entry: String| error(&multi(&[file(1, &["a"]), entry]));
    let is_bad = |error| matches!(error, MetainfoError::BadFile { file_index: 1, .. });
    assert!(is_bad(bad(i(1))));
    assert!(is_bad(bad(d(&[("length", i(1))]))));
    assert!(is_bad(bad(d(&[("path", l(&[s("x")]))]))));
    assert!(is_bad(bad(d(&[
        ("length", s("1")),
        ("path", l(&[s("x")]))
    ]))));
    assert!(is_bad(bad(d(&[("length", i(1)), ("path", l(&[i(1)]))]))));
    assert!(is_bad(bad(d(&[("length", i(1)), ("path", s("x"))]))));
}

#[test]
fn hostile_paths_end_up_inside_the_root() {
    let m = parse(&multi(&[
        file(1, &["..", "..", "x"]),
        file(1, &["/etc/passwd"]),
        file(1, &[]),
        file(1, &["x", "X"]),
        file(1, &["X"]),
    ]));
    let layout = FileLayout::new(&m.info).unwrap();
    let paths: Vec<_> = layout
        .files()
        .iter()
        .map(|file| file.path.to_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        ["n/__/__/x", "n/_etc_passwd", "n/_", "n/x/X", "n/X~2"]
    );
}

#[test]
fn utf8_names_are_preferred_when_they_are_utf8() {
    let entry = |utf8: &[u8]| {
        let mut entry = b"d6:lengthi1e4:pathl3:olde10:path.utf-8l3:".to_vec();
        entry.extend(utf8);
        entry.extend(b"ee");
        entry
    };
    let whole = |utf8: &[u8]| {
        let mut bytes = b"d4:infod5:filesl".to_vec();
        bytes.extend(entry(utf8));
        bytes.extend(b"e4:name3:old10:name.utf-83:");
        bytes.extend(utf8);
        bytes.extend(b"12:piece lengthi1e6:pieces20:hhhhhhhhhhhhhhhhhhhhee");
        parse(&bytes)
    };
    let good = whole(b"new");
    assert_eq!(good.info.name, "new");
    assert_eq!(good.info.files[0].path, [b"new"]);
    let bad = whole(b"\xff\xffx");
    assert_eq!(bad.info.name, "old");
    assert_eq!(bad.info.files[0].path, [b"old"]);
}

#[test]
fn a_missing_name_is_replaced_by_the_info_hash() {
    for name in [vec![], vec![("name", s(""))], vec![("name", i(1))]] {
        let mut info = vec![("length", i(1))];
        info.extend(name);
        info.extend([("piece length", i(1)), ("pieces", hashes(1))]);
        let m = parse(&torrent(&info));
        assert_eq!(m.info.name, m.info_hash.to_string());
        assert_eq!(m.warnings.len(), 1);
    }
}

#[test]
fn attributes_of_files_are_read() {
    let entry = |attr: &str, length: i64, name: &str| {
        d(&[
            ("attr", s(attr)),
            ("length", i(length)),
            ("path", l(&[s(name)])),
        ])
    };
    let link = d(&[
        ("attr", s("l")),
        ("path", l(&[s("link")])),
        ("symlink path", l(&[s("tool")])),
    ]);
    let m = parse(&multi(&[
        entry("xhz", 5, "tool"),
        entry("p", 7, "pad"),
        link,
        entry("l", 9, "broken"),
    ]));
    let [tool, pad, link, broken] = &m.info.files[..] else {
        panic!("four files");
    };
    assert!(tool.attributes.is_executable && tool.attributes.is_hidden && !tool.attributes.is_pad);
    assert!(pad.attributes.is_pad);
    assert!(link.attributes.is_symlink);
    assert_eq!(link.symlink_target, [b"tool"]);
    assert_eq!(broken.length_bytes, 0, "a link has no bytes");
    assert_eq!(m.info.geometry.total_bytes(), 12);
    let layout = FileLayout::new(&m.info).unwrap();
    assert_eq!(
        layout.files()[2]
            .symlink
            .as_deref()
            .and_then(|p| p.to_str()),
        Some("tool")
    );
    assert!(layout.files()[0].is_executable);
    assert!(!layout.files()[3].is_regular());
}

#[test]
fn versions_that_are_unknown_leave_the_v1_part() {
    let mut unknown = vec![
        ("length", i(1)),
        ("meta version", i(3)),
        ("name", s("n")),
        ("piece length", i(16_384)),
        ("pieces", hashes(1)),
    ];
    let m = parse(&torrent(&unknown));
    assert_eq!((m.info.kind, m.warnings.len()), (Kind::V1, 1));
    unknown.pop();
    assert_eq!(
        error(&torrent(&unknown)),
        MetainfoError::UnknownVersion { version: 3 }
    );
}

#[test]
fn a_built_torrent_is_canonical_byte_for_byte() {
    let builder = MetainfoBuilder::new("n", 16_384)
        .single_file(5)
        .pieces(vec![b'h'; 20]);
    let (bytes, _) = builder.build().unwrap();
    assert_eq!(bytes, single(i(5), i(16_384), hashes(1)));
    let texts =
        |texts: &[&str]| -> Vec<String> { texts.iter().map(|text| (*text).to_owned()).collect() };
    let (bytes, m) = MetainfoBuilder::new("n", 16_384)
        .files(vec![
            (vec![b"d".to_vec(), b"a".to_vec()], 3),
            (vec![b"b".to_vec()], 0),
        ])
        .pieces(vec![b'h'; 20])
        .private(true)
        .source(Some("S".to_owned()))
        .announce_tiers(vec![
            vec![],
            texts(&["http://a/", "http://b/"]),
            texts(&["http://c/"]),
        ])
        .web_seeds(texts(&["http://w/"]))
        .comment(Some("c".to_owned()))
        .created_by(Some("g".to_owned()))
        .creation_date(Some(7))
        .build()
        .unwrap();
    let info = d(&[
        ("files", l(&[file(3, &["d", "a"]), file(0, &["b"])])),
        ("name", s("n")),
        ("piece length", i(16_384)),
        ("pieces", hashes(1)),
        ("private", i(1)),
        ("source", s("S")),
    ]);
    let expected = d(&[
        ("announce", s("http://a/")),
        (
            "announce-list",
            l(&[l(&[s("http://a/"), s("http://b/")]), l(&[s("http://c/")])]),
        ),
        ("comment", s("c")),
        ("created by", s("g")),
        ("creation date", i(7)),
        ("info", info),
        ("url-list", l(&[s("http://w/")])),
    ]);
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    assert!(m.warnings.is_empty());
    let wrong = MetainfoBuilder::new("n", 16_384)
        .single_file(5)
        .pieces(vec![0; 40]);
    assert!(matches!(
        wrong.build(),
        Err(MetainfoError::PieceCountMismatch { .. })
    ));
}

#[test]
fn automatic_piece_lengths_make_about_a_thousand_to_two_thousand_pieces() {
    assert_eq!(choose_piece_length(0), 16_384);
    assert_eq!(choose_piece_length(1 << 20), 16_384);
    assert_eq!(choose_piece_length(1 << 30), 1 << 20);
    assert_eq!(choose_piece_length(u64::MAX), 16 << 20);
    for shift in 24..34 {
        let total = (1_u64 << shift) + 12_345;
        let pieces = total.div_ceil(u64::from(choose_piece_length(total)));
        assert!((1_000..=2_000).contains(&pieces), "{total}: {pieces}");
    }
}

fn sample() -> Vec<u8> {
    let link = d(&[
        ("attr", s("l")),
        ("path", l(&[s("k")])),
        ("symlink path", l(&[s("a"), s("b")])),
    ]);
    let pad = d(&[
        ("attr", s("p")),
        ("length", i(12)),
        ("path", l(&[s(".pad"), s("12")])),
    ]);
    let info = [
        (
            "files",
            l(&[file(4, &["a", "b"]), pad, link, file(9, &["A", "B"])]),
        ),
        ("meta version", i(1)),
        ("name", s("n")),
        ("piece length", i(16)),
        ("pieces", hashes(2)),
        ("private", i(0)),
    ];
    let root = [
        ("announce-list", l(&[l(&[s("http://a/")])])),
        ("info", d(&info)),
        ("nodes", l(&[l(&[s("h"), i(1)])])),
        ("url-list", s("http://w/")),
    ];
    d(&root).into_bytes()
}

#[test]
fn every_truncation_of_a_torrent_is_an_error() {
    let bytes = sample();
    parse(&bytes);
    for end in 0..bytes.len() {
        assert!(
            matches!(error(&bytes[..end]), MetainfoError::Bencode(_)),
            "{end}"
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
        let mut bytes = sample();
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
            let (_, info_hash, _) = parse_info(&m.info_bytes, &m.piece_layers).unwrap();
            prop_assert_eq!(info_hash, m.info_hashes);
            if let Ok(layout) = FileLayout::new(&m.info) {
                let covered: u64 = layout.spans(0, total).map(|span| span.length).sum();
                prop_assert_eq!(covered, total);
                prop_assert!(layout.files().iter().all(|file| file.path.starts_with(layout.root_name())));
            }
        }
    }

    #[test]
    fn built_torrents_are_read_back(
        name in "[^/\0]{1,20}",
        lengths in proptest::collection::vec(0_u64..40_000, 1..6),
        is_private: bool,
    ) {
        let total: u64 = lengths.iter().sum();
        prop_assume!(total > 0);
        let files = lengths.iter().enumerate()
            .map(|(index, length)| (vec![format!("f{index}").into_bytes()], *length)).collect();
        let pieces = vec![7; 20 * total.div_ceil(16_384) as usize];
        let (bytes, built) = MetainfoBuilder::new(name.clone(), 16_384)
            .files(files).pieces(pieces).private(is_private).build().unwrap();
        let m = parse(&bytes);
        prop_assert_eq!(m.info.name, name);
        prop_assert_eq!(m.info.is_private, is_private);
        prop_assert_eq!(m.info_hash, built.info_hash);
        let got: Vec<_> = m.info.files.iter().map(|file| file.length_bytes).collect();
        prop_assert_eq!(got, lengths);
    }
}
