//! The event queue, joining, leaving and the faults: everything that happens to nodes from outside.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Duration;

use gyre::base::{Now, Rng};
use gyre::storage::retry::{Refusal, Retries};
use gyre::swarm::{Cx, Effect, Source, Torrent, TorrentConfig};

use crate::disk::Disk;
use crate::driver::DiskJob;
use crate::net::{Conn, Unit};
use crate::node::{self, Node};
use crate::outage::world_time;
use crate::spec::Spec;

/// A run that takes more events than this goes in circles.
const EVENTS_MAX: u64 = 40_000_000;
/// Timers of one node at one moment; more are a loop that never sleeps.
const TIMERS_IN_A_ROW_MAX: u32 = 200;
/// How often the simulated tracker is asked.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(60);
/// Addresses a tracker gives at once.
const NUMWANT: usize = 50;

/// Names a node in one of its lives.
pub type Life = (usize, u32);

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    Join {
        node: usize,
    },
    Announce {
        life: Life,
        is_regular: bool,
    },
    Timer {
        life: Life,
        number: u64,
    },
    Accept {
        conn: usize,
    },
    Established {
        conn: usize,
    },
    DialFailed {
        life: Life,
        addr: SocketAddr,
    },
    Pump {
        conn: usize,
        side: usize,
    },
    LineFree(Life),
    Sent {
        conn: usize,
        side: usize,
    },
    Arrive {
        conn: usize,
        side: usize,
        unit: Unit,
    },
    Read {
        conn: usize,
        side: usize,
    },
    Eof {
        conn: usize,
        side: usize,
    },
    Closed {
        conn: usize,
        side: usize,
    },
    ReadDone {
        conn: usize,
        side: usize,
        is_good: bool,
    },
    DiskDone {
        life: Life,
        job: DiskJob,
    },
    Credits(Life),
    TryDisk {
        life: Life,
        refusal: Refusal,
    },
    Cut,
    Crash,
    Lose,
    Break,
    Stall,
    Jump,
}

struct Queued {
    at: Now,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A swarm in virtual time.
pub struct World {
    pub spec: Spec,
    pub now: Now,
    pub rng: Rng,
    pub nodes: Vec<Node>,
    pub conns: Vec<Conn>,
    queue: BinaryHeap<Reverse<Queued>>,
    queued_count: u64,
    pub event_count: u64,
    pub is_traced: bool,
    is_stopping: bool,
    /// Nodes that were called in this step.
    called: Vec<usize>,
}

impl World {
    /// A swarm at time zero.
    pub fn new(spec: Spec, seed: u64) -> Self {
        let nodes = spec.nodes.iter().cloned().map(|node| {
            let disk = Disk::new(spec.geometry.clone(), node.role.has_all());
            Node::new(node, disk)
        });
        let mut world = World {
            nodes: nodes.collect(),
            now: Now::from_secs(1),
            rng: Rng::new(seed),
            conns: Vec::new(),
            queue: BinaryHeap::new(),
            queued_count: 0,
            event_count: 0,
            is_traced: std::env::var_os("GYRE_SIM_TRACE").is_some(),
            is_stopping: false,
            called: Vec::new(),
            spec,
        };
        for node in 0..world.nodes.len() {
            let delay = Duration::from_millis(world.spec.nodes[node].joins_ms);
            world.after(delay, Event::Join { node });
        }
        world.next_fault(world.spec.faults.cut_every_ms, Event::Cut);
        world.next_fault(world.spec.faults.crash_every_ms, Event::Crash);
        world.next_fault(world.spec.faults.lose_every_ms, Event::Lose);
        world.next_fault(world.spec.faults.outage_every_ms, Event::Break);
        world.next_fault(world.spec.faults.stall_every_ms, Event::Stall);
        world.next_fault(world.spec.faults.jump_every_ms, Event::Jump);
        world
    }

    /// What the node's clock shows.
    pub fn clock(&self, node: usize) -> Now {
        self.now + self.nodes[node].ahead
    }

    /// Queues an event.
    pub fn at(&mut self, at: Now, event: Event) {
        self.queued_count += 1;
        let number = self.queued_count;
        let at = at.max(self.now);
        self.queue.push(Reverse(Queued { at, number, event }));
    }

    /// Queues an event for a moment from now.
    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// A duration by lot, in milliseconds, both ends included.
    pub fn some_ms(&mut self, min: u64, max: u64) -> Duration {
        let micros = min * 1_000 + self.rng.below((max - min) * 1_000 + 1);
        Duration::from_micros(micros)
    }

    /// True while things may go wrong.
    pub fn is_faulty(&self) -> bool {
        self.now < Now::from_secs(self.spec.faults.until_secs)
    }

    /// Runs until every honest node is done and the faults are over, then stops everybody and closes the accounts.
    pub fn run(&mut self) {
        let deadline = Now::from_secs(self.spec.deadline_secs);
        while !self.is_done() {
            assert!(
                self.now < deadline,
                "not done in time:\n{}",
                self.describe()
            );
            assert!(self.step(), "nothing more happens:\n{}", self.describe());
        }
        self.settle_down();
        self.stop();
    }

