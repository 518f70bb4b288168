//! The session's uTP (BEP 29): drives `swarm::utp` over the UDP port and lends its connections as streams. Layer 5.
//!
//! What comes is handed in by [`UdpPort`]'s receivers; what is to go out is taken from the core as the kernel takes it,
//! many datagrams a send. Behind a proxy there is none of it.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::{Rc, Weak};

use tokio::sync::Notify;
use tracing::trace;

use super::connect::{self, Pending};
use super::peer_stream::PeerStream;
use super::shared::Shared;
use super::udp_port::UdpPort;
use crate::base::Now;
use crate::swarm::utp::{Lost, Read, Taken, Utp, UtpKey, Wake};
use crate::uring::buffers::Segment;
use crate::uring::random::random;
use crate::uring::stream::Outgoing;
use crate::uring::udp::{Local, Received};

/// Sends that the kernel may be at: enough to keep it busy, few enough that what is sent says how late it is.
const SENDS_MAX: usize = 8;
/// Connections for each peer that the session may have: some are closing, some are in handshake.
const CONNECTIONS_PER_PEER: usize = 2;

/// What waits for one connection.
struct Line {
    readable: Notify,
    writable: Notify,
    /// Where the other side's first packet came to: answers leave from there.
    local: Option<Local>,
    is_shut: Cell<bool>,
}

/// A connection in its slot.
type Seat = (UtpKey, Rc<Line>);

/// All uTP connections of a session.
pub struct UtpService {
    shared: Weak<Shared>,
    port: Rc<UdpPort>,
    core: RefCell<Utp>,
    /// By slot of the key, with the key itself to know a stale one.
    lines: RefCell<Vec<Option<Seat>>>,
    /// Those in handshake that dialed us.
    pending: Rc<Pending>,
    sends: Cell<usize>,
    /// Buffers of sends that are done.
    buffers: RefCell<Vec<Vec<u8>>>,
    deadline: Cell<Option<Now>>,
    wake: Notify,
}

