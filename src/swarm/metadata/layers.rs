//! Piece layers asked of peers once the metadata of a v2 torrent is here (BEP 52, "hash request"): without them no piece
//! can be verified. Every answer is proven by itself, so whoever sends a wrong one is known.

use super::{MetadataCx, MetadataEffect, MetadataSwarm};
use crate::base::Now;
use crate::swarm::PeerFault;
use crate::swarm::effects::PeerKey;
use crate::swarm::metadata::peers::Holder;
use crate::wire::merkle::{self, Node};
use crate::wire::message::{HashRange, Message};
use crate::wire::metainfo::LayerNeed;

/// Requests that one peer may owe, each answered with up to 16 KiB; libtorrent's figure.
const ASKED_MAX: usize = 2;

/// A stretch of one layer, fetched with one request.
#[derive(Clone, Debug)]
struct Part {
    /// Index of the layer among the needs.
    need: usize,
    range: HashRange,
    nodes: Option<Vec<Node>>,
}

/// All layers on their way.
#[derive(Clone, Debug)]
pub(super) struct LayerSearch {
    needs: Vec<LayerNeed>,
    /// In the order of the layers.
    parts: Vec<Part>,
    /// Numbers of parts that nobody is asked for.
    free: Vec<usize>,
    missing: usize,
}

impl LayerSearch {
    fn new(needs: Vec<LayerNeed>) -> LayerSearch {
        let mut parts = Vec::new();
        for (number, need) in needs.iter().enumerate() {
            let ranges = need.ranges();
            parts.extend(ranges.map(|range| Part {
                need: number,
                range,
                nodes: None,
            }));
        }
        LayerSearch {
            free: (0..parts.len()).rev().collect(),
            missing: parts.len(),
            needs,
            parts,
        }
    }

    fn give_back(&mut self, part: usize) {
        self.free.push(part);
    }

    /// Whether these are the hashes of the part. Those behind the file's end are dropped.
    fn store(&mut self, number: usize, hashes: &[Node]) -> bool {
        let Some(part) = self.parts.get_mut(number) else {
            return false;
        };
        let range = &part.range;
        let Some((nodes, uncles)) = hashes.split_at_checked(range.length as usize) else {
            return false;
        };
        let (first, height) = (u64::from(range.index), range.base_layer);
        if uncles.len() != range.uncle_count() as usize
            || !merkle::is_proven(&range.root, nodes, first, height, uncles)
        {
            return false;
        }
        let real = self.needs.get(part.need).map_or(0, LayerNeed::count) - first;
        let real = usize::try_from(real).unwrap_or(usize::MAX);
        part.nodes = Some(nodes.iter().take(real).copied().collect());
        self.missing -= 1;
        true
    }

    /// The layers, all of which are here.
    fn take(self) -> Vec<(LayerNeed, Vec<Node>)> {
        let empty = |need| (need, Vec::new());
        let mut layers: Vec<(LayerNeed, Vec<Node>)> = self.needs.into_iter().map(empty).collect();
        for part in self.parts {
            if let Some((_, layer)) = layers.get_mut(part.need) {
                layer.extend(part.nodes.unwrap_or_default());
            }
        }
        layers
    }
}

impl MetadataSwarm {
    /// Answers [`MetadataEffect::Verify`] in place of `on_verified` where a copy is right but says too little: these layers
    /// are needed too. Ends with [`MetadataEffect::HasLayers`].
    pub fn on_layers_needed(&mut self, needs: Vec<LayerNeed>, cx: &mut MetadataCx<'_>) {
        if self.layers.is_none() && !self.is_stopping {
            let copies: Vec<_> = self.attempts.iter().map(|(key, _)| key).collect();
            for key in copies {
                self.abandon(super::AttemptKey(key));
            }
            self.layers = Some(LayerSearch::new(needs));
            self.ask_all_for_hashes(cx);
        }
        self.after_event();
    }

    pub(super) fn ask_all_for_hashes(&mut self, cx: &mut MetadataCx<'_>) {
        for key in self.peers.keys() {
            self.ask_for_hashes(PeerKey(key), cx);
        }
    }

    /// Asks a peer for as much of the layers as it should owe us.
    pub(super) fn ask_for_hashes(&mut self, key: PeerKey, cx: &mut MetadataCx<'_>) {
        let (Some(layers), Some(peer)) = (&mut self.layers, self.peers.get_mut(key.0)) else {
            return;
        };
        if peer.is_closing || cx.now < peer.rests_until {
            return;
        }
        while peer.hashes_asked.len() < ASKED_MAX
            && let Some(number) = layers.free.pop()
        {
            let Some(part) = layers.parts.get(number) else {
                continue;
            };
            peer.hashes_asked.push((number, cx.now));
            peer.send(key, &Message::HashRequest(part.range), cx);
        }
    }

