use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn book() -> Candidates {
    Candidates::new(false, Rng::new(1))
}

fn numbered(n: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0x0100_0000 + n).into(), 6881)
}

/// Every dial that comes up until `until` fails; returns their times in milliseconds.
fn failed_dials(book: &mut Candidates, until: Now) -> Vec<u64> {
    let mut times = Vec::new();
    let mut now = Now::ZERO;
    while let Some(at) = book.next_deadline(now)
        && at <= until
    {
        now = now.max(at);
        let addr = book.next_dial(now).expect("the deadline promised one");
        book.check();
        times.push(now.as_micros() / 1_000);
        book.on_dial_failed(addr, now);
        book.check();
    }
    times
}

#[test]
fn impossible_and_own_addresses_are_never_taken() {
    let mut b = book();
    b.add_own(addr("1.2.3.4:6881"));
    let bad = [
        "1.2.3.4:6881",
        "[::ffff:1.2.3.4]:6881",
        "1.2.3.5:0",
        "0.0.0.0:1",
        "0.1.2.3:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "250.0.0.1:1",
        "[::]:1",
        "[ff02::1]:1",
        "[fe80::1]:1",
    ];
    for text in bad {
        assert_eq!(b.add(Source::User, &[addr(text)], Now::ZERO), 0, "{text}");
    }
    assert_eq!(b.known_count(), 0);
}

#[test]
fn strangers_cannot_send_us_to_our_own_network() {
    let local = [
        addr("127.0.0.1:22"),
        addr("192.168.0.1:80"),
        addr("10.0.0.1:1"),
        addr("169.254.1.1:1"),
        addr("[::1]:1"),
        addr("[fd00::1]:1"),
    ];
    assert_eq!(book().add(Source::Pex, &local, Now::ZERO), 0);
    assert_eq!(book().add(Source::Dht, &local, Now::ZERO), 0);
    assert_eq!(book().add(Source::LocalPex, &local, Now::ZERO), 6);
    assert_eq!(book().add(Source::LocalDht, &local, Now::ZERO), 6);
    assert_eq!(book().add(Source::Tracker, &local, Now::ZERO), 6);
}

#[test]
fn private_torrents_listen_to_trackers_and_users_only() {
    let mut b = Candidates::new(true, Rng::new(1));
    for source in [
        Source::Pex,
        Source::Dht,
        Source::LocalDht,
        Source::Lsd,
        Source::LocalPex,
        Source::Inbound,
    ] {
        assert_eq!(b.add(source, &[addr("1.1.1.1:1")], Now::ZERO), 0);
    }
    assert_eq!(b.add(Source::Tracker, &[addr("1.1.1.1:1")], Now::ZERO), 1);
    assert_eq!(b.add(Source::User, &[addr("1.1.1.2:1")], Now::ZERO), 1);
}

#[test]
fn an_address_is_kept_and_dialed_once() {
    let mut b = book();
    let twice = [
        addr("1.1.1.1:1"),
        addr("1.1.1.1:1"),
        addr("[::ffff:1.1.1.1]:1"),
    ];
    assert_eq!(b.add(Source::Tracker, &twice, Now::ZERO), 1);
    assert_eq!(b.next_dial(Now::ZERO), Some(addr("1.1.1.1:1")));
    assert_eq!(b.next_dial(Now::ZERO), None);
    assert_eq!(b.next_deadline(Now::ZERO), None);
    b.on_connected(addr("1.1.1.1:1"));
    b.add(Source::Pex, &twice, Now::ZERO);
    assert_eq!(b.next_dial(Now::from_secs(9_999)), None);
    b.check();
}

#[test]
fn failures_back_off_doubling_and_then_drop_the_address() {
    let mut b = book();
    b.add(Source::Tracker, &[addr("1.1.1.1:1")], Now::ZERO);
    let times = failed_dials(&mut b, Now::from_secs(100_000));
    assert_eq!(times.len(), 6);
    for (at, pair) in times.windows(2).enumerate() {
        let base = 15_000 << at;
        let gap = pair[1] - pair[0];
        assert!((base..=base * 5 / 4 + 1).contains(&gap), "{times:?}");
    }
    assert_eq!(b.known_count(), 0);
    b.add(Source::Tracker, &[addr("1.1.1.1:1")], Now::ZERO);
    assert_eq!(b.known_count(), 1, "named again, tried again");
}

