//! One connection of uTP: both halves, their clockwork, and the packets between them. Layer 2, pure.

use std::net::SocketAddr;
use std::time::Duration;

use super::congestion::{Congestion, Delays, RoundTrip, TIMEOUT_MAX};
use super::mtu::PathMtu;
use super::receiver::{HELD_MAX, Receiver, Taken};
use super::sender::{Acked, Outgoing, Sender};
use crate::base::Now;
use crate::wire::utp::{HEADER_BYTES, Header, Kind, Packet};

/// Acks older than this say nothing that is of use, and a guess at our numbers is as good as none.
const ACK_BEHIND_MAX: u64 = 1_024;
/// Packets in order that may wait for their ack.
const UNACKED_MAX: u32 = 2;
/// How long an ack waits for another packet, or for data to go along with.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// SYNs without an answer before the other side counts as not there.
const SYNS_MAX: u32 = 3;
/// Timeouts in a row before the connection counts as lost: a minute at the least.
const TIMEOUTS_MAX: u32 = 7;
/// Bytes that are kept for a connection, whatever its window.
pub(super) const KEPT_MIN_BYTES: usize = 128 * 1024;
/// And at the most.
pub(super) const KEPT_MAX_BYTES: usize = 4 * 1024 * 1024;
/// There is room for more to write once so little of it is taken, of what may be.
const WRITABLE_PART: usize = 2;
/// Datagrams in one send: what the kernel cuts apart (UDP_SEGMENT).
const SEGMENTS_MAX: usize = 64;
/// Bytes of one send: the longest datagram of IPv4.
const BATCH_BYTES_MAX: usize = 65_507;
/// How long a connection that was closed may take to send what is left.
const LINGER: Duration = Duration::from_secs(10);
/// µTorrent says this where it knows nothing.
const DELAY_UNKNOWN_US: u32 = i32::MAX as u32;

/// Why a connection is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the other side does not answer")]
    TimedOut,
    #[error("the other side refuses the connection")]
    Refused,
    #[error("the other side ended the connection at once")]
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many SYNs went out.
    Dialing {
        syns: u32,
    },
    Open,
    Lost(Lost),
}

/// When an ack is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckDue {
    No,
    At(Now),
    AtOnce,
}

/// Whom a connection is with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub remote: SocketAddr,
    /// The id in packets to us.
    pub recv_id: u16,
    /// The id in packets of ours.
    pub send_id: u16,
}

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Conn {
    ends: Ends,
    state: State,
    sender: Sender,
    receiver: Receiver,
    congestion: Congestion,
    round_trip: RoundTrip,
    delays: Delays,
    mtu: PathMtu,
    /// How long their last packet took, by both clocks; they are told.
    reply_us: u32,
    /// Bytes that they have room for.
    peer_window: u32,
    /// The window that they were told last.
    told_window: u32,
    ack: AckDue,
    /// Packets in order since the last ack.
    unacked: u32,
    timeout_at: Option<Now>,
    timeouts: u32,
    /// When an answer is late enough to ask for it, once until one comes.
    late_at: Option<Now>,
    /// One packet may go past a window that is shut.
    may_ask: bool,
    /// Nobody reads or writes it any more; it is forgotten then at the latest.
    closed_until: Option<Now>,
    /// Somebody waits to read, or to write.
    pub wants_read: bool,
    pub wants_write: bool,
    sack: Vec<u8>,
}

impl Conn {
    /// Dials; `first` is the number of the SYN.
    pub fn dial(ends: Ends, first: u16) -> Conn {
        let mut conn = Conn::new(ends, first.wrapping_add(1), 0);
        conn.state = State::Dialing { syns: 0 };
        conn
    }

    /// Answers a SYN: `first` is the number of our first packet, `next` that of theirs.
    pub fn accept(ends: Ends, first: u16, next: u16) -> Conn {
        Conn::new(ends, first, next)
    }

    fn new(ends: Ends, first: u16, next: u16) -> Conn {
        let mtu = PathMtu::new(ends.remote.ip());
        Conn {
            ends,
            state: State::Open,
            sender: Sender::new(numbers_from(first)),
            receiver: Receiver::new(numbers_from(next)),
            congestion: Congestion::new(mtu.datagram_bytes()),
            round_trip: RoundTrip::new(),
            delays: Delays::default(),
            mtu,
            reply_us: 0,
            peer_window: 0,
            told_window: 0,
            ack: AckDue::No,
            unacked: 0,
            timeout_at: None,
            timeouts: 0,
            late_at: None,
            may_ask: false,
            closed_until: None,
            wants_read: false,
            wants_write: false,
            sack: Vec::new(),
        }
    }