impl UtpService {
    /// No connection yet; [`UtpService::run`] drives it.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(shared: &Rc<Shared>, port: Rc<UdpPort>) -> io::Result<Rc<Self>> {
        let peers_max = shared.config.peers_max as usize + shared.pending_max as usize;
        let core = Utp::new(peers_max.max(1) * CONNECTIONS_PER_PEER, random()?);
        Ok(Rc::new(UtpService {
            shared: Rc::downgrade(shared),
            port,
            core: RefCell::new(core),
            lines: RefCell::default(),
            pending: Rc::default(),
            sends: Cell::new(0),
            buffers: RefCell::default(),
            deadline: Cell::new(None),
            wake: Notify::new(),
        }))
    }

    /// Dials. Dropping the future ends the attempt.
    ///
    /// # Errors
    /// Nobody answers there, or not with yes; too many connections.
    pub async fn connect(self: &Rc<Self>, addr: SocketAddr) -> io::Result<UtpStream> {
        let random = u32::from_be_bytes(random()?);
        let key = self.core.borrow_mut().connect(addr, random);
        let key = key.map_err(io::Error::other)?;
        let stream = self.stream(key, None);
        self.flush();
        loop {
            match self.core.borrow().is_open(key) {
                Ok(true) => return Ok(stream),
                Ok(false) => {}
                Err(lost) => return Err(error_of(lost)),
            }
            stream.writable().await;
        }
    }

    /// Takes a datagram that looks like uTP's; true when it belongs to a connection. With `is_flooded` all others are
    /// dropped unseen. [`UtpService::flush`] is to follow.
    pub fn on_datagram(
        self: &Rc<Self>,
        received: &Received,
        datagram: &[u8],
        is_flooded: bool,
    ) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return false;
        };
        let now = shared.now();
        if is_flooded && !self.core.borrow().knows(received.from, datagram) {
            return false;
        }
        let taken = self
            .core
            .borrow_mut()
            .on_datagram(received.from, datagram, now);
        match taken {
            Taken::Known(_) => true,
            Taken::New(key) => {
                let addr = SocketAddr::new(received.from.ip().to_canonical(), received.from.port());
                let stream = PeerStream::Utp(self.stream(key, received.local));
                connect::take_in(&shared, &self.pending, stream, addr);
                true
            }
            Taken::Answer(answer) => {
                self.port
                    .send(answer.to_vec(), received.from, Some(received));
                false
            }
            Taken::Stranger => false,
        }
    }

    /// Whether there are connections, whose packets are waited for.
    pub fn is_at_work(&self) -> bool {
        self.core.borrow().connection_count() > 0
    }

    /// Sends what there is to send, as far as the kernel takes it, and wakes whoever can go on.
    pub fn flush(self: &Rc<Self>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        while self.sends.get() < SENDS_MAX {
            let mut out = self.buffers.borrow_mut().pop().unwrap_or_default();
            out.clear();
            let transmit = self.core.borrow_mut().next_transmit(shared.now(), &mut out);
            let Some(transmit) = transmit else {
                self.buffers.borrow_mut().push(out);
                break;
            };
            let local = self.line(transmit.key).and_then(|line| line.local);
            let Some(udp) = self.port.socket(transmit.to.ip()) else {
                continue;
            };
            self.sends.set(self.sends.get() + 1);
            let service = self.clone();
            tokio_uring::spawn(async move {
                let (to, segment_bytes) = (transmit.to, transmit.segment_bytes);
                let (sent, out) = udp.send_segments(out, segment_bytes, local, to).await;
                if let Err(error) = sent {
                    trace!(%to, %error, "packets not sent");
                }
                service.sends.set(service.sends.get() - 1);
                service.buffers.borrow_mut().push(out);
                service.flush();
            });
        }
        self.tell();
    }

    fn tell(&self) {
        loop {
            let wake = self.core.borrow_mut().next_wake();
            match wake {
                None => break,
                Some(Wake::Reader(key)) => {
                    if let Some(line) = self.line(key) {
                        line.readable.notify_one();
                    }
                }
                Some(Wake::Writer(key)) => {
                    if let Some(line) = self.line(key) {
                        line.writable.notify_one();
                    }
                }
            }
        }
        let deadline = self.core.borrow().next_deadline();
        if deadline.is_some_and(|at| self.deadline.get().is_none_or(|set| at < set)) {
            self.deadline.set(deadline);
            self.wake.notify_one();
        }
    }

    fn line(&self, key: UtpKey) -> Option<Rc<Line>> {
        let lines = self.lines.borrow();
        let (present, line) = lines.get(key.index())?.as_ref()?;
        (*present == key).then(|| line.clone())
    }

    fn stream(self: &Rc<Self>, key: UtpKey, local: Option<Local>) -> UtpStream {
        let line = Rc::new(Line {
            readable: Notify::new(),
            writable: Notify::new(),
            local,
            is_shut: Cell::new(false),
        });
        let mut lines = self.lines.borrow_mut();
        if lines.len() <= key.index() {
            lines.resize_with(key.index() + 1, || None);
        }
        lines[key.index()] = Some((key, line.clone()));
        UtpStream {
            inner: Rc::new(Inner {
                service: self.clone(),
                key,
                line,
            }),
        }
    }

    /// Drives the clock as long as the session runs.
    pub async fn run(self: Rc<Self>) {
        loop {
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            let deadline = self.core.borrow().next_deadline();
            self.deadline.set(deadline);
            match deadline {
                Some(at) if at > shared.now() => {
                    let at = shared.clock.instant(at);
                    drop(shared);
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.wake.notified() => continue,
                    }
                }
                Some(_) => {
                    self.core.borrow_mut().on_deadline(shared.now());
                    self.flush();
                    tokio::task::yield_now().await;
                }
                None => {
                    drop(shared);
                    self.wake.notified().await;
                }
            }
        }
    }

    fn now(&self) -> Now {
        self.shared
            .upgrade()
            .map_or(Now::ZERO, |shared| shared.now())
    }
}

/// One connection; clones share it. Closed when the last one is gone.
#[derive(Clone)]
pub struct UtpStream {
    inner: Rc<Inner>,
}

struct Inner {
    service: Rc<UtpService>,
    key: UtpKey,
    line: Rc<Line>,
}

