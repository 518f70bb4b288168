//! The first messages, interest, and what is told about our own pieces.

use super::world::{Come, come, plain, world, world_with};
use crate::base::Now;
use crate::wire::extended::ExtensionHandshake;
use crate::wire::message::Message;

#[test]
fn the_greeting_follows_from_our_pieces_and_the_extensions_agreed_on() {
    let greeting = |ours: &str, peer: Come<'_>| {
        let mut w = world(ours);
        let key = w.try_peer(peer).unwrap();
        w.hear(key)
    };
    assert_eq!(greeting("xxx", come(1, "")), ["have_all", "extended"]);
    assert_eq!(greeting("...", come(1, "")), ["have_none", "extended"]);
    assert_eq!(greeting("x.x", come(1, "")), ["bitfield x.x", "extended"]);
    assert_eq!(greeting("xxx", plain(1, "")), ["bitfield xxx"]);
    assert_eq!(greeting("x..", plain(1, "")), ["bitfield x.."]);
    assert!(greeting("...", plain(1, "")).is_empty());
}

#[test]
fn the_extension_handshake_says_port_queue_address_and_upload_only() {
    let handshake = |ours: &str, fetches: bool| {
        let mut w = world_with(ours, |config| config.fetches = fetches);
        let key = w.try_peer(come(9, "")).unwrap();
        let mut bytes = Vec::new();
        w.call(|torrent, cx| torrent.take_messages(key, &mut bytes, 65_536, cx));
        let at = bytes.windows(2).position(|pair| pair == [20, 0]).unwrap();
        ExtensionHandshake::parse(&bytes[at + 2..]).unwrap()
    };
    let leech = handshake("x..", true);
    assert_eq!(leech.listen_port, Some(7000));
    assert_eq!(leech.reqq, Some(512));
    assert_eq!(leech.your_ip, Some([1, 0, 0, 9].into()));
    assert_eq!(leech.upload_only, None);
    assert!(leech.client.unwrap().starts_with("Gyre "));
    assert_eq!(handshake("xxx", true).upload_only, Some(true));
    assert_eq!(handshake("x..", false).upload_only, Some(true));
}

#[test]
fn interest_is_told_when_it_changes_and_only_then() {
    let mut w = world("x..");
    let a = w.peer(come(1, "x.."));
    assert!(w.hear(a).is_empty(), "it has nothing new");
    w.say(a, "have 1");
    w.say(a, "have 2");
    assert_eq!(w.hear(a), ["interested"]);
    w.say(a, "unchoke");
    w.serve_all(a);
    w.pass_secs(1);
    assert_eq!(w.drawing(), "xxx");
    let mut heard = w.hear(a);
    heard.retain(|text| text.contains("interested"));
    assert!(
        heard.is_empty(),
        "was told with the last requests: {heard:?}"
    );
    assert!(!w.torrent.peers(w.now)[0].am_interested);
}

#[test]
fn a_seed_is_never_interested() {
    let mut w = world_with("x..", |config| config.fetches = false);
    let a = w.peer(come(1, "xxx"));
    w.say(a, "unchoke");
    assert!(w.hear(a).is_empty());
}

#[test]
fn haves_go_only_to_peers_that_lack_the_piece() {
    let mut w = world("....");
    let full = w.unchoking(come(1, "xxxx"));
    let empty = w.peer(come(2, "...."));
    let some = w.peer(come(3, "xx.."));
    w.serve_all(full);
    w.pass_secs(1);
    assert_eq!(w.drawing(), "xxxx");
    let mut told = w.hear_only(empty, "have");
    told.sort();
    assert_eq!(told, ["have 0", "have 1", "have 2", "have 3"]);
    let mut told = w.hear_only(some, "have");
    told.sort();
    assert_eq!(told, ["have 2", "have 3"]);
    assert!(w.hear_only(full, "have").is_empty());
}

#[test]
fn haves_that_come_fast_are_told_in_batches() {
    let mut w = world(&".".repeat(40));
    let full = w.unchoking(come(1, &"x".repeat(40)));
    let empty = w.peer(come(2, ""));
    w.wakes();
    w.serve_all(full);
    let wakes = w.wakes().iter().filter(|key| **key == empty).count();
    assert!(wakes <= 1, "{wakes} wake-ups within 160 ms");
    w.hear(empty);
    w.pass_secs(1);
    let woken = w.wakes().contains(&empty);
    assert!(woken || w.hear_only(empty, "have").is_empty());
}

