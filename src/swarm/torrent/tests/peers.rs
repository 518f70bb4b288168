//! Dials, limits, refusals and replacements.

use std::time::Duration;

use super::world::{CONNECTIONS, Come, World, addr, come, world, world_with};
use crate::base::PeerId;
use crate::swarm::candidates::Source;
use crate::swarm::torrent::{Connected, Refusal, Torrent};

fn dials(w: &mut World) -> Vec<u8> {
    let effects = w.effects();
    let dials = effects.iter().filter_map(|text| text.strip_prefix("dial "));
    let number = |addr: &str| addr.split(['.', ':']).nth(3)?.parse().ok();
    dials.filter_map(number).collect()
}

fn told(w: &mut World, names: std::ops::RangeInclusive<u8>) {
    let addrs: Vec<_> = names.map(addr).collect();
    w.call(|torrent, cx| torrent.on_candidates(Source::Tracker, &addrs, cx));
}

fn dialed(name: u8, have: &str) -> Come<'_> {
    Come {
        is_inbound: false,
        ..come(name, have)
    }
}

#[test]
fn dials_keep_to_credits_and_go_on_when_there_are_more() {
    let mut w = world("..");
    w.credits.dials = 3;
    told(&mut w, 1..=9);
    assert_eq!(dials(&mut w).len(), 3);
    assert_eq!(
        (w.credits.dials, w.credits.connections),
        (0, CONNECTIONS - 3)
    );
    w.pass_secs(1);
    assert!(dials(&mut w).is_empty());
    w.credits.dials = 2;
    w.call(Torrent::on_credits);
    assert_eq!(dials(&mut w).len(), 2);
    w.credits.dials = 10;
    w.pass_secs(1);
    assert_eq!(dials(&mut w).len(), 4, "a look every now and then, too");
}

#[test]
fn a_failed_dial_gives_its_credit_back_and_is_tried_again_later() {
    let mut w = world("..");
    told(&mut w, 1..=1);
    assert_eq!(dials(&mut w), [1]);
    w.call(|torrent, cx| torrent.on_dial_failed(addr(1), cx));
    assert_eq!(w.credits.connections, CONNECTIONS);
    w.pass_secs(10);
    assert!(dials(&mut w).is_empty());
    w.credits.dials = 10;
    w.pass_secs(10);
    assert_eq!(dials(&mut w), [1]);
}

#[test]
fn a_dialed_peer_keeps_the_credit_of_its_dial() {
    let mut w = world("..");
    told(&mut w, 1..=1);
    let a = w.peer(dialed(1, ".."));
    assert_eq!(w.credits.connections, CONNECTIONS - 1);
    w.gone(a);
    assert_eq!(w.credits.connections, CONNECTIONS);
}

#[test]
fn no_more_are_dialed_than_the_torrent_may_have() {
    let mut w = world_with("..", |config| config.peers_max = 4);
    w.peer(come(20, ".."));
    told(&mut w, 1..=9);
    assert_eq!(dials(&mut w).len(), 3);
}

#[test]
fn the_same_peer_and_ourselves_are_refused() {
    let mut w = world("..");
    w.peer(come(1, ".."));
    assert_eq!(w.try_peer(come(1, "")), Err(Refusal::Duplicate));
    let ourselves = Connected {
        addr: addr(7),
        is_inbound: false,
        peer_id: PeerId::new([0xee; 20]),
        reserved: [0; 8],
        is_v2: false,
    };
    told(&mut w, 7..=7);
    dials(&mut w);
    let refused = w.call(|torrent, cx| torrent.on_connected(ourselves, cx));
    assert_eq!(refused, Err(Refusal::Ourselves));
    told(&mut w, 7..=7);
    w.pass_secs(4_000);
    assert!(
        dials(&mut w).is_empty(),
        "our own address is never dialed again"
    );
}

#[test]
fn without_connection_credits_nobody_is_taken_in() {
    let mut w = world("..");
    let used: Vec<_> = (0..CONNECTIONS as u8)
        .map(|name| w.peer(come(name, "..")))
        .collect();
    assert_eq!(w.credits.connections, 0);
    assert_eq!(w.try_peer(come(200, "")), Err(Refusal::Full));
    w.gone(used[0]);
    assert!(w.try_peer(come(200, "")).is_ok());
}

#[test]
fn a_full_torrent_replaces_whoever_is_of_no_use() {
    let mut w = world_with("x.", |config| config.peers_max = 2);
    let useful = w.peer(come(1, ".x"));
    w.peer(come(2, "x."));
    assert_eq!(
        w.try_peer(come(3, "")),
        Err(Refusal::Full),
        "they have just come"
    );
    w.pass_with(&[useful], 31);
    w.effects();
    assert!(w.try_peer(come(3, "")).is_ok());
    assert_eq!(w.closed(), ["close 2 Replaced"]);
    assert_eq!(w.try_peer(come(4, "")), Err(Refusal::Full));
}

/// A peer of one address, whatever its peer id.
fn of_one_place(place: u8, name: u8) -> Connected {
    Connected {
        addr: std::net::SocketAddr::from(([1, 0, 0, place], 30_000 + u16::from(name))),
        is_inbound: true,
        peer_id: PeerId::new([name; 20]),
        reserved: [0; 8],
        is_v2: false,
    }
}

