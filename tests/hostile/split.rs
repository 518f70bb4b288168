//! Hostile sessions against the running command, handshake included, cut at every byte, with an honest peer beside
//! (HOSTILE.md W16, H2).

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::World;
use crate::rate::{KEPT, SLICE, Taker};
use crate::support::fake_peer::{Behaviour, FakeSeeder};
use crate::support::raw_peer::*;
use crate::support::sample::text;
use crate::support::{Gyre, Sample};
use crate::tapes::{PIECE_LENGTH, Role, TOTAL_BYTES, cuts, tapes};
use crate::torrent_file;

/// Different sessions of both roles together.
const CASES_MIN: usize = 60;
/// Connections of one batch, and how often one goes out at most: 1,600 connections a second.
const BATCH: usize = 64;
const PACE: Duration = Duration::from_millis(40);
/// Rounds before the attack counts as harmful: whatever else the machine does hits some of them.
const ROUNDS_MAX: u32 = 3;
/// Long enough for the command to take the first part by itself.
const BETWEEN: Duration = Duration::from_millis(4);
/// A range outside the torrent that no tape asks for: its reject shows that the stream is in step.
const PROBE: [u32; 3] = [3, 12_345, 77];

/// What goes over one connection, and where it is cut.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    closes: bool,
}

/// One cut of one case.
type Cut<'a> = (&'a Case, usize);

fn cases(role: Role, info_hash: [u8; 20]) -> Vec<Case> {
    let tapes = tapes().into_iter().filter(|tape| tape.role == role);
    let mut cases: Vec<Case> = tapes
        .map(|tape| {
            let hello = Hello {
                reserved: tape.reserved,
                ..Hello::new(info_hash)
            };
            let bytes = [hello.encode(), tape.bytes, numbers(REQUEST, &PROBE)].concat();
            Case {
                name: tape.name,
                bytes,
                closes: tape.closes,
            }
        })
        .collect();
    if role == Role::Seed {
        cases.extend(bad_handshakes(info_hash));
    }
    cases
}

fn bad_handshakes(info_hash: [u8; 20]) -> Vec<Case> {
    let good = Hello::new(info_hash).encode();
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        [bytes, message(INTERESTED, &[])].concat()
    };
    let case = |name, bytes| Case {
        name,
        bytes,
        closes: true,
    };
    vec![
        case("H2 another length", changed(0)),
        case("H2 another protocol", changed(19)),
        case("H2 another torrent", changed(28)),
        case(
            "H2 a browser",
            b"GET /announce HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2),
        ),
    ]
}

/// A peer id of its own for each connection: the second of the same is turned away.
fn with_own_id(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let own = Hello::new([0; 20]).peer_id;
    if let Some(id) = bytes.get_mut(48..68) {
        id.copy_from_slice(&own);
    }
    bytes
}

