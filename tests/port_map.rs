//! The peer port at the gateway: gateways of the test's own that speak PCP, NAT-PMP or UPnP, say no, lie, lead elsewhere,
//! or say nothing.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::program::{PATIENCE, command};
use support::sample::text;
use support::{Gyre, Sample};

const OUTSIDE: [u8; 4] = [203, 0, 113, 5];

/// A gateway on a free port; what it is asked.
struct Gateway {
    addr: SocketAddr,
    asked: Receiver<Vec<u8>>,
}

impl Gateway {
    /// Every question goes to `answer`.
    fn start(mut answer: impl FnMut(&[u8], SocketAddr, &UdpSocket) + Send + 'static) -> Gateway {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let (sender, asked) = channel();
        std::thread::spawn(move || {
            let mut buf = [0; 1_500];
            while let Ok((length, from)) = socket.recv_from(&mut buf) {
                let _ = sender.send(buf[..length].to_vec());
                answer(&buf[..length], from, &socket);
            }
        });
        Gateway { addr, asked }
    }

    /// The next question for which it holds.
    fn wait_for(&self, what: &str, is_it: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        loop {
            let asked = self.asked.recv_timeout(PATIENCE);
            let asked = asked.unwrap_or_else(|_| panic!("no {what}"));
            if is_it(&asked) {
                return asked;
            }
        }
    }
}

/// What a PCP gateway grants: the port that was asked for and one more, two hours.
fn pcp_grant(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[1] |= 0x80;
    let port = u16::from_be_bytes([question[40], question[41]]) ^ 1;
    answer[42..44].copy_from_slice(&port.to_be_bytes());
    answer[56..60].copy_from_slice(&OUTSIDE);
    answer
}

fn lifetime(pcp: &[u8]) -> u32 {
    u32::from_be_bytes(pcp[4..8].try_into().unwrap())
}

fn seeder(sample: &Sample, gateway: SocketAddr) -> Gyre {
    let (data, state) = (text(&sample.data), text(&sample.dir("state")));
    let mut command = command();
    command.env_remove("GYRE_NO_PORT_MAP");
    command.args(["seed", &text(&sample.torrent), "--data", &data]);
    command.args(["--state", &state, "--port", "0", "--bind", "127.0.0.1"]);
    command.args(["--port-map-gateway", &gateway.to_string(), "--json"]);
    Gyre::spawn(command)
}

fn is_mapped(gyre: &mut Gyre) -> (String, SocketAddr) {
    let event = gyre.event("mapped");
    assert_eq!(event["lease_secs"], 7_200, "{event}");
    let external = event["external"].as_str().unwrap().parse().unwrap();
    (event["protocol"].as_str().unwrap().to_owned(), external)
}

#[test]
fn a_pcp_gateway_maps_both_ports_and_hears_of_the_end() {
    let gateway = Gateway::start(|question, from, socket| {
        socket.send_to(&pcp_grant(question), from).unwrap();
    });
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seeder(&sample, gateway.addr);
    let port = gyre.listening().port();
    let external = SocketAddr::from((OUTSIDE, port ^ 1));
    assert_eq!(is_mapped(&mut gyre), ("tcp".to_owned(), external));
    assert_eq!(is_mapped(&mut gyre), ("udp".to_owned(), external));
    let tcp = gateway.wait_for("question", |asked| asked[36] == 6);
    assert_eq!((tcp.len(), lifetime(&tcp)), (60, 7_200));
    assert_eq!(tcp[20..24], [127, 0, 0, 1], "our own address");
    gyre.signal(Signal::SIGTERM);
    gyre.wait_exit(PATIENCE);
    for protocol in [6, 17] {
        let is_end = |asked: &[u8]| asked[36] == protocol && lifetime(asked) == 0;
        gateway.wait_for("end of a mapping", is_end);
    }
}

#[test]
fn a_gateway_that_speaks_nat_pmp_alone_is_asked_in_that() {
    let gateway = Gateway::start(|question, from, socket| {
        let answer = match question {
            [0, 0] => [&[0, 0x80, 0, 0, 0, 0, 0, 1][..], &OUTSIDE].concat(),
            [0, opcode, _, _, a, b, ..] => {
                let head = [0, 0x80 | opcode, 0, 0, 0, 0, 0, 1];
                let lifetime = &question[8..12];
                [&head[..], &[*a, *b, 0x1b, 0x58], lifetime].concat()
            }
            _ => vec![0, 0x81, 0, 1, 0, 0, 0, 1],
        };
        socket.send_to(&answer, from).unwrap();
    });
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seeder(&sample, gateway.addr);
    let external = SocketAddr::from((OUTSIDE, 7_000));
    assert_eq!(is_mapped(&mut gyre), ("tcp".to_owned(), external));
    assert_eq!(is_mapped(&mut gyre), ("udp".to_owned(), external));
    gyre.signal(Signal::SIGTERM);
    gyre.wait_exit(PATIENCE);
    let is_end = |asked: &[u8]| asked.len() == 12 && asked[..2] == [0, 1] && asked[8..] == [0; 4];
    gateway.wait_for("end of the mapping", is_end);
}

