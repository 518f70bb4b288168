//! Synthetic peers on plain threads and blocking sockets: a seeder that lies, dawdles, falls silent and counts what it
//! sends, and a leecher that asks for what it likes. They share no code with the program under test.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::raw_peer::{
    BITFIELD, CANCEL, CHOKE, Frame, HASH_REJECT, HASH_REQUEST, HASHES, HAVE, HAVE_ALL, HAVE_NONE,
    Hello, INTERESTED, PIECE, REJECT, REQUEST, RawPeer, UNCHOKE, message, request,
};
use super::sample::{Sample, noise};
use sha2::{Digest, Sha256};

/// The length of every block but a piece's last.
pub const BLOCK: u32 = 16_384;

/// A torrent's bytes as one stream.
#[derive(Clone)]
pub struct Content {
    pub info_hash: [u8; 20],
    pub piece_length: u32,
    pub bytes: Arc<Vec<u8>>,
    /// The hashes over one file's blocks (BEP 52), the leaves first, each layer as long as the tree is wide there; empty
    /// before [`Content::with_tree`].
    pub tree: Arc<Vec<Vec<[u8; 32]>>>,
}

impl Content {
    /// The sample's files one after the other, in the order of the torrent.
    pub fn of(sample: &Sample) -> Content {
        let mut files = Vec::new();
        list(&sample.content, &mut files);
        files.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        let mut bytes = Vec::new();
        for file in files {
            bytes.extend(std::fs::read(file).unwrap());
        }
        Content {
            info_hash: sample.info_hash,
            piece_length: sample.piece_length,
            bytes: Arc::new(bytes),
            tree: Arc::default(),
        }
    }

    /// The same, of a torrent of one file, with the hashes that peers of BitTorrent v2 may ask for.
    pub fn with_tree(mut self) -> Content {
        let leaf = |block: &[u8]| Sha256::digest(block).into();
        let mut layer: Vec<[u8; 32]> = self.bytes.chunks(BLOCK as usize).map(leaf).collect();
        layer.resize(layer.len().next_power_of_two(), [0; 32]);
        let mut tree = vec![layer];
        while let Some(below) = tree.last().filter(|below| below.len() > 1) {
            let pairs = below.chunks(2);
            tree.push(
                pairs
                    .map(|pair| Sha256::digest(pair.concat()).into())
                    .collect(),
            );
        }
        self.tree = Arc::new(tree);
        self
    }

    /// The answer to the fields of a `hash request`, if it is to be had.
    fn hashes(&self, body: &[u8]) -> Option<Vec<u8>> {
        let number = |at: usize| {
            let four = body.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(four) as usize)
        };
        let [base, index, length, proofs] = [number(32)?, number(36)?, number(40)?, number(44)?];
        let layer = self.tree.get(base)?;
        let mut hashes = layer.get(index..index + length)?.concat();
        let (mut at, implied) = (index, length.checked_ilog2()? as usize);
        for height in base..base + proofs {
            at /= 2;
            if height + 1 >= base + implied {
                hashes.extend(self.tree.get(height + 1)?.get(at ^ 1)?);
            }
        }
        Some(hashes)
    }

    pub fn piece_count(&self) -> u32 {
        (self.bytes.len() as u64).div_ceil(u64::from(self.piece_length)) as u32
    }

    /// Where the piece lies in the stream.
    pub fn piece_range(&self, piece: u32) -> std::ops::Range<usize> {
        let start = piece as usize * self.piece_length as usize;
        start..(start + self.piece_length as usize).min(self.bytes.len())
    }

    /// The bytes of a request; `None` when it lies outside.
    pub fn block(&self, piece: u32, begin: u32, length: u32) -> Option<&[u8]> {
        let start = piece as usize * self.piece_length as usize + begin as usize;
        self.bytes.get(start..start + length as usize)
    }
}

fn list(path: &Path, into: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            list(&entry.unwrap().path(), into);
        }
    } else {
        into.push(path.to_owned());
    }
}

/// Which blocks are sent with a wrong byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    Never,
    Always,
    /// About one block in so many, chosen by its place.
    OneIn(u32),
}

/// How hashes are answered that are asked of a seeder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashes {
    True,
    /// The first of them is another one.
    Wrong,
    Rejected,
    Unanswered,
}

