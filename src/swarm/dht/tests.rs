use super::*;
use crate::base::NodeId;
use crate::swarm::dht::limits::AMPLIFICATION_MAX;
use crate::wire::krpc::{
    ANSWER_BYTES_MAX, Answer, Body, Contact, Method, Query, Reply, Want, encode_query,
};
use std::time::Duration;

const HASH: InfoHash = InfoHash::new([0x42; 20]);
const STRANGER: NodeId = NodeId::new([0x77; 20]);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A node alone, and what it sent.
struct World {
    dht: Dht,
    now: Now,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    peers: Vec<SocketAddr>,
}

impl World {
    fn new() -> Self {
        let config = DhtConfig {
            families: vec![Family::V4, Family::V6],
            secret: [3; 32],
            seed: 1,
            is_read_only: false,
        };
        let mut world = World {
            dht: Dht::new(&config, None, Now::from_secs(1_000)),
            now: Now::from_secs(1_000),
            sent: Vec::new(),
            peers: Vec::new(),
        };
        world.call(|dht, now, fx| dht.start(now, fx));
        world
    }

    fn call(&mut self, call: impl FnOnce(&mut Dht, Now, &mut Vec<DhtEffect>)) {
        let mut fx = Vec::new();
        call(&mut self.dht, self.now, &mut fx);
        self.dht.check();
        for effect in fx {
            match effect {
                DhtEffect::Send { to, bytes } => {
                    assert!(bytes.len() <= ANSWER_BYTES_MAX);
                    self.sent.push((to, bytes));
                }
                DhtEffect::Peers { addrs, .. } => self.peers.extend(addrs),
                DhtEffect::Searched { .. } => {}
            }
        }
    }

    fn hear(&mut self, from: SocketAddr, bytes: &[u8]) {
        self.call(|dht, now, fx| dht.on_datagram(from, bytes, now, fx));
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.dht.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.call(|dht, now, fx| dht.on_deadline(now, fx));
        }
        self.now = end;
    }

    /// What was sent there since the last look, queries and answers apart.
    fn take(&mut self, to: SocketAddr) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (ours, rest) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|(at, _)| *at == to);
        self.sent = rest;
        let ours: Vec<(SocketAddr, Vec<u8>)> = ours;
        let is_query =
            |bytes: &Vec<u8>| matches!(Packet::parse(bytes).unwrap().body, Body::Query(_));
        ours.into_iter().map(|(_, bytes)| bytes).partition(is_query)
    }

    fn ask(&mut self, from: SocketAddr, method: Method<'_>, want: Option<Want>) -> Vec<Vec<u8>> {
        let query = Query {
            id: STRANGER,
            method,
            want,
            is_read_only: true,
        };
        self.take(from);
        self.hear(from, &encode_query(b"aa", &query));
        self.take(from).1
    }

    /// Answers everything that was asked of `from` with `reply`, under that id.
    fn answer(&mut self, from: SocketAddr, id: NodeId, reply: &Reply) -> usize {
        let (queries, _) = self.take(from);
        for query in &queries {
            let transaction = Packet::parse(query).unwrap().transaction.to_vec();
            let bytes = reply.encode(&transaction, &id, addr("9.8.7.6:5"));
            self.hear(from, &bytes);
        }
        queries.len()
    }

    /// These nodes answer whatever they were asked.
    fn answer_as(&mut self, nodes: &[Contact]) {
        for node in nodes {
            self.answer(node.addr, node.id, &Reply::default());
        }
    }

    /// A node that answers pings and gets into the table.
    fn befriend(&mut self, n: u32) -> Contact {
        self.pass(Duration::from_millis(100));
        let ip = std::net::Ipv4Addr::from(0x0900_0001 + (n << 8));
        let at = SocketAddr::new(ip.into(), 6881);
        let contact = Contact {
            id: identity::make(Some(ip.into()), &mut Rng::new(u64::from(n))),
            addr: at,
        };
        self.call(|dht, now, fx| dht.add_node(at, now, fx));
        assert!(self.answer(at, contact.id, &Reply::default()) > 0);
        contact
    }
}

fn get_peers() -> Method<'static> {
    Method::GetPeers {
        info_hash: HASH,
        no_seed: false,
        scrape: true,
    }
}

