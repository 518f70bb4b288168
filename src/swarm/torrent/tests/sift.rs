//! Bad pieces of torrents with hash trees: which blocks go, which stay, and who is banned.

use super::leaves::{leaves_of, ranges, v2_world};
use super::poison::{mixed, mixed_in};
use super::world::{World, come, piece};
use crate::base::BLOCK_BYTES;
use crate::swarm::effects::PeerKey;
use crate::swarm::peer::PeerFault;
use crate::swarm::pieces::Phase;
use crate::swarm::torrent::Placement;
use crate::wire::merkle::Node;
use crate::wire::message::{HashRange, Message};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Leaves of piece 0 with these blocks changed.
fn with_bad(blocks: &[usize]) -> Vec<Node> {
    let mut leaves = leaves_of(0, 4);
    for block in blocks {
        leaves[*block][0] ^= 1;
    }
    leaves
}

/// What was asked of the runtime, more addresses aside.
fn effects(w: &mut World) -> Vec<String> {
    let mut effects = w.effects();
    effects.retain(|effect| effect != "want_peers");
    effects
}

fn is_bad(w: &mut World) {
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
}

fn hashed(w: &mut World, leaves: Vec<Node>) {
    w.call(|torrent, cx| torrent.on_leaves_hashed(piece(0), Some(leaves), cx));
}

/// The peer says what the leaves are.
fn tell(w: &mut World, key: PeerKey, range: HashRange, leaves: &[Node]) -> Result<(), PeerFault> {
    let hashes = leaves.as_flattened();
    let message = Message::Hashes { range, hashes };
    w.call(|torrent, cx| torrent.on_message(key, &message, cx))
}

fn tell_truly(w: &mut World, key: PeerKey) {
    let range = ranges(w, 0)[0];
    tell(w, key, range, &leaves_of(0, 4)).unwrap();
}

fn reject(w: &mut World, key: PeerKey) {
    let message = Message::HashReject(ranges(w, 0)[0]);
    w.call(|torrent, cx| torrent.on_message(key, &message, cx))
        .unwrap();
}

/// Who is asked for leaves.
fn asked<const N: usize>(w: &mut World, peers: [PeerKey; N]) -> [usize; N] {
    peers.map(|peer| w.hear_only(peer, "hash_request").len())
}

/// Four peers, the first three of which sent blocks of piece 0; the second block is bad.
fn shared(pieces: &str) -> (World, [PeerKey; 4]) {
    let all = "x".repeat(pieces.len());
    let mut w = v2_world(pieces, 4);
    let peers = [1, 2, 3, 4].map(|name| w.unchoking(come(name, &all)));
    let [a, b, c, _] = peers;
    mixed(&mut w, [a, b, c, a]);
    effects(&mut w);
    (w, peers)
}

#[test]
fn the_bad_block_alone_goes_and_its_sender_alone_is_banned() {
    let (mut w, [a, b, c, d]) = shared(".");
    is_bad(&mut w);
    assert_eq!(effects(&mut w), ["hash leaves 0"]);
    assert_eq!(asked(&mut w, [a, b, c, d]), [0, 0, 0, 1], "no part in it");
    hashed(&mut w, with_bad(&[1]));
    assert!(w.torrent.banned().is_empty());
    tell_truly(&mut w, d);
    assert_eq!(
        effects(&mut w),
        ["ban 1.0.0.2", "close 2 Banned", "drop 0 [1]"]
    );
    let stats = w.torrent.stats(w.now);
    assert_eq!(stats.wasted_bytes, BLOCK);
    assert_eq!(stats.downloaded_bytes, 3 * BLOCK);
    w.is_disk_slow = false;
    w.pass_secs(1);
    let served = [a, c, d].map(|peer| w.serve_all(peer)).concat();
    assert_eq!(served, ["0:1"]);
    assert_eq!(w.drawing(), "x");
    assert_eq!(w.torrent.peers(w.now).len(), 3);
}

#[test]
fn leaves_may_come_before_the_blocks_are_hashed() {
    let (mut w, [.., d]) = shared(".");
    is_bad(&mut w);
    tell_truly(&mut w, d);
    assert!(w.torrent.banned().is_empty());
    hashed(&mut w, with_bad(&[0, 1, 3]));
    let seen = effects(&mut w);
    assert!(seen.contains(&"drop 0 [0, 1, 3]".to_owned()));
    assert_eq!(w.torrent.banned().len(), 2, "{seen:?}");
}