#[test]
fn peers_of_the_user_are_retried_soon_and_for_ever() {
    let mut b = book();
    b.add(Source::User, &[addr("1.1.1.1:1")], Now::ZERO);
    let times = failed_dials(&mut b, Now::from_secs(150));
    let secs: Vec<u64> = times.iter().map(|ms| ms / 1_000).collect();
    assert_eq!(secs, [0, 1, 3, 7, 15, 31, 61, 91, 121]);
    assert_eq!(b.known_count(), 1);
}

#[test]
fn peers_of_the_user_are_dialed_first() {
    let mut b = book();
    let others: Vec<SocketAddr> = (0..100).map(numbered).collect();
    b.add(Source::Tracker, &others, Now::ZERO);
    b.add(Source::User, &[addr("9.9.9.9:9")], Now::ZERO);
    assert_eq!(b.next_dial(Now::ZERO), Some(addr("9.9.9.9:9")));
}

#[test]
fn a_useful_peer_is_dialed_again_soon_a_useless_one_late() {
    let cases = [
        (Parting::Useful, 5, 10),
        (Parting::Useless, 600, 1_200),
        (Parting::Faulty, 900, 1_800),
        (Parting::Duplicate, 120, 240),
        (Parting::Broken, 15, 19),
    ];
    for (parting, min_secs, max_secs) in cases {
        let mut b = book();
        b.add(Source::Tracker, &[addr("1.1.1.1:1")], Now::ZERO);
        b.next_dial(Now::ZERO).unwrap();
        b.on_connected(addr("1.1.1.1:1"));
        b.on_disconnected(addr("1.1.1.1:1"), parting, Now::ZERO);
        b.check();
        let at = b.next_deadline(Now::ZERO).unwrap();
        let range = Now::from_secs(min_secs)..=Now::from_secs(max_secs);
        assert!(range.contains(&at), "{parting:?} {at}");
    }
}

#[test]
fn no_seed_is_dialed_while_we_are_complete() {
    let mut b = book();
    b.add(
        Source::Tracker,
        &[addr("1.1.1.1:1"), addr("1.1.1.2:1")],
        Now::ZERO,
    );
    b.mark_seed(addr("1.1.1.1:1"), true);
    b.set_complete(true);
    b.check();
    assert_eq!(b.next_dial(Now::ZERO), Some(addr("1.1.1.2:1")));
    assert_eq!(b.next_dial(Now::ZERO), None);
    b.set_complete(false);
    b.check();
    assert_eq!(b.next_dial(Now::ZERO), Some(addr("1.1.1.1:1")));
}

#[test]
fn a_ban_forgets_every_port_and_holds() {
    let mut b = book();
    let ports: Vec<SocketAddr> = (1..100)
        .map(|port| SocketAddr::new(addr("1.1.1.1:1").ip(), port))
        .collect();
    b.add(Source::Tracker, &ports, Now::ZERO);
    b.add(
        Source::User,
        &[addr("1.1.1.1:200"), addr("1.1.1.2:1")],
        Now::ZERO,
    );
    assert!(b.ban(addr("1.1.1.1:1").ip()));
    assert!(!b.ban(addr("[::ffff:1.1.1.1]:1").ip()));
    b.check();
    assert_eq!(b.known_count(), 1);
    assert_eq!(b.add(Source::User, &ports, Now::ZERO), 0);
    b.on_disconnected(ports[0], Parting::Faulty, Now::ZERO);
    b.check();
}

#[test]
fn a_flood_of_addresses_is_bounded_and_washes_nothing_better_out() {
    let mut b = book();
    let flood: Vec<SocketAddr> = (0..100_000).map(numbered).collect();
    b.add(Source::User, &[addr("9.9.9.9:9")], Now::ZERO);
    b.add(Source::Tracker, &[addr("8.8.8.8:8")], Now::ZERO);
    assert_eq!(b.add(Source::Pex, &flood, Now::ZERO), CANDIDATES_MAX - 1);
    assert_eq!(b.known_count(), CANDIDATES_MAX + 1);
    let tracked: Vec<SocketAddr> = (200_000..210_000).map(numbered).collect();
    assert_eq!(
        b.add(Source::Tracker, &tracked, Now::ZERO),
        CANDIDATES_MAX - 1,
        "a better source takes the places of the flood"
    );
    assert!(b.is_known(addr("9.9.9.9:9")) && b.is_known(addr("8.8.8.8:8")));
    assert_eq!(b.known_count(), CANDIDATES_MAX + 1);
    b.check();
}

