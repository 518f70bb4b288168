//! A line between two network namespaces in user space, where the kernel has no netem: delay, loss, rate and buffer of each
//! direction alike. `scripts/utp-line` compiles and starts it; it needs root.
//!
//! It makes an interface `line` in both namespaces, hands packets from one to the other, and prints a JSON object a second: what
//! came out on the far side of each direction by protocol, what was lost at random, what found the buffer full, and the longest
//! wait in it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const PACKET_BYTES_MAX: usize = 65_536;
/// Packets taken in one go from one side: the other one must not wait for long.
const TAKEN_MAX: usize = 64;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

const CLONE_NEWNET: i32 = 0x4000_0000;
const O_NONBLOCK: i32 = 0o4000;
const TUNSETIFF: u64 = 0x4004_54ca;
const IFF_TUN: i16 = 1;
const IFF_NO_PI: i16 = 0x1000;
const POLLIN: i16 = 1;
const PR_SET_TIMERSLACK: i32 = 29;

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

#[repr(C)]
struct TimeSpec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn setns(fd: i32, kind: i32) -> i32;
    fn ioctl(fd: i32, request: u64, argument: *mut IfReq) -> i32;
    fn ppoll(fds: *mut PollFd, count: u64, timeout: *const TimeSpec, mask: *const u8) -> i32;
    fn prctl(option: i32, value: u64) -> i32;
}

/// What the line does to packets.
struct Settings {
    delay: Duration,
    /// Of a million packets.
    loss: u64,
    /// 0 is no limit.
    bytes_per_s: u64,
    buffer: Duration,
}

/// One direction.
struct Way {
    on_its_way: VecDeque<(Instant, Vec<u8>)>,
    free_at: Instant,
    random: u64,
    udp_bytes: u64,
    tcp_bytes: u64,
    packets: u64,
    lost: u64,
    overflowed: u64,
    longest: Duration,
}

impl Way {
    fn new(seed: u64) -> Way {
        Way {
            on_its_way: VecDeque::new(),
            free_at: Instant::now(),
            random: seed,
            udp_bytes: 0,
            tcp_bytes: 0,
            packets: 0,
            lost: 0,
            overflowed: 0,
            longest: Duration::ZERO,
        }
    }

    /// SplitMix64.
    fn is_lost(&mut self, of_a_million: u64) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 1_000_000 < of_a_million
    }

    fn take(&mut self, packet: &[u8], now: Instant, settings: &Settings) {
        if self.is_lost(settings.loss) {
            self.lost += 1;
            return;
        }
        let begins = self.free_at.max(now);
        let waits = begins - now;
        let mut leaves = begins;
        if settings.bytes_per_s > 0 {
            if waits > settings.buffer {
                self.overflowed += 1;
                return;
            }
            let nanoseconds = packet.len() as u64 * 1_000_000_000 / settings.bytes_per_s;
            leaves += Duration::from_nanos(nanoseconds);
            self.free_at = leaves;
        }
        self.longest = self.longest.max(waits);
        let at = leaves + settings.delay;
        self.on_its_way.push_back((at, packet.to_vec()));
    }

    fn hand_on(&mut self, to: &mut File, now: Instant) {
        while self.on_its_way.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, packet)) = self.on_its_way.pop_front() else {
                return;
            };
            let protocol = match packet[0] >> 4 {
                4 => packet[9],
                _ => packet[6],
            };
            match protocol {
                IPPROTO_UDP => self.udp_bytes += packet.len() as u64,
                IPPROTO_TCP => self.tcp_bytes += packet.len() as u64,
                _ => {}
            }
            self.packets += 1;
            // What the other side has no room for is lost there.
            let _ = to.write(&packet);
        }
    }

    fn report(&mut self) -> String {
        let text = format!(
            "{{\"udp_bytes\":{},\"tcp_bytes\":{},\"packets\":{},\"lost\":{},\"overflowed\":{},\"queue_ms\":{}}}",
            self.udp_bytes,
            self.tcp_bytes,
            self.packets,
            self.lost,
            self.overflowed,
            self.longest.as_millis()
        );
        self.longest = Duration::ZERO;
        text
    }
}

/// An interface in that namespace.
fn open(namespace: &str) -> std::io::Result<File> {
    let net = File::open(namespace)?;
    // SAFETY: plain system calls with values that live as long as they take.
    if unsafe { setns(net.as_raw_fd(), CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(O_NONBLOCK);
    let tun = options.open("/dev/net/tun")?;
    let mut request = IfReq {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        rest: [0; 22],
    };
    request.name[..4].copy_from_slice(b"line");
    // SAFETY: the structure is as long as the kernel takes it to be.
    if unsafe { ioctl(tun.as_raw_fd(), TUNSETIFF, &mut request) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(tun)
}

/// Waits for a packet on either side, or for the moment that the next one leaves.
fn wait(sides: &[File; 2], until: Option<Instant>, now: Instant) {
    let left = until.map(|at| at.saturating_duration_since(now));
    let timeout = left.map(|left| TimeSpec {
        seconds: left.as_secs() as i64,
        nanoseconds: i64::from(left.subsec_nanos()),
    });
    let mut fds = sides.each_ref().map(|side| PollFd {
        fd: side.as_raw_fd(),
        events: POLLIN,
        revents: 0,
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both structures live as long as the call.
    unsafe { ppoll(fds.as_mut_ptr(), 2, timeout, std::ptr::null()) };
}

fn run(sides: &mut [File; 2], settings: &Settings, seed: u64) -> std::io::Result<()> {
    let mut ways = [Way::new(seed), Way::new(seed ^ 0x5555)];
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut report_at = Instant::now() + Duration::from_secs(1);
    loop {
        let leaving = ways.iter().filter_map(|way| way.on_its_way.front());
        let next = leaving.map(|(at, _)| *at).min();
        let until = next.map_or(report_at, |at| at.min(report_at));
        wait(sides, Some(until), Instant::now());
        for from in 0..2 {
            for _ in 0..TAKEN_MAX {
                match sides[from].read(&mut packet) {
                    Ok(length) => ways[from].take(&packet[..length], Instant::now(), settings),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            let now = Instant::now();
            for way in 0..2 {
                ways[way].hand_on(&mut sides[1 - way], now);
            }
        }
        if Instant::now() >= report_at {
            report_at += Duration::from_secs(1);
            let [there, back] = ways.each_mut().map(Way::report);
            println!("{{\"there\":{there},\"back\":{back}}}");
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [one, other, numbers @ ..] = &arguments[..] else {
        eprintln!("usage: line NAMESPACE NAMESPACE DELAY_US LOSS_PER_MILLION BYTES_PER_S BUFFER_MS SEED");
        std::process::exit(2);
    };
    let number = |at: usize| -> u64 { numbers.get(at).and_then(|it| it.parse().ok()).unwrap_or(0) };
    let settings = Settings {
        delay: Duration::from_micros(number(0)),
        loss: number(1),
        bytes_per_s: number(2),
        buffer: Duration::from_millis(number(3)),
    };
    // SAFETY: a plain system call. Timers are to be as exact as they can.
    unsafe { prctl(PR_SET_TIMERSLACK, 1) };
    let ended = match (open(one), open(other)) {
        (Ok(one), Ok(other)) => {
            println!("{{\"ready\":true}}");
            run(&mut [one, other], &settings, number(4))
        }
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    if let Err(error) = ended {
        eprintln!("line: {error}");
        std::process::exit(1);
    }
}
