//! Which blocks are asked for, how many at a time, and what becomes of requests that are not answered.

use std::time::Duration;

use super::world::{come, piece, plain, world, world_with};
use crate::base::BLOCK_BYTES;
use crate::swarm::peer::WITHHELD_FOR;
use crate::swarm::torrent::Placement;

fn count(texts: &[String], word: &str) -> usize {
    let is_word = |text: &&String| text.split(' ').next() == Some(word);
    texts.iter().filter(is_word).count()
}

#[test]
fn nothing_is_requested_while_choked() {
    let mut w = world("..");
    let a = w.peer(come(1, "xx"));
    w.pass_secs(20);
    assert!(w.hear_only(a, "request").is_empty());
    w.say(a, "unchoke");
    assert_eq!(w.hear_only(a, "request").len(), 8);
}

#[test]
fn the_pipeline_starts_small_doubles_and_keeps_to_the_peers_reqq() {
    let drawing = "x".repeat(200);
    let mut w = world(&".".repeat(200));
    let a = w.peer(come(1, &drawing));
    w.shake(a, 40, 0, false);
    w.say(a, "unchoke");
    let first = w.hear_only(a, "request");
    assert_eq!(first.len(), 16);
    for request in &first {
        w.now = w.now + Duration::from_millis(1);
        w.block(a, &request["request ".len()..]).unwrap();
    }
    assert_eq!(w.hear_only(a, "request").len(), 32, "twice as many");
    let outstanding = |w: &super::world::World| w.torrent.peers(w.now)[0].requests_out;
    assert_eq!(outstanding(&w), 32);
    w.serve_all(a);
    let mut most = 0;
    let b = w.peer(come(2, &drawing));
    w.shake(b, 40, 0, false);
    w.say(b, "unchoke");
    while let Some(request) = w.hear_only(b, "request").first() {
        most = most.max(outstanding(&w));
        w.now = w.now + Duration::from_millis(1);
        w.block(b, &request["request ".len()..]).unwrap();
    }
    assert!(most <= 40, "the peer bears 40, {most} were sent");
}

#[test]
fn a_choke_gives_the_requests_to_others() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    assert_eq!(w.hear_only(a, "request").len(), 8);
    let b = w.unchoking(come(2, "xx"));
    let before = w.hear_only(b, "request");
    w.say(a, "choke");
    w.pass_secs(1);
    let after = w.hear_only(b, "request");
    assert_eq!(before.len() + after.len(), 8, "{before:?} {after:?}");
    assert!(w.hear_only(a, "cancel").is_empty(), "a choke says it all");
}

#[test]
fn a_block_that_comes_after_the_choke_is_still_taken() {
    for peer in [come(1, "."), plain(1, ".")] {
        let mut w = world(".");
        let a = w.unchoking(super::world::Come { have: "x", ..peer });
        w.hear(a);
        w.say(a, "choke");
        let placement = w.block(a, "0:2").unwrap();
        assert!(matches!(placement, Placement::Store(_)));
        assert_eq!(w.torrent.stats(w.now).wasted_bytes, 0);
    }
}

#[test]
fn a_reject_moves_the_piece_to_another_peer_and_is_not_answered_by_the_same_request() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    let b = w.peer(come(2, "xx"));
    w.say(a, "reject 0:0");
    let heard = w.hear(a);
    assert_eq!(
        count(&heard, "cancel"),
        3,
        "the rest of the piece: {heard:?}"
    );
    assert_eq!(count(&heard, "request"), 0, "{heard:?}");
    w.say(b, "unchoke");
    let requests = w.hear_only(b, "request");
    assert_eq!(
        requests
            .iter()
            .filter(|r| r.starts_with("request 0:"))
            .count(),
        4
    );
}

#[test]
fn a_refused_piece_is_asked_for_again_after_a_while() {
    let mut w = world(".");
    let a = w.unchoking(come(1, "x"));
    assert_eq!(w.hear_only(a, "request").len(), 4);
    for block in ["0:0", "0:1", "0:2", "0:3"] {
        w.say(a, &format!("reject {block}"));
    }
    w.pass_with(&[a], WITHHELD_FOR.as_secs() - 5);
    assert_eq!(w.torrent.peers(w.now)[0].requests_out, 0);
    w.pass_secs(7);
    assert_eq!(
        w.hear_only(a, "request").len(),
        4,
        "its disk may be well again"
    );
    assert_eq!(
        w.torrent.peers(w.now)[0].pieces_have,
        1,
        "it never lost the piece"
    );
}