#[test]
fn one_address_cannot_keep_all_places() {
    for max in [CONNECTIONS, 20] {
        // The session's places run out, or the torrent's.
        let mut w = world_with("x.", |config| config.peers_max = max);
        for name in 0..max as u8 {
            let conn = of_one_place(1 + name % 2, name);
            let key = w.call(|torrent, cx| torrent.on_connected(conn, cx));
            w.say(key.unwrap(), "interested");
        }
        w.effects();
        let honest = w.peer(come(200, ".x"));
        assert_eq!(w.closed().len(), 1);
        w.say(honest, "interested");
        w.hear(honest);
        for name in 60..80 {
            let more = of_one_place(1, name);
            let refused = w.call(|torrent, cx| torrent.on_connected(more, cx));
            assert_eq!(refused, Err(Refusal::Full), "that place has its share");
            w.pass_with(&[honest], 1);
        }
        assert!(w.torrent.peers(w.now).iter().any(|peer| peer.key == honest));
    }
}

#[test]
fn idle_strangers_give_way_to_an_address_that_waits_to_be_dialed() {
    let mut w = world_with("..", |config| config.peers_max = 12);
    for name in 0..12 {
        let conn = of_one_place(name, name);
        w.call(|torrent, cx| torrent.on_connected(conn, cx))
            .unwrap();
    }
    told(&mut w, 99..=99);
    assert!(dials(&mut w).is_empty());
    w.pass_secs(45);
    assert_eq!(dials(&mut w), [99]);
}

#[test]
fn a_peer_that_may_take_blocks_and_takes_none_gives_way() {
    let mut w = world_with("xx", |config| config.peers_max = 2);
    let (a, b) = (w.peer(come(1, "..")), w.peer(come(2, "..")));
    for key in [a, b] {
        w.say(key, "interested");
        w.hear(key);
    }
    for _ in 0..61 {
        w.pass_with(&[a, b], 1);
        w.say(b, "request 0:0");
        w.upload_all(b);
    }
    assert!(w.try_peer(come(3, "..")).is_ok());
    assert_eq!(w.closed(), ["close 1 Replaced"]);
}

#[test]
fn two_peers_that_dial_each_other_keep_the_same_connection() {
    // (name, whether its id is greater than ours)
    for (name, theirs_is_greater) in [(0xef, true), (0x01, false)] {
        for comes_first in [true, false] {
            let mut w = world("..");
            told(&mut w, name..=name);
            let mut out = dialed(name, "");
            out.name = name;
            let first = w
                .try_peer(Come {
                    is_inbound: comes_first,
                    ..out
                })
                .unwrap();
            let second = w.try_peer(Come {
                is_inbound: !comes_first,
                ..out
            });
            // The one that stays was dialed by the greater id.
            let keeps_first = comes_first == theirs_is_greater;
            assert_eq!(second.is_err(), keeps_first, "{name} {comes_first}");
            let left = w.torrent.peers(w.now);
            assert_eq!(left.len(), 1);
            assert_eq!(left[0].key == first, keeps_first);
            assert_eq!(left[0].is_inbound, theirs_is_greater);
        }
    }
}

#[test]
fn many_may_come_while_the_replaced_are_still_leaving() {
    let mut w = world_with("x.", |config| config.peers_max = 4);
    for name in 1..=4 {
        w.peer(come(name, "x."));
    }
    w.pass_secs(31);
    for name in 11..=14 {
        // The close of the one before is not executed yet.
        let conn = Connected {
            addr: addr(name),
            is_inbound: true,
            peer_id: PeerId::new([name; 20]),
            reserved: [0; 8],
            is_v2: false,
        };
        let taken = w.call_alone(|torrent, cx| torrent.on_connected(conn, cx));
        assert!(taken.is_ok(), "{name}: {taken:?}");
        w.torrent.check();
    }
    w.call(|_, _| {});
    assert_eq!(w.torrent.peers(w.now).len(), 4);
}

#[test]
fn more_addresses_are_wanted_only_while_something_is_missing() {
    let wishes = |w: &mut World| {
        let effects = w.effects();
        effects.iter().filter(|text| *text == "want_peers").count()
    };
    let mut w = world("..");
    w.pass_secs(1);
    assert_eq!(wishes(&mut w), 1);
    let a = w.peer(come(1, "xx"));
    w.pass_with(&[a], 57);
    assert_eq!(wishes(&mut w), 0, "not more often than once a minute");
    w.say(a, "unchoke");
    w.serve_all(a);
    assert!(w.torrent.is_complete());
    w.effects();
    w.pass_secs(300);
    assert_eq!(wishes(&mut w), 0, "a seed waits for others to come");
}

#[test]
fn a_long_back_off_of_all_addresses_is_a_reason_to_ask_for_more() {
    let mut w = world("..");
    w.pass_secs(61);
    w.effects();
    told(&mut w, 1..=1);
    let mut wishes = 0;
    for _ in 0..600 {
        w.credits.dials = 5;
        w.pass_secs(1);
        for effect in w.effects() {
            if effect.starts_with("dial") {
                w.call(|torrent, cx| torrent.on_dial_failed(addr(1), cx));
            }
            wishes += usize::from(effect == "want_peers");
        }
    }
    assert!(wishes >= 3, "{wishes}");
}

#[test]
fn a_peer_that_was_useful_is_dialed_again_soon() {
    let mut w = world("....");
    told(&mut w, 1..=1);
    let a = w.peer(dialed(1, "xxxx"));
    w.say(a, "unchoke");
    let requests = w.hear_only(a, "request");
    w.block(a, &requests[0]["request ".len()..]).unwrap();
    w.effects();
    w.gone(a);
    w.pass(Duration::from_secs(11));
    assert_eq!(dials(&mut w), [1]);
}
