//! Metadata and peer exchange against whoever abuses them (HOSTILE.md W14, W15). What a search for metadata decides
//! among liars is in `tests/metadata/` under virtual time; here the command itself is asked and told.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use crate::common::{QUIET, World};
use crate::support::fake_holder::{FakeHolder, Holds, id_of, info_of, number, pex_of};
use crate::support::program::PATIENCE;
use crate::support::raw_peer::*;
use crate::support::sample::text;
use crate::support::{Gyre, Sample};

const BLOCK: u32 = 16_384;

fn sample() -> Sample {
    Sample::file(20 * BLOCK as usize, 65_536, &[])
}

/// A download by a link that names these peers.
fn by_link(sample: &Sample, peers: &[SocketAddr], more: &[&str]) -> Gyre {
    let hash: String = sample
        .info_hash
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let peers: String = peers.iter().map(|addr| format!("&x.pe={addr}")).collect();
    let link = format!("magnet:?xt=urn:btih:{hash}{peers}");
    let (out, state) = (text(&sample.dir("out")), text(&sample.dir("state")));
    let arguments = [
        "download", &link, "-o", &out, "--state", &state, "--port", "0",
    ];
    Gyre::start(&[&arguments[..], more].concat())
}

fn seeder(sample: &Sample) -> World {
    let copy = Sample {
        folder: tempfile::tempdir().unwrap(),
        data: sample.data.clone(),
        content: sample.content.clone(),
        torrent: sample.torrent.clone(),
        announce: sample.announce.clone(),
        ..*sample
    };
    World::seed(copy, &[])
}

#[test]
fn metadata_sizes_that_cannot_be_and_peers_that_send_nothing_do_not_end_a_search() {
    let sample = sample();
    let hash = sample.info_hash;
    let mut holders = Vec::new();
    for (at, size) in (70..).zip([0, -1, 1 << 60, (30 << 20) + 1, 30 << 20, 1]) {
        holders.push(FakeHolder::start(at, hash, Holds::Claims(size)));
    }
    holders.push(FakeHolder::start(80, hash, Holds::Silence(300)));
    holders.push(FakeHolder::start(81, hash, Holds::Nothing));
    let seed = seeder(&sample);
    let mut addrs: Vec<SocketAddr> = holders.iter().map(|holder| holder.addr).collect();
    addrs.push(seed.addr);
    let mut gyre = by_link(&sample, &addrs, &[]);
    assert_eq!(gyre.wait_exit(PATIENCE), 0, "{}", gyre.stderr());
    assert!(sample.is_same_in(&sample.dir("out")));
    assert!(gyre.seen().iter().all(|event| event["event"] != "banned"));
}

#[test]
fn peers_that_reject_are_asked_ever_less_and_memory_stays_small() {
    let sample = sample();
    let rejecters =
        [82, 83, 84].map(|at| FakeHolder::start(at, sample.info_hash, Holds::Rejects(30 << 20)));
    let addrs = rejecters.each_ref().map(|holder| holder.addr);
    let mut gyre = by_link(&sample, &addrs, &["--give-up", "12s"]);
    gyre.wait_for("a search", |event| {
        event["metadata_total_bytes"] == 30 << 20
    });
    let before = gyre.anonymous_bytes();
    for _ in 0..8 {
        gyre.event("progress");
    }
    let grown = gyre.anonymous_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    assert_eq!(gyre.wait_exit(PATIENCE), 1);
    for rejecter in &rejecters {
        let asked = rejecter.requests();
        assert!((1..=8 * 4).contains(&asked), "{asked} requests in 12 s");
    }
}

