//! A gateway that speaks UPnP: found, asked for ports, told when they are no longer needed. Layer 5.
//!
//! Whoever answers the search is believed only if it is the gateway itself, and its description and everything that this
//! names is asked of that address alone, whatever URLs say: no machine behind the gateway gets a request of ours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::deadline::Deadline;
use super::http::{GetOptions, HttpClient, HttpResponse};
use super::port_map::hear;
use super::shared::Shared;
use crate::uring::udp::Udp;
use crate::wire::natpmp::Protocol;
use crate::wire::upnp::{
    self, Action, BODY_BYTES_MAX, CONFLICT, ONLY_PERMANENT, SEARCH_BYTES_MAX, SSDP_GROUP,
    SSDP_PORT, Service,
};
use crate::wire::url::{Host, Scheme, Url};

/// What is asked for: an hour, so that what we could not take back is not there for long.
pub const LEASE_SECS: u32 = 3_600;
/// The search is sent so often, with a pause between; a gateway may take a second to answer (MX).
const SEARCHES: u32 = 2;
const SEARCH_PAUSE: Duration = Duration::from_millis(1_500);
/// One description or one call, connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Descriptions read in one search: a gateway answers each of our questions once, with the same place.
const DESCRIPTIONS_MAX: usize = 3;
/// Ports tried when others have those before.
const PORTS_MAX: u16 = 4;
/// Answers that wait to be read.
const ANSWERS_MAX: usize = 8;

/// A gateway that maps ports.
pub struct Igd {
    client: HttpClient,
    control: Url,
    service: Service,
    /// Our address on its side.
    ours: Ipv4Addr,
}

impl Igd {
    /// Searches for it. `at`: the only place that is asked, for tests; else the gateway's own port and the group.
    ///
    /// # Errors
    /// Nobody at that address answers, or what it says leads elsewhere.
    pub async fn find(shared: &Shared, gateway: IpAddr, at: Option<SocketAddr>) -> io::Result<Igd> {
        let options = &shared.socket_options;
        let to = SocketAddr::new(gateway, SSDP_PORT);
        let IpAddr::V4(ours) = Udp::source_towards(to, options)? else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let client = HttpClient::direct(options.clone(), shared.resolver.clone());
        let mut search = Search::open(shared, gateway)?;
        let targets = at.map_or_else(|| vec![to, SSDP_GROUP], |at| vec![at]);
        let mut seen: Vec<Url> = Vec::new();
        for _ in 0..SEARCHES {
            search.send(&targets).await;
            let until = Instant::now() + SEARCH_PAUSE;
            while let Ok(Some(answer)) = timeout_at(until, search.answers.recv()).await {
                let Some(location) = upnp::read_location(&answer) else {
                    continue;
                };
                let Some(url) = Url::parse(&location)
                    .ok()
                    .filter(|url| leads_to(url, gateway))
                else {
                    debug!(%gateway, "its description lies elsewhere");
                    continue;
                };
                if seen.contains(&url) || seen.len() >= DESCRIPTIONS_MAX {
                    continue;
                }
                seen.push(url.clone());
                match describe(&client, &url, gateway).await {
                    Some((service, control)) => {
                        return Ok(Igd {
                            client,
                            control,
                            service,
                            ours,
                        });
                    }
                    None => debug!(%gateway, "its description names nothing that maps ports"),
                }
            }
        }
        let what = format!("{gateway} does not speak UPnP either");
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }

    /// Maps a port, another one where that is taken; the port outside and the lease, 0 for good.
    ///
    /// # Errors
    /// The gateway says no, or nothing.
    pub async fn map(
        &self,
        protocol: Protocol,
        internal_port: u16,
        wished: u16,
    ) -> io::Result<(u16, u32)> {
        let mut lease_secs = LEASE_SECS;
        let mut code = 0;
        for step in 0..PORTS_MAX {
            let external_port = wished.checked_add(step).unwrap_or(1_024 + step);
            loop {
                let mapping = Action::AddPortMapping {
                    protocol,
                    external_port,
                    internal_port,
                    client: self.ours,
                    lease_secs,
                };
                let answer = self.call(&mapping).await?;
                if answer.status == 200 {
                    return Ok((external_port, lease_secs));
                }
                code = upnp::read_error(&answer.body);
                if code != ONLY_PERMANENT || lease_secs == 0 {
                    break;
                }
                lease_secs = 0;
            }
            if code != CONFLICT {
                break;
            }
        }
        Err(io::Error::other(format!("the gateway says {code} (UPnP)")))
    }

    /// Takes a mapping back.
    ///
    /// # Errors
    /// The gateway says nothing.
    pub async fn unmap(&self, protocol: Protocol, external_port: u16) -> io::Result<()> {
        let mapping = Action::DeletePortMapping {
            protocol,
            external_port,
        };
        self.call(&mapping).await.map(|_| ())
    }

    /// The gateway's address outside.
    pub async fn external_ip(&self) -> Option<Ipv4Addr> {
        let answer = self.call(&Action::GetExternalIpAddress).await.ok()?;
        upnp::read_external_ip(&answer.body).filter(|_| answer.status == 200)
    }

    async fn call(&self, action: &Action) -> io::Result<HttpResponse> {
        let (fields, body) = self.service.call(action);
        let limits = limits();
        let answer = (self.client).single(&self.control, &fields, Some(&body), &limits);
        answer.await.map_err(io::Error::other)
    }
}

fn limits() -> GetOptions {
    GetOptions {
        family: None,
        deadline: Deadline::after(CALL_TIMEOUT),
        body_bytes_max: BODY_BYTES_MAX,
        is_last: true,
    }
}

/// True for plain HTTP at that very address.
fn leads_to(url: &Url, gateway: IpAddr) -> bool {
    url.scheme() == Scheme::Http && *url.host() == Host::Ip(gateway)
}

/// What the description at the URL names that maps ports, and where that is asked.
async fn describe(client: &HttpClient, url: &Url, gateway: IpAddr) -> Option<(Service, Url)> {
    let answer = match client.single(url, "", None, &limits()).await {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => {
            debug!(status = answer.status, "no description");
            return None;
        }
        Err(error) => {
            debug!(%error, "no description");
            return None;
        }
    };
    let (service, base) = Service::find(&answer.body)?;
    let base = base.and_then(|base| Url::parse(&base).ok());
    let control = base.as_ref().unwrap_or(url).join(&service.control_url);
    let control = control.ok().filter(|control| leads_to(control, gateway))?;
    Some((service, control))
}

/// A socket for one search.
struct Search {
    udp: Udp,
    answers: mpsc::Receiver<Vec<u8>>,
}

impl Search {
    fn open(shared: &Shared, gateway: IpAddr) -> io::Result<Search> {
        let options = &shared.socket_options;
        let any = options.bind.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let udp = Udp::bind(SocketAddr::new(any, 0), options)?;
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        let is_its = move |from: SocketAddr| from.ip() == gateway;
        tokio_uring::spawn(hear(udp.clone(), is_its, SEARCH_BYTES_MAX, sender));
        Ok(Search { udp, answers })
    }

    async fn send(&self, targets: &[SocketAddr]) {
        for target in targets {
            for search in upnp::searches() {
                if let (Err(error), _) = self.udp.send_to(search, *target).await {
                    debug!(%error, %target, "not searched for");
                }
            }
        }
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.udp.close();
    }
}
