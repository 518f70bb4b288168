//! A run of blocks as headers and slices of memory, for one send. Layer 5.

use super::PIECE_HEADER_BYTES;
use crate::swarm::effects::UploadRun;
use crate::uring::buffers::Segment;
use crate::uring::map::FileMap;
use crate::uring::stream::{Outgoing, SendData, SendPart};

/// The id of a `piece` message (BEP 3).
const PIECE_ID: u8 = 7;

/// Where the bytes of a run lie, in order.
#[derive(Default)]
pub(super) struct Sources {
    /// Length and kind of each stretch.
    stretches: Vec<(u64, Source)>,
    segments: Vec<Segment>,
    maps: Vec<FileMap>,
}

enum Source {
    Segment { index: usize, start: usize },
    Mapped { index: usize, offset: u64 },
    Zeros,
}

impl Sources {
    /// The next `length` bytes lie in a segment from `start` on.
    pub fn segment(&mut self, segment: Segment, start: usize, length: u64) {
        let index = self.segments.len();
        self.segments.push(segment);
        self.stretches
            .push((length, Source::Segment { index, start }));
    }

    /// The next `length` bytes lie in a file from `offset` on.
    pub fn mapped(&mut self, map: FileMap, offset: u64, length: u64) {
        let index = self.maps.len();
        self.maps.push(map);
        self.stretches
            .push((length, Source::Mapped { index, offset }));
    }

    /// The next `length` bytes are zeros.
    pub fn zeros(&mut self, length: u64) {
        self.stretches.push((length, Source::Zeros));
    }

    /// Headers and slices. The stretches together are as long as the run.
    pub fn shape(self, run: &UploadRun) -> Outgoing {
        let mut out = Outgoing {
            headers: Vec::with_capacity(run.blocks.len() * PIECE_HEADER_BYTES),
            parts: Vec::with_capacity(run.blocks.len() + self.stretches.len()),
            segments: self.segments,
            maps: self.maps,
        };
        let mut stretches = self.stretches.into_iter();
        let (mut left, mut source) = stretches.next().unwrap_or((0, Source::Zeros));
        // Bytes of the present stretch that are used.
        let mut used = 0;
        for block in &run.blocks {
            let start = out.headers.len();
            // 9 bytes of id, index and begin count too; a block has at most 16 KiB.
            out.headers
                .extend_from_slice(&(block.length() + 9).to_be_bytes());
            out.headers.push(PIECE_ID);
            out.headers
                .extend_from_slice(&block.piece().get().to_be_bytes());
            out.headers.extend_from_slice(&block.begin().to_be_bytes());
            let mut header = start..out.headers.len();
            let mut wanted = u64::from(block.length());
            while wanted > 0 {
                if left == 0 {
                    let Some(next) = stretches.next() else { break };
                    (left, source) = next;
                    used = 0;
                }
                let length = wanted.min(left);
                let data = source.slice(used, length);
                out.parts.push(SendPart {
                    header: header.clone(),
                    data,
                });
                header = header.end..header.end;
                used += length;
                left -= length;
                wanted -= length;
            }
        }
        out
    }
}

impl Source {
    /// `length` bytes (at most a block) from `at` on, both inside the stretch.
    fn slice(&self, at: u64, length: u64) -> SendData {
        let length = length as usize;
        match self {
            Source::Segment { index, start } => {
                let at = start + at as usize;
                SendData::Segment {
                    index: *index,
                    range: at..at + length,
                }
            }
            Source::Mapped { index, offset } => SendData::Mapped {
                index: *index,
                offset: offset + at,
                length,
            },
            Source::Zeros => SendData::Zeros(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Geometry, PieceIndex};

    fn run(blocks: u32) -> UploadRun {
        let geometry = Geometry::new(1 << 20, 1 << 18).unwrap();
        let block = |index| geometry.block(PieceIndex::new(1), index).unwrap();
        UploadRun {
            blocks: (0..blocks).map(block).collect(),
        }
    }

    #[test]
    fn a_block_over_two_stretches_has_one_header_and_two_slices() {
        let mut sources = Sources::default();
        sources.zeros(20_000);
        sources.zeros(2 * 16_384 - 20_000);
        let out = sources.shape(&run(2));
        let lengths: Vec<(usize, usize)> = out
            .parts
            .iter()
            .map(|part| match part.data {
                SendData::Zeros(length) => (part.header.len(), length),
                _ => unreachable!(),
            })
            .collect();
        assert_eq!(lengths, [(13, 16_384), (13, 3_616), (0, 12_768)]);
        assert_eq!(
            out.headers[13..][..13],
            [0, 0, 0x40, 9, 7, 0, 0, 0, 1, 0, 0, 0x40, 0]
        );
    }
}
