//! A peer by hand: one TCP connection with bytes of the test's choosing, read without the program's own decoder.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use gyre::base::InfoHash;
use gyre::wire::mse::{Ciphers, Initiator, Payloads, RANDOM_BYTES, Random};

use super::program::PATIENCE;

/// Reserved bytes of a peer that speaks BEP 6 and BEP 10.
pub const FULL: [u8; 8] = [0, 0, 0, 0, 0, 0x10, 0, 0x04];
/// Reserved bytes of a peer that speaks BEP 3 alone.
pub const PLAIN: [u8; 8] = [0; 8];

pub const CHOKE: u8 = 0;
pub const UNCHOKE: u8 = 1;
pub const INTERESTED: u8 = 2;
pub const NOT_INTERESTED: u8 = 3;
pub const HAVE: u8 = 4;
pub const BITFIELD: u8 = 5;
pub const REQUEST: u8 = 6;
pub const PIECE: u8 = 7;
pub const CANCEL: u8 = 8;
pub const PORT: u8 = 9;
pub const SUGGEST: u8 = 13;
pub const HAVE_ALL: u8 = 14;
pub const HAVE_NONE: u8 = 15;
pub const REJECT: u8 = 16;
pub const ALLOWED_FAST: u8 = 17;
pub const EXTENDED: u8 = 20;
pub const HASH_REQUEST: u8 = 21;
pub const HASHES: u8 = 22;
pub const HASH_REJECT: u8 = 23;

/// What a peer says first.
#[derive(Clone, Copy, Debug)]
pub struct Hello {
    pub reserved: [u8; 8],
    pub info_hash: [u8; 20],
    pub peer_id: [u8; 20],
}

impl Hello {
    /// All extensions and a peer id nobody else has.
    pub fn new(info_hash: [u8; 20]) -> Hello {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut peer_id = *b"-XX0001-000000000000";
        peer_id[8..].copy_from_slice(format!("{number:012}").as_bytes());
        Hello {
            reserved: FULL,
            info_hash,
            peer_id,
        }
    }

    /// The same without extensions.
    pub fn plain(info_hash: [u8; 20]) -> Hello {
        Hello {
            reserved: PLAIN,
            ..Hello::new(info_hash)
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let parts: [&[u8]; 4] = [
            b"\x13BitTorrent protocol",
            &self.reserved,
            &self.info_hash,
            &self.peer_id,
        ];
        parts.concat()
    }
}

/// One message as it came; keep-alives are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub id: u8,
    pub body: Vec<u8>,
}

impl Frame {
    /// The numbers of a `request`, `reject`, `have` …
    pub fn numbers(&self) -> Vec<u32> {
        let numbers = self.body.chunks_exact(4);
        numbers
            .map(|four| u32::from_be_bytes(four.try_into().unwrap()))
            .collect()
    }

    /// Piece, begin and payload of a `piece`.
    pub fn block(&self) -> (u32, u32, &[u8]) {
        assert_eq!(self.id, PIECE);
        let numbers = self.numbers();
        (numbers[0], numbers[1], &self.body[8..])
    }
}

/// A whole message.
pub fn message(id: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).unwrap();
    [&length.to_be_bytes()[..], &[id], body].concat()
}

/// A message of numbers.
pub fn numbers(id: u8, numbers: &[u32]) -> Vec<u8> {
    let body: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    message(id, &body)
}

pub fn request(piece: u32, begin: u32, length: u32) -> Vec<u8> {
    numbers(REQUEST, &[piece, begin, length])
}

pub fn piece(piece: u32, begin: u32, payload: &[u8]) -> Vec<u8> {
    let head = [piece.to_be_bytes(), begin.to_be_bytes()].concat();
    message(PIECE, &[&head, payload].concat())
}

/// What a reader that takes next to nothing is made of; both have to be set before the connection is.
#[derive(Clone, Copy, Debug)]
pub struct Narrow {
    pub receive_bytes: usize,
    pub segment_bytes: u32,
}

