//! The handshakes of one connection: that of Message Stream Encryption where it is used, then that of BEP 3. Layer 5.
//!
//! Nobody knows yet who is at the other end, so everything here has bounds: the bytes kept by what the parsers need, the
//! time by [`Attempt`]'s owner, and the key exchanges, which cost some 80 µs of the ring thread each, by [`Exchanges`].

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep_until};

use super::config::Encryption;
use super::door::Door;
use super::peer_stream::PeerStream;
use super::shared::Shared;
use crate::base::InfoHash;
use crate::uring::random::random;
use crate::wire::handshake::{
    HANDSHAKE_BYTES, Handshake, PROTOCOL, Prefix, Reserved, parse_prefix,
};
use crate::wire::mse::{Agreed, Ciphers, Initiator, RANDOM_BYTES, Random, Rc4, Responder, Step};

/// Enough for a handshake and the first messages behind it.
const HANDSHAKE_RECV_BYTES: usize = 16 * 1024;
/// Between two key exchanges with strangers: 500 a second are 4 % of the thread.
const EXCHANGE_EVERY: Duration = Duration::from_millis(2);
/// So many may come at once after a quiet time.
const EXCHANGES_AT_ONCE: u32 = 50;
/// Addresses that are remembered.
const MARKED_MAX: usize = 1024;

/// How much of a connection somebody who looks on can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// All of it.
    Open,
    /// All but what the one that dialed said first: handshakes were hidden, the payload is not.
    Obfuscated,
    /// Nothing.
    Encrypted,
}

/// A connection whose handshakes are done.
pub struct Shaken {
    pub handshake: Handshake,
    pub cover: Cover,
    pub ciphers: Option<Ciphers>,
    /// What came behind, decrypted.
    pub early: Vec<u8>,
}

/// A connection on its way to that. Whoever gives it up ends all that its handshake waits for.
pub struct Attempt {
    pub stream: PeerStream,
    is_given_up: Cell<bool>,
    given_up: Notify,
}

impl Attempt {
    /// Before the first byte.
    pub fn new(stream: PeerStream) -> Rc<Attempt> {
        Rc::new(Attempt {
            stream,
            is_given_up: Cell::new(false),
            given_up: Notify::new(),
        })
    }

    /// Ends it: operations on the socket complete, and waiting for a turn ends.
    pub fn give_up(&self) {
        self.is_given_up.set(true);
        self.stream.shutdown();
        self.given_up.notify_waiters();
    }

    async fn given_up(&self) {
        let given_up = self.given_up.notified();
        if !self.is_given_up.get() {
            given_up.await;
        }
    }
}

/// Whose turn it is to exchange keys. Strangers come in crowds, and each wants to be computed for (HOSTILE.md E6).
pub struct Exchanges {
    /// When the thread's time will have been paid for.
    paid_at: Mutex<Instant>,
}

impl Exchanges {
    /// Nobody has had a turn yet.
    pub fn new() -> Exchanges {
        Exchanges {
            paid_at: Mutex::new(earliest().unwrap_or_else(Instant::now)),
        }
    }

    /// Waits for a turn, first come, first served. Dropping the future leaves the line.
    async fn turn(&self) {
        let mut paid_at = self.paid_at.lock().await;
        sleep_until(*paid_at).await;
        let from = earliest().map_or(*paid_at, |earliest| earliest.max(*paid_at));
        *paid_at = from + EXCHANGE_EVERY;
    }
}

/// What was not used before is not saved up.
fn earliest() -> Option<Instant> {
    Instant::now().checked_sub(EXCHANGE_EVERY * EXCHANGES_AT_ONCE)
}

/// Addresses that are dialed another way first than others, because the usual one led to nothing there.
#[derive(Default)]
pub struct AddrMarks {
    known: BTreeSet<SocketAddr>,
    /// Oldest first.
    order: VecDeque<SocketAddr>,
}

