//! Making and taking connections up to the end of the handshake (BEP 3). Layer 5.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, trace, warn};

use super::contain;
use super::driver::Driver;
use super::peer;
use super::shared::Shared;
use crate::base::InfoHash;
use crate::swarm::torrent::Connected;
use crate::uring::listener::Listener;
use crate::uring::stream::Stream;
use crate::wire::handshake::{HANDSHAKE_BYTES, Handshake, Prefix, Reserved, parse_prefix};

/// The whole handshake, not each read of it (HOSTILE.md H1).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of those, from one address: one stranger cannot take all places.
const INBOUND_PENDING_PER_IP_MAX: usize = 64;
/// After accept fails for want of descriptors (HOSTILE.md L5).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(500);

/// Dials, shakes hands and runs the connection. The core learns of every end.
pub async fn dial(driver: Rc<Driver>, addr: SocketAddr) {
    let shared = driver.shared().clone();
    if shared.is_banned(addr.ip()) {
        driver.call(|core, cx| core.on_dial_failed(addr, cx));
        return;
    }
    let half_open = HalfOpen::new(&shared);
    let outcome = contain::connection(&shared, shake_outbound(&driver, addr)).await;
    let outcome = outcome.unwrap_or_else(|panicked| Err(panicked.into()));
    drop(half_open);
    match outcome {
        Ok((stream, conn, early)) => {
            // Its own task: a connection is not disk work that a shutdown waits for as such.
            tokio_uring::spawn(async move {
                contain::connection(&shared, peer::run(driver, stream, conn, early)).await
            });
        }
        Err(error) => {
            debug!(%addr, %error, "dial failed");
            driver.call(|core, cx| core.on_dial_failed(addr, cx));
        }
    }
}

struct HalfOpen(Rc<Shared>);

impl HalfOpen {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.half_open.set(shared.half_open.get() + 1);
        HalfOpen(shared.clone())
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0
            .half_open
            .set(self.0.half_open.get().saturating_sub(1));
    }
}

async fn shake_outbound(
    driver: &Driver,
    addr: SocketAddr,
) -> io::Result<(Stream, Connected, Vec<u8>)> {
    let shared = driver.shared();
    let stream = tokio::select! {
        stream = Stream::connect(addr, &shared.socket_options) => stream?,
        () = driver.ending() => return Err(io::ErrorKind::ConnectionAborted.into()),
    };
    let info_hash = driver.info_hash();
    let ours = our_handshake(shared, info_hash);
    let shaken = within(HANDSHAKE_TIMEOUT, driver.ending(), &stream, async {
        let (sent, _) = stream.send_all(ours).await;
        sent?;
        let mut wire = HandshakeReader::default();
        let handshake = wire.finish(&stream, shared).await?;
        if handshake.info_hash != info_hash {
            return Err(io::Error::other("the peer answered for another torrent"));
        }
        Ok((handshake, wire.early()))
    });
    let (handshake, early) = shaken.await?;
    let conn = Connected {
        addr,
        is_inbound: false,
        peer_id: handshake.peer_id,
        reserved: *handshake.reserved.as_bytes(),
    };
    Ok((stream, conn, early))
}

