//! Programs that are run when a download is complete, or a torrent has reached the goal of a policy. Layer 6.
//!
//! Each is named by a list of arguments in the settings file alone, never by a shell's sentence: names of torrents reach it as
//! values of variables. It gets no file of ours, no variable beyond a few, and a limited time; what it says goes to the log.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::{Semaphore, mpsc};
use tracing::{info, warn};

use super::handle::{Control, Listed};
use super::relocate::off_thread;
use crate::base::InfoHash;
use crate::uring::process;

/// Programs that run at once; others wait for their turn.
const AT_ONCE_MAX: usize = 4;
/// Programs that wait for their turn; who has more to be run at once hears of the rest in the log.
pub const WAITING_MAX: usize = 4_096;
/// Lines of a program that reach the log, and bytes of one.
const LINES_MAX: usize = 64;
const LINE_BYTES_MAX: u64 = 1_024;
/// Between two looks at whether it has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Variables of the daemon that the program gets too.
const KEPT: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR"];

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// It is killed after this time, with all it started.
    pub time_limit: Duration,
}

/// A torrent that a program is to be run for.
#[derive(Clone, Debug)]
pub struct Due {
    pub info_hash: InfoHash,
    pub hook: Hook,
    /// The policy whose goal it has reached; `None` when its download is complete.
    pub policy: Option<String>,
}

/// Runs what is due until the daemon ends.
pub async fn run(control: Control, mut dues: mpsc::Receiver<Due>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE_MAX));
    while let Some(due) = dues.recv().await {
        let Some(listed) = control.torrent(due.info_hash) else {
            continue;
        };
        let Ok(turn) = turns.clone().acquire_owned().await else {
            return;
        };
        tokio::spawn(async move {
            let _turn = turn;
            off_thread(move || run_one(&due, &listed)).await;
        });
    }
    std::future::pending().await
}

/// What the program is told.
fn variables(listed: &Listed, policy: Option<&String>) -> Vec<(&'static str, String)> {
    let row = &listed.row;
    let variables = [
        ("GYRE_NAME", row.name.clone()),
        ("GYRE_INFO_HASH", row.info_hash.to_string()),
        ("GYRE_FOLDER", row.folder.to_string_lossy().into_owned()),
        ("GYRE_LABELS", row.labels.join(",")),
        ("GYRE_BYTES", row.wanted_bytes.to_string()),
    ];
    let policy = policy.map(|name| ("GYRE_POLICY", name.clone()));
    // No variable can hold a zero byte.
    let plain = variables.into_iter().chain(policy);
    plain
        .map(|(name, value)| (name, value.replace('\0', "_")))
        .collect()
}

fn run_one(due: &Due, listed: &Listed) {
    let (hook, info_hash) = (&due.hook, due.info_hash);
    let program = hook.argv.first().map(String::as_str).unwrap_or_default();
    let what = match &due.policy {
        Some(name) => format!("the hook of policy {name:?}"),
        None => "on-complete".to_owned(),
    };
    match run_limited(hook, variables(listed, due.policy.as_ref())) {
        Ok((Some(status), lines)) => {
            for line in lines {
                info!(%info_hash, program, "{line:?}");
            }
            match status.success() {
                true => info!(%info_hash, program, "{what} has run"),
                false => warn!(%info_hash, program, "{what} ended badly: {status}"),
            }
        }
        Ok((None, lines)) => {
            for line in lines {
                info!(%info_hash, program, "{line:?}");
            }
            let limit = hook.time_limit;
            warn!(%info_hash, program, "{what} took longer than {limit:?} and was killed");
        }
        Err(error) => warn!(%info_hash, program, %error, "{what} cannot be run"),
    }
}

/// Its end, or `None` when it had to be killed, and what it said.
fn run_limited(
    hook: &Hook,
    variables: Vec<(&'static str, String)>,
) -> io::Result<(Option<ExitStatus>, Vec<String>)> {
    let (program, arguments) = hook.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (said, pipe) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    let kept = KEPT
        .iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.envs(kept).envs(variables);
    command.stdin(Stdio::null());
    command.stdout(pipe.try_clone()?).stderr(pipe);
    command.process_group(0);
    process::close_inherited(&mut command);
    let mut child = command.spawn()?;
    // Our ends of the pipe: with them open it would never end.
    drop(command);
    let reader = std::thread::Builder::new().name("gyre-hook".into());
    let reader = reader.spawn(move || lines(said));
    let until = Instant::now() + hook.time_limit;
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() >= until => break None,
            None => std::thread::sleep(LOOK_INTERVAL),
        }
    };
    // What it left running keeps the pipe open, and its time is over too.
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    if ended.is_none() {
        child.wait()?;
    }
    let said = reader?.join().unwrap_or_default();
    Ok((ended, said))
}

/// The first lines, each cut; the rest is read and forgotten.
fn lines(said: impl Read) -> Vec<String> {
    let mut said = BufReader::new(said);
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        match said
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return lines,
            Ok(_) if lines.len() < LINES_MAX => {
                lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, time_limit: Duration) -> Hook {
        let argv = ["/bin/sh", "-c", script];
        Hook {
            argv: argv.map(str::to_owned).to_vec(),
            time_limit,
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_gets_its_variables_as_values_and_nothing_else_of_ours() {
        let open = std::fs::File::open("/proc/self/exe").unwrap();
        // As a file that a service manager handed over: without FD_CLOEXEC.
        let inherited = nix::unistd::dup(&open).unwrap();
        let script =
            "echo \"$GYRE_NAME\"; echo ${CARGO_MANIFEST_DIR-none}; ls /proc/self/fd | tr '\\n' ' '";
        let name = ("GYRE_NAME", "$(touch /tmp/never) `x`; rm".to_owned());
        let (ended, said) = run_limited(&hook(script, LONG), vec![name]).unwrap();
        drop(inherited);
        assert!(ended.unwrap().success());
        assert_eq!(said[..2], ["$(touch /tmp/never) `x`; rm", "none"]);
        // 3 is the folder that `ls` reads.
        assert_eq!(said[2].trim(), "0 1 2 3", "it has files of ours");
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_all_it_started() {
        let script = "echo begun; sleep 1000 & echo $!; wait";
        let begun = Instant::now();
        let (ended, said) =
            run_limited(&hook(script, Duration::from_millis(300)), Vec::new()).unwrap();
        assert!(ended.is_none());
        assert_eq!(said.first().map(String::as_str), Some("begun"));
        assert!(begun.elapsed() < LONG, "it was waited for");
        let child = format!("/proc/{}/stat", said[1]);
        let is_dead = |stat: String| stat.contains(") Z ");
        let end = Instant::now() + LONG;
        while !std::fs::read_to_string(&child).map_or(true, is_dead) {
            assert!(Instant::now() < end, "its child lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_flood_of_words_is_read_and_cut() {
        let script = "i=0; while [ $i -lt 5000 ]; do echo word $i; i=$((i+1)); done; exit 3";
        let (ended, said) = run_limited(&hook(script, LONG), Vec::new()).unwrap();
        assert_eq!(ended.unwrap().code(), Some(3));
        assert_eq!(said.len(), LINES_MAX);
        let none = Hook {
            argv: vec!["/nonexistent/program".into()],
            time_limit: LONG,
        };
        assert!(run_limited(&none, Vec::new()).is_err());
    }
}
