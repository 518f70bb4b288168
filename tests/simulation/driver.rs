//! What a runtime does around the core: writers, the line, the disk. Everything takes virtual time.

use std::net::IpAddr;
use std::time::Duration;

use gyre::base::{BLOCK_BYTES, BlockRef, PieceIndex};
use gyre::storage::retry::Refusal;
use gyre::swarm::{PeerKey, UploadRun};
use gyre::wire::merkle::Node;
use gyre::wire::message::{self, RawBlock};

use crate::disk::{self, Tag, bad_tag};
use crate::net::{Payload, SEND_BUFFER_BYTES, Unit};
use crate::node;
use crate::spec::Role;
use crate::world::{Event, Life, World};

/// Control bytes taken from the core at once.
const MESSAGES_BYTES_MAX: usize = 16 * 1024;
/// Blocks taken from the core at once.
const RUN_BYTES_MAX: u32 = 128 * 1024;

/// How long slow disk work takes at most.
const SLOW_MS_MAX: u64 = 5_000;

/// Something a disk or a hash worker does; it ends with an answer to the core.
#[derive(Debug)]
pub enum DiskJob {
    Hash {
        piece: PieceIndex,
        /// `None`: what was spilled could not be read back.
        is_good: Option<bool>,
    },
    Write {
        piece: PieceIndex,
        segment: Option<u32>,
        plan: Vec<(usize, Tag)>,
        is_good: bool,
        /// Told apart from what fails by lot: all writes fail for a while.
        refusal: Option<Refusal>,
    },
    Digest {
        piece: PieceIndex,
        digests: Option<Vec<u64>>,
    },
    /// Of a bad piece of ours.
    HashLeaves {
        piece: PieceIndex,
        leaves: Option<Vec<Node>>,
    },
    /// Of a piece that a peer asks about.
    ReadLeaves {
        piece: PieceIndex,
        leaves: Option<Vec<Node>>,
    },
}

impl World {
    // Writers.

    /// The executor of `Effect::WakeWriter`.
    pub fn wake(&mut self, node: usize, peer: PeerKey) {
        let Some(&(conn, side)) = self.nodes[node].peers.get(&peer) else {
            return;
        };
        let end = &mut self.conns[conn].ends[side];
        if end.is_open && !end.is_pump_due {
            end.is_pump_due = true;
            self.at(self.now, Event::Pump { conn, side });
        }
    }

    /// One writer: control messages first, then blocks, while the send buffer has room.
    pub fn pump(&mut self, conn: usize, side: usize) {
        self.conns[conn].ends[side].is_pump_due = false;
        self.conns[conn].ends[side].is_pumping = true;
        while let Some((node, peer)) = self.ready_writer(conn, side) {
            let mut bytes = Vec::new();
            let count = self.call(node, |torrent, cx| {
                torrent.take_messages(peer, &mut bytes, MESSAGES_BYTES_MAX, cx)
            });
            assert_eq!(
                count,
                bytes.len(),
                "take_messages must count what it appends"
            );
            if count == 0 {
                break;
            }
            self.observe_output(conn, side, &bytes);
            let unit = Unit {
                bytes,
                ..Unit::default()
            };
            self.enqueue(conn, side, unit);
        }
        self.pump_upload(conn, side);
        self.conns[conn].ends[side].is_pumping = false;
    }

    fn pump_upload(&mut self, conn: usize, side: usize) {
        let Some((node, peer)) = self.ready_writer(conn, side) else {
            return;
        };
        let role = self.nodes[node].spec.role;
        if self.conns[conn].ends[side].run.is_some() || role == Role::Silent {
            return;
        }
        let run = self.call(node, |torrent, cx| {
            torrent.next_upload(peer, RUN_BYTES_MAX, cx)
        });
        let Some(run) = run else {
            return;
        };
        self.observe_run(conn, side, &run);
        self.conns[conn].ends[side].run = Some(run);
        let percent = self.read_fault_percent(node);
        let is_good = !self.rng.chance(percent);
        let delay = self.some_ms(0, 4);
        let event = Event::ReadDone {
            conn,
            side,
            is_good,
        };
        self.after(delay, event);
    }

