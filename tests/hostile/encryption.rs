//! Message Stream Encryption in the hands of an attacker (HOSTILE.md E1–E8).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gyre::base::InfoHash;
use gyre::wire::mse::{Initiator, Payloads, RANDOM_BYTES, Random};

use crate::common::World;
use crate::handshake::{DEADLINE, SLACK, read_to_end};
use crate::memory::settled_bytes;
use crate::rate::{BLOCK, PIECE_LENGTH, PIECES, SLICE, Taker, assert_keeps_its_rate, seed};
use crate::support::Sample;
use crate::support::program::PATIENCE;
use crate::support::raw_peer::*;

/// A public key, and the longest pad behind it.
const KEY_BYTES: usize = 96;
const PAD_BYTES_MAX: usize = 512;

fn sample() -> Sample {
    Sample::file(100_000, 16_384, &[])
}

/// Secrets need not be secret here.
fn initiator(info_hash: [u8; 20], initial: &[u8]) -> Initiator {
    let random = Random::new([5; RANDOM_BYTES]);
    Initiator::new(InfoHash::new(info_hash), Payloads::Both, initial, random)
}

fn dial(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends the key, waits for theirs and gives what an initiator would say then.
fn exchange(stream: &mut TcpStream, initiator: &mut Initiator) -> Vec<u8> {
    stream.write_all(&initiator.take_out()).unwrap();
    let mut key = [0; KEY_BYTES];
    stream.read_exact(&mut key).unwrap();
    assert!(!initiator.feed(&key).unwrap());
    initiator.take_out()
}

/// Closed long before the deadline; what came until then.
#[track_caller]
fn closed_at_once(stream: &mut TcpStream, what: &str) -> Vec<u8> {
    let start = Instant::now();
    let got = read_to_end(stream);
    assert!(start.elapsed() < DEADLINE - SLACK, "{what}: not at once");
    got
}

#[test]
fn a_key_that_gives_the_secret_away_is_closed_without_an_answer() {
    let mut world = World::seed(sample(), &[]);
    let mut one = [0; KEY_BYTES];
    one[KEY_BYTES - 1] = 1;
    for (what, key) in [
        ("0", [0; KEY_BYTES]),
        ("1", one),
        ("2^768 - 1", [0xff; KEY_BYTES]),
    ] {
        let mut stream = dial(&world);
        stream.write_all(&key).unwrap();
        assert_eq!(closed_at_once(&mut stream, what), b"", "{what}");
    }
    world.assert_serves();
}

#[test]
fn bytes_that_never_synchronise_are_closed_at_the_bound() {
    let mut world = World::seed(sample(), &[]);
    let mut stream = dial(&world);
    exchange(&mut stream, &mut initiator(world.sample.info_hash, b""));
    // Our own pad may have been shorter than the longest: what is missing of it and of a hash, and no more.
    let bytes = vec![1; PAD_BYTES_MAX + 20];
    stream.write_all(&bytes).unwrap();
    let got = closed_at_once(&mut stream, "no hash");
    assert!(
        got.len() <= PAD_BYTES_MAX,
        "{} bytes behind the key",
        got.len()
    );
    world.assert_serves();
}

#[test]
fn a_hidden_handshake_for_another_torrent_learns_no_more_than_a_key() {
    let mut world = World::seed(sample(), &[]);
    let mut stream = dial(&world);
    let hello = Hello::new([7; 20]).encode();
    let said = exchange(&mut stream, &mut initiator([7; 20], &hello));
    stream.write_all(&said).unwrap();
    let got = closed_at_once(&mut stream, "another torrent");
    assert!(
        got.len() <= PAD_BYTES_MAX,
        "{} bytes behind the key",
        got.len()
    );
    // One torrent by its hash, another inside: that is no torrent either.
    let mut stream = dial(&world);
    let said = exchange(&mut stream, &mut initiator(world.sample.info_hash, &hello));
    stream.write_all(&said).unwrap();
    closed_at_once(&mut stream, "another torrent inside");
    world.assert_serves();
}

#[test]
fn wrong_fields_of_a_hidden_handshake_close() {
    let mut world = World::seed(sample(), &[]);
    let hello = Hello::new(world.sample.info_hash).encode();
    // The cipher is a mask: what is changed of its bytes is changed of what they say. Behind two hashes: VC, what is
    // taken, the length of the pad.
    let cases: [(&str, usize, &[u8]); 4] = [
        ("the constant", 40, &[0x80]),
        ("no payload", 51, &[3]),
        ("payloads nobody knows", 51, &[3 ^ 0xf0]),
        ("a pad of 32 KiB", 52, &[0x80]),
    ];
    for (what, at, change) in cases {
        let mut stream = dial(&world);
        let mut said = exchange(&mut stream, &mut initiator(world.sample.info_hash, &hello));
        said[at..]
            .iter_mut()
            .zip(change)
            .for_each(|(byte, change)| *byte ^= change);
        stream.write_all(&said).unwrap();
        let got = closed_at_once(&mut stream, what);
        assert!(got.len() <= PAD_BYTES_MAX, "{what}: {} bytes", got.len());
    }
    world.assert_serves();
}

#[test]
fn an_unfinished_hidden_handshake_ends_on_the_deadline_of_all_handshakes() {
    let mut world = World::seed(sample(), &[]);
    let info_hash = world.sample.info_hash;
    let begin = initiator(info_hash, b"").take_out();
    let drip = |bytes: Vec<u8>, pause: Duration| {
        let mut stream = dial(&world);
        let mut writer = stream.try_clone().unwrap();
        let start = Instant::now();
        std::thread::spawn(move || {
            for byte in bytes {
                if writer.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(pause);
            }
        });
        std::thread::spawn(move || {
            read_to_end(&mut stream);
            start.elapsed()
        })
    };
    let mut half = dial(&world);
    let said = exchange(&mut half, &mut initiator(info_hash, b""));
    let half_begun = Instant::now();
    half.write_all(&said[..30]).unwrap();
    let waiting = [
        (
            "what may be anything",
            drip(b"GET / HTTP/1.1\r\n\r\n".to_vec(), Duration::ZERO),
        ),
        (
            "95 of 96 bytes",
            drip(begin[..KEY_BYTES - 1].to_vec(), Duration::ZERO),
        ),
        (
            "a key alone",
            drip(begin[..KEY_BYTES].to_vec(), Duration::ZERO),
        ),
        (
            "a byte each 250 ms",
            drip(begin, Duration::from_millis(250)),
        ),
    ];
    for (what, waiting) in waiting {
        let took = waiting.join().unwrap();
        assert!(took >= DEADLINE - SLACK, "{what}: closed after {took:?}");
        assert!(took <= DEADLINE + SLACK, "{what}: closed after {took:?}");
    }
    read_to_end(&mut half);
    let took = half_begun.elapsed();
    assert!(took <= DEADLINE + SLACK, "half a hash: {took:?}");
    world.assert_serves();
}

#[test]
fn a_handshake_sent_back_to_its_sender_leads_nowhere() {
    let mut world = World::seed(sample(), &[]);
    let mut stream = dial(&world);
    exchange(&mut stream, &mut initiator(world.sample.info_hash, b""));
    let mut echoed = 0;
    let mut part = [0; 4096];
    // Its pad, then nothing more comes that could be sent back: padded with zeros to the bound.
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    while let Ok(got @ 1..) = stream.read(&mut part) {
        stream.write_all(&part[..got]).unwrap();
        echoed += got;
    }
    stream
        .write_all(&vec![0; PAD_BYTES_MAX + 20 - echoed])
        .unwrap();
    closed_at_once(&mut stream, "a responder");
    world.assert_serves();

    // And one that dials: its own key comes back.
    let listener = listener();
    let addr = listener.local_addr().unwrap().to_string();
    let _leech = World::leech(sample(), &["--peer", &addr]);
    let mut stream = accept_within(&listener, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut begin = vec![0; KEY_BYTES];
    stream.read_exact(&mut begin).unwrap();
    stream.write_all(&begin).unwrap();
    closed_at_once(&mut stream, "an initiator");
}

#[test]
fn an_honest_peer_keeps_its_rate_while_strangers_exchange_keys() {
    let world = seed(&[]);
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let begin = initiator(world.sample.info_hash, b"").take_out();
    let begun = AtomicU32::new(0);
    let attack = |is_over: &AtomicBool| {
        let mut last = Vec::new();
        for number in (0..250_u8).cycle() {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            let from = [127, 3, 0, number % 50 + 1].into();
            let Ok(mut stream) = dial_from(from, world.addr, None) else {
                continue;
            };
            begun.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(&begin);
            // Each lives for as long as 200 others take.
            last.push(stream);
            if last.len() > 200 {
                last.remove(0);
            }
        }
    };
    assert_keeps_its_rate(|during| taker.rate(during), "key exchanges", attack);
    assert!(begun.into_inner() > 200, "hardly an attack");
    // Those that are left end with their connections: a newcomer is let in.
    let hello = Hello::new(world.sample.info_hash);
    let mut peer = RawPeer::hide(dial(&world), &hello, Payloads::Rc4Only).unwrap();
    peer.get_unchoked();
}

#[test]
fn a_slow_encrypted_reader_gets_every_byte_right_although_its_sends_stop_and_go_on() {
    let world = seed(&["--encryption", "require"]);
    let narrow = Narrow {
        receive_bytes: 4_096,
        segment_bytes: 536,
    };
    let stream = dial_from([127, 0, 0, 1].into(), world.addr, Some(narrow)).unwrap();
    let hello = Hello::new(world.sample.info_hash);
    let mut peer = RawPeer::hide(stream, &hello, Payloads::Both).unwrap();
    assert!(peer.is_encrypted());
    peer.get_unchoked();
    let blocks: Vec<(u32, u32)> = (0..PIECES)
        .step_by(8)
        .flat_map(|piece| (0..15).map(move |block| (piece, block * BLOCK + piece)))
        .collect();
    let ask = |(piece, begin): &(u32, u32)| request(*piece, *begin, BLOCK);
    let asks: Vec<u8> = blocks.iter().flat_map(ask).collect();
    peer.send(&asks);
    let content = world.content();
    for (piece, begin) in blocks {
        let frame = peer.wait_for(PIECE);
        let start = (piece * PIECE_LENGTH + begin) as usize;
        let (got_piece, got_begin, payload) = frame.block();
        assert_eq!((got_piece, got_begin), (piece, begin));
        let is_same = payload == &content[start..start + BLOCK as usize];
        assert!(is_same, "piece {piece} from {begin}");
    }
}

#[test]
fn encrypted_readers_that_never_read_take_no_more_than_the_memory_for_reads() {
    let mut world = seed(&["--buffers", "8MiB"]);
    let start = settled_bytes(&world);
    let narrow = Narrow {
        receive_bytes: 4_096,
        segment_bytes: 536,
    };
    let mut peers: Vec<RawPeer> = (0..100)
        .map(|number| {
            let hello = Hello::new(world.sample.info_hash);
            let stream = dial_from([127, 4, 0, number + 1].into(), world.addr, Some(narrow));
            RawPeer::hide(stream.unwrap(), &hello, Payloads::Rc4Only).unwrap()
        })
        .collect();
    peers.iter_mut().for_each(crate::memory::ask_for_all);
    let growth = settled_bytes(&world).saturating_sub(start);
    let most = (8 << 20) + 100 * 80 * 1024;
    assert!(growth <= most, "{growth} bytes for 100 readers");
    world.assert_serves();
}

#[test]
fn who_requires_encryption_neither_answers_nor_dials_in_the_open() {
    let listener = listener();
    let addr = listener.local_addr().unwrap().to_string();
    let world = World::leech(sample(), &["--encryption", "require", "--peer", &addr]);
    let mut stream = dial(&world);
    let hello = Hello::new(world.sample.info_hash).encode();
    stream.write_all(&hello[..20]).unwrap();
    assert_eq!(closed_at_once(&mut stream, "in the open"), b"");
    // It offers nothing but RC4, and what it dials again it dials the same way.
    for _ in 0..2 {
        let mut stream = accept_within(&listener, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut first = [0; 20];
        stream.read_exact(&mut first).unwrap();
        assert_ne!(&first, b"\x13BitTorrent protocol");
    }
    // Who takes both gets RC4.
    let hello = Hello::new(world.sample.info_hash);
    let peer = RawPeer::hide(dial(&world), &hello, Payloads::Both).unwrap();
    assert!(peer.is_encrypted());
}
