//! The announces of one torrent over one address family: runs `swarm::announce` against real trackers. Layer 5.
//!
//! Peers and news go out through a callback; commands come in through an [`AnnounceHandle`].

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::contain::caught;
use super::deadline::Deadline;
use super::http::{
    FetchError, GET_TIMEOUT, GetOptions, HttpClient, TRACKER_BODY_BYTES_MAX, family_name,
};
use super::udp_tracker::{UDP_TIMEOUT, UdpTrackerError, UdpTrackers};
use super::way::Way;
use crate::base::{InfoHash, Now, PeerId};
use crate::swarm::announce::{
    AnnounceConfig, AnnounceFailure, AnnounceJob, Announcer, TrackerStatus,
};
use crate::wire::tracker::{
    AnnounceRequest, AnnounceResponse, Counters, Event, Family, clean_text,
};
use crate::wire::tracker_http::{AnnounceError, announce_url, parse_announce};
use crate::wire::url::{Host, Scheme, Url};

/// How long `stopped` may take: nobody waits for a tracker when leaving (HOSTILE.md K4).
pub const STOPPED_TIMEOUT: Duration = Duration::from_secs(5);

/// And at a tracker that never answered, or failed the last time: most likely it hears nothing.
const STOPPED_UNHEARD_TIMEOUT: Duration = Duration::from_secs(1);

/// The means of reaching trackers, shared by all torrents.
#[derive(Clone)]
pub struct TrackerClients {
    pub http: HttpClient,
    pub udp: UdpTrackers,
    /// Nobody is asked while it is shut.
    pub way: Rc<Way>,
}

/// What is announced, and over which family.
#[derive(Clone, Debug)]
pub struct AnnounceTarget {
    pub info_hash: InfoHash,
    pub peer_id: PeerId,
    /// Where we listen for peers.
    pub port: u16,
    /// The same for both families and all trackers, new for each run.
    pub key: u32,
    pub family: Family,
}

/// What came of one announce.
#[derive(Clone, Debug)]
pub enum AnnounceOutcome {
    /// The tracker answered; `response.peers` is without ourselves.
    Announced {
        /// `scheme://host:port`: without passkeys, safe to print.
        tracker: String,
        family: Family,
        event: Option<Event>,
        response: AnnounceResponse,
        /// Until the next announce.
        next_in: Option<Duration>,
    },
    /// It did not, or refused.
    Failed {
        /// As above.
        tracker: String,
        family: Family,
        /// Safe to print.
        message: String,
        /// Until the next try of any tracker; `None` when there will be none.
        next_in: Option<Duration>,
        /// No tracker of the torrent works over this family.
        is_all_failing: bool,
    },
    /// It has not answered yet, and is asked again. Told of UDP trackers, each time that a datagram was sent in vain.
    Silent {
        /// As above.
        tracker: String,
        family: Family,
        /// Safe to print.
        message: String,
        /// No other tracker of the torrent works over this family.
        is_all_failing: bool,
    },
}

/// Steers a running [`announce_loop`]; clones share it. Commands do not queue up: the same twice counts once.
#[derive(Clone, Default)]
pub struct AnnounceHandle {
    inner: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_completed: Cell<bool>,
    wants_peers: Cell<bool>,
    numwant: Cell<Option<u32>>,
    stop: Cell<Option<Instant>>,
    /// At the end nobody is told, and the state is kept.
    hands_over: Cell<bool>,
    kept: RefCell<Option<Announcer>>,
    /// Other trackers, by tier.
    tiers: RefCell<Option<Vec<Vec<String>>>>,
    /// The last that were given.
    last_tiers: RefCell<Option<Vec<Vec<String>>>>,
    changed: Notify,
    status: RefCell<Vec<TrackerStatus>>,
}

impl AnnounceHandle {
    pub fn new() -> AnnounceHandle {
        AnnounceHandle::default()
    }

    /// The download has just been finished.
    pub fn completed(&self) {
        self.inner.is_completed.set(true);
        self.inner.changed.notify_one();
    }

    /// Peers are running out: announce as soon as the tracker allows.
    pub fn want_peers(&self) {
        self.inner.wants_peers.set(true);
        self.inner.changed.notify_one();
    }

    /// Other trackers from now on, by tier; those that go hear `stopped`.
    pub fn set_tiers(&self, tiers: Vec<Vec<String>>) {
        self.inner.last_tiers.replace(Some(tiers.clone()));
        self.inner.tiers.replace(Some(tiers));
        self.inner.changed.notify_one();
    }