    /// The peer of an open end whose send buffer has room.
    fn ready_writer(&self, conn: usize, side: usize) -> Option<(usize, PeerKey)> {
        let end = &self.conns[conn].ends[side];
        let has_room = end.is_open && !end.is_stalled && end.out_bytes < SEND_BUFFER_BYTES;
        has_room.then_some((end.node, end.peer?))
    }

    fn read_fault_percent(&self, node: usize) -> u64 {
        let is_spared = !self.is_faulty() || self.nodes[node].spec.is_steady;
        if is_spared {
            0
        } else {
            self.spec.faults.read_percent
        }
    }

    /// A run was read from disk, or could not be.
    pub fn on_read_done(&mut self, conn: usize, side: usize, is_good: bool) {
        let end = &self.conns[conn].ends[side];
        let (node, Some(peer), true) = (end.node, end.peer, end.is_open) else {
            return;
        };
        let Some(run) = end.run.clone() else {
            return;
        };
        if !is_good {
            self.conns[conn].ends[side].run = None;
            let blocks = run.blocks.iter().map(|block| raw(*block));
            self.conns[conn].ends[side].owed.extend(blocks);
            self.conns[conn].ends[side].is_pumping = true;
            self.call(node, |torrent, cx| torrent.on_upload_failed(peer, &run, cx));
            self.pump(conn, side);
            return;
        }
        self.send_run(conn, side, &run);
    }

    fn send_run(&mut self, conn: usize, side: usize, run: &UploadRun) {
        let node = self.conns[conn].ends[side].node;
        let role = self.nodes[node].spec.role;
        let last = run.blocks.len() - 1;
        for (at, block) in run.blocks.iter().enumerate() {
            let read = self.nodes[node].disk.read(*block);
            let true_tag = disk::good_tag(block.piece(), (block.begin() / BLOCK_BYTES) as usize);
            let tag = match role {
                Role::Poisoner { percent } if self.rng.chance(percent) => {
                    bad_tag(node, self.rng.next_u64())
                }
                // A lost piece is noticed by the reader in a real runtime; here it is sent as if from a cache.
                _ => read.unwrap_or(true_tag),
            };
            let bytes = message::piece_header(block.piece().get(), block.begin(), block.length());
            let split = match role {
                Role::Staller => block.length() / 2,
                _ if self.rng.chance(20) => 1 + self.rng.below(u64::from(block.length())) as u32,
                _ => block.length(),
            };
            let mut head = Unit {
                bytes: bytes.to_vec(),
                payload: payload(tag, split),
                ends_run: at == last && split == block.length(),
            };
            if role == Role::Staller {
                head.ends_run = false;
                self.enqueue(conn, side, head);
                self.conns[conn].ends[side].is_stalled = true;
                return;
            }
            self.enqueue(conn, side, head);
            if split < block.length() {
                let tail = Unit {
                    bytes: Vec::new(),
                    payload: payload(tag, block.length() - split),
                    ends_run: at == last,
                };
                self.enqueue(conn, side, tail);
            }
        }
    }

    // The line.

    fn enqueue(&mut self, conn: usize, side: usize, unit: Unit) {
        let end = &mut self.conns[conn].ends[side];
        end.out_bytes += unit.length();
        end.out.push_back(unit);
        let node = end.node;
        if !end.is_in_line {
            end.is_in_line = true;
            self.nodes[node].line.push_back((conn, side));
        }
        if !self.nodes[node].is_line_busy {
            let life = self.life(node);
            self.on_line_free(life);
        }
    }

