//! The checks: what every step and every message must fulfil, seen from outside of the core.

use std::fmt::{Debug, Write};

use gyre::base::PieceIndex;
use gyre::swarm::{Placement, UploadRun};
use gyre::wire::decoder::Event as WireEvent;
use gyre::wire::message::{Message, RawBlock};

use crate::driver::raw;
use crate::node::{CONNECTIONS_MAX, full_credits};
use crate::spec::Role;
use crate::world::{Event, World};

/// Requests that may be outstanding with one peer: the `reqq` every node advertises.
const OUTSTANDING_MAX: usize = gyre::swarm::torrent::REQQ_DEFAULT as usize;
/// Nodes with more peers are looked at for lost wake-ups only now and then.
const CLOSE_LOOK_PEERS_MAX: usize = 12;

impl World {
    /// Everything that must hold of one node after each step in which it was called.
    pub fn check_node(&mut self, node: usize) {
        let now = self.clock(node);
        let is_close_look = self.nodes[node].peers.len() <= CLOSE_LOOK_PEERS_MAX
            || self.event_count.is_multiple_of(64);
        let n = &self.nodes[node];
        let torrent = n.torrent();
        if is_close_look {
            torrent.check();
        }
        assert_eq!(
            torrent.have().count(),
            n.disk.checkpoint.count(),
            "node {node} has other pieces than those it called verified and written"
        );
        if !is_close_look {
            return;
        }
        let stats = torrent.stats(now);
        assert_eq!(
            n.credits.assembly_bytes + stats.assembly_bytes,
            n.spec.budget_bytes,
            "assembly credits of node {node}"
        );
        let used = stats.peers_connected + stats.peers_half_open;
        assert_eq!(
            n.credits.connections + used,
            CONNECTIONS_MAX,
            "connection credits of node {node}"
        );
        assert_eq!(stats.peers_half_open, n.half_open, "dials of node {node}");
        assert_eq!(
            stats.uploaded_bytes, n.tally.sent_bytes,
            "uploaded by node {node}"
        );
        let counted = stats.downloaded_bytes + stats.wasted_bytes;
        assert!(
            (n.tally.whole_bytes..=n.tally.payload_bytes).contains(&counted),
            "node {node} counts {counted} bytes of {:?}",
            n.tally
        );
        let memory = n.disk.memory_bytes();
        assert!(
            memory <= stats.assembly_bytes,
            "node {node} holds {memory} bytes without credit"
        );
        self.check_wakeups(node);
    }

    /// A peer with output whose writer sleeps would sleep for ever.
    fn check_wakeups(&mut self, node: usize) {
        let n = &self.nodes[node];
        if matches!(n.spec.role, Role::Silent | Role::Staller) {
            return;
        }
        for (peer, (conn, side)) in &n.peers {
            let end = &self.conns[*conn].ends[*side];
            let is_busy =
                end.is_pump_due || end.run.is_some() || end.out_bytes > 0 || end.is_in_line;
            let is_asleep = end.is_open && !end.is_pumping && !is_busy;
            let is_stuck = is_asleep && n.torrent().has_output(*peer);
            assert!(!is_stuck, "lost wake-up of {peer:?} at node {node}");
        }
    }

    /// A block is about to be received into its place.
    pub fn own(&mut self, conn: usize, side: usize, placement: Placement) {
        let Placement::Store(block) = placement else {
            return;
        };
        let node = self.conns[conn].ends[side].node;
        let n = &mut self.nodes[node];
        assert!(
            !n.disk.has_block(block),
            "node {node} takes {block:?} twice"
        );
        let before = n.owned.insert(block, (conn, side));
        assert_eq!(before, None, "two owners of {block:?} at node {node}");
    }

    /// Nobody may be writing into the piece.
    pub fn check_nothing_owned(&self, node: usize, piece: PieceIndex) {
        let owned = self.nodes[node].owned.keys().find(|b| b.piece() == piece);
        assert_eq!(
            owned, None,
            "node {node} ends a piece that is being received"
        );
    }