#[test]
fn of_a_piece_from_one_peer_the_good_blocks_stay() {
    let mut w = v2_world("..", 4);
    let (a, b) = (w.unchoking(come(1, "xx")), w.unchoking(come(2, "xx")));
    w.hear(a);
    w.is_disk_slow = true;
    mixed(&mut w, [a, a, a, a]);
    effects(&mut w);
    is_bad(&mut w);
    assert_eq!(effects(&mut w), ["hash leaves 0"]);
    hashed(&mut w, with_bad(&[2]));
    tell_truly(&mut w, b);
    let seen = effects(&mut w);
    assert_eq!(seen, ["ban 1.0.0.1", "close 1 Banned", "drop 0 [2]"]);
    assert_eq!(w.torrent.stats(w.now).wasted_bytes, BLOCK);
    w.is_disk_slow = false;
    w.pass_secs(1);
    w.serve_all(b);
    assert_eq!(w.drawing(), "xx");
    assert_eq!(w.torrent.stats(w.now).downloaded_bytes, 8 * BLOCK);
}

#[test]
fn what_a_liar_sent_of_other_pieces_stays_until_it_is_judged() {
    let mut w = v2_world("..", 4);
    let (a, b) = (w.unchoking(come(1, "xx")), w.unchoking(come(2, "xx")));
    w.hear(a);
    mixed(&mut w, [a, a, a, a]);
    let other = w
        .torrent
        .pieces
        .tainted_by(w.torrent.peers.get(a.0).unwrap().party);
    assert!(other.is_empty());
    w.block(a, "1:0").unwrap();
    is_bad(&mut w);
    hashed(&mut w, with_bad(&[2]));
    tell_truly(&mut w, b);
    assert!(
        !effects(&mut w)
            .iter()
            .any(|effect| effect.starts_with("discard"))
    );
    assert_eq!(w.torrent.pieces.phase(piece(1)), Some(Phase::Fetching));
    assert_eq!(w.torrent.stats(w.now).wasted_bytes, BLOCK);
    w.is_disk_slow = false;
    w.pass_secs(1);
    let served = w.serve_all(b);
    assert_eq!(served.len(), 4, "{served:?}");
    assert_eq!(w.drawing(), "xx");
}

#[test]
fn wrong_leaves_ban_whoever_sent_them_and_frame_nobody() {
    let (mut w, [a, b, c, d]) = shared(".");
    is_bad(&mut w);
    hashed(&mut w, with_bad(&[1]));
    assert_eq!(asked(&mut w, [d]), [1]);
    effects(&mut w);
    let range = ranges(&w, 0)[0];
    // As if the first block were bad.
    let lie = tell(&mut w, d, range, &with_bad(&[0]));
    assert_eq!(lie, Err(PeerFault::WrongHashes));
    assert_eq!(effects(&mut w), ["ban 1.0.0.4", "close 4 Banned"]);
    w.pass_secs(0);
    let now_asked = asked(&mut w, [a, b, c]);
    assert_eq!(now_asked.iter().sum::<usize>(), 1, "{now_asked:?}");
    let second = [a, b, c][now_asked.iter().position(|asked| *asked == 1).unwrap()];
    tell_truly(&mut w, second);
    let banned: Vec<String> = w.torrent.banned().iter().map(ToString::to_string).collect();
    assert_eq!(banned, ["1.0.0.4", "1.0.0.2"]);
}

#[test]
fn leaves_of_another_length_are_wrong_and_those_nobody_asked_for_are_nothing() {
    for length in [0, 3, 5] {
        let (mut w, [a, _, _, d]) = shared(".");
        let range = ranges(&w, 0)[0];
        tell(&mut w, d, range, &leaves_of(0, 4)).unwrap();
        is_bad(&mut w);
        hashed(&mut w, with_bad(&[1]));
        tell(&mut w, a, range, &leaves_of(0, 4)).unwrap();
        let other = HashRange { index: 4, ..range };
        tell(&mut w, d, other, &leaves_of(0, 4)).unwrap();
        assert!(w.torrent.banned().is_empty());
        let all = [leaves_of(0, 4), leaves_of(1, 4)].concat();
        let answer = tell(&mut w, d, range, &all[..length]);
        assert_eq!(answer, Err(PeerFault::WrongHashes), "{length}");
    }
}

#[test]
fn who_rejects_or_is_silent_is_passed_over_until_nobody_is_left() {
    let (mut w, peers) = shared(".");
    is_bad(&mut w);
    hashed(&mut w, with_bad(&[1]));
    effects(&mut w);
    let mut order = Vec::new();
    for turn in 0..4 {
        let asked = asked(&mut w, peers);
        assert_eq!(asked.iter().sum::<usize>(), 1, "{asked:?}");
        let at = asked.iter().position(|asked| *asked == 1).unwrap();
        order.push(at);
        assert_eq!(w.torrent.pieces.phase(piece(0)), Some(Phase::Sifting));
        match turn % 2 {
            0 => reject(&mut w, peers[at]),
            _ => w.pass_secs(6),
        }
    }
    assert_eq!(order[0], 3, "who has no part in it comes first");
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2, 3]);
    assert_eq!(effects(&mut w), ["digest 0"], "as without trees");
    // A late answer is nothing.
    tell_truly(&mut w, peers[3]);
    assert!(w.torrent.banned().is_empty());
    assert_eq!(w.torrent.stats(w.now).wasted_bytes, 4 * BLOCK);
}

