//! Messages of an attacker over a real connection (HOSTILE.md W1–W7, W9, W11–W15).

use std::time::Duration;

use crate::common::World;
use crate::support::Sample;
use crate::support::raw_peer::*;
use crate::support::sample::noise;

const PIECE_LENGTH: u32 = 65_536;
/// Three pieces and one byte.
const PIECES: u32 = 4;
const BLOCK: u32 = 16_384;

fn sample() -> Sample {
    Sample::file(3 * PIECE_LENGTH as usize + 1, PIECE_LENGTH, &[])
}

fn seed() -> World {
    World::seed(sample(), &[])
}

/// Each of these, sent first on a connection of its own, ends that connection.
fn expect_closes(world: &mut World, hello: impl Fn(&World) -> RawPeer, cases: &[(&str, Vec<u8>)]) {
    for (why, bytes) in cases {
        let mut peer = hello(world);
        peer.send(bytes);
        peer.expect_close(why);
    }
    world.assert_serves();
}

#[test]
fn a_huge_length_prefix_closes_at_the_prefix_and_takes_no_memory() {
    let mut world = seed();
    let cases = |count: usize| -> Vec<(&str, Vec<u8>)> {
        let lengths = [u32::MAX, 1 << 31, (1 << 20) + 1];
        let prefixes = lengths
            .iter()
            .map(|length| ("huge prefix", length.to_be_bytes().to_vec()));
        prefixes.cycle().take(count).collect()
    };
    expect_closes(&mut world, World::peer, &cases(30));
    let before = world.gyre.anonymous_bytes();
    expect_closes(&mut world, World::peer, &cases(150));
    let growth = world.gyre.anonymous_bytes().saturating_sub(before);
    assert!(growth <= 1 << 20, "{growth} bytes for 150 connections");
}

#[test]
fn a_wrong_length_for_a_fixed_message_closes() {
    let mut world = seed();
    let fixed = [
        (CHOKE, 0),
        (UNCHOKE, 0),
        (INTERESTED, 0),
        (NOT_INTERESTED, 0),
        (HAVE, 4),
        (REQUEST, 12),
        (CANCEL, 12),
        (PORT, 2),
        (SUGGEST, 4),
        (HAVE_ALL, 0),
        (HAVE_NONE, 0),
        (REJECT, 12),
        (ALLOWED_FAST, 4),
    ];
    let mut cases = Vec::new();
    for (id, right) in fixed {
        cases.push(("a byte too many", message(id, &vec![0; right + 1])));
        if right > 0 {
            cases.push(("a byte too few", message(id, &vec![0; right - 1])));
        }
    }
    cases.push(("a piece without payload", message(PIECE, &[0; 8])));
    cases.push(("a piece of over 128 KiB", {
        let mut head = (128 * 1024 + 10_u32).to_be_bytes().to_vec();
        head.push(PIECE);
        head
    }));
    cases.push(("an extension message without id", message(EXTENDED, &[])));
    expect_closes(&mut world, World::peer, &cases);
}

#[test]
fn a_bitfield_that_is_wrong_or_takes_pieces_back_closes() {
    let mut world = seed();
    let good = message(BITFIELD, &[0b1100_0000]);
    let cases = [
        ("too short", message(BITFIELD, &[])),
        ("too long", message(BITFIELD, &[0x80, 0])),
        ("spare bit set", message(BITFIELD, &[0b0000_1000])),
        (
            "fewer pieces than before",
            [good.clone(), message(BITFIELD, &[0b1000_0000])].concat(),
        ),
        (
            "without what was had",
            [numbers(HAVE, &[2]), good.clone()].concat(),
        ),
        (
            "have_none after it",
            [good.clone(), message(HAVE_NONE, &[])].concat(),
        ),
    ];
    expect_closes(&mut world, World::peer, &cases);
}

#[test]
fn a_bitfield_that_is_late_or_repeated_does_no_harm() {
    let world = seed();
    let good = message(BITFIELD, &[0b1100_0000]);
    for (what, bytes) in [
        ("once", good.clone()),
        ("twice", good.repeat(2)),
        ("late", [numbers(HAVE, &[0]), good.clone()].concat()),
        (
            "more pieces",
            [good.clone(), message(BITFIELD, &[0b1110_0000])].concat(),
        ),
        (
            "everything",
            [good.clone(), message(HAVE_ALL, &[])].concat(),
        ),
    ] {
        let mut peer = world.peer();
        peer.send(&bytes);
        peer.get_unchoked();
        assert_eq!(peer.fetch(3, 0, 1).len(), 1, "{what}");
    }
}

