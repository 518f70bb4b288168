//! Tests of the scanner, the view and the writer, with `bendy`'s decoder as a second opinion.

use super::*;
use proptest::prelude::*;

fn error(bytes: &[u8]) -> BencodeError {
    scan(bytes).unwrap_err()
}

#[test]
fn values_are_read_in_place() {
    let bytes = b"d1:ai-42e1:bl0:3:abce1:cd1:xi0eee";
    let scanned = scan(bytes).unwrap();
    assert!(scanned.is_sorted());
    assert_eq!(scanned.token_count(), 11);
    let dict = scanned.dict().unwrap();
    assert_eq!(dict.int(b"a"), Some(-42));
    let texts: Vec<_> = dict.list(b"b").unwrap().iter().collect();
    assert_eq!(texts, [Value::Bytes(b""), Value::Bytes(b"abc")]);
    assert_eq!(dict.dict(b"c").unwrap().raw(), b"d1:xi0ee");
    assert_eq!(dict.get(b"d"), None);
    assert_eq!(dict.int(b"b"), None);
    assert!(!dict.is_empty());
    assert!(scan(b"le").unwrap().root().as_list().unwrap().is_empty());
}

#[test]
fn prefix_ends_where_the_value_ends() {
    let (scanned, consumed) = scan_prefix(b"d8:msg_typei1eeee payload").unwrap();
    assert_eq!(consumed, 15);
    assert_eq!(scanned.raw(), b"d8:msg_typei1ee");
    assert_eq!(scanned.dict().unwrap().int(b"msg_type"), Some(1));
    let trailing = error(b"i1ex");
    let expected = BencodeError::TrailingBytes {
        offset: 3,
        extra_bytes: 1,
    };
    assert_eq!(trailing, expected);
}

#[test]
fn a_million_nested_lists_or_dicts_are_an_error() {
    let (offset, max) = (DEPTH_MAX, DEPTH_MAX);
    let too_deep = BencodeError::TooDeep { offset, max };
    assert_eq!(error(&b"l".repeat(1_000_000)), too_deep);
    let offset = DEPTH_MAX * 4;
    let too_deep = BencodeError::TooDeep { offset, max };
    assert_eq!(error(&b"d1:a".repeat(1_000_000)), too_deep);
    let deepest = [b"l".repeat(DEPTH_MAX), b"e".repeat(DEPTH_MAX)].concat();
    assert!(scan(&deepest).is_ok());
}

#[test]
fn too_many_tokens_are_an_error() {
    let bytes = [b"l".to_vec(), b"0:".repeat(TOKENS_MAX - 1), b"e".to_vec()].concat();
    assert!(scan(&bytes).is_ok());
    let bytes = [b"l".to_vec(), b"0:".repeat(TOKENS_MAX), b"e".to_vec()].concat();
    assert!(matches!(error(&bytes), BencodeError::TooManyTokens { .. }));
    let bytes = vec![b'l'; DOCUMENT_BYTES_MAX + 1];
    assert!(matches!(error(&bytes), BencodeError::TooLong { .. }));
}

#[test]
fn declared_lengths_are_not_believed() {
    assert_eq!(
        error(b"l99999999999:ab"),
        BencodeError::StringPastEnd {
            offset: 1,
            left_bytes: 2
        }
    );
    for bytes in [
        &b"99999999999999999999999:"[..],
        b"01:a",
        b"00:",
        b"1x",
        b"1-",
    ] {
        assert_eq!(error(bytes), BencodeError::BadNumber { offset: 0 });
    }
    assert_eq!(error(b"12"), BencodeError::Truncated { offset: 2 });
}

