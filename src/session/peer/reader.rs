//! The receiving side of a connection: from the socket through the decoder to the core, payload into its place. Layer 5.

use std::io;
use std::rc::Rc;

use tracing::trace;

use super::{PeerHandle, ReadEnd};
use crate::session::contain;
use crate::session::driver::Driver;
use crate::session::lab::Followed;
use crate::session::shared::Shared;
use crate::swarm::torrent::Placement;
use crate::swarm::{Effect, PeerKey};
use crate::uring::buffers::{Pool, Segment};
use crate::wire::decoder::{Decoder, Event};
use crate::wire::message::{Message, RawBlock};

/// One receive takes at most this much; large receives cost the least a byte.
const RECV_BYTES_MAX: usize = 256 * 1024;
/// And at least this much: a peer that only asks needs no more.
const RECV_BYTES_MIN: usize = 16 * 1024;
/// One receive under a rate limit, so that the limit is kept smoothly.
const RECV_LIMITED_BYTES: usize = 32 * 1024;

/// One connection's receiving side.
pub(super) struct Reader {
    driver: Rc<Driver>,
    key: PeerKey,
    decoder: Decoder,
    followed: Rc<Followed>,
    /// Where the payload now arriving goes, and how much of it came.
    payload: Option<(RawBlock, Placement, u32)>,
    /// What may still be received before asking for more; `usize::MAX` without a rate limit.
    allowance_bytes: usize,
}

impl Reader {
    /// Before the first byte.
    pub fn new(driver: Rc<Driver>, key: PeerKey, followed: Rc<Followed>) -> Self {
        let decoder = Decoder::new(driver.decoder_limits());
        let is_limited = driver.shared().down.is_limited();
        let allowance_bytes = if is_limited { 0 } else { usize::MAX };
        Reader {
            driver,
            key,
            decoder,
            followed,
            payload: None,
            allowance_bytes,
        }
    }

    /// Receives until the connection ends; `early` came with the handshake.
    pub async fn run(&mut self, handle: &PeerHandle, early: &[u8]) -> Result<(), ReadEnd> {
        self.feed(early)?;
        let shared = self.driver.shared().clone();
        let mut want = RECV_BYTES_MIN;
        while !handle.is_closing() {
            handle.stream.readable().await?;
            // A closed connection asks for no bandwidth: nobody would forget it again.
            if self.allowance_bytes == 0 && !handle.is_closing() {
                let (client, bytes) = (handle.down_client, RECV_LIMITED_BYTES as u64);
                shared.down.acquire(client, bytes, &shared.clock).await;
                self.allowance_bytes = RECV_LIMITED_BYTES;
            }
            // The buffer is borrowed only while data keeps coming: an idle peer pins none.
            let segment = recv_memory(&shared.pool, want);
            want = self.drain(handle, segment).await?;
        }
        Ok(())
    }

    /// Receives until the socket is empty, the allowance used up or a larger buffer would be better; returns the size
    /// of the buffer to go on with.
    async fn drain(&mut self, handle: &PeerHandle, mut segment: Segment) -> Result<usize, ReadEnd> {
        loop {
            let room = segment.len().min(self.allowance_bytes);
            let (result, back) = handle.stream.recv_now(segment, 0..room).await;
            segment = back;
            let received = match result {
                Ok(0) => return Err(ReadEnd::Eof),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(segment.len()),
                Err(error) => return Err(error.into()),
            };
            if self.allowance_bytes != usize::MAX {
                self.allowance_bytes -= received;
            }
            self.feed(segment.as_slice().get(..received).unwrap_or_default())?;
            let is_full = received == room;
            if is_full && room == segment.len() && room < RECV_BYTES_MAX {
                return Ok(RECV_BYTES_MAX.min(4 * room));
            }
            if !is_full || self.allowance_bytes == 0 || handle.is_closing() {
                let is_oversized = received < segment.len() / 8;
                let smaller = RECV_BYTES_MIN.max(segment.len() / 4);
                return Ok(if is_oversized { smaller } else { segment.len() });
            }
        }
    }

    /// Gives back what a connection that ended in the middle of a block held.
    pub fn end(&mut self) {
        if let Some((_, Placement::Store(block), _)) = self.payload.take() {
            self.driver.disk().block_abandoned(block);
        }
    }

    /// Hands everything in `bytes` to the core, in as few borrows of it as the effects allow.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), ReadEnd> {
        let mut input = bytes;
        while !input.is_empty() {
            self.feed_some(&mut input)?;
        }
        Ok(())
    }

    /// Hands events to the core until the input is used up or a piece is to be discarded: that must be done before a
    /// later block of the same piece is taken in.
    fn feed_some(&mut self, input: &mut &[u8]) -> Result<(), ReadEnd> {
        let driver = self.driver.clone();
        let (key, decoder, payload) = (self.key, &mut self.decoder, &mut self.payload);
        let followed = &self.followed;
        driver.call(|core, cx| {
            while let Some(event) = decode(driver.shared(), decoder, input)? {
                let effect_count = cx.fx.len();
                match event {
                    Event::Message(message) => {
                        if let Message::Request(request) = message {
                            followed.on_request(driver.shared(), request);
                        }
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
                let new = cx.fx.get(effect_count..).unwrap_or_default();
                if new
                    .iter()
                    .any(|effect| matches!(effect, Effect::Discard { .. }))
                {
                    return Ok(());
                }
            }
            Ok(())
        })
    }
}

/// The next event. The decoder knows nothing but this peer's bytes: its panic ends this connection alone, though it
/// happens inside of a call of the core, which has not seen any of it.
fn decode<'d, 'i: 'd>(
    shared: &Shared,
    decoder: &'d mut Decoder,
    input: &mut &'i [u8],
) -> Result<Option<Event<'d>>, ReadEnd> {
    let event = contain::of_connection(shared, move || {
        let event = decoder.next(input);
        if let Ok(Some(Event::Message(message))) = &event {
            trace!("from peer: {message}");
        }
        event
    });
    Ok(event??)
}

/// Memory for a receive: of the wanted size if the pool has it, else smaller; outside the pool only the smallest.
fn recv_memory(pool: &Pool, want: usize) -> Segment {
    let mut bytes = want;
    while bytes > RECV_BYTES_MIN {
        if let Some(segment) = pool.alloc(bytes) {
            return segment;
        }
        bytes /= 2;
    }
    pool.alloc_or_heap(RECV_BYTES_MIN)
}
