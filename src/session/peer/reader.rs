//! The receiving side of a connection: from the socket through the decoder to the core, payload into its place. Layer 5.

use std::io;
use std::rc::Rc;

use tracing::trace;

use super::foresight::Foresight;
use super::payload::Payload;
use super::{PeerHandle, ReadEnd};
use crate::base::BlockRef;
use crate::session::contain;
use crate::session::driver::Driver;
use crate::session::lab::Followed;
use crate::session::shared::Shared;
use crate::session::tune::Direction;
use crate::swarm::{self, Cx, PeerKey};
use crate::uring::buffers::{Pool, Segment};
use crate::uring::scatter::Scatter;
use crate::uring::stream::Stream;
use crate::wire::decoder::{Decoder, Event};
use crate::wire::message::{Message, RawBlock};
use crate::wire::mse::Rc4;

/// One receive takes at most this much; large receives cost the least a byte.
pub(in crate::session) const RECV_BYTES_MAX: usize = 256 * 1024;
/// Under a rate limit at most this much: each turn is short.
const RECV_BYTES_LIMITED: usize = 16 * 1024;
/// And at least this much: a peer that only asks needs no more.
const RECV_BYTES_MIN: usize = 4 * 1024;
/// Receives of at least this much go straight into their places; shorter ones are of slow peers, whose few blocks are
/// cheaper to copy than to foresee.
const IN_PLACE_BYTES_MIN: usize = 64 * 1024;

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
    /// The last receive brought blocks in the order of the requests and nothing else.
    is_in_order: bool,
}

