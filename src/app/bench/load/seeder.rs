//! Synthetic seeders: serve torrents from memory as fast as the socket takes them. Layer 7.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Command, Commands, Content, Counters, Said, SeedJob, say};
use crate::base::{InfoHash, PeerId};
use crate::wire::handshake::{HANDSHAKE_BYTES, Handshake, Reserved};
use crate::wire::message::{Message, PIECE_HEADER_BYTES, RawBlock, encode, id, piece_header};

const EVENTS_MAX: usize = 256;
/// Blocks of one send: 256 KiB.
const BLOCKS_PER_SEND: usize = 16;
/// Read at once: some thousand requests.
const READ_BYTES: usize = 64 * 1024;
/// Requests kept of one peer: more than any program has in flight.
const QUEUE_MAX: usize = 100_000;
/// Sends in one turn, so that no connection starves the others.
const SENDS_PER_TURN: usize = 16;
/// What waits in a socket stays in the CPU's cache: the kernel would let it grow to megabytes a connection.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
const STDIN: u64 = u64::MAX;
/// Marks of connections are above those of listeners.
const CONNECTIONS_FROM: u64 = 1 << 32;

struct Torrent {
    info_hash: [u8; 20],
    piece_length_bytes: u64,
    data: Vec<u8>,
    /// Bitfield and unchoke, as sent after the handshake.
    greeting: Vec<u8>,
}

impl Torrent {
    fn load(content: &Content) -> io::Result<Torrent> {
        let total = usize::try_from(content.total_bytes).map_err(io::Error::other)?;
        let mut data = vec![0; total];
        content.read_at(&mut data, 0)?;
        let pieces = content.geometry()?.piece_count();
        let mut bits = vec![0xff; pieces.div_ceil(8) as usize];
        if let (Some(last), 1..) = (bits.last_mut(), pieces % 8) {
            *last = !(0xff >> (pieces % 8));
        }
        let mut greeting = Vec::new();
        encode(&Message::Bitfield { bytes: &bits }, &mut greeting);
        encode(&Message::Unchoke, &mut greeting);
        Ok(Torrent {
            info_hash: content.info_hash,
            piece_length_bytes: content.piece_length_bytes.into(),
            data,
            greeting,
        })
    }

    fn bytes(&self, block: RawBlock) -> Option<&[u8]> {
        let start = u64::from(block.piece)
            .checked_mul(self.piece_length_bytes)?
            .checked_add(block.begin.into())?;
        let start = usize::try_from(start).ok()?;
        self.data
            .get(start..start.checked_add(block.length as usize)?)
    }
}

struct Peer {
    stream: TcpStream,
    number: u32,
    torrent: Option<usize>,
    input: Vec<u8>,
    /// Handshake and greeting that the socket did not take yet.
    out: Vec<u8>,
    queue: VecDeque<RawBlock>,
    /// Bytes of the front block's message that are sent.
    sent: usize,
    is_writing: bool,
}

struct Load {
    torrents: Vec<Torrent>,
    listeners: Vec<TcpListener>,
    peers: Vec<Option<Peer>>,
    epoll: Epoll,
    counters: Counters,
    commands: Commands,
    lost: u32,
    buffer: Vec<u8>,
}

/// Runs until stdin closes.
pub fn run(job: &SeedJob) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, STDIN))?;
    let torrents = job.torrents.iter().map(Torrent::load);
    let mut load = Load {
        torrents: torrents.collect::<io::Result<_>>()?,
        listeners: Vec::new(),
        peers: Vec::new(),
        epoll,
        counters: Counters::new(),
        commands: Commands::default(),
        lost: 0,
        buffer: vec![0; READ_BYTES],
    };
    load.listen(job)?;
    let mut events = vec![EpollEvent::empty(); EVENTS_MAX];
    loop {
        let count = match load.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().take(count) {
            match event.data() {
                STDIN => load.obey()?,
                mark if mark >= CONNECTIONS_FROM => load.turn((mark - CONNECTIONS_FROM) as usize),
                mark => load.accept(mark as usize),
            }
        }
    }
}

impl Load {
    fn listen(&mut self, job: &SeedJob) -> io::Result<()> {
        let mut listening = Vec::new();
        for (at, addr) in job.listen.iter().enumerate() {
            let listener = TcpListener::bind(addr)?;
            listener.set_nonblocking(true)?;
            listening.push(listener.local_addr()?);
            let interest = EpollEvent::new(EpollFlags::EPOLLIN, at as u64);
            self.epoll.add(&listener, interest)?;
            self.listeners.push(listener);
        }
        // Reading the data was not load.
        self.counters.restart();
        let served = listening.len() as u32;
        say(&Said::Ready {
            served,
            connected: 0,
            listening,
            checked_blocks: 0,
        });
        Ok(())
    }

