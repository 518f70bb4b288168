//! The tracker's HTTP half (BEP 3, 7, 23, 48): connections, requests, answers. Layer 5.
//!
//! Every connection has a total deadline for each request, not one for each read, and no buffer while it is silent.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, trace, warn};

use super::page::page;
use super::{Protocol, Tracker, count, log_announce};
use crate::base::{InfoHash, Key, Slots};
use crate::session::contain::caught;
use crate::session::deadline::Deadline;
use crate::swarm::registry::network_of;
use crate::uring::listener::Listener;
use crate::uring::stream::Stream;
use crate::wire::http::{HEAD_BYTES_MAX, HttpError, RequestHead};
use crate::wire::tracker::Family;
use crate::wire::tracker_http::serve::{
    Announced, PeerForm, Query, QueryError, announce_body, failure_body, parse_query, scrape_body,
};

/// Connections open at once. Each may hold a head of 16 KiB: 16 MiB in all.
const CONNECTIONS_MAX: usize = 1_024;
/// Of those, from one address (an IPv6 /64): one stranger cannot take all places.
const CONNECTIONS_PER_NETWORK_MAX: usize = 128;
/// From the first wait for a request to its last byte, and for its answer to be taken.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a client still sends is read for so long, and no further than [`LINGER_BYTES_MAX`], after an answer that ends
/// the connection in mid-request: closing at once would make the kernel throw that answer away.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// Received at a time; an announce is a few hundred bytes.
const RECEIVE_BYTES: usize = 2_048;
/// Peers in one answer at most; the registry's own limits are lower.
const PEERS_MAX: usize = 1_000;
/// After accept fails for want of descriptors (HOSTILE.md L5).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(500);

/// All open connections of all listeners.
#[derive(Default)]
pub struct Connections {
    open: RefCell<Slots<Stream>>,
    by_network: RefCell<BTreeMap<IpAddr, usize>>,
    is_stopping: Cell<bool>,
    closed: Notify,
}

impl Connections {
    /// Ends every connection; their tasks notice.
    pub fn shutdown(&self) {
        self.is_stopping.set(true);
        for (_, stream) in self.open.borrow().iter() {
            stream.shutdown();
        }
    }

    /// Completes when no connection is left.
    pub async fn ended(&self) {
        loop {
            let closed = self.closed.notified();
            if self.open.borrow().is_empty() {
                return;
            }
            closed.await;
        }
    }

    /// A place for one more connection, unless there is none for this address.
    fn enter(self: &Rc<Self>, stream: &Stream, ip: IpAddr) -> Option<Place> {
        let network = network_of(ip);
        let mut by_network = self.by_network.borrow_mut();
        let from_there = by_network.get(&network).copied().unwrap_or(0);
        let mut open = self.open.borrow_mut();
        let is_full = open.len() >= CONNECTIONS_MAX || from_there >= CONNECTIONS_PER_NETWORK_MAX;
        if is_full || self.is_stopping.get() {
            return None;
        }
        by_network.insert(network, from_there + 1);
        Some(Place {
            connections: self.clone(),
            key: open.insert(stream.clone()),
            network,
        })
    }
}

/// One connection's place, given back when dropped.
struct Place {
    connections: Rc<Connections>,
    key: Key,
    network: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(self.key);
        let mut by_network = self.connections.by_network.borrow_mut();
        if let Some(count) = by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                by_network.remove(&self.network);
            }
        }
        self.connections.closed.notify_waiters();
    }
}

/// Takes connections until the listener is closed.
pub async fn accept_loop(tracker: Rc<Tracker>, connections: Rc<Connections>, listener: Listener) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_closed(&error) => return,
            Err(error) => {
                warn!(%error, "cannot take connections for the moment");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let Some(place) = connections.enter(&stream, from.ip()) else {
            debug!(%from, "too many connections");
            stream.shutdown();
            continue;
        };
        let tracker = tracker.clone();
        tokio_uring::spawn(async move {
            match caught(serve(&tracker, &stream, from)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => trace!(%from, %error, "connection ended"),
                Err(_) => tracker.on_panic("a connection ended"),
            }
            stream.shutdown();
            drop(place);
        });
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted && error.raw_os_error().is_none()
}

/// Answers requests one after the other until either side has enough.
async fn serve(tracker: &Tracker, stream: &Stream, from: SocketAddr) -> io::Result<()> {
    let mut buf = Vec::new();
    let mut idle_timeout = REQUEST_TIMEOUT;
    loop {
        let answer = match receive_head(stream, &mut buf, idle_timeout).await? {
            Received::Request(head) => respond(tracker, from, &head),
            Received::Bad(error) => {
                debug!(%from, %error, "bad request");
                refuse(&error)
            }
            Received::End => return Ok(()),
        };
        let is_last = !answer.is_keep_alive;
        let deadline = Deadline::after(REQUEST_TIMEOUT);
        deadline.send(stream, answer.encode()).await?;
        if is_last {
            return linger(stream).await;
        }
        idle_timeout = IDLE_TIMEOUT;
    }
}

enum Received {
    Request(RequestHead),
    Bad(HttpError),
    /// The client closed between two requests.
    End,
}

