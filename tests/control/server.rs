//! The server on real sockets, and what every test of it needs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use gyre::daemon::control::guard::Credentials;
use gyre::daemon::control::qbt::Qbt;
use gyre::daemon::control::roots::Roots;
use gyre::daemon::control::rpc::Rpc;
use gyre::daemon::control::server::{Access, Shared, serve_tcp, serve_unix};
use gyre::daemon::control::web_ui::WebUi;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;

use crate::fake::{Fake, torrent};

pub const PASSWORD: &str = "sesame";
pub const SESSION_ID: &str = "id-of-the-session";
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A server on its own thread until it is dropped.
pub struct Server {
    pub addr: SocketAddr,
    pub socket: PathBuf,
    pub downloads: tempfile::TempDir,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(torrents: u64) -> Server {
        Server::with_page(torrents, None)
    }

    /// One whose torrents are known once something is sent.
    pub fn starting(torrents: u64) -> (Server, oneshot::Sender<()>) {
        let (tell, known) = oneshot::channel();
        (Server::with(torrents, None, Some(known)), tell)
    }

    /// The same with a folder in place of the page.
    pub fn with_page(torrents: u64, web_ui: Option<WebUi>) -> Server {
        Server::with(torrents, web_ui, None)
    }

    fn with(torrents: u64, web_ui: Option<WebUi>, known: Option<oneshot::Receiver<()>>) -> Server {
        let downloads = tempfile::tempdir().unwrap();
        let path = downloads.path().to_owned();
        let socket = path.join("s");
        let (told, tell) = std::sync::mpsc::channel();
        let (end, on_end) = oneshot::channel::<()>();
        let at = socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let fake = Rc::new(Fake::with((1..=torrents).map(torrent), &path));
                if let Some(known) = known {
                    let reading = fake.unknown.clone().lock_owned().await;
                    tokio::task::spawn_local(async move {
                        let _ = known.await;
                        drop(reading);
                    });
                }
                let rpc = Rpc::new(fake, Roots::default(), SESSION_ID.into());
                let access = Access {
                    credentials: Credentials {
                        user: None,
                        password: PASSWORD.into(),
                    },
                    host_names: vec!["box.example".into()],
                };
                let shared = Shared::new(rpc, Qbt::default(), access, web_ui);
                let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                let unix = UnixListener::bind(&at).unwrap();
                told.send(tcp.local_addr().unwrap()).unwrap();
                tokio::task::spawn_local(serve_tcp(shared.clone(), tcp));
                tokio::task::spawn_local(serve_unix(shared, unix));
                let _ = on_end.await;
            });
        });
        Server {
            addr: tell.recv_timeout(PATIENCE).unwrap(),
            socket,
            downloads,
            end: Some(end),
            thread: Some(thread),
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The answer to a request over the unix socket.
    pub fn ask_as_owner(&self) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = json!({ "method": "session-stats" }).to_string();
        let request = format!(
            "POST /transmission/rpc HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends it on a connection of its own and reads until the end.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(request);
        read_all(stream)
    }

    /// A request with the right host and password, and these lines besides.
    pub fn ask(&self, first: &str, lines: &str, body: &str) -> String {
        let basic = "Basic eDpzZXNhbWU=";
        let request = format!(
            "{first} HTTP/1.1\r\nHost: {}\r\nAuthorization: {basic}\r\nConnection: close\r\nContent-Length: {}\r\n{lines}\r\n{body}",
            self.addr,
            body.len()
        );
        self.raw(request.as_bytes())
    }

    pub fn call(&self, method: &str, arguments: &Value) -> Value {
        let body = json!({ "method": method, "arguments": arguments }).to_string();
        let id = format!("X-Transmission-Session-Id: {SESSION_ID}\r\n");
        let answer = self.ask("POST /transmission/rpc", &id, &body);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status of an answer.
pub fn status(answer: &str) -> u16 {
    let word = answer.split(' ').nth(1).unwrap_or_default();
    word.parse().unwrap_or(0)
}

#[test]
fn one_connection_carries_many_requests_in_any_framing() {
    let server = Server::start(2);
    let mut stream = server.connect();
    let body = json!({ "method": "session-stats" }).to_string();
    let head = format!(
        "POST /transmission/rpc HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {PASSWORD}\r\nX-Transmission-Session-Id: {SESSION_ID}\r\n"
    );
    let plain = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &body[..5],
        body.len() - 5,
        &body[5..]
    );
    let waits = format!(
        "{head}Expect: 100-continue\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    // The first two at once, the second byte by byte over the border.
    stream.write_all(plain.as_bytes()).unwrap();
    for byte in chunked.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.write_all(waits.as_bytes()).unwrap();
    let all = read_all(stream);
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 3, "{all}");
    assert_eq!(all.matches("\"torrentCount\":2").count(), 3, "{all}");
    assert_eq!(all.matches("100 Continue").count(), 1, "{all}");
}

#[test]
fn the_owner_asks_without_a_password_over_the_unix_socket() {
    let server = Server::start(3);
    let answer = server.ask_as_owner();
    assert!(answer.contains("\"torrentCount\":3"), "{answer}");
}

/// Events from the stream until one has been seen that ends it.
fn events(
    stream: TcpStream,
    mut is_last: impl FnMut(&str, &Value) -> bool,
) -> Vec<(String, Value)> {
    use std::io::BufRead;
    let mut seen = Vec::new();
    let mut name = String::new();
    for line in std::io::BufReader::new(stream).lines() {
        let line = line.unwrap();
        if let Some(word) = line.strip_prefix("event: ") {
            name = word.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            let value: Value = serde_json::from_str(data).unwrap();
            let ends = is_last(&name, &value);
            seen.push((name.clone(), value));
            if ends {
                break;
            }
        }
    }
    seen
}

#[test]
fn the_live_table_begins_with_all_in_parts_and_goes_on_with_what_changed() {
    let server = Server::start(4_500);
    let mut stream = server.connect();
    let request = format!(
        "GET /api/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {PASSWORD}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut is_removed = false;
    let seen = events(stream, |name, value| {
        if name == "delta" && !is_removed {
            is_removed = true;
            server.call("torrent-stop", &json!({ "ids": [7] }));
            server.call("torrent-remove", &json!({ "ids": [9] }));
        }
        name == "delta" && value["removed"] == json!([9])
    });
    let all: Vec<&Value> = seen
        .iter()
        .filter(|(name, _)| name == "all")
        .map(|(_, v)| v)
        .collect();
    let sizes: Vec<usize> = all
        .iter()
        .map(|one| one["torrents"].as_array().unwrap().len())
        .collect();
    assert_eq!(sizes, [2_000, 2_000, 500]);
    let more: Vec<&Value> = all.iter().map(|one| &one["more"]).collect();
    assert_eq!(more, [&json!(true), &json!(true), &json!(false)]);
    let columns = all[0]["columns"].as_array().unwrap();
    assert_eq!(
        columns.len(),
        all[0]["torrents"][0].as_array().unwrap().len()
    );
    assert_eq!(columns[16], "queue_position");
    assert_eq!(columns[17], "moved_share");
    assert_eq!(all[0]["torrents"][0][17].as_f64(), Some(-1.0));
    assert!(all[0]["session"]["rate_up"].is_u64());
    let changed = seen
        .iter()
        .flat_map(|(_, value)| value["changed"].as_array().cloned().unwrap_or_default());
    let changed: Vec<Value> = changed.collect();
    assert!(
        changed.iter().all(|row| row[0] == 7 && row[3] == 0),
        "{changed:?}"
    );
    assert!(!changed.is_empty());
}

#[test]
fn metrics_are_text_that_prometheus_reads() {
    let server = Server::start(3);
    let answer = server.ask("GET /metrics", "", "");
    assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    assert!(
        answer.contains("\ngyre_torrents{status=\"seeding\"} 3\n"),
        "{answer}"
    );
    let tracker = "\ngyre_tracker_uploaded_bytes{tracker=\"tracker.example.org\"} 6000\n";
    assert!(answer.contains(tracker), "{answer}");
}

#[test]
fn a_torrent_counts_once_for_a_label_that_it_has_twice() {
    let server = Server::start(1);
    let labels = json!({ "ids": 1, "labels": ["x", "y", "x"] });
    let set = server.call("torrent-set", &labels);
    assert_eq!(set["result"], "success", "{set}");
    let answer = server.ask("GET /metrics", "", "");
    for line in [
        "\ngyre_label_torrents{label=\"x\"} 1\n",
        "\ngyre_label_uploaded_bytes{label=\"x\"} 1000\n",
    ] {
        assert!(answer.contains(line), "{answer}");
    }
}

#[test]
fn the_page_has_its_headers_and_is_not_sent_twice() {
    let server = Server::start(0);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        server.addr
    );
    let answer = server.raw(request.as_bytes());
    assert_eq!(status(&answer), 200);
    for header in [
        "Content-Security-Policy: default-src 'self'",
        "X-Content-Type-Options: nosniff",
        "X-Frame-Options: DENY",
    ] {
        assert!(answer.contains(header), "{answer}");
    }
    let etag = answer
        .lines()
        .find_map(|line| line.strip_prefix("ETag: "))
        .unwrap();
    let again = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nIf-None-Match: {etag}\r\nConnection: close\r\n\r\n",
        server.addr
    );
    assert_eq!(status(&server.raw(again.as_bytes())), 304);
}
