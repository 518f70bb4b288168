//! Two ports in virtual time over a line that loses, turns round, doubles, delays and cuts off. One seed repeats a run.

mod long_line;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::base::Rng;

/// One direction of a line.
#[derive(Clone, Copy)]
struct Line {
    delay_us: u64,
    jitter_us: u64,
    loss_percent: u64,
    double_percent: u64,
    /// Bytes a millisecond, and how many may wait; 0 is no limit.
    bytes_per_ms: u64,
    queue_bytes: u64,
    mtu_bytes: usize,
}

const QUICK: Line = Line {
    delay_us: 5_000,
    jitter_us: 0,
    loss_percent: 0,
    double_percent: 0,
    bytes_per_ms: 0,
    queue_bytes: 0,
    mtu_bytes: 9_000,
};

struct Side {
    utp: Utp,
    addr: SocketAddr,
    key: Option<UtpKey>,
    /// Its clock: it began at another moment, and runs a little faster.
    offset_us: u64,
    drift_ppm: u64,
    /// What it sends: so many bytes, of which so many are written.
    to_send: usize,
    written: usize,
    read: usize,
    is_at_end: bool,
    lost: Option<Lost>,
    /// When the line out is free again.
    line_free_us: u64,
    datagrams: u64,
    sent_bytes: u64,
}

impl Side {
    fn new(addr: &str, offset_us: u64, secret: u8) -> Side {
        Side {
            utp: Utp::new(8, [secret; 32]),
            addr: addr.parse().unwrap(),
            key: None,
            offset_us,
            drift_ppm: 0,
            to_send: 0,
            written: 0,
            read: 0,
            is_at_end: false,
            lost: None,
            line_free_us: 0,
            datagrams: 0,
            sent_bytes: 0,
        }
    }

    fn now(&self, us: u64) -> Now {
        Now::from_micros(self.offset_us + us + us * self.drift_ppm / 1_000_000)
    }

    /// Writes and reads as far as it goes.
    fn pump(&mut self, us: u64) {
        let now = self.now(us);
        let Some(key) = self.key else { return };
        if self.lost.is_some() {
            return;
        }
        while self.written < self.to_send && self.utp.is_writable(key) {
            let part: Vec<u8> = (self.written..self.to_send.min(self.written + 16_384))
                .map(byte_at)
                .collect();
            match self.utp.write(key, &part) {
                Ok(0) => break,
                Ok(count) => self.written += count,
                Err(lost) => return self.lost = Some(lost),
            }
        }
        if self.written == self.to_send && self.to_send > 0 {
            self.utp.finish(key, now);
        }
        let mut buf = [0; 10_000];
        loop {
            match self.utp.read(key, &mut buf, now) {
                Ok(Read::Bytes(count)) => {
                    for byte in &buf[..count] {
                        assert_eq!(*byte, byte_at(self.read), "at {}", self.read);
                        self.read += 1;
                    }
                }
                Ok(Read::Nothing) => break,
                Ok(Read::End) => {
                    self.is_at_end = true;
                    break;
                }
                Err(lost) => return self.lost = Some(lost),
            }
        }
        while self.utp.next_wake().is_some() {}
    }
}

