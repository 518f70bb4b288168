//! Bans, event by event: one core, one liar, no sockets.

use gyre::base::{Geometry, Now, PeerId, PieceIndex};
use gyre::swarm::{Connected, Credits, Cx, Effect, Placement, Torrent, TorrentConfig};
use gyre::wire::message::{Message, RawBlock};

#[test]
fn banning_a_peer_takes_back_exactly_what_it_sent() {
    let geometry = Geometry::new(2 * 16_384 + 16_384 + 1, 2 * 16_384).unwrap();
    let config = TorrentConfig::new(geometry, PeerId::new([1; 20]), 1);
    let now = Now::from_secs(1);
    let mut torrent = Torrent::new(config, now);
    let mut credits = Credits {
        assembly_bytes: 32 << 20,
        connections: 10,
        dials: 10,
    };
    let mut fx = Vec::new();
    let mut cx = Cx {
        now,
        credits: &mut credits,
        fx: &mut fx,
    };
    let conn = Connected {
        addr: "10.0.0.1:1".parse().unwrap(),
        is_inbound: true,
        peer_id: PeerId::new([2; 20]),
        // BEP 6.
        reserved: [0, 0, 0, 0, 0, 0, 0, 4],
        is_v2: false,
    };
    let peer = torrent.on_connected(conn, &mut cx).unwrap();
    torrent
        .on_message(peer, &Message::HaveAll, &mut cx)
        .unwrap();
    torrent
        .on_message(peer, &Message::Unchoke, &mut cx)
        .unwrap();
    // The requests go out.
    let mut out = Vec::new();
    assert!(torrent.take_messages(peer, &mut out, 1 << 16, &mut cx) > 0);
    // The one-byte block at the end of the last piece comes first, then all of piece 0, which is bad.
    for (piece, begin, length) in [(1, 16_384, 1), (0, 0, 16_384), (0, 16_384, 16_384)] {
        let header = RawBlock {
            piece,
            begin,
            length,
        };
        let placement = torrent.on_piece_header(peer, header, &mut cx).unwrap();
        let Placement::Store(block) = placement else {
            panic!("{header:?} was asked for");
        };
        torrent.on_block_bytes(peer, length, &mut cx);
        torrent.on_block_stored(peer, block, &mut cx);
    }
    let bad = PieceIndex::new(0);
    assert!(cx.fx.contains(&Effect::Hash { piece: bad }));
    torrent.on_piece_hashed(bad, false, &mut cx);
    assert_eq!(torrent.banned(), [conn.addr.ip()]);
    let stats = torrent.stats(now);
    assert_eq!(stats.downloaded_bytes, 0);
    assert_eq!(stats.wasted_bytes, 2 * 16_384 + 1);
}
