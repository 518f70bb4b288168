//! Whole hostile sessions as bytes, for a torrent of three pieces and one byte. What becomes of each when it is split
//! anywhere is seen with the core alone in `replay.rs` and with the running command in `split.rs` (HOSTILE.md W16).

use crate::support::raw_peer::*;

pub const PIECE_LENGTH: u32 = 65_536;
pub const PIECES: u32 = 4;
pub const BLOCK: u32 = 16_384;
pub const TOTAL_BYTES: usize = 3 * PIECE_LENGTH as usize + 1;

/// Which side the attacked torrent is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Seed,
    Leech,
}
use Role::{Leech, Seed};

/// One recorded session behind its handshake: what it is, whose, its bytes, and whether it must end the connection.
pub struct Tape {
    pub name: &'static str,
    pub role: Role,
    pub reserved: [u8; 8],
    pub bytes: Vec<u8>,
    pub closes: bool,
}

fn tape(name: &'static str, role: Role, bytes: Vec<u8>, closes: bool) -> Tape {
    Tape {
        name,
        role,
        reserved: FULL,
        bytes,
        closes,
    }
}

/// The peer must go.
fn closes(name: &'static str, role: Role, bytes: Vec<u8>) -> Tape {
    tape(name, role, bytes, true)
}

/// The peer is borne.
fn stays(name: &'static str, role: Role, bytes: Vec<u8>) -> Tape {
    tape(name, role, bytes, false)
}

/// Where to cut: everywhere; a long tape repeats itself, so its ends and a walk through its middle show the same.
pub fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length)
        .filter(move |cut| length < 1_500 || *cut < 100 || cut % 499 == 0)
        .chain(length.saturating_sub(30)..length)
}

fn prefix(length: u32, rest: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], rest].concat()
}

fn extended(payload: &str) -> Vec<u8> {
    message(EXTENDED, payload.as_bytes())
}

fn ask() -> Vec<u8> {
    message(INTERESTED, &[])
}

/// Every W row's input, each followed by messages that show whether the stream is still in step.
pub fn tapes() -> Vec<Tape> {
    let mut tapes = lengths();
    tapes.extend(pieces_had());
    tapes.extend(requests());
    tapes.extend(blocks());
    tapes.extend(floods());
    tapes.extend(extensions());
    tapes.extend(without_fast_bit());
    for tape in &mut tapes {
        tape.bytes.extend(numbers(HAVE, &[1]));
        tape.bytes.extend(ask());
    }
    tapes
}

fn lengths() -> Vec<Tape> {
    vec![
        closes("W1 all ones", Seed, prefix(u32::MAX, &[20, 0])),
        closes("W1 2³¹", Seed, prefix(1 << 31, &[9])),
        closes("W1 2³¹−1", Leech, prefix((1 << 31) - 1, &[7])),
        closes("W1 a byte over", Seed, prefix((1 << 20) + 1, &[200])),
        closes("W1 a long piece", Leech, prefix(128 * 1024 + 10, &[PIECE])),
        closes(
            "W1 a long extension",
            Seed,
            prefix(64 * 1024 + 3, &[EXTENDED]),
        ),
        closes("W2 long choke", Seed, message(CHOKE, &[0])),
        closes("W2 long unchoke", Leech, message(UNCHOKE, &[0])),
        closes("W2 long interested", Seed, message(INTERESTED, &[0; 4])),
        closes(
            "W2 long not interested",
            Seed,
            message(NOT_INTERESTED, &[1]),
        ),
        closes("W2 short have", Seed, message(HAVE, &[0; 3])),
        closes("W2 long have", Leech, message(HAVE, &[0; 5])),
        closes("W2 short request", Seed, message(REQUEST, &[0; 11])),
        closes("W2 long request", Seed, message(REQUEST, &[0; 13])),
        closes("W2 short cancel", Seed, message(CANCEL, &[0; 8])),
        closes("W2 long cancel", Seed, message(CANCEL, &[0; 13])),
        closes("W2 short port", Seed, message(PORT, &[1])),
        closes("W2 long port", Seed, message(PORT, &[1; 3])),
        closes("W2 short suggest", Leech, message(SUGGEST, &[0; 3])),
        closes("W2 long have all", Leech, message(HAVE_ALL, &[0])),
        closes("W2 long have none", Seed, message(HAVE_NONE, &[0])),
        closes("W2 short reject", Leech, message(REJECT, &[0; 4])),
        closes(
            "W2 long allowed fast",
            Leech,
            message(ALLOWED_FAST, &[0; 5]),
        ),
        closes("W2 empty piece", Leech, message(PIECE, &[0; 8])),
        closes("W2 extension without id", Seed, message(EXTENDED, &[])),
    ]
}