    /// Whom it is with.
    pub const fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Whether both sides know of each other.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Why it is no more, if it is not.
    pub const fn lost(&self) -> Option<Lost> {
        match self.state {
            State::Lost(why) => Some(why),
            _ => None,
        }
    }

    /// Bytes kept to be sent.
    pub fn kept_bytes(&self) -> usize {
        self.sender.kept_bytes()
    }

    /// Its receiving half.
    pub const fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }

    /// Something to read, or the end.
    pub fn is_readable(&self) -> bool {
        self.receiver.ready_bytes() > 0 || self.receiver.is_at_end() || self.lost().is_some()
    }

    /// Room to write, or the end.
    pub fn is_writable(&self) -> bool {
        self.lost().is_some()
            || self.sender.is_ended()
            || self.is_open() && self.sender.kept_bytes() * WRITABLE_PART <= self.kept_max()
    }

    /// Bytes that may be kept: what is on its way, and as much again.
    fn kept_max(&self) -> usize {
        let window = usize::try_from(self.congestion.window_bytes()).unwrap_or(usize::MAX);
        window
            .saturating_mul(2)
            .clamp(KEPT_MIN_BYTES, KEPT_MAX_BYTES)
    }

    /// Takes what there is room for.
    pub fn write(&mut self, bytes: &[u8], spare_bytes: usize) -> usize {
        // Where memory is short, each connection still has the least.
        let spare = self.sender.kept_bytes().saturating_add(spare_bytes);
        let kept_max = self.kept_max().min(spare.max(KEPT_MIN_BYTES));
        self.sender.write(bytes, kept_max)
    }

    /// Whether the peer's end has come and everything before it was read.
    pub fn is_at_end(&self) -> bool {
        self.receiver.is_at_end() && self.receiver.ready_bytes() == 0
    }

    /// Reads what is there.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        let count = self.receiver.read(buf);
        // They wait for room, or soon will.
        let window = self.receiver.window_bytes();
        if count > 0
            && self.is_open()
            && window >= self.told_window.saturating_mul(2).max(32 * 1024)
        {
            self.ack = AckDue::AtOnce;
        }
        count
    }

    /// Nothing is written any more.
    pub fn finish(&mut self) {
        self.sender.finish();
    }

    /// Nobody has a use for it any more; what was written is still sent.
    pub fn close(&mut self, now: Now) {
        self.sender.finish();
        if self.closed_until.is_none() {
            self.closed_until = Some(now + LINGER);
        }
    }

    /// Whether nobody uses it.
    pub const fn is_closed(&self) -> bool {
        self.closed_until.is_some()
    }

    /// Whether nothing is left to do for it.
    pub fn is_over(&self, now: Now) -> bool {
        self.closed_until.is_some_and(|until| {
            now >= until || self.lost().is_some() || !self.is_open() || self.sender.is_done()
        })
    }

    /// Gives up on it.
    pub fn lose(&mut self, why: Lost) {
        if self.lost().is_none() {
            self.state = State::Lost(why);
            self.timeout_at = None;
            self.ack = AckDue::No;
        }
    }

    /// Takes a packet with its id from its address.
    pub fn on_packet(&mut self, packet: &Packet<'_>, now: Now) {
        let header = &packet.header;
        if self.lost().is_some() {
            return;
        }
        if header.kind == Kind::Syn {
            // Our answer was lost.
            if self.is_open() {
                self.ack = AckDue::AtOnce;
            }
            return;
        }
        let acked = near(self.sender.oldest(), header.ack_nr);
        // What was never sent cannot be acknowledged; whoever says so is not the one we talk to.
        let is_ack_good =
            acked < self.sender.next() && acked + ACK_BEHIND_MAX >= self.sender.oldest();
        if !is_ack_good {
            return;
        }
        match (self.state, header.kind) {
            // Only the SYN has been sent, so its ack it is.
            (State::Dialing { .. }, _) if acked + 1 != self.sender.next() => return,
            (State::Dialing { .. }, Kind::Reset) => return self.lose(Lost::Refused),
            (State::Open, Kind::Reset) => {
                if acked + 1 >= self.sender.oldest() {
                    self.lose(Lost::Reset);
                }
                return;
            }
            (State::Dialing { .. }, _) => {
                self.receiver = Receiver::new(numbers_from(header.seq_nr));
                self.state = State::Open;
                self.timeouts = 0;
            }
            _ => {}
        }
        let seq = near(self.receiver.next(), header.seq_nr);
        if seq > self.receiver.next() + HELD_MAX || seq + ACK_BEHIND_MAX < self.receiver.next() {
            return;
        }
        self.note_times(header, now);
        if acked + 1 >= self.sender.oldest() {
            self.peer_window = header.window_bytes;
        }
        let is_bare = header.kind == Kind::State;
        let in_flight = self.sender.in_flight_bytes();
        let news = self.sender.on_ack(acked, packet.sack, is_bare, now);
        self.on_news(&news, in_flight, now);
        self.take(header.kind, seq, packet.payload, now);
    }

    fn note_times(&mut self, header: &Header, now: Now) {
        if header.timestamp_us != 0 {
            self.reply_us = micros(now).wrapping_sub(header.timestamp_us);
            self.delays.on_theirs(self.reply_us, now);
        }
        if header.delay_us != 0 && header.delay_us != DELAY_UNKNOWN_US {
            self.delays.on_ours(header.delay_us, now);
        }
    }

    fn on_news(&mut self, news: &Acked, in_flight_bytes: u64, now: Now) {
        if let Some(length) = news.probe_acked {
            self.mtu.on_acked(length);
        }
        if let Some(length) = news.probe_lost {
            self.mtu.on_lost(length, now);
        }
        if let Some(round_trip) = news.round_trip {
            self.round_trip.add(round_trip);
        }
        let packet_bytes = self.mtu.datagram_bytes();
        if let Some(transmission) = news.lost {
            let next = self.sender.next_transmission();
            let is_unqueued = self.delays.is_unqueued();
            self.congestion
                .on_lost(transmission, next, is_unqueued, packet_bytes);
        }
        if news.bytes > 0 {
            // A packet queues no longer than it takes there and back.
            let round_trip = news.round_trip.map_or(u32::MAX, |it| it.as_micros() as u32);
            let queueing = self.delays.queueing_us().unwrap_or(0).min(round_trip);
            let acked = (news.bytes, in_flight_bytes);
            self.congestion
                .on_acked(acked, news.filled_window, queueing, packet_bytes);
        }
        if news.packets > 0 {
            self.timeouts = 0;
            self.may_ask = false;
            self.timeout_at = None;
            self.late_at = None;
        }
        self.set_timeout(now);
    }

    /// Runs the clock while something is waited for.
    fn set_timeout(&mut self, now: Now) {
        if !self.sender.awaits_acks() && !self.sender.has_news() {
            self.timeout_at = None;
            self.late_at = None;
        } else if self.timeout_at.is_none() {
            self.timeout_at = Some(now + self.round_trip.timeout(self.timeouts));
            if self.timeouts == 0 && self.is_open() {
                self.late_at = self.round_trip.late_after().map(|after| now + after);
            }
        }
    }

    fn take(&mut self, kind: Kind, seq: u64, payload: &[u8], now: Now) {
        let taken = match kind {
            Kind::Data if self.is_closed() => {
                // Nobody reads it: let it go by.
                match self.receiver.on_data(seq, &[]) {
                    Taken::Held => Taken::Held,
                    other => other,
                }
            }
            Kind::Data => self.receiver.on_data(seq, payload),
            Kind::Fin => self.receiver.on_end(seq),
            _ => return,
        };
        self.unacked += 1;
        let is_quiet = taken == Taken::InOrder
            && kind == Kind::Data
            && !self.receiver.has_gap()
            && self.unacked < UNACKED_MAX;
        self.ack = match (is_quiet, self.ack) {
            (true, AckDue::No) => AckDue::At(now + ACK_DELAY),
            (true, due) => due,
            (false, _) => AckDue::AtOnce,
        };
    }

    /// When the clock is to be looked at.
    pub fn next_deadline(&self) -> Option<Now> {
        let ack = match self.ack {
            AckDue::At(at) => Some(at),
            _ => None,
        };
        let all = [self.timeout_at, self.late_at, ack, self.closed_until];
        all.into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn on_deadline(&mut self, now: Now) {
        if let AckDue::At(at) = self.ack
            && now >= at
        {
            self.ack = AckDue::AtOnce;
        }
        if self.timeout_at.is_some_and(|at| now >= at) {
            (self.timeout_at, self.late_at) = (None, None);
            self.on_timeout(now);
        }
        if self.late_at.is_some_and(|at| now >= at) {
            self.late_at = None;
            self.on_late(now);
        }
    }

    /// One packet asks what became of the others before they count as lost: an ack of all of them is lost as easily as one packet.
    fn on_late(&mut self, now: Now) {
        if let Some(length) = self.sender.ask_again() {
            self.mtu.on_lost(length, now);
        }
        let answer_at = self.round_trip.late_after().map(|after| now + after);
        self.timeout_at = self.timeout_at.max(answer_at);
    }

    fn on_timeout(&mut self, now: Now) {
        if let State::Dialing { syns } = self.state {
            self.timeouts += 1;
            if syns >= SYNS_MAX {
                return self.lose(Lost::TimedOut);
            }
            // The next SYN sets the clock.
            return;
        }
        let is_shut = self.peer_window < self.mtu.datagram_bytes();
        if is_shut || self.sender.awaits_acks() {
            self.timeouts += 1;
        }
        if self.sender.awaits_acks() {
            // A reader that is full drops what we ask with.
            if self.timeouts >= TIMEOUTS_MAX && !is_shut {
                return self.lose(Lost::TimedOut);
            }
            if let Some(length) = self.sender.on_timeout() {
                self.mtu.on_lost(length, now);
            }
            if !is_shut {
                let next = self.sender.next_transmission();
                let packet_bytes = self.mtu.datagram_bytes();
                self.congestion.on_timeout(next, packet_bytes);
            }
        }
        self.may_ask = is_shut;
        self.set_timeout(now);
    }

    /// Whether [`Conn::transmit`] may have something.
    pub fn may_transmit(&self) -> bool {
        match self.state {
            State::Lost(_) => false,
            State::Dialing { syns } => syns < SYNS_MAX && self.timeout_at.is_none(),
            State::Open => {
                self.ack == AckDue::AtOnce || self.sender.awaits_acks() || self.sender.has_news()
            }
        }
    }

    /// Appends the datagrams to send next, all but the last one of the length that is returned; `None` when there are none.
    pub fn transmit(&mut self, now: Now, out: &mut Vec<u8>) -> Option<usize> {
        match self.state {
            State::Lost(_) => None,
            State::Dialing { syns } => self.transmit_syn(syns, now, out),
            State::Open => {
                let needs_own_ack = self.receiver.has_gap() || !self.sender.has_news();
                if self.ack == AckDue::AtOnce && needs_own_ack {
                    return Some(self.transmit_ack(now, out));
                }
                let sent = self.transmit_data(now, out);
                if sent.is_none() && self.ack == AckDue::AtOnce {
                    return Some(self.transmit_ack(now, out));
                }
                sent
            }
        }
    }

    fn transmit_syn(&mut self, syns: u32, now: Now, out: &mut Vec<u8>) -> Option<usize> {
        if syns >= SYNS_MAX || self.timeout_at.is_some() {
            return None;
        }
        self.state = State::Dialing { syns: syns + 1 };
        let timeout = self.round_trip.timeout(self.timeouts);
        self.timeout_at = Some(now + timeout.min(TIMEOUT_MAX));
        let syn = Header {
            connection_id: self.ends.recv_id,
            // The number before that of the first packet with data: it counts as sent from the beginning.
            seq_nr: (self.sender.oldest() - 1) as u16,
            ack_nr: 0,
            ..self.header(Kind::Syn, 0, now)
        };
        syn.write(out);
        Some(HEADER_BYTES)
    }

    fn transmit_ack(&mut self, now: Now, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let header = self.header(Kind::State, self.sender.next(), now);
        let mut sack = std::mem::take(&mut self.sack);
        self.receiver.write_sack(&mut sack);
        match sack.is_empty() {
            true => header.write(out),
            false => header.write_with_sack(&sack, out),
        }
        self.sack = sack;
        self.on_ack_sent(now);
        out.len() - start
    }

    fn on_ack_sent(&mut self, now: Now) {
        // The other side waits for it alone: should it be lost, another one follows.
        self.ack = match self.unacked > UNACKED_MAX {
            true => AckDue::At(now + ACK_DELAY),
            false => AckDue::No,
        };
        self.unacked = 0;
        self.told_window = self.receiver.window_bytes();
    }

    fn transmit_data(&mut self, now: Now, out: &mut Vec<u8>) -> Option<usize> {
        let mut segment = None;
        for _ in 0..SEGMENTS_MAX {
            let datagram_max = self.mtu.datagram_bytes() as usize;
            // All of one send are as long as the first, the last one may be shorter.
            let fits = segment.is_none_or(|length| {
                length == datagram_max && out.len() + datagram_max <= BATCH_BYTES_MAX
            });
            if !fits {
                break;
            }
            let Some((packet, is_probe)) = self.next_packet(now, segment.is_none()) else {
                break;
            };
            let start = out.len();
            self.write_packet(&packet, now, out);
            let length = out.len() - start;
            segment.get_or_insert(length);
            if is_probe || segment.is_some_and(|first| length < first) {
                break;
            }
        }
        if segment.is_some() {
            // What goes along with data names no gap: that needs an ack of its own.
            if !self.receiver.has_gap() {
                self.on_ack_sent(now);
            }
            self.set_timeout(now);
        }
        segment
    }

    fn next_packet(&mut self, now: Now, is_first: bool) -> Option<(Outgoing, bool)> {
        let mut window = self
            .congestion
            .window_bytes()
            .min(u64::from(self.peer_window));
        if self.may_ask && self.sender.in_flight_bytes() == 0 {
            self.may_ask = false;
            window = window.max(u64::from(self.mtu.datagram_bytes()));
        }
        let payload_max = self.mtu.datagram_bytes() as usize - HEADER_BYTES;
        let has_room = self.congestion.window_bytes() >= 4 * u64::from(self.mtu.datagram_bytes());
        let probe = match is_first && has_room && !self.is_closed() {
            true => self.mtu.next_probe(now),
            false => None,
        };
        let Some(packet) = self.sender.next_packet(window, payload_max, probe, now) else {
            let left = self
                .congestion
                .window_bytes()
                .saturating_sub(self.sender.in_flight_bytes());
            if self.sender.wants_to_send() && left < payload_max as u64 {
                self.sender.on_window_full();
            }
            return None;
        };
        let is_probe = packet.fill_bytes.is_some();
        if is_probe {
            self.mtu.on_probe();
        }
        // One of another length than the rest begins a send of its own, and ends it.
        Some((packet, is_probe))
    }

    fn write_packet(&mut self, packet: &Outgoing, now: Now, out: &mut Vec<u8>) {
        let kind = match packet.is_end {
            true => Kind::Fin,
            false => Kind::Data,
        };
        let header = self.header(kind, packet.seq, now);
        let fill = packet.fill_bytes.map_or(0, |length| {
            (length as usize).saturating_sub(HEADER_BYTES + packet.length)
        });
        match fill {
            0 | 1 => header.write(out),
            _ => header.write_padded(fill, out),
        }
        self.sender.copy(packet, out);
    }

    fn header(&self, kind: Kind, seq: u64, now: Now) -> Header {
        Header {
            kind,
            connection_id: self.ends.send_id,
            timestamp_us: micros(now),
            delay_us: self.reply_us,
            window_bytes: self.receiver.window_bytes(),
            seq_nr: seq as u16,
            ack_nr: (self.receiver.next() - 1) as u16,
        }
    }

    /// What the next packet says.
    #[cfg(test)]
    pub fn next_header(&self) -> Header {
        self.header(Kind::State, self.sender.next(), Now::ZERO)
    }

    /// The congestion window.
    #[cfg(test)]
    pub fn window_bytes(&self) -> u64 {
        self.congestion.window_bytes()
    }

    /// Asserts what must hold.
    pub fn check(&self) {
        self.sender.check();
        self.receiver.check();
        assert!(self.sender.kept_bytes() <= KEPT_MAX_BYTES);
        if self.is_open() && self.sender.awaits_acks() {
            assert!(self.timeout_at.is_some(), "nobody would notice a loss");
        }
    }
}

/// Numbers of packets count on from there, far enough from 0 to look back.
fn numbers_from(first: u16) -> u64 {
    1 << 32 | u64::from(first)
}

/// The number with these low bits that is nearest.
fn near(of: u64, low: u16) -> u64 {
    let ahead = low.wrapping_sub(of as u16) as i16;
    of.wrapping_add_signed(i64::from(ahead))
}

/// The clock of timestamps.
const fn micros(now: Now) -> u32 {
    now.as_micros() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_past_sixteen_bits() {
        assert_eq!(near(0x1_0000_fffe, 3), 0x1_0001_0003);
        assert_eq!(near(0x1_0001_0003, 0xfffe), 0x1_0000_fffe);
        assert_eq!(near(0x1_0001_0003, 3), 0x1_0001_0003);
    }
}
