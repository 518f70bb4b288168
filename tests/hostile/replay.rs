//! Attacks on decoder and core without sockets: whole sessions of hostile bytes split everywhere (HOSTILE.md W16), and
//! what only passing time shows (W8).

use std::time::Duration;

use gyre::base::{Bitfield, Geometry, Now, PeerId};
use gyre::swarm::{
    CloseReason, Connected, Credits, Cx, Effect, PeerKey, PeerStats, Placement, Torrent,
    TorrentConfig, TorrentStats,
};
use gyre::wire::decoder::{Decoder, Event, Limits};
use gyre::wire::message::RawBlock;

use crate::support::raw_peer::*;

const PIECE_LENGTH: u32 = 65_536;
const PIECES: u32 = 4;
const BLOCK: u32 = 16_384;

/// Which side the attacked torrent is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Seed,
    Leech,
}

/// One torrent with one connection, driven as the runtime drives them.
struct Session {
    torrent: Torrent,
    key: PeerKey,
    credits: Credits,
    effects: Vec<Effect>,
    now: Now,
    decoder: Decoder,
    payload: Option<(RawBlock, Placement)>,
    /// Where payload was put, and what ended the connection.
    log: Vec<String>,
    is_over: bool,
}

/// All that can be seen of a session from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    log: Vec<String>,
    is_over: bool,
    effects: Vec<Effect>,
    sent: Vec<u8>,
    runs: Vec<String>,
    stats: TorrentStats,
    peers: Vec<PeerStats>,
}

impl Session {
    fn new(role: Role, reserved: [u8; 8]) -> Session {
        let total = u64::from(3 * PIECE_LENGTH + 1);
        let geometry = Geometry::new(total, u64::from(PIECE_LENGTH)).unwrap();
        let our_id = PeerId::new(*b"-GY0001-aaaaaaaaaaaa");
        let mut config = TorrentConfig::new(geometry, our_id, 7);
        if role == Role::Seed {
            config.have = Bitfield::full(PIECES);
            config.fetches = false;
        }
        let now = Now::from_secs(100);
        let mut credits = Credits {
            assembly_bytes: 1 << 20,
            connections: 10,
            dials: 10,
        };
        let mut torrent = Torrent::new(config, now);
        let conn = Connected {
            addr: "10.0.0.1:6881".parse().unwrap(),
            is_inbound: true,
            peer_id: PeerId::new(*b"-XX0001-bbbbbbbbbbbb"),
            reserved,
        };
        let mut effects = Vec::new();
        let mut cx = Cx {
            now,
            credits: &mut credits,
            fx: &mut effects,
        };
        let key = torrent.on_connected(conn, &mut cx).unwrap();
        Session {
            torrent,
            key,
            credits,
            effects,
            now,
            decoder: Decoder::new(Limits::for_bitfield(1)),
            payload: None,
            log: Vec::new(),
            is_over: false,
        }
    }

