//! The receiving half of a connection: packets into the order of their numbers. Layer 2, pure.

use std::collections::{BTreeMap, VecDeque};

use crate::wire::utp::SACK_BYTES_MAX;

/// Packets past the first missing one that are kept: as many as a selective ack of ours can name.
pub(super) const HELD_MAX: u64 = SACK_BYTES_MAX as u64 * 8;
/// What a packet that is kept costs beside its bytes.
const HELD_COST_BYTES: usize = 64;
/// Room of a connection that has shown nothing yet.
pub(super) const ROOM_START_BYTES: usize = 64 * 1024;
/// Room of one that fills it again and again.
pub(super) const ROOM_MAX_BYTES: usize = 1024 * 1024;

/// Who has no more than this to read, or to send, at a time keeps no memory for more.
pub(super) const QUIET_BYTES: usize = 8 * 1024;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was the next one.
    InOrder,
    /// One before it is missing.
    Held,
    /// It was there already, or there is no room for it.
    Useless,
}

/// What came and was not read yet.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    /// The number of the first packet that is missing.
    next: u64,
    ready: VecDeque<u8>,
    held: BTreeMap<u64, Vec<u8>>,
    held_bytes: usize,
    room_bytes: usize,
    /// The number of the last packet there will be.
    end: Option<u64>,
    /// Bytes read since the room grew.
    read_bytes: usize,
}

impl Receiver {
    /// Expects the packet of that number.
    pub fn new(next: u64) -> Receiver {
        Receiver {
            next,
            ready: VecDeque::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            room_bytes: ROOM_START_BYTES,
            end: None,
            read_bytes: 0,
        }
    }

    /// The number of the first packet that is missing.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Bytes that there is room for.
    pub fn window_bytes(&self) -> u32 {
        let used = self.ready.len() + self.held_bytes;
        self.room_bytes.saturating_sub(used) as u32
    }

    /// Bytes that can be read.
    pub fn ready_bytes(&self) -> usize {
        self.ready.len()
    }

    /// Everything up to the end has come.
    pub fn is_at_end(&self) -> bool {
        self.end.is_some_and(|end| self.next > end)
    }

    /// Some packet past a missing one has come.
    pub fn has_gap(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes a packet; one past [`HELD_MAX`] is useless.
    pub fn on_data(&mut self, seq: u64, payload: &[u8]) -> Taken {
        if seq < self.next || seq > self.next + HELD_MAX || self.end.is_some_and(|end| seq >= end) {
            return Taken::Useless;
        }
        if seq > self.next {
            let cost = payload.len() + HELD_COST_BYTES;
            // The bytes of the missing one must find room too.
            if self.held.contains_key(&seq) || cost + HELD_COST_BYTES > self.window_bytes() as usize
            {
                return Taken::Useless;
            }
            self.held_bytes += cost;
            self.held.insert(seq, payload.to_vec());
            return Taken::Held;
        }
        // What was kept for long must not keep the one packet out that would free it.
        let room = self.room_bytes.saturating_sub(self.ready.len());
        if payload.len() > room {
            return Taken::Useless;
        }
        self.ready.extend(payload);
        self.next += 1;
        self.release();
        Taken::InOrder
    }

    /// Takes the number of the last packet; the first word counts.
    pub fn on_end(&mut self, seq: u64) -> Taken {
        if self.end.is_none() && seq >= self.next && seq <= self.next + HELD_MAX {
            self.end = Some(seq);
            while let Some((&last, _)) = self.held.last_key_value()
                && last >= seq
            {
                self.forget(last);
            }
            self.release();
            return match self.is_at_end() {
                true => Taken::InOrder,
                false => Taken::Held,
            };
        }
        Taken::Useless
    }

    fn release(&mut self) {
        while let Some(payload) = self.forget(self.next) {
            self.ready.extend(payload);
            self.next += 1;
        }
        if self.end == Some(self.next) {
            self.next += 1;
        }
    }

    fn forget(&mut self, seq: u64) -> Option<Vec<u8>> {
        let payload = self.held.remove(&seq)?;
        self.held_bytes -= payload.len() + HELD_COST_BYTES;
        Some(payload)
    }

    /// Reads what is there into `buf`.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        let count = buf.len().min(self.ready.len());
        let (first, second) = self.ready.as_slices();
        let from_first = count.min(first.len());
        buf[..from_first].copy_from_slice(&first[..from_first]);
        buf[from_first..count].copy_from_slice(&second[..count - from_first]);
        self.ready.drain(..count);
        let is_quiet = self.ready.is_empty() && count < QUIET_BYTES;
        if is_quiet && self.ready.capacity() > ROOM_START_BYTES {
            self.ready = VecDeque::new();
        }
        self.read_bytes += count;
        count
    }

    /// Bytes that its room would grow by, were there memory: it was filled and read since it last grew.
    pub fn wanted_bytes(&self) -> usize {
        match self.room_bytes < ROOM_MAX_BYTES && self.read_bytes >= 2 * self.room_bytes {
            true => self.room_bytes.min(ROOM_MAX_BYTES - self.room_bytes),
            false => 0,
        }
    }

    /// Room for so many bytes more.
    pub const fn grow(&mut self, bytes: usize) {
        self.room_bytes += bytes;
        self.read_bytes = 0;
    }

    /// Room beyond what every connection has.
    pub const fn extra_bytes(&self) -> usize {
        self.room_bytes - ROOM_START_BYTES
    }

