//! Framing of the peer protocol seen from outside: lengths, borrowing, memory (HOSTILE.md W1, W2, W3, W11).

use gyre::wire::decoder::{
    DecodeError, Decoder, EXTENDED_BYTES_MAX, Event, Limits, PIECE_BYTES_MAX, UNKNOWN_BYTES_MAX,
};
use gyre::wire::message::{Message, RawBlock, encode, id, piece_header};

/// What a decoder may hold between messages.
const MEMORY_KEPT_BYTES_MAX: usize = 64;

const LIMITS: Limits = Limits::for_bitfield(2);

fn wire(messages: &[Message<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    messages
        .iter()
        .for_each(|message| encode(message, &mut out));
    out
}

/// Error of the first message in `bytes`, and the memory it took.
fn error_of(bytes: &[u8]) -> DecodeError {
    let mut decoder = Decoder::new(LIMITS);
    let mut input = bytes;
    let error = decoder.next(&mut input).unwrap_err();
    assert_eq!(decoder.memory_bytes(), 0);
    assert_eq!(decoder.next(&mut &[0, 0, 0, 0][..]), Err(error), "for ever");
    error
}

#[test]
fn whole_messages_are_borrowed_from_the_input() {
    let bytes = wire(&[
        Message::Bitfield {
            bytes: &[0xff, 0x80],
        },
        Message::Extended {
            id: 1,
            payload: b"de",
        },
    ]);
    let mut decoder = Decoder::new(LIMITS);
    let mut input = &bytes[..];
    let bitfield = decoder.next(&mut input).unwrap();
    let Some(Event::Message(Message::Bitfield { bytes: found })) = bitfield else {
        panic!("{bitfield:?}");
    };
    assert_eq!(found.as_ptr(), bytes[5..].as_ptr());
    assert!(decoder.next(&mut input).unwrap().is_some());
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert_eq!(decoder.memory_bytes(), 0);
}

#[test]
fn payload_is_borrowed_from_the_input_and_counted_down() {
    let mut bytes = piece_header(7, 16_384, 5).to_vec();
    bytes.extend_from_slice(b"hello");
    bytes.extend(wire(&[Message::Choke]));
    let mut decoder = Decoder::new(LIMITS);
    let mut input = &bytes[..15];
    let header = RawBlock {
        piece: 7,
        begin: 16_384,
        length: 5,
    };
    assert_eq!(
        decoder.next(&mut input),
        Ok(Some(Event::PieceHeader(header)))
    );
    assert_eq!(decoder.payload_wanted(), 5);
    let part = Event::Payload {
        bytes: b"he",
        remaining_bytes: 3,
    };
    assert_eq!(decoder.next(&mut input), Ok(Some(part)));
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert_eq!(decoder.payload_wanted(), 3);
    let mut input = &bytes[15..];
    let part = Event::Payload {
        bytes: b"llo",
        remaining_bytes: 0,
    };
    assert_eq!(decoder.next(&mut input), Ok(Some(part)));
    assert_eq!(decoder.payload_wanted(), 0);
    assert_eq!(
        decoder.next(&mut input),
        Ok(Some(Event::Message(Message::Choke)))
    );
}

#[test]
fn payload_received_past_the_decoder_is_not_expected_again() {
    let mut decoder = Decoder::new(LIMITS);
    let header = piece_header(0, 0, 10);
    assert!(decoder.next(&mut &header[..]).unwrap().is_some());
    decoder.payload_received(0);
    decoder.payload_received(4);
    assert_eq!(decoder.payload_wanted(), 6);
    decoder.payload_received(6);
    assert_eq!(decoder.payload_wanted(), 0);
    decoder.payload_received(0);
    let bytes = wire(&[Message::KeepAlive]);
    assert_eq!(
        decoder.next(&mut &bytes[..]),
        Ok(Some(Event::Message(Message::KeepAlive)))
    );
}

#[test]
#[should_panic(expected = "7 bytes of 6 wanted")]
fn payload_received_past_the_end_is_our_own_mistake() {
    let mut decoder = Decoder::new(LIMITS);
    let header = piece_header(0, 0, 6);
    decoder.next(&mut &header[..]).unwrap();
    decoder.payload_received(7);
}

#[test]
fn huge_length_prefix_fails_at_the_prefix() {
    for declared_bytes in [u32::MAX, 1 << 31, UNKNOWN_BYTES_MAX + 1] {
        let too_long = DecodeError::TooLong {
            declared_bytes,
            max_bytes: UNKNOWN_BYTES_MAX,
        };
        let mut bytes = declared_bytes.to_be_bytes().to_vec();
        assert_eq!(error_of(&bytes), too_long);
        bytes.push(id::EXTENDED);
        assert_eq!(error_of(&bytes), too_long, "with the id already there");
    }
}

#[test]
fn length_above_what_the_id_may_have_fails_at_the_id() {
    let cases = [
        (id::PIECE, PIECE_BYTES_MAX + 1),
        (id::EXTENDED, EXTENDED_BYTES_MAX + 1),
        (id::BITFIELD, 1000),
        (id::REQUEST, 14),
    ];
    for (wrong_id, got) in cases {
        let mut bytes = got.to_be_bytes().to_vec();
        bytes.push(wrong_id);
        assert!(matches!(
            error_of(&bytes),
            DecodeError::BadLength { id, got_bytes, .. } if id == wrong_id && got_bytes == got
        ));
    }
}

#[test]
fn wrong_fixed_length_is_an_error_with_both_numbers() {
    let fixed = [
        (id::CHOKE, 1),
        (id::UNCHOKE, 1),
        (id::INTERESTED, 1),
        (id::NOT_INTERESTED, 1),
        (id::HAVE, 5),
        (id::BITFIELD, 3),
        (id::REQUEST, 13),
        (id::CANCEL, 13),
        (id::PORT, 3),
        (id::SUGGEST_PIECE, 5),
        (id::HAVE_ALL, 1),
        (id::HAVE_NONE, 1),
        (id::REJECT_REQUEST, 13),
        (id::ALLOWED_FAST, 5),
    ];
    for (wrong_id, right) in fixed {
        for got in (1..20u32).filter(|got| *got != right) {
            let mut bytes = got.to_be_bytes().to_vec();
            bytes.push(wrong_id);
            let bad = DecodeError::BadLength {
                id: wrong_id,
                min_bytes: right,
                max_bytes: right,
                got_bytes: got,
            };
            assert_eq!(error_of(&bytes), bad);
        }
    }
}

#[test]
fn piece_without_payload_and_extension_without_id_are_errors() {
    for (wrong_id, length) in [(id::PIECE, 9), (id::PIECE, 1), (id::EXTENDED, 1)] {
        let mut bytes = u32::to_be_bytes(length).to_vec();
        bytes.push(wrong_id);
        bytes.extend([0; 8]);
        assert!(matches!(error_of(&bytes), DecodeError::BadLength { .. }));
    }
}

#[test]
fn unknown_ids_are_told_once_and_skipped_without_memory() {
    let mut decoder = Decoder::new(LIMITS);
    let mut bytes = UNKNOWN_BYTES_MAX.to_be_bytes().to_vec();
    bytes.push(200);
    bytes.resize(UNKNOWN_BYTES_MAX as usize + 4, 0xff);
    bytes.extend(wire(&[Message::Unknown { id: 24 }, Message::Choke]));
    let mut found = Vec::new();
    for mut chunk in bytes.chunks(70_000) {
        while let Some(event) = decoder.next(&mut chunk).unwrap() {
            found.push(format!("{event:?}"));
        }
        assert!(decoder.memory_bytes() <= MEMORY_KEPT_BYTES_MAX);
    }
    let expected = [200, 24].map(|id| Event::Message(Message::Unknown { id }));
    let mut expected: Vec<_> = expected.iter().map(|event| format!("{event:?}")).collect();
    expected.push(format!("{:?}", Event::Message(Message::Choke)));
    assert_eq!(found, expected);
}

#[test]
fn memory_follows_what_arrived_and_is_given_back() {
    let mut decoder = Decoder::new(LIMITS);
    let mut bytes = EXTENDED_BYTES_MAX.to_be_bytes().to_vec();
    bytes.extend([id::EXTENDED, 1]);
    assert_eq!(decoder.next(&mut &bytes[..]), Ok(None));
    assert!(decoder.memory_bytes() <= MEMORY_KEPT_BYTES_MAX);
    let mut arrived = bytes.len();
    let rest = vec![b'x'; EXTENDED_BYTES_MAX as usize + 4 - arrived];
    for mut chunk in rest.chunks(10_000) {
        let is_last = decoder.next(&mut chunk).unwrap().is_some();
        arrived += 10_000;
        assert!(decoder.memory_bytes() <= 2 * arrived);
        assert_eq!(is_last, arrived >= EXTENDED_BYTES_MAX as usize + 4);
    }
    assert!(decoder.memory_bytes() <= EXTENDED_BYTES_MAX as usize + 4);
    assert_eq!(decoder.next(&mut &[][..]), Ok(None));
    assert_eq!(decoder.memory_bytes(), 0);
}