#[test]
fn wrong_metadata_is_never_taken_and_is_told_when_there_is_no_other() {
    let sample = sample();
    let mut wrong = info_of(&std::fs::read(&sample.torrent).unwrap());
    wrong[20] ^= 1;
    let liars =
        [85, 86].map(|at| FakeHolder::start(at, sample.info_hash, Holds::Metadata(wrong.clone())));
    let addrs = liars.each_ref().map(|holder| holder.addr);
    let mut gyre = by_link(&sample, &addrs, &["--give-up", "5s"]);
    assert_eq!(gyre.wait_exit(PATIENCE), 1);
    let last = gyre.seen().iter().rfind(|event| event["event"] == "error");
    let message = last.unwrap()["message"].as_str().unwrap();
    assert!(message.contains("is not it"), "{message}");
    assert!(gyre.seen().iter().all(|event| event["event"] != "metadata"));
    for liar in &liars {
        // One piece a copy: together, and alone, not again and again.
        let asked = liar.requests();
        assert!(asked <= 6, "{asked} requests to a liar");
    }
}

/// The id under which the other side takes metadata messages, and its extension handshake.
fn hello_of(peer: &mut RawPeer) -> Vec<u8> {
    let frame = peer.wait_for(EXTENDED);
    assert_eq!(frame.body[0], 0);
    frame.body[1..].to_vec()
}

fn extended(id: u8, payload: &[u8]) -> Vec<u8> {
    message(EXTENDED, &[&[id][..], payload].concat())
}

#[test]
fn metadata_is_served_as_it_is_and_floods_of_requests_are_rejected() {
    let sample = Sample::file(2_000_000, 1 << 14, &[]);
    let info = info_of(&std::fs::read(&sample.torrent).unwrap());
    let mut world = World::seed(sample, &[]);
    let mut peer = world.peer();
    let hello = hello_of(&mut peer);
    let id = id_of(&hello, "ut_metadata").expect("it serves metadata");
    assert_eq!(number(&hello, "metadata_size"), info.len());
    peer.send(&extended(0, b"d1:md11:ut_metadatai9eee"));
    let ask = |piece: u64| extended(id, format!("d8:msg_typei0e5:piecei{piece}ee").as_bytes());
    let pieces = info.len().div_ceil(16_384) as u64;
    let (mut served, mut rejected) = (Vec::new(), 0);
    let mut answer = |peer: &mut RawPeer, served: &mut Vec<u8>| {
        let frame = peer.wait_for(EXTENDED);
        assert_eq!(frame.body[0], 9);
        match number(&frame.body[1..], "msg_type") {
            1 => {
                let end = frame.body.windows(2).position(|two| two == b"ee").unwrap() + 2;
                served.extend(&frame.body[end..]);
            }
            _ => rejected += 1,
        }
    };
    for piece in 0..pieces {
        peer.send(&ask(piece));
        answer(&mut peer, &mut served);
    }
    assert!(served == info, "other bytes");
    // Outside, and then far more than anybody needs.
    for piece in [pieces, 1_919] {
        peer.send(&ask(piece));
        answer(&mut peer, &mut served);
    }
    let mut more = Vec::new();
    for _ in 0..500 {
        peer.send(&ask(0));
        answer(&mut peer, &mut more);
    }
    assert!(rejected > 400, "{rejected} rejects");
    drop(peer);
    // One that asks and does not read costs its own queue.
    let mut deaf = world.peer();
    hello_of(&mut deaf);
    deaf.send(&extended(0, b"d1:md11:ut_metadatai9eee"));
    let before = world.gyre.anonymous_bytes();
    deaf.send(&ask(0).repeat(20_000));
    world.assert_serves();
    let grown = world.gyre.anonymous_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
}

