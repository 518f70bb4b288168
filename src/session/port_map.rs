//! The peer port, opened at the gateway for the time of the session: PCP first, NAT-PMP where that is not spoken, UPnP where
//! neither is answered. Layer 5.
//!
//! Only the gateway of the way out is asked, from sockets bound like all others, and only its datagrams are listened to. No
//! gateway, or one that speaks neither, is nothing to trouble the user with. Mappings end by themselves should we not get
//! to take them back.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info};

use super::config::{BindTo, SessionEvent};
use super::shared::Shared;
use super::upnp::{self, Igd};
use crate::base::is_inner_v4;
use crate::uring::interfaces;
use crate::uring::udp::Udp;
use crate::wire::natpmp::{
    self, DATAGRAM_BYTES_MAX, MapAnswer, MapRequest, Protocol, address_request, read_address,
};
use crate::wire::tracker::Family;

/// What is asked for: two hours, as RFC 6886 recommends.
const LEASE_SECS: u32 = 7_200;
/// A gateway that grants less, or says so, is not asked more often than this demands.
const LEASE_SECS_MIN: u32 = 120;
/// The first wait for an answer; doubled each time (RFC 6886).
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);
const TRIES: u32 = 4;
/// A gateway that said nothing, or no, may have changed its mind, or be another.
const AGAIN: Duration = Duration::from_secs(600);
/// For taking all mappings back at the end.
const END_TIMEOUT: Duration = Duration::from_millis(700);
/// Datagrams that wait to be read; the gateway sends one for each of ours.
const ANSWERS_MAX: usize = 8;
/// Between two datagrams: a flood costs no more.
const ANSWER_PAUSE: Duration = Duration::from_millis(5);

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// How ports are mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMapSettings {
    /// Asked instead of the default route's gateway.
    pub gateway: Option<SocketAddr>,
}

/// Which protocol the gateway speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Pcp,
    NatPmp,
}

/// The mappings of a session.
pub struct PortMap {
    shared: Rc<Shared>,
    settings: PortMapSettings,
    nonces: [[u8; 12]; 2],
    /// Granted and not taken back; for the end.
    held: RefCell<Vec<(Protocol, SocketAddr)>>,
    dialect: Cell<Dialect>,
    /// Answers in UPnP.
    igd: RefCell<Option<Rc<Igd>>>,
    told: RefCell<Vec<(Protocol, SocketAddr)>>,
    is_inward_told: Cell<bool>,
}

impl PortMap {
    /// Nothing is asked before [`PortMap::run`].
    pub fn new(shared: &Rc<Shared>, settings: PortMapSettings) -> Rc<Self> {
        let nonce = || {
            let mut nonce = [0; 12];
            let (head, tail) = nonce.split_at_mut(8);
            head.copy_from_slice(&shared.random().to_be_bytes());
            tail.copy_from_slice(&shared.random().to_be_bytes()[..4]);
            nonce
        };
        Rc::new(PortMap {
            nonces: [nonce(), nonce()],
            shared: shared.clone(),
            settings,
            held: RefCell::default(),
            dialect: Cell::new(Dialect::Pcp),
            igd: RefCell::default(),
            told: RefCell::default(),
            is_inward_told: Cell::new(false),
        })
    }