/// A socket from `from`, connected.
pub fn dial_from(
    from: IpAddr,
    to: SocketAddr,
    narrow: Option<Narrow>,
) -> std::io::Result<TcpStream> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Some(narrow) = narrow {
        setsockopt(&fd, sockopt::RcvBuf, &narrow.receive_bytes)?;
        setsockopt(&fd, sockopt::TcpMaxSeg, &narrow.segment_bytes)?;
    }
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(fd);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection whose handshake is done.
pub struct RawPeer {
    pub stream: TcpStream,
    /// The other side's handshake.
    pub theirs: Vec<u8>,
    buffer: Vec<u8>,
    /// With an encrypted connection.
    ciphers: Option<Ciphers>,
}

impl RawPeer {
    /// Dials and shakes hands with all extensions.
    pub fn dial(to: SocketAddr, info_hash: [u8; 20]) -> RawPeer {
        RawPeer::dial_as(to, &Hello::new(info_hash))
    }

    /// Dials and shakes hands.
    pub fn dial_as(to: SocketAddr, hello: &Hello) -> RawPeer {
        let from = Ipv4Addr::LOCALHOST.into();
        RawPeer::greet(dial_from(from, to, None).unwrap(), hello).unwrap()
    }

    /// Dials from an address of its own.
    pub fn dial_at(from: [u8; 4], to: SocketAddr, hello: &Hello) -> std::io::Result<RawPeer> {
        RawPeer::greet(dial_from(from.into(), to, None)?, hello)
    }

    /// Waits to be dialed, then shakes hands.
    pub fn accept(listener: &TcpListener, hello: &Hello) -> RawPeer {
        RawPeer::greet(accept_peer(listener), hello).unwrap()
    }

