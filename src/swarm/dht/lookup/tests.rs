use super::*;
use crate::base::Rng;

const TARGET: NodeId = NodeId::new([0x55; 20]);

fn lookup() -> Lookup {
    Lookup::new(TARGET, Purpose::Nodes, Vec::new(), Now::ZERO)
}

fn local(n: u16, rng: &mut Rng) -> Contact {
    Contact {
        id: identity::make(None, rng),
        addr: SocketAddr::from(([127, 0, 0, 1], 1 + n)),
    }
}

fn asked(contact: Contact) -> Next {
    Next {
        addr: contact.addr,
        id: Some(contact.id),
    }
}

#[test]
fn the_nearest_are_asked_first_and_four_at_a_time() {
    let (mut lookup, mut rng) = (lookup(), Rng::new(1));
    let mut all: Vec<Contact> = (0..40).map(|n| local(n, &mut rng)).collect();
    all.iter().for_each(|contact| lookup.add(*contact));
    all.sort_by_key(|contact| TARGET.distance(&contact.id));
    let now = Now::from_millis(1);
    let first: Vec<Next> = std::iter::from_fn(|| lookup.next(now)).collect();
    let expected: Vec<Next> = all[..ALPHA].iter().map(|contact| asked(*contact)).collect();
    assert_eq!(first, expected);
    // One that is late lets another be asked, and may still answer.
    lookup.on_late(first[0]);
    assert_eq!(lookup.next(now), Some(asked(all[ALPHA])));
    assert_eq!(lookup.next(now), None);
    lookup.on_answer(first[0], all[0], Some(b"token"));
    lookup.check();
    assert_eq!(lookup.answered(), 1);
}

#[test]
fn it_ends_when_the_eight_nearest_have_answered() {
    let (mut lookup, mut rng) = (lookup(), Rng::new(1));
    let all: Vec<Contact> = (0..40).map(|n| local(n, &mut rng)).collect();
    all.iter().for_each(|contact| lookup.add(*contact));
    let now = Now::from_millis(1);
    while let Some(next) = lookup.next(now) {
        assert!(!lookup.is_done(now));
        let contact = all
            .iter()
            .find(|contact| contact.addr == next.addr)
            .unwrap();
        lookup.on_answer(next, *contact, Some(&next.addr.port().to_be_bytes()));
        lookup.check();
    }
    assert!(lookup.is_done(now));
    assert_eq!(lookup.queries(), K as u32);
    let announce_at = lookup.announce_at();
    assert_eq!(announce_at.len(), K);
    for (contact, token) in announce_at {
        assert_eq!(token, contact.addr.port().to_be_bytes());
        assert!(all.contains(&contact));
    }
}

#[test]
fn endless_nearer_nodes_end_with_the_queries_or_the_time() {
    for is_slow in [false, true] {
        let (mut lookup, mut rng) = (lookup(), Rng::new(1));
        let mut now = Now::ZERO;
        lookup.add(local(0, &mut rng));
        let mut port = 1;
        let mut rounds = 0;
        while !lookup.is_done(now) {
            rounds += 1;
            assert!(rounds < 10_000, "it never ends");
            now = now + Duration::from_millis(if is_slow { 1_000 } else { 1 });
            while let Some(next) = lookup.next(now) {
                let id = next.id.unwrap();
                lookup.on_answer(
                    next,
                    Contact {
                        id,
                        addr: next.addr,
                    },
                    None,
                );
                // A liar makes up sixteen nodes, each nearer than the one that was asked.
                for _ in 0..16 {
                    let mut bytes = *id.as_bytes();
                    let common = TARGET.common_bits(&id).min(NodeId::BITS - 2);
                    bytes[common / 8] ^= 0x80 >> (common % 8);
                    port += 1;
                    let addr = SocketAddr::from(([127, 0, 0, 1], port));
                    let id = NodeId::new(bytes);
                    lookup.add(Contact { id, addr });
                }
                lookup.check();
                if is_slow {
                    break;
                }
            }
        }
        assert!(lookup.queries() <= QUERIES_MAX);
        assert!(now <= lookup.deadline() + Duration::from_secs(1));
    }
}

#[test]
fn one_network_does_not_fill_the_list() {
    let mut lookup = lookup();
    let mut rng = Rng::new(1);
    for last in 0..=255 {
        for port in 1..20 {
            let id = identity::make(None, &mut rng);
            let addr = SocketAddr::from(([6, 6, 6, last], port));
            lookup.add(Contact { id, addr });
        }
    }
    let now = Now::from_millis(1);
    let mut asked = 0;
    while let Some(next) = lookup.next(now) {
        asked += 1;
        lookup.on_late(next);
    }
    assert_eq!(asked, CANDIDATES_PER_NETWORK_MAX);
}

#[test]
fn nodes_whose_ids_do_not_belong_to_their_addresses_do_not_end_it() {
    let mut lookup = lookup();
    let mut rng = Rng::new(1);
    let addr = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from(0x0800_0001 + (n << 8)).into(), 1);
    // Eight strangers stand right at the target.
    let mut near = *TARGET.as_bytes();
    for n in 0..8 {
        near[19] = n;
        let id = NodeId::new(near);
        lookup.add(Contact {
            id,
            addr: addr(u32::from(n)),
        });
    }
    for n in 100..120 {
        let id = identity::make(Some(addr(n).ip()), &mut rng);
        lookup.add(Contact { id, addr: addr(n) });
    }
    let now = Now::from_millis(1);
    let mut liars_token = 0;
    while let Some(next) = lookup.next(now) {
        let id = next.id.unwrap();
        lookup.on_answer(
            next,
            Contact {
                id,
                addr: next.addr,
            },
            Some(b"t"),
        );
    }
    assert!(lookup.is_done(now));
    for (contact, _) in lookup.announce_at() {
        liars_token += usize::from(!identity::fits(&contact.id, contact.addr.ip()));
    }
    assert_eq!(liars_token, 0, "announced at strangers' chosen ids");
    assert_eq!(lookup.announce_at().len(), K);
}

#[test]
fn a_door_becomes_a_candidate_when_it_answers() {
    let door = SocketAddr::from(([127, 0, 0, 1], 9));
    let mut lookup = Lookup::new(TARGET, Purpose::Nodes, vec![door], Now::ZERO);
    let now = Now::from_millis(1);
    let next = lookup.next(now).unwrap();
    assert_eq!(
        next,
        Next {
            addr: door,
            id: None
        }
    );
    assert!(!lookup.is_done(now));
    let id = NodeId::new([7; 20]);
    lookup.on_answer(next, Contact { id, addr: door }, Some(b"t"));
    assert!(lookup.is_done(now));
    assert_eq!(lookup.announce_at().len(), 1);
    let mut dead = Lookup::new(TARGET, Purpose::Nodes, vec![door], Now::ZERO);
    let next = dead.next(now).unwrap();
    dead.on_failed(next);
    assert!(dead.is_done(now));
}
