//! Which peers belong together (BEP 40), and our own address as others see it (BEP 10, `yourip`). Layer 2, pure.
//!
//! Both ends of a connection come to the same figure, so that swarms knit themselves evenly whoever floods them with
//! addresses. It needs our public address, which peers tell; one peer's word is not believed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Addresses that claim the same before it is believed: strangers behind one address are one.
const VOTES_MIN: usize = 3;
/// Claims that are counted; an honest swarm makes one for each family, a liar any number.
const CLAIMS_MAX: usize = 16;
/// Tellers of one claim that are remembered.
const VOTERS_MAX: usize = 32;

/// Our address in each family, as far as peers agree on it.
#[derive(Clone, Debug, Default)]
pub struct OwnAddress {
    claims: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl OwnAddress {
    /// A peer says where it sees us; the address when that is news that enough others have told.
    pub fn on_claim(&mut self, teller: IpAddr, claimed: IpAddr) -> Option<IpAddr> {
        let (teller, claimed) = (teller.to_canonical(), claimed.to_canonical());
        if !is_public(claimed) || claimed.is_ipv4() != teller.is_ipv4() {
            return None;
        }
        if !self.claims.contains_key(&claimed) && self.claims.len() >= CLAIMS_MAX {
            // The rarest makes room: liars do not keep the truth out.
            let rarest = self.claims.iter().min_by_key(|(_, voters)| voters.len());
            let rarest = rarest.map(|(ip, _)| *ip)?;
            self.claims.remove(&rarest);
        }
        let voters = self.claims.entry(claimed).or_default();
        if voters.len() < VOTERS_MAX {
            voters.insert(teller);
        }
        let count = voters.len();
        let known = match claimed {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        let votes_of = |ip: &IpAddr| self.claims.get(ip).map_or(0, BTreeSet::len);
        let is_news = *known != Some(claimed)
            && count >= VOTES_MIN
            && known.as_ref().is_none_or(|ip| votes_of(ip) < count);
        if is_news {
            *known = Some(claimed);
        }
        is_news.then_some(claimed)
    }

    /// The address that peers of that family see.
    pub const fn of_family(&self, peer: IpAddr) -> Option<IpAddr> {
        match peer {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            let is_inner = ip.is_unique_local() || ip.is_unicast_link_local();
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_inner)
        }
    }
}

/// The priority of a connection between two addresses of one family: the higher the better (BEP 40).
pub fn priority(one: SocketAddr, other: SocketAddr) -> u32 {
    let mut ends = match (one.ip().to_canonical(), other.ip().to_canonical()) {
        (a, b) if a == b => {
            let ports = [one.port(), other.port()];
            ports.map(|port| port.to_be_bytes().to_vec())
        }
        (IpAddr::V4(a), IpAddr::V4(b)) => masked(&a.octets(), &b.octets(), 2),
        (IpAddr::V6(a), IpAddr::V6(b)) => masked(&a.octets(), &b.octets(), 6),
        // Ends of two families never meet.
        _ => return 0,
    };
    ends.sort();
    crc32c(&ends.concat())
}

/// Both addresses with `0x55` over what lies behind their first `whole` bytes, one byte more for each that they share
/// from there on.
fn masked(a: &[u8], b: &[u8], whole: usize) -> [Vec<u8>; 2] {
    let shared = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let kept = match shared < whole {
        true => whole,
        false => shared + 1,
    };
    [a, b].map(|ip| {
        let bytes = ip.iter().enumerate();
        bytes
            .map(|(at, byte)| if at < kept { *byte } else { byte & 0x55 })
            .collect()
    })
}

/// CRC-32C (Castagnoli) bit by bit: a few dozen bytes an address.
fn crc32c(bytes: &[u8]) -> u32 {
    /// Its polynomial, reflected.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(crc & 1))
        })
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(one: &str, other: &str) -> u32 {
        priority(one.parse().unwrap(), other.parse().unwrap())
    }

    #[test]
    fn priorities_are_those_of_the_examples_and_the_same_from_both_ends() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        for (one, other, expected) in [
            ("123.213.32.10:1", "98.76.54.32:2", 0xec2d_7224),
            ("123.213.32.10:1", "123.213.32.234:2", 0x9956_8189),
        ] {
            assert_eq!(of(one, other), expected);
            assert_eq!(of(other, one), expected);
        }
    }

    #[test]
    fn of_one_address_the_ports_count_and_of_far_ones_the_networks() {
        assert_ne!(of("1.2.3.4:1", "1.2.3.4:2"), of("1.2.3.4:1", "1.2.3.4:3"));
        assert_eq!(of("1.2.3.4:1", "5.6.7.8:2"), of("1.2.3.4:9", "5.6.7.8:9"));
        // Bits under the mask do not count.
        assert_eq!(
            of("1.2.3.4:1", "5.6.0.0:2"),
            of("1.2.3.4:1", "5.6.170.170:2")
        );
        assert_eq!(of("1.2.3.4:1", "[2001:db8::1]:2"), 0);
        assert_ne!(
            of("[2001:db8::1]:1", "[2001:db8:0:1::]:1"),
            of("[2001:db8::1]:1", "[2001:db8:0:2::]:1")
        );
    }

    #[test]
    fn our_address_is_what_three_places_say_and_a_crowd_of_lies_does_not_bury_it() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (ours, lie) = (ip("9.8.7.6"), ip("6.6.6.6"));
        let mut own = OwnAddress::default();
        for number in 0..200_u8 {
            assert_eq!(
                own.on_claim(ip("1.1.1.1"), IpAddr::from([7, 7, 7, number])),
                None
            );
        }
        for last in [1, 1, 2] {
            assert_eq!(own.on_claim(IpAddr::from([2, 2, 2, last]), ours), None);
        }
        assert_eq!(own.on_claim(ip("2.2.2.3"), ours), Some(ours));
        assert_eq!(own.on_claim(ip("2.2.2.4"), ours), None, "no news");
        for last in 1..=3 {
            assert_eq!(own.on_claim(IpAddr::from([3, 3, 3, last]), lie), None);
        }
        assert_eq!(own.of_family(lie), Some(ours));
        for inner in ["10.0.0.1", "127.0.0.1", "0.0.0.0", "fe80::1"] {
            assert_eq!(own.on_claim(ip("2.2.2.3"), ip(inner)), None);
        }
    }
}