fn pieces_had() -> Vec<Tape> {
    let good = message(BITFIELD, &[0b1100_0000]);
    let fewer = message(BITFIELD, &[0b0100_0000]);
    let two = |one: &[u8], other: &[u8]| [one, other].concat();
    vec![
        stays("W3 good", Seed, good.clone()),
        closes("W3 long", Seed, message(BITFIELD, &[0, 0])),
        closes("W3 short", Seed, message(BITFIELD, &[])),
        closes("W3 spare bit", Seed, message(BITFIELD, &[0xf8])),
        closes("W3 all spare bits", Leech, message(BITFIELD, &[0x0f])),
        stays("W3 twice", Leech, good.repeat(2)),
        closes("W3 fewer", Leech, two(&good, &fewer)),
        closes(
            "W3 none after some",
            Leech,
            two(&good, &message(HAVE_NONE, &[])),
        ),
        stays(
            "W3 all after some",
            Leech,
            two(&good, &message(HAVE_ALL, &[])),
        ),
        stays("W3 late", Leech, two(&numbers(HAVE, &[0]), &good)),
        closes("W4", Seed, numbers(HAVE, &[PIECES])),
        closes("W4 far", Leech, numbers(HAVE, &[u32::MAX])),
        closes("W4 suggested", Leech, numbers(SUGGEST, &[PIECES])),
        closes("W4 allowed", Leech, numbers(ALLOWED_FAST, &[1 << 31])),
    ]
}

fn requests() -> Vec<Tape> {
    let after_ask = |range: &[u32; 3]| [ask(), numbers(REQUEST, range)].concat();
    let odd: Vec<u8> = [[0, 5, BLOCK], [0, 1, 100], [3, 0, 1], [1, 65_535, 1]]
        .iter()
        .flat_map(|range| numbers(REQUEST, range))
        .collect();
    let all_impossible: Vec<u8> = IMPOSSIBLE
        .iter()
        .flat_map(|(_, range)| numbers(REQUEST, range))
        .collect();
    let mut tapes: Vec<Tape> = IMPOSSIBLE
        .iter()
        .map(|(name, range)| stays(name, Seed, after_ask(range)))
        .collect();
    tapes.extend([
        stays("W5 of a leecher", Leech, all_impossible),
        stays("W6 odd ones", Seed, [ask(), odd.clone()].concat()),
        stays("W6 too long", Seed, after_ask(&[0, 0, BLOCK + 1])),
        stays("W6 128 KiB", Seed, after_ask(&[0, 0, 128 * 1024])),
        closes("W6 over 128 KiB", Seed, after_ask(&[0, 0, 128 * 1024 + 1])),
        closes("W6 absurd", Seed, request(0, 0, 1 << 20)),
        closes("W6 all ones", Seed, numbers(REQUEST, &[u32::MAX; 3])),
        stays("W7 choked", Seed, odd),
        stays("W7 what is not there", Leech, after_ask(&[0, 0, BLOCK])),
        closes(
            "W7 choked, 301 times",
            Seed,
            [message(HAVE_ALL, &[]), request(2, 0, BLOCK).repeat(301)].concat(),
        ),
    ]);
    tapes
}

/// Ranges that the torrent does not have.
const IMPOSSIBLE: [(&str, [u32; 3]); 7] = [
    ("W5 one piece too far", [PIECES, 0, BLOCK]),
    ("W5 the last of all pieces", [u32::MAX, 0, BLOCK]),
    ("W5 over a piece's end", [0, PIECE_LENGTH - 1, 2]),
    ("W5 begin far away", [0, u32::MAX, BLOCK]),
    (
        "W5 begin and length overflow",
        [0, u32::MAX - BLOCK + 1, BLOCK],
    ),
    ("W5 nothing", [0, 0, 0]),
    ("W5 over the torrent's end", [3, 0, 2]),
];

