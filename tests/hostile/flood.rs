//! Many connections, many messages, nothing read: what honest peers and the memory feel of it (HOSTILE.md W8, W10, H4).

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
const SLICE: Duration = Duration::from_millis(300);
/// What the honest peer takes: far less than the program can send, so that a busy machine is not measured with it.
const DEMAND_BYTES_PER_S: u64 = 60 << 20;

/// Peers of a crowd.
const CROWD: usize = 100;
/// What one connection may cost besides the buffers: a request queue, a message that is not whole, what is to be sent.
const PEER_BYTES: u64 = 80 * 1024;
/// What all reads for uploads together may hold.
const READS_BYTES_MAX: u64 = 8 << 20;

fn seed(more: &[&str]) -> World {
    let bytes = (PIECES * PIECE_LENGTH) as usize;
    World::seed(Sample::file(bytes, PIECE_LENGTH, &[]), more)
}

fn flips(one: Vec<u8>, other: Vec<u8>, count: usize) -> Vec<u8> {
    [one, other].concat().repeat(count)
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

/// Alternates slices with and without the attack. The best slice under attack must come near the usual one without:
/// whatever else the machine does hits both, an attack that hurts hurts in each.
#[track_caller]
fn assert_keeps_its_rate(taker: &Taker, what: &str, attack: impl Fn(&AtomicBool) + Sync) {
    let (mut free, mut attacked) = (Vec::new(), 0.0_f64);
    for _ in 0..3 {
        free.push(taker.rate(SLICE));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| attack(&is_over));
            attacked = attacked.max(taker.rate(SLICE));
            is_over.store(true, Ordering::Relaxed);
        });
    }
    free.sort_by(f64::total_cmp);
    let free = free[1];
    let figures = format!("{what}: {:.1} of {:.1} MB/s", attacked / 1e6, free / 1e6);
    println!("{figures}");
    assert!(attacked >= KEPT * free, "{figures}");
}

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
    for (what, batch) in floods {
        assert_keeps_its_rate(&taker, what, |is_over| {
            let to = (world.addr, world.sample.info_hash);
            let connections = flood(to, &batch, 500, 100_000, is_over);
            assert!(connections >= 2, "{what}: the flooder was never thrown out");
        });
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
    let peers = std::sync::Mutex::new(crowd(&world, &numbers(HAVE, &[0])));
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
        assert_keeps_its_rate(&taker, what, |is_over| {
            let mut peers = peers.lock().unwrap();
            annoy(&mut peers, &batch, 50, 1_000, is_over);
        });
    }
}

/// `count` connections from addresses of their own.
fn many(world: &World, count: usize, narrow: Option<Narrow>) -> Vec<RawPeer> {
    let dial = |number: usize| {
        let hello = Hello::new(world.sample.info_hash);
        let [high, low] = u16::try_from(number + 1).unwrap().to_be_bytes();
        let stream = dial_from([127, 2, high, low].into(), world.addr, narrow).unwrap();
        RawPeer::greet(stream, &hello).unwrap()
    };
    (0..count).map(dial).collect()
}

/// Memory once the program has come to rest.
fn settled_bytes(world: &World) -> u64 {
    let mut last = world.gyre.anonymous_bytes();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = world.gyre.anonymous_bytes();
        if now <= last + 100_000 {
            return now;
        }
        last = now;
    }
}

/// Asks for as much as a peer may of the pieces that it is offered although choked.
fn ask_for_all(peer: &mut RawPeer) {
    peer.send(&message(HAVE_NONE, &[]));
    let mut asks = Vec::new();
    for _ in 0..3 {
        let piece = peer.wait_for(ALLOWED_FAST).numbers()[0];
        // Ranges that overlap are different requests: 180 of them are 2.9 MB.
        for shift in 0..12 {
            for block in 0..15 {
                asks.extend(request(piece, block * BLOCK + shift, BLOCK));
            }
        }
    }
    peer.send(&asks);
}

