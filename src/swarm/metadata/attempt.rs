//! One copy of the metadata on its way: which pieces are there, who sent them, who was asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::base::Now;
use crate::swarm::effects::PeerKey;
use crate::swarm::poison::Party;
use crate::wire::ut_metadata::{METADATA_PIECE_BYTES, metadata_piece_bytes, metadata_piece_count};

/// A piece asked for so long ago may be asked of another peer too.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// A copy that takes longer than this, and a second more for each [`PIECES_PER_S_MIN`] pieces, makes room for others.
const PATIENCE: Duration = Duration::from_secs(30);
/// 256 KiB a second.
const PIECES_PER_S_MIN: u32 = 16;
/// The same for one that gets no piece at all.
const STALLED_AFTER: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
enum Piece {
    Missing { asked_at: Option<Now> },
    Here { bytes: Box<[u8]>, from: Party },
}

/// A copy of one size. It holds what has come and no memory for the rest.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    size_bytes: u32,
    /// The one peer that is asked; `None` is everybody who names this size.
    pub solo: Option<PeerKey>,
    pieces: Vec<Piece>,
    missing_count: u32,
    started_at: Now,
    moved_at: Now,
}

impl Attempt {
    pub fn new(size_bytes: u32, solo: Option<PeerKey>, now: Now) -> Self {
        let count = metadata_piece_count(size_bytes);
        Attempt {
            size_bytes,
            solo,
            pieces: vec![Piece::Missing { asked_at: None }; count as usize],
            missing_count: count,
            started_at: now,
            moved_at: now,
        }
    }

    pub const fn size_bytes(&self) -> u32 {
        self.size_bytes
    }

    /// Bytes that have come.
    pub fn have_bytes(&self) -> u32 {
        let have = self.pieces.len() as u32 - self.missing_count;
        (have * METADATA_PIECE_BYTES).min(self.size_bytes)
    }

    /// True when all is there and being hashed.
    pub const fn is_whole(&self) -> bool {
        self.missing_count == 0
    }

    /// The missing piece that was asked for the longest ago, those that never were first, save those in `asked`.
    pub fn next_piece(&mut self, asked: &[(u32, Now)], now: Now) -> Option<u32> {
        let mut best: Option<(Option<Now>, usize)> = None;
        for (index, piece) in self.pieces.iter().enumerate() {
            let Piece::Missing { asked_at } = *piece else {
                continue;
            };
            let is_asked = asked.iter().any(|(asked, _)| *asked as usize == index);
            let is_early = asked_at.is_some_and(|at| now.since(at) < ASK_AGAIN_AFTER);
            if is_asked || is_early {
                continue;
            }
            if asked_at.is_none() {
                best = Some((None, index));
                break;
            }
            if best.is_none_or(|(at, _)| asked_at < at) {
                best = Some((asked_at, index));
            }
        }
        let (_, index) = best?;
        if let Some(Piece::Missing { asked_at }) = self.pieces.get_mut(index) {
            *asked_at = Some(now);
        }
        u32::try_from(index).ok()
    }

    /// A peer will not send a piece that it was asked for: anybody may be asked at once.
    pub fn give_back(&mut self, piece: u32) {
        if let Some(Piece::Missing { asked_at }) = self.pieces.get_mut(piece as usize) {
            *asked_at = None;
        }
    }

    /// Takes a piece of the right length in; false when it is there already.
    pub fn store(&mut self, piece: u32, bytes: &[u8], from: Party, now: Now) -> bool {
        let length = metadata_piece_bytes(self.size_bytes, piece);
        debug_assert_eq!(length.map(|length| length as usize), Some(bytes.len()));
        let Some(place @ Piece::Missing { .. }) = self.pieces.get_mut(piece as usize) else {
            return false;
        };
        *place = Piece::Here {
            bytes: bytes.into(),
            from,
        };
        self.missing_count -= 1;
        self.moved_at = now;
        true
    }

    /// All bytes in order; once it [is whole](Self::is_whole).
    pub fn bytes(&self) -> Arc<[u8]> {
        let mut all = Vec::with_capacity(self.size_bytes as usize);
        for piece in &self.pieces {
            if let Piece::Here { bytes, .. } = piece {
                all.extend_from_slice(bytes);
            }
        }
        all.into()
    }

    /// Who sent any of it.
    pub fn parties(&self) -> BTreeSet<Party> {
        let parties = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Here { from, .. } => Some(*from),
            Piece::Missing { .. } => None,
        });
        parties.collect()
    }

    /// True when it has had its time, so that others may be tried in its place.
    pub fn is_overdue(&self, now: Now) -> bool {
        let pieces = self.pieces.len() as u32;
        let limit = PATIENCE + Duration::from_secs((pieces / PIECES_PER_S_MIN).into());
        !self.is_whole()
            && (now.since(self.moved_at) >= STALLED_AFTER || now.since(self.started_at) >= limit)
    }

    /// When a piece last came.
    pub const fn moved_at(&self) -> Now {
        self.moved_at
    }

    pub fn check(&self) {
        let is_missing = |piece: &&Piece| matches!(piece, Piece::Missing { .. });
        let missing = self.pieces.iter().filter(is_missing).count();
        assert_eq!(missing as u32, self.missing_count, "missing pieces");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party() -> Party {
        Party::new(
            "1.2.3.4:5".parse().unwrap(),
            crate::base::PeerId::new([0; 20]),
        )
    }

    #[test]
    fn pieces_are_asked_for_once_and_again_after_a_while_or_when_given_back() {
        let mut attempt = Attempt::new(40_000, None, Now::ZERO);
        let mut asked = Vec::new();
        while let Some(piece) = attempt.next_piece(&[], Now::ZERO) {
            asked.push(piece);
        }
        assert_eq!(asked, [0, 1, 2]);
        attempt.give_back(1);
        assert_eq!(attempt.next_piece(&[], Now::ZERO), Some(1));
        let later = Now::ZERO + ASK_AGAIN_AFTER;
        assert_eq!(attempt.next_piece(&[(0, Now::ZERO)], later), Some(1));
    }

    #[test]
    fn what_came_is_put_together_in_order() {
        let mut attempt = Attempt::new(16_384 + 3, None, Now::ZERO);
        assert!(attempt.store(1, b"end", party(), Now::ZERO));
        assert!(!attempt.store(1, b"END", party(), Now::ZERO));
        assert!(attempt.store(0, &[7; 16_384], party(), Now::ZERO));
        assert!(attempt.is_whole());
        attempt.check();
        assert_eq!(attempt.bytes()[16_383..], *b"\x07end");
        assert_eq!(attempt.parties().len(), 1);
    }
}
