//! One connection to a web seed: takes runs of blocks from the core and asks for them as ranges of files. Layer 5.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::trace;

use super::Seed;
use super::feed::Feeder;
use super::verdict::{Body, Failure, Part, SILENT_AFTER, judge};
use crate::base::BlockRef;
use crate::session::contain;
use crate::session::deadline::Deadline;
use crate::session::driver::Driver;
use crate::session::http::{Answer, Kept, Place};
use crate::session::peer::reader::{RECV_BYTES_MAX, recv_memory};
use crate::session::tune::{Direction, Pace};
use crate::storage::layout::Span;
use crate::swarm::{CloseReason, PeerKey, Refusal};
use crate::wire::tracker::Family;

/// A connection without work is closed after this time: most servers close it then themselves.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// The first receive of a body.
const RECV_BYTES_START: usize = 32 * 1024;

/// The driver's way to a connection.
pub struct WebHandle {
    pub wake: Notify,
    closing: Cell<Option<CloseReason>>,
    /// Of the operation under way.
    deadline: RefCell<Deadline>,
    client: u64,
    pace: Rc<Pace>,
}

impl WebHandle {
    fn new(pace: &Rc<Pace>) -> Rc<WebHandle> {
        Rc::new(WebHandle {
            wake: Notify::new(),
            closing: Cell::new(None),
            deadline: RefCell::new(Deadline::after(Duration::ZERO)),
            client: pace.client(),
            pace: pace.clone(),
        })
    }

