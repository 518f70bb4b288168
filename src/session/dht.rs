//! The session's DHT node: drives `swarm::dht` over the UDP port, keeps what it knows, and hands found peers to whoever
//! asked for them. Layer 5.
//!
//! Nothing is sent before somebody searches: a session with private torrents alone never shows up in the DHT.

mod doors;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info};

use self::doors::Doors;
use super::config::{DhtSettings, SessionEvent};
use super::contain::count_panic;
use super::shared::Shared;
use super::udp_port::UdpPort;
use crate::base::{InfoHash, Now, in_sentence};
use crate::swarm::candidates::Source;
use crate::swarm::dht::place::Scope;
use crate::swarm::dht::{Announce, Dht, DhtConfig, DhtEffect, DhtStats, SAVED_BYTES_MAX, Saved};
use crate::uring::udp::Received;

/// Nodes to enter through unless `--dht-bootstrap` names others.
const BOOTSTRAP: [(&str, u16); 3] = [
    ("router.bittorrent.com", 6881),
    ("dht.transmissionbt.com", 6881),
    ("dht.libtorrent.org", 25401),
];
/// One name lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);
/// A name that was not found is looked up again after this long; doubled each time.
const LOOKUP_AGAIN: Duration = Duration::from_secs(5);
const LOOKUP_AGAIN_MAX: Duration = Duration::from_secs(300);
/// With so many nodes of an earlier run, the well-known ones are asked only if those do not answer soon.
const ENOUGH_SAVED: usize = 32;
const SAVED_TIME: Duration = Duration::from_secs(3);
/// What is known is saved this often.
const SAVE_EVERY: Duration = Duration::from_secs(300);
/// At the end, saving may take this long.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3);
/// The user is told of changes at most this often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Names of nodes that torrents name, looked up for one torrent.
const HOSTS_MAX: usize = 16;

/// Takes peers that were found.
type Sink = Rc<dyn Fn(Source, &[SocketAddr])>;

struct Wanted {
    announce: Option<Announce>,
    sinks: Vec<(u64, Sink)>,
}

/// The node and what belongs to it; one a session.
pub struct DhtService {
    shared: Weak<Shared>,
    port: Rc<UdpPort>,
    settings: DhtSettings,
    /// Where what is known is kept; nowhere for a session without a state folder.
    path: Option<PathBuf>,
    /// There once what an earlier run knew has been read.
    node: OnceCell<RefCell<Dht>>,
    wanted: RefCell<BTreeMap<InfoHash, Wanted>>,
    effects: RefCell<Vec<DhtEffect>>,
    deadline: Cell<Option<Now>>,
    wake: Notify,
    is_wanted: Notify,
    next_sink: Cell<u64>,
    /// Nodes asked by name.
    doors: Doors,
    /// Names of nodes to enter through that could not be looked up.
    lost_names: Cell<usize>,
    /// It panicked: it is left alone from then on.
    is_broken: Cell<bool>,
}

/// One search; it ends when this is dropped.
pub struct DhtSearch {
    service: Rc<DhtService>,
    info_hash: InfoHash,
    number: u64,
}

impl DhtService {
    /// A node that sleeps until somebody searches; [`DhtService::run`] drives it.
    pub fn new(shared: &Rc<Shared>, port: Rc<UdpPort>, settings: DhtSettings) -> Rc<Self> {
        // A node behind a proxy is another one: nobody is to see that both are ours.
        let file = match port.relay() {
            None => "dht.nodes",
            Some(_) => "dht-proxy.nodes",
        };
        let has_state = !shared.config.state_dir.as_os_str().is_empty();
        Rc::new(DhtService {
            shared: Rc::downgrade(shared),
            port,
            settings,
            path: has_state.then(|| shared.config.state_dir.join(file)),
            doors: Doors::default(),
            node: OnceCell::new(),
            wanted: RefCell::default(),
            effects: RefCell::default(),
            deadline: Cell::new(None),
            wake: Notify::new(),
            is_wanted: Notify::new(),
            next_sink: Cell::new(0),
            lost_names: Cell::new(0),
            is_broken: Cell::new(false),
        })
    }

