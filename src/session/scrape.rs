//! How many peers trackers count for one torrent, asked without announcing (BEP 48, BEP 15). Layer 5.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::config::ProxySettings;
use super::deadline::Deadline;
use super::http::{FetchError, GetOptions, HttpClient, HttpConfig, TRACKER_BODY_BYTES_MAX};
use super::socks::{RelayOf, SocksProxy, UdpRelay};
use super::udp_tracker::{OwnSockets, UdpTrackerError, UdpTrackers};
use crate::base::InfoHash;
use crate::uring::resolve::Resolver;
use crate::uring::socket::SocketOptions;
use crate::uring::tls::Authorities;
use crate::wire::tracker::Family;
use crate::wire::tracker_http::scrape::{parse_scrape, scrape_url};
use crate::wire::tracker_http::serve::SwarmCounts;
use crate::wire::url::{Scheme, Url};

/// The whole time one tracker may take; UDP is asked three times in it.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(30);
/// The second datagram to a UDP tracker: somebody waits at a terminal.
const UDP_RETRANSMIT: Duration = Duration::from_secs(4);
/// Trackers asked; torrents list up to a few dozen.
pub const TRACKERS_MAX: usize = 100;
/// Of those at once.
const AT_ONCE_MAX: usize = 16;

/// The numbers, or why there are none, in words.
pub type Scraped = Result<SwarmCounts, String>;

#[derive(Clone)]
struct Clients {
    http: HttpClient,
    udp: UdpTrackers,
    families: Rc<[Family]>,
}

/// Asks each tracker, as written in the torrent; the answers stand in the same order, those of the first
/// [`TRACKERS_MAX`]. With a `proxy` nothing goes around it, names included. Call it inside the ring's runtime.
///
/// # Errors
/// No socket or thread can be had.
pub async fn scrape(
    info_hash: InfoHash,
    trackers: &[String],
    socket: SocketOptions,
    ipv6: bool,
    proxy: Option<ProxySettings>,
    tracker_ca: Option<Authorities>,
) -> std::io::Result<Vec<Scraped>> {
    let resolver = Resolver::bound(&socket)?;
    let socks = proxy.map(|proxy| SocksProxy::new(proxy, socket.clone(), resolver.clone()));
    let (udp, datagrams) = Datagrams::start(&resolver, &socket, socks.clone())?;
    // Which family a proxy takes is its own affair.
    let families: &[Family] = match ipv6 && socks.is_none() {
        true => &[Family::V4, Family::V6],
        false => &[Family::V4],
    };
    let config = HttpConfig {
        socket,
        socks,
        ..HttpConfig::from_env(tracker_ca)
    };
    let clients = Clients {
        http: HttpClient::new(config, resolver),
        udp,
        families: families.into(),
    };
    let places = Rc::new(Semaphore::new(AT_ONCE_MAX));
    let asked: Vec<_> = trackers
        .iter()
        .take(TRACKERS_MAX)
        .map(|tracker| {
            let (clients, places, tracker) = (clients.clone(), places.clone(), tracker.clone());
            tokio_uring::spawn(async move {
                let _place = places.acquire().await;
                clients.ask(&tracker, info_hash).await
            })
        })
        .collect();
    let mut answers = Vec::with_capacity(asked.len());
    for task in asked {
        let ended = task.await;
        answers.push(ended.unwrap_or_else(|_| Err("an error in the program".to_owned())));
    }
    datagrams.end().await;
    Ok(answers)
}

/// What the datagrams of UDP trackers come and go through.
enum Datagrams {
    Own(OwnSockets, Vec<JoinHandle<()>>),
    Relayed(Rc<UdpRelay>, JoinHandle<()>),
}

impl Datagrams {
    fn start(
        resolver: &Resolver,
        socket: &SocketOptions,
        socks: Option<Rc<SocksProxy>>,
    ) -> std::io::Result<(UdpTrackers, Datagrams)> {
        if let Some(socks) = socks {
            let relay = UdpRelay::new(socks);
            let udp = UdpTrackers::through(resolver.clone(), relay.clone(), UDP_RETRANSMIT);
            let running = relay.clone().run(RelayOf::Trackers(udp.clone()));
            return Ok((udp, Datagrams::Relayed(relay, tokio_uring::spawn(running))));
        }
        let (udp, own) = OwnSockets::bind(resolver.clone(), socket, UDP_RETRANSMIT)?;
        let receivers = own.receivers().into_iter();
        let receivers = receivers.map(|receiver| tokio_uring::spawn(receiver.run()));
        let receivers = receivers.collect();
        Ok((udp, Datagrams::Own(own, receivers)))
    }

    async fn end(self) {
        match self {
            Datagrams::Own(own, receivers) => {
                own.close();
                for receiver in receivers {
                    let _ = receiver.await;
                }
            }
            Datagrams::Relayed(relay, running) => {
                relay.close();
                running.abort();
                let _ = running.await;
            }
        }
    }
}

impl Clients {
    async fn ask(&self, tracker: &str, info_hash: InfoHash) -> Scraped {
        let url = Url::parse(tracker).map_err(|error| error.to_string())?;
        let deadline = Deadline::after(SCRAPE_TIMEOUT);
        match url.scheme() {
            Scheme::Udp => self.ask_udp(&url, info_hash, &deadline).await,
            Scheme::Http | Scheme::Https => self.ask_http(&url, info_hash, deadline).await,
        }
    }

    /// Over the first family in which it has an address.
    async fn ask_udp(&self, url: &Url, info_hash: InfoHash, deadline: &Deadline) -> Scraped {
        let mut last = "it has no address".to_owned();
        for family in self.families.iter().copied() {
            let asked = self.udp.scrape(url, &[info_hash], family, deadline).await;
            match asked {
                Ok(counts) => {
                    let first = counts.first().copied();
                    return first.ok_or_else(|| UdpTrackerError::BadAnswer.to_string());
                }
                Err(error @ UdpTrackerError::NoAddress { .. }) => last = error.to_string(),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(last)
    }

    async fn ask_http(&self, url: &Url, info_hash: InfoHash, deadline: Deadline) -> Scraped {
        let Some(url) = scrape_url(url, &info_hash) else {
            return Err("it cannot be asked: its path does not end in `announce`".to_owned());
        };
        let options = GetOptions {
            family: (self.families.len() == 1).then_some(Family::V4),
            deadline,
            body_bytes_max: TRACKER_BODY_BYTES_MAX,
            is_last: true,
        };
        let answer = self.http.get(&url, &options).await;
        let answer = answer.map_err(|error: FetchError| error.to_string())?;
        match parse_scrape(&answer.body, &info_hash) {
            Ok(Some(counts)) if answer.status == 200 => Ok(counts),
            Ok(None) if answer.status == 200 => Err("it does not know the torrent".to_owned()),
            Err(error) if answer.status == 200 => Err(error.to_string()),
            _ => Err(format!("it answered with HTTP status {}", answer.status)),
        }
    }
}
