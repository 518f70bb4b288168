//! Many connections, many messages, nothing read: what honest peers and the memory feel of it (HOSTILE.md W8, W10, H4).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::common::World;
use crate::support::Sample;
use crate::support::raw_peer::*;

const BLOCK: u32 = 16_384;
const PIECE_LENGTH: u32 = 262_144;
/// 96 pieces: torrents with more than 64 do without the debug build's check after each event.
const PIECES: u32 = 96;
/// How much of its rate an honest peer keeps at least.
const KEPT: f64 = 0.8;
/// One slice of measuring.
const SLICE: Duration = Duration::from_millis(400);
/// What the honest peer takes: far less than the program can send, so that a busy machine is not measured with it.
const DEMAND_BYTES_PER_S: u64 = 60 << 20;

fn seed() -> World {
    World::seed(
        Sample::file((PIECES * PIECE_LENGTH) as usize, PIECE_LENGTH, &[]),
        &[],
    )
}

/// A peer that takes blocks as fast as it is allowed, on a thread of its own.
struct Taker {
    bytes: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Taker {
    fn start(world: &World) -> Taker {
        let hello = Hello::new(world.sample.info_hash);
        let mut peer = RawPeer::dial_at([127, 0, 0, 77], world.addr, &hello).unwrap();
        peer.get_unchoked();
        let (bytes, is_over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counted, stop) = (bytes.clone(), is_over.clone());
        let thread = std::thread::spawn(move || take(&mut peer, &counted, &stop));
        Taker {
            bytes,
            is_over,
            thread: Some(thread),
        }
    }

    /// Payload a second during that time.
    fn rate(&self, during: Duration) -> f64 {
        let (start, before) = (Instant::now(), self.bytes.load(Ordering::Relaxed));
        std::thread::sleep(during);
        let got = self.bytes.load(Ordering::Relaxed) - before;
        got as f64 / start.elapsed().as_secs_f64()
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the honest peer was cut off"
        );
    }
}

fn take(peer: &mut RawPeer, counted: &AtomicU64, stop: &AtomicBool) {
    let blocks = PIECES * PIECE_LENGTH / BLOCK;
    let mut next = 0;
    let mut ask = |peer: &mut RawPeer, count: u32| {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let at = next % blocks * BLOCK;
            bytes.extend(request(at / PIECE_LENGTH, at % PIECE_LENGTH, BLOCK));
            next += 1;
        }
        peer.send(&bytes);
    };
    let start = Instant::now();
    ask(peer, 32);
    let (mut taken, mut owed) = (0, 0);
    let mut buffer = vec![0; 1 << 20];
    while !stop.load(Ordering::Relaxed) {
        // Only lengths matter here: each block is 13 bytes of header and its payload.
        let got = peer.stream.read(&mut buffer).unwrap();
        assert!(got > 0, "closed");
        owed += got as u64;
        let whole = owed / u64::from(BLOCK + 13);
        owed -= whole * u64::from(BLOCK + 13);
        taken += whole * u64::from(BLOCK);
        counted.store(taken, Ordering::Relaxed);
        let due = Duration::from_secs_f64(taken as f64 / DEMAND_BYTES_PER_S as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        ask(peer, u32::try_from(whole).unwrap());
    }
}

/// Alternates slices with and without the attack; the best with it must come near the best without.
#[track_caller]
fn assert_keeps_its_rate(taker: &Taker, what: &str, attack: impl Fn(&AtomicBool) + Sync) {
    let (mut free, mut attacked) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        free.push(taker.rate(SLICE));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| attack(&is_over));
            attacked.push(taker.rate(SLICE));
            is_over.store(true, Ordering::Relaxed);
        });
    }
    free.sort_by(f64::total_cmp);
    attacked.sort_by(f64::total_cmp);
    let (free, attacked) = (free[1], attacked[1]);
    println!("{what}: {:.1} of {:.1} MB/s", attacked / 1e6, free / 1e6);
    assert!(
        attacked >= KEPT * free,
        "{what}: {:.1} of {:.1} MB/s",
        attacked / 1e6,
        free / 1e6
    );
}

/// Sends `batch` again and again at `per_s` messages a second, dialing anew whenever it is thrown out.
fn flood(
    to: SocketAddr,
    info_hash: [u8; 20],
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
    let world = seed();
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let flips = |one: Vec<u8>, other: Vec<u8>| [one, other].concat().repeat(250);
    let floods = [
        (
            "cancels of nothing",
            numbers(CANCEL, &[0, 0, BLOCK]).repeat(500),
        ),
        (
            "cancels of requests",
            flips(request(5, 0, BLOCK), numbers(CANCEL, &[5, 0, BLOCK])),
        ),
        (
            "choke flapping",
            flips(message(CHOKE, &[]), message(UNCHOKE, &[])),
        ),
        (
            "interest flapping",
            flips(message(INTERESTED, &[]), message(NOT_INTERESTED, &[])),
        ),
        ("keep-alives", [0; 4].repeat(500)),
        ("impossible requests", request(PIECES, 0, BLOCK).repeat(500)),
        ("haves", numbers(HAVE, &[3]).repeat(500)),
        ("unknown messages", message(99, &[]).repeat(500)),
    ];
    for (what, batch) in floods {
        assert_keeps_its_rate(&taker, what, |is_over| {
            let n = flood(
                world.addr,
                world.sample.info_hash,
                &batch,
                500,
                100_000,
                is_over,
            );
            println!("{what} {n} connections");
        });
    }
}