    /// Looks for peers of an info_hash and hands them to `sink` as they are found, until the search is dropped.
    /// `announce` says what others are told of us; several searches for one info_hash share what the last one said.
    ///
    /// Never call it for a private torrent (BEP 27).
    pub fn search(
        self: &Rc<Self>,
        info_hash: InfoHash,
        announce: Option<Announce>,
        sink: impl Fn(Source, &[SocketAddr]) + 'static,
    ) -> DhtSearch {
        let number = self.next_sink.get();
        self.next_sink.set(number + 1);
        let mut wanted = self.wanted.borrow_mut();
        let entry = wanted.entry(info_hash).or_insert_with(|| Wanted {
            announce: None,
            sinks: Vec::new(),
        });
        entry.announce = announce.or(entry.announce);
        let announce = entry.announce;
        entry.sinks.push((number, Rc::new(sink)));
        drop(wanted);
        self.is_wanted.notify_one();
        self.call(|node, now, fx| {
            if !node.search(info_hash, announce, now, fx) {
                debug!(%info_hash, "too many searches in the DHT");
            }
        });
        DhtSearch {
            service: self.clone(),
            info_hash,
            number,
        }
    }

    /// Peers of that torrent have run out.
    pub fn want_peers(&self, info_hash: &InfoHash) {
        self.call(|node, now, _| node.want_peers(info_hash, now));
    }

    /// A peer says that it has a node there.
    pub fn add_node(&self, addr: SocketAddr) {
        self.call(|node, now, fx| node.add_node(addr, now, fx));
    }

    /// Nodes that a .torrent names (BEP 5, `nodes`).
    pub fn add_hosts(self: &Rc<Self>, hosts: &[(String, u16)]) {
        for (host, port) in hosts.iter().take(HOSTS_MAX) {
            tokio_uring::spawn(self.clone().enter(host.clone(), *port, Duration::ZERO));
        }
    }

    /// There is a way out again after there was none: the doors are knocked at once more unless enough nodes are known, and
    /// what is looked for is looked for anew.
    pub fn on_way_back(self: &Rc<Self>) {
        if self.node.get().is_none() {
            return;
        }
        for (host, port) in self.bootstrap() {
            tokio_uring::spawn(self.clone().enter(host, port, Duration::ZERO));
        }
        let wanted: Vec<InfoHash> = self.wanted.borrow().keys().copied().collect();
        wanted
            .iter()
            .for_each(|info_hash| self.want_peers(info_hash));
    }

    /// A datagram of the DHT has come.
    pub fn on_datagram(&self, received: &Received, datagram: &[u8]) {
        let is_listed = |shared: Rc<Shared>| shared.gate.is_blocked(received.from.ip());
        if self.shared.upgrade().is_none_or(is_listed) {
            return;
        }
        if self.doors.on_datagram(datagram) {
            return self.call(|node, now, fx| node.add_doors(&[received.from], now, fx));
        }
        self.call_for(Some(received), |node, now, fx| {
            node.on_datagram(received.from, datagram, now, fx);
        });
    }

    /// The numbers, once it takes part.
    pub fn stats(&self) -> Option<DhtStats> {
        let node = self.node.get()?.borrow();
        node.is_started().then(|| node.stats())
    }

    /// Drives the node as long as the session runs.
    pub async fn run(self: Rc<Self>) {
        self.is_wanted.notified().await;
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let saved = match self.path.clone() {
            Some(path) => load(path).await,
            None => Saved::default(),
        };
        let count = saved.contacts.len();
        info!(nodes = count, "DHT");
        let config = DhtConfig {
            families: self.port.families(),
            secret: secret(),
            seed: shared.random(),
            // Whether strangers' datagrams come through a proxy is not known; nobody is asked to try.
            is_read_only: self.port.relay().is_some(),
        };
        let node = Dht::new(&config, Some(saved), shared.now());
        let _ = self.node.set(RefCell::new(node));
        self.begin();
        let wait = match self.settings.bootstrap.is_empty() && count >= ENOUGH_SAVED {
            true => SAVED_TIME,
            false => Duration::ZERO,
        };
        for (host, port) in self.bootstrap() {
            tokio_uring::spawn(self.clone().enter(host, port, wait));
        }
        tokio::join!(
            self.clock_loop(&shared),
            self.tell_loop(&shared),
            self.save_loop()
        );
    }

    fn begin(&self) {
        let wanted: Vec<(InfoHash, Option<Announce>)> = self
            .wanted
            .borrow()
            .iter()
            .map(|(info_hash, wanted)| (*info_hash, wanted.announce))
            .collect();
        self.call(|node, now, fx| {
            node.start(now, fx);
            for (info_hash, announce) in wanted {
                node.search(info_hash, announce, now, fx);
            }
        });
    }

    fn bootstrap(&self) -> Vec<(String, u16)> {
        match self.settings.bootstrap.is_empty() {
            true => BOOTSTRAP
                .map(|(host, port)| (host.to_owned(), port))
                .to_vec(),
            false => self.settings.bootstrap.clone(),
        }
    }

