//! Peers on the local network (BEP 14): public torrents are announced by multicast, and whoever announces one of ours is
//! a peer. Layer 5.
//!
//! One socket a family, joined to the group on every network interface that is ours to use; loopback too, for other
//! programs on this machine. Private torrents (BEP 27) are never named and take nothing from here.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;

use tracing::{debug, info};

use super::config::BindTo;
use super::door::Door;
use super::driver::Driver;
use super::shared::Shared;
use crate::base::{InfoHash, Now};
use crate::swarm::candidates::Source;
use crate::uring::interfaces::{self, InterfaceAddress};
use crate::uring::udp::{Local, Udp};
use crate::wire::lsd::{DATAGRAM_BYTES_MAX, GROUP_V4, GROUP_V6, HASHES_MAX, Search};

/// A torrent is announced this often (BEP 14).
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// New torrents that come one after the other are announced together.
const GATHER: Duration = Duration::from_millis(200);
/// Torrents announced a second at most: a box with thousands spreads them over the interval.
const HASHES_PER_S_MAX: usize = 2 * HASHES_MAX;
/// Datagrams taken a second, of each socket: a flood on the network costs no more.
const DATAGRAMS_PER_S_MAX: u32 = 50;
/// After an error of a socket.
const PAUSE: Duration = Duration::from_millis(500);

/// One family's socket, and the addresses it sends from.
struct Speaker {
    udp: Udp,
    group: SocketAddr,
    from: Vec<Local>,
}

/// The sockets of a session; dropping it closes them.
pub struct Lsd {
    shared: Rc<Shared>,
    speakers: Vec<Speaker>,
    /// By which our own datagrams are known.
    cookie: String,
    heard: Cell<u64>,
}

impl Lsd {
    /// Opens the sockets; `None`, with a line in the log, where there is no multicast.
    pub fn open(shared: &Rc<Shared>) -> Option<Rc<Lsd>> {
        let addresses = match interfaces::multicast_addresses() {
            Ok(addresses) => ours(addresses, shared.config.bind.as_ref()),
            Err(error) => {
                info!(%error, "no network interfaces: nobody is looked for on the local network");
                return None;
            }
        };
        let mut speakers = Vec::new();
        for group in [GROUP_V4, GROUP_V6] {
            let is_meant = |address: &&InterfaceAddress| address.ip.is_ipv4() == group.is_ipv4();
            let addresses: Vec<&InterfaceAddress> = addresses.iter().filter(is_meant).collect();
            if addresses.is_empty() || !shared.has_family(group.ip()) {
                continue;
            }
            match speak(shared, group, &addresses) {
                Ok(speaker) => speakers.push(speaker),
                Err(error) => info!(%group, %error, "nobody is looked for on the local network"),
            }
        }
        if speakers.is_empty() {
            return None;
        }
        Some(Rc::new(Lsd {
            shared: shared.clone(),
            speakers,
            cookie: format!("{:016x}", shared.random()),
            heard: Cell::new(0),
        }))
    }

    /// Announces and listens for as long as the session runs.
    pub async fn run(self: Rc<Self>) {
        let listeners: Vec<_> = (0..self.speakers.len())
            .map(|at| tokio_uring::spawn(self.clone().listen(at)))
            .collect();
        self.announce().await;
        for listener in listeners {
            listener.abort();
        }
    }

    /// Ends it: the sockets are closed.
    pub fn close(&self) {
        for speaker in &self.speakers {
            speaker.udp.close();
        }
    }

