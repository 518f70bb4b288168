//! What goes wrong: cut connections, crashes, lost pieces.

use std::time::Duration;

use gyre::base::{Now, PieceIndex};

use crate::node;
use crate::spec::Role;
use crate::world::{Event, World};

impl World {
    /// Queues a fault while there are to be some.
    pub fn next_fault(&mut self, every_ms: u64, event: Event) {
        if every_ms > 0 && self.is_faulty() {
            let delay = self.some_ms(1, every_ms * 2);
            // Liveness is judged once the faults are over: none may come later.
            if self.now + delay < Now::from_secs(self.spec.faults.until_secs) {
                self.after(delay, event);
            }
        }
    }

    /// Cuts a connection somewhere.
    pub fn cut_one(&mut self) {
        let standing: Vec<usize> = (0..self.conns.len())
            .filter(|conn| self.conns[*conn].ends.iter().all(|end| end.peer.is_some()))
            .collect();
        if let Some(&conn) = self.rng.pick(&standing) {
            self.cut(conn);
        }
        self.next_fault(self.spec.faults.cut_every_ms, Event::Cut);
    }

    /// From now on nothing arrives; both ends notice in their own time.
    fn cut(&mut self, conn: usize) {
        self.conns[conn].is_cut = true;
        for side in 0..2 {
            let notices = self.some_ms(0, 3_000);
            self.after(notices, Event::Eof { conn, side });
        }
    }

    /// A node dies and comes back.
    pub fn crash_one(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].torrent.is_some() && !self.nodes[*n].spec.is_steady)
            .collect();
        if let Some(&node) = self.rng.pick(&up) {
            let back = self.some_ms(100, 30_000);
            self.crash(node, back);
        }
        self.next_fault(self.spec.faults.crash_every_ms, Event::Crash);
    }

    /// The node dies, and comes back after that time.
    pub fn crash(&mut self, node: usize, back: Duration) {
        let mut conns: Vec<usize> = self.nodes[node].peers.values().map(|at| at.0).collect();
        conns.extend((0..self.conns.len()).filter(|c| {
            let ends = &self.conns[*c].ends;
            ends.iter()
                .any(|end| end.node == node && end.is_open && end.peer.is_none())
        }));
        for conn in conns {
            self.cut(conn);
            for end in &mut self.conns[conn].ends {
                if end.node == node {
                    end.is_open = false;
                    end.peer = None;
                }
            }
            // A dial of this node is forgotten with it; a dial towards it fails.
            self.fail_dial_towards(conn, node);
        }
        self.nodes[node].torrent = None;
        self.nodes[node].disk.crash();
        self.after(back, Event::Join { node });
    }

    /// Nothing moves on a connection for a while; then it is as far away as it likes.
    pub fn stall_one(&mut self) {
        let until = self.now + self.some_ms(1_000, 90_000);
        let latency = self.some_ms(1, 2_000);
        let standing: Vec<usize> = (0..self.conns.len())
            .filter(|conn| self.conns[*conn].ends.iter().all(|end| end.peer.is_some()))
            .collect();
        if let Some(&conn) = self.rng.pick(&standing) {
            self.conns[conn].stalled_until = until;
            self.conns[conn].latency_us = latency.as_micros() as u64;
        }
        self.next_fault(self.spec.faults.stall_every_ms, Event::Stall);
    }

    /// A node's clock leaps ahead, as after a night asleep (HOSTILE.md L10). It never goes back: it is monotonic.
    pub fn jump_one(&mut self) {
        const LEAPS_SECS: [u64; 6] = [1, 30, 300, 3_600, 86_400, 366 * 86_400];
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let leap = Duration::from_secs(*self.rng.pick(&LEAPS_SECS).expect("some"));
        self.nodes[node].ahead += leap;
        if self.nodes[node].torrent.is_some() {
            let n = &mut self.nodes[node];
            n.timer = None;
            self.settle(node);
        }
        self.next_fault(self.spec.faults.jump_every_ms, Event::Jump);
    }

    fn fail_dial_towards(&mut self, conn: usize, down: usize) {
        let from = &mut self.conns[conn].ends[0];
        if from.node != down && from.is_open && from.peer.is_none() {
            from.is_open = false;
            let from = from.node;
            let life = self.life(from);
            let addr = node::address(down);
            self.after(Duration::from_secs(1), Event::DialFailed { life, addr });
        }
    }

    /// A node loses a piece that it had.
    pub fn lose_one(&mut self) {
        let losers: Vec<(usize, PieceIndex)> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].torrent.is_some())
            .filter(|n| self.nodes[*n].spec.role == Role::Leech)
            .filter_map(|n| Some((n, self.nodes[n].disk.checkpoint.iter().next()?)))
            .collect();
        if let Some(&(node, piece)) = self.rng.pick(&losers) {
            self.nodes[node].disk.lose(piece);
            self.nodes[node].lost.insert(piece);
            self.nodes[node].completed_at = None;
            self.call(node, |torrent, cx| torrent.on_pieces_lost(&[piece], cx));
        }
        self.next_fault(self.spec.faults.lose_every_ms, Event::Lose);
    }
}
