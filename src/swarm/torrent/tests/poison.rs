//! Corrupt data: who is banned, and above all who is not.

use super::world::{World, come, piece, world};
use crate::base::BLOCK_BYTES;
use crate::swarm::effects::PeerKey;
use crate::swarm::torrent::{Placement, Refusal};

/// The first piece comes from these peers, block by block.
pub fn mixed(w: &mut World, peers: [PeerKey; 4]) {
    mixed_in(w, 0, peers);
}

/// The same of any piece.
pub fn mixed_in(w: &mut World, in_piece: u32, peers: [PeerKey; 4]) {
    w.is_disk_slow = true;
    for (number, peer) in peers.into_iter().enumerate() {
        // The core asks as it likes; what counts here is who sent what.
        let text = format!("{in_piece}:{number}");
        let header = w.raw(&text);
        let block = w
            .torrent
            .cfg
            .geometry
            .block(piece(in_piece), number as u32)
            .unwrap();
        w.call(|torrent, _| {
            for (_, other) in torrent.peers.iter_mut() {
                let withdrawn = other.pipeline.withdraw(block);
                withdrawn
                    .iter()
                    .for_each(|block| torrent.pieces.on_released(block));
            }
            let asked = torrent.peers.get_mut(peer.0).unwrap();
            asked.pipeline.push(block);
            let raw = asked.pipeline.iter_back().next().unwrap();
            assert_eq!(raw, block);
            while asked
                .pipeline
                .next_to_send(crate::base::Now::ZERO)
                .is_some()
            {}
            torrent.pieces.on_requested(block);
        });
        let placement = w.call(|torrent, cx| torrent.on_piece_header(peer, header, cx));
        w.end_block(peer, &text, placement.unwrap());
    }
}

#[test]
fn a_bad_piece_from_one_source_is_its_ban() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    w.is_disk_slow = true;
    for block in ["0:0", "0:1", "0:2", "0:3", "1:0"] {
        w.block(a, block).unwrap();
    }
    w.effects();
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    let effects = w.effects();
    for wanted in ["discard 0", "ban 1.0.0.1", "close 1 Banned", "discard 1"] {
        assert!(
            effects.iter().any(|text| text == wanted),
            "{wanted} in {effects:?}"
        );
    }
    assert_eq!(w.torrent.banned(), [std::net::IpAddr::from([1, 0, 0, 1])]);
    let stats = w.torrent.stats(w.now);
    assert_eq!(stats.bad_pieces, 1);
    assert_eq!(stats.wasted_bytes, 5 * u64::from(BLOCK_BYTES));
    assert_eq!(stats.downloaded_bytes, 0);
    assert_eq!(w.try_peer(come(1, "xx")), Err(Refusal::Banned));
    w.is_disk_slow = false;
    let b = w.unchoking(come(2, "xx"));
    w.serve_all(b);
    assert_eq!(w.drawing(), "xx", "it is fetched from somebody else");
}

#[test]
fn of_several_sources_exactly_the_liar_is_banned_once_a_good_copy_is_here() {
    let mut w = world(".");
    let (a, b, c) = (
        w.unchoking(come(1, "x")),
        w.unchoking(come(2, "x")),
        w.unchoking(come(3, "x")),
    );
    mixed(&mut w, [a, b, c, a]);
    w.effects();
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    assert_eq!(w.effects(), ["digest 0"]);
    w.call(|torrent, cx| torrent.on_block_digests(piece(0), Some(vec![10, 66, 12, 13]), cx));
    assert_eq!(w.effects(), ["discard 0"]);
    assert!(
        w.torrent.banned().is_empty(),
        "nobody is banned on suspicion"
    );
    // The next copy comes from one peer alone.
    w.pass_secs(1);
    let asked: Vec<usize> = [a, b, c]
        .map(|peer| w.hear_only(peer, "request").len())
        .into();
    assert_eq!(
        asked.iter().filter(|count| **count > 0).count(),
        1,
        "{asked:?}"
    );
    let sender = [a, b, c][asked.iter().position(|count| *count > 0).unwrap()];
    for block in ["0:0", "0:1", "0:2", "0:3"] {
        w.block(sender, block).unwrap();
    }
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), true, cx));
    assert_eq!(w.effects().last().unwrap(), "digest 0");
    w.call(|torrent, cx| torrent.on_block_digests(piece(0), Some(vec![10, 11, 12, 13]), cx));
    let effects = w.effects();
    assert!(effects.contains(&"ban 1.0.0.2".to_owned()), "{effects:?}");
    assert!(effects.contains(&"write 0".to_owned()));
    assert_eq!(w.torrent.banned().len(), 1);
    assert_eq!(w.torrent.peers(w.now).len(), 2);
}

#[test]
fn without_digests_nobody_is_blamed() {
    let mut w = world(".");
    let (a, b) = (w.unchoking(come(1, "x")), w.unchoking(come(2, "x")));
    mixed(&mut w, [a, b, a, b]);
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    w.call(|torrent, cx| torrent.on_block_digests(piece(0), None, cx));
    w.is_disk_slow = false;
    w.pass_secs(1);
    w.serve_all(a);
    w.serve_all(b);
    assert!(w.torrent.is_complete());
    assert!(w.torrent.banned().is_empty());
}

#[test]
fn a_disk_error_blames_nobody() {
    let mut w = world("..");
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    w.is_disk_slow = true;
    for block in ["0:0", "0:1", "0:2", "0:3"] {
        w.block(a, block).unwrap();
    }
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), true, cx));
    w.call(|torrent, cx| torrent.on_piece_write_failed(piece(0), cx));
    assert!(w.torrent.banned().is_empty());
    assert_eq!(w.drawing(), "..");
    w.is_disk_slow = false;
    for block in ["1:0", "1:1", "1:2", "1:3"] {
        w.block(a, block).unwrap();
    }
    w.pass_secs(1);
    w.serve_all(a);
    assert_eq!(w.drawing(), "xx");
}

