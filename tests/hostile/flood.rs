//! Floods of messages and of connections, and what honest peers feel of them (HOSTILE.md W10, H4).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::common::World;
use crate::rate::{BLOCK, PIECES, SLICE, Taker, assert_keeps_its_rate, flips, many, seed};
use crate::support::fake_peer::{Behaviour, FakeSeeder};
use crate::support::raw_peer::*;
use crate::torrent_file;

/// Peers of a crowd.
const CROWD: usize = 100;
/// Half-open connections of an attack.
const HALF_OPEN: usize = 5_000;
/// Of those the program may keep at a time, for ten seconds each.
const PENDING_MAX: usize = 512;

/// Sends `batch` again and again at `per_s` messages a second, dialing anew whenever it is thrown out.
fn flood(
    (to, info_hash): (SocketAddr, [u8; 20]),
    batch: &[u8],
    messages: u32,
    per_s: u32,
    is_over: &AtomicBool,
) -> u32 {
    let mut connections = 0;
    let (start, mut sent) = (Instant::now(), 0);
    while !is_over.load(Ordering::Relaxed) {
        let Ok(mut peer) = RawPeer::dial_at([127, 0, 0, 66], to, &Hello::new(info_hash)) else {
            continue;
        };
        connections += 1;
        while !is_over.load(Ordering::Relaxed) {
            if peer.stream.write_all(batch).is_err() {
                break;
            }
            sent += messages;
            let due = Duration::from_secs_f64(f64::from(sent) / f64::from(per_s));
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    connections
}

#[test]
fn an_honest_peer_keeps_its_rate_while_others_flood() {
    let world = seed(&[]);
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let floods = [
        (
            "cancels of nothing",
            numbers(CANCEL, &[0, 0, BLOCK]).repeat(500),
        ),
        (
            "cancels of requests",
            flips(request(5, 0, BLOCK), numbers(CANCEL, &[5, 0, BLOCK]), 250),
        ),
        (
            "choke flapping",
            flips(message(CHOKE, &[]), message(UNCHOKE, &[]), 250),
        ),
        (
            "interest flapping",
            flips(message(INTERESTED, &[]), message(NOT_INTERESTED, &[]), 250),
        ),
        ("keep-alives", [0; 4].repeat(500)),
        ("impossible requests", request(PIECES, 0, BLOCK).repeat(500)),
        ("haves", numbers(HAVE, &[3]).repeat(500)),
        ("unknown messages", message(99, &[]).repeat(500)),
    ];
    let to = (world.addr, world.sample.info_hash);
    for (what, batch) in floods {
        let connections = AtomicU32::new(0);
        let attack = |is_over: &AtomicBool| {
            let count = flood(to, &batch, 500, 100_000, is_over);
            connections.fetch_add(count, Ordering::Relaxed);
        };
        let rounds = assert_keeps_its_rate(|during| taker.rate(during), what, attack);
        assert!(
            connections.into_inner() > rounds,
            "{what}: never thrown out"
        );
    }
}

/// Peers that each stay under every limit: together they send 10⁵ messages a second.
fn crowd(world: &World, first: &[u8]) -> Vec<RawPeer> {
    let mut peers = many(world, CROWD, None);
    for peer in &mut peers {
        peer.send(first);
        peer.stream.set_nonblocking(true).unwrap();
    }
    peers
}

/// Sends a batch on each connection so often that `per_s` messages a second go out on each.
fn annoy(peers: &mut [RawPeer], batch: &[u8], messages: u32, per_s: u32, is_over: &AtomicBool) {
    let (start, mut sent) = (Instant::now(), 0);
    let mut buffer = vec![0; 65_536];
    while !is_over.load(Ordering::Relaxed) {
        for peer in peers.iter_mut() {
            peer.stream.write_all(batch).expect("stays connected");
            let _ = peer.stream.read(&mut buffer);
        }
        sent += messages;
        let due = Duration::from_secs_f64(f64::from(sent) / f64::from(per_s));
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
}

#[test]
fn an_honest_peer_keeps_its_rate_in_a_crowd_that_keeps_to_the_limits() {
    let world = seed(&[]);
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let peers = Mutex::new(crowd(&world, &numbers(HAVE, &[0])));
    for (what, batch) in [
        (
            "interest flapping",
            flips(message(INTERESTED, &[]), message(NOT_INTERESTED, &[]), 25),
        ),
        (
            "choke flapping",
            flips(message(CHOKE, &[]), message(UNCHOKE, &[]), 25),
        ),
        (
            "pieces that come and go",
            flips(numbers(HAVE, &[3]), message(EXTENDED, &[7, 0, 0, 0, 3]), 25),
        ),
    ] {
        assert_keeps_its_rate(
            |during| taker.rate(during),
            what,
            |is_over| {
                let mut peers = peers.lock().unwrap();
                annoy(&mut peers, &batch, 50, 1_000, is_over);
            },
        );
    }
}

#[test]
fn a_leecher_keeps_its_rate_in_a_crowd_that_flaps() {
    let total = 128 << 20;
    let entries = [torrent_file::Entry::file(&[b"zeros"], vec![0; total])];
    let (sample, content) = torrent_file::multi(b"n", &entries, 262_144);
    let honest = Behaviour {
        bytes_per_s: Some(16 << 20),
        ..Behaviour::honest(78)
    };
    let seeder = FakeSeeder::start(&content, honest);
    let world = World::leech(sample, &["--peer", &seeder.addr.to_string()]);
    let rate = |during: Duration| {
        let before = seeder.sent_bytes();
        let start = Instant::now();
        std::thread::sleep(during);
        (seeder.sent_bytes() - before) as f64 / start.elapsed().as_secs_f64()
    };
    rate(SLICE);
    let peers = Mutex::new(crowd(&world, &message(HAVE_ALL, &[])));
    let batch = flips(message(UNCHOKE, &[]), message(CHOKE, &[]), 25);
    assert_keeps_its_rate(rate, "chokes and unchokes", |is_over| {
        annoy(&mut peers.lock().unwrap(), &batch, 50, 1_000, is_over);
    });
}

/// Peers that are unchoked and ask for a byte at a time.
const NIBBLERS: u8 = 4;
/// Requests that each of them has under way.
const NIBBLES: u32 = 200;
const NIBBLES_PER_S: f64 = 50_000.0;

#[test]
fn an_honest_peer_keeps_its_rate_beside_requests_of_one_byte() {
    let world = seed(&[]);
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let hello = || Hello::new(world.sample.info_hash);
    let nibblers: Vec<RawPeer> = (0..NIBBLERS)
        .map(|at| {
            let mut peer = RawPeer::dial_at([127, 0, 4, 1 + at], world.addr, &hello()).unwrap();
            peer.get_unchoked();
            peer
        })
        .collect();
    let asks: Vec<u8> = (0..NIBBLES)
        .flat_map(|at| request(at % PIECES, at * 31, 1))
        .collect();
    let (nibblers, served) = (Mutex::new(nibblers), AtomicU32::new(0));
    let attack = |is_over: &AtomicBool| {
        let mut nibblers = nibblers.lock().unwrap();
        let (start, mut sent) = (Instant::now(), 0);
        while !is_over.load(Ordering::Relaxed) {
            for peer in nibblers.iter_mut() {
                peer.stream.write_all(&asks).expect("stays connected");
            }
            for peer in nibblers.iter_mut() {
                (0..NIBBLES).for_each(|_| drop(peer.wait_for(PIECE)));
            }
            sent += NIBBLES * u32::from(NIBBLERS);
            let due = Duration::from_secs_f64(f64::from(sent) / NIBBLES_PER_S);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        served.fetch_add(sent, Ordering::Relaxed);
    };
    let start = Instant::now();
    assert_keeps_its_rate(|during| taker.rate(during), "a byte at a time", attack);
    println!("{served:?} requests of a byte in {:.1?}", start.elapsed());
}

/// Connections that drip, half of them in their handshake.
const DRIPPERS: u16 = 400;
const DRIP: Duration = Duration::from_millis(100);

#[test]
fn an_honest_peer_keeps_its_rate_beside_connections_that_drip() {
    let world = seed(&[]);
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let hello = Hello::new(world.sample.info_hash).encode();
    let long = {
        let mut long = [&65_538_u32.to_be_bytes()[..], &[EXTENDED, 1]].concat();
        long.resize(65_542, b'x');
        long
    };
    let drippers: Vec<(TcpStream, Vec<u8>)> = (0..DRIPPERS)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let stream = dial_from([127, 9, high, low].into(), world.addr, None).unwrap();
            if number % 2 == 0 {
                return (stream, hello.clone());
            }
            let hello = Hello::new(world.sample.info_hash);
            (RawPeer::greet(stream, &hello).unwrap().stream, long.clone())
        })
        .collect();
    let (drippers, next) = (Mutex::new(drippers), AtomicU32::new(0));
    let attack = |is_over: &AtomicBool| {
        while !is_over.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed) as usize;
            for (stream, bytes) in drippers.lock().unwrap().iter_mut() {
                // Those in their handshake are closed when their time is over.
                let _ = stream.write_all(&bytes[at % 67..][..1]);
            }
            std::thread::sleep(DRIP);
        }
    };
    assert_keeps_its_rate(|during| taker.rate(during), "drips", attack);
}

