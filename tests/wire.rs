//! The peer protocol's codecs against every split, every truncation and random damage (HOSTILE.md W16).

use gyre::wire::decoder::{DecodeError, Decoder, EXTENDED_BYTES_MAX, Event, Limits};
use gyre::wire::extended::{CLIENT_CHARS_MAX, ExtensionHandshake, REQQ_MAX};
use gyre::wire::handshake::{HANDSHAKE_BYTES, INFO_HASH_END_BYTES, Prefix, parse_prefix};
use gyre::wire::message::{HashRange, Message, RawBlock, encode, id, piece_header};
use gyre::wire::ut_metadata::{METADATA_PIECE_BYTES, MetadataMessage};
use gyre::wire::ut_pex::{PEX_ENTRIES_MAX, PexMessage};
use proptest::prelude::*;

const BITFIELD: &[u8] = &[0xff, 0x0f, 0x80];
const LIMITS: Limits = Limits::for_bitfield(3);

/// A message as the tests own it; payload is joined, so that it does not depend on the split.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Plain(Vec<u8>),
    Unknown(u8),
    Piece {
        header: RawBlock,
        payload: Vec<u8>,
        missing: u32,
    },
}

/// What a connection brought: items, then possibly an error.
type Outcome = (Vec<Item>, Option<DecodeError>);

/// Decodes chunk by chunk and checks what must hold after each.
fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = Decoder::new(LIMITS);
    let mut items = Vec::new();
    let mut arrived = 0;
    for mut chunk in chunks {
        arrived += chunk.len();
        loop {
            match decoder.next(&mut chunk) {
                Ok(Some(event)) => push(&mut items, event),
                Ok(None) => break,
                Err(error) => return (items, Some(error)),
            }
        }
        assert!(chunk.is_empty(), "`None` means that all is consumed");
        let lid = (2 * arrived).clamp(64, EXTENDED_BYTES_MAX as usize + 4);
        assert!(decoder.memory_bytes() <= lid);
        if let Some(Item::Piece { missing, .. }) = items.last() {
            assert_eq!(decoder.payload_wanted(), *missing);
        }
    }
    (items, None)
}

fn push(items: &mut Vec<Item>, event: Event<'_>) {
    match event {
        Event::Message(Message::Unknown { id }) => items.push(Item::Unknown(id)),
        Event::Message(message) => {
            let mut bytes = Vec::new();
            encode(&message, &mut bytes);
            items.push(Item::Plain(bytes));
        }
        Event::PieceHeader(header) => items.push(Item::Piece {
            header,
            payload: Vec::new(),
            missing: header.length,
        }),
        Event::Payload {
            bytes,
            remaining_bytes,
        } => {
            let Some(Item::Piece {
                payload, missing, ..
            }) = items.last_mut()
            else {
                panic!("payload outside a piece");
            };
            assert!(!bytes.is_empty());
            payload.extend_from_slice(bytes);
            *missing -= u32::try_from(bytes.len()).unwrap();
            assert_eq!(*missing, remaining_bytes);
        }
    }
}

const BLOCK: RawBlock = RawBlock {
    piece: 0x0102_0304,
    begin: 0x4000,
    length: 0x4000,
};

const RANGE: HashRange = HashRange {
    root: [6; 32],
    base_layer: 1,
    index: 4,
    length: 2,
    proof_layers: 1,
};

/// One of each message, as a peer may send them.
fn stream() -> Vec<u8> {
    let mut out = Vec::new();
    let messages = [
        Message::Bitfield { bytes: BITFIELD },
        Message::Extended {
            id: 0,
            payload: b"d1:md6:ut_pexi1eee",
        },
        Message::Extended {
            id: 1,
            payload: b"",
        },
        Message::KeepAlive,
        Message::Choke,
        Message::Unchoke,
        Message::Interested,
        Message::NotInterested,
        Message::Have { piece: 7 },
        Message::Request(BLOCK),
        Message::Cancel(BLOCK),
        Message::RejectRequest(BLOCK),
        Message::Port { port: 6881 },
        Message::SuggestPiece { piece: 1 },
        Message::AllowedFast { piece: 2 },
        Message::HaveAll,
        Message::HaveNone,
        Message::HashRequest(RANGE),
        Message::Hashes {
            range: RANGE,
            hashes: &[5; 96],
        },
        Message::HashReject(RANGE),
        Message::Unknown { id: 99 },
    ];
    for message in &messages {
        encode(message, &mut out);
        if matches!(message, Message::Have { .. } | Message::HaveNone) {
            out.extend(piece_header(1, 0, 20));
            out.extend(1..=20);
        }
    }
    out.extend([0, 0, 0, 6, 250, 1, 2, 3, 4, 5]);
    out.extend(piece_header(2, 16_384, 1));
    out.push(0xaa);
    out
}