#[test]
fn a_have_past_the_last_piece_closes() {
    let mut world = seed();
    let mut cases = Vec::new();
    for piece in [PIECES, PIECES + 4, 1 << 31, u32::MAX] {
        cases.push(("have", numbers(HAVE, &[piece])));
        cases.push(("suggest_piece", numbers(SUGGEST, &[piece])));
        cases.push(("allowed_fast", numbers(ALLOWED_FAST, &[piece])));
    }
    expect_closes(&mut world, World::peer, &cases);
}

/// Ranges that no torrent of this shape has.
fn impossible_ranges() -> Vec<[u32; 3]> {
    vec![
        [PIECES, 0, BLOCK],
        [u32::MAX, 0, BLOCK],
        [0, 0, 0],
        [0, PIECE_LENGTH, BLOCK],
        [0, PIECE_LENGTH, 0],
        [0, PIECE_LENGTH - 1, 2],
        [0, u32::MAX, BLOCK],
        [0, u32::MAX - BLOCK + 1, BLOCK],
        [PIECES - 1, 0, 2],
        [PIECES - 1, 1, 1],
    ]
}

#[test]
fn a_request_out_of_range_is_rejected_and_the_peer_stays() {
    let mut world = seed();
    let mut peer = world.peer();
    peer.get_unchoked();
    for range in impossible_ranges() {
        peer.send(&numbers(REQUEST, &range));
        assert_eq!(peer.wait_for(REJECT).numbers(), range);
    }
    assert_eq!(peer.fetch(3, 0, 1), world.content()[196_608..]);
    // Without BEP 6 there is no answer but the next block.
    let mut plain = world.plain_peer();
    plain.get_unchoked();
    for range in impossible_ranges() {
        plain.send(&numbers(REQUEST, &range));
    }
    plain.send(&request(0, 0, BLOCK));
    let frame = plain.next().unwrap();
    assert_eq!(frame.block(), (0, 0, &world.content()[..BLOCK as usize]));
    world.assert_serves();
}

#[test]
fn impossible_requests_end_the_connection_if_they_go_on() {
    let mut world = seed();
    for mut peer in [world.peer(), world.plain_peer()] {
        peer.get_unchoked();
        peer.send(&numbers(REQUEST, &[PIECES, 0, BLOCK]).repeat(301));
        peer.expect_close("301 requests out of range");
    }
    world.assert_serves();
}

#[test]
fn long_requests_are_rejected_and_absurd_ones_close() {
    let mut world = seed();
    let mut peer = world.peer();
    peer.get_unchoked();
    for length in [BLOCK + 1, 2 * BLOCK, 65_536, 128 * 1024] {
        peer.send(&request(0, 0, length));
        assert_eq!(peer.wait_for(REJECT).numbers(), [0, 0, length]);
    }
    peer.fetch(0, 0, BLOCK);
    for length in [128 * 1024 + 1, 1 << 31, u32::MAX] {
        let mut peer = world.peer();
        peer.get_unchoked();
        peer.send(&request(0, 0, length));
        peer.expect_close("a request of over 128 KiB");
    }
    world.assert_serves();
}

#[test]
fn short_and_odd_requests_are_served_with_the_right_bytes() {
    let world = seed();
    let content = world.content();
    for mut peer in [world.peer(), world.plain_peer()] {
        peer.get_unchoked();
        for (piece, begin, length) in [
            (0, 0, 1),
            (0, 1, 100),
            (0, 5, BLOCK),
            (0, BLOCK - 1, 2),
            (1, 3, 16_381),
            (1, PIECE_LENGTH - 1, 1),
            (2, PIECE_LENGTH - BLOCK, BLOCK),
            (2, 40_001, 7_777),
            (3, 0, 1),
        ] {
            let start = (piece * PIECE_LENGTH + begin) as usize;
            let got = peer.fetch(piece, begin, length);
            let is_same = got == content[start..start + length as usize];
            assert!(is_same, "piece {piece} from {begin}, {length} bytes");
        }
    }
}

#[test]
fn a_request_for_a_missing_piece_is_rejected_and_ends_the_connection_if_it_goes_on() {
    let sample = sample();
    let mut bytes = std::fs::read(&sample.content).unwrap();
    bytes[PIECE_LENGTH as usize] ^= 1;
    std::fs::write(&sample.content, bytes).unwrap();
    let mut world = World::seed(sample, &[]);
    let mut peer = world.peer();
    assert_eq!(peer.wait_for(BITFIELD).body, [0b1011_0000]);
    peer.get_unchoked();
    peer.send(&request(1, 0, BLOCK));
    assert_eq!(peer.wait_for(REJECT).numbers(), [1, 0, BLOCK]);
    peer.fetch(2, 0, BLOCK);
    peer.send(&request(1, 0, BLOCK).repeat(302));
    peer.expect_close("302 requests for a piece that is not there");
    world.assert_serves();
}