    /// Bytes as they came in one receive.
    fn feed(&mut self, mut input: &[u8]) {
        let mut cx = Cx {
            now: self.now,
            credits: &mut self.credits,
            fx: &mut self.effects,
        };
        while !self.is_over {
            let event = match self.decoder.next(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    self.log.push(error.to_string());
                    self.is_over = true;
                    return;
                }
            };
            let judged = match event {
                Event::Message(message) => self.torrent.on_message(self.key, &message, &mut cx),
                Event::PieceHeader(header) => {
                    let placed = self.torrent.on_piece_header(self.key, header, &mut cx);
                    placed.map(|placement| {
                        self.log.push(format!("{header:?} to {placement:?}"));
                        self.payload = Some((header, placement));
                    })
                }
                Event::Payload {
                    bytes,
                    remaining_bytes,
                } => {
                    let got = u32::try_from(bytes.len()).unwrap();
                    self.torrent.on_block_bytes(self.key, got, &mut cx);
                    if remaining_bytes == 0 {
                        match self.payload.take() {
                            Some((_, Placement::Store(block))) => {
                                self.torrent.on_block_stored(self.key, block, &mut cx);
                            }
                            Some((header, Placement::Scratch)) => {
                                self.torrent.on_block_discarded(self.key, header, &mut cx);
                            }
                            None => panic!("payload without a header"),
                        }
                    }
                    Ok(())
                }
            };
            if let Err(fault) = judged {
                self.log.push(fault.to_string());
                self.is_over = true;
            }
        }
    }

    fn call<R>(&mut self, call: impl FnOnce(&mut Torrent, PeerKey, &mut Cx<'_>) -> R) -> R {
        let mut cx = Cx {
            now: self.now,
            credits: &mut self.credits,
            fx: &mut self.effects,
        };
        call(&mut self.torrent, self.key, &mut cx)
    }

    /// Lets time pass, with every timer on its way.
    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.torrent.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.call(|torrent, _, cx| torrent.on_timer(cx));
        }
        self.now = end;
    }

    fn closed(&self) -> Option<CloseReason> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Close { reason, .. } => Some(*reason),
            _ => None,
        })
    }

    fn outcome(mut self) -> Outcome {
        let mut sent = Vec::new();
        while self.call(|torrent, key, cx| torrent.take_messages(key, &mut sent, 4_096, cx)) > 0 {}
        let mut runs = Vec::new();
        while let Some(run) = self.call(|torrent, key, cx| torrent.next_upload(key, 1 << 20, cx)) {
            runs.push(format!("{run:?}"));
            self.call(|torrent, key, cx| torrent.on_sent(key, &run, cx));
        }
        Outcome {
            log: self.log,
            is_over: self.is_over,
            effects: self.effects,
            sent,
            runs,
            stats: self.torrent.stats(self.now),
            peers: self.torrent.peers(self.now),
        }
    }
}

/// One recorded session: what it is, whose, its bytes, and whether it must end the connection.
struct Tape {
    name: &'static str,
    role: Role,
    reserved: [u8; 8],
    bytes: Vec<u8>,
    closes: bool,
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

fn prefix(length: u32, rest: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], rest].concat()
}

fn extended(payload: &str) -> Vec<u8> {
    message(EXTENDED, payload.as_bytes())
}