/// The next request's head, taken off the front of `buf`.
async fn receive_head(
    stream: &Stream,
    buf: &mut Vec<u8>,
    idle_timeout: Duration,
) -> io::Result<Received> {
    if buf.is_empty() {
        // A connection that says nothing holds no memory.
        *buf = Vec::new();
        Deadline::after(idle_timeout).readable(stream).await?;
    }
    let deadline = Deadline::after(REQUEST_TIMEOUT);
    let mut has_line = !buf.is_empty();
    loop {
        // A head that comes byte by byte is looked at once a line, not once a byte.
        if has_line || buf.len() >= HEAD_BYTES_MAX {
            match RequestHead::parse(buf) {
                Ok(Some((head, head_bytes))) => {
                    buf.drain(..head_bytes);
                    return Ok(Received::Request(head));
                }
                Ok(None) => {}
                Err(error) => return Ok(Received::Bad(error)),
            }
        }
        let before = buf.len();
        let room = HEAD_BYTES_MAX
            .saturating_sub(before)
            .clamp(1, RECEIVE_BYTES);
        let result;
        (result, *buf) = deadline.recv(stream, std::mem::take(buf), room).await;
        if result? == 0 {
            return match buf.is_empty() {
                true => Ok(Received::End),
                false => Ok(Received::Bad(HttpError::Truncated)),
            };
        }
        let new = buf.get(before..).unwrap_or_default();
        has_line = before == 0 || new.contains(&b'\n');
    }
}

/// Reads on until the client has seen the answer and closed.
async fn linger(stream: &Stream) -> io::Result<()> {
    let deadline = Deadline::after(LINGER_TIMEOUT);
    stream.shutdown_write();
    let mut left = LINGER_BYTES_MAX;
    let mut buf = Vec::new();
    while left > 0 {
        buf.clear();
        let result;
        (result, buf) = deadline.recv(stream, buf, RECEIVE_BYTES).await;
        match result? {
            0 => return Ok(()),
            received => left = left.saturating_sub(received),
        }
    }
    Ok(())
}

/// One answer before it is bytes.
struct Answer {
    status: &'static str,
    body: Vec<u8>,
    is_keep_alive: bool,
}

impl Answer {
    fn encode(self) -> Vec<u8> {
        let connection = if self.is_keep_alive {
            "keep-alive"
        } else {
            "close"
        };
        let allow = if self.status.starts_with("405") {
            "Allow: GET\r\n"
        } else {
            ""
        };
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{allow}Connection: {connection}\r\n\r\n",
            self.status,
            self.body.len(),
        );
        let mut bytes = head.into_bytes();
        bytes.extend(self.body);
        bytes
    }
}

fn respond(tracker: &Tracker, from: SocketAddr, head: &RequestHead) -> Answer {
    let answer = |status, body: Vec<u8>| Answer {
        status,
        body,
        is_keep_alive: head.is_keep_alive && !head.has_body,
    };
    if head.method != "GET" {
        return Answer {
            is_keep_alive: false,
            ..answer("405 Method Not Allowed", b"only GET\n".to_vec())
        };
    }
    if head.target == b"/" {
        return answer("200 OK", page(&tracker.totals()).into_bytes());
    }
    match parse_query(&head.target) {
        Ok(Query::Announce(announced, form)) => {
            answer("200 OK", announce(tracker, from, &announced, form))
        }
        Ok(Query::Scrape(info_hashes)) => answer("200 OK", scrape(tracker, from, &info_hashes)),
        Err(QueryError::NotFound) => answer("404 Not Found", b"not found\n".to_vec()),
        Err(error) => {
            // Clients look for the reason in the body of a good answer (BEP 3).
            count(&tracker.refused);
            debug!(%from, %error, "refused");
            answer("200 OK", failure_body(&error.to_string()))
        }
    }
}

fn refuse(error: &HttpError) -> Answer {
    let status = match error {
        HttpError::HeadTooLong => "431 Request Header Fields Too Large",
        _ => "400 Bad Request",
    };
    Answer {
        status,
        body: format!("{error}\n").into_bytes(),
        is_keep_alive: false,
    }
}

fn announce(tracker: &Tracker, from: SocketAddr, announced: &Announced, form: PeerForm) -> Vec<u8> {
    count(&tracker.http_announces);
    log_announce(from, Protocol::Http, announced);
    let now = tracker.clock.now();
    let mut registry = tracker.registry.borrow_mut();
    match registry.announce(from.ip(), announced, PEERS_MAX, now) {
        Ok(answer) => announce_body(
            tracker.interval_secs,
            tracker.min_interval_secs(),
            answer.counts,
            &answer.peers,
            form,
            from.ip(),
        ),
        Err(refused) => {
            count(&tracker.refused);
            debug!(%from, %refused, "refused");
            failure_body(&refused.to_string())
        }
    }
}

fn scrape(tracker: &Tracker, from: SocketAddr, info_hashes: &[InfoHash]) -> Vec<u8> {
    if info_hashes.is_empty() {
        count(&tracker.refused);
        return failure_body("a scrape must name its torrents");
    }
    count(&tracker.scrapes);
    let family = match Family::V4.has(from.ip()) {
        true => Family::V4,
        false => Family::V6,
    };
    let mut registry = tracker.registry.borrow_mut();
    let counts = registry.scrape(family, info_hashes, tracker.clock.now());
    let known = info_hashes.iter().zip(counts);
    let files: Vec<_> = known
        .filter_map(|(info_hash, counts)| Some((*info_hash, counts?)))
        .collect();
    scrape_body(&files)
}
