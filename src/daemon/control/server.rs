//! The server: sockets, connections, times, limits. Layer 6.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};
use tracing::{debug, info, warn};

use super::backend::Backend;
use super::events;
use super::guard::{Credentials, Failures};
use super::http::{Request, Response};
use super::places::{Count, Places};
use super::qbt::{Kind, Qbt};
use super::routes::{self, Route};
use super::rpc::Rpc;
use super::web_ui::WebUi;
use crate::wire::http::{HttpError, Unframer};

/// Connections at a time: browsers and programs have a few each.
const CONNECTIONS_MAX: usize = 256;
/// The same of the unix socket: strangers who fill the others must not keep the owner out.
const OWN_CONNECTIONS_MAX: usize = 64;
/// From the first byte of a head to its last.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// A connection with nothing to say.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// A body as a whole: 64 MiB at 1 MB/s.
const BODY_TIME: Duration = Duration::from_secs(90);
/// One piece of an answer; a reader that is slower than this is no reader.
const WRITE_TIME: Duration = Duration::from_secs(20);
const WRITE_BYTES: usize = 256 << 10;
/// Bodies that are not a .torrent being added.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The part of one that is held while the torrents are not known: every connection may wait for them.
const WAITING_BODY_BYTES_MAX: usize = 64 << 10;
/// What is read of a connection that waits for them, to see it end.
const AHEAD_BYTES_MAX: usize = 64 << 10;
/// A login's, which anybody may send: a name and a password.
const LOGIN_BODY_BYTES_MAX: usize = 16 << 10;
/// 64 MiB in base64, and the rest of the request.
const TORRENT_BODY_BYTES_MAX: usize = 88 << 20;
/// Such bodies at a time; others wait.
const LARGE_BODIES_MAX: usize = 2;
/// Live tables at a time.
const STREAMS_MAX: usize = 32;
/// What is read in one go.
const READ_BYTES: usize = 16 << 10;
/// Wait after an accept that failed: descriptors come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Who may ask over TCP, and how.
#[derive(Clone, Debug)]
pub struct Access {
    pub credentials: Credentials,
    /// Besides addresses and `localhost`.
    pub host_names: Vec<String>,
}

/// What all connections share.
pub struct Shared<B> {
    pub rpc: Rpc<B>,
    pub qbt: Qbt,
    pub access: Access,
    /// A folder in place of the page.
    pub web_ui: Option<WebUi>,
    pub failures: RefCell<Failures>,
    places: Places,
    own_places: Places,
    streams: Cell<usize>,
    large_bodies: Semaphore,
}

impl<B: Backend> Shared<B> {
    /// Nobody connected yet.
    pub fn new(rpc: Rpc<B>, qbt: Qbt, access: Access, web_ui: Option<WebUi>) -> Rc<Shared<B>> {
        Rc::new(Shared {
            rpc,
            qbt,
            access,
            web_ui,
            failures: RefCell::default(),
            places: Places::new(CONNECTIONS_MAX),
            own_places: Places::new(OWN_CONNECTIONS_MAX),
            streams: Cell::new(0),
            large_bodies: Semaphore::new(LARGE_BODIES_MAX),
        })
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.places.taken() + self.own_places.taken()
    }

