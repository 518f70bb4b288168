//! Leaves of our pieces for peers that ask.

use super::world::{World, come, piece, world_with};
use crate::base::{BLOCK_BYTES, Geometry};
use crate::swarm::effects::PeerKey;
use crate::wire::merkle::{self, Node};
use crate::wire::message::{HashRange, Message};
use crate::wire::metainfo::{LEAVES_PIECE_BYTES_MAX, LayerNeed, PieceLayers, PieceTrees};

/// The leaves of a piece of so many blocks; no two are alike.
pub fn leaves_of(number: u32, blocks: u32) -> Vec<Node> {
    let leaf = |block: u32| merkle::leaf(&[number.to_be_bytes(), block.to_be_bytes()].concat());
    (0..blocks).map(leaf).collect()
}

/// Our pieces as drawn, of one file and so many blocks each, with its trees.
pub fn v2_world(ours: &str, blocks: u32) -> World {
    let pieces = ours.len() as u32;
    let piece_length_bytes = blocks * BLOCK_BYTES;
    let length_bytes = u64::from(pieces) * u64::from(piece_length_bytes);
    let height = merkle::piece_height(piece_length_bytes);
    let layer = (0..pieces).map(|piece| merkle::root(&leaves_of(piece, blocks), 0, height));
    let layer: Vec<Node> = layer.collect();
    let root = merkle::root(&layer, height, merkle::file_height(length_bytes) - height);
    let need = LayerNeed {
        root,
        length_bytes,
        piece_length_bytes,
    };
    let layers = PieceLayers::new([(need, layer)]);
    let geometry = Geometry::of_aligned_files([length_bytes], piece_length_bytes.into()).unwrap();
    let trees = PieceTrees::new([(Some(root), length_bytes)], &geometry, &layers);
    world_with(ours, |config| {
        config.geometry = geometry;
        config.trees = trees;
        config.assembly_budget_bytes = config.assembly_budget_bytes.max(8 * length_bytes);
    })
}

/// What a leecher asks to have all leaves of a piece.
pub fn ranges(w: &World, number: u32) -> Vec<HashRange> {
    let trees = w.torrent.cfg.trees.as_ref().unwrap();
    trees.piece(piece(number)).unwrap().ranges().collect()
}

fn ask(w: &mut World, key: PeerKey, range: HashRange) {
    let message = Message::HashRequest(range);
    w.call(|torrent, cx| torrent.on_message(key, &message, cx))
        .unwrap();
}

fn read(w: &mut World, number: u32, leaves: Option<&[Node]>) {
    w.call(|torrent, cx| torrent.on_leaves_read(piece(number), leaves, cx));
}

#[test]
fn a_piece_is_read_once_for_all_who_ask_meanwhile() {
    let mut w = v2_world("xxxx", 4);
    let (a, b, gone) = (
        w.peer(come(1, "")),
        w.peer(come(2, "")),
        w.peer(come(3, "")),
    );
    let range = ranges(&w, 2)[0];
    for peer in [a, b, gone] {
        ask(&mut w, peer, range);
    }
    w.gone(gone);
    assert_eq!(w.effects(), ["read leaves 2 65536"]);
    assert!(w.torrent.awaits_leaves(piece(2)) && !w.torrent.awaits_leaves(piece(1)));
    assert!(w.hear(a).is_empty());
    read(&mut w, 2, Some(&leaves_of(2, 4)));
    for peer in [a, b] {
        assert_eq!(w.hear(peer), ["hashes 8+4 4"]);
    }
    ask(&mut w, a, range);
    assert_eq!(w.effects(), ["read leaves 2 65536"], "they are not kept");
    w.gone(a);
    assert!(!w.torrent.awaits_leaves(piece(2)), "nobody waits any more");
}

#[test]
fn what_cannot_be_read_or_has_rotted_is_rejected() {
    let mut w = v2_world("xxxx", 4);
    let a = w.peer(come(1, ""));
    let range = ranges(&w, 1)[0];
    let mut rotten = leaves_of(1, 4);
    rotten[3][0] ^= 1;
    for leaves in [None, Some(&rotten[..]), Some(&rotten[..2])] {
        ask(&mut w, a, range);
        read(&mut w, 1, leaves);
        assert_eq!(w.hear(a), ["hash_reject 4+4"]);
    }
}

#[test]
fn leaves_of_pieces_that_are_not_had_are_rejected_unread() {
    let mut w = v2_world("x.xx", 4);
    let a = w.peer(come(1, ""));
    let range = ranges(&w, 1)[0];
    ask(&mut w, a, range);
    assert_eq!(w.hear(a), ["hash_reject 4+4"]);
    assert_eq!(w.effects(), Vec::<String>::new());
}

#[test]
fn one_peer_has_two_requests_waiting_and_all_together_eight_pieces_read() {
    let mut w = v2_world("xxxxxxxxxxxxxxxx", 4);
    let peers = [1, 2, 3, 4, 5].map(|name| w.peer(come(name, "")));
    for (number, peer) in (0..).step_by(3).zip(peers) {
        for number in number..number + 3 {
            let range = ranges(&w, number)[0];
            ask(&mut w, peer, range);
        }
    }
    let rejects = peers.map(|peer| w.hear_only(peer, "hash_reject").len());
    assert_eq!(rejects, [1, 1, 1, 1, 3]);
    assert_eq!(w.effects().len(), 8);
}

#[test]
fn what_is_read_for_one_peer_is_bounded() {
    let blocks = LEAVES_PIECE_BYTES_MAX / BLOCK_BYTES;
    let mut w = v2_world("xx", blocks);
    let (a, b) = (w.peer(come(1, "")), w.peer(come(2, "")));
    let [first, second] = ranges(&w, 1)[..] else {
        panic!("a piece of two requests")
    };
    for _ in 0..2 {
        ask(&mut w, a, first);
        ask(&mut w, a, second);
        assert_eq!(w.effects().len(), 1, "one reading for both");
        read(&mut w, 1, Some(&leaves_of(1, blocks)));
        assert_eq!(w.hear(a), ["hashes 1024+512 513", "hashes 1536+512 513"]);
    }
    ask(&mut w, a, first);
    assert_eq!(w.hear(a), ["hash_reject 1024+512"]);
    ask(&mut w, b, first);
    assert_eq!(
        w.effects().len(),
        1,
        "another peer has an allowance of its own"
    );
    read(&mut w, 1, Some(&leaves_of(1, blocks)));
    assert_eq!(w.hear(b), ["hashes 1024+512 513"]);
    w.pass_with(&[a, b], 16);
    w.effects();
    ask(&mut w, a, first);
    assert_eq!(
        w.effects().len(),
        1,
        "a second at a time it is filled again"
    );
}
