//! Which id a node may have at its address, and what our own address is (BEP 42). Layer 2, pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::place::{Network, Scope};
use crate::base::{NodeId, Rng};

/// Addresses of ours that are voted on at the same time; the one with the fewest votes goes.
const CANDIDATES_MAX: usize = 8;
/// Voters remembered for one address; more would change nothing.
const VOTERS_MAX: usize = 32;
/// Networks that must agree on our address before it is believed: a few nodes of one stranger are one network.
pub const VOTES_MIN: usize = 4;

/// Masks of BEP 42: the farther left a byte, the fewer of its bits choose the id.
const MASK_V4: [u8; 4] = [0x03, 0x0f, 0x3f, 0xff];
const MASK_V6: [u8; 8] = [0x01, 0x03, 0x07, 0x0f, 0x1f, 0x3f, 0x7f, 0xff];

/// CRC-32C (Castagnoli) of a few bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let is_odd = crc & 1 == 1;
            crc >>= 1;
            if is_odd {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

/// The first 21 bits that an id at this address has, in the upper bits, for the low three bits of its last byte.
fn prefix(ip: IpAddr, last_byte: u8) -> u32 {
    let choice = (last_byte & 7) << 5;
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let mut bytes = ip.octets();
            bytes
                .iter_mut()
                .zip(MASK_V4)
                .for_each(|(byte, mask)| *byte &= mask);
            bytes[0] |= choice;
            crc32c(&bytes)
        }
        IpAddr::V6(ip) => {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&ip.octets()[..8]);
            bytes
                .iter_mut()
                .zip(MASK_V6)
                .for_each(|(byte, mask)| *byte &= mask);
            bytes[0] |= choice;
            crc32c(&bytes)
        }
    }
}

/// Whether a node at this address may have this id. Those of a local network may have any.
pub fn fits(id: &NodeId, ip: IpAddr) -> bool {
    if Scope::of(ip) != Scope::Public {
        return true;
    }
    let bytes = id.as_bytes();
    let wanted = prefix(ip, bytes[19]).to_be_bytes();
    bytes[0] == wanted[0] && bytes[1] == wanted[1] && (bytes[2] ^ wanted[2]) & 0xf8 == 0
}

/// A new id, one that fits the address if that is known.
pub fn make(external: Option<IpAddr>, rng: &mut Rng) -> NodeId {
    let mut bytes = [0; 20];
    for chunk in bytes.chunks_mut(8) {
        let random = rng.next_u64().to_be_bytes();
        chunk.copy_from_slice(&random[..chunk.len()]);
    }
    if let Some(ip) = external {
        let wanted = prefix(ip, bytes[19]).to_be_bytes();
        bytes[..2].copy_from_slice(&wanted[..2]);
        bytes[2] = wanted[2] & 0xf8 | bytes[2] & 7;
    }
    NodeId::new(bytes)
}

/// What others say about our address. One network has one vote.
#[derive(Clone, Debug, Default)]
pub struct Votes {
    known: Option<IpAddr>,
    voters: BTreeMap<IpAddr, BTreeSet<Network>>,
}

impl Votes {
    /// Starts with an address that was right the last time; `None` for none.
    pub fn new(known: Option<IpAddr>) -> Self {
        Votes {
            known: known.filter(|ip| Scope::of(*ip) == Scope::Public),
            voters: BTreeMap::new(),
        }
    }

    /// The address that is believed.
    pub fn external(&self) -> Option<IpAddr> {
        self.known
    }

