//! Host names to addresses on threads of their own (layer 4): the system's resolver may hang, and so may `stub`.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use super::socket::SocketOptions;
use super::stub::Stub;

/// Names that may hang at once before others have to wait.
const THREADS: usize = 4;
/// Names that may wait: more trackers than that are asked later.
const QUEUE_MAX: usize = 256;
/// Addresses taken of one name.
const ADDRS_MAX: usize = 16;

type Answer = io::Result<Vec<SocketAddr>>;
type Lookup = dyn Fn(&str, u16) -> Answer + Send + Sync;

struct Question {
    host: String,
    port: u16,
    answer: oneshot::Sender<Answer>,
}

/// Handle of the resolver threads; clones share them. They end after the last handle, when the system lets them.
#[derive(Clone)]
pub struct Resolver {
    questions: mpsc::SyncSender<Question>,
}

impl Resolver {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn new() -> io::Result<Resolver> {
        Resolver::with_lookup(|host, port| look_up(host, port, None))
    }

    /// Starts the threads; names go out as everything else does with these options, or not at all.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn bound(options: &SocketOptions) -> io::Result<Resolver> {
        let is_bound = options.bind.is_some() || options.bind_device.is_some();
        let options = options.clone();
        Resolver::with_lookup(move |host, port| {
            // Each time anew: who brings an interface up may name other servers than the last time.
            let stub = is_bound.then(|| Stub::from_system(&options));
            look_up(host, port, stub.as_ref())
        })
    }

    /// Starts the threads with another way of looking a host up; it may hang like the system's.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn with_lookup(
        lookup: impl Fn(&str, u16) -> Answer + Send + Sync + 'static,
    ) -> io::Result<Resolver> {
        let lookup: Arc<Lookup> = Arc::new(lookup);
        let (questions, queue) = mpsc::sync_channel(QUEUE_MAX);
        let queue = Arc::new(Mutex::new(queue));
        for i in 0..THREADS {
            let (queue, lookup) = (Arc::clone(&queue), Arc::clone(&lookup));
            std::thread::Builder::new()
                .name(format!("resolve-{i}"))
                .spawn(move || work(&queue, &*lookup))?;
        }
        Ok(Resolver { questions })
    }

    /// Addresses of a host name or a literal address (IPv6 with or without brackets), in the order the
    /// system prefers, at most 16.
    ///
    /// # Errors
    ///
    /// As getaddrinfo(3); TimedOut; WouldBlock when too many questions wait.
    pub async fn resolve(&self, host: &str, port: u16, timeout: Duration) -> Answer {
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = literal.unwrap_or(host);
        if let Ok(ip) = host.parse() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let (answer, wait) = oneshot::channel();
        let question = Question {
            host: host.to_owned(),
            port,
            answer,
        };
        if self.questions.try_send(question).is_err() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match tokio::time::timeout(timeout, wait).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(io::Error::other("resolver thread ended")),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Question>>, lookup: &Lookup) {
    loop {
        let question = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(question) = question else {
            return;
        };
        // Nobody waits any more: do not spend a hang on it.
        if question.answer.is_closed() {
            continue;
        }
        // A panic is one of this name alone, and takes no thread.
        let asked = || lookup(&question.host, question.port);
        let answer = catch_unwind(AssertUnwindSafe(asked))
            .unwrap_or_else(|_| Err(io::Error::other("an error in the program")));
        let _ = question.answer.send(answer);
    }
}

fn look_up(host: &str, port: u16, stub: Option<&Stub>) -> Answer {
    match stub {
        None => Ok((host, port).to_socket_addrs()?.take(ADDRS_MAX).collect()),
        Some(stub) => {
            let ips = stub.look_up(host)?.into_iter().take(ADDRS_MAX);
            Ok(ips.map(|ip| SocketAddr::new(ip, port)).collect())
        }
    }
}
