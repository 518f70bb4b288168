//! Hole punching (BEP 55): who asks whom, who is told what, and who dials whom.

use std::net::SocketAddr;

use super::world::{Come, World, addr, come, world_with};
use crate::swarm::effects::PeerKey;
use crate::swarm::holepunch::{HOLES_BURST_MAX, PUNCHES_MAX};
use crate::swarm::torrent::{Connected, TorrentConfig};
use crate::wire::extended::Extension;
use crate::wire::message::Message;
use crate::wire::ut_holepunch::{HolepunchError, HolepunchMessage};
use crate::wire::ut_pex::{PexFlags, PexMessage, PexPeer};

use super::exchange::heard;

const PEX: u8 = 12;
const HOLE: u8 = 13;

fn quiet(ours: &str, change: impl FnOnce(&mut TorrentConfig)) -> World {
    world_with(ours, |config| {
        change(config);
    })
}

fn say(w: &mut World, key: PeerKey, id: u8, payload: &[u8]) {
    let message = Message::Extended { id, payload };
    let result = w.call(|torrent, cx| torrent.on_message(key, &message, cx));
    result.unwrap();
}

fn punch(w: &mut World, key: PeerKey, message: HolepunchMessage) {
    say(w, key, Extension::UtHolepunch.our_id(), &message.encode());
}

/// A peer that takes such messages and came over uTP.
fn join(w: &mut World, come: Come<'_>) -> PeerKey {
    let key = w.peer(come);
    w.torrent.on_utp(key);
    let hello = format!("d1:md12:ut_holepunchi{HOLE}e6:ut_pexi{PEX}ee1:pi6881ee");
    say(w, key, 0, hello.as_bytes());
    w.hear(key);
    key
}

/// A relay that we dialed, so that it is nobody's to punch for.
fn relay(w: &mut World, name: u8) -> PeerKey {
    join(
        w,
        Come {
            is_inbound: false,
            ..come(name, "..")
        },
    )
}

fn told(w: &mut World, key: PeerKey) -> Vec<HolepunchMessage> {
    let payloads = heard(w, key, HOLE);
    let read = payloads.iter().map(|it| HolepunchMessage::parse(it));
    read.map(Result::unwrap).collect()
}