#[test]
fn thousands_of_half_open_connections_leave_established_peers_alone() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut world = seed(&[]);
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let to = world.addr;
    let half_open: Mutex<Vec<TcpStream>> = Mutex::default();
    let burst = |is_over: &AtomicBool| {
        let mut half_open = half_open.lock().unwrap();
        half_open.clear();
        for number in 0..HALF_OPEN {
            let [high, low] = u16::try_from(number / 100).unwrap().to_be_bytes();
            half_open.push(dial_from([127, 3, high, low + 1].into(), to, None).unwrap());
        }
        // Those that were taken hang on.
        while !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert_keeps_its_rate(|during| taker.rate(during), "bursts", burst);
    let half_open = half_open.into_inner().unwrap();
    assert_eq!(half_open.len(), HALF_OPEN);
    let is_open = |stream: &&TcpStream| {
        let mut stream = *stream;
        stream.set_nonblocking(true).unwrap();
        let read = stream.read(&mut [0]);
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    // What waits in the backlog of the socket is closed as soon as it is taken.
    let deadline = Instant::now() + Duration::from_secs(10);
    let open = loop {
        let open = half_open.iter().filter(is_open).count();
        if open <= PENDING_MAX || Instant::now() > deadline {
            break open;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(open > 0 && open <= PENDING_MAX, "{open} are still open");
    // Their places come back when their time is over, although they never close.
    let deadline = Instant::now() + Duration::from_secs(30);
    let hello = Hello::new(world.sample.info_hash);
    let newcomer = loop {
        match RawPeer::dial_at([127, 0, 0, 79], to, &hello) {
            Ok(peer) => break peer,
            Err(error) => assert!(
                Instant::now() < deadline,
                "no place for a newcomer: {error}"
            ),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    drop((newcomer, half_open));
    world.assert_serves();
}
