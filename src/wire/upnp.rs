//! UPnP gateways (IGD 1 and 2): the search for one (SSDP), what its description names, and the questions to it about ports
//! (SOAP). Layer 1.
//!
//! The XML is not parsed but looked through for the few elements that matter, in one pass and with a limit on everything.
//! Whom the bytes came from, and whom URLs may lead to, is the caller's to check.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::natpmp::Protocol;

/// Where gateways listen for searches.
pub const SSDP_PORT: u16 = 1900;
/// The group that all of them are in.
pub const SSDP_GROUP: SocketAddr = SocketAddr::V4(SocketAddrV4::new(
    Ipv4Addr::new(239, 255, 255, 250),
    SSDP_PORT,
));
/// Longest answer to a search that is read; common ones have 300 to 500 bytes.
pub const SEARCH_BYTES_MAX: usize = 2_048;
/// Longest description and SOAP answer; descriptions of home routers have 3 to 20 KiB.
pub const BODY_BYTES_MAX: usize = 128 * 1_024;
/// Services looked at in one description; a gateway has five to ten.
const SERVICES_MAX: usize = 64;
/// Longest URL taken of a description.
const URL_BYTES_MAX: usize = 512;
const HEADERS_MAX: usize = 32;

/// What maps ports, the best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// What is searched for: all gateways, and those that hide them behind their service.
const SEARCHED: [&str; 3] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// The datagrams of one search (UPnP Device Architecture 1.1, 1.3.2).
pub fn searches() -> [Vec<u8>; 3] {
    SEARCHED.map(|target| {
        let search = format!(
            "M-SEARCH * HTTP/1.1\r\nHOST: {SSDP_GROUP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n"
        );
        search.into_bytes()
    })
}

/// Where the description of the gateway lies, as an answer to a search says; `None` for anything else.
pub fn read_location(datagram: &[u8]) -> Option<String> {
    if datagram.len() > SEARCH_BYTES_MAX {
        return None;
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(datagram).ok()?;
    if parsed.is_partial() || response.code != Some(200) {
        return None;
    }
    let field = |name: &str| {
        let found = (response.headers.iter()).find(|header| header.name.eq_ignore_ascii_case(name));
        let value = std::str::from_utf8(found?.value).ok()?.trim();
        (!value.is_empty() && value.len() <= URL_BYTES_MAX).then_some(value)
    };
    let is_gateway = SEARCHED.contains(&field("st")?);
    is_gateway.then(|| field("location").and_then(url))?
}

/// What of a gateway maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// One of three.
    kind: &'static str,
    /// As the description has it: it may be relative to that.
    pub control_url: String,
}

impl Service {
    /// The best service in a description, and what its URLs are relative to if that is not where it lies.
    pub fn find(description: &[u8]) -> Option<(Service, Option<String>)> {
        let text = std::str::from_utf8(description.get(..BODY_BYTES_MAX).unwrap_or(description));
        let text = text.ok()?;
        let (mut best, mut rest) = (None, text);
        for _ in 0..SERVICES_MAX {
            let Some((service, behind)) = element(rest, "service") else {
                break;
            };
            rest = behind;
            let kind = content(service, "serviceType");
            let rank = SERVICES.iter().position(|name| Some(*name) == kind);
            let url = content(service, "controlURL").and_then(url);
            let (Some(rank), Some(url)) = (rank, url) else {
                continue;
            };
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, url));
            }
        }
        let (rank, control_url) = best?;
        let kind = SERVICES.get(rank).copied()?;
        let base = content(text, "URLBase").and_then(url);
        Some((Service { kind, control_url }, base))
    }

    /// The head's fields and the body of a call.
    pub fn call(&self, action: &Action) -> (String, String) {
        let (kind, name) = (self.kind, action.name());
        let mut body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{kind}\">"
        );
        for (argument, value) in action.arguments() {
            body.push_str(&format!("<{argument}>{value}</{argument}>"));
        }
        body.push_str(&format!("</u:{name}></s:Body></s:Envelope>\r\n"));
        let head = format!(
            "Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{kind}#{name}\"\r\n\
             Content-Length: {}\r\n",
            body.len()
        );
        (head, body)
    }
}

/// A question to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    AddPortMapping {
        protocol: Protocol,
        external_port: u16,
        internal_port: u16,
        client: Ipv4Addr,
        /// 0 is for good.
        lease_secs: u32,
    },
    DeletePortMapping {
        protocol: Protocol,
        external_port: u16,
    },
    GetExternalIpAddress,
}

