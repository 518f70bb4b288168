//! Every form of a line, and the ranges against a naive list.

use proptest::prelude::*;

use super::*;

fn read(text: &[u8]) -> IpList {
    let mut reader = Reader::default();
    reader.feed(text).unwrap();
    reader.finish().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn blocks(line: &str, blocked: &[&str], free: &[&str]) {
    let list = read(line.as_bytes());
    assert_eq!((list.good_lines, list.bad_lines), (1, 0), "{line}");
    for text in blocked {
        assert!(list.filter.is_blocked(ip(text)), "{text} by {line}");
    }
    for text in free {
        assert!(!list.filter.is_blocked(ip(text)), "{text} by {line}");
    }
}

#[test]
fn every_form_of_a_line_is_read() {
    let (inside, outside) = (
        ["1.2.3.4", "1.2.4.0", "1.2.4.5"],
        ["1.2.3.3", "1.2.4.6", "::1"],
    );
    for line in [
        "1.2.3.4-1.2.4.5",
        " 1.2.3.4 - 1.2.4.5 \r",
        "1.2.3.4-1.2.4.5 # why",
        "some name:1.2.3.4-1.2.4.5",
        "a - b, c: d # e:1.2.3.4-1.2.4.5",
        ":1.2.3.4-1.2.4.5",
        "001.002.003.004 - 001.002.004.005 , 000 , some, name",
        "001.002.003.004 - 001.002.004.005 , 127 , x",
        "1.2.3.4-1.2.4.5,100",
        "\u{feff}1.2.3.4-1.2.4.5",
    ] {
        blocks(line, &inside, &outside);
    }
    blocks(
        "1.2.3.4",
        &["1.2.3.4", "::ffff:1.2.3.4"],
        &["1.2.3.3", "1.2.3.5"],
    );
    blocks(
        "1.2.3.4/23",
        &["1.2.2.0", "1.2.3.255"],
        &["1.2.1.255", "1.2.4.0"],
    );
    blocks("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &["::"]);
    blocks(
        "2001:db8::/32",
        &["2001:db8::", "2001:db8:ffff::1"],
        &["2001:db9::"],
    );
    blocks(
        "2001:db8::1",
        &["2001:db8::1"],
        &["2001:db8::", "2001:db8::2"],
    );
    blocks(
        "2001:db8::1 - 2001:db8::3",
        &["2001:db8::2"],
        &["2001:db8::4"],
    );
    blocks(
        "name: 2001:db8::1-2001:db8::3",
        &["2001:db8::2"],
        &["2001:db8::4"],
    );
    blocks(
        "2001:db8::1-2001:db8::3,1,x",
        &["2001:db8::2"],
        &["2001:db8::4"],
    );
    blocks("::ffff:1.2.3.4", &["1.2.3.4"], &["::1"]);
    blocks("::/0", &["::", "ffff::"], &["1.2.3.4"]);
    blocks("1.2.3.4-1.2.4.5,128,allowed", &[], &["1.2.3.4"]);
}

#[test]
fn bad_lines_are_counted_and_the_first_is_named() {
    let bad: [&[u8]; 18] = [
        b"1.2.3",
        b"1.2.3.4.5",
        b"1.2.3.256",
        b"1.2.3.0004",
        b"1.2.3.+4",
        b"1.2.3.5-1.2.3.4",
        b"1.2.3.4-::1",
        b"1.2.3.4/33",
        b"1.2.3.4/+8",
        b"1.2.3.4/",
        b"::/129",
        b"::1/x",
        b"a name",
        b"name:1.2.3.4",
        b"1.2.3.4-",
        b"-",
        b"\xff\xfe1\x00",
        b"<html>",
    ];
    for line in bad {
        let text = [b"# list\n\n; x\n// y\n1.2.3.4\n", line, b"\n", line].concat();
        let list = read(&text);
        let shown = String::from_utf8_lossy(line);
        assert_eq!((list.good_lines, list.bad_lines), (1, 2), "{shown}");
        assert_eq!(list.first_bad_line, Some(6), "{shown}");
        assert_eq!(list.filter.range_count(), 1);
    }
    let long = [
        b"x".repeat(LINE_BYTES_MAX),
        b":1.2.3.4-1.2.3.5\n9.9.9.9".to_vec(),
    ]
    .concat();
    let list = read(&long);
    assert_eq!((list.good_lines, list.bad_lines), (1, 1));
    assert!(list.filter.is_blocked(ip("9.9.9.9")) && !list.filter.is_blocked(ip("1.2.3.4")));
}

#[test]
fn a_list_is_the_same_however_it_is_cut() {
    let text = b"a:1.0.0.0-1.0.0.9\r\nbad\n\n2.0.0.0/8\n2001:db8::/32\n1.0.0.5 - 1.0.1.0 , 5 , x";
    let whole = read(text);
    assert_eq!(whole.filter.range_count(), 3, "two became one");
    for cut in 0..=text.len() {
        let mut reader = Reader::default();
        reader.feed(&text[..cut]).unwrap();
        reader.feed(&text[cut..]).unwrap();
        assert_eq!(reader.finish().unwrap(), whole, "cut at {cut}");
    }
}

#[test]
fn ranges_that_touch_or_overlap_become_one() {
    let list = read(
        b"1.0.0.0-1.0.0.1\n1.0.0.2\n1.0.0.0-1.0.0.200\n1.0.0.100-1.0.1.0\n255.255.255.255\n0.0.0.0",
    );
    assert_eq!(list.filter.range_count(), 3);
    let all = read(b"0.0.0.0/0\n255.255.255.255\n::/0\nffff::/16");
    assert_eq!(all.filter.range_count(), 2);
}

proptest! {
    #[test]
    fn what_is_blocked_is_what_a_naive_list_blocks(
        ranges in proptest::collection::vec((0u32..600, 0u32..40, any::<bool>()), 0..60)
    ) {
        // Near both ends of each family, so that overflow would show.
        let v4 = |at: u32| IpAddr::from(Ipv4Addr::from_bits(u32::MAX - 640 + at));
        let v6 = |at: u32| IpAddr::from(Ipv6Addr::from_bits(u128::MAX - 640 + u128::from(at)));
        let of = |at: u32, is_v6: bool| if is_v6 { v6(at) } else { v4(at) };
        let mut text = String::new();
        for (first, length, is_v6) in &ranges {
            text += &format!("{}-{}\n", of(*first, *is_v6), of(first + length, *is_v6));
        }
        let list = read(text.as_bytes());
        prop_assert_eq!(list.good_lines, ranges.len() as u64);
        for at in 0..=640 {
            for is_v6 in [false, true] {
                let naive = ranges.iter().any(|(first, length, six)| {
                    *six == is_v6 && (*first..=first + length).contains(&at)
                });
                prop_assert_eq!(list.filter.is_blocked(of(at, is_v6)), naive);
            }
        }
        for pair in list.filter.v4.windows(2) {
            prop_assert!(pair[0].1 + 1 < pair[1].0);
        }
    }
}