    fn is_done(&self) -> bool {
        let honest = |node: &Node| node.spec.role.is_honest();
        let is_node_done = |node: &Node| {
            node.torrent.as_ref().is_some_and(Torrent::is_complete) && node.completed_at.is_some()
        };
        !self.is_faulty()
            && self
                .nodes
                .iter()
                .all(|node| !honest(node) || is_node_done(node))
    }

    /// Lets what is under way end; then every request must have been answered.
    fn settle_down(&mut self) {
        let end = self.now + Duration::from_secs(20);
        while self.next_at().is_some_and(|at| at < end) {
            self.step();
        }
        self.check_quiet();
    }

    fn stop(&mut self) {
        self.is_stopping = true;
        for node in 0..self.nodes.len() {
            if self.nodes[node].torrent.is_some() {
                self.call(node, |torrent, cx| torrent.stop(cx));
            }
        }
        self.check_called();
        let end = self.now + Duration::from_secs(120);
        while self.next_at().is_some_and(|at| at < end) {
            self.step();
        }
        self.check_accounts_closed();
    }

    fn next_at(&self) -> Option<Now> {
        self.queue.peek().map(|Reverse(queued)| queued.at)
    }

    /// Handles one event; false when there is none.
    fn step(&mut self) -> bool {
        let Some(Reverse(Queued { at, event, .. })) = self.queue.pop() else {
            return false;
        };
        if at > self.now {
            for node in &mut self.nodes {
                node.timers_in_a_row = 0;
            }
        }
        self.now = at;
        self.event_count += 1;
        assert!(
            self.event_count < EVENTS_MAX,
            "too much happens:\n{}",
            self.describe()
        );
        if self.is_traced {
            eprintln!("{at} {event:?}");
        }
        self.dispatch(event);
        self.check_called();
        true
    }

    fn check_called(&mut self) {
        while let Some(node) = self.called.pop() {
            if self.nodes[node].torrent.is_some() {
                self.check_node(node);
            }
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Join { node } => self.join(node),
            Event::Announce { life, is_regular } => self.announce(life, is_regular),
            Event::Timer { life, number } => self.on_timer(life, number),
            Event::Accept { conn } => self.on_accept(conn),
            Event::Established { conn } => self.on_established(conn),
            Event::DialFailed { life, addr } => self.on_dial_failed(life, addr),
            Event::Pump { conn, side } => self.pump(conn, side),
            Event::LineFree(life) => self.on_line_free(life),
            Event::Sent { conn, side } => self.on_unit_sent(conn, side),
            Event::Arrive { conn, side, unit } => self.on_arrive(conn, side, unit),
            Event::Read { conn, side } => self.read(conn, side),
            Event::Eof { conn, side } => self.on_eof(conn, side),
            Event::Closed { conn, side } => self.on_closed(conn, side),
            Event::ReadDone {
                conn,
                side,
                is_good,
            } => self.on_read_done(conn, side, is_good),
            Event::DiskDone { life, job } => self.on_disk_done(life, job),
            Event::Credits(life) => {
                if self.is_alive(life) {
                    self.call(life.0, |torrent, cx| torrent.on_credits(cx));
                }
            }
            Event::Cut => self.cut_one(),
            Event::Crash => self.crash_one(),
            Event::Lose => self.lose_one(),
            Event::TryDisk { life, refusal } => self.try_disk(life, refusal),
            Event::Break => self.break_one(),
            Event::Stall => self.stall_one(),
            Event::Jump => self.jump_one(),
        }
    }

    /// True when the node is up and still in that life.
    pub fn is_alive(&self, (node, life): Life) -> bool {
        self.nodes[node].life == life && self.nodes[node].torrent.is_some()
    }

    /// The present life of a node.
    pub fn life(&self, node: usize) -> Life {
        (node, self.nodes[node].life)
    }

