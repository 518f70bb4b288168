//! Requests of peers: served, rejected or dropped, exactly one answer each; chokes, grace, limits.

use std::time::Duration;

use super::world::{World, come, piece, plain, shown, world, world_with};
use crate::base::{BLOCK_BYTES, PieceIndex};
use crate::swarm::choker::UploadSlots;
use crate::swarm::effects::PeerKey;
use crate::swarm::peer::PeerFault;
use crate::wire::message::{Message, RawBlock};

/// A peer that we unchoke.
fn served(w: &mut World, name: u8, have: &str) -> PeerKey {
    let key = w.peer(come(name, have));
    w.say(key, "interested");
    assert_eq!(w.hear_only(key, "unchoke"), ["unchoke"]);
    key
}

#[test]
fn interest_is_answered_with_a_free_slot_at_once() {
    let mut w = world("xx");
    let a = w.peer(come(1, ".."));
    w.say(a, "interested");
    assert_eq!(w.hear(a), ["unchoke"]);
    w.say(a, "not_interested");
    w.say(a, "interested");
    assert!(w.hear(a).is_empty());
}

#[test]
fn requests_are_sent_in_runs_in_the_order_they_came() {
    let mut w = world("xx");
    let a = served(&mut w, 1, "");
    for block in ["1:0", "1:1", "1:2", "0:3", "0:0"] {
        w.say(a, &format!("request {block}"));
    }
    let run = w.upload(a).unwrap();
    let blocks: Vec<String> = run.blocks.iter().map(|block| shown(*block)).collect();
    assert_eq!(blocks, ["1:0", "1:1", "1:2"]);
    w.call(|torrent, cx| torrent.on_sent(a, &run, cx));
    assert_eq!(w.upload_all(a), ["0:3", "0:0"]);
    let stats = w.torrent.stats(w.now);
    assert_eq!(stats.uploaded_bytes, 5 * u64::from(BLOCK_BYTES));
    assert!(w.hear(a).is_empty(), "blocks are their own answers");
}

#[test]
fn a_cancelled_request_is_rejected_unless_it_is_on_its_way() {
    let mut w = world("xx");
    let a = served(&mut w, 1, "");
    w.say(a, "request 0:0");
    w.say(a, "request 1:0");
    let run = w.upload(a).unwrap();
    w.say(a, "cancel 0:0");
    w.say(a, "cancel 1:0");
    assert_eq!(w.hear(a), ["reject 1:0"]);
    w.call(|torrent, cx| torrent.on_sent(a, &run, cx));
    assert!(w.upload(a).is_none());
    w.say(a, "cancel 1:0");
    assert!(w.hear(a).is_empty(), "one answer is enough");
    let b = w.peer(plain(2, ""));
    w.say(b, "interested");
    w.hear(b);
    w.say(b, "request 0:0");
    w.say(b, "cancel 0:0");
    assert!(w.upload(b).is_none());
    assert!(w.hear(b).is_empty(), "BEP 3 knows no rejects");
}

#[test]
fn no_more_is_handed_out_than_may_be_uploaded() {
    let mut w = world("xx");
    let (a, b) = (served(&mut w, 1, ""), served(&mut w, 2, ""));
    w.call(|torrent, cx| torrent.set_upload_max(Some(2 * u64::from(BLOCK_BYTES)), cx));
    for block in ["0:0", "1:0"] {
        w.say(a, &format!("request {block}"));
        w.say(b, &format!("request {block}"));
    }
    assert!(w.upload(a).is_some() && w.upload(b).is_some());
    assert!(
        w.upload(a).is_none() && w.upload(b).is_none(),
        "two are on their way"
    );
    w.hear(a);
    w.wakes();
    w.call(|torrent, cx| torrent.set_upload_max(Some(2 * u64::from(BLOCK_BYTES)), cx));
    assert!(w.wakes().is_empty());
    // What was on its way to a peer that left may go to another.
    w.gone(b);
    w.call(|torrent, cx| torrent.set_upload_max(Some(2 * u64::from(BLOCK_BYTES)), cx));
    assert_eq!(w.wakes(), [a]);
    assert_eq!(w.upload_all(a), ["1:0"]);
}

