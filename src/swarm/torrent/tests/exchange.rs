//! Metadata for peers that ask, peers told of each other, and where peers see us.

use std::net::SocketAddr;

use super::world::{Come, World, come, world, world_with};
use crate::swarm::candidates::Source;
use crate::swarm::effects::PeerKey;
use crate::swarm::torrent::TorrentConfig;
use crate::wire::decoder::{Decoder, Event, Limits};
use crate::wire::extended::{Extension, ExtensionHandshake, PeerExtensions};
use crate::wire::message::Message;
use crate::wire::ut_metadata::MetadataMessage;
use crate::wire::ut_pex::{PexFlags, PexMessage, PexPeer};

const METADATA: u8 = 11;
const PEX: u8 = 12;

/// The payloads of extension messages under that id that the peer is sent now.
pub fn heard(w: &mut World, key: PeerKey, id: u8) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    while w.call(|torrent, cx| torrent.take_messages(key, &mut bytes, 65_536, cx)) > 0 {}
    let mut decoder = Decoder::new(Limits::for_bitfield(1));
    let (mut input, mut payloads) = (&bytes[..], Vec::new());
    while let Some(event) = decoder.next(&mut input).unwrap() {
        if let Event::Message(Message::Extended { id: got, payload }) = event
            && got == id
        {
            payloads.push(payload.to_vec());
        }
    }
    payloads
}

fn tell(w: &mut World, key: PeerKey, id: u8, payload: &[u8]) {
    let message = Message::Extended { id, payload };
    let result = w.call(|torrent, cx| torrent.on_message(key, &message, cx));
    result.unwrap();
}

/// A peer that takes metadata and peer exchange, listens on `port`, and says where it sees us.
fn join(w: &mut World, come: Come<'_>, port: u16, sees: [u8; 4]) -> PeerKey {
    let key = w.peer(come);
    let mut text = format!("d1:md11:ut_metadatai{METADATA}e6:ut_pexi{PEX}ee1:pi{port}e6:yourip4:")
        .into_bytes();
    text.extend(sees);
    text.push(b'e');
    tell(w, key, 0, &text);
    key
}

fn pex(w: &mut World, key: PeerKey) -> Vec<PexMessage> {
    let heard = heard(w, key, PEX);
    heard
        .iter()
        .map(|payload| PexMessage::parse(payload).unwrap())
        .collect()
}

fn addrs(message: &PexMessage) -> Vec<SocketAddr> {
    message.added.iter().map(|peer| peer.addr).collect()
}

fn greeted_with(change: impl FnOnce(&mut TorrentConfig)) -> (ExtensionHandshake, PeerExtensions) {
    let mut w = world_with("xx", change);
    let key = w.try_peer(come(1, "")).unwrap();
    let payload = heard(&mut w, key, 0).remove(0);
    let handshake = ExtensionHandshake::parse(&payload).unwrap();
    let mut extensions = PeerExtensions::default();
    extensions.update(&handshake);
    (handshake, extensions)
}

#[test]
fn what_is_not_given_is_not_offered() {
    let (handshake, ids) = greeted_with(|config| config.metadata = Some(vec![7; 500].into()));
    assert_eq!(handshake.metadata_size_bytes, Some(500));
    assert!(ids.id(Extension::UtMetadata).is_some() && ids.id(Extension::UtPex).is_some());
    let (handshake, ids) = greeted_with(|config| config.is_private = true);
    assert_eq!(handshake.metadata_size_bytes, None);
    assert!(ids.id(Extension::UtMetadata).is_none() && ids.id(Extension::UtPex).is_none());
    let (_, ids) = greeted_with(|config| config.exchanges_peers = false);
    assert!(ids.id(Extension::UtPex).is_none());
    let too_long = vec![0; crate::wire::metainfo::METADATA_BYTES_MAX + 1];
    let (handshake, _) = greeted_with(|config| config.metadata = Some(too_long.into()));
    assert_eq!(handshake.metadata_size_bytes, None);
}

#[test]
fn metadata_is_sent_piece_by_piece_and_what_is_outside_is_rejected() {
    let bytes: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
    let mut w = world_with("xx", |config| config.metadata = Some(bytes.clone().into()));
    let key = join(&mut w, come(1, ""), 1, [0; 4]);
    heard(&mut w, key, METADATA);
    for piece in [1, 0, 2] {
        let mut payload = Vec::new();
        MetadataMessage::Request { piece }.encode(&mut payload);
        tell(&mut w, key, Extension::UtMetadata.our_id(), &payload);
    }
    assert!(w.torrent.has_output(key));
    let answers = heard(&mut w, key, METADATA);
    let parsed: Vec<_> = answers
        .iter()
        .map(|payload| MetadataMessage::parse(payload).unwrap())
        .collect();
    let data = |piece: u32, bytes| MetadataMessage::Data {
        piece,
        total_bytes: 20_000,
        bytes,
    };
    let expected = [
        MetadataMessage::Reject { piece: 2 },
        data(1, &bytes[16_384..]),
        data(0, &bytes[..16_384]),
    ];
    assert_eq!(parsed, expected);
    assert!(!w.torrent.has_output(key));
}

