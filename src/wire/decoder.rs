//! Bytes of one connection, in any split, to messages: the receiving side of BEP 3, BEP 6 and BEP 10 framing. Layer 1.
//!
//! A push decoder: it owns no socket and no clock and never copies payload. Whether a message makes sense now
//! (piece exists, bitfield comes first …) is the swarm's question; here only lengths are judged.

use super::merkle;
use super::message::{
    HASH_RANGE_BYTES, HashRange, Message, PIECE_HEADER_BYTES, PIECE_OVERHEAD_BYTES, RawBlock, id,
};

/// The longest extension message (length prefix) that is gathered: ut_metadata sends 16 KiB pieces and BEP 10
/// handshakes are far shorter. Every peer may hold so much of our memory at once.
pub const EXTENDED_BYTES_MAX: u32 = 64 * 1024 + 2;

/// What `hash request` and `hash reject` count (length prefix).
const HASH_REQUEST_BYTES: u32 = HASH_RANGE_BYTES as u32 + 1;

/// The longest `hashes` (length prefix): as many as one request may ask for, and an uncle from every layer above.
pub const HASHES_BYTES_MAX: u32 =
    HASH_REQUEST_BYTES + 32 * (merkle::HASHES_MAX + merkle::HEIGHT_MAX);

/// The longest message with an unknown id (length prefix): it passes by and takes no memory. Anything above is an
/// attack (HOSTILE.md W1).
pub const UNKNOWN_BYTES_MAX: u32 = 1024 * 1024;

/// The longest `piece` (length prefix): some clients send blocks of 128 KiB, no one sends longer ones.
pub const PIECE_BYTES_MAX: u32 = 128 * 1024 + PIECE_OVERHEAD_BYTES;

/// Capacity that the gather buffer keeps between messages. Every message of fixed length fits; long ones are
/// rare, and ten thousand idle peers must not keep theirs.
const GATHER_KEEP_BYTES_MAX: usize = 64;

/// The longest message of fixed length: `request`, `cancel` and `reject` (length prefix).
const FIXED_BYTES_MAX: u32 = 13;

/// What the length prefix of a message may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of this torrent's bitfield: a `bitfield` message holds exactly so many.
    pub bitfield_bytes_max: u32,
    /// The torrent's size is not known yet: a `bitfield` is passed over like an unknown message.
    pub skips_bitfield: bool,
    /// Highest length prefix of an extension message.
    pub extended_bytes_max: u32,
    /// Highest length prefix of a message with an unknown id.
    pub unknown_bytes_max: u32,
    /// Highest length prefix of a `piece`: payload + 9.
    pub piece_bytes_max: u32,
}

impl Limits {
    /// The usual limits for a torrent whose bitfield has `bitfield_bytes` bytes.
    pub const fn for_bitfield(bitfield_bytes: u32) -> Self {
        Limits {
            bitfield_bytes_max: bitfield_bytes,
            skips_bitfield: false,
            extended_bytes_max: EXTENDED_BYTES_MAX,
            unknown_bytes_max: UNKNOWN_BYTES_MAX,
            piece_bytes_max: PIECE_BYTES_MAX,
        }
    }

    /// The limits while nothing is known of the torrent but its info_hash (BEP 9).
    pub const fn before_metadata() -> Self {
        Limits {
            skips_bitfield: true,
            ..Limits::for_bitfield(0)
        }
    }

    /// Lowest and highest length prefix for the id; `None` for an unknown id.
    #[inline]
    fn bounds(&self, id: u8) -> Option<(u32, u32)> {
        Some(match id {
            id::REQUEST | id::CANCEL | id::REJECT_REQUEST => (FIXED_BYTES_MAX, FIXED_BYTES_MAX),
            id::PIECE => (PIECE_OVERHEAD_BYTES + 1, self.piece_bytes_max),
            id::HAVE | id::SUGGEST_PIECE | id::ALLOWED_FAST => (5, 5),
            id::CHOKE | id::UNCHOKE | id::INTERESTED | id::NOT_INTERESTED => (1, 1),
            id::HAVE_ALL | id::HAVE_NONE => (1, 1),
            id::PORT => (3, 3),
            id::BITFIELD if self.skips_bitfield => return None,
            id::BITFIELD => {
                let exact = self.bitfield_bytes_max.saturating_add(1);
                (exact, exact)
            }
            id::EXTENDED => (2, self.extended_bytes_max),
            id::HASH_REQUEST | id::HASH_REJECT => (HASH_REQUEST_BYTES, HASH_REQUEST_BYTES),
            id::HASHES => (HASH_REQUEST_BYTES, HASHES_BYTES_MAX),
            _ => return None,
        })
    }

