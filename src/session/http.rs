//! A small HTTP/1.1 client over the ring: GET for trackers, .torrent files and web seeds. Layer 5.
//!
//! Total deadlines, capped bodies, a few redirects, idle connections kept for reuse, and the environment's proxy. Bytes are
//! read by `wire::http`; one connection, with TLS in it or not, is in `http/connection.rs`. Ranges of files, whose bodies
//! are not gathered, are in `http/range.rs`.

mod connection;
mod proxy;
mod range;
mod redirect;
mod single;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use self::connection::Connection;
pub use self::proxy::Proxy;
pub use self::range::{Answer, Kept, Place};
use super::deadline::Deadline;
use super::socks::SocksProxy;
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::uring::stream::Stream;
use crate::uring::tls::{self, Authorities, Tls, TlsError};
use crate::wire::http::{BodyDecoder, HttpError, ResponseHead};
use crate::wire::socks::Target;
use crate::wire::tracker::Family;
use crate::wire::url::{Host, Scheme, Url, UrlError};

/// The whole time one GET from a tracker may take (HOSTILE.md K4).
pub const GET_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest tracker answer, packed and unpacked: over 50,000 compact peers (HOSTILE.md K1).
pub const TRACKER_BODY_BYTES_MAX: usize = 1_048_576;

/// Longest .torrent fetched (HOSTILE.md T2).
pub const TORRENT_BODY_BYTES_MAX: usize = 64 * 1_048_576;

/// Redirects followed; browsers take 20, trackers use one or two (HOSTILE.md K2).
const HOPS_MAX: usize = 5;

/// Addresses of one name that are tried; the deadline would not last for more.
const ADDRESSES_MAX: usize = 4;

/// Idle connections kept, for many torrents on a few trackers.
const IDLE_MAX: usize = 16;

/// Idle connections older than this are most likely closed by the server.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);

/// Bytes asked of the socket at once.
const RECV_BYTES: usize = 16_384;

