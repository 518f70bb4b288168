//! UDP trackers (BEP 15): transactions, retransmission and connection ids over a datagram socket. Layer 5.
//!
//! The socket is behind [`DatagramSink`]: [`OwnSockets`], or a proxy's relay, which looks names up itself. Datagrams are read and written by `wire::tracker_udp`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::deadline::Deadline;
use super::http::{FetchError, family_name, lookup};
use super::socks::UdpRelay;
use crate::base::InfoHash;
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::uring::udp::Udp;
use crate::wire::socks::Target;
use crate::wire::tracker::{AnnounceRefusal, AnnounceRequest, AnnounceResponse, Family};
use crate::wire::tracker_http::serve::SwarmCounts;
use crate::wire::tracker_udp::{
    DATAGRAM_BYTES_MAX, UdpAnswer, announce_request, connect_request, parse_answer,
    peek_transaction_id, scrape_request,
};
use crate::wire::url::Url;

/// The whole time one exchange may take: sends after 0, 15 and 45 seconds, then the next tracker's turn.
pub const UDP_TIMEOUT: Duration = Duration::from_secs(60);

/// A client may use a connection id for a minute (BEP 15).
const CONNECTION_ID_TIME_MAX: Duration = Duration::from_secs(60);

/// Connection ids remembered; beyond that trackers are asked anew.
const CONNECTIONS_MAX: usize = 256;

/// Exchanges under way at once, far more than the torrents of one session announce in the same minute.
const PENDING_MAX: usize = 4_096;

/// Doublings of the retransmission time (BEP 15).
const DOUBLINGS_MAX: u32 = 8;

/// Why a UDP tracker gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UdpTrackerError {
    #[error(transparent)]
    Lookup(#[from] FetchError),
    #[error("{host} has no {family} address that may be used")]
    NoAddress { host: String, family: &'static str },
    #[error("it does not answer")]
    TimedOut,
    #[error("the tracker refused: {}", .0.reason)]
    Refused(AnnounceRefusal),
    #[error("the tracker's answer is not the one asked for")]
    BadAnswer,
    #[error("no datagrams go through the proxy")]
    NoRelay,
    #[error("too many tracker exchanges are under way")]
    Busy,
}

/// Takes datagrams for sending; loss is allowed.
pub trait DatagramSink {
    /// Sends one datagram, or drops it.
    fn send(&self, bytes: Vec<u8>, to: &Target);
}

impl DatagramSink for Rc<UdpRelay> {
    fn send(&self, bytes: Vec<u8>, to: &Target) {
        UdpRelay::send(self, &bytes, to);
    }
}

/// The client's half of BEP 15; clones share it. Feed it every datagram that arrives.
#[derive(Clone)]
pub struct UdpTrackers {
    inner: Rc<Inner>,
}

struct Inner {
    resolver: Resolver,
    sink: Box<dyn DatagramSink>,
    /// Set when everything goes through a proxy: names stay names then.
    relay: Option<Rc<UdpRelay>>,
    retransmit_first: Duration,
    random: RandomState,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// By transaction id; at most [`PENDING_MAX`].
    pending: BTreeMap<u32, Pending>,
    /// By tracker; at most [`CONNECTIONS_MAX`].
    connections: BTreeMap<Target, (u64, Instant)>,
    transactions: u64,
}

struct Pending {
    tracker: Target,
    answer: oneshot::Sender<UdpAnswer>,
}

/// Forgets a transaction however its exchange ends.
struct Transaction<'a> {
    trackers: &'a UdpTrackers,
    id: u32,
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        let mut state = self.trackers.inner.state.borrow_mut();
        state.pending.remove(&self.id);
    }
}

/// What is asked of a tracker once connected.
#[derive(Clone, Copy)]
enum Ask<'a> {
    Announce(&'a AnnounceRequest, &'a str),
    Scrape(&'a [InfoHash]),
}

impl UdpTrackers {
    /// A client that sends through `sink`. `retransmit_first` is BEP 15's 15 seconds; tests take less.
    pub fn new(
        resolver: Resolver,
        sink: Box<dyn DatagramSink>,
        retransmit_first: Duration,
    ) -> UdpTrackers {
        UdpTrackers {
            inner: Rc::new(Inner {
                resolver,
                sink,
                relay: None,
                retransmit_first,
                random: RandomState::new(),
                state: RefCell::new(State::default()),
            }),
        }
    }

