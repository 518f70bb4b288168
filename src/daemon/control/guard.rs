//! Who may ask: credentials, host names, origins, and how often one may be wrong. Layer 6.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::http::Request;

/// Wrong answers of one address that cost nothing: somebody mistypes.
const FREE_FAILURES: u32 = 5;
/// The first wait, doubled with each failure up to the last.
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// An address that was quiet for this long begins anew.
const FORGET: Duration = Duration::from_secs(900);
/// Addresses remembered; when there are more, the one that was wrong longest ago is forgotten.
const ADDRESSES_MAX: usize = 1_024;

/// What a client has to know.
#[derive(Clone)]
pub struct Credentials {
    /// `None` takes any name.
    pub user: Option<String>,
    pub password: String,
}

// Passwords have no place in logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Whether the header shows that the client knows them: `Basic` with name and password, or `Bearer` with the
    /// password alone. Takes as long for any wrong password.
    pub fn accept(&self, authorization: &str) -> bool {
        let Some((scheme, value)) = authorization.split_once(' ') else {
            return false;
        };
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return is_same(value.as_bytes(), self.password.as_bytes());
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return false;
        }
        let decoded = STANDARD.decode(value).unwrap_or_default();
        let colon = decoded.iter().position(|byte| *byte == b':');
        let (user, rest) = decoded.split_at(colon.unwrap_or(decoded.len()));
        let password = rest.get(1..).unwrap_or_default();
        let is_user = match &self.user {
            Some(expected) => is_same(user, expected.as_bytes()),
            None => true,
        };
        // Both are compared whatever the first one was.
        is_user & is_same(password, self.password.as_bytes())
    }
}

impl Credentials {
    /// Whether name and password are right, as a form brings them. Takes as long for any wrong password.
    pub fn accept_login(&self, user: &str, password: &str) -> bool {
        let is_user = match &self.user {
            Some(expected) => is_same(user.as_bytes(), expected.as_bytes()),
            None => true,
        };
        // Both are compared whatever the first one was.
        is_user & is_same(password.as_bytes(), self.password.as_bytes())
    }
}

/// Compares by digests, byte for byte to the end: the time tells nothing of where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (Sha1::digest(one), Sha1::digest(other));
    let differing = one.iter().zip(other.iter());
    differing.fold(0_u8, |all, (a, b)| all | (a ^ b)) == 0
}

/// Whom wrong credentials came from.
#[derive(Debug, Default)]
pub struct Failures(BTreeMap<IpAddr, Failure>);

#[derive(Debug)]
struct Failure {
    count: u32,
    last: Instant,
}

impl Failures {
    /// How long the address has to wait before it is listened to again.
    pub fn wait(&self, ip: IpAddr, now: Instant) -> Option<Duration> {
        let failure = self.0.get(&network(ip))?;
        let over = failure.count.checked_sub(FREE_FAILURES)?;
        let wait = WAIT_FIRST.saturating_mul(1_u32.checked_shl(over).unwrap_or(u32::MAX));
        let since = now.saturating_duration_since(failure.last);
        wait.min(WAIT_MAX)
            .checked_sub(since)
            .filter(|left| !left.is_zero())
    }

    /// It was wrong.
    pub fn failed(&mut self, ip: IpAddr, now: Instant) {
        let ip = network(ip);
        self.0
            .retain(|_, failure| now.saturating_duration_since(failure.last) < FORGET);
        if self.0.len() >= ADDRESSES_MAX && !self.0.contains_key(&ip) {
            let oldest = self.0.iter().min_by_key(|(_, failure)| failure.last);
            if let Some(oldest) = oldest.map(|(ip, _)| *ip) {
                self.0.remove(&oldest);
            }
        }
        let failure = self.0.entry(ip).or_insert(Failure {
            count: 0,
            last: now,
        });
        failure.count = failure.count.saturating_add(1);
        failure.last = now;
    }

    /// It was right.
    pub fn succeeded(&mut self, ip: IpAddr) {
        self.0.remove(&network(ip));
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let bits = u128::from(ip) & !u128::from(u64::MAX);
            IpAddr::V6(bits.into())
        }
        ip => ip,
    }
}

/// The names that the server answers to: any address, `localhost`, and those of the settings. A page elsewhere whose
/// name is pointed at this machine has another one.
pub fn is_host_allowed(host: Option<&str>, names: &[String]) -> bool {
    let Some(host) = host else {
        return false;
    };
    let Some(name) = without_port(host) else {
        return false;
    };
    let inner = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    if inner.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()) {
        return true;
    }
    if name.parse::<std::net::Ipv4Addr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn without_port(host: &str) -> Option<&str> {
    let end = host.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = host.get(end..)?.find(':') else {
        return Some(host);
    };
    let port = host.get(end + colon + 1..)?;
    let is_port = port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    host.get(..end + colon).filter(|_| is_port)
}