fn blocks() -> Vec<Tape> {
    let unasked = [
        piece(0, 0, &[1; 300]),
        piece(9, 9, &[2; 30]),
        piece(u32::MAX, u32::MAX, &[3]),
    ];
    let block = piece(0, 0, &vec![5; BLOCK as usize]);
    let fetched = [
        message(HAVE_ALL, &[]),
        message(UNCHOKE, &[]),
        block.repeat(2),
    ];
    vec![
        stays("W9", Leech, unasked.concat()),
        stays("W9 to a seeder", Seed, unasked.concat()),
        stays("W9 a block twice", Leech, fetched.concat()),
        closes("W9 65 of them", Leech, piece(0, 0, &[7; 5]).repeat(65)),
    ]
}

fn floods() -> Vec<Tape> {
    let cancel = numbers(CANCEL, &[0, 0, 1]);
    let twice = |one: u8, other: u8, count| {
        [message(one, &[]), message(other, &[])]
            .concat()
            .repeat(count)
    };
    vec![
        stays("W10 cancels", Seed, cancel.clone()),
        stays(
            "W10 cancel of nothing there",
            Leech,
            numbers(CANCEL, &[u32::MAX; 3]),
        ),
        closes("W10 a flood of them", Seed, cancel.repeat(8_001)),
        stays(
            "W10 interest flaps",
            Seed,
            twice(INTERESTED, NOT_INTERESTED, 20),
        ),
        stays("W10 chokes flap", Leech, twice(UNCHOKE, CHOKE, 20)),
        stays("W10 keep-alives", Seed, [0; 4].repeat(50)),
        stays("W11", Seed, message(99, &[1; 500])),
        stays("W11 the last id, empty", Leech, message(255, &[])),
        stays("W11 between known ids", Seed, message(10, &[0; 4])),
        stays("W12 a stray reject", Leech, numbers(REJECT, &[0; 3])),
        stays(
            "W12 a reject from nowhere",
            Leech,
            numbers(REJECT, &[u32::MAX; 3]),
        ),
    ]
}

fn extensions() -> Vec<Tape> {
    let nested = format!("\0{}", "l".repeat(200));
    vec![
        stays(
            "W13 ids",
            Leech,
            extended("\0d1:md11:lt_donthavei0e6:ut_pexi256ee4:reqqi0ee"),
        ),
        closes("W13 no dictionary", Leech, extended("\0i5e")),
        closes("W13 cut off", Seed, extended("\0d1:m")),
        closes("W13 nested", Seed, extended(&nested)),
        stays("W13 negative reqq", Seed, extended("\0d4:reqqi-1ee")),
        stays("W13 huge reqq", Leech, extended("\0d4:reqqi2147483648ee")),
        stays(
            "W13 odd port and name",
            Seed,
            extended("\0d1:pi99999e1:v5:\u{1b}[2J!e"),
        ),
        stays("W14 −1", Leech, extended("\0d13:metadata_sizei-1ee")),
        stays(
            "W14 2⁶⁰",
            Seed,
            extended("\0d13:metadata_sizei1152921504606846976ee"),
        ),
        stays(
            "W14 unasked",
            Seed,
            extended("\u{2}d8:msg_typei0e5:piecei0ee"),
        ),
        stays(
            "W15 unasked exchange",
            Leech,
            extended("\u{1}d5:added6:abcdefe"),
        ),
    ]
}

fn without_fast_bit() -> Vec<Tape> {
    [
        ("W12 have all without the bit", message(HAVE_ALL, &[])),
        ("W12 have none without the bit", message(HAVE_NONE, &[])),
        ("W12 suggestion without the bit", numbers(SUGGEST, &[0])),
        ("W12 reject without the bit", numbers(REJECT, &[0; 3])),
        (
            "W12 allowed fast without the bit",
            numbers(ALLOWED_FAST, &[0]),
        ),
    ]
    .map(|(name, bytes)| Tape {
        reserved: PLAIN,
        ..closes(name, Seed, bytes)
    })
    .into()
}