fn readers_that_never_read(engine: &str) {
    let world = seed(&["--buffers", "8MiB", "--send-engine", engine]);
    let taker = Taker::start(&world);
    let free = taker.rate(SLICE * 2);
    let start = settled_bytes(&world);
    let narrow = Narrow {
        receive_bytes: 4_096,
        segment_bytes: 536,
    };
    let mut peers = many(&world, 300, Some(narrow));
    peers.iter_mut().for_each(ask_for_all);
    let growth = settled_bytes(&world).saturating_sub(start);
    let kept = taker.rate(SLICE * 2);
    println!("{engine}: {growth} bytes more; {kept:.0} of {free:.0} bytes a second");
    assert!(
        growth <= READS_BYTES_MAX + 300 * PEER_BYTES,
        "{growth} bytes for 300 readers"
    );
    assert!(
        kept >= KEPT * free,
        "{kept:.0} of {free:.0} bytes a second are left"
    );
}

#[test]
fn readers_that_never_read_take_no_memory_for_mapped_sends() {
    readers_that_never_read("mapped");
}

#[test]
fn readers_that_never_read_take_no_more_than_the_memory_for_reads() {
    readers_that_never_read("copy");
}

#[test]
fn a_million_requests_and_never_a_read_take_no_memory() {
    for reserved in [FULL, PLAIN] {
        let mut world = seed(&["--buffers", "8MiB"]);
        let before = settled_bytes(&world);
        let mut hello = Hello::new(world.sample.info_hash);
        hello.reserved = reserved;
        let mut peer = RawPeer::dial_as(world.addr, &hello);
        peer.get_unchoked();
        let mut is_closed = false;
        let mut most = 0;
        for number in 0..1_000 {
            let asks: Vec<u8> = (0..1_000)
                .flat_map(|at| request(number % PIECES, at * 7, BLOCK))
                .collect();
            most = most.max(world.gyre.anonymous_bytes());
            is_closed = peer.stream.write_all(&asks).is_err();
            if is_closed {
                break;
            }
        }
        assert!(is_closed, "a million requests were taken");
        let growth = most
            .max(world.gyre.anonymous_bytes())
            .saturating_sub(before);
        assert!(growth <= 4 << 20, "{growth} bytes for one peer");
        world.assert_serves();
    }
}

#[test]
fn long_messages_left_unfinished_take_little_memory() {
    let mut world = seed(&["--buffers", "8MiB"]);
    let mut peers = many(&world, 300, None);
    let start = settled_bytes(&world);
    // The longest extension message that is taken, all but its last byte.
    let length = 64 * 1024 + 2_u32;
    let mut long = [&length.to_be_bytes()[..], &[EXTENDED, 1]].concat();
    long.resize(length as usize + 3, b'x');
    peers.iter_mut().for_each(|peer| peer.send(&long));
    let growth = settled_bytes(&world).saturating_sub(start);
    assert!(growth <= 300 * PEER_BYTES, "{growth} bytes for 300 peers");
    drop(peers);
    let mut peer = world.peer();
    let longer = (length + 1).to_be_bytes();
    peer.send(&[&longer[..], &[EXTENDED]].concat());
    peer.expect_close("an extension message of over 64 KiB");
    world.assert_serves();
}

#[test]
fn receive_memory_stays_in_bounds_while_everybody_sends() {
    let mut world = seed(&["--buffers", "8MiB"]);
    let mut peers = many(&world, 300, None);
    let start = settled_bytes(&world);
    // Unknown messages of 1 MiB pass by.
    let mut long = [&(1_u32 << 20).to_be_bytes()[..], &[200]].concat();
    long.resize(4 + (1 << 20), 7);
    let mut sent = vec![0; peers.len()];
    let end = Instant::now() + Duration::from_secs(3);
    let mut most = 0;
    peers
        .iter()
        .for_each(|peer| peer.stream.set_nonblocking(true).unwrap());
    while Instant::now() < end {
        for (peer, sent) in peers.iter_mut().zip(&mut sent) {
            match peer.stream.write(&long[*sent..]) {
                Ok(wrote) => *sent = (*sent + wrote) % long.len(),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        most = most.max(world.gyre.anonymous_bytes());
    }
    let growth = most.saturating_sub(start);
    println!("{growth} bytes more");
    assert!(growth <= 300 * PEER_BYTES, "{growth} bytes for 300 peers");
    drop(peers);
    world.assert_serves();
}
