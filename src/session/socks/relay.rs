//! Datagrams through a SOCKS 5 proxy (UDP ASSOCIATE): those of UDP trackers and of the DHT. Layer 5.
//!
//! The proxy is asked when somebody first sends. If it relays none, they are lost, and the user hears of it once. The
//! relay lives as long as the connection that asked for it, and is asked for anew when that ends.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info};

use super::{Guard, ProxyError, SocksProxy};
use crate::session::config::SessionEvent;
use crate::session::deadline::Deadline;
use crate::session::shared::Shared;
use crate::session::udp_port::{self, SENDS_MAX, Window};
use crate::session::udp_tracker::UdpTrackers;
use crate::uring::stream::Stream;
use crate::uring::udp::{Received, Udp};
use crate::wire::socks::{Target, UDP_HEAD_BYTES_MAX, unwrap, wrap};
use crate::wire::tracker_udp::DATAGRAM_BYTES_MAX;

/// The handshake that asks for a relay.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// After one that came to nothing or ended; doubled each time.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(300);
/// Answers without a word to this many questions in a row count as a refusal: some proxies just close.
const SILENCES_MAX: u32 = 3;
/// Nothing is to come over the connection that keeps the relay.
const CONTROL_BYTES: usize = 256;
/// Room for the longest answer of a tracker and its head.
const RECV_BYTES: usize = DATAGRAM_BYTES_MAX + UDP_HEAD_BYTES_MAX;
/// After an error of the socket.
const PAUSE: Duration = Duration::from_millis(100);

enum State {
    /// Nobody has sent anything yet, or the answer is on its way.
    Unknown,
    Open(Udp, SocketAddr),
    Refused,
}

/// Whose a relay is.
#[derive(Clone)]
pub enum RelayOf {
    /// The DHT hears what it brings, and UDP trackers; the user hears of a refusal.
    Session(Rc<Shared>),
    /// UDP trackers alone, which say themselves that nothing goes through.
    Trackers(UdpTrackers),
}

/// The relay of a session, or of one question to trackers.
pub struct UdpRelay {
    proxy: Rc<SocksProxy>,
    state: RefCell<State>,
    wanted: Notify,
    changed: Notify,
    sends: Cell<usize>,
}

impl UdpRelay {
    /// One that is not asked for yet; [`UdpRelay::run`] does.
    pub fn new(proxy: Rc<SocksProxy>) -> Rc<UdpRelay> {
        Rc::new(UdpRelay {
            proxy,
            state: RefCell::new(State::Unknown),
            wanted: Notify::new(),
            changed: Notify::new(),
            sends: Cell::new(0),
        })
    }