/// Takes connections from one socket as long as the session runs. `pending` is that socket's.
pub async fn accept_loop(shared: Rc<Shared>, listener: Rc<Listener>, pending: Rc<Pending>) {
    loop {
        let (stream, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_closed(&error) => return,
            Err(error) => {
                warn!(%error, "cannot take connections for the moment");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        trace!(%addr, "connection taken");
        let from_here_max = INBOUND_PENDING_PER_IP_MAX.min(shared.pending_max.div_ceil(2) as usize);
        if shared.is_banned(addr.ip()) || pending.of(addr.ip()) >= from_here_max {
            stream.shutdown();
            continue;
        }
        if pending.count() >= shared.pending_max as usize {
            pending.drop_oldest();
        }
        let guard = PendingGuard::new(&pending, addr.ip(), &stream);
        let shared = shared.clone();
        let of_panic = shared.clone();
        let work = async move {
            match shake_inbound(&shared, &stream, addr).await {
                Ok((driver, conn, early)) => {
                    drop(guard);
                    peer::run(driver, stream, conn, early).await;
                }
                Err(error) => {
                    debug!(%addr, %error, "inbound handshake failed");
                    stream.shutdown();
                }
            }
        };
        tokio_uring::spawn(async move { contain::connection(&of_panic, work).await });
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted && error.raw_os_error().is_none()
}

/// Inbound connections in handshake, oldest first.
#[derive(Default)]
pub struct Pending {
    streams: RefCell<BTreeMap<u64, (IpAddr, Stream)>>,
    by_ip: RefCell<BTreeMap<IpAddr, usize>>,
    next: Cell<u64>,
}

impl Pending {
    fn count(&self) -> usize {
        self.streams.borrow().len()
    }

    fn of(&self, ip: IpAddr) -> usize {
        self.by_ip.borrow().get(&ip).copied().unwrap_or(0)
    }

    /// Makes room: an honest handshake takes a few round trips, so the oldest is the least likely to be one.
    fn drop_oldest(&self) {
        let oldest = self.streams.borrow().keys().next().copied();
        if let Some((_, stream)) = oldest.and_then(|number| self.remove(number)) {
            stream.shutdown();
        }
    }

    fn remove(&self, number: u64) -> Option<(IpAddr, Stream)> {
        let removed = self.streams.borrow_mut().remove(&number)?;
        let mut by_ip = self.by_ip.borrow_mut();
        if let Some(count) = by_ip.get_mut(&removed.0) {
            *count -= 1;
            if *count == 0 {
                by_ip.remove(&removed.0);
            }
        }
        Some(removed)
    }
}

struct PendingGuard {
    pending: Rc<Pending>,
    number: u64,
}

impl PendingGuard {
    fn new(pending: &Rc<Pending>, ip: IpAddr, stream: &Stream) -> Self {
        let number = pending.next.replace(pending.next.get() + 1);
        let mut streams = pending.streams.borrow_mut();
        streams.insert(number, (ip, stream.clone()));
        *pending.by_ip.borrow_mut().entry(ip).or_default() += 1;
        PendingGuard {
            pending: pending.clone(),
            number,
        }
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        // It may have made room for others already.
        let _ = self.pending.remove(self.number);
    }
}

async fn shake_inbound(
    shared: &Rc<Shared>,
    stream: &Stream,
    addr: SocketAddr,
) -> io::Result<(Rc<Driver>, Connected, Vec<u8>)> {
    within(HANDSHAKE_TIMEOUT, shared.stopping(), stream, async {
        let mut wire = HandshakeReader::default();
        // Some dialers wait for our half before they send their peer id: answer as soon as the torrent is known.
        let info_hash = wire.info_hash(stream, shared).await?;
        let driver = shared
            .torrent(&info_hash)
            .ok_or_else(|| io::Error::other("a torrent that is not here"))?;
        let (sent, _) = stream.send_all(our_handshake(shared, info_hash)).await;
        sent?;
        let handshake = wire.finish(stream, shared).await?;
        let conn = Connected {
            addr,
            is_inbound: true,
            peer_id: handshake.peer_id,
            reserved: *handshake.reserved.as_bytes(),
        };
        Ok((driver, conn, wire.early()))
    })
    .await
}

fn our_handshake(shared: &Shared, info_hash: InfoHash) -> Vec<u8> {
    Handshake {
        reserved: Reserved::OURS,
        info_hash,
        peer_id: shared.our_id,
    }
    .encode()
    .to_vec()
}

/// Runs `work` with a total deadline, or until `ended`: then the stream is shut down, which ends the pending operation,
/// and `work` is awaited to its end; it is never dropped with an operation in flight.
async fn within<T>(
    limit: Duration,
    ended: impl Future<Output = ()>,
    stream: &Stream,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let mut work = std::pin::pin!(work);
    let error = tokio::select! {
        result = &mut work => return result,
        () = tokio::time::sleep(limit) => {
            io::Error::new(io::ErrorKind::TimedOut, "no handshake in time")
        }
        () = ended => io::ErrorKind::ConnectionAborted.into(),
    };
    stream.shutdown();
    let _ = work.await;
    Err(error)
}

/// Gathers the 68 bytes of a handshake; what comes behind them is kept.
#[derive(Default)]
struct HandshakeReader {
    bytes: Vec<u8>,
}

impl HandshakeReader {
    async fn info_hash(&mut self, stream: &Stream, shared: &Shared) -> io::Result<InfoHash> {
        loop {
            match parse_prefix(&self.bytes).map_err(io::Error::other)? {
                Prefix::NeedsMore => self.read(stream, shared).await?,
                Prefix::InfoHashKnown { info_hash, .. } => return Ok(info_hash),
                Prefix::Complete(handshake) => return Ok(handshake.info_hash),
            }
        }
    }

    async fn finish(&mut self, stream: &Stream, shared: &Shared) -> io::Result<Handshake> {
        loop {
            match parse_prefix(&self.bytes).map_err(io::Error::other)? {
                Prefix::Complete(handshake) => return Ok(handshake),
                Prefix::NeedsMore | Prefix::InfoHashKnown { .. } => {
                    self.read(stream, shared).await?
                }
            }
        }
    }

    fn early(&self) -> Vec<u8> {
        self.bytes
            .get(HANDSHAKE_BYTES..)
            .unwrap_or_default()
            .to_vec()
    }

    async fn read(&mut self, stream: &Stream, shared: &Shared) -> io::Result<()> {
        // Waiting costs no buffer: silent connections must stay cheap.
        stream.readable().await?;
        let segment = shared.pool.alloc_or_heap(HANDSHAKE_RECV_BYTES);
        let (result, segment) = stream.recv_now(segment, 0..HANDSHAKE_RECV_BYTES).await;
        match result {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => {
                self.bytes
                    .extend_from_slice(segment.as_slice().get(..received).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Enough for a handshake and the first messages behind it.
const HANDSHAKE_RECV_BYTES: usize = 16 * 1024;
