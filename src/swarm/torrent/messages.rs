//! What a peer says: flags, pieces, extension messages. Blocks are in `download` and `upload`.

use std::net::SocketAddr;

use crate::base::{Bitfield, BitfieldError, PieceIndex};
use crate::swarm::allowed_fast::{ALLOWED_FAST_COUNT, allowed_fast_set};
use crate::swarm::candidates::Source;
use crate::swarm::choker::UploadSlots;
use crate::swarm::effects::{Cx, Effect, PeerKey};
use crate::swarm::peer::{ALLOWED_FAST_MAX, Peer, PeerFault, PeerHave, limit};
use crate::swarm::torrent::Torrent;
use crate::wire::extended::{
    EXTENSION_HANDSHAKE_ID, Extension, ExtensionHandshake, OurExtensionHandshake, encode_donthave,
    parse_donthave, parse_upload_only,
};
use crate::wire::message::{Message, id};

impl Torrent {
    pub(super) fn dispatch(
        &mut self,
        key: PeerKey,
        message: &Message<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing) else {
            return Ok(());
        };
        peer.heard_at = cx.now;
        check_fast(peer, message)?;
        let is_first = !peer.has_spoken;
        if !matches!(
            message,
            Message::KeepAlive
                | Message::Extended { .. }
                | Message::Port { .. }
                | Message::HashRequest(_)
        ) {
            peer.has_spoken = true;
        }
        self.act_on(key, is_first, message, cx)?;
        self.check_outbox(key)
    }

    fn act_on(
        &mut self,
        key: PeerKey,
        is_first: bool,
        message: &Message<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        match *message {
            Message::KeepAlive | Message::Unknown { .. } => self.on_useless(key, cx),
            Message::Port { port } => self.on_dht_port(key, port, cx),
            Message::SuggestPiece { piece } => self.on_suggest(key, piece, cx),
            Message::Choke => self.on_choke(key, cx),
            Message::Unchoke => self.on_unchoke(key, cx),
            Message::Interested => self.on_interest(key, true, cx),
            Message::NotInterested => self.on_interest(key, false, cx),
            Message::Have { piece } => self.on_have_message(key, piece, cx),
            Message::Bitfield { bytes } => self.on_bitfield(key, is_first, bytes, cx),
            Message::HaveAll => self.on_have_set(key, is_first, PeerHave::All, cx),
            Message::HaveNone => self.on_have_set(key, is_first, PeerHave::None, cx),
            Message::Request(raw) => self.on_request(key, raw, cx),
            Message::Cancel(raw) => self.on_cancel(key, raw, cx),
            Message::RejectRequest(raw) => self.on_reject(key, raw, cx),
            Message::AllowedFast { piece } => self.on_allowed_fast(key, piece, cx),
            Message::Extended { id, payload } => self.on_extended(key, id, payload, cx),
            Message::HashRequest(range) => self.on_hash_request(key, &range, cx),
            Message::Hashes { range, hashes } => self.on_hashes(key, &range, hashes, cx),
            Message::HashReject(range) => self.on_hash_reject(key, &range, cx),
        }
    }

    /// The first messages: which pieces we have, then the extension handshake (BEP 3, BEP 6, BEP 10).
    pub(super) fn greet(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let extensions = self.extensions();
        let is_veiled = self.super_seed.is_some();
        if let Some(super_seed) = &mut self.super_seed {
            super_seed.on_peer(key, cx.now);
        }
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let have = self.pieces.have();
        let bytes = have.as_bytes();
        match (peer.is_fast, have.count()) {
            (true, _) if is_veiled => peer.send(key, &Message::HaveNone, cx),
            (false, _) if is_veiled => {}
            (true, _) if have.is_full() => peer.send(key, &Message::HaveAll, cx),
            (true, 0) => peer.send(key, &Message::HaveNone, cx),
            (false, 0) => {}
            _ => peer.send(key, &Message::Bitfield { bytes }, cx),
        }
        if peer.is_extended {
            let handshake = OurExtensionHandshake {
                extensions: &extensions,
                client: &self.cfg.client_version,
                listen_port: Some(self.cfg.listen_port).filter(|port| *port != 0),
                reqq: self.cfg.reqq,
                your_ip: Some(peer.conn.addr.ip()),
                metadata_size_bytes: self.cfg.metadata_size_bytes(),
                upload_only: !is_veiled && (!self.cfg.fetches || self.pieces.is_complete()),
            };
            let payload = handshake.encode();
            let id = EXTENSION_HANDSHAKE_ID;
            let payload = payload.as_slice();
            peer.send(key, &Message::Extended { id, payload }, cx);
        }
        if let Some(port) = self.cfg.dht_port.filter(|_| peer.owes_dht_port) {
            peer.send(key, &Message::Port { port }, cx);
        }
    }

    /// A peer says where its DHT node is. It says so once: whoever repeats it sends us nowhere (HOSTILE.md D8).
    fn on_dht_port(&mut self, key: PeerKey, port: u16, cx: &mut Cx<'_>) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        peer.count_useless(cx.now)?;
        if std::mem::take(&mut peer.owes_dht_port) && port != 0 && self.cfg.dht_port.is_some() {
            let addr = SocketAddr::new(peer.conn.addr.ip(), port);
            cx.fx.push(Effect::DhtNode { addr });
        }
        Ok(())
    }

    /// What we take of extension messages.
    fn extensions(&self) -> Vec<Extension> {
        let mut extensions = vec![Extension::LtDonthave, Extension::UploadOnly];
        if self.cfg.metadata_size_bytes().is_some() {
            extensions.push(Extension::UtMetadata);
        }
        if self.cfg.has_pex() {
            extensions.push(Extension::UtPex);
        }
        if self.cfg.has_holepunch() {
            extensions.push(Extension::UtHolepunch);
        }
        extensions
    }

    /// Tells a peer whether we want something of it, when that changed.
    pub(super) fn update_interest(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let is_interested = self.cfg.fetches && peer.needed_count > 0;
        if is_interested == peer.am_interested {
            return;
        }
        peer.am_interested = is_interested;
        match is_interested {
            true => peer.send(key, &Message::Interested, cx),
            false => peer.send(key, &Message::NotInterested, cx),
        }
    }

    /// Counts anew what we need of a peer.
    pub(super) fn recount_needed(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        peer.needed_count = self.pieces.needed_count(&peer.have);
    }

    /// The peer no longer has this piece (BEP 54).
    fn forget_have(&mut self, key: PeerKey, piece: PieceIndex, cx: &mut Cx<'_>) {
        let pieces = self.cfg.geometry.piece_count();
        let Some(peer) = self
            .peers
            .get_mut(key.0)
            .filter(|peer| peer.have.has(piece))
        else {
            return;
        };
        let picker = self.pieces.picker_mut();
        if matches!(peer.have, PeerHave::All) {
            picker.on_peer_gone(&PeerHave::All);
            picker.on_peer_has(&PeerHave::Some(Bitfield::full(pieces)));
        }
        picker.on_copy_removed(piece);
        peer.clear_have(piece, pieces);
        if self.pieces.is_needed(piece) {
            peer.needed_count -= 1;
        }
        let is_shown = (self.super_seed.as_ref()).is_none_or(|of| of.is_shown(key, piece));
        if self.pieces.have().has(piece) && is_shown {
            // It was not told, or has forgotten, that we have it.
            let piece = piece.get();
            peer.send(key, &Message::Have { piece }, cx);
        }
        if !peer.is_fast {
            // Without rejects nothing more would be heard of what it was asked for.
            self.withdraw_piece(key, piece, cx);
        }
        self.update_interest(key, cx);
    }

    /// Tells peers that we want nothing more, or something again (BEP 21 after the handshake).
    pub(super) fn announce_upload_only(&mut self, is_upload_only: bool, cx: &mut Cx<'_>) {
        for (key, peer) in self.peers.iter_mut() {
            let super_seed = self.super_seed.as_ref();
            if super_seed.is_some_and(|of| of.is_veiled(PeerKey(key))) {
                continue;
            }
            if let Some(id) = peer.extensions.id(Extension::UploadOnly) {
                let payload = [u8::from(is_upload_only)];
                let (id, payload) = (id.get(), payload.as_slice());
                peer.send(PeerKey(key), &Message::Extended { id, payload }, cx);
            }
        }
    }

    /// Tells peers that can hear it that we lost a piece (BEP 54).
    pub(super) fn announce_lost(&mut self, piece: PieceIndex, cx: &mut Cx<'_>) {
        for (key, peer) in self.peers.iter_mut() {
            let super_seed = self.super_seed.as_ref();
            if super_seed.is_some_and(|of| !of.is_shown(PeerKey(key), piece)) {
                continue;
            }
            if let Some(id) = peer.extensions.id(Extension::LtDonthave) {
                let payload = encode_donthave(piece.get());
                let (id, payload) = (id.get(), payload.as_slice());
                peer.send(PeerKey(key), &Message::Extended { id, payload }, cx);
            }
        }
    }

    fn on_interest(
        &mut self,
        key: PeerKey,
        is_interested: bool,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        peer.count_useless(cx.now)?;
        let was_interested = std::mem::replace(&mut peer.peer_interested, is_interested);
        if was_interested && !is_interested {
            self.on_super_satisfied(key, cx);
            return Ok(());
        }
        if is_interested && !was_interested && peer.am_choking {
            self.on_newly_interested(cx);
            self.offer_allowed_fast(key, cx);
        }
        Ok(())
    }

    fn on_have_message(
        &mut self,
        key: PeerKey,
        piece: u32,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let piece = self.check_piece(piece)?;
        let pieces = self.cfg.geometry.piece_count();
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if !peer.set_have(piece, pieces) {
            return peer.count_useless(cx.now);
        }
        self.pieces.picker_mut().on_copy_added(piece);
        if peer.have.is_all() {
            self.mark_seed(key, true);
        }
        self.on_super_news(key, false, |news| news == piece, cx);
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if self.pieces.is_needed(piece) {
            peer.needed_count += 1;
            peer.nothing_at_epoch = 0;
            self.update_interest(key, cx);
            self.fill(key, cx);
            self.take_over_piece(key, piece, cx);
        }
        Ok(())
    }

    fn on_bitfield(
        &mut self,
        key: PeerKey,
        is_first: bool,
        bytes: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let bits = Bitfield::from_wire(bytes, self.cfg.geometry.piece_count());
        let bits = bits.map_err(|error| match error {
            BitfieldError::SpareBitSet => PeerFault::BitfieldSpareBits,
            BitfieldError::BadLength {
                expected_bytes,
                got_bytes,
            } => PeerFault::BitfieldLength {
                expected_bytes: u32::try_from(expected_bytes).unwrap_or(u32::MAX),
                got_bytes: u32::try_from(got_bytes).unwrap_or(u32::MAX),
            },
        })?;
        let have = match (bits.is_full(), bits.count()) {
            (true, _) => PeerHave::All,
            (_, 0) => PeerHave::None,
            _ => PeerHave::Some(bits),
        };
        self.on_have_set(key, is_first, have, cx)
    }

    fn on_have_set(
        &mut self,
        key: PeerKey,
        is_first: bool,
        have: PeerHave,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        if !is_first {
            return self.on_more_pieces(key, have, cx);
        }
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        peer.have = have;
        peer.nothing_at_epoch = 0;
        self.pieces.picker_mut().on_peer_has(&peer.have);
        let is_seed = peer.have.is_all();
        self.mark_seed(key, is_seed);
        self.recount_needed(key);
        self.update_interest(key, cx);
        self.on_more_super_news(key, true, cx);
        self.on_super_peer(key, cx);
        Ok(())
    }

    /// As many pieces as it may be: each may be one that somebody was shown.
    fn on_more_super_news(&mut self, key: PeerKey, is_first: bool, cx: &mut Cx<'_>) {
        if self.is_super_seeding()
            && let Some(peer) = self.peers.get(key.0)
        {
            let have = peer.have.clone();
            self.on_super_news(key, is_first, |piece| have.has(piece), cx);
        }
    }

    fn mark_seed(&mut self, key: PeerKey, is_seed: bool) {
        if let Some(peer) = self.peers.get(key.0) {
            let addr = peer.listen_addr.unwrap_or(peer.conn.addr);
            self.candidates.mark_seed(addr, is_seed);
        }
    }

    /// A bitfield in mid-stream stands for a run of haves: aria2 sends one in their place. What a flood of them costs is
    /// bounded by their bytes.
    fn on_more_pieces(
        &mut self,
        key: PeerKey,
        have: PeerHave,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let pieces = self.cfg.geometry.piece_count();
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if !have.includes(&peer.have) {
            return Err(PeerFault::BitfieldShrinks);
        }
        if have.count(pieces) == peer.have.count(pieces) {
            return peer.count_useless(cx.now);
        }
        let old = std::mem::replace(&mut peer.have, have);
        peer.nothing_at_epoch = 0;
        match (&old, &peer.have) {
            (PeerHave::Some(old), PeerHave::Some(new)) => {
                for piece in new.iter_without(old) {
                    peer.needed_count += u32::from(self.pieces.is_needed(piece));
                    self.pieces.picker_mut().on_copy_added(piece);
                }
            }
            (old, new) => {
                self.pieces.picker_mut().on_peer_gone(old);
                self.pieces.picker_mut().on_peer_has(new);
                self.recount_needed(key);
            }
        }
        self.after_more_pieces(key, cx);
        Ok(())
    }

    fn after_more_pieces(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        if self.peers.get(key.0).is_some_and(|peer| peer.have.is_all()) {
            self.mark_seed(key, true);
        }
        self.on_more_super_news(key, false, cx);
        self.update_interest(key, cx);
        self.fill(key, cx);
    }

    /// Names pieces that a new peer may fetch although it stays choked: it has nothing to trade yet (BEP 6).
    fn offer_allowed_fast(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let geometry = &self.cfg.geometry;
        if self.is_veiled(key) {
            return;
        }
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let uploads = self.cfg.upload_slots != UploadSlots::Fixed(0);
        let is_new = peer.have.count(geometry.piece_count()) < ALLOWED_FAST_COUNT as u32;
        if !peer.is_fast || !peer.am_choking || !uploads || !is_new || peer.has_been_offered_fast {
            return;
        }
        peer.has_been_offered_fast = true;
        for piece in allowed_fast_set(peer.conn.addr.ip(), &self.cfg.info_hash, geometry) {
            if peer.have.has(piece) || !self.pieces.have().has(piece) {
                continue;
            }
            peer.allowed_out.push(piece);
            peer.allowed_out_bytes += u64::from(geometry.piece_bytes(piece));
            let piece = piece.get();
            peer.send(key, &Message::AllowedFast { piece }, cx);
        }
    }

    fn on_suggest(&mut self, key: PeerKey, piece: u32, cx: &mut Cx<'_>) -> Result<(), PeerFault> {
        self.check_piece(piece)?;
        self.on_useless(key, cx)
    }

    /// A message that changes nothing.
    pub(super) fn on_useless(&mut self, key: PeerKey, cx: &mut Cx<'_>) -> Result<(), PeerFault> {
        match self.peers.get_mut(key.0) {
            Some(peer) => peer.count_useless(cx.now),
            None => Ok(()),
        }
    }

    fn on_allowed_fast(
        &mut self,
        key: PeerKey,
        piece: u32,
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let piece = self.check_piece(piece)?;
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if peer.allowed_in.contains(&piece) || peer.allowed_in.len() >= ALLOWED_FAST_MAX {
            return peer.count_useless(cx.now);
        }
        peer.allowed_in.push(piece);
        peer.nothing_at_epoch = 0;
        self.fill(key, cx);
        Ok(())
    }

    fn on_extended(
        &mut self,
        key: PeerKey,
        id: u8,
        payload: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        let bad = PeerFault::BadExtended { id };
        if !peer.is_extended {
            return Err(bad);
        }
        peer.count_useless(cx.now)?;
        if id == EXTENSION_HANDSHAKE_ID {
            let handshake = ExtensionHandshake::parse(payload).map_err(|_| bad)?;
            self.on_extension_handshake(key, handshake, cx);
            return Ok(());
        }
        match Extension::from_our_id(id) {
            Some(Extension::UploadOnly) => {
                peer.is_upload_only = parse_upload_only(payload).map_err(|_| bad)?;
                self.open_if_done(key, cx);
            }
            Some(Extension::LtDonthave) => {
                let piece = self.check_piece(parse_donthave(payload).map_err(|_| bad)?)?;
                self.forget_have(key, piece, cx);
            }
            Some(Extension::UtMetadata) => self.on_metadata(key, payload, cx)?,
            Some(Extension::UtPex) => self.on_pex(key, payload, cx)?,
            Some(Extension::UtHolepunch) => self.on_holepunch(key, payload, cx)?,
            None => {}
        }
        Ok(())
    }

    fn on_extension_handshake(
        &mut self,
        key: PeerKey,
        handshake: ExtensionHandshake,
        cx: &mut Cx<'_>,
    ) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        peer.extensions.update(&handshake);
        if let Some(reqq) = handshake.reqq {
            peer.pipeline.set_peer_reqq(reqq);
        }
        if let Some(is_upload_only) = handshake.upload_only {
            peer.is_upload_only = is_upload_only;
        }
        let claimed = handshake.your_ip;
        let seen = claimed.and_then(|ip| self.own_address.on_claim(peer.conn.addr.ip(), ip));
        if let Some(ip) = seen {
            let addr = SocketAddr::new(ip, self.cfg.listen_port);
            self.candidates.set_seen_at(addr);
        }
        if let Some(prefers) = handshake.prefers_encryption {
            peer.prefers_encryption = prefers;
        }
        if let Some(client) = handshake.client {
            peer.client = client;
        }
        // Once: a peer that names ever more ports would fill the address book.
        let is_news = peer.conn.is_inbound && peer.listen_addr.is_none();
        if let Some(port) = handshake.listen_port.filter(|_| is_news) {
            let mut addr = peer.conn.addr;
            addr.set_port(port);
            peer.listen_addr = Some(addr);
            let is_seed = peer.have.is_all();
            self.candidates.add(Source::Inbound, &[addr], cx.now);
            self.candidates.on_connected(addr);
            self.candidates.mark_seed(addr, is_seed);
            self.on_pex_news(cx.now);
        }
        self.on_pex_taker(cx.now);
        self.open_if_done(key, cx);
    }

    fn check_piece(&self, got: u32) -> Result<PieceIndex, PeerFault> {
        let pieces = self.cfg.geometry.piece_count();
        let piece = self.cfg.geometry.piece(got);
        piece.ok_or(PeerFault::PieceOutOfRange { got, pieces })
    }
}

/// Messages of the fast extension need its bit on both sides (BEP 6).
fn check_fast(peer: &Peer, message: &Message<'_>) -> Result<(), PeerFault> {
    let id = match message.id() {
        Some(id @ (id::SUGGEST_PIECE..=id::ALLOWED_FAST)) => u32::from(id),
        _ => return Ok(()),
    };
    limit(id, if peer.is_fast { u32::MAX } else { 0 }, |id, _| {
        PeerFault::FastNotAgreed { id: id as u8 }
    })
}