    pub(super) fn release_hashes(&mut self, key: PeerKey) {
        let (Some(layers), Some(peer)) = (&mut self.layers, self.peers.get_mut(key.0)) else {
            return;
        };
        for (number, _) in peer.hashes_asked.drain(..) {
            layers.give_back(number);
        }
    }

    pub(super) fn on_hashes(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        bytes: &[u8],
        cx: &mut MetadataCx<'_>,
    ) -> Result<(), PeerFault> {
        let (Some(layers), Some(peer)) = (&mut self.layers, self.peers.get_mut(key.0)) else {
            return self.count_useless(key, cx.now);
        };
        let Some(number) = take_asked(peer, layers, range) else {
            return peer.count_useless(cx.now);
        };
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || !layers.store(number, hashes) {
            let party = peer.party;
            layers.give_back(number);
            self.ban(party, cx);
            self.ask_all_for_hashes(cx);
            return Err(PeerFault::WrongHashes);
        }
        peer.failure_count = 0;
        peer.has_sent = true;
        if layers.missing == 0 {
            let layers = self.layers.take().map(LayerSearch::take);
            self.is_found = true;
            cx.fx
                .push(MetadataEffect::HasLayers(layers.unwrap_or_default()));
            self.stop(cx);
            return Ok(());
        }
        self.ask_for_hashes(key, cx);
        Ok(())
    }

    /// It has them not yet, or does not speak v2: others are asked.
    pub(super) fn on_hash_reject(
        &mut self,
        key: PeerKey,
        range: &HashRange,
        cx: &mut MetadataCx<'_>,
    ) -> Result<(), PeerFault> {
        let (Some(layers), Some(peer)) = (&mut self.layers, self.peers.get_mut(key.0)) else {
            return self.count_useless(key, cx.now);
        };
        let Some(number) = take_asked(peer, layers, range) else {
            return peer.count_useless(cx.now);
        };
        layers.give_back(number);
        peer.rest(cx.now);
        self.ask_all_for_hashes(cx);
        Ok(())
    }

    fn count_useless(&mut self, key: PeerKey, now: Now) -> Result<(), PeerFault> {
        match self.peers.get_mut(key.0) {
            Some(peer) => peer.count_useless(now),
            None => Ok(()),
        }
    }
}

