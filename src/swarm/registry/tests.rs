//! Worlds drawn as strings. `a` … `z` are IPv4 clients, `A` … `Z` IPv6 ones, each at an address of its own with a key
//! of its own; `a.` announces as a leecher, `a*` as a seeder, `a!` has just completed, `a-` stops.

use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_secs(600);
const HASH: InfoHash = InfoHash::new([1; 20]);

struct World {
    registry: Registry,
    now: Now,
}

fn config() -> RegistryConfig {
    RegistryConfig::new(INTERVAL)
}

fn world(drawn: &str) -> World {
    World::with(config(), drawn)
}

fn addr_of(name: u8) -> SocketAddr {
    match name.is_ascii_lowercase() {
        true => SocketAddr::new([10, 0, 0, name].into(), 1_000),
        false => SocketAddr::new([0x2001, 0xdb8, name.into(), 0, 0, 0, 0, 1].into(), 1_000),
    }
}

fn name_of(addr: SocketAddr) -> char {
    (b'a'..=b'z')
        .chain(b'A'..=b'Z')
        .find(|name| addr_of(*name) == addr)
        .map_or('?', char::from)
}

fn announced(step: &str) -> Announced {
    let name = step.as_bytes()[0];
    let (is_seeder, event) = match &step[1..] {
        "." => (false, None),
        "*" => (true, None),
        "!" => (true, Some(Event::Completed)),
        "-" => (false, Some(Event::Stopped)),
        other => panic!("{other}?"),
    };
    Announced {
        info_hash: HASH,
        peer_id: PeerId::new([name; 20]),
        port: 1_000,
        is_seeder,
        event,
        numwant: None,
        key: Some(name.into()),
        ip: None,
    }
}

impl World {
    fn with(config: RegistryConfig, drawn: &str) -> World {
        let mut world = World {
            registry: Registry::new(config, 1),
            now: Now::from_secs(1),
        };
        world.run(drawn);
        world
    }

    fn run(&mut self, drawn: &str) {
        for step in drawn.split_whitespace() {
            self.tell(step).unwrap();
        }
    }

    fn tell(&mut self, step: &str) -> Result<Answer, Refused> {
        self.tell_as(step.as_bytes()[0], &announced(step))
    }

    /// An announce that comes from the address of `from`, whoever it is about.
    fn tell_as(&mut self, from: u8, announced: &Announced) -> Result<Answer, Refused> {
        let source = addr_of(from).ip();
        let answer = self.registry.announce(source, announced, 1_000, self.now);
        self.registry.check();
        answer
    }

    /// Whom an announce is told about, in alphabetic order.
    fn told(&mut self, step: &str) -> String {
        names(&self.tell(step).unwrap().peers)
    }

