//! One connection: a reader task that owns the receiving side and a writer task that owns the sending side. Layer 5.
//!
//! The reader feeds the decoder and moves payload into its place; the writer pulls control messages and uploads from
//! the core, so a slow peer never piles up reads. Both end before the connection's slot is given back.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use tokio::sync::Notify;
use tracing::{Instrument, debug, debug_span, trace};

use super::driver::Driver;
use crate::base::BLOCK_BYTES;
use crate::swarm::peer::PeerFault;
use crate::swarm::torrent::{Connected, Placement};
use crate::swarm::{CloseReason, PeerKey, UploadRun};
use crate::uring::stream::Stream;
use crate::wire::decoder::{DecodeError, Decoder, Event};
use crate::wire::message::RawBlock;

/// One receive takes at most this much; large receives cost the least a byte.
const RECV_BYTES: u32 = 256 * 1024;
/// One receive under a rate limit, so that the limit is kept smoothly.
const RECV_LIMITED_BYTES: u32 = 32 * 1024;
/// Control messages put into one send.
const MESSAGES_BYTES: usize = 64 * 1024;
/// Payload put into one send: enough to make the system call cheap, little enough to stay in the CPU's cache.
const RUN_BYTES: u32 = 256 * 1024;
/// The same under a rate limit.
const RUN_LIMITED_BYTES: u32 = 2 * BLOCK_BYTES;

/// The runtime's side of one connected peer.
pub struct PeerHandle {
    pub stream: Stream,
    pub wake: Notify,
    closing: Cell<Option<CloseReason>>,
}

impl PeerHandle {
    /// Ends the connection: the reader sees the end of the stream, the writer stops.
    pub fn close(&self, reason: CloseReason) {
        if self.closing.get().is_none() {
            self.closing.set(Some(reason));
            self.stream.shutdown();
            self.wake.notify_one();
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }
}

/// Why a reader ended.
#[derive(Debug, thiserror::Error)]
enum ReadEnd {
    #[error("the peer closed the connection")]
    Eof,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Fault(#[from] PeerFault),
}

/// Runs one connection whose handshake is done; `early` holds bytes that came behind the handshake.
pub async fn run(driver: Rc<Driver>, stream: Stream, conn: Connected, early: Vec<u8>) {
    let key = match driver.call(|core, cx| core.on_connected(conn, cx)) {
        Ok(key) => key,
        Err(refusal) => {
            debug!(addr = %conn.addr, %refusal, "connection refused");
            stream.shutdown();
            return;
        }
    };
    let span = debug_span!("peer", addr = %conn.addr);
    let handle = Rc::new(PeerHandle {
        stream,
        wake: Notify::new(),
        closing: Cell::new(None),
    });
    driver.add_peer(key, handle.clone());
    handle.wake.notify_one();
    let writer = tokio_uring::spawn(
        write_loop(driver.clone(), key, handle.clone()).instrument(span.clone()),
    );
    let mut reader = Reader::new(driver.clone(), key);
    let end = reader.run(&handle, &early).instrument(span.clone()).await;
    span.in_scope(|| debug!(reason = ?handle.closing.get(), end = end.as_ref().err().map(tracing::field::display), "disconnected"));
    handle.close(CloseReason::Silent);
    reader.end();
    // A panicked writer has nothing left to return.
    let _ = writer.await;
    driver.remove_peer(key);
    driver.call(|core, cx| core.on_disconnected(key, cx));
}

struct Reader {
    driver: Rc<Driver>,
    key: PeerKey,
    decoder: Decoder,
    /// Where the payload now arriving goes, and how much of it came.
    payload: Option<(RawBlock, Placement, u32)>,
    client: u64,
    /// Under a rate limit: what may still be received before asking for more.
    allowance_bytes: usize,
}

impl Reader {
    fn new(driver: Rc<Driver>, key: PeerKey) -> Self {
        let decoder = Decoder::new(driver.decoder_limits());
        let client = driver.shared().down.client();
        Reader {
            driver,
            key,
            decoder,
            payload: None,
            client,
            allowance_bytes: 0,
        }
    }

    async fn run(&mut self, handle: &PeerHandle, early: &[u8]) -> Result<(), ReadEnd> {
        self.feed(early)?;
        let shared = self.driver.shared().clone();
        let is_limited = shared.down.is_limited();
        let recv_bytes = if is_limited {
            RECV_LIMITED_BYTES
        } else {
            RECV_BYTES
        };
        loop {
            handle.stream.readable().await?;
            // The buffer is borrowed only while data keeps coming: an idle peer pins none.
            let mut segment = shared.pool.alloc_or_heap(recv_bytes as usize);
            loop {
                if is_limited && self.allowance_bytes == 0 {
                    shared
                        .down
                        .acquire(self.client, u64::from(recv_bytes), &shared.clock)
                        .await;
                    self.allowance_bytes = recv_bytes as usize;
                }
                let want = if is_limited {
                    self.allowance_bytes
                } else {
                    recv_bytes as usize
                };
                let (result, back) = handle.stream.recv_now(segment, 0..want).await;
                segment = back;
                let received = match result {
                    Ok(0) => return Err(ReadEnd::Eof),
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                };
                self.allowance_bytes = self.allowance_bytes.saturating_sub(received);
                self.feed(segment.as_slice().get(..received).unwrap_or_default())?;
                if handle.is_closing() {
                    return Ok(());
                }
            }
        }
    }