    /// A client behind a proxy.
    pub fn through(
        resolver: Resolver,
        relay: Rc<UdpRelay>,
        retransmit_first: Duration,
    ) -> UdpTrackers {
        UdpTrackers {
            inner: Rc::new(Inner {
                resolver,
                sink: Box::new(relay.clone()),
                relay: Some(relay),
                retransmit_first,
                random: RandomState::new(),
                state: RefCell::new(State::default()),
            }),
        }
    }

    /// A datagram has arrived. True when it was an answer that somebody waited for: right transaction, right source.
    pub fn on_datagram(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some(id) = peek_transaction_id(datagram) else {
            return false;
        };
        let mut state = self.inner.state.borrow_mut();
        let Some(pending) = state.pending.get(&id) else {
            return false;
        };
        if !is_same_endpoint(&pending.tracker, from) {
            return false;
        }
        let Ok(answer) = parse_answer(datagram, family_of(from.ip().to_canonical())) else {
            return false;
        };
        // A receiver that has gone away removes its entry itself.
        if let Some(pending) = state.pending.remove(&id) {
            let _ = pending.answer.send(answer);
        }
        true
    }

    /// Announces; the tracker is reached over `family` only. `on_silence` is called each time that a datagram was sent
    /// in vain and another follows. The future may be dropped.
    ///
    /// # Errors
    /// See [`UdpTrackerError`].
    pub async fn announce(
        &self,
        url: &Url,
        request: &AnnounceRequest,
        family: Family,
        deadline: &Deadline,
        on_silence: impl FnMut(),
    ) -> Result<AnnounceResponse, UdpTrackerError> {
        let ask = Ask::Announce(request, url.target());
        match self.ask(url, ask, family, deadline, on_silence).await? {
            UdpAnswer::Announced(response) => Ok(response),
            _ => Err(UdpTrackerError::BadAnswer),
        }
    }

    /// Asks for the numbers of up to 74 torrents, in their order.
    ///
    /// # Errors
    /// See [`UdpTrackerError`].
    pub async fn scrape(
        &self,
        url: &Url,
        info_hashes: &[InfoHash],
        family: Family,
        deadline: &Deadline,
    ) -> Result<Vec<SwarmCounts>, UdpTrackerError> {
        let ask = Ask::Scrape(info_hashes);
        match self.ask(url, ask, family, deadline, || ()).await? {
            UdpAnswer::Scraped(counts) => Ok(counts),
            _ => Err(UdpTrackerError::BadAnswer),
        }
    }

    async fn ask(
        &self,
        url: &Url,
        ask: Ask<'_>,
        family: Family,
        deadline: &Deadline,
        mut on_silence: impl FnMut(),
    ) -> Result<UdpAnswer, UdpTrackerError> {
        let addrs = self.places(url, family, deadline).await?;
        let mut attempt: u32 = 0;
        let mut is_second_chance = true;
        while !deadline.remaining().is_zero() {
            // Each attempt goes to the name's next address, so that a dead one costs one wait.
            let index = usize::try_from(attempt).unwrap_or(0) % addrs.len().max(1);
            let Some(tracker) = addrs.get(index) else {
                return Err(UdpTrackerError::NoAddress {
                    host: url.host().to_string(),
                    family: family_name(Some(family)),
                });
            };
            let wait = self
                .inner
                .retransmit_first
                .saturating_mul(1 << attempt.min(DOUBLINGS_MAX));
            attempt += 1;
            let known = self.connection_id(tracker);
            let connection_id = match known {
                Some(id) => id,
                None => match self.connect(tracker, wait, deadline).await? {
                    Some(id) => id,
                    None => {
                        on_silence();
                        continue;
                    }
                },
            };
            let make = |id| match ask {
                Ask::Announce(request, target) => {
                    announce_request(connection_id, id, request, target)
                }
                Ask::Scrape(info_hashes) => scrape_request(connection_id, id, info_hashes),
            };
            match self.exchange(tracker, wait, deadline, make).await? {
                None => on_silence(),
                Some(UdpAnswer::Refused(refusal)) => {
                    self.forget(tracker);
                    // A remembered connection id may be what the tracker minds: once more with a new one.
                    if known.is_none() || !is_second_chance {
                        return Err(UdpTrackerError::Refused(refusal));
                    }
                    is_second_chance = false;
                    attempt -= 1;
                }
                Some(answer) => return Ok(answer),
            }
        }
        Err(UdpTrackerError::TimedOut)
    }