    /// The node's line takes the next unit of the next connection in turn.
    pub fn on_line_free(&mut self, life: Life) {
        if !self.is_alive(life) {
            return;
        }
        let node = life.0;
        self.nodes[node].is_line_busy = false;
        while let Some((conn, side)) = self.nodes[node].line.pop_front() {
            let end = &mut self.conns[conn].ends[side];
            end.is_in_line = false;
            let Some(unit) = end.out.pop_front() else {
                continue;
            };
            if !end.out.is_empty() {
                end.is_in_line = true;
                self.nodes[node].line.push_back((conn, side));
            }
            let micros = unit.length() * 1_000_000 / self.nodes[node].spec.up_bytes_per_s;
            let sent = Duration::from_micros(micros + 1);
            self.nodes[node].is_line_busy = true;
            self.after(sent, Event::LineFree(life));
            self.conns[conn].ends[side].out_bytes -= unit.length();
            self.deliver(conn, side, sent, unit);
            return;
        }
    }

    fn deliver(&mut self, conn: usize, side: usize, sent: Duration, unit: Unit) {
        let is_run_end = unit.ends_run;
        let to = self.conns[conn].ends[1 - side].node;
        let latency = Duration::from_micros(self.conns[conn].latency_us);
        let jitter = self.some_ms(0, 2);
        let length = unit.length();
        let down = Duration::from_micros(length * 1_000_000 / self.nodes[to].spec.down_bytes_per_s);
        let on_line = self.now + sent + latency + jitter;
        let on_line = on_line.max(self.conns[conn].stalled_until);
        let arrives = on_line.max(self.conns[conn].ends[side].arrives_last);
        let arrives = arrives.max(self.nodes[to].down_free_at) + down;
        self.nodes[to].down_free_at = arrives;
        self.conns[conn].ends[side].arrives_last = arrives;
        let receiver = 1 - side;
        self.at(
            arrives,
            Event::Arrive {
                conn,
                side: receiver,
                unit,
            },
        );
        if is_run_end {
            self.after(sent, Event::Sent { conn, side });
        } else {
            self.after(sent, Event::Pump { conn, side });
        }
    }

    /// The last unit of a run has left.
    pub fn on_unit_sent(&mut self, conn: usize, side: usize) {
        let end = &mut self.conns[conn].ends[side];
        let (node, Some(peer), true) = (end.node, end.peer, end.is_open) else {
            return;
        };
        let run = end.run.take().expect("a run was being sent");
        let bytes: u64 = run.blocks.iter().map(|b| u64::from(b.length())).sum();
        self.nodes[node].tally.sent_bytes += bytes;
        self.nodes[node].sent_bytes_ever += bytes;
        // The writer is awake: it looks for more once this call has returned.
        self.conns[conn].ends[side].is_pumping = true;
        self.call(node, |torrent, cx| torrent.on_sent(peer, &run, cx));
        self.pump(conn, side);
    }

    // The ends of connections.

    /// The executor of `Effect::Close`.
    pub fn close_peer(&mut self, node: usize, peer: PeerKey) {
        if let Some(&(conn, side)) = self.nodes[node].peers.get(&peer) {
            self.close(conn, side);
        }
    }

    fn close(&mut self, conn: usize, side: usize) {
        let end = &mut self.conns[conn].ends[side];
        if !end.is_open {
            return;
        }
        end.is_open = false;
        end.out_bytes = 0;
        end.out.clear();
        let arrives = end.arrives_last;
        let drained = self.some_ms(0, 5);
        self.after(drained, Event::Closed { conn, side });
        let latency = Duration::from_micros(self.conns[conn].latency_us);
        let heard = arrives.max(self.now + latency);
        let other = 1 - side;
        self.at(heard, Event::Eof { conn, side: other });
    }

    /// The other end is gone.
    pub fn on_eof(&mut self, conn: usize, side: usize) {
        self.read(conn, side);
        if self.conns[conn].ends[side].peer.is_some() {
            self.close(conn, side);
        }
        self.conns[conn].ends[side].is_open = false;
    }

