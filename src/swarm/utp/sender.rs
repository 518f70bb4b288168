//! The sending half of a connection: bytes into packets, and which of them are lost. Layer 2, pure.
//!
//! A packet keeps its bytes when it is sent again: its number names them (BEP 29).

use std::collections::VecDeque;
use std::time::Duration;

use super::conn::KEPT_MIN_BYTES;
use super::receiver::QUIET_BYTES;
use crate::base::Now;
use crate::wire::utp::SelectiveAck;

/// A packet is lost once one that was sent so many transmissions later has come across.
const REORDER_MAX: u64 = 3;
/// Acks without news that count as a loss, from peers that do not tell more.
const REPEATED_MAX: u32 = 3;
/// Packets that wait for their ack: numbers stay unambiguous, and looking through them stays cheap.
pub(super) const PACKETS_MAX: usize = 8_192;

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    InFlight,
    /// To be sent again.
    Lost,
    Acked,
}

/// One packet that has a number.
#[derive(Clone, Debug)]
struct Sent {
    length: u16,
    at: Whereabouts,
    is_end: bool,
    /// Length of the datagram, filled up, when it asked what the path takes.
    probe: Option<u32>,
    sent_at: Now,
    /// The number of its last transmission.
    transmission: u64,
    is_repeated: bool,
}

/// What an ack brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Acked {
    pub bytes: u64,
    /// Packets, those without bytes included.
    pub packets: u32,
    /// Of packets that were sent once, the shortest.
    pub round_trip: Option<Duration>,
    /// Some of them left when the window let no more out.
    pub filled_window: bool,
    /// The newest transmission that was found lost to something else than its length.
    pub lost: Option<u64>,
    /// A probe of that length came across, or did not.
    pub probe_acked: Option<u32>,
    pub probe_lost: Option<u32>,
}

/// A packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub seq: u64,
    /// Where its bytes lie among those not acknowledged.
    pub start: usize,
    pub length: usize,
    pub is_end: bool,
    /// Length to fill the datagram up to.
    pub fill_bytes: Option<u32>,
}

/// How far the end of the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Wanted,
    Numbered,
}

/// What was written and not yet acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    /// From the oldest byte that is not acknowledged on.
    bytes: VecDeque<u8>,
    /// Bytes of those that have a number.
    numbered_bytes: usize,
    packets: VecDeque<Sent>,
    /// The number of the oldest packet that is not acknowledged.
    oldest: u64,
    end: End,
    in_flight_bytes: u64,
    in_flight: usize,
    lost: usize,
    next_transmission: u64,
    last_acked_transmission: u64,
    repeated_acks: u32,
    /// One lost packet may go past the window: it is what all others wait for.
    is_urgent: bool,
    /// The packet that was sent again for what is heard of it, and the number of the transmission before.
    asked: Option<(u64, u64)>,
    /// Transmissions before this one filled the window.
    filled_before: u64,
}

impl Sender {
    /// The first packet gets that number.
    pub const fn new(first: u64) -> Sender {
        Sender {
            bytes: VecDeque::new(),
            numbered_bytes: 0,
            packets: VecDeque::new(),
            oldest: first,
            end: End::Open,
            in_flight_bytes: 0,
            in_flight: 0,
            lost: 0,
            next_transmission: 0,
            last_acked_transmission: 0,
            repeated_acks: 0,
            is_urgent: false,
            asked: None,
            filled_before: 0,
        }
    }

    /// The number of the next new packet.
    pub fn next(&self) -> u64 {
        self.oldest + self.packets.len() as u64
    }

    /// The number of the oldest packet that is not acknowledged.
    pub const fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The number of the next transmission.
    pub const fn next_transmission(&self) -> u64 {
        self.next_transmission
    }

    /// Bytes of packets on their way.
    pub const fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Bytes that are kept.
    pub fn kept_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Some packet is on its way or to be sent again.
    pub const fn awaits_acks(&self) -> bool {
        self.in_flight + self.lost > 0
    }

    /// Something was never sent.
    pub fn has_news(&self) -> bool {
        self.bytes.len() > self.numbered_bytes || self.end == End::Wanted
    }

    /// Something waits that no more room of the congestion window is left for.
    pub fn on_window_full(&mut self) {
        self.filled_before = self.next_transmission;
    }

    /// Whether something waits to be sent, for the first time or again.
    pub fn wants_to_send(&self) -> bool {
        self.lost > 0 || self.has_news()
    }

    /// Everything, the end included, has come across.
    pub fn is_done(&self) -> bool {
        self.end == End::Numbered && self.packets.is_empty()
    }

    /// The end has a number: nothing follows.
    pub fn is_ended(&self) -> bool {
        self.end != End::Open
    }

