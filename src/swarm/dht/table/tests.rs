use super::*;
use crate::base::Rng;

fn addr(n: u32) -> SocketAddr {
    // One network each.
    SocketAddr::new(
        std::net::Ipv4Addr::from(0x0100_0001 + (n << 8)).into(),
        6881,
    )
}

fn id(rng: &mut Rng) -> NodeId {
    identity::make(None, rng)
}

fn ours() -> NodeId {
    NodeId::new([0; 20])
}

/// An id with so many leading bits in common with ours.
fn near(bits: usize, rng: &mut Rng) -> NodeId {
    let mut bytes = *id(rng).as_bytes();
    for bit in 0..bits {
        bytes[bit / 8] &= !(0x80 >> (bit % 8));
    }
    bytes[bits / 8] |= 0x80 >> (bits % 8);
    NodeId::new(bytes)
}

#[test]
fn the_nearest_nodes_are_given_and_failed_ones_are_not() {
    let (mut table, mut rng) = (Table::new(ours()), Rng::new(1));
    let now = Now::from_secs(1);
    let mut all = Vec::new();
    for n in 0..60 {
        let contact = Contact {
            id: id(&mut rng),
            addr: SocketAddr::from(([127, 0, 0, 1], 1_000 + n)),
        };
        if table.on_answer(contact, now) {
            all.push(contact);
        }
        table.check();
    }
    let target = id(&mut rng);
    all.sort_by_key(|contact| target.distance(&contact.id));
    assert_eq!(table.closest(&target, None, K), all[..K]);
    table.on_silence(all[0]);
    assert_eq!(table.closest(&target, None, K), all[1..=K]);
    let world = Some(IpAddr::from([9, 9, 9, 9]));
    assert_eq!(
        table.closest(&target, world, K),
        [],
        "local nodes are not told outside"
    );
}

#[test]
fn one_address_is_one_node_and_one_network_has_two() {
    let (mut table, mut rng) = (Table::new(ours()), Rng::new(1));
    let now = Now::from_secs(1);
    let from = |ip: [u8; 4], port, rng: &mut Rng| Contact {
        id: id(rng),
        addr: SocketAddr::from((ip, port)),
    };
    let mut taken = 0;
    for port in 1..200 {
        taken += u32::from(table.on_answer(from([8, 8, 8, 8], port, &mut rng), now));
    }
    assert_eq!(taken, 1);
    for last in 1..200 {
        taken += u32::from(table.on_answer(from([8, 8, 8, last], 1, &mut rng), now));
    }
    assert_eq!(taken, NODES_PER_NETWORK_MAX);
    let contact = from([8, 8, 9, 1], 1, &mut rng);
    assert!(table.wants(contact, now) && table.on_answer(contact, now));
    assert!(!table.wants(from([8, 8, 8, 250], 1, &mut rng), now));
    // On one machine everybody has the same address.
    for port in 1..20 {
        taken += u32::from(table.on_answer(from([127, 0, 0, 1], port, &mut rng), now));
    }
    assert!(taken > 10, "{taken}");
    table.check();
}

#[test]
fn ids_that_collide_on_one_bucket_fill_that_bucket_alone() {
    let (mut table, mut rng) = (Table::new(ours()), Rng::new(1));
    let now = Now::from_secs(1);
    for n in 0..10_000 {
        let contact = Contact {
            id: near(20, &mut rng),
            addr: addr(n),
        };
        table.on_answer(contact, now);
    }
    table.check();
    assert_eq!(table.len(), K);
    let other = Contact {
        id: near(5, &mut rng),
        addr: addr(20_000),
    };
    assert!(table.on_answer(other, now));
}

#[test]
fn good_nodes_keep_their_places_and_silent_ones_lose_them() {
    let (mut table, mut rng) = (Table::new(ours()), Rng::new(1));
    let mut now = Now::from_secs(1);
    let contacts: Vec<Contact> = (0..20)
        .map(|n| Contact {
            id: near(10, &mut rng),
            addr: SocketAddr::from(([127, 0, 0, 1], 1 + n)),
        })
        .collect();
    let taken = contacts
        .iter()
        .filter(|contact| table.on_answer(**contact, now));
    assert_eq!(taken.count(), K);
    // A spare takes the place of one that does not answer.
    table.on_silence(contacts[0]);
    table.check();
    assert_eq!(table.len(), K);
    assert!(table.nodes().all(|node| node.contact != contacts[0]));
    // Each is asked after a while, the longest silent first.
    now = now + QUESTIONABLE_AFTER;
    let mut asked = Vec::new();
    while let Some(contact) = table.next_questionable(now) {
        asked.push(contact);
    }
    assert_eq!(asked.len(), K);
    // Without a spare two failures are borne.
    let lonely = Contact {
        id: near(30, &mut rng),
        addr: addr(7),
    };
    table.on_answer(lonely, now);
    table.on_silence(lonely);
    assert!(table.nodes().any(|node| node.contact == lonely));
    table.on_silence(lonely);
    assert!(table.nodes().all(|node| node.contact != lonely));
    table.check();
}

#[test]
fn an_id_that_belongs_to_its_address_is_preferred() {
    let (mut table, mut rng) = (Table::new(ours()), Rng::new(1));
    let now = Now::from_secs(1);
    let mut misfits = Vec::new();
    while misfits.len() < 64 {
        let n = misfits.len() as u32;
        let contact = Contact {
            id: near(0, &mut rng),
            addr: addr(n),
        };
        if !identity::fits(&contact.id, contact.addr.ip()) && table.on_answer(contact, now) {
            misfits.push(contact);
        }
    }
    let mut fitting = Vec::new();
    for n in 100..200 {
        let id = identity::make(Some(addr(n).ip()), &mut rng);
        let contact = Contact { id, addr: addr(n) };
        table.on_answer(contact, now);
        fitting.push(contact);
    }
    table.check();
    let told = table.closest(&misfits[0].id, None, K);
    assert!(
        told.iter().all(|contact| fitting.contains(contact)),
        "{told:?}"
    );
}

#[test]
fn another_id_of_ours_keeps_the_nodes() {
    let (mut table, mut rng) = (Table::new(ours()), Rng::new(1));
    let now = Now::from_secs(1);
    for n in 0..40 {
        let contact = Contact {
            id: id(&mut rng),
            addr: addr(n),
        };
        table.on_answer(contact, now);
    }
    let before = table.len();
    table.rebuild(id(&mut rng), now);
    table.check();
    assert!(table.len() * 4 >= before * 3, "{} of {before}", table.len());
}
