//! The thread of the state file: it reads it, then writes it, and what is asked for meanwhile goes into the next commit
//! together. Layer 6.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{error, warn};

use super::kept::Kept;
use super::store::{State, Store, StoreError, Told, Write};

/// Requests that wait; whoever has another waits itself.
const QUEUE_MAX: usize = 4_096;
/// Requests in one commit: a commit of so many rows takes some tens of milliseconds.
const BATCH_MAX: usize = 4_096;
/// Between two tries to undo what a commit that failed may have left in the file.
const RECOVER_RETRY: Duration = Duration::from_secs(1);

/// Answered when it is on disk, with what went wrong if it is not.
type Done = oneshot::Sender<Result<(), String>>;

enum Request {
    Commit(Vec<Write>, Option<Done>),
    End,
}

/// Asks for writes. Clones share the thread.
#[derive(Clone)]
pub struct Writer(SyncSender<Request>);

/// The state that is being read.
pub struct Reading {
    kept: oneshot::Receiver<Option<Kept>>,
    /// None once it was taken.
    state: Option<oneshot::Receiver<Result<State, StoreError>>>,
}

impl Reading {
    /// The settings, which are read long before the torrents (blocks).
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn kept_blocking(&mut self) -> Result<Option<Kept>, StoreError> {
        let told = std::mem::replace(&mut self.kept, oneshot::channel().1);
        if let Ok(kept) = told.blocking_recv() {
            return Ok(kept);
        }
        // They could not be told: it is over already.
        let Some(state) = self.state.take() else {
            return Ok(None);
        };
        let state = state.blocking_recv().unwrap_or(Err(StoreError::Damaged))?;
        let kept = state.kept.clone();
        let (sender, read) = oneshot::channel();
        let _ = sender.send(Ok(state));
        self.state = Some(read);
        Ok(kept)
    }

    /// All of it; `None` when it was taken before. The future may be dropped.
    ///
    /// # Errors
    /// The file cannot be used.
    pub async fn state(&mut self) -> Result<Option<State>, StoreError> {
        let Some(state) = &mut self.state else {
            return Ok(None);
        };
        let read = state.await;
        self.state = None;
        read.unwrap_or(Err(StoreError::Damaged)).map(Some)
    }
}

/// Said where it happens: nobody may wait for the state any more.
fn warn_set_aside(path: &Path, why: &StoreError, aside: &Path) {
    let folder = path.parent().unwrap_or(Path::new(""));
    warn!(
        "the state file {} cannot be used: {why}; it is kept as {}; hint: add the torrents again, their .torrent files \
         are in {}",
        path.display(),
        aside.display(),
        folder.join("torrents").display()
    );
}

impl Writer {
    /// Starts the thread, which begins to read the file.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(path: PathBuf) -> io::Result<(Writer, Reading, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let (tell_kept, kept) = oneshot::channel();
        let (tell_state, state) = oneshot::channel();
        let thread = std::thread::Builder::new().name("gyre-state".into());
        let thread = thread.spawn(move || {
            let mut tell_kept = Some(tell_kept);
            let opened = Store::open_telling(&path, &mut |told| match told {
                Told::Kept(kept) => {
                    if let Some(tell) = tell_kept.take() {
                        let _ = tell.send(kept.cloned());
                    }
                }
                Told::SetAside(why, aside) => warn_set_aside(&path, why, aside),
            });
            drop(tell_kept);
            match opened {
                Ok((store, state)) => {
                    let _ = tell_state.send(Ok(state));
                    write(store, &receiver);
                }
                Err(error) => {
                    let _ = tell_state.send(Err(error));
                }
            }
        })?;
        let state = Some(state);
        Ok((Writer(sender), Reading { kept, state }, thread))
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
        let first = match store.is_unsure() {
            true => requests.recv_timeout(RECOVER_RETRY),
            false => requests.recv().map_err(RecvTimeoutError::from),
        };
        let first = match first {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                let _ = store.recover();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
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
            // Before anybody hears of it: what was refused is not to be there after a kill.
            let _ = store.recover();
            let hint = error.hint();
            error!("the state cannot be written: {error}; hint: {hint}, then it goes on by itself");
            format!("the state cannot be written: {error}; hint: {hint}")
        });
        for waiting in done {
            let _ = waiting.send(result.clone());
        }
    }
}
