//! Hashes of pieces on worker threads, off the ring thread (layer 4).
//!
//! The ring thread keeps every segment in a table until the worker's answer is back, even when the
//! future that asked was dropped: workers see addresses only. A panic of a worker takes no thread and no answer with
//! it: each of the jobs it was at is tried once more, alone, and one that panics again panics in whoever asked.

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use sha1::{Digest, Sha1};
use sha2::Sha256;
use slab::Slab;
use tokio::sync::{Semaphore, mpsc as async_mpsc, oneshot};
use tracing::{error, trace};

use super::buffers::Segment;
pub use super::piece_state::PieceState;
use super::piece_state::update_all;
use super::ring;
use super::sha1_lanes::LANES;
use crate::wire::merkle::Node;

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
    pub state: Box<PieceState>,
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

/// Answer of [`Hasher::hash_leaves`].
pub struct LeavesDone {
    /// The leaf of each 16 KiB of the parts joined together; the last block may be shorter.
    pub leaves: Vec<Node>,
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
    Hash(Box<PieceState>),
    Digest(u64),
    Leaves,
}

enum Outcome {
    State(Box<PieceState>),
    Digests(Vec<u64>),
    Leaves(Vec<Node>),
    /// What the worker panicked with.
    Panicked(Box<dyn Any + Send>),
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
    panics: Arc<AtomicU64>,
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
        Hasher::with(threads, Work::default())
    }

    fn with(threads: usize, work: Work) -> io::Result<Hasher> {
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
            panics: Arc::default(),
        };
        for i in 0..threads {
            let worker = Worker {
                queue: Arc::clone(&queue),
                done: done.clone(),
                work,
                panics: Arc::clone(&inner.panics),
            };
            let thread = std::thread::Builder::new()
                .name(format!("hash-{i}"))
                .spawn(move || worker.run())?;
            inner.threads.push(thread);
        }
        let inner = Rc::new(inner);
        ring::spawn(collect(Rc::downgrade(&inner), answers));
        Ok(Hasher { inner })
    }

    /// Adds the parts to `state` on a worker. Waits for room when the queue is full.
    ///
    /// # Panics
    ///
    /// If a range leaves its segment, or as the worker did, twice.
    pub async fn hash(&self, state: Box<PieceState>, parts: Vec<Part>) -> HashDone {
        match self.run(Task::Hash(state), parts).await {
            (Outcome::State(state), parts) => HashDone { state, parts },
            _ => unreachable!("a hash answers with a state"),
        }
    }

    /// Keyed digests of the 16 KiB blocks of the parts, to tell later which block was bad.
    ///
    /// # Panics
    ///
    /// If a range leaves its segment, or as the worker did, twice.
    pub async fn digest_blocks(&self, parts: Vec<Part>, key: u64) -> DigestsDone {
        match self.run(Task::Digest(key), parts).await {
            (Outcome::Digests(digests), parts) => DigestsDone { digests, parts },
            _ => unreachable!("a digest answers with digests"),
        }
    }

    /// Leaves of the tree over the parts (BEP 52), each of a block of 16 KiB.
    ///
    /// # Panics
    ///
    /// If a range leaves its segment, or as the worker did, twice.
    pub async fn hash_leaves(&self, parts: Vec<Part>) -> LeavesDone {
        match self.run(Task::Leaves, parts).await {
            (Outcome::Leaves(leaves), parts) => LeavesDone { leaves, parts },
            _ => unreachable!("leaves are asked for"),
        }
    }

    /// Panics of workers, those included that did no harm because the second try went well.
    pub fn panics(&self) -> u64 {
        self.inner.panics.load(Ordering::Relaxed)
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
        match wait.await.expect("every job is answered") {
            // Told on stderr where it happened.
            (Outcome::Panicked(panic), _) => resume_unwind(panic),
            answer => answer,
        }
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

/// What workers do with bytes; tests put a panic in its place.
#[derive(Clone, Copy)]
struct Work {
    advance: fn(&mut [Stream]),
    digests: fn(&[View], u64) -> Vec<u64>,
}

impl Default for Work {
    fn default() -> Work {
        Work { advance, digests }
    }
}

/// A worker thread.
struct Worker {
    queue: Arc<Mutex<mpsc::Receiver<Job>>>,
    done: async_mpsc::UnboundedSender<(usize, Outcome)>,
    work: Work,
    panics: Arc<AtomicU64>,
}

impl Worker {
    /// Does jobs until the queue closes. Pieces that wait are hashed side by side, and those that come meanwhile join in:
    /// the wide ways of hashing cost the same for one stream as for many.
    fn run(&self) {
        let mut streams: Vec<Stream> = Vec::with_capacity(LANES);
        let mut jobs = Vec::with_capacity(LANES);
        while self.take(&mut jobs, streams.len()) {
            for job in jobs.drain(..) {
                match job.task {
                    Task::Hash(state) => streams.push(Stream::new(job.key, state, job.views)),
                    Task::Digest(key) => {
                        let digests = || (self.work.digests)(&job.views, key);
                        self.answer(job.key, self.twice(|| Outcome::Digests(digests())));
                    }
                    Task::Leaves => {
                        let leaves = || Outcome::Leaves(leaves(&job.views));
                        self.answer(job.key, self.twice(leaves));
                    }
                }
            }
            let all = streams.len();
            let step = || {
                trace!(streams = all, "hashing side by side");
                (self.work.advance)(&mut streams);
            };
            if self.caught(step).is_err() {
                // Whose bytes it was is not known: each on its own.
                for stream in streams.drain(..) {
                    let key = stream.key;
                    let hashed = self.caught(|| self.hash_alone(stream));
                    self.answer(key, hashed.map_or_else(Outcome::Panicked, Outcome::State));
                }
            }
            for stream in streams.extract_if(.., |stream| stream.is_over()) {
                self.answer(stream.key, Outcome::State(stream.state));
            }
        }
    }

    /// Takes what waits, as far as there is room beside so many; waits for a job where there are none. False once the
    /// queue is closed and nothing is left to do.
    fn take(&self, jobs: &mut Vec<Job>, busy: usize) -> bool {
        if busy == 0 {
            match self.queue.lock().map(|queue| queue.recv()) {
                Ok(Ok(job)) => jobs.push(job),
                _ => return false,
            }
        }
        // Who holds the lock waits for jobs: then there are none.
        if let Ok(queue) = self.queue.try_lock() {
            jobs.extend(queue.try_iter().take(LANES - busy - jobs.len()));
        }
        true
    }

    /// Hashes all of a stream, from its start again.
    fn hash_alone(&self, stream: Stream) -> Box<PieceState> {
        let mut alone = [Stream::new(stream.key, stream.start, stream.views)];
        let [stream] = &mut alone;
        while !stream.is_over() {
            trace!("hashing alone");
            (self.work.advance)(std::slice::from_mut(stream));
        }
        let [stream] = alone;
        stream.state
    }

    fn twice(&self, work: impl Fn() -> Outcome) -> Outcome {
        let done = self.caught(&work).or_else(|_| self.caught(&work));
        done.unwrap_or_else(Outcome::Panicked)
    }

    fn answer(&self, key: usize, outcome: Outcome) {
        // Nobody is there to hear it at the end of the session.
        let _ = self.done.send((key, outcome));
    }

    fn caught<T>(&self, work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
        catch_unwind(AssertUnwindSafe(work)).inspect_err(|_| {
            let panics = self.panics.fetch_add(1, Ordering::Relaxed) + 1;
            error!(panics, "a hash was broken off by an error in the program");
        })
    }
}

/// A piece being hashed.
struct Stream {
    key: usize,
    state: Box<PieceState>,
    /// The state before the first byte.
    start: Box<PieceState>,
    views: Vec<View>,
    /// The view that is next, and where in it.
    view: usize,
    at: usize,
}

impl Stream {
    fn new(key: usize, state: Box<PieceState>, views: Vec<View>) -> Stream {
        Stream {
            key,
            start: state.clone(),
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
    let start = Sha1::new().chain_update(key.to_le_bytes());
    let all = each_block(views, &start);
    let first = |digest: [u8; 20]| {
        let [a, b, c, d, e, f, g, h, ..] = digest;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    };
    let all = all.into_iter();
    all.map(|state| first(state.finalize().into())).collect()
}

/// SHA-256 of each block of the views joined together.
fn leaves(views: &[View]) -> Vec<Node> {
    let all = each_block(views, &Sha256::new()).into_iter();
    all.map(|state| state.finalize().into()).collect()
}

/// A hash that began as `start` over each block of the views joined together.
fn each_block<H: Digest + Clone>(views: &[View], start: &H) -> Vec<H> {
    let mut done = Vec::new();
    let (mut state, mut filled) = (start.clone(), 0);
    for view in views {
        let mut bytes = view.bytes();
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - filled));
            state.update(now);
            filled += now.len();
            bytes = later;
            if filled == BLOCK_BYTES {
                done.push(std::mem::replace(&mut state, start.clone()));
                filled = 0;
            }
        }
    }
    done.extend((filled > 0).then_some(state));
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::buffers::Pool;
    use crate::uring::ring::RingConfig;
    use crate::wire::metainfo::PieceHash;

    /// The first byte of what makes a worker panic whenever it sees it, and of what does so beside others only.
    const ALWAYS: u8 = 0xff;
    const BESIDE_OTHERS: u8 = 0xfe;

    fn trapped(streams: &mut [Stream]) {
        let first = |stream: &Stream| stream.next().first().copied();
        let is_in_company = streams.len() > 1;
        for stream in streams.iter() {
            assert_ne!(first(stream), Some(ALWAYS), "told to");
            assert!(
                !is_in_company || first(stream) != Some(BESIDE_OTHERS),
                "told to"
            );
        }
        advance(streams);
    }

    fn trapped_digests(views: &[View], key: u64) -> Vec<u64> {
        let first = views.first().and_then(|view| view.bytes().first().copied());
        assert_ne!(first, Some(ALWAYS), "told to");
        digests(views, key)
    }

    fn parts(pool: &Pool, first: u8) -> Vec<Part> {
        let mut segment = pool.alloc_or_heap(BLOCK_BYTES);
        segment.as_mut_slice().fill(7);
        segment.as_mut_slice()[0] = first;
        vec![(segment, 0..BLOCK_BYTES)]
    }

    fn expected(first: u8) -> PieceHash {
        let mut bytes = vec![7; BLOCK_BYTES];
        bytes[0] = first;
        PieceHash::Sha1(Sha1::digest(&bytes).into())
    }

    #[test]
    fn a_panic_of_a_worker_reaches_the_one_whose_bytes_it_was_and_no_other() {
        let ring = ring::start(RingConfig::default()).unwrap();
        ring.block_on(async {
            let work = Work {
                advance: trapped,
                digests: trapped_digests,
            };
            let hasher = Hasher::with(1, work).unwrap();
            let (pool, _) = Pool::new(1 << 20).unwrap();
            for first in [1, BESIDE_OTHERS, ALWAYS, 2, ALWAYS, 3] {
                // All wait before the worker sees the first of them, so that it takes several at once.
                let jobs = [first, 4, 5, 6].map(|first| {
                    let (hasher, parts) = (hasher.clone(), parts(&pool, first));
                    (
                        first,
                        ring::spawn(async move {
                            hasher.hash(Box::new(PieceState::new(None)), parts).await
                        }),
                    )
                });
                for (first, job) in jobs {
                    match job.await {
                        Ok(done) => assert_eq!(done.state.finalize(), expected(first)),
                        Err(error) => assert!(error.is_panic() && first == ALWAYS),
                    }
                }
            }
            let before = hasher.panics();
            assert!(
                before >= 4,
                "twice for each of the two that cannot be hashed: {before}"
            );
            let (asking, bad) = (hasher.clone(), parts(&pool, ALWAYS));
            let digesting = ring::spawn(async move { asking.digest_blocks(bad, 1).await });
            assert!(digesting.await.is_err_and(|error| error.is_panic()));
            assert_eq!(hasher.panics(), before + 2, "tried twice");
            let done = hasher.digest_blocks(parts(&pool, 1), 1).await;
            assert_eq!(done.digests.len(), 1);
        });
    }
}
