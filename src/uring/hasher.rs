//! SHA-1 on worker threads, off the ring thread (layer 4).
//!
//! The ring thread keeps every segment in a table until the worker's answer is back, even when the
//! future that asked was dropped: workers see addresses only.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use sha1::{Digest, Sha1};
use slab::Slab;
use tokio::sync::{Semaphore, mpsc as async_mpsc, oneshot};

use super::buffers::Segment;
use super::ring;
pub use super::sha1_lanes::Sha1State;
use super::sha1_lanes::{LANES, update_all};

/// Jobs that may wait or run at once, per worker: enough to keep it busy over one turn of the ring.
const JOBS_PER_THREAD_MAX: usize = 16;
/// Bytes of each piece between two looks for more pieces: some tens of microseconds.
const STEP_BYTES: usize = 32 * 1024;
/// More threads than this would only fight for memory bandwidth.
const THREADS_MAX: usize = 64;
/// Length of the blocks that [`Hasher::digest_blocks`] tells apart: the request size of BEP 3.
const BLOCK_BYTES: usize = 16 * 1024;

/// A segment and the bytes of it that are meant.
pub type Part = (Segment, Range<usize>);

/// Answer of [`Hasher::hash`].
pub struct HashDone {
    /// The state with the parts added.
    pub state: Box<Sha1State>,
    /// The parts, in the order they came.
    pub parts: Vec<Part>,
}

/// Answer of [`Hasher::digest_blocks`].
pub struct DigestsDone {
    /// One keyed digest per 16 KiB of the parts joined together; the last block may be shorter.
    pub digests: Vec<u64>,
    /// The parts, in the order they came.
    pub parts: Vec<Part>,
}

/// Bytes that the ring thread keeps alive and leaves alone.
struct View {
    start: *const u8,
    length: usize,
}

// SAFETY: the bytes belong to a segment in the table of `Inner`, where nothing touches them until the worker has
// answered; only the worker reads them.
unsafe impl Send for View {}

