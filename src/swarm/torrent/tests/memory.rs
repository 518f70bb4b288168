//! Assembly memory: large pieces stream through a small budget, slow pieces give way, every byte comes back.

use std::time::Duration;

use super::world::{World, come, piece, world_with};
use crate::base::{BLOCK_BYTES, Geometry, SEGMENT_BYTES};
use crate::swarm::effects::PeerKey;
use crate::swarm::torrent::{Torrent, TorrentConfig};

const MIB: u64 = 1 << 20;

/// Pieces of this size, as many as are drawn.
fn large(ours: &str, piece_bytes: u64, budget_bytes: u64) -> World {
    let total = piece_bytes * ours.len() as u64;
    let change = |config: &mut TorrentConfig| {
        config.geometry = Geometry::new(total, piece_bytes).unwrap();
        config.assembly_budget_bytes = budget_bytes;
    };
    world_with(ours, change)
}

/// Every peer answers its requests in turn until nothing more is asked for; returns the most memory that was held.
fn serve_in_turn(w: &mut World, peers: &[PeerKey]) -> u64 {
    let mut most = 0;
    let mut queues: Vec<Vec<String>> = vec![Vec::new(); peers.len()];
    for _ in 0..100_000 {
        let mut is_busy = false;
        for (peer, queue) in peers.iter().zip(&mut queues) {
            for text in w.hear(*peer) {
                match text.split_once(' ') {
                    Some(("request", block)) => queue.push(block.to_owned()),
                    Some(("cancel", block)) => queue.retain(|owed| owed != block),
                    _ => {}
                }
            }
            if !queue.is_empty() {
                let block = queue.remove(0);
                w.block(*peer, &block).unwrap();
                is_busy = true;
            }
            most = most.max(w.torrent.stats(w.now).assembly_bytes);
        }
        w.pass(Duration::from_millis(2));
        if w.torrent.is_starved() {
            w.call(Torrent::on_credits);
        }
        if w.torrent.is_complete() || !is_busy && !w.torrent.is_starved() {
            break;
        }
    }
    most
}

#[test]
fn pieces_of_16_mib_from_eight_peers_fit_a_budget_of_6_mib() {
    let mut w = large("....", 16 * MIB, 6 * MIB);
    let peers: Vec<PeerKey> = (1..=8)
        .map(|name| w.unchoking(come(name, "xxxx")))
        .collect();
    let most = serve_in_turn(&mut w, &peers);
    assert!(w.torrent.is_complete(), "{}", w.drawing());
    assert!(most <= 6 * MIB);
    assert_eq!(w.credits.assembly_bytes, w.budget_bytes);
    let effects = w.effects();
    let flushed = effects
        .iter()
        .filter(|text| text.starts_with("flush"))
        .count();
    assert!(flushed >= 4 * 64, "segment by segment: {flushed}");
    assert!(!effects.iter().any(|text| text.starts_with("write")));
}

#[test]
fn small_pieces_are_kept_whole_until_they_are_hashed() {
    let mut w = large("........", MIB, 8 * MIB);
    let a = w.unchoking(come(1, "xxxxxxxx"));
    w.serve_all(a);
    let effects = w.effects();
    assert!(!effects.iter().any(|text| text.starts_with("flush")));
    assert_eq!(
        effects
            .iter()
            .filter(|text| text.starts_with("write"))
            .count(),
        8
    );
}

#[test]
fn slow_pieces_give_their_memory_to_fast_peers() {
    let mut w = large(&".".repeat(24), MIB, 4 * MIB);
    // Four peers take all memory and fall asleep.
    let slow: Vec<PeerKey> = (1..=4)
        .map(|name| {
            let peer = w.peer(come(name, &"x".repeat(24)));
            w.shake(peer, 4, 0, false);
            w.say(peer, "unchoke");
            peer
        })
        .collect();
    for peer in &slow {
        let requests = w.hear_only(*peer, "request");
        w.block(*peer, &requests[0]["request ".len()..]).unwrap();
        w.hear(*peer);
    }
    let fast = w.unchoking(come(9, &"x".repeat(24)));
    let started = w.now;
    while w.torrent.have().count() < 20 {
        assert!(
            w.now.since(started) < Duration::from_secs(30),
            "{}",
            w.drawing()
        );
        w.serve_all(fast);
        w.pass(Duration::from_millis(100));
        if w.torrent.is_starved() {
            w.call(Torrent::on_credits);
        }
    }
    assert!(
        w.effects().iter().any(|text| text.starts_with("flush")),
        "the slow ones were spilled"
    );
}