/// What a seeder does.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Its own address on the loopback interface.
    pub ip: Ipv4Addr,
    pub corrupt: Corrupt,
    /// Payload a second over all its connections; `None` is as fast as sockets are.
    pub bytes_per_s: Option<u64>,
    /// It unchokes, takes requests and never answers one.
    pub is_silent: bool,
    pub hashes: Hashes,
}

impl Behaviour {
    /// Honest and fast.
    pub fn honest(last_byte: u8) -> Behaviour {
        Behaviour {
            ip: Ipv4Addr::new(127, 0, 0, last_byte),
            corrupt: Corrupt::Never,
            bytes_per_s: None,
            is_silent: false,
            hashes: Hashes::True,
        }
    }
}

/// What a seeder has done so far.
#[derive(Default)]
pub struct Counts {
    /// Payload handed to sockets; what a killed receiver left unread in its buffers counts too.
    pub payload_bytes: AtomicU64,
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    pub corrupt_blocks: AtomicU64,
    pub hash_requests: AtomicU64,
    /// Pieces with at least one block sent corrupt.
    pub corrupt_pieces: Mutex<BTreeSet<u32>>,
    /// Payload by piece.
    pub by_piece: Mutex<BTreeMap<u32, u64>>,
}

/// A peer that has everything. Stops when dropped.
pub struct FakeSeeder {
    pub addr: SocketAddr,
    inner: Arc<Seeder>,
}

