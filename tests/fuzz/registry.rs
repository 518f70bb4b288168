//! The tracker's memory under any announces, from what a stranger sends to what he is answered.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use gyre::base::{InfoHash, Now, PeerId};
use gyre::swarm::registry::{Registry, RegistryConfig};
use gyre::wire::tracker::{Event, Family};
use gyre::wire::tracker_http::parse_announce;
use gyre::wire::tracker_http::serve::{Announced, Listed, PeerForm, SwarmCounts, announce_body};
use gyre::wire::tracker_udp::{self, UdpAnswer};

const NUMWANT_MAX: u32 = 6;
const PEERS_PER_SWARM_MAX: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(60);

fn config() -> RegistryConfig {
    RegistryConfig {
        swarms_max: 4,
        peers_max: 12,
        peers_per_swarm_max: PEERS_PER_SWARM_MAX as usize,
        peers_per_network_max: 4,
        numwant_default: 3,
        numwant_max: NUMWANT_MAX,
        ..RegistryConfig::new(INTERVAL)
    }
}

/// Announces: the tables agree, limits hold, and each answer reads back.
pub fn registry(data: &[u8]) {
    let mut registry = Registry::new(config(), 7);
    let mut now = Now::from_secs(1_000);
    for step in data.chunks_exact(8) {
        let &[time, source, hash, peer, port, event, wanted, claimed] = step else {
            return;
        };
        now = now + INTERVAL * u32::from(time & 7) / 4;
        let announced = Announced {
            info_hash: InfoHash::new([hash % 5; 20]),
            peer_id: PeerId::new([peer % 16; 20]),
            port: u16::from(port % 8) * 1_000,
            is_seeder: event & 16 != 0,
            event: match event % 5 {
                1 => Some(Event::Started),
                2 => Some(Event::Completed),
                3 => Some(Event::Stopped),
                _ => None,
            },
            numwant: (wanted != 255).then_some(u32::from(wanted) << (wanted % 25)),
            key: (peer & 0x80 != 0).then_some(u64::from(peer & 3)),
            ip: (claimed & 1 == 1).then(|| ip(claimed >> 1)),
        };
        announce(&mut registry, ip(source), &announced, now);
        if time & 0xc0 == 0 {
            let hashes = [announced.info_hash; 3];
            assert_eq!(registry.scrape(Family::V4, &hashes, now).len(), 3);
            assert!(registry.totals(now).peers() <= config().peers_max);
        }
    }
}

fn ip(byte: u8) -> IpAddr {
    match byte % 8 {
        0 => [127, 0, 0, 1].into(),
        1 => [10, 0, 0, byte / 8].into(),
        2 => [0; 4].into(),
        3 => [0x2600, 1, 0, 0, 0, 0, 0, u16::from(byte / 8)].into(),
        4 => [0xfd00, u16::from(byte), 0, 0, 0, 0, 0, 1].into(),
        5 => [0, 0, 0, 0, 0, 0xffff, 0x0909, u16::from(byte / 8)].into(),
        _ => [9, 9, 9, byte / 8].into(),
    }
}

/// One announce, and its answer in every form.
pub fn announce(registry: &mut Registry, source: IpAddr, announced: &Announced, now: Now) {
    let answer = registry.announce(source, announced, 64, now);
    registry.check();
    let Ok(answer) = answer else {
        return;
    };
    assert!(answer.peers.len() <= NUMWANT_MAX as usize);
    let counted = answer.counts.seeders + answer.counts.leechers;
    assert!(counted <= PEERS_PER_SWARM_MAX, "{counted} in one torrent");
    let addrs: Vec<SocketAddr> = answer.peers.iter().map(|peer| peer.addr).collect();
    let is_v6 = addrs.first().is_some_and(SocketAddr::is_ipv6);
    let family = if is_v6 { Family::V6 } else { Family::V4 };
    assert!(addrs.iter().all(|addr| family.has(addr.ip())), "{addrs:?}");
    if announced.event == Some(Event::Stopped) {
        assert!(addrs.is_empty(), "who leaves needs no peers");
    }
    let forms = [
        PeerForm::Compact,
        PeerForm::Dictionary { has_peer_id: true },
        PeerForm::Dictionary { has_peer_id: false },
    ];
    for form in forms {
        reads_back(answer.counts, &answer.peers, form, source, &addrs);
    }
    let datagram = tracker_udp::announce_answer(3, 60, answer.counts, addrs.iter().copied());
    match tracker_udp::parse_answer(&datagram, family) {
        Ok(UdpAnswer::Announced(read)) => assert_eq!(read.peers, addrs),
        other => panic!("{other:?}"),
    }
}

fn reads_back(
    counts: SwarmCounts,
    peers: &[Listed],
    form: PeerForm,
    source: IpAddr,
    addrs: &[SocketAddr],
) {
    let body = announce_body(60, 30, counts, peers, form, source);
    let read = parse_announce(&body).expect("our own answer");
    assert_eq!(read.peers, addrs, "{form:?}");
    assert_eq!(read.seeders, Some(counts.seeders));
    assert_eq!(read.leechers, Some(counts.leechers));
}
