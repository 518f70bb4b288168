//! One connection: a reader task that owns the receiving side and a writer task that owns the sending side. Layer 5.
//!
//! The reader feeds the decoder and moves payload into its place; the writer pulls control messages and uploads from
//! the core, so a slow peer never piles up reads. Both end before the connection's slot is given back.

mod foresight;
pub(super) mod payload;
pub(super) mod reader;
mod writer;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::sync::Notify;
use tracing::{Instrument, debug, debug_span};

use super::contain::{self, Panicked};
use super::driver::Driver;
use super::lab::Followed;
use super::peer_stream::PeerStream;
use super::shake::{Cover, Shaken};
use super::shared::Shared;
use super::tune::{Direction, Pace};
use crate::swarm::CloseReason;
use crate::swarm::peer::PeerFault;
use crate::swarm::torrent::{Connected, Refusal};
use crate::wire::decoder::DecodeError;

/// The runtime's side of one connected peer.
pub struct PeerHandle {
    pub stream: PeerStream,
    /// The peer's, also when a proxy stands between.
    pub addr: SocketAddr,
    pub wake: Notify,
    pub cover: Cover,
    /// The request whose delays are told, if any are.
    followed: Rc<Followed>,
    closing: Cell<Option<CloseReason>>,
    shared: Rc<Shared>,
    pace: Rc<Pace>,
    /// Its number with the rate limits.
    client: u64,
}

impl PeerHandle {
    /// Ends the connection: the reader sees the end of the stream, the writer stops, and neither waits for its share of
    /// bandwidth any more.
    pub fn close(&self, reason: CloseReason) {
        if self.closing.get().is_none() {
            self.closing.set(Some(reason));
            self.stream.shutdown();
            self.wake.notify_one();
            self.pace.forget(self.client);
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }

    /// Waits for its share of the rate limits.
    async fn acquire(&self, direction: Direction, bytes: u64) {
        let is_closing = || self.is_closing();
        self.pace
            .acquire(direction, self.client, bytes, is_closing)
            .await;
    }
}

/// Why a reader ended.
#[derive(Debug, thiserror::Error)]
enum ReadEnd {
    #[error("the peer closed the connection")]
    Eof,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Fault(#[from] PeerFault),
    #[error("{0}")]
    Panicked(#[from] Panicked),
}

/// Runs one connection whose handshake is done.
pub async fn run(driver: Rc<Driver>, stream: PeerStream, conn: Connected, shaken: Shaken) {
    let mut taken = driver.call(|core, cx| core.on_connected(conn, cx));
    if taken == Err(Refusal::Full) && conn.is_inbound && make_room_elsewhere(&driver, &conn) {
        taken = driver.call(|core, cx| core.on_connected(conn, cx));
    }
    let key = match taken {
        Ok(key) => key,
        Err(refusal) => {
            debug!(addr = %conn.addr, %refusal, "connection refused");
            stream.shutdown();
            return;
        }
    };
    if shaken.cover != Cover::Open && !conn.is_inbound {
        driver.call(|core, _| core.on_hidden(key));
    }
    if stream.is_utp() {
        driver.call(|core, _| core.on_utp(key));
    }
    let span = debug_span!("peer", addr = %conn.addr);
    let shared = driver.shared().clone();
    let handle = Rc::new(PeerHandle {
        stream,
        addr: conn.addr,
        wake: Notify::new(),
        cover: shaken.cover,
        followed: Rc::default(),
        closing: Cell::new(None),
        client: driver.pace.client(),
        pace: driver.pace.clone(),
        shared,
    });
    driver.add_peer(key, handle.clone());
    handle.wake.notify_one();
    span.in_scope(|| debug!(cover = ?shaken.cover, is_utp = handle.stream.is_utp(), is_inbound = conn.is_inbound, "connected"));
    let (outbound, inbound) = match shaken.ciphers {
        Some(ciphers) => (Some(ciphers.outbound), Some(ciphers.inbound)),
        None => (None, None),
    };
    let writing = writer::run(driver.clone(), key, handle.clone(), outbound);
    let writing = writing.instrument(span.clone());
    let of_panic = handle.shared.clone();
    let writer = tokio_uring::spawn(async move { contain::connection(&of_panic, writing).await });
    let mut reader = reader::Reader::new(driver.clone(), key, handle.followed.clone(), inbound);
    let reading = reader.run(&handle, &shaken.early).instrument(span.clone());
    let end = contain::connection(&handle.shared, reading).await;
    let end = end.unwrap_or_else(|panicked| Err(panicked.into()));
    span.in_scope(|| debug!(reason = ?handle.closing.get(), end = end.as_ref().err().map(tracing::field::display), "disconnected"));
    handle.close(CloseReason::Silent);
    reader.end();
    // A panicked writer has nothing left to return.
    let _ = writer.await;
    driver.remove_peer(key);
    driver.call(|core, cx| core.on_disconnected(key, cx));
}

/// The session has no place left and neither has this torrent one to give: another torrent may.
fn make_room_elsewhere(driver: &Rc<Driver>, conn: &Connected) -> bool {
    let shared = driver.shared();
    if shared.credits.borrow().connections > 0 {
        return false;
    }
    let others: Vec<Rc<Driver>> = shared.torrents.borrow().values().cloned().collect();
    let mut others = others.iter().filter(|other| !Rc::ptr_eq(other, driver));
    others.any(|other| other.call(|core, cx| core.make_room(conn.addr.ip(), cx)))
}
