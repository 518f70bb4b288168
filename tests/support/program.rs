//! The `gyre` command as a child process: started with `--json`, its events read as they come.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a test waits for something that should come at once on a machine that may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command with a clean environment.
pub fn command() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_gyre")))
}

/// Takes from a command all variables of the caller that would change what `gyre` does.
pub fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars() {
        if name.starts_with("GYRE_")
            || name.eq_ignore_ascii_case("http_proxy")
            || name == "no_proxy"
        {
            command.env_remove(name);
        }
    }
    // Tests run beside each other with the same samples: peers come from where a test says and from nowhere else.
    command.env("GYRE_NO_LSD", "1");
    // Nor does one ask this machine's gateway for anything; those of port mapping bring their own.
    command.env("GYRE_NO_PORT_MAP", "1");
    // No test speaks to nodes of the world; those of the DHT take it out again and name their own.
    command.env("GYRE_NO_DHT", "1");
    command
}

/// A running `gyre`, killed when dropped.
pub struct Gyre {
    child: Child,
    lines: Receiver<Value>,
    seen: Vec<Value>,
    stderr: Arc<Mutex<String>>,
}

impl Gyre {
    /// Starts it with these arguments and `--json`.
    pub fn start<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Gyre {
        let mut command = command();
        command.args(arguments).arg("--json");
        Gyre::spawn(command)
    }

    /// Starts a prepared command, which must print JSON.
    pub fn spawn(mut command: Command) -> Gyre {
        command.stdin(Stdio::null());
        Gyre::spawn_as_is(command)
    }

    /// The same with a pipe to its stdin.
    pub fn spawn_with_stdin(mut command: Command) -> (Gyre, ChildStdin) {
        command.stdin(Stdio::piped());
        let mut gyre = Gyre::spawn_as_is(command);
        let stdin = gyre.child.stdin.take().unwrap();
        (gyre, stdin)
    }

    fn spawn_as_is(mut command: Command) -> Gyre {
        // Tests that nohup started hand on that SIGHUP is ignored, which the program respects.
        // SAFETY: between fork and exec this calls sigaction(2) and nothing else.
        unsafe {
            command.pre_exec(|| {
                signal(Signal::SIGHUP, SigHandler::SigDfl)?;
                Ok(())
            });
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line)
                    .unwrap_or_else(|_| panic!("stdout is not JSON: {line}"));
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut pipe, shared) = (child.stderr.take().unwrap(), stderr.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                shared
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Gyre {
            child,
            lines,
            seen: Vec::new(),
            stderr,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far on stderr.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Events read so far, in order.
    pub fn seen(&self) -> &[Value] {
        &self.seen
    }

    /// The first event not looked at yet for which `is_it` holds.
    pub fn wait_for(&mut self, what: &str, is_it: impl FnMut(&Value) -> bool) -> Value {
        self.wait_for_within(what, PATIENCE, is_it)
    }

    /// As [`Gyre::wait_for`] with a limit of its own.
    pub fn wait_for_within(
        &mut self,
        what: &str,
        limit: Duration,
        mut is_it: impl FnMut(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(value) => {
                    self.seen.push(value.clone());
                    if is_it(&value) {
                        return value;
                    }
                }
                Err(error) => {
                    let why = match error {
                        RecvTimeoutError::Timeout => "in time",
                        RecvTimeoutError::Disconnected => "before its end",
                    };
                    let last = &self.seen[self.seen.len().saturating_sub(5)..];
                    panic!(
                        "no {what} {why}; last events {last:#?}; stderr: {}",
                        self.stderr()
                    );
                }
            }
        }
    }

    /// The next event; `None` when none comes within the limit, or it has ended.
    pub fn next_within(&mut self, limit: Duration) -> Option<Value> {
        let value = self.lines.recv_timeout(limit).ok()?;
        self.seen.push(value.clone());
        Some(value)
    }

    /// The next event of that name.
    pub fn event(&mut self, name: &str) -> Value {
        self.wait_for(name, |event| event["event"] == name)
    }

    /// Where it listens in IPv4, as an address of the loopback when it listens on all.
    pub fn listening(&mut self) -> SocketAddr {
        let event = self.wait_for("IPv4 listener", |event| {
            event["event"] == "listening"
                && !event["addr"]
                    .as_str()
                    .is_some_and(|addr| addr.starts_with('['))
        });
        let mut addr: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
        if addr.ip().is_unspecified() {
            addr.set_ip([127, 0, 0, 1].into());
        }
        addr
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end; the exit code, or 128 plus the signal that killed it.
    pub fn wait_exit(&mut self, limit: Duration) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                while let Ok(value) = self.lines.recv_timeout(Duration::from_secs(1)) {
                    self.seen.push(value);
                }
                return status
                    .code()
                    .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(
                Instant::now() < deadline,
                "it did not end in time; stderr: {}",
                self.stderr()
            );
            // Keeps the pipe from filling while it ends.
            while let Ok(value) = self.lines.recv_timeout(Duration::from_millis(10)) {
                self.seen.push(value);
            }
        }
    }

    /// User and system time it has used.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = [11, 12]
            .iter()
            .map(|at| fields[*at].parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// File descriptors it has open.
    pub fn open_files(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        open.count()
    }

    /// Anonymous and shared memory resident now, in bytes.
    pub fn anonymous_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let wanted = status
            .lines()
            .filter(|line| line.starts_with("RssAnon:") || line.starts_with("RssShmem:"));
        wanted
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>()
            * 1024
    }
}

impl Drop for Gyre {
    fn drop(&mut self) {
        self.kill9();
    }
}