    /// Where datagrams for that tracker go.
    async fn places(
        &self,
        url: &Url,
        family: Family,
        deadline: &Deadline,
    ) -> Result<Vec<Target>, UdpTrackerError> {
        let Some(relay) = &self.inner.relay else {
            let found = lookup(&self.inner.resolver, url.host(), url.port(), deadline).await?;
            let addrs = found.into_iter().filter(|addr| family.has(addr.ip()));
            return Ok(addrs.map(Target::Addr).collect());
        };
        let is_open = deadline.run(async { Ok(relay.is_open().await) });
        match is_open.await {
            Ok(true) => Ok(vec![Target::new(url.host(), url.port())]),
            Ok(false) => Err(UdpTrackerError::NoRelay),
            Err(_) => Err(UdpTrackerError::TimedOut),
        }
    }

    /// A connection id that is not too old.
    fn connection_id(&self, tracker: &Target) -> Option<u64> {
        let state = self.inner.state.borrow();
        let (id, since) = state.connections.get(tracker)?;
        (since.elapsed() < CONNECTION_ID_TIME_MAX).then_some(*id)
    }

    fn forget(&self, tracker: &Target) {
        let mut state = self.inner.state.borrow_mut();
        state.connections.remove(tracker);
    }

    fn remember(&self, tracker: &Target, id: u64) {
        let mut state = self.inner.state.borrow_mut();
        let connections = &mut state.connections;
        connections.retain(|_, (_, since)| since.elapsed() < CONNECTION_ID_TIME_MAX);
        if connections.len() < CONNECTIONS_MAX {
            connections.insert(tracker.clone(), (id, Instant::now()));
        }
    }

    async fn connect(
        &self,
        tracker: &Target,
        wait: Duration,
        deadline: &Deadline,
    ) -> Result<Option<u64>, UdpTrackerError> {
        let answer = self
            .exchange(tracker, wait, deadline, connect_request)
            .await?;
        match answer {
            None => Ok(None),
            Some(UdpAnswer::Connected { connection_id }) => {
                self.remember(tracker, connection_id);
                Ok(Some(connection_id))
            }
            Some(UdpAnswer::Refused(refusal)) => Err(UdpTrackerError::Refused(refusal)),
            Some(_) => Err(UdpTrackerError::BadAnswer),
        }
    }

    /// One datagram out, and its answer unless `wait` or the deadline passes first.
    async fn exchange(
        &self,
        tracker: &Target,
        wait: Duration,
        deadline: &Deadline,
        make: impl FnOnce(u32) -> Vec<u8>,
    ) -> Result<Option<UdpAnswer>, UdpTrackerError> {
        let (transaction, answer) = self.begin(tracker)?;
        self.inner.sink.send(make(transaction.id), tracker);
        tokio::select! {
            biased;
            answer = answer => Ok(answer.ok()),
            () = deadline.passed() => Err(UdpTrackerError::TimedOut),
            () = tokio::time::sleep(wait) => Ok(None),
        }
    }

    fn begin(
        &self,
        tracker: &Target,
    ) -> Result<(Transaction<'_>, oneshot::Receiver<UdpAnswer>), UdpTrackerError> {
        let mut state = self.inner.state.borrow_mut();
        if state.pending.len() >= PENDING_MAX {
            return Err(UdpTrackerError::Busy);
        }
        let id = loop {
            state.transactions += 1;
            // A keyed hash of a counter: nobody outside can guess the next one.
            let hash = self.inner.random.hash_one(state.transactions);
            let id = u32::try_from(hash >> 32).unwrap_or(0);
            if !state.pending.contains_key(&id) {
                break id;
            }
        };
        let (sender, receiver) = oneshot::channel();
        let pending = Pending {
            tracker: tracker.clone(),
            answer: sender,
        };
        state.pending.insert(id, pending);
        let trackers = self;
        Ok((Transaction { trackers, id }, receiver))
    }
}

