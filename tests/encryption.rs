//! Two commands that find each other through `--peer`, with every pair of `--encryption`, and a relay between them that
//! sees what anybody on the way would see.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Gyre, Sample, sample::text};

/// One direction of one connection.
struct Seen {
    is_from_dialer: bool,
    bytes: Vec<u8>,
}

/// Passes connections on, and keeps what goes through them.
struct Relay {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Relay {
    fn to(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let kept = seen.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else {
                    continue;
                };
                for is_from_dialer in [true, false] {
                    let (from, to) = match is_from_dialer {
                        true => (&near, &far),
                        false => (&far, &near),
                    };
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let kept = kept.clone();
                    std::thread::spawn(move || pass_on(from, to, is_from_dialer, &kept));
                }
            }
        });
        Relay { addr, seen }
    }

    /// Whether the one that dialed, or the other, said that.
    fn has_heard(&self, is_from_dialer: bool, part: &[u8]) -> bool {
        let seen = self.seen.lock().unwrap();
        let mut of_it = seen.iter().filter(|it| it.is_from_dialer == is_from_dialer);
        of_it.any(|it| it.bytes.windows(part.len()).any(|window| window == part))
    }

    fn connections(&self) -> usize {
        self.seen.lock().unwrap().len() / 2
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, is_from_dialer: bool, kept: &Mutex<Vec<Seen>>) {
    let mut all = kept.lock().unwrap();
    let number = all.len();
    all.push(Seen {
        is_from_dialer,
        bytes: Vec::new(),
    });
    drop(all);
    let mut buffer = [0; 16_384];
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        kept.lock().unwrap()[number]
            .bytes
            .extend_from_slice(&buffer[..got]);
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// What becomes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Obfuscated,
    Encrypted,
    Apart,
}

use Fate::{Apart, Encrypted, Obfuscated, Open};

/// Much enough to be seen while it goes, at the seeder's limit.
const BYTES: usize = 3 << 20;

struct Pair {
    sample: Sample,
    seed: Gyre,
    leech: Gyre,
    relay: Relay,
}

impl Pair {
    fn new(dialing: &str, dialed: &str) -> Pair {
        let sample = Sample::file(BYTES, 65_536, &[]);
        let (state, out) = (text(&sample.dir("state")), text(&sample.dir("out")));
        let (torrent, data) = (text(&sample.torrent), text(&sample.data));
        let common = ["--state", &state, "--port", "0", "--no-lsd", "--no-ipv6"];
        let seed = ["seed", &torrent, "--data", &data, "--limit-up", "1MiB"];
        let of_seed = ["--encryption", dialed, "-vv"];
        let mut seed = Gyre::start(&[&seed[..], &common, &of_seed].concat());
        let relay = Relay::to(seed.listening());
        // Before that it knows no torrent, and refuses every handshake.
        seed.wait_for("seeding", |event| event["state"] == "seeding");
        let peer = relay.addr.to_string();
        let leech = ["download", &torrent, "-o", &out, "--peer", &peer];
        let of_leech = ["--encryption", dialing, "-vv"];
        let leech = Gyre::start(&[&leech[..], &common, &of_leech].concat());
        Pair {
            sample,
            seed,
            leech,
            relay,
        }
    }

    fn ends(mut self, fate: Fate) {
        let wanted = match fate {
            Open => (0, 0),
            Obfuscated => (0, 1),
            Encrypted => (1, 0),
            Apart => return self.stays_apart(),
        };
        for gyre in [&mut self.seed, &mut self.leech] {
            let progress = gyre.wait_for("a peer", |event| {
                event["event"] == "progress" && event["peers"] == 1
            });
            let count = |name: &str| progress[name].as_u64().unwrap();
            let counts = (count("peers_encrypted"), count("peers_obfuscated"));
            assert_eq!(counts, wanted, "{}", gyre.stderr());
        }
        self.leech.event("complete");
        assert_eq!(self.leech.wait_exit(Duration::from_secs(20)), 0);
        assert!(self.sample.is_same_in(&self.sample.dir("out")));
        let content = std::fs::read(&self.sample.content).unwrap();
        let is_open = fate == Open;
        // A plain payload begins with the handshake of the one that was dialed.
        let is_plain = fate != Encrypted;
        for part in [&b"BitTorrent protocol"[..], &self.sample.info_hash] {
            assert_eq!(self.relay.has_heard(true, part), is_open);
            assert_eq!(self.relay.has_heard(false, part), is_plain);
        }
        assert_eq!(
            self.relay.has_heard(false, &content[100_000..100_032]),
            is_plain
        );
    }

    fn stays_apart(mut self) {
        for _ in 0..3 {
            let progress = self.leech.event("progress");
            assert_eq!(
                (&progress["peers"], &progress["have_bytes"]),
                (&0.into(), &0.into())
            );
        }
        assert!(self.relay.connections() > 0, "it was not even tried");
        let content = std::fs::read(&self.sample.content).unwrap();
        assert!(!self.relay.has_heard(false, &content[..32]));
    }
}

#[test]
fn two_that_prefer_it_hide_the_beginning_alone() {
    Pair::new("prefer", "prefer").ends(Obfuscated);
}

#[test]
fn who_requires_it_encrypts_all_of_a_connection_with_one_that_prefers_it() {
    Pair::new("prefer", "require").ends(Encrypted);
    Pair::new("require", "prefer").ends(Encrypted);
}

#[test]
fn two_that_require_it_encrypt_everything() {
    Pair::new("require", "require").ends(Encrypted);
}

#[test]
fn who_prefers_it_goes_on_in_the_open_with_one_that_has_it_off() {
    Pair::new("prefer", "off").ends(Open);
    Pair::new("off", "prefer").ends(Open);
    Pair::new("off", "off").ends(Open);
}

#[test]
fn who_requires_it_and_who_has_it_off_stay_apart() {
    Pair::new("require", "off").ends(Apart);
    Pair::new("off", "require").ends(Apart);
}
