//! An HTTP tracker in a thread: names the peers it was given and remembers who announced what.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
};

/// An address that is taken, where nobody answers yet.
pub struct ClosedTracker {
    socket: OwnedFd,
    pub addr: SocketAddr,
}

impl ClosedTracker {
    pub fn new() -> ClosedTracker {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let any = SockaddrIn::new(127, 0, 0, 1, 0);
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &any).unwrap();
        let bound: SockaddrIn = getsockname(std::os::fd::AsRawFd::as_raw_fd(&socket)).unwrap();
        let addr = SocketAddr::from((bound.ip(), bound.port()));
        ClosedTracker { socket, addr }
    }

    pub fn url(&self) -> String {
        format!("http://{}/announce", self.addr)
    }

    /// From now on it answers, naming these peers.
    pub fn open(self, peers: &[SocketAddr]) -> Tracker {
        listen(&self.socket, Backlog::new(64).unwrap()).unwrap();
        let announces = Arc::new(Mutex::new(Vec::new()));
        let (listener, seen) = (TcpListener::from(self.socket), announces.clone());
        let answer = answer(peers);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &answer, &seen);
            }
        });
        Tracker {
            addr: self.addr,
            announces,
        }
    }
}

/// A tracker that answers.
pub struct Tracker {
    pub addr: SocketAddr,
    announces: Arc<Mutex<Vec<String>>>,
}

impl Tracker {
    pub fn start(peers: &[SocketAddr]) -> Tracker {
        ClosedTracker::new().open(peers)
    }

    pub fn url(&self) -> String {
        format!("http://{}/announce", self.addr)
    }

    /// The request lines of all announces so far.
    pub fn announces(&self) -> Vec<String> {
        self.announces.lock().unwrap().clone()
    }

    /// True once an announce with that event came.
    pub fn has_heard(&self, event: &str) -> bool {
        let wanted = format!("event={event}");
        self.announces().iter().any(|line| line.contains(&wanted))
    }
}

fn answer(peers: &[SocketAddr]) -> Vec<u8> {
    let mut compact = Vec::new();
    for peer in peers {
        if let SocketAddr::V4(peer) = peer {
            compact.extend_from_slice(&peer.ip().octets());
            compact.extend_from_slice(&peer.port().to_be_bytes());
        }
    }
    let mut body = b"d8:intervali1800e5:peers".to_vec();
    body.extend_from_slice(format!("{}:", compact.len()).as_bytes());
    body.extend_from_slice(&compact);
    body.push(b'e');
    let mut out = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(&body);
    out
}

fn serve(mut stream: TcpStream, answer: &[u8], seen: &Mutex<Vec<String>>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(got @ 1..) => request.extend_from_slice(&chunk[..got]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&request);
    let line = text.lines().next().unwrap_or_default().to_owned();
    seen.lock().unwrap().push(line);
    let _ = stream.write_all(answer);
}