/// IPv6 sources come back with a scope or flow label that the lookup did not give.
/// Whose name a proxy looked up is known by port and transaction.
fn is_same_endpoint(asked: &Target, from: SocketAddr) -> bool {
    let is_ip = match asked {
        Target::Addr(addr) => addr.ip().to_canonical() == from.ip().to_canonical(),
        Target::Name(..) => true,
    };
    is_ip && asked.port() == from.port()
}

/// UDP sockets of the trackers' own, one a family, for as long as there is no shared one. They close when dropped.
pub struct OwnSockets {
    sockets: Sockets,
    options: SocketOptions,
    trackers: UdpTrackers,
}

/// Shared by what sends and what closes; empty while there is no way out.
type Sockets = Rc<RefCell<Vec<(Family, Udp)>>>;

/// Hears what comes to one of them.
#[derive(Clone)]
pub struct Receiver {
    udp: Udp,
    trackers: UdpTrackers,
}

struct OwnSink {
    sockets: Sockets,
}

impl DatagramSink for OwnSink {
    fn send(&self, bytes: Vec<u8>, to: &Target) {
        // What is sent without a proxy was looked up.
        let &Target::Addr(to) = to else { return };
        let sockets = self.sockets.borrow();
        let Some((_, udp)) = sockets.iter().find(|(family, _)| family.has(to.ip())) else {
            return;
        };
        let udp = udp.clone();
        tokio_uring::spawn(async move {
            let (result, _) = udp.send_to(bytes, to).await;
            if let Err(error) = result {
                tracing::debug!(%to, %error, "datagram to a tracker not sent");
            }
        });
    }
}

impl OwnSockets {
    /// Binds an ephemeral port in each family (with `options.bind`, in that family only). Nothing is heard before the
    /// [`OwnSockets::receivers`] run.
    ///
    /// # Errors
    /// When no family can be bound.
    pub fn bind(
        resolver: Resolver,
        options: &SocketOptions,
        retransmit_first: Duration,
    ) -> io::Result<(UdpTrackers, OwnSockets)> {
        let sockets = Rc::new(RefCell::new(open_sockets(options)?));
        let sink = Box::new(OwnSink {
            sockets: sockets.clone(),
        });
        let trackers = UdpTrackers::new(resolver, sink, retransmit_first);
        let own = OwnSockets {
            sockets,
            options: options.clone(),
            trackers: trackers.clone(),
        };
        Ok((trackers, own))
    }

    /// Opens new sockets in place of those that were closed; new [`OwnSockets::receivers`] hear them.
    ///
    /// # Errors
    /// When no family can be bound.
    pub fn reopen(&self) -> io::Result<()> {
        let opened = open_sockets(&self.options)?;
        *self.sockets.borrow_mut() = opened;
        Ok(())
    }

    /// Closes the sockets; their receivers end.
    pub fn close(&self) {
        for (_, udp) in self.sockets.borrow_mut().drain(..) {
            udp.close();
        }
    }

    /// Who hears each socket.
    pub fn receivers(&self) -> Vec<Receiver> {
        let receiver = |(_, udp): &(Family, Udp)| Receiver {
            udp: udp.clone(),
            trackers: self.trackers.clone(),
        };
        self.sockets.borrow().iter().map(receiver).collect()
    }
}

impl Drop for OwnSockets {
    fn drop(&mut self) {
        self.close();
    }
}

/// One socket a family, or one in the family of `options.bind`.
fn open_sockets(options: &SocketOptions) -> io::Result<Vec<(Family, Udp)>> {
    let ips = match options.bind {
        Some(ip) => vec![ip],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    let mut sockets = Vec::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for ip in ips {
        match Udp::bind(SocketAddr::new(ip, 0), options) {
            Ok(udp) => sockets.push((family_of(ip), udp)),
            Err(error) => last = error,
        }
    }
    match sockets.is_empty() {
        true => Err(last),
        false => Ok(sockets),
    }
}

fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

impl Receiver {
    /// Hands datagrams on until the socket is closed.
    pub async fn run(self) {
        let mut buf = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let result;
            (result, buf) = self.udp.recv_from(buf).await;
            match result {
                Ok(received) => {
                    let datagram = buf.get(..received.length).unwrap_or_default();
                    self.trackers.on_datagram(received.from, datagram);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
                Err(error) => {
                    // An ICMP error of an earlier datagram, or memory is short: never a busy loop.
                    tracing::debug!(%error, "receiving from trackers");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}