impl Action {
    const fn name(&self) -> &'static str {
        match self {
            Action::AddPortMapping { .. } => "AddPortMapping",
            Action::DeletePortMapping { .. } => "DeletePortMapping",
            Action::GetExternalIpAddress => "GetExternalIPAddress",
        }
    }

    /// Names and values in the order of the service's description, which some gateways insist on.
    fn arguments(&self) -> Vec<(&'static str, String)> {
        let protocol = |protocol: Protocol| protocol.as_str().to_ascii_uppercase();
        let key = |port: u16, of: Protocol| {
            vec![
                ("NewRemoteHost", String::new()),
                ("NewExternalPort", port.to_string()),
                ("NewProtocol", protocol(of)),
            ]
        };
        match *self {
            Action::GetExternalIpAddress => Vec::new(),
            Action::DeletePortMapping {
                protocol,
                external_port,
            } => key(external_port, protocol),
            Action::AddPortMapping {
                protocol,
                external_port,
                internal_port,
                client,
                lease_secs,
            } => {
                let mut arguments = key(external_port, protocol);
                arguments.extend([
                    ("NewInternalPort", internal_port.to_string()),
                    ("NewInternalClient", client.to_string()),
                    ("NewEnabled", "1".to_owned()),
                    ("NewPortMappingDescription", "Gyre".to_owned()),
                    ("NewLeaseDuration", lease_secs.to_string()),
                ]);
                arguments
            }
        }
    }
}

/// The lease must be for good (IGD 1, `OnlyPermanentLeasesSupported`).
pub const ONLY_PERMANENT: u16 = 725;
/// The port belongs to another machine (`ConflictInMappingEntry`).
pub const CONFLICT: u16 = 718;

/// The number of a refusal; 0 where there is none to be found.
pub fn read_error(body: &[u8]) -> u16 {
    let text = std::str::from_utf8(body).ok();
    let code = text.and_then(|text| content(text, "errorCode"));
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// The address outside, if the answer has one.
pub fn read_external_ip(body: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(body).ok()?;
    let ip: Ipv4Addr = content(text, "NewExternalIPAddress")?.parse().ok()?;
    (!ip.is_unspecified()).then_some(ip)
}

/// A URL that breaks no line, with the one entity that URLs have in XML.
fn url(text: &str) -> Option<String> {
    let url = text.replace("&amp;", "&");
    let is_plain = !url
        .chars()
        .any(|c| c.is_control() || c.is_whitespace() || c == '<');
    (!url.is_empty() && url.len() <= URL_BYTES_MAX && is_plain).then_some(url)
}

/// What the first element of that name holds, without elements in it.
fn content<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (inner, _) = element(text, name)?;
    let inner = inner.trim();
    (!inner.contains('<')).then_some(inner)
}

