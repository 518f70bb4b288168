//! Telling the service manager how the daemon is doing: `READY=1`, `STOPPING=1`, `WATCHDOG=1` (sd_notify(3)). Layer 6.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_env() -> Notifier {
        let path = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| is_ours);
        Notifier {
            socket: socket(path.as_bytes()),
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// Sends one state, as in `READY=1`. Nobody waits for it to be heard.
    pub fn tell(&self, state: &str) {
        if let Some((socket, addr)) = &self.socket {
            let _ = socket.send_to_addr(state.as_bytes(), addr);
        }
    }

    /// How often `WATCHDOG=1` is due: twice in the time that the manager waits. Below two seconds it may miss a beat of a
    /// ring thread that is well.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
            .map(|limit| limit / 2)
            .filter(|every| !every.is_zero())
    }
}

/// Whether the ring thread still answers: it puts its uptime on the board once a second.
#[derive(Debug, Default)]
pub struct Pulse {
    seen: Duration,
}

impl Pulse {
    /// True when the uptime shown now is another one than at the last look.
    pub fn beats(&mut self, uptime: Duration) -> bool {
        std::mem::replace(&mut self.seen, uptime) != uptime
    }
}

fn socket(path: &[u8]) -> Option<(UnixDatagram, SocketAddr)> {
    let addr = match path {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
        _ => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, addr.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_thread_that_shows_nothing_new_has_no_pulse() {
        let mut pulse = Pulse::default();
        let seconds = [1, 2, 2, 2, 3].map(Duration::from_secs);
        let beats = seconds.map(|uptime| pulse.beats(uptime));
        assert_eq!(beats, [true, true, false, false, true]);
    }

    #[test]
    fn the_manager_hears_over_a_path_and_over_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("gyre-notify-{}", std::process::id());
        let abstract_addr = SocketAddr::from_abstract_name(&name).unwrap();
        let listeners = [
            (
                UnixDatagram::bind(&path).unwrap(),
                path.to_str().unwrap().to_owned(),
            ),
            (
                UnixDatagram::bind_addr(&abstract_addr).unwrap(),
                format!("@{name}"),
            ),
        ];
        for (listener, addr) in listeners {
            let notifier = Notifier {
                socket: socket(addr.as_bytes()),
                watchdog: Some(Duration::from_secs(10)),
            };
            notifier.tell("READY=1");
            let mut heard = [0; 32];
            let length = listener.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
            assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(5)));
        }
        assert!(socket(b"").is_none() && socket(b"relative").is_none());
    }
}