#[test]
fn a_gateway_that_lies_and_floods_maps_nothing_and_costs_little() {
    let gateway = Gateway::start(|question, from, socket| {
        if question.len() != 60 {
            return;
        }
        // A grant that is somebody else's, one of port 0, one cut off, and one from another socket.
        let grant = pcp_grant(question);
        let mut others = grant.clone();
        others[30] ^= 1;
        let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = elsewhere.send_to(&grant, from);
        for answer in [&others[..], &grant[..40], &[0xff; 1_400], &[]] {
            for _ in 0..500 {
                let _ = socket.send_to(answer, from);
            }
        }
        let mut no_port = grant.clone();
        no_port[42..44].copy_from_slice(&[0, 0]);
        let _ = socket.send_to(&no_port, from);
    });
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seeder(&sample, gateway.addr);
    gyre.wait_for("seeding", |event| event["state"] == "seeding");
    let cpu = gyre.cpu();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        gyre.event("progress");
    }
    assert!(gyre.cpu() - cpu < Duration::from_secs(3));
    let is_wrong = |name: &str| ["mapped", "warning", "error"].contains(&name);
    let told = gyre.seen().iter();
    let wrong: Vec<_> = told
        .filter(|event| is_wrong(event["event"].as_str().unwrap()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let asked = gateway.asked.try_iter().count();
    assert!(asked <= 20, "asked {asked} times");
}

#[test]
fn a_gateway_that_says_nothing_is_no_trouble_and_delays_no_end() {
    let gateway = Gateway::start(|_, _, _| {});
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seeder(&sample, gateway.addr);
    gateway.wait_for("question", |asked| asked[0] == 2);
    gateway.wait_for("question in NAT-PMP", |asked| asked[0] == 0);
    gyre.signal(Signal::SIGTERM);
    let asked_to_end = Instant::now();
    gyre.wait_exit(PATIENCE);
    assert!(asked_to_end.elapsed() < Duration::from_secs(8));
    let told = gyre.seen().iter();
    let told: Vec<_> = told.filter(|event| event["event"] == "warning").collect();
    assert!(told.is_empty(), "{told:#?}");
}

/// The web server of a gateway that speaks UPnP: requests go to `answer` as their first line and body; what it says is
/// sent before the connection is closed. What was asked comes out of the channel.
fn igd_server(
    answer: impl Fn(&str, &str) -> Vec<u8> + Send + 'static,
) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut bytes, mut buf) = (Vec::new(), [0; 4_096]);
            let whole = loop {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.split("Content-Length: ").nth(1);
                    let length = length.map_or(0, |tail| {
                        let digits = tail.split("\r\n").next().unwrap();
                        digits.parse().unwrap()
                    });
                    if body.len() >= length {
                        break text;
                    }
                }
                match stream.read(&mut buf) {
                    Ok(n @ 1..) => bytes.extend_from_slice(&buf[..n]),
                    _ => break text,
                }
            };
            let first = whole.lines().next().unwrap_or_default();
            let body = whole.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let _ = sender.send(whole.clone());
            let _ = stream.write_all(&answer(first, body));
        }
    });
    (addr, asked)
}

fn http(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn description(control: &str) -> String {
    let kind = "urn:schemas-upnp-org:service:WANIPConnection:1";
    format!(
        "<root><device><serviceList><service><serviceType>{kind}</serviceType>\
         <controlURL>{control}</controlURL></service></serviceList></device></root>"
    )
}

/// Says nothing but to searches, which are answered with these places in turn.
fn ssdp(places: Vec<String>) -> Gateway {
    let mut places = places.into_iter().cycle();
    Gateway::start(move |question, from, socket| {
        if !question.starts_with(b"M-SEARCH") {
            return;
        }
        let place = places.next().unwrap();
        let kind = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
        let answer = format!("HTTP/1.1 200 OK\r\nST: {kind}\r\nLOCATION: {place}\r\n\r\n");
        socket.send_to(answer.as_bytes(), from).unwrap();
    })
}

fn field<'a>(body: &'a str, name: &str) -> &'a str {
    let (_, tail) = body.split_once(&format!("<{name}>")).unwrap();
    tail.split('<').next().unwrap()
}