    /// Takes bytes until `kept_max` are kept.
    pub fn write(&mut self, bytes: &[u8], kept_max: usize) -> usize {
        if self.is_ended() {
            return 0;
        }
        let room = kept_max.saturating_sub(self.bytes.len());
        let part = bytes.get(..room).unwrap_or(bytes);
        self.bytes.extend(part);
        part.len()
    }

    /// Nothing is written any more.
    pub fn finish(&mut self) {
        if self.end == End::Open {
            self.end = End::Wanted;
        }
    }

    /// Copies bytes of a packet.
    pub fn copy(&self, packet: &Outgoing, out: &mut Vec<u8>) {
        let (first, second) = self.bytes.as_slices();
        let end = packet.start + packet.length;
        let split = first.len();
        out.extend_from_slice(&first[packet.start.min(split)..end.min(split)]);
        out.extend_from_slice(
            &second[packet.start.saturating_sub(split)..end.saturating_sub(split)],
        );
    }

    /// The next packet to send, what was lost first, with at most `payload_max` new bytes, as long as no more than
    /// `window` bytes are on their way. `probe` fills a new packet up to that length.
    pub fn next_packet(
        &mut self,
        window: u64,
        payload_max: usize,
        probe: Option<u32>,
        now: Now,
    ) -> Option<Outgoing> {
        if self.lost > 0 {
            return self.send_again(window, now);
        }
        if self.packets.len() >= PACKETS_MAX {
            return None;
        }
        let unsent = self.bytes.len() - self.numbered_bytes;
        let length = unsent.min(payload_max);
        let is_end = length == 0 && self.end == End::Wanted;
        if length == 0 && !is_end || self.in_flight_bytes + length as u64 > window {
            return None;
        }
        // A probe is full without its filling: it takes the way of all data.
        let fill_bytes = probe.filter(|_| length == payload_max);
        let packet = Outgoing {
            seq: self.next(),
            start: self.numbered_bytes,
            length,
            is_end,
            fill_bytes,
        };
        if is_end {
            self.end = End::Numbered;
        }
        self.numbered_bytes += length;
        self.packets.push_back(Sent {
            length: length as u16,
            at: Whereabouts::InFlight,
            is_end,
            probe: fill_bytes,
            sent_at: now,
            transmission: self.next_transmission,
            is_repeated: false,
        });
        self.next_transmission += 1;
        self.in_flight_bytes += length as u64;
        self.in_flight += 1;
        Some(packet)
    }

    fn send_again(&mut self, window: u64, now: Now) -> Option<Outgoing> {
        let mut start = 0;
        for (index, packet) in self.packets.iter_mut().enumerate() {
            let length = usize::from(packet.length);
            if packet.at != Whereabouts::Lost {
                start += length;
                continue;
            }
            let is_within = self.in_flight_bytes + length as u64 <= window;
            if !is_within && self.in_flight > 0 && !self.is_urgent {
                return None;
            }
            self.is_urgent = false;
            packet.at = Whereabouts::InFlight;
            packet.sent_at = now;
            packet.transmission = self.next_transmission;
            packet.is_repeated = true;
            self.next_transmission += 1;
            self.in_flight_bytes += length as u64;
            self.in_flight += 1;
            self.lost -= 1;
            return Some(Outgoing {
                seq: self.oldest + index as u64,
                start,
                length,
                is_end: packet.is_end,
                fill_bytes: None,
            });
        }
        None
    }

    /// Takes an ack of everything up to `acked`, which has been sent; `is_bare` when the packet carried nothing else.
    pub fn on_ack(
        &mut self,
        acked: u64,
        sack: Option<SelectiveAck<'_>>,
        is_bare: bool,
        now: Now,
    ) -> Acked {
        let mut news = Acked::default();
        let mut gone_bytes = 0;
        while self.oldest <= acked {
            let Some(packet) = self.packets.pop_front() else {
                break;
            };
            self.oldest += 1;
            gone_bytes += usize::from(packet.length);
            self.note_acked(&packet, &mut news, now);
        }
        self.bytes.drain(..gone_bytes);
        self.numbered_bytes -= gone_bytes;
        let is_quiet = self.bytes.is_empty() && gone_bytes < QUIET_BYTES;
        if is_quiet && self.bytes.capacity() > KEPT_MIN_BYTES {
            self.bytes = VecDeque::new();
        }
        if news.packets > 0 {
            self.repeated_acks = 0;
        }
        match sack {
            Some(sack) => self.on_sack(acked, sack, &mut news, now),
            None if is_bare && news.packets == 0 && acked + 1 == self.oldest => {
                self.on_repeated_ack(&mut news);
            }
            None => {}
        }
        self.is_urgent |= news.lost.is_some();
        self.note_answer(&mut news);
        news
    }