    fn accept(&mut self, listener: usize) {
        while let Some(Ok((stream, _))) = self.listeners.get(listener).map(TcpListener::accept) {
            let at = self.peers.len();
            let interest = EpollEvent::new(EpollFlags::EPOLLIN, CONNECTIONS_FROM + at as u64);
            let is_set_up = stream
                .set_nonblocking(true)
                .and_then(|()| stream.set_nodelay(true))
                .and_then(|()| Ok(setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER_BYTES)?))
                .and_then(|()| Ok(self.epoll.add(&stream, interest)?));
            if is_set_up.is_ok() {
                self.peers.push(Some(Peer::new(stream, listener as u32)));
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let Some(Some(peer)) = self.peers.get_mut(at) else {
            return;
        };
        let was_writing = peer.is_writing;
        let result = peer
            .read(&self.torrents, &mut self.buffer)
            .and_then(|()| peer.write(&self.torrents, &mut self.counters));
        match result {
            Ok(()) if peer.is_writing != was_writing => {
                let mut flags = EpollFlags::EPOLLIN;
                flags.set(EpollFlags::EPOLLOUT, peer.is_writing);
                let mark = CONNECTIONS_FROM + at as u64;
                let _ = self
                    .epoll
                    .modify(&peer.stream, &mut EpollEvent::new(flags, mark));
            }
            Ok(()) => {}
            Err(_) => {
                self.lost += 1;
                if let Some(place) = self.peers.get_mut(at) {
                    *place = None;
                }
            }
        }
    }

    fn obey(&mut self) -> io::Result<()> {
        for command in self.commands.take()? {
            match command {
                Command::Measure => {
                    self.counters.restart();
                    self.lost = 0;
                }
                Command::Report => {
                    let connected = self.peers.iter().flatten().count() as u32;
                    say(&Said::Report(self.counters.finish(connected, self.lost)));
                }
            }
        }
        Ok(())
    }
}

impl Peer {
    fn new(stream: TcpStream, number: u32) -> Peer {
        Peer {
            stream,
            number,
            torrent: None,
            input: Vec::new(),
            out: Vec::new(),
            queue: VecDeque::new(),
            sent: 0,
            is_writing: false,
        }
    }

    fn read(&mut self, torrents: &[Torrent], buffer: &mut [u8]) -> io::Result<()> {
        match self.stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(got) => self
                .input
                .extend_from_slice(buffer.get(..got).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        if self.torrent.is_none() {
            let Some(bytes) = rest.get(..HANDSHAKE_BYTES) else {
                self.input = input;
                return Ok(());
            };
            self.greet(bytes, torrents)?;
            rest = rest.get(HANDSHAKE_BYTES..).unwrap_or_default();
        }
        while let Some((length, body)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(message) = body.get(..length) else {
                break;
            };
            self.message(message)?;
            rest = body.get(length..).unwrap_or_default();
        }
        let consumed = input.len() - rest.len();
        input.drain(..consumed);
        self.input = input;
        Ok(())
    }

    fn greet(&mut self, bytes: &[u8], torrents: &[Torrent]) -> io::Result<()> {
        let hash = bytes.get(28..48).unwrap_or_default();
        let found = torrents
            .iter()
            .position(|torrent| torrent.info_hash == hash);
        let torrent = found.ok_or(io::ErrorKind::InvalidData)?;
        self.torrent = Some(torrent);
        let mut peer_id = *b"-LD0200-000000000000";
        let number = self.number.to_be_bytes();
        for (place, byte) in peer_id.iter_mut().skip(16).zip(number) {
            *place = byte;
        }
        let handshake = Handshake {
            reserved: Reserved::NONE,
            info_hash: InfoHash::new(torrents.get(torrent).map_or([0; 20], |t| t.info_hash)),
            peer_id: PeerId::new(peer_id),
        };
        self.out.extend_from_slice(&handshake.encode());
        if let Some(torrent) = torrents.get(torrent) {
            self.out.extend_from_slice(&torrent.greeting);
        }
        Ok(())
    }

    fn message(&mut self, message: &[u8]) -> io::Result<()> {
        let word = |at: usize| match message.get(at..at + 4) {
            Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
            _ => 0,
        };
        let block = RawBlock {
            piece: word(1),
            begin: word(5),
            length: word(9),
        };
        match message.first() {
            Some(&id::REQUEST) if message.len() == 13 => {
                if self.queue.len() >= QUEUE_MAX {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                self.queue.push_back(block);
            }
            Some(&id::CANCEL) if message.len() == 13 => {
                // The front block may be half sent.
                let from = usize::from(self.sent > 0);
                let found = self
                    .queue
                    .iter()
                    .skip(from)
                    .position(|queued| *queued == block);
                if let Some(at) = found {
                    self.queue.remove(at + from);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends until the socket is full or nothing is left.
    fn write(&mut self, torrents: &[Torrent], counters: &mut Counters) -> io::Result<()> {
        self.is_writing = false;
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(error) => return self.full(error),
            }
        }
        let Some(torrent) = self.torrent.and_then(|at| torrents.get(at)) else {
            return Ok(());
        };
        for _ in 0..SENDS_PER_TURN {
            if self.queue.is_empty() {
                return Ok(());
            }
            match self.send_run(torrent) {
                Ok(sent) => self.sent(sent, counters),
                Err(error) => return self.full(error),
            }
        }
        self.is_writing = true;
        Ok(())
    }

    fn full(&mut self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                self.is_writing = true;
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Headers and blocks from the front of the queue in one call.
    fn send_run(&mut self, torrent: &Torrent) -> io::Result<usize> {
        let blocks = self.queue.iter().take(BLOCKS_PER_SEND);
        let headers: Vec<[u8; PIECE_HEADER_BYTES]> = blocks
            .clone()
            .map(|block| piece_header(block.piece, block.begin, block.length))
            .collect();
        let mut slices = Vec::with_capacity(2 * BLOCKS_PER_SEND);
        for (header, block) in headers.iter().zip(blocks) {
            let payload = torrent.bytes(*block).ok_or(io::ErrorKind::InvalidData)?;
            slices.push(IoSlice::new(header));
            slices.push(IoSlice::new(payload));
        }
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, self.sent);
        self.stream.write_vectored(slices)
    }

    fn sent(&mut self, bytes: usize, counters: &mut Counters) {
        let now = Instant::now();
        self.sent += bytes;
        while let Some(block) = self.queue.front() {
            let whole = PIECE_HEADER_BYTES + block.length as usize;
            if self.sent < whole {
                return;
            }
            self.sent -= whole;
            counters.payload(u64::from(block.length), now);
            self.queue.pop_front();
        }
    }
}
