//! What comes to the UDP port that must not hurt: floods with forged sources' look, and garbage (HOSTILE.md D2).

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::World;
use crate::rate::{PIECE_LENGTH, PIECES, SLICE, Taker, assert_keeps_its_rate};
use crate::support::{Gyre, Sample, program, sample::text};

/// Datagrams of a flood in a second.
const FLOOD_PER_S: u64 = 100_000;

/// A seeder whose DHT node takes part in a DHT of its own.
fn seed() -> World {
    let sample = Sample::file((PIECES * PIECE_LENGTH) as usize, PIECE_LENGTH, &[]);
    let mut command = program::command();
    command.env_remove("GYRE_NO_DHT");
    command.args([
        "seed",
        &text(&sample.torrent),
        "--data",
        &text(&sample.data),
    ]);
    command.args(["--dht-bootstrap", "127.0.0.1:1", "--port", "0", "--json"]);
    command.args([
        "--bind",
        "127.0.0.1",
        "--state",
        &text(&sample.dir("state")),
    ]);
    let mut gyre = Gyre::spawn(command);
    let addr = gyre.listening();
    gyre.event("dht");
    World { sample, gyre, addr }
}

/// Sends these datagrams in turn from many sockets, so many a second; how many went out.
fn flood(to: SocketAddr, datagrams: &[Vec<u8>], is_over: &AtomicBool) -> u64 {
    let bind = |last: u8| UdpSocket::bind((Ipv4Addr::new(127, 3, 3, last), 0)).unwrap();
    let sockets: Vec<UdpSocket> = (1..=50).map(bind).collect();
    let (start, mut sent) = (Instant::now(), 0);
    while !is_over.load(Ordering::Relaxed) {
        for socket in &sockets {
            for datagram in datagrams {
                sent += u64::from(socket.send_to(datagram, to).is_ok());
            }
        }
        let due = Duration::from_secs_f64(sent as f64 / FLOOD_PER_S as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    sent
}

#[test]
fn a_flood_of_datagrams_takes_neither_memory_nor_anybodys_rate() {
    let world = seed();
    let taker = Taker::start(&world);
    taker.rate(SLICE);
    let query = |method: &str, more: &str| {
        format!(
            "d1:ad2:id20:abcdefghij0123456789{more}e1:q{}:{method}1:t2:aa1:y1:qe",
            method.len()
        )
        .into_bytes()
    };
    let target = "6:target20:mnopqrstuvwxyz123456";
    let hash = "9:info_hash20:mnopqrstuvwxyz123456";
    let answer = b"d1:rd2:id20:abcdefghij0123456789e1:t4:aaaa1:y1:re".to_vec();
    let connect = [0x41; 20].to_vec();
    let floods = [
        (
            "queries",
            vec![
                query("find_node", target),
                query("get_peers", hash),
                query("ping", ""),
            ],
        ),
        (
            "garbage",
            vec![
                b"d".repeat(1_400),
                b"l".repeat(100),
                vec![0xff; 500],
                Vec::new(),
            ],
        ),
        ("answers", vec![answer]),
        ("uTP", vec![connect]),
    ];
    let before = world.gyre.anonymous_bytes();
    for (what, datagrams) in floods {
        let sent = AtomicU64::new(0);
        assert_keeps_its_rate(
            |during| taker.rate(during),
            what,
            |is_over| {
                sent.fetch_add(flood(world.addr, &datagrams, is_over), Ordering::Relaxed);
            },
        );
        assert!(sent.into_inner() > 5_000, "{what}: no flood");
    }
    let grown = world.gyre.anonymous_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    // It is still there for those who ask civilly.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut buf = [0; 1_500];
    let is_there = (0..40).any(|_| {
        socket.send_to(&query("ping", ""), world.addr).unwrap();
        socket
            .recv(&mut buf)
            .is_ok_and(|length| buf[..length].ends_with(b"1:y1:re"))
    });
    assert!(is_there, "no answer after the floods");
}
