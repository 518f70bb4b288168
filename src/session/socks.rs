//! The way out through a SOCKS 5 proxy (`--proxy`): connections to peers, trackers and web seeds. Layer 5.
//!
//! With a proxy nothing goes out around it. Names are looked up by the proxy; its own name is the one exception. Datagrams
//! are in `socks/relay.rs`, bytes are read by `wire::socks`.

mod relay;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use tracing::debug;

pub use self::relay::{RelayOf, UdpRelay};
use super::config::{ProxySettings, SessionEvent};
use super::deadline::Deadline;
use super::error::SessionError;
use super::shared::Shared;
use crate::base::in_sentence;
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::uring::stream::Stream;
use crate::wire::socks::{Client, Command, SocksError, Target};
use crate::wire::url::Host;

/// A peer dialed through the proxy, all of it: the proxy itself waits for the peer.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Addresses of the proxy that are tried.
const ADDRESSES_MAX: usize = 4;
/// Addresses of the proxy are looked up again after this: at fifty dials a second each would be a lookup else.
const ADDRESSES_TIME: Duration = Duration::from_secs(60);
/// The same trouble is told again after this long at the earliest.
const TELL_AGAIN: Duration = Duration::from_secs(600);

/// Why a proxy did not lead anywhere.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the proxy {proxy} cannot be looked up: {}", in_sentence(&source.to_string()))]
    Lookup { proxy: String, source: io::Error },
    #[error("no connection to the proxy {proxy}: {}", in_sentence(&source.to_string()))]
    Unreachable { proxy: String, source: io::Error },
    #[error("the proxy {proxy} does not answer")]
    Silent { proxy: String },
    #[error("the proxy {proxy} broke the connection off")]
    Broken { proxy: String },
    /// It was asked, and has not come to an end with the other side.
    #[error("the proxy did not get through in time")]
    Slow,
    /// The same without a word.
    #[error("the proxy gave up without an answer")]
    GaveUp,
    #[error(transparent)]
    Socks(#[from] SocksError),
}

impl ProxyError {
    /// True when it says something of the other end alone.
    pub const fn is_of_target(&self) -> bool {
        match self {
            ProxyError::Slow | ProxyError::GaveUp => true,
            ProxyError::Socks(SocksError::Refused(refusal)) => refusal.is_of_target(),
            ProxyError::Socks(SocksError::LongName) => true,
            _ => false,
        }
    }

    /// True when no later try can go another way.
    const fn is_lasting(&self) -> bool {
        matches!(self, ProxyError::Socks(error) if error.is_lasting())
    }

    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            ProxyError::Socks(error) => error.hint(),
            ProxyError::Lookup { .. } => "check the host of --proxy, or give its address",
            ProxyError::Unreachable { .. } | ProxyError::Silent { .. } => {
                "it goes on trying; check host and port of --proxy and whether the proxy runs"
            }
            ProxyError::Broken { .. } => "it goes on trying; look at the proxy's log",
            ProxyError::Slow | ProxyError::GaveUp => "others are tried",
        }
    }
}

impl From<ProxyError> for io::Error {
    fn from(error: ProxyError) -> io::Error {
        let kind = match error {
            ProxyError::Silent { .. } | ProxyError::Slow => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// The proxy of a session, or of one fetch.
pub struct SocksProxy {
    settings: ProxySettings,
    options: SocketOptions,
    resolver: Resolver,
    addrs: RefCell<Option<(Instant, Vec<SocketAddr>)>>,
    /// It has led somewhere: what it refuses later may pass.
    has_worked: Cell<bool>,
    /// When what was told; as many as there are kinds of errors.
    told: RefCell<BTreeMap<String, Instant>>,
    shared: RefCell<Weak<Shared>>,
}

/// Shuts its stream down when dropped: a handshake that is walked away from leaves no socket behind.
struct Guard(Option<Stream>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.shutdown();
        }
    }
}

impl SocksProxy {
    /// A proxy that is reached with these options.
    pub fn new(
        settings: ProxySettings,
        options: SocketOptions,
        resolver: Resolver,
    ) -> Rc<SocksProxy> {
        Rc::new(SocksProxy {
            settings,
            options,
            resolver,
            addrs: RefCell::default(),
            has_worked: Cell::new(false),
            told: RefCell::default(),
            shared: RefCell::default(),
        })
    }

    /// Trouble of the proxy is that session's from now on.
    pub fn set_session(&self, shared: &Rc<Shared>) {
        *self.shared.borrow_mut() = Rc::downgrade(shared);
    }

    /// A connection to the target. The future may be dropped.
    ///
    /// # Errors
    /// A [`ProxyError`] in an [`io::Error`]; trouble of the proxy itself has been told then.
    pub async fn connect(&self, target: &Target, deadline: &Deadline) -> io::Result<Stream> {
        let asked = self.ask(Command::Connect, target, deadline).await;
        let (stream, _) = asked.inspect_err(|error| self.on_error(error))?;
        self.on_success();
        Ok(stream)
    }