    /// Shakes hands on a connection.
    pub fn greet(mut stream: TcpStream, hello: &Hello) -> std::io::Result<RawPeer> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(&hello.encode())?;
        let mut theirs = vec![0; 68];
        stream.read_exact(&mut theirs)?;
        Ok(RawPeer {
            stream,
            theirs,
            buffer: Vec::new(),
            ciphers: None,
        })
    }

    /// Shakes hands with Message Stream Encryption; `payloads` are offered.
    pub fn hide(
        mut stream: TcpStream,
        hello: &Hello,
        payloads: Payloads,
    ) -> std::io::Result<RawPeer> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let random = Random::new(hello.encode()[68 - RANDOM_BYTES..].try_into().unwrap());
        let info_hash = InfoHash::new(hello.info_hash);
        let mut initiator = Initiator::new(info_hash, payloads, &hello.encode(), random);
        loop {
            stream.write_all(&initiator.take_out())?;
            let mut part = [0; 4096];
            let got = stream.read(&mut part)?;
            if got == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let is_done = initiator.feed(&part[..got]);
            if is_done.map_err(std::io::Error::other)? {
                break;
            }
        }
        let agreed = initiator.finish().unwrap();
        let mut peer = RawPeer {
            stream,
            theirs: Vec::new(),
            buffer: agreed.early,
            ciphers: agreed.ciphers,
        };
        while peer.buffer.len() < 68 {
            peer.read_more()?;
        }
        peer.theirs = peer.buffer.drain(..68).collect();
        Ok(peer)
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.ciphers.is_some()
    }

    /// Takes what comes next; false at the end.
    fn read_more(&mut self) -> std::io::Result<bool> {
        let mut part = [0; 65_536];
        let got = self.stream.read(&mut part)?;
        let part = &mut part[..got];
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.inbound.apply(part);
        }
        self.buffer.extend_from_slice(part);
        Ok(got > 0)
    }

    /// A connection on which the handshake of this side is sent by the caller.
    pub fn greeted(stream: TcpStream) -> RawPeer {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        RawPeer {
            stream,
            theirs: Vec::new(),
            buffer: Vec::new(),
            ciphers: None,
        }
    }

    /// Reads the other side's handshake; `None` when the connection ends before.
    pub fn read_hello(&mut self) -> Option<()> {
        let mut theirs = vec![0; 68];
        match self.stream.read_exact(&mut theirs) {
            Ok(()) => self.theirs = theirs,
            Err(error) if is_end(error.kind()) || error.kind() == ErrorKind::UnexpectedEof => {
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        Some(())
    }

    /// Sends bytes; the other side may have closed, which the next read will tell.
    pub fn send(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.outbound.apply(&mut bytes);
        }
        let _ = self.stream.write_all(&bytes);
    }

    /// The next message; `None` when the connection has ended.
    pub fn next(&mut self) -> Option<Frame> {
        self.next_within(PATIENCE)
            .unwrap_or_else(|_| panic!("neither a message nor the end in time"))
    }

    /// The next message, or `Err` when there is none in time.
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Frame>, ErrorKind> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(frame) = self.take_frame() {
                return Ok(Some(frame));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut);
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            match self.read_more() {
                Ok(false) => return Ok(None),
                Ok(true) => {}
                Err(error) if is_end(error.kind()) => return Ok(None),
                // A read with a time limit is not resumed by itself when the test was stopped and continued.
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        loop {
            let length = u32::from_be_bytes(self.buffer.get(..4)?.try_into().unwrap()) as usize;
            let whole = self.buffer.get(4..4 + length)?.to_vec();
            self.buffer.drain(..4 + length);
            if let [id, body @ ..] = &whole[..] {
                let (id, body) = (*id, body.to_vec());
                return Some(Frame { id, body });
            }
        }
    }

    /// The next message with that id; others are passed over.
    pub fn wait_for(&mut self, id: u8) -> Frame {
        loop {
            let frame = self
                .next()
                .unwrap_or_else(|| panic!("closed before message {id}"));
            if frame.id == id {
                return frame;
            }
        }
    }

    /// Becomes interested and waits to be unchoked.
    pub fn get_unchoked(&mut self) {
        self.send(&message(INTERESTED, &[]));
        self.wait_for(UNCHOKE);
    }

    /// Asks for a block and gives its bytes: proof that the connection is alive and served.
    pub fn fetch(&mut self, piece: u32, begin: u32, length: u32) -> Vec<u8> {
        self.send(&request(piece, begin, length));
        loop {
            let frame = self.wait_for(PIECE);
            let (got_piece, got_begin, payload) = frame.block();
            if (got_piece, got_begin, payload.len()) == (piece, begin, length as usize) {
                return payload.to_vec();
            }
        }
    }

    /// Reads to the end of the connection; how long that took, or `None` when it stays open for `limit`.
    pub fn closed_within(&mut self, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        loop {
            match self.next_within(limit.saturating_sub(start.elapsed())) {
                Ok(Some(_)) => {}
                Ok(None) => return Some(start.elapsed()),
                Err(_) => return None,
            }
        }
    }

    /// The connection must end soon.
    #[track_caller]
    pub fn expect_close(&mut self, why: &str) {
        assert!(self.closed_within(PATIENCE).is_some(), "still open: {why}");
    }
}

/// A listener on a free port of 127.0.0.1.
pub fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// The next connection.
pub fn accept(listener: &TcpListener) -> TcpStream {
    accept_within(listener, PATIENCE).expect("nobody dialed in time")
}

/// The next connection of a peer that begins in the open. One with a hidden handshake is closed, as by a peer that knows none.
pub fn accept_peer(listener: &TcpListener) -> TcpStream {
    loop {
        let stream = accept(listener);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut first = [0];
        if stream.peek(&mut first).unwrap() == 1 && first == [0x13] {
            return stream;
        }
    }
}

/// The next connection, if one comes in time.
pub fn accept_within(listener: &TcpListener, limit: Duration) -> Option<TcpStream> {
    // A receive timeout bounds accept(2) too; zero would be none.
    let millis = i64::try_from(limit.as_millis()).unwrap().max(1);
    setsockopt(
        listener,
        sockopt::ReceiveTimeout,
        &TimeVal::milliseconds(millis),
    )
    .unwrap();
    match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// Whether an error is how the end of a connection looks.
pub fn is_end(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}
