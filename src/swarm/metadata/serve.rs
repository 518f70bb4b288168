//! What a peer may have of our metadata, and in which order (BEP 9): a queue and an allowance for each connection.

use std::collections::VecDeque;

use crate::base::Now;
use crate::wire::ut_metadata::{
    METADATA_PIECE_BYTES, MetadataMessage, metadata_piece_bytes, metadata_piece_count,
};

/// Requests that wait for one peer; Transmission's figure. More are rejected (HOSTILE.md W14).
pub const METADATA_QUEUE_MAX: usize = 64;
/// A connection gets the whole metadata so often at once, as BEP 9 advises, and a piece a second after that.
const COPIES_MAX: u32 = 2;
/// And a few pieces more, so that small metadata may be asked for again.
const PIECES_MORE: u32 = 16;

/// One peer's requests for metadata.
#[derive(Clone, Debug)]
pub struct MetadataQueue {
    waiting: VecDeque<u32>,
    /// Pieces that may be sent; `None` before the first request.
    left: Option<u32>,
    refilled_at: Now,
}

impl Default for MetadataQueue {
    fn default() -> Self {
        MetadataQueue {
            waiting: VecDeque::new(),
            left: None,
            refilled_at: Now::ZERO,
        }
    }
}

impl MetadataQueue {
    /// True when something is to be sent.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a request for a piece of metadata of that size; false when it is to be rejected.
    pub fn push(&mut self, piece: u32, total_bytes: u32, now: Now) -> bool {
        let pieces = metadata_piece_count(total_bytes);
        let most = pieces
            .saturating_mul(COPIES_MAX)
            .saturating_add(PIECES_MORE);
        let seconds = now.since(self.refilled_at).as_secs();
        let left = self.left.get_or_insert(most);
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX);
            *left = left.saturating_add(more).min(most);
            self.refilled_at = now;
        }
        if piece >= pieces || *left == 0 || self.waiting.len() >= METADATA_QUEUE_MAX {
            return false;
        }
        *left -= 1;
        self.waiting.push_back(piece);
        true
    }

    /// Appends the payload of the next answer; false when there is none.
    pub fn next(&mut self, metadata: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(piece) = self.waiting.pop_front() else {
            return false;
        };
        let total_bytes = u32::try_from(metadata.len()).unwrap_or(0);
        let start = piece as usize * METADATA_PIECE_BYTES as usize;
        let length = metadata_piece_bytes(total_bytes, piece).unwrap_or(0) as usize;
        let Some(bytes) = metadata.get(start..start + length) else {
            return false;
        };
        let data = MetadataMessage::Data {
            piece,
            total_bytes,
            bytes,
        };
        data.encode(out);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now::ZERO + std::time::Duration::from_secs(seconds)
    }

    #[test]
    fn answers_are_the_bytes_of_the_metadata_in_the_order_asked_for() {
        let metadata = [vec![1; 16_384], vec![2; 5]].concat();
        let mut queue = MetadataQueue::default();
        for piece in [1, 0] {
            assert!(queue.push(piece, 16_389, at(5)));
        }
        assert!(!queue.push(2, 16_389, at(5)), "there is no such piece");
        let mut out = Vec::new();
        assert!(queue.next(&metadata, &mut out));
        let MetadataMessage::Data { piece, bytes, .. } = MetadataMessage::parse(&out).unwrap()
        else {
            panic!("not data");
        };
        assert_eq!((piece, bytes), (1, &[2; 5][..]));
        out.clear();
        assert!(queue.next(&metadata, &mut out) && !queue.next(&metadata, &mut out));
    }

    #[test]
    fn a_peer_gets_two_copies_and_a_bit_and_then_a_piece_a_second() {
        let metadata = [7; 100];
        let mut queue = MetadataQueue::default();
        let mut sent = 0;
        let mut out = Vec::new();
        while queue.push(0, 100, at(9)) {
            assert!(queue.next(&metadata, &mut out));
            sent += 1;
        }
        assert_eq!(sent, COPIES_MAX + PIECES_MORE);
        assert!(queue.push(0, 100, at(10)) && !queue.push(0, 100, at(10)));
    }

    #[test]
    fn a_peer_that_takes_nothing_has_a_bounded_queue() {
        let mut queue = MetadataQueue::default();
        let taken = (0..1_000).filter(|piece| queue.push(*piece, 30 << 20, at(1)));
        assert_eq!(taken.count(), METADATA_QUEUE_MAX);
    }
}