#[test]
fn a_peer_that_comes_later_gets_the_bitfield_and_no_old_haves() {
    let mut w = world("..");
    let full = w.unchoking(come(1, "xx"));
    w.serve_all(full);
    let late = w.try_peer(come(2, "")).unwrap();
    assert_eq!(w.hear(late), ["have_all", "extended"]);
}

#[test]
fn upload_only_is_told_when_we_are_done_and_when_we_are_not_any_more() {
    let mut w = world("x.");
    let a = w.unchoking(come(1, "xx"));
    let b = w.peer(come(2, "x."));
    let mute = w.peer(plain(3, "x."));
    w.shake(b, 100, 0, false);
    w.serve_all(a);
    assert_eq!(w.hear_only(b, "upload_only"), ["upload_only 1"]);
    assert_eq!(w.hear(mute), ["have 1"]);
    w.call(|torrent, cx| torrent.on_pieces_lost(&[super::world::piece(0)], cx));
    assert_eq!(w.hear(b), ["donthave 0", "interested", "upload_only 0"]);
    assert_eq!(w.hear(mute), ["interested"], "it speaks no extension");
}

#[test]
fn a_lost_piece_is_asked_for_again_and_told_again() {
    let mut w = world("xx");
    let a = w.peer(come(1, "xx"));
    w.shake(a, 100, 0, false);
    w.say(a, "unchoke");
    w.call(|torrent, cx| torrent.on_pieces_lost(&[super::world::piece(1)], cx));
    assert!(!w.torrent.is_complete());
    assert_eq!(w.serve_all(a), ["1:0", "1:1", "1:2", "1:3"]);
    assert!(w.torrent.is_complete());
    let b = w.peer(come(2, "x."));
    w.say(b, "donthave 0");
    assert_eq!(
        w.hear(b),
        ["have 0"],
        "it has forgotten ours too, as far as we know"
    );
}

#[test]
fn a_lost_piece_that_is_put_back_is_offered_again_and_not_fetched() {
    let mut w = world("xx");
    let lost = [super::world::piece(1)];
    w.call(|torrent, cx| torrent.on_pieces_lost(&lost, cx));
    let b = w.peer(plain(2, ".."));
    assert_eq!(w.hear(b)[0], "bitfield x.");
    w.call(|torrent, cx| torrent.on_pieces_found(&lost, cx));
    assert!(w.torrent.is_complete());
    assert_eq!(w.hear_only(b, "have"), ["have 1"]);
    let a = w.unchoking(come(1, "xx"));
    assert!(w.serve_all(a).is_empty());
    // What is had, or was fetched meanwhile, is nothing new.
    w.call(|torrent, cx| torrent.on_pieces_found(&lost, cx));
    assert!(w.hear_only(b, "have").is_empty());
}

#[test]
fn a_peer_that_loses_a_piece_is_not_asked_for_it() {
    let mut w = world("..");
    let a = w.peer(come(1, "xx"));
    w.say(a, "donthave 0");
    w.say(a, "unchoke");
    assert_eq!(w.serve_all(a), ["1:0", "1:1", "1:2", "1:3"]);
    w.say(a, "have 0");
    assert_eq!(w.serve_all(a), ["0:0", "0:1", "0:2", "0:3"]);
}

#[test]
fn without_rejects_a_lost_piece_takes_its_requests_with_it() {
    let mut w = world("..");
    let a = w.unchoking(Come {
        is_extended: true,
        ..plain(1, "xx")
    });
    assert_eq!(w.hear_only(a, "request").len(), 8);
    w.say(a, "donthave 1");
    let mut cancelled = w.hear_only(a, "cancel");
    cancelled.sort();
    assert_eq!(
        cancelled,
        ["cancel 1:0", "cancel 1:1", "cancel 1:2", "cancel 1:3"]
    );
}

#[test]
fn keep_alives_are_sent_into_long_silence() {
    let mut w = world("x.");
    let a = w.peer(come(1, ""));
    w.hear(a);
    let mut sent = 0;
    for _ in 0..240 {
        w.pass_secs(1);
        w.call(|torrent, cx| torrent.on_message(a, &Message::KeepAlive, cx))
            .unwrap();
        sent += w.hear_only(a, "keep_alive").len();
    }
    assert_eq!(sent, 2, "one in a hundred seconds or so");
    assert!(w.now > Now::from_secs(1_200));
}
