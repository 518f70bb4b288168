//! The beginning of a connection in the hands of an attacker (HOSTILE.md H1–H3; H4 is in `flood`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::{QUIET, World};
use crate::support::Sample;
use crate::support::program::PATIENCE;
use crate::support::raw_peer::*;

/// The whole handshake must be there by then (HOSTILE.md H1), and a busy machine may be late.
pub const DEADLINE: Duration = Duration::from_secs(10);
pub const SLACK: Duration = Duration::from_secs(3);

fn sample() -> Sample {
    Sample::file(100_000, 16_384, &[])
}

/// Reads until the end; what came before it.
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert!(is_end(error.kind()), "{error}"),
    }
    bytes
}

#[test]
fn an_unfinished_handshake_ends_on_one_deadline_however_the_bytes_drip() {
    let mut world = World::seed(sample(), &[]);
    let hello = Hello::new(world.sample.info_hash).encode();
    let drip = |bytes: Vec<u8>, pause: Duration| {
        let mut stream = TcpStream::connect(world.addr).unwrap();
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
    let none = Duration::ZERO;
    let waiting = [
        ("nothing", drip(Vec::new(), none)),
        ("one byte", drip(hello[..1].to_vec(), none)),
        ("47 bytes", drip(hello[..47].to_vec(), none)),
        ("67 of 68 bytes", drip(hello[..67].to_vec(), none)),
        (
            "a byte a second",
            drip(hello.clone(), Duration::from_secs(1)),
        ),
        (
            "a byte each 250 ms",
            drip(hello.clone(), Duration::from_millis(250)),
        ),
    ];
    for (what, waiting) in waiting {
        let took = waiting.join().unwrap();
        assert!(took >= DEADLINE - SLACK, "{what}: closed after {took:?}");
        assert!(took <= DEADLINE + SLACK, "{what}: closed after {took:?}");
    }
    world.assert_serves();
}

#[test]
fn a_dialed_peer_that_does_not_answer_is_given_up_on_the_same_deadline() {
    let listener = listener();
    let addr = listener.local_addr().unwrap().to_string();
    let _world = World::leech(sample(), &["--peer", &addr]);
    let mut stream = accept_peer(&listener);
    let start = Instant::now();
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs).unwrap();
    stream
        .write_all(&Hello::new([0; 20]).encode()[..20])
        .unwrap();
    read_to_end(&mut stream);
    let took = start.elapsed();
    assert!(
        took >= DEADLINE - SLACK && took <= DEADLINE + SLACK,
        "{took:?}"
    );
}

#[test]
fn a_wrong_protocol_or_torrent_is_closed_without_an_answer() {
    // Where hidden handshakes are taken, any bytes may be the start of one (HOSTILE.md E5).
    let mut world = World::seed(sample(), &["--encryption", "off"]);
    let good = Hello::new(world.sample.info_hash).encode();
    let mut cases = vec![
        ("another torrent", Hello::new([7; 20]).encode()),
        (
            "48 bytes of it",
            Hello::new([7; 20]).encode()[..48].to_vec(),
        ),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00".to_vec()),
        ("zeros", vec![0; 68]),
        ("random first byte", vec![0xc3; 96]),
    ];
    for at in [0, 1, 10, 19] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x20;
        cases.push(("one wrong byte", bytes.clone()));
        cases.push(("nothing behind the wrong byte", bytes[..=at].to_vec()));
    }
    for (what, bytes) in cases {
        let mut stream = TcpStream::connect(world.addr).unwrap();
        let start = Instant::now();
        stream.write_all(&bytes).unwrap();
        assert_eq!(read_to_end(&mut stream), b"", "{what}");
        assert!(start.elapsed() < DEADLINE - SLACK, "{what}: not at once");
    }
    world.assert_serves();
}

#[test]
fn a_dialed_peer_of_another_torrent_is_left() {
    let listener = listener();
    let addr = listener.local_addr().unwrap().to_string();
    let world = World::leech(sample(), &["--peer", &addr]);
    let mut stream = accept_peer(&listener);
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs).unwrap();
    assert_eq!(theirs[28..48], world.sample.info_hash);
    stream.write_all(&Hello::new([7; 20]).encode()).unwrap();
    assert_eq!(read_to_end(&mut stream), b"");
}

#[test]
fn a_connection_to_ourselves_is_closed_and_not_dialed_again() {
    // It cannot know its own port before it is bound: dialing back under its own peer id is what it would see.
    let listener = listener();
    let addr = listener.local_addr().unwrap().to_string();
    let mut world = World::leech(sample(), &["--peer", &addr]);
    let mut stream = accept_peer(&listener);
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs).unwrap();
    stream.write_all(&theirs).unwrap();
    assert_eq!(read_to_end(&mut stream), b"", "closed after the handshake");
    // Peers that the user named are tried again after a second, were it not for this.
    assert!(accept_within(&listener, QUIET * 2).is_none(), "redialed");
    let mut inbound = TcpStream::connect(world.addr).unwrap();
    inbound.write_all(&theirs).unwrap();
    let answer = read_to_end(&mut inbound);
    assert_eq!(answer.len(), 68, "nothing behind its handshake");
    assert!(world.gyre.is_running());
}

#[test]
fn the_second_connection_of_a_peer_id_is_closed_and_the_first_stays() {
    let world = World::seed(sample(), &[]);
    let hello = Hello::new(world.sample.info_hash);
    let mut first = RawPeer::dial_as(world.addr, &hello);
    first.get_unchoked();
    for from in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        let mut second = RawPeer::dial_at(from, world.addr, &hello).unwrap();
        let end = second.next_within(PATIENCE);
        assert_eq!(end, Ok(None), "nothing, not even a bitfield");
    }
    first.fetch(0, 0, 16_384);
}

#[test]
fn a_dialed_duplicate_is_not_dialed_again() {
    let listener = listener();
    let addr = listener.local_addr().unwrap().to_string();
    let sample = sample();
    let hello = Hello::new(sample.info_hash);
    let other = crate::support::raw_peer::listener();
    let other_addr = other.local_addr().unwrap().to_string();
    let _world = World::leech(sample, &["--peer", &addr, "--peer", &other_addr]);
    let mut first = RawPeer::accept(&listener, &hello);
    let mut second = RawPeer::accept(&other, &hello);
    // Whichever came second is closed without a message.
    let is_second_closed = second.closed_within(QUIET).is_some();
    let (kept, dropped) = match is_second_closed {
        true => (&mut first, &other),
        false => (&mut second, &listener),
    };
    kept.send(&message(HAVE_ALL, &[]));
    kept.wait_for(INTERESTED);
    assert!(accept_within(dropped, QUIET * 2).is_none(), "redialed");
}
