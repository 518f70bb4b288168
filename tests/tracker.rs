//! `gyre tracker` as its clients see it: raw requests and datagrams, hostile ones among them, and real swarms.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use support::program::command;
use support::{Gyre, Sample, sample::text};

const HASH: &str = "aaaaaaaaaaaaaaaaaaaa";

/// Starts a tracker on a free port of this loopback address.
fn tracker(ip: &str) -> (Gyre, SocketAddr) {
    let mut tracker = Gyre::start(&["tracker", "--listen", &listen(ip, 0), "--interval", "1s"]);
    let event = tracker.event("listening");
    let addr = event["addr"].as_str().unwrap().parse().unwrap();
    (tracker, addr)
}

fn listen(ip: &str, port: u16) -> String {
    SocketAddr::new(ip.parse().unwrap(), port).to_string()
}

fn http(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// A connection from another address of this machine.
fn http_from(source: [u8; 4], addr: SocketAddr) -> TcpStream {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let [a, b, c, d] = source;
    bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    let SocketAddr::V4(to) = addr else {
        panic!("{addr}")
    };
    connect(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    let stream = TcpStream::from(fd);
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// Reads one answer: its head as text, its body.
fn answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let read = stream.read(&mut byte).unwrap();
        assert!(
            read == 1,
            "the connection ended after {:?}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn get(addr: SocketAddr, target: &str) -> (String, Vec<u8>) {
    let mut stream = http(addr);
    write!(stream, "GET {target} HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    answer(&mut stream)
}

/// The body as text with bytes that are no ASCII letters and the like written as `\xNN`.
fn body(addr: SocketAddr, target: &str) -> String {
    get(addr, target).1.escape_ascii().to_string()
}

fn announce(peer: char, port: u16, rest: &str) -> String {
    let peer_id = peer.to_string().repeat(20);
    format!("/announce?info_hash={HASH}&peer_id={peer_id}&port={port}&{rest}")
}

/// One line of the page at `/`.
fn figure(addr: SocketAddr, name: &str) -> u64 {
    let page = String::from_utf8(get(addr, "/").1).unwrap();
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {page}"))
        .parse()
        .unwrap()
}

/// True when the other side has closed or reset the connection, waiting for that as long as the read timeout allows.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                let kind = error.kind();
                return kind != std::io::ErrorKind::WouldBlock
                    && kind != std::io::ErrorKind::TimedOut;
            }
        }
    }
}

#[test]
fn every_socket_is_told_of_and_the_end_brings_totals() {
    let mut tracker = Gyre::start(&["tracker", "--listen", "127.0.0.1:0", "--listen", "[::1]:0"]);
    let mut told = Vec::new();
    for _ in 0..4 {
        let event = tracker.event("listening");
        let addr: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
        told.push((addr, event["protocol"].as_str().unwrap().to_owned()));
    }
    assert_eq!(told[0].0, told[1].0, "TCP and UDP have the same port");
    assert_eq!(told[2].0, told[3].0, "TCP and UDP have the same port");
    assert!(told[0].0.is_ipv4() && told[2].0.is_ipv6());
    let protocols: Vec<&str> = told.iter().map(|(_, protocol)| protocol.as_str()).collect();
    assert_eq!(protocols, ["http", "udp", "http", "udp"]);
    get(told[0].0, &announce('p', 7, "left=0"));
    get(told[2].0, &announce('p', 7, "left=1"));
    let idle = http(told[0].0);
    tracker.signal(Signal::SIGINT);
    assert_eq!(tracker.wait_exit(Duration::from_secs(10)), 130);
    drop(idle);
    let totals = tracker.seen().last().unwrap();
    assert_eq!(totals["event"], "totals");
    assert_eq!(totals["http_announces"], 2);
    assert_eq!(
        (&totals["seeders"], &totals["leechers"]),
        (&1.into(), &1.into())
    );
    assert_eq!(tracker.stderr(), "");
}