    /// A node says where it sees us; true when another address is believed from now on.
    pub fn on_vote(&mut self, voter: IpAddr, ours: IpAddr) -> bool {
        let ours = ours.to_canonical();
        // Nodes of our own network see us at an address that says nothing to the others.
        if Scope::of(voter) != Scope::Public || Scope::of(ours) != Scope::Public {
            return false;
        }
        if !self.voters.contains_key(&ours) && self.voters.len() >= CANDIDATES_MAX {
            let fewest = self.voters.iter().min_by_key(|(_, voters)| voters.len());
            if let Some(ip) = fewest.map(|(ip, _)| *ip) {
                self.voters.remove(&ip);
            }
        }
        let voters = self.voters.entry(ours).or_default();
        if voters.len() < VOTERS_MAX {
            voters.insert(Network::of(voter));
        }
        let most = self.voters.iter().max_by_key(|(_, voters)| voters.len());
        let Some((ip, count)) = most.map(|(ip, voters)| (*ip, voters.len())) else {
            return false;
        };
        let all: usize = self.voters.values().map(BTreeSet::len).sum();
        if count < VOTES_MIN || count * 2 <= all {
            return false;
        }
        let is_news = self.known != Some(ip);
        self.known = Some(ip);
        if is_news || count >= VOTERS_MAX {
            // A change of address must not have to outvote the past.
            self.voters.clear();
        }
        is_news
    }

    pub(super) fn check(&self) {
        assert!(self.voters.len() <= CANDIDATES_MAX);
        assert!(
            self.voters
                .values()
                .all(|voters| voters.len() <= VOTERS_MAX)
        );
    }
}

/// The unspecified address of the family, for what is not known.
pub const fn unspecified(is_v4: bool) -> IpAddr {
    match is_v4 {
        true => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        false => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn id(start: [u8; 3], last: u8) -> NodeId {
        let mut bytes = [0; 20];
        bytes[..3].copy_from_slice(&start);
        bytes[19] = last;
        NodeId::new(bytes)
    }

    #[test]
    fn ids_fit_as_in_the_vectors_of_bep_42() {
        for (addr, last, start) in [
            ("124.31.75.21", 1, [0x5f, 0xbf, 0xbf]),
            ("21.75.31.124", 86, [0x5a, 0x3c, 0xe9]),
            ("65.23.51.170", 22, [0xa5, 0xd4, 0x32]),
            ("84.124.73.14", 65, [0x1b, 0x03, 0x21]),
            ("43.213.53.83", 90, [0xe5, 0x6f, 0x6c]),
        ] {
            assert!(fits(&id(start, last), ip(addr)), "{addr}");
            let [first, second, third] = start;
            assert!(fits(&id([first, second, third ^ 7], last), ip(addr)));
            assert!(!fits(&id([first, second, third ^ 8], last), ip(addr)));
            assert!(!fits(&id([first ^ 1, second, third], last), ip(addr)));
        }
    }

    #[test]
    fn what_is_made_fits_and_local_nodes_may_have_any_id() {
        let mut rng = Rng::new(1);
        for addr in ["8.8.4.4", "2001:db9::1", "2a00:1450:4001::5"] {
            let made = make(Some(ip(addr)), &mut rng);
            assert!(fits(&made, ip(addr)), "{addr}");
            assert_ne!(made, make(Some(ip(addr)), &mut rng));
        }
        for local in ["127.0.0.1", "10.1.2.3", "192.168.1.1", "::1", "fd00::1"] {
            assert!(fits(&make(None, &mut rng), ip(local)), "{local}");
        }
    }

    #[test]
    fn our_address_needs_several_networks_and_their_majority() {
        let mut votes = Votes::new(None);
        let (ours, lie) = (ip("9.9.9.9"), ip("6.6.6.6"));
        for last in 0..100 {
            assert!(!votes.on_vote(ip(&format!("1.2.3.{last}")), lie));
        }
        for net in 0..3 {
            assert!(!votes.on_vote(ip(&format!("5.5.{net}.1")), ours));
            assert!(!votes.on_vote(ip("127.0.0.1"), lie));
            assert!(!votes.on_vote(ip("5.5.9.1"), ip("192.168.0.1")));
        }
        assert!(votes.on_vote(ip("5.5.3.1"), ours));
        assert_eq!(votes.external(), Some(ours));
        // Ours again is no news; another address is, once as many say so.
        assert!(!votes.on_vote(ip("5.5.4.1"), ours));
        let changed = (0..8).filter(|net| votes.on_vote(ip(&format!("7.7.{net}.1")), lie));
        assert_eq!(changed.count(), 1);
        assert_eq!(votes.external(), Some(lie));
        votes.check();
    }
}