/// What the first element of that name holds, and what follows it. Attributes are passed over, prefixes are not known.
fn element<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let mut rest = text;
    loop {
        let at = rest.find('<')?;
        rest = rest.get(at + 1..)?;
        let Some(behind) = rest.strip_prefix(name) else {
            continue;
        };
        if !behind.starts_with(['>', ' ', '\t', '\r', '\n']) {
            continue;
        }
        let (attributes, inner) = behind.split_once('>')?;
        if attributes.ends_with('/') {
            rest = inner;
            continue;
        }
        let mut ends = inner.match_indices("</");
        let is_end = |at: &usize| {
            let tail = inner.get(at + 2..).and_then(|tail| tail.strip_prefix(name));
            tail.is_some_and(|tail| tail.trim_start().starts_with('>'))
        };
        let end = ends.find_map(|(at, _)| Some(at).filter(is_end))?;
        let (held, closing) = inner.split_at(end);
        let (_, behind) = closing.split_once('>')?;
        return Some((held, behind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTION: &str = "<?xml version=\"1.0\"?>\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\">\
        <URLBase>http://192.168.1.1:5000/</URLBase><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>\
        <controlURL>/l3f</controlURL></service></serviceList><deviceList><device><serviceList>\
        <service ><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType>\
        <controlURL>/ppp</controlURL></service>\
        <service><serviceId>x</serviceId>\
        <serviceType> urn:schemas-upnp-org:service:WANIPConnection:1 </serviceType>\
        <SCPDURL>/ip.xml</SCPDURL><controlURL>/ctl?a=1&amp;b=2</controlURL></service>\
        </serviceList></device></deviceList></device></root>";

    #[test]
    fn the_best_service_of_a_description_is_found_with_its_url() {
        let (service, base) = Service::find(DESCRIPTION.as_bytes()).unwrap();
        assert_eq!(service.kind, SERVICES[1]);
        assert_eq!(service.control_url, "/ctl?a=1&b=2");
        assert_eq!(base.as_deref(), Some("http://192.168.1.1:5000/"));
        let second = DESCRIPTION.replace("WANPPPConnection:1", "WANIPConnection:2");
        let (service, _) = Service::find(second.as_bytes()).unwrap();
        assert_eq!(
            (service.kind, service.control_url.as_str()),
            (SERVICES[0], "/ppp")
        );
    }

    #[test]
    fn descriptions_cut_off_anywhere_are_read_or_refused() {
        for length in 0..DESCRIPTION.len() {
            Service::find(&DESCRIPTION.as_bytes()[..length]);
        }
        for bad in [
            "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType></service>",
            "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL></controlURL></service>",
            "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL>/a b\r\nX: y</controlURL></service>",
            "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:9</serviceType>\
             <controlURL>/x</controlURL></service>",
            "<service/><service>",
        ] {
            assert_eq!(Service::find(bad.as_bytes()), None, "{bad}");
        }
        let many = "<service><controlURL>/x</controlURL></service>".repeat(SERVICES_MAX);
        assert_eq!(Service::find((many + DESCRIPTION).as_bytes()), None);
        let nested = "<service>".repeat(20_000);
        assert_eq!(Service::find(nested.as_bytes()), None);
    }

    #[test]
    fn an_answer_to_a_search_says_where_the_description_is() {
        let answer = |st: &str| {
            format!(
                "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {st}\r\nEXT:\r\n\
                LOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n"
            )
        };
        let good = answer(SEARCHED[0]);
        let location = read_location(good.as_bytes());
        assert_eq!(
            location.as_deref(),
            Some("http://192.168.1.1:5000/root.xml")
        );
        assert_eq!(read_location(answer("upnp:rootdevice").as_bytes()), None);
        for length in 0..good.len() {
            assert_eq!(read_location(&good.as_bytes()[..length]), None);
        }
        let broken = good.replace("192.168", "192\t.168");
        assert_eq!(read_location(broken.as_bytes()), None);
        let [search, ..] = searches();
        assert!(search.starts_with(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"));
        assert_eq!(read_location(&search), None);
    }

    #[test]
    fn calls_have_their_arguments_in_order() {
        let (service, _) = Service::find(DESCRIPTION.as_bytes()).unwrap();
        let (head, body) = service.call(&Action::AddPortMapping {
            protocol: Protocol::Tcp,
            external_port: 7000,
            internal_port: 6881,
            client: Ipv4Addr::new(192, 168, 1, 7),
            lease_secs: 3_600,
        });
        assert!(head.contains(
            "SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"\r\n"
        ));
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        assert!(body.contains(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>7000</NewExternalPort><NewProtocol>TCP</NewProtocol>\
             <NewInternalPort>6881</NewInternalPort><NewInternalClient>192.168.1.7</NewInternalClient>\
             <NewEnabled>1</NewEnabled><NewPortMappingDescription>Gyre</NewPortMappingDescription>\
             <NewLeaseDuration>3600</NewLeaseDuration></u:AddPortMapping>"
        ));
    }

    #[test]
    fn answers_are_read_for_what_matters() {
        let fault = b"<s:Fault><detail><UPnPError><errorCode>725</errorCode></UPnPError></detail></s:Fault>";
        assert_eq!(read_error(fault), ONLY_PERMANENT);
        assert_eq!(read_error(b"<errorCode>99999999</errorCode>"), 0);
        assert_eq!(read_error(b"\xff"), 0);
        let ip = |text: &str| {
            let body = format!("<NewExternalIPAddress>{text}</NewExternalIPAddress>");
            read_external_ip(body.as_bytes())
        };
        assert_eq!(ip("203.0.113.5"), Some(Ipv4Addr::new(203, 0, 113, 5)));
        assert_eq!((ip("0.0.0.0"), ip(""), ip("1.2.3.4.5")), (None, None, None));
    }
}