#[test]
fn a_request_made_twice_is_answered_once() {
    let mut w = world("x");
    let a = served(&mut w, 1, "");
    w.say(a, "request 0:0");
    w.say(a, "request 0:0");
    assert_eq!(w.upload_all(a), ["0:0"]);
}

#[test]
fn a_choke_rejects_what_waits_but_not_what_is_on_its_way() {
    let mut w = world("xx");
    let a = served(&mut w, 1, "");
    w.say(a, "request 0:0");
    let run = w.upload(a).unwrap();
    w.say(a, "request 1:0");
    w.say(a, "request 1:1");
    w.call(|torrent, cx| torrent.choke(a, cx));
    assert_eq!(w.hear(a), ["choke", "reject 1:0", "reject 1:1"]);
    w.call(|torrent, cx| torrent.on_sent(a, &run, cx));
    assert!(w.upload(a).is_none());
    w.say(a, "request 0:1");
    assert_eq!(w.hear(a), ["reject 0:1"], "asked while choked");
}

#[test]
fn a_slot_goes_round_when_its_turn_is_over() {
    let mut w = world_with("xx", |config| config.upload_slots = UploadSlots::Fixed(1));
    let a = served(&mut w, 1, "");
    let b = w.peer(come(2, ""));
    w.say(b, "interested");
    let mut heard = (Vec::new(), Vec::new());
    for _ in 0..200 {
        w.pass_secs(1);
        for key in [a, b] {
            w.say(key, "keep_alive");
            let peers = w.torrent.peers(w.now);
            if peers.iter().any(|peer| peer.key == key && !peer.am_choking) {
                w.say(key, "request 0:0");
                w.say(key, "request 0:1");
                w.upload_all(key);
            }
        }
        heard.0.extend(w.hear_only(a, "choke"));
        heard.1.extend(w.hear_only(b, "unchoke"));
    }
    assert_eq!(heard.0, ["choke"]);
    assert_eq!(heard.1, ["unchoke"]);
}

#[test]
fn a_failed_read_is_rejected_or_chokes_whoever_knows_no_rejects() {
    let mut w = world("x");
    let a = served(&mut w, 1, "");
    w.say(a, "request 0:0");
    w.say(a, "request 0:1");
    let run = w.upload(a).unwrap();
    w.call(|torrent, cx| torrent.on_upload_failed(a, &run, cx));
    assert_eq!(w.hear(a), ["reject 0:0", "reject 0:1"]);
    let b = w.peer(plain(2, ""));
    w.say(b, "interested");
    assert_eq!(w.hear(b), ["unchoke"]);
    w.say(b, "request 0:0");
    let run = w.upload(b).unwrap();
    w.call(|torrent, cx| torrent.on_upload_failed(b, &run, cx));
    assert_eq!(w.hear(b), ["choke"], "else it would wait for ever");
    w.pass_with(&[a], 12);
    w.say(b, "keep_alive");
    assert_eq!(w.hear(b), ["unchoke"], "and gets another chance");
}

#[test]
fn a_lost_piece_is_rejected_out_of_the_queue() {
    let mut w = world("xx");
    let a = served(&mut w, 1, "..");
    w.say(a, "request 0:0");
    w.say(a, "request 1:0");
    w.call(|torrent, cx| torrent.on_pieces_lost(&[piece(0)], cx));
    assert_eq!(w.hear_only(a, "reject"), ["reject 0:0"]);
    assert_eq!(w.upload_all(a), ["1:0"]);
}

#[test]
fn what_cannot_be_served_is_rejected_and_too_much_of_it_is_a_fault() {
    let mut w = world("x.");
    let a = served(&mut w, 1, "..");
    for request in ["request 1:0", "request 0:9", "request 7:0"] {
        w.say(a, request);
    }
    assert_eq!(w.hear(a), ["reject 1:0", "reject 0:9", "reject 7:0"]);
    for _ in 3..300 {
        w.say(a, "request 1:0");
        w.hear(a);
    }
    let fault = w.try_say(a, "request 1:0");
    assert_eq!(fault, Err(PeerFault::TooManyRefused { got: 301, max: 300 }));
}

