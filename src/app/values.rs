//! Values of options that are neither sizes nor times: ports, addresses, interfaces, slots, ratios, words. Layer 7.
//!
//! What a parser here refuses with is a sentence that says what to write instead: it becomes the hint.

use std::net::{IpAddr, SocketAddr};

use crate::session::{BindTo, ProxySettings};
use crate::swarm::choker::UploadSlots;
use crate::wire::socks::Login;
use crate::wire::tracker::is_usable_peer;
use crate::wire::url::{Host, percent_decode};

/// `--check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Check {
    Auto,
    Full,
    None,
}

/// `--preallocate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preallocate {
    None,
    Sparse,
    Full,
}

/// `--encryption`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Encryption {
    Prefer,
    Require,
    Off,
}

/// `--send-engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SendEngine {
    Auto,
    Mapped,
    Copy,
}

/// `--write-engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WriteEngine {
    Auto,
    Direct,
    Buffered,
}

/// `--port`: 0 to 65535.
///
/// # Errors
/// What to write instead.
pub fn parse_port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| "a port is a number from 0 to 65535, 0 for any".into())
}

/// A peer's or listener's address: `IP:PORT` or `[IPv6]:PORT`.
///
/// # Errors
/// What to write instead.
pub fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| {
        "an address is IP:PORT or [IPv6]:PORT, such as 192.0.2.1:6881 or [2001:db8::1]:6881".into()
    })
}

/// `--peer`: an address that can be dialed.
///
/// # Errors
/// What to write instead.
pub fn parse_peer(text: &str) -> Result<SocketAddr, String> {
    match parse_addr(text)? {
        addr if addr.port() == 0 => Err("a peer's port is a number from 1 to 65535".into()),
        addr if !is_usable_peer(addr) => Err(format!("{} is no host's address", addr.ip())),
        addr => Ok(addr),
    }
}

/// `--dht-bootstrap`: a host name or address, and a port.
///
/// # Errors
/// What to write instead.
pub fn parse_host_port(text: &str) -> Result<(String, u16), String> {
    let wrong = || "give HOST:PORT or [IPv6]:PORT, such as node.example:6881".to_owned();
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return match addr.port() {
            0 => Err(wrong()),
            port => Ok((addr.ip().to_string(), port)),
        };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let port: u16 = port.parse().map_err(|_| wrong())?;
    match !host.is_empty() && host.len() <= 253 && host.bytes().all(is_name) && port != 0 {
        true => Ok((host.to_owned(), port)),
        false => Err(wrong()),
    }
}

/// `--proxy`: `socks5://[USER:PASSWORD@]HOST:PORT`.
///
/// # Errors
/// What to write instead.
pub fn parse_proxy(text: &str) -> Result<ProxySettings, String> {
    let wrong = || "give socks5://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT".to_owned();
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    if !["socks5", "socks5h"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(wrong());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (userinfo, authority) = match rest.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, rest),
    };
    let (host, port) = parse_host_port(authority).map_err(|_| wrong())?;
    let login = match userinfo {
        None => None,
        Some(userinfo) => {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            let decoded = |text: &str| percent_decode(text.as_bytes());
            let login = Login::new(decoded(user), decoded(password));
            let wrong = "user and password of a proxy are 1 to 255 bytes each";
            Some(login.ok_or(wrong)?)
        }
    };
    let host = match host.parse() {
        Ok(ip) => Host::Ip(ip),
        Err(_) => Host::Name(host.to_ascii_lowercase()),
    };
    Ok(ProxySettings { host, port, login })
}

/// `--bind`: an IP address, or the name of a network interface.
///
/// # Errors
/// What to write instead.
pub fn parse_bind(text: &str) -> Result<BindTo, String> {
    let literal = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if let Ok(ip) = literal.unwrap_or(text).parse::<IpAddr>() {
        return Ok(BindTo::Addr(ip));
    }
    // IFNAMSIZ is 16 with its closing zero; the kernel allows neither '/' nor ':' nor white space in a name.
    let is_name = (1..16).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    match is_name {
        true => Ok(BindTo::Interface(text.to_owned())),
        false => {
            Err("give an IP address of this machine or the name of a network interface".into())
        }
    }
}