#[test]
fn a_taken_port_is_one_line_and_a_hint() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for (addr, carrier) in [(udp.local_addr(), "UDP"), (tcp.local_addr(), "TCP")] {
        let addr = addr.unwrap();
        let output = command()
            .args(["tracker", "--listen", &addr.to_string()])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert_eq!(
            lines[0],
            format!("error: cannot listen on {addr}: the {carrier} port is taken")
        );
        assert!(lines[1].starts_with("hint: "), "{stderr}");
    }
}

#[test]
fn peers_are_told_in_compact_and_in_dictionary_form() {
    let (_tracker, addr) = tracker("127.0.0.1");
    assert_eq!(
        body(addr, &announce('p', 258, "left=0&compact=1")),
        "d8:completei1e11:external ip4:\\x7f\\x00\\x00\\x0110:incompletei0e8:intervali1e12:min intervali1e5:peers0:e"
    );
    let compact = body(addr, &announce('q', 772, "left=5"));
    assert!(
        compact.ends_with("5:peers6:\\x7f\\x00\\x00\\x01\\x01\\x02e"),
        "{compact}"
    );
    let full = body(addr, &announce('q', 772, "left=5&compact=0"));
    let peer_id = "p".repeat(20);
    assert!(
        full.ends_with(&format!(
            "5:peersld2:ip9:127.0.0.17:peer id20:{peer_id}4:porti258eeee"
        )),
        "{full}"
    );
    let short = body(addr, &announce('q', 772, "left=5&compact=0&no_peer_id=1"));
    assert!(
        short.ends_with("5:peersld2:ip9:127.0.0.14:porti258eeee"),
        "{short}"
    );
    let none = body(addr, &announce('q', 772, "left=5&numwant=0"));
    assert!(none.ends_with("5:peers0:e"), "{none}");
}

#[test]
fn ipv6_peers_are_told_as_peers6() {
    let (_tracker, addr) = tracker("::1");
    get(addr, &announce('p', 258, "left=0"));
    let (_, bytes) = get(addr, &announce('q', 772, "left=5"));
    let expected = b"5:peers0:6:peers618:\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x01\x02e";
    assert!(bytes.ends_with(expected), "{}", bytes.escape_ascii());
}

#[test]
fn scrapes_name_the_torrents_they_ask_for() {
    let (_tracker, addr) = tracker("127.0.0.1");
    get(addr, &announce('p', 1, "left=0"));
    get(addr, &announce('q', 2, "left=5"));
    get(addr, &announce('q', 2, "left=0&event=completed"));
    get(addr, &announce('r', 3, "left=5"));
    let counts = format!("d5:filesd20:{HASH}d8:completei2e10:downloadedi1e10:incompletei1eeee");
    let unknown = "b".repeat(20);
    assert_eq!(
        body(
            addr,
            &format!("/scrape?info_hash={HASH}&info_hash={unknown}")
        ),
        counts
    );
    assert_eq!(
        body(addr, &format!("/scrape?info_hash={unknown}")),
        "d5:filesdee"
    );
    assert_eq!(
        body(addr, "/scrape"),
        "d14:failure reason31:a scrape must name its torrentse"
    );
}

#[test]
fn a_peer_leaves_by_its_own_stopped_only() {
    let (_tracker, addr) = tracker("127.0.0.1");
    get(addr, &announce('p', 1, "left=0&key=1234"));
    get(addr, &announce('p', 1, "left=0&key=1235&event=stopped"));
    get(addr, &announce('p', 1, "left=0&event=stopped"));
    assert_eq!(figure(addr, "seeders"), 1);
    get(addr, &announce('p', 1, "left=0&key=1234&event=stopped"));
    assert_eq!(figure(addr, "seeders"), 0);
}

