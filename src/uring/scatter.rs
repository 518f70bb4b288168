//! Where the bytes of one receive go: places in several segments, and memory between them (layer 4).

use std::collections::VecDeque;
use std::ops::Range;

use super::buffers::{Landing, Segment};

/// One stretch of a receive.
#[derive(Debug)]
enum Part {
    /// Of the scratch.
    Scratch(Range<usize>),
    /// Somewhere else.
    Landing(Landing),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Scratch(range) => range.len(),
            Part::Landing(landing) => landing.len(),
        }
    }
}

/// The parts of one receive, in the order of the stream.
#[derive(Debug)]
pub struct Scatter {
    scratch: Segment,
    /// How much of the scratch is given to parts, in bytes.
    scratch_used: usize,
    parts: VecDeque<Part>,
}

impl Scatter {
    /// No parts yet; `scratch` is for what has no place of its own.
    ///
    /// # Panics
    ///
    /// If something lands in the scratch.
    pub fn new(scratch: Segment) -> Scatter {
        // Nothing can begin to land in it later: that takes the segment itself.
        let _ = scratch.as_slice();
        Scatter {
            scratch,
            scratch_used: 0,
            parts: VecDeque::new(),
        }
    }

    /// The next bytes go into the scratch, as many as are left there at most.
    pub fn push_scratch(&mut self, bytes: usize) {
        let start = self.scratch_used;
        let end = start.saturating_add(bytes).min(self.scratch.len());
        if start < end {
            self.scratch_used = end;
            self.parts.push_back(Part::Scratch(start..end));
        }
    }

    /// The next bytes go there.
    pub fn push_landing(&mut self, landing: Landing) {
        self.parts.push_back(Part::Landing(landing));
    }

    /// Bytes of all parts.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Whether there is no part.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The bytes of each part in order, of all together the first `bytes`.
    pub fn slices(&self, bytes: usize) -> impl Iterator<Item = &[u8]> {
        let mut left = bytes;
        let slices = self.parts.iter().map(|part| match part {
            Part::Scratch(range) => self.scratch.as_slice().get(range.clone()),
            Part::Landing(landing) => Some(landing.as_slice()),
        });
        slices.map_while(move |slice| {
            let slice = slice.unwrap_or_default();
            let slice = slice.get(..left).unwrap_or(slice);
            left -= slice.len();
            (!slice.is_empty()).then_some(slice)
        })
    }

    /// Changes the first `bytes`, part by part in order.
    pub fn change(&mut self, bytes: usize, mut change: impl FnMut(&mut [u8])) {
        let mut left = bytes;
        for part in &mut self.parts {
            let slice = match part {
                Part::Scratch(range) => {
                    let scratch = self.scratch.as_mut_slice();
                    scratch.get_mut(range.clone()).unwrap_or_default()
                }
                Part::Landing(landing) => landing.as_mut_slice(),
            };
            let here = left.min(slice.len());
            change(slice.get_mut(..here).unwrap_or_default());
            left -= here;
        }
    }

    /// Shows the first part, at most `bytes` of it, and lets go of it; `None` when there is none.
    pub fn take_front<R>(&mut self, bytes: usize, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let front = self.parts.pop_front()?;
        let slice = match &front {
            Part::Scratch(range) => self.scratch.as_slice().get(range.clone()),
            Part::Landing(landing) => Some(landing.as_slice()),
        };
        let slice = slice.unwrap_or_default();
        Some(look(slice.get(..bytes).unwrap_or(slice)))
    }

    /// The scratch, without the landings.
    pub fn into_scratch(self) -> Segment {
        self.scratch
    }

    /// The vectors of a message.
    pub(super) fn iovecs(&self) -> Vec<libc::iovec> {
        let vector = |part: &Part| libc::iovec {
            iov_base: match part {
                Part::Scratch(range) => self.scratch.start().wrapping_add(range.start).cast(),
                Part::Landing(landing) => landing.start().cast(),
            },
            iov_len: part.len(),
        };
        self.parts.iter().map(vector).collect()
    }
}