    /// A connection that keeps a relay for datagrams open, and where that is.
    async fn associate(&self, deadline: &Deadline) -> Result<(Stream, SocketAddr), ProxyError> {
        // Where ours come from is not known before the relay's family is.
        let anywhere = Target::Addr(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        let (stream, bound) = self.ask(Command::UdpAssociate, &anywhere, deadline).await?;
        let of_proxy = stream.peer_addr().map(|addr| addr.ip());
        let relay = match bound {
            Target::Addr(addr) if !addr.ip().is_unspecified() => Some(addr),
            // "Here", or a name, which a stub of a proxy's own network would give.
            other => of_proxy.ok().map(|ip| SocketAddr::new(ip, other.port())),
        };
        self.on_success();
        match relay.filter(|addr| addr.port() != 0) {
            Some(relay) => Ok((stream, relay)),
            None => Err(SocksError::WrongAddress(0).into()),
        }
    }

    async fn ask(
        &self,
        command: Command,
        target: &Target,
        deadline: &Deadline,
    ) -> Result<(Stream, Target), ProxyError> {
        let mut client = Client::new(command, target, self.settings.login.clone())?;
        let stream = self.reach(deadline).await?;
        let mut guard = Guard(Some(stream.clone()));
        let proxy = || self.settings.to_string();
        loop {
            let out = client.take_out();
            let sent = match out.is_empty() {
                true => Ok(()),
                false => deadline.send(&stream, out).await,
            };
            let received = match sent {
                Ok(()) => {
                    let (result, bytes) = deadline.recv(&stream, Vec::new(), client.wanted()).await;
                    result.map(|_| bytes)
                }
                Err(error) => Err(error),
            };
            let bytes = match received {
                Ok(bytes) if !bytes.is_empty() => bytes,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(match client.is_asked() {
                        true => ProxyError::Slow,
                        false => ProxyError::Silent { proxy: proxy() },
                    });
                }
                _ => {
                    return Err(match client.is_asked() {
                        true => ProxyError::GaveUp,
                        false => ProxyError::Broken { proxy: proxy() },
                    });
                }
            };
            if let Some(bound) = client.feed(&bytes)? {
                guard.0 = None;
                return Ok((stream, bound));
            }
        }
    }

    /// A connection to the proxy itself.
    async fn reach(&self, deadline: &Deadline) -> Result<Stream, ProxyError> {
        let proxy = || self.settings.to_string();
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for addr in self.addresses(deadline).await? {
            let connecting = Stream::connect(addr, &self.options);
            match deadline.run(connecting).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        let source = last;
        Err(ProxyError::Unreachable {
            proxy: proxy(),
            source,
        })
    }

    async fn addresses(&self, deadline: &Deadline) -> Result<Vec<SocketAddr>, ProxyError> {
        let port = self.settings.port;
        let name = match &self.settings.host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => name,
        };
        if let Some((since, addrs)) = &*self.addrs.borrow()
            && since.elapsed() < ADDRESSES_TIME
        {
            return Ok(addrs.clone());
        }
        let resolving = self.resolver.resolve(name, port, deadline.remaining());
        let found = deadline.run(resolving).await;
        let mut addrs = found.map_err(|source| ProxyError::Lookup {
            proxy: self.settings.to_string(),
            source,
        })?;
        let fits = |ip: IpAddr| {
            self.options
                .bind
                .is_none_or(|bind| bind.is_ipv4() == ip.is_ipv4())
        };
        addrs.retain(|addr| fits(addr.ip()));
        addrs.truncate(ADDRESSES_MAX);
        *self.addrs.borrow_mut() = Some((Instant::now(), addrs.clone()));
        Ok(addrs)
    }

    fn on_success(&self) {
        self.has_worked.set(true);
    }

    /// Trouble of the proxy is told, and ends the session when it can never work.
    fn on_error(&self, error: &ProxyError) {
        debug!(%error, "proxy");
        if error.is_of_target() {
            return;
        }
        // Another address of it may answer.
        self.addrs.take();
        let Some(shared) = self.shared.borrow().upgrade() else {
            return;
        };
        if error.is_lasting() && !self.has_worked.get() {
            shared.fail(SessionError::new(error.to_string(), error.hint()));
            return;
        }
        self.tell(&shared, error.to_string(), error.hint());
    }

    fn tell(&self, shared: &Shared, message: String, hint: &str) {
        let mut told = self.told.borrow_mut();
        let before = told.get(&message);
        if before.is_some_and(|since| since.elapsed() < TELL_AGAIN) {
            return;
        }
        // Messages hold no word of the other side, but for causes that the system words.
        told.retain(|_, since| since.elapsed() < TELL_AGAIN);
        told.insert(message.clone(), Instant::now());
        shared.emit(SessionEvent::Warning {
            info_hash: None,
            message,
            hint: hint.to_owned(),
        });
    }
}