    /// Highest length prefix of any id.
    fn any_max(&self) -> u32 {
        (self.bitfield_bytes_max.saturating_add(1))
            .max(self.extended_bytes_max)
            .max(self.unknown_bytes_max)
            .max(self.piece_bytes_max)
            .max(FIXED_BYTES_MAX)
            .max(HASHES_BYTES_MAX)
    }

    /// Checks a length prefix whose id has not come yet.
    fn check_prefix(&self, length: u32) -> Result<(), DecodeError> {
        let max_bytes = self.any_max();
        if length <= max_bytes {
            return Ok(());
        }
        Err(DecodeError::TooLong {
            declared_bytes: length,
            max_bytes,
        })
    }

    /// Why this length prefix is wrong for the id: what [`Limits::check_prefix`] says first, so that the
    /// answer does not depend on where the input was split.
    #[cold]
    fn bad_length(&self, id: u8, length: u32) -> DecodeError {
        let (min_bytes, max_bytes) = self.bounds(id).unwrap_or((1, self.unknown_bytes_max));
        match self.check_prefix(length) {
            Err(too_long) => too_long,
            Ok(()) => DecodeError::BadLength {
                id,
                min_bytes,
                max_bytes,
                got_bytes: length,
            },
        }
    }
}

/// The bytes are not the peer protocol; the connection is of no more use. Lengths are those of the length
/// prefix: id and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than any message may be (HOSTILE.md W1).
    #[error("message of {declared_bytes} bytes, at most {max_bytes} are taken")]
    TooLong { declared_bytes: u32, max_bytes: u32 },
    /// Not a length that a message with this id can have (HOSTILE.md W2, W3).
    #[error("message {id} of {got_bytes} bytes, expected {min_bytes} to {max_bytes}")]
    BadLength {
        id: u8,
        min_bytes: u32,
        max_bytes: u32,
        got_bytes: u32,
    },
}

/// What the decoder found next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'d> {
    /// A whole message, anything but `piece`.
    Message(Message<'d>),
    /// A `piece` begins; `length` is the length of its payload, at least 1. The payload follows as
    /// [`Event::Payload`], or the caller receives it itself: see [`Decoder::payload_wanted`].
    PieceHeader(RawBlock),
    /// The next bytes of the payload, never empty. `remaining_bytes` are still to come after these; 0 ends the block.
    Payload {
        bytes: &'d [u8],
        remaining_bytes: u32,
    },
}

/// Turns the bytes of one connection into [`Event`]s.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
    /// Bytes of a message that came in more than one input, from its length prefix on.
    gathered: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between messages, or inside the one whose beginning is in `gathered`.
    Framing,
    /// The message in `gathered` was handed out: the next call forgets it.
    HandedOut,
    /// Inside the payload of a `piece`.
    Payload { remaining: u32 },
    /// Inside the body of a message with an unknown id.
    Skipping { remaining: u32 },
    /// The stream is out of step for good.
    Failed(DecodeError),
}

/// What the bytes at the beginning of a message tell. `bytes` counts from the length prefix on.
enum Frame {
    /// Nothing can be said before there are so many bytes.
    Needs { bytes: usize },
    /// The whole message is there.
    Whole { id: u8, length: u32, bytes: usize },
    /// All there is to gather of this message are these bytes; its body, if any, passes by.
    Begun { begun: Begun, bytes: usize },
}

enum Begun {
    KeepAlive,
    Piece(RawBlock),
    Unknown { id: u8, body_bytes: u32 },
}

const PREFIX_BYTES: usize = 4;
const HEAD_BYTES: usize = 5;

impl Decoder {
    /// A decoder at the first byte after the handshake.
    pub const fn new(limits: Limits) -> Self {
        Decoder {
            limits,
            state: State::Framing,
            gathered: Vec::new(),
        }
    }

