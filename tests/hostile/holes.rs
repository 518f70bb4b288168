//! Hole punching against whoever would have others dialed or told (HOSTILE.md W17, W18).

use std::net::{SocketAddr, UdpSocket};

use crate::common::{QUIET, World};
use crate::support::Sample;
use crate::support::fake_holder::id_of;
use crate::support::raw_peer::*;

const FLOOD: usize = 400;
/// What one peer may cause at once, and a few that time adds while the test runs.
const ANSWERS_MAX: usize = 16 + 4;
const RENDEZVOUS: u8 = 0;
const CONNECT: u8 = 1;
const ERROR: u8 = 2;
const NOT_CONNECTED: u32 = 2;

fn payload(kind: u8, addr: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(addr) = addr else {
        unreachable!("tests here are about IPv4");
    };
    let port = addr.port().to_be_bytes();
    [&[kind, 0][..], &addr.ip().octets(), &port, &[0; 4]].concat()
}

fn extended(id: u8, payload: &[u8]) -> Vec<u8> {
    message(EXTENDED, &[&[id][..], payload].concat())
}

/// A peer at that address that takes such messages, where it listens, and the id that they go under.
fn join(world: &World, last: u8) -> (RawPeer, SocketAddr, u8) {
    let hello = Hello::new(world.sample.info_hash);
    let mut peer = RawPeer::dial_at([127, 0, 8, last], world.addr, &hello).unwrap();
    let theirs = peer.wait_for(EXTENDED).body;
    let id = id_of(&theirs[1..], "ut_holepunch").expect("it helps");
    peer.send(&extended(0, b"d1:md12:ut_holepunchi6ee1:pi5000ee"));
    (peer, SocketAddr::from(([127, 0, 8, last], 5_000)), id)
}

/// The messages of hole punching that come until it is quiet.
fn heard(peer: &mut RawPeer) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Ok(Some(frame)) = peer.next_within(QUIET) {
        if frame.id == EXTENDED && frame.body[0] == 6 {
            all.push(frame.body[1..].to_vec());
        }
    }
    all
}

#[test]
fn a_flood_of_rendezvous_makes_no_more_messages_than_it_has_and_few_at_all() {
    let mut world = World::seed(Sample::file(1 << 20, 65_536, &[]), &["--no-ipv6"]);
    let (mut asker, asker_at, id) = join(&world, 1);
    let (mut target, target_at, _) = join(&world, 2);
    for _ in 0..FLOOD {
        asker.send(&extended(id, &payload(RENDEZVOUS, target_at)));
    }
    let (to_asker, to_target) = (heard(&mut asker), heard(&mut target));
    assert!((1..=ANSWERS_MAX).contains(&to_asker.len()));
    assert_eq!(to_asker.len(), to_target.len(), "one each");
    assert!(to_asker.iter().all(|it| *it == payload(CONNECT, target_at)));
    assert!(to_target.iter().all(|it| *it == payload(CONNECT, asker_at)));
    world.assert_serves();
}

#[test]
fn nothing_goes_to_addresses_that_are_no_connected_peer() {
    let mut world = World::seed(Sample::file(1 << 20, 65_536, &[]), &["--no-ipv6"]);
    let (mut asker, _, id) = join(&world, 1);
    let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = listener();
    victim.set_read_timeout(Some(QUIET)).unwrap();
    for addr in [victim.local_addr().unwrap(), tcp.local_addr().unwrap()] {
        asker.send(&extended(id, &payload(RENDEZVOUS, addr)));
        let frame = asker.wait_for(EXTENDED);
        let mut expected = payload(ERROR, addr);
        expected.truncate(8);
        expected.extend(NOT_CONNECTED.to_be_bytes());
        assert_eq!(frame.body, [&[6][..], &expected].concat());
    }
    assert!(victim.recv(&mut [0; 2_000]).is_err(), "a datagram");
    assert!(accept_within(&tcp, QUIET).is_none(), "a connection");
    world.assert_serves();
}

#[test]
fn a_relays_word_leads_to_no_machine_of_ours() {
    let world = World::leech(Sample::file(1 << 20, 65_536, &[]), &["--no-ipv6"]);
    let (mut relay, _, id) = join(&world, 1);
    let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
    victim.set_read_timeout(Some(QUIET)).unwrap();
    let there = victim.local_addr().unwrap();
    for _ in 0..FLOOD {
        relay.send(&extended(id, &payload(CONNECT, there)));
    }
    assert!(victim.recv(&mut [0; 2_000]).is_err(), "a datagram");
    // Malformed ones end the connection, unknown ones nothing.
    relay.send(&extended(id, &payload(77, there)));
    relay.send(&message(HAVE_ALL, &[]));
    relay.wait_for(INTERESTED);
    relay.send(&extended(id, &[CONNECT, 0, 127]));
    relay.expect_close("a message that is cut off");
}
