//! The peer port at the gateway: gateways of the test's own that speak PCP or NAT-PMP, say no, lie, or say nothing.

mod support;

use std::net::{SocketAddr, UdpSocket};
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
