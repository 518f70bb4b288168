//! One connection of a synthetic leecher. Layer 7.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::leecher::Shared;
use super::veil::Veil;
use super::work::Walk;
use super::{Content, Role};
use crate::base::{InfoHash, PeerId};
use crate::wire::handshake::{HANDSHAKE_BYTES, Handshake, Reserved};
use crate::wire::message::{Message, PIECE_HEADER_BYTES, PIECE_OVERHEAD_BYTES, RawBlock, id};

/// Receives in one turn, so that no connection starves the others.
const RECEIVES_PER_TURN: u32 = 256;
/// Longer messages are nobody's: the longest are bitfields and blocks.
const MESSAGE_BYTES_MAX: u32 = 4 << 20;
/// The first blocks of so many connections are compared with the data on disk.
const CHECKED_CONNECTIONS: usize = 16;

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Goes,
    /// Nothing is left to ask for and nothing is on the way.
    Exhausted,
}

enum Reading {
    Handshake {
        got: usize,
    },
    /// Length, id and, for blocks, piece and begin.
    Head,
    /// So many bytes of no interest; `block_bytes` of payload count when they are through.
    Skip {
        left: u64,
        block_bytes: u32,
    },
    Bitfield {
        bytes: Vec<u8>,
        got: usize,
    },
    /// A block that is compared with the data.
    Check {
        block: RawBlock,
        bytes: Vec<u8>,
        got: usize,
    },
}

/// The state of one connection.
pub struct Peer {
    stream: TcpStream,
    number: usize,
    torrent: usize,
    walk: Walk,
    reading: Reading,
    head: [u8; PIECE_HEADER_BYTES],
    filled: usize,
    asked: VecDeque<(RawBlock, Instant)>,
    /// Requests that the socket did not take yet.
    out: Vec<u8>,
    is_unchoked: bool,
    is_served: bool,
    is_dry: bool,
    is_checked: bool,
    veil: Veil,
    /// Of an encrypted connection the first block is read; of the others only the bytes are counted, in the order in
    /// which they were asked for.
    is_blind: bool,
}

/// The handshake. More than that may not go out before the answer: aria2 closes such a connection.
pub fn opening(info_hash: [u8; 20], number: u32) -> [u8; HANDSHAKE_BYTES] {
    let mut peer_id = *b"-LD0100-000000000000";
    for (place, digit) in peer_id.iter_mut().rev().zip(digits(number)) {
        *place = digit;
    }
    let handshake = Handshake {
        reserved: Reserved::NONE,
        info_hash: InfoHash::new(info_hash),
        peer_id: PeerId::new(peer_id),
    };
    handshake.encode()
}

/// The torrent that an opening is for.
pub fn info_hash_of(opening: &[u8; HANDSHAKE_BYTES]) -> InfoHash {
    InfoHash::new(std::array::from_fn(|at| opening[28 + at]))
}