    /// The next event, taking what it consumes off the front of `input`.
    ///
    /// `Ok(None)` means that `input` is used up: call again when more bytes are there. Call it until then, also
    /// to give memory back. What an event borrows is gone with the next call.
    ///
    /// # Errors
    /// The same [`DecodeError`] from the first bad length on, for ever.
    #[inline]
    pub fn next<'d, 'i: 'd>(
        &'d mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'d>>, DecodeError> {
        match self.state {
            State::Framing if self.gathered.is_empty() => self.next_from_input(input),
            State::Payload { remaining } => Ok(self.next_payload(remaining, input)),
            _ => self.next_resumed(input),
        }
    }

    /// Bytes of the current block's payload that are still to come; 0 when the stream is not inside a `piece`.
    ///
    /// With the input used up, the caller may receive up to so many bytes straight into their place and
    /// report them with [`Decoder::payload_received`].
    #[inline]
    pub const fn payload_wanted(&self) -> u32 {
        match self.state {
            State::Payload { remaining } => remaining,
            _ => 0,
        }
    }

    /// True when the next byte begins a message, or goes on with the payload of a `piece`.
    #[inline]
    pub const fn is_between(&self) -> bool {
        match self.state {
            State::Framing => self.gathered.is_empty(),
            State::Payload { .. } => true,
            _ => false,
        }
    }

    /// The caller received `n_bytes` of the payload past the decoder.
    ///
    /// # Panics
    /// When `n_bytes` is more than [`Decoder::payload_wanted`].
    pub fn payload_received(&mut self, n_bytes: u32) {
        let wanted = self.payload_wanted();
        assert!(n_bytes <= wanted, "{n_bytes} bytes of {wanted} wanted");
        if n_bytes > 0 {
            self.state = payload_state(wanted - n_bytes);
        }
    }

    /// Bytes of memory held for a message that has not come whole.
    pub fn memory_bytes(&self) -> usize {
        self.gathered.capacity()
    }

