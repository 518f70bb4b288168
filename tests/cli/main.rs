//! The command line as a person or a script meets it: words, exit codes, events, options, one by one.

#[path = "../support/mod.rs"]
mod support;

mod download;
mod network;
mod seed;
mod tools;
mod view;
mod words;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use serde_json::Value;
use support::Sample;
use support::program::{self, PATIENCE};
use support::sample::text;

/// A command that has ended.
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    /// The one object on stdout.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {}", self.stdout))
    }

    /// Message and hint of a failure with this exit code, which must be all that is on stderr.
    fn refusal(&self, code: i32) -> (String, String) {
        assert_eq!(self.code, code, "{}", self.stderr);
        let lines: Vec<&str> = self.stderr.lines().collect();
        let [error, hint] = lines[..] else {
            panic!("not two lines: {}", self.stderr);
        };
        let error = error.strip_prefix("error: ").unwrap();
        let hint = hint.strip_prefix("hint: ").unwrap();
        assert!(!error.is_empty() && !hint.is_empty(), "{}", self.stderr);
        assert!(!self.stderr.contains("os error"), "{}", self.stderr);
        (error.to_owned(), hint.to_owned())
    }
}

/// Runs a command to its end, which must come in time.
fn run(mut command: Command) -> Done {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id();
    let (sender, ended) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(PATIENCE) else {
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        panic!("{command:?} did not end");
    };
    let output = output.unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `gyre` with these arguments.
fn gyre(arguments: &[&str]) -> Done {
    let mut command = program::command();
    command.args(arguments);
    run(command)
}

/// `gyre download` of a sample into a folder, talking to nobody unless told to.
fn download(sample: &Sample, out: &Path, more: &[&str]) -> Vec<String> {
    let (torrent, out) = (text(&sample.torrent), text(out));
    let state = text(&sample.dir("state"));
    let mut arguments = vec!["download", &torrent, "-o", &out, "--state", &state];
    arguments.extend(["--port", "0", "--no-trackers"]);
    arguments.extend(more);
    arguments.into_iter().map(str::to_owned).collect()
}

/// `gyre seed` of a sample's own data.
fn seed(sample: &Sample, more: &[&str]) -> Vec<String> {
    seed_from(sample, &sample.data, more)
}

/// `gyre seed` of data anywhere.
fn seed_from(sample: &Sample, data: &Path, more: &[&str]) -> Vec<String> {
    let (torrent, data) = (text(&sample.torrent), text(data));
    let state = text(&sample.dir("seed-state"));
    let mut arguments = vec!["seed", &torrent, "--data", &data, "--state", &state];
    arguments.extend(["--port", "0", "--no-trackers"]);
    arguments.extend(more);
    arguments.into_iter().map(str::to_owned).collect()
}

/// Runs `gyre` with arguments of [`download`] or [`seed`] to its end.
fn run_all(arguments: &[String]) -> Done {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    gyre(&arguments)
}