    /// The trackers that it was last given, if it was.
    pub fn last_tiers(&self) -> Option<Vec<Vec<String>>> {
        self.inner.last_tiers.borrow().clone()
    }

    /// Peers to ask for from now on.
    pub fn set_numwant(&self, numwant: u32) {
        self.inner.numwant.set(Some(numwant));
        self.inner.changed.notify_one();
    }

    /// Ends the loop: what is under way is given up, `stopped` goes out, all within `limit` (at most
    /// [`STOPPED_TIMEOUT`]).
    pub fn stop(&self, limit: Duration) {
        let at = Instant::now() + limit.min(STOPPED_TIMEOUT);
        self.inner.stop.set(Some(at));
        self.inner.changed.notify_one();
    }

    /// Ends the loop without a word to the trackers; its state is there when the loop is over.
    pub fn hand_over(&self) {
        self.inner.hands_over.set(true);
        self.stop(Duration::ZERO);
    }

    /// The state that a loop which was to hand over has left.
    pub fn take_kept(&self) -> Option<Announcer> {
        self.inner.kept.take()
    }

    /// Completes once it was asked to stop.
    pub async fn stopping(&self) {
        while self.inner.stop.get().is_none() {
            self.inner.changed.notified().await;
        }
    }

    /// Completes once it was asked to stop, or to leave that tracker alone.
    async fn leaving(&self, url: &str) {
        let is_leaving = || {
            let tiers = self.inner.tiers.borrow();
            let is_there = |tiers: &Vec<Vec<String>>| tiers.iter().flatten().any(|one| one == url);
            self.inner.stop.get().is_some() || tiers.as_ref().is_some_and(|new| !is_there(new))
        };
        while !is_leaving() {
            self.inner.changed.notified().await;
        }
    }

    /// How the trackers are doing.
    pub fn status(&self) -> Vec<TrackerStatus> {
        self.inner.status.borrow().clone()
    }
}

/// Announces until stopped. `counters` is asked before each announce; `on_outcome` is told after it.
pub async fn announce_loop(
    clients: TrackerClients,
    target: AnnounceTarget,
    (tiers, config): (Vec<Vec<String>>, AnnounceConfig),
    handle: AnnounceHandle,
    now: impl Fn() -> Now,
    mut counters: impl FnMut() -> Counters,
    mut on_outcome: impl FnMut(AnnounceOutcome),
) {
    let seed = RandomState::new().hash_one(target.info_hash.as_bytes());
    let mut announcer = Announcer::new(tiers, config, seed, now());
    let shared = &handle.inner;
    while shared.stop.get().is_none() {
        apply_commands(shared, &mut announcer);
        let tiers = shared.tiers.take();
        if let Some(goodbyes) = tiers.map(|tiers| announcer.set_tiers(tiers, now())) {
            say_goodbye(&clients, &target, goodbyes, counters());
        }
        shared.status.replace(announcer.status());
        if !clients.way.is_open() {
            tokio::select! {
                () = handle.stopping() => break,
                () = clients.way.opened() => announcer.on_way_back(now()),
            }
        }
        let Some(job) = announcer.next_announce(now()) else {
            tokio::select! {
                () = wait(shared, announcer.next_deadline(), now()) => {}
                () = clients.way.shut() => {}
            }
            continue;
        };
        shared.status.replace(announcer.status());
        let on_silence = || on_outcome(silence(&target, &job));
        let result =
            announce_or_stop(&clients, &target, &job, counters(), &handle, on_silence).await;
        if shared.stop.get().is_some() {
            break;
        }
        let outcome = report(&mut announcer, &target, job, result, now());
        on_outcome(outcome);
    }
    if shared.hands_over.get() {
        announcer.on_broken_off();
        shared.kept.replace(Some(announcer));
        return;
    }
    let jobs = announcer.on_stopping();
    shared.status.replace(announcer.status());
    let left = shared.stop.get().map_or(STOPPED_TIMEOUT, |at| {
        at.saturating_duration_since(Instant::now())
    });
    send_stopped(clients, target, jobs, counters(), left).await;
}

fn apply_commands(shared: &Shared, announcer: &mut Announcer) {
    if let Some(numwant) = shared.numwant.take() {
        announcer.set_numwant(numwant);
    }
    if shared.is_completed.take() {
        announcer.on_completed();
    }
    if shared.wants_peers.take() {
        announcer.on_want_peers();
    }
}