fn answer_of(bytes: &[u8]) -> Answer<'_> {
    match Packet::parse(bytes).unwrap().body {
        Body::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_sent_or_answered_before_the_start() {
    let config = DhtConfig {
        families: vec![Family::V4],
        secret: [3; 32],
        seed: 1,
        is_read_only: false,
    };
    let (mut dht, mut fx, now) = (Dht::new(&config, None, Now::ZERO), Vec::new(), Now::ZERO);
    dht.add_doors(&[addr("1.2.3.4:5")], now, &mut fx);
    dht.add_node(addr("1.2.3.4:5"), now, &mut fx);
    dht.search(HASH, None, now, &mut fx);
    let ping = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";
    dht.on_datagram(addr("1.2.3.4:5"), ping, now, &mut fx);
    dht.on_deadline(now, &mut fx);
    assert_eq!((fx.len(), dht.next_deadline()), (0, None));
}

#[test]
fn peers_are_announced_with_a_token_of_their_address_and_told_to_others() {
    let mut w = World::new();
    let (peer, other) = (addr("5.6.7.8:1000"), addr("5.6.9.9:2000"));
    let answers = w.ask(peer, get_peers(), None);
    let token = answer_of(&answers[0]).token.unwrap().to_vec();
    let announce = |port, token| Method::AnnouncePeer {
        info_hash: HASH,
        port,
        token,
        is_seed: false,
    };
    for (from, token) in [(other, &token[..]), (peer, b"12345678"), (peer, b"")] {
        let answers = w.ask(from, announce(Some(7), token), None);
        let refusal = Packet::parse(&answers[0]).unwrap();
        assert_eq!(refusal.body, Body::Error(203));
    }
    assert_eq!(w.dht.stats().stored_peers, 0);
    w.ask(peer, announce(Some(7_000), &token), None);
    w.pass(Duration::from_secs(2));
    let answers = w.ask(other, get_peers(), None);
    let told: Vec<SocketAddr> = answer_of(&answers[0]).values().collect();
    assert_eq!(told, [addr("5.6.7.8:7000")]);
    // The port that the datagram came from, when it says so.
    w.ask(peer, announce(None, &token), None);
    let answers = w.ask(other, get_peers(), None);
    assert_eq!(answer_of(&answers[0]).values().next(), Some(peer));
    // A token of long ago is none.
    w.pass(tokens::ROTATION * 2);
    let answers = w.ask(peer, announce(Some(7), &token), None);
    assert_eq!(Packet::parse(&answers[0]).unwrap().body, Body::Error(203));
}

#[test]
fn answers_to_an_address_that_may_be_forged_are_short() {
    let mut w = World::new();
    let mut nodes = Vec::new();
    for n in 0..40 {
        nodes.push(w.befriend(n));
        w.answer_as(&nodes);
    }
    // A torrent with as many peers as an answer has room for, and more.
    for n in 0..200_u32 {
        let peer = SocketAddr::new(std::net::Ipv4Addr::from(0x0b00_0001 + (n << 8)).into(), 999);
        let answers = w.ask(peer, get_peers(), None);
        let token = answer_of(&answers[0]).token.unwrap().to_vec();
        let announce = Method::AnnouncePeer {
            info_hash: HASH,
            port: Some(1),
            token: &token,
            is_seed: false,
        };
        w.ask(peer, announce, None);
        w.pass(Duration::from_millis(20));
        // Nodes that fell silent would be told to nobody, and leave room.
        w.answer_as(&nodes);
    }
    let victim = addr("66.1.2.3:53");
    let (mut bytes_in, mut bytes_out) = (0, 0);
    for method in [
        Method::Ping,
        Method::FindNode { target: STRANGER },
        get_peers(),
        Method::SampleInfohashes { target: STRANGER },
        Method::Unknown,
        Method::AnnouncePeer {
            info_hash: HASH,
            port: Some(1),
            token: b"x",
            is_seed: true,
        },
    ] {
        for want in [None, Some(Want::BOTH)] {
            let query = Query {
                id: STRANGER,
                method,
                want,
                is_read_only: true,
            };
            let bytes = encode_query(b"a", &query);
            w.hear(victim, &bytes);
            let (queries, answers) = w.take(victim);
            assert_eq!((queries.len(), answers.len()), (0, 1), "{method:?}");
            assert!(
                answers[0].len() <= AMPLIFICATION_MAX * bytes.len(),
                "{method:?}"
            );
            bytes_in += bytes.len();
            bytes_out += answers[0].len();
        }
    }
    assert!(bytes_out <= AMPLIFICATION_MAX * bytes_in);
    // Who has shown that it reads what we send gets as much as fits.
    let friend = nodes[0].addr;
    let scrape = w.ask(friend, get_peers(), None);
    assert!(
        scrape[0].windows(4).any(|part| part == b"BFsd"),
        "scrapes are for friends"
    );
    let plain = Method::GetPeers {
        info_hash: HASH,
        no_seed: false,
        scrape: false,
    };
    let query = Query {
        id: STRANGER,
        method: plain,
        want: None,
        is_read_only: true,
    };
    let short_max = AMPLIFICATION_MAX * encode_query(b"aa", &query).len();
    let (short, long) = (w.ask(victim, plain, None), w.ask(friend, plain, None));
    assert!(short[0].len() <= short_max && short_max < long[0].len());
    let count = |answers: &[Vec<u8>]| answer_of(&answers[0]).values().count();
    let (short, long) = (count(&short), count(&long));
    assert!(short < 40 && long > 40, "{short} and {long}");
}

#[test]
fn a_forged_flood_takes_no_memory_and_little_is_sent() {
    let mut w = World::new();
    for n in 0..30 {
        w.befriend(n);
    }
    w.pass(Duration::from_secs(2));
    w.sent.clear();
    let mut rng = Rng::new(5);
    // A second of 100,000 datagrams from as many addresses, each under another id.
    for n in 0..100_000_u64 {
        let from = SocketAddr::from((
            std::net::Ipv4Addr::from(rng.next_u64() as u32 | 0x1000_0000),
            6881,
        ));
        let query = Query {
            id: identity::make(None, &mut rng),
            method: if n % 2 == 0 {
                get_peers()
            } else {
                Method::Ping
            },
            want: None,
            is_read_only: false,
        };
        let bytes = encode_query(b"aa", &query);
        let mut fx = Vec::new();
        w.dht.on_datagram(from, &bytes, w.now, &mut fx);
        w.sent
            .extend(fx.into_iter().filter_map(|effect| match effect {
                DhtEffect::Send { to, bytes } => Some((to, bytes)),
                _ => None,
            }));
        w.now = w.now + Duration::from_micros(10);
    }
    w.dht.check();
    let bytes: usize = w.sent.iter().map(|(_, bytes)| bytes.len()).sum();
    let is_query = |bytes: &[u8]| matches!(Packet::parse(bytes).unwrap().body, Body::Query(_));
    let queries = w.sent.iter().filter(|(_, bytes)| is_query(bytes)).count();
    // The second that began before it and the one that it ends in.
    assert!(w.sent.len() <= 2 * (limits::ANSWERS_MAX + limits::PINGS_MAX) as usize);
    assert!(
        bytes <= 2 * (limits::ANSWER_BYTES_PER_S_MAX + 20 * ANSWER_BYTES_MAX),
        "{bytes}"
    );
    assert!(
        queries <= 2 * limits::PINGS_MAX as usize,
        "{queries} strangers were asked"
    );
    assert!(w.dht.stats().queries_dropped > 90_000);
}

#[test]
fn poisoned_answers_send_us_nowhere() {
    let mut w = World::new();
    let liar = w.befriend(1);
    w.call(|dht, now, fx| {
        dht.search(HASH, None, now, fx);
    });
    let bad = [
        "127.0.0.1:22",
        "10.0.0.1:80",
        "192.168.1.1:53",
        "169.254.1.1:1",
        "0.0.0.0:1",
        "1.2.3.4:0",
        "224.0.0.1:5",
        "255.255.255.255:1",
    ];
    let contacts = bad.iter().enumerate().map(|(n, text)| Contact {
        id: NodeId::new([n as u8; 20]),
        addr: addr(text),
    });
    // And itself, under many ids.
    let itself = (0..30).map(|n| Contact {
        id: NodeId::new([n; 20]),
        addr: liar.addr,
    });
    let values = bad
        .iter()
        .map(|text| addr(text))
        .chain([addr("[::1]:7"), addr("8.8.8.8:8")]);
    let reply = Reply {
        nodes_v4: Some(contacts.chain(itself).collect()),
        nodes_v6: Some(vec![Contact {
            id: NodeId::new([9; 20]),
            addr: addr("[fd00::1]:1"),
        }]),
        values: values.collect(),
        token: b"t".to_vec(),
        ..Reply::default()
    };
    assert!(w.answer(liar.addr, liar.id, &reply) > 0);
    w.pass(Duration::from_secs(60));
    let others: Vec<_> = w.sent.iter().filter(|(to, _)| *to != liar.addr).collect();
    assert_eq!(others.len(), 0, "{others:?}");
    assert_eq!(w.peers, [addr("8.8.8.8:8")]);
}

#[test]
fn answers_nobody_asked_for_change_nothing() {
    let mut w = World::new();
    let friend = w.befriend(1);
    w.call(|dht, now, fx| {
        dht.search(HASH, None, now, fx);
    });
    let (queries, _) = w.take(friend.addr);
    let transaction = Packet::parse(&queries[0]).unwrap().transaction.to_vec();
    let reply = Reply {
        values: vec![addr("8.8.8.8:8")],
        ..Reply::default()
    };
    let right = reply.encode(&transaction, &friend.id, addr("1.1.1.1:1"));
    let nodes = w.dht.stats().nodes_v4;
    // From elsewhere, for another transaction, under another id.
    w.hear(addr("6.6.6.6:6881"), &right);
    let other = SocketAddr::new(friend.addr.ip(), 1);
    w.hear(other, &right);
    w.hear(friend.addr, &reply.encode(b"\0\0\0\0", &friend.id, other));
    assert_eq!(w.dht.stats().bad_datagrams, 3);
    assert_eq!((w.peers.len(), w.dht.stats().nodes_v4), (0, nodes));
    w.hear(friend.addr, &reply.encode(&transaction, &STRANGER, other));
    assert_eq!(w.peers.len(), 0);
    assert_eq!(
        w.dht.stats().nodes_v4,
        nodes - 1,
        "it is not who it said it was"
    );
}

#[test]
fn who_only_asks_is_asked_back_before_it_is_known_and_a_read_only_node_is_not() {
    let mut w = World::new();
    let from = addr("7.7.7.7:7");
    w.ask(from, Method::Ping, None);
    assert_eq!(w.sent.len(), 0, "read-only");
    let query = Query {
        id: STRANGER,
        method: Method::Ping,
        want: None,
        is_read_only: false,
    };
    w.hear(from, &encode_query(b"aa", &query));
    assert_eq!(w.dht.stats().nodes_v4, 0);
    assert_eq!(w.answer(from, STRANGER, &Reply::default()), 1);
    assert_eq!(w.dht.stats().nodes_v4, 1);
}

#[test]
fn both_families_are_told_to_whoever_wants_them() {
    let mut w = World::new();
    let four = w.befriend(1);
    let six = Contact {
        id: identity::make(Some(addr("[2600:1::1]:1").ip()), &mut Rng::new(1)),
        addr: addr("[2600:1::1]:6881"),
    };
    w.call(|dht, now, fx| dht.add_node(six.addr, now, fx));
    w.answer(six.addr, six.id, &Reply::default());
    w.pass(Duration::from_secs(2));
    let asker = four.addr;
    let find = Method::FindNode { target: STRANGER };
    let counts = |bytes: &[u8]| {
        let answer = answer_of(bytes);
        (
            answer.nodes(Family::V4).count(),
            answer.nodes(Family::V6).count(),
        )
    };
    let four_only = w.ask(asker, find, None);
    assert_eq!(counts(&four_only[0]), (1, 0));
    let both = w.ask(asker, find, Some(Want::BOTH));
    assert_eq!(counts(&both[0]), (1, 1));
    let six_only = w.ask(asker, find, Some(Want::only(Family::V6)));
    assert_eq!(counts(&six_only[0]), (0, 1));
}

#[test]
fn our_id_follows_the_address_that_others_see() {
    let mut w = World::new();
    let ours = addr("9.8.7.6:5").ip();
    for n in 0..10 {
        w.befriend(n);
    }
    assert_eq!(w.dht.stats().external_v4, Some(ours));
    let answers = w.ask(addr("5.5.5.5:5"), Method::Ping, None);
    let answer = answer_of(&answers[0]);
    assert!(identity::fits(&answer.id, ours), "{:?}", answer.id);
    assert_eq!(answer.external, Some(addr("5.5.5.5:5")));
    assert!(w.dht.stats().nodes_v4 >= 8, "nodes stay");
    assert_eq!(w.dht.save().external, [ours]);
}

#[test]
fn a_node_that_nobody_reaches_becomes_read_only_and_tries_again() {
    let mut w = World::new();
    let friend = w.befriend(1);
    w.pass(node::READ_ONLY_AFTER + Duration::from_secs(10));
    assert!(w.dht.stats().is_read_only);
    w.take(friend.addr);
    // Whom it asked may ask back through the way that stands open: that proves nothing, and is not answered.
    assert_eq!(w.ask(friend.addr, Method::Ping, None).len(), 0);
    w.call(|dht, now, fx| dht.add_node(addr("4.4.4.4:4"), now, fx));
    let (queries, _) = w.take(addr("4.4.4.4:4"));
    let Body::Query(query) = Packet::parse(&queries[0]).unwrap().body else {
        panic!("no query");
    };
    assert!(query.is_read_only);
    // A query that came unasked is proof of the opposite.
    assert_eq!(w.ask(addr("5.5.5.5:5"), Method::Ping, None).len(), 1);
    assert!(!w.dht.stats().is_read_only);

    let mut lone = World::new();
    lone.befriend(1);
    lone.pass(node::READ_ONLY_AFTER + Duration::from_secs(10));
    assert!(lone.dht.stats().is_read_only);
    lone.pass(node::READ_ONLY_FOR);
    assert!(!lone.dht.stats().is_read_only);
}

#[test]
fn a_search_waits_for_somebody_to_ask_and_is_repeated_with_spread() {
    let mut w = World::new();
    let announce = Announce {
        port: Some(5_000),
        is_seed: true,
    };
    w.call(|dht, now, fx| {
        dht.search(HASH, Some(announce), now, fx);
    });
    w.pass(Duration::from_secs(60));
    assert_eq!(w.sent.len(), 0);
    // The door answers: the search goes through it at once.
    let door = addr("127.0.0.1:4000");
    w.call(|dht, now, fx| dht.add_doors(&[door], now, fx));
    let reply = Reply {
        token: b"token".to_vec(),
        values: vec![addr("127.0.0.1:5001")],
        ..Reply::default()
    };
    let id = NodeId::new([1; 20]);
    while w.answer(door, id, &reply) > 0 {}
    assert_eq!(w.peers, [addr("127.0.0.1:5001")]);
    let stats = w.dht.stats();
    assert_eq!((stats.searched, stats.nodes_v4), (1, 1));
    let mut times = Vec::new();
    for _ in 0..5_000 {
        w.pass(Duration::from_secs(1));
        let (queries, _) = w.take(door);
        for query in queries {
            let packet = Packet::parse(&query).unwrap();
            if let Body::Query(Query {
                method: Method::AnnouncePeer { port, is_seed, .. },
                ..
            }) = packet.body
            {
                assert_eq!((port, is_seed), (Some(5_000), true));
                times.push(w.now);
            }
            let bytes = reply.encode(packet.transaction, &id, addr("127.0.0.1:1"));
            w.hear(door, &bytes);
        }
    }
    // Soon again while there are hardly any nodes, then every quarter of an hour.
    let gaps: Vec<Duration> = times
        .windows(2)
        .map(|pair| pair[1].since(pair[0]))
        .collect();
    let quarter = Duration::from_secs(900);
    let (first, last) = (gaps[0], *gaps.last().unwrap());
    assert!(first < Duration::from_secs(20), "{gaps:?}");
    assert!(
        last > quarter * 8 / 10 && last < quarter * 12 / 10,
        "{gaps:?}"
    );
    w.call(|dht, _, _| dht.forget(&HASH));
    w.take(door);
    w.pass(Duration::from_secs(4_000));
    let (queries, _) = w.take(door);
    let is_search = |bytes: &Vec<u8>| bytes.windows(9).any(|part| part == b"get_peers");
    assert!(!queries.iter().any(is_search));
}

#[test]
fn a_peer_that_announces_itself_here_is_told_to_our_own_search() {
    let mut w = World::new();
    w.call(|dht, now, fx| {
        dht.search(HASH, None, now, fx);
    });
    let peer = addr("127.0.0.1:1000");
    let answers = w.ask(peer, get_peers(), None);
    let token = answer_of(&answers[0]).token.unwrap().to_vec();
    let announce = Method::AnnouncePeer {
        info_hash: HASH,
        port: Some(2_000),
        token: &token,
        is_seed: false,
    };
    w.ask(peer, announce, None);
    assert_eq!(w.peers, [addr("127.0.0.1:2000")]);
}

#[test]
fn what_is_known_is_saved_and_found_again() {
    let mut w = World::new();
    let friends: Vec<Contact> = (0..5).map(|n| w.befriend(n)).collect();
    let saved = Saved::decode(&w.dht.save().encode()).unwrap();
    assert!(friends.iter().all(|friend| saved.contacts.contains(friend)));
    let config = DhtConfig {
        families: vec![Family::V4],
        secret: [4; 32],
        seed: 9,
        is_read_only: false,
    };
    let mut again = Dht::new(&config, Some(saved), w.now);
    let mut fx = Vec::new();
    again.start(w.now, &mut fx);
    let asked = fx.iter().filter(|effect| match effect {
        DhtEffect::Send { to, .. } => friends.iter().any(|friend| friend.addr == *to),
        _ => false,
    });
    assert!(asked.count() > 0, "{fx:?}");
}
