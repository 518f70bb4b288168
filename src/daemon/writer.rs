//! The thread that writes the state file: what is asked for meanwhile goes into the next commit together. Layer 6.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tracing::error;

use super::store::{Store, Write};

/// Requests that wait; whoever has another waits itself.
const QUEUE_MAX: usize = 4_096;
/// Requests in one commit: a commit of so many rows takes some tens of milliseconds.
const BATCH_MAX: usize = 4_096;

/// Answered when it is on disk, with what went wrong if it is not.
type Done = oneshot::Sender<Result<(), String>>;

enum Request {
    Commit(Vec<Write>, Option<Done>),
    End,
}

/// Asks for writes. Clones share the thread.
#[derive(Clone)]
pub struct Writer(SyncSender<Request>);

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(store: Store) -> io::Result<(Writer, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("gyre-state".into());
        let thread = thread.spawn(move || write(store, &receiver))?;
        Ok((Writer(sender), thread))
    }

    /// Writes all of it or nothing. What is asked for first is written first: ask under the lock of what is written.
    ///
    /// Waits only when thousands wait before it.
    pub fn begin(&self, writes: Vec<Write>) -> Pending {
        let (done, answer) = oneshot::channel();
        // Whoever asks a thread that is gone hears so from the answer.
        let _ = self.0.send(Request::Commit(writes, Some(done)));
        Pending(answer)
    }

    /// Ends the thread behind everything that was asked for before.
    pub fn end(&self) {
        let _ = self.0.send(Request::End);
    }
}

/// A commit that was asked for.
pub struct Pending(oneshot::Receiver<Result<(), String>>);

impl Pending {
    /// Completes when it is on disk.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn done(self) -> Result<(), String> {
        self.0.await.unwrap_or_else(|_| Err(gone()))
    }

    /// The same on a thread that may block and is in no runtime.
    ///
    /// # Errors
    /// As above.
    pub fn done_blocking(self) -> Result<(), String> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> String {
    "the state is not written any more".to_owned()
}

fn write(mut store: Store, requests: &Receiver<Request>) {
    let mut is_over = false;
    while !is_over {
        let Ok(first) = requests.recv() else { return };
        let (mut writes, mut done) = (Vec::new(), Vec::new());
        let more = std::iter::from_fn(|| requests.try_recv().ok());
        for request in std::iter::once(first).chain(more).take(BATCH_MAX) {
            match request {
                Request::Commit(some, waiting) => {
                    writes.extend(some);
                    done.extend(waiting);
                }
                Request::End => {
                    is_over = true;
                    break;
                }
            }
        }
        let result = match writes.is_empty() {
            true => Ok(()),
            false => store.commit(&writes),
        };
        let result = result.map_err(|error| {
            let hint = error.hint();
            error!("the state cannot be written: {error}; hint: {hint}, then it goes on by itself");
            format!("the state cannot be written: {error}; hint: {hint}")
        });
        for waiting in done {
            let _ = waiting.send(result.clone());
        }
    }
}