impl AddrMarks {
    /// Whether it is one of them.
    pub fn has(&self, addr: SocketAddr) -> bool {
        self.known.contains(&addr)
    }

    /// It is, or is no more.
    pub fn set(&mut self, addr: SocketAddr, is_marked: bool) {
        if !is_marked {
            if self.known.remove(&addr) {
                self.order.retain(|known| *known != addr);
            }
            return;
        }
        if !self.known.insert(addr) {
            return;
        }
        self.order.push_back(addr);
        if self.order.len() > MARKED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// Why a handshake of ours came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unanswered {
    /// The other side ended it before it had answered: it may not know this kind of handshake.
    pub is_refused: bool,
    pub error: io::Error,
}

impl Unanswered {
    /// It did answer, or nobody knows.
    pub const fn other(error: io::Error) -> Unanswered {
        Unanswered {
            is_refused: false,
            error,
        }
    }

    fn refused(error: io::Error) -> Unanswered {
        Unanswered {
            is_refused: true,
            error,
        }
    }
}

/// Shakes hands with a peer we dialed, under one of the torrent's names; `is_hidden` with Message Stream Encryption.
pub async fn outbound(
    door: &Door,
    info_hash: InfoHash,
    attempt: &Attempt,
    is_hidden: bool,
) -> Result<Shaken, Unanswered> {
    let shared = door.shared();
    let ours = our_handshake(door, info_hash);
    let mut wire = match is_hidden {
        true => Box::pin(hide(shared, attempt, info_hash, &ours))
            .await
            .map_err(Unanswered::refused)?,
        false => {
            let (sent, _) = attempt.stream.send_all(ours).await;
            sent.map_err(Unanswered::refused)?;
            let mut wire = Wire::default();
            wire.read(&attempt.stream, shared)
                .await
                .map_err(Unanswered::refused)?;
            wire
        }
    };
    let handshake = wire.finish(&attempt.stream, shared).await;
    let handshake = handshake.map_err(Unanswered::other)?;
    if handshake.info_hash != info_hash {
        let error = io::Error::other("the peer answered for another torrent");
        return Err(Unanswered::other(error));
    }
    Ok(wire.shaken(handshake))
}

/// Agrees on how the connection is hidden; our own handshake goes along.
async fn hide(
    shared: &Shared,
    attempt: &Attempt,
    info_hash: InfoHash,
    ours: &[u8],
) -> io::Result<Wire> {
    let Some(payloads) = shared.config.encryption.payloads() else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let mut initiator = Initiator::new(info_hash, payloads, ours, fresh()?);
    loop {
        let (sent, _) = attempt.stream.send_all(initiator.take_out()).await;
        sent?;
        let received = receive(&attempt.stream, shared).await?;
        if initiator.feed(&received).map_err(io::Error::other)? {
            let agreed = initiator.finish();
            return Ok(Wire::hidden(agreed.ok_or(io::ErrorKind::InvalidData)?));
        }
    }
}

/// Shakes hands with a peer that dialed us, whichever way it begins.
pub async fn inbound(shared: &Rc<Shared>, attempt: &Attempt) -> io::Result<(Door, Shaken)> {
    let mut wire = Wire::default();
    let policy = shared.config.encryption;
    // Some dialers wait for our half before they send their peer id: answer as soon as the torrent is known.
    let info_hash = loop {
        match parse_prefix(&wire.bytes) {
            Err(_) if policy.payloads().is_some() => {
                // Its future is large, and most connections never need it.
                return Box::pin(unhide(shared, attempt, wire.bytes)).await;
            }
            Err(error) => return Err(io::Error::other(error)),
            Ok(_) if policy == Encryption::Require && wire.bytes.len() >= PROTOCOL.len() => {
                return Err(io::Error::other("a handshake in the open"));
            }
            Ok(Prefix::InfoHashKnown { info_hash, .. }) => break info_hash,
            Ok(Prefix::Complete(handshake)) => break handshake.info_hash,
            Ok(Prefix::NeedsMore) => wire.read(&attempt.stream, shared).await?,
        }
    };
    let door = known(shared, attempt, info_hash).await?;
    let (sent, _) = attempt
        .stream
        .send_all(our_handshake(&door, info_hash))
        .await;
    sent?;
    let handshake = wire.finish(&attempt.stream, shared).await?;
    Ok((door, wire.shaken(handshake)))
}

/// Who takes connections for that info_hash, woken if need be.
async fn known(shared: &Shared, attempt: &Attempt, info_hash: InfoHash) -> io::Result<Door> {
    tokio::select! {
        biased;
        () = attempt.given_up() => Err(io::ErrorKind::ConnectionAborted.into()),
        door = shared.door_or_wake(info_hash) => door.ok_or_else(not_here),
    }
}

/// Goes on with a peer whose first bytes are no handshake in the open.
async fn unhide(
    shared: &Rc<Shared>,
    attempt: &Attempt,
    first: Vec<u8>,
) -> io::Result<(Door, Shaken)> {
    let payloads = shared.config.encryption.payloads();
    let mut responder = Responder::new(payloads.ok_or(io::ErrorKind::Unsupported)?);
    responder.feed(&first);
    let (mut door, mut info_hash) = (None, None);
    loop {
        match responder.advance().map_err(io::Error::other)? {
            Step::Bytes => responder.feed(&receive(&attempt.stream, shared).await?),
            Step::Exchange => {
                tokio::select! {
                    biased;
                    () = attempt.given_up() => return Err(io::ErrorKind::ConnectionAborted.into()),
                    () = shared.exchanges.turn() => {}
                }
                responder.exchange(fresh()?).map_err(io::Error::other)?;
                let (sent, _) = attempt.stream.send_all(responder.take_out()).await;
                sent?;
            }
            Step::Torrent(wanted) => {
                info_hash = shared.info_hash_of(&wanted);
                door = match info_hash {
                    Some(info_hash) => known(shared, attempt, info_hash).await.ok(),
                    None => None,
                };
                info_hash = info_hash.filter(|_| door.is_some());
                responder.set_torrent(info_hash).map_err(io::Error::other)?;
            }
            Step::Done => break,
        }
    }
    let (door, info_hash) = door.zip(info_hash).ok_or_else(not_here)?;
    let mut out = responder.take_out();
    let agreed = responder.finish().ok_or(io::ErrorKind::InvalidData)?;
    let mut wire = Wire::hidden(agreed);
    let mut ours = our_handshake(&door, info_hash);
    if let Some(outbound) = &mut wire.outbound {
        outbound.apply(&mut ours);
    }
    out.append(&mut ours);
    let (sent, _) = attempt.stream.send_all(out).await;
    sent?;
    let handshake = wire.finish(&attempt.stream, shared).await?;
    if handshake.info_hash != info_hash {
        return Err(io::Error::other("a handshake of another torrent"));
    }
    Ok((door, wire.shaken(handshake)))
}

fn not_here() -> io::Error {
    io::Error::other("a torrent that is not here")
}

fn fresh() -> io::Result<Random> {
    Ok(Random::new(random::<RANDOM_BYTES>()?))
}

fn our_handshake(door: &Door, info_hash: InfoHash) -> Vec<u8> {
    Handshake {
        reserved: reserved(door, info_hash),
        info_hash,
        peer_id: door.shared().our_id,
    }
    .encode()
    .to_vec()
}

fn reserved(door: &Door, info_hash: InfoHash) -> Reserved {
    let reserved = match door.tells_dht_port() {
        true => Reserved::OURS.with_dht(),
        false => Reserved::OURS,
    };
    match door.is_v2(&info_hash) {
        true => reserved.with_v2(),
        false => reserved,
    }
}

/// Gathers the 68 bytes of a handshake; what comes behind them is kept.
#[derive(Default)]
struct Wire {
    /// Decrypted.
    bytes: Vec<u8>,
    is_hidden: bool,
    inbound: Option<Box<Rc4>>,
    outbound: Option<Box<Rc4>>,
}

impl Wire {
    fn hidden(agreed: Agreed) -> Wire {
        let (outbound, inbound) = match agreed.ciphers {
            Some(ciphers) => (Some(ciphers.outbound), Some(ciphers.inbound)),
            None => (None, None),
        };
        Wire {
            bytes: agreed.early,
            is_hidden: true,
            inbound,
            outbound,
        }
    }

