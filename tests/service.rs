//! `gyre daemon` under a service manager: sockets that are handed over, and what the manager is told.

#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{ChildStdin, Command};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use support::Gyre;
use support::program::{PATIENCE, clean};
use tempfile::TempDir;

/// A shell that becomes the daemon, which has these sockets from descriptor 3 on, by name.
fn daemon(
    state: &Path,
    sockets: &[(&str, &dyn AsRawFd)],
    more: &[(&str, &str)],
) -> (Gyre, ChildStdin) {
    let (mut script, mut names) = (String::new(), Vec::new());
    for (at, (name, socket)) in sockets.iter().enumerate() {
        script += &format!("exec {}<&{}; ", at + 3, socket.as_raw_fd());
        names.push(*name);
    }
    script += "export LISTEN_PID=$$; exec \"$0\" \"$@\"";
    let mut shell = clean(Command::new("bash"));
    shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_gyre"));
    shell.args(["daemon", "--lines", "--port", "0", "--bind", "127.0.0.1"]);
    shell.args(["--api", "127.0.0.1:0", "--buffers", "4MiB", "-v", "--state"]);
    shell.arg(state);
    for switch in ["GYRE_PORT_MAP", "GYRE_DHT", "GYRE_LSD"] {
        shell.env(switch, "false");
    }
    shell.env("LISTEN_FDS", sockets.len().to_string());
    shell.env("LISTEN_FDNAMES", names.join(":"));
    shell.envs(more.iter().copied());
    Gyre::spawn_with_stdin(shell)
}

/// Goes on to child processes.
fn inheritable<T: std::os::fd::AsFd>(socket: T) -> T {
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    socket
}

#[test]
fn listeners_that_are_handed_over_are_used_and_whatever_else_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    let tcp = inheritable(TcpListener::bind("127.0.0.1:0").unwrap());
    let addr = tcp.local_addr().unwrap();
    let datagrams = inheritable(UdpSocket::bind("127.0.0.1:0").unwrap());
    let other = inheritable(UnixListener::bind(folder.path().join("other")).unwrap());
    let sockets: [(&str, &dyn AsRawFd); 3] = [
        ("control", &tcp),
        ("control", &datagrams),
        ("other", &other),
    ];
    let (mut gyre, _stdin) = daemon(&state, &sockets, &[]);
    let told = gyre.event("control");
    assert_eq!(told["addr"], addr.to_string(), "the only one");
    gyre.listening();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(state.join("control.sock").exists(), "of its own");
    let said = gyre.stderr();
    assert_eq!(said.matches("it is left alone").count(), 2, "{said}");
    gyre.signal(Signal::SIGTERM);
    assert_eq!(gyre.wait_exit(PATIENCE), 0);
}

#[test]
fn the_manager_is_told_when_it_is_ready_that_it_lives_and_that_it_ends() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut heard = [0; 64];
        let length = manager.recv(&mut heard).unwrap();
        String::from_utf8_lossy(&heard[..length]).into_owned()
    };
    let path = path.to_str().unwrap();
    let more = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "2000000")];
    let (mut gyre, _stdin) = daemon(&folder.path().join("state"), &[], &more);
    assert_eq!(hear(), "READY=1");
    assert_eq!(hear(), "WATCHDOG=1");
    assert_eq!(hear(), "WATCHDOG=1");
    gyre.signal(Signal::SIGTERM);
    let rest = std::iter::repeat_with(hear).find(|state| state != "WATCHDOG=1");
    assert_eq!(rest.unwrap(), "STOPPING=1");
    assert_eq!(gyre.wait_exit(PATIENCE), 0);
}
