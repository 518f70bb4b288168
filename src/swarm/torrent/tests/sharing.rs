//! What keeps a first seeder from sending everything several times: first copies first, and requests that move.

use std::time::Duration;

use super::world::{World, come, shown, world};
use crate::swarm::effects::{PeerKey, UploadRun};

/// A seed whose line is full: two leechers wait for more than it can send.
fn busy_seed(pieces: usize) -> (World, PeerKey, PeerKey) {
    let mut w = world(&"x".repeat(pieces));
    let none = ".".repeat(pieces);
    let (a, b) = (w.peer(come(1, &none)), w.peer(come(2, &none)));
    for peer in [a, b] {
        w.say(peer, "interested");
        w.hear(peer);
        for number in 0..pieces {
            for block in 0..4 {
                w.say(peer, &format!("request {number}:{block}"));
            }
        }
    }
    // A few slow blocks: the rate is known, and little against what waits.
    for _ in 0..4 {
        let run = w
            .call(|torrent, cx| torrent.next_upload(a, 16_384, cx))
            .unwrap();
        w.pass(Duration::from_millis(700));
        w.call(|torrent, cx| torrent.on_sent(a, &run, cx));
        w.hear(b);
        w.hear(a);
    }
    assert!(w.torrent.claims.is_on());
    (w, a, b)
}

fn first(run: Option<&UploadRun>) -> Option<String> {
    run.map(|run| shown(run.blocks[0]))
}

#[test]
fn while_the_line_is_full_a_piece_goes_to_one_peer_at_a_time() {
    let (mut w, a, b) = busy_seed(3);
    let to_a = w.upload(a);
    assert_eq!(first(to_a.as_ref()), Some("1:0".to_owned()));
    let to_b = w.upload(b);
    let piece_of_b = first(to_b.as_ref()).unwrap();
    assert!(!piece_of_b.starts_with("1:"), "{piece_of_b}");
    w.call(|torrent, cx| torrent.on_sent(b, &to_b.unwrap(), cx));
    // a has all of piece 1 and tells: b may have it from us, too.
    w.call(|torrent, cx| torrent.on_sent(a, &to_a.unwrap(), cx));
    w.say(a, "have 1");
    let mut rest = Vec::new();
    while let Some(run) = w.upload(b) {
        rest.extend(run.blocks.iter().map(|block| shown(*block)));
        w.call(|torrent, cx| torrent.on_sent(b, &run, cx));
    }
    assert!(rest.contains(&"1:0".to_owned()), "{rest:?}");
}

#[test]
fn a_peer_that_waits_for_others_is_served_as_soon_as_the_line_is_idle() {
    let (mut w, a, b) = busy_seed(1);
    // Everything is on its way to a; b wants the same.
    w.say(a, "request 0:0");
    let to_a = w.upload(a).unwrap();
    assert_eq!(w.upload(b), None);
    assert!(!w.torrent.has_output(b));
    w.wakes();
    w.call(|torrent, cx| torrent.on_sent(a, &to_a, cx));
    assert!(w.wakes().contains(&b));
    assert_eq!(w.upload_all(b).len(), 4);
}

#[test]
fn a_peer_that_waits_is_not_kept_waiting_by_one_that_takes_nothing() {
    let (mut w, a, b) = busy_seed(1);
    w.say(a, "request 0:0");
    w.upload(a).unwrap();
    assert_eq!(w.upload(b), None);
    let mut seconds = 0;
    while w.upload(b).is_none() {
        seconds += 1;
        assert!(seconds <= 12, "still waits");
        w.pass_with(&[a, b], 1);
    }
}

#[test]
fn nobody_waits_while_the_line_is_fast() {
    let mut w = world("xxx");
    let (a, b) = (w.peer(come(1, "...")), w.peer(come(2, "...")));
    for peer in [a, b] {
        w.say(peer, "interested");
        w.hear(peer);
    }
    for round in 0..3_000 {
        for peer in [a, b] {
            for block in 0..4 {
                w.say(peer, &format!("request {}:{block}", round % 3));
            }
            assert_eq!(w.upload_all(peer).len(), 4);
        }
        w.pass(Duration::from_millis(1));
    }
    assert!(!w.torrent.claims.is_on());
}

#[test]
fn a_have_moves_requests_from_a_slow_seed_to_whoever_has_the_piece_now() {
    let pieces = 20;
    let mut w = world(&".".repeat(pieces));
    let seed = w.peer(come(1, &"x".repeat(pieces)));
    w.say(seed, "unchoke");
    let mut queue: Vec<String> = w.hear_only(seed, "request");
    // 40 kB/s: what it was asked for will take seconds.
    for _ in 0..5 {
        w.pass(Duration::from_millis(400));
        let block = queue.remove(0)["request ".len()..].to_owned();
        w.block(seed, &block).unwrap();
        queue.extend(w.hear_only(seed, "request"));
    }
    let last = queue.last().unwrap()["request ".len()..].to_owned();
    let number = last.split(':').next().unwrap().to_owned();
    let leech = w.unchoking(come(2, &".".repeat(pieces)));
    w.say(leech, &format!("have {number}"));
    let moved = w.hear_only(leech, "request");
    assert!(moved.contains(&format!("request {last}")), "{moved:?}");
    let cancelled = w.hear_only(seed, "cancel");
    assert!(
        cancelled.contains(&format!("cancel {last}")),
        "{cancelled:?}"
    );
    assert!(
        moved
            .iter()
            .all(|text| text[8..].starts_with(&format!("{number}:")))
    );
}

#[test]
fn nothing_moves_to_a_peer_that_would_not_be_quicker() {
    let pieces = 200;
    let mut w = world(&".".repeat(pieces));
    let quick = w.unchoking(come(1, &"x".repeat(pieces)));
    let mut queue = w.hear_only(quick, "request");
    for _ in 0..600 {
        w.pass(Duration::from_millis(1));
        let block = queue.remove(0)["request ".len()..].to_owned();
        w.block(quick, &block).unwrap();
        queue.extend(w.hear_only(quick, "request"));
    }
    let last = queue.last().unwrap()["request ".len()..].to_owned();
    let other = w.unchoking(come(2, &".".repeat(pieces)));
    w.say(other, &format!("have {}", last.split(':').next().unwrap()));
    assert!(w.hear_only(quick, "cancel").is_empty());
}
