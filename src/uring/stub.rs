//! Host names looked up through one address or interface only (layer 4): what the system's resolver cannot promise.
//!
//! Reads `hosts` and `resolv.conf` itself and asks the name servers over sockets that are bound like all others of the
//! session (`--bind`). When no name server can be reached that way the name is not found: nothing goes out elsewhere.
//! It blocks, and runs on the resolver's threads.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::socket::{self, Carrier, SocketOptions};
use crate::wire::dns::{self, DnsError, MESSAGE_BYTES_MAX, Wanted};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the servers that it asks itself: its own address on the loopback cannot be reached
/// through another interface, and would ask through any.
const RESOLV_CONF_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
/// As resolv.conf(5).
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;
/// For one answer of one server; all are asked twice.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// Aliases and addresses of a hosts file that are looked at.
const HOSTS_BYTES_MAX: u64 = 4 << 20;

/// How names are looked up.
#[derive(Clone, Debug)]
pub struct Stub {
    options: SocketOptions,
    servers: Vec<SocketAddr>,
    hosts: String,
}

impl Stub {
    /// The system's name servers and host names, asked through these options.
    pub fn from_system(options: &SocketOptions) -> Stub {
        let mut servers = name_servers(&read(RESOLV_CONF));
        if servers.iter().all(|server| server.ip().is_loopback()) {
            let upstream = name_servers(&read(RESOLV_CONF_UPSTREAM));
            if !upstream.is_empty() {
                servers = upstream;
            }
        }
        Stub::new(options, servers, read(HOSTS))
    }

    /// These name servers, and the text of a hosts file.
    pub fn new(options: &SocketOptions, servers: Vec<SocketAddr>, hosts: String) -> Stub {
        Stub {
            options: options.clone(),
            servers,
            hosts,
        }
    }

    /// The addresses of a name that may be used with these options, IPv4 first.
    ///
    /// # Errors
    /// NotFound; TimedOut; those of the sockets.
    pub fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut found = in_hosts(&self.hosts, name);
        found.retain(|ip| self.is_usable(*ip));
        if !found.is_empty() {
            return Ok(found);
        }
        let families = [(Wanted::V4, true), (Wanted::V6, false)];
        let wanted = families.iter().filter(|(_, is_v4)| {
            let bind = self.options.bind;
            bind.is_none_or(|ip| ip.is_ipv4() == *is_v4)
        });
        let mut last = None;
        for (wanted, _) in wanted {
            match self.ask_all(name, *wanted) {
                Ok(addrs) => found.extend(addrs),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if found.is_empty() => Err(error),
            _ if found.is_empty() => Err(no_addresses()),
            _ => Ok(found),
        }
    }

    fn is_usable(&self, ip: IpAddr) -> bool {
        let bind = self.options.bind;
        bind.is_none_or(|bind| bind.is_ipv4() == ip.is_ipv4())
    }

