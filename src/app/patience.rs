//! Says when a command waits for a file system that does not answer (HOSTILE.md L13): Ctrl-C ends it all the same.
//! Layer 7.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::escape;

/// Without any step for so long it is told.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// Watches over work that may wait for ever, until dropped.
pub struct Patience {
    steps: Arc<AtomicU64>,
    _done: Sender<()>,
}

impl Patience {
    /// Work on what lies at `path` begins.
    pub fn with(path: &Path) -> Patience {
        let steps = Arc::new(AtomicU64::new(0));
        let (done, is_done) = channel();
        let (seen, path) = (Arc::clone(&steps), PathBuf::from(path));
        // Without a thread nobody tells, and the work is done all the same.
        let _ = std::thread::Builder::new()
            .name("gyre-patience".into())
            .spawn(move || {
                let mut before = seen.load(Ordering::Relaxed);
                while is_done.recv_timeout(TELL_AFTER) == Err(RecvTimeoutError::Timeout) {
                    let now = seen.load(Ordering::Relaxed);
                    if now == before {
                        let path = escape::terminal_path(&path);
                        tracing::warn!(
                            "the file system of {path} does not answer: waiting for it, Ctrl-C ends this"
                        );
                        return;
                    }
                    before = now;
                }
            });
        Patience { steps, _done: done }
    }

    /// Something was done.
    pub fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}
