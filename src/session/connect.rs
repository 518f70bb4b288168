//! Making and taking connections up to the end of the handshake. Layer 5.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, trace, warn};

use super::config::Encryption;
use super::contain;
use super::deadline::Deadline;
use super::door::Door;
use super::peer_stream::PeerStream;
use super::shake::{self, Attempt, Cover, Shaken, Unanswered};
use super::shared::Shared;
use super::socks;
use crate::swarm::dht::place::Scope;
use crate::swarm::torrent::Connected;
use crate::uring::listener::Listener;
use crate::uring::stream::Stream;
use crate::wire::socks::Target;

/// The whole handshake, not each read of it (HOSTILE.md H1).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer over uTP, where TCP can be tried after it.
const UTP_TIMEOUT: Duration = Duration::from_secs(3);
/// Of those, from one address: one stranger cannot take all places.
const INBOUND_PENDING_PER_IP_MAX: usize = 64;
/// After accept fails for want of descriptors (HOSTILE.md L5).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(500);

/// Why a peer is dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// It is the next one of the address book.
    Book,
    /// A relay has it dial us too (BEP 55): over uTP alone.
    Relay,
}

impl Errand {
    fn tell_failure(self, door: &Door, addr: SocketAddr) {
        match self {
            Errand::Book => door.on_dial_failed(addr),
            Errand::Relay => door.on_punch_failed(addr),
        }
    }
}