    async fn finish(&mut self, stream: &PeerStream, shared: &Shared) -> io::Result<Handshake> {
        loop {
            match parse_prefix(&self.bytes).map_err(io::Error::other)? {
                Prefix::Complete(handshake) => return Ok(handshake),
                Prefix::NeedsMore | Prefix::InfoHashKnown { .. } => {
                    self.read(stream, shared).await?;
                }
            }
        }
    }

    async fn read(&mut self, stream: &PeerStream, shared: &Shared) -> io::Result<()> {
        let mut received = receive(stream, shared).await?;
        if let Some(inbound) = &mut self.inbound {
            inbound.apply(&mut received);
        }
        self.bytes.append(&mut received);
        Ok(())
    }

    fn shaken(self, handshake: Handshake) -> Shaken {
        let ciphers = match (self.outbound, self.inbound) {
            (Some(outbound), Some(inbound)) => Some(Ciphers { outbound, inbound }),
            _ => None,
        };
        let cover = match (self.is_hidden, &ciphers) {
            (false, _) => Cover::Open,
            (true, None) => Cover::Obfuscated,
            (true, Some(_)) => Cover::Encrypted,
        };
        Shaken {
            handshake,
            cover,
            ciphers,
            early: self
                .bytes
                .get(HANDSHAKE_BYTES..)
                .unwrap_or_default()
                .to_vec(),
        }
    }
}

/// Waits for bytes and takes them; the end of the stream is an error.
async fn receive(stream: &PeerStream, shared: &Shared) -> io::Result<Vec<u8>> {
    loop {
        // Waiting costs no buffer: silent connections must stay cheap.
        stream.readable().await?;
        let segment = shared.pool.alloc_or_heap(HANDSHAKE_RECV_BYTES);
        let (result, segment) = stream.recv_now(segment, 0..HANDSHAKE_RECV_BYTES).await;
        match result {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => {
                let received = segment.as_slice().get(..received);
                return Ok(received.unwrap_or_default().to_vec());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_waits_for_its_turns_and_who_leaves_the_line_costs_none() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let exchanges = Exchanges::new();
            let begun = Instant::now();
            for _ in 0..EXCHANGES_AT_ONCE + 50 {
                exchanges.turn().await;
            }
            let took = begun.elapsed();
            assert!(took >= EXCHANGE_EVERY * 49, "{took:?}");
            for _ in 0..1000 {
                tokio::select! {
                    biased;
                    () = exchanges.turn() => {}
                    () = std::future::ready(()) => {}
                }
            }
            let begun = Instant::now();
            exchanges.turn().await;
            let took = begun.elapsed();
            assert!(took < EXCHANGE_EVERY * 500, "{took:?}");
        });
    }

    #[test]
    fn addresses_that_are_marked_are_forgotten_when_there_are_too_many() {
        let addr = |port: usize| SocketAddr::from(([1, 2, 3, 4], port as u16));
        let mut marks = AddrMarks::default();
        for port in 0..=MARKED_MAX {
            marks.set(addr(port), true);
            marks.set(addr(port), true);
        }
        assert!(!marks.has(addr(0)) && marks.has(addr(1)) && marks.has(addr(MARKED_MAX)));
        marks.set(addr(1), false);
        assert!(!marks.has(addr(1)));
        assert_eq!((marks.known.len(), marks.order.len()), (1023, 1023));
    }
}
