//! Trouble: what a user or a machine does wrong is said in a line with a hint and the right exit code; what may pass is
//! waited out; nothing is lost (HOSTILE.md, "The machine").

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod disk;
mod finish;
mod handles;
mod hang;
mod odd_files;
mod privilege;
mod records;
mod sharing;
mod start;
mod stop;
mod swarm;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Gyre, Sample, program, sample::text};

/// What a command came to.
struct Ended {
    code: i32,
    stderr: String,
}

/// Runs a command that must end by itself.
fn run_to_end(mut command: Command) -> Ended {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if is_done.recv_timeout(program::PATIENCE).is_err() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    watch.join().unwrap();
    Ended {
        code: output.status.code().unwrap_or(-1),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The command must fail with one `error:` and one `hint:` line on stderr, and with this exit code.
#[track_caller]
fn assert_fails(command: Command, code: i32, error: &str, hint: &str) {
    let ended = run_to_end(command);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let [first, second] = lines[..] else {
        panic!("not two lines, exit code {}: {}", ended.code, ended.stderr);
    };
    assert!(
        first.starts_with("error: ") && first.contains(error),
        "{first}"
    );
    assert!(
        second.starts_with("hint: ") && second.contains(hint),
        "{second}"
    );
    assert_eq!(ended.code, code, "{first}");
}

/// A download of the sample that talks to nobody unless told to.
fn download(sample: &Sample, out: &Path, more: &[&str]) -> Command {
    let mut command = program::command();
    command.args(["download", &text(&sample.torrent), "-o", &text(out)]);
    command.args(["--state", &text(&sample.dir("state")), "--port", "0"]);
    command.args(more);
    command
}

fn seed(sample: &Sample, data: &Path, more: &[&str]) -> Command {
    let mut command = program::command();
    command.args(["seed", &text(&sample.torrent), "--data", &text(data)]);
    command.args(["--state", &text(&sample.dir("state")), "--port", "0"]);
    command.args(more);
    command
}

fn start(mut command: Command) -> Gyre {
    command.arg("--json");
    Gyre::spawn(command)
}

/// Waits until `is_so`, looking every few milliseconds.
#[track_caller]
fn eventually(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