fn byte_at(index: usize) -> u8 {
    (index as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
}

struct World {
    us: u64,
    rng: Rng,
    sides: [Side; 2],
    lines: [Line; 2],
    /// On their way: by time and number, to which side.
    flying: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    count: u64,
    /// What arrives within so long of each other is taken before anything is sent, as a busy program does it.
    gathers_us: u64,
}

impl World {
    fn new(seed: u64, there: Line, back: Line) -> World {
        let a = Side::new("10.0.0.1:1000", 7_000_000_000, 1);
        let b = Side::new("10.0.0.2:2000", 3_999_999_000, 2);
        World {
            us: 0,
            rng: Rng::new(seed),
            sides: [a, b],
            lines: [there, back],
            flying: BTreeMap::new(),
            count: 0,
            gathers_us: 0,
        }
    }

    fn dial(&mut self) {
        let to = self.sides[1].addr;
        let random = self.rng.next_u64() as u32;
        self.sides[0].key = Some(self.sides[0].utp.connect(to, random).unwrap());
        self.flush(0);
    }

    fn now(&self, side: usize) -> Now {
        self.sides[side].now(self.us)
    }

    fn flush(&mut self, side: usize) {
        let now = self.now(side);
        let mut out = Vec::new();
        while let Some(transmit) = self.sides[side].utp.next_transmit(now, &mut out) {
            assert!(out.len() <= 65_507 && out.len().div_ceil(transmit.segment_bytes) <= 64);
            assert_eq!(transmit.to, self.sides[1 - side].addr);
            for datagram in out.chunks(transmit.segment_bytes) {
                self.send(side, datagram.to_vec());
            }
            out.clear();
        }
        self.sides[side].utp.check();
    }

    fn send(&mut self, side: usize, datagram: Vec<u8>) {
        let line = self.lines[side];
        self.sides[side].datagrams += 1;
        self.sides[side].sent_bytes += datagram.len() as u64;
        if datagram.len() > line.mtu_bytes || self.rng.chance(line.loss_percent) {
            return;
        }
        let mut at = self.us;
        if line.bytes_per_ms > 0 {
            let free = self.sides[side].line_free_us.max(at);
            if (free - at) * line.bytes_per_ms / 1_000 > line.queue_bytes {
                return;
            }
            at = free + datagram.len() as u64 * 1_000 / line.bytes_per_ms;
            self.sides[side].line_free_us = at;
        }
        let copies = 1 + u64::from(self.rng.chance(line.double_percent));
        for _ in 0..copies {
            self.count += 1;
            let at = at + line.delay_us + self.rng.below(line.jitter_us + 1);
            let flying = (1 - side, datagram.clone());
            self.flying.insert((at, self.count), flying);
        }
    }

    /// Goes on to whatever comes next; false when nothing does before that moment.
    fn step(&mut self, until_us: u64) -> bool {
        let deadline = |side: &Side| {
            let at = side.utp.next_deadline()?;
            let us = at.as_micros().saturating_sub(side.offset_us);
            Some(us - us * side.drift_ppm / 1_000_000 / 2)
        };
        let clocks = [deadline(&self.sides[0]), deadline(&self.sides[1])];
        let flying = self.flying.first_key_value().map(|((at, _), _)| *at);
        let next = clocks.into_iter().flatten().chain(flying).min();
        let Some(next) = next.filter(|next| *next <= until_us) else {
            self.us = until_us;
            return false;
        };
        self.us = self.us.max(next);
        if flying == Some(next) {
            let until = next + self.gathers_us;
            while let Some(first) = self.flying.first_entry()
                && first.key().0 <= until
            {
                self.us = self.us.max(first.key().0);
                let (side, datagram) = first.remove();
                self.arrive(side, &datagram);
            }
        }
        for side in 0..2 {
            let now = self.now(side);
            self.sides[side].utp.on_deadline(now);
            self.sides[side].pump(self.us);
            self.flush(side);
        }
        true
    }

    fn arrive(&mut self, side: usize, datagram: &[u8]) -> Taken {
        let (from, now) = (self.sides[1 - side].addr, self.now(side));
        let taken = self.sides[side].utp.on_datagram(from, datagram, now);
        match taken {
            Taken::New(key) => self.sides[side].key = Some(key),
            Taken::Answer(answer) => {
                assert!(answer.len() <= datagram.len(), "nothing is made larger");
                self.send(side, answer.to_vec());
            }
            Taken::Known(_) | Taken::Stranger => {}
        }
        taken
    }

    fn is_done(&self) -> bool {
        (0..2).all(|side| {
            let (ours, theirs) = (&self.sides[side], &self.sides[1 - side]);
            ours.read == theirs.to_send && (theirs.to_send == 0 || ours.is_at_end)
        })
    }

    /// Runs until everything has come across; the seconds that it took.
    fn finish(&mut self, secs: u64) -> f64 {
        let until = self.us + secs * 1_000_000;
        let began = self.us;
        while !self.is_done() {
            assert!(
                self.step(until),
                "{} and {} of {} and {} bytes came after {secs} s, lost: {:?} {:?}",
                self.sides[1].read,
                self.sides[0].read,
                self.sides[0].to_send,
                self.sides[1].to_send,
                self.sides[0].lost,
                self.sides[1].lost,
            );
        }
        (self.us - began) as f64 / 1e6
    }
}

#[test]
fn every_byte_comes_across_in_order_both_ways_whatever_the_line_does() {
    let seeds = std::env::var("GYRE_FUZZ_RUNS").map_or(30, |runs| runs.parse().unwrap_or(30));
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let line = |rng: &mut Rng| Line {
            delay_us: rng.below(80_000),
            jitter_us: *rng.pick(&[0, 0, 500, 20_000]).unwrap(),
            loss_percent: *rng.pick(&[0, 1, 5, 20]).unwrap(),
            double_percent: *rng.pick(&[0, 0, 10]).unwrap(),
            bytes_per_ms: *rng.pick(&[0, 0, 200, 2_000]).unwrap(),
            queue_bytes: 20_000 + rng.below(200_000),
            mtu_bytes: *rng.pick(&[1_200, 1_300, 1_472, 9_000]).unwrap(),
        };
        let (there, back) = (line(&mut rng), line(&mut rng));
        let mut world = World::new(seed, there, back);
        world.sides[0].to_send = 20_000 + rng.below(300_000) as usize;
        world.sides[1].to_send = rng.below(2) as usize * 200_000;
        world.sides[1].drift_ppm = rng.below(200);
        world.dial();
        eprintln!("seed {seed}");
        world.finish(900);
        // Closed by both, nothing is left behind.
        for side in 0..2 {
            let now = world.now(side);
            let key = world.sides[side].key.unwrap();
            world.sides[side].utp.close(key, now);
            world.flush(side);
        }
        let until = world.us + 15_000_000;
        while world.step(until) {}
        for side in &world.sides {
            assert_eq!(side.utp.connection_count(), 0, "seed {seed}");
            assert_eq!(side.utp.next_deadline(), None);
        }
    }
}

