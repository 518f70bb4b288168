//! Torrents that must be refused, each with a part of what is said about it (HOSTILE.md T1, T3–T7, T9, T13).

use crate::torrent_file::{Entry, around, d, i, info_of, l, s};

/// What it is, its bytes, and what the error must say.
pub type Refused = (&'static str, Vec<u8>, &'static str);

const PIECE_LENGTH: i64 = 16_384;

/// `info` of a single file of two pieces, with some values replaced, added or (None) left out.
fn single(change: &[(&'static str, Option<Vec<u8>>)]) -> Vec<u8> {
    let mut info = vec![
        ("length", i(20_000)),
        ("name", s("n")),
        ("piece length", i(PIECE_LENGTH)),
        ("pieces", s([7; 40])),
    ];
    for (key, value) in change {
        info.retain(|(present, _)| present != key);
        info.extend(value.clone().map(|value| (*key, value)));
    }
    info.sort_by_key(|(key, _)| *key);
    around(&info)
}

fn changed(key: &'static str, value: Vec<u8>) -> Vec<u8> {
    single(&[(key, Some(value))])
}

fn without(key: &'static str) -> Vec<u8> {
    single(&[(key, None)])
}

/// `info` with this value of `files`.
fn files(value: Vec<u8>) -> Vec<u8> {
    single(&[("length", None), ("files", Some(value))])
}

/// `info` with one entry of `files` of these keys.
fn one_file(keys: &[(&str, Vec<u8>)]) -> Vec<u8> {
    files(l(&[d(keys)]))
}

/// A good torrent with these bytes as the value of one more key of its top level.
fn with_value(value: &[u8]) -> Vec<u8> {
    let good = single(&[]);
    [b"d1:a", value, &good[1..]].concat()
}

pub fn all() -> Vec<Refused> {
    let mut all = nesting();
    all.extend(numbers());
    all.extend(strings_and_ends());
    all.extend(no_torrents());
    all.extend(keys_twice());
    all.extend(top_levels());
    all.extend(piece_lengths());
    all.extend(hashes());
    all.extend(lengths());
    all.extend(file_lists());
    all.extend(versions());
    all
}

fn nesting() -> Vec<Refused> {
    let deep = |open: &[u8], levels: usize, close: &[u8]| {
        [open.repeat(levels), close.repeat(levels)].concat()
    };
    let mixed = [b"d1:al".repeat(500), b"ee".repeat(500)].concat();
    let in_info = changed("x", deep(b"l", 100, b"e"));
    vec![
        ("T1 a million lists", b"l".repeat(1_000_000), "deep"),
        (
            "T1 a million dictionaries",
            b"d1:a".repeat(1_000_000),
            "deep",
        ),
        (
            "T1 a million closed lists",
            deep(b"l", 1_000_000, b"e"),
            "deep",
        ),
        ("T1 lists in dictionaries", mixed, "deep"),
        ("T1 a hundred lists in info", in_info, "deep"),
        (
            "T1 lists in a value",
            with_value(&deep(b"l", 101, b"e")),
            "deep",
        ),
    ]
}

fn numbers() -> Vec<Refused> {
    let number = |digits: &str| with_value(format!("i{digits}e").as_bytes());
    vec![
        ("T3 minus zero", number("-0"), "bad number at byte 4"),
        ("T3 two zeros", number("00"), "bad number at byte 4"),
        ("T3 leading zero", number("01"), "bad number at byte 4"),
        (
            "T3 negative leading zero",
            number("-01"),
            "bad number at byte 4",
        ),
        ("T3 two minus", number("--1"), "at byte"),
        ("T3 plus", number("+1"), "at byte"),
        ("T3 no digits", number(""), "at byte"),
        ("T3 minus alone", number("-"), "at byte"),
        ("T3 space", number(" 1"), "at byte"),
        ("T3 fraction", number("1.5"), "at byte"),
        ("T3 exponent", number("1e5"), "at byte"),
        ("T3 hexadecimal", number("0x10"), "at byte"),
        (
            "T3 2⁶³",
            number("9223372036854775808"),
            "bad number at byte 4",
        ),
        (
            "T3 −2⁶³−1",
            number("-9223372036854775809"),
            "bad number at byte 4",
        ),
        (
            "T3 a thousand digits",
            number(&"9".repeat(1_000)),
            "bad number at byte 4",
        ),
        ("T3 number without end", b"d1:ai12".to_vec(), "byte"),
    ]
}

fn strings_and_ends() -> Vec<Refused> {
    let good = single(&[]);
    let cut = |at: usize| good[..at].to_vec();
    let name_at = good.windows(4).position(|four| four == b"name").unwrap();
    vec![
        (
            "T3 string of 99999999999",
            b"d99999999999:".to_vec(),
            "byte 1",
        ),
        (
            "T3 string of 2⁶⁴",
            b"d18446744073709551616:a".to_vec(),
            "byte 1",
        ),
        ("T3 string of 2³²", b"d4294967296:a".to_vec(), "byte 1"),
        (
            "T3 string past the end",
            with_value(b"500:a"),
            "runs past the end",
        ),
        ("T3 string of −1", with_value(b"-1:a"), "byte 4"),
        (
            "T3 string with a leading zero",
            with_value(b"01:a"),
            "byte 4",
        ),
        ("T3 string without a colon", with_value(b"3abc"), "at byte"),
        ("T3 empty length", with_value(b":a"), "byte 4"),
        (
            "T3 key that is a number",
            b"di1ei2ee".to_vec(),
            "not a string",
        ),
        ("T3 key that is a list", b"dlei2ee".to_vec(), "not a string"),
        (
            "T3 key that is a dictionary",
            b"ddei2ee".to_vec(),
            "not a string",
        ),
        (
            "T3 key without a value",
            b"d4:infoe".to_vec(),
            "without a value",
        ),
        ("T3 an end too many", b"e".to_vec(), "byte 0"),
        ("T3 cut off in a key", cut(name_at), "byte"),
        ("T3 cut off in a length", cut(name_at - 1), "byte"),
        ("T3 cut off in the hashes", cut(good.len() - 20), "byte"),
        ("T3 last byte missing", cut(good.len() - 1), "byte"),
        ("T3 first byte alone", cut(1), "byte"),
        (
            "T3 first byte missing",
            good[1..].to_vec(),
            "not a dictionary",
        ),
        ("T3 empty", Vec::new(), "byte 0"),
    ]
}

fn no_torrents() -> Vec<Refused> {
    let good = single(&[]);
    let wide: Vec<u8> = good.iter().flat_map(|byte| [*byte, 0]).collect();
    vec![
        ("a web page", b"<!DOCTYPE html>\x1b[2J".to_vec(), "byte 0"),
        ("packed", b"\x1f\x8b\x08\x00\x00".to_vec(), "byte 0"),
        ("JSON", b"{\"info\": {}}".to_vec(), "byte 0"),
        (
            "a magnet link",
            b"magnet:?xt=urn:btih:00".to_vec(),
            "byte 0",
        ),
        ("zeros", vec![0; 10_000], "byte 0"),
        ("ones", vec![0xff; 10_000], "byte 0"),
        (
            "a mark of byte order",
            [b"\xef\xbb\xbf", &good[..]].concat(),
            "byte 0",
        ),
        ("two bytes a character", wide, "byte 1"),
        ("a line feed first", [b"\n", &good[..]].concat(), "byte 0"),
    ]
}

fn keys_twice() -> Vec<Refused> {
    let good = single(&[]);
    let info = &good[1..good.len() - 1];
    let apart = around(&[("name", s("a")), ("length", i(1)), ("name", s("b"))]);
    let file = |keys: &[(&str, Vec<u8>)]| one_file(keys);
    let path = |name| l(&[s(name)]);
    vec![
        ("T4 info twice", [b"d", info, info, b"e"].concat(), "twice"),
        ("T4 name twice, apart", apart, "twice"),
        (
            "T4 two lengths in a row",
            around(&[("length", i(1)), ("length", i(2))]),
            "twice",
        ),
        (
            "T4 two paths of a file",
            file(&[("length", i(1)), ("path", path("a")), ("path", path("b"))]),
            "twice",
        ),
        ("T4 empty keys", with_value(b"d0:i1e0:i2ee"), "twice"),
    ]
}

fn top_levels() -> Vec<Refused> {
    let info = |value: Vec<u8>| d(&[("info", value)]);
    let rooted = l(&[single(&[])]);
    vec![
        ("a number", i(1), "top level is not a dictionary"),
        ("a string", s("d4:infode"), "top level is not a dictionary"),
        ("an empty list", l(&[]), "top level is not a dictionary"),
        (
            "a torrent in a list",
            rooted,
            "top level is not a dictionary",
        ),
        ("an empty dictionary", d(&[]), "`info` is missing"),
        (
            "no info",
            d(&[("announce", s("http://a/"))]),
            "`info` is missing",
        ),
        ("info a number", info(i(1)), "`info` is not a dictionary"),
        ("info a string", info(s("de")), "`info` is not a dictionary"),
        ("info a list", info(l(&[])), "`info` is not a dictionary"),
        ("info empty", info(d(&[])), "is missing"),
        (
            "info in capitals",
            d(&[("INFO", d(&[]))]),
            "`info` is missing",
        ),
    ]
}

fn piece_lengths() -> Vec<Refused> {
    let key = "piece length";
    let over = i((512 << 20) + 1);
    vec![
        ("T5 missing", without(key), "`piece length` is missing"),
        ("T5 zero", changed(key, i(0)), "piece length 0 "),
        ("T5 −1", changed(key, i(-1)), "piece length -1 "),
        (
            "T5 the least number",
            changed(key, i(i64::MIN)),
            "piece length -9223",
        ),
        (
            "T5 a byte over 512 MiB",
            changed(key, over),
            "piece length 536870913 ",
        ),
        (
            "T5 the largest number",
            changed(key, i(i64::MAX)),
            "piece length 9223",
        ),
        (
            "T5 a string",
            changed(key, s("16384")),
            "`piece length` is not a number",
        ),
        (
            "T5 a list",
            changed(key, l(&[i(16_384)])),
            "`piece length` is not a number",
        ),
    ]
}

fn hashes() -> Vec<Refused> {
    let key = "pieces";
    let huge = single(&[("length", Some(i(i64::MAX))), ("piece length", Some(i(1)))]);
    let huge_pieces = single(&[
        ("length", Some(i(i64::MAX))),
        ("piece length", Some(i(512 << 20))),
    ]);
    vec![
        ("T6 39 bytes", changed(key, s([7; 39])), "39 bytes"),
        ("T6 one byte", changed(key, s([7])), "1 bytes"),
        (
            "T6 none",
            changed(key, s("")),
            "need 2 hashes, but there are 0",
        ),
        (
            "T6 one too few",
            changed(key, s([7; 20])),
            "need 2 hashes, but there are 1",
        ),
        (
            "T6 one too many",
            changed(key, s([7; 60])),
            "need 2 hashes, but there are 3",
        ),
        (
            "T6 hexadecimal",
            changed(key, s([b'7'; 80])),
            "need 2 hashes, but there are 4",
        ),
        (
            "T6 a number",
            changed(key, i(40)),
            "`pieces` is not a string",
        ),
        (
            "T6 a list of hashes",
            changed(key, l(&[s([7; 20]), s([7; 20])])),
            "not a string",
        ),
        ("T6 missing", without(key), "`pieces` is missing"),
        ("T6 8 EiB in bytes", huge, "pieces are more than"),
        ("T6 8 EiB in 512 MiB", huge_pieces, "pieces are more than"),
        (
            "T6 a TiB of one hash",
            changed("length", i(1 << 40)),
            "need 67108864 hashes, but there are 2",
        ),
    ]
}

fn lengths() -> Vec<Refused> {
    let huge = |name: &str| d(&[("length", i(i64::MAX)), ("path", l(&[s(name)]))]);
    let entry = |length: i64| d(&[("length", i(length)), ("path", l(&[s("a")]))]);
    let sum_to_zero = l(&[entry(20_001), entry(-1)]);
    let nothing = info_of(
        b"n",
        &[Entry::file(&[b"a"], []), Entry::file(&[b"b"], [])],
        16_384,
    );
    vec![
        (
            "T7 −5",
            one_file(&[("length", i(-5)), ("path", l(&[s("a")]))]),
            "-5",
        ),
        ("T7 one of two is −1", files(sum_to_zero), "the length -1"),
        (
            "T7 negative single file",
            changed("length", i(-1)),
            "the length -1",
        ),
        (
            "T7 the least number",
            changed("length", i(i64::MIN)),
            "the length -9223",
        ),
        (
            "T7 sum beyond 63 bits",
            files(l(&[huge("a"), huge("b")])),
            "overflow at file 1",
        ),
        (
            "T7 sum beyond 64 bits",
            files(l(&[huge("a"), huge("b"), huge("c")])),
            "overflow",
        ),
        ("T7 no byte", changed("length", i(0)), "no byte"),
        ("T7 two empty files", around(&nothing), "no byte"),
        (
            "T7 neither length nor files",
            without("length"),
            "`length` is missing",
        ),
        (
            "T7 length a string",
            changed("length", s("20000")),
            "`length` is not a number",
        ),
        (
            "T7 length a list",
            changed("length", l(&[i(1)])),
            "`length` is not a number",
        ),
    ]
}

fn file_lists() -> Vec<Refused> {
    let path = |value: Vec<u8>| one_file(&[("length", i(20_000)), ("path", value)]);
    let no_path = one_file(&[("length", i(20_000))]);
    let link = [
        ("attr", s("l")),
        ("path", l(&[s("k")])),
        ("symlink path", l(&[s("..")])),
    ];
    let deep = vec![s("abc"); 2_000];
    vec![
        ("files empty", files(l(&[])), "no byte"),
        ("files a dictionary", files(d(&[])), "`files` is not a list"),
        ("files a number", files(i(1)), "`files` is not a list"),
        ("files of strings", files(l(&[s("a")])), "file 0"),
        ("files of lists", files(l(&[l(&[])])), "file 0"),
        ("files of links alone", one_file(&link), "no byte"),
        ("path missing", no_path, "file 0: `path` is missing"),
        (
            "path a string",
            path(s("../a")),
            "`path` is missing or not a list",
        ),
        (
            "path of numbers",
            path(l(&[i(1)])),
            "`path` is missing or not a list",
        ),
        (
            "path of lists",
            path(l(&[l(&[s("a")])])),
            "`path` is missing or not a list",
        ),
        (
            "file without a length",
            one_file(&[("path", l(&[s("a")]))]),
            "file 0: `length` is missing",
        ),
        (
            "file with a length in words",
            one_file(&[("length", s("5")), ("path", l(&[s("a")]))]),
            "`length` is missing or not a number",
        ),
        (
            "T9 path over PATH_MAX",
            path(l(&deep)),
            "longer than 4095 bytes",
        ),
    ]
}

fn versions() -> Vec<Refused> {
    let tree = Some(d(&[]));
    let version = |value: Vec<u8>| {
        single(&[
            ("pieces", None),
            ("file tree", tree.clone()),
            ("meta version", Some(value)),
        ])
    };
    vec![
        ("T13 v2 of nothing", version(i(2)), "no byte"),
        ("T13 v3", version(i(3)), "meta version 3"),
        ("T13 v−1", version(i(-1)), "meta version -1"),
        (
            "T13 version in words",
            version(s("2")),
            "`meta version` is not a number",
        ),
        (
            "T13 a tree without a version",
            single(&[("pieces", None), ("file tree", tree)]),
            "`meta version` is missing",
        ),
    ]
}
