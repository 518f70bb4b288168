//! What is said on the connections of the search: extension messages, and nothing of pieces.

use super::{AttemptKey, MetadataCx, MetadataEffect, MetadataSwarm};
use crate::swarm::PeerFault;
use crate::swarm::candidates::{Parting, Source};
use crate::swarm::effects::PeerKey;
use crate::swarm::pex;
use crate::swarm::torrent::REQQ_DEFAULT;
use crate::wire::extended::{
    EXTENSION_HANDSHAKE_ID, Extension, ExtensionHandshake, OurExtensionHandshake,
};
use crate::wire::handshake::Reserved;
use crate::wire::message::Message;
use crate::wire::ut_metadata::MetadataMessage;
use crate::wire::ut_pex::PexMessage;

impl MetadataSwarm {
    /// One whole message; all that concerns pieces is passed over.
    ///
    /// # Errors
    /// The peer broke the protocol: the runtime closes the connection, then calls `on_disconnected`.
    pub fn on_message(
        &mut self,
        key: PeerKey,
        message: &Message<'_>,
        cx: &mut MetadataCx<'_>,
    ) -> Result<(), PeerFault> {
        let result = self.dispatch(key, message, cx);
        if result.is_err() {
            self.release(key);
            if let Some(peer) = self.peers.get_mut(key.0) {
                peer.is_closing = true;
                peer.parting = Parting::Faulty;
            }
        }
        self.after_event();
        result
    }

