//! Connecting peers that nobody can dial: asking for it, helping others with it, and dialing when a relay says so (BEP 55).

use std::net::SocketAddr;

use crate::swarm::effects::{Cx, Effect, PeerKey};
use crate::swarm::holepunch::{PUNCHES_MAX, is_somebody};
use crate::swarm::peer::{Peer, PeerFault};
use crate::swarm::pex::{may_tell, source_of};
use crate::swarm::torrent::Torrent;
use crate::wire::extended::Extension;
use crate::wire::message::Message;
use crate::wire::ut_holepunch::{HolepunchError, HolepunchMessage, HolepunchParseError};

impl Torrent {
    /// uTP carries the connection. To be called right after `on_connected`; a stale key is ignored.
    pub fn on_utp(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(key.0)
            && !std::mem::replace(&mut peer.is_utp, true)
        {
            self.met_utp = self.met_utp.saturating_add(1);
        }
    }

    /// A dial at a relay's word ended without a handshake; gives its connection credit back.
    pub fn on_punch_failed(&mut self, addr: SocketAddr, cx: &mut Cx<'_>) {
        if self.punching.remove(&addr) || self.dialing.remove(&addr) {
            cx.credits.connections += 1;
            self.dial(cx);
        }
        self.after_event();
    }

    /// Nobody could be reached there: one who told of the peer is asked to arrange a meeting.
    pub(super) fn ask_for_rendezvous(&mut self, addr: SocketAddr, cx: &mut Cx<'_>) {
        let is_useless = self.pieces.is_complete() && self.candidates.is_seed(addr);
        if !self.cfg.has_holepunch() || self.is_stopping || is_useless {
            return;
        }
        for (key, peer) in self.peers.iter_mut() {
            let may_help = !peer.is_closing
                && peer.extensions.id(Extension::UtHolepunch).is_some()
                && peer.holes.has_named(addr)
                && peer.holes.may_ask(cx.now);
            if may_help {
                return tell(PeerKey(key), peer, HolepunchMessage::Rendezvous(addr), cx);
            }
        }
    }

    /// A message of a peer that takes such messages too; those of others are ignored (BEP 55).
    pub(super) fn on_holepunch(
        &mut self,
        key: PeerKey,
        payload: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let has_holepunch = self.cfg.has_holepunch();
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if !has_holepunch || peer.extensions.id(Extension::UtHolepunch).is_none() {
            return Ok(());
        }
        match HolepunchMessage::parse(payload) {
            Ok(HolepunchMessage::Rendezvous(addr)) => self.on_rendezvous(key, addr, cx),
            Ok(HolepunchMessage::Connect(addr)) => self.on_connect(key, addr, cx),
            // The peer is dialed again after a while, and others may be asked then.
            Ok(HolepunchMessage::Error(..)) => {}
            Err(HolepunchParseError::TooShort { .. }) => {
                let id = Extension::UtHolepunch.our_id();
                return Err(PeerFault::BadExtended { id });
            }
            // A later version of the extension.
            Err(_) => {}
        }
        Ok(())
    }

    /// A peer wants to be connected with another one of ours (HOSTILE.md W17). It gets one message for its own, and the
    /// other one too; nothing goes anywhere else.
    fn on_rendezvous(&mut self, key: PeerKey, addr: SocketAddr, cx: &mut Cx<'_>) {
        let Some(asker) = self.peers.get_mut(key.0) else {
            return;
        };
        if !asker.holes.may_be_asked(cx.now) {
            return;
        }
        let (to_asker, to_target) = match self.arrange(key, addr) {
            Ok((target, asker_at, target_at)) => {
                let target_peer = self.peers.get_mut(target.0);
                if !target_peer.is_some_and(|peer| peer.holes.may_be_told(cx.now)) {
                    return;
                }
                let connect = HolepunchMessage::Connect;
                (connect(target_at), Some((target, connect(asker_at))))
            }
            Err(error) => (HolepunchMessage::Error(addr, error), None),
        };
        for (key, message) in [Some((key, to_asker)), to_target].into_iter().flatten() {
            if let Some(peer) = self.peers.get_mut(key.0) {
                tell(key, peer, message, cx);
            }
        }
    }

    /// Who is meant, and where the two are to dial each other: the asker's address first.
    fn arrange(
        &self,
        asker: PeerKey,
        addr: SocketAddr,
    ) -> Result<(PeerKey, SocketAddr, SocketAddr), HolepunchError> {
        if !is_somebody(addr) {
            return Err(HolepunchError::NoSuchPeer);
        }
        if self.candidates.is_own(addr) {
            return Err(HolepunchError::NoSelf);
        }
        let asker_at = self.peers.get(asker.0).and_then(Peer::punchable_at);
        let asker_at = asker_at.ok_or(HolepunchError::NotConnected)?;
        let mut staying = self.staying();
        let found = staying.find(|(_, peer)| peer.is_at(addr));
        let (target, peer) = found.ok_or(HolepunchError::NotConnected)?;
        if target == asker {
            return Err(HolepunchError::NoSuchPeer);
        }
        if peer.extensions.id(Extension::UtHolepunch).is_none() {
            return Err(HolepunchError::NoSupport);
        }
        let target_at = peer.punchable_at().ok_or(HolepunchError::NotConnected)?;
        // Addresses of a local network lead elsewhere for whoever is outside.
        let can_meet = asker_at.is_ipv4() == target_at.is_ipv4()
            && may_tell(asker_at.ip(), target_at.ip())
            && may_tell(target_at.ip(), asker_at.ip());
        match can_meet {
            true => Ok((target, asker_at, target_at)),
            false => Err(HolepunchError::NotConnected),
        }
    }

    /// A relay says that the peer there dials us now. One dial over uTP is all that it can bring about, and where peer
    /// exchange could send us no further (HOSTILE.md W18).
    fn on_connect(&mut self, key: PeerKey, addr: SocketAddr, cx: &mut Cx<'_>) {
        let Some(relay) = self.peers.get_mut(key.0) else {
            return;
        };
        if !relay.holes.may_tell(cx.now) {
            return;
        }
        let relay_ip = relay.conn.addr.ip();
        let is_useless =
            (self.pieces.is_complete() || !self.cfg.fetches) && self.candidates.is_seed(addr);
        let is_wanted = !self.is_stopping
            && !is_useless
            && is_somebody(addr)
            && !addr.ip().to_canonical().is_loopback()
            && may_tell(addr.ip(), relay_ip)
            && self.candidates.may_dial(source_of(relay_ip), addr)
            && !self.is_connected_to(addr);
        let has_room = self.punching.len() < PUNCHES_MAX
            && self.places_taken() < self.cfg.peers_max as usize
            && cx.credits.dials > 0
            && cx.credits.connections > 0;
        if !is_wanted || !has_room || !self.punching.insert(addr) {
            return;
        }
        cx.credits.dials -= 1;
        cx.credits.connections -= 1;
        cx.fx.push(Effect::Punch { addr });
    }

    /// Whether a peer there is connected that stays.
    pub(super) fn is_connected_to(&self, addr: SocketAddr) -> bool {
        self.staying().any(|(_, peer)| peer.is_at(addr))
    }
}

fn tell(key: PeerKey, peer: &mut Peer, message: HolepunchMessage, cx: &mut Cx<'_>) {
    if let Some(id) = peer.extensions.id(Extension::UtHolepunch) {
        let payload = message.encode();
        let (id, payload) = (id.get(), payload.as_slice());
        peer.send(key, &Message::Extended { id, payload }, cx);
    }
}