/// Every W row's input, each followed by a message that shows whether the stream is still in step.
fn tapes() -> Vec<Tape> {
    use Role::{Leech, Seed};
    let good = message(BITFIELD, &[0b1100_0000]);
    let ranges = [
        [PIECES, 0, BLOCK],
        [0, PIECE_LENGTH - 1, 2],
        [0, u32::MAX, BLOCK],
        [0, 0, 0],
        [3, 0, 2],
    ];
    let impossible: Vec<u8> = ranges
        .iter()
        .flat_map(|range| numbers(REQUEST, range))
        .collect();
    let ask = message(INTERESTED, &[]);
    let odd: Vec<u8> = [[0, 5, BLOCK], [0, 1, 100], [3, 0, 1], [1, 65_535, 1]]
        .iter()
        .flat_map(|range| numbers(REQUEST, range))
        .collect();
    let unasked = [
        piece(0, 0, &[1; 300]),
        piece(9, 9, &[2; 30]),
        piece(u32::MAX, u32::MAX, &[3]),
    ];
    let mut tapes = vec![
        tape("W1 all ones", Seed, prefix(u32::MAX, &[20, 0]), true),
        tape("W1 2³¹", Seed, prefix(1 << 31, &[9]), true),
        tape("W1 a byte over", Seed, prefix((1 << 20) + 1, &[200]), true),
        tape("W2 long choke", Seed, message(CHOKE, &[0]), true),
        tape("W2 short have", Seed, message(HAVE, &[0; 3]), true),
        tape("W2 long cancel", Seed, message(CANCEL, &[0; 13]), true),
        tape("W2 empty piece", Leech, message(PIECE, &[0; 8]), true),
        tape("W3 good", Seed, good.clone(), false),
        tape("W3 long", Seed, message(BITFIELD, &[0, 0]), true),
        tape("W3 short", Seed, message(BITFIELD, &[]), true),
        tape("W3 spare bit", Seed, message(BITFIELD, &[0xf8]), true),
        tape("W3 twice", Leech, good.repeat(2), false),
        tape(
            "W3 fewer",
            Leech,
            [good.clone(), message(BITFIELD, &[0b0100_0000])].concat(),
            true,
        ),
        tape(
            "W3 late",
            Leech,
            [numbers(HAVE, &[0]), good.clone()].concat(),
            false,
        ),
        tape("W4", Seed, numbers(HAVE, &[PIECES]), true),
        tape("W4 far", Leech, numbers(HAVE, &[u32::MAX]), true),
        tape("W5", Seed, [ask.clone(), impossible].concat(), false),
        tape(
            "W6 odd ones",
            Seed,
            [ask.clone(), odd.clone()].concat(),
            false,
        ),
        tape(
            "W6 too long",
            Seed,
            [ask.clone(), request(0, 0, BLOCK + 1)].concat(),
            false,
        ),
        tape("W6 absurd", Seed, request(0, 0, 1 << 20), true),
        tape("W7 choked", Seed, odd.clone(), false),
        tape(
            "W7 choked, 301 times",
            Seed,
            [message(HAVE_ALL, &[]), request(2, 0, BLOCK).repeat(301)].concat(),
            true,
        ),
        tape("W9", Leech, unasked.concat(), false),
        tape(
            "W9 65 of them",
            Leech,
            piece(0, 0, &[7; 5]).repeat(65),
            true,
        ),
        tape("W10 cancels", Seed, numbers(CANCEL, &[0, 0, 1]), false),
        tape(
            "W10 a flood of them",
            Seed,
            numbers(CANCEL, &[0, 0, 1]).repeat(2_001),
            true,
        ),
        tape(
            "W10 interest flaps",
            Seed,
            [ask.clone(), message(NOT_INTERESTED, &[])]
                .concat()
                .repeat(20),
            false,
        ),
        tape("W11", Seed, message(99, &[1; 500]), false),
        tape("W12 a stray reject", Leech, numbers(REJECT, &[0; 3]), false),
        tape(
            "W13 ids",
            Leech,
            extended("\0d1:md11:lt_donthavei0e6:ut_pexi256ee4:reqqi0ee"),
            false,
        ),
        tape("W13 no dictionary", Leech, extended("\0i5e"), true),
        tape(
            "W14 size",
            Leech,
            extended("\0d13:metadata_sizei-1ee"),
            false,
        ),
        tape(
            "W15 unasked exchange",
            Leech,
            extended("\u{1}d5:added6:abcdefe"),
            false,
        ),
    ];
    let block = piece(0, 0, &vec![5; BLOCK as usize]);
    let fetched = [
        message(HAVE_ALL, &[]),
        message(UNCHOKE, &[]),
        block.repeat(2),
    ];
    tapes.push(tape("W9 a block twice", Leech, fetched.concat(), false));
    tapes.push(Tape {
        name: "W12 fast message without its bit",
        role: Seed,
        reserved: PLAIN,
        bytes: message(HAVE_ALL, &[]),
        closes: true,
    });
    for tape in &mut tapes {
        tape.bytes.extend(numbers(HAVE, &[1]));
        tape.bytes.extend(ask.clone());
    }
    tapes
}

fn outcome(tape: &Tape, chunks: &mut dyn Iterator<Item = &[u8]>) -> Outcome {
    let mut session = Session::new(tape.role, tape.reserved);
    for chunk in chunks {
        session.feed(chunk);
    }
    session.outcome()
}

#[test]
fn every_hostile_session_ends_the_same_wherever_it_is_split() {
    for tape in tapes() {
        let bytes = &tape.bytes[..];
        let whole = outcome(&tape, &mut std::iter::once(bytes));
        assert_eq!(whole.is_over, tape.closes, "{}: {:?}", tape.name, whole.log);
        let single = outcome(&tape, &mut bytes.chunks(1));
        assert_eq!(single, whole, "{}: byte by byte", tape.name);
        // A long tape repeats itself: its ends and a walk through its middle show the same.
        let cuts = (0..bytes.len())
            .filter(|cut| bytes.len() < 1_500 || *cut < 100 || cut % 499 == 0)
            .chain(bytes.len().saturating_sub(30)..bytes.len());
        for cut in cuts {
            let (head, tail) = bytes.split_at(cut);
            let split = outcome(&tape, &mut [head, tail].into_iter());
            assert_eq!(split, whole, "{}: cut at {cut}", tape.name);
        }
    }
}

