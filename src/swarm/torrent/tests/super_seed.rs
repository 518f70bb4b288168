//! Super-seeding (BEP 16): what veiled peers hear, what they may ask for, and when it ends.

use super::world::{Come, World, come, plain, world_with};

fn super_seed(pieces: usize) -> World {
    world_with(&"x".repeat(pieces), |config| {
        config.fetches = false;
        config.super_seeds = true;
    })
}

/// The greeting, and the number of the first piece shown.
fn arrives(w: &mut World, come: Come<'_>) -> (crate::swarm::PeerKey, Vec<String>) {
    let key = w.try_peer(come).unwrap();
    let heard = w.hear(key);
    (key, heard)
}

fn number(have: &str) -> u32 {
    have["have ".len()..].parse().unwrap()
}

#[test]
fn a_peer_is_greeted_as_by_somebody_with_nothing_and_shown_one_piece() {
    let mut w = super_seed(4);
    let (_, heard) = arrives(&mut w, come(1, "...."));
    assert_eq!(heard.len(), 3, "{heard:?}");
    assert_eq!(heard[..2], ["have_none", "extended"]);
    assert!(heard[2].starts_with("have "), "{heard:?}");
    let (_, heard) = arrives(&mut w, plain(2, "...."));
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(heard[0].starts_with("have "), "{heard:?}");
    assert!(w.torrent.stats(w.now).is_super_seeding);
}

#[test]
fn a_peer_that_says_nothing_of_its_pieces_is_shown_one_soon() {
    let mut w = super_seed(4);
    let (a, heard) = arrives(&mut w, plain(1, ""));
    assert!(heard.is_empty(), "{heard:?}");
    w.pass_secs(1);
    assert_eq!(w.hear_only(a, "have").len(), 1);
}

#[test]
fn only_what_was_shown_may_be_asked_for() {
    let mut w = super_seed(4);
    let (a, heard) = arrives(&mut w, come(1, "...."));
    let shown = number(&heard[2]);
    w.say(a, "interested");
    assert_eq!(w.hear(a), ["unchoke"], "no allowed fast set");
    let other = (shown + 1) % 4;
    w.say(a, &format!("request {other}:0"));
    assert_eq!(w.hear(a), [format!("reject {other}:0")]);
    w.say(a, &format!("request {shown}:0"));
    assert_eq!(w.upload_all(a), [format!("{shown}:0")]);
}

#[test]
fn the_next_piece_comes_when_another_peer_has_the_last_one() {
    let mut w = super_seed(6);
    let (a, heard) = arrives(&mut w, come(1, "......"));
    let first = number(&heard[2]);
    let (b, heard) = arrives(&mut w, come(2, "......"));
    let of_b = number(&heard[2]);
    assert_ne!(first, of_b, "each has one of its own");
    w.say(a, &format!("have {first}"));
    assert!(w.hear_only(a, "have").is_empty());
    w.say(b, &format!("have {first}"));
    let next = w.hear_only(a, "have");
    assert_eq!(next.len(), 1, "{next:?}");
    assert!(![first, of_b].contains(&number(&next[0])));
    assert!(w.hear_only(b, "have").is_empty(), "it passed nothing on");
}

#[test]
fn the_only_peer_gets_all_of_it_one_after_the_other() {
    let mut w = super_seed(3);
    let (a, heard) = arrives(&mut w, come(1, "..."));
    let mut piece = number(&heard[2]);
    for _ in 0..2 {
        w.say(a, &format!("have {piece}"));
        w.pass_secs(2);
        let next = w.hear_only(a, "have");
        assert_eq!(next.len(), 1, "{next:?}");
        piece = number(&next[0]);
    }
}

#[test]
fn the_only_peer_need_not_say_that_it_has_what_it_was_shown() {
    let mut w = super_seed(3);
    let (a, heard) = arrives(&mut w, come(1, "..."));
    let first = number(&heard[2]);
    w.say(a, "interested");
    w.hear(a);
    w.say(a, "not_interested");
    let next = w.hear_only(a, "have");
    assert_eq!(next.len(), 1, "{next:?}");
    assert_ne!(number(&next[0]), first);
}

#[test]
fn a_peer_that_wants_nothing_more_is_told_of_everything() {
    let mut w = super_seed(4);
    let (a, heard) = arrives(&mut w, come(1, "x..."));
    assert_eq!(heard.len(), 3, "{heard:?}");
    w.shake(a, 100, 0, true);
    let heard = w.hear(a);
    assert_eq!(heard[0], "upload_only 1");
    assert_eq!(heard[1..], ["have 1", "have 2", "have 3"]);
    assert!(w.torrent.is_super_seeding());
    w.say(a, "interested");
    w.hear(a);
    for piece in 1..4 {
        w.say(a, &format!("request {piece}:0"));
    }
    assert_eq!(w.upload_all(a).len(), 3);
}

#[test]
fn with_two_other_seeds_it_is_seeding_as_usual() {
    let mut w = super_seed(4);
    let (leech, _) = arrives(&mut w, come(1, "...."));
    arrives(&mut w, come(2, "xxxx"));
    assert!(w.torrent.is_super_seeding(), "one may leave, or lie");
    assert!(w.hear_only(leech, "have").is_empty());
    arrives(&mut w, come(3, "xxxx"));
    assert!(!w.torrent.is_super_seeding());
    let heard = w.hear_only(leech, "have");
    assert_eq!(heard, ["have 0", "have 1", "have 2", "have 3"]);
    let (_, heard) = arrives(&mut w, come(4, "...."));
    assert_eq!(heard, ["have_all", "extended"]);
}

#[test]
fn pieces_that_were_lost_and_found_give_nothing_away() {
    let mut w = super_seed(4);
    let (a, heard) = arrives(&mut w, come(1, "...."));
    w.shake(a, 100, 0, false);
    let shown = number(&heard[2]);
    let other = super::world::piece((shown + 1) % 4);
    w.call(|torrent, cx| torrent.on_pieces_lost(&[other], cx));
    w.call(|torrent, cx| torrent.on_pieces_found(&[other], cx));
    w.pass_secs(1);
    assert!(w.hear(a).is_empty());
}

#[test]
fn it_begins_for_newcomers_and_ends_for_all() {
    let mut w = world_with("xxxx", |config| config.fetches = false);
    let (early, heard) = arrives(&mut w, come(1, "...."));
    assert_eq!(heard[0], "have_all");
    let now = w.now;
    w.call(|torrent, cx| torrent.set_super_seeds(true, cx));
    assert!(w.torrent.stats(now).is_super_seeding);
    w.say(early, "interested");
    w.say(early, "request 3:0");
    assert_eq!(w.upload_all(early), ["3:0"], "it knows of all");
    let (late, heard) = arrives(&mut w, come(2, "...."));
    assert_eq!(heard[0], "have_none");
    let shown = heard
        .iter()
        .filter(|word| word.starts_with("have "))
        .count();
    // The same said again begins nothing anew.
    w.call(|torrent, cx| torrent.set_super_seeds(true, cx));
    w.call(|torrent, cx| torrent.set_super_seeds(false, cx));
    let told = w.hear_only(late, "have").len();
    assert!(shown == 1 && told >= 3, "{shown} {told}");
    assert!(!w.torrent.stats(now).is_super_seeding);
}

#[test]
fn what_is_not_complete_hides_nothing() {
    let mut w = world_with("x...", |config| config.super_seeds = true);
    let (_, heard) = arrives(&mut w, come(1, "...."));
    assert!(heard[0].starts_with("bitfield"), "{heard:?}");
}