#[test]
fn requests_while_choked_are_rejected_and_end_the_connection_if_they_go_on() {
    let mut world = seed();
    let mut peer = world.peer();
    // A peer with pieces of its own is offered none while choked.
    peer.send(&message(BITFIELD, &[0b1111_0000]));
    peer.send(&request(0, 0, BLOCK));
    assert_eq!(peer.wait_for(REJECT).numbers(), [0, 0, BLOCK]);
    peer.send(&request(0, 0, BLOCK).repeat(300));
    loop {
        match peer.next() {
            None => break,
            Some(frame) => assert_ne!(frame.id, PIECE, "served while choked"),
        }
    }
    world.assert_serves();
}

#[test]
fn blocks_never_requested_are_counted_and_never_written() {
    // Many pieces, so that only a few are asked for at first.
    let sample = Sample::file(64 * PIECE_LENGTH as usize, PIECE_LENGTH, &[]);
    let content = std::fs::read(&sample.content).unwrap();
    let mut world = World::leech(sample, &[]);
    let mut peer = world.peer();
    peer.send(&message(HAVE_ALL, &[]));
    peer.send(&message(UNCHOKE, &[]));
    let first = peer.wait_for(REQUEST).numbers();
    let mut asked = vec![first.clone()];
    while let Ok(Some(frame)) = peer.next_within(Duration::from_millis(300)) {
        asked.extend((frame.id == REQUEST).then(|| frame.numbers()));
    }
    let junk = noise(BLOCK as usize, 99);
    let strange = (0..64)
        .find(|piece| asked.iter().all(|request| request[0] != *piece))
        .expect("a piece not asked for");
    // Never asked for; asked for with another length; at another place; in a piece that does not exist.
    let mut wrong = piece(strange, 0, &junk);
    wrong.extend(piece(first[0], first[1], &junk[..100]));
    wrong.extend(piece(first[0], first[1] + 1, &junk));
    wrong.extend(piece(64, 0, &junk));
    wrong.extend(piece(u32::MAX, u32::MAX, &junk));
    peer.send(&wrong);
    let wasted = 4 * u64::from(BLOCK) + 100;
    world.gyre.wait_for("waste to be counted", |event| {
        event["wasted_bytes"].as_u64() == Some(wasted)
    });
    let written = std::fs::read(world.out().join("sample.bin")).unwrap();
    assert!(written.iter().all(|byte| *byte == 0), "junk was written");
    // The right answers, the first one twice.
    let slice = |request: &[u32]| {
        let start = (request[0] * PIECE_LENGTH + request[1]) as usize;
        content[start..start + request[2] as usize].to_vec()
    };
    peer.send(&piece(first[0], first[1], &slice(&first)));
    for request in asked.clone() {
        peer.send(&piece(request[0], request[1], &slice(&request)));
    }
    while let Some(frame) = peer.next() {
        if frame.id == REQUEST {
            let request = frame.numbers();
            peer.send(&piece(request[0], request[1], &slice(&request)));
        }
    }
    world.gyre.event("complete");
    assert_eq!(world.gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(world.sample.is_same_in(&world.out()));
    let last = world.gyre.seen().iter().rev();
    let last = last.clone().find(|event| event["event"] == "progress");
    let duplicate = u64::from(BLOCK);
    assert_eq!(
        last.unwrap()["wasted_bytes"].as_u64(),
        Some(wasted + duplicate)
    );
    let banned = |event: &&serde_json::Value| event["event"] == "banned";
    assert_eq!(world.gyre.seen().iter().filter(banned).count(), 0);
}

#[test]
fn a_peer_that_pushes_blocks_nobody_wants_is_dropped() {
    let mut world = World::leech(sample(), &[]);
    let mut peer = world.peer();
    let junk = piece(0, 0, &noise(BLOCK as usize, 5));
    peer.send(&junk.repeat(65));
    peer.expect_close("65 blocks never asked for");
    assert!(world.gyre.is_running());
}

#[test]
fn unknown_messages_are_ignored() {
    let world = seed();
    for mut peer in [world.peer(), world.plain_peer()] {
        peer.get_unchoked();
        for id in [10, 12, 18, 19, 24, 25, 99, 255] {
            peer.send(&message(id, &[]));
            peer.send(&message(id, &noise(5_000, u64::from(id))));
        }
        peer.send(&message(200, &noise(65_000, 7)));
        peer.fetch(0, 0, BLOCK);
    }
}

#[test]
fn fast_extension_messages_without_its_bit_close() {
    let mut world = seed();
    let cases = [
        ("suggest_piece", numbers(SUGGEST, &[0])),
        ("have_all", message(HAVE_ALL, &[])),
        ("have_none", message(HAVE_NONE, &[])),
        ("reject_request", numbers(REJECT, &[0, 0, BLOCK])),
        ("allowed_fast", numbers(ALLOWED_FAST, &[0])),
    ];
    expect_closes(&mut world, World::plain_peer, &cases);
}

#[test]
fn rejects_of_nothing_are_ignored_and_end_the_connection_if_they_go_on() {
    let mut world = seed();
    let mut peer = world.peer();
    peer.get_unchoked();
    let reject = numbers(REJECT, &[0, 0, BLOCK]);
    let absurd = numbers(REJECT, &[u32::MAX, u32::MAX, u32::MAX]);
    peer.send(&reject.repeat(100));
    peer.send(&absurd.repeat(100));
    peer.fetch(0, 0, BLOCK);
    peer.send(&reject.repeat(101));
    peer.expect_close("301 rejects of nothing");
    world.assert_serves();
}

/// An extension handshake with these entries.
fn extension_handshake(entries: &str) -> Vec<u8> {
    message(EXTENDED, format!("\0d{entries}e").as_bytes())
}

#[test]
fn absurd_extension_handshakes_are_bounded() {
    let mut world = seed();
    let keys = |count: u32| -> String {
        let keys: String = (0..count).map(|key| format!("6:{key:06}i1e")).collect();
        format!("1:md{keys}e")
    };
    let extended = message(EXTENDED, &[&[0][..], &b"l".repeat(60_000)].concat());
    let cases = [
        ("10⁵ keys", extension_handshake(&keys(100_000))),
        ("no dictionary", message(EXTENDED, b"\0i1e")),
        ("cut off", message(EXTENDED, b"\0d1:m")),
        ("60,000 nested lists", extended),
    ];
    expect_closes(&mut world, World::peer, &cases);
    let mut peer = world.peer();
    peer.get_unchoked();
    for entries in [
        keys(5_000),
        "1:md11:lt_donthavei0e11:upload_onlyi256e6:ut_pexi-1ee".to_owned(),
        "4:reqqi0e".to_owned(),
        "4:reqqi-1e".to_owned(),
        "4:reqqi2147483648e".to_owned(),
        "13:metadata_sizei0e".to_owned(),
        "13:metadata_sizei-1e".to_owned(),
        "13:metadata_sizei1152921504606846976e".to_owned(),
        "1:pi99999e".to_owned(),
        "1:v5:\u{1b}[2J!6:yourip3:abc".to_owned(),
    ] {
        peer.send(&extension_handshake(&entries));
        peer.fetch(0, 0, BLOCK);
    }
    world.assert_serves();
}

#[test]
fn an_absurd_reqq_keeps_the_request_queue_in_bounds() {
    for (reqq, bound) in [("0", 512), ("1", 1), ("2147483648", 512)] {
        let sample = Sample::file(640 * BLOCK as usize, PIECE_LENGTH, &[]);
        let world = World::leech(sample, &[]);
        let mut peer = world.peer();
        peer.send(&message(HAVE_ALL, &[]));
        peer.send(&extension_handshake(&format!("4:reqqi{reqq}e")));
        peer.send(&message(UNCHOKE, &[]));
        let content = world.content();
        let (mut outstanding, mut most, mut answered) = (Vec::new(), 0, 0);
        while answered < 300 {
            while let Ok(frame) = peer.next_within(Duration::from_millis(20)) {
                let frame = frame.expect("the connection stays");
                outstanding.extend((frame.id == REQUEST).then(|| frame.numbers()));
            }
            most = most.max(outstanding.len());
            if outstanding.is_empty() {
                outstanding.push(peer.wait_for(REQUEST).numbers());
            }
            for request in outstanding.drain(..) {
                let start = (request[0] * PIECE_LENGTH + request[1]) as usize;
                let payload = &content[start..start + request[2] as usize];
                peer.send(&piece(request[0], request[1], payload));
                answered += 1;
            }
            if bound == 1 && answered >= 5 {
                break;
            }
        }
        assert!(most <= bound, "{most} requests with reqq {reqq}");
    }
}
