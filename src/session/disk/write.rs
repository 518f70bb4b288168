//! From segments to files: whole pieces, and segments of pieces that stream. Layer 5.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use tracing::info;

use super::{DiskError, DiskOp, DiskTorrent, WriteEngine};
use crate::base::PieceIndex;
use crate::storage::assembly::{HashTurn, Taken, Ticket, runs};
use crate::storage::direct::{self, Cut};
use crate::uring::buffers::Segment;
use crate::uring::files::{File, FsKind};
use crate::uring::ring;

impl DiskTorrent {
    /// Writes what memory holds of the piece and forgets the piece (`Effect::Write`). Its verdict was good.
    ///
    /// On an error what is not written stays in memory, and the call may be repeated.
    pub fn write_piece(
        self: &Rc<Self>,
        piece: PieceIndex,
    ) -> impl Future<Output = Result<(), DiskError>> + use<> {
        let taken = self.assembly.borrow_mut().take_piece(piece);
        let this = Rc::clone(self);
        async move {
            let write = |taken| ring::spawn(Rc::clone(&this).write_segment(taken));
            let tasks: Vec<_> = taken.into_iter().map(write).collect();
            let mut result = Ok(());
            for task in tasks {
                let written = task.await.unwrap_or_else(|_| Err(this.lost_task(piece)));
                result = result.and(written);
            }
            result?;
            this.assembly.borrow_mut().discard(piece);
            this.unsynced.borrow_mut().pieces.insert(piece);
            Ok(())
        }
    }

    /// Writes the whole blocks of one segment and frees its memory; hashes them on their way when the running hash has
    /// come so far (`Effect::FlushSegment`). Blocks still arriving get a fresh buffer.
    ///
    /// On an error the blocks stay in memory, and the call may be repeated.
    pub fn flush_segment(
        self: &Rc<Self>,
        piece: PieceIndex,
        segment: u32,
    ) -> impl Future<Output = Result<(), DiskError>> + use<> {
        let taken = self
            .assembly
            .borrow_mut()
            .take_segment_for_flush(piece, segment);
        if let Some(taken) = &taken
            && taken.keep != 0
        {
            self.carry_over(taken);
        }
        let this = Rc::clone(self);
        async move {
            let Some(mut taken) = taken else {
                return Ok(());
            };
            if taken.ticket.is_hashed {
                taken = this.hash_in_turn(taken).await;
            }
            Rc::clone(&this).write_segment(taken).await?;
            this.unsynced.borrow_mut().pieces.insert(piece);
            this.read_back_ahead(piece).await;
            Ok(())
        }
    }

    /// Copies the bytes of blocks still arriving into a buffer of their own.
    fn carry_over(&self, taken: &Taken<Segment>) {
        let ticket = taken.ticket;
        let mut fresh = self.hub.pool.alloc_or_heap(taken.buffer.len());
        for run in runs(taken.keep, segment_bytes(&taken.buffer)) {
            // What lands there is copied by whoever receives it.
            copy_run(&taken.buffer, &mut fresh, run);
        }
        let mut assembly = self.assembly.borrow_mut();
        assembly.insert_buffer(ticket.piece, ticket.segment, fresh);
    }

    async fn hash_in_turn(&self, mut taken: Taken<Segment>) -> Taken<Segment> {
        if self.wait_for_turn(taken.ticket).await == HashTurn::Void {
            return taken;
        }
        let state = self.assembly.borrow_mut().take_hash(taken.ticket);
        let state = state.unwrap_or_else(|| self.fresh_state(taken.ticket.piece));
        let all = 0..taken.buffer.len();
        let mut done = self.hub.hasher.hash(state, vec![(taken.buffer, all)]).await;
        self.assembly
            .borrow_mut()
            .put_hash(taken.ticket, done.state);
        self.moved.notify_waiters();
        let (buffer, _) = done.parts.remove(0);
        taken.buffer = buffer;
        taken
    }