/// Sends all cuts of a batch at once, in two parts each, and looks at how each ends.
fn play(addr: SocketAddr, batch: &[Cut<'_>], next_address: &AtomicU32) {
    let mut open: Vec<(TcpStream, Vec<u8>, Cut<'_>)> = Vec::new();
    for (case, cut) in batch {
        let [_, high, middle, low] = next_address.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let from = [127, 16 + high, middle, 1 + low % 250];
        let stream = dial_from(from.into(), addr, None).unwrap();
        let bytes = with_own_id(&case.bytes);
        let _ = (&stream).write_all(&bytes[..*cut]);
        open.push((stream, bytes, (case, *cut)));
    }
    std::thread::sleep(BETWEEN);
    for (stream, bytes, (_, cut)) in &open {
        // Where it closed already this fails, and reading tells the end.
        let _ = (&mut &*stream).write_all(&bytes[*cut..]);
    }
    for (stream, _, (case, cut)) in open {
        let is_closed = ends(stream);
        assert_eq!(is_closed, case.closes, "{}: cut at {cut}", case.name);
    }
}

/// True when the connection ends, false when the probe is answered.
fn ends(stream: TcpStream) -> bool {
    let mut peer = RawPeer::greeted(stream);
    let Some(()) = peer.read_hello() else {
        return true;
    };
    loop {
        match peer.next() {
            None => return true,
            Some(frame) if frame.id == REJECT && frame.numbers() == PROBE => return false,
            Some(_) => {}
        }
    }
}

/// Plays all cuts of all cases while `rate` is watched; an honest peer must keep its rate all the while.
fn play_all(addr: SocketAddr, cases: &[Case], rate: impl Fn(Duration) -> f64) {
    let all: Vec<Cut<'_>> = cases
        .iter()
        .flat_map(|case| cuts(case.bytes.len()).map(move |cut| (case, cut)))
        .collect();
    let next_address = AtomicU32::new(0);
    let mut alone = Vec::new();
    rate(SLICE);
    for round in 1..=ROUNDS_MAX {
        alone.extend((0..5).map(|_| rate(SLICE)));
        let start = Instant::now();
        let mut beside = Vec::new();
        std::thread::scope(|scope| {
            let player = scope.spawn(|| {
                for batch in all.chunks(BATCH) {
                    let due = Instant::now() + PACE;
                    play(addr, batch, &next_address);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            });
            while !player.is_finished() {
                beside.push(rate(SLICE));
            }
        });
        // The last slice was measured past the end.
        beside.pop();
        let took = start.elapsed();
        let (alone, beside) = (median(&mut alone), median(&mut beside));
        println!(
            "{} cases, {} connections in {took:.1?}; {:.1} of {:.1} MB/s",
            cases.len(),
            all.len(),
            beside / 1e6,
            alone / 1e6
        );
        if beside >= KEPT * alone {
            return;
        }
        assert!(
            round < ROUNDS_MAX,
            "{beside:.0} of {alone:.0} bytes a second"
        );
    }
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn small() -> Sample {
    Sample::file(TOTAL_BYTES, PIECE_LENGTH, &[])
}

#[test]
fn there_are_enough_different_hostile_sessions() {
    let mut names = BTreeSet::new();
    let mut bytes = BTreeSet::new();
    let mut count = 0;
    for role in [Role::Seed, Role::Leech] {
        for case in cases(role, [7; 20]) {
            count += 1;
            names.insert(case.name);
            bytes.insert((
                role == Role::Seed,
                case.bytes.get(68..).unwrap_or_default().to_vec(),
            ));
        }
    }
    println!("{count} cases");
    assert!(count >= CASES_MIN);
    assert_eq!(names.len(), count);
    assert!(
        bytes.len() + 5 >= count,
        "bad handshakes alone are alike behind their handshake"
    );
}

#[test]
fn a_seeder_bears_every_hostile_session_cut_anywhere_and_serves_beside() {
    // Where encryption is accepted, what is no handshake may be the start of a hidden one: it is closed ten seconds later.
    let mut world = World::seed(small(), &["--encryption", "off"]);
    let taker = Taker::of(&world, 12);
    let cases = cases(Role::Seed, world.sample.info_hash);
    play_all(world.addr, &cases, |during| taker.rate(during));
    drop(taker);
    world.assert_serves();
}

#[test]
fn a_leecher_bears_every_hostile_session_cut_anywhere_and_fetches_beside() {
    // The honest peer's torrent is another one of the same command: the small one would be done at once.
    let entries = [torrent_file::Entry::file(&[b"zeros"], vec![0; 192 << 20])];
    let (large, content) = torrent_file::multi(b"large", &entries, 262_144);
    let honest = Behaviour {
        bytes_per_s: Some(4 << 20),
        ..Behaviour::honest(79)
    };
    let seeder = FakeSeeder::start(&content, honest);
    let small = small();
    let mut gyre = Gyre::start(&[
        "download",
        &text(&small.torrent),
        &text(&large.torrent),
        "-o",
        &text(&small.dir("out")),
        "--state",
        &text(&small.dir("state")),
        "--port",
        "0",
        "--peer",
        &seeder.addr.to_string(),
    ]);
    let addr = gyre.listening();
    let cases = cases(Role::Leech, small.info_hash);
    let last = Mutex::new(seeder.sent_bytes());
    let rate = |during: Duration| {
        let start = Instant::now();
        std::thread::sleep(during);
        let now = seeder.sent_bytes();
        let before = std::mem::replace(&mut *last.lock().unwrap(), now);
        (now - before) as f64 / start.elapsed().as_secs_f64()
    };
    while seeder.sent_bytes() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    play_all(addr, &cases, rate);
    assert!(gyre.is_running(), "{}", gyre.stderr());
    assert!(!gyre.stderr().contains("panicked"), "{}", gyre.stderr());
}