    /// Between messages: the common case, nothing is copied unless a message ends outside the input.
    #[inline]
    fn next_from_input<'d, 'i: 'd>(
        &'d mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'d>>, DecodeError> {
        let bytes: &'i [u8] = input;
        match frame(bytes, &self.limits) {
            Ok(Frame::Whole {
                id,
                length,
                bytes: whole_bytes,
            }) => {
                let (whole, rest) = bytes.split_at_checked(whole_bytes).unwrap_or((bytes, &[]));
                *input = rest;
                match parse(id, whole) {
                    Some(message) => Ok(Some(Event::Message(message))),
                    None => Err(self.fail(self.limits.bad_length(id, length))),
                }
            }
            Ok(Frame::Begun { begun, bytes: used }) => {
                *input = bytes.get(used..).unwrap_or(&[]);
                Ok(Some(self.begin(begun)))
            }
            Ok(Frame::Needs { bytes: needed }) => {
                *input = &[];
                gather(&mut self.gathered, bytes, needed);
                Ok(None)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    #[inline]
    fn next_payload<'i>(&mut self, remaining: u32, input: &mut &'i [u8]) -> Option<Event<'i>> {
        if input.is_empty() {
            return None;
        }
        let (bytes, remaining_bytes) = take(remaining, input);
        self.state = payload_state(remaining_bytes);
        Some(Event::Payload {
            bytes,
            remaining_bytes,
        })
    }

    /// Everything that is neither payload nor the plain beginning of a message.
    #[inline(never)]
    fn next_resumed<'d, 'i: 'd>(
        &'d mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Event<'d>>, DecodeError> {
        match self.state {
            State::Failed(error) => Err(error),
            State::HandedOut => {
                self.forget_gathered();
                self.state = State::Framing;
                self.next_from_input(input)
            }
            State::Skipping { remaining } => {
                let (_, left) = take(remaining, input);
                self.state = skipping_state(left);
                if left > 0 {
                    return Ok(None);
                }
                self.next_from_input(input)
            }
            State::Framing | State::Payload { .. } => self.next_gathered(input),
        }
    }

    /// Inside a message whose beginning is in `gathered`: takes just what belongs to it.
    fn next_gathered<'d>(
        &'d mut self,
        input: &mut &[u8],
    ) -> Result<Option<Event<'d>>, DecodeError> {
        loop {
            match frame(&self.gathered, &self.limits) {
                Ok(Frame::Needs { .. }) if input.is_empty() => return Ok(None),
                Ok(Frame::Needs { bytes: needed }) => {
                    let missing = needed.saturating_sub(self.gathered.len());
                    let (now, rest) = input.split_at_checked(missing).unwrap_or((input, &[]));
                    gather(&mut self.gathered, now, needed);
                    *input = rest;
                }
                Ok(Frame::Whole { id, length, .. }) => {
                    let Some(message) = parse(id, &self.gathered) else {
                        let error = self.limits.bad_length(id, length);
                        self.state = State::Failed(error);
                        return Err(error);
                    };
                    self.state = State::HandedOut;
                    return Ok(Some(Event::Message(message)));
                }
                Ok(Frame::Begun { begun, .. }) => {
                    self.forget_gathered();
                    return Ok(Some(self.begin(begun)));
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    fn begin(&mut self, begun: Begun) -> Event<'static> {
        match begun {
            Begun::KeepAlive => Event::Message(Message::KeepAlive),
            Begun::Piece(block) => {
                self.state = payload_state(block.length);
                Event::PieceHeader(block)
            }
            Begun::Unknown { id, body_bytes } => {
                self.state = skipping_state(body_bytes);
                Event::Message(Message::Unknown { id })
            }
        }
    }

    fn forget_gathered(&mut self) {
        self.gathered.clear();
        if self.gathered.capacity() > GATHER_KEEP_BYTES_MAX {
            self.gathered = Vec::new();
        }
    }

    #[cold]
    fn fail(&mut self, error: DecodeError) -> DecodeError {
        self.state = State::Failed(error);
        self.gathered = Vec::new();
        error
    }
}

fn payload_state(remaining: u32) -> State {
    match remaining {
        0 => State::Framing,
        remaining => State::Payload { remaining },
    }
}

fn skipping_state(remaining: u32) -> State {
    match remaining {
        0 => State::Framing,
        remaining => State::Skipping { remaining },
    }
}

/// Splits up to `wanted` bytes off the front of `input`; also tells how many are then still wanted.
#[inline]
fn take<'i>(wanted: u32, input: &mut &'i [u8]) -> (&'i [u8], u32) {
    let bytes: &'i [u8] = input;
    match bytes.split_at_checked(widen(wanted)) {
        Some((taken, rest)) => {
            *input = rest;
            (taken, 0)
        }
        None => {
            *input = &[];
            // Shorter than `wanted`, so its length is a u32 too.
            (bytes, wanted - bytes.len() as u32)
        }
    }
}

/// A u32 as a length in memory; Linux machines with an io_uring have at least 32-bit addresses.
#[inline]
const fn widen(bytes: u32) -> usize {
    bytes as usize
}

/// Appends bytes of a message of `message_bytes` bytes. Capacity follows what arrived, at most doubling, and
/// never passes the message's end.
#[cold]
fn gather(gathered: &mut Vec<u8>, bytes: &[u8], message_bytes: usize) {
    let length = gathered.len() + bytes.len();
    if length > gathered.capacity() {
        let doubled = gathered.capacity().saturating_mul(2).min(message_bytes);
        let capacity = doubled.max(length).max(GATHER_KEEP_BYTES_MAX);
        gathered.reserve_exact(capacity - gathered.len());
    }
    gathered.extend_from_slice(bytes);
}

/// Judges the beginning of a message.
#[inline]
fn frame(bytes: &[u8], limits: &Limits) -> Result<Frame, DecodeError> {
    let Some(&[a, b, c, d, id]) = bytes.first_chunk::<HEAD_BYTES>() else {
        return frame_without_id(bytes, limits);
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    if length == 0 {
        return Ok(KEEP_ALIVE);
    }
    let Some((min, max)) = limits.bounds(id) else {
        return frame_unknown(id, length, limits);
    };
    if length < min || length > max {
        return Err(limits.bad_length(id, length));
    }
    if id == id::PIECE {
        return Ok(frame_piece(bytes, length));
    }
    let whole_bytes = widen(length) + PREFIX_BYTES;
    Ok(if bytes.len() < whole_bytes {
        Frame::Needs { bytes: whole_bytes }
    } else {
        Frame::Whole {
            id,
            length,
            bytes: whole_bytes,
        }
    })
}

const KEEP_ALIVE: Frame = Frame::Begun {
    begun: Begun::KeepAlive,
    bytes: PREFIX_BYTES,
};

/// A message of which at most the length prefix is there.
fn frame_without_id(bytes: &[u8], limits: &Limits) -> Result<Frame, DecodeError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Ok(Frame::Needs {
            bytes: PREFIX_BYTES,
        });
    };
    let length = u32::from_be_bytes(*prefix);
    if length == 0 {
        return Ok(KEEP_ALIVE);
    }
    limits.check_prefix(length)?;
    Ok(Frame::Needs { bytes: HEAD_BYTES })
}