/// The stream, followed by something hostile.
fn streams() -> Vec<Vec<u8>> {
    let tails: [&[u8]; 8] = [
        b"",
        &[0xff, 0xff, 0xff, 0xff, 20],
        &[0x80, 0, 0, 0, 5],
        &[0, 0x10, 0, 1, 20],
        &[0, 0, 0, 4, id::HAVE, 0, 0, 0],
        &[0, 0, 0, 3, id::BITFIELD, 0, 0],
        &[0, 0, 0, 9, id::PIECE, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 1, id::EXTENDED],
    ];
    let with_tail = |tail: &[u8]| [&stream()[..], tail, b"\0\0\0\0"].concat();
    tails.into_iter().map(with_tail).collect()
}

#[test]
fn stream_decodes_to_what_was_sent() {
    let (items, error) = decode([&stream()[..]]);
    assert_eq!(error, None);
    assert_eq!(items.len(), 21 + 2 + 2);
    let resent = items.iter().flat_map(|item| match item {
        Item::Plain(bytes) => bytes.clone(),
        Item::Unknown(99) => vec![0, 0, 0, 1, 99],
        Item::Unknown(id) => vec![0, 0, 0, 6, *id, 1, 2, 3, 4, 5],
        Item::Piece {
            header, payload, ..
        } => {
            let mut bytes = piece_header(header.piece, header.begin, header.length).to_vec();
            bytes.extend(payload);
            bytes
        }
    });
    assert_eq!(resent.collect::<Vec<u8>>(), stream());
}

#[test]
fn one_byte_at_a_time_has_the_same_outcome() {
    for bytes in streams() {
        assert_eq!(decode(bytes.chunks(1)), decode([&bytes[..]]));
    }
}

#[test]
fn every_split_in_two_has_the_same_outcome() {
    for bytes in streams() {
        let whole = decode([&bytes[..]]);
        for at in 0..=bytes.len() {
            let (front, back) = bytes.split_at(at);
            assert_eq!(decode([front, &[], back]), whole, "split at {at}");
        }
    }
}

#[test]
fn every_truncation_is_a_prefix_of_the_outcome() {
    for bytes in streams() {
        let (whole, whole_error) = decode([&bytes[..]]);
        for end in 0..bytes.len() {
            let (items, error) = decode([&bytes[..end]]);
            assert!(error.is_none() || error == whole_error);
            let Some((last, before)) = items.split_last() else {
                continue;
            };
            assert_eq!(before, &whole[..before.len()]);
            match (last, &whole[before.len()]) {
                (Item::Piece { payload, .. }, Item::Piece { payload: all, .. }) => {
                    assert!(all.starts_with(payload));
                }
                (last, expected) => assert_eq!(last, expected),
            }
        }
    }
}

#[test]
fn payload_taken_past_the_decoder_keeps_the_stream_in_step() {
    let bytes = stream();
    let mut decoder = Decoder::new(LIMITS);
    let mut input = &bytes[..];
    let mut plain = 0;
    while let Some(event) = decoder.next(&mut input).unwrap() {
        match event {
            Event::PieceHeader(header) => {
                input = &input[header.length as usize..];
                decoder.payload_received(header.length);
            }
            Event::Payload { .. } => panic!("the payload was taken already"),
            Event::Message(_) => plain += 1,
        }
    }
    assert_eq!(plain, 21 + 1);
}