    /// Appends encoded messages; returns the bytes appended.
    pub fn take_messages(
        &mut self,
        key: PeerKey,
        out: &mut Vec<u8>,
        cx: &mut MetadataCx<'_>,
    ) -> usize {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return 0;
        };
        peer.is_woken = false;
        if peer.is_closing {
            return 0;
        }
        let bytes = peer.outbox.len();
        out.append(&mut peer.outbox);
        if bytes > 0 {
            peer.sent_at = cx.now;
        }
        bytes
    }

    /// The first messages: that we have nothing (BEP 6), then the extension handshake (BEP 10).
    pub(super) fn greet(&mut self, key: PeerKey, cx: &mut MetadataCx<'_>) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        if Reserved::new(peer.conn.reserved).has_fast() {
            peer.send(key, &Message::HaveNone, cx);
        }
        if !peer.is_extended {
            return;
        }
        let extensions: &[Extension] = match self.cfg.exchanges_peers {
            true => &[Extension::UtMetadata, Extension::UtPex],
            false => &[Extension::UtMetadata],
        };
        let handshake = OurExtensionHandshake {
            extensions,
            client: &self.cfg.client_version,
            listen_port: Some(self.cfg.listen_port).filter(|port| *port != 0),
            reqq: REQQ_DEFAULT,
            your_ip: Some(peer.conn.addr.ip()),
            metadata_size_bytes: None,
            upload_only: false,
        };
        let payload = handshake.encode();
        let (id, payload) = (EXTENSION_HANDSHAKE_ID, payload.as_slice());
        peer.send(key, &Message::Extended { id, payload }, cx);
    }

    fn dispatch(
        &mut self,
        key: PeerKey,
        message: &Message<'_>,
        cx: &mut MetadataCx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0).filter(|peer| !peer.is_closing) else {
            return Ok(());
        };
        peer.heard_at = cx.now;
        let (id, payload) = match *message {
            Message::Extended { id, payload } => (id, payload),
            Message::Hashes { range, hashes } => return self.on_hashes(key, &range, hashes, cx),
            Message::HashReject(range) => return self.on_hash_reject(key, &range, cx),
            _ => return peer.count_useless(cx.now),
        };
        let bad = PeerFault::BadExtended { id };
        if !peer.is_extended {
            return Err(bad);
        }
        if id == EXTENSION_HANDSHAKE_ID {
            peer.count_useless(cx.now)?;
            let handshake = ExtensionHandshake::parse(payload).map_err(|_| bad)?;
            self.on_extension_handshake(key, &handshake, cx);
            return Ok(());
        }
        match Extension::from_our_id(id) {
            Some(Extension::UtMetadata) => {
                let message = MetadataMessage::parse(payload).map_err(|_| bad)?;
                self.on_metadata(key, &message, cx)
            }
            Some(Extension::UtPex) => {
                peer.count_useless(cx.now)?;
                if self.cfg.exchanges_peers && peer.pex.may_take(cx.now) {
                    let teller = peer.listen_addr.unwrap_or(peer.conn.addr);
                    let message = PexMessage::parse(payload).map_err(|_| bad)?;
                    let (source, peers) = pex::believed(teller, &message);
                    let addrs: Vec<_> = peers.iter().map(|peer| peer.addr).collect();
                    self.candidates.add(source, &addrs, cx.now);
                    self.dial(cx);
                }
                Ok(())
            }
            _ => peer.count_useless(cx.now),
        }
    }

    fn on_extension_handshake(
        &mut self,
        key: PeerKey,
        handshake: &ExtensionHandshake,
        cx: &mut MetadataCx<'_>,
    ) {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        peer.extensions.update(handshake);
        // Once: a peer that names ever more ports would fill the address book.
        let is_news = peer.conn.is_inbound && peer.listen_addr.is_none();
        if let Some(port) = handshake.listen_port.filter(|_| is_news) {
            let mut addr = peer.conn.addr;
            addr.set_port(port);
            peer.listen_addr = Some(addr);
            self.candidates.add(Source::Inbound, &[addr], cx.now);
            self.candidates.on_connected(addr);
        }
        let size_bytes = handshake.metadata_size_bytes;
        if size_bytes.is_some() && size_bytes != peer.size_bytes {
            self.leave(key);
            if let Some(peer) = self.peers.get_mut(key.0) {
                peer.size_bytes = size_bytes;
            }
        }
        self.assign(key, cx);
    }

    /// The peer works at its copy no more.
    fn leave(&mut self, key: PeerKey) {
        self.release(key);
        let Some(peer) = self.peers.get_mut(key.0) else {
            return;
        };
        let Some(AttemptKey(attempt)) = peer.attempt.take() else {
            return;
        };
        let of = self.attempts.get(attempt);
        if of.is_some_and(|of| of.solo == Some(key) && !of.is_whole()) {
            self.attempts.remove(attempt);
        }
    }

    fn on_metadata(
        &mut self,
        key: PeerKey,
        message: &MetadataMessage<'_>,
        cx: &mut MetadataCx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        match *message {
            MetadataMessage::Request { piece } => {
                peer.count_useless(cx.now)?;
                let Some(id) = peer.extensions.id(Extension::UtMetadata) else {
                    return Ok(());
                };
                // We have nothing yet. What it does not take is bounded by what it may ask in vain.
                let mut payload = Vec::new();
                MetadataMessage::Reject { piece }.encode(&mut payload);
                let (id, payload) = (id.get(), payload.as_slice());
                if peer.outbox.len() < crate::swarm::peer::OUTBOX_BYTES_MAX {
                    peer.send(key, &Message::Extended { id, payload }, cx);
                }
                Ok(())
            }
            MetadataMessage::Reject { piece } => {
                let Some(at) = peer.asked.iter().position(|(asked, _)| *asked == piece) else {
                    return peer.count_useless(cx.now);
                };
                peer.asked.remove(at);
                peer.rest(cx.now);
                if let Some(attempt) = peer.attempt.and_then(|of| self.attempts.get_mut(of.0)) {
                    attempt.give_back(piece);
                }
                Ok(())
            }
            MetadataMessage::Data {
                piece,
                total_bytes,
                bytes,
            } => self.on_data(key, piece, total_bytes, bytes, cx),
            MetadataMessage::Unknown => peer.count_useless(cx.now),
        }
    }

    fn on_data(
        &mut self,
        key: PeerKey,
        piece: u32,
        total_bytes: u32,
        bytes: &[u8],
        cx: &mut MetadataCx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        let Some(at) = peer.asked.iter().position(|(asked, _)| *asked == piece) else {
            return peer.count_useless(cx.now);
        };
        if peer.size_bytes != Some(total_bytes) {
            let id = Extension::UtMetadata.our_id();
            return Err(PeerFault::BadExtended { id });
        }
        peer.asked.remove(at);
        peer.failure_count = 0;
        peer.rests_until = cx.now;
        peer.has_sent = true;
        let party = peer.party;
        if let Some(of) = peer.attempt
            && let Some(attempt) = self.attempts.get_mut(of.0)
            && attempt.store(piece, bytes, party, cx.now)
            && attempt.is_whole()
        {
            let bytes = attempt.bytes();
            cx.fx.push(MetadataEffect::Verify { attempt: of, bytes });
        }
        self.ask(key, cx);
        Ok(())
    }
}
