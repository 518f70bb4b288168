//! From segments to files: whole pieces, and segments of pieces that stream. Layer 5.

use std::ops::Range;
use std::rc::Rc;

use super::{DiskError, DiskOp, DiskTorrent};
use crate::base::PieceIndex;
use crate::storage::assembly::{HashTurn, Taken, Ticket, runs};
use crate::uring::buffers::Segment;
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
            let handle = match self.handle(file, true).await {
                Ok(handle) => handle,
                Err(error) => return (Err(error), buffer),
            };
            let _permit = self.in_flight.acquire().await;
            let written;
            (written, buffer) = handle.write_at(buffer, range, offset).await;
            self.note_write(file);
            if let Err(error) = written {
                self.hub.budget.close(self.id, file);
                return (Err(self.error(DiskOp::Write, file, &error)), buffer);
            }
        }
        (Ok(()), buffer)
    }

    /// The next sync covers the file, and its new look is ours.
    fn note_write(&self, file: usize) {
        self.unsynced.borrow_mut().files.insert(file);
        let mut watches = self.watches.borrow_mut();
        watches.entry(file).or_default().seen = None;
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

/// Copies one range from one buffer into the same range of another.
pub(super) fn copy_run(from: &Segment, into: &mut Segment, run: Range<usize>) {
    let from = from.as_slice().get(run.clone());
    let into = into.as_mut_slice().get_mut(run);
    if let (Some(from), Some(into)) = (from, into) {
        into.copy_from_slice(from);
    }
}

/// A segment's buffer is as long as the segment, at most 256 KiB.
pub(super) fn segment_bytes(buffer: &Segment) -> u32 {
    u32::try_from(buffer.len()).unwrap_or(crate::base::SEGMENT_BYTES)
}