fn frame_unknown(id: u8, length: u32, limits: &Limits) -> Result<Frame, DecodeError> {
    if length > limits.unknown_bytes_max {
        return Err(limits.bad_length(id, length));
    }
    Ok(Frame::Begun {
        begun: Begun::Unknown {
            id,
            body_bytes: length.saturating_sub(1),
        },
        bytes: HEAD_BYTES,
    })
}

#[inline]
fn frame_piece(bytes: &[u8], length: u32) -> Frame {
    let Some(header) = bytes.first_chunk::<PIECE_HEADER_BYTES>() else {
        return Frame::Needs {
            bytes: PIECE_HEADER_BYTES,
        };
    };
    let &[_, _, _, _, _, p0, p1, p2, p3, b0, b1, b2, b3] = header;
    Frame::Begun {
        begun: Begun::Piece(RawBlock {
            piece: u32::from_be_bytes([p0, p1, p2, p3]),
            begin: u32::from_be_bytes([b0, b1, b2, b3]),
            length: length.saturating_sub(PIECE_OVERHEAD_BYTES),
        }),
        bytes: PIECE_HEADER_BYTES,
    }
}

/// Reads a whole message from its length prefix on. `None` when its body is not as long as the id demands,
/// which [`frame`] has ruled out.
#[inline]
fn parse(id: u8, whole: &[u8]) -> Option<Message<'_>> {
    let body = whole.get(HEAD_BYTES..)?;
    Some(match id {
        id::REQUEST => Message::Request(block(body)?),
        id::HAVE => Message::Have {
            piece: number(body)?,
        },
        id::CHOKE => Message::Choke,
        id::UNCHOKE => Message::Unchoke,
        id::INTERESTED => Message::Interested,
        id::NOT_INTERESTED => Message::NotInterested,
        id::BITFIELD => Message::Bitfield { bytes: body },
        id::CANCEL => Message::Cancel(block(body)?),
        id::PORT => Message::Port {
            port: u16::from_be_bytes(body.try_into().ok()?),
        },
        id::SUGGEST_PIECE => Message::SuggestPiece {
            piece: number(body)?,
        },
        id::HAVE_ALL => Message::HaveAll,
        id::HAVE_NONE => Message::HaveNone,
        id::REJECT_REQUEST => Message::RejectRequest(block(body)?),
        id::ALLOWED_FAST => Message::AllowedFast {
            piece: number(body)?,
        },
        id::EXTENDED => {
            let (&id, payload) = body.split_first()?;
            Message::Extended { id, payload }
        }
        id::HASH_REQUEST => Message::HashRequest(hash_range(body)?.0),
        id::HASH_REJECT => Message::HashReject(hash_range(body)?.0),
        id::HASHES => {
            let (range, hashes) = hash_range(body)?;
            Message::Hashes { range, hashes }
        }
        _ => return None,
    })
}

/// The fields of a `hash request`, and what lies behind them.
fn hash_range(body: &[u8]) -> Option<(HashRange, &[u8])> {
    let (root, rest) = body.split_first_chunk::<32>()?;
    let (numbers, rest) = rest.split_first_chunk::<16>()?;
    let (numbers, _) = numbers.as_chunks::<4>();
    let [base_layer, index, length, proof_layers] = *numbers else {
        return None;
    };
    let range = HashRange {
        root: *root,
        base_layer: u32::from_be_bytes(base_layer),
        index: u32::from_be_bytes(index),
        length: u32::from_be_bytes(length),
        proof_layers: u32::from_be_bytes(proof_layers),
    };
    Some((range, rest))
}

#[inline]
fn number(body: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(body.try_into().ok()?))
}

#[inline]
fn block(body: &[u8]) -> Option<RawBlock> {
    let &[p0, p1, p2, p3, b0, b1, b2, b3, l0, l1, l2, l3] = body else {
        return None;
    };
    Some(RawBlock {
        piece: u32::from_be_bytes([p0, p1, p2, p3]),
        begin: u32::from_be_bytes([b0, b1, b2, b3]),
        length: u32::from_be_bytes([l0, l1, l2, l3]),
    })
}
