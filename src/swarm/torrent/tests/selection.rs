//! Wanted pieces that change, pause and resume, stop.

use super::world::{bits, come, piece, world};
use crate::base::BLOCK_BYTES;
use crate::swarm::torrent::Torrent;

#[test]
fn only_wanted_pieces_are_fetched() {
    let mut w = world(".-.");
    let a = w.unchoking(come(1, "xxx"));
    let served = w.serve_all(a);
    assert_eq!(served.len(), 8);
    assert!(served.iter().all(|block| !block.starts_with("1:")));
    assert!(w.torrent.is_complete());
    assert_eq!(w.torrent.stats(w.now).left_bytes, 0);
    assert!(w.effects().contains(&"complete".to_owned()));
}

#[test]
fn new_wishes_are_told_and_fetched() {
    let mut w = world(".--");
    let a = w.unchoking(come(1, "xxx"));
    w.serve_all(a);
    w.effects();
    w.call(|torrent, cx| torrent.select(bits("xx.", "x"), cx));
    assert!(!w.torrent.is_complete());
    let heard = w.hear(a);
    assert_eq!(heard[0], "interested");
    for request in &heard[1..] {
        w.block(a, &request["request ".len()..]).unwrap();
    }
    w.pass_secs(1);
    w.serve_all(a);
    assert_eq!(w.drawing(), "xx-");
    assert!(w.effects().contains(&"complete".to_owned()));
}

#[test]
fn what_is_not_wanted_any_more_gives_its_memory_back() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    w.block(a, "0:0").unwrap();
    w.block(a, "1:0").unwrap();
    let before = w.torrent.stats(w.now);
    assert_eq!(before.assembly_bytes, 8 * u64::from(BLOCK_BYTES));
    w.call(|torrent, cx| torrent.select(bits("x.", "x"), cx));
    let cancelled = w.hear_only(a, "cancel");
    assert_eq!(cancelled, ["cancel 1:1", "cancel 1:2", "cancel 1:3"]);
    let after = w.torrent.stats(w.now);
    assert_eq!(after.assembly_bytes, 4 * u64::from(BLOCK_BYTES));
    assert_eq!(after.wasted_bytes, u64::from(BLOCK_BYTES));
    assert!(w.effects().contains(&"discard 1".to_owned()));
    for block in ["0:1", "0:2", "0:3"] {
        w.block(a, block).unwrap();
    }
    assert!(w.torrent.is_complete());
    assert_eq!(w.torrent.stats(w.now).assembly_bytes, 0);
}

#[test]
fn a_selection_that_is_here_already_completes_at_once() {
    let mut w = world("x.");
    w.call(|torrent, cx| torrent.select(bits("x.", "x"), cx));
    assert_eq!(w.effects(), ["complete"]);
    assert!(w.torrent.is_complete());
}

#[test]
fn a_pause_asks_for_nothing_more_and_serves_on() {
    let mut w = world("x......");
    let a = w.unchoking(come(1, ".xxxxxx"));
    let requests = w.hear_only(a, "request");
    w.say(a, "interested");
    w.hear(a);
    w.call(|torrent, cx| torrent.set_paused(true, cx));
    for request in requests {
        w.block(a, &request["request ".len()..]).unwrap();
    }
    w.pass_with(&[a], 5);
    assert_eq!(w.torrent.peers(w.now)[0].requests_out, 0);
    w.say(a, "request 0:0");
    assert_eq!(w.upload_all(a), ["0:0"]);
    w.call(|torrent, cx| torrent.set_paused(false, cx));
    w.pass_secs(1);
    w.serve_all(a);
    assert!(w.torrent.is_complete());
}

#[test]
fn a_stop_closes_everybody_and_gives_every_credit_back() {
    let mut w = world("....");
    let a = w.unchoking(come(1, "xxxx"));
    w.hear(a);
    w.is_disk_slow = true;
    for block in ["0:0", "0:1", "0:2", "0:3", "1:0"] {
        w.block(a, block).unwrap();
    }
    w.effects();
    w.call(Torrent::stop);
    assert!(w.effects().contains(&"close 1 Stopping".to_owned()));
    // What is whole is still hashed and written.
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), true, cx));
    w.call(|torrent, cx| torrent.on_piece_written(piece(0), cx));
    assert_eq!(w.drawing(), "x...");
    assert_eq!(w.credits.assembly_bytes, w.budget_bytes);
    assert_eq!(w.credits.connections, super::world::CONNECTIONS);
    assert_eq!(w.torrent.next_deadline(), None);
    let refused = w.try_peer(come(2, ""));
    assert_eq!(refused, Err(crate::swarm::Refusal::Stopping));
}

#[test]
fn a_stop_in_the_middle_of_a_block_ends_with_the_connection() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    w.header(a, "0:0").unwrap();
    w.call(Torrent::stop);
    assert_eq!(w.credits.assembly_bytes, w.budget_bytes);
}