    /// Gives back what a connection that ended in the middle of a block held.
    fn end(&mut self) {
        self.driver.shared().down.forget(self.client);
        if let Some((_, Placement::Store(block), _)) = self.payload.take() {
            self.driver.disk().block_abandoned(block);
        }
    }

    /// Hands everything in `bytes` to the core, in one borrow of it.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), ReadEnd> {
        if bytes.is_empty() {
            return Ok(());
        }
        let driver = self.driver.clone();
        let (key, decoder, payload) = (self.key, &mut self.decoder, &mut self.payload);
        driver.call(|core, cx| {
            let mut input = bytes;
            while let Some(event) = decoder.next(&mut input)? {
                match event {
                    Event::Message(message) => {
                        trace!("from peer: {message}");
                        core.on_message(key, &message, cx)?;
                    }
                    Event::PieceHeader(header) => {
                        trace!("from peer: piece {header:?}");
                        let placement = core.on_piece_header(key, header, cx)?;
                        *payload = Some((header, placement, 0));
                    }
                    Event::Payload {
                        bytes: part,
                        remaining_bytes,
                    } => {
                        let Some((header, placement, done)) = payload.as_mut() else {
                            continue;
                        };
                        let part_bytes = u32::try_from(part.len()).unwrap_or(u32::MAX);
                        core.on_block_bytes(key, part_bytes, cx);
                        if let Placement::Store(block) = *placement {
                            driver.disk().copy_in(block, *done, part);
                        }
                        *done = done.saturating_add(part_bytes);
                        if remaining_bytes == 0 {
                            match *placement {
                                Placement::Store(block) => {
                                    driver.disk().block_done(block);
                                    core.on_block_stored(key, block, cx);
                                }
                                Placement::Scratch => core.on_block_discarded(key, *header, cx),
                            }
                            *payload = None;
                        }
                    }
                }
            }
            Ok(())
        })
    }
}

async fn write_loop(driver: Rc<Driver>, key: PeerKey, handle: Rc<PeerHandle>) {
    let client = driver.shared().up.client();
    if let Err(error) = write_until_closed(&driver, key, &handle, client).await {
        debug!(%error, "send failed");
    }
    driver.shared().up.forget(client);
    handle.close(CloseReason::Silent);
}

async fn write_until_closed(
    driver: &Rc<Driver>,
    key: PeerKey,
    handle: &PeerHandle,
    client: u64,
) -> io::Result<()> {
    let mut out = Vec::new();
    let run_bytes = if driver.shared().up.is_limited() {
        RUN_LIMITED_BYTES
    } else {
        RUN_BYTES
    };
    while !handle.is_closing() {
        out.clear();
        let (taken, run) = driver.call(|core, cx| {
            let taken = core.take_messages(key, &mut out, MESSAGES_BYTES, cx);
            let run = if taken == 0 {
                core.next_upload(key, run_bytes, cx)
            } else {
                None
            };
            (taken, run)
        });
        if taken > 0 {
            let (result, back) = handle.stream.send_all(std::mem::take(&mut out)).await;
            result?;
            out = back;
        } else if let Some(run) = run {
            send_run(driver, key, handle, client, run).await?;
        } else {
            handle.wake.notified().await;
        }
    }
    Ok(())
}

/// Reads a run from disk and sends it behind its headers; its end is told to the core whatever happens.
async fn send_run(
    driver: &Rc<Driver>,
    key: PeerKey,
    handle: &PeerHandle,
    client: u64,
    run: UploadRun,
) -> io::Result<()> {
    let shared = driver.shared();
    let run_bytes: u64 = run
        .blocks
        .iter()
        .map(|block| u64::from(block.length()))
        .sum();
    shared.up.acquire(client, run_bytes, &shared.clock).await;
    let read = match driver.disk().read_run(&run).await {
        Ok(read) => read,
        Err(error) => {
            driver.call(|core, cx| core.on_upload_failed(key, &run, cx));
            driver.on_read_failed(&run, &error);
            return Ok(());
        }
    };
    let (result, _, _) = handle
        .stream
        .send_run(read.headers, read.parts, read.segments)
        .await;
    result?;
    driver.call(|core, cx| core.on_sent(key, &run, cx));
    Ok(())
}
