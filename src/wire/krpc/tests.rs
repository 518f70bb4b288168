use super::*;

const ID: NodeId = NodeId::new(*b"abcdefghij0123456789");
const TARGET: NodeId = NodeId::new(*b"mnopqrstuvwxyz123456");

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn query_of(bytes: &[u8]) -> Query<'_> {
    match Packet::parse(bytes).unwrap().body {
        Body::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn answer_of(bytes: &[u8]) -> Answer<'_> {
    match Packet::parse(bytes).unwrap().body {
        Body::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_examples_of_bep_5_are_read() {
    let info_hash = InfoHash::new(*TARGET.as_bytes());
    let get_peers = Method::GetPeers {
        info_hash,
        no_seed: false,
        scrape: false,
    };
    let announce = Method::AnnouncePeer {
        info_hash,
        port: None,
        token: b"aoeusnth",
        is_seed: false,
    };
    for (bytes, method) in [
        (&b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"[..], Method::Ping),
        (
            b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q9:find_node1:t2:aa1:y1:qe",
            Method::FindNode { target: TARGET },
        ),
        (
            b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e1:q9:get_peers1:t2:aa1:y1:qe",
            get_peers,
        ),
        (
            b"d1:ad2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz1234564:porti6881e5:token8:aoeusnthe1:q13:announce_peer1:t2:aa1:y1:qe",
            announce,
        ),
    ] {
        let packet = Packet::parse(bytes).unwrap();
        assert_eq!(packet.transaction, b"aa");
        let query = query_of(bytes);
        assert_eq!((query.id, query.method, query.want), (ID, method, None));
    }
    let pong = b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re";
    assert_eq!(answer_of(pong).id, TARGET);
    let values = b"d1:rd2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re";
    let answer = answer_of(values);
    assert_eq!(answer.token, Some(&b"aoeusnth"[..]));
    let told: Vec<SocketAddr> = answer.values().collect();
    assert_eq!(
        told,
        [addr("97.120.106.101:11893"), addr("105.100.104.116:28269")]
    );
    let error = b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee";
    assert_eq!(Packet::parse(error).unwrap().body, Body::Error(201));
}

#[test]
fn queries_round_trip() {
    let info_hash = InfoHash::new([9; 20]);
    for method in [
        Method::Ping,
        Method::FindNode { target: TARGET },
        Method::SampleInfohashes { target: TARGET },
        Method::GetPeers {
            info_hash,
            no_seed: true,
            scrape: true,
        },
        Method::AnnouncePeer {
            info_hash,
            port: Some(6881),
            token: b"token",
            is_seed: true,
        },
        Method::AnnouncePeer {
            info_hash,
            port: None,
            token: b"t",
            is_seed: false,
        },
    ] {
        for want in [None, Some(Want::BOTH), Some(Want::only(Family::V6))] {
            for is_read_only in [false, true] {
                let query = Query {
                    id: ID,
                    method,
                    want,
                    is_read_only,
                };
                let bytes = encode_query(b"\x00\xff12", &query);
                assert_eq!(query_of(&bytes), query);
                assert_eq!(Packet::parse(&bytes).unwrap().transaction, b"\x00\xff12");
            }
        }
    }
}

#[test]
fn answers_round_trip() {
    let contact = |last: u8, text: &str| Contact {
        id: NodeId::new([last; 20]),
        addr: addr(text),
    };
    let reply = Reply {
        token: b"secret".to_vec(),
        nodes_v4: Some(vec![contact(1, "1.2.3.4:5"), contact(2, "5.6.7.8:9")]),
        nodes_v6: Some(vec![contact(3, "[2001:db9::1]:7")]),
        values: vec![addr("9.9.9.9:1"), addr("[2001:db9::2]:3")],
        ..Reply::default()
    };
    let bytes = reply.encode(b"aa", &ID, addr("4.3.2.1:1234"));
    let answer = answer_of(&bytes);
    assert_eq!(answer.id, ID);
    assert_eq!(answer.token, Some(&b"secret"[..]));
    assert_eq!(answer.external, Some(addr("4.3.2.1:1234")));
    assert_eq!(Some(answer.nodes(Family::V4).collect()), reply.nodes_v4);
    assert_eq!(Some(answer.nodes(Family::V6).collect()), reply.nodes_v6);
    assert_eq!(answer.values().collect::<Vec<_>>(), reply.values);
    let refusal = encode_error(b"aa", code::PROTOCOL, "no", addr("1.1.1.1:1"));
    assert_eq!(Packet::parse(&refusal).unwrap().body, Body::Error(203));
}

#[test]
fn every_truncation_is_an_error_and_so_is_what_follows() {
    let reply = Reply {
        token: b"secret".to_vec(),
        values: vec![addr("9.9.9.9:1")],
        ..Reply::default()
    };
    let mut bytes = reply.encode(b"aa", &ID, addr("4.3.2.1:1234"));
    for end in 0..bytes.len() {
        assert!(Packet::parse(&bytes[..end]).is_err(), "{end}");
    }
    bytes.push(b'x');
    assert!(Packet::parse(&bytes).is_err());
    assert!(matches!(
        Packet::parse(&[b'd'; DATAGRAM_BYTES_MAX + 1]),
        Err(KrpcError::TooLong { .. })
    ));
}

#[test]
fn long_and_malformed_lists_give_no_more_than_their_good_beginning() {
    let list = |key: &str, bytes: &[u8]| {
        let mut packet = format!(
            "d1:rd2:id20:abcdefghij0123456789{}:{key}{}:",
            key.len(),
            bytes.len()
        )
        .into_bytes();
        packet.extend(bytes);
        packet.extend(b"e1:t2:aa1:y1:re");
        packet
    };
    let mut nodes = Vec::new();
    for last in 0..50_u8 {
        nodes.extend([last; 20]);
        // Port 0, and addresses nobody has, among them.
        nodes.extend(match last % 4 {
            0 => [1, 2, 3, last, 0, 0],
            1 => [0, 0, 0, 0, 1, 1],
            _ => [1, 2, 3, last, 1, 1],
        });
    }
    nodes.extend(b"a rest");
    let packet = list("nodes", &nodes);
    assert_eq!(answer_of(&packet).nodes(Family::V4).count(), NODES_MAX / 2);
    assert_eq!(answer_of(&packet).nodes(Family::V6).count(), 0);
    let mut packet = b"d1:rd2:id20:abcdefghij01234567896:valuesl".to_vec();
    packet.extend(b"6:\x01\x02\x03\x04\x00\x006:short!i5ele0:".iter());
    for _ in 0..150 {
        packet.extend(b"6:\x01\x02\x03\x04\x00\x05");
    }
    packet.extend(b"ee1:t2:aa1:y1:re");
    let values = answer_of(&packet).values().count();
    assert!((VALUES_MAX - 5..=VALUES_MAX).contains(&values), "{values}");
}

#[test]
fn what_lacks_its_parts_is_refused_by_name() {
    let refused = |bytes: &[u8]| Packet::parse(bytes).unwrap_err();
    assert_eq!(refused(b"le"), KrpcError::NotADict);
    let bad_transaction = KrpcError::BadTransaction {
        max_bytes: TRANSACTION_BYTES_MAX,
    };
    assert_eq!(refused(b"d1:y1:qe"), bad_transaction);
    let long = [b"d1:t99:".as_slice(), &[b'x'; 99], b"1:y1:qe"].concat();
    assert_eq!(refused(&long), bad_transaction);
    assert_eq!(refused(b"d1:t2:aa1:y1:xe"), KrpcError::BadKind);
    assert_eq!(
        refused(b"d1:ad2:id5:shorte1:q4:ping1:t2:aa1:y1:qe"),
        KrpcError::BadId
    );
    assert_eq!(refused(b"d1:q4:ping1:t2:aa1:y1:qe"), KrpcError::BadId);
    let bad = b"d1:ad2:id20:abcdefghij0123456789e1:q9:get_peers1:t2:aa1:y1:qe";
    assert_eq!(query_of(bad).method, Method::Malformed);
    let port_0 = b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz1234564:porti0e5:token1:xe1:q13:announce_peer1:t2:aa1:y1:qe";
    assert_eq!(query_of(port_0).method, Method::Malformed);
    let port_70000 = b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz1234564:porti70000e5:token1:xe1:q13:announce_peer1:t2:aa1:y1:qe";
    assert_eq!(query_of(port_70000).method, Method::Malformed);
    let unknown = b"d1:ad2:id20:abcdefghij0123456789e1:q3:put1:t2:aa1:y1:qe";
    assert_eq!(query_of(unknown).method, Method::Unknown);
}
