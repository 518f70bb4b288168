//! The sending side of a connection: control messages first, then runs of blocks, pulled from the core. Layer 5.
//!
//! A run is taken from the core only when the one before has gone, so a slow peer piles up nothing. Runs that the
//! engine must read from disk are read ahead, as far as the memory for it goes, and only into a socket that takes them:
//! the memory is shared by all peers, and none may keep it by not reading (HOSTILE.md W8).

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::debug;

use super::PeerHandle;
use crate::base::{BLOCK_BYTES, BlockRef};
use crate::session::contain;
use crate::session::disk::{ReadError, ReadRun, Via};
use crate::session::driver::Driver;
use crate::session::lab::Stage;
use crate::session::tune::Direction;
use crate::swarm::{CloseReason, PeerKey, UploadRun};
use crate::wire::message::PIECE_HEADER_BYTES;
use crate::wire::mse::Rc4;

/// Control messages put into one send.
const MESSAGES_BYTES: usize = 64 * 1024;
/// Payload put into one send: enough to make the system call cheap, little enough to stay in the CPU's cache.
const RUN_BYTES_MAX: u32 = 256 * 1024;
/// The first run: nothing is known of the peer.
const RUN_BYTES_START: u32 = 64 * 1024;
/// A run that took longer is followed by shorter ones: memory is held and progress unseen as long as it lasts.
const RUN_SLOW: Duration = Duration::from_millis(200);
/// A run that took less is followed by longer ones.
const RUN_QUICK: Duration = Duration::from_millis(50);
/// Runs read from disk before their turn: enough to hide a disk's latency behind the sends.
const AHEAD_MAX: usize = 3;

/// Sends until the connection closes.
pub(super) async fn run(
    driver: Rc<Driver>,
    key: PeerKey,
    handle: Rc<PeerHandle>,
    cipher: Option<Box<Rc4>>,
) {
    let _guard = CloseAtEnd(handle.clone());
    let mut writer = Writer {
        driver,
        key,
        handle: handle.clone(),
        run_bytes: RUN_BYTES_START,
        cipher,
        was_copied: false,
        was_read: false,
        ahead: VecDeque::new(),
    };
    if let Err(error) = writer.write_until_closed().await {
        debug!(%error, "send failed");
    }
    writer.end().await;
}

/// A connection does not outlive its writer, even one that panics.
struct CloseAtEnd(Rc<PeerHandle>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close(CloseReason::Silent);
    }
}

struct Writer {
    driver: Rc<Driver>,
    key: PeerKey,
    handle: Rc<PeerHandle>,
    run_bytes: u32,
    /// Encrypts what is sent.
    cipher: Option<Box<Rc4>>,
    /// The last run went through memory of ours.
    was_copied: bool,
    /// The last run had to be read from disk.
    was_read: bool,
    /// Runs that come next, in sending order, with the reads under way for them.
    ahead: VecDeque<(UploadRun, Option<Reading>)>,
}

type Reading = JoinHandle<Result<ReadRun, ReadError>>;

impl Writer {
    async fn write_until_closed(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        while !self.handle.is_closing() {
            out.clear();
            let key = self.key;
            let taken = self
                .driver
                .call(|core, cx| core.take_messages(key, &mut out, MESSAGES_BYTES, cx));
            if taken > 0 {
                if let Some(cipher) = &mut self.cipher {
                    cipher.apply(&mut out);
                }
                let (result, back) = self.handle.stream.send_all(std::mem::take(&mut out)).await;
                result?;
                out = back;
            } else if !self.send_next_run().await? {
                self.handle.wake.notified().await;
            }
        }
        Ok(())
    }

    /// Sends the next run of blocks; false when none is asked for.
    async fn send_next_run(&mut self) -> io::Result<bool> {
        if self.was_copied {
            // Memory is taken only for a socket that has room.
            self.handle.stream.writable().await?;
            if self.handle.is_closing() {
                return Ok(true);
            }
        }
        let (run, reading) = match self.ahead.pop_front() {
            Some(next) => next,
            None => match self.next_run() {
                Some(run) => (run, None),
                None => return Ok(false),
            },
        };
        let shared = self.driver.shared().clone();
        self.handle.acquire(Direction::Up, run_bytes(&run)).await;
        self.handle.followed.on_stage(&shared, &run, Stage::Queued);
        if self.was_read {
            self.read_ahead();
        }
        let read = match reading {
            Some(reading) => self.wait_for(reading).await,
            None => self.driver.disk().read_run(&run, self.via()).await,
        };
        self.handle.followed.on_stage(&shared, &run, Stage::Read);
        match read {
            Ok(read) => self.send(&run, read).await?,
            Err(error) => self.on_read_failed(&run, &error),
        }
        Ok(true)
    }

    /// Long runs are for lines without a limit: under one, each peer's turn is short.
    fn run_bytes_max(&self) -> u32 {
        let turn_bytes = self.driver.pace.turn_bytes(Direction::Up);
        let turn_bytes = turn_bytes.and_then(|bytes| u32::try_from(bytes).ok());
        turn_bytes.map_or(RUN_BYTES_MAX, |bytes| bytes.min(RUN_BYTES_MAX))
    }

    /// Bytes of a mapping are not ours to encrypt, nor to copy into packets.
    fn via(&self) -> Via {
        match self.cipher.is_some() || self.handle.stream.is_utp() {
            false => Via::Engine,
            true => Via::Memory,
        }
    }