#[test]
fn peers_hear_of_each_other_a_second_later_and_of_parting_a_minute_later() {
    let mut w = world("xx");
    let dialed = Come {
        is_inbound: false,
        ..come(1, "xx")
    };
    let a = join(&mut w, dialed, 5001, [0; 4]);
    let b = join(&mut w, come(2, ".."), 5002, [0; 4]);
    w.peer(come(3, ".."));
    assert!(pex(&mut w, a).is_empty(), "who comes is told together");
    w.pass_secs(2);
    let to_a = pex(&mut w, a);
    assert_eq!(to_a.len(), 1);
    assert_eq!(addrs(&to_a[0]), ["1.0.0.2:5002".parse().unwrap()]);
    let to_b = pex(&mut w, b);
    let seed = PexFlags::SEED.and(PexFlags::REACHABLE);
    let addr = "1.0.0.1:6881".parse().unwrap();
    assert_eq!(to_b[0].added, [PexPeer { addr, flags: seed }]);
    w.gone(a);
    w.pass_secs(30);
    assert!(pex(&mut w, b).is_empty(), "once a minute");
    w.pass_secs(32);
    let later = pex(&mut w, b);
    assert_eq!(later.len(), 1);
    assert_eq!(later[0].dropped, [addr]);
}

#[test]
fn peers_are_told_who_takes_hidden_handshakes() {
    let mut w = world("xx");
    let dialed = |name, have| Come {
        is_inbound: false,
        ..come(name, have)
    };
    let hidden = join(&mut w, dialed(1, ".."), 5001, [0; 4]);
    w.torrent.on_hidden(hidden);
    join(&mut w, dialed(2, ".."), 5002, [0; 4]);
    let told = join(&mut w, come(3, ".."), 5003, [0; 4]);
    w.pass_secs(2);
    let messages = pex(&mut w, told);
    let flags = |name: u8| {
        let of = SocketAddr::from(([1, 0, 0, name], 6881));
        let mut added = messages[0].added.iter();
        added.find(|peer| peer.addr == of).unwrap().flags
    };
    let both = PexFlags::ENCRYPTION.and(PexFlags::REACHABLE);
    assert_eq!((flags(1), flags(2)), (both, PexFlags::REACHABLE));
}

#[test]
fn addresses_that_peers_tell_are_dialed_and_those_of_a_private_torrent_are_not() {
    for (is_private, known) in [(false, 1), (true, 0)] {
        let mut w = world_with("..", |config| config.is_private = is_private);
        let key = join(&mut w, come(1, ".."), 5001, [0; 4]);
        let before = w.torrent.stats(w.now).peers_known;
        let message = PexMessage {
            added: ["8.8.8.8:1", "10.0.0.1:1", "127.0.0.1:1"]
                .map(|addr| PexPeer {
                    addr: addr.parse().unwrap(),
                    flags: PexFlags::SEED,
                })
                .to_vec(),
            dropped: Vec::new(),
        };
        tell(&mut w, key, Extension::UtPex.our_id(), &message.encode());
        let stats = w.torrent.stats(w.now);
        assert_eq!(stats.peers_known - before, known, "{is_private}");
        let by_source: Vec<_> = stats.peers_by_source.iter().collect();
        assert!(by_source.contains(&(Source::Inbound.as_str(), 1)));
    }
}

#[test]
fn our_own_address_is_not_dialed_once_three_peers_told_it() {
    let mut w = world("..");
    let ours: SocketAddr = "5.6.7.8:7000".parse().unwrap();
    for name in 1..=3 {
        assert!(!w.torrent.candidates.is_known(ours));
        join(&mut w, come(name, ".."), 5000, [5, 6, 7, 8]);
    }
    w.call(|torrent, cx| torrent.on_candidates(Source::Tracker, &[ours], cx));
    assert!(!w.torrent.candidates.is_known(ours));
    assert!(
        w.torrent
            .candidates
            .priority("9.9.9.9:1".parse().unwrap())
            .is_some()
    );
}
