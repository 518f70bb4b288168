//! Hashing pieces that lie on disk, on one thread, several side by side, with reads ahead of the hashing. Layer 5.
//!
//! Neighbouring bytes of one file are read together, however small the pieces are. Never called on the ring thread.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;

use crate::base::PieceIndex;
use crate::uring::piece_state::{PieceState, update_all};
use crate::uring::readahead::{AheadFile, ReadAhead};
use crate::uring::sha1_lanes::lanes;
use crate::wire::metainfo::PieceHash;

/// Where bytes of a piece are.
pub enum Place {
    /// Nowhere: a pad file's (BEP 47).
    Zeros,
    /// From this offset of a file.
    At(AheadFile, u64),
}

/// How the hash of a piece is come by.
pub enum Plan {
    /// From these bytes, in order: places and lengths.
    Read(Vec<(Place, u64)>),
    /// It is known without reading.
    Known(PieceHash),
}

/// The pieces that one thread hashes, and what becomes of their hashes.
pub trait Work {
    /// Why a piece has no hash.
    type Failure;
    /// The next piece; `None` when there are no more.
    fn next(&mut self) -> Option<PieceIndex>;
    /// Where the piece's bytes are.
    ///
    /// # Errors
    /// They are not to be had.
    fn plan(&mut self, piece: PieceIndex) -> Result<Plan, Self::Failure>;
    /// The height of the tree over the piece; `None` where its hash is a SHA-1.
    fn tree_height(&self, piece: PieceIndex) -> Option<u32>;
    /// A read of the piece failed: of the bytes with that number in its plan.
    fn failure(&mut self, piece: PieceIndex, span: usize, error: io::Error) -> Self::Failure;
    /// Bytes were read and hashed, or could not be.
    fn on_bytes(&mut self, bytes: u64);
    /// The piece's end; `was_read` when its bytes were told to [`Work::on_bytes`].
    fn done(&mut self, piece: PieceIndex, hash: Result<PieceHash, Self::Failure>, was_read: bool);
    /// True once nobody wants to know any more.
    fn is_stopped(&self) -> bool;
}

/// A part of a piece within one read.
struct Part {
    piece: PieceIndex,
    /// Its number in the piece's plan.
    span: usize,
    bytes: usize,
    /// The piece ends with it.
    is_last: bool,
}

/// One read: neighbouring parts.
struct Read {
    file: Option<AheadFile>,
    offset: u64,
    bytes: usize,
    parts: Vec<Part>,
}

impl Read {
    /// Whether bytes at that place come right behind this read and still fit.
    fn goes_on_with(&self, place: &Place, at: u64, bytes: usize, bytes_max: usize) -> bool {
        let is_next = match (&self.file, place) {
            (Some(file), Place::At(other, offset)) => {
                file.is_same(other) && self.offset + self.bytes as u64 == offset + at
            }
            (None, Place::Zeros) => true,
            _ => false,
        };
        is_next && self.bytes + bytes <= bytes_max
    }
}

/// A piece on its way into reads.
struct Planned {
    piece: PieceIndex,
    spans: Vec<(Place, u64)>,
    span: usize,
    at: u64,
}

impl Planned {
    fn skip_empty(&mut self) {
        while let Some((_, 0)) = self.spans.get(self.span) {
            self.span += 1;
        }
    }

    /// The span that is next, and how much is left of it.
    fn left(&self) -> Option<(&Place, u64)> {
        let (place, length) = self.spans.get(self.span)?;
        Some((place, length - self.at))
    }
}

/// Hashes pieces until there are no more or the work is stopped, several side by side.
pub fn run<W: Work>(work: &mut W) {
    let lanes = lanes();
    let mut strands: Vec<Strand<W::Failure>> = Vec::new();
    // Each has a ring and memory of its own: only as many as there is work for.
    for _ in 0..lanes {
        let mut strand = Strand::new(lanes);
        if !strand.prepare(work) {
            break;
        }
        strands.push(strand);
    }
    while !work.is_stopped() {
        strands.retain_mut(|strand| strand.prepare(work));
        let Some(bytes) = strands.iter().map(Strand::at_hand).min() else {
            return;
        };
        let mut streams = Vec::with_capacity(lanes);
        for strand in &mut strands {
            let head = strand.ahead.bytes().get(..bytes).unwrap_or_default();
            let state = strand.state.get_or_insert_with(|| {
                let part = strand
                    .reads
                    .front()
                    .and_then(|read| read.parts.get(strand.part));
                PieceState::new(part.and_then(|part| work.tree_height(part.piece)))
            });
            streams.push((state, head));
        }
        update_all(&mut streams);
        for strand in &mut strands {
            strand.advance(bytes, work);
        }
    }
}

/// Cuts pieces into reads.
#[derive(Default)]
struct Planner {
    planned: Option<Planned>,
}

impl Planner {
    fn next_read<W: Work>(&mut self, work: &mut W, bytes_max: usize) -> Option<Read> {
        let mut read: Option<Read> = None;
        while let Some(planned) = self.current(work) {
            let Some((place, left)) = planned.left() else {
                break;
            };
            let room = bytes_max - read.as_ref().map_or(0, |read| read.bytes);
            let bytes = usize::try_from(left).map_or(room, |left| left.min(room));
            let fits =
                |read: &Read| bytes > 0 && read.goes_on_with(place, planned.at, bytes, bytes_max);
            if read.as_ref().is_some_and(|read| !fits(read)) {
                break;
            }
            let read = read.get_or_insert_with(|| match place {
                Place::Zeros => Read {
                    file: None,
                    offset: 0,
                    bytes: 0,
                    parts: Vec::new(),
                },
                Place::At(file, offset) => Read {
                    file: Some(file.clone()),
                    offset: offset + planned.at,
                    bytes: 0,
                    parts: Vec::new(),
                },
            });
            read.bytes += bytes;
            let is_span_end = bytes as u64 == left;
            read.parts.push(Part {
                piece: planned.piece,
                span: planned.span,
                bytes,
                is_last: is_span_end && planned.span + 1 == planned.spans.len(),
            });
            planned.at += bytes as u64;
            if is_span_end {
                (planned.span, planned.at) = (planned.span + 1, 0);
            }
        }
        read
    }

