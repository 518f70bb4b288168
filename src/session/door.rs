//! Who takes the connections and addresses of one info_hash: a running torrent, or the search for its metadata. Layer 5.
//!
//! Whatever finds peers (trackers, and all that comes to their side) tells a door, so that it goes on finding them when
//! the search ends and the torrent begins.

use std::net::SocketAddr;
use std::rc::Rc;

use super::driver::Driver;
use super::metadata::Search;
use super::peer;
use super::peer_stream::PeerStream;
use super::shake::Shaken;
use super::shared::Shared;
use crate::base::InfoHash;
use crate::swarm::candidates::Source;
use crate::swarm::torrent::Connected;
use crate::wire::tracker::Counters;

/// What trackers are told of a torrent whose size nobody knows: that something is missing. A tracker that heard 0 would
/// take us for a seed.
const LEFT_UNKNOWN_BYTES: u64 = 16_384;

/// One info_hash at work.
#[derive(Clone)]
pub enum Door {
    Torrent(Rc<Driver>),
    Metadata(Rc<Search>),
}

impl Door {
    /// The session it belongs to.
    pub fn shared(&self) -> &Rc<Shared> {
        match self {
            Door::Torrent(driver) => driver.shared(),
            Door::Metadata(search) => search.shared(),
        }
    }

    /// Its info_hash.
    pub fn info_hash(&self) -> InfoHash {
        match self {
            Door::Torrent(driver) => driver.info_hash(),
            Door::Metadata(search) => search.info_hash(),
        }
    }

    /// Whether this name of it is that of BitTorrent v2.
    pub fn is_v2(&self, name: &InfoHash) -> bool {
        let hashes = match self {
            Door::Torrent(driver) => &driver.metainfo().info_hashes,
            Door::Metadata(search) => search.info_hashes(),
        };
        hashes.v2().is_some_and(|v2| v2.truncated() == *name)
    }

    /// What it is known by, and the second name of a hybrid.
    pub fn names(&self) -> impl Iterator<Item = InfoHash> + use<> {
        let second = match self {
            Door::Torrent(driver) => driver.metainfo().second_info_hash(),
            Door::Metadata(_) => None,
        };
        [Some(self.info_hash()), second].into_iter().flatten()
    }

    /// Whether peers are told where our DHT node is: not those of a private torrent (BEP 27), nor before it is known
    /// whether it is one.
    pub fn tells_dht_port(&self) -> bool {
        match self {
            Door::Torrent(driver) => {
                let shared = driver.shared();
                // Behind a proxy it answers nobody.
                shared.dht().is_some()
                    && shared.socks.is_none()
                    && !driver.metainfo().info.is_private
            }
            Door::Metadata(_) => false,
        }
    }

    /// Completes once dials are to be given up.
    pub async fn ending(&self) {
        match self {
            Door::Torrent(driver) => driver.ending().await,
            Door::Metadata(search) => search.ending().await,
        }
    }

    /// Addresses to dial, those of families that are in use.
    pub fn add_candidates(&self, source: Source, addrs: &[SocketAddr]) {
        match self {
            Door::Torrent(driver) => driver.add_candidates(source, addrs),
            Door::Metadata(search) => search.add_candidates(source, addrs),
        }
    }

    /// A dial came to nothing.
    pub fn on_dial_failed(&self, addr: SocketAddr) {
        match self {
            Door::Torrent(driver) => driver.call(|core, cx| core.on_dial_failed(addr, cx)),
            Door::Metadata(search) => search.call(|core, cx| core.on_dial_failed(addr, cx)),
        }
    }

    /// A dial at a relay's word came to nothing; only a torrent makes such.
    pub fn on_punch_failed(&self, addr: SocketAddr) {
        if let Door::Torrent(driver) = self {
            driver.call(|core, cx| core.on_punch_failed(addr, cx));
        }
    }

    /// Runs a connection whose handshakes are done.
    pub async fn run(self, stream: PeerStream, conn: Connected, shaken: Shaken) {
        match self {
            Door::Torrent(driver) => peer::run(driver, stream, conn, shaken).await,
            Door::Metadata(search) => search.run_link(stream, conn, shaken).await,
        }
    }

    /// What the next announce tells: payload since `started`, which every run announces anew (BEP 3).
    pub fn counters(&self) -> Counters {
        match self {
            Door::Torrent(driver) => {
                let stats = driver.read(|core| core.stats(driver.shared().now()));
                Counters {
                    uploaded_bytes: stats.uploaded_bytes,
                    downloaded_bytes: stats.downloaded_bytes,
                    left_bytes: stats.left_bytes,
                }
            }
            Door::Metadata(_) => Counters {
                uploaded_bytes: 0,
                downloaded_bytes: 0,
                left_bytes: LEFT_UNKNOWN_BYTES,
            },
        }
    }

    /// Tells the user of trouble that is waited out, once until progress is made.
    pub fn tell_trouble(&self, message: String, hint: &str) {
        match self {
            Door::Torrent(driver) => driver.tell_trouble(message, hint),
            Door::Metadata(search) => search.tell_trouble(message, hint),
        }
    }

    /// A task that works for it panicked: it ends.
    pub fn on_panic(&self) {
        match self {
            Door::Torrent(driver) => driver.on_panic(),
            Door::Metadata(search) => search.on_panic(),
        }
    }
}