    /// Bytes that the core wants sent.
    pub fn observe_output(&mut self, conn: usize, side: usize, mut bytes: &[u8]) {
        let end = &mut self.conns[conn].ends[side];
        let node = end.node;
        let mut observer = end.observer.take().expect("one writer");
        while let Some(event) = observer.next(&mut bytes).expect("well formed output") {
            let WireEvent::Message(message) = event else {
                panic!("a block among the control messages of node {node}");
            };
            self.observe_output_message(conn, side, &message);
        }
        assert_eq!(observer.memory_bytes(), 0, "whole messages only");
        self.conns[conn].ends[side].observer = Some(observer);
    }

    fn observe_output_message(&mut self, conn: usize, side: usize, message: &Message<'_>) {
        let is_fast = self.conns[conn].is_fast;
        if self.is_traced {
            eprintln!("{}     {conn}/{side} says {message:?}", self.now);
        }
        let end = &mut self.conns[conn].ends[side];
        let node = end.node;
        let have = self.nodes[node].torrent().have();
        match *message {
            Message::Request(block) => {
                assert!(
                    !have.has(PieceIndex::new(block.piece)),
                    "node {node} requests what it has"
                );
                end.ever_asked.insert(block);
                assert!(
                    end.asked.insert(block),
                    "node {node} requests {block:?} twice"
                );
                assert!(
                    end.asked.len() <= OUTSTANDING_MAX,
                    "node {node} requests too much"
                );
            }
            Message::Cancel(block) => {
                end.asked.remove(&block);
                assert!(
                    end.ever_asked.contains(&block),
                    "node {node} cancels what it never requested"
                );
            }
            Message::RejectRequest(block) => {
                assert!(is_fast, "node {node} rejects without the fast extension");
                assert!(
                    take(&mut end.owed, &block),
                    "node {node} rejects {block:?} without a request"
                );
            }
            Message::Choke if !is_fast => end.owed.clear(),
            Message::Have { piece } => {
                let piece = PieceIndex::new(piece);
                let has = have.has(piece) || self.nodes[node].lost.contains(&piece);
                assert!(has, "node {node} offers what it has not");
            }
            Message::HaveAll | Message::HaveNone | Message::AllowedFast { .. } => {
                assert!(
                    is_fast,
                    "node {node} sends {message:?} without the fast extension"
                );
            }
            _ => {}
        }
    }

    /// A run that the core wants sent.
    pub fn observe_run(&mut self, conn: usize, side: usize, run: &UploadRun) {
        let end = &mut self.conns[conn].ends[side];
        let node = end.node;
        assert!(!run.blocks.is_empty(), "an empty run");
        for block in &run.blocks {
            let was_owed = take(&mut end.owed, &raw(*block));
            assert!(was_owed, "node {node} sends {block:?} without a request");
            let has = self.nodes[node].torrent().have().has(block.piece());
            assert!(has, "node {node} sends {block:?} of a piece it has not");
        }
        for pair in run.blocks.windows(2) {
            let follows = pair[0].piece() == pair[1].piece() && pair[0].end() == pair[1].begin();
            assert!(follows, "node {node} hands out a run with gaps");
        }
    }

    /// A message that is about to reach the core.
    pub fn observe_input(&mut self, conn: usize, side: usize, message: &Message<'_>) {
        if self.is_traced {
            eprintln!("{}     {conn}/{side} hears {message:?}", self.now);
        }
        let is_fast = self.conns[conn].is_fast;
        let end = &mut self.conns[conn].ends[side];
        match *message {
            Message::Request(block) => end.owed.push(block),
            Message::Cancel(block) if !is_fast => drop(take(&mut end.owed, &block)),
            Message::RejectRequest(block) => drop(end.asked.remove(&block)),
            Message::Choke => end.asked.clear(),
            _ => {}
        }
    }

