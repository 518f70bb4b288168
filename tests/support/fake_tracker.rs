//! HTTP and UDP trackers that answer as a test tells them to: late, wrong, endless or not at all.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
};

use super::program::PATIENCE;

/// One GET as it came.
#[derive(Clone, Debug)]
pub struct Get {
    /// Path and query.
    pub target: String,
    /// From 0, over all connections.
    pub number: usize,
    /// Which request on its connection, from 0.
    pub on_connection: usize,
}

impl Get {
    /// The text of a query parameter, not decoded.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| value)
    }

    /// Whether it says goodbye.
    pub fn is_stopped(&self) -> bool {
        self.parameter("event") == Some("stopped")
    }
}

/// What happens to a connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Close,
    /// Another request may come.
    KeepOpen,
}

/// An HTTP tracker on a free port of the loopback address.
pub struct HttpTracker {
    pub addr: SocketAddr,
    gets: Receiver<Get>,
}

impl HttpTracker {
    /// Every request goes to `answer`, each connection on a thread of its own.
    pub fn start(
        answer: impl Fn(&Get, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> HttpTracker {
        HttpTracker::start_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), answer)
    }

    /// The same on a socket of the caller's.
    pub fn start_on(
        listener: TcpListener,
        answer: impl Fn(&Get, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> HttpTracker {
        let addr = listener.local_addr().unwrap();
        let (sender, gets) = channel();
        let answer = Arc::new(answer);
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (answer, sender, count) = (answer.clone(), sender.clone(), count.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut stream = stream;
                    for on_connection in 0.. {
                        let Some(target) = read_get(&mut reader) else {
                            return;
                        };
                        let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        let get = Get {
                            target,
                            number,
                            on_connection,
                        };
                        // The test may have what it wanted and be gone.
                        let _ = sender.send(get.clone());
                        if answer(&get, &mut stream) == Then::Close {
                            return;
                        }
                    }
                });
            }
        });
        HttpTracker { addr, gets }
    }

    /// Answers every request with the same bytes and closes.
    pub fn saying(bytes: impl Into<Vec<u8>>) -> HttpTracker {
        let bytes = bytes.into();
        HttpTracker::start(move |_, stream| {
            // A client that has enough closes first.
            let _ = stream.write_all(&bytes);
            Then::Close
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}/announce", self.addr)
    }

    /// The next request.
    pub fn next(&self) -> Get {
        self.gets.recv_timeout(PATIENCE).expect("no announce came")
    }

    /// The next request, if one comes in time.
    pub fn next_within(&self, limit: Duration) -> Option<Get> {
        self.gets.recv_timeout(limit).ok()
    }
}

/// An address where every connection is refused, until a tracker is started on it.
pub struct Reserved {
    socket: OwnedFd,
    pub addr: SocketAddr,
}

impl Reserved {
    pub fn new() -> Reserved {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        let bound: SockaddrIn = getsockname(socket.as_raw_fd()).unwrap();
        let addr = SocketAddr::from((bound.ip(), bound.port()));
        Reserved { socket, addr }
    }

    /// Where connections wait from now on.
    pub fn listen(self) -> TcpListener {
        listen(&self.socket, Backlog::new(64).unwrap()).unwrap();
        self.socket.into()
    }
}

/// The target of one GET; `None` when the connection ends.
fn read_get(reader: &mut impl BufRead) -> Option<String> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
    }
    first.split(' ').nth(1).map(str::to_owned)
}

/// A whole answer with a length.
pub fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A good answer's body: these peers in compact form, to be asked again after half an hour.
pub fn peers(addrs: &[SocketAddr]) -> Vec<u8> {
    with_peers("8:intervali1800e", &compact(addrs))
}

/// A body of these entries (keys before `peers`) and compact peers.
pub fn with_peers(entries: &str, compact: &[u8]) -> Vec<u8> {
    let mut body = format!("d{entries}5:peers{}:", compact.len()).into_bytes();
    body.extend_from_slice(compact);
    body.push(b'e');
    body
}

/// IPv4 addresses, six bytes each (BEP 23).
pub fn compact(addrs: &[SocketAddr]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for addr in addrs {
        let SocketAddr::V4(v4) = addr else {
            panic!("an IPv4 address");
        };
        bytes.extend(v4.ip().octets());
        bytes.extend(v4.port().to_be_bytes());
    }
    bytes
}

/// A datagram of a client (BEP 15).
#[derive(Clone, Debug)]
pub struct Datagram {
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
    /// From 0.
    pub number: usize,
}

impl Datagram {
    fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    pub fn connection_id(&self) -> u64 {
        u64::from_be_bytes(self.bytes[..8].try_into().unwrap())
    }

    /// 0 connect, 1 announce.
    pub fn action(&self) -> u32 {
        self.u32_at(8)
    }

    pub fn transaction_id(&self) -> u32 {
        self.u32_at(12)
    }

    /// The `event` of an announce: 3 is `stopped`.
    pub fn event(&self) -> u32 {
        self.u32_at(80)
    }
}

/// A UDP tracker on a free port of the loopback address.
pub struct UdpTracker {
    pub addr: SocketAddr,
    datagrams: Receiver<Datagram>,
}

impl UdpTracker {
    /// Every datagram goes to `answer`, which sends what it likes.
    pub fn start(mut answer: impl FnMut(&Datagram, &UdpSocket) + Send + 'static) -> UdpTracker {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = socket.local_addr().unwrap();
        let (sender, datagrams) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            for number in 0.. {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    return;
                };
                let datagram = Datagram {
                    from,
                    bytes: buffer[..length].to_vec(),
                    number,
                };
                // The test may be over.
                let _ = sender.send(datagram.clone());
                answer(&datagram, &socket);
            }
        });
        UdpTracker { addr, datagrams }
    }

    pub fn url(&self) -> String {
        format!("udp://{}/announce", self.addr)
    }

    /// The next datagram.
    pub fn next(&self) -> Datagram {
        self.datagrams
            .recv_timeout(PATIENCE)
            .expect("no datagram came")
    }

    /// The next datagram, if one comes in time.
    pub fn next_within(&self, limit: Duration) -> Option<Datagram> {
        self.datagrams.recv_timeout(limit).ok()
    }
}

/// The answer to a connect.
pub fn udp_connected(transaction_id: u32, connection_id: u64) -> Vec<u8> {
    let mut out = udp_head(0, transaction_id);
    out.extend(connection_id.to_be_bytes());
    out
}

/// The answer to an announce: half an hour, no counts, these peers.
pub fn udp_announced(transaction_id: u32, addrs: &[SocketAddr]) -> Vec<u8> {
    let mut out = udp_head(1, transaction_id);
    out.extend([0, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(compact(addrs));
    out
}

/// An error.
pub fn udp_error(transaction_id: u32, text: &str) -> Vec<u8> {
    let mut out = udp_head(3, transaction_id);
    out.extend(text.as_bytes());
    out
}

fn udp_head(action: u32, transaction_id: u32) -> Vec<u8> {
    [action.to_be_bytes(), transaction_id.to_be_bytes()].concat()
}
