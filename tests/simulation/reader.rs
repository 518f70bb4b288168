//! What a runtime does with what it receives: one batch of core calls a read, their effects behind it.

use gyre::base::{BLOCK_BYTES, PieceIndex};
use gyre::swarm::Placement;
use gyre::wire::decoder::Event as WireEvent;
use gyre::wire::message::RawBlock;

use crate::disk;
use crate::net::{Incoming, Payload, Unit};
use crate::world::{Event, World};

impl World {
    /// Something has arrived at an end; now and then the reader comes late and finds more.
    pub fn on_arrive(&mut self, conn: usize, side: usize, unit: Unit) {
        if self.conns[conn].is_cut || self.conns[conn].ends[side].peer.is_none() {
            return;
        }
        let is_late = self.rng.chance(25);
        let delay = self.some_ms(0, if is_late { 20 } else { 0 });
        let end = &mut self.conns[conn].ends[side];
        end.inbox.push_back(unit);
        if !end.is_read_due {
            end.is_read_due = true;
            self.after(delay, Event::Read { conn, side });
        }
    }

    /// Hands everything that has arrived to the core in one go, as a reader does with one large receive: what the core
    /// wants done waits until all of it is told.
    pub fn read(&mut self, conn: usize, side: usize) {
        self.conns[conn].ends[side].is_read_due = false;
        let inbox = std::mem::take(&mut self.conns[conn].ends[side].inbox);
        if inbox.is_empty() || !self.is_readable(conn, side) {
            return;
        }
        let node = self.conns[conn].ends[side].node;
        let before = self.nodes[node].credits.assembly_bytes;
        for unit in inbox {
            self.read_unit(conn, side, &unit);
        }
        self.settle(node);
        self.wake_starved(node, before);
    }

    fn is_readable(&self, conn: usize, side: usize) -> bool {
        let end = &self.conns[conn].ends[side];
        end.is_open && end.peer.is_some()
    }

    fn read_unit(&mut self, conn: usize, side: usize, unit: &Unit) {
        let mut rest: &[u8] = &unit.bytes;
        while !rest.is_empty() {
            let whole = rest.len();
            let cut = match self.rng.chance(10) {
                true => 1 + self.rng.below(whole as u64) as usize,
                false => whole,
            };
            let (now, later) = rest.split_at(cut);
            self.read_bytes(conn, side, now);
            rest = later;
        }
        if let Some(payload) = unit.payload {
            self.read_payload(conn, side, payload);
        }
    }

    fn read_bytes(&mut self, conn: usize, side: usize, mut bytes: &[u8]) {
        let end = &mut self.conns[conn].ends[side];
        let (node, peer) = (end.node, end.peer.expect("readable"));
        let mut decoder = end.decoder.take().expect("one reader");
        while let Some(event) = decoder.next(&mut bytes).expect("well formed input") {
            match event {
                WireEvent::Message(message) => {
                    self.observe_input(conn, side, &message);
                    let result =
                        self.call_raw(node, |torrent, cx| torrent.on_message(peer, &message, cx));
                    self.expect_no_fault(node, result);
                }
                WireEvent::PieceHeader(header) => {
                    self.observe_answer(conn, side, &header);
                    let result = self.call_raw(node, |torrent, cx| {
                        torrent.on_piece_header(peer, header, cx)
                    });
                    let placement = self.expect_no_fault(node, result);
                    self.own(conn, side, placement);
                    self.conns[conn].ends[side].incoming = Some(Incoming {
                        header,
                        placement,
                        received_bytes: 0,
                    });
                }
                WireEvent::Payload { .. } => unreachable!("payload never is among the bytes"),
            }
        }
        self.conns[conn].ends[side].decoder = Some(decoder);
    }

    fn is_twice(&self, node: usize, header: RawBlock) -> bool {
        let n = &self.nodes[node];
        let piece = PieceIndex::new(header.piece);
        let number = header.begin / BLOCK_BYTES;
        let block = self
            .spec
            .geometry
            .block(piece, number)
            .expect("checked by the core");
        n.disk.has_block(block) || n.owned.contains_key(&block)
    }

    fn read_payload(&mut self, conn: usize, side: usize, payload: Payload) {
        let end = &mut self.conns[conn].ends[side];
        let (node, peer) = (end.node, end.peer.expect("readable"));
        let decoder = end.decoder.as_mut().expect("one reader");
        decoder.payload_received(payload.length);
        let incoming = end.incoming.as_mut().expect("a header came first");
        incoming.received_bytes += payload.length;
        let Incoming {
            header,
            placement,
            received_bytes,
        } = *incoming;
        self.nodes[node].tally.payload_bytes += u64::from(payload.length);
        self.call_raw(node, |torrent, cx| {
            torrent.on_block_bytes(peer, payload.length, cx);
        });
        if received_bytes < header.length {
            return;
        }
        self.conns[conn].ends[side].incoming = None;
        self.nodes[node].tally.whole_bytes += u64::from(header.length);
        match placement {
            Placement::Store(block) => {
                self.nodes[node].owned.remove(&block);
                self.nodes[node].disk.store(block, payload.tag);
                if let Some(sender) = disk::bad_sender(&payload.tag) {
                    let bad = &mut self.nodes[node].bad_bytes_of;
                    *bad.entry(sender).or_default() += u64::from(block.length());
                }
                self.call_raw(node, |torrent, cx| torrent.on_block_stored(peer, block, cx));
            }
            Placement::Scratch => {
                self.nodes[node].duplicate_bytes += u64::from(header.length);
                if self.is_twice(node, header) {
                    self.nodes[node].twice_bytes += u64::from(header.length);
                }
                self.call_raw(node, |torrent, cx| {
                    torrent.on_block_discarded(peer, header, cx);
                });
            }
        }
    }
}
