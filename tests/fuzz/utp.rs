//! uTP: packets, and two ports under any order of packets, damaged ones included, calls and silence.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use gyre::base::Now;
use gyre::swarm::utp::{Taken, Utp, UtpKey};
use gyre::wire::utp::{Packet, refuse};

/// One packet: what is read of it lies in it, and its header is written the same again.
pub fn utp_packet(data: &[u8]) {
    let answer = refuse(data, 7);
    assert!(answer.is_none_or(|answer| answer.len() <= data.len()));
    let Ok(packet) = Packet::parse(data) else {
        return;
    };
    assert!(data.ends_with(packet.payload));
    let mut out = Vec::new();
    packet.header.write(&mut out);
    assert_eq!(Packet::parse(&out).unwrap().header, packet.header);
    if let Some(sack) = packet.sack {
        let offsets: Vec<u16> = sack.offsets().collect();
        assert!(offsets.is_sorted() && offsets.first().is_none_or(|first| *first >= 2));
    }
}

/// Two ports keep their limits whatever comes, and forget every connection that is closed.
pub fn utp_port(data: &[u8]) {
    let mut world = World {
        ports: [1, 2].map(|secret| Utp::new(4, [secret; 32])),
        keys: [Vec::new(), Vec::new()],
        flying: [VecDeque::new(), VecDeque::new()],
        now: Now::from_secs(1_000),
    };
    let mut script = data.iter().copied();
    while let Some(op) = script.next() {
        let (a, b) = (script.next().unwrap_or(0), script.next().unwrap_or(0));
        world.step(op, a, b);
        world.ports.iter().for_each(Utp::check);
    }
    world.end();
}

struct World {
    ports: [Utp; 2],
    keys: [Vec<UtpKey>; 2],
    /// On their way to each.
    flying: [VecDeque<Vec<u8>>; 2],
    now: Now,
}

/// Packets of one way that are kept.
const FLYING_MAX: usize = 256;

fn addr(side: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, side as u8], 1_000))
}

impl World {
    fn step(&mut self, op: u8, a: u8, b: u8) {
        let side = usize::from(a & 1);
        let key = |world: &World| {
            let keys = &world.keys[side];
            keys.get(usize::from(b) % keys.len().max(1)).copied()
        };
        match op % 16 {
            0 => {
                let random = u32::from_be_bytes([a, b, b, a]);
                if let Ok(key) = self.ports[side].connect(addr(1 - side), random) {
                    self.keys[side].push(key);
                }
            }
            1 => {
                let bytes = vec![b; usize::from(a) * 256];
                if let Some(key) = key(self) {
                    let taken = self.ports[side].write(key, &bytes);
                    assert!(taken.is_err() || taken.is_ok_and(|taken| taken <= bytes.len()));
                }
            }
            2 => {
                let mut buf = vec![0; usize::from(a) * 64];
                if let Some(key) = key(self) {
                    let _ = self.ports[side].read(key, &mut buf, self.now);
                }
            }
            3 if a & 0xf0 == 0 => {
                if let Some(key) = key(self) {
                    self.ports[side].close(key, self.now);
                }
            }
            4 if a & 0xf0 == 0 => {
                if let Some(key) = key(self) {
                    self.ports[side].finish(key, self.now);
                }
            }
            5 => {
                self.flying[side].pop_front();
            }
            6 => self.flying[side].rotate_left(usize::from(b).min(self.flying[side].len())),
            7 => {
                // The head or what follows it, damaged.
                if let Some(mut datagram) = self.flying[side].pop_front() {
                    let at = usize::from(b) % datagram.len().min(40);
                    datagram[at] ^= 1 << (a >> 5);
                    self.arrive(side, &datagram);
                }
            }
            8 => {
                if let Some(datagram) = self.flying[side].front().cloned() {
                    self.arrive(side, &datagram);
                }
            }
            9 => {
                let micros = u64::from(a) * u64::from(b) * 64;
                self.now = self.now + Duration::from_micros(micros);
                self.ports
                    .iter_mut()
                    .for_each(|port| port.on_deadline(self.now));
            }
            _ => {
                for _ in 0..=b % 8 {
                    let Some(datagram) = self.flying[side].pop_front() else {
                        break;
                    };
                    self.arrive(side, &datagram);
                }
            }
        }
        self.flush();
    }

    fn arrive(&mut self, side: usize, datagram: &[u8]) {
        match self.ports[side].on_datagram(addr(1 - side), datagram, self.now) {
            Taken::New(key) => self.keys[side].push(key),
            Taken::Answer(answer) => {
                assert!(answer.len() <= datagram.len());
                self.flying[1 - side].push_back(answer.to_vec());
            }
            Taken::Known(_) | Taken::Stranger => {}
        }
    }

    fn flush(&mut self) {
        for side in 0..2 {
            let mut out = Vec::new();
            while let Some(sent) = self.ports[side].next_transmit(self.now, &mut out) {
                assert!(out.len() <= 65_507 && sent.to == addr(1 - side));
                let datagrams = out.chunks(sent.segment_bytes).map(<[u8]>::to_vec);
                self.flying[1 - side].extend(datagrams);
                out.clear();
            }
            self.flying[1 - side].truncate(FLYING_MAX);
            while self.ports[side].next_wake().is_some() {}
        }
    }

    fn end(mut self) {
        for side in 0..2 {
            for key in std::mem::take(&mut self.keys[side]) {
                self.ports[side].close(key, self.now);
            }
        }
        self.now = self.now + Duration::from_secs(60);
        for port in &mut self.ports {
            port.on_deadline(self.now);
            port.check();
            assert_eq!(port.connection_count(), 0);
            assert_eq!(port.next_deadline(), None);
        }
    }
}
