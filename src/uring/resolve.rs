//! Host names to addresses on threads of their own (layer 4): the system's resolver may hang.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

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
        Resolver::with_lookup(|host, port| {
            let addrs = (host, port).to_socket_addrs()?;
            Ok(addrs.take(ADDRS_MAX).collect())
        })
    }

    /// Starts the threads with another way of looking a host up; it may hang like the system's.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn with_lookup(
        lookup: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
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
        let answer = lookup(&question.host, question.port);
        let _ = question.answer.send(answer);
    }
}
