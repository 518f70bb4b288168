//! The metadata for peers that have none (BEP 9): requests queue by peer, and answers are made when its writer takes
//! them, so that a peer that reads nothing costs no memory.

use crate::swarm::effects::{Cx, PeerKey};
use crate::swarm::peer::{Peer, PeerFault};
use crate::swarm::torrent::Torrent;
use crate::wire::extended::Extension;
use crate::wire::message::{Message, encode};
use crate::wire::ut_metadata::MetadataMessage;

impl Torrent {
    pub(super) fn on_metadata(
        &mut self,
        key: PeerKey,
        payload: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let Some(size_bytes) = self.cfg.metadata_size_bytes() else {
            return Ok(());
        };
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        let bad = PeerFault::BadExtended {
            id: Extension::UtMetadata.our_id(),
        };
        let message = MetadataMessage::parse(payload).map_err(|_| bad)?;
        let MetadataMessage::Request { piece } = message else {
            // Nothing was asked for.
            return Ok(());
        };
        let Some(id) = peer.extensions.id(Extension::UtMetadata) else {
            return Ok(());
        };
        if peer.metadata.push(piece, size_bytes, cx.now) {
            peer.wake(key, cx);
            return Ok(());
        }
        let mut payload = Vec::new();
        MetadataMessage::Reject { piece }.encode(&mut payload);
        let (id, payload) = (id.get(), payload.as_slice());
        peer.send(key, &Message::Extended { id, payload }, cx);
        Ok(())
    }
}

/// Appends answers until there are `end_bytes` in `out`, or one more than that.
pub(super) fn take(peer: &mut Peer, metadata: &[u8], out: &mut Vec<u8>, end_bytes: usize) {
    let Some(id) = peer.extensions.id(Extension::UtMetadata) else {
        return;
    };
    let mut payload = Vec::new();
    while out.len() < end_bytes && peer.metadata.next(metadata, &mut payload) {
        let (id, bytes) = (id.get(), payload.as_slice());
        encode(&Message::Extended { id, payload: bytes }, out);
        payload.clear();
    }
}