    /// Without any name that leads in there is no DHT: told once.
    fn on_lost_name(&self, shared: &Shared, error: &io::Error) {
        let lost = self.lost_names.get() + 1;
        self.lost_names.set(lost);
        let knows_nobody = self
            .stats()
            .is_none_or(|stats| stats.nodes_v4 + stats.nodes_v6 == 0);
        if lost != self.bootstrap().len() || !knows_nobody || !shared.way.is_open() {
            return;
        }
        shared.emit(SessionEvent::Warning {
            info_hash: None,
            message: format!(
                "no way into the DHT: none of its nodes' names can be looked up ({})",
                in_sentence(&error.to_string())
            ),
            hint: "it goes on trying; check the network, or name a node with --dht-bootstrap"
                .to_owned(),
        });
    }

    /// Finds the addresses of one name and gives them to the node, unless it knows enough others by then.
    async fn enter(self: Rc<Self>, host: String, port: u16, wait: Duration) {
        tokio::time::sleep(wait).await;
        let mut again = LOOKUP_AGAIN;
        let mut is_first = self.bootstrap().contains(&(host.clone(), port));
        loop {
            let nodes = self.stats().map(|stats| stats.nodes_v4 + stats.nodes_v6);
            let Some(shared) = self
                .shared
                .upgrade()
                .filter(|_| nodes.unwrap_or(0) < ENOUGH_SAVED)
            else {
                return;
            };
            let found = match self.port.relay() {
                None => shared.resolver.resolve(&host, port, LOOKUP_TIMEOUT).await,
                // The node tells where it is by answering.
                Some(relay) => self.doors.ask(relay, &host, port).await,
            };
            match found {
                Ok(addrs) => {
                    self.call(|node, now, fx| node.add_doors(&addrs, now, fx));
                    return;
                }
                Err(error) => {
                    debug!(host, %error, "name of a DHT node not found");
                    // A proxy looks names up itself, and its troubles are told already.
                    if std::mem::take(&mut is_first) && self.port.relay().is_none() {
                        self.on_lost_name(&shared, &error);
                    }
                }
            }
            drop(shared);
            tokio::time::sleep(again).await;
            again = (again * 2).min(LOOKUP_AGAIN_MAX);
        }
    }

    async fn clock_loop(&self, shared: &Rc<Shared>) {
        loop {
            let deadline = self
                .node
                .get()
                .and_then(|node| node.borrow().next_deadline());
            self.deadline.set(deadline);
            // Questions that nobody can hear would make every node look dead.
            shared.way.opened().await;
            match deadline {
                Some(at) if at > shared.now() => {
                    tokio::select! {
                        () = tokio::time::sleep_until(shared.clock.instant(at)) => {}
                        () = self.wake.notified() => continue,
                    }
                }
                Some(_) => tokio::task::yield_now().await,
                None => {
                    self.wake.notified().await;
                    continue;
                }
            }
            self.call(|node, now, fx| node.on_deadline(now, fx));
        }
    }