    /// Calls the core, then does what it asked for.
    pub fn call<R>(&mut self, node: usize, f: impl FnOnce(&mut Torrent, &mut Cx<'_>) -> R) -> R {
        let before = self.nodes[node].credits.assembly_bytes;
        let result = self.call_raw(node, f);
        self.settle(node);
        self.wake_starved(node, before);
        result
    }

    /// Calls the core and leaves its effects for [`World::settle`].
    pub fn call_raw<R>(
        &mut self,
        node: usize,
        f: impl FnOnce(&mut Torrent, &mut Cx<'_>) -> R,
    ) -> R {
        let now = self.clock(node);
        let n = &mut self.nodes[node];
        n.credits.dials = node::HALF_OPEN_MAX - n.half_open;
        let mut cx = Cx {
            now,
            credits: &mut n.credits,
            fx: &mut n.effects,
        };
        f(n.torrent.as_mut().expect("the node is up"), &mut cx)
    }

    /// Executes the effects in order and looks after its timer.
    pub fn settle(&mut self, node: usize) {
        let effects = std::mem::take(&mut self.nodes[node].effects);
        for effect in effects {
            if self.is_traced {
                eprintln!("{}     node {node}: {effect:?}", self.now);
            }
            self.execute(node, effect);
        }
        if !self.called.contains(&node) {
            self.called.push(node);
        }
        let deadline = self.nodes[node].torrent().next_deadline();
        let n = &mut self.nodes[node];
        if deadline != n.timer {
            n.timer = deadline;
            n.timer_number += 1;
            if let Some(at) = deadline {
                let at = world_time(at, n.ahead);
                let number = n.timer_number;
                let life = self.life(node);
                self.at(at, Event::Timer { life, number });
            }
        }
    }

    fn on_timer(&mut self, life: Life, number: u64) {
        let node = life.0;
        if !self.is_alive(life) || self.nodes[node].timer_number != number {
            return;
        }
        let n = &mut self.nodes[node];
        n.timer = None;
        n.timers_in_a_row += 1;
        assert!(
            n.timers_in_a_row < TIMERS_IN_A_ROW_MAX,
            "the timer of node {node} spins:\n{}",
            self.describe()
        );
        self.call(node, |torrent, cx| torrent.on_timer(cx));
    }

    fn join(&mut self, node: usize) {
        let seed = self.rng.next_u64();
        let n = &mut self.nodes[node];
        n.life += 1;
        n.credits = node::full_credits(&n.spec);
        n.tally = node::Tally::default();
        n.effects.clear();
        n.peers.clear();
        n.owned.clear();
        n.half_open = 0;
        n.timer = None;
        n.line.clear();
        n.is_line_busy = false;
        n.announce_due = false;
        let mut config = TorrentConfig::new(
            self.spec.geometry.clone(),
            node::peer_id(node, n.life),
            seed,
        );
        config.have = n.disk.checkpoint.clone();
        config.trees = self.spec.trees.clone();
        if let Some(wanted) = &n.spec.wanted {
            config.wanted = wanted.clone();
        }
        config.is_sequential = n.spec.is_sequential;
        config.super_seeds = n.spec.super_seeds;
        config.upload_slots = n.spec.slots;
        config.seed_choker = n.spec.seed_choker;
        config.assembly_budget_bytes = n.spec.budget_bytes;
        config.listen_port = node::address(node).port();
        let is_complete = config.wanted.iter().all(|piece| config.have.has(piece));
        if is_complete && n.completed_at.is_none() {
            n.completed_at = Some(self.now);
        }
        n.retries = Retries::default();
        n.is_recovering = false;
        n.refused.clear();
        n.retried.clear();
        n.torrent = Some(Torrent::new(config, self.now + n.ahead));
        self.settle(node);
        self.announce(self.life(node), true);
    }

    fn announce(&mut self, life: Life, is_regular: bool) {
        if !self.is_alive(life) || self.is_stopping {
            return;
        }
        let mut addrs: Vec<SocketAddr> = (0..self.nodes.len())
            .filter(|other| self.nodes[*other].torrent.is_some())
            .map(node::address)
            .collect();
        self.rng.shuffle(&mut addrs);
        addrs.truncate(NUMWANT);
        self.nodes[life.0].announce_due = false;
        self.call(life.0, |torrent, cx| {
            torrent.on_candidates(Source::Tracker, &addrs, cx);
        });
        if is_regular {
            self.after(ANNOUNCE_EVERY, Event::Announce { life, is_regular });
        }
    }

    /// The executor of [`Effect::WantPeers`].
    pub fn want_peers(&mut self, node: usize) {
        if !self.nodes[node].announce_due {
            self.nodes[node].announce_due = true;
            let wait = self.some_ms(1_000, 5_000);
            let life = self.life(node);
            let is_regular = false;
            self.after(wait, Event::Announce { life, is_regular });
        }
    }

    /// Executes one effect.
    fn execute(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::WakeWriter(peer) => self.wake(node, peer),
            Effect::Close { peer, .. } => self.close_peer(node, peer),
            Effect::Dial { addr } => self.dial(node, addr),
            // Nobody here is behind a gateway: a meeting is a dial like any other.
            Effect::Punch { addr } => self.dial(node, addr),
            Effect::Hash { piece } => self.start_hash(node, piece),
            Effect::Write { piece } => self.start_write(node, piece, None),
            Effect::FlushSegment { piece, segment } => {
                self.start_write(node, piece, Some(segment));
            }
            Effect::Discard { piece } => self.discard(node, piece),
            Effect::DigestBlocks { piece } => self.start_digest(node, piece),
            Effect::DropBlocks { piece, blocks } => self.drop_blocks(node, piece, &blocks),
            Effect::HashLeaves { piece } => self.start_leaves(node, piece),
            Effect::ReadLeaves { piece, .. } => self.read_leaves(node, piece),
            Effect::Ban { ip } => self.ban(node, ip),
            Effect::BanWebSeed { .. } => {}
            Effect::Have { piece } => self.on_have(node, piece),
            Effect::Complete => self.on_complete(node),
            Effect::WantPeers => self.want_peers(node),
            Effect::DhtNode { .. } => {}
        }
    }
}
