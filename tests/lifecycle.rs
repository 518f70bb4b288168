//! How a run begins and ends: what an earlier one left behind, trackers told the truth, a shutdown that waits for nobody.

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::raw_peer::{self, RawPeer};
use support::{Gyre, Sample, program, sample::text};

/// Options of a download that talks to nobody unless told to.
fn download(sample: &Sample, out: &Path, more: &[&str]) -> Gyre {
    let (state, out) = (text(&sample.dir("state")), text(out));
    let torrent = text(&sample.torrent);
    let mut arguments = vec!["download", &torrent, "-o", &out, "--state", &state];
    arguments.extend(["--port", "0"]);
    arguments.extend(more);
    Gyre::start(&arguments)
}

/// Copies the content of a one-file sample.
fn copy_into(sample: &Sample, folder: &Path) {
    let name = sample.content.file_name().unwrap();
    std::fs::copy(&sample.content, folder.join(name)).unwrap();
}

/// A tracker that gives every announce this body, and the requests' first lines.
fn tracker(body: Vec<u8>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = (&stream).write_all(&[head.as_bytes(), &body].concat());
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    (url, requests)
}

#[test]
fn a_finished_download_does_not_stand_in_the_way_of_one_in_another_folder() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let state = text(&sample.dir("state"));
    let (first, second) = (sample.dir("first"), sample.dir("second"));
    copy_into(&sample, &first);
    let here = |folder: &Path, more: &[&str]| {
        let mut command = program::command();
        command.current_dir(folder);
        command.args(["download", &text(&sample.torrent), "--state", &state]);
        command.args(["--port", "0", "--no-trackers", "--json"]);
        command.args(more);
        Gyre::spawn(command)
    };
    assert_eq!(here(&first, &[]).wait_exit(Duration::from_secs(20)), 0);
    let mut other = here(&second, &["--give-up", "1s"]);
    let error = other.event("error");
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("gave up"), "{message}");
    assert_eq!(other.wait_exit(Duration::from_secs(20)), 1);
}

#[test]
fn a_lost_file_is_never_fetched_again_silently_however_often_it_is_tried() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let out = sample.dir("out");
    copy_into(&sample, &out);
    let mut first = download(&sample, &out, &["--no-trackers"]);
    assert_eq!(first.wait_exit(Duration::from_secs(20)), 0);
    std::fs::remove_file(out.join(sample.content.file_name().unwrap())).unwrap();
    for _ in 0..2 {
        let mut again = download(&sample, &out, &["--no-trackers", "--give-up", "5s"]);
        let error = again.event("error");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("missing"), "{message}");
        assert!(error["hint"].as_str().unwrap().contains("--check full"));
        assert_eq!(again.wait_exit(Duration::from_secs(20)), 1);
    }
}

#[test]
fn a_stop_waits_for_no_peer_that_is_being_dialed() {
    let sample = Sample::file(100_000, 16_384, &[]);
    // Takes the connection and says nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = silent.local_addr().unwrap().to_string();
    let mut leech = download(
        &sample,
        &sample.dir("out"),
        &["--no-trackers", "--peer", &peer],
    );
    let (_stream, _) = silent.accept().unwrap();
    let stopped_at = Instant::now();
    leech.signal(Signal::SIGINT);
    assert_eq!(leech.wait_exit(Duration::from_secs(10)), 130);
    let took = stopped_at.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(!leech.stderr().contains("did not end"));
}

#[test]
fn a_stop_waits_for_no_peer_that_waits_for_bandwidth() {
    let sample = Sample::file(200_000, 16_384, &[]);
    let (state, torrent) = (text(&sample.dir("state")), text(&sample.torrent));
    let data = text(&sample.data);
    let mut arguments = vec!["seed", &torrent, "--data", &data, "--state", &state];
    arguments.extend(["--port", "0", "--no-trackers", "--limit-up", "1KB"]);
    let mut seed = Gyre::start(&arguments);
    let addr = seed.listening();
    seed.wait_for("seeding", |event| event["state"] == "seeding");
    let _peers: Vec<RawPeer> = (0..3)
        .map(|_| {
            let mut peer = RawPeer::dial(addr, sample.info_hash);
            peer.get_unchoked();
            // The second is refused at once, before the first waits for its share.
            peer.send(&raw_peer::request(0, 0, 16_384));
            peer.send(&raw_peer::request(999, 0, 16_384));
            peer.wait_for(raw_peer::REJECT);
            peer
        })
        .collect();
    let stopped_at = Instant::now();
    seed.signal(Signal::SIGTERM);
    assert_eq!(seed.wait_exit(Duration::from_secs(10)), 143);
    let took = stopped_at.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(!seed.stderr().contains("did not end"), "{}", seed.stderr());
}

