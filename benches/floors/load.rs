//! Synthetic peers: leechers that throw away what they fetch, seeders that serve one file, and a tracker that names
//! them. Plain threads and blocking sockets in a process of their own, so that the program under test is measured alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const BLOCK: u32 = 16_384;

/// What all synthetic peers of one run share.
pub struct World {
    pub info_hash: [u8; 20],
    pub total_bytes: u64,
    pub piece_bytes: u32,
    /// Payload moved, in bytes.
    pub payload: AtomicU64,
    pub stop: AtomicBool,
}

impl World {
    pub fn pieces(&self) -> u32 {
        self.total_bytes.div_ceil(u64::from(self.piece_bytes)) as u32
    }
}

fn handshake(world: &World, number: u8) -> [u8; 68] {
    let mut out = [0; 68];
    out[..20].copy_from_slice(b"\x13BitTorrent protocol");
    out[28..48].copy_from_slice(&world.info_hash);
    out[48..68].copy_from_slice(b"-FL0100-000000000000");
    out[67] = number;
    out
}

fn request(out: &mut Vec<u8>, id: u8, piece: u32, begin: u32, length: u32) {
    out.extend_from_slice(&13u32.to_be_bytes());
    out.push(id);
    for field in [piece, begin, length] {
        out.extend_from_slice(&field.to_be_bytes());
    }
}

/// Fetches blocks of the whole torrent from `addr`, `depth` requests ahead, from a place of its own on, round and
/// round, and forgets them.
pub fn leech(world: &World, addr: SocketAddr, number: u8, depth: u32) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&handshake(world, number))?;
    stream.write_all(&[0, 0, 0, 1, 2])?;
    stream.read_exact(&mut [0; 68])?;
    let blocks = world.total_bytes / u64::from(BLOCK);
    let per_piece = u64::from(world.piece_bytes / BLOCK);
    let mut next = blocks / 8 * u64::from(number % 8);
    let mut out = Vec::new();
    let mut buffer = vec![0; 512 * 1024];
    let (mut filled, mut skip) = (0usize, 0usize);
    let mut outstanding = 0;
    let mut is_unchoked = false;
    while !world.stop.load(Ordering::Relaxed) {
        if is_unchoked && outstanding <= depth / 2 {
            out.clear();
            while outstanding < depth {
                let (piece, block) = (next / per_piece, next % per_piece);
                request(&mut out, 6, piece as u32, block as u32 * BLOCK, BLOCK);
                next = (next + 1) % blocks;
                outstanding += 1;
            }
            stream.write_all(&out)?;
        }
        let got = stream.read(&mut buffer[filled..])?;
        if got == 0 {
            return Ok(());
        }
        let end = filled + got;
        let mut at = 0;
        loop {
            let taken = skip.min(end - at);
            at += taken;
            skip -= taken;
            if skip > 0 || end - at < 5 {
                break;
            }
            let length =
                u32::from_be_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]])
                    as usize;
            if length == 0 {
                at += 4;
                continue;
            }
            match buffer[at + 4] {
                1 => is_unchoked = true,
                0 => is_unchoked = false,
                7 => {
                    outstanding -= 1;
                    world
                        .payload
                        .fetch_add(length as u64 - 9, Ordering::Relaxed);
                }
                _ => {}
            }
            skip = 4 + length;
        }
        buffer.copy_within(at..end, 0);
        filled = end - at;
    }
    Ok(())
}

/// Serves `data` to everyone who connects, from the page cache, until the world stops.
pub fn seed(world: Arc<World>, listener: TcpListener, data: Arc<File>, number: u8) {
    for stream in listener.incoming() {
        if world.stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let (world, data) = (world.clone(), data.clone());
        std::thread::spawn(move || serve(&world, stream, &data, number));
    }
}

fn serve(world: &World, mut stream: TcpStream, data: &File, number: u8) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs)?;
    if !theirs.starts_with(b"\x13BitTorrent protocol") {
        // aria2 tries an encrypted handshake first, and a plain one when that is refused.
        return Ok(());
    }
    stream.write_all(&handshake(world, number))?;
    let pieces = world.pieces();
    let mut out = Vec::with_capacity(20 * (BLOCK as usize + 13));
    let mut bitfield = vec![0xffu8; pieces.div_ceil(8) as usize];
    if !pieces.is_multiple_of(8) {
        *bitfield.last_mut().unwrap() = !(0xffu8 >> (pieces % 8));
    }
    out.extend_from_slice(&(bitfield.len() as u32 + 1).to_be_bytes());
    out.push(5);
    out.extend_from_slice(&bitfield);
    out.extend_from_slice(&[0, 0, 0, 1, 1]);
    stream.write_all(&out)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut filled = 0;
    loop {
        let got = stream.read(&mut buffer[filled..])?;
        if got == 0 {
            return Ok(());
        }
        let end = filled + got;
        let mut at = 0;
        out.clear();
        while end - at >= 4 {
            let word = |at: usize| {
                u32::from_be_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]])
            };
            let length = word(at) as usize;
            if end - at < 4 + length {
                break;
            }
            if length == 13 && buffer[at + 4] == 6 {
                let (piece, begin, bytes) = (word(at + 5), word(at + 9), word(at + 13));
                out.extend_from_slice(&(9 + bytes).to_be_bytes());
                out.push(7);
                out.extend_from_slice(&piece.to_be_bytes());
                out.extend_from_slice(&begin.to_be_bytes());
                let from = out.len();
                out.resize(from + bytes as usize, 0);
                let offset = u64::from(piece) * u64::from(world.piece_bytes) + u64::from(begin);
                data.read_exact_at(&mut out[from..], offset)?;
                world.payload.fetch_add(u64::from(bytes), Ordering::Relaxed);
                if out.len() >= 16 * BLOCK as usize {
                    stream.write_all(&out)?;
                    out.clear();
                }
            }
            at += 4 + length;
        }
        stream.write_all(&out)?;
        buffer.copy_within(at..end, 0);
        filled = end - at;
    }
}

/// Answers every announce with the same peers.
pub fn track(listener: TcpListener, peers: &[SocketAddr]) {
    let mut compact = Vec::new();
    for peer in peers {
        if let SocketAddr::V4(peer) = peer {
            compact.extend_from_slice(&peer.ip().octets());
            compact.extend_from_slice(&peer.port().to_be_bytes());
        }
    }
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut request = [0; 4096];
        if stream.read(&mut request).is_err() {
            continue;
        }
        let mut body = format!("d8:intervali600e5:peers{}:", compact.len()).into_bytes();
        body.extend_from_slice(&compact);
        body.push(b'e');
        let head = format!(
            "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&body));
    }
}

/// A free loopback listener.
pub fn listen() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

/// Waits until something accepts connections at `addr`.
pub fn wait_for_port(addr: SocketAddr, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match TcpStream::connect(addr) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