#[test]
fn a_suspect_shares_no_piece_until_it_is_cleared() {
    let mut w = world("....");
    let (a, b) = (w.unchoking(come(1, "xxxx")), w.unchoking(come(2, "xxxx")));
    mixed(&mut w, [a, b, a, b]);
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    w.call(|torrent, cx| torrent.on_block_digests(piece(0), Some(vec![1, 2, 3, 4]), cx));
    w.is_disk_slow = false;
    w.pass_secs(1);
    let owners: Vec<Option<PeerKey>> = (0..4).map(|n| w.torrent.pieces.owner(piece(n))).collect();
    let both = [Some(a), Some(b)];
    assert!(
        owners.iter().any(|owner| both.contains(owner)),
        "{owners:?}"
    );
    let c = w.unchoking(come(3, "xxxx"));
    w.serve_all(c);
    w.serve_all(a);
    w.serve_all(b);
    w.pass_secs(1);
    for peer in [a, b, c] {
        w.serve_all(peer);
    }
    assert!(w.torrent.is_complete());
    assert_eq!(w.torrent.stats(w.now).bad_pieces, 1);
}

/// A bad copy of the only piece from two peers: the next comes from one alone, who was asked for it, breaks off in the
/// middle of a block and goes on with the next. Returns that one and the other.
fn fetched_alone(w: &mut World) -> (PeerKey, PeerKey) {
    let (a, b) = (w.unchoking(come(1, "x")), w.unchoking(come(2, "x")));
    mixed(w, [a, b, a, b]);
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    w.call(|torrent, cx| torrent.on_block_digests(piece(0), Some(vec![1, 2, 3, 4]), cx));
    w.is_disk_slow = false;
    w.pass_secs(1);
    let owner = w.torrent.pieces.owner(piece(0)).unwrap();
    assert_eq!(w.hear_only(owner, "request").len(), 4);
    let peer = w.torrent.peers.get_mut(owner.0).unwrap();
    peer.rests_until = w.now + std::time::Duration::from_secs(8);
    w.header(owner, "0:0").unwrap();
    assert!(matches!(w.block(owner, "0:1"), Ok(Placement::Store(_))));
    (owner, if owner == a { b } else { a })
}

#[test]
fn what_is_owed_of_a_piece_that_became_another_peers_is_taken_in() {
    let mut w = world(".");
    let (first, _) = fetched_alone(&mut w);
    let c = w.unchoking(come(3, "x"));
    w.pass_secs(4);
    assert_eq!(w.hear_only(c, "request"), ["request 0:0"]);
    assert_eq!(w.torrent.pieces.owner(piece(0)), Some(c));
    for block in ["0:2", "0:3"] {
        assert!(matches!(w.block(first, block), Ok(Placement::Store(_))));
    }
    w.block(c, "0:0").unwrap();
    assert_eq!(w.drawing(), "x");
}

#[test]
fn a_suspect_takes_no_piece_over_while_others_owe_blocks_of_it() {
    let mut w = world(".");
    let (first, second) = fetched_alone(&mut w);
    w.pass_secs(4);
    assert_ne!(w.torrent.pieces.owner(piece(0)), Some(second));
    assert!(w.hear_only(second, "request").is_empty());
    w.pass_secs(5);
    for block in ["0:2", "0:3"] {
        w.block(first, block).unwrap();
    }
    w.pass_secs(1);
    w.serve_all(first);
    assert_eq!(w.drawing(), "x");
}

#[test]
fn peers_on_this_machine_are_banned_one_by_one() {
    let local = |name: u8| crate::swarm::torrent::Connected {
        addr: std::net::SocketAddr::from(([127, 0, 0, 1], 7_000 + u16::from(name))),
        is_inbound: true,
        peer_id: crate::base::PeerId::new([name; 20]),
        reserved: [0, 0, 0, 0, 0, 0x10, 0, 4],
        is_v2: false,
    };
    let mut w = world("..");
    let a = w
        .call(|torrent, cx| torrent.on_connected(local(1), cx))
        .unwrap();
    w.call(|torrent, cx| torrent.on_connected(local(2), cx))
        .unwrap();
    w.say(a, "have_all");
    w.say(a, "unchoke");
    w.hear(a);
    w.is_disk_slow = true;
    for block in ["0:0", "0:1", "0:2", "0:3"] {
        w.block(a, block).unwrap();
    }
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    assert_eq!(w.torrent.peers(w.now).len(), 1, "the other one stays");
    let again = w.call(|torrent, cx| torrent.on_connected(local(1), cx));
    assert_eq!(again, Err(Refusal::Banned));
}

#[test]
fn a_short_last_block_is_counted_as_what_it_is_when_a_ban_throws_it_away() {
    let mut w = super::world::world_with("..", |config| {
        config.geometry = crate::base::Geometry::new(
            super::world::PIECE_BYTES + u64::from(BLOCK_BYTES) + 1,
            super::world::PIECE_BYTES,
        )
        .unwrap();
    });
    let a = w.unchoking(come(1, "xx"));
    w.hear(a);
    w.is_disk_slow = true;
    // One byte of the last piece, then a bad first piece.
    for block in ["1:1", "0:0", "0:1", "0:2", "0:3"] {
        w.block(a, block).unwrap();
    }
    w.call(|torrent, cx| torrent.on_piece_hashed(piece(0), false, cx));
    let stats = w.torrent.stats(w.now);
    assert_eq!(stats.wasted_bytes, 4 * u64::from(BLOCK_BYTES) + 1);
    assert_eq!(stats.downloaded_bytes, 0);
}