    /// Every operation of the end has ended.
    pub fn on_closed(&mut self, conn: usize, side: usize) {
        let end = &mut self.conns[conn].ends[side];
        let node = end.node;
        end.run = None;
        let Some(peer) = end.peer.take() else {
            return;
        };
        self.nodes[node].peers.remove(&peer);
        self.nodes[node].owned.retain(|_, at| *at != (conn, side));
        self.call(node, |torrent, cx| torrent.on_disconnected(peer, cx));
    }

    /// The executor of `Effect::Ban`.
    pub fn ban(&mut self, node: usize, ip: IpAddr) {
        self.nodes[node].banned.push(ip);
        let role = self.nodes[node::node_at(ip)].spec.role;
        assert!(!role.is_honest(), "node {node} bans honest {ip}");
        let conns: Vec<(usize, usize)> = self.nodes[node].peers.values().copied().collect();
        for (conn, side) in conns {
            let other = self.conns[conn].ends[1 - side].node;
            if node::address(other).ip() == ip {
                self.close(conn, side);
            }
        }
    }

    // Disks.

    /// Counts a bad piece against everyone who sent a bad block of it.
    fn blame(&mut self, node: usize, piece: PieceIndex) {
        let n = &mut self.nodes[node];
        let blocks = n.disk.blocks(piece);
        let mut senders: Vec<usize> = blocks
            .iter()
            .flatten()
            .filter_map(disk::bad_sender)
            .collect();
        // What was under way when the sender was banned came too late to say anything.
        senders.retain(|sender| !n.banned.contains(&node::address(*sender).ip()));
        senders.sort_unstable();
        senders.dedup();
        for sender in senders {
            *n.bad_pieces_of.entry(sender).or_default() += 1;
        }
    }

    /// The executor of `Effect::Hash`.
    pub fn start_hash(&mut self, node: usize, piece: PieceIndex) {
        let blocks = self.nodes[node].disk.blocks(piece);
        assert!(
            blocks.iter().all(Option::is_some),
            "piece {piece:?} is hashed with holes"
        );
        self.check_nothing_owned(node, piece);
        let is_spilled = self.nodes[node].disk.plan_write(piece, None).len() < blocks.len();
        let percent = self.read_fault_percent(node);
        let is_failed = is_spilled && self.rng.chance(percent);
        let is_good = (!is_failed).then(|| disk::is_good(piece, &blocks));
        self.start_job(node, 1, 10, DiskJob::Hash { piece, is_good });
    }

    /// The executor of `Effect::Write` and `Effect::FlushSegment`.
    pub fn start_write(&mut self, node: usize, piece: PieceIndex, segment: Option<u32>) {
        let plan = self.nodes[node].disk.plan_write(piece, segment);
        let is_spared = !self.is_faulty() || self.nodes[node].spec.is_steady;
        let percent = if is_spared {
            0
        } else {
            self.spec.faults.write_percent
        };
        let refusal = self.refusal(node, piece);
        let is_good = !self.rng.chance(percent) && refusal.is_none();
        let job = DiskJob::Write {
            piece,
            segment,
            plan,
            is_good,
            refusal,
        };
        self.start_job(node, 1, 30, job);
    }

    /// The executor of `Effect::DigestBlocks`.
    pub fn start_digest(&mut self, node: usize, piece: PieceIndex) {
        let blocks = self.nodes[node].disk.blocks(piece);
        let percent = self.read_fault_percent(node);
        let is_failed = self.rng.chance(percent);
        let tags: Option<Vec<u64>> = blocks.iter().map(|tag| tag.map(|tag| tag.0)).collect();
        let digests = tags.filter(|_| !is_failed);
        self.start_job(node, 1, 10, DiskJob::Digest { piece, digests });
    }