#[test]
fn who_left_is_not_waited_for() {
    let (mut w, [a, b, c, d]) = shared(".");
    is_bad(&mut w);
    hashed(&mut w, with_bad(&[1]));
    assert_eq!(asked(&mut w, [d]), [1]);
    w.gone(d);
    w.pass_secs(0);
    assert_eq!(asked(&mut w, [a, b, c]).iter().sum::<usize>(), 1);
    for peer in [a, b, c] {
        w.gone(peer);
    }
    effects(&mut w);
    w.pass_secs(0);
    assert_eq!(effects(&mut w), ["digest 0"]);
}

#[test]
fn who_shook_hands_by_the_v1_name_is_not_asked() {
    let (mut w, peers) = shared(".");
    for (_, peer) in w.torrent.peers.iter_mut() {
        peer.conn.is_v2 = false;
    }
    is_bad(&mut w);
    assert_eq!(effects(&mut w), ["digest 0"]);
    assert_eq!(asked(&mut w, peers), [0; 4]);
}

#[test]
fn pieces_of_a_hybrid_are_not_judged_by_trees() {
    let (mut w, peers) = shared(".");
    let (bytes, length) = (4 * BLOCK, 4 * BLOCK);
    w.torrent.cfg.geometry = crate::base::Geometry::new(bytes, length).unwrap();
    is_bad(&mut w);
    assert_eq!(effects(&mut w), ["digest 0"]);
    assert_eq!(asked(&mut w, peers), [0; 4]);
}

#[test]
fn a_disk_error_in_the_middle_ends_as_without_trees() {
    let (mut w, [.., d]) = shared(".");
    is_bad(&mut w);
    tell_truly(&mut w, d);
    effects(&mut w);
    w.call(|torrent, cx| torrent.on_leaves_hashed(piece(0), None, cx));
    assert_eq!(effects(&mut w), ["digest 0"]);
    assert!(w.torrent.banned().is_empty());
}

#[test]
fn nobody_is_blamed_where_all_blocks_prove_right() {
    let (mut shared, [.., d]) = shared(".");
    let mut alone = v2_world(".", 4);
    let [a, b] = [1, 2].map(|name| alone.unchoking(come(name, "x")));
    mixed(&mut alone, [a; 4]);
    effects(&mut alone);
    for (w, tells) in [(&mut shared, d), (&mut alone, b)] {
        is_bad(w);
        hashed(w, leaves_of(0, 4));
        tell_truly(w, tells);
        let seen = effects(w);
        assert_eq!(seen, ["hash leaves 0", "discard 0"]);
        assert!(w.torrent.peers.iter().all(|(_, peer)| !peer.is_suspect));
        assert_eq!(w.torrent.stats(w.now).wasted_bytes, 4 * BLOCK);
    }
    shared.is_disk_slow = false;
    shared.pass_secs(1);
    shared.serve_all(d);
    assert_eq!(shared.drawing(), "x", "it is fetched again");
}

#[test]
fn a_sole_source_is_banned_where_nobody_tells_the_leaves() {
    let mut w = v2_world(".", 4);
    let a = w.unchoking(come(1, "x"));
    mixed(&mut w, [a; 4]);
    effects(&mut w);
    is_bad(&mut w);
    hashed(&mut w, with_bad(&[1]));
    assert_eq!(effects(&mut w), ["hash leaves 0"]);
    reject(&mut w, a);
    let seen = effects(&mut w);
    assert_eq!(seen, ["discard 0", "ban 1.0.0.1", "close 1 Banned"]);
}

#[test]
fn what_was_deselected_meanwhile_is_not_fetched_again() {
    let (mut w, [a, _, c, d]) = shared(".");
    is_bad(&mut w);
    hashed(&mut w, with_bad(&[1]));
    effects(&mut w);
    w.call(|torrent, cx| torrent.select(crate::base::Bitfield::new(1), cx));
    tell_truly(&mut w, d);
    let seen = effects(&mut w);
    for wanted in ["ban 1.0.0.2", "discard 0"] {
        assert!(seen.iter().any(|effect| effect == wanted), "{seen:?}");
    }
    w.pass_secs(1);
    let served = [a, c, d].map(|peer| w.serve_all(peer)).concat();
    assert!(served.is_empty(), "{served:?}");
    assert_eq!(w.torrent.pieces.phase(piece(0)), None);
    assert_eq!(w.torrent.stats(w.now).wasted_bytes, 4 * BLOCK);
    assert_eq!(w.credits.assembly_bytes, w.budget_bytes);
}