#[test]
fn a_quick_line_is_filled_and_little_is_sent_twice() {
    let mut world = World::new(1, QUICK, QUICK);
    world.sides[0].to_send = 20_000_000;
    world.dial();
    let took = world.finish(60);
    // A megabyte of room and 10 ms there and back.
    assert!(took < 0.4, "{took} s");
    let sent = world.sides[0].sent_bytes as f64;
    assert!(sent < 20e6 * 1.02, "{sent}");
    assert!(
        sent / (world.sides[0].datagrams as f64) > 1_450.0,
        "full packets"
    );
    assert!(world.sides[1].datagrams < world.sides[0].datagrams * 3 / 5);
}

#[test]
fn it_keeps_a_narrow_line_busy_and_its_queue_near_the_target() {
    let narrow = Line {
        bytes_per_ms: 1_000,
        queue_bytes: 2_000_000,
        delay_us: 20_000,
        ..QUICK
    };
    let mut world = World::new(2, narrow, QUICK);
    world.sides[0].to_send = 30_000_000;
    world.dial();
    // A queue of two seconds would take all of it; once it has begun, it is kept to the tenth that is aimed at.
    let (mut longest, mut until) = (0, 0);
    while !world.is_done() {
        until += 50_000;
        while world.step(until) {}
        let queued = world.sides[0].line_free_us.saturating_sub(world.us);
        if world.us > 10_000_000 && !world.is_done() {
            longest = longest.max(queued);
        }
        assert!(world.us < 40_000_000, "{} bytes", world.sides[1].read);
    }
    assert!(longest < 150_000, "a queue of {longest} µs");
}

#[test]
fn a_long_line_is_filled_although_acks_come_in_heaps() {
    let long = Line {
        delay_us: 50_000,
        bytes_per_ms: 10_000,
        queue_bytes: 4_000_000,
        ..QUICK
    };
    let mut world = World::new(6, long, long);
    world.gathers_us = 2_000;
    world.sides[0].to_send = 20_000_000;
    world.dial();
    let took = world.finish(60);
    // 10 MB/s once there is room for what is on its way.
    assert!(took < 4.0, "{took} s");
}

