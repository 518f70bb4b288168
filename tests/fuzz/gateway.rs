//! Targets: what gateways answer about ports, and what trackers answer to a scrape.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use gyre::base::InfoHash;
use gyre::wire::natpmp::{DATAGRAM_BYTES_MAX, MapRequest, Protocol, read_address};
use gyre::wire::tracker_http::scrape::parse_scrape;
use gyre::wire::upnp::{Action, Service, read_error, read_external_ip, read_location};

/// The request that the good inputs answer.
pub const ASKED: MapRequest = MapRequest {
    protocol: Protocol::Tcp,
    internal_port: 6881,
    external_port: 6881,
    lifetime_secs: 7_200,
    client: IpAddr::V4(Ipv4Addr::new(192, 168, 1, 7)),
    nonce: *b"abcdefghijkl",
};

/// Answers over PCP and NAT-PMP: none is an answer to both protocols of a request, nor to one about another port.
pub fn map_answer(data: &[u8]) {
    let other = MapRequest {
        internal_port: 6882,
        protocol: Protocol::Udp,
        ..ASKED
    };
    let pcp = ASKED.read_pcp(data);
    let natpmp = ASKED.read_natpmp(data);
    assert!(data.len() <= DATAGRAM_BYTES_MAX || (pcp.is_none() && natpmp.is_none()));
    if let Some(gyre::wire::natpmp::MapAnswer::Mapped { .. }) = pcp {
        assert_eq!(other.read_pcp(data), None);
        assert_eq!(natpmp, None);
    }
    if natpmp.is_some() {
        assert_eq!(other.read_natpmp(data), None);
    }
    black_box(read_address(data));
}

/// Answers to a search, descriptions and answers to calls: what is taken of them can break no request's head.
pub fn upnp_answer(data: &[u8]) {
    let is_plain = |url: &str| !url.is_empty() && !url.contains(char::is_control);
    assert!(read_location(data).is_none_or(|url| is_plain(&url)));
    if let Some((service, base)) = Service::find(data) {
        assert!(is_plain(&service.control_url));
        assert!(base.is_none_or(|base| is_plain(&base)));
        let (fields, body) = service.call(&Action::GetExternalIpAddress);
        assert!(fields.ends_with("\r\n") && !body.is_empty());
    }
    black_box((read_error(data), read_external_ip(data)));
}

/// Answers to a scrape.
pub fn scrape_answer(data: &[u8]) {
    let hash = InfoHash::new([b'a'; 20]);
    black_box(parse_scrape(data, &hash).is_ok());
}