impl UtpStream {
    /// Receives what is there; 0 is the end.
    ///
    /// # Errors
    /// WouldBlock when there is nothing; whatever ended the connection.
    pub fn recv_now(
        &self,
        mut segment: Segment,
        range: Range<usize>,
    ) -> (io::Result<usize>, Segment) {
        let Inner { service, key, line } = &*self.inner;
        if line.is_shut.get() {
            return (Ok(0), segment);
        }
        let buf = segment.as_mut_slice().get_mut(range).unwrap_or_default();
        let read = service.core.borrow_mut().read(*key, buf, service.now());
        service.flush();
        let result = match read {
            Ok(Read::Bytes(count)) => Ok(count),
            Ok(Read::End) => Ok(0),
            Ok(Read::Nothing) => Err(io::ErrorKind::WouldBlock.into()),
            Err(lost) => Err(error_of(lost)),
        };
        (result, segment)
    }

    /// Waits until there is something to receive, or the end.
    pub async fn readable(&self) {
        let Inner { service, key, line } = &*self.inner;
        while !line.is_shut.get() && !service.core.borrow_mut().is_readable(*key) {
            line.readable.notified().await;
        }
    }

    /// Waits until there is room to send, or the end.
    pub async fn writable(&self) {
        let Inner { service, key, line } = &*self.inner;
        while !line.is_shut.get() && !service.core.borrow_mut().is_writable(*key) {
            line.writable.notified().await;
        }
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// Whatever ended the connection.
    pub async fn send_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let count = self.write(left)?;
            left = left.get(count..).unwrap_or_default();
            if count == 0 {
                self.writable().await;
            }
        }
        Ok(())
    }

    /// Sends a run.
    ///
    /// # Errors
    /// As [`UtpStream::send_run_now`].
    pub async fn send_run(&self, out: &Outgoing) -> io::Result<()> {
        let all: usize = slices(out)?.iter().map(|slice| slice.len()).sum();
        let mut done = 0;
        loop {
            done = self.send_run_now(out, done)?;
            if done >= all {
                return Ok(());
            }
            self.writable().await;
        }
    }

    /// Takes what there is room for, from byte `first` of the run on; returns up to which byte it came.
    ///
    /// # Errors
    /// Whatever ended the connection; InvalidInput when some of the run lies in a file.
    pub fn send_run_now(&self, out: &Outgoing, first: usize) -> io::Result<usize> {
        let (mut skip, mut done) = (first, first);
        for slice in slices(out)? {
            let part = slice.get(skip.min(slice.len())..).unwrap_or_default();
            skip -= slice.len() - part.len();
            let count = self.take(part)?;
            done += count;
            if count < part.len() {
                break;
            }
        }
        self.inner.service.flush();
        Ok(done)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.take(bytes);
        self.inner.service.flush();
        taken
    }

    fn take(&self, bytes: &[u8]) -> io::Result<usize> {
        let Inner { service, key, line } = &*self.inner;
        if line.is_shut.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = service.core.borrow_mut().write(*key, bytes);
        written.map_err(error_of)
    }

    /// Ends both directions; what was taken is still sent.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }

    /// Ends our own direction; receiving goes on.
    pub fn shutdown_write(&self) {
        let Inner { service, key, .. } = &*self.inner;
        service.core.borrow_mut().finish(*key, service.now());
        service.flush();
    }
}

impl Inner {
    fn shutdown(&self) {
        let Inner { service, key, line } = self;
        if line.is_shut.replace(true) {
            return;
        }
        service.core.borrow_mut().close(*key, service.now());
        line.readable.notify_one();
        line.writable.notify_one();
        service.flush();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
        let mut lines = self.service.lines.borrow_mut();
        if let Some(slot) = lines.get_mut(self.key.index())
            && slot
                .as_ref()
                .is_some_and(|(present, _)| *present == self.key)
        {
            *slot = None;
        }
    }
}

fn slices(out: &Outgoing) -> io::Result<Vec<&[u8]>> {
    out.slices()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "send part out of range"))
}

fn error_of(lost: Lost) -> io::Error {
    let kind = match lost {
        Lost::TimedOut => io::ErrorKind::TimedOut,
        Lost::Refused => io::ErrorKind::ConnectionRefused,
        Lost::Reset => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, lost)
}