    /// Waits while segments before this one are being hashed.
    pub(super) async fn wait_for_turn(&self, ticket: Ticket) -> HashTurn {
        loop {
            let moved = self.moved.notified();
            match self.assembly.borrow().hash_turn(ticket) {
                HashTurn::Wait => {}
                turn => return turn,
            }
            moved.await;
        }
    }

    /// Writes the blocks of the loan and ends it.
    async fn write_segment(self: Rc<Self>, taken: Taken<Segment>) -> Result<(), DiskError> {
        let ticket = taken.ticket;
        let mut buffer = taken.buffer;
        let mut result = Ok(());
        for run in runs(ticket.blocks, segment_bytes(&buffer)) {
            let written;
            (written, buffer) = self.write_run(ticket, run, buffer).await;
            result = result.and(written);
            if result.is_err() {
                break;
            }
        }
        let mut assembly = self.assembly.borrow_mut();
        let freed = match result {
            Ok(()) => {
                assembly.written(ticket);
                Some(buffer)
            }
            Err(_) => assembly.give_back(ticket, buffer, copy_run),
        };
        drop(assembly);
        drop(freed);
        self.moved.notify_waiters();
        result
    }

    /// Writes a range of the segment to the files it spans; pads are skipped.
    async fn write_run(
        &self,
        ticket: Ticket,
        run: Range<usize>,
        mut buffer: Segment,
    ) -> (Result<(), DiskError>, Segment) {
        let start = self.segment_offset(ticket.piece, ticket.segment) + run.start as u64;
        let spans = self.config.layout.spans(start, run.len() as u64);
        let mut at = run.start;
        for span in spans {
            let length = usize::try_from(span.length).unwrap_or(usize::MAX);
            let range = at..at.saturating_add(length);
            at = range.end;
            let (file, offset) = match self.target(ticket.piece, &span) {
                Ok(Some(target)) => target,
                Ok(None) => continue,
                Err(error) => return (Err(error), buffer),
            };
            let written;
            self.begin_write(file);
            (written, buffer) = self.write_span(file, offset, range, buffer).await;
            if written.is_ok() {
                self.lengths
                    .borrow_mut()
                    .written(file, offset + span.length);
            }
            self.end_write(file);
            if let Err(error) = written {
                self.hub.budget.close(self.id, file);
                return (Err(error), buffer);
            }
        }
        (Ok(()), buffer)
    }