    /// Ends the connection: what it waits for ends at once.
    pub fn close(&self, reason: CloseReason) {
        if !self.is_closing() {
            self.closing.set(Some(reason));
            self.deadline.borrow().shorten_to(Duration::ZERO);
            self.wake.notify_one();
            self.pace.forget(self.client);
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }

    /// The failure that an end by [`WebHandle::close`] is.
    fn closed(&self) -> Failure {
        match self.closing.get() {
            Some(CloseReason::Silent) => Failure::Slow,
            _ => Failure::Closed,
        }
    }

    /// A deadline that [`WebHandle::close`] brings about.
    fn deadline(&self) -> Deadline {
        let wait = if self.is_closing() {
            Duration::ZERO
        } else {
            SILENT_AFTER
        };
        let deadline = Deadline::after(wait);
        *self.deadline.borrow_mut() = deadline.clone();
        deadline
    }
}

/// Serves the torrent until something ends it: at best that nothing is missing any more.
///
/// # Errors
/// Why it ended before.
pub(super) async fn run(driver: &Rc<Driver>, seed: &Rc<Seed>) -> Result<(), Failure> {
    let gone = seed.gone_pieces(driver);
    let entered = driver.call(|core, cx| core.on_web_seed(seed.id, &gone, cx));
    let key = match entered {
        Ok(key) => key,
        Err(Refusal::Banned) => {
            seed.give_up();
            return Ok(());
        }
        Err(_) => return Err(Failure::Closed),
    };
    let shared = driver.shared().clone();
    let handle = WebHandle::new(&driver.pace);
    driver.add_web_seed(key, handle.clone());
    let mut connection = Connection {
        driver: driver.clone(),
        seed: seed.clone(),
        handle: handle.clone(),
        feeder: Feeder::new(driver.clone(), key),
        kept: None,
        place: None,
        allowance_bytes: 0,
        plain: Vec::new(),
    };
    let result = contain::connection(&shared, connection.serve(key)).await;
    let result = result.unwrap_or(Err(Failure::Panicked));
    handle.close(CloseReason::Stopping);
    connection.feeder.end();
    driver.remove_peer(key);
    driver.call(|core, cx| core.on_disconnected(key, cx));
    result
}

struct Connection {
    driver: Rc<Driver>,
    seed: Rc<Seed>,
    handle: Rc<WebHandle>,
    feeder: Feeder,
    kept: Option<Kept>,
    /// Where redirects led to for a file; asked there again until it fails.
    place: Option<(usize, Place)>,
    /// What may still be received before asking for more, under a rate limit.
    allowance_bytes: usize,
    /// What came, out of its TLS.
    plain: Vec<u8>,
}

impl Connection {
    async fn serve(&mut self, key: PeerKey) -> Result<(), Failure> {
        if self.driver.read(|core| core.is_web_seed_useless(key)) {
            return Ok(());
        }
        loop {
            if self.handle.is_closing() {
                return Err(self.handle.closed());
            }
            let run = self.driver.call(|core, cx| core.next_web_run(key, cx));
            if !run.is_empty() {
                self.fetch(run).await?;
                self.seed.on_success();
                continue;
            }
            tokio::select! {
                () = self.handle.wake.notified() => {}
                () = tokio::time::sleep(IDLE_MAX) => {
                    self.kept = None;
                    if self.driver.read(|core| core.is_web_seed_useless(key)) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Fetches a run of blocks, file by file.
    async fn fetch(&mut self, run: Vec<BlockRef>) -> Result<(), Failure> {
        let disk = self.driver.disk().clone();
        let geometry = disk.layout().geometry().clone();
        let Some(first) = run.first() else {
            return Ok(());
        };
        let offset = geometry.piece_offset(first.piece()) + u64::from(first.begin());
        let length = run.iter().map(|block| u64::from(block.length())).sum();
        self.feeder.begin(run);
        for span in disk.layout().spans(offset, length) {
            if self.handle.is_closing() {
                return Err(self.handle.closed());
            }
            let file = disk.layout().files().get(span.file);
            if file.is_some_and(|file| file.is_pad) {
                self.feeder.feed_zeros(span.length)?;
                continue;
            }
            let result = self.fetch_span(span).await;
            if self.handle.is_closing() {
                return Err(self.handle.closed());
            }
            if let Err(failure) = result {
                self.seed.on_file_failure(span.file, &failure);
                return Err(failure);
            }
        }
        Ok(())
    }

    /// One request and its answer.
    async fn fetch_span(&mut self, span: Span) -> Result<(), Failure> {
        let info = &self.driver.metainfo().info;
        let place = match self.place.take() {
            Some((file, place)) if file == span.file => place,
            _ => {
                let url = self.seed.url.url_of(info, span.file);
                Place::new(url.map_err(Failure::NoUrl)?)
            }
        };
        let file_bytes = info
            .files
            .get(span.file)
            .map_or(0, |file| file.length_bytes);
        let part = Part {
            first: span.file_offset,
            bytes: span.length,
            file_bytes,
        };
        let shared = self.driver.shared().clone();
        let family = match shared.families.as_slice() {
            [family] => Some(*family),
            _ => None::<Family>,
        };
        let range = part.first..=part.first + part.bytes - 1;
        trace!(url = %place.url, ?range, "to web seed");
        let (kept, deadline) = (self.kept.take(), self.handle.deadline());
        let http = &shared.trackers.http;
        let asked = http.get_range(&place, range, kept, family, &deadline);
        let answer = asked.await?;
        judge(&answer.head, part, &name_of(info, span.file))?;
        self.take_body(answer, span).await
    }

    async fn take_body(&mut self, mut answer: Answer, span: Span) -> Result<(), Failure> {
        let mut body = Body::new(answer.head.framing, span.length);
        body.take(&answer.early, |data| self.feeder.feed(data))?;
        let mut want = RECV_BYTES_START;
        while !body.is_over() {
            let pace = &self.driver.pace;
            if let Some(bytes) = pace.turn_bytes(Direction::Down)
                && self.allowance_bytes == 0
            {
                let handle = &self.handle;
                let is_closing = || handle.is_closing();
                pace.acquire(Direction::Down, handle.client, bytes, is_closing)
                    .await;
                self.allowance_bytes = usize::try_from(bytes).unwrap_or(RECV_BYTES_START);
            }
            if self.handle.is_closing() {
                return Err(self.handle.closed());
            }
            let deadline = self.handle.deadline();
            deadline
                .readable(answer.stream())
                .await
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::TimedOut => Failure::Silent,
                    _ => Failure::Io(error),
                })?;
            want = self.receive(&mut answer, &mut body, want).await?;
        }
        if answer.head.is_keep_alive && body.is_done() {
            self.place = Some((span.file, answer.place.clone()));
            self.kept = Some(answer.keep());
        }
        Ok(())
    }

    /// Takes what is there; returns how much to make room for next.
    async fn receive(
        &mut self,
        answer: &mut Answer,
        body: &mut Body,
        want: usize,
    ) -> Result<usize, Failure> {
        let shared = self.driver.shared().clone();
        // A limit that was set just now counts from the next receive on.
        let is_limited =
            self.driver.pace.rate(Direction::Down).is_some() && self.allowance_bytes > 0;
        let mut segment = recv_memory(&shared.pool, want);
        loop {
            let room = match is_limited {
                true => segment.len().min(self.allowance_bytes),
                false => segment.len(),
            };
            let (result, back) = answer.stream().recv_now(segment, 0..room).await;
            segment = back;
            let received = match result {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(want),
                Err(error) => return Err(Failure::Io(error)),
            };
            if is_limited {
                self.allowance_bytes -= received;
            }
            let bytes = segment.as_slice().get(..received).unwrap_or_default();
            let (data, is_open) = answer.open(bytes, &mut self.plain)?;
            body.take(data, |data| self.feeder.feed(data))?;
            if !is_open {
                body.on_end()?;
                return Ok(want);
            }
            if body.is_over() || self.handle.is_closing() || received < room {
                return Ok(want);
            }
            if is_limited && self.allowance_bytes == 0 {
                return Ok(want);
            }
            if want < RECV_BYTES_MAX {
                return Ok(RECV_BYTES_MAX.min(4 * want));
            }
        }
    }
}

/// The file as messages name it.
fn name_of(info: &crate::wire::metainfo::Info, file: usize) -> String {
    let path = info.files.get(file).map(|file| file.path.as_slice());
    let elements = path.unwrap_or_default().iter();
    let names: Vec<_> = elements.map(|name| String::from_utf8_lossy(name)).collect();
    let name = match names.is_empty() {
        true => info.name.clone(),
        false => names.join("/"),
    };
    name.escape_debug().take(200).collect()
}
