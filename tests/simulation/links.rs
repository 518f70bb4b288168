//! How connections come to be: dials, handshakes, refusals.

use std::net::SocketAddr;
use std::time::Duration;

use gyre::base::Now;

use gyre::swarm::Connected;

use crate::net::{Conn, End};
use crate::node;
use crate::world::{Event, Life, World};

impl World {
    /// Starts a dial for the core.
    pub fn dial(&mut self, from: usize, addr: SocketAddr) {
        let to = node::node_at(addr.ip());
        let n = &mut self.nodes[from];
        n.half_open += 1;
        n.own_dials += u32::from(to == from);
        assert!(n.half_open <= node::HALF_OPEN_MAX, "too many dials at once");
        assert!(
            n.own_dials <= 3 * n.life,
            "node {from} keeps dialing itself"
        );
        let bitfield_bytes = self.spec.geometry.piece_count().div_ceil(8);
        let (min, max) = self.spec.latency_ms;
        let latency = self.some_ms(min, max);
        let conn = self.conns.len();
        self.conns.push(Conn {
            ends: [from, to].map(|node| End::new(node, bitfield_bytes)),
            latency_us: u64::try_from(latency.as_micros()).expect("short"),
            is_fast: !self.rng.chance(self.spec.plain_percent),
            is_cut: false,
            stalled_until: Now::ZERO,
        });
        let is_lost = from != to && self.is_faulty() && self.rng.chance(5);
        if self.nodes[to].torrent.is_some() && !is_lost {
            self.after(latency, Event::Accept { conn });
        } else {
            let wait = self.some_ms(50, 5_000);
            let life = self.life(from);
            self.conns[conn].ends[0].is_open = false;
            self.after(wait, Event::DialFailed { life, addr });
        }
    }

    fn connected(&self, conn: usize, side: usize) -> Connected {
        let other = self.conns[conn].ends[1 - side].node;
        let mut reserved = [0; 8];
        reserved[5] = 0x10;
        reserved[7] = if self.conns[conn].is_fast { 0x04 } else { 0 };
        let mut addr = node::address(other);
        if side == 1 {
            addr.set_port(40_000 + u16::try_from(conn % 20_000).expect("in range"));
        }
        Connected {
            addr,
            is_inbound: side == 1,
            peer_id: node::peer_id(other, self.nodes[other].life),
            reserved,
            is_v2: self.spec.trees.is_some(),
        }
    }

    /// A dial reaches the other machine.
    pub fn on_accept(&mut self, conn: usize) {
        let [from, to] = [0, 1].map(|side| self.conns[conn].ends[side].node);
        if !self.conns[conn].ends[0].is_open {
            return;
        }
        let latency = Duration::from_micros(self.conns[conn].latency_us);
        let is_up = self.nodes[to].torrent.is_some() && self.nodes[from].torrent.is_some();
        if is_up && self.take_in(conn, 1) {
            self.after(latency, Event::Established { conn });
            self.settle(to);
            return;
        }
        self.conns[conn].ends[1].is_open = false;
        // The refusal comes before our handshake is answered, or just after; our own peer id is always seen.
        if is_up && (from == to || self.rng.chance(50)) {
            self.after(latency, Event::Established { conn });
            self.after(latency * 2, Event::Eof { conn, side: 0 });
        } else {
            let life = self.life(from);
            let addr = node::address(to);
            self.conns[conn].ends[0].is_open = false;
            self.after(latency, Event::DialFailed { life, addr });
        }
    }

    /// The dialer sees the handshake answered.
    pub fn on_established(&mut self, conn: usize) {
        let from = self.conns[conn].ends[0].node;
        if self.nodes[from].torrent.is_none() || !self.conns[conn].ends[0].is_open {
            return;
        }
        self.nodes[from].half_open -= 1;
        if !self.take_in(conn, 0) {
            self.conns[conn].ends[0].is_open = false;
            let latency = Duration::from_micros(self.conns[conn].latency_us);
            self.after(latency, Event::Eof { conn, side: 1 });
        }
        self.settle(from);
    }

    /// Tells the core of a connection; false when it refuses. Its effects are left for `settle`.
    fn take_in(&mut self, conn: usize, side: usize) -> bool {
        let connected = self.connected(conn, side);
        let node = self.conns[conn].ends[side].node;
        match self.call_raw(node, |torrent, cx| torrent.on_connected(connected, cx)) {
            Ok(peer) => {
                self.conns[conn].ends[side].peer = Some(peer);
                let before = self.nodes[node].peers.insert(peer, (conn, side));
                assert_eq!(before, None, "one key for two peers");
                true
            }
            Err(refusal) => {
                if self.is_traced {
                    eprintln!("{}     node {node}: {refusal}", self.now);
                }
                self.settle(node);
                false
            }
        }
    }

    /// A dial came to nothing.
    pub fn on_dial_failed(&mut self, life: Life, addr: SocketAddr) {
        if self.is_alive(life) {
            self.nodes[life.0].half_open -= 1;
            self.call(life.0, |torrent, cx| torrent.on_dial_failed(addr, cx));
        }
    }
}
