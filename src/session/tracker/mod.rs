//! A small tracker for a swarm of one's own: HTTP and UDP on one ring thread. Layer 5.
//!
//! Who is told about whom is `swarm::registry`'s decision, bytes are `wire::tracker_http::serve`'s and
//! `wire::tracker_udp`'s. Here are the sockets and what strangers may do with them.

mod connection_id;
mod http;
mod page;
mod sockets;
mod udp;

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, error, info};

use super::clock::Clock;
use super::config::Stopper;
use super::contain;
use super::error::SessionError;
use crate::swarm::registry::{Registry, RegistryConfig, Totals};
use crate::wire::tracker_http::serve::Announced;
use connection_id::ConnectionIds;

/// How long open connections may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of the tracker.
#[derive(Clone, Debug)]
pub struct TrackerConfig {
    /// Where to listen, each address in TCP and UDP; port 0 is any that is free in both. Empty is
    /// [`PORT_DEFAULT`] of both families.
    pub listen: Vec<SocketAddr>,
    /// What peers are told; at least a second.
    pub interval: Duration,
}

/// The port listened on when none is named.
pub const PORT_DEFAULT: u16 = 6969;

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Udp,
}

impl Protocol {
    /// The word used in `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Udp => "udp",
        }
    }
}

/// One socket is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub addr: SocketAddr,
    pub protocol: Protocol,
}

/// What the tracker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrackerTotals {
    pub uptime: Duration,
    pub http_announces: u64,
    pub udp_announces: u64,
    pub scrapes: u64,
    /// Announces and scrapes that were refused.
    pub refused: u64,
    /// Panics: each ended one connection, or began anew what serves a socket.
    pub panics: u64,
    /// Who is registered now.
    pub registered: Totals,
}

/// Runs the tracker until `stopper` is used. Call it inside the ring's runtime.
///
/// # Errors
/// An address cannot be listened on.
pub async fn run(
    config: TrackerConfig,
    stopper: Stopper,
    mut on_listening: impl FnMut(Listening),
) -> Result<TrackerTotals, SessionError> {
    let sockets = sockets::bind(&config.listen)?;
    let tracker = Rc::new(Tracker::new(&config));
    let connections: Rc<http::Connections> = Rc::default();
    let mut serving = Vec::new();
    for (listener, udp) in &sockets.pairs {
        let unknown = |error| SessionError::new(format!("cannot listen: {error}"), "try again");
        let addr = listener.local_addr().map_err(unknown)?;
        for protocol in [Protocol::Http, Protocol::Udp] {
            info!(%addr, protocol = protocol.as_str(), "listening");
            on_listening(Listening { addr, protocol });
        }
        let (tracker, connections) = (tracker.clone(), connections.clone());
        let (listener, udp) = (listener.clone(), udp.clone());
        let taking = tracker.clone();
        serving.push(tokio_uring::spawn(kept_up(tracker.clone(), move || {
            http::accept_loop(taking.clone(), connections.clone(), listener.clone())
        })));
        serving.push(tokio_uring::spawn(kept_up(tracker.clone(), move || {
            udp::receive_loop(tracker.clone(), udp.clone())
        })));
    }
    stopper.stopped().await;
    info!("stopping");
    let totals = tracker.totals();
    sockets.close();
    connections.shutdown();
    let ended = async {
        for task in serving {
            // A task that panicked has ended too.
            let _ = task.await;
        }
        connections.ended().await;
    };
    if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
        debug!("some connections did not end in time");
    }
    Ok(totals)
}

/// Serves one socket until it is closed; after a panic it starts anew.
async fn kept_up<W: Future<Output = ()>>(tracker: Rc<Tracker>, start: impl FnMut() -> W) {
    let on_panic = || {
        tracker.on_panic("serving a socket was broken off");
        true
    };
    contain::again_after_panic(on_panic, start).await;
}

/// What all sockets share.
struct Tracker {
    registry: RefCell<Registry>,
    connection_ids: ConnectionIds,
    clock: Clock,
    interval_secs: u32,
    http_announces: Cell<u64>,
    udp_announces: Cell<u64>,
    scrapes: Cell<u64>,
    refused: Cell<u64>,
    panics: Cell<u64>,
}

impl Tracker {
    fn new(config: &TrackerConfig) -> Tracker {
        // The standard library's hash keys are the system's random bytes.
        let seed = RandomState::new().build_hasher().finish();
        let secs = config.interval.as_secs().max(1);
        Tracker {
            registry: RefCell::new(Registry::new(RegistryConfig::new(config.interval), seed)),
            connection_ids: ConnectionIds::default(),
            clock: Clock::start(),
            interval_secs: u32::try_from(secs).unwrap_or(u32::MAX),
            http_announces: Cell::new(0),
            udp_announces: Cell::new(0),
            scrapes: Cell::new(0),
            refused: Cell::new(0),
            panics: Cell::new(0),
        }
    }

    fn on_panic(&self, what: &str) {
        count(&self.panics);
        error!(
            panics = self.panics.get(),
            "an error in the program: {what}"
        );
    }

    /// How long clients must wait between announces, however much they want peers.
    fn min_interval_secs(&self) -> u32 {
        (self.interval_secs / 2).max(1)
    }

    fn totals(&self) -> TrackerTotals {
        let now = self.clock.now();
        TrackerTotals {
            uptime: Duration::from_micros(now.as_micros()),
            http_announces: self.http_announces.get(),
            udp_announces: self.udp_announces.get(),
            scrapes: self.scrapes.get(),
            refused: self.refused.get(),
            panics: self.panics.get(),
            registered: self.registry.borrow_mut().totals(now),
        }
    }
}

/// Adds one to a counter.
fn count(counter: &Cell<u64>) {
    counter.set(counter.get().saturating_add(1));
}

fn log_announce(from: SocketAddr, protocol: Protocol, announced: &Announced) {
    debug!(
        %from,
        protocol = protocol.as_str(),
        info_hash = %announced.info_hash,
        port = announced.port,
        event = ?announced.event,
        is_seeder = announced.is_seeder,
        "announce"
    );
}