/// One receive.
struct Received {
    bytes: usize,
    /// There was room for so many.
    room: usize,
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
            is_in_order: false,
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
            let is_limited = self.allowance_bytes != usize::MAX;
            let received;
            (received, segment) = match self.foresee(handle, segment.len()) {
                Some((stream, foresight)) => {
                    self.receive_in_place(stream, foresight, segment).await?
                }
                None => self.receive(handle, segment).await?,
            };
            let Some(Received { bytes, room }) = received else {
                return Ok(segment.len());
            };
            let is_full = bytes == room;
            let most = match is_limited {
                true => RECV_BYTES_LIMITED,
                false => RECV_BYTES_MAX,
            };
            if is_full && room >= segment.len() && segment.len() < most {
                return Ok(most.min(4 * segment.len()));
            }
            if !is_full || self.allowance_bytes == 0 || handle.is_closing() {
                let is_oversized = bytes < segment.len() / 8;
                let smaller = RECV_BYTES_MIN.max(segment.len() / 4);
                return Ok(if is_oversized { smaller } else { segment.len() });
            }
        }
    }

    /// One receive into the segment; `None` when there is nothing.
    async fn receive(
        &mut self,
        handle: &PeerHandle,
        segment: Segment,
    ) -> Result<(Option<Received>, Segment), ReadEnd> {
        let room = segment.len().min(self.allowance_bytes);
        let (result, mut segment) = handle.stream.recv_now(segment, 0..room).await;
        let Some(bytes) = judge(result)? else {
            return Ok((None, segment));
        };
        if self.allowance_bytes != usize::MAX {
            self.allowance_bytes -= bytes;
        }
        let came = segment.as_mut_slice().get_mut(..bytes).unwrap_or_default();
        if let Some(cipher) = &mut self.cipher {
            cipher.apply(came);
        }
        self.is_in_order = true;
        self.feed(came)?;
        Ok((Some(Received { bytes, room }), segment))
    }

    /// What the next receive brings if the peer goes on as before, and the stream that can bring it into place.
    fn foresee<'h>(&self, handle: &'h PeerHandle, room: usize) -> Option<(&'h Stream, Foresight)> {
        let is_limited = self.allowance_bytes != usize::MAX;
        let is_cut = !self.decoder.is_between();
        if !self.is_in_order || is_limited || is_cut || room < IN_PLACE_BYTES_MIN {
            return None;
        }
        let stream = handle.stream.tcp()?;
        let begun = match &self.payload {
            Some(payload) => Some(payload.next_place()?),
            None => None,
        };
        let disk = self.driver.disk();
        let foresight = self
            .driver
            .read(|core| Foresight::new(disk, begun, core.foreseen(self.key), room))?;
        Some((stream, foresight))
    }

    /// One receive into the places of what is foreseen; the segment takes the rest. `None` when there is nothing.
    async fn receive_in_place(
        &mut self,
        stream: &Stream,
        foresight: Foresight,
        segment: Segment,
    ) -> Result<(Option<Received>, Segment), ReadEnd> {
        let (layout, scatter) = foresight.scatter(segment);
        let room = scatter.len();
        let (result, mut scatter) = stream.recv_scattered_now(scatter).await;
        let Some(bytes) = judge(result)? else {
            return Ok((None, scatter.into_scratch()));
        };
        if let Some(cipher) = &mut self.cipher {
            scatter.change(bytes, |part| cipher.apply(part));
        }
        let agreed = layout.agreed(scatter.slices(bytes));
        trace!(bytes, agreed_bytes = agreed.bytes, "received in place");
        self.is_in_order = !agreed.is_broken;
        // Together and elsewhere: a block that lies in the place of another is not to be copied over a third.
        let rest = bytes - agreed.bytes;
        let mut other = (agreed.is_broken && rest > 0)
            .then(|| gather(&self.driver.shared().pool, &scatter, agreed.bytes, bytes));
        self.feed_in_place(&mut scatter, agreed.bytes)?;
        match &mut other {
            Some(other) => {
                let segment = scatter.into_scratch();
                self.feed(other.as_slice())?;
                return Ok((Some(Received { bytes, room }), segment));
            }
            None if rest > 0 => {
                let feed = |spare: &[u8]| self.feed(spare);
                scatter.take_front(rest, feed).transpose()?;
            }
            None => {}
        }
        Ok((Some(Received { bytes, room }), scatter.into_scratch()))
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

    /// Hands the first `bytes` of what was received in place to the core, each part on its own. Whatever they lead to
    /// finds the places without their landings: one ends with the look at its bytes.
    fn feed_in_place(&mut self, scatter: &mut Scatter, bytes: usize) -> Result<(), ReadEnd> {
        let mut left = bytes;
        let driver = self.driver.clone();
        while left > 0 {
            driver.call(|core, cx| -> Result<(), ReadEnd> {
                while left > 0 {
                    let effect_count = cx.fx.len();
                    let taken = scatter.take_front(left, |part| {
                        let mut input = part;
                        // A part has one event.
                        while !input.is_empty() {
                            self.feed_into(core, cx, &mut input)?;
                        }
                        Ok::<_, ReadEnd>(part.len())
                    });
                    left = left.saturating_sub(taken.transpose()?.unwrap_or(left));
                    if discards(cx, effect_count) {
                        return Ok(());
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Hands events to the core until the input is used up or blocks are to be forgotten: that must be done before a
    /// later block of the same piece is taken in.
    fn feed_some(&mut self, input: &mut &[u8]) -> Result<(), ReadEnd> {
        let driver = self.driver.clone();
        driver.call(|core, cx| self.feed_into(core, cx, input))
    }

    fn feed_into(
        &mut self,
        core: &mut swarm::Torrent,
        cx: &mut Cx<'_>,
        input: &mut &[u8],
    ) -> Result<(), ReadEnd> {
        let shared = self.driver.shared();
        let disk = self.driver.disk();
        let key = self.key;
        while let Some(event) = decode(shared, &mut self.decoder, input)? {
            let effect_count = cx.fx.len();
            match event {
                Event::Message(message) => {
                    self.is_in_order = false;
                    if let Message::Request(request) = message {
                        self.followed.on_request(shared, request);
                    }
                    core.on_message(key, &message, cx)?;
                }
                Event::PieceHeader(header) => {
                    trace!("from peer: piece {header:?}");
                    self.is_in_order &= core
                        .foreseen(key)
                        .next()
                        .is_some_and(|block| is_of(block, header));
                    self.payload = Some(Payload::begin(core, key, header, cx)?);
                }
                Event::Payload {
                    bytes: part,
                    remaining_bytes,
                } => {
                    if let Some(payload) = self.payload.as_mut() {
                        payload.take(core, disk, key, part, cx);
                    }
                    if remaining_bytes == 0
                        && let Some(payload) = self.payload.take()
                    {
                        payload.finish(core, disk, key, cx);
                    }
                }
            }
            if discards(cx, effect_count) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether blocks are to be forgotten by an effect behind the first `effect_count`.
fn discards(cx: &Cx<'_>, effect_count: usize) -> bool {
    let new = cx.fx.get(effect_count..).unwrap_or_default();
    new.iter().any(|effect| effect.forgets().is_some())
}

fn is_of(block: BlockRef, header: RawBlock) -> bool {
    let at = (block.piece().get(), block.begin(), block.length());
    at == (header.piece, header.begin, header.length)
}

/// What a receive brought, in bytes; `None` when there is nothing.
fn judge(result: io::Result<usize>) -> Result<Option<usize>, ReadEnd> {
    match result {
        Ok(0) => Err(ReadEnd::Eof),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A copy of what was received from byte `from` up to `end`, which is 256 KiB at most.
fn gather(pool: &Pool, scatter: &Scatter, from: usize, end: usize) -> Segment {
    let mut gathered = pool.alloc_or_heap(end - from);
    let mut skip = from;
    let mut at = 0;
    for slice in scatter.slices(end) {
        let (skipped, slice) = slice.split_at(skip.min(slice.len()));
        skip -= skipped.len();
        gathered.put(at, slice);
        at += slice.len();
    }
    gathered
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
