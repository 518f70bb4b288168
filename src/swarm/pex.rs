//! Peer exchange (BEP 11): what each peer was told of the others, and what of a peer's word is believed. Layer 2, pure.
//!
//! Private torrents and `--no-pex` are the caller's matter, and so is whom to tell of: `swarm::torrent` knows who is
//! connected and under which address others can reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::{Now, is_local};
use crate::swarm::candidates::Source;
use crate::wire::ut_pex::{PexFlags, PexMessage, PexPeer};

/// Between two messages to one peer (BEP 11).
pub const PEX_PAUSE: Duration = Duration::from_secs(60);
/// Joins and parts of one message, both families together (BEP 11).
pub const PEX_TOLD_MAX: usize = 50;
/// Addresses that one peer is known to have heard of: above it only parts are told, and a peer that stays so long knows
/// whom to dial.
pub const PEX_KNOWN_MAX: usize = 1_000;
/// Messages of one peer that are taken at once: clients send one at the start and the next by a clock of their own.
pub const PEX_BURST_MAX: u32 = 2;

/// What one peer was told.
#[derive(Clone, Debug, Default)]
pub struct PexOut {
    told: BTreeSet<SocketAddr>,
    sent_at: Option<Now>,
    /// The state of the swarm that it was last told of.
    seen_epoch: u64,
}

impl PexOut {
    /// When the next message may go out.
    pub fn due_at(&self) -> Now {
        self.sent_at.map_or(Now::ZERO, |at| at + PEX_PAUSE)
    }

    /// True when the swarm has changed since it was last told.
    pub const fn is_behind(&self, epoch: u64) -> bool {
        self.seen_epoch < epoch
    }

    /// The message that is due now, if there is anything to tell; `present` is everybody else that can be dialed.
    pub fn next(
        &mut self,
        to: IpAddr,
        present: &BTreeMap<SocketAddr, PexFlags>,
        epoch: u64,
        now: Now,
    ) -> Option<PexMessage> {
        if now < self.due_at() {
            return None;
        }
        let gone = self.told.iter().filter(|addr| !present.contains_key(addr));
        let dropped: Vec<SocketAddr> = gone.take(PEX_TOLD_MAX + 1).copied().collect();
        let room = PEX_KNOWN_MAX.saturating_sub(self.told.len());
        let news = present
            .iter()
            .filter(|(addr, _)| !self.told.contains(addr) && may_tell(addr.ip(), to));
        let news = news.take(room.min(PEX_TOLD_MAX + 1));
        let added: Vec<PexPeer> = news
            .map(|(addr, flags)| PexPeer {
                addr: *addr,
                flags: *flags,
            })
            .collect();
        let mut message = PexMessage { added, dropped };
        let is_all = message.added.len() <= PEX_TOLD_MAX && message.dropped.len() <= PEX_TOLD_MAX;
        message.added.truncate(PEX_TOLD_MAX);
        message.dropped.truncate(PEX_TOLD_MAX);
        if is_all {
            self.seen_epoch = epoch;
        }
        if message.added.is_empty() && message.dropped.is_empty() {
            return None;
        }
        self.told.extend(message.added.iter().map(|peer| peer.addr));
        for addr in &message.dropped {
            self.told.remove(addr);
        }
        self.sent_at = Some(now);
        Some(message)
    }

    /// Verifies the limits.
    ///
    /// # Panics
    /// When they are broken.
    pub fn check(&self) {
        assert!(self.told.len() <= PEX_KNOWN_MAX, "addresses told");
    }
}

/// How often one peer is listened to.
#[derive(Clone, Copy, Debug)]
pub struct PexIn {
    left: u32,
    since: Now,
}

impl PexIn {
    /// Before the first message.
    pub const fn new(now: Now) -> Self {
        PexIn {
            left: PEX_BURST_MAX,
            since: now,
        }
    }

    /// Whether a message that comes now is listened to (HOSTILE.md W15): one a minute, and [`PEX_BURST_MAX`] at once.
    pub fn may_take(&mut self, now: Now) -> bool {
        while self.left < PEX_BURST_MAX && now.since(self.since) >= PEX_PAUSE {
            self.left += 1;
            self.since = self.since + PEX_PAUSE;
        }
        if self.left == 0 {
            return false;
        }
        if self.left == PEX_BURST_MAX {
            self.since = now;
        }
        self.left -= 1;
        true
    }
}

/// The addresses of a message worth noting, seeds apart from others, and what they count as (HOSTILE.md W15): of both
/// families together no more than one message may have, none that leads from outside into a network of ours, not the
/// teller's own.
pub fn believed(teller: SocketAddr, message: &PexMessage) -> (Source, Vec<PexPeer>) {
    let source = source_of(teller.ip());
    let peers = message.added.iter().take(PEX_TOLD_MAX);
    let peers = peers.filter(|peer| peer.addr != teller && may_tell(peer.addr.ip(), teller.ip()));
    (source, peers.copied().collect())
}