    /// What was sent again for an answer has one. When that is all that came with it, the first one of it was lost; when there
    /// is more, its acks were (RFC 8985, "Detecting Losses Using the Loss Probe").
    fn note_answer(&mut self, news: &mut Acked) {
        let Some((seq, transmission)) = self.asked else {
            return;
        };
        let index = seq.checked_sub(self.oldest);
        let packet = index.and_then(|index| self.packets.get(index as usize));
        if packet.is_none_or(|packet| packet.at == Whereabouts::Acked) {
            self.asked = None;
            if news.packets == 1 {
                news.lost = Some(transmission.max(news.lost.unwrap_or(0)));
            }
        }
    }

    fn note_acked(&mut self, packet: &Sent, news: &mut Acked, now: Now) {
        match packet.at {
            Whereabouts::Acked => return,
            Whereabouts::Lost => self.lost -= 1,
            Whereabouts::InFlight => {
                self.in_flight -= 1;
                self.in_flight_bytes -= u64::from(packet.length);
            }
        }
        news.packets += 1;
        news.bytes += u64::from(packet.length);
        news.filled_window |= packet.transmission < self.filled_before;
        if !packet.is_repeated {
            let took = now.since(packet.sent_at);
            news.round_trip = Some(news.round_trip.map_or(took, |shortest| shortest.min(took)));
        }
        self.last_acked_transmission = self.last_acked_transmission.max(packet.transmission);
        if packet.probe.is_some() {
            news.probe_acked = packet.probe;
        }
    }

    fn on_sack(&mut self, acked: u64, sack: SelectiveAck<'_>, news: &mut Acked, now: Now) {
        let mut last = None;
        let packets_before = news.packets;
        for offset in sack.offsets() {
            let seq = acked + u64::from(offset);
            let Some(index) = seq.checked_sub(self.oldest) else {
                continue;
            };
            let index = index as usize;
            let Some(packet) = self.packets.get_mut(index) else {
                break;
            };
            last = Some(index);
            if packet.at != Whereabouts::Acked {
                let packet = packet.clone();
                self.note_acked(&packet, news, now);
                if let Some(packet) = self.packets.get_mut(index) {
                    packet.at = Whereabouts::Acked;
                }
            }
        }
        if news.packets == packets_before {
            return;
        }
        let newest = self.last_acked_transmission;
        for index in 0..last.unwrap_or(0) {
            if self
                .packets
                .get(index)
                .is_some_and(|packet| packet.transmission + REORDER_MAX <= newest)
            {
                self.lose(index, news);
            }
        }
    }

    fn on_repeated_ack(&mut self, news: &mut Acked) {
        if self.packets.is_empty() {
            return;
        }
        self.repeated_acks += 1;
        if self.repeated_acks == REPEATED_MAX {
            self.lose(0, news);
        }
    }

    fn lose(&mut self, index: usize, news: &mut Acked) {
        let Some(packet) = self.packets.get_mut(index) else {
            return;
        };
        if packet.at != Whereabouts::InFlight {
            return;
        }
        packet.at = Whereabouts::Lost;
        self.lost += 1;
        self.in_flight -= 1;
        self.in_flight_bytes -= u64::from(packet.length);
        match packet.probe.take() {
            Some(probe) => news.probe_lost = Some(probe),
            None => news.lost = Some(packet.transmission.max(news.lost.unwrap_or(0))),
        }
    }

    /// An answer is late: the newest packet on its way is to be sent again, for what is heard of it. Returns the length of a
    /// probe that it was.
    pub fn ask_again(&mut self) -> Option<u32> {
        let is_in_flight = |packet: &Sent| packet.at == Whereabouts::InFlight;
        let index = self.packets.iter().rposition(is_in_flight)?;
        let transmission = self.packets.get(index)?.transmission;
        let mut news = Acked::default();
        self.lose(index, &mut news);
        self.is_urgent = true;
        if news.lost.is_some() {
            self.asked = Some((self.oldest + index as u64, transmission));
        }
        news.probe_lost
    }

    /// Nothing came back in time: all that is on its way is to be sent again. Returns the length of a probe among it.
    pub fn on_timeout(&mut self) -> Option<u32> {
        let mut news = Acked::default();
        for index in 0..self.packets.len() {
            self.lose(index, &mut news);
        }
        self.repeated_acks = 0;
        self.asked = None;
        news.probe_lost
    }

    /// Asserts what must hold.
    pub fn check(&self) {
        let is = |at: Whereabouts| self.packets.iter().filter(move |packet| packet.at == at);
        let bytes = |at| is(at).map(|packet| u64::from(packet.length)).sum::<u64>();
        assert_eq!(bytes(Whereabouts::InFlight), self.in_flight_bytes);
        assert_eq!(is(Whereabouts::InFlight).count(), self.in_flight);
        assert_eq!(is(Whereabouts::Lost).count(), self.lost);
        let numbered: usize = self.packets.iter().map(|it| usize::from(it.length)).sum();
        assert_eq!(numbered, self.numbered_bytes);
        assert!(self.numbered_bytes <= self.bytes.len());
        assert!(self.packets.len() <= PACKETS_MAX);
    }
}

#[cfg(test)]
mod tests;
