//! What an honest peer gets while others misbehave, and crowds of those others.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::World;
use crate::support::Sample;
use crate::support::raw_peer::*;

pub const BLOCK: u32 = 16_384;
pub const PIECE_LENGTH: u32 = 262_144;
/// 96 pieces: torrents with more than 64 do without the debug build's check after each event.
pub const PIECES: u32 = 96;
/// How much of its rate an honest peer keeps at least.
pub const KEPT: f64 = 0.8;
/// Rounds of measuring before an attack counts as harmful.
const ROUNDS_MAX: u32 = 10;
/// One slice of measuring.
pub const SLICE: Duration = Duration::from_millis(300);
/// What the honest peer takes: far less than the program can send, so that a busy machine is not measured with it.
const DEMAND_BYTES_PER_S: u64 = 16 << 20;

pub fn seed(more: &[&str]) -> World {
    let bytes = (PIECES * PIECE_LENGTH) as usize;
    World::seed(Sample::file(bytes, PIECE_LENGTH, &[]), more)
}

pub fn flips(one: Vec<u8>, other: Vec<u8>, count: usize) -> Vec<u8> {
    [one, other].concat().repeat(count)
}

/// A peer that takes blocks as fast as it is allowed, on a thread of its own.
pub struct Taker {
    bytes: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Taker {
    pub fn start(world: &World) -> Taker {
        Taker::of(world, PIECES * PIECE_LENGTH / BLOCK)
    }

    /// Takes the first so many blocks of the world's torrent again and again.
    pub fn of(world: &World, blocks: u32) -> Taker {
        let hello = Hello::new(world.sample.info_hash);
        let mut peer = RawPeer::dial_at([127, 0, 0, 77], world.addr, &hello).unwrap();
        peer.get_unchoked();
        let (bytes, is_over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counted, stop) = (bytes.clone(), is_over.clone());
        let shape = (blocks, world.sample.piece_length);
        let thread = std::thread::spawn(move || take(&mut peer, shape, &counted, &stop));
        Taker {
            bytes,
            is_over,
            thread: Some(thread),
        }
    }

    /// Payload a second during that time.
    pub fn rate(&self, during: Duration) -> f64 {
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

fn take(
    peer: &mut RawPeer,
    (blocks, piece_length): (u32, u32),
    counted: &AtomicU64,
    stop: &AtomicBool,
) {
    let mut next = 0;
    let mut ask = |peer: &mut RawPeer, count: u32| {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let at = next % blocks * BLOCK;
            bytes.extend(request(at / piece_length, at % piece_length, BLOCK));
            next += 1;
        }
        peer.send(&bytes);
    };
    let start = Instant::now();
    ask(peer, 32);
    let (mut taken, mut owed, mut due) = (0, 0, Duration::ZERO);
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
        // Time lost is not caught up: that would hide how it was lost.
        let lag = Duration::from_millis(100);
        due = due.max(start.elapsed().saturating_sub(lag));
        due +=
            Duration::from_secs_f64((whole * u64::from(BLOCK)) as f64 / DEMAND_BYTES_PER_S as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        ask(peer, u32::try_from(whole).unwrap());
    }
}

/// Alternates slices with and without the attack until the best slice under attack comes near the usual one without, or
/// for so many rounds that it will not: whatever else the machine does hits some of them, an attack that hurts hurts in
/// each. Returns the number of rounds.
#[track_caller]
pub fn assert_keeps_its_rate(
    rate: impl Fn(Duration) -> f64,
    what: &str,
    attack: impl Fn(&AtomicBool) + Sync,
) -> u32 {
    let (mut free, mut attacked) = (Vec::new(), 0.0_f64);
    for round in 1..=ROUNDS_MAX {
        free.push(rate(SLICE));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| attack(&is_over));
            attacked = attacked.max(rate(SLICE));
            is_over.store(true, Ordering::Relaxed);
        });
        free.sort_by(f64::total_cmp);
        if round > 1 && attacked >= KEPT * free[free.len() / 2] {
            return round;
        }
    }
    let free = free[free.len() / 2] / 1e6;
    panic!("{what}: {:.1} of {free:.1} MB/s", attacked / 1e6);
}

/// `count` connections from addresses of their own.
pub fn many(world: &World, count: usize, narrow: Option<Narrow>) -> Vec<RawPeer> {
    let dial = |number: usize| {
        let hello = Hello::new(world.sample.info_hash);
        let [high, low] = u16::try_from(number + 1).unwrap().to_be_bytes();
        let stream = dial_from([127, 2, high, low].into(), world.addr, narrow).unwrap();
        RawPeer::greet(stream, &hello).unwrap()
    };
    (0..count).map(dial).collect()
}