    fn later(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    /// All who are registered for the one torrent, in alphabetic order.
    fn draw(&mut self) -> String {
        self.registry.expire(self.now);
        self.registry.check();
        let peers = self.registry.swarms.values().flat_map(Peers::iter);
        let mut drawn: Vec<String> = peers
            .map(|peer| {
                format!(
                    "{}{}",
                    name_of(peer.addr),
                    [".", "*"][usize::from(peer.is_seeder)]
                )
            })
            .collect();
        drawn.sort();
        drawn.join(" ")
    }

    fn counts(&mut self, family: Family) -> (u32, u32, u32) {
        let counts = self.registry.scrape(family, &[HASH], self.now)[0].unwrap_or_default();
        (counts.seeders, counts.leechers, counts.completed)
    }
}

fn names(peers: &[Listed]) -> String {
    let mut names: Vec<char> = peers.iter().map(|peer| name_of(peer.addr)).collect();
    names.sort_unstable();
    names.into_iter().collect()
}

#[test]
fn everyone_hears_of_everyone_else() {
    let mut w = world("a. b. c*");
    assert_eq!(w.draw(), "a. b. c*");
    assert_eq!(w.told("a."), "bc");
    assert_eq!(w.told("d."), "abc");
    assert_eq!(w.counts(Family::V4), (1, 3, 0));
}

#[test]
fn seeders_hear_of_leechers_only() {
    let mut w = world("a. b. c* d*");
    assert_eq!(w.told("c*"), "ab");
    assert_eq!(w.told("e*"), "ab");
}

#[test]
fn families_are_swarms_of_their_own() {
    let mut w = world("a. b* A. B* C*");
    assert_eq!(w.told("a."), "b");
    assert_eq!(w.told("A."), "BC");
    assert_eq!(w.counts(Family::V4), (1, 1, 0));
    assert_eq!(w.counts(Family::V6), (2, 1, 0));
    let totals = w.registry.totals(w.now);
    assert_eq!((totals.torrents, totals.peers()), (1, 5));
}

#[test]
fn a_mapped_address_is_the_ipv4_peer_it_maps() {
    let mut w = world("a. b.");
    let source = "::ffff:10.0.0.97".parse().unwrap();
    let answer = w.registry.announce(source, &announced("a-"), 9, w.now);
    assert!(answer.unwrap().peers.is_empty());
    assert_eq!(w.draw(), "b.");
}

#[test]
fn completion_is_counted_once_and_only_of_leechers() {
    let mut w = world("a. b*");
    w.run("a! a! a* b! c!");
    assert_eq!(w.draw(), "a* b* c*");
    assert_eq!(w.counts(Family::V4), (3, 0, 1));
}

#[test]
fn who_stops_is_gone_and_told_of_nobody() {
    let mut w = world("a. b.");
    assert_eq!(w.told("b-"), "");
    assert_eq!(w.draw(), "a.");
    assert_eq!(
        w.told("z-"),
        "",
        "a stranger that stops leaves nothing behind"
    );
    w.run("a-");
    assert_eq!(w.draw(), "");
    assert_eq!(w.registry.scrape(Family::V4, &[HASH], w.now), [None]);
}

#[test]
fn who_is_silent_for_too_long_is_forgotten() {
    let mut w = world("a. b.");
    w.later(600);
    w.run("b.");
    w.later(599);
    assert_eq!(w.draw(), "a. b.");
    w.later(1);
    assert_eq!(w.draw(), "b.");
    assert_eq!(w.told("c."), "b");
    w.later(1_200);
    assert_eq!(w.draw(), "");
}

#[test]
fn slow_clients_are_remembered_whatever_the_interval() {
    assert_eq!(
        RegistryConfig::new(Duration::from_secs(2)).expiry,
        EXPIRY_MIN
    );
}

#[test]
fn nobody_else_removes_or_changes_a_peer() {
    let mut w = world("a. b.");
    // The peer id is known to the whole swarm, the key is not.
    let stop = Announced {
        key: Some(999),
        ..announced("a-")
    };
    w.tell_as(b'a', &stop).unwrap();
    w.tell_as(b'c', &announced("a-")).unwrap();
    let seed = Announced {
        key: Some(999),
        ..announced("a*")
    };
    let answer = w.tell_as(b'a', &seed).unwrap();
    assert_eq!(names(&answer.peers), "b", "answered all the same");
    assert_eq!(w.draw(), "a. b.");
    let keyless = Announced {
        key: None,
        ..announced("a-")
    };
    w.tell_as(b'a', &keyless).unwrap();
    assert_eq!(w.draw(), "a. b.");
}

#[test]
fn a_successor_takes_the_address_once_its_predecessor_is_silent() {
    let mut w = world("a. b.");
    let successor = Announced {
        peer_id: PeerId::new([b'z'; 20]),
        key: Some(5),
        ..announced("a*")
    };
    w.later(599);
    w.tell_as(b'a', &successor).unwrap();
    assert_eq!(w.draw(), "a. b.");
    w.later(1);
    w.tell_as(b'a', &successor).unwrap();
    assert_eq!(w.draw(), "a* b.");
    w.later(599);
    w.tell_as(b'a', &announced("a-")).unwrap();
    w.tell_as(b'a', &announced("a.")).unwrap();
    assert_eq!(w.draw(), "a* b.", "the predecessor has no say any more");
}

#[test]
fn a_client_with_its_key_moves_to_another_address() {
    let mut w = world("a. b.");
    w.tell_as(b'c', &announced("a.")).unwrap();
    assert_eq!(w.draw(), "b. c.");
    // Without a key two addresses are two clients.
    let keyless = Announced {
        key: None,
        ..announced("d.")
    };
    w.tell_as(b'd', &keyless).unwrap();
    w.tell_as(b'e', &keyless).unwrap();
    assert_eq!(w.draw(), "b. c. d. e.");
    // An address that somebody else holds is not moved to.
    w.tell_as(b'b', &announced("a*")).unwrap();
    assert_eq!(w.draw(), "b. c. d. e.");
}

#[test]
fn numwant_is_kept_to_and_capped() {
    let mut w = world("");
    for name in b'a'..=b'z' {
        w.tell_as(name, &announced(&format!("{}.", char::from(name))))
            .unwrap();
    }
    let wanted = |numwant| Announced {
        numwant,
        ..announced("a.")
    };
    for (numwant, told) in [(Some(0), 0), (Some(3), 3), (Some(u32::MAX), 25), (None, 25)] {
        let answer = w.tell_as(b'a', &wanted(numwant)).unwrap();
        assert_eq!(answer.peers.len(), told, "{numwant:?}");
    }
    let answer = w
        .registry
        .announce(addr_of(b'a').ip(), &wanted(None), 7, w.now);
    assert_eq!(answer.unwrap().peers.len(), 7);
    let mut w = World::with(
        RegistryConfig {
            numwant_default: 2,
            numwant_max: 4,
            ..config()
        },
        "b. c. d. e. f. g.",
    );
    assert_eq!(w.tell_as(b'a', &wanted(None)).unwrap().peers.len(), 2);
    assert_eq!(w.tell_as(b'a', &wanted(Some(9))).unwrap().peers.len(), 4);
}

#[test]
fn picks_are_random_and_repeated_by_the_seed() {
    let picks = |seed| {
        let mut registry = Registry::new(config(), seed);
        let mut all = Vec::new();
        for name in b'a'..=b'z' {
            let few = Announced {
                numwant: Some(3),
                ..announced(&format!("{}.", char::from(name)))
            };
            let answer = registry.announce(addr_of(name).ip(), &few, 9, Now::ZERO);
            all.extend(answer.unwrap().peers.iter().map(|peer| name_of(peer.addr)));
        }
        all.into_iter().collect::<String>()
    };
    assert_eq!(picks(1), picks(1));
    assert_ne!(picks(1), picks(2));
}

#[test]
fn every_limit_refuses_newcomers_and_keeps_the_others() {
    let limits = RegistryConfig {
        swarms_max: 2,
        peers_max: 5,
        peers_per_swarm_max: 3,
        peers_per_network_max: 2,
        ..config()
    };
    let mut w = World::with(limits, "a. b. c.");
    assert_eq!(w.tell("d."), Err(Refused::SwarmFull));
    let other = |hash: u8, name: &str, port| Announced {
        info_hash: InfoHash::new([hash; 20]),
        port,
        key: None,
        ..announced(name)
    };
    w.tell_as(b'd', &other(2, "d.", 1)).unwrap();
    w.tell_as(b'd', &other(2, "d.", 2)).unwrap();
    assert_eq!(
        w.tell_as(b'd', &other(2, "d.", 3)),
        Err(Refused::NetworkFull)
    );
    assert_eq!(
        w.tell_as(b'e', &other(2, "e.", 1)),
        Err(Refused::TooManyPeers)
    );
    w.run("c-");
    assert_eq!(
        w.tell_as(b'e', &other(3, "e.", 1)),
        Err(Refused::TooManySwarms)
    );
    // Who is in is answered, limits or not.
    w.tell_as(b'e', &other(2, "e.", 1)).unwrap();
    w.run("a* b!");
    w.tell_as(b'd', &other(2, "d.", 2)).unwrap();
    // Room comes back with those who leave.
    w.later(1_200);
    w.run("d. e. f.");
    assert_eq!(w.draw(), "d. e. f.");
}

#[test]
fn an_ipv6_network_is_counted_as_one_address() {
    let limits = RegistryConfig {
        peers_per_network_max: 2,
        ..config()
    };
    let mut w = World::with(limits, "");
    for (host, expected) in [(1, Ok(())), (2, Ok(())), (3, Err(Refused::NetworkFull))] {
        let source = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host).into();
        let announced = Announced {
            key: None,
            ..announced("A.")
        };
        let answer = w.registry.announce(source, &announced, 9, w.now);
        assert_eq!(answer.map(drop), expected);
    }
}

