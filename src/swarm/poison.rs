//! Who sent corrupt data: copies of pieces that failed their hash, compared with the good copy. Layer 2.
//!
//! A piece from one source needs no comparison. Of a piece from several, the digest of every block is kept with its
//! source until a good copy is here; whoever's block differs from it lied, and nobody else is touched.

use std::net::{IpAddr, SocketAddr};

use crate::base::{PeerId, PieceIndex};
use crate::swarm::effects::WebSeedId;

/// Blocks remembered at most (16 bytes each): 2 GiB of suspected pieces, far above what is in flight at once.
const SUSPECT_BLOCKS_MAX: usize = 131_072;

/// Whom a block came from.
///
/// Behind one public address all connections count as one party, since a liar may dial again from another port. On
/// the loopback address every peer of a machine would be that party, so there the peer id tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Ip(IpAddr),
    Local(SocketAddr, PeerId),
    /// All connections to one web seed: whoever else answers at its address is not to blame.
    Web(WebSeedId),
}

impl Party {
    /// The party behind a connection.
    pub fn new(addr: SocketAddr, peer_id: PeerId) -> Self {
        let ip = addr.ip().to_canonical();
        if ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) {
            return Party::Local(addr, peer_id);
        }
        Party::Ip(ip)
    }

    /// True when the connection belongs to this party.
    pub fn is_behind(&self, addr: SocketAddr, peer_id: PeerId) -> bool {
        match self {
            Party::Ip(ip) => addr.ip().to_canonical() == *ip,
            Party::Local(own, id) => *own == addr || *id == peer_id,
            Party::Web(_) => false,
        }
    }
}

/// One copy of a piece that failed its hash.
#[derive(Clone, Debug)]
struct BadCopy {
    piece: PieceIndex,
    parties: Vec<Party>,
    /// By block: index into `parties`, digest.
    blocks: Vec<(u16, u64)>,
}

/// The bad copies that wait for a good one.
#[derive(Clone, Debug, Default)]
pub struct Suspects {
    copies: Vec<BadCopy>,
    block_count: usize,
}

impl Suspects {
    /// Nobody is suspected.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a bad copy; the oldest are forgotten when memory runs out.
    pub fn add(
        &mut self,
        piece: PieceIndex,
        parties: Vec<Party>,
        sources: &[u16],
        digests: &[u64],
    ) {
        let blocks: Vec<(u16, u64)> = sources
            .iter()
            .copied()
            .zip(digests.iter().copied())
            .collect();
        self.block_count += blocks.len();
        self.copies.push(BadCopy {
            piece,
            parties,
            blocks,
        });
        while self.block_count > SUSPECT_BLOCKS_MAX && self.copies.len() > 1 {
            let oldest = self.copies.remove(0);
            self.block_count -= oldest.blocks.len();
        }
    }

    /// True when a bad copy of the piece waits.
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.copies.iter().any(|copy| copy.piece == piece)
    }

    /// A good copy is here: returns who lied, each once, and forgets the piece. Without digests nobody is blamed.
    pub fn judge(&mut self, piece: PieceIndex, good: Option<&[u64]>) -> Vec<Party> {
        let mut liars = Vec::new();
        for copy in self.copies.iter().filter(|copy| copy.piece == piece) {
            for ((party, digest), good) in copy.blocks.iter().zip(good.unwrap_or(&[])) {
                let party = copy.parties.get(usize::from(*party));
                liars.extend(party.filter(|_| digest != good).copied());
            }
        }
        liars.sort_unstable();
        liars.dedup();
        self.copies.retain(|copy| copy.piece != piece);
        self.block_count = self.copies.iter().map(|copy| copy.blocks.len()).sum();
        liars
    }

    /// The bad copies that wait and have a block of this party.
    pub fn count_of(&self, party: Party) -> usize {
        let copies = self.copies.iter();
        copies.filter(|copy| copy.parties.contains(&party)).count()
    }

    /// Everybody with a block in a bad copy that waits.
    pub fn parties(&self) -> Vec<Party> {
        let parties = self.copies.iter().flat_map(|copy| &copy.parties);
        let mut parties: Vec<Party> = parties.copied().collect();
        parties.sort_unstable();
        parties.dedup();
        parties
    }

    /// True when a party of this kind has a block in a bad copy that waits.
    pub fn suspects(&self, is_meant: impl Fn(&Party) -> bool) -> bool {
        self.copies
            .iter()
            .flat_map(|copy| &copy.parties)
            .any(is_meant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(last: u8) -> Party {
        Party::Ip(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn exactly_those_whose_block_differs_are_named() {
        let mut s = Suspects::new();
        let piece = PieceIndex::new(3);
        s.add(
            piece,
            vec![party(1), party(2), party(3)],
            &[0, 1, 2, 1],
            &[7, 8, 9, 6],
        );
        s.add(
            piece,
            vec![party(4), party(1)],
            &[0, 1, 1, 1],
            &[0, 5, 9, 10],
        );
        assert!(s.has(piece));
        assert_eq!(s.judge(piece, Some(&[7, 5, 9, 10])), [party(2), party(4)]);
        assert!(!s.has(piece));
        assert_eq!(s.block_count, 0);
    }

    #[test]
    fn without_digests_nobody_is_blamed() {
        let mut s = Suspects::new();
        s.add(PieceIndex::new(0), vec![party(1)], &[0], &[1]);
        assert_eq!(s.judge(PieceIndex::new(0), None), []);
    }

    #[test]
    fn peers_on_loopback_are_told_apart() {
        let id = |byte| PeerId::new([byte; 20]);
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let party = Party::new(addr(1), id(1));
        assert!(party.is_behind(addr(9), id(1)));
        assert!(!party.is_behind(addr(2), id(2)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut s = Suspects::new();
        for piece in 0..200 {
            s.add(
                PieceIndex::new(piece),
                vec![party(1)],
                &[0; 1024],
                &[0; 1024],
            );
        }
        assert!(s.block_count <= SUSPECT_BLOCKS_MAX);
        assert!(s.has(PieceIndex::new(199)) && !s.has(PieceIndex::new(0)));
    }
}