    /// The executor of `Effect::HashLeaves`.
    pub fn start_leaves(&mut self, node: usize, piece: PieceIndex) {
        let percent = self.read_fault_percent(node);
        let is_failed = self.rng.chance(percent);
        let leaves = self.nodes[node].disk.leaves(piece);
        assert!(leaves.is_some(), "a piece with holes is judged");
        let leaves = leaves.filter(|_| !is_failed);
        self.start_job(node, 1, 10, DiskJob::HashLeaves { piece, leaves });
    }

    /// The executor of `Effect::ReadLeaves`: poisoners may say nothing.
    pub fn read_leaves(&mut self, node: usize, piece: PieceIndex) {
        let percent = match self.nodes[node].spec.role {
            Role::Poisoner { .. } => 50,
            _ => self.read_fault_percent(node),
        };
        let is_failed = self.rng.chance(percent);
        let leaves = self.nodes[node].disk.leaves(piece);
        let leaves = leaves.filter(|_| !is_failed);
        self.start_job(node, 1, 100, DiskJob::ReadLeaves { piece, leaves });
    }

    /// The executor of `Effect::DropBlocks`.
    pub fn drop_blocks(&mut self, node: usize, piece: PieceIndex, blocks: &[u32]) {
        self.check_nothing_owned(node, piece);
        self.nodes[node].disk.drop_blocks(piece, blocks);
    }

    /// The executor of `Effect::Discard`.
    pub fn discard(&mut self, node: usize, piece: PieceIndex) {
        self.check_nothing_owned(node, piece);
        self.nodes[node].disk.discard(piece);
    }

    fn start_job(&mut self, node: usize, min_ms: u64, max_ms: u64, job: DiskJob) {
        let is_slow = self.is_faulty() && self.rng.chance(self.spec.faults.slow_percent);
        let delay = match is_slow {
            true => self.some_ms(min_ms, SLOW_MS_MAX),
            false => self.some_ms(min_ms, max_ms),
        };
        let life = self.life(node);
        self.after(delay, Event::DiskDone { life, job });
    }

    /// A disk or a hash worker has done its work.
    pub fn on_disk_done(&mut self, life: Life, job: DiskJob) {
        if !self.is_alive(life) {
            return;
        }
        let node = life.0;
        match job {
            DiskJob::Hash { piece, is_good } => {
                if is_good == Some(false) {
                    self.blame(node, piece);
                }
                self.call(node, |torrent, cx| match is_good {
                    Some(is_good) => torrent.on_piece_hashed(piece, is_good, cx),
                    None => torrent.on_piece_write_failed(piece, cx),
                });
            }
            DiskJob::Write {
                piece,
                segment,
                plan,
                is_good,
                refusal,
            } => {
                if is_good {
                    self.nodes[node].disk.commit_write(piece, &plan);
                }
                if let Some(refusal) = refusal {
                    self.on_refused(node, piece, refusal);
                    if !self.is_alive(life) {
                        return;
                    }
                }
                self.call(node, |torrent, cx| match (is_good, segment) {
                    (false, _) => torrent.on_piece_write_failed(piece, cx),
                    (true, None) => torrent.on_piece_written(piece, cx),
                    (true, Some(segment)) => torrent.on_segment_flushed(piece, segment, cx),
                });
            }
            DiskJob::HashLeaves { piece, leaves } => {
                self.call(node, |torrent, cx| {
                    torrent.on_leaves_hashed(piece, leaves, cx);
                });
            }
            DiskJob::ReadLeaves { piece, leaves } => {
                self.call(node, |torrent, cx| {
                    torrent.on_leaves_read(piece, leaves.as_deref(), cx);
                });
            }
            DiskJob::Digest { piece, digests } => {
                self.call(node, |torrent, cx| {
                    torrent.on_block_digests(piece, digests, cx);
                });
            }
        }
    }
}

fn payload(tag: Tag, length: u32) -> Option<Payload> {
    (length > 0).then_some(Payload { tag, length })
}

/// A block as the wire names it.
pub fn raw(block: BlockRef) -> RawBlock {
    RawBlock {
        piece: block.piece().get(),
        begin: block.begin(),
        length: block.length(),
    }
}
