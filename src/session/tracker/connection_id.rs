//! Connection ids of UDP clients (BEP 15): proof that a client receives at the address it sends from. Layer 5.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use crate::base::Now;

/// Ids of one slot are the same.
const SLOT_MICROS: u64 = 30_000_000;
/// Slots for which an id stays good after its own: two minutes at least (BEP 15), two and a half at most.
const SLOTS_KEPT: u64 = 4;

/// Makes and checks ids without remembering any: an id is a keyed hash of the address and the time slot. The port is
/// left out, because address translators change it.
#[derive(Default)]
pub struct ConnectionIds {
    key: RandomState,
}

impl ConnectionIds {
    /// The id for this address at this time.
    pub fn issue(&self, ip: IpAddr, now: Now) -> u64 {
        self.id(ip, now.as_micros() / SLOT_MICROS)
    }

    /// Whether the id was issued to this address not too long ago.
    pub fn is_valid(&self, id: u64, ip: IpAddr, now: Now) -> bool {
        let slot = now.as_micros() / SLOT_MICROS;
        (slot.saturating_sub(SLOTS_KEPT)..=slot).any(|slot| self.id(ip, slot) == id)
    }

    fn id(&self, ip: IpAddr, slot: u64) -> u64 {
        self.key.hash_one((ip.to_canonical(), slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_good_for_two_minutes_at_its_address_only() {
        let ids = ConnectionIds::default();
        let (here, there): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        for issued_at in [0, 29, 30, 1_000] {
            let id = ids.issue(here, Now::from_secs(issued_at));
            for (age, is_good) in [(0, true), (120, true), (150, false), (10_000, false)] {
                let now = Now::from_secs(issued_at + age);
                assert_eq!(ids.is_valid(id, here, now), is_good, "{issued_at} + {age}");
                assert!(!ids.is_valid(id, there, now));
                assert!(!ids.is_valid(id ^ 1, here, now));
            }
        }
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert!(ids.is_valid(ids.issue(mapped, Now::ZERO), here, Now::ZERO));
        let others = ConnectionIds::default();
        assert!(!others.is_valid(ids.issue(here, Now::ZERO), here, Now::ZERO));
    }
}