    /// Whether datagrams go out; asks the proxy and waits as long as it is not known.
    pub async fn is_open(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            match &*self.state.borrow() {
                State::Open(..) => return true,
                State::Refused => return false,
                State::Unknown => self.wanted.notify_one(),
            }
            changed.await;
        }
    }

    /// Sends a datagram, or loses it.
    pub fn send(self: &Rc<Self>, payload: &[u8], to: &Target) {
        let (udp, relay) = match &*self.state.borrow() {
            State::Open(udp, relay) => (udp.clone(), *relay),
            State::Unknown => return self.wanted.notify_one(),
            State::Refused => return,
        };
        let Ok(datagram) = wrap(to, payload) else {
            return;
        };
        if self.sends.get() >= SENDS_MAX {
            return;
        }
        self.sends.set(self.sends.get() + 1);
        let this = self.clone();
        tokio_uring::spawn(async move {
            let (sent, _) = udp.send_to(datagram, relay).await;
            this.sends.set(this.sends.get().saturating_sub(1));
            if let Err(error) = sent {
                tracing::trace!(%error, "datagram not sent to the proxy");
            }
        });
    }

    /// Ends it.
    pub fn close(&self) {
        if let State::Open(udp, _) = self.state.replace(State::Refused) {
            udp.close();
        }
    }

    /// Keeps a relay open from the first datagram on, and hands on what comes, as long as the session runs.
    pub async fn run(self: Rc<Self>, owner: RelayOf) {
        self.wanted.notified().await;
        let mut again = AGAIN_FIRST;
        let mut silences = 0;
        loop {
            let asked = self.proxy.associate(&Deadline::after(ASK_TIMEOUT)).await;
            let opened = asked.and_then(|(control, relay)| {
                let udp = self.bind(relay);
                let udp = udp.map_err(|source| ProxyError::Unreachable {
                    proxy: self.proxy.settings.to_string(),
                    source,
                })?;
                Ok((control, udp, relay))
            });
            match opened {
                Ok((control, udp, relay)) => {
                    info!(%relay, "datagrams go through the proxy");
                    (again, silences) = (AGAIN_FIRST, 0);
                    self.set(State::Open(udp.clone(), relay));
                    self.serve(&owner, control, udp, relay).await;
                    debug!("the proxy ended the relay for datagrams");
                    self.set(State::Unknown);
                }
                Err(ProxyError::Slow | ProxyError::GaveUp) if silences + 1 < SILENCES_MAX => {
                    silences += 1;
                }
                Err(error @ (ProxyError::Slow | ProxyError::GaveUp)) => {
                    return self.refuse(&owner, &error);
                }
                Err(error @ ProxyError::Socks(_)) => {
                    if error.is_lasting() {
                        self.proxy.on_error(&error);
                    }
                    return self.refuse(&owner, &error);
                }
                Err(error) => self.proxy.on_error(&error),
            }
            tokio::time::sleep(again).await;
            again = (again * 2).min(AGAIN_MAX);
        }
    }

    fn set(&self, state: State) {
        *self.state.borrow_mut() = state;
        self.changed.notify_waiters();
    }

    fn refuse(&self, owner: &RelayOf, error: &ProxyError) {
        self.set(State::Refused);
        let RelayOf::Session(shared) = owner else {
            return;
        };
        shared.emit(SessionEvent::Warning {
            info_hash: None,
            message: format!("the DHT and UDP trackers are left alone: no datagrams go through the proxy ({error})"),
            hint: "HTTP trackers and peers work all the same; use a proxy that knows UDP ASSOCIATE for the rest"
                .to_owned(),
        });
    }

    fn bind(&self, relay: SocketAddr) -> io::Result<Udp> {
        let any = match relay.is_ipv4() {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        let ip = self.proxy.options.bind.unwrap_or(any);
        Udp::bind(SocketAddr::new(ip, 0), &self.proxy.options)
    }

    /// Until the connection ends that keeps the relay.
    async fn serve(&self, owner: &RelayOf, control: Stream, udp: Udp, relay: SocketAddr) {
        let _guard = Guard(Some(control.clone()));
        let hearing = tokio_uring::spawn(hear(owner.clone(), udp.clone(), relay));
        let mut buf = Vec::new();
        loop {
            buf.clear();
            let result;
            (result, buf) = control.recv_vec(buf, CONTROL_BYTES).await;
            if !matches!(result, Ok(1..)) {
                break;
            }
        }
        udp.close();
        // A panic over a datagram ends with the datagrams.
        let _ = hearing.await;
    }
}

/// Hands on what the relay sends until the socket is closed.
async fn hear(owner: RelayOf, udp: Udp, relay: SocketAddr) {
    let mut buf = vec![0; RECV_BYTES];
    let mut window = Window::start();
    loop {
        let result;
        (result, buf) = udp.recv_from(buf).await;
        match result {
            Ok(received) if is_from(received.from, relay) => {
                let datagram = buf.get(..received.length).unwrap_or_default();
                if let Some((Target::Addr(from), payload)) = unwrap(datagram) {
                    owner.take(from, payload);
                }
            }
            // Somebody who guessed the port.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        if let Some(rest) = window.count() {
            tokio::time::sleep(rest).await;
        }
    }
}

fn is_from(from: SocketAddr, relay: SocketAddr) -> bool {
    from.port() == relay.port() && from.ip().to_canonical() == relay.ip().to_canonical()
}

impl RelayOf {
    fn take(&self, from: SocketAddr, payload: &[u8]) {
        let shared = match self {
            RelayOf::Session(shared) => shared,
            RelayOf::Trackers(trackers) => {
                trackers.on_datagram(from, payload);
                return;
            }
        };
        if shared.trackers.udp.on_datagram(from, payload) || !udp_port::is_for_dht(payload) {
            return;
        }
        if let Some(dht) = shared.dht() {
            let received = Received {
                length: payload.len(),
                segment_bytes: payload.len().max(1),
                from,
                local: None,
            };
            dht.on_datagram(&received, payload);
        }
    }
}