    /// Keeps the port mapped for as long as the session runs.
    pub async fn run(self: Rc<Self>) {
        if !self.shared.families.contains(&Family::V4) {
            return;
        }
        loop {
            self.shared.way.opened().await;
            let pause = match self.map_all().await {
                Ok(lease_secs) => Duration::from_secs(u64::from(lease_secs / 2)),
                Err(error) => {
                    debug!(%error, "no port is mapped");
                    AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // What is behind it afterwards may be another gateway.
                () = self.shared.way.shut() => {
                    self.dialect.set(Dialect::Pcp);
                    self.igd.take();
                }
            }
        }
    }

    /// Takes the mappings back, as far as the gateway listens.
    pub async fn end(&self) {
        if self.held.borrow().is_empty() || !self.shared.way.is_open() {
            return;
        }
        let igd = self.igd.borrow().clone();
        let ending = async {
            let held = self.held.take();
            if let Some(igd) = igd {
                for (protocol, external) in held {
                    igd.unmap(protocol, external.port()).await?;
                }
                return Ok(());
            }
            let mut line = self.line()?;
            for (protocol, _) in held {
                let request = self.request(protocol, &line, 0, 0);
                if line.map(&request, self.dialect.get()).await.is_none() {
                    break;
                }
            }
            io::Result::Ok(())
        };
        let ended = timeout(END_TIMEOUT, ending).await;
        debug!(?ended, "mappings taken back");
    }

    /// Maps both protocols in whatever the gateway speaks; the shortest lease.
    async fn map_all(&self) -> io::Result<u32> {
        let igd = self.igd.borrow().clone();
        if let Some(igd) = igd {
            match self.map_all_at(&igd).await {
                Ok(lease_secs) => return Ok(lease_secs),
                Err(error) => debug!(%error, "the gateway does not renew"),
            }
            self.igd.take();
        }
        match self.map_all_on_line().await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                debug!(%error, "looking for UPnP");
                let gateway = self.gateway()?.ip();
                let igd = Igd::find(&self.shared, gateway, self.settings.gateway).await?;
                let igd = Rc::new(igd);
                let lease_secs = self.map_all_at(&igd).await;
                self.igd.replace(Some(igd));
                lease_secs
            }
            result => result,
        }
    }

    /// Maps both protocols over UPnP.
    async fn map_all_at(&self, igd: &Igd) -> io::Result<u32> {
        let ip = igd.external_ip().await.unwrap_or(Ipv4Addr::UNSPECIFIED);
        for protocol in PROTOCOLS {
            let (wished, port) = (self.wished(protocol), self.shared.port.get());
            let (external_port, granted_secs) = igd.map(protocol, port, wished).await?;
            let external = SocketAddr::new(ip.into(), external_port);
            self.hold(protocol, external);
            self.tell(protocol, external, granted_secs);
        }
        // One that is for good is looked after as well: gateways forget when they start anew.
        Ok(upnp::LEASE_SECS)
    }

    fn hold(&self, protocol: Protocol, external: SocketAddr) {
        let mut held = self.held.borrow_mut();
        held.retain(|(of, _)| *of != protocol);
        held.push((protocol, external));
    }

    async fn map_all_on_line(&self) -> io::Result<u32> {
        let mut line = self.line()?;
        let mut lease_secs = LEASE_SECS;
        for protocol in PROTOCOLS {
            let (external, granted_secs) = self.map(&mut line, protocol).await?;
            lease_secs = lease_secs.min(granted_secs);
            self.hold(protocol, external);
            self.tell(protocol, external, granted_secs);
        }
        Ok(lease_secs)
    }

    async fn map(&self, line: &mut Line, protocol: Protocol) -> io::Result<(SocketAddr, u32)> {
        let wished = self.wished(protocol);
        let request = self.request(protocol, line, wished, LEASE_SECS);
        let mut answer = line.map(&request, self.dialect.get()).await;
        if !matches!(
            answer,
            Some(MapAnswer::Mapped { .. } | MapAnswer::Refused { .. })
        ) {
            self.dialect.set(match self.dialect.get() {
                Dialect::Pcp => Dialect::NatPmp,
                Dialect::NatPmp => Dialect::Pcp,
            });
            answer = line.map(&request, self.dialect.get()).await;
        }
        match answer {
            Some(MapAnswer::Mapped {
                external_port: external_port @ 1..,
                external_ip,
                lifetime_secs,
            }) => {
                let ip = match external_ip {
                    Some(ip) => ip,
                    None => line
                        .address()
                        .await
                        .map_or(Ipv4Addr::UNSPECIFIED.into(), IpAddr::V4),
                };
                let lease_secs = lifetime_secs.clamp(LEASE_SECS_MIN, LEASE_SECS);
                Ok((SocketAddr::new(ip, external_port), lease_secs))
            }
            Some(answer @ (MapAnswer::Mapped { .. } | MapAnswer::Refused { .. })) => {
                Err(io::Error::other(format!("the gateway says {answer:?}")))
            }
            Some(MapAnswer::OtherVersion) | None => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} says nothing", line.gateway),
            )),
        }
    }

    /// The port outside that it has, or our own.
    fn wished(&self, protocol: Protocol) -> u16 {
        let held = self.held.borrow();
        let held = held.iter().find(|(held, _)| *held == protocol);
        held.map_or(self.shared.port.get(), |(_, external)| external.port())
    }

    fn request(&self, protocol: Protocol, line: &Line, external: u16, secs: u32) -> MapRequest {
        let [tcp, udp] = self.nonces;
        MapRequest {
            protocol,
            internal_port: self.shared.port.get(),
            external_port: external,
            lifetime_secs: secs,
            client: line.client,
            nonce: match protocol {
                Protocol::Tcp => tcp,
                Protocol::Udp => udp,
            },
        }
    }

    /// Once for each address outside.
    fn tell(&self, protocol: Protocol, external: SocketAddr, lease_secs: u32) {
        let mut told = self.told.borrow_mut();
        if told.contains(&(protocol, external)) {
            return;
        }
        told.retain(|(of, _)| *of != protocol);
        told.push((protocol, external));
        let name = protocol.as_str();
        info!(protocol = name, %external, lease_secs, "port mapped");
        if leads_inward(external.ip()) && !self.is_inward_told.replace(true) {
            self.shared.emit(SessionEvent::Warning {
                info_hash: None,
                message: format!(
                    "the gateway maps ports, but its own address is {}, an inner one: there is another gateway behind it",
                    external.ip()
                ),
                hint: "peers outside cannot connect unless that one passes the port on too"
                    .to_owned(),
            });
        }
        self.shared.emit(SessionEvent::Mapped {
            protocol,
            external,
            lease_secs,
        });
    }

    fn line(&self) -> io::Result<Line> {
        Line::open(&self.shared, self.gateway()?)
    }

    fn gateway(&self) -> io::Result<SocketAddr> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "there is no gateway");
        let bind = self.shared.config.bind.as_ref();
        match (self.settings.gateway, bind) {
            (Some(gateway), _) => Ok(gateway),
            (None, Some(BindTo::Interface(name))) => {
                let ip = interfaces::gateway(Some(name)).ok_or_else(none)?;
                Ok(SocketAddr::new(ip.into(), natpmp::PORT))
            }
            (None, _) => {
                let ip = interfaces::gateway(None).ok_or_else(none)?;
                Ok(SocketAddr::new(ip.into(), natpmp::PORT))
            }
        }
    }
}

