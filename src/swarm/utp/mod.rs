//! uTP (BEP 29): every connection of one UDP port. Layer 2, pure.
//!
//! Datagrams go in with [`Utp::on_datagram`] and come out of [`Utp::next_transmit`]; what became readable, writable or
//! was lost is told by [`Utp::next_wake`]. There is no state of strangers: the answer to a SYN holds what is needed to
//! know whoever answers that, so that a flood of forged SYNs takes no memory (HOSTILE.md U1).
#![forbid(unsafe_code)]

mod congestion;
mod conn;
mod mtu;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use sha1::{Digest, Sha1};

pub use self::conn::Lost;
use self::conn::{Conn, Ends, KEPT_MIN_BYTES};
use crate::base::{Key, Now, Slots};
use crate::wire::utp::{HEADER_BYTES, Header, Kind, Packet, refuse};

/// Bytes that all connections together may keep beyond what each of them has, to be read and to be sent.
const SPARE_BYTES: usize = 64 * 1024 * 1024;
/// A SYN's answer is good for so long, and as long again.
const COOKIE_SECS: u64 = 32;
/// Packets that may have been lost before the one that shows that a SYN's answer came.
const COOKIE_GAP_MAX: u16 = 4;
/// Connections that were closed and still send: more are forgotten, the oldest first.
const CLOSING_MAX: usize = 256;
/// Tries to find an id that is free.
const ID_TRIES: u16 = 16;

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtpKey(Key);

impl UtpKey {
    /// The slot's number, small and dense: for arrays kept beside the connections.
    pub const fn index(self) -> usize {
        self.0.index()
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It belongs to this connection.
    Known(UtpKey),
    /// It began this connection, which is open and for its taker to close.
    New(UtpKey),
    /// Nobody's; this is the answer to it, never longer than it.
    Answer([u8; HEADER_BYTES]),
    /// Nobody's.
    Stranger,
}

/// Somebody who waited can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    Reader(UtpKey),
    Writer(UtpKey),
}

/// Datagrams to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub key: UtpKey,
    pub to: SocketAddr,
    /// The length of each but the last, which may be shorter.
    pub segment_bytes: usize,
}

/// There is no place for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many uTP connections")]
pub struct Full;

/// What a reader finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Bytes(usize),
    /// Nothing now; a wake follows.
    Nothing,
    End,
}

/// All connections.
#[derive(Debug)]
pub struct Utp {
    conns: Slots<Conn>,
    by_id: BTreeMap<(SocketAddr, u16), UtpKey>,
    deadlines: BTreeSet<(Now, UtpKey)>,
    /// By slot: the deadline that stands in `deadlines`, and whether it stands in `sending`.
    marks: Vec<Mark>,
    sending: VecDeque<UtpKey>,
    wakes: VecDeque<Wake>,
    /// Those that nobody uses, oldest first.
    closing: VecDeque<UtpKey>,
    secret: [u8; 32],
    connections_max: usize,
    takes_strangers: bool,
    /// Bytes kept to be sent, and room to receive, of all.
    kept_bytes: usize,
    extra_room_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    deadline: Option<Now>,
    is_sending: bool,
    kept_bytes: usize,
    extra_room_bytes: usize,
}

impl Utp {
    /// No connection yet. `secret` is something that nobody can guess.
    pub fn new(connections_max: usize, secret: [u8; 32]) -> Utp {
        Utp {
            conns: Slots::new(),
            by_id: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            marks: Vec::new(),
            sending: VecDeque::new(),
            wakes: VecDeque::new(),
            closing: VecDeque::new(),
            secret,
            connections_max,
            takes_strangers: true,
            kept_bytes: 0,
            extra_room_bytes: 0,
        }
    }

    /// Number of connections, those that are closing included.
    pub fn connection_count(&self) -> usize {
        self.conns.len()
    }

    /// From now on nobody who dials is taken in.
    pub const fn refuse_strangers(&mut self) {
        self.takes_strangers = false;
    }

    /// Dials. `random` is something that nobody can guess.
    ///
    /// # Errors
    /// There are too many connections.
    pub fn connect(&mut self, to: SocketAddr, random: u32) -> Result<UtpKey, Full> {
        let remote = plain(to);
        let (first, mut recv_id) = (random as u16, (random >> 16) as u16);
        self.make_room()?;
        for _ in 0..ID_TRIES {
            if !self.by_id.contains_key(&(remote, recv_id)) {
                let ends = Ends {
                    remote,
                    recv_id,
                    send_id: recv_id.wrapping_add(1),
                };
                let key = self.insert(Conn::dial(ends, first));
                self.after(key);
                return Ok(key);
            }
            recv_id = recv_id.wrapping_add(2);
        }
        Err(Full)
    }