struct Seeder {
    content: Content,
    behaviour: Behaviour,
    counts: Counts,
    /// When the next paced block may go out.
    next_send: Mutex<Instant>,
    is_stopped: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl FakeSeeder {
    pub fn start(content: &Content, behaviour: Behaviour) -> FakeSeeder {
        let listener = TcpListener::bind((behaviour.ip, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Seeder {
            content: content.clone(),
            behaviour,
            counts: Counts::default(),
            next_send: Mutex::new(Instant::now()),
            is_stopped: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let seeder = inner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seeder.is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let seeder = seeder.clone();
                std::thread::spawn(move || seeder.serve(stream));
            }
        });
        FakeSeeder { addr, inner }
    }

    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    /// Payload of that piece.
    pub fn served_of(&self, piece: u32) -> u64 {
        let by_piece = self.inner.counts.by_piece.lock().unwrap();
        by_piece.get(&piece).copied().unwrap_or(0)
    }

    /// Payload handed to sockets so far.
    pub fn sent_bytes(&self) -> u64 {
        self.inner.counts.payload_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for FakeSeeder {
    fn drop(&mut self) {
        self.inner.is_stopped.store(true, Ordering::SeqCst);
        for stream in self.inner.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.addr);
    }
}

/// Requests of one connection that wait for their answer.
#[derive(Default)]
struct Queue {
    requests: VecDeque<(u32, u32, u32)>,
    /// Messages that go before the next block.
    messages: Vec<u8>,
    is_closed: bool,
}

impl Seeder {
    fn serve(self: Arc<Self>, stream: TcpStream) {
        let Ok(clone) = stream.try_clone() else {
            return;
        };
        self.open.lock().unwrap().push(clone);
        // An error is the other side's end; there is nobody to tell.
        let _ = self.talk(stream);
    }

    fn talk(self: &Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut theirs = [0; 68];
        stream.read_exact(&mut theirs)?;
        if !theirs.starts_with(b"\x13BitTorrent protocol") {
            // It knows no encryption.
            return stream.shutdown(Shutdown::Both);
        }
        self.counts.connections.fetch_add(1, Ordering::SeqCst);
        stream.write_all(&Hello::plain(self.content.info_hash).encode())?;
        stream.write_all(&message(
            BITFIELD,
            &full_bitfield(self.content.piece_count()),
        ))?;
        let shared = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let writer = {
            let (seeder, shared, stream) = (self.clone(), shared.clone(), stream.try_clone()?);
            std::thread::spawn(move || seeder.answer(&shared, stream))
        };
        let ended = self.listen(&shared, &mut stream);
        shared.0.lock().unwrap().is_closed = true;
        shared.1.notify_all();
        let _ = stream.shutdown(Shutdown::Both);
        let _ = writer.join();
        ended
    }

    fn listen(&self, shared: &(Mutex<Queue>, Condvar), stream: &mut TcpStream) -> io::Result<()> {
        loop {
            let (id, body) = read_message(stream)?;
            match id {
                INTERESTED => stream.write_all(&message(UNCHOKE, &[]))?,
                REQUEST => {
                    self.counts.requests.fetch_add(1, Ordering::SeqCst);
                    shared.0.lock().unwrap().requests.push_back(triple(&body)?);
                    shared.1.notify_all();
                }
                CANCEL => {
                    let cancelled = triple(&body)?;
                    let mut queue = shared.0.lock().unwrap();
                    queue.requests.retain(|request| *request != cancelled);
                }
                HASH_REQUEST => {
                    self.counts.hash_requests.fetch_add(1, Ordering::SeqCst);
                    let answer = self.answer_hashes(&body);
                    shared.0.lock().unwrap().messages.extend(answer);
                    shared.1.notify_all();
                }
                _ => {}
            }
        }
    }

    fn answer_hashes(&self, body: &[u8]) -> Vec<u8> {
        let hashes = match self.behaviour.hashes {
            Hashes::Unanswered => return Vec::new(),
            Hashes::Rejected => None,
            Hashes::True | Hashes::Wrong => self.content.hashes(body),
        };
        let Some(mut hashes) = hashes else {
            return message(HASH_REJECT, body);
        };
        if self.behaviour.hashes == Hashes::Wrong {
            hashes[0] ^= 1;
        }
        message(HASHES, &[body, &hashes].concat())
    }

    fn answer(&self, shared: &(Mutex<Queue>, Condvar), mut stream: TcpStream) {
        while let Some((messages, request)) = next_answer(shared) {
            if stream.write_all(&messages).is_err() {
                return;
            }
            let Some((piece, begin, length)) = request else {
                continue;
            };
            if self.behaviour.is_silent {
                continue;
            }
            self.pace(length);
            let Some(block) = self.content.block(piece, begin, length) else {
                return;
            };
            let mut body = Vec::with_capacity(8 + block.len());
            body.extend_from_slice(&piece.to_be_bytes());
            body.extend_from_slice(&begin.to_be_bytes());
            body.extend_from_slice(block);
            if self.is_corrupt(piece, begin) {
                body[8 + block.len() / 2] ^= 0x40;
                self.counts.corrupt_blocks.fetch_add(1, Ordering::SeqCst);
                self.counts.corrupt_pieces.lock().unwrap().insert(piece);
            }
            let payload = &self.counts.payload_bytes;
            payload.fetch_add(u64::from(length), Ordering::SeqCst);
            let mut by_piece = self.counts.by_piece.lock().unwrap();
            *by_piece.entry(piece).or_default() += u64::from(length);
            drop(by_piece);
            if stream.write_all(&message(PIECE, &body)).is_err() {
                return;
            }
        }
    }

    fn is_corrupt(&self, piece: u32, begin: u32) -> bool {
        match self.behaviour.corrupt {
            Corrupt::Never => false,
            Corrupt::Always => true,
            Corrupt::OneIn(n) => {
                let place = u64::from(piece) << 32 | u64::from(begin);
                u32::from(noise(8, place + 1)[3]).is_multiple_of(n)
            }
        }
    }

    fn pace(&self, length: u32) {
        let Some(rate) = self.behaviour.bytes_per_s else {
            return;
        };
        let turn = {
            let mut next = self.next_send.lock().unwrap();
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs_f64(f64::from(length) / rate as f64);
            turn
        };
        std::thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}

/// Messages to send, and a block to send behind them; at least one of both.
type Next = (Vec<u8>, Option<(u32, u32, u32)>);

fn next_answer(shared: &(Mutex<Queue>, Condvar)) -> Option<Next> {
    let mut queue = shared.0.lock().unwrap();
    loop {
        if queue.is_closed {
            return None;
        }
        let messages = std::mem::take(&mut queue.messages);
        let request = queue.requests.pop_front();
        if request.is_some() || !messages.is_empty() {
            return Some((messages, request));
        }
        queue = shared.1.wait(queue).unwrap();
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Block(Vec<u8>),
    Rejected,
    /// Nothing in time.
    Nothing,
    /// The connection ended.
    Closed,
}

/// A peer that has nothing, asks for what it likes and remembers what it was offered.
pub struct FakeLeecher {
    peer: RawPeer,
    offered: BTreeSet<u32>,
    piece_count: u32,
    is_choked: bool,
}

impl FakeLeecher {
    /// Connects, shakes hands and says that it is interested. `None` when nobody takes the connection.
    pub fn connect(addr: SocketAddr, content: &Content) -> Option<FakeLeecher> {
        let hello = Hello::new(content.info_hash);
        let mut peer = RawPeer::dial_at([127, 0, 0, 1], addr, &hello).ok()?;
        peer.send(&message(HAVE_NONE, &[]));
        peer.send(&message(INTERESTED, &[]));
        Some(FakeLeecher {
            peer,
            offered: BTreeSet::new(),
            piece_count: content.piece_count(),
            is_choked: true,
        })
    }

    /// The pieces it was told of so far.
    pub fn offered(&self) -> &BTreeSet<u32> {
        &self.offered
    }

    /// Listens for so long; false once the connection has ended.
    pub fn listen(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            match self.next(until) {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Waits to be unchoked.
    pub fn unchoked(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.is_choked {
            if !matches!(self.next(until), Ok(Some(_))) {
                return false;
            }
        }
        true
    }

    /// Asks for a block and waits for what comes of it; other blocks that come meanwhile are dropped.
    pub fn fetch(&mut self, piece: u32, begin: u32, length: u32, limit: Duration) -> Answer {
        self.peer.send(&request(piece, begin, length));
        let until = Instant::now() + limit;
        loop {
            match self.next(until) {
                Ok(Some(frame)) if frame.id == PIECE && frame.block().0 == piece => {
                    let (_, at, payload) = frame.block();
                    if at == begin {
                        return Answer::Block(payload.to_vec());
                    }
                }
                Ok(Some(frame))
                    if frame.id == REJECT && frame.numbers() == [piece, begin, length] =>
                {
                    return Answer::Rejected;
                }
                Ok(Some(_)) => {}
                Ok(None) => return Answer::Closed,
                Err(_) => return Answer::Nothing,
            }
        }
    }

    fn next(&mut self, until: Instant) -> Result<Option<Frame>, ErrorKind> {
        let left = until.saturating_duration_since(Instant::now());
        let frame = self.peer.next_within(left)?;
        match &frame {
            Some(frame) => self.note(frame.id, &frame.body),
            None => self.is_choked = true,
        }
        Ok(frame)
    }

    fn note(&mut self, id: u8, body: &[u8]) {
        match id {
            CHOKE => self.is_choked = true,
            UNCHOKE => self.is_choked = false,
            HAVE_ALL => self.offered = (0..self.piece_count).collect(),
            BITFIELD => {
                let has = |piece: &u32| {
                    body.get(*piece as usize / 8)
                        .is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
                };
                self.offered = (0..self.piece_count).filter(has).collect();
            }
            HAVE => {
                let piece = body
                    .first_chunk::<4>()
                    .map(|four| u32::from_be_bytes(*four));
                self.offered.extend(piece);
            }
            _ => {}
        }
    }
}

/// The next message that is no keep-alive.
fn read_message(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    loop {
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix)?;
        let length = u32::from_be_bytes(prefix) as usize;
        if length > 1 << 20 {
            return Err(io::Error::other("too long"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        if !body.is_empty() {
            let id = body.remove(0);
            return Ok((id, body));
        }
    }
}

fn triple(body: &[u8]) -> io::Result<(u32, u32, u32)> {
    let at = |from: usize| {
        body.get(from..from + 4)
            .and_then(|four| four.try_into().ok())
            .map(u32::from_be_bytes)
            .ok_or_else(|| io::Error::other("too short"))
    };
    Ok((at(0)?, at(4)?, at(8)?))
}

fn full_bitfield(pieces: u32) -> Vec<u8> {
    let mut bits = vec![0xff; pieces.div_ceil(8) as usize];
    if let Some(last) = bits.last_mut()
        && !pieces.is_multiple_of(8)
    {
        *last <<= 8 - pieces % 8;
    }
    bits
}
