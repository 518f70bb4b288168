//! A thousand peers at once, and a hundred thousand one after the other: what they take is given back (HOSTILE.md H1,
//! H4, W1).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use crate::common::World;
use crate::memory::settled_bytes;
use crate::rate::{BLOCK, many, seed};
use crate::support::raw_peer::*;

const CROWD: usize = 1_000;
/// What an unfinished message may cost.
const PEER_BYTES: u64 = 64 * 1024;
/// Descriptors that may come and go for reasons of the program's own.
const FILES_SLACK: usize = 5;
/// When the descriptors of a crowd must be back.
const FILES_WITHIN: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: usize = 40;
const CYCLES: u32 = 100_000;

fn raise_own_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// A seeder that has served somebody: its files are open.
fn warm(more: &[&str]) -> World {
    raise_own_limit();
    let mut world = seed(more);
    world.assert_serves();
    world
}

/// Waits until each of these has ended, and tells how long after `starts` each did.
fn ends(streams: &[&TcpStream], starts: &[Instant], limit: Duration) -> Vec<Duration> {
    for stream in streams {
        stream.set_nonblocking(true).unwrap();
    }
    let until = Instant::now() + limit;
    let mut took: Vec<Option<Duration>> = vec![None; streams.len()];
    let mut buffer = vec![0; 65_536];
    loop {
        for ((stream, start), took) in streams.iter().zip(starts).zip(&mut took) {
            let mut stream = *stream;
            while took.is_none() {
                match stream.read(&mut buffer) {
                    Ok(0) => *took = Some(start.elapsed()),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => *took = Some(start.elapsed()),
                }
            }
        }
        if let Some(all) = took.iter().copied().collect() {
            return all;
        }
        let left = took.iter().filter(|took| took.is_none()).count();
        assert!(Instant::now() < until, "{left} are still open");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn assert_files_come_back(world: &World, before: usize) {
    let start = Instant::now();
    while world.gyre.open_files().abs_diff(before) > FILES_SLACK {
        let now = world.gyre.open_files();
        assert!(
            start.elapsed() < FILES_WITHIN,
            "{now} files, {before} at first"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("files back after {:?}", start.elapsed());
}

#[test]
fn a_thousand_huge_length_prefixes_are_closed_within_a_second_and_take_little_memory() {
    let mut world = warm(&["--max-peers", "1100"]);
    let files = world.gyre.open_files();
    let before = settled_bytes(&world);
    let mut peers = many(&world, CROWD, None);
    let lengths = [u32::MAX, 1 << 31, (1 << 20) + 1, 0x0100_0000];
    let mut starts = Vec::new();
    let mut most = world.gyre.anonymous_bytes();
    for (peer, length) in peers.iter_mut().zip(lengths.iter().cycle()) {
        starts.push(Instant::now());
        peer.send(&length.to_be_bytes());
        if starts.len() % 50 == 0 {
            most = most.max(world.gyre.anonymous_bytes());
        }
    }
    let streams: Vec<&TcpStream> = peers.iter().map(|peer| &peer.stream).collect();
    let took = ends(&streams, &starts, Duration::from_secs(30));
    let growth = most
        .max(world.gyre.anonymous_bytes())
        .saturating_sub(before);
    let slowest = took.iter().max().unwrap();
    println!(
        "{CROWD} peers: the last closed after {slowest:?}, {} bytes a peer",
        growth / CROWD as u64
    );
    assert!(*slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(growth <= PEER_BYTES * CROWD as u64, "{growth} bytes");
    drop(peers);
    assert_files_come_back(&world, files);
    world.assert_serves();
}

#[test]
fn a_thousand_silent_handshakes_are_closed_within_twelve_seconds() {
    let mut world = warm(&[]);
    let files = world.gyre.open_files();
    let hello = Hello::new(world.sample.info_hash).encode();
    let mut streams = Vec::new();
    let mut starts = Vec::new();
    for number in 0..CROWD {
        let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
        starts.push(Instant::now());
        let mut stream = dial_from([127, 6, high, low].into(), world.addr, None).unwrap();
        // Silent from the start, after the first byte, or before the last.
        let said = [0, 1, 67][number % 3];
        let _ = stream.write_all(&hello[..said]);
        streams.push(stream);
    }
    let all: Vec<&TcpStream> = streams.iter().collect();
    let took = ends(&all, &starts, Duration::from_secs(30));
    let slowest = took.iter().max().unwrap();
    println!("{CROWD} silent: the last closed after {slowest:?}");
    assert!(*slowest <= Duration::from_secs(12), "{slowest:?}");
    // Those who never close cost nothing either.
    assert_files_come_back(&world, files);
    drop(streams);
    world.assert_serves();
}

/// One connection that comes and goes; how far it gets and how it ends differ from number to number.
fn come_and_go(to: SocketAddr, info_hash: [u8; 20], number: u32) {
    let [_, high, middle, low] = number.to_be_bytes();
    let from = [127, 7 + high, middle, 1 + low % 250];
    let Ok(mut stream) = dial_from(from.into(), to, None) else {
        return;
    };
    if number.is_multiple_of(2) {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    }
    let hello = Hello::new(info_hash).encode();
    let said = match number % 8 {
        0 | 1 => return,
        2 | 3 => hello[..40].to_vec(),
        4 => hello,
        5 => [hello, message(INTERESTED, &[]), numbers(HAVE, &[1])].concat(),
        6 => [
            hello,
            message(HAVE_NONE, &[]),
            message(INTERESTED, &[]),
            request(0, 0, BLOCK),
        ]
        .concat(),
        _ => [hello, [0, 0, 0, 13, REQUEST, 0, 0].to_vec()].concat(),
    };
    let _ = stream.write_all(&said);
    // Half of those that shake hands wait until they are taken in.
    if number % 16 >= 12 {
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let _ = stream.read(&mut [0; 200]);
    }
}

fn churn(world: &World, numbers: std::ops::Range<u32>) {
    let (to, info_hash) = (world.addr, world.sample.info_hash);
    for number in numbers {
        come_and_go(to, info_hash, number);
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let limit = CONNECTIONS_MAX.to_string();
    let mut world = warm(&["--max-peers", &limit]);
    churn(&world, 0..1_000);
    std::thread::sleep(Duration::from_secs(1));
    let (files, before) = (world.gyre.open_files(), settled_bytes(&world));
    let start = Instant::now();
    churn(&world, 1_000..1_000 + CYCLES);
    let took = start.elapsed();
    assert_files_come_back(&world, files);
    let growth = settled_bytes(&world).saturating_sub(before);
    println!("{CYCLES} connections in {took:.1?}: {growth} bytes more");
    assert!(growth <= 16 << 20, "{growth} bytes more");
    // Every place is free again: as many as may be are there at once.
    let mut peers = many(&world, CONNECTIONS_MAX, None);
    for peer in &mut peers {
        peer.send(&message(INTERESTED, &[]));
        assert!(peer.next().is_some(), "no place for all");
    }
    for peer in &mut peers {
        let quiet = peer.closed_within(Duration::from_millis(20));
        assert_eq!(quiet, None, "somebody had to go");
    }
    drop(peers);
    world.assert_serves();
}
