//! A web server in the test: serves a folder with ranges and keep-alive, or whatever the test has it answer instead.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::sample::text;
use super::{Gyre, Sample};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// As it stands in the request line.
    pub target: String,
    /// Of all requests, from 0.
    pub number: usize,
    /// Which connection it came over, from 0.
    pub connection: usize,
    pub range: Option<(u64, u64)>,
    /// All header lines.
    pub headers: Vec<String>,
}

/// Changes the bytes of a file.
pub type Change = Box<dyn Fn(&mut [u8]) + Send>;

/// What is done about a request.
pub enum Reply {
    /// The file or the part of it that was asked for; 404 when there is none.
    File,
    /// That file, whatever was asked for.
    FileAt(String),
    /// The whole file with status 200, as servers without ranges do.
    Whole,
    /// The same as `File`, but for these bytes of the file.
    Changed(Change),
    /// A status with these header lines and no body; the connection stays open.
    Status(&'static str, Vec<String>),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// Whatever this writes, then the end of the connection.
    Write(Box<dyn FnOnce(&mut TcpStream) + Send>),
    /// Nothing, until the other side closes.
    Silence,
}

/// A download of the sample, from these web seeds and whatever else the arguments name.
pub fn start(sample: &Sample, urls: &[String], more: &[&str]) -> Gyre {
    let torrent = sample.with_web_seeds(urls);
    let mut arguments = vec!["download".to_owned(), text(&torrent)];
    arguments.extend(["-o".to_owned(), text(&sample.dir("out"))]);
    arguments.extend(["--state".to_owned(), text(&sample.dir("state"))]);
    arguments.extend(["--port", "0", "--no-trackers", "--no-lsd"].map(String::from));
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Gyre::start(&arguments)
}

/// Waits for a good end and returns the last figures.
pub fn finish(sample: &Sample, gyre: &mut Gyre) -> Value {
    gyre.event("complete");
    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&sample.dir("out")), "the copy differs");
    let mut events = gyre.seen().iter().rev();
    let last = events.find(|event| event["event"] == "progress");
    last.unwrap().clone()
}

type Answer = dyn Fn(&Ask) -> Reply + Send + Sync;

/// Runs as long as the test.
pub struct WebServer {
    pub addr: SocketAddr,
    asks: Arc<Mutex<Vec<Ask>>>,
    connections: Arc<AtomicUsize>,
}

impl WebServer {
    /// Serves the folder well.
    pub fn good(root: &Path) -> WebServer {
        WebServer::start(root, |_| Reply::File)
    }

    /// Serves the folder, and answers as it is told.
    pub fn start(root: &Path, answer: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> WebServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (asks, connections) = (Arc::default(), Arc::default());
        let server = WebServer {
            addr,
            asks: Arc::clone(&asks),
            connections: Arc::clone(&connections),
        };
        let (root, answer): (PathBuf, Arc<Answer>) = (root.to_owned(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let (root, answer, asks) = (root.clone(), answer.clone(), asks.clone());
                std::thread::spawn(move || {
                    let _ = serve(&stream, number, &root, &*answer, &asks);
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        server
    }

    /// The URL of the folder, or of something below it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.addr)
    }

    /// All requests so far.
    pub fn asks(&self) -> Vec<Ask> {
        self.asks.lock().unwrap().clone()
    }

    /// Connections taken so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn serve(
    stream: &TcpStream,
    connection: usize,
    root: &Path,
    answer: &Answer,
    asks: &Mutex<Vec<Ask>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut out = stream;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let target = lines[0].split(' ').nth(1).unwrap_or("/").to_owned();
        let range = lines.iter().find_map(|line| {
            let value = line.strip_prefix("Range: bytes=")?;
            let (first, last) = value.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        let ask = {
            let mut asks = asks.lock().unwrap();
            let ask = Ask {
                target,
                number: asks.len(),
                connection,
                range,
                headers: lines.split_off(1),
            };
            asks.push(ask.clone());
            ask
        };
        match answer(&ask) {
            Reply::File => send_file(&mut out, root, &ask, &|_| {})?,
            Reply::FileAt(target) => send_file(&mut out, root, &Ask { target, ..ask }, &|_| {})?,
            Reply::Whole => send_file(&mut out, root, &Ask { range: None, ..ask }, &|_| {})?,
            Reply::Changed(change) => send_file(&mut out, root, &ask, &*change)?,
            Reply::Status(status, headers) => {
                let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
                write!(
                    out,
                    "HTTP/1.1 {status}\r\nContent-Length: 0\r\n{headers}\r\n"
                )?;
            }
            Reply::Raw(bytes) => return out.write_all(&bytes),
            Reply::Write(write) => {
                write(&mut stream.try_clone()?);
                return Ok(());
            }
            Reply::Silence => {
                let _ = reader.read_line(&mut String::new());
                return Ok(());
            }
        }
    }
}

/// The file that a target names, decoded, below the root.
pub fn file_of(root: &Path, target: &str) -> PathBuf {
    let path = target.split('?').next().unwrap_or_default();
    let decoded = gyre::wire::url::percent_decode(path.trim_start_matches('/').as_bytes());
    let path = PathBuf::from(String::from_utf8(decoded).unwrap_or_default());
    let is_inside = |part: Component<'_>| matches!(part, Component::Normal(_));
    match path.components().all(is_inside) {
        true => root.join(path),
        false => root.join("nowhere"),
    }
}

fn send_file(
    out: &mut impl Write,
    root: &Path,
    ask: &Ask,
    change: &dyn Fn(&mut [u8]),
) -> std::io::Result<()> {
    let Ok(mut bytes) = std::fs::read(file_of(root, &ask.target)) else {
        return out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno");
    };
    change(&mut bytes);
    let total = bytes.len() as u64;
    let Some((first, last)) = ask.range else {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")?;
        return out.write_all(&bytes);
    };
    if first >= total {
        return write!(
            out,
            "HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n\r\n"
        );
    }
    let last = last.min(total - 1);
    let part = &bytes[first as usize..=last as usize];
    write!(
        out,
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: {}\r\n\r\n",
        part.len()
    )?;
    out.write_all(part)
}