#[test]
fn port_zero_is_refused() {
    let mut w = world("");
    let announced = Announced {
        port: 0,
        ..announced("a.")
    };
    assert_eq!(w.tell_as(b'a', &announced), Err(Refused::BadPort));
    assert_eq!(w.draw(), "");
}

#[test]
fn a_claimed_address_is_believed_from_inside_only() {
    for (source, claimed, expected) in [
        ("127.0.0.1", "8.8.8.8", "8.8.8.8"),
        ("127.0.0.1", "127.0.0.9", "127.0.0.9"),
        ("192.168.1.2", "8.8.8.8", "8.8.8.8"),
        ("192.168.1.2", "127.0.0.1", "192.168.1.2"),
        ("192.168.1.2", "0.0.0.0", "192.168.1.2"),
        ("192.168.1.2", "224.0.0.1", "192.168.1.2"),
        ("192.168.1.2", "2001:db8::1", "192.168.1.2"),
        ("8.8.4.4", "8.8.8.8", "8.8.4.4"),
        ("8.8.4.4", "192.168.1.2", "8.8.4.4"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("2001:db8::2", "2001:db8::1", "2001:db8::2"),
    ] {
        let got = believed_ip(source.parse().unwrap(), Some(claimed.parse().unwrap()));
        assert_eq!(got.to_string(), expected, "{claimed} from {source}");
    }
}

#[test]
fn loopback_peers_are_told_to_this_machine_only() {
    let mut registry = Registry::new(config(), 1);
    let mut ask = |source: &str, name: &str| {
        let source = source.parse().unwrap();
        let answer = registry.announce(source, &announced(name), 9, Now::ZERO);
        answer.unwrap().peers.len()
    };
    assert_eq!(ask("127.0.0.1", "a."), 0);
    assert_eq!(ask("192.168.1.2", "b."), 0);
    assert_eq!(ask("127.0.0.1", "a."), 1);
    assert_eq!(ask("8.8.8.8", "c."), 1);
}

proptest! {
    /// Whatever is announced, the tables agree, and a peer disappears only by its own doing or by silence.
    #[test]
    fn a_peer_disappears_only_by_its_own_doing(
        steps in proptest::collection::vec((0u8..4, 0u8..6, 0u8..3, 0u8..4, 0u64..400), 1..120),
    ) {
        let limits = RegistryConfig { swarms_max: 3, peers_max: 6, peers_per_swarm_max: 4, peers_per_network_max: 3, ..config() };
        let mut w = World::with(limits, "");
        for (kind, from, identity, hash, seconds) in steps {
            w.later(seconds);
            let suffix = [".", "*", "!", "-"][usize::from(kind)];
            let name = char::from(b'a' + identity);
            let announced = Announced {
                info_hash: InfoHash::new([hash; 20]),
                key: (identity > 0).then_some(identity.into()),
                ..announced(&format!("{name}{suffix}"))
            };
            let owner = (announced.peer_id, announced.key);
            let from = if from < 3 { b'a' + from } else { b'A' + from };
            w.registry.expire(w.now);
            let before: Vec<(SwarmKey, Peer)> = everyone(&w.registry);
            let answer = w.tell_as(from, &announced);
            let after = everyone(&w.registry);
            for (key, peer) in before {
                let is_there = after.iter().any(|(k, p)| *k == key && p.addr == peer.addr && p.owner == peer.owner);
                let is_own_doing = peer.owner == owner && key.0 == announced.info_hash;
                let is_silent = w.now.since(peer.last_seen) >= INTERVAL;
                prop_assert!(is_there || is_own_doing || is_silent);
            }
            if let Ok(answer) = answer {
                let own = SocketAddr::new(addr_of(from).ip(), 1_000);
                prop_assert!(answer.peers.iter().all(|peer| peer.addr != own && peer.addr.is_ipv4() == own.is_ipv4()));
            }
        }
    }
}

fn everyone(registry: &Registry) -> Vec<(SwarmKey, Peer)> {
    let of = |(key, peers): (&SwarmKey, &Peers)| {
        peers.iter().map(|peer| (*key, *peer)).collect::<Vec<_>>()
    };
    registry.swarms.iter().flat_map(of).collect()
}
