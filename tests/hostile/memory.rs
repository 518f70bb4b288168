//! Memory under attack: bounded for each peer and overall, whatever they send or never read (HOSTILE.md W8).

use std::io::Write;
use std::time::{Duration, Instant};

use crate::common::World;
use crate::rate::{BLOCK, KEPT, PIECE_LENGTH, PIECES, SLICE, Taker, many, seed};
use crate::support::raw_peer::*;

/// What one connection may cost besides the buffers: a request queue, a message that is not whole, what is to be sent.
const PEER_BYTES: u64 = 80 * 1024;
/// What all reads for uploads together may hold.
const READS_BYTES_MAX: u64 = 8 << 20;

/// Memory once the program has come to rest.
pub fn settled_bytes(world: &World) -> u64 {
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

/// Asks for far more than its socket takes, of the pieces that it is offered although choked, or of any.
pub fn ask_for_all(peer: &mut RawPeer) {
    peer.send(&message(HAVE_NONE, &[]));
    peer.send(&message(INTERESTED, &[]));
    let mut pieces = Vec::new();
    while pieces.len() < 3 {
        let frame = peer.next().expect("closed before anything was offered");
        match frame.id {
            ALLOWED_FAST => pieces.push(frame.numbers()[0]),
            UNCHOKE => pieces = vec![1, 2, 3],
            _ => {}
        }
    }
    let mut asks = Vec::new();
    for piece in pieces {
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
    assert!(
        growth <= READS_BYTES_MAX + 300 * PEER_BYTES,
        "{growth} bytes for 300 readers"
    );
    // They hold on for two minutes: a starved peer would see no good slice among these.
    let slices: Vec<f64> = (0..20)
        .map(|_| taker.rate(SLICE))
        .take_while(|rate| *rate < KEPT * free)
        .collect();
    assert!(
        slices.len() < 20,
        "{slices:.0?} of {free:.0} bytes a second"
    );
}

#[test]
fn a_slow_reader_gets_every_byte_right_although_its_sends_stop_and_go_on() {
    for engine in ["mapped", "copy"] {
        let world = seed(&["--send-engine", engine]);
        let narrow = Narrow {
            receive_bytes: 4_096,
            segment_bytes: 536,
        };
        let mut peer = many(&world, 1, Some(narrow)).pop().unwrap();
        peer.get_unchoked();
        let blocks: Vec<(u32, u32)> = (0..PIECES)
            .step_by(8)
            .flat_map(|piece| (0..15).map(move |block| (piece, block * BLOCK + piece)))
            .collect();
        let asks: Vec<u8> = blocks
            .iter()
            .flat_map(|(piece, begin)| request(*piece, *begin, BLOCK))
            .collect();
        peer.send(&asks);
        let content = world.content();
        for (piece, begin) in blocks {
            let frame = peer.wait_for(PIECE);
            let start = (piece * PIECE_LENGTH + begin) as usize;
            let (got_piece, got_begin, payload) = frame.block();
            assert_eq!((got_piece, got_begin), (piece, begin), "{engine}");
            let is_same = payload == &content[start..start + BLOCK as usize];
            assert!(is_same, "{engine}: piece {piece} from {begin}");
        }
    }
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