fn take_asked(peer: &mut Holder, layers: &LayerSearch, range: &HashRange) -> Option<usize> {
    let is_it = |number: usize| {
        layers
            .parts
            .get(number)
            .is_some_and(|part| part.range == *range)
    };
    let at = peer
        .hashes_asked
        .iter()
        .position(|(number, _)| is_it(*number))?;
    Some(peer.hashes_asked.remove(at).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{InfoHash, PeerId};
    use crate::swarm::effects::Credits;
    use crate::swarm::metadata::MetadataConfig;
    use crate::swarm::torrent::Connected;
    use crate::wire::decoder::{Decoder, Event, Limits};
    use crate::wire::metainfo::PieceLayers;
    use std::net::SocketAddr;
    use std::time::Duration;

    const PIECE_LENGTH: u32 = 16_384;

    struct World {
        core: MetadataSwarm,
        credits: Credits,
        now: Now,
        fx: Vec<MetadataEffect>,
        need: LayerNeed,
        layer: Vec<Node>,
    }

    impl World {
        /// A file of so many pieces.
        fn new(pieces: u32) -> World {
            let layer: Vec<Node> = (0..pieces)
                .map(|n| merkle::leaf(&n.to_be_bytes()))
                .collect();
            let length_bytes = u64::from(pieces) * u64::from(PIECE_LENGTH);
            let root = merkle::root(&layer, 0, merkle::file_height(length_bytes));
            let now = Now::ZERO + Duration::from_secs(1);
            let config = MetadataConfig {
                info_hash: InfoHash::new([1; 20]),
                our_id: PeerId::new([9; 20]),
                seed: 1,
                peers_max: 10,
                exchanges_peers: false,
                listen_port: 0,
                client_version: String::new(),
            };
            World {
                core: MetadataSwarm::new(config, now),
                credits: Credits {
                    connections: 10,
                    ..Credits::default()
                },
                now,
                fx: Vec::new(),
                need: LayerNeed {
                    root,
                    length_bytes,
                    piece_length_bytes: PIECE_LENGTH,
                },
                layer,
            }
        }

        fn call<R>(
            &mut self,
            call: impl FnOnce(&mut MetadataSwarm, &mut MetadataCx<'_>) -> R,
        ) -> R {
            let mut cx = MetadataCx {
                now: self.now,
                credits: &mut self.credits,
                fx: &mut self.fx,
            };
            call(&mut self.core, &mut cx)
        }

        fn peer(&mut self, number: u8) -> PeerKey {
            let conn = Connected {
                addr: SocketAddr::from(([192, 0, 2, number], 6881)),
                is_inbound: true,
                peer_id: PeerId::new([number; 20]),
                reserved: [0; 8],
                is_v2: false,
            };
            self.call(|core, cx| core.on_connected(conn, cx)).unwrap()
        }

        /// What the peer was asked for since the last look.
        fn asked(&mut self, key: PeerKey) -> Vec<HashRange> {
            let mut bytes = Vec::new();
            self.call(|core, cx| core.take_messages(key, &mut bytes, cx));
            let (mut decoder, mut input) = (Decoder::new(Limits::before_metadata()), &bytes[..]);
            let mut ranges = Vec::new();
            while let Some(event) = decoder.next(&mut input).unwrap() {
                if let Event::Message(Message::HashRequest(range)) = event {
                    ranges.push(range);
                }
            }
            ranges
        }

        fn answer(
            &mut self,
            key: PeerKey,
            range: HashRange,
            is_good: bool,
        ) -> Result<(), PeerFault> {
            let layers = PieceLayers::new([(self.need, self.layer.clone())]);
            let mut hashes = layers.answer(&range).unwrap();
            if !is_good {
                hashes[1][0] ^= 1;
            }
            let hashes = hashes.as_flattened();
            let message = Message::Hashes { range, hashes };
            self.call(|core, cx| core.on_message(key, &message, cx))
        }

        fn layers(&mut self) -> Option<Vec<(LayerNeed, Vec<Node>)>> {
            self.fx.drain(..).find_map(|effect| match effect {
                MetadataEffect::HasLayers(layers) => Some(layers),
                _ => None,
            })
        }
    }

    #[test]
    fn layers_of_any_length_come_in_parts_that_are_each_proven() {
        for pieces in [2, 3, 511, 512, 513, 1_025, 3_000] {
            let mut w = World::new(pieces);
            let key = w.peer(1);
            let need = w.need;
            w.call(|core, cx| core.on_layers_needed(vec![need], cx));
            loop {
                let asked = w.asked(key);
                if asked.is_empty() {
                    break;
                }
                for range in asked {
                    w.answer(key, range, true).unwrap();
                }
            }
            let layers = w.layers().expect("all is here");
            assert_eq!(layers, [(w.need, w.layer.clone())], "{pieces} pieces");
        }
    }

    #[test]
    fn whoever_sends_wrong_hashes_is_banned_and_others_are_asked() {
        let mut w = World::new(2_000);
        let need = w.need;
        let (liar, honest) = (w.peer(1), w.peer(2));
        w.call(|core, cx| core.on_layers_needed(vec![need], cx));
        let (of_liar, of_honest) = (w.asked(liar), w.asked(honest));
        assert_eq!(of_liar.len() + of_honest.len(), 4);
        let wrong = w.answer(liar, of_liar[0], false);
        assert_eq!(wrong, Err(PeerFault::WrongHashes));
        let banned = |effect: &MetadataEffect| matches!(effect, MetadataEffect::Ban { ip } if ip.to_string() == "192.0.2.1");
        assert!(w.fx.iter().any(banned));
        let mut left = of_honest;
        while let Some(range) = left.pop() {
            w.answer(honest, range, true).unwrap();
            left.extend(w.asked(honest));
        }
        assert_eq!(w.layers(), Some(vec![(w.need, w.layer.clone())]));
    }

    #[test]
    fn what_a_peer_has_not_is_asked_of_others_and_what_nobody_asked_for_is_nothing() {
        let mut w = World::new(2);
        let need = w.need;
        let first = w.peer(1);
        w.call(|core, cx| core.on_layers_needed(vec![need], cx));
        let range = w.asked(first)[0];
        let reject = Message::HashReject(range);
        w.call(|core, cx| core.on_message(first, &reject, cx))
            .unwrap();
        assert!(w.asked(first).is_empty(), "it rests");
        w.answer(first, range, true).unwrap();
        assert_eq!(w.layers(), None, "it was not asked for any more");
        let second = w.peer(2);
        w.now = w.now + Duration::from_secs(2);
        w.call(MetadataSwarm::on_timer);
        assert_eq!(w.asked(second), [range]);
        w.answer(second, range, true).unwrap();
        assert!(w.layers().is_some());
    }
}
