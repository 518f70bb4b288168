//! IP addresses that are never to be spoken to again. Layer 2, pure.
//!
//! They are looked through one after another: whoever sends bad data under many addresses fills this for good, so it
//! costs 4 bytes an IPv4 address, and a few thousand of those are compared in less than a microsecond.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses kept of each family, oldest dropped: a ban costs a piece of bad data each, so thousands are not reached.
pub const BANNED_MAX: usize = 4_096;
/// Room is made for so many at a time.
const STEP: usize = 128;

/// Banned addresses; an IPv4 address mapped into IPv6 is the IPv4 address.
#[derive(Clone, Debug, Default)]
pub struct Bans {
    v4: Ring<u32>,
    v6: Ring<u128>,
}

impl Bans {
    /// None.
    pub const fn new() -> Bans {
        Bans {
            v4: Ring::new(),
            v6: Ring::new(),
        }
    }

    /// True when it was not there before.
    pub fn insert(&mut self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.insert(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.insert(ip.to_bits()),
        }
    }

    /// Whether it is banned.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.items.contains(&ip.to_bits()),
            IpAddr::V6(ip) => self.v6.items.contains(&ip.to_bits()),
        }
    }

    /// All of them, IPv4 first; each family in the order of the bans while there are less than [`BANNED_MAX`].
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self
            .v4
            .items
            .iter()
            .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(*bits)));
        let v6 = self
            .v6
            .items
            .iter()
            .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(*bits)));
        v4.chain(v6)
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.v4.items.len() + self.v6.items.len()
    }

    /// There is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// At most [`BANNED_MAX`] different items; a further one takes the place of the oldest.
#[derive(Clone, Debug, Default)]
struct Ring<T> {
    items: Vec<T>,
    /// The oldest once all places are taken.
    oldest: usize,
}

impl<T: PartialEq> Ring<T> {
    const fn new() -> Ring<T> {
        Ring {
            items: Vec::new(),
            oldest: 0,
        }
    }

    fn insert(&mut self, item: T) -> bool {
        if self.items.contains(&item) {
            return false;
        }
        if self.items.len() < BANNED_MAX {
            if self.items.len() == self.items.capacity() {
                self.items.reserve_exact(STEP);
            }
            self.items.push(item);
        } else if let Some(place) = self.items.get_mut(self.oldest) {
            *place = item;
            self.oldest = (self.oldest + 1) % BANNED_MAX;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_bounded_and_its_oldest_go() {
        let mut bans = Bans::new();
        let v4 = |n: usize| IpAddr::V4(Ipv4Addr::from_bits(0x0100_0000 + n as u32));
        let v6 = |n: usize| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + n as u128));
        assert!(bans.is_empty() && bans.insert(v6(0)));
        for n in 0..BANNED_MAX + 2 {
            assert!(bans.insert(v4(n)));
        }
        assert_eq!(bans.len(), BANNED_MAX + 1);
        assert!(bans.contains(v6(0)) && !bans.contains(v6(1)));
        assert!(!bans.contains(v4(0)) && !bans.contains(v4(1)));
        assert!((2..BANNED_MAX + 2).all(|n| bans.contains(v4(n))));
        assert!(bans.insert(v4(0)) && !bans.contains(v4(2)));
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        let mut bans = Bans::new();
        assert!(bans.insert("::ffff:1.1.1.1".parse().unwrap()));
        assert!(!bans.insert("1.1.1.1".parse().unwrap()));
        assert!(bans.contains("1.1.1.1".parse().unwrap()));
        assert!(bans.iter().eq([IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1))]));
    }
}