    async fn announce(&self) {
        let mut announced: BTreeMap<InfoHash, Now> = BTreeMap::new();
        loop {
            let Some(port) = NonZeroU16::new(self.shared.port.get()) else {
                return;
            };
            let now = self.shared.now();
            let due = self.take_due(&mut announced, now);
            for info_hashes in due.chunks(HASHES_MAX) {
                let search = Search {
                    port,
                    info_hashes: info_hashes.to_vec(),
                    cookie: Some(self.cookie.clone()),
                };
                self.send(&search).await;
            }
            if due.len() == HASHES_PER_S_MAX {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            let next = announced.values().min().map(|at| *at + INTERVAL);
            let next = next.unwrap_or(now + INTERVAL).max(now + GATHER);
            tokio::select! {
                () = tokio::time::sleep_until(self.shared.clock.instant(next)) => {}
                () = self.shared.torrents_changed.notified() => tokio::time::sleep(GATHER).await,
            }
        }
    }

    /// The torrents whose turn it is, noted as announced now; what is gone is forgotten.
    fn take_due(&self, announced: &mut BTreeMap<InfoHash, Now>, now: Now) -> Vec<InfoHash> {
        let torrents = self.shared.torrents.borrow();
        let searches = self.shared.searches.borrow();
        announced.retain(|info_hash, _| self.shared.door(info_hash).is_some());
        let is_public = |driver: &Driver| !driver.metainfo().info.is_private;
        let torrents = torrents.iter().filter(|(_, driver)| is_public(driver));
        let mut due = Vec::new();
        let names = torrents.flat_map(|(hash, driver)| {
            let second = driver.metainfo().second_info_hash();
            [Some(*hash), second].into_iter().flatten()
        });
        for info_hash in names.chain(searches.keys().copied()) {
            let last = announced.get(&info_hash);
            if last.is_none_or(|at| *at + INTERVAL <= now) {
                announced.insert(info_hash, now);
                due.push(info_hash);
            }
            if due.len() == HASHES_PER_S_MAX {
                break;
            }
        }
        due
    }

    /// Through every interface; one that is down hears it the next time.
    async fn send(&self, search: &Search) {
        for speaker in &self.speakers {
            let datagram = search.to_datagram(speaker.group);
            for from in &speaker.from {
                let sent = speaker
                    .udp
                    .send_from(datagram.clone(), *from, speaker.group);
                if let Err(error) = sent.await {
                    debug!(?from, %error, "a local announce was not sent");
                }
            }
        }
    }

    async fn listen(self: Rc<Self>, at: usize) {
        let Some(speaker) = self.speakers.get(at) else {
            return;
        };
        let mut buf = vec![0; DATAGRAM_BYTES_MAX];
        let (mut second, mut taken) = (self.shared.now(), 0);
        loop {
            let result;
            (result, buf) = speaker.udp.recv_from(buf).await;
            let now = self.shared.now();
            if now.since(second) >= Duration::from_secs(1) {
                (second, taken) = (now, 0);
            }
            match result {
                Ok(_) if taken == DATAGRAMS_PER_S_MAX => {
                    // What comes meanwhile is dropped by the kernel when its queue is full.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(received) => {
                    taken += 1;
                    let datagram = buf.get(..received.length).unwrap_or_default();
                    self.on_datagram(datagram, received.from);
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn on_datagram(&self, datagram: &[u8], from: SocketAddr) {
        let search = match Search::parse(datagram) {
            Ok(search) => search,
            Err(error) => {
                debug!(%from, %error, "not understood on the local network");
                return;
            }
        };
        if search.cookie.as_deref() == Some(self.cookie.as_str()) {
            return;
        }
        self.heard.set(self.heard.get() + 1);
        let mut peer = from;
        peer.set_port(search.port.get());
        for info_hash in &search.info_hashes {
            let is_private = |door: &Door| matches!(door, Door::Torrent(driver) if driver.metainfo().info.is_private);
            if let Some(door) = self.shared.door(info_hash)
                && !is_private(&door)
            {
                debug!(%peer, %info_hash, "a peer on the local network");
                door.add_candidates(Source::Lsd, &[peer]);
            }
        }
    }
}

/// The addresses that are ours to use under `--bind`.
fn ours(mut addresses: Vec<InterfaceAddress>, bind: Option<&BindTo>) -> Vec<InterfaceAddress> {
    match bind {
        None => {}
        Some(BindTo::Addr(ip)) => addresses.retain(|address| address.ip == *ip),
        Some(BindTo::Interface(name)) => addresses.retain(|address| address.name == *name),
    }
    addresses
}

fn speak(
    shared: &Shared,
    group: SocketAddr,
    addresses: &[&InterfaceAddress],
) -> io::Result<Speaker> {
    let mut from: Vec<&InterfaceAddress> = Vec::new();
    for address in addresses {
        // Once for each interface is enough: a peer that hears of us twice dials us once.
        if from.iter().all(|known| known.index != address.index) {
            from.push(address);
        }
    }
    let interfaces: Vec<u32> = from.iter().map(|address| address.index).collect();
    let udp = Udp::bind_group(group, &interfaces, &shared.socket_options)?;
    let local = |address: &&InterfaceAddress| Local::new(IpAddr::clone(&address.ip), address.index);
    Ok(Speaker {
        udp,
        group,
        from: from.iter().map(local).collect(),
    })
}