/// A socket towards one gateway.
struct Line {
    udp: Udp,
    gateway: SocketAddr,
    client: IpAddr,
    answers: mpsc::Receiver<Vec<u8>>,
}

impl Line {
    fn open(shared: &Shared, gateway: SocketAddr) -> io::Result<Line> {
        let options = &shared.socket_options;
        let client = Udp::source_towards(gateway, options)?;
        let any = options.bind.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let udp = Udp::bind(SocketAddr::new(any, 0), options)?;
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        let is_its = move |from: SocketAddr| from == gateway;
        tokio_uring::spawn(hear(udp.clone(), is_its, DATAGRAM_BYTES_MAX, sender));
        Ok(Line {
            udp,
            gateway,
            client,
            answers,
        })
    }

    async fn map(&mut self, request: &MapRequest, dialect: Dialect) -> Option<MapAnswer> {
        match dialect {
            Dialect::Pcp => {
                let read = |bytes: &[u8]| request.read_pcp(bytes);
                self.ask(request.to_pcp(), read).await
            }
            Dialect::NatPmp => {
                let read = |bytes: &[u8]| request.read_natpmp(bytes);
                self.ask(request.to_natpmp(), read).await
            }
        }
    }

    /// The gateway's address outside (NAT-PMP).
    async fn address(&mut self) -> Option<Ipv4Addr> {
        self.ask(address_request(), read_address).await
    }

    async fn ask<T>(&mut self, question: Vec<u8>, read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        for doublings in 0..TRIES {
            let (sent, _) = self.udp.send_to(question.clone(), self.gateway).await;
            if let Err(error) = sent {
                debug!(%error, "the gateway was not asked");
            }
            let until = Instant::now() + ANSWER_TIMEOUT * (1 << doublings);
            while let Ok(bytes) = timeout_at(until, self.answers.recv()).await {
                if let Some(answer) = read(&bytes?) {
                    return Some(answer);
                }
            }
        }
        None
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.udp.close();
    }
}

/// Hands on what the gateway sends, and nothing of anybody else. Longer datagrams come cut to one byte more.
pub(super) async fn hear(
    udp: Udp,
    is_its: impl Fn(SocketAddr) -> bool,
    bytes_max: usize,
    answers: mpsc::Sender<Vec<u8>>,
) {
    let mut buf = vec![0; bytes_max + 1];
    loop {
        let result;
        (result, buf) = udp.recv_from(buf).await;
        match result {
            Ok(received) if is_its(received.from) => {
                let datagram = buf.get(..received.length).unwrap_or_default();
                // What nobody waits for is lost.
                let _ = answers.try_send(datagram.to_vec());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return,
            Err(error) => debug!(%error, "hearing the gateway"),
        }
        tokio::time::sleep(ANSWER_PAUSE).await;
    }
}

/// True for an address that nobody outside has: of an inner network, or of a provider's own (RFC 6598).
fn leads_inward(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_inner_v4(ip),
        IpAddr::V6(_) => false,
    }
}