/// A page may ask only the server that it came from. Programs name no origin.
pub fn is_origin_allowed(request: &Request) -> bool {
    match &request.origin {
        Some(origin) => is_own_place(origin, request),
        None => true,
    }
}

/// Whether nothing says that a page of another site began the request: neither the page that it comes from, nor the
/// browser. For requests that carry a cookie, which a browser adds by itself.
pub fn is_same_site(request: &Request) -> bool {
    let is_ours = match &request.referer {
        Some(referer) => {
            let end = referer.match_indices('/').nth(2).map(|(at, _)| at);
            is_own_place(
                referer
                    .get(..end.unwrap_or(referer.len()))
                    .unwrap_or_default(),
                request,
            )
        }
        None => true,
    };
    is_ours
        && !matches!(
            request.fetch_site.as_deref(),
            Some("cross-site" | "same-site")
        )
}

fn is_own_place(origin: &str, request: &Request) -> bool {
    let place = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    match (place, &request.host) {
        (Some(place), Some(host)) => place.eq_ignore_ascii_case(host),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_words_open() {
        let of = |user: Option<&str>| Credentials {
            user: user.map(str::to_owned),
            password: "p:w".into(),
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let named = of(Some("me"));
        assert!(named.accept(&basic("me:p:w")) && named.accept("bearer p:w"));
        for wrong in ["me:", "me:p", "me:p:w ", "you:p:w", "", "me", ":p:w"] {
            assert!(!named.accept(&basic(wrong)), "{wrong}");
        }
        for wrong in ["", "Bearer", "Bearer ", "Basic ///", "Digest p:w", "p:w"] {
            assert!(!named.accept(wrong), "{wrong}");
        }
        assert!(of(None).accept(&basic("anybody:p:w")));
        assert!(named.accept_login("me", "p:w") && of(None).accept_login("", "p:w"));
        for (user, password) in [("me", ""), ("", "p:w"), ("you", "p:w"), ("me", "p:w ")] {
            assert!(!named.accept_login(user, password), "{user} {password}");
        }
    }

    #[test]
    fn an_address_that_is_wrong_too_often_waits_longer_each_time() {
        let mut failures = Failures::default();
        let (ip, now) = ("198.51.100.1".parse().unwrap(), Instant::now());
        for _ in 1..FREE_FAILURES {
            failures.failed(ip, now);
            assert_eq!(failures.wait(ip, now), None);
        }
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            failures.failed(ip, now);
            assert_eq!(failures.wait(ip, now), Some(Duration::from_secs(expected)));
        }
        assert_eq!(failures.wait("198.51.100.2".parse().unwrap(), now), None);
        assert_eq!(failures.wait(ip, now + WAIT_MAX), None);
        failures.succeeded(ip);
        assert_eq!(failures.wait(ip, now), None);
    }

    #[test]
    fn the_table_of_failures_does_not_grow_and_a_network_is_one_address() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for n in 0..5_000_u32 {
            failures.failed(IpAddr::V4(n.into()), now);
        }
        assert_eq!(failures.0.len(), ADDRESSES_MAX);
        for n in 0..10_u128 {
            let base = u128::from("2001:db8::".parse::<std::net::Ipv6Addr>().unwrap());
            failures.failed(IpAddr::V6((base + n).into()), now);
        }
        let other = "2001:db8::ffff".parse().unwrap();
        assert!(failures.wait(other, now).is_some());
    }

    #[test]
    fn pages_of_other_sites_are_told_by_where_they_come_from() {
        let request = |lines: &str| {
            let head = format!("GET / HTTP/1.1\r\nHost: box:90\r\n{lines}\r\n\r\n");
            Request::parse(head.as_bytes()).unwrap().unwrap().0
        };
        for good in [
            "A: b",
            "Referer: http://box:90/",
            "Referer: https://BOX:90/a?b#c",
            "Referer: http://box:90",
            "Sec-Fetch-Site: same-origin",
            "Sec-Fetch-Site: none",
        ] {
            assert!(is_same_site(&request(good)), "{good}");
        }
        for bad in [
            "Referer: http://evil/box:90/",
            "Referer: http://box:90.evil/",
            "Referer: http://box:90@evil/",
            "Referer: http://box/",
            "Referer: nonsense",
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-site",
        ] {
            assert!(!is_same_site(&request(bad)), "{bad}");
        }
    }

    #[test]
    fn names_of_others_are_not_answered_to() {
        let names = ["box.example".to_owned()];
        for good in [
            "localhost",
            "LOCALHOST:9091",
            "localhost.",
            "127.0.0.1:9091",
            "[::1]:9091",
            "192.0.2.1",
            "box.example:80",
        ] {
            assert!(is_host_allowed(Some(good), &names), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "box.example.evil",
            "localhost.evil",
            "127.0.0.1.evil",
            "localhost:80:80",
            "localhost:x",
            "[::1",
            "[evil]",
            "localhost@evil",
        ] {
            assert!(!is_host_allowed(Some(bad), &names), "{bad}");
        }
        assert!(!is_host_allowed(None, &names));
    }
}