    /// The piece that reads are made of now. Pieces that need none are done at once.
    fn current<W: Work>(&mut self, work: &mut W) -> Option<&mut Planned> {
        if let Some(planned) = &mut self.planned {
            planned.skip_empty();
            if planned.left().is_none() {
                self.planned = None;
            }
        }
        while self.planned.is_none() && !work.is_stopped() {
            let piece = work.next()?;
            match work.plan(piece) {
                Ok(Plan::Known(hash)) => work.done(piece, Ok(hash), false),
                Err(failure) => work.done(piece, Err(failure), false),
                Ok(Plan::Read(mut spans)) => {
                    while spans.last().is_some_and(|(_, length)| *length == 0) {
                        spans.pop();
                    }
                    if spans.is_empty() {
                        let nothing = PieceState::new(work.tree_height(piece));
                        work.done(piece, Ok(nothing.finalize()), true);
                        continue;
                    }
                    let planned = self.planned.insert(Planned {
                        piece,
                        spans,
                        span: 0,
                        at: 0,
                    });
                    planned.skip_empty();
                }
            }
        }
        self.planned.as_mut()
    }
}

/// Pieces hashed one behind the other.
struct Strand<F> {
    planner: Planner,
    ahead: ReadAhead,
    reads: VecDeque<Read>,
    /// How far the first of the reads is hashed, in bytes.
    read_done: usize,
    /// Which of its parts is next, and how far that is.
    part: usize,
    part_done: usize,
    /// `None` between pieces.
    state: Option<PieceState>,
    failure: Option<F>,
}

impl<F> Strand<F> {
    fn new(beside: usize) -> Self {
        Strand {
            planner: Planner::default(),
            ahead: ReadAhead::new(beside),
            reads: VecDeque::new(),
            read_done: 0,
            part: 0,
            part_done: 0,
            state: None,
            failure: None,
        }
    }

    /// Reads ahead and waits until there is something to hash; false when there is nothing left.
    fn prepare<W: Work<Failure = F>>(&mut self, work: &mut W) -> bool {
        loop {
            while self.ahead.has_room()
                && let Some(read) = self.planner.next_read(work, self.ahead.read_bytes_max())
            {
                match &read.file {
                    Some(file) => self.ahead.push(file, read.offset, read.bytes),
                    None => self.ahead.push_zeros(read.bytes),
                }
                self.reads.push_back(read);
            }
            if self.reads.is_empty() {
                return false;
            }
            match self.ahead.fill() {
                Ok(()) => return true,
                Err(_) => self.read_singly(work),
            }
        }
    }

    /// Bytes that can be hashed now: of one part.
    fn at_hand(&self) -> usize {
        let part = self
            .reads
            .front()
            .and_then(|read| read.parts.get(self.part));
        let left = part.map_or(0, |part| part.bytes - self.part_done);
        left.min(self.ahead.bytes().len())
    }

    /// Goes on by so many bytes, which were hashed.
    fn advance<W: Work<Failure = F>>(&mut self, bytes: usize, work: &mut W) {
        self.ahead.consume(bytes);
        self.read_done += bytes;
        self.part_done += bytes;
        let Some(read) = self.reads.front() else {
            return;
        };
        let Some(part) = read.parts.get(self.part) else {
            return;
        };
        if self.part_done < part.bytes {
            return;
        }
        end_part(part, &mut self.state, &mut self.failure, work);
        (self.part, self.part_done) = (self.part + 1, 0);
        if self.part == read.parts.len() {
            self.next_read();
        }
    }

    /// Not all of the read can be read; the parts that can be are found out one by one.
    fn read_singly<W: Work<Failure = F>>(&mut self, work: &mut W) {
        let Some(read) = self.reads.front() else {
            return;
        };
        let mut at = read.offset + self.read_done as u64;
        let mut rest = Vec::new();
        for part in read.parts.iter().skip(self.part) {
            rest.resize(part.bytes - self.part_done, 0);
            let file = read.file.as_ref().map(AheadFile::file);
            match file.map_or(Ok(()), |file| file.read_exact_at(&mut rest, at)) {
                Ok(()) => self
                    .state
                    .get_or_insert_with(|| PieceState::new(work.tree_height(part.piece)))
                    .update(&rest),
                Err(error) => {
                    let failure = || work.failure(part.piece, part.span, error);
                    self.failure.get_or_insert_with(failure);
                }
            }
            at += rest.len() as u64;
            self.part_done = 0;
            end_part(part, &mut self.state, &mut self.failure, work);
        }
        self.next_read();
    }

    fn next_read(&mut self) {
        self.reads.pop_front();
        (self.read_done, self.part, self.part_done) = (0, 0, 0);
    }
}

fn end_part<W: Work>(
    part: &Part,
    state: &mut Option<PieceState>,
    failure: &mut Option<W::Failure>,
    work: &mut W,
) {
    work.on_bytes(part.bytes as u64);
    if !part.is_last {
        return;
    }
    let state = state.take();
    match failure.take() {
        Some(failure) => work.done(part.piece, Err(failure), true),
        None => {
            let state = state.unwrap_or_else(|| PieceState::new(work.tree_height(part.piece)));
            work.done(part.piece, Ok(state.finalize()), true);
        }
    }
}

#[cfg(test)]
mod tests;
