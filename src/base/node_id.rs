//! Identifiers of DHT nodes and the distance between them (BEP 5). The rule that ties one to an address is
//! `swarm::dht::identity`.

use std::fmt;

use super::InfoHash;

/// The 20 bytes a DHT node calls itself by; an info_hash is a place in the same space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 20]);

/// How far two ids are apart: their exclusive or, as a number of 160 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance([u8; 20]);

impl NodeId {
    /// Bits of an id.
    pub const BITS: usize = 160;

    /// Wraps 20 raw bytes.
    pub const fn new(bytes: [u8; 20]) -> Self {
        NodeId(bytes)
    }

    /// The 20 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// How far the other is away.
    pub fn distance(&self, other: &NodeId) -> Distance {
        let mut bytes = self.0;
        for (byte, theirs) in bytes.iter_mut().zip(other.0) {
            *byte ^= theirs;
        }
        Distance(bytes)
    }

    /// The id at that distance from this one.
    pub fn at_distance(&self, distance: &Distance) -> NodeId {
        NodeId(self.distance(&NodeId(distance.0)).0)
    }

    /// Leading bits that both have in common, 160 for the same id.
    pub fn common_bits(&self, other: &NodeId) -> usize {
        self.distance(other).leading_zeros()
    }
}

impl Distance {
    fn leading_zeros(&self) -> usize {
        let zeros = self.0.iter().take_while(|byte| **byte == 0).count();
        let bits = self.0.get(zeros).map_or(0, |byte| byte.leading_zeros());
        zeros * 8 + bits as usize
    }
}

impl From<InfoHash> for NodeId {
    fn from(info_hash: InfoHash) -> NodeId {
        NodeId(*info_hash.as_bytes())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_the_exclusive_or_and_orders_like_a_number() {
        let id = |first: u8, last: u8| {
            let mut bytes = [0; 20];
            (bytes[0], bytes[19]) = (first, last);
            NodeId::new(bytes)
        };
        let zero = id(0, 0);
        assert_eq!(zero.common_bits(&zero), NodeId::BITS);
        assert_eq!(zero.common_bits(&id(0, 1)), 159);
        assert_eq!(zero.common_bits(&id(0x80, 1)), 0);
        assert_eq!(zero.common_bits(&id(0x10, 0)), 3);
        assert!(zero.distance(&id(0, 255)) < zero.distance(&id(1, 0)));
        assert_eq!(id(3, 7).distance(&id(5, 7)), zero.distance(&id(6, 0)));
        let (here, there) = (id(3, 7), id(9, 1));
        assert_eq!(here.at_distance(&here.distance(&there)), there);
    }
}