#[test]
fn a_dead_udp_tracker_is_told_after_the_first_repeat_and_holds_up_no_stop() {
    // Takes datagrams and answers none.
    let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("udp://{}/announce", dead.local_addr().unwrap());
    let sample = Sample::file(100_000, 16_384, &[&url]);
    let since = Instant::now();
    let mut leech = download(&sample, &sample.dir("out"), &[]);
    let is_error = |event: &serde_json::Value| event["event"] == "error";
    let error = leech.wait_for_within("trouble", Duration::from_secs(20), is_error);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&url[..url.len() - 9]), "{message}");
    assert!(since.elapsed() >= Duration::from_secs(14), "BEP 15's time");
    stops_quickly(&mut leech);
}

#[test]
fn an_http_tracker_that_never_answered_holds_up_no_stop() {
    let dead = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/announce", dead.local_addr().unwrap());
    let sample = Sample::file(100_000, 16_384, &[&url]);
    let mut leech = download(&sample, &sample.dir("out"), &[]);
    let _asked = dead.accept().unwrap();
    stops_quickly(&mut leech);
}

fn stops_quickly(leech: &mut Gyre) {
    let stopped_at = Instant::now();
    leech.signal(Signal::SIGINT);
    assert_eq!(leech.wait_exit(Duration::from_secs(10)), 130);
    let took = stopped_at.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn completed_is_announced_by_the_run_that_completed_only() {
    let (url, requests) = tracker(b"d8:intervali1800e5:peers0:e".to_vec());
    let sample = Sample::file(100_000, 16_384, &[&url]);
    let out = sample.dir("out");
    copy_into(&sample, &out);
    let mut seed = download(&sample, &out, &["--seed", "--no-ipv6"]);
    seed.event("complete");
    let started = requests.recv_timeout(program::PATIENCE).unwrap();
    assert!(started.contains("event=started"), "{started}");
    // Long enough for the announce that must not come: it would follow the answer to `started` at once.
    let next = requests.recv_timeout(Duration::from_secs(2));
    assert!(next.is_err(), "{next:?}");
    seed.signal(Signal::SIGTERM);
    assert_eq!(seed.wait_exit(Duration::from_secs(10)), 143);
    let stopped = requests.recv_timeout(program::PATIENCE).unwrap();
    assert!(stopped.contains("event=stopped"), "{stopped}");
}

#[test]
fn without_ipv6_no_ipv6_peer_is_dialed_whoever_names_it() {
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let Ok(six) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        println!("skipped: this machine has no IPv6");
        return;
    };
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port().to_be_bytes();
    let mut body = b"d8:intervali1800e5:peers6:\x7f\0\0\x01".to_vec();
    body.extend(port(&four));
    body.extend(b"6:peers618:");
    body.extend(Ipv6Addr::LOCALHOST.octets());
    body.extend(port(&six));
    body.push(b'e');
    let (url, _requests) = tracker(body);
    let sample = Sample::file(100_000, 16_384, &[&url]);
    let named = SocketAddr::from((Ipv6Addr::LOCALHOST, six.local_addr().unwrap().port()));
    let options = ["--no-ipv6", "--peer", &named.to_string()];
    let mut leech = download(&sample, &sample.dir("out"), &options);
    let (_stream, _) = four.accept().unwrap();
    leech.signal(Signal::SIGINT);
    assert_eq!(leech.wait_exit(Duration::from_secs(10)), 130);
    six.set_nonblocking(true).unwrap();
    let dialed = six.accept().map(|(_, from)| from);
    assert_eq!(dialed.map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
}

#[test]
fn incomplete_data_is_seeded_with_a_warning() {
    let sample = Sample::file(100_000, 16_384, &[]);
    let data = sample.dir("damaged");
    copy_into(&sample, &data);
    let path = data.join(sample.content.file_name().unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (state, torrent) = (text(&sample.dir("state")), text(&sample.torrent));
    let arguments = ["seed", &torrent, "--data", &text(&data), "--state", &state];
    let mut seed = Gyre::start(&[&arguments[..], &["--port", "0", "--no-trackers"]].concat());
    let warning = seed.event("warning");
    let message = warning["message"].as_str().unwrap();
    assert!(message.starts_with("6 of 7 pieces"), "{message}");
    seed.signal(Signal::SIGTERM);
    assert_eq!(seed.wait_exit(Duration::from_secs(10)), 143);
}
