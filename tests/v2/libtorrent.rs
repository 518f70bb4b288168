//! libtorrent for Python, run as a script.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/v2/lt.py")
}

fn python(arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-W", "ignore"]).arg(script()).args(arguments);
    command
}

/// Whether there is one; tells of the test that is left out.
pub fn is_here() -> bool {
    let asked = Command::new("python3")
        .args(["-c", "import libtorrent"])
        .output();
    let is_here = asked.is_ok_and(|output| output.status.success());
    if !is_here {
        println!("skipped: python3 has no libtorrent");
    }
    is_here
}

/// What it prints, its end included in the wait.
pub fn run(arguments: &[&str]) -> String {
    let output = python(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A running peer; ends when dropped.
pub struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
    pub port: u64,
}

impl Peer {
    /// Shares a torrent or magnet link in this folder; `other` is a peer to dial.
    pub fn start(source: &str, folder: &str, other: Option<&str>) -> Peer {
        let mut arguments = vec!["peer", source, folder];
        arguments.extend(other);
        let mut command = python(&arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Peer {
            child,
            lines,
            port: 0,
        };
        peer.port = peer.next()["port"].as_u64().unwrap();
        peer
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until it has all.
    pub fn has_all(&mut self) {
        assert_eq!(self.next()["complete"], true);
    }

    /// Waits until it has all and has written it.
    pub fn complete(mut self) {
        self.has_all();
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