    fn places_for(&self, client: Client) -> &Places {
        match client {
            Client::Remote(_) => &self.places,
            Client::Owner => &self.own_places,
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Over TCP: has to show who it is.
    Remote(IpAddr),
    /// Over the unix socket: the kernel told that it is the daemon's own user, or root.
    Owner,
}

/// Serves TCP connections for ever, in tasks of this thread's `LocalSet`.
pub async fn serve_tcp<B: Backend>(shared: Rc<Shared<B>>, listener: TcpListener) {
    if let Ok(addr) = listener.local_addr() {
        info!(%addr, "control");
    }
    loop {
        match listener.accept().await {
            Ok((stream, addr)) => {
                // Answers are whole: waiting for more to fill a packet only delays them.
                let _ = stream.set_nodelay(true);
                spawn(&shared, stream, Client::Remote(ip_of(addr)));
            }
            Err(error) => {
                debug!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn ip_of(addr: SocketAddr) -> IpAddr {
    addr.ip().to_canonical()
}

/// Serves connections to a unix socket for ever: of the daemon's own user, and of root.
pub async fn serve_unix<B: Backend>(shared: Rc<Shared<B>>, listener: UnixListener) {
    let own = nix::unistd::geteuid().as_raw();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == 0 => {
                    spawn(&shared, stream, Client::Owner);
                }
                _ => warn!("somebody else's program at the control socket"),
            },
            Err(error) => {
                debug!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn spawn<B, S>(shared: &Rc<Shared<B>>, stream: S, client: Client)
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        // Over the limit, the newest is closed at once: those that are there go on.
        let Some(_counted) = shared.places_for(client).take() else {
            return;
        };
        let mut connection = Connection {
            stream,
            client,
            input: Vec::new(),
        };
        if connection.serve(&shared).await.is_none() {
            debug!("a control connection was closed");
        }
    });
}

/// One connection.
struct Connection<S> {
    stream: S,
    client: Client,
    /// Read and not used yet.
    input: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Request after request; `None` when the connection ended in the middle of one.
    async fn serve<B: Backend>(&mut self, shared: &Shared<B>) -> Option<()> {
        loop {
            if self.input.is_empty() && !self.wait_for_more().await? {
                return Some(());
            }
            let request = match timeout(HEAD_TIME, self.read_head()).await {
                Ok(Some(Ok(request))) => request,
                Ok(Some(Err(status))) => {
                    return self.refuse(status, "this is no request").await;
                }
                Ok(None) => return None,
                Err(_) => return self.refuse(408, "the request took too long").await,
            };
            let route = match routes::check(shared, &request, self.client, Instant::now()) {
                Ok(route) => route,
                Err(response) => {
                    // Without its body being read, nothing behind it can be.
                    let keeps = request.is_keep_alive && !request.has_body();
                    self.send(&request, &response, keeps).await?;
                    if keeps {
                        continue;
                    }
                    return self.drain().await;
                }
            };
            let body = match self.read_body(shared, &request, &route).await {
                Ok(body) => body,
                Err(Some(status)) => return self.refuse(status, "the body is refused").await,
                Err(None) => return None,
            };
            // What is under way is never given up half done; what waits may be.
            if routes::is_about_torrents(&route, &body) {
                self.until_known(shared).await?;
            }
            if matches!(route, Route::Events) {
                return self.stream_events(shared).await;
            }
            let response = routes::answer(shared, &request, self.client, &route, &body).await;
            drop(body);
            self.send(&request, &response, request.is_keep_alive)
                .await?;
            if !request.is_keep_alive {
                return Some(());
            }
        }
    }

    /// Waits for the torrents; `None` if the connection ended, or somebody needs its place, before.
    async fn until_known<B: Backend>(&mut self, shared: &Shared<B>) -> Option<()> {
        let mut known = pin!(shared.rpc.backend().known());
        while self.input.len() < AHEAD_BYTES_MAX {
            tokio::select! {
                biased;
                () = &mut known => return Some(()),
                read = self.read_some() => if read? == 0 { break },
            }
        }
        tokio::select! {
            biased;
            () = known => Some(()),
            () = shared.places_for(self.client).lend() => None,
        }
    }

    /// False at the end of the stream, or when nothing came for too long.
    async fn wait_for_more(&mut self) -> Option<bool> {
        match timeout(IDLE_TIME, self.read_some()).await {
            Ok(read) => Some(read? > 0),
            Err(_) => Some(false),
        }
    }

    async fn read_some(&mut self) -> Option<usize> {
        self.input.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.input).await.ok()
    }

    /// `None` when the connection ended.
    async fn read_head(&mut self) -> Option<Result<Request, u16>> {
        loop {
            match Request::parse(&self.input) {
                Ok(Some((request, length))) => {
                    self.input.drain(..length);
                    return Some(Ok(request));
                }
                Ok(None) => {}
                Err(bad) => return Some(Err(bad.status())),
            }
            if self.read_some().await? == 0 {
                return None;
            }
        }
    }

    /// The body; else the status to refuse it with, or `None` when the connection ended.
    async fn read_body<B: Backend>(
        &mut self,
        shared: &Shared<B>,
        request: &Request,
        route: &Route,
    ) -> Result<Vec<u8>, Option<u16>> {
        if !request.has_body() {
            return Ok(Vec::new());
        }
        let time = match route {
            Route::Qbt(method) if method.kind == Kind::Login => HEAD_TIME,
            _ => BODY_TIME,
        };
        let mut deadline = tokio::time::Instant::now() + time;
        let too_late = |_| Some(408);
        let bytes_max = match route {
            Route::Rpc => TORRENT_BODY_BYTES_MAX,
            Route::Qbt(method) if method.kind == Kind::Adds => TORRENT_BODY_BYTES_MAX,
            Route::Qbt(method) if method.kind == Kind::Login => LOGIN_BODY_BYTES_MAX,
            _ => BODY_BYTES_MAX,
        };
        let mut framing = Unframer::new(request.framing);
        let (mut body, mut large, mut may_be_long) = (Vec::new(), None, false);
        let is_over = |held: usize, more: u64| {
            let more = usize::try_from(more).unwrap_or(usize::MAX);
            held.saturating_add(more) > bytes_max
        };
        if is_over(0, framing.declared_bytes()) {
            return Err(Some(413));
        }
        if request.waits {
            let go_on = self.write(b"HTTP/1.1 100 Continue\r\n\r\n");
            go_on.await.ok_or(None)?;
        }
        loop {
            let input = std::mem::take(&mut self.input);
            let mut rest = input.as_slice();
            loop {
                let bad = |_: HttpError| Some(400);
                let Some(bytes) = framing.next(&mut rest).map_err(bad)? else {
                    break;
                };
                if is_over(body.len(), bytes.len() as u64)
                    || is_over(body.len(), framing.declared_bytes())
                {
                    return Err(Some(413));
                }
                body.extend_from_slice(bytes);
            }
            self.input = rest.to_vec();
            if framing.is_done() {
                return Ok(body);
            }
            if body.len() > WAITING_BODY_BYTES_MAX && !may_be_long {
                // It would be held until then, beside others.
                self.until_known(shared).await.ok_or(None)?;
                deadline = tokio::time::Instant::now() + time;
                may_be_long = true;
                continue;
            }
            if body.len() > BODY_BYTES_MAX && large.is_none() {
                let place = timeout_at(deadline, shared.large_bodies.acquire());
                large = place.await.map_err(too_late)?.ok();
            }
            let read = timeout_at(deadline, self.read_some());
            if read.await.map_err(too_late)?.ok_or(None)? == 0 {
                return Err(None);
            }
        }
    }

    async fn refuse(&mut self, status: u16, words: &str) -> Option<()> {
        let response = Response::plain(status, words);
        self.write(&response.head(false)).await?;
        self.write(&response.body).await?;
        self.drain().await
    }

    /// Closing over bytes that nobody read would take the answer away from the other end too: some are read first.
    async fn drain(&mut self) -> Option<()> {
        let _ = self.stream.shutdown().await;
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut left = BODY_BYTES_MAX;
        while left > 0 {
            self.input.clear();
            let time = deadline.saturating_duration_since(Instant::now());
            match timeout(time, self.read_some()).await {
                Ok(Some(read)) if read > 0 => left = left.saturating_sub(read),
                _ => break,
            }
        }
        Some(())
    }

    async fn send(&mut self, request: &Request, response: &Response, keeps: bool) -> Option<()> {
        let mut first = response.head(keeps);
        let has_body = request.method != "HEAD" && !matches!(response.status, 204 | 304);
        let body = if has_body {
            response.body.as_slice()
        } else {
            &[]
        };
        let (small, rest) = body.split_at(body.len().min(WRITE_BYTES));
        first.extend_from_slice(small);
        self.write(&first).await?;
        self.write(rest).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Option<()> {
        for piece in bytes.chunks(WRITE_BYTES) {
            let write = timeout(WRITE_TIME, self.stream.write_all(piece));
            write.await.ok()?.ok()?;
        }
        Some(())
    }

    /// The live table until the other end goes.
    async fn stream_events<B: Backend>(&mut self, shared: &Shared<B>) -> Option<()> {
        let Some(_counted) = Count::one(&shared.streams, STREAMS_MAX) else {
            return self.refuse(503, "too many live tables are open").await;
        };
        let head = Response {
            status: 200,
            content_type: "text/event-stream",
            ..Response::default()
        };
        self.write(&head.stream_head()).await?;
        let mut live = events::Live::default();
        while let Some(part) = live.next_part(&shared.rpc) {
            self.write(&part).await?;
        }
        let mut ticks = tokio::time::interval(events::INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                read = self.read_some() => match read {
                    // Whatever is said now is no request.
                    Some(count) if count > 0 => self.input.clear(),
                    _ => return Some(()),
                },
                _ = ticks.tick() => {
                    let part = live.delta(&shared.rpc);
                    self.write(&part).await?;
                }
            }
        }
    }
}