#[test]
fn blocks_served_make_up_for_requests_refused() {
    let mut w = world("x.");
    let a = served(&mut w, 1, "..");
    for _ in 0..500 {
        w.say(a, "request 1:0");
        w.say(a, "request 0:0");
        w.upload_all(a);
        w.hear(a);
    }
}

#[test]
fn odd_requests_inside_a_piece_are_served_and_long_ones_are_not() {
    let mut w = world("x");
    let a = served(&mut w, 1, "");
    let mut ask = |begin, length| {
        let raw = RawBlock {
            piece: 0,
            begin,
            length,
        };
        w.call(|torrent, cx| torrent.on_message(a, &Message::Request(raw), cx))
    };
    assert_eq!(ask(5, 100), Ok(()));
    assert_eq!(ask(0, 32_768), Ok(()));
    assert_eq!(ask(u32::MAX, 2), Ok(()));
    assert_eq!(ask(0, 0), Ok(()));
    let too_long = ask(0, 131_073);
    assert!(matches!(too_long, Err(PeerFault::BadRequest { .. })));
    let mut w = world("x");
    let a = served(&mut w, 1, "");
    let raw = RawBlock {
        piece: 0,
        begin: 5,
        length: 100,
    };
    w.call(|torrent, cx| torrent.on_message(a, &Message::Request(raw), cx))
        .unwrap();
    let run = w.upload(a).unwrap();
    assert_eq!((run.blocks[0].begin(), run.blocks[0].length()), (5, 100));
}

#[test]
fn requests_that_crossed_our_choke_are_no_fault() {
    let mut w = world_with("x", |config| config.upload_slots = UploadSlots::Fixed(1));
    let a = served(&mut w, 1, "");
    w.call(|torrent, cx| torrent.choke(a, cx));
    assert_eq!(w.hear(a), ["choke"]);
    for _ in 0..400 {
        w.say(a, "request 0:0");
        w.hear(a);
    }
    w.pass_secs(6);
    w.call(|torrent, cx| torrent.choke(a, cx));
    let mut refused = 0;
    while w.try_say(a, "request 0:0").is_ok() {
        refused += 1;
        w.hear(a);
        assert!(refused < 1_000, "still borne");
        if !w.torrent.peers(w.now)[0].am_choking {
            w.call(|torrent, cx| torrent.choke(a, cx));
            w.pass_secs(6);
        }
    }
    assert!(refused <= 300);
}

#[test]
fn the_queue_is_as_long_as_was_advertised() {
    let mut w = world_with(&"x".repeat(10), |config| config.reqq = 8);
    let a = served(&mut w, 1, "");
    for number in 0..10 {
        w.say(a, &format!("request {number}:0"));
    }
    assert_eq!(w.hear(a), ["reject 8:0", "reject 9:0"]);
    assert_eq!(w.upload_all(a).len(), 8);
}

#[test]
fn whoever_never_reads_is_dropped_before_it_costs_memory() {
    let mut w = world(&"x".repeat(100));
    let a = served(&mut w, 1, "");
    let mut fault = None;
    for round in 0..1_000_000u32 {
        let number = round % 100;
        let result = w
            .try_say(a, &format!("request {number}:0"))
            .and_then(|()| w.try_say(a, &format!("cancel {number}:0")));
        if let Err(error) = result {
            fault = Some(error);
            break;
        }
        w.now = w.now + Duration::from_millis(2);
    }
    assert!(
        matches!(fault, Some(PeerFault::TakesNothing { .. })),
        "{fault:?}"
    );
}

