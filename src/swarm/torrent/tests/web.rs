//! Web seeds: runs that follow each other, no place taken, nothing taken from peers that send.

use super::world::{World, come, piece, world};
use crate::base::BlockRef;
use crate::swarm::effects::{PeerKey, WebSeedId};
use crate::swarm::torrent::{Placement, Refusal};
use crate::wire::message::RawBlock;

fn web(w: &mut World) -> PeerKey {
    w.call(|torrent, cx| torrent.on_web_seed(WebSeedId(0), &[], cx))
        .unwrap()
}

fn run(w: &mut World, key: PeerKey) -> Vec<BlockRef> {
    w.call(|torrent, cx| torrent.next_web_run(key, cx))
}

fn take(w: &mut World, key: PeerKey, block: BlockRef) -> Placement {
    let header = RawBlock {
        piece: block.piece().get(),
        begin: block.begin(),
        length: block.length(),
    };
    let placed = w.call(|torrent, cx| torrent.on_piece_header(key, header, cx));
    let placement = placed.unwrap();
    w.call(|torrent, cx| {
        torrent.on_block_bytes(key, block.length(), cx);
        match placement {
            Placement::Store(block) => torrent.on_block_stored(key, block, cx),
            Placement::Scratch => torrent.on_block_discarded(key, header, cx),
        }
    });
    placement
}

fn places(run: &[BlockRef]) -> Vec<(u32, u32)> {
    run.iter().map(|b| (b.piece().get(), b.begin())).collect()
}

#[test]
fn a_web_seed_is_asked_for_blocks_that_follow_each_other() {
    let mut w = world("........");
    let key = web(&mut w);
    let first = run(&mut w, key);
    let geometry = w.torrent.cfg.geometry.clone();
    let expected = geometry
        .pieces()
        .flat_map(|piece| (0..4).map(move |block| (piece.get(), block * crate::base::BLOCK_BYTES)));
    assert_eq!(places(&first), expected.collect::<Vec<_>>());
    assert!(run(&mut w, key).is_empty(), "all of it is asked for");
    for block in first {
        assert!(matches!(take(&mut w, key, block), Placement::Store(_)));
    }
    assert_eq!(w.drawing(), "xxxxxxxx");
    let stats = w.torrent.stats(w.now);
    assert_eq!(stats.downloaded_web_bytes, geometry.total_bytes());
    assert_eq!(stats.web_seeds, 0, "nothing is left to ask it for");
}

#[test]
fn a_second_connection_begins_far_from_the_first() {
    let mut w = world(&".".repeat(64));
    let (a, b) = (web(&mut w), web(&mut w));
    let (first, second) = (run(&mut w, a), run(&mut w, b));
    assert_eq!((first.len(), first[0].piece()), (64, piece(0)));
    assert_eq!((second.len(), second[0].piece()), (64, piece(40)));
}

#[test]
fn a_web_seed_takes_no_place_and_is_no_peer() {
    let mut w = world("..");
    let key = web(&mut w);
    let stats = w.torrent.stats(w.now);
    assert_eq!((stats.peers_connected, stats.seeds_connected), (0, 0));
    assert_eq!(stats.web_seeds, 1);
    assert!(w.torrent.peers(w.now).is_empty());
    assert_eq!(w.torrent.peer_addr(key), None);
    // Silence is its runtime's matter: without a word for minutes it is still there, and so is what it owes.
    assert_eq!(run(&mut w, key).len(), 8);
    w.pass_secs(200);
    assert!(w.closed().is_empty());
    w.gone(key);
    let a = w.unchoking(come(1, "xx"));
    assert_eq!(w.hear_only(a, "request").len(), 8, "it is anybody's again");
}

#[test]
fn a_peer_and_a_web_seed_share_the_pieces_and_no_block_is_asked_for_twice() {
    let mut w = world("........");
    let a = w.unchoking(come(1, "xxxxxxxx"));
    let asked = w.hear_only(a, "request");
    let key = web(&mut w);
    let run = run(&mut w, key);
    assert_eq!(asked.len() + run.len(), 32, "each block once");
    assert!(!asked.is_empty() && !run.is_empty());
}

#[test]
fn a_web_seed_duplicates_nothing_that_a_peer_owes() {
    let mut w = world(".");
    let a = w.unchoking(come(1, "x"));
    assert_eq!(w.hear_only(a, "request").len(), 4);
    let key = web(&mut w);
    // What it takes over the peer is told not to send.
    for _ in 0..2 {
        let taken = run(&mut w, key).len();
        assert_eq!(w.hear_only(a, "cancel").len(), taken);
        w.pass_secs(1);
    }
}

#[test]
fn a_bad_piece_from_a_web_seed_alone_is_its_ban_on_all_connections() {
    let mut w = world("....");
    let (a, b) = (web(&mut w), web(&mut w));
    w.is_disk_slow = true;
    let blocks = run(&mut w, a);
    for block in blocks.into_iter().take(4) {
        take(&mut w, a, block);
    }
    w.effects();
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    let effects = w.effects();
    for (wanted, count) in [("ban web seed 0", 1), ("close 0 Banned", 2)] {
        let got = effects.iter().filter(|text| *text == wanted).count();
        assert_eq!(got, count, "{wanted} in {effects:?}");
    }
    assert!(w.torrent.banned().is_empty(), "no address is banned");
    assert!(run(&mut w, b).is_empty());
    let again = w.call(|torrent, cx| torrent.on_web_seed(WebSeedId(0), &[], cx));
    assert_eq!(again, Err(Refusal::Banned));
    let other = w.call(|torrent, cx| torrent.on_web_seed(WebSeedId(1), &[], cx));
    assert!(other.is_ok());
    let stats = w.torrent.stats(w.now);
    assert_eq!((stats.downloaded_bytes, stats.downloaded_web_bytes), (0, 0));
}

#[test]
fn a_web_seed_that_lacks_pieces_is_asked_for_the_others() {
    let mut w = world("....");
    let gone = [piece(1), piece(2)];
    let key = w.call(|torrent, cx| torrent.on_web_seed(WebSeedId(0), &gone, cx));
    let key = key.unwrap();
    let mut asked = places(&run(&mut w, key));
    asked.extend(places(&run(&mut w, key)));
    assert!(asked.iter().all(|(piece, _)| [0, 3].contains(piece)));
    assert_eq!(asked.len(), 8);
    let all: Vec<_> = (0..4).map(piece).collect();
    let none = w.call(|torrent, cx| torrent.on_web_seed(WebSeedId(1), &all, cx));
    assert!(w.torrent.is_web_seed_useless(none.unwrap()));
}
