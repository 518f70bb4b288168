//! The receiving side of a connection: from the socket through the decoder to the core, payload into its place. Layer 5.

use std::io;
use std::rc::Rc;

use tracing::trace;

use super::payload::Payload;
use super::{PeerHandle, ReadEnd};
use crate::session::contain;
use crate::session::driver::Driver;
use crate::session::lab::Followed;
use crate::session::shared::Shared;
use crate::session::tune::Direction;
use crate::swarm::PeerKey;
use crate::uring::buffers::{Pool, Segment};
use crate::wire::decoder::{Decoder, Event};
use crate::wire::message::Message;
use crate::wire::mse::Rc4;

/// One receive takes at most this much; large receives cost the least a byte.
pub(in crate::session) const RECV_BYTES_MAX: usize = 256 * 1024;
/// And at least this much: a peer that only asks needs no more.
const RECV_BYTES_MIN: usize = 16 * 1024;

/// One connection's receiving side.
pub(super) struct Reader {
    driver: Rc<Driver>,
    key: PeerKey,
    decoder: Decoder,
    /// Undoes what the peer encrypted.
    cipher: Option<Box<Rc4>>,
    followed: Rc<Followed>,
    /// The payload now arriving.
    payload: Option<Payload>,
    /// What may still be received before asking for more; `usize::MAX` without a rate limit.
    allowance_bytes: usize,
}

impl Reader {
    /// Before the first byte.
    pub fn new(
        driver: Rc<Driver>,
        key: PeerKey,
        followed: Rc<Followed>,
        cipher: Option<Box<Rc4>>,
    ) -> Self {
        let decoder = Decoder::new(driver.decoder_limits());
        let is_limited = driver.pace.rate(Direction::Down).is_some();
        let allowance_bytes = if is_limited { 0 } else { usize::MAX };
        Reader {
            driver,
            key,
            decoder,
            cipher,
            followed,
            payload: None,
            allowance_bytes,
        }
    }

    /// Receives until the connection ends; `early` came with the handshake and is decrypted.
    pub async fn run(&mut self, handle: &PeerHandle, early: &[u8]) -> Result<(), ReadEnd> {
        self.feed(early)?;
        let shared = self.driver.shared().clone();
        let mut want = RECV_BYTES_MIN;
        while !handle.is_closing() {
            handle.stream.readable().await?;
            match self.driver.pace.turn_bytes(Direction::Down) {
                None => self.allowance_bytes = usize::MAX,
                Some(_) if !matches!(self.allowance_bytes, 0 | usize::MAX) => {}
                Some(bytes) => {
                    handle.acquire(Direction::Down, bytes).await;
                    self.allowance_bytes = usize::try_from(bytes).unwrap_or(RECV_BYTES_MIN);
                }
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
            let bytes = segment.as_mut_slice().get_mut(..received);
            let bytes = bytes.unwrap_or_default();
            if let Some(cipher) = &mut self.cipher {
                cipher.apply(bytes);
            }
            self.feed(bytes)?;
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
        if let Some(payload) = self.payload.take() {
            payload.abandon(self.driver.disk());
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
                        *payload = Some(Payload::begin(core, key, header, cx)?);
                    }
                    Event::Payload {
                        bytes: part,
                        remaining_bytes,
                    } => {
                        if let Some(payload) = payload.as_mut() {
                            payload.take(core, driver.disk(), key, part, cx);
                        }
                        if remaining_bytes == 0
                            && let Some(payload) = payload.take()
                        {
                            payload.finish(core, driver.disk(), key, cx);
                        }
                    }
                }
                let new = cx.fx.get(effect_count..).unwrap_or_default();
                if new.iter().any(|effect| effect.forgets().is_some()) {
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
pub(in crate::session) fn recv_memory(pool: &Pool, want: usize) -> Segment {
    let mut bytes = want;
    while bytes > RECV_BYTES_MIN {
        if let Some(segment) = pool.alloc(bytes) {
            return segment;
        }
        bytes /= 2;
    }
    pool.alloc_or_heap(RECV_BYTES_MIN)
}