#[test]
fn it_yields_to_a_queue_of_others_within_ten_seconds() {
    let line = Line {
        bytes_per_ms: 12_500,
        queue_bytes: 4_000_000,
        delay_us: 20_000,
        ..QUICK
    };
    let mut world = World::new(8, line, line);
    world.gathers_us = 1_000;
    world.sides[0].to_send = 400_000_000;
    world.dial();
    let pass = |world: &mut World, secs: u64| {
        let (before, until) = (world.sides[0].sent_bytes, world.us + secs * 1_000_000);
        while world.step(until) {}
        (world.sides[0].sent_bytes - before) as f64 / secs as f64
    };
    pass(&mut world, 5);
    let alone = pass(&mut world, 5);
    assert!(alone > 0.9 * 12.5e6, "{alone}");
    // What others have in the queue delays ours.
    world.lines[0].delay_us += 250_000;
    pass(&mut world, 10);
    let beside = pass(&mut world, 5);
    assert!(beside < 0.05 * 12.5e6, "{beside}");
}

#[test]
fn one_packet_in_a_hundred_lost_leaves_most_of_a_line() {
    let line = Line {
        loss_percent: 1,
        delay_us: 10_000,
        ..QUICK
    };
    let mut world = World::new(3, line, QUICK);
    world.sides[0].to_send = 3_000_000;
    world.dial();
    let took = world.finish(60);
    assert!(took < 8.0, "{took} s");
}

#[test]
fn a_line_that_comes_back_is_used_again_and_one_that_does_not_is_given_up() {
    let mut world = World::new(4, QUICK, QUICK);
    world.sides[0].to_send = 5_000_000;
    world.dial();
    while world.sides[1].read < 1_000_000 {
        assert!(world.step(10_000_000));
    }
    world.lines[0].loss_percent = 100;
    let until = world.us + 5_000_000;
    while world.step(until) {}
    world.lines[0].loss_percent = 0;
    while world.sides[1].read < 2_000_000 {
        assert!(world.step(world.us + 20_000_000));
    }
    world.lines[0].loss_percent = 100;
    let until = world.us + 200_000_000;
    while world.step(until) {}
    assert_eq!(world.sides[0].lost, Some(Lost::TimedOut));
}