#[test]
fn a_late_block_within_the_same_receive_waits_until_the_bad_one_is_forgotten() {
    let (mut w, [a, b, _, d]) = shared(".");
    is_bad(&mut w);
    hashed(&mut w, with_bad(&[1]));
    effects(&mut w);
    let (range, header) = (ranges(&w, 0)[0], w.raw("0:1"));
    let block = w.torrent.cfg.geometry.block(piece(0), 1).unwrap();
    // It was asked for the block too, and that was taken back.
    w.call(|torrent, cx| {
        let peer = torrent.peers.get_mut(d.0).unwrap();
        peer.pipeline.push(block);
        peer.pipeline.next_to_send(cx.now);
        peer.pipeline.withdraw(block);
    });
    let leaves = leaves_of(0, 4);
    let hashes = leaves.as_flattened();
    let message = Message::Hashes { range, hashes };
    w.call_alone(|torrent, cx| torrent.on_message(d, &message, cx))
        .unwrap();
    let placement = w.call_alone(|torrent, cx| torrent.on_piece_header(d, header, cx));
    assert_eq!(placement, Ok(Placement::Scratch));
    w.end_block(d, "0:1", Placement::Scratch);
    assert!(effects(&mut w).contains(&"drop 0 [1]".to_owned()));
    w.is_disk_slow = false;
    w.pass_secs(1);
    for peer in [a, d] {
        w.serve_all(peer);
    }
    assert_eq!(w.drawing(), "x");
    let _ = b;
}

#[test]
fn a_stop_in_the_middle_gives_all_memory_back() {
    for is_hashed in [true, false] {
        let (mut w, _) = shared(".");
        is_bad(&mut w);
        if is_hashed {
            hashed(&mut w, with_bad(&[1]));
        }
        w.call(|torrent, cx| torrent.stop(cx));
        if !is_hashed {
            hashed(&mut w, with_bad(&[1]));
        }
        assert_eq!(w.credits.assembly_bytes, w.budget_bytes);
        assert!(w.torrent.banned().is_empty());
    }
}

#[test]
fn a_streamed_piece_keeps_its_good_blocks_on_disk() {
    let mut w = v2_world(".", 4);
    w.torrent.pieces = crate::swarm::pieces::Pieces::new(
        w.torrent.cfg.geometry.clone(),
        crate::base::Bitfield::new(1),
        crate::base::Bitfield::full(1),
        0,
        1,
    );
    let (a, b) = (w.unchoking(come(1, "x")), w.unchoking(come(2, "x")));
    mixed(&mut w, [a, b, a, b]);
    assert_eq!(effects(&mut w).last().unwrap(), "flush 0:0");
    w.call(|torrent, cx| torrent.on_segment_flushed(piece(0), 0, cx));
    assert_eq!(w.torrent.stats(w.now).assembly_bytes, 0);
    is_bad(&mut w);
    let c = w.unchoking(come(3, "x"));
    hashed(&mut w, with_bad(&[1, 3]));
    w.pass_secs(0);
    let who = asked(&mut w, [a, b, c]);
    let at = who.iter().position(|asked| *asked == 1).unwrap();
    tell_truly(&mut w, [a, b, c][at]);
    assert!(effects(&mut w).contains(&"drop 0 [1, 3]".to_owned()));
    w.is_disk_slow = false;
    w.pass_secs(1);
    let served = [a, c].map(|peer| w.serve_all(peer)).concat();
    assert_eq!(served.len(), 2);
    assert_eq!(w.drawing(), "x");
}

#[test]
fn bad_pieces_beyond_the_memory_for_them_end_as_without_trees() {
    let (mut w, _) = shared(".");
    w.torrent.cfg.assembly_budget_bytes = 4 * BLOCK;
    is_bad(&mut w);
    assert_eq!(effects(&mut w), ["digest 0"]);
}

#[test]
fn one_peer_is_asked_for_the_leaves_of_two_pieces_at_a_time() {
    let mut w = v2_world("...", 4);
    let [a, b, d] = [1, 2, 3].map(|name| w.unchoking(come(name, "xxx")));
    for (_, peer) in w.torrent.peers.iter_mut() {
        peer.conn.is_v2 = peer.conn.peer_id == crate::base::PeerId::new([3; 20]);
    }
    for number in 0..3 {
        mixed_in(&mut w, number, [a, b, a, b]);
    }
    for number in 0..3 {
        w.call(|torrent, cx| torrent.on_piece_hashed(piece(number), false, cx));
    }
    let asked = w.hear_only(d, "hash_request");
    assert_eq!(asked, ["hash_request 0+4", "hash_request 4+4"]);
    tell_truly(&mut w, d);
    assert_eq!(w.hear_only(d, "hash_request"), ["hash_request 8+4"]);
}
