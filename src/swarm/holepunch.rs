//! Hole punching (BEP 55): what is kept of one peer for it, and how often anything is done for it or at its word.
//! Layer 2, pure.
//!
//! Whom to tell of whom is `swarm::torrent`'s matter, which knows who is connected.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::Now;
use crate::wire::ut_pex::{PexFlags, PexPeer};

/// Addresses that one peer named and that are remembered, the latest: four full messages of peer exchange.
pub const NAMED_MAX: usize = 200;
/// Messages of hole punching in one direction that one peer may cause at once.
pub const HOLES_BURST_MAX: u32 = 16;
/// And one more in this time: a third of what its peer exchange makes us dial.
pub const HOLES_PAUSE: Duration = Duration::from_secs(3);
/// Dials of one torrent at the word of relays that are under way at once.
pub const PUNCHES_MAX: usize = 8;

/// What is kept of one peer.
#[derive(Clone, Debug)]
pub struct Holes {
    /// Peers that it told of and that may need its help, latest last.
    named: VecDeque<SocketAddr>,
    /// What we ask it for as a relay.
    asks: Budget,
    /// What it asks us for.
    asked: Budget,
    /// What others have it dial.
    told: Budget,
    /// What it would have us dial.
    heard: Budget,
}

impl Holes {
    /// Nothing heard yet.
    pub const fn new(now: Now) -> Self {
        Holes {
            named: VecDeque::new(),
            asks: Budget::new(now),
            asked: Budget::new(now),
            told: Budget::new(now),
            heard: Budget::new(now),
        }
    }

    /// It told who came and who went. Whom it could dial others can dial too.
    pub fn on_told(&mut self, added: &[PexPeer], dropped: &[SocketAddr]) {
        if !dropped.is_empty() {
            self.named.retain(|addr| !dropped.contains(addr));
        }
        for peer in added {
            let needs_help =
                peer.flags.has(PexFlags::HOLEPUNCH) || !peer.flags.has(PexFlags::REACHABLE);
            if needs_help && !self.has_named(peer.addr) {
                if self.named.len() >= NAMED_MAX {
                    self.named.pop_front();
                }
                self.named.push_back(peer.addr);
            }
        }
    }

    /// Whether it told of that peer, and did not tell of its end.
    pub fn has_named(&self, addr: SocketAddr) -> bool {
        self.named.contains(&addr)
    }

    /// Whether it may be asked for a rendezvous.
    pub fn may_ask(&mut self, now: Now) -> bool {
        self.asks.take(now)
    }

    /// Whether a rendezvous that it asks for is looked at.
    pub fn may_be_asked(&mut self, now: Now) -> bool {
        self.asked.take(now)
    }

    /// Whether it may be told to dial somebody.
    pub fn may_be_told(&mut self, now: Now) -> bool {
        self.told.take(now)
    }

    /// Whether we dial at its word.
    pub fn may_tell(&mut self, now: Now) -> bool {
        self.heard.take(now)
    }

    /// Verifies the limits.
    ///
    /// # Panics
    /// When they are broken.
    pub fn check(&self) {
        assert!(self.named.len() <= NAMED_MAX, "addresses named");
    }
}

/// So many at once, and one more from time to time.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u32,
    since: Now,
}

impl Budget {
    const fn new(now: Now) -> Self {
        Budget {
            left: HOLES_BURST_MAX,
            since: now,
        }
    }

    fn take(&mut self, now: Now) -> bool {
        while self.left < HOLES_BURST_MAX && now.since(self.since) >= HOLES_PAUSE {
            self.left += 1;
            self.since = self.since + HOLES_PAUSE;
        }
        if self.left == 0 {
            return false;
        }
        if self.left == HOLES_BURST_MAX {
            self.since = now;
        }
        self.left -= 1;
        true
    }
}

/// Whether a peer can be there at all: no port, groups and everybody's addresses are nobody's.
pub fn is_somebody(addr: SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let is_nobody = match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.octets()[0] >= 240,
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    addr.port() != 0 && !is_nobody && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(range: std::ops::Range<u16>, flags: PexFlags) -> Vec<PexPeer> {
        let of = |n: u16| PexPeer {
            addr: SocketAddr::from(([8, 8, (n >> 8) as u8, n as u8], 1)),
            flags,
        };
        range.map(of).collect()
    }

    #[test]
    fn those_who_need_help_are_remembered_until_they_go_the_latest_few() {
        let mut holes = Holes::new(Now::ZERO);
        let both = PexFlags::HOLEPUNCH.and(PexFlags::REACHABLE);
        let all = [
            peers(0..1, PexFlags::REACHABLE),
            peers(1..2, both),
            peers(2..3, PexFlags::default()),
        ]
        .concat();
        holes.on_told(&all, &[]);
        let named = |holes: &Holes| all.iter().map(|it| holes.has_named(it.addr)).collect();
        let named_then: Vec<bool> = named(&holes);
        assert_eq!(named_then, [false, true, true]);
        holes.on_told(&[], &[all[1].addr]);
        let named_then: Vec<bool> = named(&holes);
        assert_eq!(named_then, [false, false, true]);
        for _ in 0..2 {
            holes.on_told(&peers(100..900, PexFlags::default()), &[]);
            holes.check();
        }
        let last = peers(899..900, PexFlags::default());
        assert!(holes.has_named(last[0].addr) && !holes.has_named(all[2].addr));
    }

    #[test]
    fn a_burst_is_borne_and_then_one_in_a_while() {
        let mut holes = Holes::new(Now::ZERO);
        let taken = (0..100).filter(|_| holes.may_tell(Now::ZERO)).count();
        assert_eq!(taken, HOLES_BURST_MAX as usize);
        let seconds = 1..=300;
        let taken = seconds.filter(|second| holes.may_tell(Now::from_secs(*second)));
        assert_eq!(taken.count(), 100);
        assert!(holes.may_be_told(Now::ZERO) && holes.may_ask(Now::ZERO));
    }

    #[test]
    fn nobody_is_at_groups_and_addresses_of_all() {
        let is = |text: &str| is_somebody(text.parse().unwrap());
        for nobody in [
            "1.2.3.4:0",
            "0.0.0.0:5",
            "0.9.9.9:5",
            "224.0.0.1:5",
            "255.255.255.255:5",
            "[::]:5",
            "[ff02::1]:5",
            "[::ffff:239.1.1.1]:5",
        ] {
            assert!(!is(nobody), "{nobody}");
        }
        assert!(is("1.2.3.4:5") && is("[2001:db8::1]:5") && is("127.0.0.1:5"));
    }
}