#[test]
fn of_what_peers_tell_fifty_addresses_a_message_and_a_message_a_minute_are_taken() {
    let world = World::leech(sample(), &["--no-ipv6"]);
    // One socket answers for every address of the loopback network.
    let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = everywhere.local_addr().unwrap().port();
    let addrs = |third: u8| {
        let each = (1..=120).map(|last| SocketAddr::from(([127, 9, third, last], port)));
        each.collect::<Vec<_>>()
    };
    let mut peer = world.peer();
    let id = id_of(&hello_of(&mut peer), "ut_pex").expect("it takes peers");
    peer.send(&extended(0, b"d1:md6:ut_pexi1eee"));
    for third in 1..=20 {
        peer.send(&extended(id, &pex_of(&addrs(third))));
    }
    let mut dialed = BTreeSet::new();
    while let Some(stream) = accept_within(&everywhere, QUIET) {
        dialed.insert(stream.local_addr().unwrap());
    }
    assert_eq!(dialed.len(), 100, "two messages of fifty");
    assert!(
        dialed
            .iter()
            .all(|addr| addrs(1)[..50].contains(addr) || addrs(2)[..50].contains(addr))
    );
    // Addresses without a port, its own, and malformed messages change nothing.
    let mut other = world.peer();
    let own = world.addr;
    let odd = [
        own,
        SocketAddr::from(([127, 0, 0, 9], 0)),
        SocketAddr::from(([0, 0, 0, 0], 5)),
    ];
    other.send(&extended(id, &pex_of(&odd)));
    peer.send(&message(HAVE_ALL, &[]));
    peer.wait_for(INTERESTED);
    let mut broken = world.peer();
    broken.send(&extended(id, b"i1e"));
    broken.expect_close("peer exchange that is no dictionary");
}

#[test]
fn without_peer_exchange_nobody_is_told_or_believed() {
    let world = World::leech(sample(), &["--no-pex"]);
    let decoy = listener();
    let mut peer = world.peer();
    let hello = hello_of(&mut peer);
    assert_eq!(id_of(&hello, "ut_pex"), None);
    peer.send(&extended(0, b"d1:md6:ut_pexi1eee"));
    let told = pex_of(&[decoy.local_addr().unwrap()]);
    peer.send(&extended(1, &told));
    assert!(accept_within(&decoy, QUIET).is_none(), "it was dialed");
    peer.send(&message(HAVE_ALL, &[]));
    peer.wait_for(INTERESTED);
}

#[test]
fn peers_are_told_of_each_other_once_and_never_of_themselves() {
    let world = World::seed(sample(), &[]);
    let join = |last: u8, port: u16| {
        let hello = Hello::new(world.sample.info_hash);
        let mut peer = RawPeer::dial_at([127, 0, 7, last], world.addr, &hello).unwrap();
        hello_of(&mut peer);
        peer.send(&extended(
            0,
            format!("d1:md6:ut_pexi5ee1:pi{port}ee").as_bytes(),
        ));
        peer
    };
    let told = |peer: &mut RawPeer| {
        let frame = peer.wait_for(EXTENDED);
        assert_eq!(frame.body[0], 5, "peer exchange");
        let key = b"5:added";
        let at = frame.body.windows(key.len()).position(|part| part == key);
        let digits = &frame.body[at.expect("somebody") + key.len()..];
        let colon = digits.iter().position(|byte| *byte == b':').unwrap();
        let length: usize = std::str::from_utf8(&digits[..colon])
            .unwrap()
            .parse()
            .unwrap();
        digits[colon + 1..colon + 1 + length].to_vec()
    };
    let (mut first, mut second) = (join(1, 1001), join(2, 1002));
    assert_eq!(told(&mut first), [127, 0, 7, 2, 3, 0xea]);
    assert_eq!(told(&mut second), [127, 0, 7, 1, 3, 0xe9]);
    // The next comes a minute later.
    let _third = join(3, 1003);
    let next = first.next_within(Duration::from_secs(3));
    assert!(next.is_err(), "{next:?}");
    let mut fourth = join(4, 1004);
    assert_eq!(told(&mut fourth).len(), 3 * 6);
    let mut rest = [0; 1];
    let _ = fourth.stream.set_nonblocking(true);
    assert!(fourth.stream.read(&mut rest).is_err(), "nothing more");
}