    fn next_run(&self) -> Option<UploadRun> {
        let (key, bytes) = (self.key, self.run_bytes.min(self.run_bytes_max()));
        self.driver
            .call(|core, cx| core.next_upload(key, bytes, cx))
    }

    /// Starts reads of the runs that follow, while there is memory for them.
    fn read_ahead(&mut self) {
        while self.ahead.len() < AHEAD_MAX && self.driver.disk().may_read_ahead(self.run_bytes) {
            let Some(run) = self.next_run() else { return };
            let (disk, of) = (self.driver.disk().clone(), run.clone());
            let via = self.via();
            let shared = self.driver.shared().clone();
            let reading = tokio_uring::spawn(async move {
                let read = contain::connection(&shared, disk.read_run(&of, via)).await;
                read.unwrap_or_else(|_| Err(ReadError::lost()))
            });
            self.ahead.push_back((run, Some(reading)));
        }
    }

    /// Waits for a read. Whole runs that are asked for meanwhile are read beside it: a quick disk is kept busy by what is
    /// under way at once.
    async fn wait_for(&mut self, mut reading: Reading) -> Result<ReadRun, ReadError> {
        loop {
            tokio::select! {
                biased;
                read = &mut reading => return read.unwrap_or_else(|_| Err(ReadError::lost())),
                // The wake is not lost to the messages: they are looked at after each run.
                () = self.handle.wake.notified() => {
                    let key = self.key;
                    let waiting = self.driver.call(|core, _| core.waiting_uploads(key));
                    if waiting * BLOCK_BYTES >= self.run_bytes {
                        self.read_ahead();
                    }
                }
            }
        }
    }

    async fn send(&mut self, run: &UploadRun, read: ReadRun) -> io::Result<()> {
        let key = self.key;
        self.was_copied = read.is_copy();
        self.was_read = read.is_from_disk;
        let started = Instant::now();
        let result = if self.was_copied {
            self.send_copy(run, read).await
        } else {
            let (result, read) = read.send(&self.handle.stream).await;
            drop(read);
            result
        };
        if let Err(error) = result {
            if error.raw_os_error() == Some(libc::EFAULT) {
                // A mapped file is shorter than it was (HOSTILE.md L3).
                for changed in self.driver.disk().on_cut(run) {
                    self.driver.on_file_changed(changed);
                }
            }
            return Err(error);
        }
        self.adapt(started.elapsed());
        let shared = self.driver.shared();
        self.handle.followed.on_stage(shared, run, Stage::Sent);
        self.driver.call(|core, cx| core.on_sent(key, run, cx));
        Ok(())
    }

    /// Sends a run that lies in memory of ours. Whenever the socket takes no more, the memory goes to others, and what is
    /// left is read again once there is room.
    async fn send_copy(&mut self, run: &UploadRun, mut read: ReadRun) -> io::Result<()> {
        let stream = self.handle.stream.clone();
        let wire_bytes: usize = run.blocks.iter().map(wire_bytes).sum();
        let mut sent = 0;
        loop {
            // What the socket does not take is read and encrypted anew: the cipher goes on from the first byte of that.
            let at_first = self.cipher.clone();
            if let Some(cipher) = &mut self.cipher {
                read.encrypt(sent, cipher)?;
            }
            let first = sent;
            sent = read.send_now(&stream, first).await?;
            if sent == wire_bytes {
                return Ok(());
            }
            self.cipher = at_first;
            if let Some(cipher) = &mut self.cipher {
                cipher.skip(sent - first);
            }
            self.forget_ahead().await;
            stream.writable().await?;
            if self.handle.is_closing() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            read = match self.driver.disk().read_run(run, self.via()).await {
                Ok(read) => read,
                Err(error) => {
                    // A block half sent can be neither rejected nor finished: the connection ends.
                    self.driver.on_read_failed(run, &error);
                    return Err(io::Error::other(error.to_string()));
                }
            };
        }
    }

    /// Gives back the memory of reads whose turn has not come.
    async fn forget_ahead(&mut self) {
        for (run, reading) in &mut self.ahead {
            let Some(reading) = reading.take() else {
                continue;
            };
            // What it brought is read again in its turn. Its error is not: a change is told once.
            if let Ok(Err(error)) = reading.await {
                self.driver.on_read_failed(run, &error);
            }
        }
    }

    /// Runs of a quick peer grow, those of a slow one shrink.
    fn adapt(&mut self, took: Duration) {
        if took > RUN_SLOW {
            self.run_bytes = (self.run_bytes / 2).max(BLOCK_BYTES);
        } else if took < RUN_QUICK {
            self.run_bytes = (self.run_bytes * 2).min(self.run_bytes_max());
        }
    }

    fn on_read_failed(&mut self, run: &UploadRun, error: &ReadError) {
        let key = self.key;
        self.driver
            .call(|core, cx| core.on_upload_failed(key, run, cx));
        self.driver.on_read_failed(run, error);
    }

    /// Waits for what is being read: its memory is the disk's until then.
    async fn end(&mut self) {
        self.forget_ahead().await;
    }
}

/// A whole `piece` message.
fn wire_bytes(block: &BlockRef) -> usize {
    PIECE_HEADER_BYTES + block.length() as usize
}

fn run_bytes(run: &UploadRun) -> u64 {
    run.blocks
        .iter()
        .map(|block| u64::from(block.length()))
        .sum()
}