/// Bytes cut into chunks at the given places.
fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<_> = cuts.iter().map(|at| at.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    let chunk = |end| &bytes[std::mem::replace(&mut start, end)..end];
    ends.into_iter().map(chunk).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_streams_have_the_same_outcome_in_every_split(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut bytes = stream();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert_eq!(decode(cut(&bytes, &cuts)), decode([&bytes[..]]));
    }

    #[test]
    fn random_bytes_have_the_same_outcome_in_every_split(
        bytes in prop::collection::vec(prop_oneof![Just(0u8), 0..24u8, any::<u8>()], 0..600),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        prop_assert_eq!(decode(cut(&bytes, &cuts)), decode([&bytes[..]]));
    }

    #[test]
    fn damaged_extension_payloads_stay_inside_their_limits(
        payload in prop::sample::select(PAYLOADS),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = payload.to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 2));
        if let Ok(read) = ExtensionHandshake::parse(&bytes) {
            prop_assert!(read.reqq.is_none_or(|reqq| (1..=REQQ_MAX).contains(&reqq)));
            prop_assert!(read.client.is_none_or(|v| v.chars().count() <= CLIENT_CHARS_MAX));
        }
        if let Ok(MetadataMessage::Data { bytes, total_bytes, .. }) = MetadataMessage::parse(&bytes) {
            prop_assert!(bytes.len() <= METADATA_PIECE_BYTES as usize && total_bytes > 0);
        }
        if let Ok(read) = PexMessage::parse(&bytes) {
            prop_assert!(read.added.len() <= 2 * PEX_ENTRIES_MAX);
            prop_assert!(read.dropped.len() <= 2 * PEX_ENTRIES_MAX);
        }
    }

    #[test]
    fn handshake_prefixes_agree_with_each_other(
        tail in prop::collection::vec(any::<u8>(), 60),
        wrong in prop::option::of((0..20usize, any::<u8>())),
    ) {
        let mut bytes = b"\x13BitTorrent protocol".to_vec();
        bytes.extend(tail);
        if let Some((at, value)) = wrong {
            bytes[at] = value;
        }
        let whole = parse_prefix(&bytes);
        for end in 0..bytes.len() {
            match (parse_prefix(&bytes[..end]), whole) {
                (Err(early), whole) => prop_assert_eq!(whole, Err(early)),
                (Ok(Prefix::NeedsMore), _) => prop_assert!(end < INFO_HASH_END_BYTES),
                (Ok(Prefix::InfoHashKnown { info_hash, reserved }), Ok(Prefix::Complete(all))) => {
                    prop_assert!((INFO_HASH_END_BYTES..HANDSHAKE_BYTES).contains(&end));
                    prop_assert_eq!((info_hash, reserved), (all.info_hash, all.reserved));
                }
                (Ok(known), whole) => prop_assert_eq!(Ok(known), whole),
            }
        }
    }
}

/// Extension payloads to damage.
const PAYLOADS: &[&[u8]] = &[
    b"d4:ipv44:\x01\x02\x03\x041:md11:ut_metadatai2e6:ut_pexi1ee13:metadata_sizei31235e1:pi6881e\
      4:reqqi512e11:upload_onlyi1e1:v8:Gyre 0.16:yourip4:\x0a\0\0\x01e",
    b"d8:msg_typei1e5:piecei1e10:total_sizei16388eetail",
    b"d8:msg_typei0e5:piecei0ee",
    b"d5:added12:\x01\x02\x03\x04\x01\x02\x05\x06\x07\x08\x1a\xe17:added.f2:\x12\0\
      6:added618:0123456789abcdefhh8:added6.f1:\x027:dropped6:\x09\x09\x09\x09\0\x09e",
];

#[test]
fn payloads_to_damage_are_whole() {
    let [handshake, data, request, pex] = PAYLOADS else {
        panic!("four payloads");
    };
    assert!(
        ExtensionHandshake::parse(handshake)
            .unwrap()
            .your_ip
            .is_some()
    );
    assert!(MetadataMessage::parse(data).is_ok() && MetadataMessage::parse(request).is_ok());
    assert_eq!(PexMessage::parse(pex).unwrap().added.len(), 3);
}