#[test]
fn a_failed_flush_gives_the_piece_up_only_when_all_flushes_are_answered() {
    for failed_first in [true, false] {
        let mut w = large(".", 16 * MIB, 6 * MIB);
        let a = w.peer(come(1, "x"));
        w.shake(a, 512, 0, false);
        w.say(a, "unchoke");
        w.is_disk_slow = true;
        let mut flushes = Vec::new();
        while flushes.len() < 2 {
            for request in w.hear_only(a, "request") {
                w.block(a, &request["request ".len()..]).unwrap();
            }
            let effects = w.effects();
            let new = effects.iter().filter(|text| text.starts_with("flush"));
            flushes.extend(new.map(|text| text["flush 0:".len()..].parse::<u32>().unwrap()));
        }
        w.is_disk_slow = false;
        let (first, rest) = flushes.split_first().unwrap();
        if failed_first {
            w.call(|torrent, cx| torrent.on_piece_write_failed(piece(0), cx));
            for segment in rest {
                w.call(|torrent, cx| torrent.on_segment_flushed(piece(0), *segment, cx));
            }
        } else {
            // The second one fails while the first is still under way.
            w.call(|torrent, cx| torrent.on_piece_write_failed(piece(0), cx));
            for segment in rest.iter().skip(1).chain([first]) {
                w.call(|torrent, cx| torrent.on_segment_flushed(piece(0), *segment, cx));
            }
        }
        assert!(
            w.effects().contains(&"discard 0".to_owned()),
            "{failed_first}"
        );
        serve_in_turn(&mut w, &[a]);
        assert!(w.torrent.is_complete());
        assert_eq!(w.credits.assembly_bytes, w.budget_bytes);
    }
}

#[test]
fn starved_peers_get_memory_in_the_order_in_which_they_came() {
    let mut w = large("....", MIB, 4 * MIB);
    w.credits.assembly_bytes = 0;
    w.budget_bytes = 0;
    let a = w.unchoking(come(1, "xxxx"));
    let b = w.unchoking(come(2, "xxxx"));
    assert!(w.hear_only(a, "request").is_empty() && w.torrent.is_starved());
    w.credits.assembly_bytes = MIB;
    w.budget_bytes = MIB;
    w.call(Torrent::on_credits);
    let (first, second) = (
        w.hear_only(a, "request").len(),
        w.hear_only(b, "request").len(),
    );
    assert_eq!(first, 16);
    assert!(second > 0, "and helps with the piece that is open");
}

#[test]
fn one_piece_always_fits_however_small_the_rest_of_the_budget() {
    let mut w = large("..", 4 * MIB, u64::from(SEGMENT_BYTES));
    let a = w.unchoking(come(1, "xx"));
    serve_in_turn(&mut w, &[a]);
    assert!(w.torrent.is_complete(), "{}", w.drawing());
}

#[test]
fn a_block_for_which_the_memory_is_gone_is_fetched_again() {
    let mut w = large("..", MIB, 8 * MIB);
    let a = w.unchoking(come(1, "xx"));
    let requests = w.hear_only(a, "request");
    w.block(a, &requests[0]["request ".len()..]).unwrap();
    w.is_disk_slow = true;
    w.pass_secs(5);
    let spilled = w.call(|torrent, cx| torrent.pieces.spill(cx.now, cx.credits));
    assert_eq!(spilled.len(), 1, "a slow piece with one block in memory");
    let placement = w.block(a, &requests[1]["request ".len()..]).unwrap();
    assert_eq!(
        placement,
        crate::swarm::Placement::Scratch,
        "its segment is being written"
    );
    let (flushed, segment) = spilled[0];
    w.is_disk_slow = false;
    w.call(|torrent, cx| torrent.on_segment_flushed(flushed, segment, cx));
    assert_eq!(w.torrent.stats(w.now).wasted_bytes, u64::from(BLOCK_BYTES));
    w.pass_secs(1);
    for request in &requests[2..] {
        w.block(a, &request["request ".len()..]).unwrap();
    }
    serve_in_turn(&mut w, &[a]);
    assert!(w.torrent.is_complete(), "{}", w.drawing());
}