/// Peers that each stay under every limit, all served by one thread: `one` is sent on each of them `per_s` times a second.
fn crowd(world: &World, count: usize, first: &[u8]) -> Vec<RawPeer> {
    let dial = |number: usize| {
        let hello = Hello::new(world.sample.info_hash);
        let from = [127, 1, 0, u8::try_from(number + 1).unwrap()];
        let mut peer = RawPeer::dial_at(from, world.addr, &hello).unwrap();
        peer.send(first);
        peer.stream.set_nonblocking(true).unwrap();
        peer
    };
    (0..count).map(dial).collect()
}

fn annoy(peers: &mut [RawPeer], batch: &[u8], messages: u32, per_s: u32, is_over: &AtomicBool) {
    let (start, mut rounds) = (Instant::now(), 0);
    let mut buffer = vec![0; 65_536];
    while !is_over.load(Ordering::Relaxed) {
        for peer in peers.iter_mut() {
            peer.stream.write_all(batch).expect("stays connected");
            let _ = peer.stream.read(&mut buffer);
        }
        rounds += messages;
        let due = Duration::from_secs_f64(f64::from(rounds) / f64::from(per_s));
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    println!(
        "{} a second each",
        f64::from(rounds) / start.elapsed().as_secs_f64()
    );
}

#[test]
fn crowd_experiment() {
    let world = seed();
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let peers = std::sync::Mutex::new(crowd(&world, 100, &numbers(HAVE, &[0])));
    let flips = |one: Vec<u8>, other: Vec<u8>| [one, other].concat().repeat(25);
    for (what, batch) in [
        (
            "interest flapping",
            flips(message(INTERESTED, &[]), message(NOT_INTERESTED, &[])),
        ),
        (
            "choke flapping",
            flips(message(CHOKE, &[]), message(UNCHOKE, &[])),
        ),
        (
            "haves",
            flips(numbers(HAVE, &[3]), message(EXTENDED, &[7, 0, 0, 0, 3])),
        ),
    ] {
        let cpu = world.gyre.cpu();
        assert_keeps_its_rate(&taker, what, |is_over| {
            annoy(&mut peers.lock().unwrap(), &batch, 50, 1_000, is_over);
        });
        println!("cpu {:?}", world.gyre.cpu() - cpu);
    }
}

/// `count` connections from addresses of their own with a small receive buffer.
fn many(world: &World, count: usize, receive_bytes: Option<usize>) -> Vec<RawPeer> {
    let dial = |number: usize| {
        let hello = Hello::new(world.sample.info_hash);
        let from = [
            127,
            2,
            u8::try_from(number / 200).unwrap(),
            u8::try_from(number % 200 + 1).unwrap(),
        ];
        let stream = dial_from(from.into(), world.addr, receive_bytes).unwrap();
        RawPeer::greet(stream, &hello).unwrap()
    };
    (0..count).map(dial).collect()
}

fn settle(world: &World) -> u64 {
    std::thread::sleep(Duration::from_secs(1));
    world.gyre.anonymous_bytes()
}

#[test]
fn mem_stuck_readers() {
    let world = World::seed(
        Sample::file((PIECES * PIECE_LENGTH) as usize, PIECE_LENGTH, &[]),
        &["--buffers", "8MiB"],
    );
    let start = settle(&world);
    let mut peers = many(&world, 300, Some(4_096));
    let connected = settle(&world);
    let mut allowed = 0;
    for peer in &mut peers {
        peer.send(&message(HAVE_NONE, &[]));
        peer.send(&message(INTERESTED, &[]));
        let mut pieces = Vec::new();
        while let Ok(Some(frame)) = peer.next_within(Duration::from_millis(30)) {
            if frame.id == ALLOWED_FAST {
                pieces.push(frame.numbers()[0]);
            }
        }
        allowed += pieces.len();
        let asks: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| {
                (0..4).flat_map(move |odd| {
                    (0..15).flat_map(move |block| request(*piece, block * BLOCK + odd, BLOCK))
                })
            })
            .collect();
        peer.send(&asks);
    }
    let stuck = settle(&world);
    println!(
        "allowed {allowed}; start {} connected {} stuck {}",
        start >> 10,
        connected >> 10,
        stuck >> 10
    );
}

#[test]
fn mem_gather() {
    let world = World::seed(
        Sample::file((PIECES * PIECE_LENGTH) as usize, PIECE_LENGTH, &[]),
        &["--buffers", "8MiB"],
    );
    let start = settle(&world);
    let mut peers = many(&world, 300, None);
    let connected = settle(&world);
    let mut long = (1_u32 << 20).to_be_bytes().to_vec();
    long.extend([20, 1]);
    long.resize(1 << 20, 7);
    for peer in &mut peers {
        peer.send(&long);
    }
    let stuck = settle(&world);
    println!(
        "gather: start {} connected {} stuck {}",
        start >> 10,
        connected >> 10,
        stuck >> 10
    );
}

#[test]
fn mem_receive() {
    let world = World::seed(
        Sample::file((PIECES * PIECE_LENGTH) as usize, PIECE_LENGTH, &[]),
        &["--buffers", "8MiB"],
    );
    let start = settle(&world);
    let mut peers = many(&world, 300, None);
    let connected = settle(&world);
    let mut long = (1_u32 << 20).to_be_bytes().to_vec();
    long.extend([200, 1]);
    long.resize(4 + (1 << 20), 7);
    for peer in &mut peers {
        peer.stream.set_nonblocking(true).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(4);
    let mut most = 0;
    let mut sent = vec![0_usize; peers.len()];
    while Instant::now() < end {
        for (peer, sent) in peers.iter_mut().zip(&mut sent) {
            match peer.stream.write(&long[*sent..]) {
                Ok(n) => *sent = (*sent + n) % long.len(),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        most = most.max(world.gyre.anonymous_bytes());
    }
    println!(
        "receive: start {} connected {} most {}",
        start >> 10,
        connected >> 10,
        most >> 10
    );
}
