//! What happens because nothing happens: snubs, silent and stuck peers, seed to seed; and that idle torrents sleep.

use std::time::Duration;

use super::world::{come, world, world_with};
use crate::swarm::torrent::{Placement, Torrent};

#[test]
fn a_peer_that_owes_blocks_and_is_silent_is_snubbed_and_the_blocks_go_elsewhere() {
    let mut w = world(".....");
    let a = w.unchoking(come(1, "xxxxx"));
    assert_eq!(w.hear_only(a, "request").len(), 16);
    w.pass_with(&[a], 29);
    assert!(!w.torrent.peers(w.now)[0].is_snubbed);
    w.pass_secs(2);
    let stats = &w.torrent.peers(w.now)[0];
    assert!(stats.is_snubbed);
    assert_eq!(stats.requests_out, 0);
    assert_eq!(w.hear_only(a, "cancel").len(), 15);
    let b = w.unchoking(come(2, "xxxxx"));
    assert_eq!(w.serve_all(b).len(), 20);
    assert!(w.torrent.is_complete());
}

#[test]
fn a_snubbed_peer_keeps_the_oldest_request_and_is_tried_again() {
    let mut w = world("...");
    let a = w.unchoking(come(1, "xxx"));
    let requests = w.hear_only(a, "request");
    assert_eq!(requests.len(), 12);
    let first = requests[0]["request ".len()..].to_owned();
    let mut cancelled = Vec::new();
    let mut asked = Vec::new();
    for _ in 0..100 {
        w.pass_secs(1);
        w.say(a, "keep_alive");
        for text in w.hear(a) {
            match text.split_once(' ') {
                Some(("cancel", block)) => cancelled.push(block.to_owned()),
                Some(("request", block)) => asked.push(block.to_owned()),
                _ => {}
            }
        }
    }
    assert!(w.torrent.peers(w.now)[0].is_snubbed);
    assert!(
        (1..=3).contains(&asked.len()),
        "about one in 30 s: {asked:?}"
    );
    assert!(cancelled.len() >= 11, "{cancelled:?}");
    // It comes back: whatever it sends is taken and it is asked for more at once.
    let last = asked.last().unwrap().clone();
    let placement = w.block(a, &last).unwrap();
    assert!(matches!(placement, Placement::Store(_)), "{first} {last}");
    assert!(!w.torrent.peers(w.now)[0].is_snubbed);
    w.serve_all(a);
    assert!(w.torrent.is_complete());
}

#[test]
fn a_slow_sole_seed_is_never_given_up() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    let mut queue: Vec<String> = Vec::new();
    for second in 0..1_200 {
        w.pass_secs(1);
        w.say(a, "keep_alive");
        for text in w.hear(a) {
            match text.split_once(' ') {
                Some(("request", block)) => queue.push(block.to_owned()),
                Some(("cancel", block)) => {
                    queue.retain(|owed| owed != block);
                    w.say(a, &format!("reject {block}"));
                }
                _ => {}
            }
        }
        if second % 50 == 49 && !queue.is_empty() {
            let block = queue.remove(0);
            w.say(a, &format!("piece {block}"));
        }
    }
    assert!(w.torrent.is_complete(), "{}", w.drawing());
}

#[test]
fn a_peer_that_stops_in_the_middle_of_a_block_is_closed() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    w.header(a, "0:0").unwrap();
    w.call(|torrent, cx| torrent.on_block_bytes(a, 100, cx));
    w.pass_with(&[a], 20);
    assert!(w.closed().is_empty());
    for _ in 0..15 {
        w.pass_secs(1);
    }
    assert_eq!(w.closed(), ["close 1 Silent"]);
    let b = w.unchoking(come(2, "xx"));
    assert_eq!(w.serve_all(b).len(), 8, "its block is free again");
}

#[test]
fn a_peer_that_drips_does_not_keep_a_block_for_ever() {
    let mut w = world(".");
    let a = w.unchoking(come(1, "x"));
    w.hear(a);
    w.header(a, "0:0").unwrap();
    let mut seconds = 0;
    while w.closed().is_empty() {
        seconds += 1;
        assert!(seconds < 200, "it still holds the block");
        w.call(|torrent, cx| torrent.on_block_bytes(a, 1, cx));
        w.pass_secs(1);
    }
    assert!(seconds >= 100);
}

#[test]
fn a_block_that_drips_goes_to_a_peer_that_would_send_it() {
    let mut w = world(".");
    let a = w.unchoking(come(1, "x"));
    w.hear(a);
    w.header(a, "0:0").unwrap();
    let b = w.unchoking(come(2, "x"));
    w.serve_all(b);
    for _ in 0..40 {
        w.call(|torrent, cx| torrent.on_block_bytes(a, 25, cx));
        w.pass_secs(1);
        w.say(b, "keep_alive");
        w.serve_all(b);
    }
    assert!(w.torrent.is_complete());
}

#[test]
fn a_silent_peer_is_closed_after_two_minutes_and_a_bit() {
    let mut w = world("x.");
    let a = w.peer(come(1, ".."));
    w.say(a, "interested");
    w.hear(a);
    for _ in 0..125 {
        w.pass_secs(1);
        w.hear(a);
    }
    assert!(w.closed().is_empty());
    for _ in 0..30 {
        w.pass_secs(1);
        w.hear(a);
    }
    assert_eq!(w.closed(), ["close 1 Silent"]);
}