/// `--max-peers`.
///
/// # Errors
/// What to write instead.
pub fn parse_peers_max(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|peers| (1..=65_535).contains(peers))
        .ok_or_else(|| "give a number from 1 to 65535".into())
}

/// `--upload-slots`.
///
/// # Errors
/// What to write instead.
pub fn parse_slots(text: &str) -> Result<UploadSlots, String> {
    if text == "auto" {
        return Ok(UploadSlots::Auto);
    }
    text.parse()
        .map(UploadSlots::Fixed)
        .map_err(|_| "give a number of peers, or auto".into())
}

/// `GYRE_VERBOSE`: how many `-v`.
///
/// # Errors
/// What to write instead.
pub fn parse_verbosity(text: &str) -> Result<u8, String> {
    text.parse()
        .map_err(|_| "give a number from 0, no log, to 3, everything".into())
}

/// `--seed-ratio`.
///
/// # Errors
/// What to write instead.
pub fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio.is_finite() && ratio >= 0.0 => Ok(ratio),
        _ => Err("a ratio is a number from 0, such as 1.5".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_takes_addresses_of_both_families_and_names() {
        assert_eq!(
            parse_bind("127.0.0.1"),
            Ok(BindTo::Addr([127, 0, 0, 1].into()))
        );
        let six: IpAddr = "fd00::2".parse().unwrap();
        assert_eq!(parse_bind("fd00::2"), Ok(BindTo::Addr(six)));
        assert_eq!(parse_bind("[fd00::2]"), Ok(BindTo::Addr(six)));
        assert_eq!(
            parse_bind("wg0.5"),
            Ok(BindTo::Interface("wg0.5".to_owned()))
        );
        for text in ["", "../x", "a b", "127.0.0.1:80", "sixteen-letters-x"] {
            assert!(parse_bind(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_is_a_name_or_an_address_with_a_port() {
        let good = |text: &str, host: &str, port| {
            assert_eq!(parse_host_port(text), Ok((host.to_owned(), port)));
        };
        good("router.example:6881", "router.example", 6881);
        good("127.0.0.1:1", "127.0.0.1", 1);
        good("[::1]:7", "::1", 7);
        for text in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:65536",
            "::1",
            "a b:1",
            "1.2.3.4:0",
        ] {
            assert!(parse_host_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_proxy_is_a_url_with_a_port() {
        let proxy = parse_proxy("socks5://us%40er:p:w%20d@Proxy.example:1080/").unwrap();
        assert_eq!(proxy.to_string(), "proxy.example:1080");
        assert_eq!(
            proxy.login,
            Login::new(b"us@er".to_vec(), b"p:w d".to_vec())
        );
        let proxy = parse_proxy("SOCKS5H://[::1]:9").unwrap();
        assert_eq!(
            (proxy.to_string(), proxy.login),
            ("[::1]:9".to_owned(), None)
        );
        for text in [
            "proxy:1080",
            "http://proxy:1080",
            "socks4://proxy:1080",
            "socks5://proxy",
            "socks5://proxy:0",
            "socks5://:p@proxy:1",
            "socks5://proxy:1/path",
        ] {
            assert!(parse_proxy(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_peer_needs_a_port() {
        assert!(parse_peer("[::1]:6881").is_ok());
        for text in ["1.2.3.4", "1.2.3.4:0", "host:1", "::1", "1.2.3.4:65536"] {
            assert!(parse_peer(text).is_err(), "{text}");
        }
        for nobody in [
            "224.0.0.1:5",
            "[ff02::1]:5",
            "0.0.0.0:5",
            "255.255.255.255:5",
        ] {
            assert!(parse_peer(nobody).is_err(), "{nobody}");
        }
        assert!(parse_addr("0.0.0.0:0").is_ok());
    }
}
