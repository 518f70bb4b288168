//! Breaches of the protocol and floods: what is borne, what ends a connection, and that others do not notice.

use std::time::Duration;

use super::world::{Come, come, plain, world, world_with};
use crate::swarm::candidates::Source;
use crate::swarm::peer::{PeerFault, UNREQUESTED_MAX};
use crate::swarm::torrent::Placement;
use crate::wire::message::Message;

#[test]
fn a_later_bitfield_adds_pieces_and_takes_none_away() {
    let mut w = world("...");
    let a = w.peer(come(1, "x.."));
    w.say(a, "bitfield xx.");
    assert_eq!(w.torrent.peers(w.now)[0].pieces_have, 2);
    assert_eq!(
        w.try_say(a, "bitfield .x."),
        Err(PeerFault::BitfieldShrinks)
    );
    let b = w.peer(come(2, ""));
    w.say(b, "unchoke");
    w.say(b, "have_all");
    let c = w.peer(come(3, ""));
    w.shake(c, 10, 0, false);
    w.say(c, "keep_alive");
    w.say(c, "have_all");
    assert_eq!(w.torrent.peers(w.now)[2].pieces_have, 3);
}

#[test]
fn bitfields_of_a_wrong_size_or_with_spare_bits_end_the_connection() {
    let mut w = world("...");
    let mut fault = |name, bytes: &'static [u8]| {
        let a = w.peer(come(name, ""));
        w.call(|torrent, cx| torrent.on_message(a, &Message::Bitfield { bytes }, cx))
            .unwrap_err()
    };
    let length = PeerFault::BitfieldLength {
        expected_bytes: 1,
        got_bytes: 2,
    };
    assert_eq!(fault(1, &[0, 0]), length);
    assert_eq!(fault(2, &[0b0001_0000]), PeerFault::BitfieldSpareBits);
    assert!(matches!(fault(3, &[]), PeerFault::BitfieldLength { .. }));
}

#[test]
fn pieces_outside_of_the_torrent_end_the_connection() {
    for text in [
        "have 3",
        "suggest 3",
        "allowed_fast 4294967295",
        "donthave 3",
    ] {
        let mut w = world("...");
        let a = w.peer(come(1, ""));
        let fault = w.try_say(a, text);
        assert!(
            matches!(fault, Err(PeerFault::PieceOutOfRange { .. })),
            "{text}"
        );
    }
}

#[test]
fn messages_of_an_extension_not_agreed_on_end_the_connection() {
    for text in [
        "have_all",
        "have_none",
        "suggest 0",
        "allowed_fast 0",
        "reject 0:0",
    ] {
        let mut w = world("...");
        let a = w.peer(plain(1, ""));
        let fault = w.try_say(a, text);
        assert!(
            matches!(fault, Err(PeerFault::FastNotAgreed { .. })),
            "{text}"
        );
    }
    let mut w = world("...");
    let a = w.peer(Come {
        is_fast: true,
        ..plain(1, "")
    });
    assert_eq!(
        w.try_say(a, "extended de"),
        Err(PeerFault::BadExtended { id: 0 })
    );
    let b = w.peer(come(2, ""));
    assert_eq!(
        w.try_say(b, "extended le"),
        Err(PeerFault::BadExtended { id: 0 })
    );
}

#[test]
fn after_a_fault_nothing_more_is_heard_of_the_peer_and_its_requests_are_free() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    let b = w.unchoking(come(2, "xx"));
    w.try_say(a, "have 9").unwrap_err();
    w.say(a, "unchoke");
    assert!(w.hear(a).is_empty());
    assert_eq!(w.block(a, "0:0"), Ok(Placement::Scratch));
    w.pass_secs(1);
    assert_eq!(w.serve_all(b).len(), 8);
    w.gone(a);
}

#[test]
fn unknown_messages_are_ignored() {
    let mut w = world("..");
    let a = w.peer(come(1, "xx"));
    w.say(a, "unknown");
    w.say(a, "suggest 1");
    assert_eq!(w.torrent.peers(w.now).len(), 1);
}

#[test]
fn blocks_never_requested_are_thrown_away_and_then_too_many() {
    let mut w = world(&".".repeat(100));
    let a = w.peer(come(1, &"x".repeat(100)));
    for number in 0..UNREQUESTED_MAX {
        let placement = w.block(a, &format!("{number}:0"));
        assert_eq!(placement, Ok(Placement::Scratch));
    }
    assert_eq!(w.torrent.stats(w.now).downloaded_bytes, 0);
    let fault = w.block(a, "99:0");
    assert!(matches!(fault, Err(PeerFault::TooManyUnrequested { .. })));
}

#[test]
fn a_block_of_the_wrong_size_is_not_the_block() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    let mut header = w.raw("0:0");
    header.length = 100;
    let placement = w.call(|torrent, cx| torrent.on_piece_header(a, header, cx));
    assert_eq!(placement, Ok(Placement::Scratch));
    w.call(|torrent, cx| torrent.on_block_discarded(a, header, cx));
    assert!(matches!(w.block(a, "0:0"), Ok(Placement::Store(_))));
}

#[test]
fn rejects_of_nothing_are_counted() {
    let mut w = world("..");
    let a = w.peer(come(1, "xx"));
    for _ in 0..300 {
        w.say(a, "reject 0:0");
    }
    let fault = w.try_say(a, "reject 0:0");
    assert!(matches!(fault, Err(PeerFault::TooManyStrayRejects { .. })));
}

