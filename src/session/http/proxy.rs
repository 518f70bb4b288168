//! The HTTP proxy of the environment: `http_proxy` and `no_proxy`.

use std::env;

use crate::wire::url::{Host, Scheme, Url, percent_decode};

/// An HTTP proxy and the hosts it is not for.
#[derive(Clone, Debug)]
pub struct Proxy {
    url: Url,
    exceptions: Vec<String>,
}

impl Proxy {
    /// The environment's proxy. Only lower-case `http_proxy` counts: a CGI program's caller can set `HTTP_PROXY`.
    pub fn from_env() -> Option<Proxy> {
        let url = env::var("http_proxy").ok()?;
        let exceptions = env::var("no_proxy").or_else(|_| env::var("NO_PROXY"));
        Proxy::new(&url, &exceptions.unwrap_or_default())
    }

    /// A proxy by URL (`http://` may be left out) and a comma-separated list of hosts, domains or `*` to reach
    /// without it. `None` when the URL is empty or no http URL.
    pub fn new(url: &str, exceptions: &str) -> Option<Proxy> {
        let url = if url.contains("://") {
            Url::parse(url)
        } else {
            Url::parse(&format!("http://{url}"))
        };
        let url = url.ok().filter(|url| url.scheme() == Scheme::Http)?;
        let exceptions = exceptions
            .split(',')
            .map(|entry| entry.trim().trim_start_matches('.').to_ascii_lowercase())
            .filter(|entry| !entry.is_empty())
            .collect();
        Some(Proxy { url, exceptions })
    }

    /// True unless the host is an exception or this machine.
    pub fn is_for(&self, host: &Host) -> bool {
        let is_local = match host {
            Host::Ip(ip) => ip.is_loopback(),
            Host::Name(name) => name == "localhost",
        };
        let host = host.to_string();
        let host = host.trim_matches(['[', ']']);
        let is_exception = self.exceptions.iter().any(|entry| {
            let is_suffix = host
                .strip_suffix(entry.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            entry == "*" || is_suffix
        });
        !is_local && !is_exception
    }

    /// Where it is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    pub(super) fn credentials(&self) -> Option<String> {
        self.url.userinfo().map(basic_credentials)
    }
}

/// Base64 of `user:password` as written in a URL, for `Basic` authentication (RFC 7617).
pub(super) fn basic_credentials(userinfo: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in percent_decode(userinfo.as_bytes()).chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            let is_padding = digit as usize > group.len();
            out.push(if is_padding {
                '='
            } else {
                char::from(DIGITS[index as usize])
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Url::parse(&format!("http://{text}/"))
            .unwrap()
            .host()
            .clone()
    }

    #[test]
    fn exceptions_and_this_machine_go_without_the_proxy() {
        let proxy = Proxy::new("proxy:3128", "example.org, .inner ,10.0.0.1,::2").unwrap();
        assert_eq!(proxy.url().authority(), "proxy:3128");
        for (text, expected) in [
            ("other.org", true),
            ("notexample.org", true),
            ("example.org", false),
            ("tracker.example.org", false),
            ("a.inner", false),
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("[::2]", false),
            ("localhost", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(proxy.is_for(&host(text)), expected, "{text}");
        }
        assert!(!Proxy::new("http://p", "*").unwrap().is_for(&host("x")));
        assert!(Proxy::new("", "").is_none());
        assert!(Proxy::new("socks5://p", "").is_none());
    }

    #[test]
    fn credentials_are_base64() {
        assert_eq!(
            basic_credentials("Aladdin:open%20sesame"),
            "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        assert_eq!(basic_credentials("a:bc"), "YTpiYw==");
        assert_eq!(basic_credentials("a:b"), "YTpi");
        assert_eq!(basic_credentials("a:bcd"), "YTpiY2Q=");
    }
}