    /// Writes the selective ack; nothing without a gap.
    pub fn write_sack(&self, out: &mut Vec<u8>) {
        out.clear();
        let first = self.next + 1;
        let Some((&last, _)) = self.held.last_key_value() else {
            return;
        };
        let bits = (last + 1).saturating_sub(first).min(HELD_MAX) as usize;
        out.resize(bits.div_ceil(32) * 4, 0);
        for &seq in self.held.keys() {
            let bit = (seq - first) as usize;
            if let Some(byte) = out.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }

    /// Asserts what must hold.
    pub fn check(&self) {
        let held: usize = self
            .held
            .values()
            .map(|it| it.len() + HELD_COST_BYTES)
            .sum();
        assert_eq!(held, self.held_bytes);
        assert!(self.ready.len() <= self.room_bytes + self.room_bytes);
        assert!(
            self.held
                .keys()
                .all(|seq| *seq > self.next && *seq <= self.next + HELD_MAX)
        );
        assert!(self.room_bytes <= ROOM_MAX_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(receiver: &mut Receiver) -> Vec<u8> {
        let mut buf = vec![0; receiver.ready_bytes()];
        let count = receiver.read(&mut buf);
        assert_eq!(count, buf.len());
        buf
    }

    #[test]
    fn packets_are_read_in_their_order_once() {
        let mut receiver = Receiver::new(10);
        assert_eq!(receiver.on_data(12, b"cc"), Taken::Held);
        assert_eq!(receiver.on_data(12, b"xx"), Taken::Useless);
        assert_eq!(receiver.on_data(9, b"xx"), Taken::Useless);
        assert_eq!(receiver.on_data(10, b"aa"), Taken::InOrder);
        assert_eq!(read_all(&mut receiver), b"aa");
        assert!(receiver.has_gap());
        assert_eq!(receiver.on_data(11, b"bb"), Taken::InOrder);
        assert_eq!(read_all(&mut receiver), b"bbcc");
        assert_eq!(receiver.next(), 13);
        receiver.check();
    }

    #[test]
    fn the_selective_ack_names_what_came_past_the_gap() {
        let mut receiver = Receiver::new(10);
        let mut sack = vec![1];
        receiver.write_sack(&mut sack);
        assert!(sack.is_empty());
        for seq in [11, 13, 44] {
            receiver.on_data(seq, b"x");
        }
        receiver.write_sack(&mut sack);
        assert_eq!(sack, [0b101, 0, 0, 0, 0b10, 0, 0, 0]);
        assert_eq!(receiver.on_data(10 + HELD_MAX, b"x"), Taken::Held);
        assert_eq!(receiver.on_data(11 + HELD_MAX, b"x"), Taken::Useless);
        receiver.write_sack(&mut sack);
        assert_eq!(sack.len(), SACK_BYTES_MAX);
        receiver.check();
    }

    #[test]
    fn the_end_comes_after_everything_before_it() {
        let mut receiver = Receiver::new(10);
        assert_eq!(receiver.on_data(13, b"past the end"), Taken::Held);
        assert_eq!(receiver.on_end(12), Taken::Held);
        assert_eq!(receiver.on_end(11), Taken::Useless, "the first word counts");
        assert_eq!(receiver.on_data(13, b"x"), Taken::Useless);
        assert_eq!(receiver.on_data(11, b"b"), Taken::Held);
        assert!(!receiver.is_at_end());
        assert_eq!(receiver.on_data(10, b"a"), Taken::InOrder);
        assert!(receiver.is_at_end());
        assert_eq!(
            (read_all(&mut receiver).as_slice(), receiver.next()),
            (&b"ab"[..], 13)
        );
        receiver.check();
    }

    #[test]
    fn a_busy_connection_keeps_its_memory_and_a_quiet_one_gives_it_back() {
        let mut receiver = Receiver::new(0);
        receiver.grow(ROOM_START_BYTES);
        for seq in 0..12 {
            assert_eq!(receiver.on_data(seq, &[7; 10_000]), Taken::InOrder);
        }
        read_all(&mut receiver);
        assert!(receiver.ready.capacity() >= 120_000);
        receiver.on_data(12, b"a few");
        assert_eq!(read_all(&mut receiver), b"a few");
        assert_eq!(receiver.ready.capacity(), 0);
    }

    #[test]
    fn room_is_bounded_whatever_order_packets_come_in() {
        let mut receiver = Receiver::new(0);
        let packet = vec![7; 1_000];
        let held = (1..=HELD_MAX).filter(|seq| receiver.on_data(*seq, &packet) == Taken::Held);
        let held = held.count();
        assert!(held * 1_064 <= ROOM_START_BYTES && held > 55, "{held}");
        assert!(receiver.window_bytes() < 2_000);
        assert_eq!(
            receiver.on_data(0, &packet),
            Taken::InOrder,
            "it frees the others"
        );
        assert_eq!(receiver.ready_bytes(), (held + 1) * 1_000);
        for seq in receiver.next().. {
            if receiver.on_data(seq, &packet) == Taken::Useless {
                break;
            }
        }
        assert!(receiver.ready_bytes() <= ROOM_START_BYTES);
        assert_eq!(receiver.wanted_bytes(), 0, "nothing was read");
        receiver.check();
        receiver.read(&mut vec![0; ROOM_START_BYTES]);
        receiver.read_bytes = 2 * ROOM_START_BYTES;
        let wanted = receiver.wanted_bytes();
        assert_eq!(wanted, ROOM_START_BYTES);
        receiver.grow(wanted);
        assert_eq!(
            (receiver.extra_bytes(), receiver.wanted_bytes()),
            (wanted, 0)
        );
    }
}