#[test]
fn floods_of_anything_end_the_connection_within_a_second() {
    for flood in [
        &["choke", "unchoke"][..],
        &["interested", "not_interested"],
        &["cancel 0:0"],
        &["have 0"],
        &["keep_alive"],
        &["unknown"],
        &["suggest 0"],
        &["allowed_fast 0"],
        &["upload_only 1"],
        &["donthave 0", "have 0"],
    ] {
        let mut w = world("..");
        let a = w.peer(come(1, "xx"));
        let b = w.unchoking(come(2, "xx"));
        let mut sent = 0;
        let fault = 'flood: loop {
            for text in flood {
                sent += 1;
                assert!(sent < 10_000, "{flood:?} is borne");
                if let Err(fault) = w.try_say(a, text) {
                    break 'flood fault;
                }
                w.now = w.now + Duration::from_micros(10);
            }
        };
        assert!(
            matches!(fault, PeerFault::Flood { .. }),
            "{flood:?}: {fault}"
        );
        w.pass_secs(1);
        w.serve_all(b);
        assert!(w.torrent.is_complete(), "{flood:?} does not hurt others");
    }
}

#[test]
fn as_many_messages_spread_over_time_are_borne() {
    let mut w = world("..");
    let a = w.peer(come(1, "xx"));
    for _ in 0..10_000 {
        w.say(a, "cancel 0:0");
        w.now = w.now + Duration::from_millis(1);
    }
}

#[test]
fn choke_flapping_costs_no_requests() {
    let mut w = world(&".".repeat(50));
    let a = w.unchoking(come(1, &"x".repeat(50)));
    let mut requests = w.hear_only(a, "request").len();
    for _ in 0..500 {
        w.say(a, "choke");
        w.say(a, "unchoke");
        w.now = w.now + Duration::from_millis(1);
        requests += w.hear_only(a, "request").len();
    }
    assert!(requests <= 32, "{requests} requests");
    w.pass_secs(2);
    assert!(
        !w.hear_only(a, "request").is_empty(),
        "when it has made up its mind"
    );
}

#[test]
fn answers_to_a_peer_that_never_reads_are_bounded_whatever_causes_them() {
    let mut w = world(&".".repeat(200));
    let a = w.unchoking(come(1, &"x".repeat(200)));
    w.hear(a);
    for round in 0..200_000u32 {
        let text = match round % 2 {
            0 => "choke",
            _ => "unchoke",
        };
        if w.try_say(a, text).is_err() || w.torrent.peers(w.now).is_empty() {
            break;
        }
        w.pass(Duration::from_millis(600));
        let outbox = w.torrent.peers.get(a.0).map_or(0, |peer| peer.outbox.len());
        assert!(outbox <= 70_000, "{outbox} bytes wait");
    }
    assert!(
        w.torrent.peers(w.now).is_empty(),
        "a writer that never comes is given up"
    );
}

#[test]
fn ever_new_ports_of_one_peer_do_not_fill_the_address_book() {
    let mut w = world_with("..", |config| config.peers_max = 1);
    let a = w.peer(come(1, ".."));
    for port in 1_000..1_200 {
        w.shake(a, 100, port, false);
        w.now = w.now + Duration::from_millis(10);
    }
    assert_eq!(w.torrent.stats(w.now).peers_known, 1);
}

#[test]
fn a_peer_that_dialed_us_is_not_dialed_while_it_is_connected() {
    let mut w = world("..");
    let a = w.peer(come(1, ".."));
    w.shake(a, 100, 6881, false);
    let addr = super::world::addr(1);
    w.call(|torrent, cx| torrent.on_candidates(Source::Tracker, &[addr], cx));
    w.pass_with(&[a], 600);
    let dials = |effects: Vec<String>| effects.iter().filter(|e| e.starts_with("dial")).count();
    assert_eq!(dials(w.effects()), 0);
    w.gone(a);
    w.pass_secs(60);
    assert_eq!(dials(w.effects()), 1, "but afterwards it is");
}

#[test]
fn a_peer_tells_its_dht_node_once_and_of_a_private_torrent_never() {
    let mut w = world_with("...", |config| config.dht_port = Some(7_000));
    let a = w.dht_peer(1);
    assert_eq!(w.hear_only(a, "port"), ["port 7000"]);
    for port in [6881, 6882, 6883] {
        w.say(a, &format!("port {port}"));
    }
    assert_eq!(w.effects(), ["dht_node 1.0.0.1:6881"]);
    // Who did not say that it has a node is told nothing, and not asked.
    let b = w.try_peer(come(2, "")).unwrap();
    w.say(b, "port 6881");
    assert_eq!(w.hear_only(b, "port"), [""; 0]);
    let c = w.dht_peer(3);
    w.say(c, "port 0");
    assert_eq!(w.effects(), [""; 0]);
    let mut private = world_with("...", |config| config.is_private = true);
    let a = private.dht_peer(1);
    private.say(a, "port 6881");
    assert_eq!(private.hear_only(a, "port"), [""; 0]);
    assert_eq!(private.effects(), [""; 0]);
    let flood = (0..10_000).find_map(|_| w.try_say(c, "port 6881").err());
    assert!(matches!(flood, Some(PeerFault::Flood { .. })), "{flood:?}");
}