    /// Writes a range of the segment to one file by the engine in force.
    async fn write_span(
        &self,
        file: usize,
        offset: u64,
        range: Range<usize>,
        mut buffer: Segment,
    ) -> (Result<(), DiskError>, Segment) {
        // Before the file is opened: operations bound the open files.
        let _permit = self.lane.begin().await;
        let (handle, stamp) = match self.own_handle(file).await {
            Ok(own) => own,
            Err(error) => return (Err(error), buffer),
        };
        // A write up to where the file ends, or past it, would hide that the file was cut before.
        let end = offset + range.len() as u64;
        if end >= self.lengths.borrow().least(file) {
            self.lengths.borrow_mut().look(file, stamp.size_bytes);
        }
        let mut cut = direct::cut(range.clone(), offset);
        let at = |start: usize| offset + (start - range.start) as u64;
        let mut parts = [range.clone(), range.end..range.end];
        if !cut.middle.is_empty()
            && self.writes_direct()
            && let Some(direct) = self.direct_handle(file).await
        {
            let written;
            (written, buffer) = self
                .write_direct(&direct, &cut, at(cut.middle.start), buffer)
                .await;
            match written {
                Ok(()) => parts = [std::mem::take(&mut cut.head), std::mem::take(&mut cut.tail)],
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.refuse_direct(),
                Err(error) => return (Err(self.error(DiskOp::Write, file, &error)), buffer),
            }
        }
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let offset = at(part.start);
            let written;
            (written, buffer) = handle.write_at(buffer, part, offset).await;
            if let Err(error) = written {
                return (Err(self.error(DiskOp::Write, file, &error)), buffer);
            }
        }
        self.hub.traffic.note_written(range.len());
        (Ok(()), buffer)
    }

    /// Writes whole pages past the page cache; through a copy where memory and file do not agree.
    async fn write_direct(
        &self,
        file: &File,
        cut: &Cut,
        offset: u64,
        buffer: Segment,
    ) -> (io::Result<()>, Segment) {
        if cut.is_aligned {
            return file.write_at(buffer, cut.middle.clone(), offset).await;
        }
        let length = cut.middle.len();
        let mut copy = self.hub.pool.alloc_or_heap(length);
        if let Err(error) = copy_out(&buffer, cut.middle.clone(), &mut copy) {
            return (Err(error), buffer);
        }
        let (written, _copy) = file.write_at(copy, 0..length, offset).await;
        (written, buffer)
    }

    /// Whether pages go past the page cache now: always, never, or as long as hardly anything is uploaded (what is, is
    /// mostly what came last, and is then found in the page cache).
    fn writes_direct(&self) -> bool {
        let may = self.kind == FsKind::Local && !self.refuses_direct.get();
        may && match self.hub.engines.write {
            WriteEngine::Direct => true,
            WriteEngine::Buffered => false,
            WriteEngine::Auto => !self.hub.traffic.is_uploading(),
        }
    }

    /// The file system takes no O_DIRECT after all.
    pub(super) fn refuse_direct(&self) {
        if !self.refuses_direct.replace(true) {
            let folder = self.full(std::path::Path::new(""));
            info!(folder = %folder.display(), "the file system takes no direct reads and writes: they go through the page cache");
        }
    }

    /// How the file looks from now on is our doing.
    pub(super) fn begin_write(&self, file: usize) {
        let mut watches = self.watches.borrow_mut();
        let watch = watches.entry(file).or_default();
        watch.seen = None;
        watch.writing += 1;
        watch.writes += 1;
    }

    /// The next sync covers the file, and its new look is ours.
    pub(super) fn end_write(&self, file: usize) {
        self.unsynced.borrow_mut().files.insert(file);
        let mut watches = self.watches.borrow_mut();
        let watch = watches.entry(file).or_default();
        watch.seen = None;
        watch.writing = watch.writing.saturating_sub(1);
    }

    fn lost_task(&self, piece: PieceIndex) -> DiskError {
        let name = self.config.layout.root_name();
        DiskError::other(
            DiskOp::Write,
            self.full(name),
            std::io::ErrorKind::Other,
            format!("the task that wrote piece {} ended early", piece.get()),
        )
    }
}

/// Copies one range from one buffer into the same range of another. False when a receive has a part of it.
pub(super) fn copy_run(from: &Segment, into: &mut Segment, run: Range<usize>) -> bool {
    into.put_from(from, run)
}

/// Copies a range to the beginning of another buffer.
///
/// # Errors
/// A receive has a part of it: what is written is whole, and nothing is received there any more.
fn copy_out(from: &Segment, range: Range<usize>, into: &mut Segment) -> io::Result<()> {
    match from.bytes(range) {
        Some(bytes) if into.put(0, bytes) => Ok(()),
        _ => Err(io::Error::other("bytes to be written are being received")),
    }
}

/// A segment's buffer is as long as the segment, at most 256 KiB.
pub(super) fn segment_bytes(buffer: &Segment) -> u32 {
    u32::try_from(buffer.len()).unwrap_or(crate::base::SEGMENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::buffers::Pool;

    #[test]
    fn what_is_being_received_is_not_written() {
        let pool = Pool::plain(1 << 20).unwrap();
        let [mut segment, mut copy] = [(); 2].map(|()| pool.alloc(65_536).unwrap());
        segment.as_mut_slice().fill(7);
        let landing = segment.land(16_384..32_768).unwrap();
        assert!(copy_out(&segment, 4_096..20_480, &mut copy).is_err());
        assert!(!copy_run(&segment, &mut copy, 0..32_768));
        drop(landing);
        copy_out(&segment, 4_096..20_480, &mut copy).unwrap();
        assert_eq!(copy.as_slice()[..16_384], [7; 16_384]);
    }
}