/// Why a GET failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{}", tls::ABSENT)]
    HttpsUnsupported,
    #[error("only http can be fetched")]
    NotHttp,
    #[error("{host} cannot be looked up: {source}")]
    Lookup { host: String, source: io::Error },
    #[error("{host} has no {family} address that may be used")]
    NoAddress { host: String, family: &'static str },
    #[error("no connection to {authority}: {source}")]
    Connect {
        authority: String,
        source: io::Error,
    },
    #[error("no TLS with {host}: {source}")]
    Tls { host: String, source: TlsError },
    #[error("no answer within the time limit")]
    TimedOut,
    #[error("the connection broke: {0}")]
    Io(io::Error),
    #[error("{0}")]
    BrokenTls(TlsError),
    #[error("bad answer: {0}")]
    Http(#[from] HttpError),
    #[error("bad redirect: {0}")]
    BadRedirect(UrlError),
    #[error("redirected without a location")]
    NoLocation,
    #[error("redirected more than {HOPS_MAX} times")]
    TooManyRedirects,
    #[error("redirected from a public address to {host}, an inner one")]
    RedirectInward { host: String },
}

impl FetchError {
    /// The connection is what failed: one that was kept may have been closed while nobody looked.
    const fn is_of_connection(&self) -> bool {
        matches!(self, FetchError::Io(_) | FetchError::BrokenTls(_))
    }
}

/// What every connection of the client shares.
#[derive(Clone)]
pub struct HttpConfig {
    /// `bind` also rules out destinations of the other family.
    pub socket: SocketOptions,
    pub proxy: Option<Proxy>,
    /// Everything goes through it, and names stay names; the environment's proxy has no say then.
    pub socks: Option<Rc<SocksProxy>>,
    /// `None` speaks no https, whether it could or not.
    pub tls: Option<Tls>,
    pub user_agent: String,
}

impl HttpConfig {
    /// Default socket options, the environment's proxy, and our name; these authorities are trusted besides the system's.
    pub fn from_env(authorities: Option<Authorities>) -> HttpConfig {
        HttpConfig {
            socket: SocketOptions::default(),
            proxy: Proxy::from_env(),
            socks: None,
            tls: Some(Tls::new(authorities)),
            user_agent: format!("gyre/{}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// How one GET is made.
#[derive(Clone, Debug)]
pub struct GetOptions {
    /// Addresses to use; `None` takes any.
    pub family: Option<Family>,
    /// For all of it, name lookup and redirects included.
    pub deadline: Deadline,
    pub body_bytes_max: usize,
    /// Tells the server that nothing more will come on this connection.
    pub is_last: bool,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    pub status: u16,
    pub body: Vec<u8>,
    /// After redirects.
    pub url: Url,
    /// Our own end of the connection, unless a proxy stands between.
    pub local_ip: Option<IpAddr>,
}

/// The client; clones share connections and configuration.
#[derive(Clone)]
pub struct HttpClient {
    inner: Rc<Inner>,
}

struct Inner {
    config: HttpConfig,
    resolver: Resolver,
    /// At most [`IDLE_MAX`].
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    route: Route,
    connection: Connection,
    since: Instant,
}

/// Where a connection leads; a connection may be reused for the same route only.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    host: Host,
    port: u16,
    family: Option<Family>,
    is_proxy: bool,
    is_tls: bool,
}

impl HttpClient {
    pub fn new(config: HttpConfig, resolver: Resolver) -> HttpClient {
        HttpClient {
            inner: Rc::new(Inner {
                config,
                resolver,
                idle: RefCell::new(Vec::new()),
            }),
        }
    }

    /// True when everything goes through a SOCKS proxy, whose families nobody knows.
    pub fn is_proxied(&self) -> bool {
        self.inner.config.socks.is_some()
    }

    /// Gives up connections kept for reuse: what they went through is gone.
    pub fn forget_idle(&self) {
        self.inner.idle.borrow_mut().clear();
    }

    /// Fetches a URL. Any status counts as an answer, but redirects are followed. The future may be dropped.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn get(&self, url: &Url, options: &GetOptions) -> Result<HttpResponse, FetchError> {
        let mut url = url.clone();
        let mut from: Option<redirect::Origin> = None;
        for _ in 0..=HOPS_MAX {
            let hop = self.hop(&url, from, options).await?;
            let Some(location) = hop.redirect else {
                return Ok(HttpResponse {
                    status: hop.status,
                    body: hop.body,
                    url,
                    local_ip: hop.local_ip,
                });
            };
            let next = url.join(&location).map_err(FetchError::BadRedirect)?;
            from = Some(hop.origin);
            url = next;
        }
        Err(FetchError::TooManyRedirects)
    }

    /// One request; on a reused connection that turns out to be dead, once more on a new one.
    async fn hop(
        &self,
        url: &Url,
        from: Option<redirect::Origin>,
        options: &GetOptions,
    ) -> Result<Hop, FetchError> {
        let (route, proxy) = self.route(url, from, options.family)?;
        let ending = if options.is_last {
            "Connection: close\r\n"
        } else {
            ""
        };
        let fields = format!("Accept-Encoding: gzip\r\n{ending}");
        let request = self.request(url, proxy, &fields);
        // A redirect's target is looked up again: an idle connection's address was judged for another origin.
        if from.is_none()
            && let Some(connection) = self.take_idle(&route)
        {
            match self
                .exchange(&route, connection, request.clone(), options)
                .await
            {
                Err(error) if error.is_of_connection() => {}
                result => return result,
            }
        }
        let connection = self.connect(&route, from, &options.deadline).await?;
        self.exchange(&route, connection, request, options).await
    }

    /// Where a connection for the URL must lead, and the proxy it goes through.
    fn route(
        &self,
        url: &Url,
        from: Option<redirect::Origin>,
        family: Option<Family>,
    ) -> Result<(Route, Option<&Proxy>), FetchError> {
        match url.scheme() {
            Scheme::Http => {}
            Scheme::Https if !tls::IS_BUILT_IN => return Err(FetchError::HttpsUnsupported),
            Scheme::Https if self.inner.config.tls.is_some() => {}
            Scheme::Https | Scheme::Udp => return Err(FetchError::NotHttp),
        }
        if let Some(from) = from
            && !from.may_lead_to_host(url.host())
        {
            let host = url.host().to_string();
            return Err(FetchError::RedirectInward { host });
        }
        let proxy = self.inner.config.proxy.as_ref();
        // It is for http: what is said to it is not for its eyes with https.
        let is_https = url.scheme() == Scheme::Https;
        let proxy =
            proxy.filter(|proxy| proxy.is_for(url.host()) && !self.is_proxied() && !is_https);
        let mut route = route(url, proxy, family);
        route.is_proxy |= self.is_proxied();
        Ok((route, proxy))
    }

    fn take_idle(&self, route: &Route) -> Option<Connection> {
        let mut idle = self.inner.idle.borrow_mut();
        idle.retain(|entry| entry.since.elapsed() < IDLE_TIME_MAX);
        let index = idle.iter().position(|entry| entry.route == *route)?;
        Some(idle.swap_remove(index).connection)
    }

    fn put_idle(&self, route: &Route, connection: Connection) {
        let mut idle = self.inner.idle.borrow_mut();
        idle.retain(|entry| entry.since.elapsed() < IDLE_TIME_MAX);
        if idle.len() >= IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Idle {
            route: route.clone(),
            connection,
            since: Instant::now(),
        });
    }

    /// A new connection, with TLS if the route has it.
    async fn connect(
        &self,
        route: &Route,
        from: Option<redirect::Origin>,
        deadline: &Deadline,
    ) -> Result<Connection, FetchError> {
        let connection = Connection::plain(self.reach(route, from, deadline).await?);
        match &self.inner.config.tls {
            Some(tls) if route.is_tls => {
                let (host, port) = (&route.host, route.port);
                connection.secured(tls, host, port, deadline).await
            }
            _ => Ok(connection),
        }
    }

    async fn reach(
        &self,
        route: &Route,
        from: Option<redirect::Origin>,
        deadline: &Deadline,
    ) -> Result<Stream, FetchError> {
        let authority = || format!("{}:{}", route.host, route.port);
        if let Some(socks) = &self.inner.config.socks {
            let target = Target::new(&route.host, route.port);
            let connected = socks.connect(&target, deadline).await;
            return connected.map_err(|source| FetchError::Connect {
                authority: authority(),
                source,
            });
        }
        let bind = self.inner.config.socket.bind;
        let found = lookup(&self.inner.resolver, &route.host, route.port, deadline).await?;
        let fits = |addr: &SocketAddr| {
            let ip = addr.ip();
            (route.is_proxy || route.family.is_none_or(|family| family.has(ip)))
                && bind.is_none_or(|bind| bind.is_ipv4() == ip.is_ipv4())
        };
        let mut addrs: Vec<SocketAddr> = found.into_iter().filter(fits).collect();
        if addrs.is_empty() {
            return Err(FetchError::NoAddress {
                host: route.host.to_string(),
                family: family_name(route.family),
            });
        }
        if let Some(from) = from
            && !route.is_proxy
        {
            addrs.retain(|addr| from.may_lead_to(addr.ip()));
            if addrs.is_empty() {
                let host = route.host.to_string();
                return Err(FetchError::RedirectInward { host });
            }
        }
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for addr in addrs.into_iter().take(ADDRESSES_MAX) {
            let connecting = Stream::connect(addr, &self.inner.config.socket);
            match deadline.run(connecting).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
            if deadline.remaining().is_zero() {
                break;
            }
        }
        Err(FetchError::Connect {
            authority: authority(),
            source: last,
        })
    }

    async fn exchange(
        &self,
        route: &Route,
        mut connection: Connection,
        request: Vec<u8>,
        options: &GetOptions,
    ) -> Result<Hop, FetchError> {
        let deadline = &options.deadline;
        connection.send(request, deadline).await?;
        let (head, mut rest) = read_head(&mut connection, deadline).await?;
        let (peer_ip, local_ip) = (connection.peer_ip(), connection.local_ip());
        let mut hop = Hop {
            status: head.status,
            body: Vec::new(),
            redirect: None,
            local_ip: local_ip.filter(|_| !route.is_proxy),
            origin: redirect::Origin::new(peer_ip.filter(|_| !route.is_proxy)),
        };
        if is_redirect(head.status) {
            hop.redirect = Some(head.location.ok_or(FetchError::NoLocation)?);
            return Ok(hop);
        }
        let mut decoder = BodyDecoder::new(&head, options.body_bytes_max);
        let mut is_clean = decoder.push(&rest)? == rest.len();
        while !decoder.is_done() {
            rest.clear();
            let received;
            (received, rest) = connection.recv(rest, deadline).await?;
            if received == 0 {
                break;
            }
            is_clean = decoder.push(&rest)? == rest.len();
        }
        let is_reusable = head.is_keep_alive && decoder.is_done() && is_clean && !options.is_last;
        hop.body = decoder.finish()?;
        if is_reusable {
            self.put_idle(route, connection);
        }
        Ok(hop)
    }

    fn request(&self, url: &Url, proxy: Option<&Proxy>, fields: &str) -> Vec<u8> {
        let authority = url.authority();
        let mut head = String::from("GET ");
        if proxy.is_some() {
            // Absolute form, so that the proxy knows where to (RFC 9112 §3.2.2).
            head.push_str(&format!("http://{authority}"));
        }
        head.push_str(&format!(
            "{} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {}\r\nAccept: */*\r\n",
            url.target(),
            self.inner.config.user_agent,
        ));
        if let Some(userinfo) = url.userinfo() {
            let credentials = proxy::basic_credentials(userinfo);
            head.push_str(&format!("Authorization: Basic {credentials}\r\n"));
        }
        if let Some(credentials) = proxy.and_then(Proxy::credentials) {
            head.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
        }
        head.push_str(fields);
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// What one request brought.
struct Hop {
    status: u16,
    body: Vec<u8>,
    redirect: Option<String>,
    local_ip: Option<IpAddr>,
    origin: redirect::Origin,
}

const fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

fn route(url: &Url, proxy: Option<&Proxy>, family: Option<Family>) -> Route {
    let target = proxy.map_or(url, Proxy::url);
    Route {
        host: target.host().clone(),
        port: target.port(),
        family,
        is_proxy: proxy.is_some(),
        is_tls: url.scheme() == Scheme::Https,
    }
}

/// All addresses of a host.
///
/// # Errors
/// The name does not resolve in time.
pub async fn lookup(
    resolver: &Resolver,
    host: &Host,
    port: u16,
    deadline: &Deadline,
) -> Result<Vec<SocketAddr>, FetchError> {
    match host {
        Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => deadline
            .run(resolver.resolve(name, port, deadline.remaining()))
            .await
            .map_err(|source| FetchError::Lookup {
                host: name.clone(),
                source,
            }),
    }
}

/// `IPv4`, `IPv6` or `IP`, for messages.
pub const fn family_name(family: Option<Family>) -> &'static str {
    match family {
        Some(Family::V4) => "IPv4",
        Some(Family::V6) => "IPv6",
        None => "IP",
    }
}

/// Reads up to the end of the final head; gives the bytes behind it.
async fn read_head(
    connection: &mut Connection,
    deadline: &Deadline,
) -> Result<(ResponseHead, Vec<u8>), FetchError> {
    let mut have = Vec::new();
    let mut heads = 0;
    loop {
        if let Some((head, head_bytes)) = ResponseHead::parse(&have)? {
            have.drain(..head_bytes);
            // Interim answers such as 103 come before the real one; more than a few are an attack.
            if head.status / 100 != 1 || heads == HOPS_MAX {
                return Ok((head, have));
            }
            heads += 1;
            continue;
        }
        let is_first = have.is_empty();
        let received;
        (received, have) = connection.recv(have, deadline).await?;
        if received == 0 {
            return Err(if is_first {
                FetchError::Io(io::ErrorKind::UnexpectedEof.into())
            } else {
                FetchError::Http(HttpError::Truncated)
            });
        }
    }
}

fn io_error(error: io::Error) -> FetchError {
    if error.kind() == io::ErrorKind::TimedOut {
        FetchError::TimedOut
    } else {
        FetchError::Io(error)
    }
}
