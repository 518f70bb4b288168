//! Places for connections, of which some are given up for others. Layer 6.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use tokio::sync::oneshot;

/// Places for connections.
pub struct Places {
    taken: Cell<usize>,
    max: usize,
    /// Of those that wait for the torrents and have nothing more to say, or too much: whoever comes may have theirs, the
    /// oldest first. An end of stream alone does not tell whether somebody still reads.
    lent: RefCell<VecDeque<oneshot::Sender<()>>>,
}

impl Places {
    /// None taken.
    pub fn new(max: usize) -> Places {
        Places {
            taken: Cell::new(0),
            max,
            lent: RefCell::default(),
        }
    }

    /// Those taken.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// A place, or that of one who leaves for it.
    pub fn take(&self) -> Option<Count<'_>> {
        let free = Count::one(&self.taken, self.max);
        free.or_else(|| {
            let mut lent = self.lent.borrow_mut();
            while lent.pop_front()?.send(()).is_err() {}
            // That one leaves at once.
            Count::one(&self.taken, usize::MAX)
        })
    }

    /// Completes when the place is wanted.
    pub async fn lend(&self) {
        let (wanted, is_wanted) = oneshot::channel();
        self.lent.borrow_mut().push_back(wanted);
        let _ = is_wanted.await;
    }
}

/// Counts something while it lives.
pub struct Count<'a>(&'a Cell<usize>);

impl<'a> Count<'a> {
    /// One more, unless there are `max`.
    pub fn one(cell: &'a Cell<usize>, max: usize) -> Option<Count<'a>> {
        if cell.get() >= max {
            return None;
        }
        cell.set(cell.get() + 1);
        Some(Count(cell))
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
