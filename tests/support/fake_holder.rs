//! Peers that have the metadata of a torrent, or say so: honest ones, liars, rejecters, and ones that only know others
//! (BEP 9, BEP 11). They share no code with the program under test.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::raw_peer::{EXTENDED, HAVE_ALL, Hello, message};

/// What is sent for metadata.
#[derive(Clone, Debug)]
pub enum Holds {
    /// These bytes.
    Metadata(Vec<u8>),
    /// Whatever is asked for is rejected; this is the size it claims.
    Rejects(u64),
    /// Nothing is ever answered.
    Silence(u64),
    /// The extension handshake has this for `metadata_size`, and nothing is ever answered.
    Claims(i64),
    /// No metadata.
    Nothing,
}

/// A listening peer. Stops when dropped.
pub struct FakeHolder {
    pub addr: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    info_hash: [u8; 20],
    holds: Holds,
    /// Sent behind the extension handshake, as payloads for `ut_pex`.
    pex: Vec<Vec<u8>>,
    requests: AtomicU64,
    connections: AtomicU64,
    is_stopped: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl FakeHolder {
    /// At an address of its own on the loopback interface.
    pub fn start(last_byte: u8, info_hash: [u8; 20], holds: Holds) -> FakeHolder {
        FakeHolder::start_telling(last_byte, info_hash, holds, Vec::new())
    }

    /// The same, and it tells of others as soon as the other side takes that.
    pub fn start_telling(
        last_byte: u8,
        info_hash: [u8; 20],
        holds: Holds,
        pex: Vec<Vec<u8>>,
    ) -> FakeHolder {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, last_byte), 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            info_hash,
            holds,
            pex,
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let holder = inner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if holder.is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                holder.connections.fetch_add(1, Ordering::SeqCst);
                let holder = holder.clone();
                // An error is the other side's end; there is nobody to tell.
                std::thread::spawn(move || holder.talk(stream));
            }
        });
        FakeHolder { addr, inner }
    }

    /// Requests for metadata so far.
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::SeqCst)
    }
}

impl Drop for FakeHolder {
    fn drop(&mut self) {
        self.inner.is_stopped.store(true, Ordering::SeqCst);
        for stream in self.inner.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Inner {
    fn talk(&self, mut stream: TcpStream) -> io::Result<()> {
        self.open.lock().unwrap().push(stream.try_clone()?);
        let mut theirs = [0; 68];
        stream.read_exact(&mut theirs)?;
        stream.write_all(&Hello::new(self.info_hash).encode())?;
        stream.write_all(&message(HAVE_ALL, &[]))?;
        let size = match &self.holds {
            Holds::Metadata(bytes) => Some(bytes.len() as i64),
            Holds::Rejects(size) | Holds::Silence(size) => Some(*size as i64),
            Holds::Claims(size) => Some(*size),
            Holds::Nothing => None,
        };
        let size = size.map_or(String::new(), |size| format!("13:metadata_sizei{size}e"));
        let hello = format!("\0d1:md11:ut_metadatai2e6:ut_pexi1ee{size}e");
        stream.write_all(&message(EXTENDED, hello.as_bytes()))?;
        let mut ids = (None, None);
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let mut body = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut body)?;
            let [EXTENDED, id, payload @ ..] = &body[..] else {
                continue;
            };
            match id {
                0 => {
                    ids = (id_of(payload, "ut_metadata"), id_of(payload, "ut_pex"));
                    for payload in self.pex.iter().filter(|_| ids.1.is_some()) {
                        let body = [&[ids.1.unwrap()][..], payload].concat();
                        stream.write_all(&message(EXTENDED, &body))?;
                    }
                }
                2 => {
                    self.requests.fetch_add(1, Ordering::SeqCst);
                    let answer = self.answer(number(payload, "piece"));
                    if let (Some(id), Some(answer)) = (ids.0, answer) {
                        stream.write_all(&message(EXTENDED, &[&[id][..], &answer].concat()))?;
                    }
                }
                _ => {}
            }
        }
    }

    fn answer(&self, piece: usize) -> Option<Vec<u8>> {
        match &self.holds {
            Holds::Metadata(bytes) => {
                let end = bytes.len().min((piece + 1) * 16_384);
                let (part, total) = (bytes.get(piece * 16_384..end)?, bytes.len());
                let head = format!("d8:msg_typei1e5:piecei{piece}e10:total_sizei{total}ee");
                Some([head.as_bytes(), part].concat())
            }
            Holds::Rejects(_) => Some(format!("d8:msg_typei2e5:piecei{piece}ee").into_bytes()),
            _ => None,
        }
    }
}

/// The id that an extension handshake gives to an extension.
pub fn id_of(payload: &[u8], name: &str) -> Option<u8> {
    let key = format!("{}:{name}i", name.len()).into_bytes();
    let at = payload.windows(key.len()).position(|part| part == key)?;
    let digits = payload[at + key.len()..].iter().take_while(|b| **b != b'e');
    let digits: Vec<u8> = digits.copied().collect();
    let id = String::from_utf8(digits).ok()?.parse().ok()?;
    Some(id).filter(|id| *id != 0)
}

/// The value of a number in a dictionary.
pub fn number(payload: &[u8], name: &str) -> usize {
    let key = format!("{}:{name}i", name.len()).into_bytes();
    let at = payload.windows(key.len()).position(|part| part == key);
    let rest = &payload[at.expect("a number of that name") + key.len()..];
    let digits = rest.iter().take_while(|b| **b != b'e').copied().collect();
    String::from_utf8(digits).unwrap().parse().unwrap()
}

/// A `ut_pex` payload that adds these IPv4 addresses.
pub fn pex_of(addrs: &[SocketAddr]) -> Vec<u8> {
    let mut compact = Vec::new();
    for addr in addrs {
        let SocketAddr::V4(addr) = addr else {
            panic!("IPv4 only");
        };
        compact.extend(addr.ip().octets());
        compact.extend(addr.port().to_be_bytes());
    }
    let mut payload = format!("d5:added{}:", compact.len()).into_bytes();
    payload.extend(&compact);
    payload.extend(format!("7:added.f{}:", addrs.len()).bytes());
    payload.extend(vec![0; addrs.len()]);
    payload.push(b'e');
    payload
}

/// The info dictionary of a `.torrent` that has nothing behind it.
pub fn info_of(torrent: &[u8]) -> Vec<u8> {
    let at = torrent.windows(6).position(|part| part == b"4:info");
    let info = &torrent[at.expect("an info dictionary") + 6..];
    info[..info.len() - 1].to_vec()
}