#[test]
fn nobody_there_and_a_refusal_are_told() {
    let mut world = World::new(5, QUICK, QUICK);
    world.sides[0].to_send = 1;
    world.lines[0].loss_percent = 100;
    world.dial();
    while world.step(20_000_000) {}
    assert_eq!(world.sides[0].lost, Some(Lost::TimedOut));
    assert_eq!(world.sides[0].datagrams, 3);

    let mut world = World::new(5, QUICK, QUICK);
    world.sides[1].utp.refuse_strangers();
    world.sides[0].to_send = 1;
    world.dial();
    while world.step(1_000_000) {}
    assert_eq!(world.sides[0].lost, Some(Lost::Refused));
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer_and_lets_it_go_on() {
    let mut world = World::new(6, QUICK, QUICK);
    world.sides[0].to_send = 2_000_000;
    world.dial();
    while world.sides[1].key.is_none() {
        assert!(world.step(1_000_000));
    }
    let key = world.sides[1].key.take();
    let until = world.us + 120_000_000;
    while world.step(until) {}
    assert_eq!(world.sides[0].lost, None, "it asks whether there is room");
    let kept = world.sides[1].utp.conns.iter().next().unwrap().1.clone();
    assert!(kept.clone().receiver().ready_bytes() <= receiver::ROOM_START_BYTES);
    let asked = world.sides[0].datagrams;
    assert!(asked < 150, "{asked}");
    world.sides[1].key = key;
    world.sides[1].pump(world.us);
    world.flush(1);
    world.finish(60);
}

/// A connection that is open, and a packet of its first side as it would come next.
fn open() -> (World, Header) {
    let mut world = World::new(9, QUICK, QUICK);
    world.sides[0].to_send = 1_000;
    world.dial();
    world.finish(10);
    let key = world.sides[0].key.unwrap();
    let ends = *world.sides[0].utp.conns.get(key.0).unwrap().ends();
    let peer = world.sides[1].utp.conns.get(world.sides[1].key.unwrap().0);
    let theirs = peer.unwrap().next_header();
    let next = Header {
        kind: Kind::Data,
        connection_id: ends.send_id,
        timestamp_us: 0,
        delay_us: 0,
        window_bytes: 1 << 20,
        seq_nr: theirs.ack_nr.wrapping_add(1),
        ack_nr: theirs.seq_nr.wrapping_sub(1),
    };
    (world, next)
}

fn bytes(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    header.write(&mut out);
    out.extend_from_slice(payload);
    out
}

#[test]
fn a_flood_of_forged_syns_takes_no_memory_and_no_place() {
    let mut utp = Utp::new(4, [7; 32]);
    let syn = Header {
        kind: Kind::Syn,
        connection_id: 1,
        timestamp_us: 1,
        delay_us: 0,
        window_bytes: 0,
        seq_nr: 1,
        ack_nr: 0,
    };
    for number in 0..100_000u32 {
        let from = SocketAddr::from((number.to_be_bytes(), 1));
        let datagram = bytes(syn, b"");
        let Taken::Answer(answer) = utp.on_datagram(from, &datagram, Now::ZERO) else {
            panic!("no answer");
        };
        assert!(answer.len() <= datagram.len());
    }
    assert_eq!(utp.connection_count(), 0);
    assert_eq!(
        (utp.by_id.len(), utp.marks.len(), utp.sending.len()),
        (0, 0, 0)
    );
    assert_eq!(utp.next_deadline(), None);
}

#[test]
fn only_who_heard_the_answer_to_a_syn_begins_a_connection() {
    let mut utp = Utp::new(4, [7; 32]);
    let from = SocketAddr::from(([1, 2, 3, 4], 5));
    let syn = Header {
        kind: Kind::Syn,
        connection_id: 0xffff,
        timestamp_us: 1,
        delay_us: 0,
        window_bytes: 0,
        seq_nr: 0xfffe,
        ack_nr: 0,
    };
    let Taken::Answer(answer) = utp.on_datagram(from, &bytes(syn, b""), Now::ZERO) else {
        panic!("no answer");
    };
    let answer = Packet::parse(&answer).unwrap().header;
    let first = Header {
        kind: Kind::Data,
        connection_id: 0,
        seq_nr: 0xffff,
        ack_nr: answer.seq_nr.wrapping_sub(1),
        ..syn
    };
    let mut taken =
        |from: SocketAddr, header: Header, at: Now| utp.on_datagram(from, &bytes(header, b"x"), at);
    let wrong_ack = Header {
        ack_nr: answer.seq_nr,
        ..first
    };
    assert!(matches!(
        taken(from, wrong_ack, Now::ZERO),
        Taken::Answer(_)
    ));
    let elsewhere = SocketAddr::from(([1, 2, 3, 4], 6));
    assert!(matches!(
        taken(elsewhere, first, Now::ZERO),
        Taken::Answer(_)
    ));
    let late = Now::from_secs(2 * COOKIE_SECS);
    assert!(matches!(taken(from, first, late), Taken::Answer(_)));
    // The packet behind the first one may be there sooner.
    let second = Header { seq_nr: 0, ..first };
    let Taken::New(key) = taken(from, second, Now::from_secs(COOKIE_SECS)) else {
        panic!("not taken");
    };
    let mut buf = [0; 10];
    assert_eq!(utp.read(key, &mut buf, Now::ZERO), Ok(Read::Nothing));
    utp.on_datagram(from, &bytes(first, b"y"), Now::ZERO);
    assert_eq!(utp.read(key, &mut buf, Now::ZERO), Ok(Read::Bytes(2)));
    assert_eq!(&buf[..2], b"yx");
}

#[test]
fn resets_need_the_address_the_id_and_a_number_on_its_way() {
    let (world, next) = open();
    let reset = Header {
        kind: Kind::Reset,
        ..next
    };
    let from = world.sides[0].addr;
    let is_lost_by = |from: SocketAddr, header: Header| {
        let mut utp = Utp::new(8, [0; 32]);
        utp.conns = world.sides[1].utp.conns.clone();
        utp.by_id = world.sides[1].utp.by_id.clone();
        utp.marks = vec![Mark::default(); 8];
        utp.on_datagram(from, &bytes(header, b""), Now::from_secs(1));
        utp.is_open(world.sides[1].key.unwrap()) == Err(Lost::Reset)
    };
    assert!(is_lost_by(from, reset));
    // One that answers a packet of ours has the id of those.
    let of_ours = Header {
        connection_id: reset.connection_id.wrapping_sub(1),
        ..reset
    };
    assert!(is_lost_by(from, of_ours));
    let other_port = SocketAddr::new(from.ip(), from.port() + 1);
    assert!(!is_lost_by(other_port, reset));
    for connection_id in [1, 2].map(|by| reset.connection_id.wrapping_add(by)) {
        assert!(!is_lost_by(
            from,
            Header {
                connection_id,
                ..reset
            }
        ));
    }
    let hits = (0..=u16::MAX).filter(|ack_nr| {
        let ack_nr = *ack_nr;
        is_lost_by(from, Header { ack_nr, ..reset })
    });
    assert!(hits.count() <= 2, "of 65,536 guesses");
}

#[test]
fn acks_of_data_never_sent_and_numbers_far_away_change_nothing() {
    let (mut world, next) = open();
    let key = world.sides[1].key.unwrap();
    let before = format!("{:?}", world.sides[1].utp.conns.get(key.0).unwrap());
    for (seq, ack) in [(0, 1), (0, 1_000), (2_000, 0), (40_000, 0), (0, 40_000)] {
        let forged = Header {
            seq_nr: next.seq_nr.wrapping_add(seq),
            ack_nr: next.ack_nr.wrapping_add(ack),
            ..next
        };
        for kind in [Kind::Data, Kind::State, Kind::Fin, Kind::Reset] {
            if (ack, kind) != (0, Kind::Reset) {
                world.arrive(1, &bytes(Header { kind, ..forged }, b"forged"));
            }
        }
        let after = format!("{:?}", world.sides[1].utp.conns.get(key.0).unwrap());
        assert_eq!(before, after, "{seq} {ack}");
    }
    world.sides[1].utp.check();
}

#[test]
fn windows_shut_tiny_and_huge_are_borne() {
    for window_bytes in [0, 1, 100, 1_199, u32::MAX] {
        let (mut world, next) = open();
        let key = world.sides[1].key.unwrap();
        let state = Header {
            kind: Kind::State,
            window_bytes,
            ..next
        };
        world.arrive(1, &bytes(state, b""));
        world.lines[1].loss_percent = 100;
        let data = vec![7; 1 << 20];
        let taken = world.sides[1].utp.write(key, &data).unwrap();
        assert!(taken <= conn::KEPT_MAX_BYTES);
        let before = world.sides[1].datagrams;
        world.flush(1);
        let until = world.us + 20_000_000;
        while world.step(until) {}
        let sent = world.sides[1].datagrams - before;
        assert!(sent <= 30, "{sent} datagrams to a window of {window_bytes}");
        world.sides[1].utp.check();
    }
}

#[test]
fn places_are_bounded_and_those_that_close_make_room() {
    let mut utp = Utp::new(3, [0; 32]);
    let to = SocketAddr::from(([1, 2, 3, 4], 5));
    let keys: Vec<UtpKey> = (0..3).map(|n| utp.connect(to, n << 20).unwrap()).collect();
    assert_eq!(utp.connect(to, 77), Err(Full));
    utp.close(keys[0], Now::ZERO);
    assert!(utp.connect(to, 77).is_ok(), "one that was dialed in vain");
    assert_eq!(utp.connect(to, 78), Err(Full));
    utp.check();
}
