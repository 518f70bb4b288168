//! A client of a daemon's control socket, and a daemon for it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Gyre;
use super::program::{PATIENCE, clean, command};
use super::sample::text;

/// Words of `status`.
pub const STOPPED: u64 = 0;
pub const WAITS_FOR_CHECK: u64 = 1;
pub const CHECKS: u64 = 2;
pub const DOWNLOAD_WAITS: u64 = 3;
pub const DOWNLOADS: u64 = 4;
pub const SEED_WAITS: u64 = 5;
pub const SEEDS: u64 = 6;

/// What is at that path, as text.
pub fn get(socket: &Path, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n");
    exchange(socket, &head)
}

/// Sends a request; the body of its answer.
fn exchange(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    body.to_owned()
}

/// Gives a method of the Transmission RPC; its answer, or its words of refusal.
pub fn ask(socket: &Path, method: &str, arguments: Value) -> Result<Value, String> {
    let body = json!({ "method": method, "arguments": arguments }).to_string();
    let length = body.len();
    let request = format!(
        "POST /transmission/rpc HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let body = exchange(socket, &request);
    let mut answer: Value = serde_json::from_str(&body).unwrap();
    match answer["result"].as_str() {
        Some("success") => Ok(answer["arguments"].take()),
        words => Err(words.unwrap_or_default().to_owned()),
    }
}

/// A running daemon that is asked over its socket, killed when dropped.
pub struct RpcDaemon {
    pub gyre: Gyre,
    socket: PathBuf,
    pub addr: SocketAddr,
}

impl RpcDaemon {
    pub fn start(state: &Path, more: &[&str]) -> RpcDaemon {
        RpcDaemon::start_with(command(), state, more)
    }

    /// One that may have so many files open.
    pub fn start_limited(handles: u32, state: &Path, more: &[&str]) -> RpcDaemon {
        let mut program = clean(Command::new("prlimit"));
        program.arg(format!("--nofile={handles}"));
        program.arg(command().get_program());
        RpcDaemon::start_with(program, state, more)
    }

    fn start_with(mut program: Command, state: &Path, more: &[&str]) -> RpcDaemon {
        program.args(["daemon", "--lines", "--port", "0", "--bind", "127.0.0.1"]);
        program.args(["--port-map", "false", "--dht", "false", "--lsd", "false"]);
        program.args(["--api", "off", "--buffers", "4MiB"]);
        program.args(["--announce-interval-min", "1s", "--state"]);
        program.arg(state).args(more);
        program.args(["--api-roots", "/"]);
        program.stdin(std::process::Stdio::null());
        let mut gyre = Gyre::spawn(program);
        let addr = gyre.listening();
        RpcDaemon {
            gyre,
            socket: state.join("control.sock"),
            addr,
        }
    }

    pub fn ask(&self, method: &str, arguments: Value) -> Result<Value, String> {
        ask(&self.socket, method, arguments)
    }

    /// What is at that path, as text.
    pub fn text(&self, path: &str) -> String {
        get(&self.socket, path)
    }

    pub fn call(&self, method: &str, arguments: Value) -> Value {
        let answer = self.ask(method, arguments.clone());
        answer.unwrap_or_else(|words| panic!("{method} {arguments}: {words}"))
    }

    /// Adds a torrent whose data lies in `folder`; its id.
    pub fn add(&self, torrent: &Path, folder: &Path, paused: bool) -> u64 {
        let added = self.call(
            "torrent-add",
            json!({ "filename": text(torrent), "download-dir": text(folder), "paused": paused }),
        );
        added["torrent-added"]["id"]
            .as_u64()
            .unwrap_or_else(|| panic!("{added}"))
    }

    pub fn set(&self, id: u64, mut arguments: Value) {
        arguments["ids"] = json!([id]);
        self.call("torrent-set", arguments);
    }

    pub fn get(&self, id: u64, field: &str) -> Value {
        let got = self.call("torrent-get", json!({ "ids": [id], "fields": [field] }));
        got["torrents"][0][field].clone()
    }

    pub fn session(&self, field: &str) -> Value {
        self.call("session-get", json!({ "fields": [field] }))[field].clone()
    }

    #[track_caller]
    pub fn wait(&self, id: u64, field: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let value = self.get(id, field);
            if is_it(&value) {
                return value;
            }
            assert!(Instant::now() < end, "{field} of {id} is {value}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub fn wait_status(&self, id: u64, status: u64) {
        self.wait(id, "status", |value| *value == status);
    }

    pub fn terminate(mut self) {
        self.gyre.signal(Signal::SIGTERM);
        assert_eq!(self.gyre.wait_exit(PATIENCE), 0);
    }
}