/// What the word of a peer there counts as.
pub fn source_of(teller: IpAddr) -> Source {
    match is_local(teller) {
        true => Source::LocalPex,
        false => Source::Pex,
    }
}

/// Whether an address means the same machine to both ends: addresses of a machine or a local network lead elsewhere
/// for everybody outside.
pub fn may_tell(addr: IpAddr, with: IpAddr) -> bool {
    match is_loopback(addr) {
        true => is_loopback(with),
        false => !is_local(addr) || is_local(with),
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn present(range: std::ops::Range<u16>) -> BTreeMap<SocketAddr, PexFlags> {
        let of = |n: u16| {
            (
                SocketAddr::from(([8, 8, (n >> 8) as u8, n as u8], 1)),
                PexFlags::SEED,
            )
        };
        range.map(of).collect()
    }

    const TO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));

    fn at(seconds: u64) -> Now {
        Now::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn everybody_is_told_once_and_again_when_gone_at_most_once_a_minute() {
        let mut out = PexOut::default();
        let first = out.next(TO, &present(0..3), 1, at(5)).unwrap();
        assert_eq!((first.added.len(), first.dropped.len()), (3, 0));
        assert!(!out.is_behind(1));
        assert_eq!(out.next(TO, &present(1..4), 2, at(64)), None, "too soon");
        let second = out.next(TO, &present(1..4), 2, at(65)).unwrap();
        assert_eq!(second.added.len(), 1);
        assert_eq!(second.dropped, [addr("8.8.0.0:1")]);
        assert_eq!(out.next(TO, &present(1..4), 3, at(999)), None, "no news");
        out.check();
    }

    #[test]
    fn a_message_has_fifty_of_each_at_most_and_the_rest_comes_later() {
        let mut out = PexOut::default();
        let first = out.next(TO, &present(0..120), 1, at(0)).unwrap();
        assert_eq!(first.added.len(), PEX_TOLD_MAX);
        assert!(out.is_behind(1), "there is more to tell");
        out.next(TO, &present(0..120), 1, at(60)).unwrap();
        let third = out.next(TO, &present(0..120), 1, at(120)).unwrap();
        assert_eq!(third.added.len(), 20);
        assert!(!out.is_behind(1));
        let gone = out.next(TO, &BTreeMap::new(), 2, at(180)).unwrap();
        assert_eq!((gone.added.len(), gone.dropped.len()), (0, PEX_TOLD_MAX));
    }

    #[test]
    fn addresses_of_a_local_network_stay_in_it() {
        let mixed: BTreeMap<_, _> = ["127.0.0.1:1", "192.168.1.2:2", "8.8.8.8:3", "[fe80::1%1]:4"]
            .iter()
            .filter_map(|text| text.parse().ok())
            .map(|addr: SocketAddr| (addr, PexFlags::default()))
            .collect();
        let told = |to: &str| {
            let message = PexOut::default().next(to.parse().unwrap(), &mixed, 1, at(0));
            let added = message.unwrap().added;
            added
                .iter()
                .map(|peer| peer.addr.port())
                .collect::<Vec<_>>()
        };
        assert!(told("127.0.0.1").contains(&1));
        assert!(told("192.168.1.9").contains(&2) && !told("192.168.1.9").contains(&1));
        assert_eq!(told("9.9.9.9"), [3]);
    }

    #[test]
    fn a_peer_is_listened_to_once_a_minute_after_its_first_two() {
        let mut heard = PexIn::new(at(0));
        assert!(heard.may_take(at(1)) && heard.may_take(at(2)));
        assert!(!heard.may_take(at(3)) && !heard.may_take(at(60)));
        assert!(heard.may_take(at(61)));
        assert!(!heard.may_take(at(62)));
        let taken = (100..700).filter(|second| heard.may_take(at(*second)));
        assert!(taken.count() <= 11);
    }

    #[test]
    fn strangers_do_not_send_us_into_our_own_network_and_fifty_are_the_most() {
        let peers = |addrs: &[&str]| PexMessage {
            added: addrs
                .iter()
                .map(|text| PexPeer {
                    addr: addr(text),
                    flags: PexFlags::default(),
                })
                .collect(),
            dropped: Vec::new(),
        };
        let told = peers(&["127.0.0.1:1", "10.0.0.1:2", "1.2.3.4:3", "9.9.9.9:4"]);
        let ports = |teller: &str| {
            let (source, peers) = believed(addr(teller), &told);
            (
                source,
                peers
                    .iter()
                    .map(|peer| peer.addr.port())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(ports("9.9.9.9:4"), (Source::Pex, vec![3]));
        assert_eq!(ports("10.9.9.9:1"), (Source::LocalPex, vec![2, 3, 4]));
        assert_eq!(ports("127.0.0.9:1"), (Source::LocalPex, vec![1, 2, 3, 4]));
        let many = peers(&vec!["1.2.3.4:3"; 80]);
        assert_eq!(believed(addr("9.9.9.9:4"), &many).1.len(), PEX_TOLD_MAX);
    }
}