#[test]
fn a_peer_that_refuses_everything_is_left_in_peace() {
    let pieces = 100;
    let mut w = world(&".".repeat(pieces));
    let a = w.unchoking(come(1, &"x".repeat(pieces)));
    let mut requests = 0;
    for _ in 0..600 {
        for request in w.hear_only(a, "request") {
            requests += 1;
            w.say(a, &format!("reject {}", &request["request ".len()..]));
        }
        w.pass(Duration::from_millis(100));
    }
    assert!(requests <= 200, "{requests} requests in a minute");
}

#[test]
fn the_reject_of_a_cancelled_request_does_not_hit_the_new_one() {
    let mut w = world(".");
    let a = w.unchoking(come(1, "x"));
    w.hear(a);
    let b = w.unchoking(come(2, "x"));
    w.pass_secs(1);
    w.hear(b);
    // The block comes from b, a's request is cancelled; then the write fails and a is asked again.
    w.is_disk_slow = true;
    w.block(b, "0:3").unwrap();
    assert_eq!(w.hear_only(a, "cancel"), ["cancel 0:3"]);
    for block in ["0:0", "0:1", "0:2"] {
        w.block(a, block).unwrap();
    }
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), true, cx));
    w.call(|torrent, cx| torrent.on_piece_write_failed(piece(0), cx));
    w.pass_secs(1);
    let requests = w.hear_only(a, "request").len() + w.hear_only(b, "request").len();
    assert!(requests >= 4);
    w.say(a, "reject 0:3");
    let stats = &w.torrent.peers(w.now)[0];
    assert!(
        stats.requests_out > 0,
        "the answer to the cancel took the new request with it"
    );
}

#[test]
fn partial_pieces_come_before_new_ones() {
    let mut w = world("....");
    let a = w.unchoking(come(1, "xxxx"));
    w.shake(a, 2, 0, false);
    let requests = w.hear_only(a, "request");
    let begun = requests[0][8..9].to_owned();
    w.gone(a);
    let b = w.peer(come(2, "xxxx"));
    w.shake(b, 4, 0, false);
    w.say(b, "unchoke");
    for request in w.hear_only(b, "request") {
        assert_eq!(
            request[8..9],
            begun,
            "the piece that was begun is finished first"
        );
    }
}

#[test]
fn the_first_pieces_are_random_and_later_ones_rare() {
    let mut firsts = std::collections::BTreeSet::new();
    for seed in 0..12 {
        let mut w = world_with(&".".repeat(64), |config| config.seed = seed);
        // Only the last piece is rare.
        w.peer(come(8, &format!("{}.", "x".repeat(63))));
        let a = w.peer(come(1, &"x".repeat(64)));
        w.shake(a, 4, 0, false);
        w.say(a, "unchoke");
        firsts.insert(w.hear_only(a, "request")[0].clone());
    }
    assert!(firsts.len() > 3, "{firsts:?}");
    let ours = format!("xxxxx{}", ".".repeat(59));
    let mut w = world(&ours);
    w.peer(come(8, &format!("{}.", "x".repeat(63))));
    let a = w.peer(come(1, &"x".repeat(64)));
    w.say(a, "unchoke");
    assert!(w.hear_only(a, "request")[0].starts_with("request 63:"));
}

#[test]
fn sequential_takes_pieces_in_order_whoever_sends() {
    let mut w = world_with("......", |config| config.is_sequential = true);
    let a = w.peer(come(1, "xxxxxx"));
    w.shake(a, 4, 0, false);
    w.say(a, "unchoke");
    let b = w.peer(come(2, "xxxxxx"));
    w.shake(b, 4, 0, false);
    w.say(b, "unchoke");
    let numbers = |texts: Vec<String>| -> Vec<String> {
        texts.iter().map(|text| text[8..9].to_owned()).collect()
    };
    assert_eq!(numbers(w.hear_only(a, "request")), ["0"; 4]);
    assert_eq!(numbers(w.hear_only(b, "request")), ["1"; 4]);
}

#[test]
fn a_piece_to_be_fetched_alone_is_not_forgotten_in_order() {
    let mut w = world_with("..", |config| config.is_sequential = true);
    let a = w.unchoking(come(1, "xx"));
    let b = w.unchoking(come(2, "xx"));
    w.hear(a);
    w.hear(b);
    w.is_disk_slow = true;
    for (peer, block) in [(a, "0:0"), (b, "0:1"), (a, "0:2"), (a, "0:3")] {
        let _ = w.block(peer, block);
    }
    // Bad, from two sources: fetched alone now, by a peer that then leaves.
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    w.call(|torrent, cx| torrent.on_block_digests(piece(0), Some(vec![1, 2, 3, 4]), cx));
    w.is_disk_slow = false;
    w.pass_secs(1);
    w.gone(a);
    w.pass_secs(1);
    let c = w.unchoking(come(3, "xx"));
    w.gone(b);
    w.pass_secs(4);
    w.serve_all(c);
    assert_eq!(w.torrent.pieces.active_count(), 0);
    assert_eq!(w.drawing(), "xx");
}

