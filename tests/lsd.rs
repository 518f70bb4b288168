//! Peers on the local network (BEP 14), with the whole command on the loopback interface.

mod support;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gyre::base::InfoHash;
use gyre::wire::lsd::{GROUP_V4, PORT, Search};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use support::program::PATIENCE;
use support::{Gyre, Sample, program, sample::text};

/// The group is everybody's, and the flood is nobody else's.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 192, 152, 143);

/// The command on the loopback interface, free to look for peers there.
fn start(arguments: &[&str], sample: &Sample, state: &str) -> Gyre {
    let mut command = program::command();
    command.env_remove("GYRE_NO_LSD").args(arguments);
    command.args(["--state", &text(&sample.dir(state)), "--port", "0"]);
    command.args(["--bind", "127.0.0.1", "--json"]);
    Gyre::spawn(command)
}

fn seed(sample: &Sample, torrents: &[&str]) -> Gyre {
    let data = text(&sample.data);
    let mut arguments = vec!["seed", "--data", &data];
    arguments.extend(torrents);
    start(&arguments, sample, "seeding")
}

/// A socket that hears and speaks to the group on the loopback interface.
fn group() -> UdpSocket {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None).unwrap();
    setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
    let addr = SockaddrIn::from(SocketAddrV4::new(GROUP, PORT));
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &addr).unwrap();
    let socket = UdpSocket::from(fd);
    socket
        .join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Speaks to the group on the loopback interface.
fn speaker() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn search(port: u16, info_hash: [u8; 20]) -> Vec<u8> {
    let search = Search {
        port: port.try_into().unwrap(),
        info_hashes: vec![InfoHash::new(info_hash)],
        cookie: None,
    };
    search.to_datagram(GROUP_V4)
}

/// What is announced until that torrent is.
fn announced_until(socket: &UdpSocket, info_hash: [u8; 20]) -> Vec<Search> {
    let mut heard = Vec::new();
    let mut buffer = [0; 2_000];
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let length = socket.recv(&mut buffer).expect("nothing was announced");
        let search = Search::parse(&buffer[..length]).unwrap();
        let is_last = search.info_hashes.contains(&InfoHash::new(info_hash));
        heard.push(search);
        if is_last {
            return heard;
        }
    }
    panic!("{info_hash:?} was not announced: {heard:?}");
}

/// A sample that no other test has: the group is everybody's.
fn sample(bytes: usize, private: bool) -> Sample {
    let sample = Sample::file(bytes, 16_384, &[]);
    let mut command = program::command();
    command.args(["create", "--json", "--piece-length", "16384"]);
    let torrent = sample.dir("own").join("own.torrent");
    command.args(["-o", &text(&torrent), &text(&sample.content)]);
    if private {
        command.arg("--private");
    }
    let unique = format!("{}-{}", std::process::id(), rand());
    command.args(["--source", &unique]);
    let output = command.output().unwrap();
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let info_hash: InfoHash = made["info_hash"].as_str().unwrap().parse().unwrap();
    Sample {
        torrent,
        info_hash: *info_hash.as_bytes(),
        ..sample
    }
}

fn rand() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let keys = std::collections::hash_map::RandomState::new();
    keys.build_hasher().finish()
}

fn complete(sample: &Sample) {
    let out = sample.dir("out");
    let (torrent, into) = (text(&sample.torrent), text(&out));
    let mut download = start(&["download", &torrent, "-o", &into], sample, "fetching");
    download.event("complete");
    assert!(sample.is_same_in(&out));
}

#[test]
fn peers_on_one_network_find_each_other_without_any_tracker() {
    let _alone = alone();
    let sample = sample(1_000_000, false);
    let mut seeder = seed(&sample, &[&text(&sample.torrent)]);
    seeder.event("listening");
    // Whoever comes first hears whoever comes later.
    complete(&sample);
}

#[test]
fn a_private_torrent_is_neither_named_nor_given_peers() {
    let _alone = alone();
    let (public, private) = (sample(100_000, false), sample(100_000, true));
    let socket = group();
    // Both are made of the same data.
    let torrents = [text(&private.torrent), text(&public.torrent)];
    let mut seeder = seed(&public, &torrents.each_ref().map(String::as_str));
    let addr = seeder.event("listening")["addr"]
        .as_str()
        .unwrap()
        .to_owned();
    let heard = announced_until(&socket, public.info_hash);
    let names = |info_hash| {
        heard
            .iter()
            .any(|search| search.info_hashes.contains(&info_hash))
    };
    assert!(!names(InfoHash::new(private.info_hash)), "{heard:?}");
    let port = addr.parse::<SocketAddr>().unwrap().port();
    assert_eq!(heard.last().unwrap().port.get(), port);

    let peers = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let ports = peers
        .each_ref()
        .map(|peer| peer.local_addr().unwrap().port());
    let speaker = speaker();
    for (port, sample) in ports.into_iter().zip([&private, &public]) {
        let datagram = search(port, sample.info_hash);
        speaker.send_to(&datagram, (GROUP, PORT)).unwrap();
    }
    let [unasked, asked] = peers;
    asked.set_nonblocking(false).unwrap();
    // The one that may be dialed is, and the other, told of before it, is not.
    asked.accept().unwrap();
    unasked.set_nonblocking(true).unwrap();
    assert_eq!(unasked.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_flood_on_the_local_network_is_bounded_and_stops_no_transfer() {
    let _alone = alone();
    let sample = sample(4_000_000, false);
    let mut seeder = seed(&sample, &[&text(&sample.torrent)]);
    let addr = seeder.event("listening")["addr"]
        .as_str()
        .unwrap()
        .to_owned();
    let speaker = speaker();
    let end = Instant::now() + Duration::from_secs(2);
    let flood = std::thread::spawn(move || {
        let mut port = 1;
        while Instant::now() < end {
            for datagram in [
                search(port, sample.info_hash),
                vec![b'x'; 1_400],
                Vec::new(),
            ] {
                // A full queue is what a flood makes.
                let _ = speaker.send_to(&datagram, (GROUP, PORT));
            }
            port = port % 60_000 + 1;
        }
        sample
    });
    let sample = flood.join().unwrap();
    let out = sample.dir("out");
    let (torrent, into) = (text(&sample.torrent), text(&out));
    let arguments = ["download", &torrent, "-o", &into, "--peer", &addr];
    let mut download = start(&arguments, &sample, "fetching");
    download.event("complete");
    assert!(sample.is_same_in(&out));
    let known = seeder.event("progress")["peers_known"].as_u64().unwrap();
    // Two seconds of the flood at the most that is taken of it, and one for their ends.
    assert!(known <= 200, "{known} addresses were taken");
}
