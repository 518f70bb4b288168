//! The search for the longest datagram that a path takes. Layer 2, pure.
//!
//! A probe is a packet of ordinary length that is filled up to the length in question. Packets cannot be cut anew once they
//! have a number, so what is lost of a probe is the filling: it is sent again without.

use std::net::IpAddr;
use std::time::Duration;

use crate::base::Now;

/// What every path in use takes (QUIC builds on the same, RFC 9000).
const FLOOR_BYTES: u32 = 1_200;
/// Ethernet's 1,500 less the heads of IP and UDP. Longer ones are cut off by what other programs receive with.
const CEILING_V4_BYTES: u32 = 1_472;
const CEILING_V6_BYTES: u32 = 1_452;
/// Closer than this is found.
const STEP_BYTES: u32 = 16;
/// Probes of one length that are lost before it counts as too long.
const TRIES: u32 = 2;
/// The path may have changed.
const AGAIN: Duration = Duration::from_secs(600);

/// What is known of one path.
#[derive(Clone, Debug)]
pub(super) struct PathMtu {
    floor: u32,
    ceiling: u32,
    highest: u32,
    probing: bool,
    lost: u32,
    again_at: Option<Now>,
}

impl PathMtu {
    pub const fn new(ip: IpAddr) -> PathMtu {
        let highest = match ip {
            IpAddr::V4(_) => CEILING_V4_BYTES,
            IpAddr::V6(_) => CEILING_V6_BYTES,
        };
        PathMtu {
            floor: FLOOR_BYTES,
            ceiling: highest,
            highest,
            probing: false,
            lost: 0,
            again_at: None,
        }
    }

    /// The longest datagram that is known to come across.
    pub const fn datagram_bytes(&self) -> u32 {
        self.floor
    }

    /// The length of a probe to send now, if one is due.
    pub fn next_probe(&mut self, now: Now) -> Option<u32> {
        if self.again_at.is_some_and(|at| now >= at) {
            self.ceiling = self.highest;
            self.again_at = None;
        }
        if self.probing || self.again_at.is_some() || self.floor == self.ceiling {
            return None;
        }
        match self.ceiling == self.highest {
            // Most paths take the longest.
            true => Some(self.highest),
            false => (!self.is_found()).then(|| self.floor.midpoint(self.ceiling)),
        }
    }

    /// A probe is on its way.
    pub const fn on_probe(&mut self) {
        self.probing = true;
    }

    /// A probe of that length came across.
    pub fn on_acked(&mut self, length: u32) {
        self.probing = false;
        self.lost = 0;
        self.floor = self.floor.max(length);
        self.ceiling = self.ceiling.max(self.floor);
    }

    /// A probe of that length did not.
    pub fn on_lost(&mut self, length: u32, now: Now) {
        self.probing = false;
        self.lost += 1;
        if self.lost < TRIES {
            return;
        }
        self.lost = 0;
        self.ceiling = self.ceiling.min(length - 1);
        if self.is_found() {
            self.again_at = Some(now + AGAIN);
        }
    }

    const fn is_found(&self) -> bool {
        self.ceiling - self.floor <= STEP_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path_bytes: u32) -> (u32, u32) {
        let mut mtu = PathMtu::new("1.2.3.4".parse().unwrap());
        let mut probes = 0;
        while let Some(length) = mtu.next_probe(Now::ZERO) {
            probes += 1;
            mtu.on_probe();
            assert_eq!(mtu.next_probe(Now::ZERO), None, "one at a time");
            match length <= path_bytes {
                true => mtu.on_acked(length),
                false => mtu.on_lost(length, Now::ZERO),
            }
        }
        (mtu.datagram_bytes(), probes)
    }

    #[test]
    fn the_longest_is_tried_first_and_others_are_found_by_halves() {
        assert_eq!(found(9_000), (1_472, 1));
        for path_bytes in [1_200, 1_252, 1_400, 1_464] {
            let (length, probes) = found(path_bytes);
            assert!(length <= path_bytes && path_bytes - length <= 2 * STEP_BYTES);
            assert!(probes <= 14, "{probes}");
        }
    }

    #[test]
    fn the_search_begins_anew_after_a_while() {
        let mut mtu = PathMtu::new("::1".parse().unwrap());
        while let Some(length) = mtu.next_probe(Now::ZERO) {
            mtu.on_probe();
            mtu.on_lost(length, Now::ZERO);
        }
        assert_eq!(mtu.next_probe(Now::from_secs(599)), None);
        assert_eq!(mtu.next_probe(Now::from_secs(600)), Some(1_452));
    }
}
