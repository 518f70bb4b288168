//! What a SOCKS proxy says, and lists of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gyre::wire::ip_filter::{IpFilter, Reader};
use gyre::wire::socks::{
    ANSWER_BYTES_MAX, Client, Command, Login, SocksError, Target, UDP_HEAD_BYTES_MAX, unwrap, wrap,
};

/// A proxy's answers: the same end however they are cut, no byte behind them taken, and no more kept than one answer.
pub fn socks_answers(data: &[u8]) {
    let [how, data @ ..] = data else { return };
    let login = (how & 1 == 1).then(|| Login::new(b"user".to_vec(), b"word".to_vec()));
    let target = Target::Name("a.example".to_owned(), 80);
    let make = || Client::new(Command::Connect, &target, login.clone().flatten()).expect("short");
    let whole = shake(make(), data, usize::MAX);
    assert_eq!(shake(make(), data, 1), whole);
    assert_eq!(shake(make(), data, usize::from(*how >> 1) + 1), whole);
}

type End = (usize, Vec<u8>, Result<Option<Target>, SocksError>);

fn shake(mut client: Client, data: &[u8], step: usize) -> End {
    let (mut at, mut sent) = (0_usize, client.take_out());
    loop {
        let wanted = client.wanted();
        assert!((1..=ANSWER_BYTES_MAX).contains(&wanted));
        let end = data.len().min(at.saturating_add(wanted.min(step)));
        if at == end {
            return (at, sent, Ok(None));
        }
        let fed = client.feed(&data[at..end]);
        at = end;
        sent.extend(client.take_out());
        match fed {
            Ok(None) => {}
            // Where a refusal is noticed depends on the cut; that it is one does not.
            Err(error) => return (0, sent, Err(error)),
            done => return (at, sent, done),
        }
    }
}

/// Datagrams of a proxy: what is understood is written the same again, unless it was written as another address.
pub fn socks_datagram(data: &[u8]) {
    let Some((from, payload)) = unwrap(data) else {
        return;
    };
    assert!(data.len() - payload.len() <= UDP_HEAD_BYTES_MAX);
    if let Ok(again) = wrap(&from, payload) {
        assert_eq!(unwrap(&again), Some((from, payload)));
    }
}

/// Lists of addresses: the same however they are cut.
pub fn ip_list(data: &[u8]) {
    let [cut, data @ ..] = data else { return };
    let read = |parts: &[&[u8]]| {
        let mut reader = Reader::default();
        for part in parts {
            reader.feed(part).expect("few ranges");
        }
        reader.finish().expect("few ranges")
    };
    let list = read(&[data]);
    let (head, tail) = data.split_at(usize::from(*cut).min(data.len()));
    assert_eq!(read(&[head, tail]), list);
    let lines = data.split(|byte| *byte == b'\n').count() as u64;
    assert!(list.good_lines + list.bad_lines <= lines);
    assert!(list.filter.range_count() as u64 <= list.good_lines);
    assert_eq!(list.first_bad_line.is_some(), list.bad_lines > 0);
    assert!(list.first_bad_line.is_none_or(|first| first <= lines));
    for ip in [0, 1 << 24, u32::MAX] {
        let ip = Ipv4Addr::from_bits(ip);
        let of = |filter: &IpFilter, ip: IpAddr| filter.is_blocked(ip);
        let mapped: Ipv6Addr = ip.to_ipv6_mapped();
        assert_eq!(of(&list.filter, ip.into()), of(&list.filter, mapped.into()));
    }
}
