//! Synthetic leechers: fetch blocks and throw them away. Layer 7.
//!
//! Payload is discarded by the kernel (MSG_TRUNC on TCP copies nothing), so that this side needs a fraction of the time
//! the program under test needs. Every header is read and matched with a request.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

use super::peer::{Next, Peer};
use super::veil::Veil;
use super::work::{Shuffled, Walk, blocks_of};
use super::{Command, Commands, Counters, LeechJob, Role, Said, say};
use crate::app::bench::args::{Order, Veiled};
use crate::base::Geometry;
use crate::wire::mse::Payloads;

/// Events taken at once.
const EVENTS_MAX: usize = 256;
/// Connections made between two turns, so that those there are go on being served.
const DIALS_PER_TURN: usize = 64;
/// A connection refused or closed before it was served is tried again after this long.
const RETRY: Duration = Duration::from_millis(100);
/// Once one connection is served the others get this much longer.
const STRAGGLERS: Duration = Duration::from_secs(15);
/// Idle connections say that they are alive this often (BEP 3: before two minutes).
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Mark of stdin among the epoll events.
const STDIN: u64 = u64::MAX;

/// What all peers of the process share.
pub struct Shared {
    pub job: LeechJob,
    /// One a torrent, with random orders.
    pub shuffled: Vec<Shuffled>,
    pub counters: Counters,
    /// Requests may be sent.
    pub may_ask: bool,
    /// Never written to: where the kernel is told to put what it discards.
    pub sink: Vec<u8>,
    pub checked_blocks: u32,
    pub served: u32,
}

enum Slot {
    Waiting(Instant),
    Open(Box<Peer>),
    Lost,
}

struct Load {
    shared: Shared,
    geometries: Vec<Geometry>,
    slots: Vec<Slot>,
    epoll: Epoll,
    commands: Commands,
    is_ready: bool,
    is_exhausted: bool,
    lost: u32,
    deadline: Instant,
    next_keep_alive: Instant,
}

/// Runs until stdin closes.
pub fn run(job: LeechJob) -> io::Result<()> {
    let mut load = Load::new(job)?;
    let mut events = vec![EpollEvent::empty(); EVENTS_MAX];
    loop {
        load.dial();
        let wait = if load.is_ready { 100_u16 } else { 10 };
        let count = match load.epoll.wait(&mut events, EpollTimeout::from(wait)) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().take(count) {
            match event.data() {
                STDIN => load.obey()?,
                at => load.turn(at as usize),
            }
        }
        load.after_turn();
    }
}

