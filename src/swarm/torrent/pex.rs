//! Telling peers of each other, and listening to what they tell (BEP 11).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::Now;
use crate::swarm::effects::{Cx, PeerKey};
use crate::swarm::peer::PeerFault;
use crate::swarm::pex::believed;
use crate::swarm::torrent::Torrent;
use crate::wire::extended::Extension;
use crate::wire::message::Message;
use crate::wire::ut_pex::{PexFlags, PexMessage};

/// Who comes within this time is told together.
const GATHER: Duration = Duration::from_secs(1);

impl Torrent {
    /// The connection that we made to it began hidden (Message Stream Encryption): others may do so too. To be called right after
    /// `on_connected`; a stale key is ignored.
    pub fn on_hidden(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(key.0) {
            peer.took_hidden = true;
        }
    }

    /// Somebody whom others can reach came or went.
    pub(super) fn on_pex_news(&mut self, now: Now) {
        if self.cfg.has_pex() {
            self.pex_epoch += 1;
            self.pex_by(now + GATHER);
        }
    }

    /// A peer takes peer exchange from now on: it has heard of nobody. However often it says so, others are not looked at.
    pub(super) fn on_pex_taker(&mut self, now: Now) {
        if self.cfg.has_pex() {
            self.pex_by(now + GATHER);
        }
    }

    fn pex_by(&mut self, at: Now) {
        self.pex_at = Some(self.pex_at.map_or(at, |pex_at| pex_at.min(at)));
    }

    /// Sends each peer whose minute is over what it has not heard yet.
    pub(super) fn exchange_peers(&mut self, cx: &mut Cx<'_>) {
        self.pex_at = None;
        let mut present = BTreeMap::new();
        for (_, peer) in self.staying() {
            let Some(addr) = peer.reachable_at() else {
                continue;
            };
            let flags = [
                (peer.is_seed(), PexFlags::SEED),
                (
                    !peer.conn.is_inbound && !peer.was_punched,
                    PexFlags::REACHABLE,
                ),
                (peer.is_utp, PexFlags::UTP),
                (
                    peer.extensions.id(Extension::UtHolepunch).is_some(),
                    PexFlags::HOLEPUNCH,
                ),
                (
                    peer.prefers_encryption || peer.took_hidden,
                    PexFlags::ENCRYPTION,
                ),
            ];
            let flags = flags.into_iter().filter(|(is_set, _)| *is_set);
            let flags = flags.fold(PexFlags::default(), |all, (_, flag)| all.and(flag));
            present.insert(addr, flags);
        }
        let epoch = self.pex_epoch;
        let mut again_at: Option<Now> = None;
        for (key, peer) in self.peers.iter_mut() {
            let Some(id) = peer.extensions.id(Extension::UtPex) else {
                continue;
            };
            if peer.is_closing || !peer.pex_out.is_behind(epoch) {
                continue;
            }
            // Nobody is told of itself.
            let own = peer.reachable_at();
            let own = own.and_then(|addr| Some((addr, present.remove(&addr)?)));
            let to = peer.conn.addr.ip();
            let message = peer.pex_out.next(to, &present, epoch, cx.now);
            present.extend(own);
            if let Some(message) = message {
                let payload = message.encode();
                let (id, payload) = (id.get(), payload.as_slice());
                peer.send(PeerKey(key), &Message::Extended { id, payload }, cx);
            }
            if peer.pex_out.is_behind(epoch) {
                let due_at = peer.pex_out.due_at().max(cx.now + GATHER);
                again_at = Some(again_at.map_or(due_at, |at| at.min(due_at)));
            }
        }
        if let Some(at) = again_at {
            self.pex_by(at);
        }
    }

    /// A peer tells of others (HOSTILE.md W15).
    pub(super) fn on_pex(
        &mut self,
        key: PeerKey,
        payload: &[u8],
        cx: &mut Cx<'_>,
    ) -> Result<(), PeerFault> {
        let has_pex = self.cfg.has_pex();
        let Some(peer) = self.peers.get_mut(key.0) else {
            return Ok(());
        };
        if !has_pex || !peer.pex_in.may_take(cx.now) {
            return Ok(());
        }
        let message = PexMessage::parse(payload).map_err(|_| PeerFault::BadExtended {
            id: Extension::UtPex.our_id(),
        })?;
        let teller = peer.listen_addr.unwrap_or(peer.conn.addr);
        let (source, peers) = believed(teller, &message);
        peer.holes.on_told(&peers, &message.dropped);
        let addrs: Vec<SocketAddr> = peers.iter().map(|peer| peer.addr).collect();
        let is_new: Vec<bool> = addrs
            .iter()
            .map(|addr| !self.candidates.is_known(*addr))
            .collect();
        self.candidates.add(source, &addrs, cx.now);
        // Of an address that others named too, one peer's word changes nothing.
        for (peer, _) in peers.iter().zip(is_new).filter(|(_, is_new)| *is_new) {
            let is_seed = peer.flags.has(PexFlags::SEED);
            self.candidates.mark_seed(peer.addr, is_seed);
        }
        self.dial(cx);
        Ok(())
    }
}