#[test]
fn a_peer_that_takes_nothing_of_what_it_asked_for_is_closed() {
    let mut w = world("xx");
    let a = w.peer(come(1, ".."));
    w.say(a, "interested");
    w.hear(a);
    w.say(a, "request 0:0");
    w.upload(a).unwrap();
    for _ in 0..100 {
        w.pass_secs(1);
        w.say(a, "keep_alive");
        w.hear(a);
    }
    assert!(w.closed().is_empty());
    for _ in 0..35 {
        w.pass_secs(1);
        w.say(a, "keep_alive");
    }
    assert_eq!(w.closed(), ["close 1 Silent"]);
}

#[test]
fn a_writer_that_never_comes_back_ends_the_connection() {
    let mut w = world("x.");
    let a = w.peer(come(1, ".x"));
    w.hear(a);
    w.say(a, "unchoke");
    for _ in 0..135 {
        w.pass_secs(1);
        if w.torrent.peers(w.now).is_empty() {
            break;
        }
        w.say(a, "keep_alive");
    }
    assert_eq!(w.closed(), ["close 1 Silent"]);
}

#[test]
fn two_seeds_part_and_a_seed_keeps_whoever_wants_something() {
    let mut w = world("xx");
    let seed = w.peer(come(1, "xx"));
    let partial = w.peer(come(2, "x."));
    w.shake(partial, 100, 0, true);
    let leech = w.peer(come(3, "x."));
    w.say(leech, "interested");
    w.pass_with(&[leech], 13);
    let mut closed = w.closed();
    closed.sort();
    assert_eq!(closed, ["close 1 Useless", "close 2 Useless"]);
    assert_eq!(w.torrent.peers(w.now).len(), 1);
    let _ = (seed, partial);
}

#[test]
fn a_partial_seed_that_changes_its_mind_in_time_is_kept() {
    let mut w = world("xx");
    let a = w.peer(come(1, "x."));
    w.say(a, "upload_only 1");
    w.pass_with(&[a], 5);
    w.say(a, "upload_only 0");
    w.pass_with(&[a], 60);
    assert!(w.closed().is_empty());
}

#[test]
fn an_idle_seed_wakes_every_ten_seconds_and_an_empty_torrent_never() {
    let mut w = world("xx");
    w.pass_secs(1);
    assert_eq!(w.torrent.next_deadline(), None, "nobody is here");
    let a = w.peer(come(1, ".."));
    w.pass_with(&[a], 20);
    let mut calls = 0;
    let end = w.now + Duration::from_secs(100);
    while let Some(at) = w.torrent.next_deadline().filter(|at| *at < end) {
        w.now = w.now.max(at);
        w.call(Torrent::on_timer);
        w.say(a, "keep_alive");
        w.hear(a);
        calls += 1;
    }
    assert!(calls <= 12, "{calls} calls in 100 s");
}

#[test]
fn no_deadline_stays_in_the_past_whatever_the_state() {
    for ours in ["....", "xxxx", "x..-"] {
        let mut w = world_with(ours, |config| config.assembly_budget_bytes = 80_000);
        let a = w.unchoking(come(1, "xxxx"));
        let b = w.peer(come(2, "...."));
        w.say(b, "interested");
        w.say(a, "interested");
        for _ in 0..300 {
            w.pass(Duration::from_millis(500));
            for peer in [a, b] {
                w.hear(peer);
                if w.torrent.peer_addr(peer).is_some() {
                    w.say(peer, "keep_alive");
                }
            }
        }
        w.call(Torrent::stop);
        assert_eq!(w.torrent.next_deadline(), None);
    }
}

#[test]
fn a_crowd_that_promises_and_sends_nothing_does_not_hold_up_the_end() {
    let mut w = world("....................");
    let all = "xxxxxxxxxxxxxxxxxxxx";
    let honest = w.unchoking(come(100, all));
    let stallers: Vec<_> = (1..=12).map(|name| w.unchoking(come(name, all))).collect();
    let mut seconds = 0;
    while !w.torrent.is_complete() {
        seconds += 1;
        assert!(seconds < 20, "{}", w.drawing());
        w.serve_all(honest);
        w.pass_with(&stallers, 1);
    }
}

#[test]
fn silent_peers_that_keep_coming_do_not_hold_up_the_end() {
    let mut w = world("........");
    let honest = w.unchoking(come(100, "xxxxxxxx"));
    let mut seconds = 0;
    let mut owed: Vec<String> = Vec::new();
    while !w.torrent.is_complete() {
        seconds += 1;
        assert!(seconds < 20, "{}", w.drawing());
        w.unchoking(come(seconds, "xxxxxxxx"));
        w.unchoking(come(seconds + 20, "xxxxxxxx"));
        w.pass_secs(1);
        for text in w.hear(honest) {
            match text.split_once(' ') {
                Some(("request", block)) => owed.push(block.to_owned()),
                Some(("cancel", block)) => owed.retain(|owed| owed != block),
                _ => {}
            }
        }
        for block in owed.drain(..owed.len().min(4)) {
            w.block(honest, &block).unwrap();
        }
    }
}