#[test]
fn numbers_have_one_form_and_64_bits() {
    let int = |text: &'static str| scan(text.as_bytes()).map(|scanned| scanned.root());
    assert_eq!(int("i9223372036854775807e"), Ok(Value::Int(i64::MAX)));
    assert_eq!(int("i-9223372036854775808e"), Ok(Value::Int(i64::MIN)));
    assert_eq!(int("i0e"), Ok(Value::Int(0)));
    for bad in [
        "i-0e",
        "i00e",
        "i03e",
        "i-03e",
        "ie",
        "i-e",
        "i+1e",
        "i1.5e",
        "i 1e",
        "i--1e",
        "i9223372036854775808e",
        "i-9223372036854775809e",
        "i1111111111111111111111111111",
    ] {
        let got = error(format!("l{bad}").as_bytes());
        assert_eq!(got, BencodeError::BadNumber { offset: 1 }, "{bad}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = b"d1:ai-42e1:bl0:3:abce1:cd1:xi10eee";
    for end in 0..bytes.len() {
        let got = error(&bytes[..end]);
        let names_end = matches!(got, BencodeError::Truncated { offset } if offset == end);
        let is_string = matches!(got, BencodeError::StringPastEnd { .. });
        assert!(names_end || is_string, "{end}: {got:?}");
    }
}

#[test]
fn misplaced_bytes_are_errors_with_their_offset() {
    let unexpected = |offset, got| BencodeError::UnexpectedByte { offset, got };
    assert_eq!(error(b"e"), unexpected(0, b'e'));
    assert_eq!(error(b"lx"), unexpected(1, b'x'));
    assert_eq!(error(b"-1:"), unexpected(0, b'-'));
    assert_eq!(error(b"di1e1:ae"), BencodeError::KeyNotString { offset: 1 });
    assert_eq!(error(b"d1:ae"), BencodeError::MissingValue { offset: 4 });
}

#[test]
fn duplicate_keys_are_found_in_any_order() {
    assert_eq!(
        error(b"d1:ai1e1:ai2ee"),
        BencodeError::DuplicateKey { offset: 7 }
    );
    let far_apart = b"d1:bi1e1:ai2e1:bi3ee";
    assert_eq!(error(far_apart), BencodeError::DuplicateKey { offset: 19 });
    // The same key in another dictionary is no duplicate.
    assert!(scan(b"d1:ad1:ai1ee1:bd1:ai1eee").is_ok());
}

#[test]
fn unsorted_keys_are_accepted_and_told() {
    let scanned = scan(b"d1:bd1:zi1e1:yi2ee1:ai3ee").unwrap();
    assert!(!scanned.is_sorted());
    let dict = scanned.dict().unwrap();
    assert_eq!(dict.int(b"a"), Some(3));
    assert_eq!(dict.dict(b"b").unwrap().int(b"y"), Some(2));
}

#[test]
fn what_is_written_is_canonical() {
    let item = Item::dict([
        (&b"zz"[..], Item::Int(-1)),
        (
            &b"a"[..],
            Item::List(vec![Item::text("x"), Item::bytes(vec![0, 255])]),
        ),
        (&b"b"[..], Item::dict([])),
    ]);
    assert_eq!(item.encode(), b"d1:al1:x2:\x00\xffe1:bde2:zzi-1ee");
}

/// Whether `bendy` takes the bytes as exactly one value, at the same depth limit.
fn bendy_accepts(bytes: &[u8]) -> bool {
    let decoder = bendy::decoding::Decoder::new(bytes).with_max_depth(DEPTH_MAX);
    let mut tokens = 0;
    let mut depth = 0_i32;
    for token in decoder.tokens() {
        use bendy::state_tracker::Token;
        // A second value at the top.
        if tokens > 0 && depth == 0 {
            return false;
        }
        match token {
            Ok(Token::List | Token::Dict) => depth += 1,
            Ok(Token::End) => depth -= 1,
            // bendy leaves the size of numbers to the reader.
            Ok(Token::Num(digits)) if digits.parse::<i64>().is_err() => return false,
            Ok(_) => {}
            Err(_) => return false,
        }
        tokens += 1;
    }
    tokens > 0 && depth == 0
}

fn item() -> impl Strategy<Value = Item<'static>> {
    let keys: [&'static [u8]; 6] = [b"", b"a", b"ab", b"b", b"info", b"\xff"];
    let leaf = prop_oneof![
        any::<i64>().prop_map(Item::Int),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Item::bytes),
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        let entry = (proptest::sample::select(keys.to_vec()), inner.clone());
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(Item::List),
            proptest::collection::vec(entry, 0..6).prop_map(Item::dict),
        ]
    })
}

fn assert_same(item: &Item<'_>, value: Value<'_>) {
    match (item, value) {
        (Item::Int(a), Value::Int(b)) => assert_eq!(*a, b),
        (Item::Bytes(a), Value::Bytes(b)) => assert_eq!(&a[..], b),
        (Item::List(a), Value::List(b)) => {
            assert_eq!(a.len(), b.iter().count());
            a.iter().zip(b.iter()).for_each(|(a, b)| assert_same(a, b));
        }
        (Item::Dict(a), Value::Dict(b)) => {
            assert_eq!(a.len(), b.iter().count());
            for ((key, a), (other, b)) in a.iter().zip(b.iter()) {
                assert_eq!(*key, other);
                assert_same(a, b);
            }
        }
        (item, value) => panic!("{item:?} is not {value:?}"),
    }
}

proptest! {
    #[test]
    fn written_values_are_read_back(item in item()) {
        let bytes = item.encode();
        let scanned = scan(&bytes).unwrap();
        prop_assert!(scanned.is_sorted());
        assert_same(&item, scanned.root());
        prop_assert!(bendy_accepts(&bytes));
    }

    #[test]
    fn bendy_and_the_scanner_agree_on_mutated_values(
        item in item(),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..3,
            proptest::sample::select(b"ilde0123456789:-a".to_vec())), 1..4),
    ) {
        let mut bytes = item.encode();
        for (at, kind, byte) in mutations {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {}
            }
        }
        let is_ours = scan(&bytes).is_ok_and(|scanned| scanned.is_sorted());
        prop_assert_eq!(is_ours, bendy_accepts(&bytes), "{}", bytes.escape_ascii());
    }

    #[test]
    fn bytes_from_outside_never_panic(
        bytes in proptest::collection::vec(
            prop_oneof![proptest::sample::select(b"ilde01239:-".to_vec()), any::<u8>()], 0..200),
    ) {
        if let Ok((scanned, consumed)) = scan_prefix(&bytes) {
            prop_assert!(consumed <= bytes.len());
            prop_assert_eq!(scanned.raw(), &bytes[..consumed]);
        }
    }
}