impl Load {
    fn new(job: LeechJob) -> io::Result<Load> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, STDIN))?;
        let geometries = job.torrents.iter().map(|torrent| torrent.geometry());
        let geometries = geometries.collect::<io::Result<Vec<Geometry>>>()?;
        let run_blocks = match job.order {
            Order::Blocks => 1,
            _ => job.run_blocks,
        };
        let shuffled = match job.order {
            Order::Sequential => Vec::new(),
            _ => geometries
                .iter()
                .map(|geometry| {
                    let blocks = blocks_of(geometry);
                    Shuffled::new(blocks, run_blocks, job.share, job.once, job.seed)
                })
                .collect(),
        };
        let now = Instant::now();
        Ok(Load {
            slots: job.connections.iter().map(|_| Slot::Waiting(now)).collect(),
            deadline: now + Duration::from_secs(job.patience_s),
            next_keep_alive: now + KEEP_ALIVE,
            shared: Shared {
                may_ask: !job.once,
                shuffled,
                counters: Counters::new(),
                sink: vec![0; 1 << 20],
                checked_blocks: 0,
                served: 0,
                job,
            },
            geometries,
            epoll,
            commands: Commands::default(),
            is_ready: false,
            is_exhausted: false,
            lost: 0,
        })
    }

    /// Opens connections that are due.
    fn dial(&mut self) {
        if self.is_ready {
            return;
        }
        let now = Instant::now();
        let mut dials = 0;
        for at in 0..self.slots.len() {
            if !matches!(self.slots.get(at), Some(Slot::Waiting(when)) if *when <= now) {
                continue;
            }
            let slot = match self.open(at) {
                Ok(peer) => Slot::Open(Box::new(peer)),
                Err(_) => Slot::Waiting(now + RETRY),
            };
            if let Some(place) = self.slots.get_mut(at) {
                *place = slot;
            }
            dials += 1;
            if dials >= DIALS_PER_TURN {
                return;
            }
        }
    }

    fn open(&self, at: usize) -> io::Result<Peer> {
        let job = &self.shared.job;
        let connection = job.connections.get(at).ok_or(io::ErrorKind::NotFound)?;
        let lookup = || io::Error::from(io::ErrorKind::NotFound);
        let geometry = self
            .geometries
            .get(connection.torrent)
            .ok_or_else(lookup)?
            .clone();
        let torrent = job.torrents.get(connection.torrent).ok_or_else(lookup)?;
        let fd = socket::socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // The port is chosen with the connection, so that an address is not short of ports.
        let _ = socket::setsockopt(&fd, socket::sockopt::IpBindAddressNoPort, &true);
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(connection.from))?;
        socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(job.addr))?;
        let mut stream = TcpStream::from(fd);
        stream.set_nodelay(true)?;
        let opening = super::peer::opening(torrent.info_hash, connection.id);
        let veil = match job.encryption {
            Veiled::Off => {
                stream.write_all(&opening)?;
                Veil::default()
            }
            Veiled::Plaintext => Veil::hide(&mut stream, &opening, Payloads::Both)?,
            Veiled::Rc4 => Veil::hide(&mut stream, &opening, Payloads::Rc4Only)?,
        };
        stream.set_nonblocking(true)?;
        let interest = EpollEvent::new(EpollFlags::EPOLLIN, at as u64);
        self.epoll.add(stream.as_fd(), interest)?;
        let walk = match (job.role, job.order) {
            (Role::FetchKnown, _) => Walk::announced(geometry),
            (_, Order::Sequential) => {
                Walk::sequential(geometry, connection.number, connection.of, job.once)
            }
            _ => Walk::shuffled(geometry),
        };
        Ok(Peer::new(stream, at, connection.torrent, walk, veil))
    }

    /// Reads and asks on one connection.
    fn turn(&mut self, at: usize) {
        let Some(Slot::Open(peer)) = self.slots.get_mut(at) else {
            return;
        };
        let was_writing = peer.is_writing();
        let result = peer.turn(&mut self.shared);
        if result.is_ok() && peer.is_writing() != was_writing {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, peer.is_writing());
            let mut interest = EpollEvent::new(flags, at as u64);
            let _ = self.epoll.modify(peer.stream(), &mut interest);
        }
        match result {
            Ok(Next::Goes) => {}
            Ok(Next::Exhausted) => self.look_for_the_end(),
            Err(error) => {
                // Closing the socket takes it out of the epoll.
                self.shared.served -= u32::from(peer.is_served());
                let slot = match self.is_ready {
                    true => Slot::Lost,
                    false => Slot::Waiting(Instant::now() + RETRY),
                };
                if error.kind() == io::ErrorKind::InvalidData {
                    say(&Said::Failed {
                        message: error.to_string(),
                    });
                }
                self.lost += u32::from(self.is_ready);
                if let Some(place) = self.slots.get_mut(at) {
                    *place = slot;
                }
                self.look_for_the_end();
            }
        }
    }

    fn look_for_the_end(&mut self) {
        let is_done = |slot: &Slot| match slot {
            Slot::Open(peer) => peer.is_exhausted(),
            Slot::Lost => true,
            Slot::Waiting(_) => false,
        };
        if self.shared.may_ask && !self.is_exhausted && self.slots.iter().all(is_done) {
            self.is_exhausted = true;
            say(&Said::Exhausted);
        }
    }

    fn connected(&self) -> u32 {
        let open = |slot: &&Slot| matches!(slot, Slot::Open(peer) if peer.is_greeted());
        self.slots.iter().filter(open).count() as u32
    }

    fn after_turn(&mut self) {
        let now = Instant::now();
        if !self.is_ready {
            if self.shared.served > 0 {
                self.deadline = self.deadline.min(now + STRAGGLERS);
            }
            let all = self.shared.served as usize == self.slots.len();
            if all || now >= self.deadline {
                self.is_ready = true;
                say(&Said::Ready {
                    served: self.shared.served,
                    connected: self.connected(),
                    listening: Vec::new(),
                    checked_blocks: self.shared.checked_blocks,
                });
            }
        }
        if self.shared.job.role == Role::Idle && now >= self.next_keep_alive {
            self.next_keep_alive = now + KEEP_ALIVE;
            for slot in &mut self.slots {
                if let Slot::Open(peer) = slot {
                    peer.keep_alive();
                }
            }
        }
    }

    fn obey(&mut self) -> io::Result<()> {
        for command in self.commands.take()? {
            match command {
                Command::Measure => {
                    self.shared.counters.restart();
                    self.lost = 0;
                    if !self.shared.may_ask {
                        self.shared.may_ask = true;
                        (0..self.slots.len()).for_each(|at| self.turn(at));
                    }
                }
                Command::Report => {
                    let report = self.shared.counters.finish(self.connected(), self.lost);
                    say(&Said::Report(report));
                }
            }
        }
        Ok(())
    }
}