impl View {
    fn of((segment, range): &Part) -> View {
        let bytes = &segment.as_slice()[range.clone()];
        View {
            start: bytes.as_ptr(),
            length: bytes.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: see `Send` above; the range was checked when the view was made.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

enum Task {
    Hash(Box<Sha1State>),
    Digest(u64),
}

enum Outcome {
    State(Box<Sha1State>),
    Digests(Vec<u64>),
}

struct Job {
    key: usize,
    views: Vec<View>,
    task: Task,
}

struct Entry {
    parts: Vec<Part>,
    answer: oneshot::Sender<(Outcome, Vec<Part>)>,
}

struct Inner {
    /// `None` once the end has begun.
    jobs: Option<mpsc::SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    table: RefCell<Slab<Entry>>,
    room: Semaphore,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Workers finish what is queued; only then may the table go.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Handle of the worker threads; clones share them. The last one to go waits for the jobs at hand.
#[derive(Clone)]
pub struct Hasher {
    inner: Rc<Inner>,
}

impl Hasher {
    /// Starts `threads` workers (at least one). Call it inside [`Ring::block_on`](super::ring::Ring::block_on).
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> io::Result<Hasher> {
        let threads = threads.clamp(1, THREADS_MAX);
        let jobs_max = threads * JOBS_PER_THREAD_MAX;
        let (jobs, queue) = mpsc::sync_channel(jobs_max);
        // Holds at most `jobs_max` answers: a job leaves the table with its answer.
        let (done, answers) = async_mpsc::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut inner = Inner {
            jobs: Some(jobs),
            threads: Vec::new(),
            table: RefCell::new(Slab::new()),
            room: Semaphore::new(jobs_max),
        };
        for i in 0..threads {
            let (queue, done) = (Arc::clone(&queue), done.clone());
            let thread = std::thread::Builder::new()
                .name(format!("hash-{i}"))
                .spawn(move || work(&queue, &done))?;
            inner.threads.push(thread);
        }
        let inner = Rc::new(inner);
        ring::spawn(collect(Rc::downgrade(&inner), answers));
        Ok(Hasher { inner })
    }

    /// Adds the parts to `state` (or to a new one) on a worker. Waits for room when the queue is full.
    ///
    /// # Panics
    ///
    /// If a range leaves its segment, or a worker died.
    pub async fn hash(&self, state: Option<Box<Sha1State>>, parts: Vec<Part>) -> HashDone {
        match self.run(Task::Hash(state.unwrap_or_default()), parts).await {
            (Outcome::State(state), parts) => HashDone { state, parts },
            (Outcome::Digests(_), _) => unreachable!("a hash answers with a state"),
        }
    }

    /// Keyed digests of the 16 KiB blocks of the parts, to tell later which block was bad.
    ///
    /// # Panics
    ///
    /// If a range leaves its segment, or a worker died.
    pub async fn digest_blocks(&self, parts: Vec<Part>, key: u64) -> DigestsDone {
        match self.run(Task::Digest(key), parts).await {
            (Outcome::Digests(digests), parts) => DigestsDone { digests, parts },
            (Outcome::State(_), _) => unreachable!("a digest answers with digests"),
        }
    }

    async fn run(&self, task: Task, parts: Vec<Part>) -> (Outcome, Vec<Part>) {
        let room = self.inner.room.acquire().await;
        room.expect("the semaphore is never closed").forget();
        let views = parts.iter().map(View::of).collect();
        let (answer, wait) = oneshot::channel();
        let key = self
            .inner
            .table
            .borrow_mut()
            .insert(Entry { parts, answer });
        let job = Job { key, views, task };
        let jobs = self.inner.jobs.as_ref().expect("the end has not begun");
        assert!(jobs.try_send(job).is_ok(), "a place was acquired");
        wait.await.expect("hash worker died")
    }
}

/// Brings answers back to those who wait, or lets go of the segments when nobody does.
async fn collect(inner: Weak<Inner>, mut answers: async_mpsc::UnboundedReceiver<(usize, Outcome)>) {
    while let Some((key, outcome)) = answers.recv().await {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let entry = inner.table.borrow_mut().remove(key);
        inner.room.add_permits(1);
        let _ = entry.answer.send((outcome, entry.parts));
    }
}

/// A worker thread: jobs until the queue closes. Pieces that wait are hashed side by side, and those that come meanwhile
/// join in: the wide ways of hashing cost the same for one stream as for many.
fn work(queue: &Mutex<mpsc::Receiver<Job>>, done: &async_mpsc::UnboundedSender<(usize, Outcome)>) {
    let mut streams: Vec<Stream> = Vec::with_capacity(LANES);
    let mut jobs = Vec::with_capacity(LANES);
    loop {
        if streams.is_empty() {
            match queue.lock().map(|queue| queue.recv()) {
                Ok(Ok(job)) => jobs.push(job),
                _ => return,
            }
        }
        // Who holds the lock waits for jobs: then there are none.
        if let Ok(queue) = queue.try_lock() {
            jobs.extend(queue.try_iter().take(LANES - streams.len() - jobs.len()));
        }
        for job in jobs.drain(..) {
            match job.task {
                Task::Hash(state) => streams.push(Stream::new(job.key, state, job.views)),
                Task::Digest(key) => {
                    let outcome = Outcome::Digests(digests(&job.views, key));
                    let _ = done.send((job.key, outcome));
                }
            }
        }
        advance(&mut streams);
        for stream in streams.extract_if(.., |stream| stream.is_over()) {
            let outcome = Outcome::State(stream.state);
            if done.send((stream.key, outcome)).is_err() {
                return;
            }
        }
    }
}

/// A piece being hashed.
struct Stream {
    key: usize,
    state: Box<Sha1State>,
    views: Vec<View>,
    /// The view that is next, and where in it.
    view: usize,
    at: usize,
}

impl Stream {
    fn new(key: usize, state: Box<Sha1State>, views: Vec<View>) -> Stream {
        Stream {
            key,
            state,
            views,
            view: 0,
            at: 0,
        }
    }

    fn next(&self) -> &[u8] {
        let bytes = self.views.get(self.view).map_or(&[][..], View::bytes);
        bytes.get(self.at..).unwrap_or_default()
    }

    fn is_over(&self) -> bool {
        self.view >= self.views.len()
    }
}

/// Hashes the next bytes of each stream: as many as the shortest of their views has left, up to [`STEP_BYTES`].
fn advance(streams: &mut [Stream]) {
    let shortest = streams.iter().map(|stream| stream.next().len()).min();
    let bytes = shortest.unwrap_or(0).min(STEP_BYTES);
    if bytes > 0 {
        let mut parts = Vec::with_capacity(streams.len());
        for stream in streams.iter_mut() {
            let view = stream.views.get(stream.view).map_or(&[][..], View::bytes);
            let part = view.get(stream.at..stream.at + bytes).unwrap_or_default();
            parts.push((&mut *stream.state, part));
        }
        update_all(&mut parts);
    }
    for stream in streams {
        stream.at += bytes;
        if stream.next().is_empty() {
            (stream.view, stream.at) = (stream.view + 1, 0);
        }
    }
}

/// First 8 bytes of SHA-1 over key and block, for each block of the views joined together.
fn digests(views: &[View], key: u64) -> Vec<u64> {
    let mut digests = Vec::new();
    let start = || Sha1::new().chain_update(key.to_le_bytes());
    let (mut state, mut filled) = (start(), 0);
    let mut finish = |state: Sha1| {
        let [a, b, c, d, e, f, g, h, ..]: [u8; 20] = state.finalize().into();
        digests.push(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    };
    for view in views {
        let mut bytes = view.bytes();
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - filled));
            state.update(now);
            filled += now.len();
            bytes = later;
            if filled == BLOCK_BYTES {
                finish(std::mem::replace(&mut state, start()));
                filled = 0;
            }
        }
    }
    if filled > 0 {
        finish(state);
    }
    digests
}