async fn wait(shared: &Shared, until: Option<Now>, now: Now) {
    match until {
        None => shared.changed.notified().await,
        Some(until) => {
            // Never zero: a deadline just missed must not turn into a loop that never waits.
            let pause = until.since(now).max(Duration::from_millis(1));
            tokio::select! {
                () = shared.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// An answer and our own address as the connection saw it.
pub(super) type Announced = (AnnounceResponse, Option<IpAddr>);

/// Announces, giving up at once when the loop is to stop.
async fn announce_or_stop(
    clients: &TrackerClients,
    target: &AnnounceTarget,
    job: &AnnounceJob,
    counters: Counters,
    handle: &AnnounceHandle,
    on_silence: impl FnMut(),
) -> Result<Announced, AnnounceFailure> {
    let deadline = Deadline::after(if is_udp(job) {
        UDP_TIMEOUT
    } else {
        GET_TIMEOUT
    });
    let asked = Asked {
        counters,
        deadline: &deadline,
    };
    let mut announce = std::pin::pin!(announce(clients, target, job, asked, on_silence));
    tokio::select! {
        biased;
        result = &mut announce => return result,
        () = handle.leaving(&job.url) => deadline.shorten_to(Duration::ZERO),
        () = clients.way.shut() => deadline.shorten_to(Duration::ZERO),
    }
    announce.await
}

pub(super) async fn send_stopped(
    clients: TrackerClients,
    target: AnnounceTarget,
    jobs: Vec<AnnounceJob>,
    counters: Counters,
    limit: Duration,
) {
    let deadline_of = |job: &AnnounceJob| {
        Deadline::after(match job.is_answering {
            true => limit,
            false => limit.min(STOPPED_UNHEARD_TIMEOUT),
        })
    };
    let tasks: Vec<_> = jobs
        .into_iter()
        .map(|job| {
            let (clients, target, deadline) = (clients.clone(), target.clone(), deadline_of(&job));
            tokio_uring::spawn(async move {
                let asked = Asked {
                    counters,
                    deadline: &deadline,
                };
                let result = announce(&clients, &target, &job, asked, || ()).await;
                if let Err(failure) = result {
                    tracing::debug!(tracker = shown(&job.url), ?failure, "stopped not announced");
                }
            })
        })
        .collect();
    for task in tasks {
        if let Err(error) = task.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Tells trackers that are used no more, beside whatever else is announced.
fn say_goodbye(
    clients: &TrackerClients,
    target: &AnnounceTarget,
    jobs: Vec<AnnounceJob>,
    counters: Counters,
) {
    if jobs.is_empty() {
        return;
    }
    let (clients, target) = (clients.clone(), target.clone());
    tokio_uring::spawn(async move {
        let sent = send_stopped(clients, target, jobs, counters, STOPPED_TIMEOUT);
        // What broke it is logged with the panic; nobody waits for a goodbye.
        let _ = caught(sent).await;
    });
}

/// What one announce tells, and by when it must be over.
struct Asked<'a> {
    counters: Counters,
    deadline: &'a Deadline,
}

async fn announce(
    clients: &TrackerClients,
    target: &AnnounceTarget,
    job: &AnnounceJob,
    asked: Asked<'_>,
    on_silence: impl FnMut(),
) -> Result<Announced, AnnounceFailure> {
    let Asked { counters, deadline } = asked;
    let url = Url::parse(&job.url).map_err(|error| AnnounceFailure::Unusable(error.to_string()))?;
    if let Host::Ip(ip) = url.host()
        && !target.family.has(*ip)
        && !clients.http.is_proxied()
    {
        let family = family_name(Some(target.family));
        let text = format!("the tracker has no {family} address");
        return Err(AnnounceFailure::Unusable(text));
    }
    let request = AnnounceRequest {
        info_hash: target.info_hash,
        peer_id: target.peer_id,
        port: target.port,
        counters,
        event: job.event,
        numwant: job.numwant,
        key: target.key,
        tracker_id: job.tracker_id.clone(),
    };
    match url.scheme() {
        Scheme::Udp => {
            let announced = clients
                .udp
                .announce(&url, &request, target.family, deadline, on_silence)
                .await;
            announced
                .map(|response| (response, None))
                .map_err(|error| match error {
                    UdpTrackerError::Refused(refusal) => AnnounceFailure::Refused(refusal),
                    UdpTrackerError::NoRelay => AnnounceFailure::Unusable(error.to_string()),
                    error => AnnounceFailure::Unreachable(error.to_string()),
                })
        }
        Scheme::Http | Scheme::Https => {
            let options = GetOptions {
                family: Some(target.family),
                deadline: deadline.clone(),
                body_bytes_max: TRACKER_BODY_BYTES_MAX,
                is_last: job.event == Some(Event::Stopped),
            };
            announce_http(&clients.http, &announce_url(&url, &request), &options).await
        }
    }
}

async fn announce_http(
    http: &HttpClient,
    url: &Url,
    options: &GetOptions,
) -> Result<Announced, AnnounceFailure> {
    let response = http.get(url, options).await.map_err(|error| match error {
        FetchError::HttpsUnsupported => AnnounceFailure::Unusable(error.to_string()),
        error => AnnounceFailure::Unreachable(error.to_string()),
    })?;
    match parse_announce(&response.body) {
        // Some trackers send their refusals with an error status.
        Err(AnnounceError::Refused(refusal)) => Err(AnnounceFailure::Refused(refusal)),
        Ok(answer) if response.status == 200 => Ok((answer, response.local_ip)),
        Err(error) if response.status == 200 => {
            Err(AnnounceFailure::Unreachable(error.to_string()))
        }
        _ => Err(AnnounceFailure::Unreachable(format!(
            "the tracker answered with HTTP status {}",
            response.status
        ))),
    }
}

/// What the callback is told of a tracker that has not answered yet: in the words of one that never will.
fn silence(target: &AnnounceTarget, job: &AnnounceJob) -> AnnounceOutcome {
    AnnounceOutcome::Silent {
        tracker: shown(&job.url),
        family: target.family,
        message: UdpTrackerError::TimedOut.to_string(),
        is_all_failing: job.is_last_hope,
    }
}

/// Makes one announce, for as long as such a tracker is given.
pub(super) async fn announce_once(
    clients: &TrackerClients,
    target: &AnnounceTarget,
    job: &AnnounceJob,
    counters: Counters,
) -> Result<Announced, AnnounceFailure> {
    let deadline = Deadline::after(if is_udp(job) {
        UDP_TIMEOUT
    } else {
        GET_TIMEOUT
    });
    let asked = Asked {
        counters,
        deadline: &deadline,
    };
    announce(clients, target, job, asked, || ()).await
}

fn is_udp(job: &AnnounceJob) -> bool {
    let head = job.url.get(..4);
    head.is_some_and(|head| head.eq_ignore_ascii_case("udp:"))
}

/// Tells the state machine, and makes what the callback is told.
pub(super) fn report(
    announcer: &mut Announcer,
    target: &AnnounceTarget,
    job: AnnounceJob,
    result: Result<Announced, AnnounceFailure>,
    now: Now,
) -> AnnounceOutcome {
    let tracker = shown(&job.url);
    let family = target.family;
    match result {
        Ok((mut response, local_ip)) => {
            announcer.on_success(job.id, &response, now);
            let own = [response.external_ip, local_ip];
            response
                .peers
                .retain(|peer| !is_ourselves(*peer, target.port, &own));
            AnnounceOutcome::Announced {
                tracker,
                family,
                event: job.event,
                response,
                next_in: announcer.next_deadline().map(|at| at.since(now)),
            }
        }
        Err(failure) => {
            let message = match &failure {
                AnnounceFailure::Unreachable(text) | AnnounceFailure::Unusable(text) => {
                    text.clone()
                }
                AnnounceFailure::Refused(refusal) => {
                    format!("the tracker refused: {}", refusal.reason)
                }
            };
            announcer.on_failure(job.id, failure, now);
            AnnounceOutcome::Failed {
                tracker,
                family,
                message,
                next_in: announcer.next_deadline().map(|at| at.since(now)),
                is_all_failing: announcer.is_all_failing(),
            }
        }
    }
}

/// Our own port at an address known to be ours, or at this machine's loopback.
fn is_ourselves(peer: SocketAddr, port: u16, own: &[Option<IpAddr>]) -> bool {
    let ip = peer.ip().to_canonical();
    let is_own_ip = ip == IpAddr::from([127, 0, 0, 1])
        || ip == std::net::Ipv6Addr::LOCALHOST
        || own.iter().flatten().any(|own| own.to_canonical() == ip);
    peer.port() == port && is_own_ip
}

/// A tracker's URL without path and password.
fn shown(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => {
            let scheme = match url.scheme() {
                Scheme::Http => "http",
                Scheme::Https => "https",
                Scheme::Udp => "udp",
            };
            format!("{scheme}://{}", url.authority())
        }
        Err(_) => clean_text(url.as_bytes()),
    }
}
