//! Networks of a test's own: namespaces, pairs of interfaces between them, and what is seen on one of those.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CloneFlags, setns, unshare};

use super::program::clean;

/// Longest frame kept whole; interfaces in here have an MTU of 1,500 bytes but hand on what TCP gathered.
const FRAME_BYTES_MAX: usize = 70_000;

/// A network namespace, held open.
pub struct Net(File);

impl Net {
    /// `None` where namespaces are not allowed.
    pub fn new() -> Option<Net> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            File::open("/proc/thread-self/ns/net").ok()
        });
        let net = Net(made.join().unwrap()?);
        net.ip("link set lo up");
        Some(net)
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = clean(Command::new("nsenter"));
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    pub fn ip(&self, arguments: &str) {
        let done = self
            .command("ip")
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "ip {arguments}: {stderr}");
    }

    /// Runs it on a thread inside.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let net = self.0.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            setns(net, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }
}

/// Hands on every frame of one interface until it is dropped.
pub struct Capture {
    is_over: Arc<AtomicBool>,
}

impl Capture {
    /// Listens on an interface of the calling thread's namespace.
    pub fn on(interface: &str, mut on_frame: impl FnMut(&[u8]) + Send + 'static) -> Capture {
        // ETH_P_ALL in network order.
        let protocol = i32::from(3_u16.to_be());
        let index = nix::net::if_::if_nametoindex(interface).unwrap();
        // SAFETY: plain system calls; the address structure is whole.
        let fd = unsafe {
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol,
            );
            assert!(fd >= 0);
            let mut addr: libc::sockaddr_ll = std::mem::zeroed();
            addr.sll_family = libc::AF_PACKET as u16;
            addr.sll_protocol = 3_u16.to_be();
            addr.sll_ifindex = index as i32;
            let length = std::mem::size_of_val(&addr) as u32;
            assert_eq!(libc::bind(fd, (&raw const addr).cast(), length), 0);
            OwnedFd::from_raw_fd(fd)
        };
        let time = nix::sys::time::TimeVal::new(0, 200_000);
        let limit = nix::sys::socket::sockopt::ReceiveTimeout;
        nix::sys::socket::setsockopt(&fd, limit, &time).unwrap();
        let room = nix::sys::socket::sockopt::RcvBufForce;
        nix::sys::socket::setsockopt(&fd, room, &(16 << 20)).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let (mut packets, is_ended) = (File::from(fd), is_over.clone());
        std::thread::spawn(move || {
            let mut frame = vec![0; FRAME_BYTES_MAX];
            while !is_ended.load(Ordering::Relaxed) {
                match packets.read(&mut frame) {
                    Ok(length) => on_frame(&frame[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // The interface went down: it is heard again once it is up.
                    Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                    Err(_) => return,
                }
            }
        });
        Capture { is_over }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
