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
use crate::tapes::{BLOCK, PIECE_LENGTH, PIECES, Role, TOTAL_BYTES, Tape, cuts, tapes};

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
        let geometry = Geometry::new(TOTAL_BYTES as u64, u64::from(PIECE_LENGTH)).unwrap();
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
            is_v2: false,
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
        for cut in cuts(bytes.len()) {
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