    /// A block begins to arrive.
    pub fn observe_answer(&mut self, conn: usize, side: usize, header: &RawBlock) {
        if self.is_traced {
            eprintln!("{}     {conn}/{side} gets {header:?}", self.now);
        }
        let end = &mut self.conns[conn].ends[side];
        end.asked.remove(header);
        let node = end.node;
        assert!(
            end.ever_asked.contains(header),
            "node {node} is sent {header:?} unasked"
        );
    }

    /// Every node here speaks the protocol: a fault is a mistake of one of the two cores.
    pub fn expect_no_fault<T, E: Debug>(&self, node: usize, result: Result<T, E>) -> T {
        result.unwrap_or_else(|fault| panic!("node {node} sees a fault: {fault:?}"))
    }

    /// The executor of `Effect::Have`.
    pub fn on_have(&mut self, node: usize, piece: PieceIndex) {
        let n = &mut self.nodes[node];
        assert!(
            n.disk.is_written_well(piece),
            "node {node} has {piece:?} unwritten or bad"
        );
        assert!(
            n.disk.checkpoint.set(piece),
            "node {node} has {piece:?} twice"
        );
        assert!(
            n.torrent().have().has(piece),
            "node {node} has {piece:?} not"
        );
    }

    /// The executor of `Effect::Complete`.
    pub fn on_complete(&mut self, node: usize) {
        let now = self.now;
        let n = &mut self.nodes[node];
        assert!(n.torrent().is_complete(), "node {node} is not complete");
        n.completed_at = n.completed_at.or(Some(now));
    }

    /// With nothing under way, nobody may owe an answer.
    pub fn check_quiet(&self) {
        for conn in &self.conns {
            for side in 0..2 {
                let (end, other) = (&conn.ends[side], &conn.ends[1 - side]);
                let is_standing = end.peer.is_some() && end.is_open && other.is_open;
                let is_served = self.nodes[end.node].spec.role != Role::Silent
                    && self.nodes[end.node].spec.role != Role::Staller;
                if is_standing && is_served && conn.is_fast && !conn.is_cut {
                    assert_eq!(end.owed, [], "node {} owes node {}", end.node, other.node);
                }
            }
        }
    }

    /// After the stop every credit is back and every connection gone.
    pub fn check_accounts_closed(&self) {
        for (node, n) in self.nodes.iter().enumerate() {
            let Some(torrent) = &n.torrent else {
                continue;
            };
            assert_eq!(
                n.peers.len(),
                0,
                "connections of node {node} outlive the stop"
            );
            let full = full_credits(&n.spec);
            assert_eq!(
                n.credits.assembly_bytes, full.assembly_bytes,
                "assembly credits of node {node}"
            );
            assert_eq!(
                n.credits.connections, full.connections,
                "connections of node {node}"
            );
            torrent.check();
        }
    }

    /// What the nodes say of themselves, for a failure's message.
    pub fn describe(&self) -> String {
        let mut text = format!("at {} after {} events\n", self.now, self.event_count);
        for (node, n) in self.nodes.iter().enumerate() {
            let _ = write!(text, "node {node} {:?}: ", n.spec.role);
            let Some(torrent) = &n.torrent else {
                text.push_str("down\n");
                continue;
            };
            let _ = writeln!(
                text,
                "{:?} starved {} {:?}",
                n.credits,
                torrent.is_starved(),
                torrent.stats(self.clock(node))
            );
            if self.nodes.len() <= 12 && !torrent.is_complete() {
                for peer in torrent.peers(self.clock(node)) {
                    let _ = writeln!(text, "    {peer:?}");
                }
            }
        }
        text
    }

    /// Gives a starved node what came back to its account.
    pub fn wake_starved(&mut self, node: usize, before: u64) {
        let n = &self.nodes[node];
        if n.credits.assembly_bytes > before && n.torrent().is_starved() {
            let life = self.life(node);
            self.at(self.now, Event::Credits(life));
        }
    }
}

fn take<T: PartialEq>(items: &mut Vec<T>, item: &T) -> bool {
    let found = items.iter().position(|other| other == item);
    found.map(|at| items.remove(at)).is_some()
}
