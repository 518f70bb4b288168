//! What carries a dialed connection out there, where addresses are public: uTP first, TCP where nobody answers that within
//! three seconds, and TCP first from then on where it was needed.
//!
//! Two namespaces with one pair of interfaces between them; whatever passes is read.

mod support;

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::net::{Capture, Net};
use support::sample::text;
use support::{Gyre, Sample, machine};

const SEED: &str = "11.9.0.1:7001";
/// What a dial over uTP is given where TCP can follow.
const UTP_TIMEOUT: Duration = Duration::from_secs(3);

/// What the leecher sent towards the seed, in order: of uTP and of TCP the packets that begin connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Utp,
    Tcp,
}

struct Pair {
    sample: Sample,
    here: Net,
    there: Net,
    signs: Arc<Mutex<Vec<(Instant, Sign)>>>,
    _capture: Capture,
}

impl Pair {
    fn new(test: &str) -> Option<Pair> {
        if !machine::has_root(test) {
            return None;
        }
        let (Some(here), Some(there)) = (Net::new(), Net::new()) else {
            machine::skipped(test, "no network namespaces");
            return None;
        };
        let path = there.path();
        here.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {path}"
        ));
        for (net, last) in [(&here, 1), (&there, 2)] {
            net.ip(&format!("address add 11.9.0.{last}/24 dev eth0"));
            net.ip("link set eth0 up");
        }
        let signs = Arc::<Mutex<Vec<_>>>::default();
        let noted = signs.clone();
        let on_frame = move |frame: &[u8]| {
            if let Some(sign) = sign_of(frame) {
                noted.lock().unwrap().push((Instant::now(), sign));
            }
        };
        let capture = there.inside(move || Capture::on("eth0", on_frame));
        Some(Pair {
            sample: Sample::file(1 << 20, 65_536, &[]),
            here,
            there,
            signs,
            _capture: capture,
        })
    }

    fn start(&self, net: &Net, name: &str, arguments: &[&str]) -> Gyre {
        let state = text(&self.sample.dir(&format!("{name}-state")));
        let mut command = net.command(env!("CARGO_BIN_EXE_gyre"));
        command.args(arguments);
        command.args(["--state", &state, "--no-ipv6", "--json", "-vv"]);
        Gyre::spawn(command)
    }

    fn seed(&self, more: &[&str]) -> Gyre {
        let (torrent, data) = (text(&self.sample.torrent), text(&self.sample.data));
        let verb = ["seed", &torrent, "--data", &data, "--port", "7001"];
        let mut seed = self.start(&self.here, "seed", &[&verb[..], more].concat());
        seed.wait_for("seeding", |event| event["state"] == "seeding");
        seed
    }

    fn leech(&self) -> Gyre {
        let (torrent, out) = (text(&self.sample.torrent), text(&self.sample.dir("out")));
        let verb = ["download", &torrent, "-o", &out, "--peer", SEED, "--seed"];
        self.start(
            &self.there,
            "leech",
            &[&verb[..], &["--port", "7002"]].concat(),
        )
    }

    fn signs(&self) -> Vec<(Instant, Sign)> {
        self.signs.lock().unwrap().clone()
    }

    /// From now on nothing of uTP comes to the seed. False where packets cannot be dropped.
    fn drop_datagrams(&self, test: &str) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        let table = "
table ip deaf {
    chain input {
        type filter hook input priority filter;
        udp dport 7001 drop
    }
}
";
        std::fs::write(&rules, table).unwrap();
        let mut nft = self.here.command("nft");
        nft.arg("-f").arg(&rules).stderr(Stdio::null());
        let is_done = nft.status().is_ok_and(|status| status.success());
        if !is_done {
            machine::skipped(test, "nft is missing or the kernel has no filter");
        }
        is_done
    }
}

/// The beginning of a connection to the seed's port.
fn sign_of(frame: &[u8]) -> Option<Sign> {
    let ip = frame.get(14..)?;
    if frame[12..14] != [0x08, 0x00] || ip.get(16..20)? != [11, 9, 0, 1] {
        return None;
    }
    let packet = ip.get(usize::from(ip[0] & 0x0f) * 4..)?;
    if packet.get(2..4)? != 7_001_u16.to_be_bytes() {
        return None;
    }
    match ip[9] {
        17 if packet.get(8) == Some(&0x41) => Some(Sign::Utp),
        6 if packet.get(13)? & 0x12 == 0x02 => Some(Sign::Tcp),
        _ => None,
    }
}

#[test]
fn peers_out_there_are_dialed_over_utp_first() {
    let test = "peers_out_there_are_dialed_over_utp_first";
    let Some(pair) = Pair::new(test) else { return };
    let mut seed = pair.seed(&[]);
    let mut leech = pair.leech();
    let progress = leech.wait_for("a peer", |event| event["peers"] == 1);
    assert_eq!(progress["peers_utp"], 1);
    seed.wait_for("the leecher", |event| event["peers_utp"] == 1);
    let signs: Vec<Sign> = pair.signs().iter().map(|(_, sign)| *sign).collect();
    assert!(
        !signs.is_empty() && !signs.contains(&Sign::Tcp),
        "{signs:?}"
    );
}

#[test]
fn where_utp_is_refused_tcp_follows_at_once() {
    let test = "where_utp_is_refused_tcp_follows_at_once";
    let Some(pair) = Pair::new(test) else { return };
    let _seed = pair.seed(&["--no-utp"]);
    let mut leech = pair.leech();
    let progress = leech.wait_for("a peer", |event| event["peers"] == 1);
    assert_eq!(progress["peers_utp"], 0);
    let signs = pair.signs();
    let order: Vec<Sign> = signs.iter().map(|(_, sign)| *sign).collect();
    assert_eq!(order, [Sign::Utp, Sign::Tcp]);
    assert!(signs[1].0 - signs[0].0 < UTP_TIMEOUT / 2);
}

#[test]
fn where_utp_is_not_answered_tcp_follows_after_three_seconds_and_comes_first_from_then_on() {
    let test =
        "where_utp_is_not_answered_tcp_follows_after_three_seconds_and_comes_first_from_then_on";
    let Some(pair) = Pair::new(test) else { return };
    if !pair.drop_datagrams(test) {
        return;
    }
    // The leecher is to want it still when it comes back.
    let slowly = ["--limit-up", "64KiB"];
    let mut seed = pair.seed(&slowly);
    let mut leech = pair.leech();
    let progress = leech.wait_for("a peer", |event| event["peers"] == 1);
    assert_eq!(progress["peers_utp"], 0);
    let signs = pair.signs();
    let tcp = signs
        .iter()
        .position(|(_, sign)| *sign == Sign::Tcp)
        .unwrap();
    assert!(tcp > 0 && signs[..tcp].iter().all(|(_, sign)| *sign == Sign::Utp));
    let waited = signs[tcp].0 - signs[0].0;
    assert!(
        (UTP_TIMEOUT - UTP_TIMEOUT / 10..UTP_TIMEOUT * 2).contains(&waited),
        "{waited:?}"
    );
    // The seed comes back: now TCP goes first.
    seed.kill9();
    leech.wait_for("nobody", |event| {
        event["event"] == "progress" && event["peers"] == 0
    });
    let before = pair.signs().len();
    let _seed = pair.seed(&slowly);
    leech.wait_for("the seed again", |event| event["peers"] == 1);
    let later = &pair.signs()[before..];
    assert_eq!(later.first().map(|(_, sign)| *sign), Some(Sign::Tcp));
    assert!(
        later
            .iter()
            .rev()
            .take(1)
            .all(|(_, sign)| *sign == Sign::Tcp)
    );
}