fn name(w: &mut World, key: PeerKey, addr: SocketAddr, flags: PexFlags) {
    let message = PexMessage {
        added: vec![PexPeer { addr, flags }],
        dropped: Vec::new(),
    };
    say(w, key, Extension::UtPex.our_id(), &message.encode());
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn punches(w: &mut World) -> Vec<String> {
    let mut effects = w.effects();
    effects.retain(|effect| effect.starts_with("punch"));
    effects
}

#[test]
fn who_told_of_a_peer_that_cannot_be_dialed_is_asked_for_a_rendezvous() {
    let hidden = at("9.9.9.9:5");
    let asked = |flags, change: fn(&mut TorrentConfig)| {
        let mut w = quiet("..", change);
        let (relay, other) = (relay(&mut w, 1), relay(&mut w, 2));
        name(&mut w, relay, hidden, flags);
        assert!(w.effects().contains(&format!("dial {hidden}")));
        assert_eq!(told(&mut w, relay), [], "it is dialed first");
        w.call(|torrent, cx| torrent.on_dial_failed(hidden, cx));
        assert_eq!(told(&mut w, other), [], "who did not tell of it");
        told(&mut w, relay)
    };
    let rendezvous = [HolepunchMessage::Rendezvous(hidden)];
    assert_eq!(asked(PexFlags::HOLEPUNCH, |_| {}), rendezvous);
    assert_eq!(asked(PexFlags::default(), |_| {}), rendezvous);
    assert_eq!(
        asked(PexFlags::REACHABLE, |_| {}),
        [],
        "the other dialed it"
    );
    let off = asked(PexFlags::HOLEPUNCH, |config| config.punches_holes = false);
    assert_eq!(off, []);
}

#[test]
fn a_relay_tells_both_where_the_other_is_and_nobody_else() {
    let mut w = quiet("..", |_| {});
    let (asker, target) = (join(&mut w, come(1, "..")), join(&mut w, come(2, "..")));
    let bystander = join(&mut w, come(3, ".."));
    let seen_at = |w: &World, key| w.torrent.peer_addr(key).unwrap();
    // The port that it told is not the one that its gateway gave it.
    punch(&mut w, asker, HolepunchMessage::Rendezvous(addr(2)));
    assert_ne!(seen_at(&w, target), addr(2));
    let to_asker = HolepunchMessage::Connect(seen_at(&w, target));
    let to_target = HolepunchMessage::Connect(seen_at(&w, asker));
    assert_eq!(told(&mut w, asker), [to_asker]);
    assert_eq!(told(&mut w, target), [to_target]);
    assert_eq!(told(&mut w, bystander), []);
    assert_eq!(punches(&mut w), [""; 0]);
    // The address that it is connected from names it as well.
    let named = HolepunchMessage::Rendezvous(seen_at(&w, target));
    punch(&mut w, asker, named);
    assert_eq!(told(&mut w, asker), [to_asker]);
}

#[test]
fn a_relay_says_why_not_and_sends_nothing_to_anybody_else() {
    let mut w = quiet("..", |_| {});
    let asker = join(&mut w, come(1, ".."));
    let deaf = w.peer(come(2, ".."));
    let deaf_at = w.torrent.peer_addr(deaf).unwrap();
    let own = at("5.6.7.8:7000");
    w.torrent.add_own_addr(own);
    let asker_at = w.torrent.peer_addr(asker).unwrap();
    for (named, error) in [
        (at("9.9.9.9:9"), HolepunchError::NotConnected),
        (deaf_at, HolepunchError::NoSupport),
        (own, HolepunchError::NoSelf),
        (asker_at, HolepunchError::NoSuchPeer),
        (at("9.9.9.9:0"), HolepunchError::NoSuchPeer),
        (at("239.1.1.1:9"), HolepunchError::NoSuchPeer),
        (at("[::]:9"), HolepunchError::NoSuchPeer),
    ] {
        punch(&mut w, asker, HolepunchMessage::Rendezvous(named));
        let expected = HolepunchMessage::Error(named, error);
        assert_eq!(told(&mut w, asker), [expected]);
    }
    assert_eq!(told(&mut w, deaf), []);
    assert!(w.effects().iter().all(|effect| !effect.starts_with("dial")));
}

#[test]
fn who_does_not_take_such_messages_is_not_answered_and_a_private_torrent_has_none() {
    let mut w = quiet("..", |_| {});
    join(&mut w, come(2, ".."));
    let silent = w.peer(come(1, ".."));
    punch(&mut w, silent, HolepunchMessage::Rendezvous(addr(2)));
    punch(&mut w, silent, HolepunchMessage::Connect(at("9.9.9.9:5")));
    assert!(!w.torrent.has_output(silent));
    assert_eq!(punches(&mut w), [""; 0]);
    for change in [
        |config: &mut TorrentConfig| config.is_private = true,
        |config: &mut TorrentConfig| config.exchanges_peers = false,
        |config: &mut TorrentConfig| config.punches_holes = false,
    ] {
        let mut w = quiet("..", change);
        let asker = join(&mut w, come(1, ".."));
        let target = join(&mut w, come(2, ".."));
        punch(&mut w, asker, HolepunchMessage::Rendezvous(addr(2)));
        punch(&mut w, asker, HolepunchMessage::Connect(at("9.9.9.9:5")));
        assert_eq!(told(&mut w, asker), []);
        assert_eq!(told(&mut w, target), []);
        assert_eq!(punches(&mut w), [""; 0]);
    }
}

#[test]
fn a_flood_of_rendezvous_is_answered_a_few_times_and_a_target_told_as_often() {
    let mut w = quiet("..", |_| {});
    let target = join(&mut w, come(9, ".."));
    let mut to_target = 0;
    for name in 1..=3 {
        let asker = join(&mut w, come(name, ".."));
        for _ in 0..500 {
            punch(&mut w, asker, HolepunchMessage::Rendezvous(addr(9)));
        }
        let to_asker = told(&mut w, asker).len();
        let new = told(&mut w, target).len();
        assert_eq!(to_asker, new, "one for each");
        assert!(to_asker <= HOLES_BURST_MAX as usize);
        to_target += new;
    }
    assert_eq!(
        to_target, HOLES_BURST_MAX as usize,
        "of all askers together"
    );
}

#[test]
fn a_relays_word_is_one_dial_at_once_and_leads_nowhere_else() {
    let mut w = quiet("..", |_| {});
    let relay = relay(&mut w, 1);
    let own = at("5.6.7.8:7000");
    w.torrent.add_own_addr(own);
    for nowhere in [
        own,
        at("127.0.0.1:80"),
        at("10.0.0.1:80"),
        at("192.168.1.1:80"),
        at("169.254.1.1:80"),
        at("224.0.0.251:5353"),
        at("255.255.255.255:9"),
        at("0.0.0.0:9"),
        at("9.9.9.9:0"),
        at("[::1]:9"),
        at("[fe80::1]:9"),
        at("[::ffff:127.0.0.1]:9"),
        addr(1),
    ] {
        punch(&mut w, relay, HolepunchMessage::Connect(nowhere));
        assert_eq!(punches(&mut w), [""; 0], "{nowhere}");
    }
    let there = at("9.9.9.9:5");
    w.pass_secs(60);
    for _ in 0..3 {
        punch(&mut w, relay, HolepunchMessage::Connect(there));
    }
    assert_eq!(punches(&mut w), [format!("punch {there}")]);
    w.call(|torrent, cx| torrent.on_punch_failed(there, cx));
    let stats = w.torrent.stats(w.now);
    assert_eq!(stats.peers_half_open, 0);
    punch(&mut w, relay, HolepunchMessage::Connect(there));
    assert_eq!(punches(&mut w).len(), 1, "again later");
    let conn = Connected {
        addr: there,
        is_inbound: false,
        peer_id: crate::base::PeerId::new([7; 20]),
        reserved: [0, 0, 0, 0, 0, 0x10, 0, 4],
        is_v2: false,
    };
    let key = w.call(|torrent, cx| torrent.on_connected(conn, cx));
    key.unwrap();
    punch(&mut w, relay, HolepunchMessage::Connect(there));
    assert_eq!(punches(&mut w), [""; 0], "it is connected");
}

#[test]
fn a_dial_and_a_punch_to_one_address_give_both_their_places_back() {
    for punch_comes_through in [true, false] {
        let mut w = quiet("..", |_| {});
        let relay = relay(&mut w, 1);
        let there = at("9.9.9.9:5");
        name(&mut w, relay, there, PexFlags::default());
        assert_eq!(w.torrent.stats(w.now).peers_half_open, 1, "it is dialed");
        punch(&mut w, relay, HolepunchMessage::Connect(there));
        assert_eq!(w.torrent.stats(w.now).peers_half_open, 2);
        let conn = Connected {
            addr: there,
            is_inbound: false,
            peer_id: crate::base::PeerId::new([7; 20]),
            reserved: [0, 0, 0, 0, 0, 0x10, 0, 4],
            is_v2: false,
        };
        w.call(|torrent, cx| torrent.on_connected(conn, cx))
            .unwrap();
        w.call(|torrent, cx| match punch_comes_through {
            true => torrent.on_dial_failed(there, cx),
            false => torrent.on_punch_failed(there, cx),
        });
        assert_eq!(w.torrent.stats(w.now).peers_half_open, 0);
    }
}

#[test]
fn a_relay_that_names_address_after_address_is_heard_a_few_times() {
    let mut w = quiet("..", |_| {});
    let relay = relay(&mut w, 1);
    w.credits.dials = 100;
    let mut all = 0;
    for round in 0..7_u8 {
        for last in 0..=255 {
            let there = SocketAddr::from(([9, 9, round, last], 5));
            punch(&mut w, relay, HolepunchMessage::Connect(there));
        }
        let new = punches(&mut w);
        assert!(new.len() <= PUNCHES_MAX);
        all += new.len();
        for text in new {
            let there = at(text.strip_prefix("punch ").unwrap());
            w.call(|torrent, cx| torrent.on_punch_failed(there, cx));
        }
    }
    assert_eq!(all, PUNCHES_MAX, "what came while they ran was spent");
}

#[test]
fn a_hole_is_no_proof_that_others_can_dial_there() {
    let mut w = quiet("..", |_| {});
    let relay = relay(&mut w, 1);
    let there = at("9.9.9.9:5");
    punch(&mut w, relay, HolepunchMessage::Connect(there));
    let conn = Connected {
        addr: there,
        is_inbound: false,
        peer_id: crate::base::PeerId::new([7; 20]),
        reserved: [0, 0, 0, 0, 0, 0x10, 0, 4],
        is_v2: false,
    };
    let key = w
        .call(|torrent, cx| torrent.on_connected(conn, cx))
        .unwrap();
    w.torrent.on_utp(key);
    say(
        &mut w,
        key,
        0,
        format!("d1:md12:ut_holepunchi{HOLE}eee").as_bytes(),
    );
    w.pass_secs(2);
    let payloads = heard(&mut w, relay, PEX);
    let messages = payloads.iter().map(|it| PexMessage::parse(it).unwrap());
    let mut added = messages.flat_map(|message| message.added);
    let flags = added.find(|peer| peer.addr == there).unwrap().flags;
    assert_eq!(flags, PexFlags::UTP.and(PexFlags::HOLEPUNCH));
}
