//! What a peer says: flags, pieces, extension messages. Blocks are in `download` and `upload`.

use crate::base::{Bitfield, BitfieldError, PieceIndex, Rng};
use crate::swarm::candidates::Source;
use crate::swarm::choker::UploadSlots;
use crate::swarm::effects::{Cx, PeerKey};
use crate::swarm::peer::{ALLOWED_FAST_MAX, Peer, PeerFault, PeerHave, limit};
use crate::swarm::torrent::Torrent;
use crate::wire::extended::{
    EXTENSION_HANDSHAKE_ID, Extension, ExtensionHandshake, OurExtensionHandshake, encode_donthave,
    parse_donthave, parse_upload_only,
};
use crate::wire::message::{Message, id};

/// Size of the set that we let a new peer fetch while choked (BEP 6, "Allowed Fast Set").
const ALLOWED_FAST_COUNT: usize = 10;
/// A peer with fewer pieces than this gets the set: it has nothing to trade yet.
const ALLOWED_FAST_BELOW: u32 = 10;

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
            Message::KeepAlive | Message::Extended { .. } | Message::Port { .. }
        ) {
            peer.has_spoken = true;
        }
        match *message {
            Message::KeepAlive | Message::Port { .. } => peer.count_useless(cx.now),
            Message::SuggestPiece { piece } => self.on_suggest(key, piece, cx),
            Message::Unknown { .. } => peer.count_useless(cx.now),
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
        }
    }

    /// The first messages: which pieces we have, then the extension handshake (BEP 3, BEP 6, BEP 10).
    pub(super) fn greet(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let have = self.pieces.have();
        let bytes = have.as_bytes();
        match (peer.is_fast, have.count()) {
            (true, _) if have.is_full() => peer.send(key, &Message::HaveAll, cx),
            (true, 0) => peer.send(key, &Message::HaveNone, cx),
            (false, 0) => {}
            _ => peer.send(key, &Message::Bitfield { bytes }, cx),
        }
        if peer.is_extended {
            let handshake = OurExtensionHandshake {
                extensions: &[Extension::LtDonthave, Extension::UploadOnly],
                client: &self.cfg.client_version,
                listen_port: Some(self.cfg.listen_port).filter(|port| *port != 0),
                reqq: self.cfg.reqq,
                your_ip: Some(peer.conn.addr.ip()),
                metadata_size_bytes: None,
                upload_only: !self.cfg.fetches || self.pieces.is_complete(),
            };
            let payload = handshake.encode();
            let id = EXTENSION_HANDSHAKE_ID;
            let payload = payload.as_slice();
            peer.send(key, &Message::Extended { id, payload }, cx);
        }
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
        let pieces = &self.pieces;
        let needed = |piece: &PieceIndex| pieces.is_needed(*piece);
        peer.needed_count = match &peer.have {
            PeerHave::None => 0,
            PeerHave::All => pieces.wanted().count() - pieces.wanted_have_count(),
            PeerHave::Some(bits) => bits.iter().filter(needed).count() as u32,
        };
    }

    /// The peer has not, or no longer, this piece.
    pub(super) fn forget_have(&mut self, key: PeerKey, piece: PieceIndex, cx: &mut Cx<'_>) {
        let Some(peer) = self
            .peers
            .get_mut(key.0)
            .filter(|peer| peer.have.has(piece))
        else {
            return;
        };
        let picker = self.pieces.picker_mut();
        if matches!(peer.have, PeerHave::All) {
            picker.on_peer_gone(&peer.have);
            peer.have = PeerHave::Some(Bitfield::full(self.cfg.geometry.piece_count()));
            picker.on_peer_has(&peer.have);
        }
        if let PeerHave::Some(bits) = &mut peer.have {
            bits.clear(piece);
            picker.on_copy_removed(piece);
        }
        if self.pieces.is_needed(piece) {
            peer.needed_count -= 1;
        }
        self.update_interest(key, cx);
    }

    /// Tells peers that we want nothing more, or something again (BEP 21 after the handshake).
    pub(super) fn announce_upload_only(&mut self, is_upload_only: bool, cx: &mut Cx<'_>) {
        for (key, peer) in self.peers.iter_mut() {
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
        peer.peer_interested = is_interested;
        if is_interested && peer.am_choking {
            self.on_newly_interested(cx);
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
        if !peer.have.set(piece, pieces) {
            return peer.count_useless(cx.now);
        }
        self.pieces.picker_mut().on_copy_added(piece);
        if peer.have.is_all() {
            self.candidates.mark_seed(peer.conn.addr, true);
        }
        if self.pieces.is_needed(piece) {
            peer.needed_count += 1;
            peer.nothing_at_epoch = 0;
            self.update_interest(key, cx);
            self.fill(key, cx);
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
        self.candidates.mark_seed(peer.conn.addr, is_seed);
        self.recount_needed(key);
        self.update_interest(key, cx);
        self.offer_allowed_fast(key, cx);
        Ok(())
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
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        if peer.have.is_all() {
            self.candidates.mark_seed(peer.conn.addr, true);
        }
        self.update_interest(key, cx);
        self.fill(key, cx);
    }

    /// Names pieces that a new peer may fetch while choked. The set follows from its address and our seed, so that
    /// dialing again does not widen it (BEP 6).
    fn offer_allowed_fast(&mut self, key: PeerKey, cx: &mut Cx<'_>) {
        let pieces = self.cfg.geometry.piece_count();
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let uploads = self.cfg.upload_slots != UploadSlots::Fixed(0);
        let is_new = peer.have.count(pieces) < ALLOWED_FAST_BELOW.min(pieces);
        if !peer.is_fast || !uploads || !is_new {
            return;
        }
        let ip = match peer.conn.addr.ip().to_canonical() {
            std::net::IpAddr::V4(ip) => u64::from(u32::from(ip)),
            std::net::IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
        };
        let mut rng = Rng::new(self.cfg.seed ^ ip);
        for _ in 0..ALLOWED_FAST_COUNT {
            let piece = PieceIndex::new(rng.below(u64::from(pieces)) as u32);
            let is_known = peer.allowed_out.contains(&piece) || peer.have.has(piece);
            if !is_known && self.pieces.have().has(piece) {
                peer.allowed_out.push(piece);
                let piece = piece.get();
                peer.send(key, &Message::AllowedFast { piece }, cx);
            }
        }
    }

    fn on_suggest(&mut self, key: PeerKey, piece: u32, cx: &mut Cx<'_>) -> Result<(), PeerFault> {
        self.check_piece(piece)?;
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
            }
            Some(Extension::LtDonthave) => {
                let piece = self.check_piece(parse_donthave(payload).map_err(|_| bad)?)?;
                self.forget_have(key, piece, cx);
            }
            _ => {}
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
        if let Some(port) = handshake.listen_port.filter(|_| peer.conn.is_inbound) {
            let mut addr = peer.conn.addr;
            addr.set_port(port);
            self.candidates.add(Source::Inbound, &[addr], cx.now);
        }
        if let Some(client) = handshake.client {
            peer.client = client;
        }
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