    fn ask_all(&self, name: &str, wanted: Wanted) -> io::Result<Vec<IpAddr>> {
        let mut last = io::Error::new(
            io::ErrorKind::NotFound,
            "no name server can be asked through --bind",
        );
        let servers = self.servers.iter().filter(|s| self.is_usable(s.ip()));
        let servers: Vec<&SocketAddr> = servers.take(SERVERS_MAX).collect();
        for server in servers.iter().cycle().take(ROUNDS * servers.len()) {
            match self.ask(**server, name, wanted) {
                Ok(addrs) => return Ok(addrs),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn ask(&self, server: SocketAddr, name: &str, wanted: Wanted) -> io::Result<Vec<IpAddr>> {
        let id = (RandomState::new().hash_one(name) & 0xffff) as u16;
        let question = dns::question(id, name, wanted).map_err(refusal)?;
        let socket = self.socket(server)?;
        socket.send(&question)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            socket.set_read_timeout(Some(left))?;
            let got = match socket.recv(&mut buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            match dns::answer(&question, buffer.get(..got).unwrap_or_default()) {
                Ok(addrs) => return Ok(addrs),
                // Late answers to others, or a forgery: the right one may still come.
                Err(DnsError::NotOurs) => {}
                Err(error) => return Err(refusal(error)),
            }
        }
    }

    /// Connected, so that the kernel passes nothing on that another host sent.
    fn socket(&self, server: SocketAddr) -> io::Result<UdpSocket> {
        let fd = socket::open(&server, Carrier::Udp, 0, &self.options)?;
        if let Some(ip) = self.options.bind {
            socket::bind(&fd, &SocketAddr::new(ip, 0))?;
        }
        let socket = UdpSocket::from(fd);
        socket.connect(server)?;
        Ok(socket)
    }
}

fn no_addresses() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

fn refusal(error: DnsError) -> io::Error {
    let kind = match error {
        DnsError::NoSuchName | DnsError::BadName => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// A file of the system, empty when it cannot be read.
fn read(path: &str) -> String {
    let read = || -> io::Result<String> {
        let mut bytes = Vec::new();
        let file = fs::File::open(path)?;
        io::Read::read_to_end(&mut io::Read::take(file, HOSTS_BYTES_MAX), &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// The words of each line, without comments.
fn lines(text: &str) -> impl Iterator<Item = std::str::SplitWhitespace<'_>> {
    let bare = text
        .lines()
        .filter_map(|line| line.split(['#', ';']).next());
    bare.map(str::split_whitespace)
}

fn name_servers(text: &str) -> Vec<SocketAddr> {
    let server = |mut words: std::str::SplitWhitespace<'_>| {
        let ip = words.next().filter(|word| *word == "nameserver");
        let ip: IpAddr = ip.and_then(|_| words.next())?.parse().ok()?;
        Some(SocketAddr::new(ip, PORT))
    };
    lines(text).filter_map(server).collect()
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = |mut words: std::str::SplitWhitespace<'_>| {
        let ip: IpAddr = words.next()?.parse().ok()?;
        words
            .any(|word| word.eq_ignore_ascii_case(name))
            .then_some(ip)
    };
    let mut found: Vec<IpAddr> = lines(text)
        .filter_map(address)
        .filter(|ip| seen.insert(*ip))
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// A name server that knows one name; what it was asked from.
    fn server() -> (SocketAddr, std::thread::JoinHandle<IpAddr>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = socket.local_addr().unwrap();
        let answered = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (got, from) = socket.recv_from(&mut buffer).unwrap();
            let mut answer = buffer[..got].to_vec();
            answer[2] = 0x81;
            let mut forged = answer.clone();
            forged[1] ^= 1;
            socket.send_to(&forged, from).unwrap();
            if answer.windows(6).any(|part| part == b"\x05known") {
                answer[7] = 1;
                answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04\xc0\0\x02\x09");
            } else {
                answer[3] = 0x83;
            }
            socket.send_to(&answer, from).unwrap();
            from.ip()
        });
        (addr, answered)
    }

    fn bound(ip: &str, servers: Vec<SocketAddr>) -> Stub {
        let options = SocketOptions {
            bind: Some(ip.parse().unwrap()),
            ..SocketOptions::default()
        };
        let hosts = "127.0.0.1 localhost\n# 1.1.1.1 no\n192.0.2.1 box box.example # b\n::1 box\n";
        Stub::new(&options, servers, hosts.to_owned())
    }

    #[test]
    fn names_are_asked_for_from_the_bound_address_alone() {
        let (addr, answered) = server();
        let found = bound("127.0.0.8", vec![addr]).look_up("known.example");
        assert_eq!(found.unwrap(), [IpAddr::from([192, 0, 2, 9])]);
        assert_eq!(answered.join().unwrap().to_string(), "127.0.0.8");
        let (addr, answered) = server();
        let missing = bound("127.0.0.8", vec![addr]).look_up("other.example");
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        answered.join().unwrap();
    }

    #[test]
    fn without_a_server_of_the_family_nothing_is_asked() {
        let (addr, _answered) = server();
        let failed = bound("::1", vec![addr]).look_up("known.example");
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_hosts_file_is_looked_at_first() {
        let four = bound("127.0.0.1", Vec::new());
        assert_eq!(four.look_up("BOX").unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        let six = bound("::1", Vec::new());
        assert_eq!(
            six.look_up("box").unwrap(),
            ["::1".parse::<IpAddr>().unwrap()]
        );
        assert!(six.look_up("box.example").is_err());
        assert!(four.look_up("no").is_err());
    }

    #[test]
    fn name_servers_are_read_from_resolv_conf() {
        let text = "# x\nsearch a\nnameserver 192.0.2.53\n nameserver fd00::53 ; y\nnameserver x\n";
        let expected = [
            "192.0.2.53:53".parse().unwrap(),
            "[fd00::53]:53".parse().unwrap(),
        ];
        assert_eq!(name_servers(text), expected);
    }
}
