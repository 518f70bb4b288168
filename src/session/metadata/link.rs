//! One connection of a search: a reader and a writer, as `session::peer` has them, without payload. Layer 5.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::sync::Notify;
use tracing::{Instrument, debug, debug_span};

use super::{DRAIN_TIMEOUT, Search};
use crate::session::contain;
use crate::session::peer_stream::PeerStream;
use crate::session::shake::Shaken;
use crate::swarm::PeerKey;
use crate::swarm::torrent::Connected;
use crate::wire::decoder::{Decoder, Event, Limits};
use crate::wire::message::Message;
use crate::wire::mse::Rc4;

/// One receive: a piece of metadata with its header fits twice.
const RECV_BYTES: usize = 32 * 1024;

/// The runtime's side of one connected peer.
pub(super) struct Link {
    stream: PeerStream,
    /// The peer's, also when a proxy stands between.
    pub addr: SocketAddr,
    pub wake: Notify,
    is_closing: Cell<bool>,
}

impl Link {
    /// Ends the connection: the reader sees the end of the stream, the writer stops.
    pub fn close(&self) {
        self.is_closing.set(true);
        self.stream.shutdown();
        self.wake.notify_one();
    }

    /// Ends our side, and the connection when the peer has ended its own or does not for too long.
    pub fn close_gently(self: &Rc<Self>) {
        self.is_closing.set(true);
        self.stream.shutdown_write();
        self.wake.notify_one();
        let link = Rc::downgrade(self);
        tokio_uring::spawn(async move {
            tokio::time::sleep(DRAIN_TIMEOUT).await;
            if let Some(link) = link.upgrade() {
                link.close();
            }
        });
    }
}

impl Search {
    /// Runs one connection whose handshakes are done.
    pub async fn run_link(self: Rc<Self>, stream: PeerStream, conn: Connected, shaken: Shaken) {
        let (outbound, inbound) = match shaken.ciphers {
            Some(ciphers) => (Some(ciphers.outbound), Some(ciphers.inbound)),
            None => (None, None),
        };
        let key = match self.call(|core, cx| core.on_connected(conn, cx)) {
            Ok(key) => key,
            Err(refusal) => {
                debug!(addr = %conn.addr, %refusal, "connection refused");
                stream.shutdown();
                return;
            }
        };
        let span = debug_span!("peer", addr = %conn.addr);
        let link = Rc::new(Link {
            stream,
            addr: conn.addr,
            wake: Notify::new(),
            is_closing: Cell::new(false),
        });
        self.add_link(key, link.clone());
        link.wake.notify_one();
        let (search, of_panic) = (self.clone(), self.shared.clone());
        let written = link.clone();
        let writing = async move {
            if let Err(error) = search.write(key, &written, outbound).await {
                debug!(%error, "send failed");
            }
            // While it closes gently the reader waits for the other side.
            if !written.is_closing.get() {
                written.close();
            }
        };
        let writing = writing.instrument(span.clone());
        let writer =
            tokio_uring::spawn(async move { contain::connection(&of_panic, writing).await });
        let reading = self
            .read(key, &link, &shaken.early, inbound)
            .instrument(span.clone());
        let end = contain::connection(&self.shared, reading).await;
        let end = end.unwrap_or_else(|panicked| Err(panicked.into()));
        span.in_scope(|| {
            debug!(
                end = end.as_ref().err().map(tracing::field::display),
                "disconnected"
            )
        });
        link.close();
        // A panicked writer has nothing left to return.
        let _ = writer.await;
        self.remove_link(key);
        if !self.has_panicked.get() {
            self.call(|core, cx| core.on_disconnected(key, cx));
        }
    }

    fn add_link(&self, key: PeerKey, link: Rc<Link>) {
        self.link_count.set(self.link_count.get() + 1);
        let mut links = self.links.borrow_mut();
        let slot = key.0.index();
        if links.len() <= slot {
            links.resize_with(slot + 1, || None);
        }
        links[slot] = Some((key, link));
    }

    fn remove_link(&self, key: PeerKey) {
        let mut links = self.links.borrow_mut();
        if let Some(slot) = links.get_mut(key.0.index())
            && slot.as_ref().is_some_and(|(present, _)| *present == key)
        {
            *slot = None;
        }
        self.link_count.set(self.link_count.get().saturating_sub(1));
        self.idle.notify_waiters();
    }

    async fn read(
        self: &Rc<Self>,
        key: PeerKey,
        link: &Link,
        early: &[u8],
        mut cipher: Option<Box<Rc4>>,
    ) -> io::Result<()> {
        let mut decoder = Decoder::new(Limits::before_metadata());
        self.feed(key, &mut decoder, early)?;
        loop {
            // The buffer is borrowed only while data keeps coming: an idle peer pins none.
            link.stream.readable().await?;
            let segment = self.shared.pool.alloc_or_heap(RECV_BYTES);
            let (result, mut segment) = link.stream.recv_now(segment, 0..RECV_BYTES).await;
            let received = match result {
                Ok(0) => return Ok(()),
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let bytes = segment
                .as_mut_slice()
                .get_mut(..received)
                .unwrap_or_default();
            if let Some(cipher) = &mut cipher {
                cipher.apply(bytes);
            }
            self.feed(key, &mut decoder, bytes)?;
        }
    }

    fn feed(self: &Rc<Self>, key: PeerKey, decoder: &mut Decoder, bytes: &[u8]) -> io::Result<()> {
        let mut input = bytes;
        self.call(|core, cx| {
            while let Some(event) = decoder.next(&mut input).map_err(io::Error::other)? {
                let message = match event {
                    Event::Message(message) => message,
                    // Nothing was asked for: it passes by and counts as useless.
                    Event::PieceHeader(_) => Message::KeepAlive,
                    Event::Payload { .. } => continue,
                };
                core.on_message(key, &message, cx)
                    .map_err(io::Error::other)?;
            }
            Ok(())
        })
    }

    async fn write(
        self: &Rc<Self>,
        key: PeerKey,
        link: &Link,
        mut cipher: Option<Box<Rc4>>,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        while !link.is_closing.get() {
            out.clear();
            let taken = self.call(|core, cx| core.take_messages(key, &mut out, cx));
            if taken == 0 {
                link.wake.notified().await;
                continue;
            }
            if let Some(cipher) = &mut cipher {
                cipher.apply(&mut out);
            }
            let (result, back) = link.stream.send_all(std::mem::take(&mut out)).await;
            result?;
            out = back;
        }
        Ok(())
    }
}
