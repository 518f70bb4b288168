//! Receiving blocks straight into their places: what a peer sends next if it answers in order, and how far it did. Layer 5.
//!
//! What comes is foreseen from the requests that the peer owes answers to: the rest of the block under way, then headers
//! and payloads of the next ones. One receive has a part for each of them. Afterwards the headers are compared, and
//! payload behind those that are as foreseen lies where it belongs. From the first other byte on, what came is put
//! together elsewhere and goes the way of all bytes. Places are held for the receive alone meanwhile and count for nothing
//! until the decoder and the core have said so, so a peer that sends something else gains nothing by it (HOSTILE.md C1).

use crate::base::BlockRef;
use crate::session::disk::DiskTorrent;
use crate::uring::buffers::{Landing, Segment};
use crate::uring::scatter::Scatter;
use crate::wire::message::{PIECE_HEADER_BYTES, piece_header};

/// What one receive may bring.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    /// The place of the rest of the block under way.
    rest: Option<Landing>,
    /// The blocks behind it, with their places.
    blocks: Vec<(BlockRef, Landing)>,
    /// Bytes for what is not foreseen.
    spare_bytes: usize,
}

impl Foresight {
    /// Foresees up to `room` bytes. `begun` is where the next byte of the block under way goes; `next` are those that
    /// should follow.
    pub fn new(
        disk: &DiskTorrent,
        begun: Option<(BlockRef, u32)>,
        next: impl Iterator<Item = BlockRef>,
        room: usize,
    ) -> Option<Foresight> {
        let mut foresight = Foresight::default();
        if let Some((block, offset)) = begun {
            foresight.rest = Some(disk.land(block, offset)?);
        }
        let mut left = room.saturating_sub(foresight.rest_bytes());
        for block in next {
            let wire_bytes = PIECE_HEADER_BYTES + block.length() as usize;
            if wire_bytes > left {
                return foresight.if_any();
            }
            let Some(place) = disk.land(block, 0) else {
                break;
            };
            foresight.blocks.push((block, place));
            left -= wire_bytes;
        }
        // The peer owes no more than that, or another peer's bytes are on their way to the next place.
        foresight.spare_bytes = left;
        foresight.if_any()
    }

    fn if_any(self) -> Option<Foresight> {
        (!self.blocks.is_empty()).then_some(self)
    }

    fn rest_bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, Landing::len)
    }

    /// The parts of a receive, headers in the scratch.
    pub fn scatter(self, scratch: Segment) -> (Layout, Scatter) {
        let mut scatter = Scatter::new(scratch);
        let layout = Layout {
            has_rest: self.rest.is_some(),
            headers: self
                .blocks
                .iter()
                .map(|(block, _)| header(*block))
                .collect(),
        };
        self.rest
            .into_iter()
            .for_each(|rest| scatter.push_landing(rest));
        for (_, place) in self.blocks {
            scatter.push_scratch(PIECE_HEADER_BYTES);
            scatter.push_landing(place);
        }
        scatter.push_scratch(self.spare_bytes);
        (layout, scatter)
    }
}

/// The bytes that should be between payloads.
#[derive(Debug)]
pub(super) struct Layout {
    has_rest: bool,
    headers: Vec<[u8; PIECE_HEADER_BYTES]>,
}

/// How far a receive went as foreseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// So many bytes lie where they belong.
    pub bytes: usize,
    /// What follows them is not what was foreseen.
    pub is_broken: bool,
}

impl Layout {
    /// Compares the headers with what came. `slices` are the received bytes part by part.
    pub fn agreed<'a>(&self, mut slices: impl Iterator<Item = &'a [u8]>) -> Agreed {
        let mut bytes = 0;
        if self.has_rest {
            bytes += slices.next().map_or(0, <[u8]>::len);
        }
        for foreseen in &self.headers {
            // The last one may have come in part.
            let header = slices.next().unwrap_or_default();
            if !foreseen.starts_with(header) {
                return Agreed {
                    bytes,
                    is_broken: true,
                };
            }
            bytes += header.len() + slices.next().map_or(0, <[u8]>::len);
        }
        Agreed {
            bytes,
            is_broken: false,
        }
    }
}

fn header(block: BlockRef) -> [u8; PIECE_HEADER_BYTES] {
    piece_header(block.piece().get(), block.begin(), block.length())
}

#[cfg(test)]
mod tests;