fn digits(mut number: u32) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let digit = b'0' + (number % 10) as u8;
        number /= 10;
        Some(digit)
    })
    .take(10)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Peer {
    pub fn new(stream: TcpStream, number: usize, torrent: usize, walk: Walk, veil: Veil) -> Peer {
        Peer {
            stream,
            number,
            torrent,
            walk,
            reading: Reading::Handshake { got: 0 },
            head: [0; PIECE_HEADER_BYTES],
            filled: 0,
            asked: VecDeque::new(),
            out: Vec::new(),
            is_unchoked: false,
            is_served: false,
            is_dry: false,
            is_checked: false,
            veil,
            is_blind: false,
        }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Bytes wait for the socket.
    pub fn is_writing(&self) -> bool {
        !self.out.is_empty()
    }

    /// The handshake came.
    pub fn is_greeted(&self) -> bool {
        !matches!(self.reading, Reading::Handshake { .. })
    }

    /// It is as far as its role asks before anything is measured.
    pub fn is_served(&self) -> bool {
        self.is_served
    }

    /// Everything it may ask for has come.
    pub fn is_exhausted(&self) -> bool {
        let is_coming = self.is_blind && matches!(self.reading, Reading::Skip { .. });
        self.is_dry && self.asked.is_empty() && !is_coming
    }

    pub fn keep_alive(&mut self) {
        self.veil.say(&Message::KeepAlive, &mut self.out);
        let _ = self.flush();
    }

    /// Reads what is there, then asks for more.
    pub fn turn(&mut self, shared: &mut Shared) -> io::Result<Next> {
        let before = self.is_exhausted();
        for _ in 0..RECEIVES_PER_TURN {
            match self.receive(shared) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.ask(shared);
        self.flush()?;
        Ok(match self.is_exhausted() && !before {
            true => Next::Exhausted,
            false => Next::Goes,
        })
    }

    fn receive(&mut self, shared: &mut Shared) -> io::Result<()> {
        let (fd, veil) = (&self.stream, &mut self.veil);
        match &mut self.reading {
            Reading::Skip { left, block_bytes } => {
                let want = usize::try_from(*left).map_or(usize::MAX, |left| left);
                let got = veil.pass_over(fd, &mut shared.sink, want)?;
                *left -= got as u64;
                if *left == 0 {
                    let block_bytes = *block_bytes;
                    self.reading = Reading::Head;
                    self.block_came(block_bytes, shared);
                }
            }
            Reading::Head if self.is_blind => {
                let (block, since) = self.asked.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
                shared.counters.waited(since);
                self.reading = Reading::Skip {
                    left: PIECE_HEADER_BYTES as u64 + u64::from(block.length),
                    block_bytes: block.length,
                };
            }
            Reading::Head => {
                let place = self.head.get_mut(self.filled..).unwrap_or_default();
                self.filled += veil.receive(fd, place)?;
                self.parse(shared)?;
            }
            Reading::Handshake { got } => {
                let mut bytes = [0; HANDSHAKE_BYTES];
                let place = bytes.get_mut(*got..).unwrap_or_default();
                *got += veil.receive(fd, place)?;
                if *got == HANDSHAKE_BYTES {
                    self.reading = Reading::Head;
                    if shared.job.role != Role::Idle {
                        veil.say(&Message::Interested, &mut self.out);
                    }
                    if shared.job.role != Role::Fetch {
                        self.serve(shared);
                    }
                }
            }
            Reading::Bitfield { bytes, got } => {
                let place = bytes.get_mut(*got..).unwrap_or_default();
                *got += veil.receive(fd, place)?;
                if *got == bytes.len() {
                    let bytes = std::mem::take(bytes);
                    self.reading = Reading::Head;
                    self.bitfield(&bytes);
                }
            }
            Reading::Check { block, bytes, got } => {
                let place = bytes.get_mut(*got..).unwrap_or_default();
                *got += veil.receive(fd, place)?;
                if *got == bytes.len() {
                    let (block, bytes) = (*block, std::mem::take(bytes));
                    self.reading = Reading::Head;
                    let content = shared.job.torrents.get(self.torrent);
                    content.map_or(Ok(()), |content| check(content, block, &bytes))?;
                    shared.checked_blocks += 1;
                    self.close_eyes();
                    self.block_came(block.length, shared);
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, shared: &mut Shared) {
        shared.served += u32::from(!self.is_served);
        self.is_served = true;
    }

    fn block_came(&mut self, block_bytes: u32, shared: &mut Shared) {
        if block_bytes > 0 {
            let now = Instant::now();
            shared.counters.payload(u64::from(block_bytes), now);
            self.serve(shared);
        }
    }

    /// Takes whole messages off the head, or goes on to what follows it.
    fn parse(&mut self, shared: &mut Shared) -> io::Result<()> {
        while self.filled >= 4 {
            let length = word(&self.head, 0);
            if length > MESSAGE_BYTES_MAX {
                return Err(bad("a message is longer than any can be"));
            }
            if length == 0 {
                self.consume(4);
                continue;
            }
            if self.filled < 5 {
                break;
            }
            match self.head[4] {
                id::PIECE => {
                    if self.filled < PIECE_HEADER_BYTES {
                        break;
                    }
                    return self.piece(length, shared);
                }
                id::HAVE => {
                    if self.filled < 9 {
                        break;
                    }
                    self.walk.announce(word(&self.head, 5));
                }
                id::BITFIELD if self.walk.follows_announcements() => {
                    let mut bytes = vec![0; length as usize - 1];
                    let there = bytes.len().min(self.filled - 5);
                    for (to, from) in bytes.iter_mut().zip(self.head.iter().skip(5)).take(there) {
                        *to = *from;
                    }
                    self.consume(5 + there);
                    if there == bytes.len() {
                        self.bitfield(&bytes);
                        continue;
                    }
                    self.reading = Reading::Bitfield { bytes, got: there };
                    return Ok(());
                }
                id::CHOKE => {
                    self.is_unchoked = false;
                    for (block, _) in self.asked.drain(..) {
                        self.walk.unanswered(block);
                    }
                }
                id::UNCHOKE => {
                    self.is_unchoked = true;
                    if shared.job.once {
                        self.serve(shared);
                    }
                }
                _ => {}
            }
            let whole = length as usize + 4;
            let there = whole.min(self.filled);
            self.consume(there);
            if whole > there {
                self.reading = Reading::Skip {
                    left: (whole - there) as u64,
                    block_bytes: 0,
                };
                return Ok(());
            }
        }
        Ok(())
    }

    fn consume(&mut self, bytes: usize) {
        self.head.copy_within(bytes..self.filled, 0);
        self.filled -= bytes;
    }

    /// The header of a block is whole.
    fn piece(&mut self, length: u32, shared: &mut Shared) -> io::Result<()> {
        let payload = length
            .checked_sub(PIECE_OVERHEAD_BYTES)
            .filter(|payload| *payload > 0)
            .ok_or_else(|| bad("a block without payload"))?;
        let block = RawBlock {
            piece: word(&self.head, 5),
            begin: word(&self.head, 9),
            length: payload,
        };
        self.filled = 0;
        let at = self.asked.iter().position(|(asked, _)| *asked == block);
        if let Some((_, since)) = at.and_then(|at| self.asked.remove(at)) {
            shared.counters.waited(since);
        }
        let is_looked_at = !self.is_checked
            && self.number < CHECKED_CONNECTIONS
            && shared.job.role == Role::Fetch
            && !shared.job.once;
        self.is_checked = true;
        if !is_looked_at {
            self.close_eyes();
        }
        self.reading = match is_looked_at {
            true => Reading::Check {
                block,
                bytes: vec![0; payload as usize],
                got: 0,
            },
            false => Reading::Skip {
                left: u64::from(payload),
                block_bytes: payload,
            },
        };
        Ok(())
    }

    /// Reads no more of an encrypted connection.
    fn close_eyes(&mut self) {
        if self.veil.hides() {
            self.veil.shut();
            self.is_blind = true;
        }
    }

    fn bitfield(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            for bit in 0..8 {
                if byte & (0x80 >> bit) != 0 {
                    self.walk.announce((at * 8 + bit) as u32);
                }
            }
        }
    }

    /// Fills the pipeline, a quarter of it at a time.
    fn ask(&mut self, shared: &mut Shared) {
        let depth = shared.job.depth as usize;
        let is_due = self.asked.len() + (depth / 4).max(1) <= depth;
        if !self.is_unchoked || !shared.may_ask || !is_due {
            return;
        }
        let now = Instant::now();
        while self.asked.len() < depth {
            let shuffled = shared.shuffled.get_mut(self.torrent);
            let Some(block) = self.walk.next(shuffled) else {
                self.is_dry = shared.job.once;
                return;
            };
            self.veil.say(&Message::Request(block), &mut self.out);
            self.asked.push_back((block, now));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn check(content: &Content, block: RawBlock, bytes: &[u8]) -> io::Result<()> {
    let offset = u64::from(block.piece) * u64::from(content.piece_length_bytes);
    let mut expected = vec![0; bytes.len()];
    content.read_at(&mut expected, offset + u64::from(block.begin))?;
    if expected != bytes {
        return Err(bad("a block is not what the data on disk says"));
    }
    Ok(())
}