    fn make_room(&mut self) -> Result<(), Full> {
        if self.conns.len() >= self.connections_max {
            let oldest = self.closing.pop_front().ok_or(Full)?;
            self.remove(oldest);
        }
        Ok(())
    }

    fn insert(&mut self, conn: Conn) -> UtpKey {
        let id = (conn.ends().remote, conn.ends().recv_id);
        let key = UtpKey(self.conns.insert(conn));
        self.by_id.insert(id, key);
        if self.marks.len() <= key.index() {
            self.marks.resize(key.index() + 1, Mark::default());
        }
        key
    }

    fn remove(&mut self, key: UtpKey) {
        let Some(conn) = self.conns.remove(key.0) else {
            return;
        };
        self.by_id
            .remove(&(conn.ends().remote, conn.ends().recv_id));
        if let Some(mark) = self.marks.get_mut(key.index()).map(std::mem::take) {
            self.kept_bytes -= mark.kept_bytes;
            self.extra_room_bytes -= mark.extra_room_bytes;
            if let Some(at) = mark.deadline {
                self.deadlines.remove(&(at, key));
            }
            if mark.is_sending {
                self.sending.retain(|other| *other != key);
            }
        }
        self.closing.retain(|other| *other != key);
    }

    /// Takes a datagram that looks like uTP's.
    pub fn on_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Now) -> Taken {
        let Ok(packet) = Packet::parse(datagram) else {
            return Taken::Stranger;
        };
        let from = plain(from);
        if let Some(key) = self.find(from, &packet.header) {
            return self.give(key, &packet, now);
        }
        match packet.header.kind {
            Kind::Syn => self.on_syn(from, &packet.header, datagram, now),
            Kind::Data => match self.accept(from, &packet.header, now) {
                Some(key) => {
                    self.give(key, &packet, now);
                    Taken::New(key)
                }
                None => self.turn_down(datagram),
            },
            Kind::Fin => self.turn_down(datagram),
            Kind::State | Kind::Reset => Taken::Stranger,
        }
    }

    /// Whether a datagram belongs to a connection.
    pub fn knows(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        Packet::parse(datagram).is_ok_and(|packet| self.find(plain(from), &packet.header).is_some())
    }

    fn turn_down(&self, datagram: &[u8]) -> Taken {
        refuse(datagram, 0).map_or(Taken::Stranger, Taken::Answer)
    }

    /// Whose packet it is. A SYN has the id less one; a reset may have that of our own packets, which it answers.
    fn find(&self, from: SocketAddr, header: &Header) -> Option<UtpKey> {
        let id = header.connection_id;
        let by = |id: u16| self.by_id.get(&(from, id)).copied();
        match header.kind {
            Kind::Syn => by(id.wrapping_add(1)),
            Kind::Reset => by(id).or_else(|| {
                let others = [id.wrapping_add(1), id.wrapping_sub(1)];
                let mut found = others.into_iter().filter_map(by);
                found.find(|key| {
                    let conn = self.conns.get(key.0);
                    conn.is_some_and(|conn| conn.ends().send_id == id)
                })
            }),
            _ => by(id),
        }
    }

    fn give(&mut self, key: UtpKey, packet: &Packet<'_>, now: Now) -> Taken {
        if let Some(conn) = self.conns.get_mut(key.0) {
            conn.on_packet(packet, now);
        }
        self.settle(key, now);
        Taken::Known(key)
    }

    fn on_syn(&self, from: SocketAddr, header: &Header, datagram: &[u8], now: Now) -> Taken {
        if !self.takes_strangers
            || self.conns.len() >= self.connections_max && self.closing.is_empty()
        {
            return self.turn_down(datagram);
        }
        let epoch = epoch(now);
        let answer = Header {
            kind: Kind::State,
            connection_id: header.connection_id,
            timestamp_us: now.as_micros() as u32,
            delay_us: (now.as_micros() as u32).wrapping_sub(header.timestamp_us),
            window_bytes: receiver::ROOM_START_BYTES as u32,
            seq_nr: self.cookie(from, header.connection_id, header.seq_nr, epoch),
            ack_nr: header.seq_nr,
        };
        let mut out = Vec::with_capacity(HEADER_BYTES);
        answer.write(&mut out);
        out.try_into().map_or(Taken::Stranger, Taken::Answer)
    }

    /// Begins the connection of a packet that acknowledges the answer to its SYN.
    fn accept(&mut self, from: SocketAddr, header: &Header, now: Now) -> Option<UtpKey> {
        if !self.takes_strangers {
            return None;
        }
        let recv_id = header.connection_id;
        let send_id = recv_id.wrapping_sub(1);
        let first = header.ack_nr.wrapping_add(1);
        let now = epoch(now);
        let epochs = [Some(now), now.checked_sub(1)];
        let syn = (1..=COOKIE_GAP_MAX)
            .map(|gap| header.seq_nr.wrapping_sub(gap))
            .find(|syn| {
                let mut epochs = epochs.into_iter().flatten();
                epochs.any(|epoch| self.cookie(from, send_id, *syn, epoch) == first)
            })?;
        self.make_room().ok()?;
        let ends = Ends {
            remote: from,
            recv_id,
            send_id,
        };
        Some(self.insert(Conn::accept(ends, first, syn.wrapping_add(1))))
    }

    /// The number of our first packet to whoever sent that SYN.
    fn cookie(&self, from: SocketAddr, id: u16, syn: u16, epoch: u64) -> u16 {
        let mut hash = Sha1::new();
        hash.update(self.secret);
        match from.ip() {
            IpAddr::V4(ip) => hash.update(ip.octets()),
            IpAddr::V6(ip) => hash.update(ip.octets()),
        }
        for number in [from.port(), id, syn] {
            hash.update(number.to_be_bytes());
        }
        hash.update(epoch.to_be_bytes());
        let hash = hash.finalize();
        u16::from_be_bytes([hash[0], hash[1]])
    }

    /// Whether the handshake is done.
    ///
    /// # Errors
    /// It came to nothing.
    pub fn is_open(&self, key: UtpKey) -> Result<bool, Lost> {
        let conn = self.conns.get(key.0).ok_or(Lost::Reset)?;
        conn.lost().map_or(Ok(conn.is_open()), Err)
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// The connection is lost, and everything that came before was read.
    pub fn read(&mut self, key: UtpKey, buf: &mut [u8], now: Now) -> Result<Read, Lost> {
        let spare = SPARE_BYTES.saturating_sub(self.extra_room_bytes);
        let conn = self.conns.get_mut(key.0).ok_or(Lost::Reset)?;
        let count = conn.read(buf);
        let wanted = conn.receiver().wanted_bytes();
        if wanted > 0 && wanted <= spare {
            conn.receiver().grow(wanted);
        }
        let found = match (count, conn.lost()) {
            (1.., _) => Ok(Read::Bytes(count)),
            _ if conn.is_at_end() => Ok(Read::End),
            (_, Some(lost)) => Err(lost),
            _ if buf.is_empty() => Ok(Read::Bytes(0)),
            _ => {
                conn.wants_read = true;
                Ok(Read::Nothing)
            }
        };
        self.settle(key, now);
        found
    }

    /// Whether there is something to read, the end included; else a wake follows.
    pub fn is_readable(&mut self, key: UtpKey) -> bool {
        let Some(conn) = self.conns.get_mut(key.0) else {
            return true;
        };
        conn.wants_read = !conn.is_readable();
        !conn.wants_read
    }

    /// Takes bytes to send; how many there was room for.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn write(&mut self, key: UtpKey, bytes: &[u8]) -> Result<usize, Lost> {
        let spare = SPARE_BYTES.saturating_sub(self.kept_bytes);
        let conn = self.conns.get_mut(key.0).ok_or(Lost::Reset)?;
        if let Some(lost) = conn.lost() {
            return Err(lost);
        }
        let count = conn.write(bytes, spare);
        self.after(key);
        Ok(count)
    }

    /// Whether there is room to write, or nothing will ever be; else a wake follows.
    pub fn is_writable(&mut self, key: UtpKey) -> bool {
        let Some(conn) = self.conns.get_mut(key.0) else {
            return true;
        };
        conn.wants_write = !conn.is_writable();
        !conn.wants_write
    }

    /// Ends the sending half: the end follows what was written.
    pub fn finish(&mut self, key: UtpKey, now: Now) {
        if let Some(conn) = self.conns.get_mut(key.0) {
            conn.finish();
            self.settle(key, now);
        }
    }

    /// Nobody uses it any more: what was written is sent, then it is forgotten.
    pub fn close(&mut self, key: UtpKey, now: Now) {
        let Some(conn) = self.conns.get_mut(key.0) else {
            return;
        };
        if !conn.is_closed() {
            conn.close(now);
            self.closing.push_back(key);
            if self.closing.len() > CLOSING_MAX
                && let Some(oldest) = self.closing.pop_front()
            {
                self.remove(oldest);
            }
        }
        self.settle(key, now);
    }

    /// The next moment to call [`Utp::on_deadline`] at.
    pub fn next_deadline(&self) -> Option<Now> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Time has passed.
    pub fn on_deadline(&mut self, now: Now) {
        while let Some((at, key)) = self.deadlines.first().copied()
            && at <= now
        {
            if let Some(conn) = self.conns.get_mut(key.0) {
                conn.on_deadline(now);
            }
            self.deadlines.remove(&(at, key));
            if let Some(mark) = self.marks.get_mut(key.index()) {
                mark.deadline = None;
            }
            self.settle(key, now);
        }
    }

    /// Who can go on.
    pub fn next_wake(&mut self) -> Option<Wake> {
        self.wakes.pop_front()
    }

    /// Appends datagrams for one address to `out`: one send, which the kernel cuts into segments.
    pub fn next_transmit(&mut self, now: Now, out: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(key) = self.sending.pop_front() {
            if let Some(mark) = self.marks.get_mut(key.index()) {
                mark.is_sending = false;
            }
            let Some(conn) = self.conns.get_mut(key.0) else {
                continue;
            };
            let sent = conn.transmit(now, out);
            let to = conn.ends().remote;
            if let Some(segment_bytes) = sent {
                self.settle(key, now);
                return Some(Transmit {
                    key,
                    to,
                    segment_bytes,
                });
            }
        }
        None
    }

    /// What follows from a change of a connection, its end included.
    fn settle(&mut self, key: UtpKey, now: Now) {
        if self.conns.get(key.0).is_some_and(|conn| conn.is_over(now)) {
            return self.remove(key);
        }
        self.after(key);
    }

    fn after(&mut self, key: UtpKey) {
        let (Some(conn), Some(mark)) = (self.conns.get_mut(key.0), self.marks.get_mut(key.index()))
        else {
            return;
        };
        if conn.wants_read && conn.is_readable() {
            conn.wants_read = false;
            self.wakes.push_back(Wake::Reader(key));
        }
        if conn.wants_write && conn.is_writable() {
            conn.wants_write = false;
            self.wakes.push_back(Wake::Writer(key));
        }
        let (kept, extra) = (conn.kept_bytes(), conn.receiver().extra_bytes());
        self.kept_bytes = self.kept_bytes - mark.kept_bytes + kept;
        self.extra_room_bytes = self.extra_room_bytes - mark.extra_room_bytes + extra;
        (mark.kept_bytes, mark.extra_room_bytes) = (kept, extra);
        if !mark.is_sending && conn.may_transmit() {
            mark.is_sending = true;
            self.sending.push_back(key);
        }
        let deadline = conn.next_deadline();
        if deadline != mark.deadline {
            if let Some(at) = mark.deadline {
                self.deadlines.remove(&(at, key));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, key));
            }
            mark.deadline = deadline;
        }
    }

    /// Asserts what must hold.
    pub fn check(&self) {
        assert_eq!(self.by_id.len(), self.conns.len());
        assert!(self.conns.len() <= self.connections_max);
        assert!(self.closing.len() <= CLOSING_MAX);
        let (mut kept, mut extra) = (0, 0);
        for (key, conn) in self.conns.iter() {
            conn.check();
            let mark = &self.marks[key.index()];
            assert_eq!(conn.next_deadline(), mark.deadline);
            kept += mark.kept_bytes;
            extra += mark.extra_room_bytes;
        }
        assert_eq!((kept, extra), (self.kept_bytes, self.extra_room_bytes));
        let least = KEPT_MIN_BYTES * self.conns.len();
        assert!(self.kept_bytes <= SPARE_BYTES + least);
        assert!(self.extra_room_bytes <= SPARE_BYTES);
    }
}

/// Without what differs between datagrams of one peer.
fn plain(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(mut addr) => {
            addr.set_flowinfo(0);
            addr.into()
        }
        SocketAddr::V4(_) => addr,
    }
}

/// Which key cookies are made with.
const fn epoch(now: Now) -> u64 {
    now.as_micros() / 1_000_000 / COOKIE_SECS
}