#[test]
fn allowed_fast_pieces_are_fetched_while_choked() {
    let mut w = world("....");
    let a = w.peer(come(1, "xxx."));
    w.say(a, "allowed_fast 1");
    w.say(a, "allowed_fast 3");
    let requests = w.hear_only(a, "request");
    assert_eq!(
        requests,
        ["request 1:0", "request 1:1", "request 1:2", "request 1:3"]
    );
    w.say(a, "unchoke");
    w.say(a, "choke");
    let owed = w.torrent.peers(w.now)[0].requests_out;
    assert_eq!(owed, 4, "a choke leaves those alone");
    w.say(a, "reject 1:0");
    assert_eq!(
        w.torrent.peers(w.now)[0].requests_out,
        0,
        "it does not keep its word"
    );
    w.pass_with(&[a], 100);
    assert!(w.hear_only(a, "request").is_empty());
}

#[test]
fn a_block_from_one_peer_is_cancelled_at_the_other() {
    let mut w = world(".");
    let a = w.unchoking(come(1, "x"));
    w.hear(a);
    let b = w.unchoking(come(2, "x"));
    w.pass_secs(1);
    let twice = w.hear_only(b, "request");
    assert!(
        !twice.is_empty(),
        "endgame: the last blocks are asked for twice"
    );
    let block = twice[0]["request ".len()..].to_owned();
    w.block(b, &block).unwrap();
    assert_eq!(w.hear_only(a, "cancel"), [format!("cancel {block}")]);
    let placement = w.block(a, &block).unwrap();
    assert_eq!(placement, Placement::Scratch, "it crossed the cancel");
    assert_eq!(w.torrent.stats(w.now).wasted_bytes, u64::from(BLOCK_BYTES));
}

#[test]
fn the_last_blocks_are_asked_for_twice_only_once_they_are_late() {
    let mut w = world(".");
    let a = w.unchoking(come(1, "x"));
    w.hear(a);
    let b = w.unchoking(come(2, "x"));
    w.pass(std::time::Duration::from_millis(800));
    assert!(
        w.hear_only(b, "request").is_empty(),
        "the first has hardly had the time to answer"
    );
    w.pass(std::time::Duration::from_millis(600));
    assert!(!w.hear_only(b, "request").is_empty());
}

#[test]
fn endgame_begins_only_when_everything_was_asked_for() {
    let mut w = world("......");
    let a = w.peer(come(1, "xxxxxx"));
    w.shake(a, 8, 0, false);
    w.say(a, "unchoke");
    let b = w.peer(come(2, "xxxxxx"));
    w.shake(b, 8, 0, false);
    w.say(b, "unchoke");
    let mut all = w.hear_only(a, "request");
    all.extend(w.hear_only(b, "request"));
    let before = all.len();
    all.sort();
    all.dedup();
    assert_eq!((before, all.len()), (16, 16), "no block twice");
}

#[test]
fn no_block_is_asked_of_a_third_peer_before_the_two_had_time_to_answer() {
    let mut w = world(".");
    let peers = [1, 2, 3, 4].map(|name| w.unchoking(come(name, "x")));
    w.pass_secs(1);
    let mut all = Vec::new();
    for peer in peers {
        all.extend(w.hear_only(peer, "request"));
    }
    for block in ["0:0", "0:1", "0:2", "0:3"] {
        let asked = all.iter().filter(|text| text.ends_with(block)).count();
        assert!(asked <= 2, "{block} was asked for {asked} times");
    }
}

#[test]
fn requests_wait_in_the_core_until_the_writer_comes() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    assert!(w.torrent.has_output(a));
    w.say(a, "choke");
    w.say(a, "unchoke");
    w.pass_secs(2);
    let heard = w.hear(a);
    assert_eq!(count(&heard, "request"), 8, "{heard:?}");
    assert_eq!(
        count(&heard, "cancel"),
        0,
        "what was never sent is not cancelled"
    );
}

#[test]
fn a_discard_under_way_does_not_swallow_a_block_of_the_next_try() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    w.is_disk_slow = true;
    let first = w.raw("0:0");
    // One large receive: the piece is given up, opened again, and a block for it follows at once.
    let placement = w.call_alone(|torrent, cx| {
        torrent
            .pieces
            .set_phase(piece(0), crate::swarm::pieces::Phase::Fetching);
        torrent.on_piece_write_failed(piece(0), cx);
        assert!(
            torrent
                .pieces
                .opened_at(piece(0))
                .is_none_or(|at| at == cx.now)
        );
        torrent.on_piece_header(a, first, cx)
    });
    assert_eq!(placement, Ok(Placement::Scratch));
}