#[test]
fn a_gateway_that_speaks_upnp_alone_maps_both_ports_and_hears_of_the_end() {
    let taken = Mutex::new(None);
    // The first port that is asked for is somebody else's, and UDP is mapped for good or not at all.
    let (addr, asked) = igd_server(move |first, body| {
        let fault = |code: u16| http("500 Oops", &format!("<errorCode>{code}</errorCode>"));
        if first.starts_with("GET /root.xml ") {
            return http("200 OK", &description("/control?x=1&amp;y=2"));
        }
        assert!(first.starts_with("POST /control?x=1&y=2 "), "{first}");
        if body.contains("GetExternalIPAddress") {
            let ip = "<NewExternalIPAddress>203.0.113.5</NewExternalIPAddress>";
            return http("200 OK", ip);
        }
        let port = field(body, "NewExternalPort").to_owned();
        if taken.lock().unwrap().get_or_insert_with(|| port.clone()) == &port
            && body.contains("TCP")
        {
            return fault(718);
        }
        let is_for_a_time = body.contains("<NewLeaseDuration>3600<");
        match field(body, "NewProtocol") {
            "UDP" if is_for_a_time => fault(725),
            _ => http("200 OK", ""),
        }
    });
    let gateway = ssdp(vec![format!("http://{addr}/root.xml")]);
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seeder(&sample, gateway.addr);
    let port = gyre.listening().port();
    let mut mapped = Vec::new();
    for _ in 0..2 {
        let event = gyre.event("mapped");
        let told = [&event["protocol"], &event["external"]].map(|of| of.as_str().unwrap());
        mapped.push((
            told.map(str::to_owned),
            event["lease_secs"].as_u64().unwrap(),
        ));
    }
    let outside = |port: u16| SocketAddr::from((OUTSIDE, port)).to_string();
    let next = port.checked_add(1).unwrap_or(1_025);
    assert_eq!(mapped[0], (["tcp".to_owned(), outside(next)], 3_600));
    assert_eq!(mapped[1], (["udp".to_owned(), outside(port)], 0));
    gyre.signal(Signal::SIGTERM);
    gyre.wait_exit(PATIENCE);
    let all: Vec<String> = asked.try_iter().collect();
    let deleted: Vec<_> = all
        .iter()
        .filter(|asked| asked.contains("#DeletePortMapping\""))
        .map(|asked| (field(asked, "NewProtocol"), field(asked, "NewExternalPort")))
        .collect();
    let (next, port) = (next.to_string(), port.to_string());
    assert_eq!(deleted, [("TCP", next.as_str()), ("UDP", port.as_str())]);
    let added = all
        .iter()
        .find(|asked| asked.contains("<u:AddPortMapping "));
    let added = added.unwrap();
    assert_eq!(field(added, "NewInternalClient"), "127.0.0.1");
    assert_eq!(field(added, "NewInternalPort"), port);
}

#[test]
fn an_upnp_gateway_that_leads_elsewhere_or_never_ends_is_asked_for_nothing() {
    let elsewhere = TcpListener::bind("127.0.0.2:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let other = elsewhere.local_addr().unwrap();
    let (addr, asked) = igd_server(move |first, _| match first.split(' ').nth(1) {
        Some("/endless") => {
            let head = b"HTTP/1.1 200 OK\r\n\r\n<root>";
            [&head[..], &b"<service>".repeat(1 << 20)].concat()
        }
        Some("/control-elsewhere") => {
            http("200 OK", &description(&format!("http://{other}/control")))
        }
        _ => format!("HTTP/1.1 302 Found\r\nLocation: http://{other}/root.xml\r\n\r\n").into(),
    });
    let own = |path: &str| format!("http://{addr}/{path}");
    let gateway = ssdp(vec![
        format!("http://{other}/root.xml"),
        own("endless"),
        own("control-elsewhere"),
        own("moved"),
        "http://localhost:1/root.xml".to_owned(),
        format!("https://{addr}/root.xml"),
    ]);
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seeder(&sample, gateway.addr);
    for path in ["/endless", "/control-elsewhere", "/moved"] {
        let request = asked.recv_timeout(PATIENCE).expect(path);
        assert!(request.starts_with(&format!("GET {path} ")), "{request}");
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        gyre.event("progress");
    }
    assert_eq!(asked.try_iter().count(), 0, "nothing is asked for a port");
    assert!(elsewhere.accept().is_err(), "nobody else gets a request");
    let is_wrong = |name: &str| ["mapped", "warning", "error"].contains(&name);
    let told = gyre.seen().iter();
    let wrong: Vec<_> = told
        .filter(|event| is_wrong(event["event"].as_str().unwrap()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_gateway_behind_another_one_is_told_of() {
    let gateway = Gateway::start(|question, from, socket| {
        let mut answer = pcp_grant(question);
        answer[56..60].copy_from_slice(&[100, 64, 0, 9]);
        socket.send_to(&answer, from).unwrap();
    });
    let sample = Sample::file(50_000, 16_384, &[]);
    let mut gyre = seeder(&sample, gateway.addr);
    let told = gyre.event("warning");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("100.64.0.9"), "{message}");
    gyre.event("mapped");
    gyre.event("mapped");
    let warnings = gyre.seen().iter();
    let warnings = warnings.filter(|event| event["event"] == "warning");
    assert_eq!(warnings.count(), 1);
}