    async fn tell_loop(&self, shared: &Rc<Shared>) {
        let mut told = None;
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let Some(stats) = self.stats() else { continue };
            if told.replace(stats) != Some(stats) {
                shared.emit(SessionEvent::Dht(stats));
            }
        }
    }

    async fn save_loop(&self) {
        loop {
            tokio::time::sleep(SAVE_EVERY).await;
            self.save().await;
        }
    }

    /// Writes down what is known, if there is anything. What cannot be written is not worth a word to the user.
    pub async fn save(&self) {
        let (Some(node), Some(path)) = (self.node.get(), self.path.clone()) else {
            return;
        };
        let saved = node.borrow().save();
        if saved.contacts.is_empty() {
            return;
        }
        let writing = tokio::task::spawn_blocking(move || write(&path, &saved.encode()));
        match tokio::time::timeout(SAVE_TIMEOUT, writing).await {
            Ok(Ok(Ok(()))) => {}
            other => debug!(?other, "nodes of the DHT not saved"),
        }
    }

    fn call(&self, call: impl FnOnce(&mut Dht, Now, &mut Vec<DhtEffect>)) {
        self.call_for(None, call);
    }

    /// Calls the node, then executes what it asks for. A panic ends the DHT of this session and nothing else.
    fn call_for(
        &self,
        received: Option<&Received>,
        call: impl FnOnce(&mut Dht, Now, &mut Vec<DhtEffect>),
    ) {
        let (Some(node), Some(shared)) = (self.node.get(), self.shared.upgrade()) else {
            return;
        };
        if self.is_broken.get() {
            return;
        }
        let mut effects = self.effects.take();
        let called = catch_unwind(AssertUnwindSafe(|| {
            let mut node = node.borrow_mut();
            call(&mut node, shared.now(), &mut effects);
            node.next_deadline()
        }));
        let Ok(deadline) = called else {
            self.is_broken.set(true);
            count_panic(&shared, "the DHT");
            return;
        };
        for effect in effects.drain(..) {
            self.execute(&shared, effect, received);
        }
        *self.effects.borrow_mut() = effects;
        if deadline.is_some_and(|at| self.deadline.get().is_none_or(|set| at < set)) {
            self.deadline.set(deadline);
            self.wake.notify_one();
        }
    }

    fn execute(&self, shared: &Shared, effect: DhtEffect, received: Option<&Received>) {
        match effect {
            // Who is listed is lost to the node like one that is not there.
            DhtEffect::Send { to, .. } if shared.gate.is_blocked(to.ip()) => {}
            DhtEffect::Send { to, bytes } => {
                let answers = received.filter(|received| received.from == to);
                self.port.send(bytes, to, answers);
            }
            DhtEffect::Peers { info_hash, addrs } => self.hand_on(&info_hash, addrs),
            DhtEffect::Searched {
                info_hash,
                family,
                answered,
                peers,
                announced,
            } => debug!(%info_hash, ?family, answered, peers, announced, "searched in the DHT"),
        }
    }

    fn hand_on(&self, info_hash: &InfoHash, addrs: Vec<SocketAddr>) {
        let sinks: Vec<Sink> = match self.wanted.borrow().get(info_hash) {
            Some(wanted) => wanted.sinks.iter().map(|(_, sink)| sink.clone()).collect(),
            None => return,
        };
        let is_public = |addr: &SocketAddr| Scope::of(addr.ip()) == Scope::Public;
        let (public, local): (Vec<SocketAddr>, Vec<_>) = addrs.into_iter().partition(is_public);
        for sink in sinks {
            for (source, addrs) in [(Source::Dht, &public), (Source::LocalDht, &local)] {
                if !addrs.is_empty() {
                    sink(source, addrs);
                }
            }
        }
    }
}

impl DhtSearch {
    /// Tells others something else of us from the next announce on.
    pub fn set_announce(&self, announce: Announce) {
        if let Some(wanted) = self.service.wanted.borrow_mut().get_mut(&self.info_hash) {
            wanted.announce = Some(announce);
        }
        let info_hash = self.info_hash;
        self.service.call(|node, now, fx| {
            node.search(info_hash, Some(announce), now, fx);
        });
    }
}

impl Drop for DhtSearch {
    fn drop(&mut self) {
        let mut wanted = self.service.wanted.borrow_mut();
        let Some(entry) = wanted.get_mut(&self.info_hash) else {
            return;
        };
        entry.sinks.retain(|(number, _)| *number != self.number);
        if !entry.sinks.is_empty() {
            return;
        }
        wanted.remove(&self.info_hash);
        drop(wanted);
        let info_hash = self.info_hash;
        self.service.call(|node, _, _| node.forget(&info_hash));
    }
}

/// Bytes nobody can guess: the standard library's hash keys are the system's random bytes.
fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    for chunk in secret.chunks_exact_mut(8) {
        chunk.copy_from_slice(&super::run::seed().to_be_bytes());
    }
    secret
}

/// What an earlier run saved; nothing when there is none, or it is damaged or something else (HOSTILE.md D9).
async fn load(path: PathBuf) -> Saved {
    let reading = tokio::task::spawn_blocking(move || read(&path));
    match tokio::time::timeout(SAVE_TIMEOUT, reading).await {
        Ok(Ok(Ok(bytes))) => Saved::decode(&bytes).unwrap_or_else(|error| {
            debug!(%error, "nodes of an earlier run are not used");
            Saved::default()
        }),
        _ => Saved::default(),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    // A named pipe in its place holds nobody.
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut bytes = Vec::new();
    file.take(SAVED_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Replaces the file at once: whoever reads it sees the old or the new one.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_of_the_saved_nodes_is_replaced_or_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dht.nodes");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let load = || runtime.block_on(load(path.clone()));
        assert_eq!(load(), Saved::default());
        std::fs::write(&path, b"something else").unwrap();
        assert_eq!(load(), Saved::default());
        let saved = Saved {
            external: vec!["9.8.7.6".parse().unwrap()],
            contacts: Vec::new(),
        };
        write(&path, &saved.encode()).unwrap();
        assert_eq!(load(), saved);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(load(), Saved::default());
    }
}