#[test]
fn impossible_requests_reach_no_disk() {
    let bytes: Vec<u8> = tapes()
        .iter()
        .filter(|tape| tape.name.starts_with("W5"))
        .flat_map(|tape| tape.bytes.clone())
        .collect();
    let mut session = Session::new(Role::Seed, FULL);
    session.feed(&bytes);
    assert!(!session.is_over);
    assert_eq!(session.outcome().runs, Vec::<String>::new());
}

#[test]
fn a_reader_that_takes_nothing_of_its_blocks_is_closed() {
    // Whether or not a run had been handed out before its socket was full.
    stalled_reader(true);
    stalled_reader(false);
}

fn stalled_reader(has_run: bool) {
    let mut session = Session::new(Role::Seed, FULL);
    session.feed(&message(INTERESTED, &[]));
    for piece in 0..3 {
        for block in 0..4 {
            session.feed(&request(piece, block * BLOCK, BLOCK));
        }
    }
    let mut sent = Vec::new();
    session.call(|torrent, key, cx| torrent.take_messages(key, &mut sent, 1 << 20, cx));
    if has_run {
        let run = session.call(|torrent, key, cx| torrent.next_upload(key, 1 << 20, cx));
        assert!(run.is_some());
    }
    // It goes on talking, so it is not silent: it only never takes the run.
    for _ in 0..11 {
        session.wait(Duration::from_secs(10));
        session.feed(&[0; 4]);
    }
    assert_eq!(session.closed(), None, "110 s are borne");
    for _ in 0..3 {
        session.wait(Duration::from_secs(10));
        session.feed(&[0; 4]);
    }
    assert_eq!(session.closed(), Some(CloseReason::Silent));
}

#[test]
fn a_reader_that_takes_no_message_is_closed() {
    let mut session = Session::new(Role::Seed, FULL);
    for _ in 0..14 {
        session.wait(Duration::from_secs(10));
        session.feed(&[0; 4]);
    }
    assert_eq!(session.closed(), Some(CloseReason::Silent));
}

#[test]
fn a_million_requests_keep_queue_and_answers_in_bounds() {
    for reserved in [FULL, PLAIN] {
        let mut session = Session::new(Role::Seed, reserved);
        session.feed(&message(INTERESTED, &[]));
        let mut fed = 0;
        while !session.is_over && fed < 1_000_000 {
            // All different, so that each would take a place of its own.
            let range = numbers(REQUEST, &[fed / 65_000, fed % 65_000, 100]);
            session.feed(&range);
            fed += 1;
        }
        assert!(session.is_over, "still served after {fed} requests");
        assert!(fed <= 512 + 301, "{fed} requests were taken");
        let queued = session.torrent.peers(session.now)[0].requests_in;
        assert!(queued <= 512, "{queued} requests wait");
    }
}

#[test]
fn a_block_that_drips_in_ends_the_connection() {
    let mut session = Session::new(Role::Leech, FULL);
    session.feed(&message(HAVE_ALL, &[]));
    session.feed(&message(UNCHOKE, &[]));
    let mut sent = Vec::new();
    session.call(|torrent, key, cx| torrent.take_messages(key, &mut sent, 1 << 20, cx));
    let request = sent
        .windows(17)
        .find(|message| message[..5] == [0, 0, 0, 13, REQUEST])
        .expect("a request");
    let number = |at: usize| u32::from_be_bytes(request[at..at + 4].try_into().unwrap());
    let block = piece(number(5), number(9), &vec![0; number(13) as usize]);
    // Nobody else may send this block as long as it comes, however slowly.
    session.feed(&block[..14]);
    let mut drip = block[14..].chunks(1);
    for _ in 0..24 {
        assert_eq!(session.closed(), None);
        session.wait(Duration::from_secs(5));
        session.feed(drip.next().unwrap());
    }
    session.wait(Duration::from_secs(5));
    assert_eq!(session.closed(), Some(CloseReason::Silent));
}
