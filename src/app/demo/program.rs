//! One program of the demo's swarm: this very binary as a child process that reports as JSON. Layer 7.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tracing::level_filters::LevelFilter;

use crate::app::exit::{Exit, Failure, io_cause};
use crate::app::output;

/// Who is who.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Tracker,
    Seeder,
    Leecher1,
    Leecher2,
    /// `gyre create` and `gyre verify`, which do their work and leave.
    Helper(&'static str),
}

impl Role {
    pub const fn label(self) -> &'static str {
        match self {
            Role::Tracker => "tracker",
            Role::Seeder => "seeder",
            Role::Leecher1 => "leecher 1",
            Role::Leecher2 => "leecher 2",
            Role::Helper(verb) => verb,
        }
    }

    /// As it is called in a sentence.
    fn name(self) -> String {
        match self {
            Role::Tracker | Role::Seeder => format!("the {}", self.label()),
            Role::Leecher1 | Role::Leecher2 => self.label().to_owned(),
            Role::Helper(verb) => format!("`gyre {verb}`"),
        }
    }
}

/// What a program says.
pub struct News {
    pub from: Role,
    pub what: What,
}

pub enum What {
    Said(Value),
    /// Its stdout is closed: it has ended.
    Ended,
}

/// A running program, killed when dropped.
pub struct Program {
    role: Role,
    child: Child,
    complaint: Arc<Mutex<Complaint>>,
    readers: Vec<JoinHandle<()>>,
}

/// The last error it reported, or else the first one on its stderr.
#[derive(Default)]
struct Complaint {
    message: Option<String>,
    hint: String,
}

impl Program {
    /// Starts it with `--json`; what it says goes to `news`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        role: Role,
        arguments: &[OsString],
        news: Sender<News>,
    ) -> Result<Program, Failure> {
        let failed = |error: std::io::Error| {
            let message = format!("cannot start {}: {}", role.name(), io_cause(&error));
            Failure::new(
                message,
                "check that the program has not been moved meanwhile",
            )
        };
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(arguments).arg("--json");
        let verbosity = verbosity();
        if verbosity > 0 {
            command.arg(format!("-{}", "v".repeat(verbosity)));
        }
        // Nothing the caller has set for commands of his own may change what the demo shows.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_lowercase();
            if text.starts_with("gyre_") || text.ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let complaint = Arc::new(Mutex::new(Complaint::default()));
        let mut readers = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let complaint = complaint.clone();
            readers.push(thread::spawn(move || read_stderr(role, stderr, &complaint)));
        }
        if let Some(stdout) = child.stdout.take() {
            let complaint = complaint.clone();
            readers.push(thread::spawn(move || {
                read_stdout(role, stdout, &complaint, &news)
            }));
        }
        Ok(Program {
            role,
            child,
            complaint,
            readers,
        })
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Asks it to end in order.
    pub fn stop(&self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // The only error is that it has ended already; it is not waited for yet, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Takes the exit code of a program that has closed its stdout, 128 plus the signal if one killed it.
    pub fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        match self.child.wait() {
            Ok(status) => status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            Err(_) => -1,
        }
    }

    /// Why it ended when it should not have: its own words where it left any.
    pub fn failure(&mut self) -> Failure {
        let name = self.role.name();
        let code = self.wait();
        for reader in self.readers.drain(..) {
            // A reader that panicked has read what it could.
            let _ = reader.join();
        }
        let complaint = lock(&self.complaint);
        match &complaint.message {
            Some(message) => Failure::new(format!("{name}: {message}"), &complaint.hint),
            None => {
                let how = match code {
                    129.. => format!("was killed by signal {}", code - 128),
                    _ => format!("ended with exit code {code}"),
                };
                let hint = "run the demo with -v to see what it was doing";
                Failure::new(format!("{name} {how}"), hint)
            }
        }
    }

    /// True if it ended as one that was asked to.
    pub fn has_stopped_cleanly(&mut self) -> bool {
        self.wait() == i32::from(Exit::Terminated.code())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both only fail when it has ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many `-v` this command was given, for its children.
fn verbosity() -> usize {
    match LevelFilter::current() {
        LevelFilter::INFO => 1,
        LevelFilter::DEBUG => 2,
        LevelFilter::TRACE => 3,
        _ => 0,
    }
}

fn read_stdout(role: Role, stdout: impl Read, complaint: &Mutex<Complaint>, news: &Sender<News>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let Ok(value) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if value["event"] == "error" {
            let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
            *lock(complaint) = Complaint {
                message: Some(text("message")),
                hint: text("hint"),
            };
        }
        let what = What::Said(value);
        if news.send(News { from: role, what }).is_err() {
            return; // the demo is over
        }
    }
    let what = What::Ended;
    let _ = news.send(News { from: role, what });
}

fn read_stderr(role: Role, stderr: impl Read, complaint: &Mutex<Complaint>) {
    let is_shown = verbosity() > 0;
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if is_shown {
            output::stderr_line(&format!("{}: {line}", role.label()));
        }
        let mut complaint = lock(complaint);
        if let Some(message) = line.strip_prefix("error: ") {
            complaint.message.get_or_insert_with(|| message.to_owned());
        } else if let Some(hint) = line.strip_prefix("hint: ")
            && complaint.hint.is_empty()
        {
            hint.clone_into(&mut complaint.hint);
        }
    }
}

fn lock(complaint: &Mutex<Complaint>) -> std::sync::MutexGuard<'_, Complaint> {
    complaint.lock().unwrap_or_else(PoisonError::into_inner)
}