#[test]
fn a_choked_newcomer_gets_the_allowed_fast_set_and_is_served_from_it_once() {
    let mut w = world_with(&"x".repeat(40), |config| {
        config.upload_slots = UploadSlots::Fixed(1);
    });
    served(&mut w, 1, "");
    let b = w.peer(come(2, ""));
    assert!(w.hear(b).is_empty());
    w.say(b, "interested");
    let set = w.hear_only(b, "allowed_fast");
    assert_eq!(set.len(), 10, "{set:?}");
    w.say(b, "not_interested");
    w.say(b, "interested");
    assert!(w.hear(b).is_empty(), "once");
    let mut sent = 0;
    for _ in 0..3 {
        for text in &set {
            let number = &text["allowed_fast ".len()..];
            for block in 0..4 {
                w.say(b, &format!("request {number}:{block}"));
            }
            sent += w.upload_all(b).len();
        }
    }
    assert_eq!(sent, 40, "each piece once");
    let others = (0..40).map(|n| n.to_string());
    let other = others
        .into_iter()
        .find(|n| !set.contains(&format!("allowed_fast {n}")))
        .unwrap();
    w.hear(b);
    w.say(b, &format!("request {other}:0"));
    assert_eq!(w.hear(b), [format!("reject {other}:0")]);
}

#[test]
fn nobody_with_pieces_to_trade_or_a_slot_of_its_own_gets_the_set() {
    let mut w = world_with(&"x".repeat(40), |config| {
        config.upload_slots = UploadSlots::Fixed(1);
    });
    let a = w.peer(come(1, ""));
    w.say(a, "interested");
    assert_eq!(w.hear(a), ["unchoke"]);
    let rich = w.peer(come(2, &format!("{}{}", "x".repeat(10), ".".repeat(30))));
    w.say(rich, "interested");
    assert!(w.hear(rich).is_empty());
    let mute = w.peer(plain(3, ""));
    w.say(mute, "interested");
    assert!(w.hear(mute).is_empty());
}

#[test]
fn a_choke_keeps_requests_for_allowed_pieces() {
    let mut w = world_with(&"x".repeat(40), |config| {
        config.upload_slots = UploadSlots::Fixed(1);
    });
    served(&mut w, 1, "");
    let b = w.peer(come(2, ""));
    w.say(b, "interested");
    let set = w.hear_only(b, "allowed_fast");
    let allowed = set[0]["allowed_fast ".len()..].to_owned();
    let others = (0..40u32).map(PieceIndex::new);
    let other = others
        .map(PieceIndex::get)
        .find(|n| !set.contains(&format!("allowed_fast {n}")))
        .unwrap();
    w.call(|torrent, cx| torrent.unchoke(b, cx));
    w.say(b, &format!("request {allowed}:0"));
    w.say(b, &format!("request {other}:0"));
    w.call(|torrent, cx| torrent.choke(b, cx));
    assert_eq!(
        w.hear(b),
        ["unchoke", "choke", &format!("reject {other}:0")]
    );
    assert_eq!(w.upload_all(b), [format!("{allowed}:0")]);
}

#[test]
fn no_slots_means_no_uploads_and_no_gifts() {
    let mut w = world_with("x", |config| config.upload_slots = UploadSlots::Fixed(0));
    let a = w.peer(come(1, ""));
    w.say(a, "interested");
    w.pass_with(&[a], 40);
    w.say(a, "request 0:0");
    assert_eq!(w.hear(a), ["reject 0:0"]);
    assert!(w.upload(a).is_none());
}

/// Who holds a piece that nobody else has and reads nothing, and who waits for that piece.
#[test]
fn nobody_waits_for_a_claim_of_a_reader_that_reads_nothing() {
    let mut w = world_with("xx", |config| config.upload_slots = UploadSlots::Fixed(8));
    let stuck: Vec<PeerKey> = (1..=4).map(|name| served(&mut w, name, "")).collect();
    let honest = served(&mut w, 9, "");
    // The line is known to be slow, and everybody asks for one piece.
    w.say(stuck[0], "request 0:0");
    w.upload_all(stuck[0]);
    for key in stuck.iter().chain([&honest]) {
        for block in 0..4 {
            w.say(*key, &format!("request 1:{block}"));
        }
    }
    w.pass_secs(2);
    let taken: Vec<_> = stuck.iter().map(|key| w.upload(*key)).collect();
    assert!(taken[0].is_some());
    let mut waited = 0;
    while w.upload(honest).is_none() {
        waited += 1;
        assert!(waited <= 20, "still waiting");
        w.pass_secs(1);
        for key in &stuck {
            w.upload(*key);
        }
    }
}