#[test]
fn failed_and_useless_addresses_make_room_first() {
    let mut b = book();
    let full: Vec<SocketAddr> = (0..CANDIDATES_MAX as u32).map(numbered).collect();
    b.add(Source::Tracker, &full, Now::ZERO);
    let failed = b.next_dial(Now::ZERO).unwrap();
    b.on_dial_failed(failed, Now::ZERO);
    assert_eq!(b.add(Source::Tracker, &[addr("9.9.9.9:9")], Now::ZERO), 1);
    assert!(!b.is_known(failed));
    b.check();
}

#[test]
fn random_events_keep_the_lists_in_step() {
    let mut rng = Rng::new(5);
    for seed in 0..20 {
        let mut b = Candidates::new(false, Rng::new(seed));
        let mut now = Now::ZERO;
        for _ in 0..400 {
            now = now + Duration::from_millis(rng.below(20_000));
            let one = numbered(rng.below(20) as u32);
            match rng.below(10) {
                0..=2 => drop(b.add(Source::Pex, &[one], now)),
                3 => drop(b.add(Source::User, &[one], now)),
                4 => b.on_connected(one),
                5 => b.on_dial_failed(one, now),
                6 => b.on_disconnected(one, Parting::Useful, now),
                7 => b.mark_seed(one, rng.chance(50)),
                8 => b.set_complete(rng.chance(50)),
                _ => drop(b.next_dial(now)),
            }
            if rng.chance(1) {
                b.ban(one.ip());
            }
            b.check();
        }
    }
}

#[test]
fn once_our_address_is_known_equals_are_dialed_by_their_priority() {
    let mut b = book();
    let ours = addr("9.9.9.9:6881");
    let spread = |n: u32| SocketAddr::new(Ipv4Addr::from_bits(n * 0x0707_1111).into(), 6881);
    let early: Vec<SocketAddr> = (1..20).map(spread).collect();
    b.add(Source::Tracker, &early, Now::ZERO);
    assert_eq!(b.priority(early[0]), None);
    b.set_seen_at(ours);
    b.check();
    let late: Vec<SocketAddr> = (20..30).map(spread).collect();
    b.add(Source::Tracker, &late, Now::ZERO);
    assert_eq!(b.add(Source::Tracker, &[ours], Now::ZERO), 0, "our own");
    let dialed = std::iter::from_fn(|| b.next_dial(Now::ZERO));
    let order: Vec<u32> = dialed.map(|addr| priority(ours, addr)).collect();
    assert_eq!(order.len(), 29);
    assert!(order.is_sorted_by(|one, next| one >= next));
}

#[test]
fn listed_addresses_are_forgotten_and_taken_from_nobody_until_the_list_changes() {
    let list = |text: &[u8]| {
        let mut reader = crate::wire::ip_filter::Reader::default();
        reader.feed(text).unwrap();
        std::sync::Arc::new(reader.finish().unwrap().filter)
    };
    let now = Now::from_secs(1);
    let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (listed, mapped, free) = (
        addr("8.8.8.8:1"),
        addr("[::ffff:8.8.8.9]:1"),
        addr("9.9.9.9:1"),
    );
    let mut b = Candidates::new(false, Rng::new(1));
    b.add(Source::Tracker, &[listed, mapped, free], now);
    let dialed = b.next_dial(now).unwrap();
    b.set_filter(list(b"8.8.8.0/24"));
    b.check();
    assert_eq!((b.known_count(), b.filtered_count()), (1, 2));
    b.on_dial_failed(dialed, now);
    for source in [
        Source::User,
        Source::Tracker,
        Source::Lsd,
        Source::Dht,
        Source::Pex,
    ] {
        assert_eq!(b.add(source, &[listed, mapped], now), 0, "{source:?}");
    }
    b.check();
    assert_eq!(b.filtered_count(), 2, "each counts once");
    b.set_filter(list(b"9.9.9.9"));
    assert_eq!(b.add(Source::Pex, &[listed, mapped, free], now), 2);
    b.check();
}