#[test]
fn requests_that_cannot_be_answered_say_why() {
    let (_tracker, addr) = tracker("127.0.0.1");
    for (target, expected) in [
        ("/announce", "info_hash is missing or not 20 bytes"),
        (
            "/announce?info_hash=aaaaaaaaaaaaaaaaaaaa",
            "peer_id is missing or not 20 bytes",
        ),
        (
            &announce('p', 0, "left=0"),
            "port is missing or not in 1..=65535",
        ),
    ] {
        let expected = format!("d14:failure reason{}:{expected}e", expected.len());
        assert_eq!(body(addr, target), expected);
    }
    for (request, status) in [
        ("GET /elsewhere HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
        ("GET /?x HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
        (
            "POST /announce HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 405 ",
        ),
    ] {
        let mut stream = http(addr);
        stream.write_all(request.as_bytes()).unwrap();
        let (head, _) = answer(&mut stream);
        assert!(head.starts_with(status), "{head}");
    }
}

#[test]
fn a_connection_serves_as_many_requests_as_its_client_likes() {
    let (_tracker, addr) = tracker("127.0.0.1");
    let mut stream = http(addr);
    for _ in 0..3 {
        write!(stream, "GET / HTTP/1.1\r\n\r\n").unwrap();
        let (head, _) = answer(&mut stream);
        assert!(head.contains("Connection: keep-alive"), "{head}");
    }
    // Two at once, the second in pieces.
    write!(stream, "GET / HTTP/1.1\r\n\r\nGET /x HT").unwrap();
    assert!(answer(&mut stream).0.starts_with("HTTP/1.1 200 "));
    for byte in b"TP/1.1\r\nConnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    assert!(answer(&mut stream).0.starts_with("HTTP/1.1 404 "));
    assert!(is_closed(&mut stream));
    // HTTP/1.0 ends after one, unless it asks for more.
    let mut stream = http(addr);
    write!(stream, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
    answer(&mut stream);
    write!(stream, "GET / HTTP/1.0\r\n\r\n").unwrap();
    let (head, _) = answer(&mut stream);
    assert!(head.contains("Connection: close"), "{head}");
    assert!(is_closed(&mut stream));
}

#[test]
fn garbage_and_oversized_headers_are_refused_at_once() {
    let (mut tracker, addr) = tracker("127.0.0.1");
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    let cases: [(&[u8], &str); 5] = [
        (b"\x13BitTorrent protocol", "HTTP/1.1 400 "),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "HTTP/1.1 400 ",
        ),
        (
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 400 ",
        ),
        (long.as_bytes(), "HTTP/1.1 431 "),
        (many.as_bytes(), "HTTP/1.1 400 "),
    ];
    for (bytes, status) in cases {
        let mut stream = http(addr);
        let sent_at = Instant::now();
        stream.write_all(bytes).unwrap();
        let (head, _) = answer(&mut stream);
        assert!(head.starts_with(status), "{head}");
        assert!(is_closed(&mut stream));
        assert!(sent_at.elapsed() < Duration::from_secs(5));
    }
    // A client that never stops sending is not read for ever.
    let mut stream = http(addr);
    stream
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let endless = vec![b'x'; 64 * 1024];
    let is_cut_off = (0..2_000).any(|_| stream.write_all(&endless).is_err());
    assert!(is_cut_off, "128 MB of header were taken");
    assert!(tracker.is_running());
    assert!(tracker.anonymous_bytes() < 64 << 20);
}

#[test]
fn a_client_that_dribbles_is_closed_on_a_total_deadline() {
    let (_tracker, addr) = tracker("127.0.0.1");
    let mut silent = http(addr);
    let mut slow = http(addr);
    let started = Instant::now();
    slow.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut request = b"GET / HTTP/1.1\r\n"
        .iter()
        .chain(b"X: y\r\n".iter().cycle());
    while started.elapsed() < Duration::from_secs(20) {
        let is_gone = slow.write_all(&[*request.next().unwrap()]).is_err();
        if is_gone || is_closed(&mut slow) {
            break;
        }
    }
    let took = started.elapsed();
    assert!((5..15).contains(&took.as_secs()), "closed after {took:?}");
    assert!(is_closed(&mut silent));
}

#[test]
fn one_address_cannot_take_all_connections() {
    let (_tracker, addr) = tracker("127.0.0.1");
    let mut held: Vec<TcpStream> = (0..128).map(|_| http(addr)).collect();
    let mut one_more = http(addr);
    assert!(is_closed(&mut one_more));
    let mut other = http_from([127, 0, 0, 2], addr);
    write!(other, "GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(answer(&mut other).0.starts_with("HTTP/1.1 200 "));
    // The place of one that leaves is free again.
    write!(held[0], "GET / HTTP/1.0\r\n\r\n").unwrap();
    answer(&mut held[0]);
    drop(held.remove(0));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut again = http(addr);
        let _ = write!(again, "GET / HTTP/1.1\r\n\r\n");
        let mut first = [0];
        if matches!(again.read(&mut first), Ok(1)) {
            break;
        }
        assert!(Instant::now() < deadline, "no place came free");
    }
}

/// The request for a connection id, its transaction `tran` (BEP 15).
const CONNECT: [u8; 16] = *b"\0\0\x04\x17\x27\x10\x19\x80\0\0\0\0tran";

/// A UDP client at an address of its own.
struct UdpClient {
    socket: UdpSocket,
    tracker: SocketAddr,
}

impl UdpClient {
    fn new(ip: &str, tracker: SocketAddr) -> UdpClient {
        let ip: IpAddr = ip.parse().unwrap();
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        UdpClient { socket, tracker }
    }

    fn send(&self, parts: &[&[u8]]) {
        self.socket.send_to(&parts.concat(), self.tracker).unwrap();
    }

    fn ask(&self, parts: &[&[u8]]) -> Vec<u8> {
        self.send(parts);
        let mut buf = [0; 4096];
        let (length, from) = self.socket.recv_from(&mut buf).unwrap();
        assert_eq!(from, self.tracker);
        buf[..length].to_vec()
    }

    fn connect(&self) -> Vec<u8> {
        let answer = self.ask(&[&CONNECT]);
        assert_eq!(answer.len(), 16);
        assert_eq!(answer[..8], *b"\0\0\0\0tran");
        answer[8..].to_vec()
    }

    fn announce(
        &self,
        connection_id: &[u8],
        peer: u8,
        port: u16,
        left: u64,
        options: &[u8],
    ) -> Vec<u8> {
        self.ask(&[
            connection_id,
            b"\0\0\0\x01anno",
            HASH.as_bytes(),
            &[peer; 20],
            &[0; 8],
            &left.to_be_bytes(),
            &[0; 8],
            &[0; 4],
            &[0; 4],
            b"key!",
            &(-1i32).to_be_bytes(),
            &port.to_be_bytes(),
            options,
        ])
    }

    /// Nothing sent before was answered: on the loopback no datagram overtakes another.
    fn next_answer_is_to_a_connect(&self) {
        self.connect();
    }
}

#[test]
fn udp_clients_connect_announce_and_scrape() {
    for (ip, stride) in [("127.0.0.1", 6), ("::1", 18)] {
        let (_tracker, addr) = tracker(ip);
        let client = UdpClient::new(ip, addr);
        let id = client.connect();
        let answer = client.announce(&id, b'p', 258, 0, b"");
        // Interval 1, no leecher, one seeder.
        assert_eq!(answer, *b"\0\0\0\x01anno\0\0\0\x01\0\0\0\0\0\0\0\x01");
        // URL data of BEP 41 is taken.
        let answer = client.announce(&id, b'q', 772, 9, b"\x02\x09/announce\x01\x00");
        assert_eq!(
            answer[..20],
            *b"\0\0\0\x01anno\0\0\0\x01\0\0\0\x01\0\0\0\x01"
        );
        assert_eq!(answer.len(), 20 + stride);
        assert_eq!(answer[20 + stride - 3..], *b"\x01\x01\x02");
        let scrape = client.ask(&[&id, b"\0\0\0\x02scra", &[b'z'; 20], HASH.as_bytes()]);
        let (none, one_of_each) = ([0; 12], *b"\0\0\0\x01\0\0\0\0\0\0\0\x01");
        assert_eq!(
            scrape,
            [&b"\0\0\0\x02scra"[..], &none, &one_of_each].concat()
        );
        // HTTP and UDP clients are in one swarm.
        let (_, bytes) = get(addr, &announce('r', 9, "left=1"));
        assert!(
            bytes.starts_with(b"d8:completei1e"),
            "{}",
            bytes.escape_ascii()
        );
        assert_eq!(figure(addr, "peers"), 3);
        assert_eq!(figure(addr, "udp announces"), 2);
    }
}

#[test]
fn udp_answers_come_from_the_address_that_was_asked() {
    let (_tracker, any) = tracker("0.0.0.0");
    // To the loopback network the kernel would answer from 127.0.0.1 by itself.
    let asked = SocketAddr::from(([127, 0, 0, 2], any.port()));
    let client = UdpClient::new("127.0.0.1", asked);
    client.socket.connect(asked).unwrap();
    client.socket.send(&CONNECT).unwrap();
    let mut buf = [0; 64];
    let length = client.socket.recv(&mut buf).unwrap();
    assert_eq!(buf[..8], *b"\0\0\0\0tran");
    assert_eq!(length, 16);
    assert_eq!(client.connect().len(), 8, "the source is looked at");
}

#[test]
fn udp_answers_come_from_the_ipv6_address_that_was_asked() {
    use nix::sched::{CloneFlags, unshare};
    // A network of its own for this thread and the tracker that it starts, with two addresses.
    let ends = std::thread::spawn(|| {
        let is_apart = unshare(CloneFlags::CLONE_NEWNET).is_ok();
        let ip = |words: &str| {
            let words = words.split(' ');
            let status = std::process::Command::new("ip").args(words).status();
            status.is_ok_and(|status| status.success())
        };
        let is_made = is_apart
            && ip("link set lo up")
            && ip("addr add fd00::1/128 dev lo nodad")
            && ip("addr add fd00::2/128 dev lo nodad");
        if !is_made {
            println!("skipped: no network namespace may be made here");
            return;
        }
        let (_tracker, any) = tracker("::");
        for ip in ["fd00::1", "fd00::2", "::1"] {
            let asked = SocketAddr::new(ip.parse().unwrap(), any.port());
            assert_eq!(UdpClient::new("fd00::1", asked).connect().len(), 8, "{ip}");
        }
    });
    ends.join().unwrap();
}

#[test]
fn a_connection_id_is_good_at_its_own_address_only() {
    let (_tracker, addr) = tracker("127.0.0.1");
    let client = UdpClient::new("127.0.0.1", addr);
    let id = client.connect();
    let refused = b"\0\0\0\x03annoconnection id expired";
    let thief = UdpClient::new("127.0.0.2", addr);
    assert_eq!(thief.announce(&id, b'p', 1, 0, b""), refused);
    let mut made_up = id.clone();
    made_up[7] ^= 1;
    assert_eq!(client.announce(&made_up, b'p', 1, 0, b""), refused);
    assert_eq!(client.announce(&[0; 8], b'p', 1, 0, b""), refused);
    assert_eq!(figure(addr, "peers"), 0);
    // The port may change, as address translators have it.
    let moved = UdpClient::new("127.0.0.1", addr);
    assert_eq!(
        moved.announce(&id, b'p', 1, 0, b"")[..8],
        *b"\0\0\0\x01anno"
    );
    // A refusal longer than what came would help to flood a forged sender.
    client.send(&[&[0; 8], b"\0\0\0\x02scra"]);
    client.next_answer_is_to_a_connect();
}

#[test]
fn datagrams_that_are_no_requests_get_no_answer() {
    let (mut tracker, addr) = tracker("127.0.0.1");
    let client = UdpClient::new("127.0.0.1", addr);
    let id = client.connect();
    let whole = [&id[..], b"\0\0\0\x01anno", &[b'a'; 82]].concat();
    for length in 0..98 {
        client.send(&[&whole[..length]]);
    }
    client.send(&[&[0xff; 2_000]]);
    client.send(&[b"\0\0\x04\x17\x27\x10\x19\x81", &[0; 4], b"tran"]);
    client.send(&[&id, b"\0\0\0\x07huh?", &[0; 100]]);
    client.next_answer_is_to_a_connect();
    // Port 0 is refused in words.
    let answer = client.announce(&id, b'p', 0, 0, b"");
    assert_eq!(answer[..8], *b"\0\0\0\x03anno");
    // Options that are cut off or nonsense hurt nobody.
    for options in [
        &b"\x02"[..],
        b"\x02\xff/x",
        b"\xee\xee\xee",
        &[1; 1_000],
        &[2; 3_000],
    ] {
        assert_eq!(
            client.announce(&id, b'p', 5, 0, options)[..8],
            *b"\0\0\0\x01anno"
        );
    }
    assert_eq!(figure(addr, "peers"), 1);
    assert!(tracker.is_running());
}

#[test]
fn udp_answers_fit_a_datagram_that_no_network_fragments() {
    for ip in ["127.0.0.1", "::1"] {
        let (_tracker, addr) = tracker(ip);
        let client = UdpClient::new(ip, addr);
        let id = client.connect();
        for port in 1..=300 {
            get(addr, &announce('p', port, "left=1&numwant=0"));
        }
        let answer = client.ask(&[
            &id,
            b"\0\0\0\x01anno",
            HASH.as_bytes(),
            &[b'q'; 20],
            &[0; 24],
            &[0; 12],
            &i32::MAX.to_be_bytes(),
            &[1, 1],
        ]);
        assert!(
            (1_000..=1_232).contains(&answer.len()),
            "{} bytes",
            answer.len()
        );
    }
}

/// A seeder and a leecher that know each other from nothing but the tracker.
fn swarm_through(scheme: &str, ip: &str) {
    let (mut tracker, addr) = tracker(ip);
    let path = if scheme == "http" { "/announce" } else { "" };
    let sample = Sample::file(3 << 20, 65_536, &[&format!("{scheme}://{addr}{path}")]);
    let (torrent, state) = (text(&sample.torrent), text(&sample.dir("state")));
    let options = [
        "--state",
        &state,
        "--port",
        "0",
        "--announce-interval-min",
        "1s",
    ];
    let data = text(&sample.data);
    let seed = ["seed", &torrent, "--data", &data];
    let mut seed = Gyre::start(&[&seed[..], &options].concat());
    seed.wait_for("seeding", |event| event["state"] == "seeding");
    let out = sample.dir("out");
    let folder = text(&out);
    let leech = ["download", &torrent, "-o", &folder];
    let mut leech = Gyre::start(&[&leech[..], &options].concat());
    leech.event("complete");
    assert_eq!(leech.wait_exit(Duration::from_secs(20)), 0);
    assert!(sample.is_same_in(&out));
    assert_eq!(figure(addr, "leechers"), 0, "the leecher has said goodbye");
    seed.signal(Signal::SIGTERM);
    assert_eq!(seed.wait_exit(Duration::from_secs(10)), 143);
    assert_eq!(figure(addr, "peers"), 0, "the seeder has said goodbye");
    tracker.signal(Signal::SIGTERM);
    assert_eq!(tracker.wait_exit(Duration::from_secs(10)), 143);
    let totals = tracker.seen().last().unwrap();
    let by_protocol = &totals[format!("{scheme}_announces")];
    assert!(by_protocol.as_u64() >= Some(4), "{totals}");
}

#[test]
fn a_swarm_meets_over_http_and_ipv4() {
    swarm_through("http", "127.0.0.1");
}

#[test]
fn a_swarm_meets_over_http_and_ipv6() {
    swarm_through("http", "::1");
}

#[test]
fn a_swarm_meets_over_udp_and_ipv4() {
    swarm_through("udp", "127.0.0.1");
}

#[test]
fn a_swarm_meets_over_udp_and_ipv6() {
    swarm_through("udp", "::1");
}