/// Dials, shakes hands and runs the connection. The core learns of every end.
pub async fn dial(door: Door, addr: SocketAddr, errand: Errand) {
    let shared = door.shared().clone();
    if shared.is_banned(addr.ip()) || shared.gate.is_blocked(addr.ip()) {
        errand.tell_failure(&door, addr);
        return;
    }
    let half_open = HalfOpen::new(&shared);
    let outcome = contain::connection(&shared, shake_outbound(&door, addr, errand)).await;
    let outcome = outcome.unwrap_or_else(|panicked| Err(panicked.into()));
    drop(half_open);
    match outcome {
        // The list may have been read anew meanwhile.
        Ok((stream, _)) if shared.gate.turns_away(addr.ip()) => {
            stream.shutdown();
            errand.tell_failure(&door, addr);
        }
        Ok((stream, shaken)) => {
            if errand == Errand::Relay {
                debug!(%addr, "hole punched");
            }
            let conn = connected(&door, addr, false, &shaken);
            // Its own task: a connection is not disk work that a shutdown waits for as such.
            tokio_uring::spawn(async move {
                contain::connection(&shared, door.run(stream, conn, shaken)).await
            });
        }
        Err(error) => {
            debug!(%addr, ?errand, %error, "dial failed");
            errand.tell_failure(&door, addr);
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

/// Dials and shakes hands, hidden or in the open; where one is refused before any answer and the other is allowed, with
/// that on a second connection. Then the same by the torrent's second name, if it has one.
async fn shake_outbound(
    door: &Door,
    addr: SocketAddr,
    errand: Errand,
) -> io::Result<(PeerStream, Shaken)> {
    let shared = door.shared();
    let is_open_first = shared.open_first.borrow().has(addr);
    let ways: &[bool] = match shared.config.encryption {
        Encryption::Off => &[false],
        Encryption::Require => &[true],
        Encryption::Prefer if is_open_first => &[false, true],
        Encryption::Prefer => &[true, false],
    };
    let mut last = io::Error::from(io::ErrorKind::ConnectionAborted);
    let attempts = door
        .names()
        .flat_map(|name| ways.iter().map(move |way| (name, *way)));
    for (name, is_hidden) in attempts {
        // The list may have been read anew since the first way was refused.
        if shared.gate.is_blocked(addr.ip()) {
            break;
        }
        let stream = tokio::select! {
            stream = reach(shared, addr, errand) => stream?,
            () = door.ending() => return Err(io::ErrorKind::ConnectionAborted.into()),
            () = shared.way.shut() => return Err(io::ErrorKind::NetworkDown.into()),
        };
        let attempt = Attempt::new(stream.clone());
        let shaking = shake::outbound(door, name, &attempt, is_hidden);
        match within(HANDSHAKE_TIMEOUT, door.ending(), &attempt, shaking).await {
            Ok(shaken) => {
                let is_open = shaken.cover == Cover::Open;
                shared.open_first.borrow_mut().set(addr, is_open);
                return Ok((stream, shaken));
            }
            Err(failed) => {
                stream.shutdown();
                // Who was refused or not answered begins the other way next time.
                let is_late = failed.error.kind() == io::ErrorKind::TimedOut;
                if ways.len() > 1 && (failed.is_refused || is_late) {
                    shared.open_first.borrow_mut().set(addr, is_hidden);
                }
                if !failed.is_refused {
                    return Err(failed.error);
                }
                debug!(%addr, is_hidden, error = %failed.error, "handshake refused");
                last = failed.error;
            }
        }
    }
    Err(last)
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Tcp,
    Utp,
}

/// What to try, in order. Peers out there get uTP first, which leaves the line to others, as libtorrent does it; those of
/// our own network, where no line is to be spared, and those where it led to nothing get TCP first.
fn carriers(has_tcp: bool, has_utp: bool, is_tcp_first: bool) -> &'static [Carrier] {
    match (has_tcp, has_utp, is_tcp_first) {
        (true, true, false) => &[Carrier::Utp, Carrier::Tcp],
        (true, true, true) => &[Carrier::Tcp, Carrier::Utp],
        (true, false, _) => &[Carrier::Tcp],
        (false, true, _) => &[Carrier::Utp],
        (false, false, _) => &[],
    }
}

/// A connection to a peer: through the proxy where there is one, and never around it. The future may be dropped.
async fn reach(shared: &Shared, addr: SocketAddr, errand: Errand) -> io::Result<PeerStream> {
    if errand == Errand::Relay {
        return reach_by_utp(shared, addr, false).await;
    }
    let is_local = Scope::of(addr.ip()) != Scope::Public;
    let is_tcp_first = is_local || shared.tcp_first.borrow().has(addr);
    let has_tcp = shared.config.tcp;
    let carriers = carriers(has_tcp, shared.utp().is_some(), is_tcp_first);
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for carrier in carriers {
        let reached = match carrier {
            Carrier::Tcp => reach_by_tcp(shared, addr).await.map(PeerStream::Tcp),
            Carrier::Utp => reach_by_utp(shared, addr, has_tcp).await,
        };
        match reached {
            Ok(stream) => {
                // What the last one of two was needed for is the first one next time.
                if carriers.len() > 1 && !is_local {
                    let is_tcp = *carrier == Carrier::Tcp;
                    shared.tcp_first.borrow_mut().set(addr, is_tcp);
                }
                return Ok(stream);
            }
            Err(error) => {
                debug!(%addr, ?carrier, %error, "not reached");
                last = error;
            }
        }
    }
    Err(last)
}

async fn reach_by_tcp(shared: &Shared, addr: SocketAddr) -> io::Result<Stream> {
    let Some(socks) = &shared.socks else {
        return Stream::connect(addr, &shared.socket_options).await;
    };
    let deadline = Deadline::after(socks::DIAL_TIMEOUT);
    socks.connect(&Target::Addr(addr), &deadline).await
}

async fn reach_by_utp(shared: &Shared, addr: SocketAddr, has_tcp: bool) -> io::Result<PeerStream> {
    let utp = shared.utp().ok_or(io::ErrorKind::Unsupported)?;
    let connecting = utp.connect(addr);
    let connected = match has_tcp {
        false => connecting.await,
        true => tokio::time::timeout(UTP_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    };
    connected.map(PeerStream::Utp)
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
        take_in(&shared, &pending, PeerStream::Tcp(stream), addr);
    }
}

/// Takes one connection of somebody who dialed us, and runs it. `pending` is that socket's.
pub fn take_in(shared: &Rc<Shared>, pending: &Rc<Pending>, stream: PeerStream, addr: SocketAddr) {
    trace!(%addr, "connection taken");
    let from_here_max = INBOUND_PENDING_PER_IP_MAX.min(shared.pending_max.div_ceil(2) as usize);
    if shared.gate.turns_away(addr.ip())
        || shared.is_banned(addr.ip())
        || pending.of(addr.ip()) >= from_here_max
    {
        return stream.shutdown();
    }
    if pending.count() >= shared.pending_max as usize {
        pending.drop_oldest();
    }
    let attempt = Attempt::new(stream);
    let guard = PendingGuard::new(pending, addr.ip(), &attempt);
    let shared = shared.clone();
    let of_panic = shared.clone();
    let work = async move {
        let shaking = async {
            let shaken = shake::inbound(&shared, &attempt).await;
            shaken.map_err(Unanswered::other)
        };
        match within(HANDSHAKE_TIMEOUT, shared.stopping(), &attempt, shaking).await {
            Ok((door, shaken)) => {
                drop(guard);
                if door.shared().gate.turns_away(addr.ip()) {
                    return attempt.stream.shutdown();
                }
                let conn = connected(&door, addr, true, &shaken);
                door.run(attempt.stream.clone(), conn, shaken).await;
            }
            Err(error) => {
                debug!(%addr, %error, "inbound handshake failed");
                attempt.stream.shutdown();
            }
        }
    };
    tokio_uring::spawn(async move { contain::connection(&of_panic, work).await });
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted && error.raw_os_error().is_none()
}

/// Inbound connections in handshake, oldest first.
#[derive(Default)]
pub struct Pending {
    attempts: RefCell<BTreeMap<u64, (IpAddr, Rc<Attempt>)>>,
    by_ip: RefCell<BTreeMap<IpAddr, usize>>,
    next: Cell<u64>,
}

impl Pending {
    fn count(&self) -> usize {
        self.attempts.borrow().len()
    }

    fn of(&self, ip: IpAddr) -> usize {
        self.by_ip.borrow().get(&ip).copied().unwrap_or(0)
    }

    /// Makes room: an honest handshake takes a few round trips, so the oldest is the least likely to be one.
    fn drop_oldest(&self) {
        let oldest = self.attempts.borrow().keys().next().copied();
        if let Some((_, attempt)) = oldest.and_then(|number| self.remove(number)) {
            attempt.give_up();
        }
    }

    fn remove(&self, number: u64) -> Option<(IpAddr, Rc<Attempt>)> {
        let removed = self.attempts.borrow_mut().remove(&number)?;
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
    fn new(pending: &Rc<Pending>, ip: IpAddr, attempt: &Rc<Attempt>) -> Self {
        let number = pending.next.replace(pending.next.get() + 1);
        let mut attempts = pending.attempts.borrow_mut();
        attempts.insert(number, (ip, attempt.clone()));
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

/// The core's view of a connection.
fn connected(door: &Door, addr: SocketAddr, is_inbound: bool, shaken: &Shaken) -> Connected {
    Connected {
        addr,
        is_inbound,
        peer_id: shaken.handshake.peer_id,
        reserved: *shaken.handshake.reserved.as_bytes(),
        is_v2: door.is_v2(&shaken.handshake.info_hash),
    }
}

/// Runs `work` with a total deadline, or until `ended`: then the attempt is given up, which ends what it waits for, and
/// `work` is awaited to its end; it is never dropped with an operation in flight.
async fn within<T>(
    limit: Duration,
    ended: impl Future<Output = ()>,
    attempt: &Attempt,
    work: impl Future<Output = Result<T, Unanswered>>,
) -> Result<T, Unanswered> {
    let mut work = std::pin::pin!(work);
    let error = tokio::select! {
        result = &mut work => return result,
        () = tokio::time::sleep(limit) => {
            io::Error::new(io::ErrorKind::TimedOut, "no handshake in time")
        }
        () = ended => io::ErrorKind::ConnectionAborted.into(),
    };
    attempt.give_up();
    let _ = work.await;
    Err(Unanswered::other(error))
}
