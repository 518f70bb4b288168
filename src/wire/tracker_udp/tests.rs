use super::*;
use crate::wire::tracker::Counters;

fn request() -> AnnounceRequest {
    AnnounceRequest {
        info_hash: InfoHash::new([0xaa; 20]),
        peer_id: PeerId::new([0xbb; 20]),
        port: 0x1ae1,
        counters: Counters {
            uploaded_bytes: 3,
            downloaded_bytes: 1,
            left_bytes: 2,
        },
        event: Some(Event::Started),
        numwant: 200,
        key: 0x0102_0304,
        tracker_id: None,
    }
}

#[test]
fn requests_are_the_bytes_of_bep_15() {
    assert_eq!(
        connect_request(0x0a0b_0c0d),
        [
            0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0x0d
        ]
    );
    let bytes = announce_request(7, 9, &request(), "/");
    assert_eq!(bytes.len(), 98);
    assert_eq!(
        bytes[..16],
        [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 9]
    );
    assert_eq!(bytes[16..36], [0xaa; 20]);
    assert_eq!(bytes[36..56], [0xbb; 20]);
    assert_eq!(
        bytes[56..80],
        [
            0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3
        ]
    );
    assert_eq!(
        bytes[80..],
        [0, 0, 0, 2, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 200, 0x1a, 0xe1]
    );
    let bytes = scrape_request(7, 9, &[InfoHash::new([1; 20]); 80]);
    assert_eq!(bytes.len(), 16 + 74 * 20);
}

#[test]
fn url_data_is_cut_into_options() {
    let bytes = announce_request(7, 9, &request(), "/announce?k");
    assert_eq!(bytes[98..], *b"\x02\x0b/announce?k\x00");
    let long = format!("/{}", "x".repeat(299));
    let bytes = announce_request(7, 9, &request(), &long);
    assert_eq!(bytes.len(), 98 + 2 + 255 + 2 + 45 + 1);
    assert_eq!((bytes[98], bytes[99]), (2, 255));
    assert_eq!((bytes[98 + 257], bytes[98 + 258]), (2, 45));
}

#[test]
fn answers_are_read_with_the_stride_of_the_family() {
    let counts = SwarmCounts {
        seeders: 1,
        leechers: 2,
        completed: 3,
    };
    for (family, addr) in [
        (Family::V4, "10.0.0.1:6881"),
        (Family::V6, "[2001:db8::1]:6881"),
    ] {
        let addr: SocketAddr = addr.parse().unwrap();
        let mut bytes = announce_answer(5, 1_800, counts, [addr, addr]);
        bytes.push(1);
        let Ok(UdpAnswer::Announced(answer)) = parse_answer(&bytes, family) else {
            panic!("no answer");
        };
        assert_eq!(answer.peers, [addr, addr]);
        assert_eq!(answer.interval_secs, Some(1_800));
        assert_eq!((answer.seeders, answer.leechers), (Some(1), Some(2)));
    }
    assert_eq!(peek_transaction_id(&connect_answer(5, 6)), Some(5));
    assert_eq!(
        parse_answer(&connect_answer(5, 6), Family::V4),
        Ok(UdpAnswer::Connected { connection_id: 6 })
    );
    assert_eq!(
        parse_answer(&scrape_answer(5, [counts]), Family::V4),
        Ok(UdpAnswer::Scraped(vec![counts]))
    );
    let Ok(UdpAnswer::Refused(refusal)) = parse_answer(&error_answer(5, "no\x1b"), Family::V4)
    else {
        panic!("no refusal");
    };
    assert_eq!(refusal.reason, "no\\u{1b}");
}

#[test]
fn short_datagrams_are_errors_at_every_length() {
    for (whole, least) in [
        (connect_answer(5, 6), 16),
        (announce_answer(5, 1, SwarmCounts::default(), []), 20),
        (error_answer(5, ""), 8),
    ] {
        for length in 0..least {
            let got = parse_answer(&whole[..length], Family::V4);
            assert!(matches!(got, Err(UdpError::TooShort { .. })), "{length}");
        }
        assert!(parse_answer(&whole, Family::V4).is_ok());
    }
    let whole = announce_request(7, 9, &request(), "/");
    for length in 0..98 {
        assert!(parse_request(&whole[..length]).is_err());
    }
}

#[test]
fn a_negative_interval_counts_as_zero() {
    let bytes = announce_answer(5, u32::MAX, SwarmCounts::default(), []);
    let Ok(UdpAnswer::Announced(answer)) = parse_answer(&bytes, Family::V4) else {
        panic!("no answer");
    };
    assert_eq!(answer.interval_secs, Some(0));
}

#[test]
fn the_tracker_reads_what_the_client_writes() {
    assert_eq!(
        parse_request(&connect_request(4)),
        Ok((4, UdpRequest::Connect))
    );
    let mut wrong = connect_request(4);
    wrong[0] = 1;
    assert_eq!(parse_request(&wrong), Err(UdpError::BadProtocolId));
    let announced = Announced {
        info_hash: request().info_hash,
        peer_id: request().peer_id,
        port: request().port,
        is_seeder: false,
        event: Some(Event::Started),
        numwant: Some(200),
        key: Some(0x0102_0304),
        ip: None,
    };
    let request = announce_request(7, 9, &request(), "/announce");
    assert_eq!(
        parse_request(&request),
        Ok((
            9,
            UdpRequest::Announce {
                connection_id: 7,
                announced
            }
        ))
    );
    let hashes = vec![InfoHash::new([1; 20]); 3];
    assert_eq!(
        parse_request(&scrape_request(7, 9, &hashes)),
        Ok((
            9,
            UdpRequest::Scrape {
                connection_id: 7,
                info_hashes: hashes
            }
        ))
    );
}

proptest::proptest! {
    #[test]
    fn any_datagram_is_read_or_ignored(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), action in 0u32..5) {
        let mut answer = action.to_be_bytes().to_vec();
        answer.extend(&bytes);
        let mut request = bytes.clone();
        if let Some(slot) = request.get_mut(8..12) { slot.copy_from_slice(&action.to_be_bytes()); }
        let _ = parse_answer(&answer, Family::V4);
        let _ = parse_answer(&answer, Family::V6);
        let _ = peek_transaction_id(&bytes);
        let _ = parse_request(&request);
    }
}
