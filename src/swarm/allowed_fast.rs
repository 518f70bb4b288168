//! The pieces that a new peer may fetch while it is choked (BEP 6, "Allowed Fast Set Generation"). Layer 2.
//!
//! The set follows from the peer's network and the torrent alone: dialing again, or asking other peers, widens it not.

use std::net::IpAddr;

use sha1::{Digest, Sha1};

use crate::base::{Geometry, InfoHash, PieceIndex};

/// Pieces in the set (BEP 6's figure). A peer with as many pieces has something to trade and gets none.
pub const ALLOWED_FAST_COUNT: usize = 10;
/// Bytes of all pieces of one peer's set: what is given away to each stranger.
pub const ALLOWED_FAST_BYTES_MAX: u64 = 2 << 20;

/// The set of the peer at `ip`, in the order in which it is to be offered; of large pieces only the first few.
pub fn allowed_fast_set(ip: IpAddr, info_hash: &InfoHash, geometry: &Geometry) -> Vec<PieceIndex> {
    let fitting = ALLOWED_FAST_BYTES_MAX / u64::from(geometry.piece_length_bytes());
    let count = ALLOWED_FAST_COUNT.min(usize::try_from(fitting).unwrap_or(ALLOWED_FAST_COUNT));
    generate(ip, info_hash, geometry.piece_count(), count)
}

/// The first `count` different pieces of the canonical sequence.
fn generate(ip: IpAddr, info_hash: &InfoHash, pieces: u32, count: usize) -> Vec<PieceIndex> {
    // BEP 6 hashes an IPv4 network of 24 bits; of IPv6, which it does not define, the 64 bits of one network.
    let network = match ip.to_canonical() {
        IpAddr::V4(ip) => (u32::from(ip) & 0xffff_ff00).to_be_bytes().to_vec(),
        IpAddr::V6(ip) => ip.octets()[..8].to_vec(),
    };
    let mut set = Vec::new();
    let count = count.min(pieces as usize);
    let mut x = [&network[..], info_hash.as_bytes()].concat();
    while set.len() < count {
        x = Sha1::digest(&x).to_vec();
        for word in x.as_chunks::<4>().0 {
            let piece = PieceIndex::new(u32::from_be_bytes(*word) % pieces);
            if set.len() < count && !set.contains(&piece) {
                set.push(piece);
            }
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(set: &[PieceIndex]) -> Vec<u32> {
        set.iter().map(|piece| piece.get()).collect()
    }

    #[test]
    fn the_examples_of_bep_6_come_out() {
        let (ip, hash) = (IpAddr::from([80, 4, 4, 200]), InfoHash::new([0xaa; 20]));
        let expected = [1059, 431, 808, 1217, 287, 376, 1188, 353, 508];
        assert_eq!(numbers(&generate(ip, &hash, 1313, 7)), expected[..7]);
        assert_eq!(numbers(&generate(ip, &hash, 1313, 9)), expected);
    }

    #[test]
    fn one_network_has_one_set_whatever_the_spelling() {
        let geometry = Geometry::new(1 << 30, 65_536).unwrap();
        let hash = InfoHash::new([7; 20]);
        let set = |ip: &str| allowed_fast_set(ip.parse().unwrap(), &hash, &geometry);
        assert_eq!(set("10.1.2.3"), set("10.1.2.200"));
        assert_eq!(set("10.1.2.3"), set("::ffff:10.1.2.9"));
        assert_ne!(set("10.1.2.3"), set("10.1.3.3"));
        assert_eq!(set("2001:db8::1"), set("2001:db8::ffff:1"));
        assert_ne!(set("2001:db8::1"), set("2001:db8:0:1::1"));
        assert_eq!(set("10.1.2.3").len(), ALLOWED_FAST_COUNT);
    }

    #[test]
    fn large_pieces_and_few_pieces_make_small_sets() {
        let hash = InfoHash::new([7; 20]);
        let ip = IpAddr::from([1, 2, 3, 4]);
        let count = |total, piece| {
            let geometry = Geometry::new(total, piece).unwrap();
            allowed_fast_set(ip, &hash, &geometry).len()
        };
        assert_eq!(count(1 << 30, 1 << 20), 2);
        assert_eq!(count(1 << 30, 16 << 20), 0);
        assert_eq!(count(3, 1), 3);
    }
}
